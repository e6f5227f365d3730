//! Q2_K: 256 columns in 84 bytes, w = d s q - dmin m, s and m for 16 columns each.
//! Layout: 16 bytes of scales (s low nibble, m high), 64 bytes of two-bit q, d f16, dmin f16.

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::{Format, Spec};

pub(super) static Q2_K: Spec = spec::<Q2K, 84>();

struct Q2K;

impl Blocked<84> for Q2K {
    const FORMAT: Format = Format::Q2_K;
    const NAME: &'static str = "q2_k";
    const COLS: usize = 256;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 84], i: usize) -> [I::Floats; 2] {
        let (d, dmin) = (isa.half(*field(block, 80)), isa.half(*field(block, 82)));
        let q = isa.shift_and(isa.bytes(field(block, 16 + i / 4 * 32)), i % 4 * 2, 3);
        let s: &[u8; 2] = field(block, 2 * i);
        isa.affine(q, s.map(|s| d * f32::from(s & 15)), s.map(|s| -(dmin * f32::from(s >> 4))))
    }
}
