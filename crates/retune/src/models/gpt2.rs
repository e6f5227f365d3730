//! GPT-2 (Radford et al., 2019): `x = token + position`; a block is `x += proj(attention(q, k, v))`,
//! `[q k v] = c_attn(layer_norm(x))`, then `x += c_proj(act(c_fc(layer_norm(x))))`.
//!
//! The dropouts of its configuration stay off, as in [`crate::models::bert`].

mod config;
mod gguf;
mod load;

use retune_tensor::ops::{self, Activation};
use retune_tensor::{ParamId, Tape, Var};

pub use config::Gpt2Config;

use crate::models::{GgufForm, ModelInfo, Network, Reads, Spec, TextInput, TextModel, heads};
use crate::nn::{
    Attention, Caches, Embedding, Head, Hidden, LayerNorm, Linear, Meeting, Pass, Pooling, Prompt, Rows,
    Shared, Site, SubLayer,
};

pub const SPEC: Spec = Spec {
    model_types: &["gpt2"],
    name: "gpt2",
    summary: "decoder-only text models with learned positions: GPT-2, DistilGPT-2",
    reads: Reads::Text,
    detects: false,
    load: load::load,
    fresh: load::fresh,
};

struct SelfAttention {
    /// Queries, keys and values side by side.
    c_attn: Linear,
    c_proj: Linear,
    heads: Attention,
    end: SubLayer,
}

struct Mlp {
    c_fc: Linear,
    activation: Activation,
    c_proj: Linear,
    end: SubLayer,
}

struct Block {
    ln_1: LayerNorm,
    attention: SelfAttention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

/// The network; its parameters lie in the model's `Params`.
pub struct Gpt2 {
    config: Gpt2Config,
    wte: Embedding,
    prompt: Prompt,
    wpe: ParamId,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    head: Head,
}

impl SelfAttention {
    /// Its output for the normed rows `x`.
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var, cache: Option<&mut Caches>) -> Var {
        let hidden = self.c_proj.in_features;
        let [q, k, v] = {
            let qkv = self.c_attn.forward(tape, &shared.rows, x);
            [0, 1, 2].map(|part| ops::slice_columns(tape, &qkv, part * hidden, hidden))
        };
        let o = self.heads.forward(tape, shared, [&q, &k, &v], cache);
        self.c_proj.forward(tape, &shared.rows, &o)
    }
}

impl Mlp {
    fn forward(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        let up = self.c_fc.forward(tape, rows, x);
        self.c_proj.forward(tape, rows, &ops::activation(tape, &up, self.activation))
    }
}

impl Block {
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var, cache: Option<&mut Caches>) -> Var {
        let rows = &shared.rows;
        let input = self.ln_1.forward(tape, x);
        let output = self.attention.forward(tape, shared, &input, cache);
        let meeting = Meeting { input: &input, output: &output, residual: Some(x), norm: None };
        let x = self.attention.end.forward(tape, rows, meeting);
        drop((input, output));
        let input = self.ln_2.forward(tape, &x);
        let output = self.mlp.forward(tape, rows, &input);
        let meeting = Meeting { input: &input, output: &output, residual: Some(&x), norm: None };
        self.mlp.end.forward(tape, rows, meeting)
    }

    fn linears(&self) -> [&Linear; 4] {
        let (a, m) = (&self.attention, &self.mlp);
        [&a.c_attn, &a.c_proj, &m.c_fc, &m.c_proj]
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        for linear in [&mut a.c_attn, &mut a.c_proj] {
            visit(Site::Linear(linear));
        }
        visit(Site::Attention(&mut a.heads));
        visit(Site::SubLayer(&mut a.end));
        for linear in [&mut m.c_fc, &mut m.c_proj] {
            visit(Site::Linear(linear));
        }
        visit(Site::SubLayer(&mut m.end));
    }
}

impl Network for Gpt2 {
    fn model_type(&self) -> String {
        "gpt2".into()
    }

    fn hidden_size(&self) -> usize {
        self.config.n_embd
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
        vec![&self.wte]
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        visit(Site::Embedding(&mut self.wte));
        visit(Site::Prompt(&mut self.prompt));
        self.blocks.iter_mut().for_each(|block| block.visit_sites(visit));
        self.head.visit_sites(visit);
    }

    fn config_json(&self) -> serde_json::Value {
        let mut value = self.config.to_json();
        heads::describe(&self.head, "GPT2", Pooling::Last, &mut value);
        value
    }

    fn gguf_form(&self) -> Result<GgufForm, String> {
        self.config.gguf_form()
    }
}

impl TextModel for Gpt2 {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            model_type: "gpt2".into(),
            hidden_size: self.config.n_embd,
            layers: self.blocks.len(),
            vocab_size: self.config.vocab_size,
            context_length: self.config.n_positions,
            learned_positions: true,
            decoder: true,
        }
    }

    fn embed(&self, tape: &Tape, input: &TextInput, pass: &Pass) -> Hidden {
        let rows = Rows::new(input.segments.clone(), pass);
        let x = self.wte.forward(tape, &rows, input.ids);
        let (x, rows) = match input.before {
            None => self.prompt.lengthen(tape, &rows, x),
            Some(_) => (x, rows),
        };
        let positions: Vec<u32> =
            self.positions(&rows, input.before).iter().map(|&position| position as u32).collect();
        let positions = ops::embedding(tape, &tape.weight(self.wpe), &positions);
        Hidden { x: ops::add(tape, &x, &positions), rows }
    }

    fn shared(&self, rows: &Rows, _before: Option<&[usize]>) -> Shared {
        Shared { rows: rows.clone(), rope: None }
    }

    fn block(&self, tape: &Tape, shared: &Shared, index: usize, x: &Var, cache: Option<&mut Caches>) -> Var {
        self.blocks[index].forward(tape, shared, x, cache)
    }

    fn finish(&self, tape: &Tape, x: &Var) -> Var {
        self.ln_f.forward(tape, x)
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
