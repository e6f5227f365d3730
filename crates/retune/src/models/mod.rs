//! Architectures, one file each; a new one is a file and two adjacent lines here.

pub mod config;
pub mod files;
pub mod fresh;
pub mod llama;
pub mod loader;
pub mod rope;

use std::path::Path;

use retune_tensor::{Params, Segments, Tape, Tensor, Var};

use crate::error::{Error, Result};
use crate::nn::{Linear, Pass, Site};
pub use files::ModelFiles;
pub use loader::StorageChoice;

/// An architecture as help texts and tables show it.
pub struct Spec {
    /// The `model_type`s of `config.json` and architectures of GGUF that it covers.
    pub model_types: &'static [&'static str],
    pub name: &'static str,
    pub summary: &'static str,
    pub load: fn(&ModelFiles, StorageChoice) -> Result<Model>,
    /// The parameters of a model of this configuration, freshly drawn.
    pub fresh: fn(&config::Config, fresh::Draw) -> Result<Params>,
}

/// All architectures.
pub const MODELS: &[&Spec] = &[
    &llama::SPEC, //
];

/// Sizes that reports and plans need.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `model_type`, as in `config.json`.
    pub model_type: String,
    pub hidden_size: usize,
    pub layers: usize,
    pub vocab_size: usize,
    /// `max_position_embeddings`: the longest text the model was made for.
    pub context_length: usize,
}

/// What a training step keeps in memory, for the plan. Elements are f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationProfile {
    pub blocks: usize,
    /// Elements that one block keeps for each row until its backward pass.
    pub kept_per_row: usize,
    /// Elements per row that exist beside that while a block runs forward or backward.
    pub transient_per_row: usize,
    /// Elements per row that exist while a block runs and nothing is recorded.
    pub inference_per_row: usize,
    /// Elements per row that all blocks share (rotation tables), and those after the last block.
    pub shared_per_row: usize,
    /// Elements of a block's input per row: what a checkpointed block keeps.
    pub input_per_row: usize,
    /// Width of the logits.
    pub logits: usize,
}

/// A text trunk with a language-model head, as tasks and generation see it.
pub trait TextModel: Send + Sync {
    fn info(&self) -> ModelInfo;

    /// The normed hidden rows `[T, C]` of texts laid end to end. Ids must be below the vocabulary size.
    fn hidden<'p>(&'p self, tape: &Tape<'p>, ids: &[u32], segments: &Segments, pass: &Pass) -> Var;

    /// As [`TextModel::hidden`] for the next rows of one text whose earlier keys and values are in `cache`.
    fn hidden_cached(&self, params: &Params, ids: &[u32], cache: &mut KvCache) -> Tensor;

    fn head(&self) -> &Linear;

    /// All linear layers, the head last.
    fn linears(&self) -> Vec<&Linear>;

    /// Calls `visit` with every site, in order.
    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>));

    /// The model as a Hugging Face `config.json`.
    fn config_json(&self) -> serde_json::Value;

    fn activation_profile(&self) -> ActivationProfile;

    /// A cache for texts of up to `rows` rows.
    fn new_cache(&self, rows: usize) -> KvCache;
}

/// Keys and values of one text, layer by layer.
pub struct KvCache {
    /// `(keys, values)`, each `[capacity, kv_heads * head_dim]` of which `len` rows are filled.
    pub layers: Vec<(Tensor, Tensor)>,
    pub len: usize,
    pub capacity: usize,
}

impl KvCache {
    pub fn new(layers: usize, capacity: usize, kv_cols: usize) -> KvCache {
        let one = || Tensor::zeros(capacity, kv_cols);
        KvCache { layers: (0..layers).map(|_| (one(), one())).collect(), len: 0, capacity }
    }

    /// Appends rows to one layer's keys and values; [`KvCache::len`] moves when all layers are done.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> (&[f32], &[f32]) {
        let at = self.len * k.cols();
        let (keys, values) = &mut self.layers[layer];
        keys.data_mut()[at..at + k.len()].copy_from_slice(k.data());
        values.data_mut()[at..at + v.len()].copy_from_slice(v.data());
        (keys.data(), values.data())
    }
}

/// A loaded model: its parameters, its network, and where it came from.
pub struct Model {
    pub params: Params,
    pub net: Box<dyn TextModel>,
    pub files: ModelFiles,
}

impl Model {
    /// Opens a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// If the files are damaged, the architecture is unknown, or a tensor is missing, unexpected or of a wrong shape.
    pub fn load(path: &Path, storage: StorageChoice) -> Result<Model> {
        let files = ModelFiles::open(path)?;
        let spec = spec_of(&files)?;
        (spec.load)(&files, storage)
    }

    /// Module paths of all linear layers, and those of them that are heads.
    pub fn linear_paths(&mut self) -> (Vec<String>, Vec<String>) {
        let mut all = Vec::new();
        self.net.visit_sites(&mut |site| {
            if let Site::Linear(layer) = site {
                all.push(layer.path.clone());
            }
        });
        (all, vec![self.net.head().path.clone()])
    }

    /// Checks ids before they index a table.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        check_ids(self.net.as_ref(), ids)
    }
}

/// Checks ids before they index a table.
///
/// # Errors
/// If an id is not below the model's vocabulary size.
pub fn check_ids(net: &dyn TextModel, ids: &[u32]) -> Result<()> {
    let vocab = net.info().vocab_size;
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(Error::Input(format!(
            "token id {id} is outside the model's vocabulary of {vocab}: the tokenizer is not this model's"
        ))),
        None => Ok(()),
    }
}

/// The registered architecture of some files.
pub fn spec_of(files: &ModelFiles) -> Result<&'static Spec> {
    spec_of_type(&files.model_type()?, files.path())
}

/// The registered architecture of a `model_type`; `path` is for the message.
pub fn spec_of_type(model_type: &str, path: &Path) -> Result<&'static Spec> {
    MODELS.iter().find(|spec| spec.model_types.contains(&model_type)).copied().ok_or_else(|| {
        let known: Vec<&str> = MODELS.iter().flat_map(|spec| spec.model_types.iter().copied()).collect();
        Error::Model {
            path: path.to_path_buf(),
            what: format!("model type \"{model_type}\" is not supported; these are: {}", known.join(", ")),
        }
    })
}
