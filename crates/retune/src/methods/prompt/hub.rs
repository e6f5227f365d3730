//! Prompts of AdapterHub: rows that stand in front of rows whose position, type and norm are in them already.
//!
//! They take no position, and are trained and saved as they are; PEFT has no such prompt. Encoders alone have them there.

use retune_formats::adapter_hub::{HubAdapter, HubMethod, HubParam};
use retune_tensor::Tensor;

use super::encoder::{Adder, Encoder};
use super::{SoftPrompt, check_site, place};
use crate::error::{Error, Result};
use crate::methods::{Attached, adapter, trainable_count};
use crate::models::Model;

/// Puts a saved prompt into a slot, and the head beside it; both are trainable, so that training may go on.
///
/// # Errors
/// If the folder is for another model, or the prompt stands behind the first token.
pub(in crate::methods) fn load(model: &mut Model, files: &HubAdapter, slot: usize) -> Result<Attached> {
    let fail = |e: Error| match e {
        Error::Method(what) => Error::Adapter { path: files.path().to_path_buf(), what },
        other => other,
    };
    let rows = read(model, files).map_err(fail)?;
    check_site(model)?;
    let head = adapter::read_head(model, files).map_err(fail)?;
    model.params.freeze_all();
    let config = files.config().clone();
    let site = files.tensors().first().map(|tensor| tensor.site.clone()).unwrap_or_default();
    let key = config.key(&site, HubParam::PromptEmbedding);
    let (n, shape) = (rows.rows(), [rows.rows(), rows.cols()]);
    let mut add = Adder { params: &mut model.params, slot, seed: 0 };
    let table = add.add(&key, &shape, rows)?;
    let held = head.map(|head| head.put(model, slot)).transpose()?;
    place(model, slot, SoftPrompt { n, encoder: Encoder::of_table(table), embedded: true });
    Ok(Attached {
        modules: vec!["prompt".into()],
        trainable: trainable_count(model),
        // The virtual tokens are rows, and are counted as such.
        save: Some(Box::new(move |model, folder, readme| {
            let tensors = vec![adapter::out(&key, model.params.get(table), folder)?];
            adapter::write(model, &config, tensors, held.as_ref(), folder, readme)
        })),
        ..Attached::default()
    })
}

fn read(model: &Model, files: &HubAdapter) -> Result<Tensor> {
    let fail = |what: String| Err(Error::Method(what));
    let HubMethod::Prompt(prompt) = &files.config().method else {
        return fail("it is no prompt".into());
    };
    let info = model.text()?.info();
    if info.decoder {
        return fail(format!(
            "AdapterHub has prompts of encoders alone; this is a {} model",
            info.model_type
        ));
    }
    if prompt.after_bos {
        let what = "its prompt stands behind the first token (`combine` is \"prefix_after_bos\"): prompts in front of the text \
                    are supported";
        return fail(what.into());
    }
    let [tensor] = files.tensors() else {
        return fail(format!("it has {} tensors; one was due", files.tensors().len()));
    };
    let wanted = [prompt.prompt_length, info.hidden_size];
    if tensor.info.shape != wanted {
        return fail(format!(
            "tensor \"{}\" is {:?}; this model needs {wanted:?}. Is it for another base?",
            tensor.info.name, tensor.info.shape
        ));
    }
    Ok(Tensor::from_vec(wanted[0], wanted[1], files.read_f32(tensor)?))
}
