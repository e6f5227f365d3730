//! Squared error, for regression: `loss = sum (y - t)^2 / denominator`; backward `dy = 2 (y - t) / denominator`.

use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The loss of `predictions` `[B, K]` against `targets` `[B, K]`, a `[1, 1]` value, summed in f64.
///
/// torch's mean is the `denominator` B K.
pub fn mse(tape: &Tape, predictions: &Var, targets: &Tensor, denominator: f32) -> Var {
    let values = predictions.value();
    assert_eq!((targets.rows(), targets.cols()), (values.rows(), values.cols()), "mse: targets");
    let mut dy = Tensor::scratch(values.rows(), values.cols());
    let mut loss = 0.0f64;
    for (dy, (y, t)) in dy.data_mut().iter_mut().zip(values.data().iter().zip(targets.data())) {
        let off = f64::from(*y) - f64::from(*t);
        loss += off * off;
        *dy = (2.0 * off / f64::from(denominator)) as f32;
    }
    let node = predictions.node();
    tape.record(Tensor::scalar((loss / f64::from(denominator)) as f32), node.is_some(), move |g, sink| {
        let mut dy = dy;
        dy.scale_assign(g.data()[0]);
        sink.add(node, dy);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::params::Params;

    #[test]
    fn gradient() {
        let targets = random(3, 2, 2);
        check(&[random(3, 2, 1)], |tape, x| mse(tape, &x[0], &targets, 6.0));
    }

    #[test]
    fn value() {
        let params = Params::new();
        let y = Var::constant(Tensor::from_vec(2, 1, vec![1.0, -2.0]));
        let loss = mse(&Tape::inference(&params), &y, &Tensor::from_vec(2, 1, vec![3.0, -1.0]), 2.0);
        assert_eq!(loss.value().data(), [2.5]);
    }
}
