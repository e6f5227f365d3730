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
            _ if !layer.is_pointwise() => self.convolved(tape, rows, layer, x, &vars),
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
    /// At a convolution: A goes over the pixels as the layer's own kernel does, B is a linear behind it. `y = f (conv(x, W) + s B conv(x, A)) +
    /// b`, with DoRA's factors `f = m / |W + s B A|`; where the branch reads a dropped `d`, `y = conv(x, W) + (f - 1) conv(d, W) + f s B
    /// conv(d, A) + b`.
    fn convolved(
        &self,
        tape: &Tape,
        rows: &Rows,
        layer: &Linear,
        x: &Var,
        vars: &[(Var, Var, Option<Var>)],
    ) -> Var {
        let (weight, bias) = (tape.weight(layer.weight), self.bias.or(layer.bias).map(|id| tape.param(id)));
        let base = |bias: Option<&Var>| layer.product(tape, rows, x, &weight, bias);
        let branch = |at: &Branch, input: Option<&Var>| {
            let down = layer.product(tape, rows, input.unwrap_or(x), &tape.weight(at.a), None);
            ops::linear(tape, &down, &tape.weight(at.b), None, &[])
        };
        let (Some(magnitude), [at], [(a, b, dropped)]) = (&self.magnitude, self.branches.as_slice(), vars)
        else {
            let add = |y: Var, (at, (_, _, dropped)): (&Branch, &(Var, Var, Option<Var>))| {
                ops::add_scaled(tape, &y, &branch(at, dropped.as_ref()), at.scale)
            };
            return self.branches.iter().zip(vars).fold(base(bias.as_ref()), add);
        };
        let norms =
            ops::dora_norms(weight.weight.storage(), &magnitude.base_norms, a.value(), b.value(), at.scale);
        let m = tape.param(magnitude.param);
        let up = branch(at, dropped.as_ref());
        let Some(dropped) = dropped else {
            let sum = ops::add_scaled(tape, &base(None), &up, at.scale);
            let y = ops::scale_columns(tape, &sum, &ops::dora_factors(tape, &m, &norms, 1.0, 0.0));
            return bias.map_or(y.clone(), |bias| ops::add_bias(tape, &y, &bias));
        };
        let again = layer.product(tape, rows, dropped, &weight, None);
        let again = ops::scale_columns(tape, &again, &ops::dora_factors(tape, &m, &norms, 1.0, 1.0));
        let up = ops::scale_columns(tape, &up, &ops::dora_factors(tape, &m, &norms, at.scale, 0.0));
        ops::add(tape, &ops::add(tape, &base(bias.as_ref()), &again), &up)
    }

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
    let keys = rows.dropout().filter(|_| p > 0.0)?;
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
