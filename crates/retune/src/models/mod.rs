//! Architectures, one file each; a new one is a file and two adjacent lines here.

pub mod bert;
pub mod config;
pub mod darknet;
pub mod detection_head;
pub mod efficientnet;
pub mod files;
pub mod fresh;
mod gguf_form;
pub mod gpt2;
pub mod graph;
pub mod heads;
pub mod image_file;
pub mod image_head;
mod in_file;
pub mod llama;
pub mod loader;
mod lost;
mod matrix;
pub mod quantised;
pub mod rope;
mod snapshot;
pub mod streamed;
pub mod vgg;
pub mod whisper;
mod without_adapter;
pub mod yolov8;

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use retune_tensor::{Params, Segments, Tape, Tensor, Var};

use crate::error::{Error, Result};
use crate::nn::{
    Active, Attention, Caches, Embedding, Head, Hidden, KvCache, LanguageModelHead, Linear, Pass, Pooling,
    Problem, Rows, Shared, Site,
};
use crate::train::available_memory;
pub use files::ModelFiles;
pub use gguf_form::{GgufForm, Keys};
pub use graph::ImageModel;
pub use loader::{LoadOptions, StorageChoice};
pub use quantised::Quantisation;
pub use snapshot::Snapshot;
pub use streamed::Pager;
pub use whisper::Whisper;
pub use without_adapter::WithoutAdapter;

/// An architecture as help texts and tables show it.
pub struct Spec {
    /// The `model_type`s of `config.json` and architectures of GGUF that it covers.
    pub model_types: &'static [&'static str],
    pub name: &'static str,
    pub summary: &'static str,
    pub reads: Reads,
    /// It finds objects; other image networks tell what a picture shows.
    pub detects: bool,
    pub load: fn(&ModelFiles, &LoadOptions, &HeadRequest) -> Result<Model>,
    /// The parameters of a model of this configuration, freshly drawn.
    pub fresh: fn(&config::Config, fresh::Draw) -> Result<Params>,
}

/// What an architecture reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    Text,
    Pictures,
    Sound,
}

/// All architectures.
pub const MODELS: &[&Spec] = &[
    &llama::SPEC, //
    &bert::SPEC,
    &gpt2::SPEC,
    &vgg::SPEC,
    &efficientnet::SPEC,
    &darknet::SPEC,
    &yolov8::SPEC,
    &whisper::SPEC,
];

/// The head that a model is loaded with.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum HeadRequest {
    /// What the files have.
    #[default]
    AsFile,
    /// A classifier over these labels. It takes the files' weights if their shapes fit and `keep` is set; else it is
    /// drawn from the seed.
    Classifier {
        problem: Problem,
        labels: Vec<String>,
        /// `None`: as transformers does for the architecture.
        pooling: Option<Pooling>,
        keep: bool,
        seed: u64,
        /// Height and width of the pictures that an image network is to read; `None`: as its files say.
        image_size: Option<(usize, usize)>,
    },
    /// A detector of these classes. With other classes than the files' it keeps what it says of boxes and is drawn from the seed in what it
    /// says of classes; with the same it keeps both, if `keep` is set.
    Detector {
        labels: Vec<String>,
        keep: bool,
        seed: u64,
        /// Height and width of the pictures; `None`: as its files say.
        image_size: Option<(usize, usize)>,
    },
    /// A language model's head: it must be in the files.
    LanguageModel,
    /// The trunk alone.
    None,
}

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
    /// Positions are rows of a table: there is none beyond the context.
    pub learned_positions: bool,
    /// Each row sees those before it alone, so that text can be generated.
    pub decoder: bool,
}

/// Some texts laid end to end.
#[derive(Clone, Copy)]
pub struct TextInput<'a> {
    /// Below the vocabulary size.
    pub ids: &'a [u32],
    /// 0 for a text, 1 for the second of a pair; empty: all 0.
    pub token_types: &'a [u32],
    pub segments: &'a Segments,
    /// For each text the positions before these rows, in a cache: a soft prompt's are among them already.
    pub before: Option<&'a [usize]>,
}

impl<'a> TextInput<'a> {
    /// Single texts.
    pub fn new(ids: &'a [u32], segments: &'a Segments) -> TextInput<'a> {
        TextInput { ids, token_types: &[], segments, before: None }
    }
}

/// What every network has, whatever it reads: what methods, export and reports see.
pub trait Network: Send + Sync {
    /// `model_type`, as in `config.json`.
    fn model_type(&self) -> String;

    /// Channels of what the head reads.
    fn hidden_size(&self) -> usize;

    fn blocks(&self) -> usize;

    /// The block that a parameter belongs to; `None` of what lies in front of, behind or beside them.
    fn block_of(&self, parameter: &str) -> Option<usize>;

    /// The number that the model's own files give to the layer of a parameter, as far as it lies in front of the head: what
    /// `freeze` counts. Blocks, unless a network is cut into them otherwise.
    fn layer_of(&self, parameter: &str) -> Option<usize> {
        self.block_of(parameter)
    }

    fn head(&self) -> &Head;

    /// The linears of the trunk, without the head's.
    fn trunk_linears(&self) -> Vec<&Linear>;

    /// The token tables.
    fn embeddings(&self) -> Vec<&Embedding> {
        Vec::new()
    }

    /// Calls `visit` with every site, in order, the head's last.
    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>));

    /// The model as a Hugging Face `config.json`.
    fn config_json(&self) -> serde_json::Value;

    /// The model in llama.cpp's words.
    ///
    /// # Errors
    /// Why it has none.
    fn gguf_form(&self) -> std::result::Result<GgufForm, String> {
        Err(format!(
            "models of type \"{}\" are not written as GGUF; llama, mistral, qwen2, qwen3 and gpt2 are",
            self.model_type()
        ))
    }

    /// The head of a language model.
    fn language_model(&self) -> Option<&LanguageModelHead> {
        match self.head() {
            Head::LanguageModel(head) => Some(head),
            _ => None,
        }
    }

    /// All linear layers, the head's last.
    fn linears(&self) -> Vec<&Linear> {
        let mut all = self.trunk_linears();
        all.extend(self.head().linears());
        all
    }
}

/// A text trunk with its head, as tasks and generation see it: embedded rows, blocks, a last norm.
pub trait TextModel: Network {
    fn info(&self) -> ModelInfo;

    /// The rows that the first block reads, virtual ones of a soft prompt included.
    fn embed(&self, tape: &Tape, input: &TextInput, pass: &Pass) -> Hidden;

    /// What all blocks share for these rows; `before` as in [`TextInput`].
    fn shared(&self, rows: &Rows, before: Option<&[usize]>) -> Shared;

    /// One block, `[T, C]` to `[T, C]`. With a cache, over the keys and values of the rows before too.
    fn block(&self, tape: &Tape, shared: &Shared, index: usize, x: &Var, cache: Option<&mut Caches>) -> Var;

    /// After the last block: the norm, where the model has one there.
    fn finish(&self, tape: &Tape, x: &Var) -> Var;

    /// The heads of a layer.
    fn attention(&self, layer: usize) -> &Attention;

    /// The normed hidden rows of texts.
    fn hidden<'p>(&'p self, tape: &Tape<'p>, input: &TextInput, pass: &Pass) -> Hidden {
        let embedded = self.embed(tape, input, pass);
        self.upper(tape, embedded, 0, pass)
    }

    /// Blocks `from..` and the last norm, over the rows that block `from` reads.
    fn upper<'p>(&'p self, tape: &Tape<'p>, hidden: Hidden, from: usize, pass: &Pass) -> Hidden {
        let Hidden { mut x, rows } = hidden;
        let shared = Arc::new(self.shared(&rows, None));
        for index in from..self.blocks() {
            x = if pass.checkpoint {
                let shared = shared.clone();
                tape.checkpoint(&x, move |tape, x| self.block(tape, &shared, index, x, None))
            } else {
                self.block(tape, &shared, index, &x, None)
            };
        }
        Hidden { x: self.finish(tape, &x), rows }
    }

    /// The rows that block `to` reads: the embedded texts through the blocks below it. Nothing is recorded.
    fn lower(&self, params: &Params, input: &TextInput, to: usize, pass: &Pass) -> Hidden {
        let tape = Tape::inference(params);
        let Hidden { mut x, rows } = self.embed(&tape, input, pass);
        let shared = self.shared(&rows, None);
        for index in 0..to {
            x = self.block(&tape, &shared, index, &x, None);
        }
        Hidden { x, rows }
    }

    /// The normed hidden rows `[n, C]` of the next rows of one text whose earlier keys and values are in `cache`. The
    /// first call puts the adapter's prefix or soft prompt in front.
    fn hidden_cached(&self, params: &Params, ids: &[u32], cache: &mut KvCache) -> Tensor {
        let segments = Segments::from_lengths(&[ids.len()]);
        self.hidden_cached_each(params, ids, &segments, Caches::new(vec![cache]))
    }

    /// The same of several texts in one pass, each with its own cache and adapter.
    fn hidden_cached_each(
        &self,
        params: &Params,
        ids: &[u32],
        segments: &Segments,
        mut caches: Caches,
    ) -> Tensor {
        let tape = Tape::inference(params);
        let before = caches.positions();
        if before.is_none() {
            for cache in caches.texts() {
                let slot = cache.active.of(0);
                for layer in 0..self.blocks() {
                    self.attention(layer).start_cache(&tape, slot, cache);
                }
                cache.len = self.prefix_rows(slot);
                cache.virtual_rows = self.virtual_rows(slot);
                cache.unplaced = self.prefix_rows(slot) - self.prefix_positions(slot);
            }
        }
        let pass = Pass { active: caches.active(), ..Pass::default() };
        let input = TextInput { before: before.as_deref(), ..TextInput::new(ids, segments) };
        let Hidden { mut x, rows } = self.embed(&tape, &input, &pass);
        let shared = self.shared(&rows, before.as_deref());
        for index in 0..self.blocks() {
            x = self.block(&tape, &shared, index, &x, Some(&mut caches));
        }
        for (example, cache) in caches.texts().enumerate() {
            cache.len += rows.segments.length(example);
        }
        self.finish(&tape, &x).value().clone()
    }

    /// The position of each of `rows`; `before` as in [`TextInput`]. Real rows stand behind a prefix.
    fn positions(&self, rows: &Rows, before: Option<&[usize]>) -> Vec<usize> {
        let first = |example: usize| match before {
            Some(before) => before.get(example).copied().unwrap_or(0),
            None => self.prefix_positions(rows.active.of(example)),
        };
        let ranges = rows.segments.ranges().enumerate();
        ranges.flat_map(|(example, r)| (0..r.len()).map(move |i| first(example) + i)).collect()
    }

    /// Keys in front of each example's that goes through this slot.
    fn prefix_rows(&self, slot: Option<usize>) -> usize {
        if self.blocks() == 0 { 0 } else { self.attention(0).prefix_rows(slot) }
    }

    /// By how many positions a prefix moves an example's own rows.
    fn prefix_positions(&self, slot: Option<usize>) -> usize {
        if self.blocks() == 0 { 0 } else { self.attention(0).prefix_positions(slot) }
    }

    /// Virtual tokens of a soft prompt in front of each example that goes through this slot: they are rows.
    fn prompt_rows(&self, slot: Option<usize>) -> usize;

    /// Positions that a soft prompt takes.
    fn prompt_positions(&self, slot: Option<usize>) -> usize;

    /// Rows that an adapter puts in front of a text, keys alone among them.
    fn virtual_rows(&self, slot: Option<usize>) -> usize {
        self.prefix_rows(slot) + self.prompt_rows(slot)
    }

    /// Positions that an adapter takes from the model's context.
    fn virtual_positions(&self, slot: Option<usize>) -> usize {
        self.prefix_positions(slot) + self.prompt_positions(slot)
    }

    /// A cache for a text of up to `rows` rows of its own through an adapter.
    fn new_cache(&self, rows: usize, active: Active) -> KvCache {
        let layers = self.blocks();
        let cols = (0..layers).map(|l| &self.attention(l).shape).map(|s| s.kv_heads * s.head_dim).max();
        let ModelInfo { context_length, learned_positions, .. } = self.info();
        let slot = active.of(0);
        let unplaced = self.virtual_rows(slot) - self.virtual_positions(slot);
        let most = if learned_positions { context_length + unplaced } else { usize::MAX };
        let capacity = (rows + self.virtual_rows(slot)).min(most);
        KvCache::new(layers, capacity, cols.unwrap_or(0), active)
    }
}

/// A network by what it reads.
pub enum Net {
    Text(Box<dyn TextModel>),
    Image(Box<ImageModel>),
    Speech(Box<Whisper>),
}

impl Net {
    /// If it reads text.
    pub fn as_text(&self) -> Option<&dyn TextModel> {
        if let Net::Text(net) = self { Some(net.as_ref()) } else { None }
    }

    /// If it reads pictures.
    pub fn as_image(&self) -> Option<&ImageModel> {
        if let Net::Image(net) = self { Some(net) } else { None }
    }

    /// If it reads sound.
    pub fn as_speech(&self) -> Option<&Whisper> {
        if let Net::Speech(net) = self { Some(net) } else { None }
    }

    /// What it reads, in a word.
    fn reads(&self) -> &'static str {
        match self {
            Net::Text(_) => "text",
            Net::Image(_) => "pictures",
            Net::Speech(_) => "sound",
        }
    }
}

impl Deref for Net {
    type Target = dyn Network;

    fn deref(&self) -> &(dyn Network + 'static) {
        match self {
            Net::Text(net) => net.as_ref(),
            Net::Image(net) => net.as_ref(),
            Net::Speech(net) => net.as_ref(),
        }
    }
}

impl DerefMut for Net {
    fn deref_mut(&mut self) -> &mut (dyn Network + 'static) {
        match self {
            Net::Text(net) => net.as_mut(),
            Net::Image(net) => net.as_mut(),
            Net::Speech(net) => net.as_mut(),
        }
    }
}

/// An adapter that was put on a model.
#[derive(Clone, Debug, PartialEq)]
pub struct OnModel {
    pub slot: usize,
    pub method: &'static str,
    /// Why it cannot become part of the weights, if it cannot.
    pub unmergeable: Option<String>,
    /// It overwrote parameters of the base in memory: nothing else can be mixed with it.
    pub changes_base: bool,
}

/// A loaded model: its parameters, its network, where it came from, and what was put on it.
pub struct Model {
    pub params: Params,
    pub net: Net,
    pub files: ModelFiles,
    pub adapters: Vec<OnModel>,
    /// What reads the weights that stay in their files, if any do.
    pub pager: Option<Pager>,
}

impl Model {
    /// Opens a Hugging Face folder or a GGUF file, with the head that it has.
    ///
    /// # Errors
    /// If the files are damaged, the architecture is unknown, or a tensor is missing, unexpected or of a wrong shape.
    pub fn load(path: &Path, options: impl Into<LoadOptions>) -> Result<Model> {
        Model::load_with(path, options, &HeadRequest::AsFile)
    }

    /// As [`Model::load`], with a head of one's choice.
    ///
    /// # Errors
    /// Besides: if the architecture or its files cannot have such a head; if the files are quantised in another way than
    /// bitsandbytes' or GGUF's.
    pub fn load_with(path: &Path, options: impl Into<LoadOptions>, head: &HeadRequest) -> Result<Model> {
        let files = ModelFiles::open(path)?;
        let spec = spec_of(&files)?;
        files.quantization_config()?;
        let model = (spec.load)(&files, &options.into(), head)?;
        if let Some(pager) = &model.pager {
            // Training asks for what its plan leaves.
            pager.set_budget(available_memory(None).map(|limit| limit.bytes / 2));
        }
        Ok(model)
    }

    /// An error if values of weights could not be had since the model was loaded: what was computed is worth nothing.
    ///
    /// # Errors
    /// It says which file changed, and how.
    pub fn check_weights(&self) -> Result<()> {
        self.params.fault().map_or(Ok(()), |fault| Err(Error::Weights(fault)))
    }

    /// Module paths of all linear layers, and those of them that are heads.
    pub fn linear_paths(&self) -> (Vec<String>, Vec<String>) {
        let paths = |layers: Vec<&Linear>| layers.into_iter().map(|layer| layer.path.clone()).collect();
        (paths(self.net.linears()), paths(self.net.head().linears()))
    }

    /// The network, if it reads text.
    ///
    /// # Errors
    /// If it reads something else.
    pub fn text(&self) -> Result<&dyn TextModel> {
        self.net.as_text().ok_or_else(|| self.reads("text"))
    }

    /// The network, if it reads pictures.
    ///
    /// # Errors
    /// If it reads something else.
    pub fn image(&self) -> Result<&ImageModel> {
        self.net.as_image().ok_or_else(|| self.reads("pictures"))
    }

    /// The network, if it reads sound.
    ///
    /// # Errors
    /// If it reads something else.
    pub fn speech(&self) -> Result<&Whisper> {
        self.net.as_speech().ok_or_else(|| self.reads("sound"))
    }

    fn reads(&self, wanted: &str) -> Error {
        let (path, kind, what) = (self.files.path().to_path_buf(), self.net.model_type(), self.net.reads());
        Error::Model {
            path,
            what: format!("a {kind} model reads {what}, and this is for models that read {wanted}"),
        }
    }

    /// As [`check_ids`].
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        check_ids(self.text()?, ids)
    }
}

/// Checks a text's ids before they, or their positions, index a table.
///
/// # Errors
/// If an id is not below the model's vocabulary size; where positions are learned, if the text and the virtual tokens of
/// slot 0 are longer than the table.
pub fn check_ids(net: &dyn TextModel, ids: &[u32]) -> Result<()> {
    let ModelInfo { vocab_size, context_length, learned_positions, .. } = net.info();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(Error::Input(format!(
            "token id {id} is outside the model's vocabulary of {vocab_size}: the tokenizer is not this model's"
        )));
    }
    let virtual_rows = net.virtual_positions(Some(0));
    if learned_positions && ids.len() + virtual_rows > context_length {
        let beside =
            if virtual_rows > 0 { format!(" and {virtual_rows} virtual ones") } else { String::new() };
        return Err(Error::Input(format!(
            "{} tokens{beside} are more than the {context_length} positions that the model has; set max_length to {} or less",
            ids.len(),
            context_length.saturating_sub(virtual_rows)
        )));
    }
    Ok(())
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
