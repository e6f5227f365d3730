//! Products with one row, or a few: y[M, N] = x[M, K] Wᵀ, where each weight is decoded as it is read; packing would not pay.

use super::parallel::{SharedMut, for_each_task};
use crate::storage::{Storage, pin};

/// Rows above which the packed kernel is the faster one.
pub const MATVEC_ROWS_MAX: usize = 4;

/// Elements of a weight that a task should have at least: some microseconds.
const TASK_ELEMENTS: usize = 1 << 16;

/// out[M, N] = x[M, K] Wᵀ for a few rows (M up to [`MATVEC_ROWS_MAX`] or so). Parallel; the same bytes on any number of threads.
pub fn matvec(w: &dyn Storage, x: &[f32], m: usize, out: &mut [f32]) {
    matvec_many(&[w], x, m, &mut [out]);
}

/// Several weights on the same x (q, k, v; gate and up) in one parallel region: `outs[i]`[M, N_i] = x[M, K] W_iᵀ.
pub fn matvec_many(ws: &[&dyn Storage], x: &[f32], m: usize, outs: &mut [&mut [f32]]) {
    assert_eq!(ws.len(), outs.len(), "one result for each weight");
    for (w, out) in ws.iter().zip(outs.iter()) {
        assert_eq!((x.len(), out.len()), (m * w.cols(), m * w.rows()), "x is [M, K], the result [M, N]");
    }
    if crate::memory::is_tracing() {
        return;
    }
    let elements: usize = ws.iter().map(|w| w.rows() * w.cols()).sum();
    let threads = rayon::current_num_threads();
    let pieces = (elements / TASK_ELEMENTS).clamp(1, 4 * threads);
    // Rows are cut by bytes read, so that all tasks take about as long.
    let mut tasks: Vec<(usize, usize, usize)> = Vec::with_capacity(pieces + ws.len());
    for (i, w) in ws.iter().enumerate() {
        let own = (w.rows() * w.cols() * pieces).div_ceil(elements.max(1)).max(1);
        let step = w.rows().div_ceil(own).next_multiple_of(4);
        tasks.extend((0..w.rows()).step_by(step.max(1)).map(|row| (i, row, (row + step).min(w.rows()))));
    }
    let ws: Vec<_> = ws.iter().map(|w| pin(*w)).collect();
    let shared: Vec<SharedMut<f32>> = outs.iter_mut().map(|out| SharedMut::new(out)).collect();
    for_each_task(tasks.len(), |task| {
        let (i, start, end) = tasks[task];
        let (n, k) = (ws[i].rows(), ws[i].cols());
        for row in 0..m {
            // SAFETY: out has m rows of n (asserted above), start..end lies in 0..n, and no two tasks share rows of one weight.
            let y =
                unsafe { std::slice::from_raw_parts_mut(shared[i].get().add(row * n + start), end - start) };
            ws[i].dot_rows(start, &x[row * k..][..k], y);
        }
    });
}
