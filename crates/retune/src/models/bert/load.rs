//! Builds an encoder from a Hugging Face folder or a GGUF file, or a fresh one from its configuration.
//!
//! Parameters have the names that transformers gives them inside a model with a head (`bert.encoder...`); files of the
//! trunk alone leave the prefix out.

use retune_formats::TensorSource;
use retune_tensor::ops::{Activation, AttentionShape};
use retune_tensor::{ParamId, Params};

use super::{Bert, BertConfig, Block, Family, FeedForward, SelfAttention};
use crate::error::Result;
use crate::models::config::Config;
use crate::models::fresh::Draw;
use crate::models::heads::{Dense, Heads, Parts, requested};
use crate::models::loader::Loader;
use crate::models::{HeadRequest, LoadOptions, Model, ModelFiles, Net};
use crate::nn::{
    Attention, Embedding, Head, LanguageModelHead, Linear, Pooling, Prompt, SubLayer, SubLayerKind,
};

/// How a family calls the parts of a block, behind `{prefix}{layers}.{index}.`.
struct Names {
    layers: &'static str,
    /// Query, key, value, output.
    attention: [&'static str; 4],
    attention_norm: &'static str,
    /// The modules that compute heads, and that end the sub-layers.
    heads: &'static str,
    attention_end: &'static str,
    feed_forward_end: &'static str,
    up: &'static str,
    down: &'static str,
    norm: &'static str,
}

const BERT: Names = Names {
    layers: "encoder.layer",
    attention: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ],
    attention_norm: "attention.output.LayerNorm",
    heads: "attention.self",
    attention_end: "attention.output",
    feed_forward_end: "output",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
};

const DISTIL: Names = Names {
    layers: "transformer.layer",
    attention: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
    attention_norm: "sa_layer_norm",
    heads: "attention",
    attention_end: "attention",
    feed_forward_end: "ffn",
    up: "ffn.lin1",
    down: "ffn.lin2",
    norm: "output_layer_norm",
};

/// How a family calls the parts of a masked-language-model head.
struct MaskedNames {
    dense: &'static str,
    norm: &'static str,
    decoder: &'static str,
    /// The bias's names, the one of the newest files first.
    bias: [&'static str; 2],
}

impl Family {
    fn names(self) -> &'static Names {
        if self == Family::DistilBert { &DISTIL } else { &BERT }
    }

    fn masked_names(self) -> MaskedNames {
        match self {
            Family::Bert => MaskedNames {
                dense: "cls.predictions.transform.dense",
                norm: "cls.predictions.transform.LayerNorm",
                decoder: "cls.predictions.decoder",
                bias: ["cls.predictions.bias", "cls.predictions.decoder.bias"],
            },
            Family::Roberta => MaskedNames {
                dense: "lm_head.dense",
                norm: "lm_head.layer_norm",
                decoder: "lm_head.decoder",
                bias: ["lm_head.bias", "lm_head.decoder.bias"],
            },
            Family::DistilBert => MaskedNames {
                dense: "vocab_transform",
                norm: "vocab_layer_norm",
                decoder: "vocab_projector",
                bias: ["vocab_projector.bias"; 2],
            },
        }
    }

    /// The classifier of whole texts.
    fn sequence(self) -> Parts {
        let (path, activation, of_trunk, out) = match self {
            Family::Bert => ("bert.pooler.dense", Activation::Tanh, true, "classifier"),
            Family::Roberta => ("classifier.dense", Activation::Tanh, false, "classifier.out_proj"),
            Family::DistilBert => ("pre_classifier", Activation::Relu, false, "classifier"),
        };
        let dense = Some(Dense { path, activation, of_trunk });
        Parts { dense, out, out_bias: true, pooling: Pooling::First }
    }

    /// What tensors of heads begin with.
    fn head_prefixes(self) -> &'static [&'static str] {
        match self {
            Family::Bert => &["bert.pooler.", "cls.", "classifier.", "qa_outputs."],
            Family::Roberta => &["roberta.pooler.", "lm_head.", "classifier.", "qa_outputs."],
            Family::DistilBert => &["vocab_", "pre_classifier.", "classifier.", "qa_outputs."],
        }
    }
}

/// Loads the model; every tensor of the files must have a place, and every place its tensor.
pub fn load(files: &ModelFiles, options: &LoadOptions, head: &HeadRequest) -> Result<Model> {
    let config = match files {
        ModelFiles::Gguf(file) => BertConfig::from_gguf(file)?,
        _ => BertConfig::from_json(&files.config()?)?,
    };
    let source = files.source();
    let is_gguf = matches!(files, ModelFiles::Gguf(_));
    let prefix = config.family.prefix();
    let bare = !source.tensors().iter().any(|info| info.name.starts_with(prefix));
    let rename = |name: &str| match is_gguf {
        true => gguf_name(name),
        false => folder_name(source, if bare { name.strip_prefix(prefix).unwrap_or(name) } else { name }),
    };
    let mut builder = Builder { loader: Loader::new(files, options, rename)?, config: &config };
    let net = builder.network(Some(files), head)?;
    let pager = builder.loader.pager();
    let params = builder.loader.finish()?;
    Ok(Model { params, net: Net::Text(Box::new(net)), files: files.clone(), adapters: Vec::new(), pager })
}

/// The parameters of a new encoder of this configuration, with the head that its `architectures` name; a
/// masked-language-model head if they name none.
pub fn fresh(config: &Config, draw: Draw) -> Result<Params> {
    let head = requested(config, draw.seed())?;
    let config = BertConfig::from_json(config)?;
    let mut builder = Builder { loader: Loader::fresh(draw), config: &config };
    builder.network(None, &head)?;
    builder.loader.finish()
}

struct Builder<'a> {
    loader: Loader<'a>,
    config: &'a BertConfig,
}

impl Builder<'_> {
    fn network(&mut self, files: Option<&ModelFiles>, request: &HeadRequest) -> Result<Bert> {
        let c = self.config;
        let (prefix, hidden) = (c.family.prefix(), c.hidden_size);
        let at = |name: &str| format!("{prefix}embeddings.{name}");
        let words = self.loader.matrix(&at("word_embeddings.weight"), c.vocab_size, hidden)?;
        let name = at("position_embeddings.weight");
        let positions = self.loader.matrix(&name, c.max_position_embeddings, hidden)?;
        let token_types = match c.type_vocab_size {
            0 => None,
            n => Some(self.loader.matrix(&at("token_type_embeddings.weight"), n, hidden)?),
        };
        let norm = self.loader.layer_norm(&at("LayerNorm"), hidden, c.layer_norm_eps)?;
        let blocks = (0..c.num_hidden_layers).map(|i| self.block(i)).collect::<Result<_>>()?;
        let head = self.head(words, files, request)?;
        let words = Embedding::new(at("word_embeddings"), words, c.vocab_size, hidden);
        let prompt = Prompt::default();
        Ok(Bert { config: c.clone(), words, prompt, positions, token_types, norm, blocks, head })
    }

    fn block(&mut self, index: usize) -> Result<Block> {
        let (c, names) = (self.config, self.config.family.names());
        let (hidden, ff) = (c.hidden_size, c.intermediate_size);
        let at = |name: &str| format!("{}{}.{index}.{name}", c.family.prefix(), names.layers);
        let loader = &mut self.loader;
        let [query, key, value, output] =
            names.attention.map(|name| loader.linear(&at(name), (hidden, hidden), true));
        let shape = AttentionShape {
            heads: c.num_attention_heads,
            kv_heads: c.num_attention_heads,
            head_dim: c.head_dim(),
            scale: 1.0 / (c.head_dim() as f32).sqrt(),
            causal: false,
            window: None,
        };
        let end = |name, kind| SubLayer::new(at(name), kind, index, hidden);
        Ok(Block {
            attention: SelfAttention {
                query: query?,
                key: key?,
                value: value?,
                output: output?,
                heads: Attention::new(at(names.heads), index, shape),
                end: end(names.attention_end, SubLayerKind::Attention),
                norm: loader.layer_norm(&at(names.attention_norm), hidden, c.layer_norm_eps)?,
            },
            feed_forward: FeedForward {
                up: loader.linear(&at(names.up), (ff, hidden), true)?,
                activation: c.activation,
                down: loader.linear(&at(names.down), (hidden, ff), true)?,
                end: end(names.feed_forward_end, SubLayerKind::FeedForward),
                norm: loader.layer_norm(&at(names.norm), hidden, c.layer_norm_eps)?,
            },
        })
    }

    fn head(&mut self, words: ParamId, files: Option<&ModelFiles>, request: &HeadRequest) -> Result<Head> {
        let c = self.config;
        let language_model = |loader: &mut Loader| masked_head(loader, c, words);
        let heads = Heads {
            hidden: c.hidden_size,
            sequence: c.family.sequence(),
            tokens: Parts { dense: None, out: "classifier", out_bias: true, pooling: Pooling::Each },
            prefixes: c.family.head_prefixes(),
            language_model: &language_model,
        };
        let head = heads.build(&mut self.loader, files, request)?;
        if *request == HeadRequest::AsFile && matches!(head, Head::None) {
            self.carry_pooler()?;
        }
        Ok(head)
    }

    /// A trunk's pooler goes along, so that an export is whole.
    fn carry_pooler(&mut self) -> Result<()> {
        let (hidden, prefix) = (self.config.hidden_size, self.config.family.prefix());
        let path = format!("{prefix}pooler.dense");
        if self.config.family != Family::DistilBert && self.loader.has(&format!("{path}.weight")) {
            self.loader.head_linear(&path, (hidden, hidden), true)?;
        }
        Ok(())
    }
}

/// The masked-language-model head, if the files have one.
fn masked_head(loader: &mut Loader, c: &BertConfig, words: ParamId) -> Result<Option<LanguageModelHead>> {
    let names = c.family.masked_names();
    if !loader.is_fresh() && !loader.has(&format!("{}.weight", names.dense)) {
        return Ok(None);
    }
    let (vocab, hidden) = (c.vocab_size, c.hidden_size);
    let activation = match c.family {
        Family::Roberta => Activation::Gelu,
        _ => c.activation,
    };
    let dense = loader.head_linear(names.dense, (hidden, hidden), true)?;
    let norm = loader.layer_norm(names.norm, hidden, c.layer_norm_eps)?;
    let weight = match c.tie_word_embeddings {
        true => words,
        false => loader.matrix(&format!("{}.weight", names.decoder), vocab, hidden)?,
    };
    let [newest, older] = names.bias;
    let tied_or_newest = c.tie_word_embeddings && (loader.is_fresh() || loader.has(newest));
    let bias = if tied_or_newest || !loader.has(older) { newest } else { older };
    let bias = loader.vector(bias, vocab, None)?;
    let linear = Linear::new(names.decoder, weight, Some(bias), (vocab, hidden));
    Ok(Some(LanguageModelHead { transform: Some((dense, activation, norm)), linear }))
}

/// The name of a tensor in a folder: norms of the first BERTs have `gamma` and `beta`.
fn folder_name(source: &dyn TensorSource, name: &str) -> String {
    let old = |new: &str, old: &str| {
        let path = name.strip_suffix(new).filter(|path| path.ends_with("LayerNorm."))?;
        Some(format!("{path}{old}")).filter(|old| source.find(old).is_some())
    };
    old("weight", "gamma").or_else(|| old("bias", "beta")).unwrap_or_else(|| name.to_string())
}

/// The GGUF name of a Hugging Face tensor.
fn gguf_name(name: &str) -> String {
    const TABLES: &[(&str, &str)] = &[
        ("word_embeddings", "token_embd"),
        ("position_embeddings", "position_embd"),
        ("token_type_embeddings", "token_types"),
        ("LayerNorm", "token_embd_norm"),
    ];
    const PARTS: &[(&str, &str)] = &[
        ("attention.self.query", "attn_q"),
        ("attention.self.key", "attn_k"),
        ("attention.self.value", "attn_v"),
        ("attention.output.dense", "attn_output"),
        ("attention.output.LayerNorm", "attn_output_norm"),
        ("intermediate.dense", "ffn_up"),
        ("output.dense", "ffn_down"),
        ("output.LayerNorm", "layer_output_norm"),
    ];
    let find = |parts: &[(&str, &'static str)], module: &str| {
        parts.iter().find(|(hf, _)| *hf == module).map(|(_, gguf)| *gguf)
    };
    let inside = || {
        let (module, kind) = name.strip_prefix("bert.")?.rsplit_once('.')?;
        if let Some(table) = module.strip_prefix("embeddings.") {
            return Some(format!("{}.{kind}", find(TABLES, table)?));
        }
        let (layer, module) = module.strip_prefix("encoder.layer.")?.split_once('.')?;
        Some(format!("blk.{layer}.{}.{kind}", find(PARTS, module)?))
    };
    inside().unwrap_or_else(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_gguf() {
        let of = |name: &str| gguf_name(&format!("bert.{name}"));
        assert_eq!(of("encoder.layer.3.attention.output.LayerNorm.bias"), "blk.3.attn_output_norm.bias");
        assert_eq!(of("encoder.layer.0.output.dense.weight"), "blk.0.ffn_down.weight");
        assert_eq!(of("embeddings.LayerNorm.weight"), "token_embd_norm.weight");
        assert_eq!(gguf_name("classifier.weight"), "classifier.weight");
    }
}
