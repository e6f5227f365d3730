//! `y = x + b` for each row: a layer's bias on its own. Backward: the output's gradient, and its sum over rows.

use super::linear::column_sums;
use super::parallel::for_rows;
use crate::kernel::simd;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Adds `bias` `[C]` to every row of `y` in place.
pub(crate) fn add_to_rows(y: &mut Tensor, bias: &[f32]) {
    let cols = y.cols();
    assert_eq!(bias.len(), cols, "add_bias: bias");
    for_rows(y.data_mut(), cols, |_, chunk| {
        chunk.chunks_exact_mut(cols).for_each(|row| simd::add(bias, row));
    });
}

/// `bias` `[1, C]` added to every row of `x` `[T, C]`.
pub fn add_bias(tape: &Tape, x: &Var, bias: &Var) -> Var {
    let mut y = x.value().clone();
    add_to_rows(&mut y, bias.value().data());
    let (nx, nb) = (x.node(), bias.node());
    tape.record(y, nx.is_some() || nb.is_some(), move |g, sink| {
        if nb.is_some() {
            sink.add(nb, column_sums(&g));
        }
        sink.add(nx, g);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        check(&[random(3, 5, 1), random(1, 5, 2)], |tape, x| add_bias(tape, &x[0], &x[1]));
    }
}
