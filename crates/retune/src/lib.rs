//! Adapts pre-trained models: models, methods, tasks and training.
#![forbid(unsafe_code)]

pub mod report;
pub mod run_file;
pub mod text;
