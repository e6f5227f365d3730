//! Pictures, boxes and sound: hostile files in, checked arrays out; augmentation, annotations and features.
#![forbid(unsafe_code)]

pub mod draws;
pub mod pictures;
pub mod sound;
