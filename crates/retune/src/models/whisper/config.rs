//! The configuration of Whisper, from `config.json` or the settings in a CTranslate2 file.

use retune_formats::{TensorSource, ctranslate2};
use retune_tensor::ops::Activation;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::models::config::{Config, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, activation};

const MAX_HEADS: usize = 4096;
const MAX_BANDS: usize = 1024;
/// Most rows of a window, and most tokens of a transcript.
const MAX_POSITIONS: usize = 1 << 16;
/// Activations by CTranslate2's numbers.
const CTRANSLATE2_ACTIVATIONS: [&str; 6] = ["relu", "gelu_new", "silu", "gelu", "quick_gelu", "tanh"];
/// Keys of a `config.json` that say which tokens have a role: kept as they are.
const TOKEN_KEYS: &[&str] = &[
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "begin_suppress_tokens",
    "suppress_tokens",
    "forced_decoder_ids",
];

/// Field names as in transformers' `WhisperConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct WhisperConfig {
    pub vocab_size: usize,
    pub num_mel_bins: usize,
    pub d_model: usize,
    pub encoder_layers: usize,
    pub encoder_attention_heads: usize,
    pub encoder_ffn_dim: usize,
    pub decoder_layers: usize,
    pub decoder_attention_heads: usize,
    pub decoder_ffn_dim: usize,
    /// Rows that the encoder makes of a window: half its frames.
    pub max_source_positions: usize,
    pub max_target_positions: usize,
    /// As the configuration calls it.
    pub activation_function: String,
    pub activation: Activation,
    pub scale_embedding: bool,
    pub tie_word_embeddings: bool,
    /// What the configuration says of tokens.
    pub tokens: Map<String, Value>,
}

impl WhisperConfig {
    /// From a `config.json`.
    ///
    /// # Errors
    /// If a field is missing or out of range.
    pub fn from_json(c: &Config) -> Result<WhisperConfig> {
        let (activation_function, activation) = activation(c, "activation_function", "gelu")?;
        let tokens = TOKEN_KEYS.iter().filter_map(|key| Some((key.to_string(), c.get(key)?.clone())));
        WhisperConfig {
            vocab_size: c.size("vocab_size", MAX_VOCAB)?,
            num_mel_bins: c.opt_size("num_mel_bins", MAX_BANDS)?.unwrap_or(80),
            d_model: c.size("d_model", MAX_WIDTH / 4)?,
            encoder_layers: c.size("encoder_layers", MAX_LAYERS)?,
            encoder_attention_heads: c.size("encoder_attention_heads", MAX_HEADS)?,
            encoder_ffn_dim: c.size("encoder_ffn_dim", MAX_WIDTH)?,
            decoder_layers: c.size("decoder_layers", MAX_LAYERS)?,
            decoder_attention_heads: c.size("decoder_attention_heads", MAX_HEADS)?,
            decoder_ffn_dim: c.size("decoder_ffn_dim", MAX_WIDTH)?,
            max_source_positions: c.opt_size("max_source_positions", MAX_POSITIONS)?.unwrap_or(1500),
            max_target_positions: c.opt_size("max_target_positions", MAX_POSITIONS)?.unwrap_or(448),
            activation_function,
            activation,
            scale_embedding: c.flag("scale_embedding", false)?,
            tie_word_embeddings: c.flag("tie_word_embeddings", true)?,
            tokens: tokens.collect(),
        }
        .checked()
        .map_err(|what| c.fail(what))
    }

    /// From the settings and shapes of a CTranslate2 file.
    ///
    /// # Errors
    /// If the file is none of a Whisper model, or of one that was changed.
    pub fn from_ctranslate2(file: &ctranslate2::File) -> Result<WhisperConfig> {
        let fail = |what: String| Error::Model { path: file.path().to_path_buf(), what };
        if file.spec() != "WhisperSpec" {
            return Err(fail(format!("it is a {} of CTranslate2, not a WhisperSpec", file.spec())));
        }
        let integer = |name: &str| Ok::<_, Error>(file.integer(name)?);
        let size = |name: &str, axis: usize| {
            let found = file.find(name).and_then(|info| info.shape.get(axis).copied());
            found.ok_or_else(|| fail(format!("variable \"{name}\" is missing")))
        };
        let layers = |side: &str| {
            let has = |i: usize| file.find(&format!("{side}/layer_{i}/ffn/linear_0/weight")).is_some();
            (0..=MAX_LAYERS).find(|&i| !has(i)).unwrap_or(MAX_LAYERS + 1)
        };
        let heads = |side: &str| {
            let value = integer(&format!("{side}/num_heads"))?.unwrap_or(0);
            usize::try_from(value).map_err(|_| fail(format!("{side}/num_heads is {value}")))
        };
        for (name, wanted) in
            [("decoder/pre_norm", 1), ("decoder/start_from_zero_embedding", 0), ("decoder/alibi", 0)]
        {
            if let Some(value) = integer(name)?.filter(|value| *value != wanted) {
                return Err(fail(format!("{name} is {value}; in Whisper it is {wanted}")));
            }
        }
        let number = integer("decoder/activation")?.unwrap_or(3);
        let name = usize::try_from(number).ok().and_then(|n| CTRANSLATE2_ACTIVATIONS.get(n));
        let name = *name.ok_or_else(|| fail(format!("decoder/activation is {number}, which is unknown")))?;
        // An alias is found as what it stands for.
        let projection = file.find("decoder/projection/weight").map(|info| info.name.as_str());
        WhisperConfig {
            vocab_size: size("decoder/embeddings/weight", 0)?,
            num_mel_bins: size("encoder/conv1/weight", 1)?,
            d_model: size("encoder/conv1/weight", 0)?,
            encoder_layers: layers("encoder"),
            encoder_attention_heads: heads("encoder")?,
            encoder_ffn_dim: size("encoder/layer_0/ffn/linear_0/weight", 0)?,
            decoder_layers: layers("decoder"),
            decoder_attention_heads: heads("decoder")?,
            decoder_ffn_dim: size("decoder/layer_0/ffn/linear_0/weight", 0)?,
            max_source_positions: size("encoder/position_encodings/encodings", 0)?,
            max_target_positions: size("decoder/position_encodings/encodings", 0)?,
            activation_function: name.into(),
            activation: Activation::parse(name).unwrap_or(Activation::Gelu),
            scale_embedding: integer("decoder/scale_embeddings")?.unwrap_or(0) != 0,
            tie_word_embeddings: projection.is_none_or(|name| name == "decoder/embeddings/weight"),
            tokens: Map::new(),
        }
        .checked()
        .map_err(fail)
    }

    /// Relations between the sizes, and their ranges where the file did not say them.
    fn checked(self) -> std::result::Result<WhisperConfig, String> {
        for (name, size, most) in [
            ("vocabulary", self.vocab_size, MAX_VOCAB),
            ("number of mel bands", self.num_mel_bins, MAX_BANDS),
            ("width", self.d_model, MAX_WIDTH / 4),
            ("number of the encoder's layers", self.encoder_layers, MAX_LAYERS),
            ("number of the decoder's layers", self.decoder_layers, MAX_LAYERS),
            ("number of the encoder's heads", self.encoder_attention_heads, MAX_HEADS),
            ("number of the decoder's heads", self.decoder_attention_heads, MAX_HEADS),
            ("number of rows of a window", self.max_source_positions, MAX_POSITIONS),
            ("number of tokens of a transcript", self.max_target_positions, MAX_POSITIONS),
        ] {
            if !(1..=most).contains(&size) {
                return Err(format!("the {name} is {size}; 1 to {most} are possible"));
            }
        }
        for heads in [self.encoder_attention_heads, self.decoder_attention_heads] {
            if !self.d_model.is_multiple_of(heads) {
                return Err(format!(
                    "{heads} attention heads cannot share {} channels: not a multiple",
                    self.d_model
                ));
            }
        }
        Ok(self)
    }

    /// Frames of a window that the encoder reads: 3000 of 10 ms.
    pub fn frames(&self) -> usize {
        2 * self.max_source_positions
    }

    /// As a `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "is_encoder_decoder": true,
            "vocab_size": self.vocab_size,
            "num_mel_bins": self.num_mel_bins,
            "d_model": self.d_model,
            "encoder_layers": self.encoder_layers,
            "num_hidden_layers": self.encoder_layers,
            "encoder_attention_heads": self.encoder_attention_heads,
            "encoder_ffn_dim": self.encoder_ffn_dim,
            "decoder_layers": self.decoder_layers,
            "decoder_attention_heads": self.decoder_attention_heads,
            "decoder_ffn_dim": self.decoder_ffn_dim,
            "max_source_positions": self.max_source_positions,
            "max_target_positions": self.max_target_positions,
            "activation_function": self.activation_function,
            "scale_embedding": self.scale_embedding,
            "tie_word_embeddings": self.tie_word_embeddings,
        });
        if let Some(fields) = value.as_object_mut() {
            fields.extend(self.tokens.clone());
        }
        value
    }
}
