//! Adapts pre-trained models: models, methods, tasks and training.
#![forbid(unsafe_code)]

pub mod base;
pub mod combine;
pub mod convert;
pub mod error;
pub mod export;
pub mod generate;
pub mod linalg;
pub mod methods;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod objective;
pub mod report;
pub mod run_file;
pub mod sweep;
pub mod tasks;
pub mod text;
pub mod train;

pub use error::{Error, Result};
pub use models::Model;
