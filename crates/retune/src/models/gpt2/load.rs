//! Builds a GPT-2 from a Hugging Face folder or a GGUF file, or a fresh one from its configuration.

use retune_tensor::ops::AttentionShape;
use retune_tensor::{ParamId, Params};

use super::{Block, Gpt2, Gpt2Config, Mlp, SelfAttention};
use crate::error::Result;
use crate::models::config::Config;
use crate::models::fresh::Draw;
use crate::models::heads::{Heads, Parts, requested};
use crate::models::loader::Loader;
use crate::models::{HeadRequest, LoadOptions, Model, ModelFiles, Net};
use crate::nn::{
    Attention, Embedding, Head, LanguageModelHead, Linear, Pooling, Prompt, SubLayer, SubLayerKind,
};

/// transformers' `base_model_prefix`: files of the trunk alone leave it out.
const PREFIX: &str = "transformer.";
/// The projections whose outputs are added to the residual stream, two in each block.
const RESIDUAL: &[&str] = &["attn.c_proj.weight", "mlp.c_proj.weight"];

/// Loads the model; every tensor of the files must have a place, and every place its tensor.
pub fn load(files: &ModelFiles, options: &LoadOptions, head: &HeadRequest) -> Result<Model> {
    let config = match files {
        ModelFiles::Gguf(file) => Gpt2Config::from_gguf(file)?,
        _ => Gpt2Config::from_json(&files.config()?)?,
    };
    let gguf = matches!(files, ModelFiles::Gguf(_));
    let bare = !files.source().tensors().iter().any(|info| info.name.starts_with(PREFIX));
    let rename = move |name: &str| match (gguf, bare) {
        (true, _) => gguf_name(name),
        (false, true) => name.strip_prefix(PREFIX).unwrap_or(name).to_string(),
        (false, false) => name.to_string(),
    };
    let mut builder = Builder { loader: Loader::new(files, options, rename)?, config: &config, gguf };
    let net = builder.network(Some(files), head)?;
    let pager = builder.loader.pager();
    let params = builder.loader.finish()?;
    Ok(Model { params, net: Net::Text(Box::new(net)), files: files.clone(), adapters: Vec::new(), pager })
}

/// The parameters of a new GPT-2 of this configuration, with the head that its `architectures` name.
pub fn fresh(config: &Config, draw: Draw) -> Result<Params> {
    let head = requested(config, draw.seed())?;
    let config = Gpt2Config::from_json(config)?;
    let draw = draw.with_residual(RESIDUAL, 2 * config.n_layer);
    let mut builder = Builder { loader: Loader::fresh(draw), config: &config, gguf: false };
    builder.network(None, &head)?;
    builder.loader.finish()
}

struct Builder<'a> {
    loader: Loader<'a>,
    config: &'a Gpt2Config,
    gguf: bool,
}

impl Builder<'_> {
    fn network(&mut self, files: Option<&ModelFiles>, request: &HeadRequest) -> Result<Gpt2> {
        let c = self.config;
        let at = |name: &str| format!("{PREFIX}{name}");
        let table = self.loader.matrix(&at("wte.weight"), c.vocab_size, c.n_embd)?;
        let wpe = self.loader.matrix(&at("wpe.weight"), c.n_positions, c.n_embd)?;
        let blocks = (0..c.n_layer).map(|i| self.block(i)).collect::<Result<_>>()?;
        let ln_f = self.loader.layer_norm(&at("ln_f"), c.n_embd, c.layer_norm_epsilon)?;
        let head = self.head(table, files, request)?;
        let wte = Embedding::new(at("wte"), table, c.vocab_size, c.n_embd);
        Ok(Gpt2 { config: c.clone(), wte, prompt: Prompt::default(), wpe, blocks, ln_f, head })
    }

    fn block(&mut self, index: usize) -> Result<Block> {
        let (c, gguf, loader) = (self.config, self.gguf, &mut self.loader);
        let at = |name: &str| format!("{PREFIX}h.{index}.{name}");
        let (hidden, ff, eps) = (c.n_embd, c.n_inner, c.layer_norm_epsilon);
        let shape = AttentionShape {
            heads: c.n_head,
            kv_heads: c.n_head,
            head_dim: hidden / c.n_head,
            scale: c.attention_scale(index),
            causal: true,
            window: None,
        };
        Ok(Block {
            ln_1: loader.layer_norm(&at("ln_1"), hidden, eps)?,
            attention: SelfAttention {
                c_attn: loader.conv1d(&at("attn.c_attn"), (3 * hidden, hidden), gguf)?,
                c_proj: loader.conv1d(&at("attn.c_proj"), (hidden, hidden), gguf)?,
                heads: Attention::new(at("attn"), index, shape),
                end: SubLayer::new(at("attn"), SubLayerKind::Attention, index, hidden),
            },
            ln_2: loader.layer_norm(&at("ln_2"), hidden, eps)?,
            mlp: Mlp {
                c_fc: loader.conv1d(&at("mlp.c_fc"), (ff, hidden), gguf)?,
                activation: c.activation,
                c_proj: loader.conv1d(&at("mlp.c_proj"), (hidden, ff), gguf)?,
                end: SubLayer::new(at("mlp"), SubLayerKind::FeedForward, index, hidden),
            },
        })
    }

    fn head(&mut self, table: ParamId, files: Option<&ModelFiles>, request: &HeadRequest) -> Result<Head> {
        let c = self.config;
        let (vocab, hidden) = (c.vocab_size, c.n_embd);
        let language_model = |loader: &mut Loader| {
            // Some writers save the tied head too; transformers ignores it, and so do we.
            let weight = match c.tie_word_embeddings {
                true => table,
                false => loader.matrix("lm_head.weight", vocab, hidden)?,
            };
            let linear = Linear::new("lm_head", weight, None, (vocab, hidden));
            Ok(Some(LanguageModelHead { transform: None, linear }))
        };
        let heads = Heads {
            hidden,
            sequence: Parts { dense: None, out: "score", out_bias: false, pooling: Pooling::Last },
            tokens: Parts { dense: None, out: "classifier", out_bias: true, pooling: Pooling::Each },
            prefixes: &["lm_head.", "score.", "classifier.", "multiple_choice_head."],
            language_model: &language_model,
        };
        heads.build(&mut self.loader, files, request)
    }
}

/// The GGUF name of a Hugging Face tensor.
pub(crate) fn gguf_name(name: &str) -> String {
    const PARTS: &[(&str, &str)] = &[
        ("ln_1", "attn_norm"),
        ("attn.c_attn", "attn_qkv"),
        ("attn.c_proj", "attn_output"),
        ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"),
        ("mlp.c_proj", "ffn_down"),
    ];
    let inside = || {
        let (layer, rest) = name.strip_prefix("transformer.h.")?.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let (_, part) = PARTS.iter().find(|(hf, _)| *hf == module)?;
        Some(format!("blk.{layer}.{part}.{kind}"))
    };
    match name {
        "transformer.wte.weight" => "token_embd.weight".into(),
        "transformer.wpe.weight" => "position_embd.weight".into(),
        "transformer.ln_f.weight" => "output_norm.weight".into(),
        "transformer.ln_f.bias" => "output_norm.bias".into(),
        "lm_head.weight" => "output.weight".into(),
        _ => inside().unwrap_or_else(|| name.to_string()),
    }
}
