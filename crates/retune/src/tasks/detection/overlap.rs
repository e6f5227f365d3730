//! How much two boxes overlap, with derivatives: IoU, GIoU (arXiv:1902.09630), DIoU and CIoU (arXiv:1911.08287).
//!
//! `IoU = I / U`; `GIoU = IoU - (C - U) / C`; `DIoU = IoU - rho^2 / c^2`; `CIoU = DIoU - alpha v`,
//! `v = 4 / pi^2 (atan(W / H) - atan(w / h))^2`, `alpha = v / (1 - IoU + v)` held constant, as the authors do.
//! Boxes are `[x, y, w, h]` around their centre, in one unit both ways: aspect and distance depend on it.

use std::f64::consts::PI;
use std::ops::{Add, Div, Mul, Sub};

use super::BoxF;
use super::head::BoxLoss;

/// A box around its centre: x, y, width, height.
pub type Centred = [f64; 4];

/// Keeps what has no area from dividing by zero; of boxes of about a cell or a pixel it is nothing.
const TINY: f64 = 1e-7;

/// The box in units of which the picture is `width` wide and `height` high.
pub fn scaled(b: &BoxF, width: f64, height: f64) -> Centred {
    [f64::from(b.x) * width, f64::from(b.y) * height, f64::from(b.w) * width, f64::from(b.h) * height]
}

/// A number that knows its derivatives, or a plain one.
trait Number: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> {
    fn constant(value: f64) -> Self;
    fn value(self) -> f64;
    fn atan(self) -> Self;

    fn min(self, other: Self) -> Self {
        if other.value() < self.value() { other } else { self }
    }

    fn max(self, other: Self) -> Self {
        if other.value() > self.value() { other } else { self }
    }
}

impl Number for f64 {
    fn constant(value: f64) -> f64 {
        value
    }

    fn value(self) -> f64 {
        self
    }

    fn atan(self) -> f64 {
        f64::atan(self)
    }
}

/// A value with its derivatives with regard to a box's x, y, w and h.
#[derive(Clone, Copy)]
struct Dual(f64, [f64; 4]);

impl Dual {
    /// With `derivative` by which those of `self` and `other` are to be multiplied.
    fn join(value: f64, a: Dual, by_a: f64, b: Dual, by_b: f64) -> Dual {
        Dual(value, std::array::from_fn(|i| by_a * a.1[i] + by_b * b.1[i]))
    }
}

impl Add for Dual {
    type Output = Dual;
    fn add(self, b: Dual) -> Dual {
        Dual::join(self.0 + b.0, self, 1.0, b, 1.0)
    }
}

impl Sub for Dual {
    type Output = Dual;
    fn sub(self, b: Dual) -> Dual {
        Dual::join(self.0 - b.0, self, 1.0, b, -1.0)
    }
}

impl Mul for Dual {
    type Output = Dual;
    fn mul(self, b: Dual) -> Dual {
        Dual::join(self.0 * b.0, self, b.0, b, self.0)
    }
}

impl Div for Dual {
    type Output = Dual;
    fn div(self, b: Dual) -> Dual {
        let ratio = self.0 / b.0;
        Dual::join(ratio, self, 1.0 / b.0, b, -ratio / b.0)
    }
}

impl Number for Dual {
    fn constant(value: f64) -> Dual {
        Dual(value, [0.0; 4])
    }

    fn value(self) -> f64 {
        self.0
    }

    fn atan(self) -> Dual {
        Dual::join(self.0.atan(), self, 1.0 / (1.0 + self.0 * self.0), self, 0.0)
    }
}

/// Low and high end of a box along both axes: `[[left, right], [top, bottom]]`.
fn ends<N: Number>([x, y, w, h]: [N; 4]) -> [[N; 2]; 2] {
    let half = N::constant(0.5);
    [[x - half * w, x + half * w], [y - half * h, y + half * h]]
}

/// The similarity that the loss `1 - similarity` is made of; `Mse`, which has none, counts as plain IoU.
fn similarity<N: Number>(kind: BoxLoss, predicted: [N; 4], truth: Centred) -> N {
    let truth = truth.map(N::constant);
    let (a, b) = (ends(predicted), ends(truth));
    let zero = N::constant(0.0);
    let shared = |axis: usize| (a[axis][1].min(b[axis][1]) - a[axis][0].max(b[axis][0])).max(zero);
    let around = |axis: usize| a[axis][1].max(b[axis][1]) - a[axis][0].min(b[axis][0]);
    let tiny = N::constant(TINY);
    let intersection = shared(0) * shared(1);
    let union = predicted[2] * predicted[3] + truth[2] * truth[3] - intersection + tiny;
    let iou = intersection / union;
    match kind {
        BoxLoss::Mse | BoxLoss::Iou => iou,
        BoxLoss::Giou => {
            let hull = around(0) * around(1) + tiny;
            iou - (hull - union) / hull
        }
        BoxLoss::Diou | BoxLoss::Ciou => {
            let square = |v: N| v * v;
            let diagonal = square(around(0)) + square(around(1)) + tiny;
            let off = square(predicted[0] - truth[0]) + square(predicted[1] - truth[1]);
            let diou = iou - off / diagonal;
            if kind == BoxLoss::Diou { diou } else { diou - aspect_term(predicted, truth, iou.value()) }
        }
    }
}

/// CIoU's `alpha v`.
fn aspect_term<N: Number>(predicted: [N; 4], truth: [N; 4], iou: f64) -> N {
    let angle = |[_, _, w, h]: [N; 4]| (w / (h + N::constant(TINY))).atan();
    let turn = angle(truth) - angle(predicted);
    let v = N::constant(4.0 / (PI * PI)) * turn * turn;
    let alpha = v.value() / (v.value() - iou + 1.0 + TINY);
    N::constant(alpha) * v
}

/// The area that both cover.
pub fn intersection(a: Centred, b: Centred) -> f64 {
    let (a, b) = (ends(a), ends(b));
    let shared = |axis: usize| (a[axis][1].min(b[axis][1]) - a[axis][0].max(b[axis][0])).max(0.0);
    shared(0) * shared(1)
}

/// Intersection over union; 0 where boxes do not meet.
pub fn iou(a: Centred, b: Centred) -> f64 {
    let both = intersection(a, b);
    if both == 0.0 { 0.0 } else { both / (a[2] * a[3] + b[2] * b[3] - both) }
}

/// The complete IoU of two boxes, -1.5..=1.
pub fn ciou(predicted: Centred, truth: Centred) -> f64 {
    similarity(BoxLoss::Ciou, predicted, truth)
}

/// `1 - similarity`, and its derivatives with regard to the predicted box's x, y, w and h.
pub fn overlap_loss(kind: BoxLoss, predicted: Centred, truth: Centred) -> (f64, [f64; 4]) {
    let variables = std::array::from_fn(|i| Dual(predicted[i], std::array::from_fn(|j| f64::from(i == j))));
    let Dual(value, gradient) = similarity(kind, variables, truth);
    (1.0 - value, gradient.map(|g| -g))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUTH: Centred = [5.0, 4.0, 3.0, 2.0];
    /// Overlapping, inside, around, far away.
    const BOXES: [Centred; 4] =
        [[5.5, 4.4, 2.5, 2.6], [5.1, 4.1, 1.0, 1.2], [5.2, 3.9, 6.0, 5.0], [12.0, 9.0, 2.0, 1.0]];

    #[test]
    fn known_values() {
        let (a, b) = ([1.0, 1.0, 2.0, 2.0], [2.0, 1.0, 2.0, 2.0]);
        assert_eq!(iou(a, b), 2.0 / 6.0);
        assert_eq!(iou(a, [9.0, 1.0, 2.0, 2.0]), 0.0);
        assert_eq!(iou([0.0; 4], [0.0; 4]), 0.0);
        let loss = |kind| overlap_loss(kind, a, b).0;
        assert!((loss(BoxLoss::Giou) - 2.0 / 3.0).abs() < 1e-6, "the hull is the union");
        assert!((loss(BoxLoss::Diou) - (2.0 / 3.0 + 1.0 / 13.0)).abs() < 1e-6);
        assert_eq!(loss(BoxLoss::Diou), loss(BoxLoss::Ciou));
        assert!((ciou(TRUTH, TRUTH) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn derivatives() {
        for kind in [BoxLoss::Iou, BoxLoss::Giou, BoxLoss::Diou, BoxLoss::Ciou] {
            for at in BOXES {
                let (_, gradient) = overlap_loss(kind, at, TRUTH);
                let fixed = frozen_alpha(kind, at);
                for i in 0..4 {
                    let h = 1e-6;
                    let moved = |by: f64| {
                        let mut b = at;
                        b[i] += by;
                        fixed(b)
                    };
                    let numeric = (moved(h) - moved(-h)) / (2.0 * h);
                    let off = (numeric - gradient[i]).abs();
                    assert!(off < 1e-6, "{kind:?} at {at:?}, {i}: {} for {numeric}", gradient[i]);
                }
            }
        }
    }

    /// The loss with `alpha` as it is at `at`, as its derivative sees it.
    fn frozen_alpha(kind: BoxLoss, at: Centred) -> impl Fn(Centred) -> f64 {
        let v = |b: Centred| 4.0 / (PI * PI) * ((TRUTH[2] / TRUTH[3]).atan() - (b[2] / b[3]).atan()).powi(2);
        let alpha = v(at) / (1.0 - iou(at, TRUTH) + v(at));
        move |b| match kind {
            BoxLoss::Ciou => overlap_loss(BoxLoss::Diou, b, TRUTH).0 + alpha * v(b),
            kind => overlap_loss(kind, b, TRUTH).0,
        }
    }

    #[test]
    fn boxes_without_area_give_numbers() {
        for kind in [BoxLoss::Iou, BoxLoss::Giou, BoxLoss::Diou, BoxLoss::Ciou] {
            let (value, gradient) = overlap_loss(kind, [1.0, 1.0, 0.0, 0.0], TRUTH);
            assert!(value.is_finite() && gradient.iter().all(|g| g.is_finite()), "{kind:?}");
        }
    }
}
