//! Look-up: `y[t] = W[ids[t]]`. Backward adds each row's gradient to the row of its id.

use super::parallel::for_rows;
use crate::storage::pin;
use crate::tape::{Tape, Var, WeightVar};
use crate::tensor::Tensor;

/// Rows `ids` of `weight` `[V, C]`, decoded from any storage.
///
/// # Panics
/// If an id is not below `V`: ids are checked where text becomes tokens.
pub fn embedding(tape: &Tape, weight: &WeightVar, ids: &[u32]) -> Var {
    let storage = pin(weight.weight.storage());
    let (vocab, cols) = (storage.rows(), storage.cols());
    let mut y = Tensor::scratch(ids.len(), cols);
    for_rows(y.data_mut(), cols, |first, chunk| {
        for (out, id) in chunk.chunks_exact_mut(cols).zip(&ids[first..]) {
            storage.decode(*id as usize, 0, out);
        }
    });
    let (node, ids) = (weight.node, ids.to_vec());
    tape.record(y, node.is_some(), move |g, sink| {
        let mut dw = Tensor::zeros(vocab, cols);
        let data = dw.data_mut();
        for (t, &id) in ids.iter().enumerate() {
            let at = id as usize * cols;
            for (d, g) in data[at..at + cols].iter_mut().zip(g.row(t)) {
                *d += g;
            }
        }
        sink.add(node, dw);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::params::Weight;

    #[test]
    fn gradient_with_a_repeated_id() {
        check(&[random(4, 3, 1)], |tape, x| {
            let w = WeightVar { weight: Weight::F32(x[0].value().clone()), node: x[0].node() };
            embedding(tape, &w, &[2, 0, 2, 3])
        });
    }
}
