//! Causal language modelling: rows of text or conversations become token ids and a mask of what is learned.
//!
//! loss = -sum over i with target[i] of log p(ids[i] | ids[..i]), divided by the number of targets of the whole step.

pub(super) mod error;
mod mask;
mod objective;
mod report;
mod rows;
pub(super) mod split;

pub use error::{Error, Problem, Result, Source};
pub(crate) use objective::language_model;
pub use objective::{CausalLm, head_loss, logits};
pub use report::{DataReport, Dropped};
pub use rows::{Kind, Row};

use crate::run_file::TrainOn;
use crate::text::Language;
use rayon::prelude::*;
use retune_formats::records::{Record, Records};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// One row, ready to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// At least 2.
    pub ids: Vec<u32>,
    /// `target[i]`: `ids[i]` is predicted, from `ids[..i]`, and counted in the loss. `target[0]` is never set.
    pub target: Vec<bool>,
    /// File and line.
    pub source: Source,
    /// A number of the row's own, wherever it stands in the file: for dropout and shuffling.
    pub key: u64,
    /// Hash of what the row asks, case and white space aside: rows with the same one belong on the same side of a split.
    pub question: u64,
    /// Tokens cut away at `max_length`.
    pub truncated: usize,
}

impl Example {
    /// Tokens that carry loss.
    pub fn targets(&self) -> usize {
        self.target.iter().filter(|t| **t).count()
    }
}

/// How rows become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Tokens; longer rows are cut on the right.
    pub max_length: usize,
    pub train_on: TrainOn,
    /// In `text` and `prompt`/`completion` rows `<|im_end|>` and the like are the special tokens, not letters: for data
    /// that carry a template already.
    pub special_in_text: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_length: 1024, train_on: TrainOn::Answers, special_in_text: false }
    }
}

/// Examples and what was counted on the way.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    pub examples: Vec<Example>,
    pub report: DataReport,
}

/// What became of one row.
enum Outcome {
    Example { example: Example, kind: Kind, last_only: bool, special: Option<String> },
    Dropped { kind: Kind, reason: Dropped },
}

impl Dataset {
    /// Reads a data file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.txt`) into examples.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read; else as [`Dataset::build`].
    pub fn load(language: &Language, path: &Path, options: &Options) -> Result<Self> {
        Self::build(language, &path.display().to_string(), &Records::read_all(path)?, options)
    }

    /// Turns the rows of a file into examples.
    ///
    /// # Errors
    /// [`Error::Rows`] counts all rows that are not understood and names the first five; [`Error::NoTargets`] if
    /// nothing is left to learn.
    pub fn build(language: &Language, file: &str, rows: &[Record], options: &Options) -> Result<Self> {
        let file: Arc<str> = file.into();
        let outcomes: Vec<(Source, std::result::Result<Outcome, String>)> = rows
            .par_iter()
            .map(|record| {
                let source = Source { file: file.clone(), line: record.line };
                let outcome = row(language, &record.value, &source, options);
                (source, outcome)
            })
            .collect();
        let mut dataset = Self::default();
        let mut wrong = Vec::new();
        for (source, outcome) in outcomes {
            match outcome {
                Ok(outcome) => dataset.take(source, outcome),
                Err(what) => wrong.push(Problem { source, what }),
            }
        }
        if !wrong.is_empty() {
            let count = wrong.len();
            wrong.truncate(error::SHOWN_MAX);
            return Err(Error::Rows { first: wrong, count });
        }
        dataset.number_twins();
        dataset.count();
        dataset.check(&file, options)?;
        Ok(dataset)
    }

    fn take(&mut self, source: Source, outcome: Outcome) {
        let report = &mut self.report;
        report.rows += 1;
        match outcome {
            Outcome::Example { example, kind, last_only, special } => {
                *report.kinds.entry(kind).or_default() += 1;
                report.last_answer_only += usize::from(last_only);
                report.truncated_rows += usize::from(example.truncated > 0);
                report.truncated_tokens += example.truncated;
                if let Some(name) = special {
                    report.special_names += 1;
                    report.special_name.get_or_insert((source, name));
                }
                self.examples.push(example);
            }
            Outcome::Dropped { kind, reason } => {
                *report.kinds.entry(kind).or_default() += 1;
                report.dropped.push((source, reason));
            }
        }
    }

    /// Gives rows with the same tokens keys of their own, in order.
    fn number_twins(&mut self) {
        let mut seen: HashMap<u64, u64> = HashMap::with_capacity(self.examples.len());
        for example in &mut self.examples {
            let twins = seen.entry(example.key).or_default();
            if *twins > 0 {
                self.report.duplicates += 1;
                example.key = split::hash(&[example.key.to_le_bytes(), twins.to_le_bytes()].concat());
            }
            *twins += 1;
        }
    }

    /// Counts what depends on the examples that are there.
    fn count(&mut self) {
        let report = &mut self.report;
        report.examples = self.examples.len();
        report.tokens = self.examples.iter().map(|e| e.ids.len()).sum();
        report.target_tokens = self.examples.iter().map(Example::targets).sum();
        let longest = self.examples.iter().max_by_key(|e| e.ids.len());
        report.longest = longest.map(|e| (e.ids.len(), e.source.clone()));
    }

    fn check(&self, file: &str, options: &Options) -> Result<()> {
        if self.report.target_tokens > 0 {
            return Ok(());
        }
        let [empty, cut] = [Dropped::Empty, Dropped::Cut].map(|reason| self.report.dropped_for(reason));
        let remedy = match (self.report.rows, cut) {
            (0, _) => "the file has no rows",
            (_, 0) => "give the rows answers, or train on everything",
            _ => "raise max_length",
        };
        let (file, rows) = (file.to_string(), self.report.rows);
        Err(Error::NoTargets { file, rows, empty, cut, max_length: options.max_length, remedy })
    }

    /// The key of each example.
    pub fn keys(&self) -> Vec<u64> {
        self.examples.iter().map(|e| e.key).collect()
    }
}

fn row(
    language: &Language,
    value: &Value,
    source: &Source,
    options: &Options,
) -> std::result::Result<Outcome, String> {
    let row = Row::parse(value)?;
    let kind = row.kind();
    let tokens = mask::tokens(language, &row, options.train_on, options.special_in_text)?;
    if tokens.empty {
        return Ok(Outcome::Dropped { kind, reason: Dropped::Empty });
    }
    let mask::Tokens { mut ids, mut target, last_only, .. } = tokens;
    let key = split::key(&ids, &target);
    let truncated = ids.len().saturating_sub(options.max_length);
    ids.truncate(options.max_length);
    target.truncate(options.max_length);
    if !target.contains(&true) {
        return Ok(Outcome::Dropped {
            kind,
            reason: if truncated > 0 { Dropped::Cut } else { Dropped::Empty },
        });
    }
    let question = split::question(row.question());
    let special = special_name(language, &row, options);
    let example = Example { ids, target, source: source.clone(), key, question, truncated };
    Ok(Outcome::Example { example, kind, last_only, special })
}

/// The first special token's name that the row's own text holds, where it was read as letters.
fn special_name(language: &Language, row: &Row, options: &Options) -> Option<String> {
    let find = |text: &str| language.tokenizer.find_special(text).map(str::to_string);
    match row {
        Row::Chat { messages, .. } => messages.iter().find_map(|m| find(&m.content)),
        _ if options.special_in_text => None,
        Row::Completion { prompt, completion } => find(prompt).or_else(|| find(completion)),
        Row::Text(text) => find(text),
    }
}

#[cfg(test)]
mod tests;
