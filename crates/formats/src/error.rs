//! The one error type: every message says where (file, line, tensor), what, the value, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::Dtype;

/// What this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    /// The bytes are not what the format allows: damaged, cut short or hostile.
    #[error("{}: not a valid {format} file: {what}", path.display())]
    Invalid { path: PathBuf, format: &'static str, what: String },
    /// A count or size in the file is beyond what Retune accepts.
    #[error("{}: {what} is {value}, the limit is {limit}", path.display())]
    Limit { path: PathBuf, what: String, value: u64, limit: u64 },
    /// A valid file of a kind that is not handled; the remedy says what would be.
    #[error("{}: {what}; {remedy}", path.display())]
    Unsupported { path: PathBuf, what: String, remedy: String },
    /// A file or folder that should be there is not.
    #[error("{}: {what}; {remedy}", path.display())]
    Missing { path: PathBuf, what: String, remedy: String },
    /// No tensor of this name.
    #[error("{}: no tensor named `{name}`{}", path.display(), nearest.as_ref().map(|n| format!("; the nearest name is `{n}`")).unwrap_or_default())]
    NoTensor { path: PathBuf, name: String, nearest: Option<String> },
    /// A tensor has a type that this reader cannot turn into what was asked for.
    #[error("{}: tensor `{name}` is {found}, wanted {wanted}", path.display())]
    TensorType { path: PathBuf, name: String, found: Dtype, wanted: &'static str },
    /// A tensor's bytes were asked for beyond its end.
    #[error("{}: tensor `{name}` has {have} bytes, {need} were asked for", path.display())]
    TensorRange { path: PathBuf, name: String, have: u64, need: u64 },
    /// A value that must be finite is NaN or infinite.
    #[error("{}: tensor `{name}` holds {value} at element {index}; the file comes from a diverged run or is damaged", path.display())]
    NotFinite { path: PathBuf, name: String, index: u64, value: f64 },
    /// A metadata or configuration key that is needed is absent.
    #[error("{}: key `{key}` is missing{}", path.display(), nearest.as_ref().map(|n| format!(" (the nearest is `{n}`)")).unwrap_or_default())]
    MissingKey { path: PathBuf, key: String, nearest: Option<String> },
    /// A metadata or configuration key has an unusable value.
    #[error("{}: `{key}` is {found}, wanted {wanted}", path.display())]
    Key { path: PathBuf, key: String, found: String, wanted: String },
    /// Text that is not JSON.
    #[error("{}:{line}:{column}: {what}", path.display())]
    Json { path: PathBuf, line: usize, column: usize, what: String },
    /// A row of a data file that cannot be read.
    #[error("{}:{line}: {what}", path.display())]
    Record { path: PathBuf, line: usize, what: String },
    /// Less free disk than the write needs.
    #[error("{}: {need} bytes are to be written and {free} are free on that disk; free some space or choose another folder", path.display())]
    NoSpace { path: PathBuf, need: u64, free: u64 },
    /// A file is not what it was when it was opened.
    #[error("{}: the file changed while it was in use: {what}; its weights must stay as they are, so start again with a file that nobody writes to", path.display())]
    Changed { path: PathBuf, what: String },
    /// The caller handed over tensors that do not make a valid file.
    #[error("{}: cannot write: {what}", path.display())]
    Write { path: PathBuf, what: String },
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { path: path.to_path_buf(), doing, source }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(path: &Path, format: &'static str, what: impl Into<String>) -> Error {
        Error::Invalid { path: path.to_path_buf(), format, what: what.into() }
    }

    /// An [`Error::Limit`].
    pub fn limit(path: &Path, what: impl Into<String>, value: u64, limit: u64) -> Error {
        Error::Limit { path: path.to_path_buf(), what: what.into(), value, limit }
    }

    pub(crate) fn key(
        path: &Path,
        key: impl Into<String>,
        found: impl Into<String>,
        wanted: impl Into<String>,
    ) -> Error {
        Error::Key { path: path.to_path_buf(), key: key.into(), found: found.into(), wanted: wanted.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::Unsupported { path: path.to_path_buf(), what: what.into(), remedy: remedy.into() }
    }

    /// An [`Error::Missing`].
    pub fn missing(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error::Missing { path: path.to_path_buf(), what: what.into(), remedy: remedy.into() }
    }

    /// The file or folder that the message is about.
    pub fn path(&self) -> &Path {
        match self {
            Error::Io { path, .. }
            | Error::Invalid { path, .. }
            | Error::Limit { path, .. }
            | Error::Unsupported { path, .. }
            | Error::Missing { path, .. }
            | Error::NoTensor { path, .. }
            | Error::TensorType { path, .. }
            | Error::TensorRange { path, .. }
            | Error::NotFinite { path, .. }
            | Error::MissingKey { path, .. }
            | Error::Key { path, .. }
            | Error::Json { path, .. }
            | Error::Record { path, .. }
            | Error::NoSpace { path, .. }
            | Error::Changed { path, .. }
            | Error::Write { path, .. } => path,
        }
    }

    /// True when the operating system failed us (exit code 74), false when the file is at fault (65).
    pub fn is_io(&self) -> bool {
        matches!(self, Error::Io { .. } | Error::NoSpace { .. } | Error::Changed { .. })
    }
}

/// Text from a file made fit for a message: short, and on one line.
pub fn quote(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut out = String::from("`");
    for (i, c) in text.chars().enumerate() {
        match c {
            _ if i == SHOWN => {
                out.push('…');
                break;
            }
            '\'' | '"' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    out.push('`');
    out
}
