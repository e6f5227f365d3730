//! Held-out rows and folds with the same shares of classes, decided by hashes of what rows say: the order of a file changes
//! nothing, and texts that occur twice stand on one side.

use std::collections::{BTreeMap, HashMap};

use super::data::{Dataset, Label, LabelledText};
use super::error::{Error, Result};
use crate::tasks::causal_lm::split::hash;

/// The share that is held out if nobody says otherwise.
pub const HELD_OUT: f64 = 0.1;
/// Values of a regression are split into this many ranges of equal size.
const RANGES: usize = 10;

/// Rows that say the same, in the order that the seed gives.
struct Group {
    order: u64,
    content: u64,
    rows: Vec<usize>,
}

impl Dataset {
    /// Splits off a share of each class's rows, at least one text if there are two. Returns (training, held-out); both know
    /// all labels. Which rows is a matter of the seed and the texts alone.
    ///
    /// # Errors
    /// [`Error::Fraction`] unless 0 <= fraction < 1.
    pub fn split_stratified(self, fraction: f64, seed: u64) -> Result<(Dataset, Dataset)> {
        if !(0.0..1.0).contains(&fraction) {
            return Err(Error::Fraction(fraction));
        }
        let strata = self.strata(seed);
        let mut held = vec![false; self.examples.len()];
        let (mut wanted, mut taken) = (0.0, 0);
        for groups in &strata {
            let rows: usize = groups.iter().map(|group| group.rows.len()).sum();
            wanted += fraction * rows as f64;
            // The last group stays: every class is trained on.
            for group in &groups[..groups.len().saturating_sub(1)] {
                if taken as f64 + group.rows.len() as f64 / 2.0 > wanted {
                    break;
                }
                taken += group.rows.len();
                group.rows.iter().for_each(|&row| held[row] = true);
            }
        }
        if taken == 0 && fraction > 0.0 {
            let largest = strata.iter().max_by_key(|groups| groups.len()).filter(|groups| groups.len() > 1);
            let first = largest.and_then(|groups| groups.first());
            first.into_iter().flat_map(|group| &group.rows).for_each(|&row| held[row] = true);
        }
        let (mut train, mut out) = (Vec::new(), Vec::new());
        for (example, held) in self.examples.iter().zip(held) {
            if held { out.push(example.clone()) } else { train.push(example.clone()) }
        }
        Ok((self.with(train), self.with(out)))
    }

    /// The fold (below `folds`) that each example is held out in, with about the same share of each class in every fold.
    ///
    /// # Errors
    /// [`Error::Folds`] of fewer than 2, or more than there are different texts.
    pub fn folds(&self, folds: usize, seed: u64) -> Result<Vec<usize>> {
        let strata = self.strata(seed);
        let groups: usize = strata.iter().map(Vec::len).sum();
        if folds < 2 || folds > groups {
            return Err(Error::Folds { folds, groups });
        }
        let mut fold_of = vec![0; self.examples.len()];
        for (i, group) in strata.iter().flatten().enumerate() {
            group.rows.iter().for_each(|&row| fold_of[row] = i % folds);
        }
        Ok(fold_of)
    }

    /// The examples of all folds but one, and of that one.
    ///
    /// # Errors
    /// As [`Dataset::folds`].
    pub fn fold(&self, fold: usize, folds: usize, seed: u64) -> Result<(Dataset, Dataset)> {
        let fold_of = self.folds(folds, seed)?;
        let pick = |inside: bool| -> Vec<LabelledText> {
            let pairs = self.examples.iter().zip(&fold_of);
            pairs.filter(|(_, f)| (**f == fold) == inside).map(|(example, _)| example.clone()).collect()
        };
        Ok((self.with(pick(false)), self.with(pick(true))))
    }

    /// Groups of rows that say the same, by class; a group belongs where its first row does.
    fn strata(&self, seed: u64) -> Vec<Vec<Group>> {
        let mut groups: HashMap<u64, Vec<usize>> = HashMap::new();
        for (i, example) in self.examples.iter().enumerate() {
            groups.entry(example.content).or_default().push(i);
        }
        let bounds = bounds(&self.examples);
        let mut strata: BTreeMap<u64, Vec<Group>> = BTreeMap::new();
        for (content, mut rows) in groups {
            // Not the file's order, or it would decide which of contradicting labels counts.
            rows.sort_by_key(|&row| self.examples[row].key);
            let stratum = rows.first().map_or(0, |&row| self.stratum(&self.examples[row].label, &bounds));
            let order = hash(&[seed.to_le_bytes(), content.to_le_bytes()].concat());
            strata.entry(stratum).or_default().push(Group { order, content, rows });
        }
        let mut strata: Vec<Vec<Group>> = strata.into_values().collect();
        strata
            .iter_mut()
            .for_each(|groups| groups.sort_unstable_by_key(|group| (group.order, group.content)));
        strata
    }

    /// The class; of several labels (or tags) the rarest; of a number its range.
    fn stratum(&self, label: &Label, bounds: &[f32]) -> u64 {
        let count = |class: &u32| self.report.counts.get(*class as usize).copied().unwrap_or_default();
        match label {
            Label::Value(x) => bounds.iter().filter(|bound| *x > **bound).count() as u64,
            other => {
                let rarest = other.classes().iter().min_by_key(|class| (count(class), **class));
                rarest.map_or(0, |class| u64::from(*class) + 1)
            }
        }
    }
}

/// The values between [`RANGES`] ranges of about the same number of rows.
fn bounds(examples: &[LabelledText]) -> Vec<f32> {
    let value = |example: &LabelledText| match example.label {
        Label::Value(x) => Some(x),
        _ => None,
    };
    let mut values: Vec<f32> = examples.iter().filter_map(value).collect();
    values.sort_unstable_by(f32::total_cmp);
    (1..RANGES).filter_map(|i| values.get(i * values.len() / RANGES).copied()).collect()
}
