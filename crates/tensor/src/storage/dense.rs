//! One number an element: f32, f16 (IEEE half) and bf16 (the upper half of an f32).

use half::{bf16, f16};

use super::{Format, Spec, Storage, check_decode, check_dot};
use crate::kernel::simd::{LANES, dot_inline, fold};
use crate::multiversion;
use crate::tensor::Tensor;

pub(super) static F32: Spec = Spec {
    format: Format::F32,
    name: "f32",
    block: (1, 4),
    open: |rows, cols, bytes| {
        let data = bytes.as_chunks::<4>().0.iter().map(|w| f32::from_le_bytes(*w)).collect();
        Box::new(Tensor::from_vec(rows, cols, data))
    },
    encode: Some(|row, out| out.extend(row.iter().flat_map(|v| v.to_le_bytes()))),
};

pub(super) static F16: Spec = Spec {
    format: Format::F16,
    name: "f16",
    block: (1, 2),
    open: |rows, cols, bytes| Box::new(HalfMatrix::<false> { rows, cols, words: words(&bytes) }),
    encode: Some(|row, out| out.extend(row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()))),
};

pub(super) static BF16: Spec = Spec {
    format: Format::BF16,
    name: "bf16",
    block: (1, 2),
    open: |rows, cols, bytes| Box::new(HalfMatrix::<true> { rows, cols, words: words(&bytes) }),
    encode: Some(|row, out| out.extend(row.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()))),
};

fn words(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks::<2>().0.iter().map(|w| u16::from_le_bytes(*w)).collect()
}

/// A tensor is a matrix stored in f32.
impl Storage for Tensor {
    fn format(&self) -> &'static str {
        F32.name
    }
    fn rows(&self) -> usize {
        Tensor::rows(self)
    }
    fn cols(&self) -> usize {
        Tensor::cols(self)
    }
    fn bytes(&self) -> usize {
        self.len() * 4
    }
    fn block(&self) -> usize {
        1
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        check_decode(self, row, col0, out.len());
        out.copy_from_slice(&self.row(row)[col0..][..out.len()]);
    }
    fn as_f32(&self) -> Option<&[f32]> {
        Some(self.data())
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        check_dot(self, row0, x, y);
        dot_f32(&self.data()[row0 * Tensor::cols(self)..], x, y);
    }
}

/// 16 bits an element; `BRAIN` tells bf16 from f16.
struct HalfMatrix<const BRAIN: bool> {
    rows: usize,
    cols: usize,
    words: Vec<u16>,
}

impl<const BRAIN: bool> Storage for HalfMatrix<BRAIN> {
    fn format(&self) -> &'static str {
        if BRAIN { BF16.name } else { F16.name }
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        self.words.len() * 2
    }
    fn block(&self) -> usize {
        1
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        check_decode(self, row, col0, out.len());
        let words = &self.words[row * self.cols + col0..][..out.len()];
        if BRAIN { widen_bf16(words, out) } else { widen_f16(words, out) }
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        check_dot(self, row0, x, y);
        let words = &self.words[row0 * self.cols..];
        if BRAIN { dot_bf16(words, x, y) } else { dot_f16(words, x, y) }
    }
}

#[inline(always)]
pub(crate) fn from_bf16(w: u16) -> f32 {
    f32::from_bits(u32::from(w) << 16)
}

/// IEEE half to f32, without branches and without subnormal f32 on the way (slow on many machines).
#[inline(always)]
pub(crate) fn from_f16(w: u16) -> f32 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5; // 2^-14
    let w = u32::from(w);
    let sign = (w & 0x8000) << 16;
    let magnitude = (w & 0x7fff) << 13; // exponent and mantissa in place, bias still 15
    let normal = magnitude + ((127 - 15) << 23);
    let special = magnitude + ((255 - 31) << 23); // inf and NaN
    // A subnormal is mantissa * 2^-24: put the mantissa behind the exponent of 2^-14, and take 2^-14 away.
    let subnormal = (f32::from_bits(normal + (1 << 23)) - SMALLEST_NORMAL).to_bits();
    let bits = if magnitude >= 31 << 23 { special } else { normal };
    let bits = if magnitude < 1 << 23 { subnormal } else { bits };
    f32::from_bits(bits | sign)
}

/// Dot product of f32 with a row that is widened on the way.
#[inline(always)]
fn dot_wide(row: &[u16], x: &[f32], widen: impl Fn(u16) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (rows, row_tail) = row.as_chunks::<LANES>();
    let (xs, x_tail) = x.as_chunks::<LANES>();
    for (row, x) in rows.iter().zip(xs) {
        for i in 0..LANES {
            lanes[i] += widen(row[i]) * x[i];
        }
    }
    for ((lane, w), x) in lanes.iter_mut().zip(row_tail).zip(x_tail) {
        *lane += widen(*w) * x;
    }
    fold(lanes, |a, b| a + b)
}

multiversion! {
    fn widen_bf16(words: &[u16], out: &mut [f32]) {
        for (o, w) in out.iter_mut().zip(words) {
            *o = from_bf16(*w);
        }
    }

    fn widen_f16(words: &[u16], out: &mut [f32]) {
        for (o, w) in out.iter_mut().zip(words) {
            *o = from_f16(*w);
        }
    }

    /// y[i] = the dot product of x and the i-th row of `rows`, each as long as x.
    fn dot_f32(rows: &[f32], x: &[f32], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = dot_inline(&rows[i * x.len()..][..x.len()], x);
        }
    }

    fn dot_bf16(rows: &[u16], x: &[f32], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = dot_wide(&rows[i * x.len()..][..x.len()], x, from_bf16);
        }
    }

    fn dot_f16(rows: &[u16], x: &[f32], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = dot_wide(&rows[i * x.len()..][..x.len()], x, from_f16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_to_its_value() {
        for w in 0..=u16::MAX {
            let (ours, theirs) = (from_f16(w), f16::from_bits(w).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "{w:#x} {ours} {theirs}"
            );
            let (ours, theirs) = (from_bf16(w), bf16::from_bits(w).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "{w:#x} {ours} {theirs}"
            );
        }
    }
}
