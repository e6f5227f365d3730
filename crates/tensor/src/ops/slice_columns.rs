//! `y = x[:, first..first + n]`: one of several results that one product gives side by side (GPT-2's queries, keys, values).
//!
//! Backward: the gradient goes into its columns of what the other slices left there.

use super::elementwise::add_assign;
use super::parallel::for_rows;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Columns `first..first + n` of `x` `[T, C]`.
///
/// # Panics
/// If `x` has not so many columns.
pub fn slice_columns(tape: &Tape, x: &Var, first: usize, n: usize) -> Var {
    let (rows, cols, node) = (x.rows(), x.cols(), x.node());
    assert!(first + n <= cols, "slice_columns: {first} + {n} of {cols}");
    let mut y = Tensor::scratch(rows, n);
    let values = x.value();
    for_rows(y.data_mut(), n, |row, chunk| {
        for (i, out) in chunk.chunks_exact_mut(n.max(1)).enumerate() {
            out.copy_from_slice(&values.row(row + i)[first..first + n]);
        }
    });
    tape.record(y, node.is_some(), move |g, sink| {
        let mut dx = sink.take(node).unwrap_or_else(|| Tensor::zeros(rows, cols));
        for_rows(dx.data_mut(), cols, |row, chunk| {
            for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
                add_assign(&mut out[first..first + n], g.row(row + i));
            }
        });
        sink.add(node, dx);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::ops::{add, mul};

    #[test]
    fn gradient_of_slices_that_meet_and_overlap() {
        check(&[random(3, 7, 1)], |tape, x| {
            let slice = |first| slice_columns(tape, &x[0], first, 3);
            add(tape, &mul(tape, &slice(0), &slice(3)), &slice(4))
        });
    }
}
