//! A sparse change to a weight (SHiRA, Bhardwaj et al., 2024): `y += x Sᵀ`, `S` `[N, K]` with few entries, trained alone.
//!
//! Backward: `dx = g S`, and for the entry at row `n`, column `k`: `dv = sum over rows t of g[t, n] x[t, k]`.
//! Rows are taken in tiles of 32, transposed, so that an entry is one step of 32 lanes whatever its place; a row's sums
//! have the entries' order, however rows are batched.

use std::sync::Arc;

use rayon::prelude::*;
use thiserror::Error;

use crate::kernel::simd::{LANES, fold};
use crate::memory::{self, Buffer};
use crate::params::Weight;
use crate::tape::{Tape, Var, WeightVar};
use crate::tensor::Tensor;

/// One channel of a tile of rows.
type Lanes = [f32; LANES];

/// Partial sums of the values' gradients: as many, at most, as threads have use for.
const GROUPS: usize = 8;

/// Where a sparse change has its entries.
#[derive(Clone, Debug)]
pub struct SparsePattern {
    rows: usize,
    cols: usize,
    entries: Arc<[(u32, u32)]>,
}

/// An entry outside the weight.
#[derive(Debug, Error, PartialEq)]
#[error(
    "entry {index} of a sparse change lies at row {row}, column {col}, outside its {rows} x {cols} weight; the adapter is damaged or for another model"
)]
pub struct PatternError {
    pub index: usize,
    pub row: u32,
    pub col: u32,
    pub rows: usize,
    pub cols: usize,
}

impl SparsePattern {
    /// `entries` are (row, column) of a weight `[rows, cols]`, in the order of their values. What is listed twice counts twice.
    pub fn new(rows: usize, cols: usize, entries: Vec<(u32, u32)>) -> Result<SparsePattern, PatternError> {
        let outside = |&(row, col): &(u32, u32)| row as usize >= rows || col as usize >= cols;
        match entries.iter().position(outside) {
            Some(index) => {
                let (row, col) = entries[index];
                Err(PatternError { index, row, col, rows, cols })
            }
            None => Ok(SparsePattern { rows, cols, entries: entries.into() }),
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn entries(&self) -> &[(u32, u32)] {
        &self.entries
    }

    /// Adds the entries to a weight `[rows, cols]`: the merge.
    pub fn add_to(&self, values: &Tensor, weight: &mut Tensor) {
        assert_eq!((weight.rows(), weight.cols()), (self.rows, self.cols), "sparse change: weight");
        assert_eq!(values.len(), self.len(), "sparse change: values");
        let cols = self.cols;
        let data = weight.data_mut();
        for (&(row, col), v) in self.entries.iter().zip(values.data()) {
            data[row as usize * cols + col as usize] += v;
        }
    }
}

/// Columns of up to 32 rows of `x`, the missing rows zero.
fn transpose_in(x: &[f32], cols: usize, lanes: &mut [Lanes]) {
    let rows = x.len() / cols.max(1);
    for (c, lane) in lanes.iter_mut().enumerate() {
        for (t, to) in lane.iter_mut().enumerate() {
            *to = if t < rows { x[t * cols + c] } else { 0.0 };
        }
    }
}

/// Adds columns to up to 32 rows of `y`.
fn add_transposed(lanes: &[Lanes], cols: usize, y: &mut [f32]) {
    for (t, row) in y.chunks_exact_mut(cols.max(1)).enumerate() {
        for (y, lane) in row.iter_mut().zip(lanes) {
            *y += lane[t];
        }
    }
}

crate::multiversion! {
    /// `to[row] += v from[col]` for every entry; `back` swaps row and column.
    fn spread(entries: &[(u32, u32)], values: &[f32], back: bool, from: &[Lanes], to: &mut [Lanes]) {
        for (&(row, col), v) in entries.iter().zip(values) {
            let (at, source) = if back { (col, row) } else { (row, col) };
            let source = &from[source as usize];
            let to = &mut to[at as usize];
            for i in 0..LANES {
                to[i] += v * source[i];
            }
        }
    }

    /// `sums += g[row] x[col]`, summed over the lanes, for every entry.
    fn gather(entries: &[(u32, u32)], g: &[Lanes], x: &[Lanes], sums: &mut [f32]) {
        for (&(row, col), sum) in entries.iter().zip(sums) {
            let (g, x) = (&g[row as usize], &x[col as usize]);
            let mut lanes = [0.0; LANES];
            for i in 0..LANES {
                lanes[i] = g[i] * x[i];
            }
            *sum += fold(lanes, |a, b| a + b);
        }
    }
}

/// `out += x Sᵀ`, or `out += x S` if `back`.
fn product(pattern: &SparsePattern, values: &Tensor, x: &Tensor, back: bool, mut out: Tensor) -> Tensor {
    let (from, to) = (x.cols(), out.cols());
    let tiles =
        out.data_mut().par_chunks_mut(LANES * to.max(1)).zip(x.data().par_chunks(LANES * from.max(1)));
    tiles.for_each(|(out, x)| {
        let mut source = vec![[0.0; LANES]; from];
        let mut sums = vec![[0.0; LANES]; to];
        transpose_in(x, from, &mut source);
        spread(&pattern.entries, values.data(), back, &source, &mut sums);
        add_transposed(&sums, to, out);
    });
    out
}

/// The gradient of the values `[1, nnz]`: tiles in at most [`GROUPS`] groups, their sums in order.
fn value_gradient(pattern: &SparsePattern, g: &Tensor, x: &Tensor) -> Tensor {
    let (n, k, nnz) = (g.cols(), x.cols(), pattern.len());
    let mut dv = Tensor::zeros(1, nnz);
    if nnz == 0 {
        return dv;
    }
    let rows = g.rows().div_ceil(GROUPS).next_multiple_of(LANES).max(LANES);
    // A plan's dry run on a few rows asks for what many rows will take.
    let groups = if memory::is_tracing() { GROUPS } else { g.rows().div_ceil(rows) };
    let mut partial = Buffer::zeros(groups * nnz);
    let groups = g.data().par_chunks(rows * n).zip(x.data().par_chunks(rows * k));
    partial.as_mut_slice().par_chunks_mut(nnz).zip(groups).for_each(|(sums, (g, x))| {
        let (mut g_lanes, mut x_lanes) = (vec![[0.0; LANES]; n], vec![[0.0; LANES]; k]);
        for (g, x) in g.chunks(LANES * n).zip(x.chunks(LANES * k)) {
            transpose_in(g, n, &mut g_lanes);
            transpose_in(x, k, &mut x_lanes);
            gather(&pattern.entries, &g_lanes, &x_lanes, sums);
        }
    });
    for sums in partial.as_slice().chunks_exact(nnz) {
        super::elementwise::add_assign(dv.data_mut(), sums);
    }
    dv
}

/// `y + x Sᵀ`: `y` `[T, N]` is the layer's output for `x` `[T, K]`, `values` `[1, nnz]` the entries of `S`.
pub fn sparse_linear_delta(tape: &Tape, y: &Var, x: &Var, pattern: &SparsePattern, values: &Var) -> Var {
    assert_eq!(
        (y.rows(), y.cols(), x.cols()),
        (x.rows(), pattern.rows, pattern.cols),
        "sparse change: shapes"
    );
    assert_eq!((values.rows(), values.cols()), (1, pattern.len()), "sparse change: values");
    let out = product(pattern, values.value(), x.value(), false, y.value().clone());
    let (ny, nx, nv) = (y.node(), x.node(), values.node());
    let saved = nv.map(|_| x.saved());
    let (pattern, values, cols) = (pattern.clone(), values.value().clone(), x.cols());
    tape.record(out, ny.is_some() || nx.is_some() || nv.is_some(), move |g, sink| {
        if let Some(x) = saved {
            sink.add(nv, value_gradient(&pattern, &g, &x.get()));
        }
        if nx.is_some() {
            let dx = sink.take(nx).unwrap_or_else(|| Tensor::zeros(g.rows(), cols));
            sink.add(nx, product(&pattern, &values, &g, true, dx));
        }
        sink.add(ny, g);
    })
}

/// The weight `w` `[N, K]` with `values` `[1, nnz]` added at the places of `pattern`, for products that take a weight whole (convolutions).
///
/// # Panics
/// If the sizes differ.
pub fn weight_with_entries(tape: &Tape, w: &WeightVar, pattern: &SparsePattern, values: &Var) -> WeightVar {
    assert_eq!(values.value().len(), pattern.len(), "weight_with_entries: values");
    // A copy: the weight itself stays as it is.
    let mut sum = Tensor::scratch(w.weight.rows(), w.weight.cols());
    sum.data_mut().copy_from_slice(w.weight.to_tensor().data());
    pattern.add_to(values.value(), &mut sum);
    let (node, own) = (values.node(), w.node);
    let pattern = pattern.clone();
    let sum = tape.record(sum, node.is_some() || own.is_some(), move |g, sink| {
        if node.is_some() {
            let entries = pattern.entries();
            let at = |i: usize| g.row(entries[i].0 as usize)[entries[i].1 as usize];
            sink.add(node, Tensor::from_fn(1, entries.len(), |_, i| at(i)));
        }
        sink.add(own, g);
    });
    WeightVar { weight: Weight::F32(sum.value().clone()), node: sum.node() }
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::super::linear::mat;
    use super::*;
    use crate::kernel::{PackedLhs, Rhs, gemm};
    use crate::params::Params;
    use crate::rng::Stream;

    fn pattern(rows: usize, cols: usize, nnz: usize) -> SparsePattern {
        let s = Stream::new(5, 5);
        let at = |i: usize| (s.below(2 * i as u64, rows) as u32, s.below(2 * i as u64 + 1, cols) as u32);
        SparsePattern::new(rows, cols, (0..nnz).map(at).collect()).expect("inside")
    }

    #[test]
    fn gradient() {
        let pattern = pattern(7, 5, 9);
        for rows in [1, 3, 35] {
            check(&[random(rows, 7, 1), random(rows, 5, 2), random(1, 9, 3)], |tape, x| {
                sparse_linear_delta(tape, &x[0], &x[1], &pattern, &x[2])
            });
        }
    }

    #[test]
    fn gradient_of_a_weight_with_entries() {
        let pattern = pattern(7, 5, 9);
        check(&[random(7, 5, 1), random(1, 9, 3), random(4, 5, 2)], |tape, x| {
            let weight = WeightVar { weight: Weight::F32(x[0].value().clone()), node: x[0].node() };
            let weight = weight_with_entries(tape, &weight, &pattern, &x[1]);
            super::super::linear::linear(tape, &x[2], &weight, None, &[])
        });
    }

    #[test]
    fn equals_the_dense_product() {
        let (pattern, values, x) = (pattern(40, 30, 60), random(1, 60, 1), random(70, 30, 2));
        let mut dense = Tensor::zeros(40, 30);
        pattern.add_to(&values, &mut dense);
        let mut want = random(70, 40, 3);
        let got = product(&pattern, &values, &x, false, want.clone());
        gemm(want.data_mut(), 40, 70, 40, 1.0, &[(&PackedLhs::new(mat(&x)), Rhs::WeightT(&dense))]);
        for (got, want) in got.data().iter().zip(want.data()) {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
    }

    #[test]
    fn zero_values_change_no_bit() {
        let params = Params::new();
        let vars = [random(9, 7, 1), random(9, 5, 2), Tensor::zeros(1, 4)].map(Var::constant);
        let y =
            sparse_linear_delta(&Tape::inference(&params), &vars[0], &vars[1], &pattern(7, 5, 4), &vars[2]);
        assert_eq!(y.value().data(), vars[0].value().data());
    }

    #[test]
    fn an_entry_outside_is_refused() {
        let error = SparsePattern::new(4, 3, vec![(3, 2), (0, 3)]).expect_err("column 3 of 3");
        assert_eq!(error, PatternError { index: 1, row: 0, col: 3, rows: 4, cols: 3 });
        assert!(SparsePattern::new(4, 3, vec![]).is_ok_and(|p| p.is_empty()));
    }

    #[test]
    fn threads_change_nothing() {
        let pattern = pattern(65, 33, 100);
        assert_same_on_any_threads(
            &[random(700, 65, 1), random(700, 33, 2), random(1, 100, 3)],
            |tape, x| sparse_linear_delta(tape, &x[0], &x[1], &pattern, &x[2]),
        );
    }
}
