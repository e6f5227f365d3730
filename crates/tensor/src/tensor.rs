//! A row-major f32 matrix, rows x columns, shared until somebody writes to it.

use std::sync::Arc;

use crate::memory::Buffer;

/// A row-major f32 matrix `[rows, cols]`. Cloning shares the data; [`Tensor::data_mut`] copies it if it is shared.
#[derive(Clone)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    data: Arc<Buffer>,
}

impl Tensor {
    pub fn zeros(rows: usize, cols: usize) -> Tensor {
        Tensor { rows, cols, data: Arc::new(Buffer::zeros(rows * cols)) }
    }

    /// Unspecified (but initialised) content, to be overwritten whole.
    pub fn scratch(rows: usize, cols: usize) -> Tensor {
        Tensor { rows, cols, data: Arc::new(Buffer::scratch(rows * cols)) }
    }

    /// # Panics
    /// If `data.len() != rows * cols`.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<f32>) -> Tensor {
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} tensor needs {} values", rows * cols);
        Tensor { rows, cols, data: Arc::new(Buffer::from_vec(data)) }
    }

    pub fn from_slice(rows: usize, cols: usize, data: &[f32]) -> Tensor {
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} tensor needs {} values", rows * cols);
        let mut tensor = Tensor::scratch(rows, cols);
        tensor.data_mut().copy_from_slice(data);
        tensor
    }

    pub fn from_fn(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> f32) -> Tensor {
        let mut tensor = Tensor::scratch(rows, cols);
        let data = tensor.data_mut();
        for r in 0..rows {
            for c in 0..cols {
                data[r * cols + c] = f(r, c);
            }
        }
        tensor
    }

    pub fn scalar(value: f32) -> Tensor {
        Tensor::from_vec(1, 1, vec![value])
    }

    /// Bytes that the values hold, rounding of reused buffers included.
    pub fn held_bytes(&self) -> usize {
        self.data.held_bytes()
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn data(&self) -> &[f32] {
        self.data.as_slice()
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.data()[row * self.cols..(row + 1) * self.cols]
    }

    /// The data for writing; copied first if another tensor shares it.
    pub fn data_mut(&mut self) -> &mut [f32] {
        if Arc::get_mut(&mut self.data).is_none() {
            let mut copy = Buffer::scratch(self.len());
            copy.as_mut_slice().copy_from_slice(self.data());
            self.data = Arc::new(copy);
        }
        match Arc::get_mut(&mut self.data) {
            Some(buffer) => buffer.as_mut_slice(),
            None => unreachable!("the copy above is not shared"),
        }
    }

    /// The same values in another shape of as many elements.
    pub fn reshaped(mut self, rows: usize, cols: usize) -> Tensor {
        assert_eq!(rows * cols, self.len(), "cannot see {} values as {rows} x {cols}", self.len());
        self.rows = rows;
        self.cols = cols;
        self
    }

    /// `self += other`, element by element.
    pub fn add_assign(&mut self, other: &Tensor) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "shapes differ");
        crate::ops::elementwise::add_assign(self.data_mut(), other.data());
    }

    /// `self *= factor`.
    pub fn scale_assign(&mut self, factor: f32) {
        crate::ops::elementwise::scale_assign(self.data_mut(), factor);
    }

    pub fn transposed(&self) -> Tensor {
        let (rows, cols, data) = (self.rows, self.cols, self.data());
        Tensor::from_fn(cols, rows, |r, c| data[c * cols + r])
    }

    pub fn all_finite(&self) -> bool {
        crate::kernel::simd::all_finite(self.data())
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor[{}, {}]", self.rows, self.cols)
    }
}
