//! RMS norm with its weight.

use retune_tensor::ops;
use retune_tensor::{ParamId, Tape, Var};

/// `y = x / sqrt(mean(x^2) + eps) * w`.
pub struct RmsNorm {
    pub path: String,
    /// `[C]`.
    pub weight: ParamId,
    pub eps: f32,
}

impl RmsNorm {
    /// `x` `[T, C]`.
    pub fn forward(&self, tape: &Tape, x: &Var) -> Var {
        ops::rms_norm(tape, x, &tape.param(self.weight), self.eps)
    }
}
