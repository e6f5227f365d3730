//! What can be wrong with clips and transcripts: always with the file, and the line where there is one.

use crate::tasks::causal_lm::error::list;

pub use crate::tasks::causal_lm::error::{Problem as BadRow, SHOWN_MAX, Source};

/// Result of reading clips.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of reading clips.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest cannot be read, or a row of it is not JSON or a table's line.
    #[error(transparent)]
    File(#[from] retune_formats::Error),
    /// A folder cannot be read.
    #[error("{path}: cannot read: {source}")]
    Folder { path: String, source: std::io::Error },
    /// Rows that cannot be used, the first few of them.
    #[error("{}", list(.first, *.count))]
    Rows { first: Vec<BadRow>, count: usize },
    /// The data set as a whole.
    #[error("{file}: {what}")]
    Data { file: String, what: String },
    /// The shares to hold out.
    #[error("the held-out shares are {0:?}; each must be at least 0, together less than 1")]
    Shares([f64; 2]),
}

/// Rows that cannot be used, gathered so that they are told together.
#[derive(Debug, Default)]
pub(super) struct Problems {
    first: Vec<BadRow>,
    count: usize,
}

impl Problems {
    pub fn add(&mut self, source: Source, what: impl Into<String>) {
        self.count += 1;
        if self.first.len() < SHOWN_MAX {
            self.first.push(BadRow { source, what: what.into() });
        }
    }

    /// The value, if nothing is wrong.
    pub fn or<T>(self, value: T) -> Result<T> {
        match self.count {
            0 => Ok(value),
            count => {
                let mut first = self.first;
                first.sort_by(|a, b| (&a.source.file, a.source.line).cmp(&(&b.source.file, b.source.line)));
                Err(Error::Rows { first, count })
            }
        }
    }
}
