//! DoRA (Liu et al., 2024), as PEFT computes it: `y = (m / |W + s B A|) (x Wᵀ + s (x Aᵀ) Bᵀ) + b`, the norm by rows and
//! without a gradient (section 4.3 of the paper).
//!
//! With dropout on the branch's input `d`: `y = x Wᵀ + b + (f - 1) d Wᵀ + f s (d Aᵀ) Bᵀ`, `f = m / |W + s B A|`.
//! W + BA is never built: `|w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A Aᵀ) bᵀ` for each row `w` and its row `b` of B.
//! When `m` is the norm, the factors are one exactly, and the output is the base layer's bit for bit.

use rayon::prelude::*;

use super::elementwise::sum_squares;
use super::linear::mat;
use super::{LoraBranch, add, add_bias, embedding_lora, linear, scale_columns};
use crate::kernel::{self, PackedLhs, Rhs};
use crate::params::Weight;
use crate::storage::{Storage, pin};
use crate::tape::{Tape, Var, WeightVar};
use crate::tensor::Tensor;

/// Rows decoded by one task of [`column_norms_squared`].
const CHUNK: usize = 256;

/// `|w|^2` of each row of a weight `[N, K]`, as `[1, N]`. A frozen weight's are worth keeping.
pub fn row_norms_squared(weight: &dyn Storage) -> Tensor {
    let (cols, weight) = (weight.cols(), pin(weight));
    let of_row = |row: usize| {
        let mut decoded = vec![0.0; cols];
        weight.decode(row, 0, &mut decoded);
        sum_squares(&decoded) as f32
    };
    let norms: Vec<f32> = (0..weight.rows()).into_par_iter().map(of_row).collect();
    Tensor::from_vec(1, norms.len(), norms)
}

/// `|w|^2` of each column of a table `[V, C]`, as `[1, C]`.
pub fn column_norms_squared(weight: &dyn Storage) -> Tensor {
    let (rows, cols, weight) = (weight.rows(), weight.cols(), pin(weight));
    let of_chunk = |chunk: usize| {
        let (mut decoded, mut sums) = (vec![0.0; cols], vec![0.0f64; cols]);
        for row in chunk * CHUNK..rows.min((chunk + 1) * CHUNK) {
            weight.decode(row, 0, &mut decoded);
            sums.iter_mut().zip(&decoded).for_each(|(s, x)| *s += f64::from(*x) * f64::from(*x));
        }
        sums
    };
    let partial: Vec<Vec<f64>> = (0..rows.div_ceil(CHUNK)).into_par_iter().map(of_chunk).collect();
    let sum = |col: usize| partial.iter().map(|sums| sums[col]).sum::<f64>() as f32;
    Tensor::from_fn(1, cols, |_, col| sum(col))
}

/// `|W + s B A|` of each row of a layer's weight `[N, K]`, as `[1, N]`: the magnitudes that leave the layer as it is.
///
/// `base` is the weight's [`row_norms_squared`]; `a` is `[R, K]`, `b` `[N, R]`.
pub fn dora_norms(weight: &dyn Storage, base: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Tensor {
    norms(Rhs::WeightT(weight), base, a, b, scale)
}

/// `|W + s (B A)ᵀ|` of each column of an embedding `[V, C]`, as `[1, C]`.
///
/// `base` is the table's [`column_norms_squared`]; `a` is `[R, V]`, `b` `[C, R]`.
pub fn dora_embedding_norms(
    table: &dyn Storage,
    base: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Tensor {
    norms(Rhs::Weight(table), base, a, b, scale)
}

/// `weight` is whatever `a` `[R, K]` can be multiplied with to give `[R, N]`.
fn norms(weight: Rhs, base: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Tensor {
    let (n, rank) = (b.rows(), b.cols());
    assert_eq!((base.len(), a.rows()), (n, rank), "dora: norms of {n} features, rank {rank}");
    let packed = PackedLhs::new(mat(a));
    let mut aw = Tensor::scratch(rank, n);
    kernel::gemm(aw.data_mut(), n, rank, n, 0.0, &[(&packed, weight)]);
    let mut aa = Tensor::scratch(rank, rank);
    kernel::gemm(aa.data_mut(), rank, rank, rank, 0.0, &[(&packed, Rhs::WeightT(a))]);
    let s = f64::from(scale);
    Tensor::from_fn(1, n, |_, i| {
        let row = b.row(i);
        let mut sum = f64::from(base.data()[i]);
        for (r, &x) in row.iter().enumerate() {
            let ax: f64 = aa.row(r).iter().zip(row).map(|(a, y)| f64::from(*a) * f64::from(*y)).sum();
            sum += f64::from(x) * (2.0 * s * f64::from(aw.row(r)[i]) + s * s * ax);
        }
        (sum.max(0.0) as f32).sqrt()
    })
}

/// `gain m / norm - shift`, for a constant norm: a division, so that equal numbers give one. A weight of zeros has the
/// factor one.
pub fn dora_factors(tape: &Tape, magnitude: &Var, norms: &Tensor, gain: f32, shift: f32) -> Var {
    assert_eq!((magnitude.rows(), magnitude.cols()), (1, norms.len()), "dora: magnitudes");
    let norms = norms.clone();
    let divide = |m: f32, n: f32| if n > 0.0 { m / n } else { 1.0 };
    let m = magnitude.value().data();
    let y = Tensor::from_fn(1, norms.len(), |_, i| gain * divide(m[i], norms.data()[i]) - shift);
    let node = magnitude.node();
    tape.record(y, node.is_some(), move |g, sink| {
        let slope = |n: f32| if n > 0.0 { gain / n } else { 0.0 };
        let dm = Tensor::from_fn(1, norms.len(), |_, i| g.data()[i] * slope(norms.data()[i]));
        sink.add(node, dm);
    })
}

/// A DoRA branch of a layer.
pub struct DoraBranch<'a> {
    pub lora: LoraBranch<'a>,
    /// `[1, N]`
    pub magnitude: &'a Var,
    /// The weight's [`row_norms_squared`], or [`column_norms_squared`] for an embedding.
    pub base_norms: &'a Tensor,
}

/// `x` `[T, K]` through a weight `[N, K]` with a DoRA branch, plus bias `[1, N]`: `[T, N]`.
pub fn dora_linear(tape: &Tape, x: &Var, w: &WeightVar, bias: Option<&Var>, dora: &DoraBranch) -> Var {
    let LoraBranch { a, b, scale, .. } = dora.lora;
    let norms = dora_norms(w.weight.storage(), dora.base_norms, a.value(), b.value(), scale);
    match dora.lora.input {
        Some(dropped) => with_dropped(tape, (x, dropped), w, bias, dora, &norms),
        None => with_norms(tape, x, w, bias, dora, &norms),
    }
}

/// `f (x Wᵀ + s (x Aᵀ) Bᵀ) + b`
fn with_norms(
    tape: &Tape,
    x: &Var,
    w: &WeightVar,
    bias: Option<&Var>,
    dora: &DoraBranch,
    norms: &Tensor,
) -> Var {
    let LoraBranch { a, b, scale, .. } = dora.lora;
    let f = dora_factors(tape, dora.magnitude, norms, 1.0, 0.0);
    let y = linear(tape, x, w, None, &[LoraBranch { a, b, scale, input: None }]);
    let y = scale_columns(tape, &y, &f);
    match bias {
        Some(bias) => add_bias(tape, &y, bias),
        None => y,
    }
}

/// `x Wᵀ + b + (f - 1) d Wᵀ + f s (d Aᵀ) Bᵀ`
fn with_dropped(
    tape: &Tape,
    (x, dropped): (&Var, &Var),
    w: &WeightVar,
    bias: Option<&Var>,
    dora: &DoraBranch,
    norms: &Tensor,
) -> Var {
    let LoraBranch { a, b, scale, .. } = dora.lora;
    let less_one = dora_factors(tape, dora.magnitude, norms, 1.0, 1.0);
    let scaled = dora_factors(tape, dora.magnitude, norms, scale, 0.0);
    let base = linear(tape, x, w, bias, &[]);
    let again = scale_columns(tape, &linear(tape, dropped, w, None, &[]), &less_one);
    let down = linear(tape, dropped, &as_weight(a), None, &[]);
    let up = linear(tape, &down, &as_weight(b), None, &[]);
    add(tape, &add(tape, &base, &again), &scale_columns(tape, &up, &scaled))
}

fn as_weight(v: &Var) -> WeightVar {
    WeightVar { weight: Weight::F32(v.value().clone()), node: v.node() }
}

/// `x` `[T, C]`, the rows that the frozen `table` `[V, C]` gave for `ids`, with a DoRA branch (its input is the ids).
pub fn dora_embedding(tape: &Tape, x: &Var, table: &dyn Storage, ids: &[u32], dora: &DoraBranch) -> Var {
    let LoraBranch { a, b, scale, .. } = dora.lora;
    let norms = dora_embedding_norms(table, dora.base_norms, a.value(), b.value(), scale);
    let f = dora_factors(tape, dora.magnitude, &norms, 1.0, 0.0);
    scale_columns(tape, &embedding_lora(tape, x, ids, a, b, scale), &f)
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::*;
    use crate::params::{Params, decode_all};
    use crate::storage::{Format, encode, from_bytes};

    const SCALE: f32 = 0.5;

    /// x, dropped x, magnitude, A, B, bias, for rank 2, 5 inputs and 4 outputs.
    fn inputs(rows: usize) -> Vec<Tensor> {
        let shapes = [(rows, 5), (rows, 5), (1, 4), (2, 5), (4, 2), (1, 4)];
        shapes.iter().enumerate().map(|(i, &(r, c))| random(r, c, i as u64)).collect()
    }

    fn frozen(rows: usize, cols: usize) -> WeightVar {
        WeightVar { weight: Weight::F32(random(rows, cols, 50)), node: None }
    }

    fn branch<'a>(x: &'a [Var], dropout: bool, base_norms: &'a Tensor) -> DoraBranch<'a> {
        let lora = LoraBranch { a: &x[3], b: &x[4], scale: SCALE, input: dropout.then_some(&x[1]) };
        DoraBranch { lora, magnitude: &x[2], base_norms }
    }

    /// The norm has no gradient: finite differences hold for a fixed one.
    #[test]
    fn gradients() {
        let (w, norms) = (frozen(4, 5), Tensor::from_vec(1, 4, vec![1.5, 0.7, 2.0, 0.0]));
        for rows in [3, 7] {
            check(&inputs(rows), |tape, x| {
                with_norms(tape, &x[0], &w, Some(&x[5]), &branch(x, false, &norms), &norms)
            });
            check(&inputs(rows), |tape, x| {
                with_dropped(tape, (&x[0], &x[1]), &w, Some(&x[5]), &branch(x, true, &norms), &norms)
            });
        }
    }

    /// `m (W + s B A) / |W + s B A|` by the definition.
    fn merged(w: &Tensor, a: &Tensor, b: &Tensor, magnitude: &Tensor) -> Tensor {
        let delta = |r: usize, c: usize| (0..a.rows()).map(|k| b.row(r)[k] * a.row(k)[c]).sum::<f32>();
        let sum = Tensor::from_fn(w.rows(), w.cols(), |r, c| w.row(r)[c] + SCALE * delta(r, c));
        let norm = |r: usize| sum_squares(sum.row(r)).sqrt() as f32;
        Tensor::from_fn(w.rows(), w.cols(), |r, c| magnitude.data()[r] / norm(r) * sum.row(r)[c])
    }

    #[test]
    fn equals_the_merged_weight() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        let (w, x) = (frozen(4, 5), inputs(6));
        let whole = Weight::F32(merged(&w.weight.to_tensor(), &x[3], &x[4], &x[2]));
        let base_norms = row_norms_squared(w.weight.storage());
        // Without a mask, dropout's formula is the plain one.
        let mut same = x.clone();
        same[1] = x[0].clone();
        let x: Vec<Var> = same.into_iter().map(Var::constant).collect();
        let want = linear(&tape, &x[0], &WeightVar { weight: whole, node: None }, Some(&x[5]), &[]);
        for dropout in [false, true] {
            let y = dora_linear(&tape, &x[0], &w, Some(&x[5]), &branch(&x, dropout, &base_norms));
            for (got, want) in y.value().data().iter().zip(want.value().data()) {
                assert!((got - want).abs() < 1e-5, "{got} {want}");
            }
        }
    }

    /// A layer of PEFT 0.21 with `use_dora`, r 1, lora_alpha 2: its output and gradients.
    #[test]
    fn equals_peft() {
        let params = Params::new();
        let tape = Tape::new(&params);
        let weight = Tensor::from_vec(2, 3, vec![1.0, -2.0, 0.5, 0.25, 1.5, -1.0]);
        let base_norms = row_norms_squared(&weight);
        let w = WeightVar { weight: Weight::F32(weight), node: None };
        let input = |rows, cols, data: &[f32]| tape.input(Tensor::from_slice(rows, cols, data));
        let x = input(2, 3, &[1.0, 2.0, -1.0, 0.5, 0.0, 3.0]);
        let (a, b) = (input(1, 3, &[0.5, -1.0, 0.25]), input(2, 1, &[0.3, -0.7]));
        let (m, bias) = (input(1, 2, &[2.0, 1.5]), input(1, 2, &[0.1, -0.2]));
        let lora = LoraBranch { a: &a, b: &b, scale: 2.0, input: None };
        let dora = DoraBranch { lora, magnitude: &m, base_norms: &base_norms };
        let y = dora_linear(&tape, &x, &w, Some(&bias), &dora);
        let values = y.value().clone();
        let seed = Tensor::from_vec(2, 2, vec![1.0, -1.0, 0.5, 2.0]);
        let grads = tape.backward_to(&y, seed, &mut crate::Gradients::new(), &[&x, &a, &b, &m]);
        let peft: [&[f32]; 5] = [
            &[-2.955_051, 2.911_142, 1.845_743_2, -2.185_094],
            &[1.081_828_8, -3.092_356_7, 1.063_307_6, 0.018_521_19, 1.820_355_7, -1.035_525_8],
            &[0.503_579_74, 2.105_906_2, -4.349_193_6],
            &[-1.678_599_4, 3.482_621_7],
            &[-1.091_089_6, -4.720_886_7],
        ];
        for (got, want) in std::iter::once(&values).chain(&grads).zip(peft) {
            for (got, want) in got.data().iter().zip(want) {
                assert!((got - want).abs() < 1e-5, "{got} {want}");
            }
        }
    }

    #[test]
    fn nothing_changes_at_the_start() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        for rows in [2, 9] {
            let (w, mut x) = (frozen(4, 5), inputs(rows));
            x[4] = Tensor::zeros(4, 2);
            let base_norms = row_norms_squared(w.weight.storage());
            x[2] = dora_norms(w.weight.storage(), &base_norms, &x[3], &x[4], SCALE);
            let x: Vec<Var> = x.into_iter().map(Var::constant).collect();
            let base = linear(&tape, &x[0], &w, Some(&x[5]), &[]);
            for dropout in [false, true] {
                let y = dora_linear(&tape, &x[0], &w, Some(&x[5]), &branch(&x, dropout, &base_norms));
                assert_eq!(y.value().data(), base.value().data());
            }
        }
    }

    #[test]
    fn a_stored_weight_has_the_norms_of_its_values() {
        let bytes = encode(Format::BF16, 3, 64, random(3, 64, 1).data()).expect("whole blocks");
        let stored = from_bytes(Format::BF16, 3, 64, bytes).expect("just encoded");
        let rows = row_norms_squared(stored.as_ref());
        let columns = column_norms_squared(&decode_all(stored.as_ref()).transposed());
        assert_eq!(rows.data(), columns.data());
    }

    #[test]
    fn embedding_equals_the_merged_table() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        let (table, a, b) = (random(7, 4, 1), random(2, 7, 2), random(4, 2, 3));
        let (magnitude, ids) = (random(1, 4, 4), [3, 6, 3]);
        let whole = merged(&table.transposed(), &a, &b, &magnitude).transposed();
        let rows = |t: &Tensor| Tensor::from_fn(ids.len(), 4, |i, c| t.row(ids[i] as usize)[c]);
        let base_norms = column_norms_squared(&table);
        let [x, a, b, magnitude] = [rows(&table), a, b, magnitude].map(Var::constant);
        let lora = LoraBranch { a: &a, b: &b, scale: SCALE, input: None };
        let dora = DoraBranch { lora, magnitude: &magnitude, base_norms: &base_norms };
        let y = dora_embedding(&tape, &x, &table, &ids, &dora);
        for (got, want) in y.value().data().iter().zip(rows(&whole).data()) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (w, base_norms) = (frozen(4, 5), Tensor::from_vec(1, 4, vec![9.0, 8.0, 7.0, 6.0]));
        assert_same_on_any_threads(&inputs(600), |tape, x| {
            dora_linear(tape, &x[0], &w, Some(&x[5]), &branch(x, false, &base_norms))
        });
    }
}
