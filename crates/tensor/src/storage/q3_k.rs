//! Q3_K: 256 columns in 110 bytes, w = d (s - 32) (q - 4), s six bits for 16 columns each.
//! Layout: 32 bytes of third bits (bit i for group i), 64 bytes of two lower bits, 12 bytes of scales, d f16.

use super::blocks::{Blocked, Group, Isa, bytes, each, spec};
use super::{Format, Spec};

pub(super) static Q3_K: Spec = spec::<Q3K, 110>();

struct Q3K;

impl Blocked<110> for Q3K {
    const FORMAT: Format = Format::Q3_K;
    const NAME: &'static str = "q3_k";
    const COLS: usize = 256;
    const OFFSET: bool = false;

    #[inline(always)]
    fn group(isa: impl Isa, block: &[u8; 110], i: usize) -> Group {
        let d = isa.f16(*bytes(block, 108));
        let high: &[u8; 32] = bytes(block, 0);
        let low: &[u8; 32] = bytes(block, 32 + i / 4 * 32);
        let scales: &[u8; 12] = bytes(block, 96);
        // Low nibbles: eight bytes, lower halves first; high pairs: four bytes, by rising shift.
        let scale = |k: usize| {
            let s = scales[k % 8] >> (k / 8 * 4) & 15 | (scales[8 + k % 4] >> (k / 4 * 2) & 3) << 4;
            d * f32::from(s as i8 - 32)
        };
        Group {
            q: each(|j| low[j] >> (i % 4 * 2) & 3 | (high[j] >> i & 1) << 2, 4),
            scale: [scale(2 * i), scale(2 * i + 1)],
            offset: [0.0; 2],
        }
    }
}
