//! Prompt tuning (Lester et al., 2021): trained rows `[n, C]` in front of each example's embedded tokens.
//!
//! The rows count as positions and are rows of the output; the last of them predicts the first token. While they are
//! trained they may come out of a small network (P-tuning, [`super::p_tuning`]). Names and shapes are PEFT's.

pub(crate) mod encoder;
pub(crate) mod files;
pub(crate) mod held;
mod hub;
pub(crate) mod lstm;

use retune_formats::peft::{PeftAdapter, PeftConfig};
use retune_formats::prompt_config::{Prompt, PromptInit, PromptTuningConfig};
use retune_tensor::rng::Stream;
use retune_tensor::{Tape, Tensor, Var};

use super::{Attached, Spec, p_tuning, remember, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{PromptRows, Site};
use crate::run_file::{self, PromptEncoder, PromptTuningInit, RunFile};
use encoder::{Adder, Encoder};

pub(super) use hub::load as load_hub;

pub const SPEC: Spec = Spec {
    name: "prompt",
    summary: "trained virtual tokens in front of the text; a few kilobytes",
    source: "arXiv:2104.08691; P-tuning arXiv:2103.10385",
    default_lr: 1e-2,
    adapter: true,
    attach: |model, run| attach(model, &run.prompt, run),
};

const UNMERGEABLE: &str = "virtual tokens are rows of the input, not a change of a weight";

/// The virtual tokens of one adapter.
struct SoftPrompt {
    n: usize,
    encoder: Encoder,
    /// AdapterHub's.
    embedded: bool,
}

impl PromptRows for SoftPrompt {
    fn rows(&self) -> usize {
        self.n
    }

    fn forward(&self, tape: &Tape) -> Var {
        self.encoder.forward(tape)
    }

    fn is_embedded(&self) -> bool {
        self.embedded
    }
}

/// Freezes the base and puts trainable virtual tokens into slot 0.
///
/// # Errors
/// If the model has no place for them or too short a context, or the text that they shall start from is missing or
/// gives no tokens.
pub fn attach(model: &mut Model, settings: &run_file::Prompt, run: &RunFile) -> Result<Attached> {
    let (n, dim) = (settings.num_virtual_tokens as usize, model.net.hidden_size());
    check_site(model)?;
    files::check_length(model, n)?;
    let prompt = files::described(model, run, n, dim, model.text()?.attention(0).shape.heads);
    let config = match settings.encoder {
        PromptEncoder::None => PeftConfig::PromptTuning(config(settings, prompt)?),
        PromptEncoder::Mlp | PromptEncoder::Lstm => p_tuning::config(settings, prompt, dim),
    };
    let start = match settings.encoder {
        PromptEncoder::None => initial(model, settings, run.seed)?,
        _ => None,
    };
    let head = held::of_model(model);
    model.params.freeze_all();
    let mut add = Adder { params: &mut model.params, slot: 0, seed: run.seed };
    let encoder = match (settings.encoder, start) {
        (PromptEncoder::None, Some(rows)) => table(&mut add, rows)?,
        (PromptEncoder::None, None) => Encoder::of_table(add.table(TABLE, n, dim)?),
        _ => p_tuning::encoder(&mut add, settings, n, dim)?,
    };
    put(model, 0, n, encoder, config, head)
}

/// Puts a saved prompt into a slot; its rows are trainable, so that training may go on.
///
/// # Errors
/// If the folder is damaged or for another model.
pub(super) fn load(model: &mut Model, adapter: &PeftAdapter, slot: usize) -> Result<Attached> {
    let fail = |what: String| Error::Adapter { path: adapter.path().to_path_buf(), what };
    let prompt: &Prompt = match adapter.config() {
        PeftConfig::PromptTuning(config) => &config.prompt,
        PeftConfig::PTuning(config) => &config.prompt,
        other => return Err(fail(format!("its peft_type is {}, not a soft prompt's", other.peft_type()))),
    };
    check_site(model)?;
    files::check_length(model, prompt.num_virtual_tokens).map_err(|e| fail(e.to_string()))?;
    let rows = files::read(adapter, prompt, model.net.hidden_size())?;
    let (n, head) = (rows.rows(), held::of_files(model, adapter)?);
    model.params.freeze_all();
    let mut add = Adder { params: &mut model.params, slot, seed: 0 };
    let encoder = table(&mut add, rows)?;
    put(model, slot, n, encoder, adapter.config().clone(), head)
}

/// The name of the rows in files.
const TABLE: &str = "prompt_embeddings";

/// Rows that are trained themselves.
fn table(add: &mut Adder, rows: Tensor) -> Result<Encoder> {
    let shape = [rows.rows(), rows.cols()];
    Ok(Encoder::of_table(add.add(TABLE, &shape, rows)?))
}

fn put(
    model: &mut Model,
    slot: usize,
    n: usize,
    encoder: Encoder,
    config: PeftConfig,
    head: Vec<held::Part>,
) -> Result<Attached> {
    let saved = files::Saved { config, held: held::put(model, slot, head)? };
    place(model, slot, SoftPrompt { n, encoder: encoder.clone(), embedded: false });
    Ok(Attached {
        modules: vec!["prompt".into()],
        trainable: trainable_count(model),
        save: Some(Box::new(move |model, folder, readme| {
            saved.write(model, &encoder.values(&model.params), folder, readme)
        })),
        ..Attached::default()
    })
}

fn place(model: &mut Model, slot: usize, prompt: SoftPrompt) {
    let mut rows = Some(Box::new(prompt));
    model.net.visit_sites(&mut |site| {
        if let Site::Prompt(place) = site
            && let Some(rows) = rows.take()
        {
            place.rows.put(slot, rows);
        }
    });
    remember(model, slot, SPEC.name, Some(UNMERGEABLE));
}

/// # Errors
/// If the model has no place in front of embedded tokens.
fn check_site(model: &mut Model) -> Result<()> {
    let mut found = false;
    model.net.visit_sites(&mut |site| found |= matches!(site, Site::Prompt(_)));
    if found && model.net.blocks() > 0 {
        return Ok(());
    }
    let kind = model.net.model_type();
    Err(Error::Method(format!(
        "prompt tuning needs token embeddings; a {kind} model has none: use --method lora"
    )))
}

/// PEFT's configuration for these settings.
///
/// # Errors
/// If a text is wanted and there is none, or the other way round.
fn config(settings: &run_file::Prompt, prompt: Prompt) -> Result<PromptTuningConfig> {
    let from_text = settings.prompt_tuning_init == PromptTuningInit::Text;
    let text = settings.prompt_tuning_init_text.clone();
    match (from_text, &text) {
        (true, None) => {
            let what = "prompt_tuning_init is \"text\", but there is no prompt_tuning_init_text";
            return Err(Error::Method(what.into()));
        }
        (false, Some(_)) => {
            let what = "prompt_tuning_init_text is given, but prompt_tuning_init is not \"text\"";
            return Err(Error::Method(what.into()));
        }
        _ => {}
    }
    Ok(PromptTuningConfig {
        prompt_tuning_init: match settings.prompt_tuning_init {
            PromptTuningInit::Random => PromptInit::Random,
            PromptTuningInit::Text => PromptInit::Text,
            PromptTuningInit::SampleVocab => PromptInit::SampleVocab,
        },
        // PEFT needs a name there, and opens it only if it trains.
        tokenizer_name_or_path: from_text
            .then(|| prompt.common.base_model_name_or_path.clone().filter(|name| !name.is_empty()))
            .flatten()
            .or_else(|| from_text.then(|| "base".into())),
        prompt_tuning_init_text: text,
        prompt,
        ..PromptTuningConfig::default()
    })
}

/// The rows to start from, unless they are random.
fn initial(model: &Model, settings: &run_file::Prompt, seed: u64) -> Result<Option<Tensor>> {
    let n = settings.num_virtual_tokens as usize;
    let ids: Vec<u32> = match (settings.prompt_tuning_init, &settings.prompt_tuning_init_text) {
        (PromptTuningInit::Random, _) => return Ok(None),
        (PromptTuningInit::Text, text) => {
            let text = text.as_deref().unwrap_or_default();
            let tokenizer = model.files.language()?.tokenizer;
            // As PEFT does: what the tokenizer puts around every text is a part of it.
            let ids = tokenizer.encode_framed(text, None, usize::MAX)?.ids;
            if ids.is_empty() {
                let what = format!("prompt_tuning_init_text {text:?} gives no tokens");
                return Err(Error::Method(what));
            }
            ids.iter().copied().cycle().take(n).collect()
        }
        (PromptTuningInit::SampleVocab, _) => {
            let stream = Stream::named(seed, TABLE);
            let vocab = model.text()?.info().vocab_size;
            (0..n).map(|i| stream.below(i as u64, vocab) as u32).collect()
        }
    };
    model.check_ids(&ids)?;
    Ok(Some(embeddings(model, &ids)?))
}

/// The token table's rows for `ids`.
fn embeddings(model: &Model, ids: &[u32]) -> Result<Tensor> {
    let tables = model.net.embeddings();
    let table = tables.first().ok_or_else(|| Error::Method("this model has no token table".into()))?;
    let weight = &model.params.get(table.weight).weight;
    let mut rows = Tensor::zeros(ids.len(), table.dim);
    for (out, &id) in rows.data_mut().chunks_exact_mut(table.dim.max(1)).zip(ids) {
        weight.storage().decode(id as usize, 0, out);
    }
    Ok(rows)
}
