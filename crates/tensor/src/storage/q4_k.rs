//! Q4_K: 256 columns in 144 bytes, w = d s q - dmin m, s and m six bits for 32 columns each.
//! Layout: d f16, dmin f16, 12 bytes of scales, 128 bytes of nibbles (lower halves of 32 bytes, then upper).

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::k_quants::{Search, affine_of_32, nibbles};
use super::{Format, Spec};
use crate::multiversion;

pub(super) static Q4_K: Spec = spec::<Q4K, 144>();

struct Q4K;

impl Blocked<144> for Q4K {
    const FORMAT: Format = Format::Q4_K;
    const NAME: &'static str = "q4_k";
    const COLS: usize = 256;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 144], i: usize) -> [I::Floats; 2] {
        let (d, dmin) = (isa.half(*field(block, 0)), isa.half(*field(block, 2)));
        let (s, m) = scale_and_min(field(block, 4), i);
        let q = isa.shift_and(isa.bytes(field(block, 16 + i / 2 * 32)), i % 2 * 4, 15);
        isa.affine(q, [d * f32::from(s); 2], [-(dmin * f32::from(m)); 2])
    }
}

/// Scale and minimum of group `i`: the first four of each in six bits of a byte, the others in a nibble and two spare bits.
#[inline(always)]
pub(super) fn scale_and_min(packed: &[u8; 12], i: usize) -> (u8, u8) {
    if i < 4 {
        return (packed[i] & 63, packed[i + 4] & 63);
    }
    (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
}

multiversion! {
    fn encode(x: &[f32], out: &mut Vec<u8>) {
        let search = Search { levels: 15.0, from: -1.0, tries: 20, absolute: false };
        let (head, q) = affine_of_32(field(x, 0), search);
        out.extend(head);
        out.extend(nibbles(&q));
    }
}
