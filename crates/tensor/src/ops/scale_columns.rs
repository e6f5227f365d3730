//! `y = x l` for each row: a learned factor for each channel (IA3, Liu et al., 2022; DoRA's magnitudes).
//!
//! Backward: `dx = g l`, `dl = sum over rows of g x`.

use super::parallel::{for_rows, sum_rows};
use crate::tape::{Saved, Tape, Var};
use crate::tensor::Tensor;

crate::multiversion! {
    /// `y *= l` row by row.
    fn scale_rows(l: &[f32], y: &mut [f32]) {
        for row in y.chunks_exact_mut(l.len()) {
            for (y, l) in row.iter_mut().zip(l) {
                *y *= l;
            }
        }
    }

    /// Adds `g x` of each row to `sum`.
    fn factor_rows(x: &[f32], g: &[f32], sum: &mut [f32]) {
        let cols = sum.len();
        for (x, g) in x.chunks_exact(cols).zip(g.chunks_exact(cols)) {
            for ((s, x), g) in sum.iter_mut().zip(x).zip(g) {
                *s += g * x;
            }
        }
    }
}

/// Each column of `x` times its factor.
pub(super) fn scaled(mut x: Tensor, l: &Tensor) -> Tensor {
    let cols = x.cols();
    for_rows(x.data_mut(), cols, |_, chunk| scale_rows(l.data(), chunk));
    x
}

fn factor_gradient(x: &Tensor, g: &Tensor) -> Tensor {
    let cols = x.cols();
    let mut dl = Tensor::zeros(1, cols);
    sum_rows(x.rows(), dl.data_mut(), |first, last, sum| {
        let rows = first * cols..last * cols;
        factor_rows(&x.data()[rows.clone()], &g.data()[rows], sum);
    });
    dl
}

/// Each column of `x` `[T, C]` times its factor in `l` `[1, C]`. The output is made again when needed.
pub fn scale_columns(tape: &Tape, x: &Var, l: &Var) -> Var {
    assert_eq!((l.rows(), l.cols()), (1, x.cols()), "scale_columns: factors");
    let (nx, nl) = (x.node(), l.node());
    let (saved, factors) = (x.saved(), l.value().clone());
    let y = scaled(x.value().clone(), &factors);
    let out = {
        let (saved, factors) = (nl.map(|_| saved.clone()), factors.clone());
        tape.record(y, nx.is_some() || nl.is_some(), move |g, sink| {
            if let Some(x) = saved {
                sink.add(nl, factor_gradient(&x.get(), &g));
            }
            if nx.is_some() {
                sink.add(nx, scaled(g, &factors));
            }
        })
    };
    out.with_recipe(move || scaled(Saved::get(&saved), &factors))
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::*;

    #[test]
    fn gradient() {
        check(&[random(3, 5, 1), random(1, 5, 2)], |tape, x| scale_columns(tape, &x[0], &x[1]));
    }

    #[test]
    fn factors_of_one_change_no_bit() {
        let x = random(3, 17, 1);
        let y = scaled(x.clone(), &Tensor::from_fn(1, 17, |_, _| 1.0));
        assert_eq!(x.data(), y.data());
    }

    #[test]
    fn threads_change_nothing() {
        assert_same_on_any_threads(&[random(700, 65, 1), random(1, 65, 2)], |tape, x| {
            scale_columns(tape, &x[0], &x[1])
        });
    }
}
