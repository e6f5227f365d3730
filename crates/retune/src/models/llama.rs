//! Llama (Touvron et al., 2023) and what shares its shape: SmolLM, TinyLlama, Mistral, Qwen2, Qwen3.
//!
//! A block is `x += o(attention(rope(q(n)), rope(k(n)), v(n)))`, `n = rms_norm(x)`, then
//! `x += down(silu(gate(m)) * up(m))`, `m = rms_norm(x)`.

mod config;
mod gguf;
mod load;

use retune_tensor::ops::{self, RopeTable};
use retune_tensor::{Tape, Var};

pub use config::LlamaConfig;

use crate::models::{GgufForm, ModelInfo, Network, Reads, Spec, TextInput, TextModel, heads, rope};
use crate::nn::{
    Attention, Caches, Embedding, Head, Hidden, Linear, Meeting, Pass, Pooling, Prompt, RmsNorm, Rows,
    Shared, Site, SubLayer, linear_many,
};

pub const SPEC: Spec = Spec {
    model_types: &["llama", "mistral", "qwen2", "qwen3"],
    name: "llama",
    summary: "decoder-only text models: Llama, SmolLM, TinyLlama, Mistral, Qwen2, Qwen3",
    reads: Reads::Text,
    detects: false,
    load: load::load,
    fresh: load::fresh,
};

struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of each head's queries and keys (Qwen3).
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    heads: Attention,
    end: SubLayer,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    end: SubLayer,
}

struct Block {
    input_layernorm: RmsNorm,
    attention: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

/// The network; its parameters lie in the model's `Params`.
pub struct Llama {
    config: LlamaConfig,
    inv_freq: Vec<f32>,
    embed_tokens: Embedding,
    prompt: Prompt,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Head,
}

impl SelfAttention {
    fn head_norm(&self, tape: &Tape, norm: &RmsNorm, x: &Var) -> Var {
        let (rows, cols, head_dim) = (x.rows(), x.cols(), self.heads.shape.head_dim);
        let heads = ops::reshape(tape, x, rows * cols / head_dim, head_dim);
        ops::reshape(tape, &norm.forward(tape, &heads), rows, cols)
    }

    /// Its output for the normed rows `x`.
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var, cache: Option<&mut Caches>) -> Var {
        let [q, k, v] = linear_many(tape, &shared.rows, [&self.q_proj, &self.k_proj, &self.v_proj], x);
        let (q, k) = match &self.qk_norm {
            Some((q_norm, k_norm)) => (self.head_norm(tape, q_norm, &q), self.head_norm(tape, k_norm, &k)),
            None => (q, k),
        };
        let head_dim = self.heads.shape.head_dim;
        let rotated = |x: Var| match &shared.rope {
            Some(rope) => ops::rope(tape, x, head_dim, rope),
            None => x,
        };
        let o = self.heads.forward(tape, shared, [&rotated(q), &rotated(k), &v], cache);
        self.o_proj.forward(tape, &shared.rows, &o)
    }
}

impl Mlp {
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var) -> Var {
        let [gate, up] = linear_many(tape, &shared.rows, [&self.gate_proj, &self.up_proj], x);
        self.down_proj.forward(tape, &shared.rows, &ops::swiglu(tape, &gate, &up))
    }
}

impl Block {
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var, cache: Option<&mut Caches>) -> Var {
        let rows = &shared.rows;
        let input = self.input_layernorm.forward(tape, x);
        let output = self.attention.forward(tape, shared, &input, cache);
        let meeting = Meeting { input: &input, output: &output, residual: Some(x), norm: None };
        let x = self.attention.end.forward(tape, rows, meeting);
        drop((input, output));
        let input = self.post_attention_layernorm.forward(tape, &x);
        let output = self.mlp.forward(tape, shared, &input);
        let meeting = Meeting { input: &input, output: &output, residual: Some(&x), norm: None };
        self.mlp.end.forward(tape, rows, meeting)
    }

    fn linears(&self) -> [&Linear; 7] {
        let (a, m) = (&self.attention, &self.mlp);
        [&a.q_proj, &a.k_proj, &a.v_proj, &a.o_proj, &m.gate_proj, &m.up_proj, &m.down_proj]
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        for linear in [&mut a.q_proj, &mut a.k_proj, &mut a.v_proj, &mut a.o_proj] {
            visit(Site::Linear(linear));
        }
        visit(Site::Attention(&mut a.heads));
        visit(Site::SubLayer(&mut a.end));
        for linear in [&mut m.gate_proj, &mut m.up_proj, &mut m.down_proj] {
            visit(Site::Linear(linear));
        }
        visit(Site::SubLayer(&mut m.end));
    }
}

impl Network for Llama {
    fn model_type(&self) -> String {
        self.config.model_type.clone()
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn block_of(&self, parameter: &str) -> Option<usize> {
        (0..self.blocks.len()).find(|&layer| self.attention(layer).is_in_block(parameter))
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn trunk_linears(&self) -> Vec<&Linear> {
        self.blocks.iter().flat_map(Block::linears).collect()
    }

    fn embeddings(&self) -> Vec<&Embedding> {
        vec![&self.embed_tokens]
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        visit(Site::Embedding(&mut self.embed_tokens));
        visit(Site::Prompt(&mut self.prompt));
        self.blocks.iter_mut().for_each(|block| block.visit_sites(visit));
        self.head.visit_sites(visit);
    }

    fn config_json(&self) -> serde_json::Value {
        let mut value = self.config.to_json();
        heads::describe(&self.head, self.config.class_name(), Pooling::Last, &mut value);
        value
    }

    fn gguf_form(&self) -> Result<GgufForm, String> {
        self.config.gguf_form()
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
            learned_positions: false,
            decoder: true,
        }
    }

    fn embed(&self, tape: &Tape, input: &TextInput, pass: &Pass) -> Hidden {
        let rows = Rows::new(input.segments.clone(), pass);
        let x = self.embed_tokens.forward(tape, &rows, input.ids);
        if input.before.is_some() {
            return Hidden { x, rows };
        }
        let (x, rows) = self.prompt.lengthen(tape, &rows, x);
        Hidden { x, rows }
    }

    fn shared(&self, rows: &Rows, before: Option<&[usize]>) -> Shared {
        let rope = RopeTable::new(&self.positions(rows, before), &self.inv_freq, 1.0);
        Shared { rows: rows.clone(), rope: Some(rope) }
    }

    fn block(&self, tape: &Tape, shared: &Shared, index: usize, x: &Var, cache: Option<&mut Caches>) -> Var {
        self.blocks[index].forward(tape, shared, x, cache)
    }

    fn finish(&self, tape: &Tape, x: &Var) -> Var {
        self.norm.forward(tape, x)
    }

    fn attention(&self, layer: usize) -> &Attention {
        &self.blocks[layer].attention.heads
    }

    fn prompt_rows(&self, slot: Option<usize>) -> usize {
        self.prompt.virtual_rows(slot)
    }

    fn prompt_positions(&self, slot: Option<usize>) -> usize {
        self.prompt.virtual_positions(slot)
    }
}

/// The frequencies of a configuration.
pub(crate) fn frequencies(config: &LlamaConfig) -> Vec<f32> {
    rope::inv_freq(config.rope_theta, config.head_dim, &config.rope_scaling)
}
