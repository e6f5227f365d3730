//! What an EfficientNet-Lite is made of: from `config.json`, or from the shapes of its weights.

use std::collections::BTreeMap;

use retune_formats::TensorSource;
use retune_media::pictures::Resample;
use retune_media::pictures::prepare::{Fit, Normalise, Prepare};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Result;
use crate::models::config::{Config, MAX_LAYERS, MAX_WIDTH, shortest};
use crate::models::image_head;

/// TensorFlow's, of the published weights.
const NORM_EPS: f32 = 1e-3;
/// Largest kernel, stride and expansion that a configuration may ask for.
const SMALL_MAX: usize = 64;
/// Strides of the seven stages: weights do not tell them.
const STRIDES: [usize; 7] = [1, 2, 2, 2, 1, 2, 1];
/// The published sizes: repeats of the fourth stage, channels of the fifth, side of the pictures.
const SIDES: [(usize, usize, usize); 5] =
    [(3, 112, 224), (4, 112, 240), (4, 120, 260), (5, 136, 280), (6, 160, 300)];

/// Blocks of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Channels behind each block.
    pub width: usize,
    /// Blocks.
    pub repeats: usize,
    /// Lines and columns of the depthwise kernels.
    pub kernel: usize,
    /// Of the first block; the others have 1.
    pub stride: usize,
    /// The depthwise convolution has so many times the block's input channels.
    pub expand: usize,
}

/// What an EfficientNet-Lite is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct EfficientNetConfig {
    /// Channels of the first convolution.
    pub stem: usize,
    pub stages: Vec<Stage>,
    /// Channels that the classifier reads.
    pub head: usize,
    pub num_labels: usize,
    pub input: Prepare,
    /// Of the batch norms.
    pub eps: f32,
}

impl EfficientNetConfig {
    /// Of `config.json`.
    ///
    /// # Errors
    /// If it is incomplete or has absurd sizes.
    pub fn from_json(c: &Config) -> Result<EfficientNetConfig> {
        let stages = c.get("stages").ok_or_else(|| c.fail("\"stages\" is missing"))?;
        let stages: Vec<Stage> = serde_json::from_value(stages.clone())
            .map_err(|e| c.fail(format!("\"stages\" does not say what the blocks are: {e}")))?;
        for (i, stage) in stages.iter().enumerate() {
            let numbers = [
                ("width", stage.width, MAX_WIDTH),
                ("repeats", stage.repeats, MAX_LAYERS),
                ("kernel", stage.kernel, SMALL_MAX),
                ("stride", stage.stride, SMALL_MAX),
                ("expand", stage.expand, SMALL_MAX),
            ];
            if let Some((key, n, max)) = numbers.into_iter().find(|(_, n, max)| !(1..=*max).contains(n)) {
                return Err(c.fail(format!("stage {i} has \"{key}\" {n}; 1 to {max} are possible")));
            }
        }
        let blocks: usize = stages.iter().map(|stage| stage.repeats).sum();
        if !(1..=MAX_LAYERS).contains(&blocks) {
            return Err(c.fail(format!("\"stages\" has {blocks} blocks; 1 to {MAX_LAYERS} are possible")));
        }
        let input = match c.get("image_input") {
            Some(value) => image_head::input_of(c, value)?,
            None => input_of_side(side_of(&stages)),
        };
        Ok(EfficientNetConfig {
            stem: c.size("stem", MAX_WIDTH)?,
            stages,
            head: c.size("head", MAX_WIDTH)?,
            num_labels: image_head::labels(c)?.len(),
            input,
            eps: c.positive("norm_eps")?.map_or(NORM_EPS, |eps| eps as f32),
        })
    }

    /// As `config.json`, without what the head adds.
    pub fn to_json(&self) -> Value {
        json!({
            "model_type": "efficientnet_lite", "stem": self.stem, "stages": self.stages, "head": self.head,
            "norm_eps": shortest(self.eps), "image_input": self.input,
        })
    }
}

/// The side of the pictures that the published network of these stages reads.
fn side_of(stages: &[Stage]) -> usize {
    let (repeats, width) = (stages.get(3).map_or(0, |s| s.repeats), stages.get(4).map_or(0, |s| s.width));
    let same = SIDES.iter().find(|(r, w, _)| (*r, *w) == (repeats, width));
    same.map_or(SIDES[0].2, |(.., side)| *side)
}

/// The published numbers, of the whole shorter side: the published crop leaves out a border, and with it what may be the object.
fn input_of_side(side: usize) -> Prepare {
    Prepare {
        width: side,
        height: side,
        fit: Fit::Crop { shorter: side },
        resample: Resample::Bicubic,
        normalise: Normalise::EFFICIENTNET_LITE,
    }
}

/// The shapes of one block's convolutions.
#[derive(Clone, Copy, Default)]
struct BlockShapes {
    hidden: usize,
    kernel: usize,
    out: usize,
}

/// The configuration of weights with EfficientNet-PyTorch's names, as `config.json`; `None` if they are none of the Lite variants.
pub fn recognise(source: &dyn TensorSource) -> Option<Value> {
    let shape = |name: &str| Some(source.find(name)?.shape.clone());
    let stem = *shape("_conv_stem.weight")?.first()?;
    let head = *shape("_conv_head.weight")?.first()?;
    let labels = *shape("_fc.weight")?.first()?;
    let mut blocks: BTreeMap<usize, BlockShapes> = BTreeMap::new();
    for info in source.tensors() {
        let Some((number, name)) = info.name.strip_prefix("_blocks.").and_then(|name| name.split_once('.'))
        else {
            continue;
        };
        let block = blocks.entry(number.parse().ok()?).or_default();
        match (name, info.shape.as_slice()) {
            ("_depthwise_conv.weight", [hidden, 1, kernel, _]) => {
                (block.hidden, block.kernel) = (*hidden, *kernel);
            }
            ("_project_conv.weight", [out, ..]) => block.out = *out,
            // Squeeze-and-excitation: an EfficientNet that is not Lite.
            _ if name.starts_with("_se_") => return None,
            _ => {}
        }
    }
    let mut stages: Vec<Stage> = Vec::new();
    let mut channels = stem;
    for (at, (number, block)) in blocks.into_iter().enumerate() {
        if at != number || channels == 0 || block.hidden % channels != 0 {
            return None;
        }
        match stages.last_mut() {
            Some(stage) if stage.width == block.out && channels == block.out => stage.repeats += 1,
            _ => stages.push(Stage {
                width: block.out,
                repeats: 1,
                kernel: block.kernel,
                stride: *STRIDES.get(stages.len())?,
                expand: block.hidden / channels,
            }),
        }
        channels = block.out;
    }
    (stages.len() == STRIDES.len()).then(|| {
        json!({
            "model_type": "efficientnet_lite", "stem": stem, "stages": stages, "head": head, "num_labels": labels,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const LITE0: [(usize, usize, usize, usize, usize); 7] = [
        (16, 1, 3, 1, 1),
        (24, 2, 3, 2, 6),
        (40, 2, 5, 2, 6),
        (80, 3, 3, 2, 6),
        (112, 3, 5, 1, 6),
        (192, 4, 5, 2, 6),
        (320, 1, 3, 1, 6),
    ];

    fn lite0() -> Value {
        let stages = LITE0.map(|(width, repeats, kernel, stride, expand)| Stage {
            width,
            repeats,
            kernel,
            stride,
            expand,
        });
        json!({ "model_type": "efficientnet_lite", "stem": 32, "stages": stages, "head": 1280, "num_labels": 3 })
    }

    fn read(value: &Value) -> Result<EfficientNetConfig> {
        EfficientNetConfig::from_json(&Config { path: PathBuf::from("config.json"), value })
    }

    #[test]
    fn a_configuration_is_read_and_written_again() {
        let config = read(&lite0()).unwrap();
        assert_eq!((config.input.height, config.num_labels, config.stages.len()), (224, 3, 7));
        let again = EfficientNetConfig { num_labels: 2, ..config.clone() };
        assert_eq!(read(&config.to_json()).unwrap(), again);
        let mut lite3 = lite0();
        (lite3["stages"][3]["repeats"], lite3["stages"][4]["width"]) = (json!(5), json!(136));
        assert_eq!(read(&lite3).unwrap().input.width, 280);
    }

    #[test]
    fn wrong_configurations_are_refused() {
        for (change, words) in [
            (json!({ "stages": null }), "\"stages\" is missing"),
            (json!({ "stages": [] }), "has 0 blocks"),
            (json!({ "stages": [{ "width": 16 }] }), "does not say what the blocks are"),
            (
                json!({ "stages": [{ "width": 16, "repeats": 0, "kernel": 3, "stride": 1, "expand": 1 }] }),
                "\"repeats\" 0",
            ),
            (
                json!({ "stages": [{ "width": 16, "repeats": 1, "kernel": 999, "stride": 1, "expand": 1 }] }),
                "\"kernel\" 999",
            ),
            (json!({ "head": 1u64 << 40 }), "\"head\""),
            (json!({ "norm_eps": -1.0 }), "\"norm_eps\""),
            (json!({ "image_input": { "width": 0, "height": 1, "fit": "stretch" } }), "sides"),
        ] {
            let mut config = lite0();
            change.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
            let message = read(&config).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
    }
}
