//! A model seen with its adapter switched off: every example goes through the base alone.

use retune_tensor::{Tape, Var};

use super::{ModelInfo, Network, TextInput, TextModel};
use crate::nn::{Active, Attention, Caches, Embedding, Head, Hidden, Linear, Pass, Rows, Shared, Site};

/// A view of a network in which no slot is active. Parameters of the base that a method trains are as trained as ever.
pub struct WithoutAdapter<'a>(pub &'a dyn TextModel);

impl Network for WithoutAdapter<'_> {
    fn model_type(&self) -> String {
        self.0.model_type()
    }

    fn hidden_size(&self) -> usize {
        self.0.hidden_size()
    }

    fn block_of(&self, parameter: &str) -> Option<usize> {
        self.0.block_of(parameter)
    }

    fn layer_of(&self, parameter: &str) -> Option<usize> {
        self.0.layer_of(parameter)
    }

    fn blocks(&self) -> usize {
        self.0.blocks()
    }

    fn head(&self) -> &Head {
        self.0.head()
    }

    fn trunk_linears(&self) -> Vec<&Linear> {
        self.0.trunk_linears()
    }

    fn embeddings(&self) -> Vec<&Embedding> {
        self.0.embeddings()
    }

    /// None: what is only looked at takes nothing.
    fn visit_sites(&mut self, _visit: &mut dyn FnMut(Site<'_>)) {}

    fn config_json(&self) -> serde_json::Value {
        self.0.config_json()
    }
}

impl TextModel for WithoutAdapter<'_> {
    fn info(&self) -> ModelInfo {
        self.0.info()
    }

    fn embed(&self, tape: &Tape, input: &TextInput, pass: &Pass) -> Hidden {
        self.0.embed(tape, input, &Pass { active: Active::Base, ..pass.clone() })
    }

    fn shared(&self, rows: &Rows, before: Option<&[usize]>) -> Shared {
        self.0.shared(rows, before)
    }

    fn block(&self, tape: &Tape, shared: &Shared, index: usize, x: &Var, cache: Option<&mut Caches>) -> Var {
        self.0.block(tape, shared, index, x, cache)
    }

    fn finish(&self, tape: &Tape, x: &Var) -> Var {
        self.0.finish(tape, x)
    }

    fn attention(&self, layer: usize) -> &Attention {
        self.0.attention(layer)
    }

    fn prefix_rows(&self, _slot: Option<usize>) -> usize {
        self.0.prefix_rows(None)
    }

    fn prompt_rows(&self, _slot: Option<usize>) -> usize {
        self.0.prompt_rows(None)
    }

    fn prefix_positions(&self, _slot: Option<usize>) -> usize {
        self.0.prefix_positions(None)
    }

    fn prompt_positions(&self, _slot: Option<usize>) -> usize {
        self.0.prompt_positions(None)
    }
}
