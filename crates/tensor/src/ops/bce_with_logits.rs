//! Binary cross-entropy of logits, for several labels at once: with targets `t` in [0, 1] and `p` the weight of positives,
//! `loss = sum w (p t softplus(-z) + (1 - t) softplus(z)) / denominator`.
//!
//! Backward: `dz = w ((1 - t) sigmoid(z) - p t sigmoid(-z)) / denominator`. Small matrices: in f64, in order.

use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// What the elements of a `[B, K]` loss count; 1 where nothing is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct BceWeights<'a> {
    /// For each row, `[B]`.
    pub rows: Option<&'a [f32]>,
    /// For each class, `[K]`.
    pub classes: Option<&'a [f32]>,
    /// For the positives of each class, `[K]` (torch's `pos_weight`).
    pub positives: Option<&'a [f32]>,
}

impl BceWeights<'_> {
    fn check(&self, rows: usize, classes: usize) {
        let fits = |w: Option<&[f32]>, n| w.is_none_or(|w| w.len() == n);
        let fit = fits(self.rows, rows) && fits(self.classes, classes) && fits(self.positives, classes);
        assert!(fit, "bce_with_logits: weights for {rows} rows of {classes} classes");
    }

    /// The weight of an element, and what it is for a positive.
    fn at(&self, row: usize, class: usize) -> (f64, f64) {
        let get = |w: Option<&[f32]>, i: usize| w.map_or(1.0, |w| f64::from(w[i]));
        let weight = get(self.rows, row) * get(self.classes, class);
        (weight, weight * get(self.positives, class))
    }
}

/// `ln(1 + e^z)` and `sigmoid(z)`.
fn softplus_and_sigmoid(z: f64) -> (f64, f64) {
    let e = (-z.abs()).exp();
    let larger = 1.0 / (1.0 + e);
    (z.max(0.0) + e.ln_1p(), if z >= 0.0 { larger } else { e * larger })
}

/// The loss of `logits` `[B, K]` against `targets` `[B, K]`, a `[1, 1]` value.
///
/// torch's mean is the `denominator` B K.
pub fn bce_with_logits(
    tape: &Tape,
    logits: &Var,
    targets: &Tensor,
    weights: &BceWeights,
    denominator: f32,
) -> Var {
    let (rows, classes) = (logits.rows(), logits.cols());
    assert_eq!((targets.rows(), targets.cols()), (rows, classes), "bce_with_logits: targets");
    weights.check(rows, classes);
    let mut dz = Tensor::scratch(rows, classes);
    let mut loss = 0.0;
    let elements = logits.value().data().iter().zip(targets.data());
    for (i, (dz, (z, t))) in dz.data_mut().iter_mut().zip(elements).enumerate() {
        let (negative, positive) = weights.at(i / classes, i % classes);
        let (z, t) = (f64::from(*z), f64::from(*t));
        let (up, up_slope) = softplus_and_sigmoid(z);
        let (down, down_slope) = softplus_and_sigmoid(-z);
        loss += positive * t * down + negative * (1.0 - t) * up;
        *dz = ((negative * (1.0 - t) * up_slope - positive * t * down_slope) / f64::from(denominator)) as f32;
    }
    let node = logits.node();
    tape.record(Tensor::scalar((loss / f64::from(denominator)) as f32), node.is_some(), move |g, sink| {
        let mut dz = dz;
        dz.scale_assign(g.data()[0]);
        sink.add(node, dz);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::params::Params;

    fn targets() -> Tensor {
        Tensor::from_vec(2, 3, vec![1.0, 0.0, 0.25, 0.0, 1.0, 1.0])
    }

    const WEIGHTS: BceWeights = BceWeights {
        rows: Some(&[1.0, 0.5]),
        classes: Some(&[1.0, 2.0, 3.0]),
        positives: Some(&[1.5, 1.0, 0.25]),
    };

    #[test]
    fn gradient() {
        check(&[random(2, 3, 1)], |tape, x| bce_with_logits(tape, &x[0], &targets(), &WEIGHTS, 6.0));
    }

    fn loss(z: Vec<f32>, weights: &BceWeights) -> f32 {
        let params = Params::new();
        let z = Var::constant(Tensor::from_vec(2, 3, z));
        bce_with_logits(&Tape::inference(&params), &z, &targets(), weights, 6.0).value().data()[0]
    }

    #[test]
    fn equals_torch() {
        let z = vec![0.5, -1.0, 2.0, 0.0, 3.0, -0.25];
        assert!((loss(z.clone(), &BceWeights::default()) - 0.663_656_8).abs() < 1e-6);
        assert!((loss(z, &WEIGHTS) - 1.141_985_8).abs() < 1e-6);
    }

    #[test]
    fn far_logits_stay_finite() {
        let far = loss(vec![-1e4, 1e4, 1e30, -1e30, 1e4, 1e4], &BceWeights::default());
        assert!(far.is_finite() && far > 1e3);
    }
}
