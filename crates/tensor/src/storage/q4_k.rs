//! Q4_K: 256 columns in 144 bytes, w = d s q - dmin m, s and m six bits for 32 columns each.
//! Layout: d f16, dmin f16, 12 bytes of scales, 128 bytes of nibbles (lower halves of 32 bytes, then upper).

use super::blocks::{Blocked, Group, Isa, bytes, each, spec};
use super::{Format, Spec};

pub(super) static Q4_K: Spec = spec::<Q4K, 144>();

struct Q4K;

impl Blocked<144> for Q4K {
    const FORMAT: Format = Format::Q4_K;
    const NAME: &'static str = "q4_k";
    const COLS: usize = 256;
    const OFFSET: bool = true;

    #[inline(always)]
    fn group(isa: impl Isa, block: &[u8; 144], i: usize) -> Group {
        let (d, dmin) = (isa.f16(*bytes(block, 0)), isa.f16(*bytes(block, 2)));
        let (s, m) = scale_and_min(bytes(block, 4), i);
        let q: &[u8; 32] = bytes(block, 16 + i / 2 * 32);
        Group::affine(each(|j| q[j] >> (i % 2 * 4) & 15, 0), d * f32::from(s), -(dmin * f32::from(m)))
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
