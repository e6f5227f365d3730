//! One command a file: its flags, and what it does with them.

pub mod fetch;
pub mod inspect;
pub mod logits;
pub mod methods;
pub mod models;
pub mod preview;
