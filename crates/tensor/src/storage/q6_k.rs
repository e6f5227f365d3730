//! Q6_K: 256 columns in 210 bytes, w = d s (q - 32), s a signed byte for 16 columns each.
//! Layout: 128 bytes of nibbles, 64 bytes of two upper bits, 16 scales, d f16.

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::{Format, Spec};

pub(super) static Q6_K: Spec = spec::<Q6K, 210>();

struct Q6K;

impl Blocked<210> for Q6K {
    const FORMAT: Format = Format::Q6_K;
    const NAME: &'static str = "q6_k";
    const COLS: usize = 256;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 210], i: usize) -> [I::Floats; 2] {
        let d = isa.half(*field(block, 208));
        let (half, part) = (i / 4, i % 4);
        // In each half: the lower nibbles of 64 bytes, then the upper ones.
        let low = isa.shift_and(isa.bytes(field(block, half * 64 + part % 2 * 32)), part / 2 * 4, 15);
        let high = isa.shift_and(isa.bytes(field(block, 128 + half * 32)), part * 2, 3);
        let q = isa.minus(isa.or(low, isa.shift_up(high, 4)), 32);
        let scales: &[u8; 2] = field(block, 192 + 2 * i);
        isa.scaled(q, scales.map(|s| d * f32::from(s as i8)))
    }
}
