//! A linear layer `y = x Wᵀ + b` with one site: a method may add to its product or scale it.

use retune_tensor::ops;
use retune_tensor::{ParamId, Params, Tape, Tensor, Var, kernel};

use crate::error::Result;
use crate::nn::{Active, Rows, Slots};

/// What a method puts into [`Linear::deltas`].
pub trait LinearDelta: Send + Sync {
    /// The layer's output `[T, N]` with the method's part.
    fn forward(&self, tape: &Tape, rows: &Rows, layer: &Linear, x: &Var) -> Var;

    /// Changes the layer's weight `[N, K]`, and its bias `[1, N]` if it has one, so that the plain layer gives what
    /// [`LinearDelta::forward`] does.
    ///
    /// # Errors
    /// Where the mathematics does not allow it.
    fn merge(
        &self,
        params: &Params,
        layer: &Linear,
        weight: &mut Tensor,
        bias: Option<&mut Tensor>,
    ) -> Result<()>;

    /// The weight `[N, K]` that stands in for the layer's own, where that is all that the method does.
    fn weight(&self) -> Option<ParamId> {
        None
    }
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
    /// transformers' `Conv1D` (GPT-2): its files hold the weight as `[K, N]`; PEFT calls it `fan_in_fan_out`.
    pub fan_in_fan_out: bool,
    pub deltas: Slots<dyn LinearDelta>,
}

impl Linear {
    /// A layer without a method on it.
    pub fn new(
        path: impl Into<String>,
        weight: ParamId,
        bias: Option<ParamId>,
        (out_features, in_features): (usize, usize),
    ) -> Linear {
        Linear {
            path: path.into(),
            weight,
            bias,
            in_features,
            out_features,
            fan_in_fan_out: false,
            deltas: Slots::default(),
        }
    }

    /// `x` `[T, K]` to `[T, N]`.
    pub fn forward(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        if self.deltas.is_empty() {
            return self.plain(tape, x);
        }
        rows.by_adapter(tape, [x], |slot, rows, [x]| match self.deltas.get(slot) {
            Some(delta) => delta.forward(tape, rows, self, x),
            None => self.plain(tape, x),
        })
    }

    /// The weight whose product is all that the layer does in a pass; `None` if there is a bias or a method does more.
    pub fn only_weight(&self, active: &Active) -> Option<ParamId> {
        match active {
            _ if self.bias.is_some() => None,
            _ if self.deltas.is_empty() => Some(self.weight),
            Active::PerExample(_) => None,
            one => self.deltas.get(one.of(0)).map_or(Some(self.weight), |delta| delta.weight()),
        }
    }

    /// The layer without any method.
    pub fn plain(&self, tape: &Tape, x: &Var) -> Var {
        ops::linear(tape, x, &tape.weight(self.weight), self.bias_var(tape).as_ref(), &[])
    }

    pub fn bias_var(&self, tape: &Tape) -> Option<Var> {
        self.bias.map(|id| tape.param(id))
    }
}

/// Several layers of the same input. A single row through layers without deltas goes through one parallel region,
/// whose cost would otherwise count in generation.
pub fn linear_many<const N: usize>(tape: &Tape, rows: &Rows, layers: [&Linear; N], x: &Var) -> [Var; N] {
    let plain = layers.iter().all(|l| l.deltas.is_empty() && l.bias.is_none());
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
