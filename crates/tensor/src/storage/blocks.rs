//! What all of ggml's block formats share: a weight is `q * scale + offset`, q a small integer, scale and offset the same for 16 or 32 columns.
//!
//! A format's file says how a group of 32 columns is unpacked from its block; decoding and the one-row product are here, once for all.

use std::marker::PhantomData;

use super::{Format, Spec, Storage, check_decode, check_dot};
use crate::kernel::simd::fold;

/// Columns of a group, the unit of unpacking.
pub(super) const GROUP: usize = 32;

/// 32 columns: w[i] = q[i] * scale[i / 16] + offset[i / 16].
pub(super) struct Group {
    pub q: [i8; GROUP],
    pub scale: [f32; 2],
    pub offset: [f32; 2],
}

impl Group {
    /// One scale for all columns, no offset.
    #[inline(always)]
    pub fn scaled(q: [i8; GROUP], scale: f32) -> Group {
        Group { q, scale: [scale; 2], offset: [0.0; 2] }
    }

    /// One scale and offset for all columns.
    #[inline(always)]
    pub fn affine(q: [i8; GROUP], scale: f32, offset: f32) -> Group {
        Group { q, scale: [scale; 2], offset: [offset; 2] }
    }
}

/// How a format's blocks of `BYTES` bytes are unpacked.
pub(super) trait Blocked<const BYTES: usize>: Send + Sync + 'static {
    const FORMAT: Format;
    const NAME: &'static str;
    /// Columns of a block, a multiple of [`GROUP`].
    const COLS: usize;
    /// Whether offsets are ever other than zero.
    const OFFSET: bool;

    /// Group `i` of a block; to be `#[inline(always)]`.
    fn group(isa: impl Isa, block: &[u8; BYTES], i: usize) -> Group;

    /// Appends a block of `COLS` elements, as ggml's reference writes it.
    const ENCODE: Option<fn(&[f32], &mut Vec<u8>)> = None;
}

/// A format's entry in the registry.
pub(super) const fn spec<F: Blocked<BYTES>, const BYTES: usize>() -> Spec {
    Spec {
        format: F::FORMAT,
        name: F::NAME,
        block: (F::COLS, BYTES),
        open: |rows, cols, bytes| Box::new(Blocks::<F, BYTES> { rows, cols, bytes, format: PhantomData }),
        encode: match F::ENCODE {
            None => None,
            Some(_) => Some(|row, out| {
                let Some(encode) = F::ENCODE else { return };
                row.chunks_exact(F::COLS).for_each(|block| encode(block, out));
            }),
        },
    }
}

/// A matrix in a block format: the file's bytes.
struct Blocks<F, const BYTES: usize> {
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    format: PhantomData<F>,
}

impl<F: Blocked<BYTES>, const BYTES: usize> Blocks<F, BYTES> {
    fn row(&self, row: usize) -> &[[u8; BYTES]] {
        let blocks = self.cols / F::COLS;
        &self.bytes.as_chunks::<BYTES>().0[row * blocks..][..blocks]
    }
}

impl<F: Blocked<BYTES>, const BYTES: usize> Storage for Blocks<F, BYTES> {
    fn format(&self) -> &'static str {
        F::NAME
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        self.bytes.len()
    }
    fn block(&self) -> usize {
        F::COLS
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        check_decode(self, row, col0, out.len());
        let blocks = &self.row(row)[col0 / F::COLS..][..out.len() / F::COLS];
        decode::<F, BYTES>(blocks, out);
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        check_dot(self, row0, x, y);
        let blocks = self.cols / F::COLS;
        dot_rows::<F, BYTES>(&self.bytes.as_chunks::<BYTES>().0[row0 * blocks..], x, y);
    }
}

/// What an instruction set has of its own, for bodies that are compiled for each.
pub(super) trait Isa: Copy {
    /// a * b + c, fused where that is one instruction.
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32;
    /// The value of an IEEE half.
    fn f16(self, bits: [u8; 2]) -> f32;
}

/// The baseline.
#[derive(Clone, Copy)]
struct Plain;

impl Isa for Plain {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
    }
    #[inline(always)]
    fn f16(self, bits: [u8; 2]) -> f32 {
        super::dense::from_f16(u16::from_le_bytes(bits))
    }
}

/// AVX2 or AVX-512: both have FMA and F16C. A value of it proves that the machine has them.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Fma(());

#[cfg(target_arch = "x86_64")]
impl Isa for Fma {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
    #[inline(always)]
    fn f16(self, bits: [u8; 2]) -> f32 {
        use std::arch::x86_64::{_mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32};
        // SAFETY: whoever made this value found F16C (see `per_isa`).
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bits))))) }
    }
}

/// `multiversion!` for functions of a format, whose bodies get the instruction set as a value.
macro_rules! per_isa {
    ($(#[$meta:meta])* fn $name:ident($isa:ident, $($arg:ident: $ty:ty),*) $body:block) => {
        $(#[$meta])*
        fn $name<F: Blocked<BYTES>, const BYTES: usize>($($arg: $ty),*) {
            #[inline(always)]
            fn body<F: Blocked<BYTES>, const BYTES: usize>($isa: impl Isa, $($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                use crate::kernel::{Level, level};
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
                fn avx2<F: Blocked<BYTES>, const BYTES: usize>(isa: Fma, $($arg: $ty),*) {
                    body::<F, BYTES>(isa, $($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
                fn avx512<F: Blocked<BYTES>, const BYTES: usize>(isa: Fma, $($arg: $ty),*) {
                    body::<F, BYTES>(isa, $($arg),*)
                }
                match level() {
                    // SAFETY: `level` names an instruction set only after finding each of its features on this machine.
                    Level::Avx512 => unsafe { avx512::<F, BYTES>(Fma(()), $($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => unsafe { avx2::<F, BYTES>(Fma(()), $($arg),*) },
                    Level::Portable => body::<F, BYTES>(Plain, $($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body::<F, BYTES>(Plain, $($arg),*)
        }
    };
}

per_isa! {
    /// Decodes whole blocks; product and sum are rounded one by one, as ggml's reference does.
    fn decode(isa, blocks: &[[u8; BYTES]], out: &mut [f32]) {
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(F::COLS)) {
            for (i, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let group = F::group(isa, block, i);
                for (half, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                    for j in 0..16 {
                        let w = f32::from(group.q[16 * half + j]) * group.scale[half];
                        out[j] = if F::OFFSET { w + group.offset[half] } else { w };
                    }
                }
            }
        }
    }
}

per_isa! {
    /// y[i] = the dot product of x and the i-th row of `blocks`.
    fn dot_rows(isa, blocks: &[[u8; BYTES]], x: &[f32], y: &mut [f32]) {
        let per_row = x.len() / F::COLS;
        for (i, y) in y.iter_mut().enumerate() {
            let mut lanes = [0.0f32; GROUP];
            let row = &blocks[i * per_row..][..per_row];
            for (block, x) in row.iter().zip(x.chunks_exact(F::COLS)) {
                for (i, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
                    let group = F::group(isa, block, i);
                    for half in 0..2 {
                        for j in 16 * half..16 * half + 16 {
                            let q = f32::from(group.q[j]);
                            let w = if F::OFFSET {
                                isa.mul_add(q, group.scale[half], group.offset[half])
                            } else {
                                q * group.scale[half]
                            };
                            lanes[j] = isa.mul_add(w, x[j], lanes[j]);
                        }
                    }
                }
            }
            *y = fold(lanes, |a, b| a + b);
        }
    }
}

/// The sixteen bytes from `at` hold 32 nibbles: columns 0..16 in the lower halves, 16..32 in the upper.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8; 16]) -> [u8; GROUP] {
    let mut q = [0; GROUP];
    for j in 0..16 {
        q[j] = bytes[j] & 15;
        q[j + 16] = bytes[j] >> 4;
    }
    q
}

/// N bytes of a block from `at` on; always in bounds, as blocks and offsets are constants.
#[inline(always)]
pub(super) fn bytes<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    match block[at..].first_chunk() {
        Some(chunk) => chunk,
        None => unreachable!("a block's fields lie inside it"),
    }
}

/// Bit j of the 32 as a byte, 0 or 1.
#[inline(always)]
pub(super) fn bits(mask: &[u8; 4]) -> [u8; GROUP] {
    let mask = u32::from_le_bytes(*mask);
    let mut bits = [0; GROUP];
    for j in 0..GROUP {
        bits[j] = (mask >> j & 1) as u8;
    }
    bits
}

/// f(j) for each column, as a small signed integer.
#[inline(always)]
pub(super) fn each(f: impl Fn(usize) -> u8, minus: i8) -> [i8; GROUP] {
    let mut q = [0; GROUP];
    for j in 0..GROUP {
        q[j] = (f(j) as i8).wrapping_sub(minus);
    }
    q
}
