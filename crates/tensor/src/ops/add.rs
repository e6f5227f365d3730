//! `y = a + b`: the residual connection. Both gradients are the output's.

use super::parallel::for_rows;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `a + b`, both `[T, C]`.
pub fn add(tape: &Tape, a: &Var, b: &Var) -> Var {
    assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()), "add: shapes differ");
    let mut y = Tensor::scratch(a.rows(), a.cols());
    let (xa, xb) = (a.value().data(), b.value().data());
    for_rows(y.data_mut(), 1, |first, chunk| {
        for ((y, a), b) in chunk.iter_mut().zip(&xa[first..]).zip(&xb[first..]) {
            *y = a + b;
        }
    });
    let (na, nb) = (a.node(), b.node());
    tape.record(y, na.is_some() || nb.is_some(), move |g, sink| {
        sink.add(na, g.clone());
        sink.add(nb, g);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        check(&[random(3, 5, 1), random(3, 5, 2)], |tape, x| add(tape, &x[0], &x[1]));
    }
}
