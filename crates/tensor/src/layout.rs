//! How files hold a matrix `[rows, cols]` of ours.
//!
//! A convolution's kernel is `[out, in, h, w]` in files (OIHW); here its columns are ordered line, column, channel (OHWI), so that neighbouring
//! channels of a pixel lie side by side.

use crate::tensor::Tensor;

/// The order of a matrix's values in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Row by row, as here.
    #[default]
    Rows,
    /// Column by column: transformers' `Conv1D`.
    Turned,
    /// Each row channel by channel, each of them `h` lines of `w`: a convolution's kernel, or what reads flattened pixels.
    Kernel(usize, usize),
}

impl Layout {
    /// Whether files have the very order of memory.
    pub fn is_as_here(self) -> bool {
        matches!(self, Layout::Rows | Layout::Kernel(1, 1))
    }

    /// Where the value at `(row, col)` of a matrix of `rows` x `cols` lies in files.
    pub fn to_file(self, (row, col): (usize, usize), (rows, cols): (usize, usize)) -> usize {
        match self {
            Layout::Rows => row * cols + col,
            Layout::Turned => col * rows + row,
            Layout::Kernel(h, w) => {
                let channels = channels(cols, h, w);
                let (place, channel) = (col / channels, col % channels);
                row * cols + channel * h * w + place
            }
        }
    }

    /// The row and column of what lies at `at` in files.
    pub fn from_file(self, at: usize, (rows, cols): (usize, usize)) -> (usize, usize) {
        match self {
            Layout::Rows => (at / cols.max(1), at % cols.max(1)),
            Layout::Turned => (at % rows.max(1), at / rows.max(1)),
            Layout::Kernel(h, w) => {
                let (row, col) = (at / cols.max(1), at % cols.max(1));
                let (channel, place) = (col / (h * w).max(1), col % (h * w).max(1));
                (row, place * channels(cols, h, w) + channel)
            }
        }
    }

    /// The values of a matrix in the order of files.
    pub fn values_to_file(self, matrix: &Tensor) -> Vec<f32> {
        let size = (matrix.rows(), matrix.cols());
        if self.is_as_here() {
            return matrix.data().to_vec();
        }
        let mut out = vec![0.0; matrix.len()];
        for row in 0..size.0 {
            for (col, value) in matrix.row(row).iter().enumerate() {
                out[self.to_file((row, col), size)] = *value;
            }
        }
        out
    }

    /// The matrix of these values of a file.
    ///
    /// # Panics
    /// If there are not `rows * cols` of them.
    pub fn values_from_file(self, rows: usize, cols: usize, values: Vec<f32>) -> Tensor {
        assert_eq!(values.len(), rows * cols, "values of a {rows} x {cols} matrix");
        if self.is_as_here() {
            return Tensor::from_vec(rows, cols, values);
        }
        let mut out = Tensor::from_vec(rows, cols, vec![0.0; rows * cols]);
        for (row, line) in out.data_mut().chunks_exact_mut(cols.max(1)).enumerate() {
            for (col, value) in line.iter_mut().enumerate() {
                *value = values[self.to_file((row, col), (rows, cols))];
            }
        }
        out
    }
}

fn channels(cols: usize, h: usize, w: usize) -> usize {
    (cols / (h * w).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let size = (3, 12);
        let matrix = Tensor::from_fn(3, 12, |r, c| (12 * r + c) as f32);
        for layout in [Layout::Rows, Layout::Turned, Layout::Kernel(2, 3), Layout::Kernel(1, 1)] {
            let file = layout.values_to_file(&matrix);
            assert_eq!(layout.values_from_file(3, 12, file.clone()).data(), matrix.data(), "{layout:?}");
            for row in 0..3 {
                for col in 0..12 {
                    let at = layout.to_file((row, col), size);
                    assert_eq!(file[at], matrix.row(row)[col]);
                    assert_eq!(layout.from_file(at, size), (row, col), "{layout:?}");
                }
            }
        }
    }

    #[test]
    fn a_kernel_in_files_is_channel_by_channel() {
        // One output, two channels, a kernel of one line and two columns: memory has (place, channel).
        let matrix = Tensor::from_vec(1, 4, vec![0.0, 1.0, 10.0, 11.0]);
        assert_eq!(Layout::Kernel(1, 2).values_to_file(&matrix), [0.0, 10.0, 1.0, 11.0]);
    }
}
