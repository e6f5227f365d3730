//! Darknet's files: a network as text (`.cfg`), its numbers (`.weights`), and the names of its classes (`.names`).
//!
//! [`Config`] is the text as sections of keys and values, each with its line; [`Weights`] hands out the numbers, run by
//! run, as a network that was built from the sections asks for them. Both can be written again.

mod config;
mod keys;
mod weights;

pub use config::{Config, Entry, Section};
pub use weights::{Header, Named, Weights, write_weights};
