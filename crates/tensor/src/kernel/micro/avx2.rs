//! The register tile for AVX2 with FMA: 6 x 16, twelve sums in registers, two loads of B and six broadcasts of A a step.

use std::arch::x86_64::*;

use super::{Kernels, LINE, Tile, table};

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
    let mut k = 0;
    while k < t.kc {
        for next in t.next {
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(k).cast());
        }
        let end = t.kc.min(k + LINE);
        while k < end {
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
            k += 1;
        }
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
    for r in (0..rows).step_by(LANES) {
        for k in (0..kc).step_by(LANES) {
            let size = (LANES.min(rows - r), LANES.min(kc - k));
            // SAFETY: a block of that size from (r, k) on lies in the caller's bounds.
            unsafe {
                transpose8(src.add(r * stride + k), stride, dst.add(k * dst_stride + r), dst_stride, size)
            };
        }
    }
}

/// All bits of the first n of eight elements.
#[target_feature(enable = "avx2")]
fn first(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0))
}

/// Floats that a transpose fetches ahead in each row.
const AHEAD: usize = 64;

/// A block of at most 8 x 8 (rows and columns of the source): pairs, then quadruples within 128-bit lanes, then the lanes themselves.
///
/// # Safety
/// `size` must be readable at `src`, and writable transposed at `dst`; nothing else is touched.
#[target_feature(enable = "avx2")]
unsafe fn transpose8(
    src: *const f32,
    stride: usize,
    dst: *mut f32,
    dst_stride: usize,
    (rows, cols): (usize, usize),
) {
    let mut x = [_mm256_setzero_ps(); 8];
    let (row_mask, col_mask) = (first(rows), first(cols));
    for i in 0..8 {
        if i < rows {
            // Many rows at once are more than the hardware follows.
            _mm_prefetch::<_MM_HINT_T0>(src.wrapping_add(i * stride + AHEAD).cast());
            // SAFETY: the mask leaves out what the caller does not vouch for.
            x[i] = unsafe { _mm256_maskload_ps(src.add(i * stride), col_mask) };
        }
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
        for (column, v) in [(j, low), (4 + j, high)] {
            if column < cols {
                // SAFETY: as above.
                unsafe { _mm256_maskstore_ps(dst.add(column * dst_stride), row_mask, v) };
            }
        }
    }
}
