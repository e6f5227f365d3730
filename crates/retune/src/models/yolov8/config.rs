//! What a YOLOv8 is made of, from `config.json`.

use retune_media::pictures::Prepare;
use serde_json::{Value, json};

use crate::error::Result;
use crate::models::config::{Config, MAX_WIDTH};
use crate::models::image_head;

/// Most bottlenecks of one block.
pub const REPEATS_MAX: usize = 256;
/// Most steps of a distance.
const REG_MAX: usize = 1 << 10;
/// Side of the pictures that the published networks read.
const SIDE: usize = 640;
/// Numbers of the blocks among the layers: those of the backbone, those of the neck.
pub const BACKBONE: [usize; 4] = [2, 4, 6, 8];
pub const NECK: [usize; 4] = [12, 15, 18, 21];
/// The layer of the heads.
pub const DETECT: usize = 22;

/// What a YOLOv8 is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Yolov8Config {
    /// Channels behind the first convolution and behind each block of the backbone.
    pub widths: [usize; 5],
    /// Bottlenecks of each block of the backbone.
    pub repeats: [usize; 4],
    /// Channels behind each block of the neck.
    pub neck_widths: [usize; 4],
    pub neck_repeats: [usize; 4],
    /// Channels of the towers for boxes and of those for classes.
    pub towers: [usize; 2],
    /// Steps of a distance.
    pub reg_max: usize,
    /// The towers for classes go over each channel by itself, then over single pixels: those of files of Ultralytics 8.3's first months.
    pub separable: bool,
    /// The batch norms have been folded into the convolutions, which have biases then.
    pub fused: bool,
    pub labels: Vec<String>,
    pub input: Prepare,
}

impl Yolov8Config {
    /// Of `config.json`.
    ///
    /// # Errors
    /// If it is incomplete or has absurd sizes.
    pub fn from_json(c: &Config) -> Result<Yolov8Config> {
        let [box_tower, class_tower] = sizes(c, "towers", 1..=MAX_WIDTH)?;
        let config = Yolov8Config {
            widths: sizes(c, "widths", 1..=MAX_WIDTH)?,
            repeats: sizes(c, "repeats", 0..=REPEATS_MAX)?,
            neck_widths: sizes(c, "neck_widths", 1..=MAX_WIDTH)?,
            neck_repeats: sizes(c, "neck_repeats", 0..=REPEATS_MAX)?,
            towers: [box_tower, class_tower],
            reg_max: c.size("reg_max", REG_MAX)?,
            separable: c.flag("separable", false)?,
            fused: c.flag("fused", false)?,
            labels: image_head::labels(c)?,
            input: match c.get("image_input") {
                Some(value) => image_head::input_of(c, value)?,
                None => Prepare::ultralytics(SIDE),
            },
        };
        let blocks = config.widths[1..].iter().chain(&config.neck_widths);
        if let Some(odd) = blocks.clone().find(|width| *width % 2 != 0) {
            return Err(c.fail(format!("a block of {odd} channels cannot be halved; widths must be even")));
        }
        Ok(config)
    }

    /// As `config.json`, without what the head adds.
    pub fn to_json(&self) -> Value {
        let mut config = json!({
            "model_type": "yolov8", "widths": self.widths, "repeats": self.repeats, "neck_widths": self.neck_widths,
            "neck_repeats": self.neck_repeats, "towers": self.towers, "reg_max": self.reg_max,
        });
        for (key, set) in [("separable", self.separable), ("fused", self.fused)] {
            if set {
                config[key] = true.into();
            }
        }
        config
    }
}

/// So many sizes in a row.
fn sizes<const N: usize>(
    c: &Config,
    key: &str,
    range: std::ops::RangeInclusive<usize>,
) -> Result<[usize; N]> {
    let value = c.get(key).ok_or_else(|| c.fail(format!("\"{key}\" is missing")))?;
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
    let found: Option<Vec<usize>> = value.as_array().and_then(|all| all.iter().map(size).collect());
    found.and_then(|found| found.try_into().ok()).ok_or_else(|| {
        let (from, to) = (range.start(), range.end());
        c.fail(format!("\"{key}\" is {value}; a list of {N} whole numbers from {from} to {to} is needed"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nano() -> Value {
        json!({
            "model_type": "yolov8", "widths": [16, 32, 64, 128, 256], "repeats": [1, 2, 2, 1],
            "neck_widths": [128, 64, 128, 256], "neck_repeats": [1, 1, 1, 1], "towers": [64, 80], "reg_max": 16,
            "num_labels": 80,
        })
    }

    fn read(value: &Value) -> Result<Yolov8Config> {
        Yolov8Config::from_json(&Config { path: "config.json".into(), value })
    }

    #[test]
    fn wrong_configurations_are_refused() {
        let config = read(&nano()).unwrap();
        assert_eq!((config.labels.len(), config.input.height), (80, 640));
        let mut again = config.to_json();
        again["num_labels"] = json!(80);
        assert_eq!(read(&again).unwrap(), config);
        for (key, value, words) in [
            ("widths", json!([16, 32, 64, 128]), "a list of 5"),
            ("widths", json!([16, 32, 64, 128, 255]), "cannot be halved"),
            ("repeats", json!([1, 2, 2, 1u64 << 40]), "from 0 to 256"),
            ("neck_widths", Value::Null, "\"neck_widths\" is missing"),
            ("reg_max", json!(0), "\"reg_max\""),
            ("num_labels", json!(0), "\"num_labels\""),
        ] {
            let mut wrong = nano();
            wrong[key] = value;
            let message = read(&wrong).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
    }
}
