//! Where virtual tokens come from: a table of trained rows `[n, d]`, through a network while they are trained, if wished.
//!
//! Only what comes out is saved; a network makes the training of few rows steadier (Li and Liang, 2021; Liu et al., 2021).

use retune_tensor::ops::{self, Activation};
use retune_tensor::rng::Stream;
use retune_tensor::{ParamId, Params, Tape, Tensor, Var};

use super::lstm::Lstm;
use crate::error::{Error, Result};
use crate::methods::param_name;

/// A linear layer and what follows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense {
    /// `[out, in]`
    pub weight: ParamId,
    /// `[out]`
    pub bias: ParamId,
    pub activation: Activation,
}

impl Dense {
    pub fn forward(&self, tape: &Tape, x: &Var) -> Var {
        let y = ops::linear(tape, x, &tape.weight(self.weight), Some(&tape.param(self.bias)), &[]);
        ops::activation(tape, &y, self.activation)
    }
}

/// A table and the layers above it.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    /// `[n, d]`
    pub table: ParamId,
    /// Between the table and the layers.
    pub lstm: Option<Lstm>,
    pub layers: Vec<Dense>,
}

impl Encoder {
    /// Rows that are trained themselves.
    pub fn of_table(table: ParamId) -> Encoder {
        Encoder { table, lstm: None, layers: Vec::new() }
    }

    /// The rows `[n, C]`.
    pub fn forward(&self, tape: &Tape) -> Var {
        let rows = tape.param(self.table);
        let rows = self.lstm.iter().fold(rows, |rows, lstm| lstm.forward(tape, &rows));
        self.layers.iter().fold(rows, |x, layer| layer.forward(tape, &x))
    }

    /// The rows as they are now.
    pub fn values(&self, params: &Params) -> Tensor {
        self.forward(&Tape::inference(params)).value().clone()
    }
}

/// Adds the parameters of one adapter in one slot.
pub(crate) struct Adder<'a> {
    pub params: &'a mut Params,
    pub slot: usize,
    pub seed: u64,
}

impl Adder<'_> {
    /// # Errors
    /// If the slot holds such a parameter already.
    pub fn add(&mut self, name: &str, shape: &[usize], values: Tensor) -> Result<ParamId> {
        let name = param_name(self.slot, name);
        if self.params.find(&name).is_some() {
            let what = "this place of the model holds an adapter of the same kind already";
            return Err(Error::Method(format!(
                "{what} ({name}); load the model again, or use another place"
            )));
        }
        Ok(self.params.add_adapter(name, shape, values))
    }

    /// A table of standard normal rows: `torch.nn.Embedding`'s initial values.
    pub fn table(&mut self, name: &str, n: usize, dim: usize) -> Result<ParamId> {
        let stream = Stream::named(self.seed, name);
        self.add(name, &[n, dim], Tensor::from_fn(n, dim, |r, c| stream.normal((r * dim + c) as u64)))
    }

    /// A linear layer, uniform within `1 / sqrt(in)`: `torch.nn.Linear`'s initial values.
    pub fn dense(&mut self, name: &str, (out, inp): (usize, usize), activation: Activation) -> Result<Dense> {
        let bound = 1.0 / (inp as f32).sqrt();
        let seed = self.seed;
        let draw = |name: &str, rows: usize, cols: usize| {
            let stream = Stream::named(seed, name);
            let value = |r: usize, c: usize| bound * (2.0 * stream.uniform((r * cols + c) as u64) - 1.0);
            Tensor::from_fn(rows, cols, value)
        };
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let (w, b) = (draw(&weight, out, inp), draw(&bias, 1, out));
        Ok(Dense {
            weight: self.add(&weight, &[out, inp], w)?,
            bias: self.add(&bias, &[out], b)?,
            activation,
        })
    }
}
