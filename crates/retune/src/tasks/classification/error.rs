//! What can be wrong with labelled data: always with the file, and the line where there is one.

use crate::tasks::causal_lm::error::list;

pub use crate::tasks::causal_lm::error::{Problem as BadRow, SHOWN_MAX, Source};

/// Result of reading labelled data.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of reading rows into labelled texts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or a row of it is not JSON, text or a table's line.
    #[error(transparent)]
    File(#[from] retune_formats::Error),
    /// Rows that are not understood, the first few of them.
    #[error("{}", list(.first, *.count))]
    Rows { first: Vec<BadRow>, count: usize },
    /// Together the labels make no task.
    #[error("{file}: {what}")]
    Labels { file: String, what: String },
    /// The share of rows to hold out.
    #[error("the held-out share is {0}; it must be at least 0 and less than 1")]
    Fraction(f64),
    /// The number of folds.
    #[error("{folds} folds of {groups} different texts; 2 to {groups} can be made")]
    Folds { folds: usize, groups: usize },
}

/// Goes through rows to the end, so that the first few wrong ones are told together.
pub(super) fn collect<T>(
    rows: impl Iterator<Item = (Source, std::result::Result<T, String>)>,
) -> Result<Vec<T>> {
    let mut good = Vec::new();
    let mut first = Vec::new();
    let mut count = 0;
    for (source, row) in rows {
        match row {
            Ok(row) => good.push(row),
            Err(what) => {
                count += 1;
                if first.len() < SHOWN_MAX {
                    first.push(BadRow { source, what });
                }
            }
        }
    }
    if count > 0 { Err(Error::Rows { first, count }) } else { Ok(good) }
}
