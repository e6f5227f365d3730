//! The `adapter_config.json` of PEFT 0.21's prompt learning: prompt tuning (Lester et al., 2021), prefix tuning (Li and
//! Liang, 2021) and P-tuning (Liu et al., 2021).
//!
//! One tensor, `prompt_embeddings`: (n s, d) for prompts, with n virtual tokens, s parts of the model (2 for
//! encoder-decoders) and width d; (n, 2 L d) for prefixes of L layers, in the order layer, key or value, head.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::limits;
use crate::modules::{ModuleMatcher, Selection};
use crate::peft_common::Common;

/// What the three share.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub num_virtual_tokens: usize,
    /// Width of an embedding; of a layer's keys (heads x their width) for a prefix. PEFT fills this and the next three
    /// in when it saves.
    pub token_dim: Option<usize>,
    pub num_transformer_submodules: Option<usize>,
    /// Heads of keys and values for a prefix.
    pub num_attention_heads: Option<usize>,
    pub num_layers: Option<usize>,
    pub modules_to_save: Option<Vec<String>>,
    pub common: Common,
}

impl Default for Prompt {
    fn default() -> Prompt {
        Prompt {
            num_virtual_tokens: 20,
            token_dim: None,
            num_transformer_submodules: Some(1),
            num_attention_heads: None,
            num_layers: None,
            modules_to_save: None,
            common: Common::default(),
        }
    }
}

impl Prompt {
    fn rest(mut f: Fields) -> Result<Prompt> {
        let key = "num_virtual_tokens";
        let tokens = f.count(key, limits::VIRTUAL_TOKENS)?;
        Ok(Prompt {
            num_virtual_tokens: tokens.ok_or_else(|| Error::MissingKey {
                path: f.path.to_path_buf(),
                key: key.into(),
                nearest: crate::source::nearest(key, f.map.keys().map(String::as_str)),
            })?,
            token_dim: f.count("token_dim", limits::WIDTH)?,
            num_transformer_submodules: f.count("num_transformer_submodules", 2)?,
            num_attention_heads: f.count("num_attention_heads", limits::WIDTH)?,
            num_layers: f.count("num_layers", limits::LAYERS)?,
            modules_to_save: f.strings("modules_to_save")?,
            common: Common::rest(f)?,
        })
    }

    fn object(&self, peft_type: &str, own: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
        let shared = [
            ("num_virtual_tokens", json!(self.num_virtual_tokens)),
            ("token_dim", json!(self.token_dim)),
            ("num_transformer_submodules", json!(self.num_transformer_submodules)),
            ("num_attention_heads", json!(self.num_attention_heads)),
            ("num_layers", json!(self.num_layers)),
            ("modules_to_save", json!(self.modules_to_save)),
        ];
        self.common.object(peft_type, shared.into_iter().chain(own))
    }

    /// Which modules of the base are held whole; `path` is for messages.
    pub fn matcher(&self, path: &Path) -> Result<ModuleMatcher> {
        let selection =
            Selection { modules_to_save: self.modules_to_save.as_deref(), ..Selection::default() };
        ModuleMatcher::new(path, &selection)
    }

    /// Shape of `prompt_embeddings` of a prompt; the width is `None` if the configuration leaves it to the model.
    pub fn prompt_shape(&self) -> (usize, Option<usize>) {
        (self.num_virtual_tokens * self.num_transformer_submodules.unwrap_or(1), self.token_dim)
    }

    /// Shape of `prompt_embeddings` of a prefix.
    pub fn prefix_shape(&self) -> (usize, Option<usize>) {
        (self.num_virtual_tokens, self.token_dim.zip(self.num_layers).map(|(dim, layers)| 2 * layers * dim))
    }
}

/// Where the first values of a prompt come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptInit {
    #[default]
    Random,
    /// The embeddings of `prompt_tuning_init_text`, repeated or cut to fit.
    Text,
    /// The embeddings of random tokens.
    SampleVocab,
}

const INITS: &[(&str, PromptInit)] =
    &[("RANDOM", PromptInit::Random), ("TEXT", PromptInit::Text), ("SAMPLE_VOCAB", PromptInit::SampleVocab)];

impl PromptInit {
    /// The name in the file.
    pub fn name(self) -> &'static str {
        INITS.iter().find(|(_, init)| *init == self).map_or("RANDOM", |(name, _)| name)
    }
}

/// Prompt tuning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptTuningConfig {
    pub prompt: Prompt,
    pub prompt_tuning_init: PromptInit,
    /// With [`PromptInit::Text`] this and `tokenizer_name_or_path` must be there, or PEFT refuses the file.
    pub prompt_tuning_init_text: Option<String>,
    /// Never followed.
    pub tokenizer_name_or_path: Option<String>,
    /// Never used.
    pub tokenizer_kwargs: Option<Map<String, Value>>,
}

impl PromptTuningConfig {
    /// Reads the object of an `adapter_config.json`; `path` is for messages.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<PromptTuningConfig> {
        let mut f = Fields::new(path, object);
        let config = PromptTuningConfig {
            prompt_tuning_init: f.choice("prompt_tuning_init", INITS)?.unwrap_or_default(),
            prompt_tuning_init_text: f.string("prompt_tuning_init_text")?,
            tokenizer_name_or_path: f.string("tokenizer_name_or_path")?,
            tokenizer_kwargs: match f.take("tokenizer_kwargs") {
                None => None,
                Some(Value::Object(map)) => Some(map),
                Some(other) => return f.bad("tokenizer_kwargs", &other, "an object"),
            },
            prompt: Prompt::rest(f)?,
        };
        config.check(path)?;
        Ok(config)
    }

    /// What PEFT itself refuses to load.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let from_text = self.prompt_tuning_init == PromptInit::Text;
        let absent = "absent while prompt_tuning_init is `TEXT`";
        if from_text && self.tokenizer_name_or_path.as_ref().is_none_or(String::is_empty) {
            return Err(Error::key(path, "tokenizer_name_or_path", absent, "the tokenizer's name"));
        }
        if from_text && self.prompt_tuning_init_text.is_none() {
            return Err(Error::key(path, "prompt_tuning_init_text", absent, "the text"));
        }
        if !from_text && self.tokenizer_kwargs.as_ref().is_some_and(|map| !map.is_empty()) {
            let found = format!("there while prompt_tuning_init is `{}`", self.prompt_tuning_init.name());
            return Err(Error::key(path, "tokenizer_kwargs", found, "null"));
        }
        Ok(())
    }

    /// The object that PEFT would write, every field with its default.
    pub fn to_json(&self) -> Value {
        self.prompt.object(
            "PROMPT_TUNING",
            [
                ("prompt_tuning_init", json!(self.prompt_tuning_init.name())),
                ("prompt_tuning_init_text", json!(self.prompt_tuning_init_text)),
                ("tokenizer_name_or_path", json!(self.tokenizer_name_or_path)),
                ("tokenizer_kwargs", json!(self.tokenizer_kwargs)),
            ],
        )
    }
}

/// Prefix tuning. The projection, if there was one, has been applied to what is in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PrefixTuningConfig {
    pub prompt: Prompt,
    pub encoder_hidden_size: Option<usize>,
    pub prefix_projection: bool,
    /// `zero`: the prefix changed nothing at the start.
    pub init_zero: bool,
}

impl PrefixTuningConfig {
    /// Reads the object of an `adapter_config.json`; `path` is for messages.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<PrefixTuningConfig> {
        let mut f = Fields::new(path, object);
        Ok(PrefixTuningConfig {
            encoder_hidden_size: f.count("encoder_hidden_size", limits::WIDTH)?,
            prefix_projection: f.flag("prefix_projection")?,
            init_zero: f.choice("init_weights", &[("zero", true)])?.unwrap_or(false),
            prompt: Prompt::rest(f)?,
        })
    }

    /// The object that PEFT would write, every field with its default.
    pub fn to_json(&self) -> Value {
        self.prompt.object(
            "PREFIX_TUNING",
            [
                ("encoder_hidden_size", json!(self.encoder_hidden_size)),
                ("prefix_projection", json!(self.prefix_projection)),
                ("init_weights", json!(self.init_zero.then_some("zero"))),
            ],
        )
    }
}

/// What P-tuning's embeddings went through while they were trained; it has been applied to what is in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reparameterization {
    #[default]
    Mlp,
    Lstm,
}

const ENCODERS: &[(&str, Reparameterization)] =
    &[("MLP", Reparameterization::Mlp), ("LSTM", Reparameterization::Lstm)];

impl Reparameterization {
    /// The name in the file.
    pub fn name(self) -> &'static str {
        ENCODERS.iter().find(|(_, encoder)| *encoder == self).map_or("MLP", |(name, _)| name)
    }
}

/// P-tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct PTuningConfig {
    pub prompt: Prompt,
    pub encoder_reparameterization_type: Reparameterization,
    pub encoder_hidden_size: Option<usize>,
    pub encoder_num_layers: usize,
    pub encoder_dropout: f64,
}

impl Default for PTuningConfig {
    fn default() -> PTuningConfig {
        PTuningConfig {
            prompt: Prompt::default(),
            encoder_reparameterization_type: Reparameterization::Mlp,
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
        }
    }
}

impl PTuningConfig {
    /// Reads the object of an `adapter_config.json`; `path` is for messages.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<PTuningConfig> {
        let mut f = Fields::new(path, object);
        let d = PTuningConfig::default();
        Ok(PTuningConfig {
            encoder_reparameterization_type: f
                .choice("encoder_reparameterization_type", ENCODERS)?
                .unwrap_or_default(),
            encoder_hidden_size: f.count("encoder_hidden_size", limits::WIDTH)?,
            encoder_num_layers: f
                .count("encoder_num_layers", limits::LAYERS)?
                .unwrap_or(d.encoder_num_layers),
            encoder_dropout: f.share("encoder_dropout")?.unwrap_or(d.encoder_dropout),
            prompt: Prompt::rest(f)?,
        })
    }

    /// The object that PEFT would write, every field with its default.
    pub fn to_json(&self) -> Value {
        self.prompt.object(
            "P_TUNING",
            [
                ("encoder_reparameterization_type", json!(self.encoder_reparameterization_type.name())),
                ("encoder_hidden_size", json!(self.encoder_hidden_size)),
                ("encoder_num_layers", json!(self.encoder_num_layers)),
                ("encoder_dropout", json!(self.encoder_dropout)),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(value: Value) -> String {
        let object = value.as_object().unwrap();
        let path = Path::new("adapter_config.json");
        match value["kind"].as_str() {
            Some("prefix") => PrefixTuningConfig::from_json(path, object).unwrap_err().to_string(),
            Some("p") => PTuningConfig::from_json(path, object).unwrap_err().to_string(),
            _ => PromptTuningConfig::from_json(path, object).unwrap_err().to_string(),
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (value, word) in [
            (json!({}), "`num_virtual_tokens` is missing"),
            (json!({"num_virtual_token": 5}), "nearest is `num_virtual_token`"),
            (json!({"num_virtual_tokens": 0}), "integer from 1"),
            (json!({"num_virtual_tokens": 1e9}), "integer from 1"),
            (json!({"num_virtual_tokens": 5, "token_dim": -1}), "token_dim"),
            (json!({"num_virtual_tokens": 5, "num_transformer_submodules": 3}), "integer from 1 to 2"),
            (json!({"num_virtual_tokens": 5, "prompt_tuning_init": "random"}), "`RANDOM` or `TEXT`"),
            (json!({"num_virtual_tokens": 5, "prompt_tuning_init": "TEXT"}), "tokenizer_name_or_path"),
            (json!({"num_virtual_tokens": 5, "tokenizer_kwargs": {"a": 1}}), "tokenizer_kwargs"),
            (json!({"kind": "prefix", "num_virtual_tokens": 5, "init_weights": "one"}), "`zero`"),
            (json!({"kind": "p", "num_virtual_tokens": 5, "encoder_dropout": 1.5}), "from 0 to 1"),
            (json!({"kind": "p", "num_virtual_tokens": 5, "encoder_num_layers": 0}), "integer from 1"),
        ] {
            let message = refused(value);
            assert!(message.starts_with("adapter_config.json: ") && message.contains(word), "{message}");
        }
    }
}
