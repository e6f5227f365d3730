//! Any rate to 16 kHz, in the frequency domain (rubato), without a shift: the filter's delay is taken off.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _, WindowFunction};

use super::SAMPLE_RATE;

/// Input samples of a block, about: longer blocks cut off more sharply.
const BLOCK: usize = 1_024;

/// Turns a stream of mono samples into one of 16 kHz.
pub struct Resampler {
    rate: u32,
    /// `None` if nothing is to be done.
    inner: Option<Fft<f32>>,
    /// Input that is less than a block.
    pending: Vec<f32>,
    /// Output samples still to be left out: the delay.
    skip: usize,
    taken: u64,
    given: u64,
}

impl Resampler {
    /// From `rate` samples a second; `None` for a rate that cannot be had, as 0.
    pub fn new(rate: u32) -> Option<Resampler> {
        let inner = match rate as usize {
            SAMPLE_RATE => None,
            rate => {
                // A block of an odd length, at either rate, would be delayed by half a sample.
                let block = BLOCK.next_multiple_of(2 * period(rate as u32).max(1));
                let window = WindowFunction::BlackmanHarris2;
                Some(Fft::new_custom(rate, SAMPLE_RATE, block, 1, 1, window, FixedSync::Both).ok()?)
            }
        };
        let skip = inner.as_ref().map_or(0, |inner| inner.output_delay());
        Some(Resampler { rate, inner, pending: Vec::new(), skip, taken: 0, given: 0 })
    }

    /// Takes samples and appends what is ready to `out`.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) {
        self.taken += samples.len() as u64;
        let Some(block) = self.inner.as_ref().map(|inner| inner.input_frames_next()) else {
            self.given += samples.len() as u64;
            out.extend_from_slice(samples);
            return;
        };
        self.pending.extend_from_slice(samples);
        let whole = self.pending.len() / block * block;
        let pending = std::mem::take(&mut self.pending);
        for part in pending[..whole].chunks_exact(block) {
            self.block(part, out);
        }
        self.pending.extend_from_slice(&pending[whole..]);
    }

    /// Appends what is left, so that the output is as long as the input, to the sample.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        let Some(block) = self.inner.as_ref().map(|inner| inner.input_frames_next()) else { return };
        let due = (u128::from(self.taken) * SAMPLE_RATE as u128).div_ceil(u128::from(self.rate)) as u64;
        while self.given < due {
            let mut part = std::mem::take(&mut self.pending);
            part.resize(block, 0.0);
            let before = out.len();
            if !self.block(&part, out) {
                break;
            }
            if self.given > due {
                out.truncate(out.len() - (self.given - due).min((out.len() - before) as u64) as usize);
                self.given = due;
            }
        }
        self.pending.clear();
    }

    /// False if it failed: on wrong lengths alone, and these are the resampler's own.
    fn block(&mut self, part: &[f32], out: &mut Vec<f32>) -> bool {
        let Some(inner) = &mut self.inner else { return false };
        let Ok(input) = InterleavedSlice::new(part, 1, part.len()) else { return false };
        let Ok(output) = inner.process(&input, None) else { return false };
        let samples = output.take_data();
        let skip = self.skip.min(samples.len());
        self.skip -= skip;
        self.given += (samples.len() - skip) as u64;
        out.extend_from_slice(&samples[skip..]);
        true
    }
}

/// Input samples after which an input and an output sample fall together again.
pub(super) fn period(rate: u32) -> usize {
    let (mut a, mut b) = (rate as usize, SAMPLE_RATE);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    rate as usize / a.max(1)
}

impl std::fmt::Debug for Resampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resampler({} Hz)", self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    /// Two tones, below and above what 8 kHz can hold a quarter of.
    fn tone(rate: u32, seconds: f64) -> Vec<f32> {
        let at = |i: usize| {
            let t = i as f64 / f64::from(rate);
            (0.5 * (TAU * 440.0 * t).sin() + 0.3 * (TAU * 1_700.0 * t).cos()) as f32
        };
        (0..(seconds * f64::from(rate)) as usize).map(at).collect()
    }

    fn resample(rate: u32, samples: &[f32], chunk: usize) -> Vec<f32> {
        let mut resampler = Resampler::new(rate).unwrap();
        let mut out = Vec::new();
        samples.chunks(chunk).for_each(|part| resampler.push(part, &mut out));
        resampler.finish(&mut out);
        out
    }

    #[test]
    fn tones_keep_their_place_and_height() {
        let wanted = tone(16_000, 1.0);
        for rate in [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000] {
            let found = resample(rate, &tone(rate, 1.0), 999);
            assert!(found.len().abs_diff(wanted.len()) <= 1, "{rate}: {}", found.len());
            let worst = (1_000..15_000).map(|i| (found[i] - wanted[i]).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-3, "{rate}: {worst}");
        }
    }

    #[test]
    fn what_cannot_be_heard_at_16_khz_is_gone() {
        let high: Vec<f32> =
            (0..48_000).map(|i| (i as f64 * TAU * 11_000.0 / 48_000.0).sin() as f32).collect();
        let found = resample(48_000, &high, 4_096);
        assert!(found[1_000..15_000].iter().all(|v| v.abs() < 1e-3));
    }

    #[test]
    fn lengths_do_not_depend_on_the_pieces() {
        for rate in [8_000, 44_100, 44_101] {
            let samples = tone(rate, 0.3);
            let whole = resample(rate, &samples, samples.len());
            assert_eq!(resample(rate, &samples, 7), whole, "{rate}");
            assert_eq!(whole.len(), (samples.len() * 16_000).div_ceil(rate as usize));
        }
        assert!(resample(8_000, &[], 1).is_empty());
        assert!(Resampler::new(0).is_none());
        assert_eq!([8_000, 11_025, 44_100, 48_000, 44_101].map(period), [1, 441, 441, 3, 44_101]);
    }
}
