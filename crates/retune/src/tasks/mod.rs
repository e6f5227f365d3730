//! Tasks: what rows of data mean, and which of their numbers carry loss.

pub mod causal_lm;
pub mod classification;
