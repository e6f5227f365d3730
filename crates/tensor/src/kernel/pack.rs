//! The right operand B[K, N]: any of it, packed into strips of NR columns, each `[kc][width]`; stored weights are decoded on the way.

use std::ops::Range;

use super::buffer::Aligned;
use super::gemm::block_len;
use super::mat::MatRef;
use super::micro::Kernels;
use crate::memory::Buffer;
use crate::storage::{Pinned, Storage, pin};

/// The right operand B of C[M, N] += A[M, K] B[K, N].
#[derive(Clone, Copy)]
pub enum Rhs<'a> {
    /// B as a [K, N] view.
    Dense(MatRef<'a>),
    /// B = Wᵀ of a stored W[N, K]: the forward product x Wᵀ.
    WeightT(&'a dyn Storage),
    /// B = W, a stored W[K, N]: the backward product g W.
    Weight(&'a dyn Storage),
    /// B packed before, for products with many left sides.
    Packed(&'a PackedRhs),
}

/// B[K, N], packed once: block after block of its depth, each as strips of NR columns.
pub struct PackedRhs {
    kernels: &'static Kernels,
    depth: usize,
    width: usize,
    data: Buffer,
}

impl PackedRhs {
    /// Packs a view, on the calling thread.
    pub fn new(b: MatRef<'_>) -> PackedRhs {
        Self::on(Kernels::get(), b)
    }

    pub(super) fn on(kernels: &'static Kernels, b: MatRef<'_>) -> PackedRhs {
        let (depth, width) = (b.rows(), b.cols());
        let mut data = Buffer::scratch(packed_len(kernels, depth, width));
        let mut rest = data.as_mut_slice();
        if !crate::memory::is_tracing() {
            for k0 in (0..depth).step_by(block_len(depth)) {
                let block = k0..(k0 + block_len(depth)).min(depth);
                let (out, tail) = rest.split_at_mut(packed_len(kernels, block.len(), width));
                pack_dense(kernels, &b, block, 0..width, out);
                rest = tail;
            }
        }
        PackedRhs { kernels, depth, width, data }
    }

    /// Where the strip at column `col` (a multiple of NR) of the block `depth` starts.
    pub(super) fn at(&self, depth: &Range<usize>, col: usize) -> *const f32 {
        let at = packed_len(self.kernels, depth.start, self.width) + depth.len() * col;
        self.data.as_slice()[at..].as_ptr()
    }
}

impl<'a> Rhs<'a> {
    /// K, the length of the sums.
    pub fn depth(&self) -> usize {
        match self {
            Rhs::Dense(b) => b.rows(),
            Rhs::WeightT(w) => w.cols(),
            Rhs::Weight(w) => w.rows(),
            Rhs::Packed(b) => b.depth,
        }
    }

    /// N, the columns of the result.
    pub fn width(&self) -> usize {
        match self {
            Rhs::Dense(b) => b.cols(),
            Rhs::WeightT(w) => w.rows(),
            Rhs::Weight(w) => w.cols(),
            Rhs::Packed(b) => b.width,
        }
    }

    /// Holds a stored weight in memory until the product is done.
    pub(super) fn pin(&self) -> Option<Pinned<'a>> {
        match self {
            Rhs::Dense(_) | Rhs::Packed(_) => None,
            Rhs::WeightT(w) | Rhs::Weight(w) => Some(pin(*w)),
        }
    }

    /// The same operand, of the weight that is held.
    pub(super) fn of<'b>(self, pinned: &'b Option<Pinned<'a>>) -> Rhs<'b>
    where
        'a: 'b,
    {
        match (self, pinned) {
            (Rhs::WeightT(_), Some(w)) => Rhs::WeightT(&**w),
            (Rhs::Weight(_), Some(w)) => Rhs::Weight(&**w),
            (other, _) => other,
        }
    }

    /// Columns of B that should be packed together so that no block is decoded twice.
    pub(super) fn column_unit(&self) -> usize {
        match self {
            Rhs::Weight(w) => w.block(),
            _ => 1,
        }
    }

    /// Stored f32 is a dense view.
    pub(super) fn plain(self) -> Rhs<'a> {
        let view = |w: &'a dyn Storage| w.as_f32().map(|data| MatRef::new(data, w.rows(), w.cols()));
        match self {
            Rhs::WeightT(w) => view(w).map_or(self, |m| Rhs::Dense(m.t())),
            Rhs::Weight(w) => view(w).map_or(self, Rhs::Dense),
            dense => dense,
        }
    }

    /// Packs rows `depth` and columns `cols` into `out`; columns beyond the last are zero. `rows` is scratch.
    pub(super) fn pack(
        &self,
        kernels: &Kernels,
        depth: Range<usize>,
        cols: Range<usize>,
        out: &mut [f32],
        rows: &mut Aligned,
    ) {
        debug_assert!(out.len() >= packed_len(kernels, depth.len(), cols.len()));
        match self {
            Rhs::Dense(b) => pack_dense(kernels, b, depth, cols, out),
            Rhs::WeightT(w) => pack_weight_t(kernels, *w, depth, cols, out, rows),
            Rhs::Weight(w) => pack_weight(kernels, *w, depth, cols, out, rows),
            Rhs::Packed(_) => {}
        }
    }
}

/// Floats that `n` packed columns of depth `kc` take.
pub(super) fn packed_len(kernels: &Kernels, kc: usize, n: usize) -> usize {
    kc * n.next_multiple_of(kernels.lanes)
}

/// Calls `f(columns, strip, width)` for each strip of `cols`.
fn for_each_strip(
    kernels: &Kernels,
    kc: usize,
    cols: Range<usize>,
    out: &mut [f32],
    mut f: impl FnMut(Range<usize>, &mut [f32], usize),
) {
    let mut rest = out;
    for start in cols.clone().step_by(kernels.nr) {
        let columns = start..(start + kernels.nr).min(cols.end);
        let width = kernels.strip_width(columns.len());
        let (strip, tail) = rest.split_at_mut(kc * width);
        if columns.len() < width {
            for row in strip.chunks_exact_mut(width) {
                row[columns.len()..].fill(0.0);
            }
        }
        f(columns, strip, width);
        rest = tail;
    }
}

fn pack_dense(kernels: &Kernels, b: &MatRef, depth: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
    let kc = depth.len();
    assert!(depth.end <= b.rows() && cols.end <= b.cols());
    if b.col_stride() == 1 {
        for (k, row) in depth.enumerate() {
            // Rows may be far apart: ask for one of the next.
            prefetch(b.ptr(row + ROWS_AHEAD, cols.start), cols.len());
            // SAFETY: elements (row, cols) exist (asserted above) and are contiguous.
            let row = unsafe { std::slice::from_raw_parts(b.ptr(row, cols.start), cols.len()) };
            spread_row(kernels, kc, k, out, row);
        }
        return;
    }
    for_each_strip(kernels, kc, cols, out, |columns, strip, width| {
        if b.row_stride() == 1 {
            let n = columns.len();
            // SAFETY: the block lies inside the view (asserted above), n <= width, the strip has kc rows of width; the level was detected.
            unsafe {
                let src = b.ptr(depth.start, columns.start);
                (kernels.transpose)(src, b.col_stride(), n, kc, strip.as_mut_ptr(), width);
            }
        } else {
            for (k, row) in depth.clone().zip(strip.chunks_exact_mut(width)) {
                for (v, j) in row.iter_mut().zip(columns.clone()) {
                    *v = b.at(k, j);
                }
            }
        }
    });
}

const ROWS_AHEAD: usize = 4;

/// Asks for `len` floats to be brought near; any address will do, readable or not.
#[inline]
fn prefetch(at: *const f32, len: usize) {
    for line in (0..len).step_by(16) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch (SSE, in every x86-64) reads nothing that a program could notice.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (at, line);
    }
}

/// Columns of W decoded at a time: four rows of registers' worth stay in the first-level cache until they are transposed.
const SEGMENT: usize = 256;

fn pack_weight_t(
    kernels: &Kernels,
    w: &dyn Storage,
    depth: Range<usize>,
    cols: Range<usize>,
    out: &mut [f32],
    rows: &mut Aligned,
) {
    let lanes = kernels.lanes;
    for_each_strip(kernels, depth.len(), cols, out, |columns, strip, width| {
        for k0 in depth.clone().step_by(SEGMENT) {
            let seg = SEGMENT.min(depth.end - k0);
            for first in columns.clone().step_by(lanes) {
                let n = lanes.min(columns.end - first);
                let decoded = rows.of(lanes * seg);
                for (i, row) in decoded.chunks_exact_mut(seg).take(n).enumerate() {
                    w.decode(first + i, k0, row);
                }
                let at = (k0 - depth.start) * width + (first - columns.start);
                assert!(at + (seg - 1) * width + n <= strip.len());
                // SAFETY: n decoded rows of seg floats go to columns of the strip, which has that many rows (asserted); the level was detected.
                unsafe {
                    (kernels.transpose)(decoded.as_ptr(), seg, n, seg, strip.as_mut_ptr().add(at), width);
                }
            }
        }
    });
}

fn pack_weight(
    kernels: &Kernels,
    w: &dyn Storage,
    depth: Range<usize>,
    cols: Range<usize>,
    out: &mut [f32],
    rows: &mut Aligned,
) {
    let (kc, block) = (depth.len(), w.block());
    // Whole blocks around the wanted columns.
    let first = cols.start / block * block;
    let last = cols.end.next_multiple_of(block).min(w.cols());
    let decoded = rows.of(last - first);
    for (k, row) in depth.enumerate() {
        w.decode(row, first, decoded);
        spread_row(kernels, kc, k, out, &decoded[cols.start - first..][..cols.len()]);
    }
}

/// Whole strips of a width that is known: a copy takes a few instructions instead of a call.
fn spread_strips<const NR: usize>(kc: usize, k: usize, out: &mut [f32], row: &[f32]) {
    for (strip, piece) in row.as_chunks::<NR>().0.iter().enumerate() {
        out[(strip * kc + k) * NR..][..NR].copy_from_slice(piece);
    }
}

/// Spreads one row of B over row k of the strips.
fn spread_row(kernels: &Kernels, kc: usize, k: usize, out: &mut [f32], row: &[f32]) {
    let (whole, rest) = row.split_at(row.len() / kernels.nr * kernels.nr);
    match kernels.nr {
        32 => spread_strips::<32>(kc, k, out, whole),
        16 => spread_strips::<16>(kc, k, out, whole),
        nr => {
            for (strip, piece) in whole.chunks_exact(nr).enumerate() {
                out[(strip * kc + k) * nr..][..nr].copy_from_slice(piece);
            }
        }
    }
    if !rest.is_empty() {
        let width = kernels.strip_width(rest.len());
        let to = &mut out[whole.len() * kc + k * width..][..width];
        to[..rest.len()].copy_from_slice(rest);
        to[rest.len()..].fill(0.0);
    }
}
