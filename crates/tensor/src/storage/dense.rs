//! One number an element: f32, f16 (IEEE half) and bf16 (the upper half of an f32).

use half::{bf16, f16};

use super::blocks::field;
use super::isa::{Isa, per_isa};
use super::{Format, Spec, Storage, check_decode, check_dot};
use crate::kernel::simd::dot_inline;
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
    encode: |row, out| out.extend(row.iter().flat_map(|v| v.to_le_bytes())),
};

pub(super) static F16: Spec = Spec {
    format: Format::F16,
    name: "f16",
    block: (1, 2),
    open: |rows, cols, bytes| Box::new(HalfMatrix::<false> { rows, cols, words: words(&bytes) }),
    encode: |row, out| out.extend(row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
};

pub(super) static BF16: Spec = Spec {
    format: Format::BF16,
    name: "bf16",
    block: (1, 2),
    open: |rows, cols, bytes| Box::new(HalfMatrix::<true> { rows, cols, words: words(&bytes) }),
    encode: |row, out| out.extend(row.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
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
        decode::<BRAIN>(words, out);
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        check_dot(self, row0, x, y);
        dot_rows::<BRAIN>(&self.words[row0 * self.cols..], x, y);
    }
}

multiversion! {
    /// y[i] = the dot product of x and the i-th row of `rows`, each as long as x.
    fn dot_f32(rows: &[f32], x: &[f32], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = dot_inline(&rows[i * x.len()..][..x.len()], x);
        }
    }
}

/// Sixteen elements.
#[inline(always)]
fn widen<I: Isa, const BRAIN: bool>(isa: I, words: &[u16; 16]) -> I::Floats {
    if BRAIN { isa.brains(words) } else { isa.halves(words) }
}

/// 64 elements of a dot product.
#[inline(always)]
fn step<I: Isa, const BRAIN: bool>(
    isa: I,
    row: &[u16; 64],
    x: &[f32; 64],
    sums: [I::Floats; 4],
) -> [I::Floats; 4] {
    let mut sums = sums;
    for j in 0..4 {
        sums[j] =
            isa.mul_add(widen::<_, BRAIN>(isa, field(row, 16 * j)), isa.load(field(x, 16 * j)), sums[j]);
    }
    sums
}

/// A row's last elements, followed by zeros.
#[inline(always)]
fn padded<T: Copy + Default, const N: usize>(tail: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all[..tail.len()].copy_from_slice(tail);
    all
}

per_isa! {
    fn decode[const BRAIN: bool][BRAIN](isa; words: &[u16], out: &mut [f32]) {
        let (words, word_tail) = words.as_chunks::<16>();
        let (out, out_tail) = out.as_chunks_mut::<16>();
        for (words, out) in words.iter().zip(out) {
            isa.store(widen::<_, BRAIN>(isa, words), out);
        }
        let mut last = [0.0; 16];
        isa.store(widen::<_, BRAIN>(isa, &padded(word_tail)), &mut last);
        out_tail.copy_from_slice(&last[..out_tail.len()]);
    }
}

per_isa! {
    /// y[i] = the dot product of x and the i-th row of `rows`, each as long as x.
    fn dot_rows[const BRAIN: bool][BRAIN](isa; rows: &[u16], x: &[f32], y: &mut [f32]) {
        let (xs, x_tail) = x.as_chunks::<64>();
        for (i, y) in y.iter_mut().enumerate() {
            let (row, row_tail) = rows[i * x.len()..][..x.len()].as_chunks::<64>();
            let mut sums = [isa.splat(0.0); 4];
            for (row, x) in row.iter().zip(xs) {
                sums = step::<_, BRAIN>(isa, row, x, sums);
            }
            if !row_tail.is_empty() {
                sums = step::<_, BRAIN>(isa, &padded(row_tail), &padded(x_tail), sums);
            }
            let mut lanes = [0.0; 16];
            isa.store(isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3])), &mut lanes);
            *y = lanes.iter().sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::{from_bf16, from_f16};
    use super::*;

    #[test]
    fn every_half_widens_to_its_value_on_every_path() {
        let words: Vec<u16> = (0..=u16::MAX).collect();
        let mut all = vec![0.0; words.len()];
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        decode::<false>(&words, &mut all);
        for (w, f) in words.iter().zip(&all) {
            let want = f16::from_bits(*w).to_f32();
            assert!(same(*f, want) && same(from_f16(*w), want), "{w:#x} {f} {want}");
        }
        decode::<true>(&words, &mut all);
        for (w, f) in words.iter().zip(&all) {
            let want = bf16::from_bits(*w).to_f32();
            assert!(same(*f, want) && same(from_bf16(*w), want), "{w:#x} {f} {want}");
        }
    }
}
