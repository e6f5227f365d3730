//! Layer norm (Ba et al., 2016): `y = n w + b`, `n = (x - mean) r`, `r = 1 / sqrt(var + eps)` for each row `[C]`.
//!
//! The variance is the biased one, from the centred row. Backward, with `h = g w`:
//! `dx = r (h - mean(h) - n mean(h n))`, `dw = sum over rows of g n`, `db = sum over rows of g`.

use super::linear::column_sums;
use super::parallel::{for_rows, sum_rows};
use crate::kernel::simd::{LANES, fold, sum_inline};
use crate::tape::{Saved, Tape, Var};
use crate::tensor::Tensor;

/// Sum of `(a - a_mean) (b - b_mean)`.
#[inline(always)]
fn centred_dot(a: &[f32], a_mean: f32, b: &[f32], b_mean: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += (a[i] - a_mean) * (b[i] - b_mean);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane += (a - a_mean) * (b - b_mean);
    }
    fold(lanes, |a, b| a + b)
}

/// Mean and 1 / standard deviation of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = sum_inline(x) / x.len() as f32;
    let var = centred_dot(x, mean, x, mean) / x.len() as f32;
    (mean, 1.0 / (var + eps).sqrt())
}

crate::multiversion! {
    fn forward_rows(x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) {
        let cols = w.len();
        for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            let (mean, r) = moments(x, eps);
            for (((o, x), w), b) in out.iter_mut().zip(x).zip(w).zip(b) {
                *o = (x - mean) * r * w + b;
            }
        }
    }

    /// Turns the gradient of the output into that of the input.
    fn backward_rows(x: &[f32], w: &[f32], eps: f32, g: &mut [f32]) {
        let cols = w.len();
        for (g, x) in g.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            let (mean, r) = moments(x, eps);
            for (g, w) in g.iter_mut().zip(w) {
                *g *= w;
            }
            let shift = sum_inline(g) / cols as f32;
            let slope = r * r * centred_dot(g, shift, x, mean) / cols as f32;
            for (g, x) in g.iter_mut().zip(x) {
                *g = r * (*g - shift - (x - mean) * slope);
            }
        }
    }

    /// Adds `g n` of each row to `sum`.
    fn weight_rows(x: &[f32], g: &[f32], eps: f32, sum: &mut [f32]) {
        let cols = sum.len();
        for (x, g) in x.chunks_exact(cols).zip(g.chunks_exact(cols)) {
            let (mean, r) = moments(x, eps);
            for ((s, x), g) in sum.iter_mut().zip(x).zip(g) {
                *s += g * (x - mean) * r;
            }
        }
    }
}

fn forward(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Tensor {
    let cols = x.cols();
    let mut y = Tensor::scratch(x.rows(), cols);
    for_rows(y.data_mut(), cols, |first, chunk| {
        forward_rows(&x.data()[first * cols..], weight.data(), bias.data(), eps, chunk);
    });
    y
}

fn backward_x(x: &Tensor, weight: &Tensor, eps: f32, mut g: Tensor) -> Tensor {
    let cols = x.cols();
    for_rows(g.data_mut(), cols, |first, chunk| {
        backward_rows(&x.data()[first * cols..], weight.data(), eps, chunk);
    });
    g
}

fn backward_w(x: &Tensor, eps: f32, g: &Tensor) -> Tensor {
    let cols = x.cols();
    let mut dw = Tensor::zeros(1, cols);
    sum_rows(x.rows(), dw.data_mut(), |first, last, sum| {
        let rows = first * cols..last * cols;
        weight_rows(&x.data()[rows.clone()], &g.data()[rows], eps, sum);
    });
    dw
}

/// Normalises each row of `x` `[T, C]`, scales by `weight` and shifts by `bias`, both `[1, C]`. The output is made
/// again when needed.
pub fn layer_norm(tape: &Tape, x: &Var, weight: &Var, bias: &Var, eps: f32) -> Var {
    assert_eq!((weight.rows(), weight.cols()), (1, x.cols()), "layer_norm: weight");
    assert_eq!((bias.rows(), bias.cols()), (1, x.cols()), "layer_norm: bias");
    let y = forward(x.value(), weight.value(), bias.value(), eps);
    let (nx, nw, nb) = (x.node(), weight.node(), bias.node());
    let saved = x.saved();
    let (w, b) = (weight.value().clone(), bias.value().clone());
    let out = {
        let (saved, w) = (saved.clone(), w.clone());
        tape.record(y, nx.is_some() || nw.is_some() || nb.is_some(), move |g, sink| {
            if nb.is_some() {
                sink.add(nb, column_sums(&g));
            }
            if nw.is_some() {
                sink.add(nw, backward_w(&saved.get(), eps, &g));
            }
            if nx.is_some() {
                sink.add(nx, backward_x(&saved.get(), &w, eps, g));
            }
        })
    };
    out.with_recipe(move || forward(&Saved::get(&saved), &w, &b, eps))
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::*;

    #[test]
    fn gradient() {
        for (rows, cols) in [(3, 7), (1, 33), (2, 64)] {
            check(&[random(rows, cols, 1), random(1, cols, 2), random(1, cols, 3)], |tape, x| {
                layer_norm(tape, &x[0], &x[1], &x[2], 1e-5)
            });
        }
    }

    #[test]
    fn rows_have_mean_zero_and_variance_one_even_far_from_zero() {
        let x = Tensor::from_fn(4, 33, |r, c| 1000.0 + ((r * 33 + c) as f32 * 0.7).sin());
        let y = forward(&x, &Tensor::from_fn(1, 33, |_, _| 1.0), &Tensor::zeros(1, 33), 0.0);
        for row in 0..4 {
            let mean = y.row(row).iter().map(|v| f64::from(*v)).sum::<f64>() / 33.0;
            let var = y.row(row).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 33.0;
            assert!(mean.abs() < 1e-3 && (var - 1.0).abs() < 1e-3, "{mean} {var}");
        }
    }

    /// torch.nn.functional.layer_norm([1, 2, 4, 8], weight [1, 2, 3, 4], bias [0.5, 0, -0.5, 1], eps 1e-5)
    #[test]
    fn equals_torch() {
        let x = Tensor::from_vec(1, 4, vec![1.0, 2.0, 4.0, 8.0]);
        let (w, b) = (
            Tensor::from_vec(1, 4, vec![1.0, 2.0, 3.0, 4.0]),
            Tensor::from_vec(1, 4, vec![0.5, 0.0, -0.5, 1.0]),
        );
        let y = forward(&x, &w, &b, 1e-5);
        let torch = [-0.525_754_6, -1.305_505_9, -0.220_248_76, 7.341_028];
        for (got, want) in y.data().iter().zip(torch) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        assert_same_on_any_threads(&[random(700, 65, 1), random(1, 65, 2), random(1, 65, 3)], |tape, x| {
            layer_norm(tape, &x[0], &x[1], &x[2], 1e-5)
        });
    }
}
