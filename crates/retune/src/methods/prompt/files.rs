//! Prompts and prefixes on disk, as PEFT writes and reads them: one tensor, `prompt_embeddings`.

use std::path::Path;

use retune_formats::TensorOut;
use retune_formats::peft::{self, Param, PeftAdapter, PeftConfig};
use retune_formats::peft_common::Common;
use retune_formats::prompt_config::Prompt;
use retune_tensor::Tensor;

use super::held::{self, Held};
use crate::error::{Error, Result};
use crate::methods::saved::CLASSIFIERS;
use crate::models::Model;
use crate::nn::{Head, Problem};
use crate::run_file::RunFile;

/// The keys that prompts and prefixes share, for `n` virtual tokens of width `token_dim` on this model.
pub(crate) fn described(model: &Model, run: &RunFile, n: usize, token_dim: usize, heads: usize) -> Prompt {
    Prompt {
        num_virtual_tokens: n,
        token_dim: Some(token_dim),
        num_transformer_submodules: Some(1),
        num_attention_heads: Some(heads),
        num_layers: Some(model.net.blocks()),
        modules_to_save: held::is_classifier(model).then(|| CLASSIFIERS.map(String::from).to_vec()),
        common: Common {
            task_type: task_type(model).map(String::from),
            base_model_name_or_path: Some(run.model.display().to_string()),
            ..Common::default()
        },
    }
}

/// What PEFT calls the task of the model's head.
pub(crate) fn task_type(model: &Model) -> Option<&'static str> {
    match model.net.head() {
        Head::Classifier(head) if head.problem == Problem::Tokens => Some("TOKEN_CLS"),
        Head::Classifier(_) => Some("SEQ_CLS"),
        Head::LanguageModel(_) if model.text().is_ok_and(|net| net.info().decoder) => Some("CAUSAL_LM"),
        Head::LanguageModel(_) if model.net.as_speech().is_some() => Some("SEQ_2_SEQ_LM"),
        Head::LanguageModel(_) | Head::Detector(_) | Head::None => None,
    }
}

/// # Errors
/// If so many virtual tokens leave the model no room for a text.
pub(crate) fn check_length(model: &Model, n: usize) -> Result<()> {
    let most = match model.net.as_speech() {
        Some(net) => net.config().max_target_positions,
        None => model.text()?.info().context_length,
    };
    match n {
        0 => Err(Error::Method("num_virtual_tokens is 0; it must be at least 1".into())),
        n if n < most => Ok(()),
        n => Err(Error::Method(format!(
            "num_virtual_tokens is {n}, but the model's context has {} positions: use fewer",
            most
        ))),
    }
}

/// What an adapter of virtual tokens is saved as.
pub(crate) struct Saved {
    pub config: PeftConfig,
    /// The head that was trained beside it.
    pub held: Held,
}

impl Saved {
    /// Writes `rows` `[n, d]` and the head as an adapter folder; `readme` is the model card.
    ///
    /// # Errors
    /// If a value is not finite or the folder cannot be written.
    pub fn write(&self, model: &Model, rows: &Tensor, folder: &Path, readme: Option<&str>) -> Result<()> {
        let name = self.config.key("", &Param::PromptEmbeddings);
        let mut tensors = vec![out(name, &[rows.rows(), rows.cols()], rows, folder)?];
        for (name, id) in &self.held {
            let param = model.params.get(*id);
            tensors.push(out(name.clone(), &param.shape, &param.weight.to_tensor(), folder)?);
        }
        Ok(peft::write(folder, &self.config, tensors, readme)?)
    }
}

fn out(name: String, shape: &[usize], values: &Tensor, folder: &Path) -> Result<TensorOut<'static>> {
    if values.all_finite() {
        return Ok(TensorOut::f32(name, shape, values.data().to_vec()));
    }
    let what = format!("{name} is not finite and is not written");
    Err(Error::Adapter { path: folder.to_path_buf(), what })
}

/// Reads `prompt_embeddings`, which must be `[n, cols]`.
///
/// # Errors
/// If the tensor is missing or of another shape, or there is more in the file.
pub(crate) fn read(adapter: &PeftAdapter, prompt: &Prompt, cols: usize) -> Result<Tensor> {
    let fail = |what: String| Error::Adapter { path: adapter.path().to_path_buf(), what };
    if prompt.num_transformer_submodules.unwrap_or(1) != 1 {
        return Err(fail("it is for an encoder and a decoder (num_transformer_submodules is 2)".into()));
    }
    let Some(tensor) = adapter.find("", &Param::PromptEmbeddings) else {
        return Err(fail("there is no tensor \"prompt_embeddings\" in it".into()));
    };
    let wanted = [prompt.num_virtual_tokens, cols];
    if tensor.info.shape != wanted {
        let what = format!(
            "prompt_embeddings is {:?}, but this model needs {wanted:?}. Is it for another base?",
            tensor.info.shape
        );
        return Err(fail(what));
    }
    Ok(Tensor::from_vec(wanted[0], wanted[1], adapter.read_f32(tensor)?))
}
