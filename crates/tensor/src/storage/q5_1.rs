//! Q5_1: 32 columns in 24 bytes, w = d q + m. Layout: d f16, m f16, 32 fifth bits, 16 bytes of nibbles.

use half::f16;

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::{Format, Spec};

pub(super) static Q5_1: Spec = spec::<Q51, 24>();

struct Q51;

impl Blocked<24> for Q51 {
    const FORMAT: Format = Format::Q5_1;
    const NAME: &'static str = "q5_1";
    const COLS: usize = 32;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 24], _: usize) -> [I::Floats; 2] {
        let high = isa.and(isa.spread(u32::from_le_bytes(*field(block, 4))), 16);
        let q = isa.or(isa.nibbles(field(block, 8)), high);
        let min = isa.splat_half(*field(block, 2));
        isa.times(q, isa.splat_half(*field(block, 0))).map(|w| isa.add(w, min))
    }
}

/// The smallest element becomes 0, the largest 31.
fn encode(x: &[f32], out: &mut Vec<u8>) {
    let (min, max) = x.iter().fold((f32::MAX, -f32::MAX), |(min, max), &v| {
        (if v < min { v } else { min }, if v > max { v } else { max })
    });
    let d = (max - min) / 31.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(f16::from_f32(min).to_le_bytes());
    super::q5_0::write(x, |v| ((v - min) * inverse + 0.5) as u8, out);
}
