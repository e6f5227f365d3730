//! AdamW with moments of 8 bits (Dettmers et al., "8-bit optimizers via block-wise quantization", 2022), as
//! bitsandbytes' `AdamW8bit`: blocks of 256 elements share one constant, `moment = map[code] * absmax`.
//!
//! An update decodes a block, computes [`adamw_step`](super::adamw_step) in f32, and encodes what the moments have become:
//! `absmax` of the block, and for each element the nearest of the [dynamic map](dynamic_map)'s values, the signed map
//! for `m`, the unsigned one for `v`. The weights are updated with the moments as they are before encoding.
//!
//! One thing is done differently: a `v` that is not 0 never becomes 0. It would leave the next step of an element whose
//! gradient is 0 (a token that does not occur) to be `m / eps`, which is enormous.

use std::sync::LazyLock;

use rayon::prelude::*;

use super::adamw::{AdamW, CHUNK, Update};
use crate::storage::dynamic_map;

/// Elements that share a constant.
pub const BLOCK: usize = 256;

/// One moment of a parameter of `n` elements.
pub struct Moment8<'a> {
    /// `n` codes.
    pub codes: &'a mut [u8],
    /// `n / 256` constants, rounded up: f32 in little-endian bytes.
    pub absmax: &'a mut [[u8; 4]],
}

/// One update of one parameter (or of a part that begins at a block of it); `step` counts from 1. `grad_scale` multiplies
/// the gradient first (clipping). Moments of zero bytes are zero.
///
/// # Panics
/// If the lengths do not belong together: an error of the caller.
pub fn adamw_8bit_step(
    o: AdamW,
    step: u64,
    grad_scale: f32,
    p: &mut [f32],
    g: &[f32],
    m: Moment8,
    v: Moment8,
) {
    let (n, blocks) = (p.len(), p.len().div_ceil(BLOCK));
    assert!(g.len() == n && m.codes.len() == n && v.codes.len() == n);
    assert!(m.absmax.len() == blocks && v.absmax.len() == blocks);
    let update = Update::new(o, step, grad_scale);
    const BLOCKS: usize = CHUNK / BLOCK;
    p.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(m.codes.par_chunks_mut(CHUNK).zip(m.absmax.par_chunks_mut(BLOCKS)))
        .zip(v.codes.par_chunks_mut(CHUNK).zip(v.absmax.par_chunks_mut(BLOCKS)))
        .for_each(|(((p, g), (m, m_absmax)), (v, v_absmax))| {
            step_chunk(update, (&SIGNED, &UNSIGNED), p, g, (m, m_absmax), (v, v_absmax));
        });
}

/// The values of a moment, as a checkpoint's reader or a test wants them: `codes` of any number, `absmax` for each block.
pub fn decode_8bit(signed: bool, codes: &[u8], absmax: &[f32], out: &mut [f32]) {
    let map = if signed { &SIGNED.map } else { &UNSIGNED.map };
    for ((codes, out), absmax) in codes.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).zip(absmax) {
        out.iter_mut().zip(codes).for_each(|(x, &code)| *x = map[usize::from(code)] * absmax);
    }
}

static SIGNED: LazyLock<Codec> = LazyLock::new(|| Codec::new(true));
static UNSIGNED: LazyLock<Codec> = LazyLock::new(|| Codec::new(false));

/// Bits of a float below the sign, the exponent and seven places of the fraction: what a bucket leaves out.
const SHIFT: u32 = 16;
/// The bucket of 2^-24, below the first threshold of either map.
const FIRST: u32 = (127 - 24) << (23 - SHIFT);
/// The last bucket begins at 1.
const BUCKETS: usize = 24 * 128 + 1;

/// A map and the way to the nearest of its values.
///
/// Both maps mirror at 0 (the signed one has no -1): a code is `zero` plus or minus the rank of the magnitude. The rank of a
/// magnitude is that of its bucket's lower end, or the next one: no bucket holds more than one threshold.
struct Codec {
    map: [f32; 256],
    zero: i32,
    /// Bits of the magnitude above which the next rank is nearer, by rank.
    thresholds: [u32; 256],
    /// The rank at the lower end of each bucket.
    buckets: [u8; BUCKETS],
    /// The least rank of what is not 0.
    least: i32,
    /// The largest rank of negative numbers.
    largest_negative: i32,
}

impl Codec {
    fn new(signed: bool) -> Codec {
        let map = *dynamic_map(signed);
        let zero = if signed { 127 } else { 0 };
        let magnitudes = &map[zero..];
        let mut thresholds = [u32::MAX; 256];
        for (threshold, pair) in thresholds.iter_mut().zip(magnitudes.windows(2)) {
            let middle = (f64::from(pair[0]) + f64::from(pair[1])) / 2.0;
            let rounded = middle as f32;
            *threshold = if f64::from(rounded) > middle { rounded.next_down() } else { rounded }.to_bits();
        }
        let mut buckets = [0; BUCKETS];
        for (bucket, rank) in buckets.iter_mut().enumerate() {
            let lower = (bucket as u32 + FIRST) << SHIFT;
            *rank = thresholds.iter().filter(|&&threshold| lower > threshold).count().min(255) as u8;
        }
        buckets[0] = 0;
        let (least, largest_negative) = if signed { (0, 127) } else { (1, 0) };
        Codec { map, zero: zero as i32, thresholds, buckets, least, largest_negative }
    }

    /// The code of the value nearest to `x`, which lies in -1..=1; of two that are equally near, the one nearer to 0.
    #[inline(always)]
    fn nearest(&self, x: f32) -> u8 {
        let magnitude = x.to_bits() & 0x7fff_ffff;
        let bucket = (magnitude >> SHIFT).saturating_sub(FIRST).min(BUCKETS as u32 - 1);
        let rank = self.buckets[bucket as usize];
        let rank = i32::from(rank) + i32::from(magnitude > self.thresholds[usize::from(rank)]);
        let rank = rank.max(self.least * i32::from(magnitude > 0));
        let code =
            if x.is_sign_negative() { self.zero - rank.min(self.largest_negative) } else { self.zero + rank };
        code as u8
    }

    #[inline(always)]
    fn decode(&self, codes: &[u8], absmax: f32, out: &mut [f32]) {
        for (x, code) in out.iter_mut().zip(codes) {
            *x = self.map[usize::from(*code)] * absmax;
        }
    }

    /// Encodes a block; returns its constant. What is too small for a division counts as 0, what overflowed as the largest.
    #[inline(always)]
    fn encode(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let mut absmax = 0f32;
        for x in values {
            absmax = absmax.max(x.abs());
        }
        let absmax = absmax.min(f32::MAX);
        if absmax < f32::MIN_POSITIVE {
            codes.fill(0);
            return 0.0;
        }
        for (code, x) in codes.iter_mut().zip(values) {
            *code = self.nearest(*x / absmax);
        }
        absmax
    }
}

crate::multiversion! {
    fn step_chunk(
        update: Update,
        codecs: (&Codec, &Codec),
        p: &mut [f32],
        g: &[f32],
        m: (&mut [u8], &mut [[u8; 4]]),
        v: (&mut [u8], &mut [[u8; 4]]),
    ) {
        let (signed, unsigned) = codecs;
        let moments = m.0.chunks_mut(BLOCK).zip(m.1).zip(v.0.chunks_mut(BLOCK).zip(v.1));
        for ((p, g), ((m, m_absmax), (v, v_absmax))) in p.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(moments) {
            let (mut first, mut second) = ([0.0; BLOCK], [0.0; BLOCK]);
            let (first, second) = (&mut first[..p.len()], &mut second[..p.len()]);
            signed.decode(m, f32::from_le_bytes(*m_absmax), first);
            unsigned.decode(v, f32::from_le_bytes(*v_absmax), second);
            for (((p, g), m), v) in p.iter_mut().zip(g).zip(first.iter_mut()).zip(second.iter_mut()) {
                update.apply(p, *g, m, v);
            }
            *m_absmax = signed.encode(first, m).to_le_bytes();
            *v_absmax = unsigned.encode(second, v).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest of a map's values by looking at all of them; of equals the first.
    fn by_search(map: &[f32; 256], x: f32) -> u8 {
        let mut best = 0;
        for code in 1..256 {
            if (x - map[code]).abs() < (x - map[best]).abs() {
                best = code;
            }
        }
        best as u8
    }

    #[test]
    fn codes_are_the_nearest() {
        for codec in [&*SIGNED, &*UNSIGNED] {
            let sign = |i: u32| if codec.zero > 0 && i.is_multiple_of(2) { -1.0 } else { 1.0 };
            let spread = (0..20_000u32).map(|i| sign(i) * (-20.0 * f32::fract(i as f32 * 0.618_034)).exp());
            let around = codec.map.windows(2).flat_map(|pair| {
                let middle = ((f64::from(pair[0]) + f64::from(pair[1])) / 2.0) as f32;
                [pair[0], middle.next_down(), middle, middle.next_up(), pair[1]]
            });
            for x in spread.chain(around).filter(|x| codec.zero > 0 || *x >= 0.0) {
                let (found, expected) = (codec.nearest(x), by_search(&codec.map, x));
                let kept = if codec.least == 1 && x > 0.0 { expected.max(1) } else { expected };
                // Where rounding makes two of them equally near, either is right.
                let near = |code: u8| (x - codec.map[usize::from(code)]).abs();
                assert!(found == kept || near(found) == near(kept), "{x}: {found}, not {kept}");
            }
        }
    }

    #[test]
    fn odd_blocks_zeros_and_overflow_are_kept() {
        let mut codes = [9; 3];
        assert_eq!(SIGNED.encode(&[0.0, -0.0, 1e-40], &mut codes), 0.0);
        assert_eq!(codes, [0; 3]);
        assert_eq!(UNSIGNED.encode(&[f32::INFINITY, 1.0, 0.0], &mut codes), f32::MAX);
        assert_eq!(codes, [255, 1, 0]);
        SIGNED.encode(&[f32::NAN, 1.0, -1.0], &mut codes);
        assert_eq!(codes[1..], [255, 0]);
    }

    #[test]
    fn a_parameter_without_gradient_does_not_jump() {
        let (mut p, mut g) = (vec![1.0; 300], vec![1e-6; 300]);
        g[0] = 1.0;
        let (mut mc, mut ma, mut vc, mut va) = (vec![0; 300], vec![[0; 4]; 2], vec![0; 300], vec![[0; 4]; 2]);
        for step in 1..=5 {
            let m = Moment8 { codes: &mut mc, absmax: &mut ma };
            let v = Moment8 { codes: &mut vc, absmax: &mut va };
            adamw_8bit_step(AdamW::default(), step, 1.0, &mut p, &g, m, v);
            g.fill(0.0);
        }
        assert!(p.iter().all(|p| (p - 1.0).abs() < 0.01), "{:?}", &p[..4]);
    }
}
