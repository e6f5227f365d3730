//! Settings of the methods that put something beside the weights: virtual tokens, prefixes, bottleneck adapters.

use serde::{Deserialize, Serialize};

/// Settings of `method = "prompt"`; the names are PEFT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prompt {
    pub num_virtual_tokens: u32,
    pub prompt_tuning_init: PromptTuningInit,
    pub prompt_tuning_init_text: Option<String>,
    pub encoder: PromptEncoder,
    /// `None`: the model's hidden size.
    pub encoder_hidden_size: Option<u32>,
}

impl Default for Prompt {
    fn default() -> Self {
        Prompt {
            num_virtual_tokens: 20,
            prompt_tuning_init: PromptTuningInit::SampleVocab,
            prompt_tuning_init_text: None,
            encoder: PromptEncoder::None,
            encoder_hidden_size: None,
        }
    }
}

/// What virtual tokens are at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptTuningInit {
    /// Standard normal numbers, as PEFT draws them: far larger than most models' embeddings.
    Random,
    /// The embeddings of a text, repeated or cut to fit.
    Text,
    /// The embeddings of random tokens.
    SampleVocab,
}

/// What virtual tokens come out of while they are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptEncoder {
    None,
    Mlp,
    Lstm,
}

/// Settings of `method = "prefix"`; the names are PEFT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefix {
    pub num_virtual_tokens: u32,
    pub prefix_projection: bool,
    /// `None`: the width of a layer's keys.
    pub encoder_hidden_size: Option<u32>,
    pub init_weights: PrefixInit,
}

impl Default for Prefix {
    fn default() -> Self {
        Prefix {
            num_virtual_tokens: 20,
            prefix_projection: false,
            encoder_hidden_size: None,
            init_weights: PrefixInit::Random,
        }
    }
}

/// What a prefix is at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefixInit {
    Random,
    /// Keys and values of zeros.
    Zero,
}

/// Settings of `method = "adapter"`; the names are AdapterHub's. What is `None` is as the architecture has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adapter {
    pub architecture: Architecture,
    /// Hidden size / width of the bottleneck.
    pub reduction_factor: Option<f64>,
    pub non_linearity: Option<String>,
    pub ln_before: bool,
    pub ln_after: bool,
    pub original_ln_before: Option<bool>,
    pub original_ln_after: Option<bool>,
    pub residual_before_ln: bool,
    pub adapter_residual_before_ln: bool,
    pub scaling: Option<ScalingSetting>,
    pub dropout: f64,
    /// Layers without adapters, counted from 0.
    pub leave_out: Vec<u32>,
}

impl Default for Adapter {
    fn default() -> Self {
        Adapter {
            architecture: Architecture::Pfeiffer,
            reduction_factor: None,
            non_linearity: None,
            ln_before: false,
            ln_after: false,
            original_ln_before: None,
            original_ln_after: None,
            residual_before_ln: true,
            adapter_residual_before_ln: false,
            scaling: None,
            dropout: 0.0,
            leave_out: Vec::new(),
        }
    }
}

/// Where bottlenecks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// Behind attention and behind feed-forward; AdapterHub's `double_seq_bn`.
    Houlsby,
    /// Behind feed-forward; `seq_bn`.
    Pfeiffer,
    /// Beside feed-forward; `par_bn`.
    Parallel,
}

/// What a bottleneck's output is multiplied with: a number, `learned` (one number) or `channel` (one for each).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ScalingSetting {
    Factor(f64),
    Word(String),
}
