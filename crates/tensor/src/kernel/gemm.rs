//! C[M, N] = beta C + sum of A_i[M, K_i] B_i[K_i, N]: panels of B are packed (and decoded) by the task that uses them.
//!
//! The depth of every term is cut into blocks of a length that follows from K alone; each element of C is the sum, in order, of the blocks'
//! chains. How C is cut into tasks (panels of columns, chunks of rows) follows from the sizes and the number of threads, and touches no result.

use std::ops::Range;

use super::buffer::with_scratch;
use super::lhs::PackedLhs;
use super::mat::MatRef;
use super::micro::{Kernels, Tile};
use super::pack::{PackedRhs, Rhs, packed_len};
use super::parallel::{SharedMut, for_each_task, part};
use crate::memory;

/// Longest block of the sums.
const DEPTH_MAX: usize = 640;

/// Length of the blocks that a depth of `k` is cut into (the last may be shorter): a function of k alone, aligned as k allows for stored blocks.
pub(super) fn block_len(k: usize) -> usize {
    const LEN: usize = 512;
    match k {
        0..=DEPTH_MAX => k.max(1),
        _ if k.is_multiple_of(256) => LEN,
        _ => k.div_ceil(k.div_ceil(LEN)).next_multiple_of(64),
    }
}

/// The most bytes that a thread keeps for packed operands, with weights stored in blocks of so many values.
pub fn workspace_bytes(block: usize) -> usize {
    let kernels = Kernels::get();
    let widest = num_lcm(kernels.nr, block.max(1));
    let panel = (kernels.panel_bytes * 5 / 4).max(4 * DEPTH_MAX * widest);
    // Decoded rows on their way: of a few columns, or of whole blocks.
    let panel_columns = kernels.panel_bytes / 4 / DEPTH_MAX.min(256);
    panel + 4 * (kernels.lanes * 256).max(panel_columns + 2 * block)
}

/// Strips of rows up to which a row-major B is read in place.
const STRIPS_IN_PLACE: usize = 2;

/// A stretch of one term's depth.
struct Block<'a> {
    lhs: &'a PackedLhs<'a>,
    rhs: Rhs<'a>,
    depth: Range<usize>,
}

/// A right side that is not packed for the product.
enum InPlace<'a> {
    View(&'a MatRef<'a>),
    Packed(&'a PackedRhs),
}

/// One product, as its tasks see it.
struct Job<'a> {
    kernels: &'static Kernels,
    n: usize,
    blocks: Vec<Block<'a>>,
    c: SharedMut<f32>,
    c_stride: usize,
    /// Adds to C as it is; otherwise C is written without being read.
    accumulate: bool,
}

/// out[M, N] (row-major, rows `ldc` apart) = beta out + sum over terms of A_i B_i; beta is 0 or 1 (0 never reads `out`).
///
/// Terms share M and N; each has its own depth. Results are the same bytes for any number of threads, and for a row whatever rows are with it.
/// Panics if shapes disagree or `out` is too short.
pub fn gemm(out: &mut [f32], ldc: usize, m: usize, n: usize, beta: f32, terms: &[(&PackedLhs<'_>, Rhs<'_>)]) {
    assert!(beta == 0.0 || beta == 1.0, "beta is 0 or 1, not {beta}");
    assert!(n <= ldc || m <= 1, "rows of {n} elements cannot be {ldc} apart");
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        (m - 1) * ldc + n <= out.len(),
        "the result needs {} elements, not {}",
        (m - 1) * ldc + n,
        out.len()
    );
    if memory::is_tracing() {
        return;
    }
    let pinned: Vec<_> = terms.iter().map(|(_, rhs)| rhs.pin()).collect();
    let mut blocks = Vec::new();
    for ((lhs, rhs), pinned) in terms.iter().zip(&pinned) {
        let k = lhs.depth();
        assert_eq!((lhs.rows(), k, rhs.width()), (m, rhs.depth(), n), "rows, depth, width of a term");
        let rhs = rhs.of(pinned).plain();
        let len = block_len(k);
        blocks.extend((0..k).step_by(len).map(|k0| Block { lhs, rhs, depth: k0..(k0 + len).min(k) }));
    }
    let Some(first) = blocks.first() else {
        if beta == 0.0 {
            out.chunks_mut(ldc).for_each(|row| row[..n].fill(0.0));
        }
        return;
    };
    let (kernels, strips) = (first.lhs.kernels, first.lhs.strips());
    let job = Job { kernels, n, blocks, c: SharedMut::new(out), c_stride: ldc, accumulate: beta == 1.0 };
    run_all(&[job], m, strips);
}

/// Runs products of one shape in one parallel region.
fn run_all(jobs: &[Job], m: usize, strips: usize) {
    let Some(first) = jobs.first() else { return };
    let cut = first.cut(m, rayon::current_num_threads().div_ceil(jobs.len()));
    let tasks = cut.panels() * cut.chunks;
    for_each_task(jobs.len() * tasks, |task| {
        let (job, task) = (&jobs[task / tasks], task % tasks);
        let (panel, chunk) = (task / cut.chunks, task % cut.chunks);
        let cols = panel * cut.panel..((panel + 1) * cut.panel).min(job.n);
        job.run(part(strips, cut.chunks, chunk), cols);
    });
}

/// Several products of one shape, `out_i[M, N] = beta out_i + A_i[M, K] B_i[K, N]`; result i begins at `i each` of `out`, rows `ldc` apart.
///
/// One parallel region for all of them; each is what [`gemm`] gives of views and packed sides. Panics if shapes disagree, results overlap or
/// `out` is too short.
pub fn gemm_batch(
    out: &mut [f32],
    each: usize,
    ldc: usize,
    m: usize,
    n: usize,
    beta: f32,
    products: &[(PackedLhs<'_>, Rhs<'_>)],
) {
    assert!(beta == 0.0 || beta == 1.0, "beta is 0 or 1, not {beta}");
    assert!(n <= ldc || m <= 1, "rows of {n} elements cannot be {ldc} apart");
    if m == 0 || n == 0 || products.is_empty() || memory::is_tracing() {
        return;
    }
    let one = (m - 1) * ldc + n;
    assert!(one <= each && (products.len() - 1) * each + one <= out.len(), "results overlap or lie outside");
    let jobs = out.chunks_mut(each).zip(products).map(|(out, (lhs, rhs))| {
        let k = lhs.depth();
        assert_eq!((lhs.rows(), k, rhs.width()), (m, rhs.depth(), n), "rows, depth, width of a product");
        if beta == 0.0 && k == 0 {
            out.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(0.0));
        }
        let len = block_len(k);
        let block = |k0: usize| Block { lhs, rhs: rhs.plain(), depth: k0..(k0 + len).min(k) };
        let blocks = (0..k).step_by(len).map(block).collect();
        Job {
            kernels: lhs.kernels,
            n,
            blocks,
            c: SharedMut::new(out),
            c_stride: ldc,
            accumulate: beta == 1.0,
        }
    });
    let jobs: Vec<Job> = jobs.collect();
    run_all(&jobs, m, products[0].0.strips());
}

/// How C is cut into tasks.
#[derive(Debug, Clone, Copy)]
struct Cut {
    n: usize,
    /// Columns a panel.
    panel: usize,
    /// Chunks of rows.
    chunks: usize,
}

impl Cut {
    fn panels(&self) -> usize {
        self.n.div_ceil(self.panel)
    }
}

impl Job<'_> {
    /// The cut that should finish first, by a simple count of cycles.
    fn cut(&self, m: usize, threads: usize) -> Cut {
        let kernels = self.kernels;
        let unit = self.blocks.iter().map(|b| b.rhs.column_unit()).fold(kernels.nr, num_lcm);
        let longest = self.blocks.iter().map(|b| b.depth.len()).max().unwrap_or(1);
        let widest = (kernels.panel_bytes / 4 / longest / unit).max(1) * unit;
        let depth: usize = self.blocks.iter().map(|b| b.depth.len()).sum();
        let strips = m.div_ceil(kernels.mr);
        let mut best = (f64::MAX, Cut { n: self.n, panel: unit, chunks: 1 });
        let fewest = self.n.div_ceil(widest);
        let most = self.n.div_ceil(unit).min(fewest.max(4 * threads));
        for panels in fewest..=most {
            let panel = self.n.div_ceil(panels).next_multiple_of(unit);
            let panels = self.n.div_ceil(panel);
            for chunks in 1..=(4 * threads).min(strips) {
                let rows = strips.div_ceil(chunks) * kernels.mr;
                // Multiply-adds, packing an element (about eight of them), reading A, starting a task.
                let per_cycle = (2 * kernels.lanes) as f64;
                let work = (rows * panel.min(self.n)) as f64 / per_cycle
                    + 0.5 * panel as f64
                    + 0.15 * rows.min(m) as f64;
                let cycles = work * depth as f64 + 3_000.0;
                let tasks = panels * chunks;
                let rounds = tasks.div_ceil(threads) as f64;
                // A busy machine delays single threads: many small tasks even that out.
                let time = cycles * (rounds + if threads > 1 { 0.3 } else { 0.0 });
                if time < best.0 {
                    best = (time, Cut { n: self.n, panel, chunks });
                }
            }
        }
        best.1
    }

    /// Computes the given strips of rows and columns of C.
    fn run(&self, strips: Range<usize>, cols: Range<usize>) {
        with_scratch(|panel, rows| {
            let width = cols.len().next_multiple_of(self.kernels.lanes);
            let mut next = 0;
            while next < self.blocks.len() {
                // As many blocks as the panel's share of the cache holds: C is passed over once for all of them.
                let first = next;
                let mut depth = 0;
                while next < self.blocks.len() {
                    let more = self.blocks[next].depth.len();
                    if next > first && (depth + more) * width * 4 > self.kernels.panel_bytes * 5 / 4 {
                        break;
                    }
                    depth += more;
                    next += 1;
                }
                let group = &self.blocks[first..next];
                let panel = panel.of(depth * width);
                let mut rest = &mut panel[..];
                for block in group.iter().filter(|b| self.in_place(b, strips.len(), &cols).is_none()) {
                    let len = packed_len(self.kernels, block.depth.len(), cols.len());
                    let (part, tail) = rest.split_at_mut(len);
                    block.rhs.pack(self.kernels, block.depth.clone(), cols.clone(), part, rows);
                    rest = tail;
                }
                self.multiply(group, panel, strips.clone(), cols.clone(), first > 0 || self.accumulate);
            }
        });
    }

    /// B where it lies, if that may be read: packed before, or used by so few rows that packing would take longer than it saves.
    fn in_place<'a>(&self, block: &'a Block, strips: usize, cols: &Range<usize>) -> Option<InPlace<'a>> {
        match &block.rhs {
            Rhs::Packed(b) => Some(InPlace::Packed(b)),
            Rhs::Dense(b)
                if b.col_stride() == 1
                    && strips <= STRIPS_IN_PLACE
                    && cols.len().is_multiple_of(self.kernels.lanes) =>
            {
                Some(InPlace::View(b))
            }
            _ => None,
        }
    }

    /// All tiles of the strips and columns, for blocks that are packed one behind the other.
    fn multiply(
        &self,
        group: &[Block],
        panel: &[f32],
        strips: Range<usize>,
        cols: Range<usize>,
        accumulate: bool,
    ) {
        let last = strips.end;
        let tiles = cols.len().div_ceil(self.kernels.nr);
        for strip in strips.clone() {
            let mut packed = 0;
            for (i, block) in group.iter().enumerate() {
                let rows = block.lhs.strip(strip);
                let (a, a_stride, by_rows) = block.lhs.at(rows.start, rows.len(), block.depth.start);
                let kc = block.depth.len();
                let in_place = self.in_place(block, strips.len(), &cols);
                let next = block.lhs.strip(if strip + 1 < last { strip + 1 } else { strip });
                for (j, start) in cols.clone().step_by(self.kernels.nr).enumerate() {
                    let n = self.kernels.nr.min(cols.end - start);
                    let width = self.kernels.strip_width(n);
                    let (b, b_stride) = match in_place {
                        Some(InPlace::View(b)) => (b.ptr(block.depth.start, start), b.row_stride()),
                        Some(InPlace::Packed(b)) => (b.at(&block.depth, start), width),
                        None => {
                            packed += kc * width;
                            (panel[packed - kc * width..packed].as_ptr(), width)
                        }
                    };
                    let tile = Tile {
                        kc,
                        a,
                        a_stride,
                        b,
                        b_stride,
                        c: self.c.get().wrapping_add(rows.start * self.c_stride + start),
                        c_stride: self.c_stride,
                        alpha: 1.0,
                        next: block.lhs.ahead(next.clone(), j, tiles, block.depth.start, kc),
                        accumulate: accumulate || i > 0,
                    };
                    // SAFETY: A's strip has rows.len() rows and this depth; B was packed with this width or has these rows and columns itself; rows and columns lie in C
                    // (asserted in `gemm`), and no other task has both this strip and these columns.
                    unsafe { run_tile(self.kernels, &tile, rows.len(), n, by_rows) };
                }
            }
        }
    }
}

/// Runs the tile of height `h`; if only `n` columns of its width exist in C, through a buffer.
///
/// # Safety
/// As [`super::micro::Micro`], with n columns in C, and strip_width(n) in B.
pub(super) unsafe fn run_tile(kernels: &Kernels, tile: &Tile, h: usize, n: usize, by_rows: bool) {
    let width = kernels.strip_width(n);
    let table = if by_rows { kernels.by_rows } else { kernels.by_columns };
    let micro = table[h - 1][width / kernels.lanes - 1];
    if n == width {
        // SAFETY: the caller's.
        return unsafe { micro(tile) };
    }
    let mut edge = [0.0f32; 12 * 32];
    debug_assert!(h * width <= edge.len());
    let whole = Tile { c: edge.as_mut_ptr(), c_stride: width, accumulate: false, ..*tile };
    // SAFETY: A and B are the caller's; the buffer holds h rows of the full width (MR * NR is at most 12 * 32).
    unsafe { micro(&whole) };
    for (i, row) in edge.chunks_exact(width).take(h).enumerate() {
        for (j, sum) in row.iter().take(n).enumerate() {
            // SAFETY: the caller's C has h rows and n columns.
            let c = unsafe { &mut *tile.c.add(i * tile.c_stride + j) };
            *c = if tile.accumulate { *c + sum } else { *sum };
        }
    }
}

/// c[m, n] (rows `ldc` apart) = beta c + alpha a b on the calling thread: small products inside attention tiles. beta is 0 or 1.
///
/// Nothing is packed that can be read in place: all of A if it or its transpose is row-major, all of B if it is row-major.
pub fn gemm_serial(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    beta: f32,
    c: &mut [f32],
    ldc: usize,
) {
    serial_on(Kernels::get(), m, n, k, alpha, a, b, beta, c, ldc);
}

pub(super) fn serial_on(
    kernels: &'static Kernels,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    beta: f32,
    c: &mut [f32],
    ldc: usize,
) {
    assert!(beta == 0.0 || beta == 1.0, "beta is 0 or 1, not {beta}");
    assert_eq!((a.rows(), a.cols(), b.rows(), b.cols()), (m, k, k, n), "shapes of A and B");
    assert!(n <= ldc || m <= 1, "rows of {n} elements cannot be {ldc} apart");
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * ldc + n <= c.len(), "the result needs {} elements, not {}", (m - 1) * ldc + n, c.len());
    if k == 0 {
        if beta == 0.0 {
            c.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    let (a_stride, by_rows) = match (a.row_stride(), a.col_stride()) {
        (stride, 1) => (stride, true),
        (1, stride) => (stride, false),
        _ => {
            // Rare: neither A nor its transpose has contiguous rows.
            let copy: Vec<f32> = (0..m).flat_map(|i| (0..k).map(move |j| a.at(i, j))).collect();
            return serial_on(kernels, m, n, k, alpha, MatRef::new(&copy, m, k), b, beta, c, ldc);
        }
    };
    let strips = m.div_ceil(kernels.mr);
    let len = block_len(k);
    with_scratch(|panel, rows| {
        for k0 in (0..k).step_by(len) {
            let depth = k0..(k0 + len).min(k);
            let kc = depth.len();
            for start in (0..n).step_by(kernels.nr) {
                let columns = kernels.nr.min(n - start);
                let width = kernels.strip_width(columns);
                let (b, b_stride) = if b.col_stride() == 1 && columns == width {
                    (b.ptr(k0, start), b.row_stride())
                } else {
                    let strip = panel.of(kc * width);
                    Rhs::Dense(b).pack(kernels, depth.clone(), start..start + columns, strip, rows);
                    (strip.as_ptr(), width)
                };
                for strip in 0..strips {
                    let rows = part(m, strips, strip);
                    let tile = Tile {
                        kc,
                        a: a.ptr(rows.start, k0),
                        a_stride,
                        b,
                        b_stride,
                        c: c.as_mut_ptr().wrapping_add(rows.start * ldc + start),
                        c_stride: ldc,
                        alpha,
                        next: [a.ptr(0, 0); 3],
                        accumulate: beta == 1.0 || k0 > 0,
                    };
                    // SAFETY: shapes of A, B and C were asserted; c is borrowed exclusively.
                    unsafe { run_tile(kernels, &tile, rows.len(), columns, by_rows) };
                }
            }
        }
    });
}

/// Least common multiple.
fn num_lcm(a: usize, b: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    a / gcd(a, b) * b
}
