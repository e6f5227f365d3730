//! Sound: decoding, resampling, log-mel features, silence.
//!
//! A sound is mono f32 at [`SAMPLE_RATE`] samples a second, within about -1..=1, whatever its file holds.

mod decode;
mod error;
mod log_mel;
mod resample;
mod silence;

pub use decode::{EXTENSIONS, LOADED_SECONDS_MAX, Reader, SECONDS_MAX, is_sound, load, load_part};
pub use error::{Error, Result};
pub use log_mel::{HOP, LogMel, WINDOW_FRAMES, WINDOW_SAMPLES};
pub use resample::Resampler;
pub use silence::{cuts, is_silent, quietest};

/// Samples of a second.
pub const SAMPLE_RATE: usize = 16_000;

/// The number of samples in a time, and the other way round.
pub fn samples(seconds: f64) -> usize {
    (seconds * SAMPLE_RATE as f64).round().max(0.0) as usize
}

/// The time that samples take, in seconds.
pub fn seconds(samples: usize) -> f64 {
    samples as f64 / SAMPLE_RATE as f64
}
