//! Row-wise loops over the cores. The chunks are fixed, so that results never depend on the number of threads.
//!
//! What a chunk does should be a [`multiversion!`](crate::multiversion) function on slices: closures are not compiled
//! for the machine's instruction set.

use rayon::prelude::*;

use crate::grid::{Grid, Window};

use crate::memory::{self, Buffer};

/// Elements a task should have before it is worth a thread.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Rows of `cols` elements that make one task.
pub fn rows_per_task(cols: usize) -> usize {
    (TASK_ELEMENTS / cols.max(1)).max(1)
}

/// Calls `f(first_row, rows)` on chunks of rows of `out`, in parallel.
pub fn for_rows(out: &mut [f32], cols: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(cols);
    if out.len() <= rows * cols {
        return f(0, out);
    }
    out.par_chunks_mut(rows * cols).enumerate().for_each(|(i, chunk)| f(i * rows, chunk));
}

/// As [`for_rows`] with two outputs of the same number of rows.
pub fn for_rows2(
    a: &mut [f32],
    a_cols: usize,
    b: &mut [f32],
    b_cols: usize,
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let rows = rows_per_task(a_cols.max(b_cols));
    if a.len() <= rows * a_cols {
        return f(0, a, b);
    }
    a.par_chunks_mut(rows * a_cols)
        .zip(b.par_chunks_mut(rows * b_cols))
        .enumerate()
        .for_each(|(i, (a, b))| f(i * rows, a, b));
}

/// Calls `f(output row, place, pixel)` for every output row and place of the window that read an input pixel, in the order of output lines; the
/// pixels `[T, cols]` of `dx` in parallel, line by line.
pub fn for_readers(
    dx: &mut [f32],
    cols: usize,
    (from, to): (Grid, Grid),
    window: &Window,
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    dx.par_chunks_mut(from.width * cols).enumerate().for_each(|(line, out)| {
        let (image, y) = (line / from.height, line % from.height);
        for reader in window.readers(y, to.height) {
            for x in 0..to.width {
                for (tap, place) in window.places().enumerate() {
                    if let Some((sy, sx)) = window.source(from, (reader, x), place)
                        && sy == y
                    {
                        f((image * to.height + reader) * to.width + x, tap, &mut out[sx * cols..][..cols]);
                    }
                }
            }
        }
    });
}

/// Sums `f(row)`-wise contributions into `out[cols]`: each chunk of rows into its own partial sum, the partial
/// sums in order. `f(first_row, last_row, partial)`.
pub fn sum_rows(rows: usize, out: &mut [f32], f: impl Fn(usize, usize, &mut [f32]) + Sync) {
    let cols = out.len();
    let step = rows_per_task(cols).max(64);
    if memory::is_tracing() {
        // A plan's dry run on a few rows asks for what many rows will take: their share of the chunks below.
        return drop(Buffer::scratch((rows * cols).div_ceil(step)));
    }
    let chunks = rows.div_ceil(step.max(1));
    if chunks <= 1 {
        return f(0, rows, out);
    }
    let mut partial = Buffer::zeros(chunks * cols);
    partial.as_mut_slice().par_chunks_mut(cols).enumerate().for_each(|(i, sum)| {
        f(i * step, rows.min((i + 1) * step), sum);
    });
    for sum in partial.as_slice().chunks_exact(cols) {
        for (o, s) in out.iter_mut().zip(sum) {
            *o += s;
        }
    }
}
