//! out[R, K] = beta out + alpha aᵀ b with a[T, R], b[T, K] row-major and R small: the gradients of LoRA's matrices. b is read in place, once.

use std::ops::Range;

use super::buffer::with_scratch;
use super::gemm::run_tile;
use super::mat::MatRef;
use super::micro::{Kernels, Tile};
use super::pack::Rhs;
use super::parallel::{SharedMut, for_each_task, part};

/// Rows of b summed in one chain; the chains' sums are added in order.
const CHAIN: usize = 256;

/// out[R, K] = beta out + alpha aᵀ b, where a is [T, R] and b is [T, K], all row-major without gaps; beta is 0 or 1.
///
/// Parallel over columns, so the sums over T have one order on any number of threads. Panics if a length is wrong.
pub fn gemm_tn_skinny(
    t: usize,
    r: usize,
    k: usize,
    a: &[f32],
    b: &[f32],
    alpha: f32,
    out: &mut [f32],
    beta: f32,
) {
    let product = Skinny { kernels: Kernels::get(), a: MatRef::new(a, t, r), b: MatRef::new(b, t, k), alpha };
    product.run(out, beta);
}

pub(super) struct Skinny<'a> {
    pub kernels: &'static Kernels,
    pub a: MatRef<'a>,
    pub b: MatRef<'a>,
    pub alpha: f32,
}

impl Skinny<'_> {
    pub fn run(&self, out: &mut [f32], beta: f32) {
        let (t, r, k) = (self.a.rows(), self.a.cols(), self.b.cols());
        assert!(beta == 0.0 || beta == 1.0, "beta is 0 or 1, not {beta}");
        assert_eq!(out.len(), r * k, "the result is {r} x {k}");
        if t == 0 && beta == 0.0 {
            out.fill(0.0);
        }
        if r == 0 || k == 0 || crate::memory::is_tracing() {
            return;
        }
        let strips = k.div_ceil(self.kernels.nr);
        let tasks = strips.min(3 * rayon::current_num_threads());
        let c = SharedMut::new(out);
        for_each_task(tasks, |task| {
            let strips = part(strips, tasks, task);
            let cols = strips.start * self.kernels.nr..(strips.end * self.kernels.nr).min(k);
            for t0 in (0..t).step_by(CHAIN) {
                self.chain(t0..(t0 + CHAIN).min(t), cols.clone(), c, beta == 1.0 || t0 > 0);
            }
        });
    }

    /// Adds the rows `depth` of a and b to the given columns of the result.
    fn chain(&self, depth: Range<usize>, cols: Range<usize>, c: SharedMut<f32>, accumulate: bool) {
        let (r, kernels) = (self.a.cols(), self.kernels);
        let strips = r.div_ceil(kernels.mr);
        for start in cols.clone().step_by(kernels.nr) {
            let n = kernels.nr.min(cols.end - start);
            let width = kernels.strip_width(n);
            with_scratch(|panel, rows| {
                // Only a last strip that is no whole number of registers is copied.
                let (b, b_stride) = if n == width {
                    (self.b.ptr(depth.start, start), self.b.row_stride())
                } else {
                    let strip = panel.of(depth.len() * width);
                    Rhs::Dense(self.b).pack(kernels, depth.clone(), start..start + n, strip, rows);
                    (strip.as_ptr(), width)
                };
                for strip in 0..strips {
                    let rows = part(r, strips, strip);
                    let tile = Tile {
                        kc: depth.len(),
                        a: self.a.ptr(depth.start, rows.start),
                        a_stride: self.a.row_stride(),
                        b,
                        b_stride,
                        c: c.get().wrapping_add(rows.start * self.b.cols() + start),
                        c_stride: self.b.cols(),
                        alpha: self.alpha,
                        next: [self.a.ptr(0, 0); 3],
                        accumulate,
                    };
                    // SAFETY: depth, rows and columns lie in a, b and the r x k result (asserted in `run`); tasks have columns of their own.
                    unsafe { run_tile(kernels, &tile, rows.len(), n, false) };
                }
            });
        }
    }
}
