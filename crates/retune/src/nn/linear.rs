//! A linear layer `y = x Wᵀ + b` with one site: a method may add to its product or scale it.

use retune_tensor::ops;
use retune_tensor::{ParamId, Params, Tape, Tensor, Var, kernel};

use crate::error::Result;
use crate::nn::Rows;

/// What a method puts into [`Linear::delta`].
pub trait LinearDelta: Send + Sync {
    /// The layer's output `[T, N]` with the method's part.
    fn forward(&self, tape: &Tape, rows: &Rows, layer: &Linear, x: &Var) -> Var;

    /// Adds the method's part to the layer's weight `[N, K]`, where the mathematics allows a merge.
    fn merge(&self, params: &Params, layer: &Linear, weight: &mut Tensor) -> Result<()>;
}

/// A linear layer at a module path.
pub struct Linear {
    /// The Hugging Face module path, `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// `[N, K]`: out features x in features.
    pub weight: ParamId,
    /// `[N]`.
    pub bias: Option<ParamId>,
    pub in_features: usize,
    pub out_features: usize,
    pub delta: Option<Box<dyn LinearDelta>>,
}

impl Linear {
    /// `x` `[T, K]` to `[T, N]`.
    pub fn forward(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        match &self.delta {
            Some(delta) => delta.forward(tape, rows, self, x),
            None => ops::linear(tape, x, &tape.weight(self.weight), self.bias_var(tape).as_ref(), &[]),
        }
    }

    pub fn bias_var(&self, tape: &Tape) -> Option<Var> {
        self.bias.map(|id| tape.param(id))
    }
}

/// Several layers of the same input. A single row through layers without deltas goes through one parallel region,
/// whose cost would otherwise count in generation.
pub fn linear_many<const N: usize>(tape: &Tape, rows: &Rows, layers: [&Linear; N], x: &Var) -> [Var; N] {
    let plain = layers.iter().all(|l| l.delta.is_none() && l.bias.is_none());
    if tape.is_recording() || !plain || x.rows() > 1 {
        return layers.map(|layer| layer.forward(tape, rows, x));
    }
    let weights = layers.map(|l| tape.weight(l.weight).weight);
    let mut outs = layers.map(|l| Tensor::scratch(1, l.out_features));
    {
        let storages: Vec<_> = weights.iter().map(|w| w.storage()).collect();
        let mut slices: Vec<&mut [f32]> = outs.iter_mut().map(Tensor::data_mut).collect();
        kernel::matvec_many(&storages, x.value().data(), 1, &mut slices);
    }
    outs.map(Var::constant)
}
