//! One class a row: accuracy, precision, recall, F1, Matthews' correlation, confusion.
//!
//! MCC = (c s - Σ t_k p_k) / sqrt((s² - Σ p_k²) (s² - Σ t_k²)) with c right of s rows, t_k true and p_k predicted of class k
//! (Gorodkin 2004); 0 where the root is.

use super::{ClassScores, Scores, check_classes};
use crate::error::Result;

/// A confusion matrix of more classes than this is not kept: nobody reads it, and it grows with the square.
pub const CONFUSION_CLASSES_MAX: usize = 128;

/// How often each of K classes is true, predicted, and both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// K each.
    pub truth: Vec<u64>,
    pub predicted: Vec<u64>,
    pub hits: Vec<u64>,
}

impl Counts {
    /// Of indices below `classes`; the two lists are of the same length.
    ///
    /// # Errors
    /// A class beyond.
    pub fn of(classes: usize, truth: &[u32], predicted: &[u32]) -> Result<Counts> {
        check_classes(classes, "the label", truth)?;
        check_classes(classes, "the prediction", predicted)?;
        let mut counts = Counts::zeros(classes);
        for (&t, &p) in truth.iter().zip(predicted) {
            counts.truth[t as usize] += 1;
            counts.predicted[p as usize] += 1;
            counts.hits[t as usize] += u64::from(t == p);
        }
        Ok(counts)
    }

    pub(super) fn zeros(classes: usize) -> Counts {
        Counts { truth: vec![0; classes], predicted: vec![0; classes], hits: vec![0; classes] }
    }

    /// Right ones.
    pub fn hits(&self) -> u64 {
        self.hits.iter().sum()
    }

    /// The share of right rows; 0 of none.
    pub fn accuracy(&self) -> f64 {
        self.hits() as f64 / self.truth.iter().sum::<u64>().max(1) as f64
    }

    /// Matthews' correlation.
    pub fn matthews(&self) -> f64 {
        let rows = self.truth.iter().sum::<u64>() as f64;
        let dot = |a: &[u64], b: &[u64]| a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
        let both = self.hits() as f64 * rows - dot(&self.truth, &self.predicted);
        let square = (rows * rows - dot(&self.predicted, &self.predicted))
            * (rows * rows - dot(&self.truth, &self.truth));
        if square > 0.0 { both / square.sqrt() } else { 0.0 }
    }

    /// Each class's own scores.
    pub fn scores(&self, names: &[String]) -> Vec<ClassScores> {
        let counts = self.hits.iter().zip(&self.predicted).zip(&self.truth);
        names
            .iter()
            .zip(counts)
            .map(|(name, ((&hits, &predicted), &support))| ClassScores {
                name: name.clone(),
                scores: Scores::of(hits, predicted, support),
                support,
                predicted,
            })
            .collect()
    }
}

/// `[K][K]`, row: true class, column: predicted class; empty above [`CONFUSION_CLASSES_MAX`] classes. Pairs beyond K are
/// not counted.
pub fn confusion(classes: usize, truth: &[u32], predicted: &[u32]) -> Vec<Vec<u64>> {
    if classes > CONFUSION_CLASSES_MAX {
        return Vec::new();
    }
    let mut matrix = vec![vec![0; classes]; classes];
    for (&t, &p) in truth.iter().zip(predicted) {
        if let Some(cell) = matrix.get_mut(t as usize).and_then(|row| row.get_mut(p as usize)) {
            *cell += 1;
        }
    }
    matrix
}
