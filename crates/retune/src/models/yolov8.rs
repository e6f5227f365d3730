//! YOLOv8's shape: a backbone of C2f blocks that ends with pyramid pooling (SPPF), a neck up and down again, and for each of three scales a head of
//! two towers, one for boxes as distributions (arXiv:2006.04388), one for classes.
//!
//! `C2f(x) = conv([a, b, m1(b), m2(m1(b)), ...])` with `[a, b] = conv(x)`; names are those of Ultralytics' files, `model.N...`.

mod config;
mod file;
mod load;

pub use config::Yolov8Config;
pub use file::{describe, recognise, refusal};

use crate::models::{Reads, Spec};

pub const SPEC: Spec = Spec {
    model_types: &["yolov8"],
    name: "yolov8",
    summary: "object detectors without anchors: YOLOv8 n, s, m and their like",
    reads: Reads::Pictures,
    detects: true,
    load: load::load,
    fresh: load::fresh,
};
