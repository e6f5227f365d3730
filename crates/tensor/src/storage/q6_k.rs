//! Q6_K: 256 columns in 210 bytes, w = d s (q - 32), s a signed byte for 16 columns each.
//! Layout: 128 bytes of nibbles, 64 bytes of two upper bits, 16 scales, d f16.

use super::blocks::{Blocked, Group, Isa, bytes, each, spec};
use super::{Format, Spec};

pub(super) static Q6_K: Spec = spec::<Q6K, 210>();

struct Q6K;

impl Blocked<210> for Q6K {
    const FORMAT: Format = Format::Q6_K;
    const NAME: &'static str = "q6_k";
    const COLS: usize = 256;
    const OFFSET: bool = false;

    #[inline(always)]
    fn group(isa: impl Isa, block: &[u8; 210], i: usize) -> Group {
        let d = isa.f16(*bytes(block, 208));
        let (half, part) = (i / 4, i % 4);
        // In each half: the lower nibbles of 64 bytes, then the upper ones.
        let low: &[u8; 32] = bytes(block, half * 64 + part % 2 * 32);
        let high: &[u8; 32] = bytes(block, 128 + half * 32);
        let scales: &[u8; 2] = bytes(block, 192 + 2 * i);
        Group {
            q: each(|j| low[j] >> (part / 2 * 4) & 15 | (high[j] >> (part * 2) & 3) << 4, 32),
            scale: scales.map(|s| d * f32::from(s as i8)),
            offset: [0.0; 2],
        }
    }
}
