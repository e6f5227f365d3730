//! The language-model head and its loss in one, in chunks of rows, so that `[T, V]` logits never exist:
//! `loss = sum_i w_i nll(softmax(W x_i), y_i) / denominator` over the labelled rows alone.
//!
//! The gradient is linear in its seed, so it is computed with the loss, while a chunk's logits are at hand:
//! `dx_i = w_i (softmax - onehot) W / denominator`, `dW += dzᵀ x`.

use std::collections::BTreeMap;

use super::cross_entropy::row_loss_and_gradient;
use super::linear::mat;
use super::select_rows::select_rows;
use crate::kernel::{self, MatRef, PackedLhs, Rhs};
use crate::tape::{Tape, Var, WeightVar};
use crate::tensor::Tensor;

use rayon::prelude::*;

/// Elements of the logits that exist at one time (64 MiB).
const CHUNK_LOGITS: usize = 16 * 1024 * 1024;

/// The labelled rows: row `rows[i]` has class `targets[i]` and counts `weights[i]`.
#[derive(Clone, Debug, Default)]
pub struct LossRows {
    pub rows: Vec<usize>,
    pub targets: Vec<u32>,
    pub weights: Vec<f32>,
    /// The loss's denominator, usually the sum of the weights over the whole accumulation window.
    pub denominator: f32,
}

impl LossRows {
    pub(crate) fn by_row(&self) -> BTreeMap<usize, (u32, f32)> {
        self.rows
            .iter()
            .zip(self.targets.iter().zip(&self.weights))
            .map(|(&r, (&t, &w))| (r, (t, w)))
            .collect()
    }
}

/// Rows of logits per chunk for a vocabulary.
pub fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_LOGITS / vocab.max(1)).clamp(16, 1024)
}

/// The loss of `x` `[T, C]` through the head `w` `[V, C]` at the labelled rows, a `[1, 1]` value.
///
/// # Panics
/// If a row or a target is out of range.
pub fn linear_cross_entropy(tape: &Tape, x: &Var, w: &WeightVar, labels: &LossRows) -> Var {
    let labelled = select_rows(tape, x, &labels.rows);
    let storage = w.weight.storage();
    let (rows, vocab, cols) = (labelled.rows(), storage.rows(), labelled.cols());
    let needs_x = tape.is_recording() && labelled.node().is_some();
    let needs_w = tape.is_recording() && w.node.is_some();
    let mut dx = needs_x.then(|| Tensor::scratch(rows, cols));
    let mut dw = needs_w.then(|| Tensor::zeros(vocab, cols));
    let mut loss = 0.0f64;
    let step = chunk_rows(vocab);
    for first in (0..rows).step_by(step) {
        let last = rows.min(first + step);
        let n = last - first;
        let part = MatRef::new(&labelled.value().data()[first * cols..last * cols], n, cols);
        let mut z = Tensor::scratch(n, vocab);
        kernel::gemm(z.data_mut(), vocab, n, vocab, 0.0, &[(&PackedLhs::new(part), Rhs::WeightT(storage))]);
        loss +=
            losses(&mut z, &labels.targets[first..last], &labels.weights[first..last], labels.denominator);
        if let Some(dx) = &mut dx {
            let out = &mut dx.data_mut()[first * cols..last * cols];
            let packed = PackedLhs::new(mat(&z));
            kernel::gemm(out, cols, n, cols, 0.0, &[(&packed, Rhs::Weight(storage))]);
        }
        if let Some(dw) = &mut dw {
            let packed = PackedLhs::new(mat(&z).t());
            kernel::gemm(dw.data_mut(), cols, vocab, cols, 1.0, &[(&packed, Rhs::Dense(part))]);
        }
    }
    let (nx, nw) = (labelled.node(), w.node);
    tape.record(Tensor::scalar(loss as f32), needs_x || needs_w, move |g, sink| {
        let seed = g.data()[0];
        for (node, gradient) in [(nx, dx), (nw, dw)] {
            if let Some(mut gradient) = gradient {
                if seed != 1.0 {
                    gradient.scale_assign(seed);
                }
                sink.add(node, gradient);
            }
        }
    })
}

/// Turns the logits into their gradient, row by row; returns the summed loss (rows added in order).
fn losses(z: &mut Tensor, targets: &[u32], weights: &[f32], denominator: f32) -> f64 {
    let vocab = z.cols();
    let per_row: Vec<f64> = z
        .data_mut()
        .par_chunks_mut(vocab)
        .zip(targets.par_iter().zip(weights))
        .map(|(z, (&target, &weight))| row_loss_and_gradient(z, target, weight / denominator))
        .collect();
    per_row.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::ops::{cross_entropy, linear};
    use crate::params::{Params, Weight};

    fn labels() -> LossRows {
        LossRows {
            rows: vec![1, 3, 4],
            targets: vec![2, 0, 6],
            weights: vec![1.0, 0.5, 1.0],
            denominator: 2.5,
        }
    }

    #[test]
    fn gradient() {
        check(&[random(5, 4, 1), random(7, 4, 2)], |tape, x| {
            let w = WeightVar { weight: Weight::F32(x[1].value().clone()), node: x[1].node() };
            linear_cross_entropy(tape, &x[0], &w, &labels())
        });
    }

    #[test]
    fn equals_the_composition() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        let x = Var::constant(random(5, 4, 1));
        let w = WeightVar { weight: Weight::F32(random(7, 4, 2)), node: None };
        let fused = linear_cross_entropy(&tape, &x, &w, &labels());
        let composed = cross_entropy(&tape, &linear(&tape, &x, &w, None, &[]), &labels());
        assert!((fused.value().data()[0] - composed.value().data()[0]).abs() < 1e-5);
    }
}
