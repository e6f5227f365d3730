//! What can be wrong with data: always with the file and the line.

use crate::text;
use std::fmt;
use std::sync::Arc;

/// Result of this task.
pub type Result<T> = std::result::Result<T, Error>;

/// How many of the rows that are wrong in the same run a message shows.
pub const SHOWN_MAX: usize = 5;

/// Where a row stands: written `file:line`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    pub file: Arc<str>,
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub source: Source,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.what)
    }
}

/// An error of reading rows into examples.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or a row of it is not JSON, text or a table's line.
    #[error(transparent)]
    File(#[from] retune_formats::Error),

    /// Rows that are not understood, the first few of them.
    #[error("{}", list(.first, *.count))]
    Rows { first: Vec<Problem>, count: usize },

    /// Nothing would be learned.
    #[error(
        "{file}: nothing is left to train on: of {rows} rows, {empty} have an empty answer and {cut} lose theirs at \
         max_length {max_length}; {remedy}"
    )]
    NoTargets { file: String, rows: usize, empty: usize, cut: usize, max_length: usize, remedy: &'static str },

    /// The share of rows to hold out.
    #[error("the held-out share is {0}; it must be at least 0 and less than 1")]
    Fraction(f64),

    /// Tokens that cannot be shown as text.
    #[error(transparent)]
    Text(#[from] text::Error),
}

/// The first few, one a line, and how many more there are.
pub(in crate::tasks) fn list(first: &[Problem], count: usize) -> String {
    let mut text: Vec<String> = first.iter().map(Problem::to_string).collect();
    if count > first.len() {
        text.push(format!("and {} more rows like these", count - first.len()));
    }
    text.join("\n")
}
