//! Q5_K: 256 columns in 176 bytes, w = d s q - dmin m, s and m six bits for 32 columns each.
//! Layout: d f16, dmin f16, 12 bytes of scales, 32 bytes of fifth bits (bit i for group i), 128 bytes of nibbles.

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::k_quants::{Search, affine_of_32, bits, nibbles};
use super::q4_k::scale_and_min;
use super::{Format, Spec};
use crate::multiversion;

pub(super) static Q5_K: Spec = spec::<Q5K, 176>();

struct Q5K;

impl Blocked<176> for Q5K {
    const FORMAT: Format = Format::Q5_K;
    const NAME: &'static str = "q5_k";
    const COLS: usize = 256;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 176], i: usize) -> [I::Floats; 2] {
        let (d, dmin) = (isa.half(*field(block, 0)), isa.half(*field(block, 2)));
        let (s, m) = scale_and_min(field(block, 4), i);
        let low = isa.shift_and(isa.bytes(field(block, 48 + i / 2 * 32)), i % 2 * 4, 15);
        let high = isa.shift_up(isa.shift_and(isa.bytes(field(block, 16)), i, 1), 4);
        isa.affine(isa.or(low, high), [d * f32::from(s); 2], [-(dmin * f32::from(m)); 2])
    }
}

multiversion! {
    fn encode(x: &[f32], out: &mut Vec<u8>) {
        let search = Search { levels: 31.0, from: -0.5, tries: 15, absolute: false };
        let (head, q) = affine_of_32(field(x, 0), search);
        out.extend(head);
        out.extend(bits(&q, 4));
        out.extend(nibbles(&q));
    }
}
