//! The library's errors: what, where, the value, and the remedy.

use std::path::PathBuf;

/// Everything that can go wrong between a model and a trained adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of a model, adapter or data set is damaged, or cannot be read or written.
    #[error(transparent)]
    Format(#[from] retune_formats::Error),
    /// A tokenizer or a chat template.
    #[error(transparent)]
    Text(#[from] crate::text::Error),
    /// A data set of pictures.
    #[error("{0}")]
    Pictures(#[from] retune_media::pictures::Problems),
    /// The model's configuration is incomplete, inconsistent or not supported.
    #[error("{path}: {what}")]
    Model { path: PathBuf, what: String },
    /// An adapter does not fit the model.
    #[error("adapter {path}: {what}")]
    Adapter { path: PathBuf, what: String },
    /// A model cannot be written as asked.
    #[error("{path}: {what}")]
    Export { path: PathBuf, what: String },
    /// A setting of the method cannot be used on this model.
    #[error("{0}")]
    Method(String),
    /// Values of weights could not be had any more: what was computed with them is worth nothing.
    #[error("{0}")]
    Weights(String),
    /// Input ids or rows that the model cannot take.
    #[error("{0}")]
    Input(String),
}

pub type Result<T> = std::result::Result<T, Error>;
