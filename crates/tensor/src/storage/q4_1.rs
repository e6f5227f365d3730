//! Q4_1: 32 columns in 20 bytes, w = d q + m. Layout: d f16, m f16, 16 bytes of nibbles.

use half::f16;

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::{Format, Spec};

pub(super) static Q4_1: Spec = spec::<Q41, 20>();

struct Q41;

impl Blocked<20> for Q41 {
    const FORMAT: Format = Format::Q4_1;
    const NAME: &'static str = "q4_1";
    const COLS: usize = 32;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 20], _: usize) -> [I::Floats; 2] {
        isa.affine_nibbles(
            field(block, 4),
            isa.splat_half(*field(block, 0)),
            isa.splat_half(*field(block, 2)),
        )
    }
}

/// The smallest element becomes 0, the largest 15.
fn encode(x: &[f32], out: &mut Vec<u8>) {
    let (min, max) = x.iter().fold((f32::MAX, -f32::MAX), |(min, max), &v| {
        (if v < min { v } else { min }, if v > max { v } else { max })
    });
    let d = (max - min) / 15.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(f16::from_f32(min).to_le_bytes());
    let q = |v: f32| (((v - min) * inverse + 0.5) as i8).min(15) as u8;
    out.extend((0..16).map(|j| q(x[j]) | q(x[j + 16]) << 4));
}
