//! Cross-entropy of logits: `loss = sum_i w_i (logsumexp(z_i) - z_i[y_i]) / denominator`.
//!
//! Backward: `dz_i = w_i (softmax(z_i) - onehot(y_i)) / denominator`.

use super::linear_cross_entropy::LossRows;
use super::parallel::for_rows;
use crate::kernel::simd;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

crate::multiversion! {
    /// Turns a row of logits into `weight * (softmax - onehot)` in place; returns `weight * nll`.
    pub(crate) fn row_loss_and_gradient(z: &mut [f32], target: u32, weight: f32) -> f64 {
        let at_target = z[target as usize];
        let largest = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = [0.0f32; 16];
        let mut blocks = z.chunks_exact_mut(16);
        for block in &mut blocks {
            for (s, x) in sum.iter_mut().zip(block) {
                *x = simd::exp(*x - largest);
                *s += *x;
            }
        }
        let mut total: f32 = sum.iter().sum();
        for x in blocks.into_remainder() {
            *x = simd::exp(*x - largest);
            total += *x;
        }
        let scale = weight / total;
        for x in z.iter_mut() {
            *x *= scale;
        }
        z[target as usize] -= weight;
        f64::from(weight) * (f64::from(largest) + f64::from(total).ln() - f64::from(at_target))
    }
}

/// The loss of `logits` `[T, V]` at the labelled rows, a `[1, 1]` value.
///
/// # Panics
/// If a row or a target is out of range.
pub fn cross_entropy(tape: &Tape, logits: &Var, labels: &LossRows) -> Var {
    let cols = logits.cols();
    let values = logits.value();
    let mut dz = Tensor::zeros(logits.rows(), cols);
    let mut losses = vec![0.0f64; logits.rows()];
    {
        let losses = std::sync::Mutex::new(&mut losses);
        let of_row: std::collections::BTreeMap<usize, (u32, f32)> = labels.by_row();
        for_rows(dz.data_mut(), cols, |first, chunk| {
            for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
                let Some(&(target, weight)) = of_row.get(&(first + i)) else { continue };
                out.copy_from_slice(values.row(first + i));
                let loss = row_loss_and_gradient(out, target, weight / labels.denominator);
                if let Ok(mut losses) = losses.lock() {
                    losses[first + i] = loss;
                }
            }
        });
    }
    let node = logits.node();
    tape.record(Tensor::scalar(losses.iter().sum::<f64>() as f32), node.is_some(), move |g, sink| {
        let mut dz = dz;
        dz.scale_assign(g.data()[0]);
        sink.add(node, dz);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        let labels =
            LossRows { rows: vec![0, 2], targets: vec![3, 1], weights: vec![1.0, 0.5], denominator: 2.0 };
        check(&[random(3, 5, 1)], |tape, x| cross_entropy(tape, &x[0], &labels));
    }

    /// torch.nn.functional.cross_entropy with class weights [0.5, 1, 2] and targets [2, 0]: a row weighs what its class does.
    #[test]
    fn class_weights_equal_torch() {
        let labels =
            LossRows { rows: vec![0, 1], targets: vec![2, 0], weights: vec![2.0, 0.5], denominator: 2.5 };
        let params = crate::Params::new();
        let z = Var::constant(Tensor::from_vec(2, 3, vec![0.5, -1.0, 2.0, 0.0, 3.0, -0.25]));
        let loss = cross_entropy(&Tape::inference(&params), &z, &labels);
        assert!((loss.value().data()[0] - 0.810_020_45).abs() < 1e-6);
    }
}
