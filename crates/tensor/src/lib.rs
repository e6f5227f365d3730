//! The training engine: rows x channels without padding, a small tape, fused ops, any weight storage.
//!
//! Shape letters, used everywhere: `T` rows (tokens, frames, pixels), `C` channels, `N` output features,
//! `K` contracted features, `H` heads, `D` head size, `V` vocabulary, `R` rank.
//!
//! The only crate of the workspace with `unsafe`: in `kernel`, `storage`, and where attention's tasks share an output.

pub mod grid;
pub mod kernel;
pub mod layout;
pub mod memory;
pub mod ops;
pub mod params;
pub mod rng;
pub mod segments;
pub mod storage;
pub mod tape;
pub mod tensor;

pub use grid::{Grid, Window};
pub use layout::Layout;
pub use params::{Param, ParamId, Params, Weight};
pub use segments::Segments;
pub use tape::{Gradients, Tape, Var, WeightVar};
pub use tensor::Tensor;
