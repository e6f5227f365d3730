//! The matrix kernels, per instruction set, chosen at run time: packed products over any storage, small serial ones, one-row ones.

mod buffer;
mod gemm;
mod level;
mod lhs;
mod mat;
mod matvec;
mod micro;
mod pack;
pub mod parallel;
pub mod simd;
mod skinny;
#[cfg(test)]
mod tests;

pub use gemm::{gemm, gemm_batch, gemm_serial, workspace_bytes};
pub use level::{Level, level};
pub use lhs::PackedLhs;
pub use mat::MatRef;
pub use matvec::{MATVEC_ROWS_MAX, matvec, matvec_many};
pub use pack::{PackedRhs, Rhs};
pub use skinny::gemm_tn_skinny;
