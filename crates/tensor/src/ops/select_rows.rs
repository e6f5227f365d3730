//! `y[i] = x[rows[i]]`: the rows that carry a label, the first or last row of each example.

use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The given rows of `x`, in the given order; a row may be taken more than once.
pub fn select_rows(tape: &Tape, x: &Var, rows: &[usize]) -> Var {
    let cols = x.cols();
    let mut y = Tensor::scratch(rows.len(), cols);
    for (out, &row) in y.data_mut().chunks_exact_mut(cols.max(1)).zip(rows) {
        out.copy_from_slice(x.value().row(row));
    }
    let (node, total, rows) = (x.node(), x.rows(), rows.to_vec());
    tape.record(y, node.is_some(), move |g, sink| {
        let mut dx = Tensor::zeros(total, cols);
        let data = dx.data_mut();
        for (i, &row) in rows.iter().enumerate() {
            super::elementwise::add_assign(&mut data[row * cols..(row + 1) * cols], g.row(i));
        }
        sink.add(node, dx);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient_with_a_row_taken_twice() {
        check(&[random(5, 3, 1)], |tape, x| select_rows(tape, &x[0], &[4, 0, 4]));
    }
}
