//! Q2_K: 256 columns in 84 bytes, w = d s q - dmin m, s and m for 16 columns each.
//! Layout: 16 bytes of scales (s low nibble, m high), 64 bytes of two-bit q, d f16, dmin f16.

use super::blocks::{Blocked, Group, Isa, bytes, each, spec};
use super::{Format, Spec};

pub(super) static Q2_K: Spec = spec::<Q2K, 84>();

struct Q2K;

impl Blocked<84> for Q2K {
    const FORMAT: Format = Format::Q2_K;
    const NAME: &'static str = "q2_k";
    const COLS: usize = 256;
    const OFFSET: bool = true;

    #[inline(always)]
    fn group(isa: impl Isa, block: &[u8; 84], i: usize) -> Group {
        let (d, dmin) = (isa.f16(*bytes(block, 80)), isa.f16(*bytes(block, 82)));
        let q: &[u8; 32] = bytes(block, 16 + i / 4 * 32);
        let s: &[u8; 2] = bytes(block, 2 * i);
        Group {
            q: each(|j| q[j] >> (i % 4 * 2) & 3, 0),
            scale: s.map(|s| d * f32::from(s & 15)),
            offset: s.map(|s| -(dmin * f32::from(s >> 4))),
        }
    }
}
