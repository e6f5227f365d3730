//! A read-only matrix view with any strides, so that transposes and heads are views.

/// `rows` x `cols` floats; element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix without gaps. Panics unless `data` has exactly rows * cols elements.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a {rows} x {cols} matrix needs {} elements", rows * cols);
        MatRef { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Any strides. Panics if an element would lie outside `data`.
    pub fn with_strides(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        if rows > 0 && cols > 0 {
            let last = (rows - 1)
                .checked_mul(row_stride)
                .and_then(|r| (cols - 1).checked_mul(col_stride)?.checked_add(r))
                .filter(|&last| last < data.len());
            assert!(
                last.is_some(),
                "a {rows} x {cols} view with strides {row_stride}, {col_stride} leaves its {} elements",
                data.len()
            );
        }
        MatRef { data, rows, cols, row_stride, col_stride }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        MatRef {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    #[inline]
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    #[inline]
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// Element (i, j). Panics out of bounds.
    #[inline]
    pub fn at(&self, i: usize, j: usize) -> f32 {
        assert!(i < self.rows && j < self.cols);
        self.data[i * self.row_stride + j * self.col_stride]
    }

    /// Address of element (i, j), which must exist to be read; (i, j) may also be one past the end.
    #[inline]
    pub(crate) fn ptr(&self, i: usize, j: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(i * self.row_stride + j * self.col_stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_is_a_view() {
        let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let m = MatRef::new(&data, 3, 4);
        assert_eq!((m.at(1, 2), m.t().at(2, 1), m.t().rows()), (6.0, 6.0, 4));
    }

    #[test]
    #[should_panic(expected = "leaves its")]
    fn a_view_beyond_its_data_is_refused() {
        MatRef::with_strides(&[0.0; 11], 3, 4, 4, 1);
    }
}
