//! Ultralytics' files: which of their networks are YOLOv8s, what they say besides their weights, and what the others are.

use retune_formats::TensorSource;
use retune_media::pictures::Prepare;
use serde_json::{Map, Value, json};

use super::config::{BACKBONE, DETECT, NECK, REPEATS_MAX};

/// The layers of their description, `yaml`: what each reads, and its kind.
const LAYERS: [(&[i64], &str); DETECT + 1] = [
    (&[-1], "Conv"),
    (&[-1], "Conv"),
    (&[-1], "C2f"),
    (&[-1], "Conv"),
    (&[-1], "C2f"),
    (&[-1], "Conv"),
    (&[-1], "C2f"),
    (&[-1], "Conv"),
    (&[-1], "C2f"),
    (&[-1], "SPPF"),
    (&[-1], "nn.Upsample"),
    (&[-1, 6], "Concat"),
    (&[-1], "C2f"),
    (&[-1], "nn.Upsample"),
    (&[-1, 4], "Concat"),
    (&[-1], "C2f"),
    (&[-1], "Conv"),
    (&[-1, 12], "Concat"),
    (&[-1], "C2f"),
    (&[-1], "Conv"),
    (&[-1, 9], "Concat"),
    (&[-1], "C2f"),
    (&[15, 18, 21], "Detect"),
];

/// The configuration of weights with Ultralytics' names, as `config.json`; `None` if they are no YOLOv8.
pub fn recognise(source: &dyn TensorSource) -> Option<Value> {
    let shape = |name: &str| Some(source.find(&format!("model.{name}"))?.shape.clone());
    let width = |name: &str| Some(*shape(name)?.first()?);
    let repeats =
        |block: usize| (0..=REPEATS_MAX).find(|i| shape(&format!("{block}.m.{i}.cv1.conv.weight")).is_none());
    let mut widths = vec![width("0.conv.weight")?];
    for by_two in [1, 3, 5, 7, 16, 19] {
        width(&format!("{by_two}.conv.weight"))?;
    }
    for block in BACKBONE {
        widths.push(width(&format!("{block}.cv2.conv.weight"))?);
    }
    // SPPF tells it from others that begin alike.
    shape("9.cv2.conv.weight")?;
    let neck: Option<Vec<usize>> = NECK.iter().map(|n| width(&format!("{n}.cv2.conv.weight"))).collect();
    let detect = |tower: &str, part: &str| width(&format!("{DETECT}.{tower}.0.{part}"));
    let (rows, classes) = (detect("cv2", "2.weight")?, detect("cv3", "2.weight")?);
    (rows % 4 == 0).then_some(())?;
    let (whole, separable) = (detect("cv3", "0.conv.weight"), detect("cv3", "0.1.conv.weight"));
    let mut config = json!({
        "model_type": "yolov8", "widths": widths, "repeats": BACKBONE.map(repeats),
        "neck_widths": neck?, "neck_repeats": NECK.map(repeats),
        "towers": [detect("cv2", "0.conv.weight")?, whole.or(separable)?],
        "reg_max": rows / 4, "num_labels": classes,
    });
    if whole.is_none() {
        config["separable"] = json!(true);
    }
    if shape("0.bn.weight").is_none() && shape("0.conv.bias").is_some() {
        config["fused"] = json!(true);
    }
    Some(config)
}

/// Why a file of Ultralytics is no YOLOv8, as far as its names and what it says besides tell. `None` for one, and for files of others.
pub fn refusal(source: &dyn TensorSource, said: &Map<String, Value>) -> Option<String> {
    source.find("model.0.conv.weight")?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let yaml = said.get("yaml").and_then(Value::as_object);
    let name = yaml.and_then(|yaml| text(yaml.get("yaml_file")));
    let shown = name.map_or("this network of Ultralytics".into(), |name| format!("Ultralytics' \"{name}\""));
    let why = |what: String| format!("{shown} is no YOLOv8 detector, which alone of theirs is read: {what}");
    if let Some(task) = text(said.get("task")).filter(|task| task != "detect") {
        return Some(why(format!("its task is \"{task}\"")));
    }
    if let Some(other) = yaml.and_then(other_layer) {
        return Some(why(other));
    }
    let head = format!("model.{DETECT}.");
    let part = |name: &str| Some(name.strip_prefix(&head)?.split('.').next()?.to_owned());
    let more = |part: &String| !matches!(part.as_str(), "cv2" | "cv3" | "dfl");
    match recognise(source) {
        None => Some(why("its tensors are those of other layers".into())),
        Some(_) => source.tensors().iter().filter_map(|info| part(&info.name)).find(more).map(|part| {
            why(format!("its head has a part \"{head}{part}\" (masks, key points, angles, ...)"))
        }),
    }
}

/// The first thing in a description that a YOLOv8 has not.
fn other_layer(yaml: &Map<String, Value>) -> Option<String> {
    if let Some(activation) = yaml.get("activation").and_then(Value::as_str).filter(|a| !a.contains("SiLU")) {
        return Some(format!("its activation is {activation}, not SiLU"));
    }
    let part = |key: &str| yaml.get(key).and_then(Value::as_array);
    let layers: Vec<&Value> = part("backbone")?.iter().chain(part("head")?).collect();
    for (at, (layer, (from, kind))) in layers.iter().zip(LAYERS).enumerate() {
        let read = match &layer[0] {
            Value::Array(several) => several.iter().filter_map(Value::as_i64).collect(),
            one => Vec::from_iter(one.as_i64()),
        };
        if layer[2] != *kind {
            return Some(format!(
                "layer {at} is {}, not {kind}",
                layer[2].as_str().unwrap_or("something else")
            ));
        }
        if read != from {
            return Some(format!("layer {at} ({kind}) reads layers {read:?}, not {from:?}"));
        }
        // YOLO26's has more arguments, and no activation in its middle.
        if kind == "SPPF" && layer[3].as_array().is_some_and(|args| args.len() > 2) {
            return Some(format!("layer {at} is an SPPF of another kind, {}", layer[3]));
        }
        if kind == "nn.Upsample" && (layer[3][1] != 2 || layer[3][2] != "nearest") {
            let how = &layer[3];
            return Some(format!(
                "layer {at} enlarges with {how}, not to twice the size by the nearest pixel"
            ));
        }
    }
    let due = LAYERS.len();
    (layers.len() != due).then(|| format!("it has {} layers, not {due}", layers.len()))
}

/// Adds what a file says besides: the names of the classes, the side of the pictures.
pub fn describe(config: &mut Value, said: &Map<String, Value>) {
    let classes = config["num_labels"].as_u64().unwrap_or_default();
    let named =
        |names: &&Map<String, Value>| names.len() as u64 == classes && names.values().all(Value::is_string);
    if let Some(names) = said.get("names").and_then(Value::as_object).filter(named) {
        config["id2label"] = json!(names);
    }
    let side = said.get("args").and_then(|args| args.get("imgsz")).and_then(Value::as_u64);
    if let Some(side) = side.filter(|side| (32..=1 << 13).contains(side) && side % 32 == 0) {
        config["image_input"] = json!(Prepare::ultralytics(side as usize));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// As their files have it, with one value in another place.
    fn description(change: impl Fn(&mut Value)) -> Option<String> {
        let layers = LAYERS.map(|(from, kind)| {
            let from = if let [one] = from { json!(one) } else { json!(from) };
            let args = if kind == "nn.Upsample" { json!(["None", 2, "nearest"]) } else { json!([64]) };
            json!([from, 1, kind, args])
        });
        let mut yaml = json!({ "nc": 80, "backbone": layers[..10], "head": layers[10..] });
        change(&mut yaml);
        other_layer(yaml.as_object().unwrap())
    }

    #[test]
    fn descriptions_of_other_networks_are_told() {
        assert_eq!(description(|_| ()), None);
        assert_eq!(description(|yaml| yaml["activation"] = json!("torch.nn.SiLU()")), None);
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 5] = [
            (|yaml| yaml["activation"] = json!("nn.ReLU()"), "nn.ReLU()"),
            (|yaml| yaml["backbone"][2][2] = json!("C3k2"), "layer 2 is C3k2, not C2f"),
            (|yaml| yaml["head"][1][0] = json!([-1, 4]), "layer 11 (Concat) reads layers [-1, 4]"),
            (|yaml| yaml["head"][0][3][2] = json!("bilinear"), "layer 10 enlarges with"),
            (|yaml| yaml["head"].as_array_mut().unwrap().truncate(12), "22 layers, not 23"),
        ];
        for (change, words) in cases {
            let why = description(change).unwrap_or_default();
            assert!(why.contains(words), "{words}: {why}");
        }
    }
}
