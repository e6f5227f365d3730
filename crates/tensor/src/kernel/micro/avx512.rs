//! The register tile for AVX-512: 12 x 32, 24 sums in registers, two loads of B and twelve broadcasts of A a step.

use std::arch::x86_64::*;

use super::{Kernels, LINE, Tile, table};

const LANES: usize = 16;

pub(super) static KERNELS: Kernels = Kernels {
    mr: 12,
    nr: 2 * LANES,
    lanes: LANES,
    by_rows: table!(tile, true; 1 2 3 4 5 6 7 8 9 10 11 12),
    by_columns: table!(tile, false; 1 2 3 4 5 6 7 8 9 10 11 12),
    transpose,
    panel_bytes: 512 << 10,
};

/// # Safety
/// As [`super::Micro`].
#[target_feature(enable = "avx512f")]
unsafe fn tile<const H: usize, const W: usize, const BY_ROWS: bool>(t: &Tile) {
    let (row, step) = if BY_ROWS { (t.a_stride, 1) } else { (1, t.a_stride) };
    let mut sums = [[_mm512_setzero_ps(); W]; H];
    let (mut a, mut b) = (t.a, t.b);
    for h in 0..H {
        for w in 0..W {
            // C is needed only at the end: ask for it now. A prefetch of any address is harmless.
            _mm_prefetch::<_MM_HINT_T0>(t.c.wrapping_add(h * t.c_stride + w * LANES).cast());
        }
    }
    let mut k = 0;
    while k < t.kc {
        for next in t.next {
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(k).cast());
        }
        let end = t.kc.min(k + LINE);
        while k < end {
            let mut bs = [_mm512_setzero_ps(); W];
            for w in 0..W {
                // SAFETY: the caller's B has W * LANES columns in each of kc rows.
                bs[w] = unsafe { _mm512_loadu_ps(b.add(w * LANES)) };
            }
            for h in 0..H {
                // SAFETY: the caller's A has H rows and kc columns.
                let x = unsafe { _mm512_set1_ps(*a.add(h * row)) };
                for w in 0..W {
                    sums[h][w] = _mm512_fmadd_ps(x, bs[w], sums[h][w]);
                }
            }
            a = a.wrapping_add(step);
            b = b.wrapping_add(t.b_stride);
            k += 1;
        }
    }
    let alpha = _mm512_set1_ps(t.alpha);
    for h in 0..H {
        for w in 0..W {
            // SAFETY: the caller's C has H rows and W * LANES columns.
            unsafe {
                let c = t.c.add(h * t.c_stride + w * LANES);
                let old = if t.accumulate { _mm512_loadu_ps(c) } else { _mm512_setzero_ps() };
                _mm512_storeu_ps(c, _mm512_fmadd_ps(alpha, sums[h][w], old));
            }
        }
    }
}

/// # Safety
/// As [`super::Transpose`].
#[target_feature(enable = "avx512f,avx512dq")]
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
                transpose16(src.add(r * stride + k), stride, dst.add(k * dst_stride + r), dst_stride, size)
            };
        }
    }
}

/// Floats that a transpose fetches ahead in each row.
const AHEAD: usize = 64;

/// A block of at most 16 x 16 (rows and columns of the source): pairs, then quadruples within 128-bit lanes, then the lanes themselves.
///
/// # Safety
/// `size` must be readable at `src`, and writable transposed at `dst`; nothing else is touched.
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn transpose16(
    src: *const f32,
    stride: usize,
    dst: *mut f32,
    dst_stride: usize,
    (rows, cols): (usize, usize),
) {
    let mut x = [_mm512_setzero_ps(); 16];
    let first = |n: usize| (((1u32 << n) - 1) & 0xffff) as __mmask16;
    for i in 0..16 {
        if i < rows {
            // Many rows at once are more than the hardware follows.
            _mm_prefetch::<_MM_HINT_T0>(src.wrapping_add(i * stride + AHEAD).cast());
            // SAFETY: the mask leaves out what the caller does not vouch for.
            x[i] = unsafe { _mm512_maskz_loadu_ps(first(cols), src.add(i * stride)) };
        }
    }
    let mut y = x;
    for i in 0..8 {
        y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    // x[4g + j], lane l: column 4l + j of rows 4g .. 4g + 4.
    for g in 0..4 {
        let pair = |v: __m512| _mm512_castps_pd(v);
        let (p, q) = (pair(y[4 * g]), pair(y[4 * g + 2]));
        let (s, t) = (pair(y[4 * g + 1]), pair(y[4 * g + 3]));
        x[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, q));
        x[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, q));
        x[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(s, t));
        x[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(s, t));
    }
    for j in 0..4 {
        // Lanes 0 2 of two groups, lanes 1 3 of two groups; then the same again.
        let even01 = _mm512_shuffle_f32x4::<0b10_00_10_00>(x[j], x[4 + j]);
        let odd01 = _mm512_shuffle_f32x4::<0b11_01_11_01>(x[j], x[4 + j]);
        let even23 = _mm512_shuffle_f32x4::<0b10_00_10_00>(x[8 + j], x[12 + j]);
        let odd23 = _mm512_shuffle_f32x4::<0b11_01_11_01>(x[8 + j], x[12 + j]);
        let columns = [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(even01, even23),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(odd01, odd23),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(even01, even23),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(odd01, odd23),
        ];
        for (l, column) in columns.into_iter().enumerate() {
            if 4 * l + j < cols {
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_ps(dst.add((4 * l + j) * dst_stride), first(rows), column) };
            }
        }
    }
}
