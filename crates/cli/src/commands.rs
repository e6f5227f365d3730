//! One command a file: its flags, and what it does with them.

pub mod convert;
pub mod eval;
pub mod export;
pub mod fetch;
pub mod generate;
pub mod init;
pub mod inspect;
pub mod logits;
pub mod merge;
pub mod methods;
pub mod models;
pub mod plan;
pub mod predict;
pub mod preview;
pub mod quantize;
pub mod quickstart;
pub mod sweep;
pub mod tile;
pub mod train;
pub mod transcribe;
