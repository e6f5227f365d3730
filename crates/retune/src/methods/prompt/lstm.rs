//! An LSTM over the rows of a table, in both directions: the other network of P-tuning (Liu et al., 2021).
//!
//! `[i f g o] = W x_t + b + U h + c`, `c' = sigmoid(f) c + sigmoid(i) tanh(g)`, `h' = sigmoid(o) tanh(c')`; a layer's rows are both
//! directions' `h` side by side. Names, order of the gates and initial values are those of `torch.nn.LSTM`.

use retune_tensor::ops::{self, Activation};
use retune_tensor::rng::Stream;
use retune_tensor::{ParamId, Segments, Tape, Tensor, Var};

use super::encoder::Adder;
use crate::error::Result;

/// One direction of one layer.
#[derive(Clone, Copy, Debug)]
struct Direction {
    /// `[4 h, in]`
    input: ParamId,
    input_bias: ParamId,
    /// `[4 h, h]`
    state: ParamId,
    state_bias: ParamId,
    backwards: bool,
}

/// All layers; each has both directions.
#[derive(Clone, Debug)]
pub(crate) struct Lstm {
    hidden: usize,
    layers: Vec<[Direction; 2]>,
}

impl Lstm {
    /// Adds the parameters of `layers` layers over rows of width `dim`, uniform within `1 / sqrt(hidden)`.
    ///
    /// # Errors
    /// If the slot holds such parameters already.
    pub fn new(add: &mut Adder, name: &str, (dim, hidden): (usize, usize), layers: usize) -> Result<Lstm> {
        let bound = 1.0 / (hidden as f32).sqrt();
        let mut draw = |name: String, shape: &[usize]| -> Result<ParamId> {
            let (rows, cols) = if let [rows, cols] = shape { (*rows, *cols) } else { (1, shape[0]) };
            let stream = Stream::named(add.seed, &name);
            let value = |r: usize, c: usize| bound * (2.0 * stream.uniform((r * cols + c) as u64) - 1.0);
            add.add(&name, shape, Tensor::from_fn(rows, cols, value))
        };
        let mut all = Vec::new();
        for layer in 0..layers {
            let inp = if layer == 0 { dim } else { 2 * hidden };
            let mut direction = |backwards: bool| -> Result<Direction> {
                let end = if backwards { "_reverse" } else { "" };
                let at = |part: &str| format!("{name}.{part}_l{layer}{end}");
                Ok(Direction {
                    input: draw(at("weight_ih"), &[4 * hidden, inp])?,
                    state: draw(at("weight_hh"), &[4 * hidden, hidden])?,
                    input_bias: draw(at("bias_ih"), &[4 * hidden])?,
                    state_bias: draw(at("bias_hh"), &[4 * hidden])?,
                    backwards,
                })
            };
            all.push([direction(false)?, direction(true)?]);
        }
        Ok(Lstm { hidden, layers: all })
    }

    /// Rows `[n, in]` to `[n, 2 h]`.
    pub fn forward(&self, tape: &Tape, x: &Var) -> Var {
        self.layers.iter().fold(x.clone(), |x, [forwards, backwards]| {
            let rows = [forwards, backwards].map(|direction| direction.forward(tape, &x, self.hidden));
            side_by_side(tape, &rows[0], &rows[1])
        })
    }
}

impl Direction {
    /// The states `[n, h]`, in the order of the rows.
    fn forward(&self, tape: &Tape, x: &Var, hidden: usize) -> Var {
        let n = x.rows();
        let gates = ops::linear(tape, x, &tape.weight(self.input), Some(&tape.param(self.input_bias)), &[]);
        let (state, bias) = (tape.weight(self.state), tape.param(self.state_bias));
        let zeros = || Var::constant(Tensor::zeros(1, hidden));
        let (mut h, mut c) = (zeros(), zeros());
        let mut all: Option<Var> = None;
        for step in 0..n {
            let row = if self.backwards { n - 1 - step } else { step };
            let own = ops::select_rows(tape, &gates, &[row]);
            let sums = ops::add(tape, &own, &ops::linear(tape, &h, &state, Some(&bias), &[]));
            let gate = |part: usize, f: Activation| {
                ops::activation(tape, &ops::slice_columns(tape, &sums, part * hidden, hidden), f)
            };
            let kept = ops::mul(tape, &gate(1, Activation::Sigmoid), &c);
            let new = ops::mul(tape, &gate(0, Activation::Sigmoid), &gate(2, Activation::Tanh));
            c = ops::add(tape, &kept, &new);
            h = ops::mul(tape, &gate(3, Activation::Sigmoid), &ops::activation(tape, &c, Activation::Tanh));
            all = Some(match all {
                None => h.clone(),
                Some(before) => below(tape, &before, &h),
            });
        }
        let all = all.unwrap_or_else(zeros);
        match self.backwards {
            true => ops::select_rows(tape, &all, &(0..n).rev().collect::<Vec<_>>()),
            false => all,
        }
    }
}

/// The rows of `b` below those of `a`.
fn below(tape: &Tape, a: &Var, b: &Var) -> Var {
    ops::concat_segments(tape, a, b, &Segments::from_lengths(&[b.rows()])).0
}

/// `[a b]` of `[n, h]` each.
fn side_by_side(tape: &Tape, a: &Var, b: &Var) -> Var {
    let (n, h) = (a.rows(), a.cols());
    let both = below(tape, a, b);
    let turns: Vec<usize> = (0..n).flat_map(|row| [row, n + row]).collect();
    ops::reshape(tape, &ops::select_rows(tape, &both, &turns), n, 2 * h)
}
