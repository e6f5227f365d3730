//! The end of a sub-layer, where its output meets the residual stream: the site of bottleneck adapters.
//!
//! Without a method: `residual + output`, then the norm where the model has it there (BERT).

use retune_tensor::ops;
use retune_tensor::{Tape, Var};

use crate::nn::{LayerNorm, Rows, Slots};

/// Which half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubLayerKind {
    Attention,
    FeedForward,
}

/// What meets at the end of a sub-layer, each `[T, C]`.
#[derive(Clone, Copy)]
pub struct Meeting<'a> {
    /// What the sub-layer worked on (after a norm in front of it): parallel adapters read it.
    pub input: &'a Var,
    pub output: &'a Var,
    /// `None` where the output is all that there is: the end of a stage of convolutions.
    pub residual: Option<&'a Var>,
    /// The norm behind the sum, if the model has one there.
    pub norm: Option<&'a LayerNorm>,
}

/// What a method puts into [`SubLayer::after`].
pub trait SubLayerDelta: Send + Sync {
    /// The block's next residual stream `[T, C]`, with the method's part in it.
    fn forward(&self, tape: &Tape, rows: &Rows, at: &SubLayer, meeting: &Meeting) -> Var;
}

/// The end of a sub-layer.
pub struct SubLayer {
    /// The Hugging Face module whose output it is, `bert.encoder.layer.0.attention.output`.
    pub path: String,
    pub kind: SubLayerKind,
    /// The number of the layer.
    pub layer: usize,
    pub hidden: usize,
    pub after: Slots<dyn SubLayerDelta>,
}

impl SubLayer {
    /// The end of a sub-layer without a method on it.
    pub fn new(path: impl Into<String>, kind: SubLayerKind, layer: usize, hidden: usize) -> SubLayer {
        SubLayer { path: path.into(), kind, layer, hidden, after: Slots::default() }
    }

    pub fn forward(&self, tape: &Tape, rows: &Rows, meeting: Meeting) -> Var {
        if self.after.is_empty() {
            return meeting.plain(tape);
        }
        let Meeting { input, output, residual: beside, norm } = meeting;
        let all = [input, output, beside.unwrap_or(output)];
        rows.by_adapter(tape, all, |slot, rows, [input, output, residual]| {
            let meeting = Meeting { input, output, residual: beside.map(|_| residual), norm };
            match self.after.get(slot) {
                Some(delta) => delta.forward(tape, rows, self, &meeting),
                None => meeting.plain(tape),
            }
        })
    }
}

impl Meeting<'_> {
    /// The sum, normed where the model does.
    pub fn plain(&self, tape: &Tape) -> Var {
        self.finish(tape, self.output)
    }

    /// `output` in the place of the sub-layer's own: the sum, normed where the model does.
    pub fn finish(&self, tape: &Tape, output: &Var) -> Var {
        let sum = self.residual.map_or_else(|| output.clone(), |residual| ops::add(tape, residual, output));
        match self.norm {
            Some(norm) => norm.forward(tape, &sum),
            None => sum,
        }
    }
}
