//! One forward pass: the rows it works on and how they are treated.

use retune_tensor::Segments;
use retune_tensor::ops::DropoutRows;

/// Keys the dropout masks of a training pass.
#[derive(Clone, Debug)]
pub struct Dropouts {
    pub seed: u64,
    pub epoch: u64,
    /// The stable key of each example of the batch.
    pub examples: Vec<u64>,
}

/// What a pass is for. The default is evaluation: no dropout, everything kept that a backward pass needs.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// `Some` while training.
    pub dropout: Option<Dropouts>,
    /// Blocks are run again in the backward pass instead of keeping their activations.
    pub checkpoint: bool,
}

/// The rows of a batch as layers see them.
#[derive(Clone)]
pub struct Rows {
    pub segments: Segments,
    /// `Some` while training: keys of the dropout masks, row by row.
    pub dropout: Option<DropoutRows>,
}

impl Rows {
    pub fn new(segments: Segments, pass: &Pass) -> Rows {
        let dropout =
            pass.dropout.as_ref().map(|d| DropoutRows::new(d.seed, d.epoch, &segments, &d.examples));
        Rows { segments, dropout }
    }
}
