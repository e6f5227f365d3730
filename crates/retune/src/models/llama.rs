//! Llama (Touvron et al., 2023) and what shares its shape: SmolLM, TinyLlama, Mistral, Qwen2, Qwen3.
//!
//! A block is `x += o(attention(rope(q(n)), rope(k(n)), v(n)))`, `n = rms_norm(x)`, then
//! `x += down(silu(gate(m)) * up(m))`, `m = rms_norm(x)`.

mod config;
mod load;

use std::sync::Arc;

use retune_tensor::kernel::PackedLhs;
use retune_tensor::ops::{self, AttentionShape, RopeTable};
use retune_tensor::{Params, Segments, Tape, Tensor, Var};

pub use config::LlamaConfig;

use crate::models::{ActivationProfile, KvCache, ModelInfo, Spec, TextModel, rope};
use crate::nn::{Embedding, Linear, Pass, RmsNorm, Rows, Site, linear_many};

pub const SPEC: Spec = Spec {
    model_types: &["llama", "mistral", "qwen2", "qwen3"],
    name: "llama",
    summary: "decoder-only text models: Llama, SmolLM, TinyLlama, Mistral, Qwen2, Qwen3",
    load: load::load,
    fresh: load::fresh,
};

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of each head's queries and keys (Qwen3).
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    shape: AttentionShape,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

struct Block {
    input_layernorm: RmsNorm,
    attention: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

/// The network; its parameters lie in the model's [`Params`].
pub struct Llama {
    config: LlamaConfig,
    inv_freq: Vec<f32>,
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
}

/// What all blocks of one pass share.
#[derive(Clone)]
struct Shared {
    rows: Rows,
    rope: RopeTable,
}

impl Attention {
    /// Rotated queries, rotated keys and values.
    fn project(&self, tape: &Tape, shared: &Shared, x: &Var) -> (Var, Var, Var) {
        let [q, k, v] = linear_many(tape, &shared.rows, [&self.q_proj, &self.k_proj, &self.v_proj], x);
        let (q, k) = match &self.qk_norm {
            Some((q_norm, k_norm)) => (self.head_norm(tape, q_norm, &q), self.head_norm(tape, k_norm, &k)),
            None => (q, k),
        };
        let head_dim = self.shape.head_dim;
        (ops::rope(tape, q, head_dim, &shared.rope), ops::rope(tape, k, head_dim, &shared.rope), v)
    }

    fn head_norm(&self, tape: &Tape, norm: &RmsNorm, x: &Var) -> Var {
        let (rows, cols, head_dim) = (x.rows(), x.cols(), self.shape.head_dim);
        let heads = ops::reshape(tape, x, rows * cols / head_dim, head_dim);
        ops::reshape(tape, &norm.forward(tape, &heads), rows, cols)
    }

    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var) -> Var {
        let (q, k, v) = self.project(tape, shared, x);
        let segments = &shared.rows.segments;
        let o = ops::attention(tape, self.shape, &q, segments, &k, &v, segments);
        self.o_proj.forward(tape, &shared.rows, &o)
    }

    fn cached(&self, tape: &Tape, shared: &Shared, x: &Var, layer: usize, cache: &mut KvCache) -> Var {
        let (q, k, v) = self.project(tape, shared, x);
        let total = Segments::from_lengths(&[cache.len + x.rows()]);
        let (keys, values) = cache.append(layer, k.value(), v.value());
        let (o, _) =
            ops::attention_values(&self.shape, q.value(), &shared.rows.segments, keys, values, &total);
        self.o_proj.forward(tape, &shared.rows, &Var::constant(o))
    }
}

impl Mlp {
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var) -> Var {
        let [gate, up] = linear_many(tape, &shared.rows, [&self.gate_proj, &self.up_proj], x);
        self.down_proj.forward(tape, &shared.rows, &ops::swiglu(tape, &gate, &up))
    }
}

impl Block {
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var) -> Var {
        let attended = self.attention.forward(tape, shared, &self.input_layernorm.forward(tape, x));
        self.feed_forward(tape, shared, &ops::add(tape, x, &attended))
    }

    fn feed_forward(&self, tape: &Tape, shared: &Shared, x: &Var) -> Var {
        let out = self.mlp.forward(tape, shared, &self.post_attention_layernorm.forward(tape, x));
        ops::add(tape, x, &out)
    }

    fn cached(&self, tape: &Tape, shared: &Shared, x: &Var, layer: usize, cache: &mut KvCache) -> Var {
        let normed = self.input_layernorm.forward(tape, x);
        let attended = self.attention.cached(tape, shared, &normed, layer, cache);
        self.feed_forward(tape, shared, &ops::add(tape, x, &attended))
    }

    fn linears(&self) -> [&Linear; 7] {
        let (a, m) = (&self.attention, &self.mlp);
        [&a.q_proj, &a.k_proj, &a.v_proj, &a.o_proj, &m.gate_proj, &m.up_proj, &m.down_proj]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        [
            &mut a.q_proj,
            &mut a.k_proj,
            &mut a.v_proj,
            &mut a.o_proj,
            &mut m.gate_proj,
            &mut m.up_proj,
            &mut m.down_proj,
        ]
    }
}

impl Llama {
    fn shared(&self, segments: &Segments, first_position: usize, pass: &Pass) -> Shared {
        let positions: Vec<usize> =
            segments.ranges().flat_map(|r| (0..r.len()).map(|i| first_position + i)).collect();
        Shared {
            rows: Rows::new(segments.clone(), pass),
            rope: RopeTable::new(&positions, &self.inv_freq, 1.0),
        }
    }
}

impl TextModel for Llama {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            model_type: self.config.model_type.clone(),
            hidden_size: self.config.hidden_size,
            layers: self.blocks.len(),
            vocab_size: self.config.vocab_size,
            context_length: self.config.max_position_embeddings,
        }
    }

    fn hidden<'p>(&'p self, tape: &Tape<'p>, ids: &[u32], segments: &Segments, pass: &Pass) -> Var {
        let shared = Arc::new(self.shared(segments, 0, pass));
        let mut x = self.embed_tokens.forward(tape, ids);
        for block in &self.blocks {
            x = if pass.checkpoint {
                let shared = shared.clone();
                tape.checkpoint(&x, move |tape, x| block.forward(tape, &shared, x))
            } else {
                block.forward(tape, &shared, &x)
            };
        }
        self.norm.forward(tape, &x)
    }

    fn hidden_cached(&self, params: &Params, ids: &[u32], cache: &mut KvCache) -> Tensor {
        let tape = Tape::inference(params);
        let shared = self.shared(&Segments::from_lengths(&[ids.len()]), cache.len, &Pass::default());
        let mut x = self.embed_tokens.forward(&tape, ids);
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.cached(&tape, &shared, &x, layer, cache);
        }
        cache.len += ids.len();
        self.norm.forward(&tape, &x).value().clone()
    }

    fn head(&self) -> &Linear {
        &self.lm_head
    }

    fn linears(&self) -> Vec<&Linear> {
        self.blocks.iter().flat_map(Block::linears).chain([&self.lm_head]).collect()
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        visit(Site::Embedding(&mut self.embed_tokens));
        for block in &mut self.blocks {
            for linear in block.linears_mut() {
                visit(Site::Linear(linear));
            }
        }
        visit(Site::Linear(&mut self.lm_head));
    }

    fn config_json(&self) -> serde_json::Value {
        self.config.to_json()
    }

    fn activation_profile(&self) -> ActivationProfile {
        let c = &self.config;
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        // Kept: both residual inputs, q k v and the attention's output with its logsumexp, gate and up. Norms and
        // the product of gate and up are made again.
        let qk_norm = if c.qk_norm { q + kv } else { 0 };
        let kept =
            2 * c.hidden_size + 2 * q + 2 * kv + c.num_attention_heads + 2 * c.intermediate_size + qk_norm;
        // The worst is the product with `down`. Forward: attended, norm, output, gate * up and perhaps its packed copy;
        // backward: the gradient and perhaps its copy, gate * up and its gradient.
        let packed = |cols: usize| if PackedLhs::copies_rows_of(cols) { cols } else { 0 };
        let (hidden, ff) = (c.hidden_size, c.intermediate_size);
        let forward = 3 * hidden + ff + packed(ff);
        let transient = forward.max(hidden + packed(hidden) + 2 * ff);
        ActivationProfile {
            blocks: self.blocks.len(),
            kept_per_row: kept,
            transient_per_row: transient,
            // There the block's input, the sum, gate and up exist besides.
            inference_per_row: forward + 2 * hidden + 2 * ff,
            // Cosines and sines, the input and the output of the last norm.
            shared_per_row: c.head_dim + 2 * hidden,
            input_per_row: c.hidden_size,
            logits: c.vocab_size,
        }
    }

    fn new_cache(&self, rows: usize) -> KvCache {
        KvCache::new(self.blocks.len(), rows, self.config.num_key_value_heads * self.config.head_dim)
    }
}

/// The frequencies of a configuration.
fn frequencies(config: &LlamaConfig) -> Vec<f32> {
    rope::inv_freq(config.rope_theta, config.head_dim, &config.rope_scaling)
}
