//! How much of the encoder's window of 30 s a clip takes.
//!
//! Whisper was trained on whole windows: what it says of windows that end with their clips differs, mostly for the worse until it has been
//! trained on such. They cost as much as the clip is long.

use std::str::FromStr;

use retune_media::sound::HOP;
use serde::{Deserialize, Serialize};

/// Frames of silence behind a clip, 0.2 s: more than the half spectrum (12.5 ms) that is mirrored at a window's end.
const MARGIN: usize = 20;

/// What the encoder sees of a clip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AudioWindow {
    /// A window of 30 s, silent behind the clip: as Whisper was trained.
    #[default]
    #[serde(rename = "30s")]
    Whole,
    /// The clip and 0.2 s of silence. Not exact.
    #[serde(rename = "clip")]
    Clip,
}

impl AudioWindow {
    /// As they are written.
    pub const NAMES: &[&str] = &["30s", "clip"];

    /// Frames of 10 ms that the encoder sees of so many samples; an even number of the `whole` window's.
    pub fn frames(self, samples: usize, whole: usize) -> usize {
        match self {
            AudioWindow::Whole => whole,
            AudioWindow::Clip => (samples.div_ceil(HOP) + MARGIN).next_multiple_of(2).min(whole),
        }
    }
}

impl FromStr for AudioWindow {
    type Err = String;

    fn from_str(name: &str) -> Result<AudioWindow, String> {
        match name.trim().to_ascii_lowercase().as_str() {
            "30s" => Ok(AudioWindow::Whole),
            "clip" => Ok(AudioWindow::Clip),
            _ => Err(format!("there are {}", AudioWindow::NAMES.join(" and "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_even_and_never_longer_than_the_whole() {
        for samples in [0, 1, 160, 161, 16_000, 479_999, 480_000] {
            assert_eq!(AudioWindow::Whole.frames(samples, 3_000), 3_000);
            let frames = AudioWindow::Clip.frames(samples, 3_000);
            assert!(frames.is_multiple_of(2) && (2..=3_000).contains(&frames));
            assert!(frames * HOP >= samples);
        }
        assert_eq!(AudioWindow::Clip.frames(16_000, 3_000), 120);
        assert_eq!(AudioWindow::Clip.frames(480_000, 3_000), 3_000);
        assert!("clip".parse() == Ok(AudioWindow::Clip) && "clips".parse::<AudioWindow>().is_err());
    }
}
