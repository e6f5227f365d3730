//! The register tile in plain Rust: the reference for the others, and what NEON machines run (the compiler vectorises it).

use super::{Kernels, Tile, table};

const LANES: usize = 4;

#[cfg(not(target_arch = "aarch64"))]
pub(super) static KERNELS: Kernels = Kernels {
    mr: 4,
    nr: 2 * LANES,
    lanes: LANES,
    by_rows: table!(tile, true; 1 2 3 4),
    by_columns: table!(tile, false; 1 2 3 4),
    transpose,
    panel_bytes: 128 << 10,
};

/// NEON has 32 registers.
#[cfg(target_arch = "aarch64")]
pub(super) static KERNELS: Kernels = Kernels {
    mr: 8,
    nr: 2 * LANES,
    lanes: LANES,
    by_rows: table!(tile, true; 1 2 3 4 5 6 7 8),
    by_columns: table!(tile, false; 1 2 3 4 5 6 7 8),
    transpose,
    panel_bytes: 256 << 10,
};

/// Fused only where the baseline has the instruction; elsewhere it would be a library call.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
}

/// # Safety
/// As [`super::Micro`].
unsafe fn tile<const H: usize, const W: usize, const BY_ROWS: bool>(t: &Tile) {
    let (row, step) = if BY_ROWS { (t.a_stride, 1) } else { (1, t.a_stride) };
    let mut sums = [[[0.0f32; LANES]; W]; H];
    for k in 0..t.kc {
        for w in 0..W {
            // SAFETY: the caller's B has W * LANES columns in each of kc rows; any four floats form a [f32; LANES].
            let b = unsafe { t.b.add(k * t.b_stride + w * LANES).cast::<[f32; LANES]>().read() };
            for h in 0..H {
                // SAFETY: the caller's A has H rows and kc columns.
                let a = unsafe { *t.a.add(h * row + k * step) };
                for i in 0..LANES {
                    sums[h][w][i] = multiply_add(a, b[i], sums[h][w][i]);
                }
            }
        }
    }
    for h in 0..H {
        for w in 0..W {
            for i in 0..LANES {
                // SAFETY: the caller's C has H rows and W * LANES columns.
                let c = unsafe { &mut *t.c.add(h * t.c_stride + w * LANES + i) };
                let sum = t.alpha * sums[h][w][i];
                *c = if t.accumulate { *c + sum } else { sum };
            }
        }
    }
}

/// # Safety
/// As [`super::Transpose`].
unsafe fn transpose(
    src: *const f32,
    stride: usize,
    rows: usize,
    kc: usize,
    dst: *mut f32,
    dst_stride: usize,
) {
    for r in 0..rows {
        for k in 0..kc {
            // SAFETY: the caller vouches for all r < rows, k < kc.
            unsafe { *dst.add(k * dst_stride + r) = *src.add(r * stride + k) };
        }
    }
}
