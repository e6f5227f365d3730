//! The median stopping rule (Golovin et al., "Google Vizier", 2017, section 3.2.2): a run whose best value so far is worse
//! than the median of what the finished runs had by then is ended.

use serde::{Deserialize, Serialize};

use crate::metrics::Metric;

/// The evaluations of a run after its beginning: the share of its steps that was done, and the metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Curve {
    /// In order; `null` in JSON is a value that is not finite.
    pub points: Vec<(f64, Option<f64>)>,
}

impl Curve {
    pub fn push(&mut self, share: f64, value: f64) {
        self.points.push((share, Some(value).filter(|value| value.is_finite())));
    }

    /// The best value up to a share of the steps; NaN if all are, `None` if there is none.
    pub fn best_by(&self, share: f64, metric: Metric) -> Option<f64> {
        // Steps of runs of other lengths do not fall on the same shares to the last digit.
        let by_then = self.points.iter().filter(|(at, _)| *at <= share + 1e-9);
        let values = by_then.map(|(_, value)| value.unwrap_or(f64::NAN));
        values.reduce(|best, value| if metric.better(value, best) { value } else { best })
    }
}

/// Why a run is ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hopeless {
    /// Its best value so far; NaN if it has none.
    pub value: f64,
    /// The median of the others' by then.
    pub median: f64,
    /// The share of its steps that was done.
    pub share: f64,
}

/// When a run is ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MedianRule {
    pub metric: Metric,
    /// Finished runs that there must be.
    pub finished_min: usize,
    /// Share of a run's steps before which it is not judged.
    pub share_min: f64,
}

impl MedianRule {
    /// Not before two finished runs and a third of the steps.
    pub fn new(metric: Metric) -> MedianRule {
        MedianRule { metric, finished_min: 2, share_min: 1.0 / 3.0 }
    }

    /// Judges a run by its newest evaluation.
    pub fn judge<'a>(&self, run: &Curve, finished: impl Iterator<Item = &'a Curve>) -> Option<Hopeless> {
        let (share, _) = *run.points.last()?;
        if share + 1e-9 < self.share_min || share >= 1.0 {
            return None;
        }
        let value = run.best_by(share, self.metric)?;
        let mut others: Vec<f64> = finished
            .filter_map(|other| other.best_by(share, self.metric))
            .filter(|v| v.is_finite())
            .collect();
        if others.len() < self.finished_min.max(1) {
            return None;
        }
        others.sort_by(f64::total_cmp);
        let middle = others.len() / 2;
        let median = match others.len() % 2 {
            1 => others[middle],
            _ => 0.5 * (others[middle - 1] + others[middle]),
        };
        self.metric.better(median, value).then_some(Hopeless { value, median, share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(values: &[f64]) -> Curve {
        let mut curve = Curve::default();
        for (i, value) in values.iter().enumerate() {
            curve.push((i + 1) as f64 / 6.0, *value);
        }
        curve
    }

    fn judge(metric: Metric, run: &[f64], finished: &[Curve]) -> Option<Hopeless> {
        MedianRule::new(metric).judge(&curve(run), finished.iter())
    }

    #[test]
    fn worse_than_the_median_at_the_same_share_is_hopeless() {
        let finished = [curve(&[3.0, 2.0, 1.5, 1.2, 1.1, 1.0]), curve(&[4.0, 3.0, 2.5, 2.2, 2.1, 2.0])];
        // The median after two sixths is 2.5.
        let found = judge(Metric::Loss, &[9.0, 2.6], &finished).unwrap();
        assert_eq!((found.value, found.median), (2.6, 2.5));
        assert_eq!(judge(Metric::Loss, &[9.0, 2.5], &finished), None, "as good as the median");
        assert_eq!(judge(Metric::Loss, &[2.0, 9.0], &finished), None, "its best counts, not its last");
        assert!(judge(Metric::Accuracy, &[0.0, 2.4], &finished).is_some(), "more is better");
        assert_eq!(judge(Metric::Accuracy, &[0.0, 4.0], &finished), None);
        assert!(judge(Metric::Loss, &[f64::NAN, f64::NAN], &finished).unwrap().value.is_nan());
    }

    #[test]
    fn not_before_two_runs_and_a_third_of_the_steps_nor_at_the_end() {
        let finished = [curve(&[1.0; 6]), curve(&[1.0; 6])];
        assert_eq!(judge(Metric::Loss, &[9.0], &finished), None);
        assert!(judge(Metric::Loss, &[9.0; 2], &finished).is_some());
        assert_eq!(judge(Metric::Loss, &[9.0; 6], &finished), None);
        assert_eq!(judge(Metric::Loss, &[9.0; 2], &finished[..1]), None);
        // A run that was evaluated at its end alone says nothing of earlier times.
        let mut late = Curve::default();
        late.push(1.0, 0.5);
        assert_eq!(judge(Metric::Loss, &[9.0; 2], &[finished[0].clone(), late]), None);
        assert_eq!(judge(Metric::Loss, &[], &finished), None);
    }

    #[test]
    fn values_that_are_not_finite_come_back_from_json() {
        let text = serde_json::to_string(&curve(&[f64::NAN, 2.0])).unwrap();
        let back: Curve = serde_json::from_str(&text).unwrap();
        assert_eq!(back, curve(&[f64::NAN, 2.0]));
        assert_eq!(back.best_by(1.0, Metric::Loss), Some(2.0));
    }
}
