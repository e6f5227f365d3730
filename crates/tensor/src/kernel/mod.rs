//! The matrix kernels, per instruction set, chosen at run time.

mod level;
pub mod simd;

pub use level::{Level, level};
