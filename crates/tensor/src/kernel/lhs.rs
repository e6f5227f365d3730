//! The left operand A[M, K] of a product, cut into strips of at most MR rows; read in place where that is fast, else packed column by column.

use std::ops::Range;

use super::gemm::block_len;
use super::mat::MatRef;
use super::micro::Kernels;
use super::parallel::{SharedMut, for_each_task, part};
use crate::memory::Buffer;

/// A[M, K], made ready once and used in any number of products (q, k, v; gate and up; a weight and its LoRA branch).
pub struct PackedLhs<'a> {
    pub(super) kernels: &'static Kernels,
    rows: usize,
    depth: usize,
    strips: usize,
    source: Source<'a>,
}

/// Where A's elements are.
enum Source<'a> {
    /// Strip after strip, each `[K][rows of the strip]`.
    Packed(Buffer),
    View(MatRef<'a>),
}

impl<'a> PackedLhs<'a> {
    /// Row-major A costs nothing here unless its row stride maps many rows to the same cache sets; others are packed, in parallel.
    pub fn new(a: MatRef<'a>) -> Self {
        Self::on(Kernels::get(), a)
    }

    pub(super) fn on(kernels: &'static Kernels, a: MatRef<'a>) -> Self {
        let source =
            if in_place(&a, kernels.mr) { Source::View(a) } else { Source::Packed(pack(kernels, &a)) };
        PackedLhs::from_source(kernels, &a, source)
    }

    fn from_source(kernels: &'static Kernels, a: &MatRef, source: Source<'a>) -> Self {
        PackedLhs { kernels, rows: a.rows(), depth: a.cols(), strips: strips(kernels, a.rows()), source }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The length K of the sums.
    pub fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn strips(&self) -> usize {
        self.strips
    }

    /// Rows of strip `i`: as equal as possible, so that no tile is left with a row or two.
    pub(super) fn strip(&self, i: usize) -> Range<usize> {
        part(self.rows, self.strips, i)
    }

    /// Where the strip that starts at `row` and has `h` rows starts at depth `k`: address, stride, and whether k is contiguous (by rows).
    pub(super) fn at(&self, row: usize, h: usize, k: usize) -> (*const f32, usize, bool) {
        match &self.source {
            Source::Packed(packed) => (packed.as_slice()[row * self.depth + k * h..].as_ptr(), h, false),
            Source::View(a) => (a.ptr(row, k), a.row_stride(), true),
        }
    }

    /// What tile `j` of `tiles` should fetch ahead of the strip `rows` at depth `k0 .. k0 + kc`: three stretches of kc floats.
    pub(super) fn ahead(
        &self,
        rows: Range<usize>,
        j: usize,
        tiles: usize,
        k0: usize,
        kc: usize,
    ) -> [*const f32; 3] {
        let h = rows.len();
        [j, j + tiles, j + 2 * tiles].map(|row| {
            let row = row.min(h - 1);
            match &self.source {
                Source::Packed(packed) => {
                    packed.as_slice()[rows.start * self.depth + k0 * h + row * kc..].as_ptr()
                }
                Source::View(a) => a.ptr(rows.start + row, k0),
            }
        })
    }
}

fn strips(kernels: &Kernels, rows: usize) -> usize {
    rows.div_ceil(kernels.mr)
}

/// Strip after strip, each `[K][rows of the strip]`, in parallel.
fn pack(kernels: &Kernels, a: &MatRef) -> Buffer {
    let (rows, depth, strips) = (a.rows(), a.cols(), strips(kernels, a.rows()));
    let mut packed = Buffer::scratch(rows * depth);
    let out = SharedMut::new(packed.as_mut_slice());
    let pieces = strips.min((rows * depth).div_ceil(1 << 16));
    for_each_task(pieces, |piece| {
        for strip in part(strips, pieces, piece) {
            let rows = part(rows, strips, strip);
            // SAFETY: strips are disjoint, and strip after strip they fill rows * depth floats.
            let out = unsafe {
                std::slice::from_raw_parts_mut(out.get().add(rows.start * depth), rows.len() * depth)
            };
            pack_strip(kernels, a, rows, out);
        }
    });
    packed
}

fn pack_strip(kernels: &Kernels, a: &MatRef, rows: Range<usize>, out: &mut [f32]) {
    let h = rows.len();
    if a.row_stride() == 1 {
        match h {
            12 => pack_columns::<12>(a, rows.start, out),
            11 => pack_columns::<11>(a, rows.start, out),
            6 => pack_columns::<6>(a, rows.start, out),
            5 => pack_columns::<5>(a, rows.start, out),
            _ => {
                for (k, out) in out.chunks_exact_mut(h).enumerate() {
                    // SAFETY: elements (rows, k) of the view exist; with a row stride of 1 they are contiguous.
                    out.copy_from_slice(unsafe { std::slice::from_raw_parts(a.ptr(rows.start, k), h) });
                }
            }
        }
    } else if a.col_stride() == 1 {
        // SAFETY: these rows of the view exist, and `out` holds their transpose; the level was detected.
        unsafe {
            (kernels.transpose)(a.ptr(rows.start, 0), a.row_stride(), h, a.cols(), out.as_mut_ptr(), h);
        }
    } else {
        for (r, row) in rows.enumerate() {
            for k in 0..a.cols() {
                out[k * h + r] = a.at(row, k);
            }
        }
    }
}

/// Strips of the usual heights: a copy of a length that is known takes an instruction or two instead of a call.
fn pack_columns<const H: usize>(a: &MatRef, row: usize, out: &mut [f32]) {
    for (k, out) in out.as_chunks_mut::<H>().0.iter_mut().enumerate() {
        // SAFETY: elements (row .. row + H, k) of the view exist (it is a strip of it); with a row stride of 1 they are contiguous. The products
        // of the tests in `kernel::tests` go through here for every height.
        *out = unsafe { *a.ptr(row, k).cast::<[f32; H]>() };
    }
}

/// Whether A may be read where it lies: k contiguous, and a strip's rows don't fight for the same sets of the first-level cache.
fn in_place(a: &MatRef, mr: usize) -> bool {
    a.col_stride() == 1 && rows_lie_well(a.rows(), a.cols(), a.row_stride(), mr)
}

fn rows_lie_well(rows: usize, cols: usize, row_stride: usize, mr: usize) -> bool {
    const LINE: usize = 64;
    const SETS: usize = 64; // 4 KiB, in every x86 and most ARM first-level caches
    let lines = (block_len(cols) * 4).div_ceil(LINE);
    let rows = mr.min(rows);
    let mut used = [0u8; SETS];
    for row in 0..rows {
        for line in 0..lines {
            used[(row * row_stride * 4 / LINE + line) % SETS] += 1;
        }
    }
    let average = (rows * lines).div_ceil(SETS);
    used.iter().all(|&u| usize::from(u) <= average + 2)
}
