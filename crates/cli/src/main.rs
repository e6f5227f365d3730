//! The retune program.
#![forbid(unsafe_code)]
fn main() {}
