//! A token table with one site: a method may change what it gives for an id.

use retune_tensor::ops;
use retune_tensor::{ParamId, Params, Tape, Tensor, Var};

use crate::error::Result;
use crate::nn::{Rows, Slots};

/// What a method puts into [`Embedding::deltas`].
pub trait EmbeddingDelta: Send + Sync {
    /// The table's rows `[T, C]` for `ids`, with the method's part.
    fn forward(&self, tape: &Tape, table: &Embedding, ids: &[u32]) -> Var;

    /// Adds the method's part to the table `[V, C]`.
    ///
    /// # Errors
    /// Where the mathematics does not allow it.
    fn merge(&self, params: &Params, table: &Embedding, weight: &mut Tensor) -> Result<()>;
}

/// Rows of `weight` `[V, C]` by token id.
pub struct Embedding {
    pub path: String,
    pub weight: ParamId,
    pub vocab_size: usize,
    pub dim: usize,
    pub deltas: Slots<dyn EmbeddingDelta>,
}

impl Embedding {
    /// A table without a method on it.
    pub fn new(path: impl Into<String>, weight: ParamId, vocab_size: usize, dim: usize) -> Embedding {
        Embedding { path: path.into(), weight, vocab_size, dim, deltas: Slots::default() }
    }

    /// `ids`, one for each of `rows`, to `[T, C]`.
    pub fn forward(&self, tape: &Tape, rows: &Rows, ids: &[u32]) -> Var {
        let plain = |ids: &[u32]| ops::embedding(tape, &tape.weight(self.weight), ids);
        if self.deltas.is_empty() {
            return plain(ids);
        }
        // Ids travel as a column, so that they are split among adapters as rows are.
        let column = Var::constant(Tensor::from_fn(ids.len(), 1, |r, _| f32::from_bits(ids[r])));
        rows.by_adapter(tape, [&column], |slot, _, [column]| {
            let ids: Vec<u32> = column.value().data().iter().map(|x| x.to_bits()).collect();
            match self.deltas.get(slot) {
                Some(delta) => delta.forward(tape, self, &ids),
                None => plain(&ids),
            }
        })
    }
}
