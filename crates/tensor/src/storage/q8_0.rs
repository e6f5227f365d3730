//! Q8_0: 32 columns in 34 bytes, w = d q. Layout: d f16, 32 signed bytes.

use half::f16;

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::{Format, Spec};

pub(super) static Q8_0: Spec = spec::<Q80, 34>();

struct Q80;

impl Blocked<34> for Q80 {
    const FORMAT: Format = Format::Q8_0;
    const NAME: &'static str = "q8_0";
    const COLS: usize = 32;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 34], _: usize) -> [I::Floats; 2] {
        isa.times(isa.bytes(field(block, 2)), isa.splat_half(*field(block, 0)))
    }
}

/// The element furthest from zero becomes 127 or -127.
fn encode(x: &[f32], out: &mut Vec<u8>) {
    let most = x.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let d = most / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(x.iter().map(|v| (v * inverse).round() as i8 as u8));
}
