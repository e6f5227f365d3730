//! Q6_K: 256 columns in 210 bytes, w = d s (q - 32), s a signed byte for 16 columns each.
//! Layout: 128 bytes of nibbles, 64 bytes of two upper bits, 16 scales, d f16.

use half::f16;

use super::blocks::{Blocked, field, spec};
use super::isa::Isa;
use super::k_quants::{BLOCK, in_order, round, settle, side_by_side, symmetric};
use super::{Format, Spec};
use crate::multiversion;

pub(super) static Q6_K: Spec = spec::<Q6K, 210>();

struct Q6K;

impl Blocked<210> for Q6K {
    const FORMAT: Format = Format::Q6_K;
    const NAME: &'static str = "q6_k";
    const COLS: usize = 256;
    const ENCODE: fn(&[f32], &mut Vec<u8>) = encode;

    #[inline(always)]
    fn group<I: Isa>(isa: I, block: &[u8; 210], i: usize) -> [I::Floats; 2] {
        let d = isa.half(*field(block, 208));
        let (half, part) = (i / 4, i % 4);
        // In each half: the lower nibbles of 64 bytes, then the upper ones.
        let low = isa.shift_and(isa.bytes(field(block, half * 64 + part % 2 * 32)), part / 2 * 4, 15);
        let high = isa.shift_and(isa.bytes(field(block, 128 + half * 32)), part * 2, 3);
        let q = isa.minus(isa.or(low, isa.shift_up(high, 4)), 32);
        let scales: &[u8; 2] = field(block, 192 + 2 * i);
        isa.scaled(q, scales.map(|s| d * f32::from(s as i8)))
    }
}

multiversion! {
    fn encode(x: &[f32], out: &mut Vec<u8>) {
        let x: &[f32; BLOCK] = field(x, 0);
        let (scales, q) = symmetric(&side_by_side::<16, 16>(x), 32.0);
        // The scale furthest from zero becomes -128.
        let extreme = scales.iter().fold(0.0f32, |most, s| if s.abs() > most.abs() { *s } else { most });
        if extreme.abs() < 1e-15 {
            return out.extend([0; 210]);
        }
        let inverse = -128.0 / extreme;
        let d = f16::from_f32(1.0 / inverse);
        let s = scales.map(|s| round(inverse * s).min(127.0) as i8);
        let mut q = in_order(&q);
        for (g, (x, q)) in x.chunks_exact(16).zip(q.chunks_exact_mut(16)).enumerate() {
            settle(x, d.to_f32() * f32::from(s[g]), 0.0, -32.0, 31.0, q);
        }
        // Columns j, j + 32, j + 64, j + 96 of each half.
        let q = |half: usize, k: usize, j: usize| q[half * 128 + k * 32 + j];
        for half in 0..2 {
            out.extend((0..64).map(|j| q(half, j / 32, j % 32) & 15 | (q(half, j / 32 + 2, j % 32) & 15) << 4));
        }
        for half in 0..2 {
            out.extend((0..32).map(|j| (0..4).fold(0, |byte, k| byte | q(half, k, j) >> 4 << (2 * k))));
        }
        out.extend(s.map(|s| s as u8));
        out.extend(d.to_le_bytes());
    }
}
