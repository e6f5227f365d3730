//! The register tile for AVX2 with FMA: 6 x 16, twelve sums in registers, two loads of B and six broadcasts of A a step.

use std::arch::x86_64::*;

use super::{Kernels, Tile, table};

const LANES: usize = 8;

pub(super) static KERNELS: Kernels = Kernels {
    mr: 6,
    nr: 2 * LANES,
    lanes: LANES,
    by_rows: table!(tile, true; 1 2 3 4 5 6),
    by_columns: table!(tile, false; 1 2 3 4 5 6),
    transpose,
    panel_bytes: 256 << 10,
};

/// # Safety
/// As [`super::Micro`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const H: usize, const W: usize, const BY_ROWS: bool>(t: &Tile) {
    let (row, step) = if BY_ROWS { (t.a_stride, 1) } else { (1, t.a_stride) };
    let mut sums = [[_mm256_setzero_ps(); W]; H];
    let (mut a, mut b) = (t.a, t.b);
    for h in 0..H {
        // C is needed only at the end: ask for it now. A prefetch of any address is harmless.
        _mm_prefetch::<_MM_HINT_T0>(t.c.wrapping_add(h * t.c_stride).cast());
    }
    for _ in 0..t.kc {
        let mut bs = [_mm256_setzero_ps(); W];
        for w in 0..W {
            // SAFETY: the caller's B has W * LANES columns in each of kc rows.
            bs[w] = unsafe { _mm256_loadu_ps(b.add(w * LANES)) };
        }
        for h in 0..H {
            // SAFETY: the caller's A has H rows and kc columns.
            let x = unsafe { _mm256_broadcast_ss(&*a.add(h * row)) };
            for w in 0..W {
                sums[h][w] = _mm256_fmadd_ps(x, bs[w], sums[h][w]);
            }
        }
        a = a.wrapping_add(step);
        b = b.wrapping_add(t.b_stride);
    }
    let alpha = _mm256_set1_ps(t.alpha);
    for h in 0..H {
        for w in 0..W {
            // SAFETY: the caller's C has H rows and W * LANES columns.
            unsafe {
                let c = t.c.add(h * t.c_stride + w * LANES);
                let old = if t.accumulate { _mm256_loadu_ps(c) } else { _mm256_setzero_ps() };
                _mm256_storeu_ps(c, _mm256_fmadd_ps(alpha, sums[h][w], old));
            }
        }
    }
}

/// # Safety
/// As [`super::Transpose`].
#[target_feature(enable = "avx2")]
unsafe fn transpose(
    src: *const f32,
    stride: usize,
    rows: usize,
    kc: usize,
    dst: *mut f32,
    dst_stride: usize,
) {
    let mut r = 0;
    while r + LANES <= rows {
        let mut k = 0;
        while k + LANES <= kc {
            // SAFETY: rows r..r + 8 and columns k..k + 8 are in the caller's bounds.
            unsafe { transpose8(src.add(r * stride + k), stride, dst.add(k * dst_stride + r), dst_stride) };
            k += LANES;
        }
        for k in k..kc {
            for r in r..r + LANES {
                // SAFETY: r < rows and k < kc.
                unsafe { *dst.add(k * dst_stride + r) = *src.add(r * stride + k) };
            }
        }
        r += LANES;
    }
    for r in r..rows {
        for k in 0..kc {
            // SAFETY: r < rows and k < kc.
            unsafe { *dst.add(k * dst_stride + r) = *src.add(r * stride + k) };
        }
    }
}

/// An 8 x 8 block: pairs, then quadruples within 128-bit lanes, then the lanes themselves.
///
/// # Safety
/// 8 rows of 8 floats must be readable at `src` and writable at `dst`.
#[target_feature(enable = "avx2")]
unsafe fn transpose8(src: *const f32, stride: usize, dst: *mut f32, dst_stride: usize) {
    let mut x = [_mm256_setzero_ps(); 8];
    for i in 0..8 {
        // SAFETY: the caller's bounds.
        x[i] = unsafe { _mm256_loadu_ps(src.add(i * stride)) };
    }
    let mut y = x;
    for i in 0..4 {
        y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    // x[4g + j], lane l: column 4l + j of rows 4g .. 4g + 4.
    for g in 0..2 {
        x[4 * g] = _mm256_shuffle_ps::<0b01_00_01_00>(y[4 * g], y[4 * g + 2]);
        x[4 * g + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(y[4 * g], y[4 * g + 2]);
        x[4 * g + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(y[4 * g + 1], y[4 * g + 3]);
        x[4 * g + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(y[4 * g + 1], y[4 * g + 3]);
    }
    for j in 0..4 {
        let low = _mm256_permute2f128_ps::<0x20>(x[j], x[4 + j]);
        let high = _mm256_permute2f128_ps::<0x31>(x[j], x[4 + j]);
        // SAFETY: the caller's bounds.
        unsafe {
            _mm256_storeu_ps(dst.add(j * dst_stride), low);
            _mm256_storeu_ps(dst.add((4 + j) * dst_stride), high);
        }
    }
}
