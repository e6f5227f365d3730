//! Scaled dot-product attention over segments (Vaswani et al., 2017), grouped keys and values, in tiles.
//!
//! For each example and head: `S = scale Q Kᵀ` (masked), `P = softmax(S)`, `O = P V`. Scores exist only for one tile
//! of queries at a time (Dao et al., "FlashAttention", 2022); the backward pass makes them again from the row-wise
//! logsumexp `L`: `P = exp(S - L)`, `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P (dP - rowsum(dO O))`, `dQ = scale dS K`,
//! `dK = scale dSᵀ Q`.
//!
//! Queries and keys have segments of their own (cross-attention, caches): query `i` of a segment with `n` queries and
//! `s` keys stands at key position `s - n + i`, where the causal mask and the window count from.

use std::ops::Range;

use rayon::prelude::*;

use super::elementwise::{axpy, dot};
use crate::kernel::{MatRef, gemm_serial, simd};
use crate::segments::Segments;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Queries per tile.
const TILE: usize = 64;
/// Up to this many queries a segment goes key by key, without packing (generation).
const FEW_QUERIES: usize = 4;

/// The head layout and the mask. Queries are `[T, heads * head_dim]`, keys and values `[S, kv_heads * head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub causal: bool,
    /// Sliding window: a query sees the last `window` keys up to its own position.
    pub window: Option<usize>,
}

impl AttentionShape {
    fn q_cols(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The first column of the keys and values that head `head` reads.
    fn kv_column(&self, head: usize) -> usize {
        head * self.kv_heads / self.heads * self.head_dim
    }

    /// Keys that the query at key position `position` sees.
    fn visible(&self, position: usize, keys: usize) -> Range<usize> {
        let end = if self.causal { (position + 1).min(keys) } else { keys };
        let start = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        start.min(end)..end
    }
}

/// One head of one example: its rows in the query and key matrices.
struct Task {
    head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

impl Task {
    /// Key position of the segment's query `i`.
    fn position(&self, i: usize) -> usize {
        (self.keys.len() + i).saturating_sub(self.queries.len())
    }

    /// Keys that any query of the tile sees.
    fn tile_keys(&self, shape: &AttentionShape, tile: &Range<usize>) -> Range<usize> {
        let first = shape.visible(self.position(tile.start), self.keys.len());
        let last = shape.visible(self.position(tile.end - 1), self.keys.len());
        first.start..last.end
    }
}

fn tasks(shape: &AttentionShape, q: &Segments, k: &Segments) -> Vec<Task> {
    assert_eq!(q.len(), k.len(), "attention: segments");
    let one = |(queries, keys): (Range<usize>, Range<usize>)| {
        (0..shape.heads).map(move |head| Task { head, queries: queries.clone(), keys: keys.clone() })
    };
    q.ranges().zip(k.ranges()).flat_map(one).collect()
}

/// A matrix whose cells are written by several threads, each cell by one.
struct Cells<'a> {
    data: *mut f32,
    len: usize,
    cols: usize,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: `row` hands out ranges that the callers keep disjoint between threads (one head's columns of one
// segment's rows belong to one task); the test `threads_write_apart` runs all tasks on several threads.
unsafe impl Sync for Cells<'_> {}

impl<'a> Cells<'a> {
    fn new(tensor: &'a mut Tensor) -> Cells<'a> {
        let cols = tensor.cols();
        let data = tensor.data_mut();
        Cells { data: data.as_mut_ptr(), len: data.len(), cols, life: std::marker::PhantomData }
    }

    /// Columns `column..column + width` of a row.
    ///
    /// # Safety
    /// No other slice handed out for these cells may be alive.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, row: usize, column: usize, width: usize) -> &mut [f32] {
        let at = row * self.cols + column;
        assert!(column + width <= self.cols && at + width <= self.len, "attention: cell range");
        // SAFETY: in bounds by the assertion; not aliased by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), width) }
    }
}

/// A head's columns of some rows, as a view.
fn view<'a>(data: &'a [f32], cols: usize, rows: Range<usize>, column: usize, width: usize) -> MatRef<'a> {
    if rows.is_empty() {
        return MatRef::with_strides(&data[..0], 0, width, cols, 1);
    }
    let end = (rows.end - 1) * cols + column + width;
    MatRef::with_strides(&data[rows.start * cols + column..end], rows.len(), width, cols, 1)
}

/// `scale Q Kᵀ` of a tile; keys outside a query's view become -inf.
fn scores(
    shape: &AttentionShape,
    task: &Task,
    tile: &Range<usize>,
    keys: &Range<usize>,
    q: &[f32],
    k: &[f32],
    s: &mut [f32],
) {
    let (d, n) = (shape.head_dim, keys.len());
    let absolute = task.keys.start + keys.start..task.keys.start + keys.end;
    let queries = view(q, shape.q_cols(), tile_rows(task, tile), task.head * d, d);
    let keys_view = view(k, shape.kv_cols(), absolute, shape.kv_column(task.head), d);
    gemm_serial(tile.len(), n, d, shape.scale, queries, keys_view.t(), 0.0, s, n);
    for (i, row) in tile.clone().zip(s.chunks_exact_mut(n)) {
        let seen = shape.visible(task.position(i), task.keys.len());
        row[..seen.start.saturating_sub(keys.start).min(n)].fill(f32::NEG_INFINITY);
        row[seen.end.saturating_sub(keys.start).min(n)..].fill(f32::NEG_INFINITY);
    }
}

fn tile_rows(task: &Task, tile: &Range<usize>) -> Range<usize> {
    task.queries.start + tile.start..task.queries.start + tile.end
}

crate::multiversion! {
    /// Softmax in place; returns the logsumexp. A row that sees no key becomes zeros.
    fn softmax(row: &mut [f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let blocks = row.chunks_exact(16);
        let mut largest = blocks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for block in blocks {
            for (l, x) in lanes.iter_mut().zip(block) {
                *l = if *x > *l { *x } else { *l };
            }
        }
        largest = lanes.iter().copied().fold(largest, f32::max);
        if largest == f32::NEG_INFINITY {
            row.fill(0.0);
            return f32::NEG_INFINITY;
        }
        let mut sums = [0.0f32; 16];
        let mut blocks = row.chunks_exact_mut(16);
        for block in &mut blocks {
            for (s, x) in sums.iter_mut().zip(block) {
                *x = simd::exp(*x - largest);
                *s += *x;
            }
        }
        let mut total = 0.0;
        for x in blocks.into_remainder() {
            *x = simd::exp(*x - largest);
            total += *x;
        }
        total += sums.iter().sum::<f32>();
        let scale = 1.0 / total;
        for x in row.iter_mut() {
            *x *= scale;
        }
        largest + total.ln()
    }
}

/// Attention without a tape, over plain slices: `(output [T, heads * head_dim], logsumexp [T, heads])`.
///
/// `k` and `v` may be longer than their segments (a cache with room to grow).
pub fn attention_values(
    shape: &AttentionShape,
    q: &Tensor,
    q_segments: &Segments,
    k: &[f32],
    v: &[f32],
    k_segments: &Segments,
) -> (Tensor, Tensor) {
    assert_eq!((q.rows(), q.cols()), (q_segments.rows(), shape.q_cols()), "attention: queries");
    assert!(k.len() >= k_segments.rows() * shape.kv_cols() && v.len() >= k_segments.rows() * shape.kv_cols());
    let mut out = Tensor::scratch(q.rows(), q.cols());
    let mut lse = Tensor::scratch(q.rows(), shape.heads);
    {
        let (out, lse) = (Cells::new(&mut out), Cells::new(&mut lse));
        let run = |task: Task| forward_task(shape, &task, q.data(), k, v, &out, &lse);
        tasks(shape, q_segments, k_segments).into_par_iter().for_each(run);
    }
    (out, lse)
}

fn forward_task(
    shape: &AttentionShape,
    task: &Task,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &Cells,
    lse: &Cells,
) {
    if task.queries.len() <= FEW_QUERIES {
        return forward_few(shape, task, q, k, v, out, lse);
    }
    let (d, column) = (shape.head_dim, shape.kv_column(task.head));
    let mut s = vec![0.0f32; TILE.min(task.queries.len()) * task.keys.len()];
    let mut o = vec![0.0f32; TILE * d];
    for first in (0..task.queries.len()).step_by(TILE) {
        let tile = first..task.queries.len().min(first + TILE);
        let keys = task.tile_keys(shape, &tile);
        let n = keys.len();
        let s = &mut s[..tile.len() * n];
        scores(shape, task, &tile, &keys, q, k, s);
        let mut lses = [f32::NEG_INFINITY; TILE];
        for (l, row) in lses.iter_mut().zip(s.chunks_exact_mut(n.max(1))) {
            *l = softmax(row);
        }
        let absolute = task.keys.start + keys.start..task.keys.start + keys.end;
        let values = view(v, shape.kv_cols(), absolute, column, d);
        gemm_serial(tile.len(), d, n, 1.0, MatRef::new(s, tile.len(), n), values, 0.0, &mut o, d);
        for (i, row) in tile_rows(task, &tile).enumerate() {
            // SAFETY: this task alone writes its head's columns of its segment's rows.
            unsafe {
                out.row(row, task.head * d, d).copy_from_slice(&o[i * d..(i + 1) * d]);
                lse.row(row, task.head, 1)[0] = lses[i];
            }
        }
    }
}

crate::multiversion! {
    /// A few queries (generation with a cache): one dot product a key.
    fn forward_few(
        shape: &AttentionShape,
        task: &Task,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &Cells,
        lse: &Cells,
    ) {
        let (d, cols, column) = (shape.head_dim, shape.kv_cols(), shape.kv_column(task.head));
        let mut s = vec![0.0f32; task.keys.len()];
        for i in 0..task.queries.len() {
            let row = task.queries.start + i;
            let seen = shape.visible(task.position(i), task.keys.len());
            let query = &q[row * shape.q_cols() + task.head * d..][..d];
            let s = &mut s[..seen.len()];
            let base = task.keys.start + seen.start;
            for (j, s) in s.iter_mut().enumerate() {
                *s = shape.scale * dot(query, &k[(base + j) * cols + column..][..d]);
            }
            let l = softmax(s);
            // SAFETY: this task alone writes its head's columns of its segment's rows.
            let (o, l_out) = unsafe { (out.row(row, task.head * d, d), lse.row(row, task.head, 1)) };
            o.fill(0.0);
            for (j, &p) in s.iter().enumerate() {
                axpy(p, &v[(base + j) * cols + column..][..d], o);
            }
            l_out[0] = l;
        }
    }
}

/// Gradients `(dq, dk, dv)`; keys and values of a group are summed head by head, in order.
fn backward(
    shape: &AttentionShape,
    (q, q_segments): (&Tensor, &Segments),
    (k, v, k_segments): (&Tensor, &Tensor, &Segments),
    (out, lse): (&Tensor, &Tensor),
    g: &Tensor,
) -> (Tensor, Tensor, Tensor) {
    let mut dq = Tensor::scratch(q.rows(), q.cols());
    let mut dk = Tensor::scratch(k.rows(), shape.q_cols());
    let mut dv = Tensor::scratch(k.rows(), shape.q_cols());
    {
        let (dq, dk, dv) = (Cells::new(&mut dq), Cells::new(&mut dk), Cells::new(&mut dv));
        let run = |task: Task| backward_task(shape, &task, (q, k, v), (out, lse, g), (&dq, &dk, &dv));
        tasks(shape, q_segments, k_segments).into_par_iter().for_each(run);
    }
    (dq, sum_groups(shape, dk), sum_groups(shape, dv))
}

/// `[S, heads * D]` to `[S, kv_heads * D]`: the heads of a group added in order.
fn sum_groups(shape: &AttentionShape, per_head: Tensor) -> Tensor {
    if shape.heads == shape.kv_heads {
        return per_head;
    }
    let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let mut sum = Tensor::scratch(per_head.rows(), shape.kv_cols());
    let cols = sum.cols();
    super::parallel::for_rows(sum.data_mut(), cols, |first, chunk| {
        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
            let heads = per_head.row(first + i).chunks_exact(group * d);
            for (out, heads) in out.chunks_exact_mut(d).zip(heads) {
                out.copy_from_slice(&heads[..d]);
                for head in heads.chunks_exact(d).skip(1) {
                    axpy(1.0, head, out);
                }
            }
        }
    });
    sum
}

fn backward_task(
    shape: &AttentionShape,
    task: &Task,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    (out, lse, g): (&Tensor, &Tensor, &Tensor),
    (dq, dk, dv): (&Cells, &Cells, &Cells),
) {
    let (d, kv, head) = (shape.head_dim, shape.kv_column(task.head), task.head * shape.head_dim);
    let longest = TILE.min(task.queries.len()) * task.keys.len();
    let (mut p, mut ds) = (vec![0.0f32; longest], vec![0.0f32; longest]);
    let (mut dk_sum, mut dv_sum) = (vec![0.0f32; task.keys.len() * d], vec![0.0f32; task.keys.len() * d]);
    let mut dq_tile = vec![0.0f32; TILE * d];
    for first in (0..task.queries.len()).step_by(TILE) {
        let tile = first..task.queries.len().min(first + TILE);
        let keys = task.tile_keys(shape, &tile);
        let (m, n) = (tile.len(), keys.len());
        let rows = tile_rows(task, &tile);
        let absolute = task.keys.start + keys.start..task.keys.start + keys.end;
        let (p, ds) = (&mut p[..m * n], &mut ds[..m * n]);
        scores(shape, task, &tile, &keys, q.data(), k.data(), p);
        let go = view(g.data(), shape.q_cols(), rows.clone(), head, d);
        let values = view(v.data(), shape.kv_cols(), absolute.clone(), kv, d);
        gemm_serial(m, n, d, 1.0, go, values.t(), 0.0, ds, n);
        probabilities_and_gradients(shape, task.head, rows.clone(), (out, lse, g), p, ds, n);
        let keys_view = view(k.data(), shape.kv_cols(), absolute, kv, d);
        let queries = view(q.data(), shape.q_cols(), rows.clone(), head, d);
        let (p, ds) = (MatRef::new(p, m, n), MatRef::new(ds, m, n));
        let at = keys.start * d..keys.end * d;
        gemm_serial(n, d, m, 1.0, p.t(), go, 1.0, &mut dv_sum[at.clone()], d);
        gemm_serial(n, d, m, 1.0, ds.t(), queries, 1.0, &mut dk_sum[at], d);
        gemm_serial(m, d, n, 1.0, ds, keys_view, 0.0, &mut dq_tile, d);
        for (row, values) in rows.zip(dq_tile.chunks_exact(d)) {
            // SAFETY: this task alone writes its head's columns of its segment's rows.
            unsafe { dq.row(row, head, d) }.copy_from_slice(values);
        }
    }
    for (i, row) in task.keys.clone().enumerate() {
        // SAFETY: as above; dk and dv have a column block for every head.
        unsafe {
            dk.row(row, head, d).copy_from_slice(&dk_sum[i * d..(i + 1) * d]);
            dv.row(row, head, d).copy_from_slice(&dv_sum[i * d..(i + 1) * d]);
        }
    }
}

/// `p = exp(s - L)` and `ds = scale p (dp - rowsum(dO O))`, in place, row by row.
fn probabilities_and_gradients(
    shape: &AttentionShape,
    head: usize,
    rows: Range<usize>,
    (out, lse, g): (&Tensor, &Tensor, &Tensor),
    p: &mut [f32],
    ds: &mut [f32],
    n: usize,
) {
    let d = shape.head_dim;
    for ((row, p), ds) in rows.zip(p.chunks_exact_mut(n.max(1))).zip(ds.chunks_exact_mut(n.max(1))) {
        let l = lse.row(row)[head];
        let l = if l == f32::NEG_INFINITY { 0.0 } else { l };
        score_gradient(shape.scale, l, &out.row(row)[head * d..][..d], &g.row(row)[head * d..][..d], p, ds);
    }
}

crate::multiversion! {
    fn score_gradient(scale: f32, l: f32, out: &[f32], g: &[f32], p: &mut [f32], ds: &mut [f32]) {
        let delta = dot(out, g);
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = simd::exp(*p - l);
            *ds = scale * *p * (*ds - delta);
        }
    }
}

/// Attention of `q` over `k` and `v`, on the tape.
pub fn attention(
    tape: &Tape,
    shape: AttentionShape,
    q: &Var,
    q_segments: &Segments,
    k: &Var,
    v: &Var,
    k_segments: &Segments,
) -> Var {
    assert!(
        shape.heads.is_multiple_of(shape.kv_heads),
        "attention: {} heads in {} groups",
        shape.heads,
        shape.kv_heads
    );
    let (out, lse) =
        attention_values(&shape, q.value(), q_segments, k.value().data(), v.value().data(), k_segments);
    let (nq, nk, nv) = (q.node(), k.node(), v.node());
    let (q, k, v, o) = (q.value().clone(), k.value().clone(), v.value().clone(), out.clone());
    let (qs, ks) = (q_segments.clone(), k_segments.clone());
    tape.record(out, nq.is_some() || nk.is_some() || nv.is_some(), move |g, sink| {
        let (dq, dk, dv) = backward(&shape, (&q, &qs), (&k, &v, &ks), (&o, &lse), &g);
        sink.add(nq, dq);
        sink.add(nk, dk);
        sink.add(nv, dv);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::params::Params;

    fn shape(heads: usize, kv_heads: usize, causal: bool, window: Option<usize>) -> AttentionShape {
        AttentionShape { heads, kv_heads, head_dim: 4, scale: 0.5, causal, window }
    }

    #[test]
    fn gradients_of_every_mask() {
        let (qs, ks) = (Segments::from_lengths(&[6, 2]), Segments::from_lengths(&[6, 2]));
        for shape in [
            shape(2, 1, true, None),
            shape(2, 2, false, None),
            shape(4, 2, true, Some(3)),
            shape(1, 1, false, Some(2)),
        ] {
            let q = random(8, shape.q_cols(), 1);
            let (k, v) = (random(8, shape.kv_cols(), 2), random(8, shape.kv_cols(), 3));
            check(&[q, k, v], |tape, x| attention(tape, shape, &x[0], &qs, &x[1], &x[2], &ks));
        }
    }

    #[test]
    fn gradients_of_cross_attention_and_extra_keys() {
        let (qs, ks) = (Segments::from_lengths(&[5, 1]), Segments::from_lengths(&[7, 3]));
        for causal in [false, true] {
            let shape = shape(2, 1, causal, None);
            let (q, k, v) = (random(6, 8, 1), random(10, 4, 2), random(10, 4, 3));
            check(&[q, k, v], |tape, x| attention(tape, shape, &x[0], &qs, &x[1], &x[2], &ks));
        }
    }

    /// Plain f64 attention, query by query.
    fn naive(shape: &AttentionShape, q: &Tensor, k: &Tensor, v: &Tensor, segments: &Segments) -> Vec<f64> {
        let d = shape.head_dim;
        let mut out = vec![0.0; q.len()];
        for range in segments.ranges() {
            for row in range.clone() {
                for head in 0..shape.heads {
                    let query = &q.row(row)[head * d..][..d];
                    let column = shape.kv_column(head);
                    let seen = shape.visible(row - range.start, range.len());
                    let weights: Vec<f64> = seen
                        .clone()
                        .map(|j| {
                            let key = &k.row(range.start + j)[column..][..d];
                            let s: f64 =
                                query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                            (s * f64::from(shape.scale)).exp()
                        })
                        .collect();
                    let total: f64 = weights.iter().sum();
                    for (w, j) in weights.iter().zip(seen) {
                        for c in 0..d {
                            out[row * q.cols() + head * d + c] +=
                                w / total * f64::from(v.row(range.start + j)[column + c]);
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn tiles_equal_the_plain_formula() {
        let segments = Segments::from_lengths(&[150, 1, 70, 3]);
        for shape in [shape(4, 2, true, None), shape(4, 2, true, Some(17)), shape(2, 2, false, None)] {
            let q = random(segments.rows(), shape.q_cols(), 1);
            let (k, v) =
                (random(segments.rows(), shape.kv_cols(), 2), random(segments.rows(), shape.kv_cols(), 3));
            let (out, _) = attention_values(&shape, &q, &segments, k.data(), v.data(), &segments);
            for (a, b) in out.data().iter().zip(naive(&shape, &q, &k, &v, &segments)) {
                assert!((f64::from(*a) - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn a_cache_gives_what_the_whole_text_gives() {
        let (shape, whole) = (shape(4, 2, true, None), Segments::from_lengths(&[20]));
        let (q, k, v) = (random(20, 16, 1), random(20, 8, 2), random(20, 8, 3));
        let (all, _) = attention_values(&shape, &q, &whole, k.data(), v.data(), &whole);
        let last = Tensor::from_slice(1, 16, q.row(19));
        let one = Segments::from_lengths(&[1]);
        let (o, _) = attention_values(&shape, &last, &one, k.data(), v.data(), &whole);
        for (a, b) in o.data().iter().zip(all.row(19)) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn threads_write_apart() {
        let (shape, segments) = (shape(4, 2, true, None), Segments::from_lengths(&[130, 5, 67]));
        let (q, k, v) = (random(202, 16, 1), random(202, 8, 2), random(202, 8, 3));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| {
                let params = Params::new();
                let tape = Tape::new(&params);
                let x = [tape.input(q.clone()), tape.input(k.clone()), tape.input(v.clone())];
                let y = attention(&tape, shape, &x[0], &segments, &x[1], &x[2], &segments);
                let value = y.value().clone();
                let refs: Vec<&Var> = x.iter().collect();
                let g = tape.backward_to(&y, random(202, 16, 9), &mut crate::Gradients::new(), &refs);
                [value.data().to_vec(), g[0].data().to_vec(), g[1].data().to_vec(), g[2].data().to_vec()]
            })
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(4));
    }
}
