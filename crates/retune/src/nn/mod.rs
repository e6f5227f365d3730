//! Layers: parameters with their sites. A layer knows no method; a method puts its own code into the sites.

pub mod embedding;
pub mod linear;
pub mod norm;
pub mod pass;

pub use embedding::Embedding;
pub use linear::{Linear, LinearDelta, linear_many};
pub use norm::RmsNorm;
pub use pass::{Dropouts, Pass, Rows};

/// A place in a model where a method may act, with its module path.
pub enum Site<'a> {
    /// A weight's product, which a method may add to or scale.
    Linear(&'a mut Linear),
    /// A token table.
    Embedding(&'a mut Embedding),
}
