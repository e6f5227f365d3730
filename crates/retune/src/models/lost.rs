//! What a matrix that stays in its file is once it cannot be read any more: NaN, so that nothing is trained with it.

use retune_tensor::storage::Storage;

/// A matrix `[rows, cols]` of NaN; it tells the format and block of the one that was lost.
pub struct Lost {
    pub format: &'static str,
    pub shape: (usize, usize),
    pub block: usize,
}

impl Storage for Lost {
    fn format(&self) -> &'static str {
        self.format
    }
    fn rows(&self) -> usize {
        self.shape.0
    }
    fn cols(&self) -> usize {
        self.shape.1
    }
    fn bytes(&self) -> usize {
        0
    }
    fn block(&self) -> usize {
        self.block
    }
    fn decode(&self, _: usize, _: usize, out: &mut [f32]) {
        out.fill(f32::NAN);
    }
    fn dot_rows(&self, _: usize, _: &[f32], y: &mut [f32]) {
        y.fill(f32::NAN);
    }
}
