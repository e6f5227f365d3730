//! Why a run cannot start or go on: each message says what, where, the value and the remedy.

use std::path::{Path, PathBuf};

use super::plan::DoesNotFit;
use crate::objective::ObjectiveError;

/// What this module returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why training did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings out of range, all of them.
    #[error("the training settings are not usable: {}", .0.join("; "))]
    Settings(Vec<String>),
    /// No example has a target.
    #[error(
        "none of the {examples} training examples has anything to learn from; check what carries loss with `retune preview`"
    )]
    NothingToLearn { examples: usize },
    /// Nothing is trainable.
    #[error("the method marked no parameter as trainable; check `target_modules`")]
    NoTrainableParameters,
    /// A trainable parameter that is not held in f32.
    #[error("parameter `{name}` is to be trained but is stored as {format}; use `--storage f32`")]
    NotTrainable { name: String, format: &'static str },
    /// The loss could not be computed.
    #[error("step {step}: the loss of {examples} cannot be computed: {source}")]
    Objective { step: u64, examples: String, source: ObjectiveError },
    /// Another process is at work in the folder.
    #[error("{}: {holder} is training in this folder; wait for it, or choose another output folder", path.display())]
    Busy { path: PathBuf, holder: String },
    /// A new run in a folder that holds checkpoints.
    #[error(
        "{}: this folder holds checkpoints of an earlier run (up to {newest}); resume it, or choose another output folder",
        path.display()
    )]
    HasCheckpoints { path: PathBuf, newest: String },
    /// There are checkpoints, but not one is whole.
    #[error("{}: no checkpoint is whole: {}; start anew in another folder", path.display(), why.join("; "))]
    NoWholeCheckpoint { path: PathBuf, why: Vec<String> },
    /// The run to be resumed had other settings.
    #[error(
        "{}: cannot resume, the run was started with other settings: {}; give the old values, or start anew in another folder",
        path.display(),
        differences.join(", ")
    )]
    OtherSettings { path: PathBuf, differences: Vec<String> },
    /// A checkpoint that is damaged or not ours.
    #[error("{}: {what}", path.display())]
    Checkpoint { path: PathBuf, what: String },
    /// The run would need more memory than there is.
    #[error("{0}")]
    DoesNotFit(#[source] Box<DoesNotFit>),
    /// Values of weights could not be had any more; nothing was trained with them.
    #[error("{0}; no weight was changed since, and the newest checkpoint is whole")]
    Weights(String),
    /// Reading or writing a file failed.
    #[error(transparent)]
    File(#[from] retune_formats::Error),
}

impl Error {
    pub(crate) fn checkpoint(path: &Path, what: impl Into<String>) -> Error {
        Error::Checkpoint { path: path.to_path_buf(), what: what.into() }
    }

    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let wrap = retune_formats::Error::io(path, doing);
        move |source| Error::File(wrap(source))
    }

    /// True when the operating system failed us (exit code 74).
    pub fn is_io(&self) -> bool {
        matches!(self, Error::File(e) if e.is_io())
    }
}

impl From<DoesNotFit> for Error {
    fn from(refusal: DoesNotFit) -> Error {
        Error::DoesNotFit(Box::new(refusal))
    }
}
