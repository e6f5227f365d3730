//! Plain loops over slices that several ops and the optimiser share.

use rayon::prelude::*;

use super::parallel::for_rows;
use crate::kernel::simd;
use crate::memory;

const CHUNK: usize = 16 * 1024;

/// `a += b`.
pub fn add_assign(a: &mut [f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    if memory::is_tracing() {
        return;
    }
    for_rows(a, 1, |first, chunk| simd::add(&b[first..], chunk));
}

/// `a *= factor`.
pub fn scale_assign(a: &mut [f32], factor: f32) {
    for_rows(a, 1, |_, chunk| simd::scale(factor, chunk));
}

/// Sum of squares in f64, in fixed chunks: the same whatever the number of threads.
pub fn sum_squares(a: &[f32]) -> f64 {
    let partial: Vec<f64> = a.par_chunks(CHUNK).map(sum_squares_chunk).collect();
    partial.iter().sum()
}

fn sum_squares_chunk(chunk: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let mut blocks = chunk.chunks_exact(8);
    for block in &mut blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += f64::from(*x) * f64::from(*x);
        }
    }
    let rest: f64 = blocks.remainder().iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    lanes.iter().sum::<f64>() + rest
}

/// Dot product in sixteen fixed lanes.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a_blocks, b_blocks) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_blocks.zip(b_blocks) {
        for i in 0..16 {
            lanes[i] += x[i] * y[i];
        }
    }
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0] + rest
}

/// `y += a * x`.
#[inline(always)]
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
