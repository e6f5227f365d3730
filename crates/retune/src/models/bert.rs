//! BERT (Devlin et al., 2019) and what shares its shape: RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, sentence encoders.
//!
//! `x = norm(word + position + token type)`; a block is `x = norm(x + o(attention(q(x), k(x), v(x))))`, then
//! `x = norm(x + down(act(up(x))))`. Every row of an example sees all of them.
//!
//! The dropouts that a configuration names (`hidden_dropout_prob`, `attention_probs_dropout_prob`) stay off, in training
//! too: a trunk that is frozen, wholly or below some block, then gives the same rows in every epoch, so that they can be
//! kept instead of computed again, and a run's numbers depend on its data alone. Methods bring dropouts of their own.

mod config;
mod load;

use retune_tensor::ops::{self, Activation};
use retune_tensor::{ParamId, Tape, Var};

pub use config::{BertConfig, Family};

use crate::models::{ModelInfo, Network, Reads, Spec, TextInput, TextModel, heads};
use crate::nn::{
    Attention, Caches, Embedding, Head, Hidden, LayerNorm, Linear, Meeting, Pass, Pooling, Prompt, Rows,
    Shared, Site, SubLayer,
};

pub const SPEC: Spec = Spec {
    model_types: &["bert", "roberta", "xlm-roberta", "camembert", "distilbert"],
    name: "bert",
    summary: "encoders: BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, sentence encoders such as MiniLM",
    reads: Reads::Text,
    detects: false,
    load: load::load,
    fresh: load::fresh,
};

struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: Attention,
    end: SubLayer,
    norm: LayerNorm,
}

struct FeedForward {
    up: Linear,
    activation: Activation,
    down: Linear,
    end: SubLayer,
    norm: LayerNorm,
}

struct Block {
    attention: SelfAttention,
    feed_forward: FeedForward,
}

/// The network; its parameters lie in the model's `Params`.
pub struct Bert {
    config: BertConfig,
    words: Embedding,
    prompt: Prompt,
    positions: ParamId,
    token_types: Option<ParamId>,
    norm: LayerNorm,
    blocks: Vec<Block>,
    head: Head,
}

impl SelfAttention {
    fn forward(&self, tape: &Tape, shared: &Shared, x: &Var, cache: Option<&mut Caches>) -> Var {
        let rows = &shared.rows;
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|layer| layer.forward(tape, rows, x));
        let o = self.heads.forward(tape, shared, [&q, &k, &v], cache);
        let output = self.output.forward(tape, rows, &o);
        let meeting = Meeting { input: x, output: &output, residual: Some(x), norm: Some(&self.norm) };
        self.end.forward(tape, rows, meeting)
    }
}

impl FeedForward {
    fn forward(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        let up = self.up.forward(tape, rows, x);
        let output = self.down.forward(tape, rows, &ops::activation(tape, &up, self.activation));
        let meeting = Meeting { input: x, output: &output, residual: Some(x), norm: Some(&self.norm) };
        self.end.forward(tape, rows, meeting)
    }
}

impl Block {
    fn linears(&self) -> [&Linear; 6] {
        let (a, f) = (&self.attention, &self.feed_forward);
        [&a.query, &a.key, &a.value, &a.output, &f.up, &f.down]
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        let (a, f) = (&mut self.attention, &mut self.feed_forward);
        for linear in [&mut a.query, &mut a.key, &mut a.value, &mut a.output] {
            visit(Site::Linear(linear));
        }
        visit(Site::Attention(&mut a.heads));
        visit(Site::SubLayer(&mut a.end));
        for linear in [&mut f.up, &mut f.down] {
            visit(Site::Linear(linear));
        }
        visit(Site::SubLayer(&mut f.end));
    }
}

impl Bert {
    /// The token type of each of `rows`: virtual rows have type 0, as with PEFT.
    fn types_of_rows(&self, rows: &Rows, input: &TextInput) -> Vec<u32> {
        let mut types = vec![0; rows.segments.rows()];
        // RoBERTa's table has one row: there pairs are told apart by their separators alone.
        let last = self.config.type_vocab_size.saturating_sub(1) as u32;
        if input.token_types.is_empty() || last == 0 {
            return types;
        }
        for (to, from) in rows.segments.ranges().zip(input.segments.ranges()) {
            let types_of_text = input.token_types.iter().skip(from.start).take(from.len());
            for (slot, kind) in types[to.end - from.len()..to.end].iter_mut().zip(types_of_text) {
                *slot = (*kind).min(last);
            }
        }
        types
    }
}

impl Network for Bert {
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
        vec![&self.words]
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        visit(Site::Embedding(&mut self.words));
        visit(Site::Prompt(&mut self.prompt));
        self.blocks.iter_mut().for_each(|block| block.visit_sites(visit));
        self.head.visit_sites(visit);
    }

    fn config_json(&self) -> serde_json::Value {
        let (class, mut value) = (self.config.class_name(), self.config.to_json());
        let ending = if matches!(self.head, Head::LanguageModel(_)) { "ForMaskedLM" } else { "Model" };
        value["architectures"] = serde_json::json!([format!("{class}{ending}")]);
        heads::describe(&self.head, class, Pooling::First, &mut value);
        value
    }
}

impl TextModel for Bert {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            model_type: self.config.model_type.clone(),
            hidden_size: self.config.hidden_size,
            layers: self.blocks.len(),
            vocab_size: self.config.vocab_size,
            context_length: self.config.context_length(),
            learned_positions: true,
            decoder: false,
        }
    }

    fn embed(&self, tape: &Tape, input: &TextInput, pass: &Pass) -> Hidden {
        let rows = Rows::new(input.segments.clone(), pass);
        let words = self.words.forward(tape, &rows, input.ids);
        let (x, rows) = self.prompt.lengthen(tape, &rows, words);
        let first = self.config.first_position();
        let positions: Vec<u32> =
            self.positions(&rows, input.before).iter().map(|i| (first + i) as u32).collect();
        let mut x = ops::add(tape, &x, &ops::embedding(tape, &tape.weight(self.positions), &positions));
        if let Some(table) = self.token_types {
            let types = self.types_of_rows(&rows, input);
            x = ops::add(tape, &x, &ops::embedding(tape, &tape.weight(table), &types));
        }
        let (x, rows) = self.prompt.lengthen_embedded(tape, &rows, self.norm.forward(tape, &x));
        Hidden { x, rows }
    }

    fn shared(&self, rows: &Rows, _before: Option<&[usize]>) -> Shared {
        Shared { rows: rows.clone(), rope: None }
    }

    fn block(&self, tape: &Tape, shared: &Shared, index: usize, x: &Var, cache: Option<&mut Caches>) -> Var {
        let block = &self.blocks[index];
        let x = block.attention.forward(tape, shared, x, cache);
        block.feed_forward.forward(tape, &shared.rows, &x)
    }

    fn finish(&self, _tape: &Tape, x: &Var) -> Var {
        x.clone()
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
