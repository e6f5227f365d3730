//! How ggml's reference chooses the scales of its k-quants: a search over rounded fits, here for all groups of a block side by side.
//!
//! Every sum is taken in the reference's order, one group a lane, so that the bytes are the reference's on every instruction set.

use half::f16;

/// Columns of a block.
pub(super) const BLOCK: usize = 256;

/// Groups with smaller elements than this count as zero.
const NOTHING: f32 = 1e-15;

/// The nearest integer, ties to even; for magnitudes up to 2^22.
#[inline(always)]
pub(super) fn round(v: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23
    v + MAGIC - MAGIC
}

/// `round` between two limits.
#[inline(always)]
fn round_within(v: f32, low: f32, high: f32) -> f32 {
    let v = round(v);
    let v = if v < high { v } else { high };
    if v > low { v } else { low }
}

/// G groups of N elements: element i of group g at `[i][g]`.
pub(super) type Groups<const N: usize, const G: usize> = [[f32; G]; N];

/// One number for each group. (`array::from_fn` would be compiled for the baseline.)
#[inline(always)]
fn each<T: Copy + Default, const G: usize>(f: impl Fn(usize) -> T) -> [T; G] {
    let mut all = [T::default(); G];
    for (g, to) in all.iter_mut().enumerate() {
        *to = f(g);
    }
    all
}

/// One number for each element of each group.
#[inline(always)]
pub(super) fn every<const N: usize, const G: usize>(f: impl Fn(usize, usize) -> f32) -> Groups<N, G> {
    let mut all = [[0.0; G]; N];
    for (i, row) in all.iter_mut().enumerate() {
        for (g, to) in row.iter_mut().enumerate() {
            *to = f(i, g);
        }
    }
    all
}

/// A block's groups side by side.
#[inline(always)]
pub(super) fn side_by_side<const N: usize, const G: usize>(x: &[f32; BLOCK]) -> Groups<N, G> {
    every(|i, g| x[g * N + i])
}

/// Groups written as x = scale * q - min, with q in 0..=levels.
pub(super) struct Affine<const N: usize, const G: usize> {
    pub scale: [f32; G],
    pub min: [f32; G],
    pub q: Groups<N, G>,
}

/// Which scales are tried: those that put the range on `levels + from`, `+ from + 0.1`, ... levels.
#[derive(Clone, Copy)]
pub(super) struct Search {
    pub levels: f32,
    pub from: f32,
    pub tries: usize,
    /// Judges by absolute differences, not by squares.
    pub absolute: bool,
}

/// The best affine fit found for each group, by differences weighted with `w`.
#[inline(always)]
pub(super) fn affine<const N: usize, const G: usize>(
    x: &Groups<N, G>,
    w: &Groups<N, G>,
    search: Search,
) -> Affine<N, G> {
    let Search { levels, from, tries, .. } = search;
    let (mut min, mut max, mut sum_w) = (x[0], x[0], w[0]);
    let mut sum_x: [f32; G] = each(|g| w[0][g] * x[0][g]);
    for (x, w) in x.iter().zip(w).skip(1) {
        for g in 0..G {
            min[g] = if x[g] < min[g] { x[g] } else { min[g] };
            max[g] = if x[g] > max[g] { x[g] } else { max[g] };
            sum_w[g] += w[g];
            sum_x[g] += w[g] * x[g];
        }
    }
    let min: [f32; G] = each(|g| if min[g] > 0.0 { 0.0 } else { min[g] });
    let mut scale: [f32; G] = each(|g| 1.0 / (levels / (max[g] - min[g])));
    let inverse: [f32; G] = each(|g| levels / (max[g] - min[g]));
    let mut best = Affine { scale, min, q: quantised(x, &min, &inverse, levels) };
    let mut least = errors(x, w, &best, search.absolute);
    for step in 0..=tries {
        let range = from + 0.1 * step as f32 + levels;
        let inverse: [f32; G] = each(|g| range / (max[g] - best.min[g]));
        let q = quantised(x, &best.min, &inverse, levels);
        let (mut sum_q, mut sum_qq, mut sum_qx) = ([0.0; G], [0.0; G], [0.0; G]);
        for ((x, w), q) in x.iter().zip(w).zip(&q) {
            for g in 0..G {
                sum_q[g] += w[g] * q[g];
                sum_qq[g] += w[g] * q[g] * q[g];
                sum_qx[g] += w[g] * q[g] * x[g];
            }
        }
        // Least squares for these q; a minimum above zero is not representable.
        let (mut min, mut solvable) = ([0.0; G], [false; G]);
        for g in 0..G {
            let det = sum_w[g] * sum_qq[g] - sum_q[g] * sum_q[g];
            let own = (sum_qq[g] * sum_x[g] - sum_q[g] * sum_qx[g]) / det;
            let line = (sum_w[g] * sum_qx[g] - sum_x[g] * sum_q[g]) / det;
            scale[g] = if own > 0.0 { sum_qx[g] / sum_qq[g] } else { line };
            min[g] = if own > 0.0 { 0.0 } else { own };
            solvable[g] = det > 0.0;
        }
        let found = Affine { scale, min, q };
        let error = errors(x, w, &found, search.absolute);
        let better: [bool; G] = each(|g| solvable[g] && error[g] < least[g]);
        for g in 0..G {
            least[g] = if better[g] { error[g] } else { least[g] };
            best.scale[g] = if better[g] { found.scale[g] } else { best.scale[g] };
            best.min[g] = if better[g] { found.min[g] } else { best.min[g] };
        }
        for (best, q) in best.q.iter_mut().zip(&found.q) {
            for g in 0..G {
                best[g] = if better[g] { q[g] } else { best[g] };
            }
        }
    }
    for g in 0..G {
        // All elements equal: the offset alone.
        if max[g] == min[g] {
            best.scale[g] = 0.0;
            best.min[g] = min[g];
            best.q.iter_mut().for_each(|q| q[g] = 0.0);
        }
        best.min[g] = -best.min[g];
    }
    best
}

#[inline(always)]
fn quantised<const N: usize, const G: usize>(
    x: &Groups<N, G>,
    min: &[f32; G],
    inverse: &[f32; G],
    levels: f32,
) -> Groups<N, G> {
    every(|i, g| round_within(inverse[g] * (x[i][g] - min[g]), 0.0, levels))
}

/// Weighted sums of the differences; here the minimum is still what is added.
#[inline(always)]
fn errors<const N: usize, const G: usize>(
    x: &Groups<N, G>,
    w: &Groups<N, G>,
    fit: &Affine<N, G>,
    absolute: bool,
) -> [f32; G] {
    let mut sums = [0.0; G];
    for ((x, w), q) in x.iter().zip(w).zip(&fit.q) {
        for g in 0..G {
            let diff = fit.scale[g] * q[g] + fit.min[g] - x[g];
            sums[g] += w[g] * if absolute { diff.abs() } else { diff * diff };
        }
    }
    sums
}

/// Groups written as x = scale * (q - levels), q in 0..2 * levels, weighted with x²: the best of nineteen scales for each.
#[inline(always)]
pub(super) fn symmetric<const N: usize, const G: usize>(
    x: &Groups<N, G>,
    levels: f32,
) -> ([f32; G], Groups<N, G>) {
    let (mut most, mut extreme) = ([0.0; G], [0.0; G]);
    for x in x {
        for g in 0..G {
            let larger = x[g].abs() > most[g];
            most[g] = if larger { x[g].abs() } else { most[g] };
            extreme[g] = if larger { x[g] } else { extreme[g] };
        }
    }
    let (mut scale, mut least, mut q) = ([0.0; G], [0.0; G], [[0.0; G]; N]);
    // The scale that puts the extreme on the lowest level comes first.
    for step in [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let inverse: [f32; G] = each(|g| -(levels + 0.1 * step as f32) / extreme[g]);
        let found: Groups<N, G> = every(|i, g| round_within(inverse[g] * x[i][g], -levels, levels - 1.0));
        let (mut sum_xq, mut sum_qq) = ([0.0; G], [0.0; G]);
        for (x, q) in x.iter().zip(&found) {
            for g in 0..G {
                let w = x[g] * x[g];
                sum_xq[g] += w * x[g] * q[g];
                sum_qq[g] += w * q[g] * q[g];
            }
        }
        let better: [bool; G] =
            each(|g| step == 0 || (sum_qq[g] > 0.0 && sum_xq[g] * sum_xq[g] > least[g] * sum_qq[g]));
        for g in 0..G {
            let own = if sum_qq[g] != 0.0 { sum_xq[g] / sum_qq[g] } else { 0.0 };
            scale[g] = if better[g] { own } else { scale[g] };
            least[g] = if better[g] { own * sum_xq[g] } else { least[g] };
        }
        for (q, found) in q.iter_mut().zip(&found) {
            for g in 0..G {
                q[g] = if better[g] { found[g] + levels } else { q[g] };
            }
        }
    }
    for g in 0..G {
        if most[g] < NOTHING {
            scale[g] = 0.0;
            q.iter_mut().for_each(|q| q[g] = 0.0);
        }
    }
    (scale, q)
}

/// A group written as x = scale * (q - levels): least squares weighted with x², element after element moved to where the others want it.
#[inline(always)]
pub(super) fn refined<const N: usize>(x: &[f32; N], levels: f32) -> (f32, [f32; N]) {
    let (most, extreme) =
        x.iter().fold((0.0, 0.0), |(most, at), v| if v.abs() > most { (v.abs(), *v) } else { (most, at) });
    if most < NOTHING {
        return (0.0, [0.0; N]);
    }
    let inverse = -levels / extreme;
    let mut q = x.map(|x| round_within(inverse * x, -levels, levels - 1.0));
    let (mut sum_xq, mut sum_qq) = (0.0, 0.0);
    for (x, q) in x.iter().zip(&q) {
        sum_xq += x * x * x * q;
        sum_qq += x * x * q * q;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (x, q) in x.iter().zip(&mut q) {
            let w = x * x;
            let (rest_xq, rest_qq) = (sum_xq - w * x * *q, sum_qq - w * *q * *q);
            if rest_xq <= 0.0 {
                continue;
            }
            let new = round_within(x * rest_qq / rest_xq, -levels, levels - 1.0);
            let (new_xq, new_qq) = (rest_xq + w * x * new, rest_qq + w * new * new);
            if new != *q && new_qq > 0.0 && new_xq * new_xq * sum_qq > sum_xq * sum_xq * new_qq {
                (*q, sum_xq, sum_qq, changed) = (new, new_xq, new_qq, true);
            }
        }
        if !changed {
            break;
        }
    }
    (if sum_qq > 0.0 { sum_xq / sum_qq } else { 0.0 }, q.map(|q| q + levels))
}

/// The final q of a group for the scale and minimum as they are stored; what the search found stays where the scale is zero.
#[inline(always)]
pub(super) fn settle(x: &[f32], scale: f32, min: f32, low: f32, high: f32, q: &mut [u8]) {
    if scale == 0.0 {
        return;
    }
    for (q, x) in q.iter_mut().zip(x) {
        *q = (round_within((x + min) / scale, low, high) - low) as u8;
    }
}

/// The q of all groups, in the order of the elements.
#[inline(always)]
pub(super) fn in_order<const N: usize, const G: usize>(q: &Groups<N, G>) -> [u8; BLOCK] {
    each(|i| q[i % N][i / N] as u8)
}

/// What Q4_K and Q5_K share: d, dmin and the twelve bytes of scales, and q of all elements.
#[inline(always)]
pub(super) fn affine_of_32(x: &[f32; BLOCK], search: Search) -> ([u8; 16], [u8; BLOCK]) {
    let groups = side_by_side::<32, 8>(x);
    let mut squares = [0.0f32; 8];
    for x in &groups {
        for g in 0..8 {
            squares[g] += x[g] * x[g];
        }
    }
    let mean = squares.map(|s| (s / 32.0).sqrt());
    let weights = every(|i, g| mean[g] + groups[i][g].abs());
    let fit = affine(&groups, &weights, search);
    let largest = |v: &[f32; 8]| v.iter().fold(0.0f32, |most, v| if *v > most { *v } else { most });
    let (max_scale, max_min) = (largest(&fit.scale), largest(&fit.min));
    let six_bits = |v: [f32; 8], most: f32| {
        let inverse = if most > 0.0 { 63.0 / most } else { 0.0 };
        v.map(|v| (round(inverse * v) as i32 as u8).min(63))
    };
    let (s, m) = (six_bits(fit.scale, max_scale), six_bits(fit.min, max_min));
    let (d, dmin) = (f16::from_f32(max_scale / 63.0), f16::from_f32(max_min / 63.0));
    let mut head = [0; 16];
    head[..2].copy_from_slice(&d.to_le_bytes());
    head[2..4].copy_from_slice(&dmin.to_le_bytes());
    for g in 0..4 {
        head[4 + g] = s[g] | s[g + 4] >> 4 << 6;
        head[8 + g] = m[g] | m[g + 4] >> 4 << 6;
        head[12 + g] = s[g + 4] & 15 | (m[g + 4] & 15) << 4;
    }
    let mut q = in_order(&fit.q);
    for (g, (x, q)) in x.chunks_exact(32).zip(q.chunks_exact_mut(32)).enumerate() {
        settle(x, d.to_f32() * f32::from(s[g]), dmin.to_f32() * f32::from(m[g]), 0.0, search.levels, q);
    }
    (head, q)
}

/// 64 bytes of the lowest two bits: byte j of each half holds columns j, j + 32, j + 64, j + 96 of it.
#[inline(always)]
pub(super) fn pairs(q: &[u8; BLOCK]) -> [u8; 64] {
    each(|j| {
        let at = j / 32 * 128 + j % 32;
        (0..4).fold(0, |byte, k| byte | (q[at + 32 * k] & 3) << (2 * k))
    })
}

/// 128 bytes of nibbles: for each 64 columns the lower halves of 32 bytes, then the upper.
#[inline(always)]
pub(super) fn nibbles(q: &[u8; BLOCK]) -> [u8; 128] {
    each(|j| {
        let at = j / 32 * 64 + j % 32;
        q[at] & 15 | (q[at + 32] & 15) << 4
    })
}

/// 32 bytes of single bits: bit g of byte j is `bit` of column 32 g + j.
#[inline(always)]
pub(super) fn bits(q: &[u8; BLOCK], bit: usize) -> [u8; 32] {
    each(|j| (0..8).fold(0, |byte, g| byte | (q[32 * g + j] >> bit & 1) << g))
}
