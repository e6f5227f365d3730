//! Q2_K: 256 columns in 84 bytes, w = d s q - dmin m, s and m for 16 columns each.
//! Layout: 16 bytes of scales (s low nibble, m high), 64 bytes of two-bit q, d f16, dmin f16.

use half::f16;

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::k_quants::{BLOCK, Search, affine, every, in_order, pairs, round, settle, side_by_side};
use super::{Format, Spec};
use crate::multiversion;

pub(super) static Q2_K: Spec = spec::<Q2K, 84>();

struct Q2K;

impl Blocked<84> for Q2K {
    const FORMAT: Format = Format::Q2_K;
    const NAME: &'static str = "q2_k";
    const COLS: usize = 256;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 84], i: usize) -> [I::Floats; 2] {
        let (d, dmin) = (isa.half(*field(block, 80)), isa.half(*field(block, 82)));
        let q = isa.shift_and(isa.bytes(field(block, 16 + i / 4 * 32)), i % 4 * 2, 3);
        let s: &[u8; 2] = field(block, 2 * i);
        isa.affine(q, s.map(|s| d * f32::from(s & 15)), s.map(|s| -(dmin * f32::from(s >> 4))))
    }
}

multiversion! {
    fn encode(x: &[f32], out: &mut Vec<u8>) {
        let x: &[f32; BLOCK] = field(x, 0);
        let groups = side_by_side::<16, 16>(x);
        let weights = every(|i, g| groups[i][g].abs());
        let fit = affine(&groups, &weights, Search { levels: 3.0, from: -0.5, tries: 15, absolute: true });
        let largest = |v: &[f32; 16]| v.iter().fold(0.0f32, |most, v| if *v > most { *v } else { most });
        let (max_scale, max_min) = (largest(&fit.scale), largest(&fit.min));
        let four_bits = |v: [f32; 16], most: f32| {
            let inverse = if most > 0.0 { 15.0 / most } else { 0.0 };
            v.map(|v| round(inverse * v) as i32 as u8 & 15)
        };
        let (s, m) = (four_bits(fit.scale, max_scale), four_bits(fit.min, max_min));
        let (d, dmin) = (f16::from_f32(max_scale / 15.0), f16::from_f32(max_min / 15.0));
        let mut q = in_order(&fit.q);
        for (g, (x, q)) in x.chunks_exact(16).zip(q.chunks_exact_mut(16)).enumerate() {
            settle(x, d.to_f32() * f32::from(s[g]), dmin.to_f32() * f32::from(m[g]), 0.0, 3.0, q);
        }
        out.extend(s.iter().zip(&m).map(|(s, m)| s | m << 4));
        out.extend(pairs(&q));
        out.extend([d, dmin].map(f16::to_le_bytes).as_flattened());
    }
}
