//! The configuration of GPT-2, from `config.json` or GGUF metadata.

use retune_formats::{TensorSource, gguf};
use retune_tensor::ops::Activation;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::config::{Config, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, activation, gguf_size, shortest};

const MAX_POSITIONS: usize = 1 << 24;

/// Field names as in transformers' `GPT2Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    pub vocab_size: usize,
    pub n_positions: usize,
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_inner: usize,
    /// As the configuration calls it.
    pub activation_function: String,
    pub activation: Activation,
    pub layer_norm_epsilon: f32,
    pub scale_attn_weights: bool,
    pub scale_attn_by_inverse_layer_idx: bool,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u64>,
    pub eos_token_id: Value,
}

impl Gpt2Config {
    /// From a `config.json`.
    ///
    /// # Errors
    /// If a field is missing or out of range, or asks for what GPT-2 is not.
    pub fn from_json(c: &Config) -> Result<Gpt2Config> {
        if c.flag("add_cross_attention", false)? {
            return Err(c.fail(
                "\"add_cross_attention\" is true; a decoder of another model's rows is not supported",
            ));
        }
        let n_embd = c.size("n_embd", MAX_WIDTH / 4)?;
        let (activation_function, activation) = activation(c, "activation_function", "gelu_new")?;
        Gpt2Config {
            vocab_size: c.size("vocab_size", MAX_VOCAB)?,
            n_positions: c.opt_size("n_positions", MAX_POSITIONS)?.unwrap_or(1024),
            n_embd,
            n_layer: c.size("n_layer", MAX_LAYERS)?,
            n_head: c.size("n_head", 4096)?,
            n_inner: c.opt_size("n_inner", MAX_WIDTH)?.unwrap_or(4 * n_embd),
            activation_function,
            activation,
            layer_norm_epsilon: c.positive("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
            scale_attn_weights: c.flag("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: c.flag("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: c.flag("tie_word_embeddings", true)?,
            bos_token_id: c.get("bos_token_id").and_then(Value::as_u64),
            eos_token_id: c.get("eos_token_id").cloned().unwrap_or(Value::Null),
        }
        .checked()
        .map_err(|what| c.fail(what))
    }

    /// From a GGUF file of architecture gpt2.
    ///
    /// # Errors
    /// If a key is missing or out of range.
    pub fn from_gguf(file: &gguf::File) -> Result<Gpt2Config> {
        let (m, path) = (file.metadata(), file.path());
        let size = |name: &str, max| gguf_size(m, path, &format!("gpt2.{name}"), max);
        let rows = |name: &str| file.find(name).and_then(|info| info.shape.first().copied()).unwrap_or(0);
        Gpt2Config {
            vocab_size: rows("token_embd.weight"),
            n_positions: rows("position_embd.weight"),
            n_embd: size("embedding_length", MAX_WIDTH / 4)?,
            n_layer: size("block_count", MAX_LAYERS)?,
            n_head: size("attention.head_count", 4096)?,
            n_inner: size("feed_forward_length", MAX_WIDTH)?,
            activation_function: "gelu_new".into(),
            activation: Activation::GeluNew,
            layer_norm_epsilon: m.f32("gpt2.attention.layer_norm_epsilon")?,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: file.find("output.weight").is_none(),
            bos_token_id: m.opt_u64("tokenizer.ggml.bos_token_id")?,
            eos_token_id: m.opt_u64("tokenizer.ggml.eos_token_id")?.map_or(Value::Null, Value::from),
        }
        .checked()
        .map_err(|what| Error::Model { path: path.to_path_buf(), what })
    }

    /// Relations between the sizes.
    fn checked(self) -> std::result::Result<Gpt2Config, String> {
        if !self.n_embd.is_multiple_of(self.n_head) {
            return Err(format!(
                "{} attention heads cannot share {} channels: not a multiple",
                self.n_head, self.n_embd
            ));
        }
        if !(1..=MAX_VOCAB).contains(&self.vocab_size) || !(1..=MAX_POSITIONS).contains(&self.n_positions) {
            return Err(format!(
                "a vocabulary of {} or {} positions are out of range",
                self.vocab_size, self.n_positions
            ));
        }
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon > 0.0) {
            return Err(format!(
                "the norms' epsilon is {}; a number above 0 is needed",
                self.layer_norm_epsilon
            ));
        }
        Ok(self)
    }

    /// What the scores of a layer are multiplied with.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let heads = if self.scale_attn_weights { ((self.n_embd / self.n_head) as f32).sqrt() } else { 1.0 };
        let depth = if self.scale_attn_by_inverse_layer_idx { (layer + 1) as f32 } else { 1.0 };
        1.0 / (heads * depth)
    }

    /// As a `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "activation_function": self.activation_function,
            "layer_norm_epsilon": shortest(self.layer_norm_epsilon),
            "scale_attn_weights": self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        })
    }
}
