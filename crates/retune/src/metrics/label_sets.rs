//! Several labels a row: exactly right sets, and each label's precision, recall and F1.

use super::{Counts, check_classes};
use crate::error::Result;

/// Counts of sets of labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetCounts {
    pub classes: Counts,
    /// Rows whose set is exactly right.
    pub exact: u64,
}

impl SetCounts {
    /// Of sets of indices below `classes`; a label named twice in a row counts once.
    ///
    /// # Errors
    /// A label beyond.
    pub fn of(classes: usize, truth: &[Vec<u32>], predicted: &[Vec<u32>]) -> Result<SetCounts> {
        let mut counts = SetCounts { classes: Counts::zeros(classes), exact: 0 };
        for (truth, predicted) in truth.iter().zip(predicted) {
            check_classes(classes, "a label", truth)?;
            check_classes(classes, "a prediction", predicted)?;
            let (truth, predicted) = (set(truth), set(predicted));
            truth.iter().for_each(|&label| counts.classes.truth[label as usize] += 1);
            for &label in &predicted {
                counts.classes.predicted[label as usize] += 1;
                counts.classes.hits[label as usize] += u64::from(truth.binary_search(&label).is_ok());
            }
            counts.exact += u64::from(truth == predicted);
        }
        Ok(counts)
    }
}

fn set(labels: &[u32]) -> Vec<u32> {
    let mut set = labels.to_vec();
    set.sort_unstable();
    set.dedup();
    set
}
