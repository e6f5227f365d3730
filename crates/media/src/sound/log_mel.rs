//! Whisper's log-mel features (Radford et al., 2022): `max(log10(max(F |S|^2, 1e-10)), m - 8) / 4 + 1`, m the largest of the window.
//!
//! S is the spectrum of 400 samples under a periodic Hann window, every 160 samples (10 ms), the window mirrored at its ends; F the
//! mel filters of Slaney's Auditory Toolbox (1998), each of the same area. Frames are rows: [frames, bands].

use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

use super::SAMPLE_RATE;

/// Samples between two frames.
pub const HOP: usize = 160;
/// Samples of the window that Whisper hears at a time: 30 s.
pub const WINDOW_SAMPLES: usize = 30 * SAMPLE_RATE;
/// Frames of such a window.
pub const WINDOW_FRAMES: usize = WINDOW_SAMPLES / HOP;
/// Samples of one spectrum, and half of them.
const FFT: usize = 400;
const HALF: usize = FFT / 2;
/// Powers below are taken for this one.
const FLOOR: f64 = 1e-10;
/// Powers of ten below the loudest that are kept.
const RANGE: f32 = 8.0;

/// Makes features of sounds.
#[derive(Clone)]
pub struct LogMel {
    filters: Vec<Filter>,
    hann: Vec<f64>,
    fft: Arc<dyn RealToComplex<f64>>,
}

/// A triangle over some bins of the spectrum.
#[derive(Clone, Debug)]
struct Filter {
    first: usize,
    weights: Vec<f64>,
}

impl LogMel {
    /// With so many mel bands: 80 in most Whisper models, 128 in large-v3.
    pub fn new(bands: usize) -> LogMel {
        let turn = |i: usize| 2.0 * std::f64::consts::PI * i as f64 / FFT as f64;
        LogMel {
            filters: mel_filters(bands),
            hann: (0..FFT).map(|i| 0.5 - 0.5 * turn(i).cos()).collect(),
            fft: RealFftPlanner::new().plan_fft_forward(FFT),
        }
    }

    /// Mel bands, the width of a row.
    pub fn bands(&self) -> usize {
        self.filters.len()
    }

    /// The features of a window of 30 s, [3000, bands]: shorter sounds are followed by silence, of longer ones the rest is
    /// left out. This is what Whisper was trained on.
    pub fn window(&self, samples: &[f32]) -> Vec<f32> {
        self.frames(samples, WINDOW_FRAMES)
    }

    /// The features of a window of `frames` frames (10 ms each) instead, [frames, bands]. Not what Whisper was trained on: its
    /// answers differ.
    pub fn frames(&self, samples: &[f32], frames: usize) -> Vec<f32> {
        let samples = &samples[..samples.len().min(frames * HOP)];
        let bands = self.bands();
        let mut out = vec![FLOOR.log10() as f32; frames * bands];
        let mut buffers = (self.fft.make_input_vec(), self.fft.make_output_vec(), vec![0.0; HALF + 1]);
        for (t, row) in out.chunks_exact_mut(bands.max(1)).enumerate() {
            self.frame(samples, frames * HOP, t * HOP, &mut buffers, row);
        }
        let loudest = out.iter().copied().fold(f32::MIN, f32::max);
        for value in &mut out {
            *value = (value.max(loudest - RANGE) + 4.0) / 4.0;
        }
        out
    }

    /// log10 of the mel powers around the sample `center` of a window of `length` samples.
    fn frame(
        &self,
        samples: &[f32],
        length: usize,
        center: usize,
        (input, spectrum, powers): &mut (Vec<f64>, Vec<realfft::num_complex::Complex<f64>>, Vec<f64>),
        row: &mut [f32],
    ) {
        let mut heard = false;
        for (i, (x, weight)) in input.iter_mut().zip(&self.hann).enumerate() {
            let sample = mirrored(center + i, length).and_then(|at| samples.get(at)).copied().unwrap_or(0.0);
            heard |= sample != 0.0;
            *x = f64::from(sample) * weight;
        }
        // Silence at the end of a window has the value that the row holds already. The lengths are those of the plan.
        if !heard || self.fft.process(input, spectrum).is_err() {
            return;
        }
        for (power, bin) in powers.iter_mut().zip(spectrum) {
            *power = bin.norm_sqr();
        }
        for (value, filter) in row.iter_mut().zip(&self.filters) {
            let bins = powers.iter().skip(filter.first);
            let power: f64 = filter.weights.iter().zip(bins).map(|(w, p)| w * p).sum();
            *value = power.max(FLOOR).log10() as f32;
        }
    }
}

impl std::fmt::Debug for LogMel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogMel({} bands)", self.bands())
    }
}

/// The sample at `at - HALF` of a window that is mirrored at both ends; `None` where it is too short to be.
fn mirrored(at: usize, length: usize) -> Option<usize> {
    let at = at.abs_diff(HALF);
    if at < length { Some(at) } else { (2 * length).checked_sub(at + 2) }
}

/// Triangles over the 201 bins of the spectrum, evenly spaced in mel from 0 to 8000 Hz, of the same area.
fn mel_filters(bands: usize) -> Vec<Filter> {
    let top = hertz_to_mel(SAMPLE_RATE as f64 / 2.0);
    let edge = |i: usize| mel_to_hertz(top * i as f64 / (bands + 1) as f64);
    let bin = |k: usize| k as f64 * SAMPLE_RATE as f64 / FFT as f64;
    let filter = |i: usize| {
        let (low, center, high) = (edge(i), edge(i + 1), edge(i + 2));
        let weight = |k: usize| {
            let (rising, falling) = ((bin(k) - low) / (center - low), (high - bin(k)) / (high - center));
            rising.min(falling) * 2.0 / (high - low)
        };
        let inside = |k: &usize| weight(*k) > 0.0;
        let first = (0..=HALF).find(inside).unwrap_or(0);
        Filter { first, weights: (first..=HALF).take_while(inside).map(weight).collect() }
    };
    (0..bands).map(filter).collect()
}

/// Slaney's mel: even up to 1000 Hz (15 mel), then 27 mel for each factor of 6.4.
fn hertz_to_mel(hertz: f64) -> f64 {
    if hertz < 1000.0 { 3.0 * hertz / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4f64.ln() }
}

fn mel_to_hertz(mel: f64) -> f64 {
    if mel < 15.0 { 200.0 * mel / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4f64.ln() / 27.0).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retune_formats::{TensorSource, safetensors};

    /// As `sound` in scripts/reference/make_log_mel_cases.py.
    pub(super) fn synthetic(n: usize) -> Vec<f32> {
        let (mut state, mut phase) = (1u32, 0u32);
        let sample = |i: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            phase = (phase + 500 + (i % 65_536 / 8) as u32) % 65_536;
            let tone = (phase as i32 - 32_768).abs() - 16_384;
            let noise = ((state >> 16) % 4_096) as i32 - 2_048;
            let value = [tone + noise, 0, noise, (tone + noise).div_euclid(128)][i / 8_000 % 4];
            value as f32 / 32_768.0
        };
        (0..n).map(sample).collect()
    }

    fn reference() -> safetensors::File {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/sound/log_mel.safetensors");
        safetensors::File::open(path).unwrap()
    }

    fn integers(file: &safetensors::File, name: &str) -> Vec<usize> {
        let bytes = file.read(name).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as usize).collect()
    }

    #[test]
    fn filters_are_the_references() {
        let file = reference();
        for bands in [80, 128] {
            let places = integers(&file, &format!("filters_{bands}_at"));
            let values = file.read_f32(&format!("filters_{bands}")).unwrap();
            let filters = mel_filters(bands);
            assert_eq!(filters.iter().map(|f| f.weights.len()).sum::<usize>(), values.len());
            for (place, value) in places.chunks_exact(2).zip(values) {
                let filter = &filters[place[1]];
                let found = filter.weights[place[0] - filter.first];
                assert!((found - f64::from(value)).abs() <= 1e-6 * found, "{place:?}: {found} {value}");
            }
        }
    }

    #[test]
    fn features_are_the_references() {
        let file = reference();
        let mut worst = 0f32;
        for bands in [80, 128] {
            let features = LogMel::new(bands);
            for (name, samples) in [("short", 30_000), ("long", 490_000)] {
                let found = features.window(&synthetic(samples));
                assert_eq!(found.len(), WINDOW_FRAMES * bands);
                let wanted = file.read_f32(&format!("{name}_{bands}")).unwrap();
                let frames = integers(&file, &format!("{name}_frames"));
                for (frame, wanted) in frames.iter().zip(wanted.chunks_exact(bands)) {
                    for (band, wanted) in wanted.iter().enumerate() {
                        let found = found[frame * bands + band];
                        worst = worst.max((found - wanted).abs());
                        assert!((found - wanted).abs() <= 1e-4, "{name} {frame} {band}: {found} {wanted}");
                    }
                }
            }
        }
        eprintln!("largest difference: {worst:.1e}");
    }

    #[test]
    fn odd_lengths_do_no_harm() {
        let features = LogMel::new(80);
        for samples in [0, 1, 159, 160, 161, 399, 400, 1_000] {
            let found = features.frames(&synthetic(samples), 7);
            assert!(found.len() == 7 * 80 && found.iter().all(|v| v.is_finite()), "{samples}");
        }
        assert!(features.frames(&[0.5], 0).is_empty());
        assert_eq!(features.frames(&[0.5; 200], 1).len(), 80);
        // Silence is the floor, and the floor is its loudest.
        assert!(features.window(&[]).iter().all(|v| (*v + 1.5).abs() < 1e-6));
        // A window cut to the clip begins as the full one where the mirrored end is far.
        let sound = synthetic(16_000);
        let (cut, full) = (features.frames(&sound, 100), features.window(&sound));
        assert!(cut[..80 * 90].iter().zip(&full).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
