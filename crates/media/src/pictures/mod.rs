//! Pictures: decoding, resizing, augmentation, annotations, drawing.

pub mod annotations;
pub mod augment;
pub mod boxes;
pub mod decode;
pub mod draw;
pub mod labelled;
pub mod limits;
mod names;
mod picture;
pub mod prepare;
pub mod problems;
pub mod resize;
pub mod splits;
#[cfg(test)]
mod testing;
pub mod tiles;
mod walk;

pub use annotations::{Annotated, Annotations};
pub use augment::Augment;
pub use boxes::{BoxF, LabelledBox, Placement};
pub use labelled::Labelled;
pub use picture::{Picture, Region};
pub use prepare::Prepare;
pub use problems::Problems;
pub use resize::Resample;
pub use splits::Splits;
