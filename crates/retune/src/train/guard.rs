//! Watches the numbers: counts steps that are not finite, and warns of spikes.
//!
//! Spikes by the modified z-score (Iglewicz and Hoaglin, 1993): `z = 0.6745 (x - median) / MAD` over the last 128 steps;
//! unlike mean and deviation, median and MAD are not moved by the spike itself.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Steps looked back upon.
const WINDOW: usize = 128;
/// Steps before the first warning.
const HISTORY_MIN: usize = 32;
/// A z above this is a spike.
const Z_MAX: f64 = 6.0;

/// The last values of one series.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Series(VecDeque<f64>);

impl Series {
    /// Adds a value; its z-score if it is a spike (upwards).
    pub fn push(&mut self, value: f64) -> Option<f64> {
        let z = if self.0.len() >= HISTORY_MIN { self.z_score(value) } else { 0.0 };
        while self.0.len() >= WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(value);
        (z > Z_MAX).then_some(z)
    }

    fn z_score(&self, value: f64) -> f64 {
        let median_now = median(self.0.iter().copied());
        let mad = median(self.0.iter().map(|x| (x - median_now).abs()));
        // Of a series that stands still every deviation would be infinitely large.
        0.6745 * (value - median_now) / mad.max(1e-9 * median_now.abs()).max(f64::MIN_POSITIVE)
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    let middle = values.len() / 2;
    if values.is_empty() {
        return f64::NAN;
    }
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// The guard's memory; part of a checkpoint, so that a resumed run warns and stops like one that never stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    pub losses: Series,
    pub grad_norms: Series,
    /// Steps in a row that were skipped for numbers that are not finite.
    pub skipped_in_a_row: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use retune_tensor::rng::Stream;

    #[test]
    fn noise_is_no_spike() {
        let (noise, mut series) = (Stream::new(1, 2), Series::default());
        let spikes = (0..100_000).filter_map(|i| series.push(2.0 + 0.1 * f64::from(noise.normal(i)))).count();
        assert_eq!(spikes, 0);
    }

    #[test]
    fn one_spike_is_one_warning() {
        let (noise, mut series) = (Stream::new(3, 4), Series::default());
        let value = |i| if i == 500 { 4.0 } else { 2.0 + 0.1 * f64::from(noise.normal(i)) };
        let spikes: Vec<u64> = (0..1000).filter(|&i| series.push(value(i)).is_some()).collect();
        assert_eq!(spikes, [500]);
    }

    #[test]
    fn a_still_series_does_not_warn_of_itself() {
        let mut series = Series::default();
        assert!((0..300).all(|_| series.push(0.0).is_none()));
    }
}
