//! Q5_K: 256 columns in 176 bytes, w = d s q - dmin m, s and m six bits for 32 columns each.
//! Layout: d f16, dmin f16, 12 bytes of scales, 32 bytes of fifth bits (bit i for group i), 128 bytes of nibbles.

use super::blocks::{Blocked, Group, Isa, bytes, each, spec};
use super::q4_k::scale_and_min;
use super::{Format, Spec};

pub(super) static Q5_K: Spec = spec::<Q5K, 176>();

struct Q5K;

impl Blocked<176> for Q5K {
    const FORMAT: Format = Format::Q5_K;
    const NAME: &'static str = "q5_k";
    const COLS: usize = 256;
    const OFFSET: bool = true;

    #[inline(always)]
    fn group(isa: impl Isa, block: &[u8; 176], i: usize) -> Group {
        let (d, dmin) = (isa.f16(*bytes(block, 0)), isa.f16(*bytes(block, 2)));
        let (s, m) = scale_and_min(bytes(block, 4), i);
        let high: &[u8; 32] = bytes(block, 16);
        let low: &[u8; 32] = bytes(block, 48 + i / 2 * 32);
        let q = each(|j| low[j] >> (i % 2 * 4) & 15 | (high[j] >> i & 1) << 4, 0);
        Group::affine(q, d * f32::from(s), -(dmin * f32::from(m)))
    }
}
