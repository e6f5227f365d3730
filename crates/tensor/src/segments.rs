//! Which rows of a matrix belong to which example: offsets, and for pixels a grid.

use std::ops::Range;
use std::sync::Arc;

/// `offsets[i]..offsets[i + 1]` are the rows of example `i`; the rows of a batch lie end to end, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    offsets: Arc<[usize]>,
}

impl Segments {
    /// From the number of rows of each example.
    pub fn from_lengths(lengths: &[usize]) -> Segments {
        let mut offsets = Vec::with_capacity(lengths.len() + 1);
        let mut end = 0;
        offsets.push(0);
        for length in lengths {
            end += length;
            offsets.push(end);
        }
        Segments { offsets: offsets.into() }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of all examples together.
    pub fn rows(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    pub fn range(&self, example: usize) -> Range<usize> {
        self.offsets[example]..self.offsets[example + 1]
    }

    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|w| w[0]..w[1])
    }

    pub fn length(&self, example: usize) -> usize {
        self.range(example).len()
    }

    pub fn lengths(&self) -> Vec<usize> {
        self.ranges().map(|r| r.len()).collect()
    }
}
