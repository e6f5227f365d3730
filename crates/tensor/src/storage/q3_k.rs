//! Q3_K: 256 columns in 110 bytes, w = d (s - 32) (q - 4), s six bits for 16 columns each.
//! Layout: 32 bytes of third bits (bit i for group i), 64 bytes of two lower bits, 12 bytes of scales, d f16.

use half::f16;

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::k_quants::{BLOCK, bits, pairs, refined, round, settle};
use super::{Format, Spec};
use crate::multiversion;

pub(super) static Q3_K: Spec = spec::<Q3K, 110>();

struct Q3K;

impl Blocked<110> for Q3K {
    const FORMAT: Format = Format::Q3_K;
    const NAME: &'static str = "q3_k";
    const COLS: usize = 256;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

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

multiversion! {
    fn encode(x: &[f32], out: &mut Vec<u8>) {
        let (groups, mut q) = (x.as_chunks::<16>().0, [0; BLOCK]);
        let mut scales = [0.0f32; 16];
        for ((x, q), scale) in groups.iter().zip(q.as_chunks_mut::<16>().0).zip(&mut scales) {
            let (found, levels) = refined(x, 4.0);
            (*scale, *q) = (found, levels.map(|q| q as u8));
        }
        // The scale furthest from zero becomes -32.
        let extreme = scales.iter().fold(0.0f32, |most, s| if s.abs() > most.abs() { *s } else { most });
        let inverse = -32.0 / extreme;
        let d = f16::from_f32(if extreme == 0.0 { 0.0 } else { 1.0 / inverse });
        let s = scales.map(|s| if extreme == 0.0 { 0 } else { round(inverse * s).clamp(-32.0, 31.0) as i8 + 32 });
        for (g, (x, q)) in groups.iter().zip(q.as_chunks_mut::<16>().0).enumerate() {
            settle(x, d.to_f32() * f32::from(s[g] - 32), 0.0, -4.0, 3.0, q);
        }
        out.extend(bits(&q, 2));
        out.extend(pairs(&q));
        let s = s.map(|s| s as u8);
        out.extend((0..8).map(|g| s[g] & 15 | (s[g + 8] & 15) << 4));
        out.extend((0..4).map(|g| (0..4).fold(0, |byte, k| byte | s[g + 4 * k] >> 4 << (2 * k))));
        out.extend(d.to_le_bytes());
    }
}
