//! Some columns of a stored matrix as a matrix of its own: one place of a convolution's kernel.

use super::{Storage, check_decode, check_dot};
use crate::kernel::simd::dot;

/// Columns `first..first + cols` of another storage.
pub struct Columns<'a> {
    whole: &'a dyn Storage,
    first: usize,
    cols: usize,
}

impl<'a> Columns<'a> {
    /// # Panics
    /// If the matrix has not so many columns, or they split a block.
    pub fn new(whole: &'a dyn Storage, first: usize, cols: usize) -> Columns<'a> {
        let block = whole.block();
        assert!(first + cols <= whole.cols() && first.is_multiple_of(block) && cols.is_multiple_of(block));
        Columns { whole, first, cols }
    }
}

impl Storage for Columns<'_> {
    fn format(&self) -> &'static str {
        self.whole.format()
    }
    fn rows(&self) -> usize {
        self.whole.rows()
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        0
    }
    fn block(&self) -> usize {
        self.whole.block()
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        check_decode(self, row, col0, out.len());
        self.whole.decode(row, self.first + col0, out);
    }
    fn fault(&self) -> Option<String> {
        self.whole.fault()
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        check_dot(self, row0, x, y);
        let mut row = vec![0.0; self.cols];
        for (i, y) in y.iter_mut().enumerate() {
            self.decode(row0 + i, 0, &mut row);
            *y = dot(&row, x);
        }
    }
}
