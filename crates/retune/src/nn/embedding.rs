//! A token table.

use retune_tensor::ops;
use retune_tensor::{ParamId, Tape, Var};

/// Rows of `weight` `[V, C]` by token id.
pub struct Embedding {
    pub path: String,
    pub weight: ParamId,
    pub vocab_size: usize,
    pub dim: usize,
}

impl Embedding {
    /// `ids` to `[T, C]`.
    pub fn forward(&self, tape: &Tape, ids: &[u32]) -> Var {
        ops::embedding(tape, &tape.weight(self.weight), ids)
    }
}
