//! A linear or a token table whose own parameters an adapter replaces: a trained head or bias, PEFT's `modules_to_save`.

use retune_tensor::ops;
use retune_tensor::{ParamId, Params, Tape, Tensor, Var};

use crate::error::{Error, Result};
use crate::nn::{Embedding, EmbeddingDelta, Linear, LinearDelta, Rows};

/// Parameters in the place of a module's own; what is `None` stays the module's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Replaced {
    /// Of the layer's `[N, K]`, of a table's `[V, C]`.
    pub weight: Option<ParamId>,
    /// `[N]`; also where the layer has none.
    pub bias: Option<ParamId>,
}

impl LinearDelta for Replaced {
    fn forward(&self, tape: &Tape, rows: &Rows, layer: &Linear, x: &Var) -> Var {
        let weight = tape.weight(self.weight.unwrap_or(layer.weight));
        let bias = self.bias.or(layer.bias).map(|id| tape.param(id));
        layer.product(tape, rows, x, &weight, bias.as_ref())
    }

    fn merge(
        &self,
        params: &Params,
        layer: &Linear,
        weight: &mut Tensor,
        bias: Option<&mut Tensor>,
    ) -> Result<()> {
        if let Some(id) = self.weight {
            *weight = params.get(id).weight.to_tensor();
        }
        match (self.bias, bias) {
            (Some(id), Some(bias)) => *bias = params.get(id).weight.to_tensor(),
            (Some(_), None) => {
                let what = "has no bias in this architecture: the one that was added to it cannot be merged";
                return Err(Error::Method(format!("{} {what}", layer.path)));
            }
            (None, _) => {}
        }
        Ok(())
    }

    fn weight(&self) -> Option<ParamId> {
        self.weight.filter(|_| self.bias.is_none())
    }
}

impl EmbeddingDelta for Replaced {
    fn forward(&self, tape: &Tape, table: &Embedding, ids: &[u32]) -> Var {
        ops::embedding(tape, &tape.weight(self.weight.unwrap_or(table.weight)), ids)
    }

    fn merge(&self, params: &Params, _table: &Embedding, weight: &mut Tensor) -> Result<()> {
        if let Some(id) = self.weight {
            *weight = params.get(id).weight.to_tensor();
        }
        Ok(())
    }
}
