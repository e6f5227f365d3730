//! Random numbers without state: each is a function of (seed, stream, index), by Philox 4x32-10.
//!
//! Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11). Nothing random has to be saved with a
//! checkpoint, and neither batching nor the number of threads can change what is drawn.

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// The 10-round Philox block: 128 counter bits and 64 key bits to 128 random bits.
#[inline(always)]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(M0) * u64::from(counter[0]);
        let b = u64::from(M1) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(W0), key[1].wrapping_add(W1)];
    }
    counter
}

/// A family of random numbers: `seed` is the run's, `stream` says what they are for.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    stream: u64,
}

impl Stream {
    pub fn new(seed: u64, stream: u64) -> Stream {
        Stream { key: [seed as u32, (seed >> 32) as u32], stream }
    }

    /// A stream named by text, so that (say) a parameter's initial values depend on its name alone.
    pub fn named(seed: u64, name: &str) -> Stream {
        Stream::new(seed, fnv1a(name.as_bytes()))
    }

    fn block(&self, index: u64) -> [u32; 4] {
        let counter = [index as u32, (index >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        philox(counter, self.key)
    }

    /// 32 random bits.
    pub fn bits(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&self, index: u64) -> f32 {
        (self.bits(index) >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform_f64(&self, index: u64) -> f64 {
        let b = self.block(index);
        ((u64::from(b[0]) << 21) ^ (u64::from(b[1]) >> 11)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&self, index: u64) -> f32 {
        let b = self.block(index);
        let u = (f64::from(b[0]) + 1.0) / 4_294_967_297.0;
        let v = f64::from(b[1]) / 4_294_967_296.0;
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// Uniform in 0..n (n > 0), by multiplication; the bias is below n / 2^32.
    pub fn below(&self, index: u64, n: usize) -> usize {
        ((u128::from(self.bits(index)) * n as u128) >> 32) as usize
    }

    /// A permutation of 0..n (Fisher and Yates).
    pub fn permutation(&self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64, i + 1));
        }
        order
    }
}

/// FNV-1a, 64 bits: a short stable hash for stream names.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of the Random123 distribution.
    #[test]
    fn philox_matches_random123() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn permutation_is_one_and_depends_on_the_stream() {
        let p = Stream::new(1, 2).permutation(100);
        let mut sorted = p.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(p, Stream::new(1, 3).permutation(100));
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let s = Stream::new(7, 7);
        let n = 20_000;
        let xs: Vec<f64> = (0..n).map(|i| f64::from(s.normal(i))).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.04, "{mean} {var}");
    }
}
