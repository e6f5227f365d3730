//! Detection: what a detector's outputs mean, the losses of both YOLO generations, non-maximum suppression, mean average precision.
//!
//! Pure functions of matrices and boxes; the networks that give the matrices are in `models/`.

mod anchor_loss;
mod assign;
mod decode;
mod free_loss;
mod loss;
mod mean_average_precision;
mod nms;
mod objective;
mod overlap;
mod predict;

use crate::nn::detector as head;
pub use crate::nn::detector::{AnchorScale, BoxLoss, Detector, Generation, Output};
pub use decode::decode;
pub use loss::{LossParts, loss};
pub use mean_average_precision::{ClassPrecision, OperatingPoint, Precisions, Scene, mean_average_precision};
pub use nms::{Nms, nms};
pub use objective::{Detect, detector, found};
pub use predict::predict;
pub use retune_media::pictures::boxes::{BoxF, LabelledBox};

/// What a detector says of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    pub class: u32,
    /// 0..=1.
    pub score: f32,
    pub bounds: BoxF,
}

#[cfg(test)]
mod tests;
