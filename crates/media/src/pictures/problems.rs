//! What is wrong with a data set, all at once: each problem names its file and line.

use std::fmt;
use std::path::Path;

use retune_formats::Error;

use super::limits;

/// At least one problem; beyond [`limits::PROBLEMS`] they are only counted.
#[derive(Debug, Default)]
pub struct Problems {
    pub list: Vec<Error>,
    pub more: usize,
}

impl Problems {
    pub fn push(&mut self, problem: Error) {
        if !self.is_full() {
            self.list.push(problem);
        } else {
            self.more += 1;
        }
    }

    /// Is the next one only counted? Then its words need not be found.
    pub fn is_full(&self) -> bool {
        self.list.len() >= limits::PROBLEMS
    }

    /// A problem of a line of a file.
    pub fn line(&mut self, path: &Path, line: usize, what: impl Into<String>) {
        self.push(Error::Record { path: path.to_path_buf(), line, what: what.into() });
    }

    /// `value`, if there is no problem.
    pub fn or<T>(self, value: T) -> Result<T, Problems> {
        if self.list.is_empty() { Ok(value) } else { Err(self) }
    }

    /// True when the operating system failed us, false when the data is at fault.
    pub fn is_io(&self) -> bool {
        self.list.iter().all(Error::is_io)
    }
}

impl From<Error> for Problems {
    fn from(problem: Error) -> Problems {
        Problems { list: vec![problem], more: 0 }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            write!(f, "{}{problem}", if i > 0 { "\n" } else { "" })?;
        }
        if self.more > 0 {
            write!(f, "\nand {} problems more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
