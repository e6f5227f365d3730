//! Batch norm (Ioffe and Szegedy, 2015) over the rows of a batch: `y = n w + b`, `n = (x - mean) r`, `r = 1 / sqrt(var + eps)` for each channel.
//!
//! Frozen, mean and var are the running ones and constant: `dx = g w r`. In training they are those of the rows (var the biased one), and
//! `dx = w r (g - mean(g) - n mean(g n))`. Both: `dw = sum over rows of g n`, `db = sum over rows of g`.

use super::linear::column_sums;
use super::parallel::{for_rows, sum_rows};
use super::scale_columns::scaled;
use crate::tape::{Saved, Tape, Var};
use crate::tensor::Tensor;

crate::multiversion! {
    /// `y = x a + b` for each channel.
    fn affine_rows(x: &[f32], a: &[f32], b: &[f32], y: &mut [f32]) {
        let cols = a.len();
        for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            for (((y, x), a), b) in y.iter_mut().zip(x).zip(a).zip(b) {
                *y = x * a + b;
            }
        }
    }

    /// Adds `(x - mean)^2` of each row to `sum`.
    fn square_rows(x: &[f32], mean: &[f32], sum: &mut [f32]) {
        let cols = sum.len();
        for x in x.chunks_exact(cols) {
            for ((s, x), m) in sum.iter_mut().zip(x).zip(mean) {
                *s += (x - m) * (x - m);
            }
        }
    }

    /// Adds `g (x - mean) r` of each row to `sum`.
    fn weight_rows(x: &[f32], g: &[f32], mean: &[f32], r: &[f32], sum: &mut [f32]) {
        let cols = sum.len();
        for (x, g) in x.chunks_exact(cols).zip(g.chunks_exact(cols)) {
            for ((((s, x), g), m), r) in sum.iter_mut().zip(x).zip(g).zip(mean).zip(r) {
                *s += g * (x - m) * r;
            }
        }
    }

    /// `g = a (g - shift - (x - mean) slope)` for each channel.
    fn backward_rows(x: &[f32], a: &[f32], shift: &[f32], mean: &[f32], slope: &[f32], g: &mut [f32]) {
        let cols = a.len();
        for (g, x) in g.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
            for (c, (g, x)) in g.iter_mut().zip(x).enumerate() {
                *g = a[c] * (*g - shift[c] - (x - mean[c]) * slope[c]);
            }
        }
    }
}

/// Mean and biased variance of each channel, `[1, C]`.
#[derive(Clone)]
pub struct Statistics {
    pub mean: Tensor,
    pub var: Tensor,
}

impl Statistics {
    /// Of the rows of `x` `[T, C]`; the variance from the centred values.
    pub fn of(x: &Tensor) -> Statistics {
        let (cols, share) = (x.cols(), 1.0 / x.rows().max(1) as f32);
        let mut mean = column_sums(x);
        mean.scale_assign(share);
        let mut var = Tensor::zeros(1, cols);
        sum_rows(x.rows(), var.data_mut(), |first, last, sum| {
            square_rows(&x.data()[first * cols..last * cols], mean.data(), sum);
        });
        var.scale_assign(share);
        Statistics { mean, var }
    }

    fn inverse_deviation(&self, eps: f32) -> Tensor {
        Tensor::from_fn(1, self.var.cols(), |_, c| 1.0 / (self.var.data()[c] + eps).sqrt())
    }
}

/// What one batch norm computes with: the statistics, 1 / deviation, and the affine map that it is for fixed statistics.
struct Map {
    mean: Tensor,
    r: Tensor,
    /// `w r`
    a: Tensor,
    /// `b - mean w r`
    b: Tensor,
}

impl Map {
    fn new(stats: &Statistics, weight: &Tensor, bias: &Tensor, eps: f32) -> Map {
        let r = stats.inverse_deviation(eps);
        let cols = r.cols();
        let a = Tensor::from_fn(1, cols, |_, c| weight.data()[c] * r.data()[c]);
        let b = Tensor::from_fn(1, cols, |_, c| bias.data()[c] - stats.mean.data()[c] * a.data()[c]);
        Map { mean: stats.mean.clone(), r, a, b }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let cols = x.cols();
        let mut y = Tensor::scratch(x.rows(), cols);
        for_rows(y.data_mut(), cols, |first, chunk| {
            affine_rows(&x.data()[first * cols..], self.a.data(), self.b.data(), chunk);
        });
        y
    }

    /// `dw`.
    fn weight_gradient(&self, x: &Tensor, g: &Tensor) -> Tensor {
        let cols = x.cols();
        let mut dw = Tensor::zeros(1, cols);
        sum_rows(x.rows(), dw.data_mut(), |first, last, sum| {
            let rows = first * cols..last * cols;
            weight_rows(&x.data()[rows.clone()], &g.data()[rows], self.mean.data(), self.r.data(), sum);
        });
        dw
    }

    /// `dx` where the statistics follow the rows; the means are those of `g` and of `g n`.
    fn input_gradient(&self, x: &Tensor, mut g: Tensor, g_mean: &Tensor, gn_mean: &Tensor) -> Tensor {
        let cols = x.cols();
        let slope = Tensor::from_fn(1, cols, |_, c| gn_mean.data()[c] * self.r.data()[c]);
        for_rows(g.data_mut(), cols, |first, chunk| {
            let (a, shift, mean) = (self.a.data(), g_mean.data(), self.mean.data());
            backward_rows(&x.data()[first * cols..], a, shift, mean, slope.data(), chunk);
        });
        g
    }
}

fn check(x: &Var, weight: &Var, bias: &Var) {
    assert_eq!((weight.rows(), weight.cols()), (1, x.cols()), "batch_norm: weight");
    assert_eq!((bias.rows(), bias.cols()), (1, x.cols()), "batch_norm: bias");
}

/// Batch norm of `x` `[T, C]` by fixed statistics `[1, C]`, which never change: what a frozen layer, and every layer in evaluation, does.
pub fn batch_norm_frozen(
    tape: &Tape,
    x: &Var,
    weight: &Var,
    bias: &Var,
    stats: &Statistics,
    eps: f32,
) -> Var {
    check(x, weight, bias);
    let map = std::sync::Arc::new(Map::new(stats, weight.value(), bias.value(), eps));
    let (nx, nw, nb) = (x.node(), weight.node(), bias.node());
    let saved = x.saved();
    let y = map.forward(x.value());
    let out = {
        let (map, saved) = (map.clone(), saved.clone());
        tape.record(y, nx.is_some() || nw.is_some() || nb.is_some(), move |g, sink| {
            if nb.is_some() {
                sink.add(nb, column_sums(&g));
            }
            if nw.is_some() {
                sink.add(nw, map.weight_gradient(&saved.get(), &g));
            }
            if nx.is_some() {
                sink.add(nx, scaled(g, &map.a));
            }
        })
    };
    out.with_recipe(move || map.forward(&Saved::get(&saved)))
}

/// Batch norm of `x` `[T, C]` by the statistics of its own rows, and these: whoever trains moves the running ones by them.
pub fn batch_norm(tape: &Tape, x: &Var, weight: &Var, bias: &Var, eps: f32) -> (Var, Statistics) {
    check(x, weight, bias);
    let stats = Statistics::of(x.value());
    let map = Map::new(&stats, weight.value(), bias.value(), eps);
    let (nx, nw, nb) = (x.node(), weight.node(), bias.node());
    let saved = x.saved();
    let y = map.forward(x.value());
    let y = tape.record(y, nx.is_some() || nw.is_some() || nb.is_some(), move |g, sink| {
        let x = saved.get();
        let (db, dw) = (column_sums(&g), map.weight_gradient(&x, &g));
        if nx.is_some() {
            let share = 1.0 / x.rows().max(1) as f32;
            let (mut g_mean, mut gn_mean) = (db.clone(), dw.clone());
            g_mean.scale_assign(share);
            gn_mean.scale_assign(share);
            sink.add(nx, map.input_gradient(&x, g, &g_mean, &gn_mean));
        }
        sink.add(nw, dw);
        sink.add(nb, db);
    });
    (y, stats)
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::*;

    fn stats(cols: usize) -> Statistics {
        let var = random(1, cols, 8);
        Statistics {
            mean: random(1, cols, 7),
            var: Tensor::from_fn(1, cols, |_, c| var.data()[c].powi(2) + 0.3),
        }
    }

    #[test]
    fn gradient_in_training() {
        for (rows, cols) in [(5, 3), (2, 17)] {
            check(&[random(rows, cols, 1), random(1, cols, 2), random(1, cols, 3)], |tape, x| {
                batch_norm(tape, &x[0], &x[1], &x[2], 1e-3).0
            });
        }
    }

    #[test]
    fn gradient_frozen() {
        check(&[random(5, 3, 1), random(1, 3, 2), random(1, 3, 3)], |tape, x| {
            batch_norm_frozen(tape, &x[0], &x[1], &x[2], &stats(3), 1e-3)
        });
    }

    #[test]
    fn equals_the_formula_by_hand() {
        let x = Tensor::from_vec(3, 2, vec![1.0, 2.0, 3.0, -1.0, 8.0, 0.0]);
        let constant = |v: Vec<f32>| Var::constant(Tensor::from_vec(1, 2, v));
        let params = crate::Params::new();
        let tape = Tape::inference(&params);
        let (w, b) = (constant(vec![2.0, 1.0]), constant(vec![0.5, -1.0]));
        let (y, stats) = batch_norm(&tape, &Var::constant(x), &w, &b, 1e-5);
        // Means 4 and 1/3; variances 26/3 and 14/9.
        let n = |v: f32, mean: f32, var: f32| (v - mean) / (var + 1e-5).sqrt();
        let want = [1.0, 3.0, 8.0].map(|v| 2.0 * n(v, 4.0, 26.0 / 3.0) + 0.5);
        let want2 = [2.0, -1.0, 0.0].map(|v| n(v, 1.0 / 3.0, 14.0 / 9.0) - 1.0);
        for row in 0..3 {
            assert!((y.value().row(row)[0] - want[row]).abs() < 1e-5);
            assert!((y.value().row(row)[1] - want2[row]).abs() < 1e-5);
        }
        assert!(
            (stats.var.data()[0] - 26.0 / 3.0).abs() < 1e-5
                && (stats.mean.data()[1] - 1.0 / 3.0).abs() < 1e-6
        );
    }

    #[test]
    fn threads_change_nothing() {
        assert_same_on_any_threads(&[random(900, 65, 1), random(1, 65, 2), random(1, 65, 3)], |tape, x| {
            batch_norm(tape, &x[0], &x[1], &x[2], 1e-5).0
        });
    }
}
