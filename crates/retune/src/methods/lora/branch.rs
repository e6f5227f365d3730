//! A LoRA branch at a linear, with DoRA's magnitude, a bias of B, or a trained bias of the layer where they are asked for.

use retune_tensor::ops::{self, DoraBranch, LoraBranch};
use retune_tensor::{ParamId, Params, Tape, Tensor, Var, kernel};

use crate::error::{Error, Result};
use crate::nn::{Linear, LinearDelta, Rows};

/// One adapter's branch at one linear.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    /// `[r, in]`
    pub a: ParamId,
    /// `[out, r]`
    pub b: ParamId,
    /// `[1, out]`: `lora_bias`.
    pub b_bias: Option<ParamId>,
    pub scale: f32,
    pub dropout: f32,
}

/// DoRA's part of a branch.
pub(super) struct Magnitude {
    /// `[1, out]`
    pub param: ParamId,
    /// `|w|^2` of each row of the frozen weight, `[1, out]`.
    pub base_norms: Tensor,
}

/// What a slot has at one linear: the branches of one adapter or of several that are added up.
pub(super) struct LoraDelta {
    pub branches: Vec<Branch>,
    /// With one branch alone.
    pub magnitude: Option<Magnitude>,
    /// A bias in place of the layer's: `bias = "lora_only"` or `"all"`.
    pub bias: Option<ParamId>,
}

impl LinearDelta for LoraDelta {
    fn forward(&self, tape: &Tape, rows: &Rows, layer: &Linear, x: &Var) -> Var {
        let vars: Vec<(Var, Var, Option<Var>)> = self
            .branches
            .iter()
            .map(|b| (tape.param(b.a), tape.param(b.b), dropped(tape, rows, layer, x, b.dropout)))
            .collect();
        let branches: Vec<LoraBranch> = self
            .branches
            .iter()
            .zip(&vars)
            .map(|(branch, (a, b, input))| LoraBranch { a, b, scale: branch.scale, input: input.as_ref() })
            .collect();
        let (weight, bias) = (tape.weight(layer.weight), self.bias.or(layer.bias).map(|id| tape.param(id)));
        let y = match (&self.magnitude, branches.as_slice()) {
            (Some(m), [LoraBranch { a, b, scale, input }]) => {
                let lora = LoraBranch { a, b, scale: *scale, input: *input };
                let magnitude = tape.param(m.param);
                let dora = DoraBranch { lora, magnitude: &magnitude, base_norms: &m.base_norms };
                ops::dora_linear(tape, x, &weight, bias.as_ref(), &dora)
            }
            _ => ops::linear(tape, x, &weight, bias.as_ref(), &branches),
        };
        let biased = |y: Var, branch: &Branch| match branch.b_bias {
            Some(id) => ops::add_bias(tape, &y, &ops::scale(tape, &tape.param(id), branch.scale)),
            None => y,
        };
        self.branches.iter().fold(y, biased)
    }

    fn merge(
        &self,
        params: &Params,
        layer: &Linear,
        weight: &mut Tensor,
        bias: Option<&mut Tensor>,
    ) -> Result<()> {
        let value = |id: ParamId| params.get(id).weight.to_tensor();
        for branch in &self.branches {
            add_product(weight, &value(branch.a), &value(branch.b), branch.scale);
        }
        if let Some(magnitude) = &self.magnitude {
            let norms = ops::row_norms_squared(weight);
            let factor = |m: f32, n: f32| if n > 0.0 { m / n.sqrt() } else { 1.0 };
            let m = value(magnitude.param);
            let cols = weight.cols().max(1);
            for (row, values) in weight.data_mut().chunks_exact_mut(cols).enumerate() {
                let factor = factor(m.data()[row], norms.data()[row]);
                values.iter_mut().for_each(|w| *w *= factor);
            }
        }
        self.merge_bias(params, layer, bias)
    }
}

impl LoraDelta {
    fn merge_bias(&self, params: &Params, layer: &Linear, bias: Option<&mut Tensor>) -> Result<()> {
        let value = |id: ParamId| params.get(id).weight.to_tensor();
        let Some(bias) = bias else {
            return match self.branches.iter().any(|b| b.b_bias.is_some()) && layer.bias.is_none() {
                true => Err(Error::Method(format!(
                    "an adapter with lora_bias cannot become part of {}: it has no bias",
                    layer.path
                ))),
                false => Ok(()),
            };
        };
        if let Some(own) = self.bias {
            *bias = value(own);
        }
        for (id, scale) in self.branches.iter().filter_map(|b| Some((b.b_bias?, b.scale))) {
            let mut term = value(id);
            term.scale_assign(scale);
            bias.add_assign(&term);
        }
        Ok(())
    }
}

/// The branch's input while training with dropout, else `None`.
fn dropped(tape: &Tape, rows: &Rows, layer: &Linear, x: &Var, p: f32) -> Option<Var> {
    let keys = rows.dropout.as_ref().filter(|_| p > 0.0)?;
    Some(ops::dropout(tape, x, keys, &layer.path, p))
}

/// `weight += scale B A`.
pub(super) fn add_product(weight: &mut Tensor, a: &Tensor, b: &Tensor, scale: f32) {
    let mut scaled = b.clone();
    scaled.scale_assign(scale);
    let (rows, cols) = (weight.rows(), weight.cols());
    let packed = kernel::PackedLhs::new(ops::mat(&scaled));
    kernel::gemm(weight.data_mut(), cols, rows, cols, 1.0, &[(&packed, kernel::Rhs::Dense(ops::mat(a)))]);
}
