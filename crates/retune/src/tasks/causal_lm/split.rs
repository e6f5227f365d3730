//! Held-out rows and duplicates, decided by hashes of what rows say: the order of a file changes nothing.

use super::{Dataset, Error, Example, Result};
use std::collections::{BTreeSet, HashSet};

/// 64 bits of BLAKE3.
pub(in crate::tasks) fn hash(bytes: &[u8]) -> u64 {
    let digest = blake3::hash(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// The hash of a row's tokens and mask.
pub(super) fn key(ids: &[u32], target: &[bool]) -> u64 {
    let mut bytes = Vec::with_capacity(ids.len() * 5);
    ids.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()));
    bytes.extend(target.iter().map(|t| u8::from(*t)));
    hash(&bytes)
}

/// The hash of a question, case and white space aside.
pub(super) fn question(text: &str) -> u64 {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    hash(words.join(" ").as_bytes())
}

impl Dataset {
    /// Removes examples whose tokens and mask equal an earlier one's; returns how many.
    pub fn dedup(&mut self) -> usize {
        let before = self.examples.len();
        let mut seen: HashSet<u64> = HashSet::with_capacity(before);
        self.examples.retain(|e| seen.insert(key(&e.ids, &e.target)));
        let removed = before - self.examples.len();
        self.report.duplicates = self.report.duplicates.max(removed);
        self.report.duplicates_removed += removed;
        self.count();
        removed
    }

    /// Splits off a share of the *questions* (at least one, if there are two): rows that ask the same never stand on both
    /// sides. Which ones is a matter of the seed and the questions alone. Returns (training, held-out).
    ///
    /// # Errors
    /// [`Error::Fraction`] unless 0 <= fraction < 1.
    pub fn split_by_question(self, fraction: f64, seed: u64) -> Result<(Dataset, Dataset)> {
        if !(0.0..1.0).contains(&fraction) {
            return Err(Error::Fraction(fraction));
        }
        let questions: BTreeSet<u64> = self.examples.iter().map(|e| e.question).collect();
        let mut order: Vec<(u64, u64)> =
            questions.iter().map(|q| (hash(&[seed.to_le_bytes(), q.to_le_bytes()].concat()), *q)).collect();
        order.sort_unstable();
        let held_out = ((fraction * order.len() as f64).round() as usize).max(usize::from(fraction > 0.0));
        let held_out = held_out.min(order.len().saturating_sub(1));
        let held_out: HashSet<u64> = order[..held_out].iter().map(|(_, q)| *q).collect();
        let (held, train): (Vec<Example>, Vec<Example>) =
            self.examples.into_iter().partition(|e| held_out.contains(&e.question));
        let mut train = Dataset { examples: train, report: self.report };
        let mut held = Dataset { examples: held, report: Default::default() };
        held.report.rows = held.examples.len();
        train.count();
        held.count();
        Ok((train, held))
    }
}
