//! The configuration of BERT, RoBERTa and DistilBERT, from `config.json` or GGUF metadata.

use retune_formats::gguf;
use retune_tensor::ops::Activation;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::config::{Config, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, activation, gguf_size, shortest};

const MAX_POSITIONS: usize = 1 << 24;
const MAX_TYPES: usize = 1 << 16;

/// How tensors are called and positions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Bert,
    /// RoBERTa, XLM-RoBERTa, CamemBERT: positions start behind the padding's.
    Roberta,
    /// No token types, no pooler.
    DistilBert,
}

/// Field names as in transformers' `BertConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    pub model_type: String,
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    /// 0: no token types.
    pub type_vocab_size: usize,
    pub layer_norm_eps: f32,
    /// As the configuration calls it.
    pub hidden_act: String,
    pub activation: Activation,
    pub pad_token_id: usize,
    pub tie_word_embeddings: bool,
}

impl BertConfig {
    /// From a `config.json` of one of the model types.
    ///
    /// # Errors
    /// If a field is missing or out of range, or asks for what these encoders are not.
    pub fn from_json(c: &Config) -> Result<BertConfig> {
        let model_type = c.text("model_type").unwrap_or("bert").to_string();
        let family = Family::of(&model_type);
        refuse_variants(c)?;
        let distil = family == Family::DistilBert;
        let name = |bert: &'static str, distilled: &'static str| if distil { distilled } else { bert };
        let (hidden_act, activation) = activation(c, name("hidden_act", "activation"), "gelu")?;
        let pad = c.get("pad_token_id").map(|v| v.as_u64().and_then(|id| usize::try_from(id).ok()));
        BertConfig {
            family,
            vocab_size: c.size("vocab_size", MAX_VOCAB)?,
            hidden_size: c.size(name("hidden_size", "dim"), MAX_WIDTH)?,
            num_hidden_layers: c.size(name("num_hidden_layers", "n_layers"), MAX_LAYERS)?,
            num_attention_heads: c.size(name("num_attention_heads", "n_heads"), 4096)?,
            intermediate_size: c.size(name("intermediate_size", "hidden_dim"), MAX_WIDTH)?,
            max_position_embeddings: c.opt_size("max_position_embeddings", MAX_POSITIONS)?.unwrap_or(512),
            type_vocab_size: if distil { 0 } else { c.opt_size("type_vocab_size", MAX_TYPES)?.unwrap_or(2) },
            // DistilBERT's is fixed.
            layer_norm_eps: c.positive("layer_norm_eps")?.filter(|_| !distil).unwrap_or(1e-12) as f32,
            hidden_act,
            activation,
            pad_token_id: match pad {
                None => usize::from(family == Family::Roberta),
                Some(Some(id)) => id,
                Some(None) => return Err(c.fail("\"pad_token_id\" is not a token id")),
            },
            tie_word_embeddings: c.flag("tie_word_embeddings", true)?,
            model_type,
        }
        .checked()
        .map_err(|what| c.fail(what))
    }

    /// From a GGUF file of architecture bert.
    ///
    /// # Errors
    /// If a key is missing or out of range.
    pub fn from_gguf(file: &gguf::File) -> Result<BertConfig> {
        use retune_formats::TensorSource;
        let (m, path) = (file.metadata(), file.path());
        let size = |name: &str, max| gguf_size(m, path, &format!("bert.{name}"), max);
        let fail = |what: String| Error::Model { path: path.to_path_buf(), what };
        let rows = |name: &str| file.find(name).and_then(|info| info.shape.first().copied());
        if m.opt_bool("bert.attention.causal")?.unwrap_or(false) {
            return Err(fail("\"bert.attention.causal\" is true; these encoders read text both ways".into()));
        }
        BertConfig {
            model_type: "bert".into(),
            family: Family::Bert,
            vocab_size: rows("token_embd.weight").unwrap_or(0),
            hidden_size: size("embedding_length", MAX_WIDTH)?,
            num_hidden_layers: size("block_count", MAX_LAYERS)?,
            num_attention_heads: size("attention.head_count", 4096)?,
            intermediate_size: size("feed_forward_length", MAX_WIDTH)?,
            max_position_embeddings: rows("position_embd.weight").unwrap_or(0),
            type_vocab_size: rows("token_types.weight").unwrap_or(0),
            layer_norm_eps: m.f32("bert.attention.layer_norm_epsilon")?,
            hidden_act: "gelu".into(),
            activation: Activation::Gelu,
            pad_token_id: m
                .opt_u64("tokenizer.ggml.padding_token_id")?
                .and_then(|id| usize::try_from(id).ok())
                .unwrap_or(0),
            tie_word_embeddings: true,
        }
        .checked()
        .map_err(fail)
    }

    /// Relations between the sizes.
    fn checked(self) -> std::result::Result<BertConfig, String> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if !hidden.is_multiple_of(heads) {
            return Err(format!("{heads} attention heads cannot share {hidden} channels: not a multiple"));
        }
        if !(1..=MAX_VOCAB).contains(&self.vocab_size) {
            return Err(format!("a vocabulary of {} is out of range", self.vocab_size));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0) {
            return Err(format!("the norms' epsilon is {}; a number above 0 is needed", self.layer_norm_eps));
        }
        if self.max_position_embeddings <= self.first_position() {
            return Err(format!(
                "{} positions are too few: the first row stands at {}",
                self.max_position_embeddings,
                self.first_position()
            ));
        }
        Ok(self)
    }

    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The row of the position table that an example's first row takes.
    pub fn first_position(&self) -> usize {
        match self.family {
            Family::Roberta => self.pad_token_id.saturating_add(1),
            _ => 0,
        }
    }

    /// The longest text: 512 where RoBERTa's table has 514 rows.
    pub fn context_length(&self) -> usize {
        self.max_position_embeddings - self.first_position()
    }

    /// transformers' class name without its ending.
    pub fn class_name(&self) -> &'static str {
        match self.model_type.as_str() {
            "roberta" => "Roberta",
            "xlm-roberta" => "XLMRoberta",
            "camembert" => "Camembert",
            "distilbert" => "DistilBert",
            _ => "Bert",
        }
    }

    /// As a `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        let mut json = match self.family {
            Family::DistilBert => json!({
                "dim": self.hidden_size,
                "hidden_dim": self.intermediate_size,
                "n_layers": self.num_hidden_layers,
                "n_heads": self.num_attention_heads,
                "activation": self.hidden_act,
            }),
            _ => json!({
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": self.num_attention_heads,
                "hidden_act": self.hidden_act,
                "type_vocab_size": self.type_vocab_size,
                "layer_norm_eps": shortest(self.layer_norm_eps),
            }),
        };
        json["model_type"] = self.model_type.as_str().into();
        json["vocab_size"] = self.vocab_size.into();
        json["max_position_embeddings"] = self.max_position_embeddings.into();
        json["pad_token_id"] = self.pad_token_id.into();
        json["tie_word_embeddings"] = self.tie_word_embeddings.into();
        json
    }
}

impl Family {
    fn of(model_type: &str) -> Family {
        match model_type {
            "distilbert" => Family::DistilBert,
            "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
            _ => Family::Bert,
        }
    }

    /// transformers' `base_model_prefix`, with its dot: files may leave it out.
    pub fn prefix(self) -> &'static str {
        match self {
            Family::Bert => "bert.",
            Family::Roberta => "roberta.",
            Family::DistilBert => "distilbert.",
        }
    }
}

/// What shares the names but not the mathematics.
fn refuse_variants(c: &Config) -> Result<()> {
    for key in ["is_decoder", "add_cross_attention"] {
        if c.flag(key, false)? {
            return Err(c.fail(format!("\"{key}\" is true; this architecture is known as an encoder alone")));
        }
    }
    match c.text("position_embedding_type") {
        None | Some("absolute") => {}
        Some(other) => {
            return Err(c.fail(format!(
                "\"position_embedding_type\" is \"{other}\"; only \"absolute\" positions are supported"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: impl Fn(&mut Value)) -> std::result::Result<BertConfig, String> {
        let mut value = json!({
            "model_type": "roberta", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 514,
            "layer_norm_eps": 1e-5, "pad_token_id": 1,
        });
        change(&mut value);
        BertConfig::from_json(&Config { path: "config.json".into(), value: &value })
            .map_err(|e| e.to_string())
    }

    #[test]
    fn roberta_counts_from_behind_its_padding() {
        let config = read(|_| {}).expect("config");
        assert_eq!((config.first_position(), config.context_length()), (2, 512));
        let again = config.to_json();
        let again =
            BertConfig::from_json(&Config { path: "config.json".into(), value: &again }).expect("again");
        assert_eq!(again, config);
    }

    #[test]
    fn what_is_no_such_encoder_is_refused() {
        let refused = |key: &'static str, to: Value| read(|c| c[key] = to.clone()).expect_err(key);
        assert!(refused("hidden_act", "gelu_old".into()).contains("gelu_old"));
        assert!(refused("is_decoder", true.into()).contains("is_decoder"));
        assert!(refused("position_embedding_type", "relative_key".into()).contains("relative_key"));
        assert!(refused("num_attention_heads", 5.into()).contains("5 attention heads"));
        assert!(refused("layer_norm_eps", 0.into()).contains("layer_norm_eps"));
        assert!(refused("pad_token_id", 600.into()).contains("514 positions"));
        assert!(refused("pad_token_id", (-1).into()).contains("pad_token_id"));
        assert!(refused("max_position_embeddings", 0.into()).contains("max_position_embeddings"));
    }
}
