//! `y = [x_1, x_2, ...]` side by side: the channels of several maps of the same pixels; backward gives each its columns of the gradient.

use super::parallel::for_rows;
use crate::tape::{NodeId, Tape, Var};
use crate::tensor::Tensor;

/// Matrices `[T, C_i]` side by side: `[T, sum of C_i]`.
///
/// # Panics
/// If there are none, or their rows differ in number.
pub fn concat_columns(tape: &Tape, xs: &[&Var]) -> Var {
    let rows = xs.first().expect("concat_columns: at least one matrix").rows();
    assert!(xs.iter().all(|x| x.rows() == rows), "concat_columns: rows");
    let cols: usize = xs.iter().map(|x| x.cols()).sum();
    let values: Vec<&Tensor> = xs.iter().map(|x| x.value()).collect();
    let mut y = Tensor::scratch(rows, cols);
    for_rows(y.data_mut(), cols, |first, chunk| {
        for (i, mut out) in chunk.chunks_exact_mut(cols).enumerate() {
            for x in &values {
                let part;
                (part, out) = out.split_at_mut(x.cols());
                part.copy_from_slice(x.row(first + i));
            }
        }
    });
    let parts: Vec<(Option<NodeId>, usize)> = xs.iter().map(|x| (x.node(), x.cols())).collect();
    let needed = parts.iter().any(|(node, _)| node.is_some());
    tape.record(y, needed, move |g, sink| {
        let mut start = 0;
        for (node, n) in parts {
            if node.is_some() {
                let mut dx = Tensor::scratch(rows, n);
                for_rows(dx.data_mut(), n, |first, chunk| {
                    for (i, out) in chunk.chunks_exact_mut(n.max(1)).enumerate() {
                        out.copy_from_slice(&g.row(first + i)[start..start + n]);
                    }
                });
                sink.add(node, dx);
            }
            start += n;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient_also_of_one_twice() {
        check(&[random(4, 3, 1), random(4, 1, 2), random(4, 5, 3)], |tape, x| {
            concat_columns(tape, &[&x[0], &x[1], &x[0], &x[2]])
        });
    }
}
