//! What was counted while rows became examples, and how it is told.

use super::error::{SHOWN_MAX, Source};
use super::rows::Kind;
use std::collections::BTreeMap;
use std::fmt;

/// Why a row is not among the examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Its answers have no text.
    Empty,
    /// All of its answers lie beyond `max_length`.
    Cut,
}

impl Dropped {
    /// In words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Empty => "the answer is empty",
            Self::Cut => "the answer lies beyond max_length",
        }
    }
}

/// Counts of a data set.
#[derive(Debug, Clone, Default)]
pub struct DataReport {
    /// Rows read.
    pub rows: usize,
    /// Rows that are trained on.
    pub examples: usize,
    /// Tokens of the examples.
    pub tokens: usize,
    /// Those that carry loss.
    pub target_tokens: usize,
    /// Examples that were cut at `max_length`.
    pub truncated_rows: usize,
    /// Tokens that they lost.
    pub truncated_tokens: usize,
    /// Rows that are not examples.
    pub dropped: Vec<(Source, Dropped)>,
    /// Examples whose tokens are those of an earlier one.
    pub duplicates: usize,
    /// Of these, removed by [`super::Dataset::dedup`].
    pub duplicates_removed: usize,
    /// Conversations of which only the last answer is learned, because the template rewrites earlier ones.
    pub last_answer_only: usize,
    /// Rows whose text names a special token, which was read as letters.
    pub special_names: usize,
    /// The first of them, with the name.
    pub special_name: Option<(Source, String)>,
    /// Tokens of the longest example, and where it stands.
    pub longest: Option<(usize, Source)>,
    /// Rows of each shape.
    pub kinds: BTreeMap<Kind, usize>,
}

impl DataReport {
    /// Rows dropped for that reason.
    pub fn dropped_for(&self, reason: Dropped) -> usize {
        self.dropped.iter().filter(|(_, why)| *why == reason).count()
    }

    /// What the user should know though nothing is wrong: one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for reason in [Dropped::Empty, Dropped::Cut] {
            let places: Vec<String> =
                self.dropped.iter().filter(|(_, why)| *why == reason).map(|(s, _)| s.to_string()).collect();
            if !places.is_empty() {
                let shown = places[..places.len().min(SHOWN_MAX)].join(", ");
                let more = if places.len() > SHOWN_MAX { ", …" } else { "" };
                warnings.push(format!("{} dropped, {} ({shown}{more})", rows(places.len()), reason.reason()));
            }
        }
        if self.truncated_rows > 0 {
            let (n, lost) = (rows(self.truncated_rows), self.truncated_tokens);
            warnings.push(format!("{n} cut at max_length: {lost} tokens are not seen"));
        }
        if self.last_answer_only > 0 {
            let n = rows(self.last_answer_only);
            warnings.push(format!(
                "{n}: the chat template rewrites earlier answers, so only the last is learned"
            ));
        }
        if let Some((source, name)) = &self.special_name {
            let n = rows(self.special_names);
            warnings
                .push(format!("{n} with the name of a special token, read as letters ({name} at {source})"));
        }
        let left = self.duplicates - self.duplicates_removed;
        if left > 0 {
            warnings.push(format!("{} repeated exactly", rows(left)));
        }
        warnings
    }
}

fn rows(n: usize) -> String {
    if n == 1 { "1 row".into() } else { format!("{n} rows") }
}

impl fmt::Display for DataReport {
    /// The counts in one line, then the warnings, one a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} examples, {} tokens", rows(self.rows), self.examples, self.tokens)?;
        let share = 100.0 * self.target_tokens as f64 / self.tokens.max(1) as f64;
        write!(f, " of which {} ({share:.0} %) carry loss", self.target_tokens)?;
        if let Some((tokens, source)) = &self.longest {
            write!(f, "; the longest has {tokens} ({source})")?;
        }
        if self.duplicates_removed > 0 {
            write!(f, "; {} repeated and removed", rows(self.duplicates_removed))?;
        }
        self.warnings().iter().try_for_each(|warning| write!(f, "\n{warning}"))
    }
}
