//! VGG (Simonyan and Zisserman, 2015) and what has its shape: 3 x 3 convolutions with rectifiers, halved by pooling between stages, then dense
//! layers on the flattened pixels.
//!
//! Names are torchvision's: `features.N` and `classifier.N`, `N` counting every step of its two `Sequential`s.
//!
//! Where the pictures' size is not the one that the dense layers were made for, a new classifier stands on the mean of the last pixels instead.

mod load;
mod onnx;

pub use load::{VggConfig, recognise};
pub use onnx::Onnx;

use crate::models::{Reads, Spec};

pub const SPEC: Spec = Spec {
    model_types: &["vgg"],
    name: "vgg",
    summary: "image classifiers: VGG 11 to 19 and their like, with and without batch norm",
    reads: Reads::Pictures,
    detects: false,
    load: load::load,
    fresh: load::fresh,
};
