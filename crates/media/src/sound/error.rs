//! What can be wrong with a file of sound: always with the file's name and what to do.

use std::path::{Path, PathBuf};

/// What reading sound returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a sound could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io { path: PathBuf, doing: &'static str, source: std::io::Error },
    /// The file is damaged, empty, too long, or of a kind that is not read.
    #[error("{}: {what}", path.display())]
    Sound { path: PathBuf, what: String },
}

impl Error {
    pub(super) fn sound(path: &Path, what: impl Into<String>) -> Error {
        Error::Sound { path: path.to_path_buf(), what: what.into() }
    }

    /// The file that the message is about.
    pub fn path(&self) -> &Path {
        match self {
            Error::Io { path, .. } | Error::Sound { path, .. } => path,
        }
    }

    /// The message without the file's name, for those that name it themselves.
    pub fn what(&self) -> String {
        match self {
            Error::Io { doing, source, .. } => format!("cannot {doing}: {source}"),
            Error::Sound { what, .. } => what.clone(),
        }
    }
}
