//! Norms with their weights.

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

/// `y = (x - mean(x)) / sqrt(var(x) + eps) * w + b`.
pub struct LayerNorm {
    pub path: String,
    /// `[C]`.
    pub weight: ParamId,
    /// `[C]`.
    pub bias: ParamId,
    pub eps: f32,
}

impl LayerNorm {
    /// `x` `[T, C]`.
    pub fn forward(&self, tape: &Tape, x: &Var) -> Var {
        ops::layer_norm(tape, x, &tape.param(self.weight), &tape.param(self.bias), self.eps)
    }
}
