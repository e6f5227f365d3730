//! Builds a Llama from a Hugging Face folder or a GGUF file, or a fresh one from its configuration.

use retune_tensor::ops::AttentionShape;
use retune_tensor::{ParamId, Params};

use super::{Block, Llama, LlamaConfig, Mlp, SelfAttention, frequencies};
use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::fresh::Draw;
use crate::models::heads::{Heads, Parts};
use crate::models::loader::Loader;
use crate::models::rope::RopeScaling;
use crate::models::{HeadRequest, LoadOptions, Model, ModelFiles, Net};
use crate::nn::{
    Attention, Embedding, Head, LanguageModelHead, Linear, Pooling, Prompt, RmsNorm, SubLayer, SubLayerKind,
};

/// Loads the model; every tensor of the files must have a place, and every place its tensor.
pub fn load(files: &ModelFiles, options: &LoadOptions, head: &HeadRequest) -> Result<Model> {
    let (config, permuted) = match files {
        // llama.cpp stores the rows of q and k with the two halves of each head interleaved, for "llama" alone.
        ModelFiles::Gguf(file) => {
            let arch = file.metadata().str("general.architecture")?;
            (LlamaConfig::from_gguf(file)?, arch == "llama")
        }
        _ => (LlamaConfig::from_json(&files.config()?)?, false),
    };
    if let RopeScaling::Divisors(divisors) = &config.rope_scaling
        && divisors.len() != config.head_dim / 2
    {
        let what =
            format!("\"rope_freqs.weight\" has {} values for heads of {}", divisors.len(), config.head_dim);
        return Err(Error::Model { path: files.path().to_path_buf(), what });
    }
    let is_gguf = matches!(files, ModelFiles::Gguf(_));
    let rename = move |name: &str| if is_gguf { gguf_name(name) } else { name.to_string() };
    let mut builder = Builder { loader: Loader::new(files, options, rename)?, config: &config, permuted };
    if is_gguf {
        builder.loader.ignore("rope_freqs.weight");
    }
    let net = builder.network(Some(files), head)?;
    let pager = builder.loader.pager();
    let params = builder.loader.finish()?;
    Ok(Model { params, net: Net::Text(Box::new(net)), files: files.clone(), adapters: Vec::new(), pager })
}

/// The projections whose outputs are added to the residual stream, two in each block.
const RESIDUAL: &[&str] = &["self_attn.o_proj.weight", "mlp.down_proj.weight"];

/// The parameters of a new Llama of this configuration.
pub fn fresh(config: &Config, draw: Draw) -> Result<Params> {
    let config = LlamaConfig::from_json(config)?;
    let draw = draw.with_residual(RESIDUAL, 2 * config.num_hidden_layers);
    let mut builder = Builder { loader: Loader::fresh(draw), config: &config, permuted: false };
    builder.network(None, &HeadRequest::AsFile)?;
    builder.loader.finish()
}

struct Builder<'a> {
    loader: Loader<'a>,
    config: &'a LlamaConfig,
    permuted: bool,
}

impl Builder<'_> {
    fn network(&mut self, files: Option<&ModelFiles>, head: &HeadRequest) -> Result<Llama> {
        let c = self.config;
        let (vocab_size, dim) = (c.vocab_size, c.hidden_size);
        let table = self.loader.matrix("model.embed_tokens.weight", vocab_size, dim)?;
        let embed_tokens = Embedding::new("model.embed_tokens", table, vocab_size, dim);
        let blocks = (0..c.num_hidden_layers).map(|i| self.block(i)).collect::<Result<_>>()?;
        let norm = self.norm("model.norm", dim)?;
        let head = self.head(table, files, head)?;
        let (inv_freq, prompt) = (frequencies(c), Prompt::default());
        Ok(Llama { config: c.clone(), inv_freq, embed_tokens, prompt, blocks, norm, head })
    }

    fn head(&mut self, table: ParamId, files: Option<&ModelFiles>, request: &HeadRequest) -> Result<Head> {
        let (vocab, dim) = (self.config.vocab_size, self.config.hidden_size);
        let tied = self.config.tie_word_embeddings;
        let language_model = |loader: &mut Loader| {
            // Some writers save the tied head too; transformers ignores it, and so do we.
            let weight = if tied { table } else { loader.matrix("lm_head.weight", vocab, dim)? };
            let linear = Linear::new("lm_head", weight, None, (vocab, dim));
            Ok(Some(LanguageModelHead { transform: None, linear }))
        };
        let parts =
            |pooling| Parts { dense: None, out: "score", out_bias: pooling == Pooling::Each, pooling };
        let heads = Heads {
            hidden: dim,
            sequence: parts(Pooling::Last),
            tokens: parts(Pooling::Each),
            prefixes: &["lm_head.weight", "score."],
            language_model: &language_model,
        };
        heads.build(&mut self.loader, files, request)
    }

    fn block(&mut self, index: usize) -> Result<Block> {
        let c = self.config;
        let at = |name: &str| format!("model.layers.{index}.{name}");
        let (hidden, ff) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let halves = self.permuted.then_some(c.head_dim);
        Ok(Block {
            input_layernorm: self.norm(&at("input_layernorm"), hidden)?,
            attention: SelfAttention {
                q_proj: self.linear(&at("self_attn.q_proj"), q, hidden, c.qkv_bias, halves)?,
                k_proj: self.linear(&at("self_attn.k_proj"), kv, hidden, c.qkv_bias, halves)?,
                v_proj: self.linear(&at("self_attn.v_proj"), kv, hidden, c.qkv_bias, None)?,
                o_proj: self.linear(&at("self_attn.o_proj"), hidden, q, c.o_bias, None)?,
                qk_norm: if c.qk_norm {
                    Some((
                        self.norm(&at("self_attn.q_norm"), c.head_dim)?,
                        self.norm(&at("self_attn.k_norm"), c.head_dim)?,
                    ))
                } else {
                    None
                },
                heads: Attention::new(at("self_attn"), index, self.attention_shape(index)),
                end: SubLayer::new(at("self_attn"), SubLayerKind::Attention, index, hidden),
            },
            post_attention_layernorm: self.norm(&at("post_attention_layernorm"), hidden)?,
            mlp: Mlp {
                gate_proj: self.linear(&at("mlp.gate_proj"), ff, hidden, c.mlp_bias, None)?,
                up_proj: self.linear(&at("mlp.up_proj"), ff, hidden, c.mlp_bias, None)?,
                down_proj: self.linear(&at("mlp.down_proj"), hidden, ff, c.mlp_bias, None)?,
                end: SubLayer::new(at("mlp"), SubLayerKind::FeedForward, index, hidden),
            },
        })
    }

    fn attention_shape(&self, index: usize) -> AttentionShape {
        let c = self.config;
        AttentionShape {
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            causal: true,
            window: c.windows.get(index).copied().flatten(),
        }
    }

    fn norm(&mut self, path: &str, dim: usize) -> Result<RmsNorm> {
        let weight = self.loader.vector(&format!("{path}.weight"), dim, None)?;
        Ok(RmsNorm { path: path.into(), weight, eps: self.config.rms_norm_eps })
    }

    /// `halves` is the head size if the file has the rows of each head interleaved.
    fn linear(
        &mut self,
        path: &str,
        out: usize,
        inp: usize,
        bias: bool,
        halves: Option<usize>,
    ) -> Result<Linear> {
        let order = halves.map(|head_dim| move |row: usize| interleaved(row, head_dim));
        let order = order.as_ref().map(|f| f as &dyn Fn(usize) -> usize);
        let weight = self.loader.linear_weight(&format!("{path}.weight"), (out, inp), order)?;
        let bias = match bias {
            true => Some(self.loader.vector(&format!("{path}.bias"), out, order)?),
            false => None,
        };
        Ok(Linear::new(path, weight, bias, (out, inp)))
    }
}

/// Row `row` of a head of halves lies at `2 j + half` of the interleaved head.
pub(crate) fn interleaved(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    let (half, j) = (i / (head_dim / 2), i % (head_dim / 2));
    head * head_dim + 2 * j + half
}

/// The GGUF name of a Hugging Face tensor.
pub(crate) fn gguf_name(name: &str) -> String {
    const PARTS: &[(&str, &str)] = &[
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let inside = || {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let (_, part) = PARTS.iter().find(|(hf, _)| *hf == module)?;
        Some(format!("blk.{layer}.{part}.{kind}"))
    };
    inside().unwrap_or_else(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_gguf() {
        assert_eq!(gguf_name("model.layers.7.self_attn.q_proj.weight"), "blk.7.attn_q.weight");
        assert_eq!(gguf_name("model.layers.0.post_attention_layernorm.weight"), "blk.0.ffn_norm.weight");
        assert_eq!(gguf_name("lm_head.weight"), "output.weight");
    }

    #[test]
    fn interleaving_is_a_permutation_of_each_head() {
        let rows: Vec<usize> = (0..8).map(|r| interleaved(r, 4)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
