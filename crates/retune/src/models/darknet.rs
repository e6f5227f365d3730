//! Darknet's networks: a `.cfg` read as a graph, with a detector's `[yolo]` layers at its ends (YOLOv3, arXiv:1804.02767; v3-tiny, v4-tiny).
//!
//! Layer N of the file (the first behind `[net]` is 0) has the tensors `layers.N.conv.weight`, `layers.N.conv.bias` or
//! `layers.N.bn.{weight,bias,running_mean,running_var}`.

mod file;
mod load;
mod plan;

pub use file::{Found, open};
pub use plan::{Kind, Plan};

use crate::models::{Reads, Spec};

pub const SPEC: Spec = Spec {
    model_types: &["darknet"],
    name: "darknet",
    summary: "object detectors: YOLOv3, v3-tiny, v4-tiny and their like, from darknet's .cfg and .weights",
    reads: Reads::Pictures,
    detects: true,
    load: load::load,
    fresh: load::fresh,
};
