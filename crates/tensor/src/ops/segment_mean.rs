//! Mean pooling: `y[i] = mean of the rows of segment i`; backward spreads `g[i] / n` over its rows.

use super::parallel::for_rows;
use crate::kernel::simd;
use crate::segments::Segments;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The mean row of each segment of `x` `[T, C]`: `[B, C]`; zeros for a segment without rows.
pub fn segment_mean(tape: &Tape, x: &Var, segments: &Segments) -> Var {
    assert_eq!(x.rows(), segments.rows(), "segment_mean: segments");
    let cols = x.cols();
    let values = x.value();
    let mut y = Tensor::zeros(segments.len(), cols);
    for_rows(y.data_mut(), cols, |first, chunk| {
        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
            let rows = segments.range(first + i);
            let share = 1.0 / rows.len().max(1) as f32;
            rows.for_each(|row| simd::add(values.row(row), out));
            simd::scale(share, out);
        }
    });
    let (node, segments) = (x.node(), segments.clone());
    tape.record(y, node.is_some(), move |g, sink| {
        let mut dx = Tensor::zeros(segments.rows(), cols);
        let data = dx.data_mut();
        for (i, rows) in segments.ranges().enumerate() {
            let share = 1.0 / rows.len().max(1) as f32;
            for row in rows {
                simd::axpy(share, g.row(i), &mut data[row * cols..(row + 1) * cols]);
            }
        }
        sink.add(node, dx);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::super::select_rows;
    use super::*;

    #[test]
    fn gradient() {
        let segments = Segments::from_lengths(&[3, 1, 0, 2]);
        check(&[random(6, 5, 1)], |tape, x| segment_mean(tape, &x[0], &segments));
    }

    /// The other poolings: the first and the last row of each example.
    #[test]
    fn gradient_of_first_and_last_rows() {
        let segments = Segments::from_lengths(&[3, 1, 2]);
        let first: Vec<usize> = segments.ranges().map(|r| r.start).collect();
        let last: Vec<usize> = segments.ranges().map(|r| r.end - 1).collect();
        for rows in [first, last] {
            check(&[random(6, 5, 1)], |tape, x| select_rows(tape, &x[0], &rows));
        }
    }

    #[test]
    fn threads_change_nothing() {
        let segments = Segments::from_lengths(&[40, 1, 70, 9]);
        assert_same_on_any_threads(&[random(120, 9000, 1)], |tape, x| segment_mean(tape, &x[0], &segments));
    }
}
