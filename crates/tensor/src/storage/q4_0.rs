//! Q4_0: 32 columns in 18 bytes, w = d (q - 8). Layout: d f16, 16 bytes of nibbles.

use half::f16;

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::{Format, Spec};

pub(super) static Q4_0: Spec = spec::<Q40, 18>();

struct Q40;

impl Blocked<18> for Q40 {
    const FORMAT: Format = Format::Q4_0;
    const NAME: &'static str = "q4_0";
    const COLS: usize = 32;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 18], _: usize) -> [I::Floats; 2] {
        isa.centred_nibbles(field(block, 2), isa.splat_half(*field(block, 0)))
    }
}

/// The element furthest from zero becomes -8.
fn encode(x: &[f32], out: &mut Vec<u8>) {
    let (_, extreme) =
        x.iter().fold((0.0, 0.0), |(most, at), &v| if v.abs() > most { (v.abs(), v) } else { (most, at) });
    let d = extreme / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend(f16::from_f32(d).to_le_bytes());
    let q = |v: f32| ((v * inverse + 8.5) as i8).min(15) as u8;
    out.extend((0..16).map(|j| q(x[j]) | q(x[j + 16]) << 4));
}
