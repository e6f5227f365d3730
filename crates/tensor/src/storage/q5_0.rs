//! Q5_0: 32 columns in 22 bytes, w = d (q - 16). Layout: d f16, 32 fifth bits, 16 bytes of nibbles.

use half::f16;

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::{Format, Spec};

pub(super) static Q5_0: Spec = spec::<Q50, 22>();

struct Q50;

impl Blocked<22> for Q50 {
    const FORMAT: Format = Format::Q5_0;
    const NAME: &'static str = "q5_0";
    const COLS: usize = 32;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 22], _: usize) -> [I::Floats; 2] {
        let high = isa.and(isa.spread(u32::from_le_bytes(*field(block, 2))), 16);
        let q = isa.minus(isa.or(isa.nibbles(field(block, 6)), high), 16);
        isa.times(q, isa.splat_half(*field(block, 0)))
    }
}

/// The element furthest from zero becomes -16.
fn encode(x: &[f32], out: &mut Vec<u8>) {
    let (_, extreme) =
        x.iter().fold((0.0, 0.0), |(most, at), &v| if v.abs() > most { (v.abs(), v) } else { (most, at) });
    let d = extreme / -16.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend(f16::from_f32(d).to_le_bytes());
    write(x, |v| ((v * inverse + 16.5) as i8).min(31) as u8, out);
}

/// The fifth bits, then the nibbles, of five-bit numbers.
pub(super) fn write(x: &[f32], q: impl Fn(f32) -> u8, out: &mut Vec<u8>) {
    let high = (0..32).fold(0u32, |mask, j| mask | u32::from(q(x[j]) >> 4) << j);
    out.extend(high.to_le_bytes());
    out.extend((0..16).map(|j| q(x[j]) & 15 | q(x[j + 16]) << 4));
}
