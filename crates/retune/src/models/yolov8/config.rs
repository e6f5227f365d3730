//! What a YOLOv8 is made of: from `config.json`, or from the shapes of its weights.

use retune_formats::TensorSource;
use retune_media::pictures::Prepare;
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::models::config::{Config, MAX_WIDTH};
use crate::models::image_head;

/// Most bottlenecks of one block.
const REPEATS_MAX: usize = 256;
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
        json!({
            "model_type": "yolov8", "widths": self.widths, "repeats": self.repeats, "neck_widths": self.neck_widths,
            "neck_repeats": self.neck_repeats, "towers": self.towers, "reg_max": self.reg_max,
        })
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

/// The configuration of weights with Ultralytics' names, as `config.json`; `None` if they are no YOLOv8.
pub fn recognise(source: &dyn TensorSource) -> Option<Value> {
    let shape = |name: &str| Some(source.find(&format!("model.{name}"))?.shape.clone());
    let width = |name: &str| Some(*shape(name)?.first()?);
    let repeats =
        |block: usize| (0..=REPEATS_MAX).find(|i| shape(&format!("{block}.m.{i}.cv1.conv.weight")).is_none());
    let mut widths = vec![width("0.conv.weight")?];
    for block in BACKBONE {
        widths.push(width(&format!("{block}.cv2.conv.weight"))?);
    }
    // SPPF tells it from others that begin alike.
    shape("9.cv2.conv.weight")?;
    let neck: Option<Vec<usize>> = NECK.iter().map(|n| width(&format!("{n}.cv2.conv.weight"))).collect();
    let detect = |tower: &str, part: &str| width(&format!("{DETECT}.{tower}.0.{part}"));
    let (rows, classes) = (detect("cv2", "2.weight")?, detect("cv3", "2.weight")?);
    (rows % 4 == 0).then_some(())?;
    Some(json!({
        "model_type": "yolov8", "widths": widths, "repeats": BACKBONE.map(repeats),
        "neck_widths": neck?, "neck_repeats": NECK.map(repeats),
        "towers": [detect("cv2", "0.conv.weight")?, detect("cv3", "0.conv.weight")?],
        "reg_max": rows / 4, "num_labels": classes,
    }))
}

/// Adds what a file of Ultralytics says besides: the names of the classes, the side of the pictures.
pub fn describe(config: &mut Value, metadata: &Map<String, Value>) {
    let classes = config["num_labels"].as_u64().unwrap_or_default();
    let named =
        |names: &&Map<String, Value>| names.len() as u64 == classes && names.values().all(Value::is_string);
    if let Some(names) = metadata.get("names").and_then(Value::as_object).filter(named) {
        config["id2label"] = json!(names);
    }
    let side = metadata.get("args").and_then(|args| args.get("imgsz")).and_then(Value::as_u64);
    if let Some(side) = side.filter(|side| (32..=1 << 13).contains(side) && side % 32 == 0) {
        config["image_input"] = json!(Prepare::ultralytics(side as usize));
    }
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

    #[test]
    fn what_a_file_says_besides_is_taken_if_it_fits() {
        let mut config = json!({ "num_labels": 2 });
        let said = json!({ "names": { "0": "cat", "1": "dog" }, "args": { "imgsz": 320 } });
        describe(&mut config, said.as_object().unwrap());
        assert_eq!((&config["id2label"]["1"], &config["image_input"]["width"]), (&json!("dog"), &json!(320)));
        let mut config = json!({ "num_labels": 3 });
        describe(&mut config, said.as_object().unwrap());
        assert!(config.get("id2label").is_none());
    }
}
