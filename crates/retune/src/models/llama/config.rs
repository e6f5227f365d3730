//! The configuration of Llama and what shares its shape, from `config.json` or GGUF metadata.

use retune_formats::{TensorSource, gguf};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::config::{Config, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, gguf_size, shortest};
use crate::models::rope::RopeScaling;

/// Field names as in transformers' `LlamaConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub tie_word_embeddings: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on o_proj.
    pub o_bias: bool,
    /// Biases on gate, up, down.
    pub mlp_bias: bool,
    /// RMS norm of each head's queries and keys before rotation (Qwen3).
    pub qk_norm: bool,
    /// The window of each layer that has one.
    pub windows: Vec<Option<usize>>,
    pub bos_token_id: Option<u64>,
    pub eos_token_id: Value,
}

impl LlamaConfig {
    /// From a `config.json` of `model_type` llama, mistral, qwen2 or qwen3.
    pub fn from_json(c: &Config) -> Result<LlamaConfig> {
        let model_type = c.text("model_type").unwrap_or("llama").to_string();
        let act = c.text("hidden_act").unwrap_or("silu");
        if act != "silu" && act != "swish" {
            return Err(c.fail(format!(
                "\"hidden_act\" is \"{act}\"; this architecture is known with \"silu\" alone"
            )));
        }
        let hidden_size = c.size("hidden_size", MAX_WIDTH)?;
        let heads = c.size("num_attention_heads", 4096)?;
        let layers = c.size("num_hidden_layers", MAX_LAYERS)?;
        let rope = c.get("rope_parameters").or_else(|| c.get("rope_scaling"));
        let theta = match c.get("rope_parameters").and_then(|r| r.get("rope_theta")).and_then(Value::as_f64) {
            Some(theta) if theta.is_finite() && theta > 0.0 => theta,
            Some(theta) => return Err(c.fail(format!("\"rope_theta\" is {theta}; it must be above 0"))),
            None => c.positive("rope_theta")?.unwrap_or(10_000.0),
        };
        let qwen2 = model_type == "qwen2";
        let attention_bias = c.flag("attention_bias", qwen2)?;
        LlamaConfig {
            hidden_size,
            intermediate_size: c.size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: c.opt_size("num_key_value_heads", 4096)?.unwrap_or(heads),
            head_dim: c.opt_size("head_dim", 4096)?.unwrap_or(hidden_size / heads),
            vocab_size: c.size("vocab_size", MAX_VOCAB)?,
            max_position_embeddings: c.opt_size("max_position_embeddings", 1 << 30)?.unwrap_or(2048),
            rms_norm_eps: c.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta: theta,
            rope_scaling: rope
                .map_or(Ok(RopeScaling::None), RopeScaling::from_json)
                .map_err(|e| c.fail(e))?,
            tie_word_embeddings: c.flag("tie_word_embeddings", false)?,
            qkv_bias: attention_bias || qwen2,
            o_bias: attention_bias && !qwen2,
            mlp_bias: c.flag("mlp_bias", false)?,
            qk_norm: model_type == "qwen3",
            windows: windows(c, &model_type, layers)?,
            bos_token_id: c.get("bos_token_id").and_then(Value::as_u64),
            eos_token_id: c.get("eos_token_id").cloned().unwrap_or(Value::Null),
            model_type,
        }
        .checked()
        .map_err(|e| c.fail(e))
    }

    /// From a GGUF file of architecture llama, qwen2 or qwen3.
    pub fn from_gguf(file: &gguf::File) -> Result<LlamaConfig> {
        let (m, path) = (file.metadata(), file.path());
        let arch = m.str("general.architecture")?.to_string();
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str, max: usize| gguf_size(m, path, &key(name), max);
        let fail = |what: String| Error::Model { path: path.to_path_buf(), what };
        let has = |name: &str| file.find(name).is_some();
        let hidden_size = size("embedding_length", MAX_WIDTH)?;
        let heads = size("attention.head_count", 4096)?;
        let layers = size("block_count", MAX_LAYERS)?;
        let vocab = file.get("token_embd.weight")?.shape.first().copied().unwrap_or(0);
        let opt = |name: &str| -> Result<Option<usize>> {
            m.get(&key(name)).map(|_| size(name, MAX_WIDTH)).transpose()
        };
        LlamaConfig {
            hidden_size,
            intermediate_size: size("feed_forward_length", MAX_WIDTH)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: opt("attention.head_count_kv")?.unwrap_or(heads),
            head_dim: opt("attention.key_length")?
                .or(opt("rope.dimension_count")?)
                .unwrap_or(hidden_size / heads),
            vocab_size: vocab,
            max_position_embeddings: gguf_size(m, path, &key("context_length"), 1 << 30)?,
            rms_norm_eps: m.f32(&key("attention.layer_norm_rms_epsilon"))?,
            rope_theta: f64::from(m.opt_f32(&key("rope.freq_base"))?.unwrap_or(10_000.0)),
            rope_scaling: gguf_scaling(file, &arch).map_err(fail)?,
            tie_word_embeddings: !has("output.weight"),
            qkv_bias: has("blk.0.attn_q.bias"),
            o_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_up.bias"),
            qk_norm: has("blk.0.attn_q_norm.weight"),
            windows: vec![opt("attention.sliding_window")?; layers],
            bos_token_id: m.opt_u64("tokenizer.ggml.bos_token_id")?,
            eos_token_id: m.opt_u64("tokenizer.ggml.eos_token_id")?.map_or(Value::Null, Value::from),
            model_type: if arch == "llama" && m.get(&key("attention.sliding_window")).is_some() {
                "mistral".into()
            } else {
                arch.clone()
            },
        }
        .checked()
        .map_err(fail)
    }

    /// Relations between the sizes.
    fn checked(self) -> std::result::Result<LlamaConfig, String> {
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv) {
            return Err(format!("{heads} attention heads cannot share {kv} key/value heads: not a multiple"));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim is {}; rotary positions need an even number", self.head_dim));
        }
        if heads * self.head_dim > MAX_WIDTH || self.vocab_size == 0 || self.vocab_size > MAX_VOCAB {
            return Err(format!(
                "{heads} heads of {} or a vocabulary of {} is out of range",
                self.head_dim, self.vocab_size
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0 && self.rope_theta.is_finite()) {
            return Err(format!(
                "rms_norm_eps {} or rope_theta {} is out of range",
                self.rms_norm_eps, self.rope_theta
            ));
        }
        Ok(self)
    }

    /// As a `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "architectures": [format!("{}ForCausalLM", self.class_name())],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_json(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        });
        if self.model_type == "llama" {
            json["attention_bias"] = self.qkv_bias.into();
            json["mlp_bias"] = self.mlp_bias.into();
        }
        if let Some(window) = self.windows.iter().flatten().next() {
            json["sliding_window"] = (*window).into();
            if self.model_type.starts_with("qwen") {
                // Qwen's window is off unless said, and then begins at a layer.
                json["use_sliding_window"] = true.into();
                json["max_window_layers"] = self.windows.iter().take_while(|w| w.is_none()).count().into();
            }
        }
        json
    }
}

impl LlamaConfig {
    /// transformers' class name without its ending.
    pub fn class_name(&self) -> &'static str {
        match self.model_type.as_str() {
            "mistral" => "Mistral",
            "qwen2" => "Qwen2",
            "qwen3" => "Qwen3",
            _ => "Llama",
        }
    }
}

/// Which layers have a sliding window, as transformers decides it.
fn windows(c: &Config, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let Some(window) = c.opt_size("sliding_window", 1 << 30)? else { return Ok(vec![None; layers]) };
    if let Some(types) = c.get("layer_types").and_then(Value::as_array) {
        if types.len() != layers {
            return Err(c.fail(format!("\"layer_types\" has {} entries for {layers} layers", types.len())));
        }
        return Ok(types.iter().map(|t| (t == "sliding_attention").then_some(window)).collect());
    }
    if model_type == "mistral" {
        return Ok(vec![Some(window); layers]);
    }
    let from = c.get("max_window_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
    let used = c.flag("use_sliding_window", false)?;
    Ok((0..layers).map(|layer| (used && layer >= from).then_some(window)).collect())
}

fn gguf_scaling(file: &gguf::File, arch: &str) -> std::result::Result<RopeScaling, String> {
    if file.find("rope_freqs.weight").is_some() {
        let divisors = file.read_f32("rope_freqs.weight").map_err(|e| e.to_string())?;
        if !divisors.iter().all(|d| d.is_finite() && *d > 0.0) {
            return Err("\"rope_freqs.weight\" holds divisors that are not above 0".into());
        }
        return Ok(RopeScaling::Divisors(divisors));
    }
    let m = file.metadata();
    let kind = m.opt_str(&format!("{arch}.rope.scaling.type")).map_err(|e| e.to_string())?.unwrap_or("none");
    let factor = m.opt_f32(&format!("{arch}.rope.scaling.factor")).map_err(|e| e.to_string())?;
    match (kind, factor) {
        ("none", _) => Ok(RopeScaling::None),
        ("linear", Some(factor)) if factor.is_finite() && factor > 0.0 => Ok(RopeScaling::Linear { factor }),
        (other, factor) => Err(format!(
            "rope scaling \"{other}\" with factor {factor:?} is not supported; none and linear are"
        )),
    }
}
