//! Q3_K: 256 columns in 110 bytes, w = d (s - 32) (q - 4), s six bits for 16 columns each.
//! Layout: 32 bytes of third bits (bit i for group i), 64 bytes of two lower bits, 12 bytes of scales, d f16.

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::{Format, Spec};

pub(super) static Q3_K: Spec = spec::<Q3K, 110>();

struct Q3K;

impl Blocked<110> for Q3K {
    const FORMAT: Format = Format::Q3_K;
    const NAME: &'static str = "q3_k";
    const COLS: usize = 256;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 110], i: usize) -> [I::Floats; 2] {
        let d = isa.half(*field(block, 108));
        let low = isa.shift_and(isa.bytes(field(block, 32 + i / 4 * 32)), i % 4 * 2, 3);
        let high = isa.shift_up(isa.shift_and(isa.bytes(field(block, 0)), i, 1), 2);
        let scales: &[u8; 12] = field(block, 96);
        // Low nibbles: eight bytes, lower halves first; high pairs: four bytes, by rising shift.
        let scale = |k: usize| {
            let s = scales[k % 8] >> (k / 8 * 4) & 15 | (scales[8 + k % 4] >> (k / 4 * 2) & 3) << 4;
            d * f32::from(s as i8 - 32)
        };
        isa.scaled(isa.minus(isa.or(low, high), 4), [scale(2 * i), scale(2 * i + 1)])
    }
}
