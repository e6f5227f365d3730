//! `y = a b`, element by element: gates. Backward: `da = g b`, `db = g a`.

use super::parallel::for_rows;
use crate::tape::{Saved, Tape, Var};
use crate::tensor::Tensor;

crate::multiversion! {
    fn multiply_chunk(b: &[f32], y: &mut [f32]) {
        for (y, b) in y.iter_mut().zip(b) {
            *y *= b;
        }
    }
}

fn product(mut a: Tensor, b: &Tensor) -> Tensor {
    for_rows(a.data_mut(), 1, |first, chunk| multiply_chunk(&b.data()[first..], chunk));
    a
}

/// `a b`, both `[T, C]`. The output is made again when needed.
pub fn mul(tape: &Tape, a: &Var, b: &Var) -> Var {
    assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()), "mul: shapes differ");
    let y = product(a.value().clone(), b.value());
    let (na, nb) = (a.node(), b.node());
    let (a, b) = (a.saved(), b.saved());
    let out = {
        // Each input is kept for the other's gradient alone.
        let (a, b) = (nb.map(|_| a.clone()), na.map(|_| b.clone()));
        tape.record(y, na.is_some() || nb.is_some(), move |g, sink| {
            if let Some(a) = a {
                sink.add(nb, product(g.clone(), &a.get()));
            }
            if let Some(b) = b {
                sink.add(na, product(g, &b.get()));
            }
        })
    };
    out.with_recipe(move || product(Saved::get(&a), &Saved::get(&b)))
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        check(&[random(3, 5, 1), random(3, 5, 2)], |tape, x| mul(tape, &x[0], &x[1]));
        check(&[random(3, 5, 1)], |tape, x| mul(tape, &x[0], &x[0]));
    }
}
