//! Which tensors a written model has: the base's, with the adapters' part or without.

use retune_formats::{Dtype, TensorSource};
use retune_tensor::params::Param;

use super::values::{Merged, Values};
use super::{ExportOptions, quantised};
use crate::models::{Model, ModelFiles};
use crate::nn::Linear;

/// What is written, in the order of the model.
pub struct Selection<'a> {
    pub values: Vec<Values<'a>>,
    /// Must `tie_word_embeddings` become false?
    pub unties: bool,
    /// Deltas on the model that are not merged.
    left_out: usize,
    /// Base weights that were trained.
    trained: bool,
    /// Weights that memory holds coarser than the files do.
    coarser: bool,
}

impl<'a> Selection<'a> {
    pub fn new(model: &'a Model, options: &ExportOptions) -> Selection<'a> {
        let all = Merged::of(model);
        let left_out = if options.merge { 0 } else { all.len() };
        let mut changes = if options.merge { all } else { Default::default() };
        let base = || model.params.iter().map(|(_, p)| p).filter(|p| !p.adapter);
        let of = |name: &str, param: &'a Param, merged| Values { name: name.into(), param, merged };
        let mut values: Vec<Values> = base()
            .map(|param| of(&param.name, param, changes.remove(&param.name).map(|(_, merged)| merged)))
            .collect();
        // What shares its weight with another (a tied head) and is changed alone gets one of its own.
        let head = model.net.language_model().map(|head| &head.linear);
        let tied = head.filter(|head| values.iter().any(|v| is_changed_table(v, model, head)));
        let own = tied.map(|head| format!("{}.weight", head.path));
        if let (Some(name), Some(head)) = (own.filter(|name| !changes.contains_key(name)), tied) {
            values.push(of(&name, model.params.get(head.weight), None));
        }
        let unties = tied.is_some() || !changes.is_empty();
        for (name, (id, merged)) in changes {
            values.push(of(&name, model.params.get(id), Some(merged)));
        }
        Selection {
            values,
            unties,
            left_out,
            trained: base().any(|param| param.trainable),
            coarser: is_coarser(model, base()),
        }
    }

    /// Module paths into which an adapter is merged.
    pub fn merged(&self) -> Vec<String> {
        self.values.iter().filter_map(|values| values.merged?.module()).map(String::from).collect()
    }

    /// Are these the base's values (if they are written exactly)?
    pub fn is_base(&self) -> bool {
        !self.trained && !self.coarser && self.values.iter().all(|values| values.merged.is_none())
    }

    /// What people should know, whatever the file.
    pub fn notes(&self, model: &Model) -> Vec<String> {
        let mut notes = Vec::new();
        if self.unties {
            notes.push(
                "the head had the embedding's weight and was changed: it now has a weight of its own".into(),
            );
        }
        if let Some(pooling) = model.net.config_json()["classifier_pooling"].as_str() {
            notes.push(format!(
                "the classifier reads texts by \"classifier_pooling\": \"{pooling}\", which transformers' class of this \
                 architecture does not know: its answers there are others"
            ));
        }
        if self.left_out > 0 {
            notes.push(format!(
                "an adapter on {} modules was left out: this is the base alone",
                self.left_out
            ));
        }
        if self.coarser {
            notes.push(
                "the weights were held in bf16 and are written as rounded; load them as they lie".into(),
            );
        }
        notes
    }
}

/// Is this the table that a head shares, changed for the look-up alone?
fn is_changed_table(values: &Values, model: &Model, head: &Linear) -> bool {
    matches!(values.merged, Some(Merged::Table(table, _)) if table.weight == head.weight)
        && values.name == model.params.get(head.weight).name
}

/// Does memory hold weights in bf16 that the files hold otherwise?
fn is_coarser<'a>(model: &Model, base: impl Iterator<Item = &'a Param>) -> bool {
    let mut held = base.filter(|param| param.weight.storage().format() == "bf16");
    match &model.files {
        ModelFiles::Folder(_) => {
            held.any(|param| source_dtype(model, &param.name).is_some_and(|dtype| dtype != Dtype::BF16))
        }
        ModelFiles::Image(_) | ModelFiles::Speech(_) => held.next().is_some(),
        // Its names are others, but as it lies no more can be bf16 than in the file.
        ModelFiles::Gguf(file) => {
            held.count() > file.tensors().iter().filter(|info| info.dtype == Dtype::BF16).count()
        }
    }
}

/// The type of a tensor in a folder's files, by its Hugging Face name; files of a trunk alone leave out the first part.
fn source_dtype(model: &Model, name: &str) -> Option<Dtype> {
    let ModelFiles::Folder(folder) = &model.files else { return None };
    let find = |name: &str| folder.weights().find(name).map(|info| info.dtype);
    find(name).or_else(|| find(name.split_once('.')?.1))
}

/// The plain type that keeps a parameter's values, or that its file has.
pub fn dense_of(model: &Model, param: &Param) -> Dtype {
    // Next to quantised weights, whose values need f32, halves would only cost precision.
    let plain = quantised(&model.files).is_empty();
    match source_dtype(model, &param.name) {
        Some(half @ (Dtype::F16 | Dtype::BF16)) => half,
        Some(_) => Dtype::F32,
        None => match param.weight.storage().format() {
            "f16" if plain => Dtype::F16,
            "bf16" if plain => Dtype::BF16,
            _ => Dtype::F32,
        },
    }
}
