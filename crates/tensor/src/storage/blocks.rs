//! What all of ggml's block formats share: a weight is `q * scale + offset`, q a small integer, scale and offset the same for 16 or 32 columns.
//!
//! A format's file says how a group of 32 columns is unpacked from its block; decoding and the one-row product are here, once for all.

use std::marker::PhantomData;

use super::isa::{Isa, per_isa};
use super::{Format, Spec, Storage, check_decode, check_dot};
use crate::kernel::simd::fold;

/// Columns of a group, the unit of unpacking.
pub(super) const GROUP: usize = 32;

/// How a format's blocks of `BYTES` bytes are unpacked.
pub(super) trait Blocked<const BYTES: usize>: Send + Sync + 'static {
    const FORMAT: Format;
    const NAME: &'static str;
    /// Columns of a block, a multiple of [`GROUP`].
    const COLS: usize;

    /// The weights of group `i` of a block; to be `#[inline(always)]`.
    fn group<I: Isa>(isa: I, block: &[u8; BYTES], i: usize) -> [I::Floats; 2];

    /// Appends a block of `COLS` elements, as ggml's reference writes it.
    const ENCODE: fn(&[f32], &mut Vec<u8>);
}

/// A format's entry in the registry.
pub(super) const fn spec<F: Blocked<BYTES>, const BYTES: usize>() -> Spec {
    Spec {
        format: F::FORMAT,
        name: F::NAME,
        block: (F::COLS, BYTES),
        open: |rows, cols, bytes| Box::new(Blocks::<F, BYTES> { rows, cols, bytes, format: PhantomData }),
        encode: |row, out| row.chunks_exact(F::COLS).for_each(|block| (F::ENCODE)(block, out)),
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

per_isa! {
    /// Decodes whole blocks.
    fn decode[F: Blocked<BYTES>, const BYTES: usize][F, BYTES](isa; blocks: &[[u8; BYTES]], out: &mut [f32]) {
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(F::COLS)) {
            for (i, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let [low, high] = F::group(isa, block, i);
                let [to_low, to_high] = halves(out);
                isa.store(low, to_low);
                isa.store(high, to_high);
            }
        }
    }
}

per_isa! {
    /// y[i] = the dot product of x and the i-th row of `blocks`.
    fn dot_rows[F: Blocked<BYTES>, const BYTES: usize][F, BYTES](isa; blocks: &[[u8; BYTES]], x: &[f32], y: &mut [f32]) {
        let per_row = x.len() / F::COLS;
        for (i, y) in y.iter_mut().enumerate() {
            let mut sums = [isa.splat(0.0); 2];
            let row = &blocks[i * per_row..][..per_row];
            for (block, x) in row.iter().zip(x.chunks_exact(F::COLS)) {
                for (i, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
                    let [low, high] = F::group(isa, block, i);
                    sums[0] = isa.mul_add(low, isa.load(field(x, 0)), sums[0]);
                    sums[1] = isa.mul_add(high, isa.load(field(x, 16)), sums[1]);
                }
            }
            let mut lanes = [0.0; GROUP];
            let [low, high] = halves(&mut lanes);
            isa.store(sums[0], low);
            isa.store(sums[1], high);
            *y = fold(lanes, |a, b| a + b);
        }
    }
}

/// N items of a block from `at` on; always in bounds, as blocks and offsets are constants.
#[inline(always)]
pub(super) fn field<T, const N: usize>(block: &[T], at: usize) -> &[T; N] {
    match block[at..].first_chunk() {
        Some(chunk) => chunk,
        None => unreachable!("a block's fields lie inside it"),
    }
}

/// The two halves of a group.
#[inline(always)]
fn halves(group: &mut [f32; GROUP]) -> [&mut [f32; 16]; 2] {
    match group.as_chunks_mut().0 {
        [low, high] => [low, high],
        _ => unreachable!("32 is twice 16"),
    }
}
