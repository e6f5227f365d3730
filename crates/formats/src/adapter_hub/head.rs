//! A prediction head of AdapterHub: `head_config.json` with `model_head.safetensors` or `pytorch_model_head.bin`.
//!
//! L layers, each a dropout and a linear, with the activation after all but the last: the linears are numbers 1, 4, 7, …
//! of a sequence. Keys: `heads.NAME.{1 + 3 l}.{weight,bias}`, (h, h) and at last (labels, h).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::FORMAT;
use super::config::{HubConfig, envelope};
use crate::error::{Error, Result, quote};
use crate::fields::Fields;
use crate::source::{TensorInfo, TensorOut, TensorSource};
use crate::{atomic, json as json_file, limits, peft, safetensors};

/// The name of the head's configuration in a folder.
pub const HEAD_CONFIG: &str = "head_config.json";
const WEIGHTS: &str = "model_head.safetensors";
const WEIGHTS_BIN: &str = "pytorch_model_head.bin";
/// Most linears of a head.
const LAYERS: usize = 64;
/// Heads of one row of numbers for each label.
const TYPES: &[&str] = &["classification", "multilabel_classification", "tagging", "question_answering"];

/// Is there a head in this folder?
pub fn has_head(folder: &Path) -> bool {
    folder.join(HEAD_CONFIG).is_file()
}

/// All that a `head_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadConfig {
    /// Name, model and version; its method means nothing here.
    pub model: HubConfig,
    /// `classification`, `multilabel_classification`, `tagging` or `question_answering`.
    pub head_type: String,
    pub num_labels: usize,
    pub layers: usize,
    /// Between the layers.
    pub activation_function: Option<String>,
    pub label2id: Option<BTreeMap<String, usize>>,
    /// The first token goes through the model's pooler. Heads of token labels have no such key.
    pub use_pooler: Option<bool>,
    /// The last linear has a bias. Heads of token labels have no such key, and a bias.
    pub bias: Option<bool>,
    pub dropout_prob: Option<f64>,
    /// Keys that are not known, kept as they came.
    pub unknown: BTreeMap<String, Value>,
}

impl HeadConfig {
    /// Reads the object of a `head_config.json`; `path` is for messages.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<HeadConfig> {
        let mut f = Fields::new(path, object);
        let mut model = envelope(&mut f)?;
        let Some(Value::Object(inner)) = f.take("config") else {
            let what = "it has no `config`: this head is part of a model class, not one of AdapterHub's own";
            return Err(Error::unsupported(path, what, "heads of AutoAdapterModel can be read"));
        };
        model.unknown = f.map.into_iter().collect();
        let mut f = Fields::new(path, &inner);
        let head_type = f.string("head_type")?.unwrap_or_default();
        if !TYPES.contains(&head_type.as_str()) {
            let what = format!("its head_type is {}", quote(&head_type));
            return Err(Error::unsupported(
                path,
                what,
                format!("those that are read are: {}", TYPES.join(", ")),
            ));
        }
        let count = |f: &mut Fields, key: &str, most| {
            let found = f.count(key, most)?;
            found.ok_or_else(|| Error::MissingKey { path: path.into(), key: key.into(), nearest: None })
        };
        let of_texts = head_type.ends_with("classification");
        let config = HeadConfig {
            model,
            head_type,
            num_labels: count(&mut f, "num_labels", limits::WIDTH)?,
            layers: count(&mut f, "layers", LAYERS)?,
            activation_function: f.string("activation_function")?,
            label2id: labels(&mut f)?,
            use_pooler: of_texts.then(|| f.flag("use_pooler")).transpose()?,
            bias: of_texts.then(|| f.flag_or("bias", true)).transpose()?,
            dropout_prob: f.share("dropout_prob")?,
            unknown: f.map.into_iter().collect(),
        };
        let ids: Option<Vec<usize>> = config.label2id.as_ref().map(|map| map.values().copied().collect());
        if let Some(mut ids) = ids {
            ids.sort_unstable();
            if ids.iter().ne((0..config.num_labels).collect::<Vec<_>>().iter()) {
                let found = format!("{} labels of other numbers", ids.len());
                return Err(Error::key(
                    path,
                    "config.label2id",
                    found,
                    format!("0 to {}, each once", config.num_labels - 1),
                ));
            }
        }
        Ok(config)
    }

    /// The object that `adapters` would write.
    pub fn to_json(&self) -> Value {
        let mut map: Map<String, Value> = self.unknown.clone().into_iter().collect();
        let fields = [
            ("head_type", json!(self.head_type)),
            ("num_labels", json!(self.num_labels)),
            ("layers", json!(self.layers)),
            ("activation_function", json!(self.activation_function)),
            ("label2id", json!(self.label2id)),
            ("dropout_prob", json!(self.dropout_prob)),
        ];
        map.extend(fields.map(|(key, value)| (key.to_string(), value)));
        for (key, flag) in [("use_pooler", self.use_pooler), ("bias", self.bias)] {
            if let Some(flag) = flag {
                map.insert(key.into(), json!(flag));
            }
        }
        self.model.wrap(Value::Object(map))
    }

    /// The key on disk of a parameter of a layer, counted from 0.
    pub fn key(&self, layer: usize, param: HeadParam) -> String {
        format!("heads.{}.{}.{}", self.model.name, 1 + 3 * layer, param.name())
    }

    /// The shapes that are due, by key.
    fn shapes(&self, path: &Path, tensors: &[TensorInfo]) -> Result<BTreeMap<String, Vec<usize>>> {
        let last = self.key(self.layers - 1, HeadParam::Weight);
        let found = tensors.iter().find(|t| t.name == last).and_then(|t| t.shape.get(1)).copied();
        let Some(h) = self.model.hidden_size.or(found) else {
            return Err(Error::invalid(path, FORMAT, format!("tensor {} is missing", quote(&last))));
        };
        let mut due = BTreeMap::new();
        for layer in 0..self.layers {
            let is_last = layer + 1 == self.layers;
            let out = if is_last { self.num_labels } else { h };
            due.insert(self.key(layer, HeadParam::Weight), vec![out, h]);
            if !is_last || self.bias != Some(false) {
                due.insert(self.key(layer, HeadParam::Bias), vec![out]);
            }
        }
        Ok(due)
    }

    fn check(&self, path: &Path, tensors: &[TensorInfo]) -> Result<()> {
        let due = self.shapes(path, tensors)?;
        let bad = |what: String| Err(Error::invalid(path, FORMAT, what));
        for info in tensors {
            let name = quote(&info.name);
            match due.get(&info.name) {
                None => return bad(format!("tensor {name} is not of head {}", quote(&self.model.name))),
                Some(shape) if *shape != info.shape => {
                    return bad(format!("tensor {name} has shape {:?}, {shape:?} was due", info.shape));
                }
                Some(_) if !info.dtype.is_float() => {
                    return bad(format!("tensor {name} is {}, wanted a floating-point type", info.dtype));
                }
                Some(_) => {}
            }
        }
        match due.keys().find(|key| !tensors.iter().any(|t| t.name == **key)) {
            Some(missing) => bad(format!("tensor {} is missing", quote(missing))),
            None => Ok(()),
        }
    }
}

fn labels(f: &mut Fields) -> Result<Option<BTreeMap<String, usize>>> {
    let wanted = "an object of labels and numbers";
    match f.take("label2id") {
        None => Ok(None),
        Some(Value::Object(map)) => {
            let number = |value: &Value| value.as_u64().filter(|n| *n <= limits::WIDTH as u64);
            let entry = |(label, value): (&String, &Value)| match number(value) {
                Some(n) => Ok((label.clone(), n as usize)),
                None => f.bad("label2id", value, wanted),
            };
            map.iter().map(entry).collect::<Result<_>>().map(Some)
        }
        Some(other) => f.bad("label2id", &other, wanted),
    }
}

/// A parameter of a layer of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadParam {
    /// (out, h).
    Weight,
    /// (out).
    Bias,
}

impl HeadParam {
    fn name(self) -> &'static str {
        match self {
            HeadParam::Weight => "weight",
            HeadParam::Bias => "bias",
        }
    }
}

/// An open head, all checked.
pub struct HubHead {
    folder: PathBuf,
    config: HeadConfig,
    source: Box<dyn TensorSource>,
    notes: Vec<String>,
}

impl fmt::Debug for HubHead {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("HubHead").field("folder", &self.folder).field("config", &self.config).finish()
    }
}

impl HubHead {
    /// Opens the head of a folder.
    pub fn open(folder: impl AsRef<Path>) -> Result<HubHead> {
        let folder = folder.as_ref();
        let path = folder.join(HEAD_CONFIG);
        let value = json_file::read(&path, limits::CONFIG_BYTES)?;
        let config = HeadConfig::from_json(&path, value.as_object().unwrap_or(&Map::new()))?;
        HubHead::new(folder, config, peft::open_weights(folder, WEIGHTS, WEIGHTS_BIN)?)
    }

    /// Checks a configuration and weights that are already open; `folder` is for messages.
    pub fn new(folder: &Path, config: HeadConfig, source: impl TensorSource + 'static) -> Result<HubHead> {
        config.check(source.path(), source.tensors())?;
        for info in source.tensors() {
            peft::check_finite(&source, info)?;
        }
        let odd: Vec<&str> =
            config.unknown.keys().chain(config.model.unknown.keys()).map(String::as_str).collect();
        let notes = (!odd.is_empty())
            .then(|| format!("{HEAD_CONFIG} has keys that are not known and not used: {}", odd.join(", ")));
        let (folder, notes) = (folder.to_path_buf(), notes.into_iter().collect());
        Ok(HubHead { folder, config, source: Box::new(source), notes })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The configuration.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// The values of a parameter of a layer, counted from 0.
    pub fn read_f32(&self, layer: usize, param: HeadParam) -> Result<Vec<f32>> {
        self.source.read_f32(&self.config.key(layer, param))
    }

    /// The weights as a file of named tensors.
    pub fn source(&self) -> &dyn TensorSource {
        &*self.source
    }

    /// What is odd about the files but no error; worth showing.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Writes the head of a folder, as `save_head(use_safetensors=True)` does. Keys come from [`HeadConfig::key`].
///
/// # Errors
/// If the tensors do not fit the configuration or the folder cannot be written.
pub fn write_head<'a>(
    folder: &Path,
    config: &HeadConfig,
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
) -> Result<()> {
    let (weights, path) = (folder.join(WEIGHTS), folder.join(HEAD_CONFIG));
    let tensors: Vec<TensorOut> = tensors.into_iter().collect();
    let value = config.to_json();
    HeadConfig::from_json(&path, value.as_object().unwrap_or(&Map::new()))?;
    config.check(&weights, &tensors.iter().map(TensorOut::info).collect::<Vec<_>>())?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    safetensors::write(&weights, tensors, &[])?;
    atomic::write_bytes(&path, json_file::to_python_text(&value).as_bytes())
}
