//! The run file: every setting of a training run in one typed tree, as TOML in and out.
//!
//! [`RunFile`]'s `Default` is the only place where defaults live; [`keys::KEYS`] is the only place where names, ranges and
//! one-line descriptions live. Help texts, flags, the commented file and the checks are all printed from these two.

mod change;
pub mod keys;
mod lora;
mod pictures;
mod prompts;
mod read;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::metrics::Metric;
use crate::metrics::words::NormalizerChoice;
use crate::models::{LoadOptions, Quantisation, StorageChoice};
use crate::tasks::speech::AudioWindow;

pub use lora::{Ia3, LoraBias};
pub use pictures::{Augment, AugmentPreset};
pub use prompts::{
    Adapter, Architecture, Prefix, PrefixInit, Prompt, PromptEncoder, PromptTuningInit, ScalingSetting,
};
pub use read::{Problem, RunFileError};

/// All settings of one training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunFile {
    /// A Hugging Face folder, a GGUF file, or an image network's weights (.pth, .pt, .safetensors, .onnx, .cfg).
    pub model: PathBuf,
    /// What is learned: rows (.jsonl, .csv, .tsv, .txt, ...), or a folder of pictures or of sounds with their texts.
    pub data: PathBuf,
    /// Held-out rows, never trained on.
    pub eval_data: Option<PathBuf>,
    /// Rows of an old task, to see how much of it is forgotten; never trained on.
    pub retain_data: Option<PathBuf>,
    /// The output folder.
    pub out: PathBuf,
    /// The method's name, as `retune methods` prints it.
    pub method: String,
    pub task: TaskChoice,

    pub epochs: u32,
    /// Optimiser steps; wins over `epochs` when given.
    pub steps: Option<u64>,
    /// Rows in one forward and backward pass.
    pub batch_size: u32,
    /// Passes summed into one optimiser step.
    pub gradient_accumulation: u32,
    /// `None`: the method's own default (see [`RunFile::lr_or`]).
    pub lr: Option<f64>,
    pub schedule: Schedule,
    /// Below 1: a share of all steps. From 1: a number of steps.
    pub warmup: f64,
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; 0 switches clipping off.
    pub max_grad_norm: f64,
    pub optim: Optim,
    pub seed: u64,

    /// Tokens; longer rows are cut.
    pub max_length: u32,
    pub train_on: TrainOn,
    /// The share of the training rows that is held out where `eval_data` is not given; `None`: the task's own.
    pub eval_share: Option<f64>,

    /// Side of the pictures, in pixels; `None`: as the model says.
    pub image_size: Option<u32>,

    /// The language of clips whose rows name none, as a code or an English name.
    pub language: Option<String>,
    pub audio_window: AudioWindow,
    /// Clips longer than Whisper hears at a time are left out, not refused.
    pub skip_long: bool,
    /// Most held-out clips that an evaluation transcribes; 0: none.
    pub wer_rows: u64,
    pub normalizer: NormalizerChoice,

    /// The names of the classes; `None`: those of the data.
    pub labels: Option<Vec<String>>,
    pub pooling: PoolingChoice,
    /// `even`, `balanced`, or `positive=2,negative=0.5`.
    pub class_weights: String,
    /// The files' own classifier goes on, where it has the same labels; else a new one is drawn.
    pub keep_head: bool,

    /// What the best checkpoint is chosen by; `None`: the task's own.
    pub metric: Option<Metric>,
    /// Evaluations without an improvement that end the run.
    pub early_stopping_patience: Option<u32>,
    /// Write the last weights, not the best ones.
    pub keep_last: bool,
    /// Steps between evaluations; `None`: before, after each epoch, and at the end.
    pub eval_every: Option<u64>,
    /// Steps between checkpoints; `None`: after each epoch, and at the end.
    pub save_every: Option<u64>,
    /// Checkpoints kept on disk.
    pub keep: u32,

    /// `None`: one for each core.
    pub threads: Option<u32>,
    pub storage: Storage,
    pub weights: Weights,
    pub checkpointing: Checkpointing,
    /// Bytes; `None`: what the machine has free.
    #[serde(with = "bytes_text")]
    pub memory_limit: Option<u64>,
    /// Take the nearest settings that fit instead of refusing the run.
    pub auto: bool,
    pub on_nan: OnNan,

    pub quantization: Quantization,

    pub augment: Augment,

    pub lora: Lora,

    pub full: Full,
    pub partial: Partial,
    pub bitfit: BitFit,
    pub sparse: Sparse,
    pub ia3: Ia3,
    pub prompt: Prompt,
    pub prefix: Prefix,
    pub adapter: Adapter,
}

impl Default for RunFile {
    fn default() -> Self {
        RunFile {
            model: PathBuf::new(),
            data: PathBuf::new(),
            eval_data: None,
            retain_data: None,
            out: PathBuf::from("out"),
            method: "lora".into(),
            task: TaskChoice::Auto,
            epochs: 3,
            steps: None,
            batch_size: 8,
            gradient_accumulation: 1,
            lr: None,
            schedule: Schedule::Cosine,
            warmup: 0.03,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            optim: Optim::Adamw,
            seed: 42,
            max_length: 1024,
            train_on: TrainOn::Answers,
            eval_share: None,
            image_size: None,
            language: None,
            audio_window: AudioWindow::Whole,
            skip_long: false,
            wer_rows: 100,
            normalizer: NormalizerChoice::Auto,
            labels: None,
            pooling: PoolingChoice::Auto,
            class_weights: "even".into(),
            keep_head: true,
            metric: None,
            early_stopping_patience: None,
            keep_last: false,
            eval_every: None,
            save_every: None,
            keep: 2,
            threads: None,
            storage: Storage::AsIs,
            weights: Weights::Memory,
            checkpointing: Checkpointing::Auto,
            memory_limit: None,
            auto: false,
            on_nan: OnNan::Skip,
            quantization: Quantization::default(),
            augment: Augment::default(),
            lora: Lora::default(),
            full: Full::default(),
            partial: Partial::default(),
            bitfit: BitFit::default(),
            sparse: Sparse::default(),
            ia3: Ia3::default(),
            prompt: Prompt::default(),
            prefix: Prefix::default(),
            adapter: Adapter::default(),
        }
    }
}

impl RunFile {
    /// How the weights are taken into memory.
    pub fn load_options(&self) -> LoadOptions {
        let Quantization { double_quant, keep_modules } = &self.quantization;
        let storage = match self.storage {
            Storage::F32 => StorageChoice::F32,
            Storage::Bf16 => StorageChoice::Bf16,
            quantised => Quantisation::from_name(quantised.name(), *double_quant)
                .map_or(StorageChoice::AsIs, StorageChoice::Quantised),
        };
        let streamed = self.weights == Weights::Streamed;
        LoadOptions { storage, streamed, in_file: false, keep_modules: keep_modules.clone() }
    }

    /// Height and width of the pictures, if they are given.
    pub fn image_size(&self) -> Option<(usize, usize)> {
        self.image_size.map(|side| (side as usize, side as usize))
    }

    /// The learning rate to train with: the one given, or the method's own default.
    pub fn lr_or(&self, method_default: f64) -> f64 {
        self.lr.unwrap_or(method_default)
    }
}

/// Settings of `method = "lora"`; the names are PEFT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    pub rank: u32,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    pub target_modules: TargetModules,
    /// Scale by alpha / sqrt(rank) instead of alpha / rank.
    pub use_rslora: bool,
    /// Learn the length of each row of the adapted weight, too.
    pub use_dora: bool,
    /// Give B a bias.
    pub lora_bias: bool,
    pub bias: LoraBias,
    /// `true`, `false`, or one of PEFT's names.
    pub init_lora_weights: String,
    /// Ranks of the modules whose path ends in a match of a pattern.
    pub rank_pattern: BTreeMap<String, u32>,
    /// The same for `lora_alpha`.
    pub alpha_pattern: BTreeMap<String, f64>,
    pub exclude_modules: Option<Vec<String>>,
    /// `None`: all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Modules that are trained whole.
    pub modules_to_save: Option<Vec<String>>,
    /// What is done to a tied token table is done to the head, too.
    pub ensure_weight_tying: bool,
}

impl Default for Lora {
    fn default() -> Self {
        Lora {
            rank: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            use_rslora: false,
            use_dora: false,
            lora_bias: false,
            bias: LoraBias::None,
            init_lora_weights: "true".into(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            exclude_modules: None,
            layers_to_transform: None,
            modules_to_save: None,
            ensure_weight_tying: false,
        }
    }
}

/// Which linears get an adapter, as PEFT means it: a list holds name suffixes, a lone string is `all-linear` or a regular
/// expression over the whole module path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    Pattern(String),
    Names(Vec<String>),
}

impl Default for TargetModules {
    fn default() -> Self {
        TargetModules::Pattern("all-linear".into())
    }
}

/// What the model learns to do; the names are those of Hugging Face's pipelines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskChoice {
    /// As the rows of data say: labelled ones are classified, others continued.
    #[default]
    Auto,
    TextGeneration,
    TextClassification,
    TokenClassification,
    Regression,
    MaskedLm,
    ImageClassification,
    ObjectDetection,
    AutomaticSpeechRecognition,
}

impl TaskChoice {
    /// As it is written.
    pub const NAMES: &[&str] = &[
        "auto",
        "text-generation",
        "text-classification",
        "token-classification",
        "regression",
        "masked-lm",
        "image-classification",
        "object-detection",
        "automatic-speech-recognition",
    ];

    /// Is it about pictures?
    pub fn is_of_pictures(self) -> bool {
        matches!(self, TaskChoice::ImageClassification | TaskChoice::ObjectDetection)
    }
}

/// Which of a text's rows a classifier reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolingChoice {
    /// As transformers does for the architecture.
    #[default]
    Auto,
    First,
    Last,
    Mean,
}

/// Settings of `method = "full"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Full {
    /// Write the tensors that differ from the base's instead of the whole model.
    pub only_changed: bool,
}

/// Settings of `method = "partial"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Partial {
    /// Blocks that are trained, with the last norm and the head.
    pub last_blocks: u32,
    /// Layers from the front that stay as they are, as the model's files number them; wins over `last_blocks`.
    pub freeze: Option<u32>,
    /// Names of parameters, or patterns with `*`; where they are given, they alone are trained.
    pub train: Option<Vec<String>>,
}

impl Default for Partial {
    fn default() -> Self {
        Partial { last_blocks: 2, freeze: None, train: None }
    }
}

/// Settings of `method = "bitfit"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BitFit {
    /// Give each linear of the trunk that has no bias one of zeros.
    pub add_biases: bool,
}

/// Settings of `method = "sparse"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sparse {
    pub selection: Selection,
    /// Share of each weight's entries; of a random selection, as near as a whole `r` comes to it.
    pub share: f64,
    /// PEFT's SHiRA: r (in + out) entries of each weight; wins over `share` when given.
    pub r: Option<u32>,
    pub target_modules: TargetModules,
    /// Training examples whose gradients choose the entries (`selection = "fisher"`).
    pub fisher_examples: u32,
}

impl Default for Sparse {
    fn default() -> Self {
        Sparse {
            selection: Selection::Random,
            share: 0.01,
            r: None,
            target_modules: TargetModules::default(),
            fisher_examples: 256,
        }
    }
}

/// Which entries of a weight are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Drawn from the seed.
    Random,
    /// The largest.
    Magnitude,
    /// Those with the largest squared gradients, summed over examples.
    Fisher,
}

/// How the learning rate goes after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    Constant,
    /// Straight down to 0 at the last step.
    Linear,
    /// Half a cosine down to 0 at the last step.
    Cosine,
}

/// The optimiser: AdamW, and how and where its two moments are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Optim {
    /// In f32; in a file what the memory limit leaves no room for.
    #[default]
    #[serde(rename = "adamw")]
    Adamw,
    /// In 8 bits with a constant for each 256 (bitsandbytes' `AdamW8bit`); otherwise the same.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// In f32, in a file whatever the memory.
    #[serde(rename = "paged_adamw")]
    PagedAdamw,
    /// In 8 bits, in a file whatever the memory.
    #[serde(rename = "paged_adamw_8bit")]
    PagedAdamw8bit,
}

impl Optim {
    /// As it is written.
    pub const NAMES: &[&str] = &["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"];

    /// Moments of 8 bits. Numbers depend on this alone.
    pub fn is_8bit(self) -> bool {
        matches!(self, Optim::Adamw8bit | Optim::PagedAdamw8bit)
    }

    /// Moments that lie in a file though there may be memory for them.
    pub fn is_paged(self) -> bool {
        matches!(self, Optim::PagedAdamw | Optim::PagedAdamw8bit)
    }
}

/// Which tokens carry loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    Answers,
    All,
}

/// How the frozen base weights lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    F32,
    Bf16,
    /// As the file stores them, quantised blocks included.
    AsIs,
    /// The linears of the blocks in 4 bits: quantiles of a normal.
    Nf4,
    /// The same with a sign, two bits of exponent and one of mantissa.
    Fp4,
    /// The same with sixteen levels at even distances.
    Int4,
    /// The linears of the blocks in 8 bits, one scale a row.
    Int8,
}

impl Storage {
    /// As they are written.
    pub const NAMES: &[&str] = &["f32", "bf16", "as-is", "nf4", "fp4", "int4", "int8"];

    /// All, in the order of [`Storage::NAMES`].
    pub const ALL: &[Storage] = &[
        Storage::F32,
        Storage::Bf16,
        Storage::AsIs,
        Storage::Nf4,
        Storage::Fp4,
        Storage::Int4,
        Storage::Int8,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        let named = Self::ALL.iter().zip(Self::NAMES).find(|(one, _)| **one == self);
        named.map_or("", |(_, name)| name)
    }

    /// The storage of this name.
    pub fn from_name(name: &str) -> Option<Storage> {
        Self::ALL.iter().zip(Self::NAMES).find(|(_, known)| **known == name).map(|(one, _)| *one)
    }

    /// Are weights quantised while they are loaded?
    pub fn is_quantised(self) -> bool {
        !matches!(self, Storage::F32 | Storage::Bf16 | Storage::AsIs)
    }
}

/// Where the frozen weights of the blocks' linears lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    #[default]
    Memory,
    /// In their file: they are read when they are needed.
    Streamed,
}

impl Weights {
    /// As they are written.
    pub const NAMES: &[&str] = &["memory", "streamed"];
}

/// Settings of the storages that quantise: table `quantization`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quantization {
    /// Quantise the constants of 4-bit blocks, too.
    pub double_quant: bool,
    /// Modules that stay as they are, beside tables and heads (see [`crate::models::quantised::Quantised`]).
    pub keep_modules: Vec<String>,
}

impl Default for Quantization {
    fn default() -> Self {
        Quantization { double_quant: true, keep_modules: Vec::new() }
    }
}

/// Whether blocks are computed again in the backward pass instead of kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checkpointing {
    /// On only if the run would not fit otherwise.
    Auto,
    On,
    Off,
}

/// What a step with a NaN or infinite loss or gradient does. Its update is never applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNan {
    /// End the run at the first.
    Stop,
    /// Skip the step; end the run after three in a row.
    Skip,
}

/// Reads "512 MiB", "1.5GiB", "2G" or plain bytes. Units are powers of 1024.
///
/// # Errors
/// A sentence saying what was expected.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("{text:?} is not a size such as \"2GiB\" or \"800MiB\"")),
    };
    let value: f64 =
        number.parse().map_err(|_| format!("{text:?} is not a size such as \"2GiB\" or \"800MiB\""))?;
    let bytes = value * (1u64 << shift) as f64;
    if bytes < 1.0 || bytes > (1u64 << 50) as f64 {
        return Err(format!("{text:?} is not between 1 byte and 1024 TiB"));
    }
    Ok(bytes as u64)
}

/// Writes bytes so that [`parse_bytes`] reads back the same number.
pub fn format_bytes(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// `memory_limit` is a text with a unit in the file, and bytes in the program.
mod bytes_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to.serialize_some(&super::format_bytes(*bytes)),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| super::parse_bytes(&text).map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_write() {
        assert_eq!(parse_bytes("2GiB").unwrap(), 2 << 30);
        assert_eq!(parse_bytes("1.5 g").unwrap(), 3 << 29);
        assert_eq!(parse_bytes("800").unwrap(), 800);
        for bad in ["", "2 parsecs", "-1G", "1e400G", "0", ".", "99999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        for bytes in [1, 1023, 1024, 3 << 29, 5 << 40] {
            assert_eq!(parse_bytes(&format_bytes(bytes)).unwrap(), bytes);
        }
    }
}
