//! RMS norm (Zhang and Sennrich, 2019): `y = x r w`, `r = 1 / sqrt(mean(x^2) + eps)` for each row.
//!
//! Backward: `dx = r (g w) - x r^3 / C sum(g w x)`, `dw = sum over rows of g x r`.

use super::elementwise::dot;
use super::parallel::{for_rows, sum_rows};
use crate::tape::{Saved, Tape, Var};
use crate::tensor::Tensor;

#[inline(always)]
fn rstd(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

fn forward(x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
    let cols = x.cols();
    let mut y = Tensor::scratch(x.rows(), cols);
    let w = weight.data();
    for_rows(y.data_mut(), cols, |first, chunk| forward_rows(&x.data()[first * cols..], w, eps, chunk));
    y
}

crate::multiversion! {
    fn forward_rows(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        let cols = w.len();
        for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            let r = rstd(x, eps);
            for ((o, x), w) in out.iter_mut().zip(x).zip(w) {
                *o = x * r * w;
            }
        }
    }

    /// Turns the gradient of the output into that of the input.
    fn backward_rows(x: &[f32], w: &[f32], eps: f32, g: &mut [f32]) {
        let cols = w.len();
        for (g, x) in g.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            let r = rstd(x, eps);
            for (g, w) in g.iter_mut().zip(w) {
                *g *= w;
            }
            let c = dot(g, x) * r * r * r / cols as f32;
            for (g, x) in g.iter_mut().zip(x) {
                *g = *g * r - x * c;
            }
        }
    }

    /// Adds `g x r` of each row to `sum`.
    fn weight_rows(x: &[f32], g: &[f32], eps: f32, sum: &mut [f32]) {
        let cols = sum.len();
        for (x, g) in x.chunks_exact(cols).zip(g.chunks_exact(cols)) {
            let r = rstd(x, eps);
            for ((s, x), g) in sum.iter_mut().zip(x).zip(g) {
                *s += g * x * r;
            }
        }
    }
}

fn backward_x(x: &Tensor, weight: &Tensor, eps: f32, mut g: Tensor) -> Tensor {
    let cols = x.cols();
    let w = weight.data();
    for_rows(g.data_mut(), cols, |first, chunk| backward_rows(&x.data()[first * cols..], w, eps, chunk));
    g
}

fn backward_w(x: &Tensor, eps: f32, g: &Tensor) -> Tensor {
    let mut dw = Tensor::zeros(1, x.cols());
    let cols = x.cols();
    sum_rows(x.rows(), dw.data_mut(), |first, last, sum| {
        let rows = first * cols..last * cols;
        weight_rows(&x.data()[rows.clone()], &g.data()[rows], eps, sum);
    });
    dw
}

/// Normalises each row of `x` `[T, C]` and scales by `weight` `[1, C]`. The output is made again when needed.
pub fn rms_norm(tape: &Tape, x: &Var, weight: &Var, eps: f32) -> Var {
    assert_eq!((weight.rows(), weight.cols()), (1, x.cols()), "rms_norm: weight");
    let y = forward(x.value(), weight.value(), eps);
    let (nx, nw) = (x.node(), weight.node());
    let saved = x.saved();
    let w = weight.value().clone();
    let out = {
        let (saved, w) = (saved.clone(), w.clone());
        tape.record(y, nx.is_some() || nw.is_some(), move |g, sink| {
            let x = saved.get();
            if nw.is_some() {
                sink.add(nw, backward_w(&x, eps, &g));
            }
            if nx.is_some() {
                sink.add(nx, backward_x(&x, &w, eps, g));
            }
        })
    };
    out.with_recipe(move || forward(&Saved::get(&saved), &w, eps))
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        check(&[random(3, 7, 1), random(1, 7, 2)], |tape, x| rms_norm(tape, &x[0], &x[1], 1e-5));
    }

    #[test]
    fn rows_have_unit_mean_square() {
        let y = forward(&random(4, 33, 3), &Tensor::from_fn(1, 33, |_, _| 1.0), 0.0);
        for row in 0..4 {
            let ms = dot(y.row(row), y.row(row)) / 33.0;
            assert!((ms - 1.0).abs() < 1e-5);
        }
    }
}
