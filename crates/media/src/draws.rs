//! Random numbers for augmentation: each is a function of (seed, epoch, example, purpose, how many before it).
//!
//! splitmix64 (Steele, Lea and Flood, OOPSLA 2014) as a counter's hash. Nothing random has state to be saved, and
//! neither the order of the examples nor the number of threads can change what is drawn.

/// A sequence of random numbers of one purpose.
#[derive(Clone, Debug)]
pub struct Draws {
    key: u64,
    next: u64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// splitmix64's finaliser: a bijection in which every bit of the input moves every bit of the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Draws {
    /// The draws of one example in one epoch of a run.
    pub fn new(seed: u64, epoch: u64, example: u64) -> Draws {
        let fold = |key: u64, value: u64| mix(key.wrapping_add(GOLDEN) ^ mix(value.wrapping_add(GOLDEN)));
        Draws { key: [seed, epoch, example].into_iter().fold(0, fold), next: 0 }
    }

    /// An independent sequence for a purpose, whatever was drawn before: switching one augmentation on or off leaves
    /// the others' numbers as they are.
    pub fn stream(&self, purpose: &str) -> Draws {
        let name = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Draws { key: mix(self.key ^ mix(name)), next: 0 }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.next += 1;
        mix(self.key.wrapping_add(self.next.wrapping_mul(GOLDEN)))
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform_f64(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Uniform between two bounds.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..n (n > 0).
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// True with this probability: never for 0, always for 1.
    pub fn chance(&mut self, probability: f32) -> bool {
        self.uniform() < probability
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform_f64(), self.uniform_f64());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Beta(alpha, alpha), alpha > 0: two gammas' share.
    pub fn beta(&mut self, alpha: f64) -> f64 {
        let (a, b) = (self.gamma(alpha), self.gamma(alpha));
        if a + b > 0.0 { a / (a + b) } else { f64::from(u8::from(self.chance(0.5))) }
    }

    /// Gamma(alpha, 1), by Marsaglia and Tsang (2000).
    fn gamma(&mut self, alpha: f64) -> f64 {
        if alpha < 1.0 {
            let boost = (1.0 - self.uniform_f64()).powf(1.0 / alpha);
            return self.gamma(alpha + 1.0) * boost;
        }
        let d = alpha - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            let u = 1.0 - self.uniform_f64();
            if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_alone_decides() {
        let first = |seed, epoch, example| Draws::new(seed, epoch, example).bits();
        assert_eq!(first(1, 2, 3), first(1, 2, 3));
        let all =
            [first(1, 2, 3), first(0, 2, 3), first(1, 3, 3), first(1, 2, 4), first(2, 1, 3), first(3, 2, 1)];
        for (i, a) in all.iter().enumerate() {
            assert!(!all[..i].contains(a));
        }
        let mut draws = Draws::new(1, 2, 3);
        let before = draws.stream("flip").bits();
        draws.bits();
        assert_eq!(draws.stream("flip").bits(), before);
        assert_ne!(draws.stream("crop").bits(), before);
        // Written down once: the same key gives the same numbers in every version.
        assert_eq!(Draws::new(0, 0, 0).bits(), PINNED);
    }

    const PINNED: u64 = 6_307_358_461_167_833_557;

    #[test]
    fn the_numbers_are_spread_as_they_should() {
        let n = 20_000;
        let mut draws = Draws::new(7, 0, 0);
        let mean = |f: &mut dyn FnMut() -> f64| (0..n).map(|_| f()).sum::<f64>() / f64::from(n);
        assert!((mean(&mut || f64::from(draws.uniform())) - 0.5).abs() < 0.01);
        assert!((mean(&mut || draws.normal().powi(2)) - 1.0).abs() < 0.05);
        // Var Beta(a, a) = 1 / (4 (2 a + 1)).
        for a in [0.2, 1.0, 8.0] {
            let variance = mean(&mut || (draws.beta(a) - 0.5).powi(2));
            assert!((variance * 4.0 * (2.0 * a + 1.0) - 1.0).abs() < 0.05, "{a}: {variance}");
        }
        // Examples of one epoch are independent of each other.
        let means = mean(&mut {
            let mut i = 0;
            move || {
                i += 1;
                f64::from(Draws::new(7, 0, i).uniform())
            }
        });
        assert!((means - 0.5).abs() < 0.01);
        assert!((0..100).all(|_| draws.below(3) < 3) && draws.chance(1.0) && !draws.chance(0.0));
    }
}
