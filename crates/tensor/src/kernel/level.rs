//! Which instruction set the kernels use: the best one of this machine, found once at run time.
//!
//! `RETUNE_KERNEL=portable|avx2|avx512` asks for a lower one (for tests and comparisons); an unknown value, or one that
//! the machine lacks, is ignored.

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that has kernels of its own, from the plainest to the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Plain Rust, vectorised by the compiler for the target's baseline (SSE2, NEON): the reference for the others.
    Portable = 1,
    /// AVX2 with FMA and F16C (Haswell, Zen and later).
    Avx2 = 2,
    /// AVX-512 F, BW, DQ, VL (Skylake-X, Zen 4 and later).
    Avx512 = 3,
}

impl Level {
    /// The name that `RETUNE_KERNEL` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Every level that this machine can run, plainest first.
    pub fn available() -> &'static [Level] {
        const ALL: &[Level] = &[Level::Portable, Level::Avx2, Level::Avx512];
        &ALL[..best() as usize]
    }
}

/// 0 while not yet known.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The level in use; one relaxed load after the first call.
#[inline]
pub fn level() -> Level {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => choose(),
    }
}

#[cold]
fn choose() -> Level {
    let best = best();
    let wanted = std::env::var("RETUNE_KERNEL").ok();
    let level =
        Level::available().iter().copied().find(|l| Some(l.name()) == wanted.as_deref()).unwrap_or(best);
    CHOSEN.store(level as u8, Ordering::Relaxed);
    level
}

#[cfg(target_arch = "x86_64")]
fn best() -> Level {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn best() -> Level {
    Level::Portable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_level_is_one_that_the_machine_has() {
        assert!(Level::available().contains(&level()));
        assert_eq!(Level::available()[0], Level::Portable);
    }
}
