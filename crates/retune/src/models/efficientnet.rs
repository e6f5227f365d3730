//! EfficientNet-Lite (Tan and Le, 2019, arXiv:1905.11946; the Lite variants have no squeeze-and-excitation and rectifiers that end at six):
//! inverted bottlenecks, each `y = [x +] project(depthwise(expand(x)))`, in stages.
//!
//! Names are those of EfficientNet-PyTorch: `_conv_stem`, `_blocks.N._expand_conv`, `_conv_head`, `_fc`.

mod config;
mod load;

pub use config::{EfficientNetConfig, Stage, recognise};

use crate::models::{Reads, Spec};

pub const SPEC: Spec = Spec {
    model_types: &["efficientnet_lite"],
    name: "efficientnet",
    summary: "image classifiers: EfficientNet-Lite0 to Lite4",
    reads: Reads::Pictures,
    detects: false,
    load: load::load,
    fresh: load::fresh,
};
