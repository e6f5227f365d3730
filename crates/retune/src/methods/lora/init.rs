//! Starting values of LoRA's factors: PEFT's default, Gaussian, all random; PiSSA (Meng et al., 2024) and OLoRA
//! (Büyükakyüz, 2024), which move the strongest part of the weight into the branch: `W = (W - s B A) + s B A`.

use retune_formats::lora_config::Init;
use retune_tensor::Tensor;
use retune_tensor::rng::Stream;

use super::branch::add_product;
use crate::error::{Error, Result};
use crate::linalg::truncated_svd;

/// What is drawn, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// A uniform within `1/sqrt(in)` (`kaiming_uniform_(a = sqrt 5)`), B zero; a table's A zero, B normal.
    Default,
    /// A normal with deviation `1/r`, B zero.
    Gaussian,
    /// Nothing is zero: the model changes at once.
    Random,
    /// The first `r` singular triplets; `Some(rounds)`: approximately, by so many rounds of subspace iteration.
    Pissa(Option<u32>),
    /// The first `r` columns of the orthogonal factor of `W = Q R`.
    Olora,
}

impl Start {
    /// # Errors
    /// If the name is one of PEFT's that is not supported.
    pub fn of(init: &Init) -> Result<Start> {
        let Init::Named(name) = init else {
            return Ok(if *init == Init::Default(true) { Start::Default } else { Start::Random });
        };
        let rounds = name.strip_prefix("pissa_niter_").and_then(|n| n.parse().ok());
        match (name.as_str(), rounds) {
            ("gaussian", _) => Ok(Start::Gaussian),
            ("pissa", _) => Ok(Start::Pissa(None)),
            ("olora", _) => Ok(Start::Olora),
            (_, Some(rounds)) => Ok(Start::Pissa(Some(rounds))),
            _ => Err(Error::Method(format!(
                "init_lora_weights = \"{name}\" is not supported; true, false, \"gaussian\", \"pissa\", \
                 \"pissa_niter_4\" and \"olora\" are"
            ))),
        }
    }

    /// Is a part of the base moved into the adapter?
    pub fn moves_base(self) -> bool {
        matches!(self, Start::Pissa(_) | Start::Olora)
    }

    /// `A` `[r, in]` of a linear.
    pub fn a(self, r: usize, inp: usize, seed: u64, name: &str) -> Tensor {
        match self {
            Start::Gaussian => normal(r, inp, 1.0 / r as f32, seed, name),
            _ => uniform(r, inp, 1.0 / (inp as f32).sqrt(), seed, name),
        }
    }

    /// `B` `[out, r]` of a linear.
    pub fn b(self, out: usize, r: usize, seed: u64, name: &str) -> Tensor {
        match self {
            Start::Random => uniform(out, r, 1.0 / (r as f32).sqrt(), seed, name),
            _ => Tensor::zeros(out, r),
        }
    }

    /// B's bias `[1, out]`.
    pub fn b_bias(self, out: usize, r: usize, seed: u64, name: &str) -> Tensor {
        match self {
            Start::Random => uniform(1, out, 1.0 / (r as f32).sqrt(), seed, name),
            _ => Tensor::zeros(1, out),
        }
    }

    /// `A` `[r, V]` of a table.
    pub fn table_a(self, r: usize, vocab: usize, seed: u64, name: &str) -> Tensor {
        match self {
            Start::Random => normal(r, vocab, 1.0, seed, name),
            _ => Tensor::zeros(r, vocab),
        }
    }

    /// `B` `[C, r]` of a table.
    pub fn table_b(self, dim: usize, r: usize, seed: u64, name: &str) -> Tensor {
        normal(dim, r, 1.0, seed, name)
    }

    /// `A` `[r, in]` and `B` `[out, r]` with `s B A` the strongest part of the weight `[out, in]`.
    ///
    /// # Errors
    /// If the weight has fewer rows or columns than the rank.
    pub fn factors(
        self,
        weight: &Tensor,
        r: usize,
        scale: f32,
        seed: u64,
        path: &str,
    ) -> Result<(Tensor, Tensor)> {
        let (out, inp) = (weight.rows(), weight.cols());
        if r > out.min(inp) {
            return Err(Error::Method(format!(
                "pissa and olora need a rank of at most {} at {path} [{out}, {inp}], not {r}",
                out.min(inp)
            )));
        }
        match self {
            Start::Olora => {
                let q = orthonormal(&Tensor::from_fn(out, r, |i, j| weight.row(i)[j]));
                Ok((product(&q.transposed(), weight), q))
            }
            Start::Pissa(Some(rounds)) => {
                let sketch = normal(inp, r, 1.0, seed, path);
                let mut q = orthonormal(&product(weight, &sketch));
                for _ in 0..rounds {
                    let back = orthonormal(&product(&weight.transposed(), &q));
                    q = orthonormal(&product(weight, &back));
                }
                let (u, s, vt) = truncated_svd(&product(&q.transposed(), weight), r);
                Ok(balanced(&product(&q, &u), &s, &vt, scale))
            }
            _ => {
                let (u, s, vt) = truncated_svd(weight, r);
                Ok(balanced(&u, &s, &vt, scale))
            }
        }
    }
}

/// `B = U sqrt(S / s)`, `A = sqrt(S / s) Vᵀ`.
fn balanced(u: &Tensor, s: &[f32], vt: &Tensor, scale: f32) -> (Tensor, Tensor) {
    let roots: Vec<f32> = s.iter().map(|s| (s.max(0.0) / scale).sqrt()).collect();
    let a = Tensor::from_fn(vt.rows(), vt.cols(), |r, c| roots[r] * vt.row(r)[c]);
    let b = Tensor::from_fn(u.rows(), u.cols(), |r, c| u.row(r)[c] * roots[c]);
    (a, b)
}

/// `a b`.
fn product(a: &Tensor, b: &Tensor) -> Tensor {
    let mut y = Tensor::zeros(a.rows(), b.cols());
    add_product(&mut y, b, a, 1.0);
    y
}

/// An orthonormal basis of the columns of `x` `[m, r]`: Gram-Schmidt, twice, in f64. What is linearly dependent on the
/// columns before it becomes zero.
fn orthonormal(x: &Tensor) -> Tensor {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(x.cols());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for col in 0..x.cols() {
        let mut v: Vec<f64> = (0..x.rows()).map(|r| f64::from(x.row(r)[col])).collect();
        let before = dot(&v, &v).sqrt();
        for _ in 0..2 {
            for q in &basis {
                let along = dot(&v, q);
                v.iter_mut().zip(q).for_each(|(v, q)| *v -= along * q);
            }
        }
        let norm = dot(&v, &v).sqrt();
        let factor = if norm > 1e-12 * before { norm.recip() } else { 0.0 };
        v.iter_mut().for_each(|v| *v *= factor);
        basis.push(v);
    }
    Tensor::from_fn(x.rows(), x.cols(), |r, c| basis[c][r] as f32)
}

fn uniform(rows: usize, cols: usize, bound: f32, seed: u64, name: &str) -> Tensor {
    let stream = Stream::named(seed, name);
    Tensor::from_fn(rows, cols, |i, j| (2.0 * stream.uniform((i * cols + j) as u64) - 1.0) * bound)
}

fn normal(rows: usize, cols: usize, deviation: f32, seed: u64, name: &str) -> Tensor {
    let stream = Stream::named(seed, name);
    Tensor::from_fn(rows, cols, |i, j| stream.normal((i * cols + j) as u64) * deviation)
}
