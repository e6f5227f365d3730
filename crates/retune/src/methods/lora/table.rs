//! LoRA on a look-up: `E[id] + s (B A)[:, id]`, and DoRA's magnitude by columns where it is asked for. A head whose weight
//! is the table's may share it (`ensure_weight_tying`): `E x + s Aᵀ Bᵀ x`.

use retune_tensor::ops::{self, DoraBranch, LoraBranch};
use retune_tensor::{ParamId, Params, Tape, Tensor, Var};

use super::branch::{Magnitude, add_product};
use crate::error::Result;
use crate::nn::{Embedding, EmbeddingDelta, Linear, LinearDelta, Rows};

/// One adapter's factors for a table.
pub(super) struct TableBranch {
    /// `[r, V]`
    pub a: ParamId,
    /// `[C, r]`
    pub b: ParamId,
    pub scale: f32,
}

/// What a slot has at one token table.
pub(super) struct TableDelta {
    pub branches: Vec<TableBranch>,
    /// `[1, C]`, with one branch alone.
    pub magnitude: Option<Magnitude>,
}

impl EmbeddingDelta for TableDelta {
    fn forward(&self, tape: &Tape, table: &Embedding, ids: &[u32]) -> Var {
        let weight = tape.weight(table.weight);
        let x = ops::embedding(tape, &weight, ids);
        if let (Some(m), [branch]) = (&self.magnitude, self.branches.as_slice()) {
            let [a, b, magnitude] = [branch.a, branch.b, m.param].map(|id| tape.param(id));
            let lora = LoraBranch { a: &a, b: &b, scale: branch.scale, input: None };
            let dora = DoraBranch { lora, magnitude: &magnitude, base_norms: &m.base_norms };
            return ops::dora_embedding(tape, &x, weight.weight.storage(), ids, &dora);
        }
        self.branches.iter().fold(x, |x, branch| {
            ops::embedding_lora(tape, &x, ids, &tape.param(branch.a), &tape.param(branch.b), branch.scale)
        })
    }

    fn merge(&self, params: &Params, _table: &Embedding, weight: &mut Tensor) -> Result<()> {
        let value = |id: ParamId| params.get(id).weight.to_tensor();
        for branch in &self.branches {
            add_product(weight, &value(branch.b).transposed(), &value(branch.a).transposed(), branch.scale);
        }
        if let Some(magnitude) = &self.magnitude {
            let norms = ops::column_norms_squared(weight);
            let m = value(magnitude.param);
            let factors: Vec<f32> = m
                .data()
                .iter()
                .zip(norms.data())
                .map(|(m, n)| if *n > 0.0 { m / n.sqrt() } else { 1.0 })
                .collect();
            for row in weight.data_mut().chunks_exact_mut(factors.len().max(1)) {
                row.iter_mut().zip(&factors).for_each(|(w, f)| *w *= f);
            }
        }
        Ok(())
    }
}

/// The branch of a table at the head that shares its weight.
pub(super) struct TiedDelta {
    /// `[r, V]`
    pub a: ParamId,
    /// `[C, r]`
    pub b: ParamId,
    pub scale: f32,
}

impl LinearDelta for TiedDelta {
    fn forward(&self, tape: &Tape, _rows: &Rows, layer: &Linear, x: &Var) -> Var {
        let [a, b] = [self.b, self.a].map(|id| transposed(tape, &tape.param(id)));
        let branch = LoraBranch { a: &a, b: &b, scale: self.scale, input: None };
        ops::linear(tape, x, &tape.weight(layer.weight), layer.bias_var(tape).as_ref(), &[branch])
    }

    fn merge(
        &self,
        params: &Params,
        _layer: &Linear,
        weight: &mut Tensor,
        _bias: Option<&mut Tensor>,
    ) -> Result<()> {
        let [a, b] = [self.b, self.a].map(|id| params.get(id).weight.to_tensor().transposed());
        add_product(weight, &a, &b, self.scale);
        Ok(())
    }
}

fn transposed(tape: &Tape, x: &Var) -> Var {
    let node = x.node();
    tape.record(x.value().transposed(), node.is_some(), move |g, sink| sink.add(node, g.transposed()))
}
