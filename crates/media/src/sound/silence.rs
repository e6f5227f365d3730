//! Where nobody speaks, by the energy of frames of 20 ms.
//!
//! A clip is *silent* if none of its frames is louder than -60 dB (the root of the mean square, 0 dB being full scale). A long
//! clip is cut where 200 ms in a row are quietest, as late as the longest part allows but not before its middle.

use std::ops::Range;

use super::SAMPLE_RATE;

/// 20 ms.
const FRAME: usize = SAMPLE_RATE / 50;
/// Frames of a pause to cut in.
const PAUSE: usize = 10;
/// -60 dB as a mean square.
const SILENT: f64 = 1e-6;

/// Is there nothing to be heard? No frame of 20 ms is louder than -60 dB.
pub fn is_silent(samples: &[f32]) -> bool {
    energies(samples).into_iter().all(|energy| energy <= SILENT)
}

/// The middle of the quietest 200 ms within `range`, as a sample; of equal ones the last. In a range that is shorter, its middle.
pub fn quietest(samples: &[f32], range: Range<usize>) -> usize {
    let range = range.start.min(samples.len())..range.end.min(samples.len());
    let energies = energies(samples.get(range.clone()).unwrap_or_default());
    let width = PAUSE.min(energies.len().max(1));
    let mut best = (f64::INFINITY, 0);
    for (i, pause) in energies.windows(width).enumerate() {
        let energy: f64 = pause.iter().sum();
        if energy <= best.0 {
            best = (energy, i);
        }
    }
    let middle = range.start + best.1 * FRAME + width * FRAME / 2;
    middle.clamp(range.start, range.end.max(range.start))
}

/// Parts of at most `longest` samples that follow one another without a gap, cut at pauses.
pub fn cuts(samples: &[f32], longest: usize) -> Vec<Range<usize>> {
    let longest = longest.max(2 * FRAME);
    let mut parts = Vec::new();
    let mut start = 0;
    while samples.len() - start > longest {
        let cut = quietest(samples, start + longest / 2..start + longest);
        parts.push(start..cut);
        start = cut;
    }
    parts.push(start..samples.len());
    parts
}

/// The mean square of each frame; the last may be shorter.
fn energies(samples: &[f32]) -> Vec<f64> {
    let energy =
        |frame: &[f32]| frame.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>() / frame.len() as f64;
    samples.chunks(FRAME).map(energy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tone with pauses, given as (seconds, amplitude).
    fn sound(parts: &[(f64, f32)]) -> Vec<f32> {
        let part = |&(seconds, amplitude): &(f64, f32)| {
            (0..crate::sound::samples(seconds)).map(move |i| amplitude * (i as f32 * 0.3).sin())
        };
        parts.iter().flat_map(part).collect()
    }

    #[test]
    fn silence_is_below_60_db() {
        assert!(is_silent(&[]) && is_silent(&sound(&[(2.0, 0.0)])));
        assert!(is_silent(&sound(&[(1.0, 0.001)])));
        assert!(!is_silent(&sound(&[(1.0, 0.0), (0.1, 0.01), (1.0, 0.0)])));
    }

    #[test]
    fn cuts_lie_in_pauses() {
        let clip = sound(&[(20.0, 0.5), (0.4, 0.001), (30.0, 0.5), (0.3, 0.0), (12.0, 0.5)]);
        let parts = cuts(&clip, 30 * SAMPLE_RATE);
        let ends: Vec<f64> = parts.iter().map(|part| crate::sound::seconds(part.end)).collect();
        assert!((20.0..20.4).contains(&ends[0]), "{ends:?}");
        // The next pause is 30.3 s later: the tone must be cut.
        assert!((35.0..=50.4).contains(&ends[1]), "{ends:?}");
        assert!(parts.iter().all(|part| part.len() <= 30 * SAMPLE_RATE && !part.is_empty()));
        assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!((parts[0].start, parts.last().unwrap().end), (0, clip.len()));
        assert!(cuts(&[], 10).iter().all(Range::is_empty));
    }

    #[test]
    fn the_quietest_place_is_within_the_range() {
        let clip = sound(&[(1.0, 0.5), (0.2, 0.0), (1.0, 0.5)]);
        let place = crate::sound::seconds(quietest(&clip, 0..clip.len()));
        assert!((1.05..1.15).contains(&place), "{place}");
        for range in [0..0, 5..5, 100..150, 35_000..99_999, 90_000..99_999] {
            let place = quietest(&clip, range.clone());
            assert!(
                place >= range.start.min(clip.len()) && place <= range.end.min(clip.len()),
                "{range:?} {place}"
            );
        }
    }
}
