//! A PEFT adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Key on disk: `base_model.model.` + path of the module in the base model + parameter, without the adapter's name; the
//! parameters and their shapes are those of [`Param`]. PEFT ignores tensors that it does not expect without a word; here
//! they are errors.

mod check;
mod keys;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result, quote};
use crate::ia3_config::Ia3Config;
use crate::lora_config::LoraConfig;
use crate::peft_common::Common;
use crate::prompt_config::{PTuningConfig, PrefixTuningConfig, PromptTuningConfig};
use crate::shira_config::ShiraConfig;
use crate::source::{TensorInfo, TensorOut, TensorSource, for_each_chunk};
use crate::{Dtype, atomic, json, limits, safetensors, torch};
use check::Part;

pub use keys::{LoraParam, PREFIX, PROMPT_PREFIX, Param, key, lora_key, prompt_key};

/// The name of the configuration in a folder.
pub const CONFIG: &str = "adapter_config.json";
/// The name of the weights in a folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The same, as PEFT wrote them before and still does where it is asked to: a file of PyTorch.
pub const WEIGHTS_BIN: &str = "adapter_model.bin";

/// Who wrote an `adapter_config.json`: three tools share the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Producer {
    /// Hugging Face PEFT, with the `peft_type`.
    Peft(String),
    /// AdapterHub's `adapters`, with its version.
    AdapterHub(String),
    /// mlx-lm, with the `fine_tune_type`.
    Mlx(String),
    Unknown,
}

/// Tells the three apart.
pub fn identify(config: &Value) -> Producer {
    let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_string);
    if let Some(peft_type) = text("peft_type") {
        return Producer::Peft(peft_type);
    }
    // The first versions of AdapterHub wrote no version.
    let named = text("version").or_else(|| text("name").map(|_| "before adapters.0.1.0".into()));
    if let (Some(Value::Object(_)), Some(version)) = (config.get("config"), named) {
        return Producer::AdapterHub(version);
    }
    match (text("fine_tune_type"), config.get("lora_parameters"), config.get("num_layers")) {
        (Some(kind), ..) => Producer::Mlx(kind),
        (None, Some(_), Some(_)) => Producer::Mlx("lora".into()),
        _ => Producer::Unknown,
    }
}

/// Is there an `adapter_config.json` in this folder?
pub fn is_adapter_folder(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}

/// The configuration of an adapter, by method.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // There are few of them and they are seldom moved.
pub enum PeftConfig {
    Lora(LoraConfig),
    Ia3(Ia3Config),
    PromptTuning(PromptTuningConfig),
    PrefixTuning(PrefixTuningConfig),
    PTuning(PTuningConfig),
    Shira(ShiraConfig),
}

impl PeftConfig {
    /// Reads the text of an `adapter_config.json`; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<PeftConfig> {
        let value = json::parse(path, text)?;
        let peft_type = match identify(&value) {
            Producer::Peft(peft_type) => peft_type,
            Producer::AdapterHub(version) => {
                let what = format!("this is an AdapterHub adapter ({})", quote(&version));
                return Err(Error::unsupported(path, what, "a PEFT adapter was expected"));
            }
            Producer::Mlx(kind) => {
                let what = format!("this is an mlx-lm adapter (fine_tune_type {})", quote(&kind));
                return Err(Error::unsupported(path, what, "a PEFT adapter was expected"));
            }
            Producer::Unknown => {
                let what = "there is no `peft_type` in it, so it is not a PEFT adapter";
                let remedy = "give the folder that PEFT's save_pretrained wrote";
                return Err(Error::unsupported(path, what, remedy));
            }
        };
        let empty = Map::new();
        let object = value.as_object().unwrap_or(&empty);
        Ok(match peft_type.as_str() {
            "LORA" => PeftConfig::Lora(LoraConfig::from_json(path, object)?),
            "IA3" => PeftConfig::Ia3(Ia3Config::from_json(path, object)?),
            "PROMPT_TUNING" => PeftConfig::PromptTuning(PromptTuningConfig::from_json(path, object)?),
            "PREFIX_TUNING" => PeftConfig::PrefixTuning(PrefixTuningConfig::from_json(path, object)?),
            "P_TUNING" => PeftConfig::PTuning(PTuningConfig::from_json(path, object)?),
            "SHIRA" => PeftConfig::Shira(ShiraConfig::from_json(path, object)?),
            other => {
                let what = format!("its peft_type is {}", quote(other));
                let read = "LORA, IA3, PROMPT_TUNING, PREFIX_TUNING, P_TUNING, SHIRA";
                return Err(Error::unsupported(path, what, format!("the types that are read are: {read}")));
            }
        })
    }

    /// The text that PEFT would write.
    pub fn to_text(&self) -> String {
        json::to_python_text(&match self {
            PeftConfig::Lora(config) => config.to_json(),
            PeftConfig::Ia3(config) => config.to_json(),
            PeftConfig::PromptTuning(config) => config.to_json(),
            PeftConfig::PrefixTuning(config) => config.to_json(),
            PeftConfig::PTuning(config) => config.to_json(),
            PeftConfig::Shira(config) => config.to_json(),
        })
    }

    /// The name of the method in the file.
    pub fn peft_type(&self) -> &'static str {
        match self {
            PeftConfig::Lora(_) => "LORA",
            PeftConfig::Ia3(_) => "IA3",
            PeftConfig::PromptTuning(_) => "PROMPT_TUNING",
            PeftConfig::PrefixTuning(_) => "PREFIX_TUNING",
            PeftConfig::PTuning(_) => "P_TUNING",
            PeftConfig::Shira(_) => "SHIRA",
        }
    }

    /// What all methods share.
    pub fn common(&self) -> &Common {
        match self {
            PeftConfig::Lora(config) => &config.common,
            PeftConfig::Ia3(config) => &config.common,
            PeftConfig::PromptTuning(config) => &config.prompt.common,
            PeftConfig::PrefixTuning(config) => &config.prompt.common,
            PeftConfig::PTuning(config) => &config.prompt.common,
            PeftConfig::Shira(config) => &config.common,
        }
    }

    /// [`PeftConfig::common`], to be changed.
    pub fn common_mut(&mut self) -> &mut Common {
        match self {
            PeftConfig::Lora(config) => &mut config.common,
            PeftConfig::Ia3(config) => &mut config.common,
            PeftConfig::PromptTuning(config) => &mut config.prompt.common,
            PeftConfig::PrefixTuning(config) => &mut config.prompt.common,
            PeftConfig::PTuning(config) => &mut config.prompt.common,
            PeftConfig::Shira(config) => &mut config.common,
        }
    }

    /// Is it made of virtual tokens in front of the text?
    pub fn is_prompt(&self) -> bool {
        matches!(self, PeftConfig::PromptTuning(_) | PeftConfig::PrefixTuning(_) | PeftConfig::PTuning(_))
    }

    /// The key on disk of a parameter of a module; the module of [`Param::PromptEmbeddings`] is empty.
    pub fn key(&self, module: &str, param: &Param) -> String {
        if self.is_prompt() { prompt_key(module, param) } else { key(module, param) }
    }

    /// Keys that PEFT 0.21 does not know; worth a warning.
    pub fn unknown_keys(&self) -> Vec<&str> {
        self.common().unknown.keys().map(String::as_str).collect()
    }
}

/// One tensor of an adapter.
#[derive(Clone, Debug)]
pub struct AdapterTensor {
    /// Path of the module in the base model; empty for [`Param::PromptEmbeddings`].
    pub module: String,
    pub param: Param,
    /// The tensor in the file (its name is the key).
    pub info: TensorInfo,
}

/// An open adapter folder, all checked: keys, shapes, ranks, finite values.
pub struct PeftAdapter {
    folder: PathBuf,
    config: PeftConfig,
    source: Box<dyn TensorSource>,
    tensors: Vec<AdapterTensor>,
    tied_pair: Option<(String, String)>,
    notes: Vec<String>,
}

impl fmt::Debug for PeftAdapter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("PeftAdapter").field("folder", &self.folder).field("config", &self.config).finish()
    }
}

impl PeftAdapter {
    /// Opens a folder and checks all that can be checked without the base model.
    pub fn open(folder: impl AsRef<Path>) -> Result<PeftAdapter> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        if !path.is_file() {
            return Err(no_config(folder));
        }
        let text = crate::bytes::Bytes::open(&path)?.read_text("configuration", limits::CONFIG_BYTES)?;
        let config = PeftConfig::parse(&path, &text)?;
        let weights = open_weights(folder, WEIGHTS, WEIGHTS_BIN)?;
        PeftAdapter::new(folder, config, weights)
    }

    /// Checks a configuration and weights that are already open; `folder` is for messages.
    pub fn new(
        folder: &Path,
        config: PeftConfig,
        source: impl TensorSource + 'static,
    ) -> Result<PeftAdapter> {
        let mut notes = Vec::new();
        let unknown = config.unknown_keys();
        if !unknown.is_empty() {
            notes.push(format!("{CONFIG} has keys that are not known and not used: {}", unknown.join(", ")));
        }
        let mut tensors = Vec::with_capacity(source.tensors().len());
        let mut default_named = 0;
        for info in source.tensors() {
            let (module, param, named) = keys::parse(source.path(), &info.name, config.is_prompt())?;
            default_named += usize::from(named);
            tensors.push(AdapterTensor { module, param, info: info.clone() });
        }
        if source.path().file_name().is_some_and(|name| name == WEIGHTS_BIN) {
            notes.push(format!(
                "its weights are in {WEIGHTS_BIN}, a Python pickle; it was read as data, not run"
            ));
        }
        if default_named > 0 {
            notes.push(format!(
                "{default_named} tensors carry the adapter's name (`.default.`), which PEFT does not write"
            ));
        }
        let parts = tensors.iter().map(|t| Part {
            module: &t.module,
            param: &t.param,
            dtype: t.info.dtype,
            shape: &t.info.shape,
        });
        check::check(source.path(), &config, parts)?;
        for tensor in &tensors {
            match tensor.param {
                Param::ShiraIndices => check_indices(&source, &tensor.info)?,
                _ => check_finite(&source, &tensor.info)?,
            }
        }
        let tied_pair = differing_halves(&source, &tensors)?;
        if let Some((one, other)) = &tied_pair {
            notes.push(format!(
                "{} and {} are both in it and differ: a model whose two are tied cannot hold both",
                quote(one),
                quote(other)
            ));
        }
        let folder = folder.to_path_buf();
        Ok(PeftAdapter { folder, config, source: Box::new(source), tensors, tied_pair, notes })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The configuration.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// All tensors with what they are for.
    pub fn tensors(&self) -> &[AdapterTensor] {
        &self.tensors
    }

    /// The tensor for a parameter of a module.
    pub fn find(&self, module: &str, param: &Param) -> Option<&AdapterTensor> {
        self.tensors.iter().find(|t| t.module == module && t.param == *param)
    }

    /// The values of a tensor, row-major.
    pub fn read_f32(&self, tensor: &AdapterTensor) -> Result<Vec<f32>> {
        self.source.read_f32(&tensor.info.name)
    }

    /// The rows and columns of [`Param::ShiraIndices`], each pair once, none negative.
    pub fn read_indices(&self, tensor: &AdapterTensor) -> Result<Vec<(usize, usize)>> {
        read_indices(&*self.source, &tensor.info)
    }

    /// The weights as a file of named tensors.
    pub fn source(&self) -> &dyn TensorSource {
        &*self.source
    }

    /// The names of the input and the output embedding, if both are in the file and differ. In a model that ties the
    /// two that is an error, which only the model can tell.
    pub fn differing_tied_pair(&self) -> Option<(&str, &str)> {
        self.tied_pair.as_ref().map(|(one, other)| (one.as_str(), other.as_str()))
    }

    /// What is odd about the files but no error; worth showing.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Writes an adapter folder as PEFT does: weights, model card, then the configuration (its presence says that the rest
/// is there). Each file is replaced atomically. Keys come from [`PeftConfig::key`].
///
/// # Errors
/// If the tensors do not fit the configuration, the configuration is one that would not be read again, or the folder
/// cannot be written.
pub fn write<'a>(
    folder: &Path,
    config: &PeftConfig,
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
    readme: Option<&str>,
) -> Result<()> {
    let weights = folder.join(WEIGHTS);
    let tensors: Vec<TensorOut> = tensors.into_iter().collect();
    let mut saved = config.clone();
    saved.common_mut().inference_mode = true;
    let text = saved.to_text();
    PeftConfig::parse(&folder.join(CONFIG), &text)?;
    let mut parsed = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let (module, param, _) = keys::parse(&weights, &tensor.name, config.is_prompt())?;
        parsed.push((module, param, tensor.dtype, tensor.shape.clone()));
    }
    let parts =
        parsed.iter().map(|(module, param, dtype, shape)| Part { module, param, dtype: *dtype, shape });
    check::check(&weights, config, parts)?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    safetensors::write(&weights, tensors, &[("format", "pt")])?;
    if let Some(text) = readme {
        atomic::write_bytes(&folder.join("README.md"), text.as_bytes())?;
    }
    atomic::write_bytes(&folder.join(CONFIG), text.as_bytes())
}

/// The names of the two halves of what may be one tied matrix, if both are there and not equal.
fn differing_halves(
    source: &dyn TensorSource,
    tensors: &[AdapterTensor],
) -> Result<Option<(String, String)>> {
    let half = |table: bool| {
        tensors
            .iter()
            .map(|t| (check::half_of_tied(&t.module, &t.param), &t.info))
            .find_map(|(found, info)| (found == Some(table)).then_some(info))
    };
    let (Some(one), Some(other)) = (half(true), half(false)) else { return Ok(None) };
    let alike = one.shape == other.shape && one.dtype == other.dtype;
    if alike && source.read(&one.name)? == source.read(&other.name)? {
        return Ok(None);
    }
    Ok(Some((one.name.clone(), other.name.clone())))
}

/// (2, n) of i32 as pairs.
fn read_indices(source: &dyn TensorSource, info: &TensorInfo) -> Result<Vec<(usize, usize)>> {
    let bytes = source.read(&info.name)?;
    let bad = |value: i32| {
        let what = format!("tensor {} holds the index {value}", quote(&info.name));
        Error::invalid(source.path(), "PEFT adapter", what)
    };
    let index = |&b: &[u8; 4]| {
        let value = i32::from_le_bytes(b);
        usize::try_from(value).map_err(|_| bad(value))
    };
    let values = bytes.as_chunks::<4>().0;
    let (rows, columns) = values.split_at(values.len() / 2);
    rows.iter().zip(columns).map(|(row, column)| Ok((index(row)?, index(column)?))).collect()
}

/// No index is negative and no place is named twice.
fn check_indices(source: &dyn TensorSource, info: &TensorInfo) -> Result<()> {
    let mut pairs = read_indices(source, info)?;
    pairs.sort_unstable();
    if let Some(pair) = pairs.windows(2).find(|pair| pair[0] == pair[1]) {
        let what = format!("tensor {} names the place {:?} twice", quote(&info.name), pair[0]);
        return Err(Error::invalid(source.path(), "PEFT adapter", what));
    }
    Ok(())
}

/// NaN and infinity come from diverged runs and would silently spoil the model.
pub(crate) fn check_finite(file: &dyn TensorSource, info: &TensorInfo) -> Result<()> {
    let mut done = 0u64;
    for_each_chunk(file, info, |dtype, bytes| {
        if let Some((i, value)) = first_not_finite(dtype, bytes) {
            let path = file.path().to_path_buf();
            return Err(Error::NotFinite { path, name: info.name.clone(), index: done + i as u64, value });
        }
        done += (bytes.len() / dtype.block_bytes()) as u64;
        Ok(())
    })
}

fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f64)> {
    let find =
        |mut values: &mut dyn Iterator<Item = f64>| (&mut values).enumerate().find(|(_, v)| !v.is_finite());
    match dtype {
        Dtype::F32 => find(&mut bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into())),
        Dtype::F16 => find(&mut bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).into())),
        Dtype::BF16 => find(&mut bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).into())),
        Dtype::F64 => find(&mut bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b))),
        _ => None,
    }
}

pub(crate) fn no_config(folder: &Path) -> Error {
    let inner =
        std::fs::read_dir(folder).into_iter().flatten().flatten().find(|e| is_adapter_folder(&e.path()));
    match inner {
        Some(entry) => Error::missing(
            folder,
            format!("there is no {CONFIG} in it"),
            format!("there is one in {}: give that folder", entry.path().display()),
        ),
        None => Error::missing(folder, format!("there is no {CONFIG} in it"), "give an adapter's folder"),
    }
}

/// The weights of a folder: the safetensors file if it is there, else the one of PyTorch (which is read as data).
pub(crate) fn open_weights(folder: &Path, plain: &str, pickled: &str) -> Result<Box<dyn TensorSource>> {
    let (first, second) = (folder.join(plain), folder.join(pickled));
    if first.is_file() {
        return Ok(Box::new(safetensors::File::open(first)?));
    }
    if second.is_file() {
        return Ok(Box::new(torch::File::open(second)?));
    }
    let remedy = "copy the weights beside the configuration";
    Err(Error::missing(folder, format!("there is no {plain} and no {pickled} in it"), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lora(value: Value) -> PeftConfig {
        let mut value = value;
        value["peft_type"] = json!("LORA");
        PeftConfig::parse(Path::new(CONFIG), &value.to_string()).unwrap()
    }

    fn open(config: Value, tensors: &[(&str, &[usize])]) -> Result<PeftAdapter> {
        let out = tensors.iter().map(|(name, shape)| {
            TensorOut::f32(format!("{PREFIX}{name}"), shape, vec![1.0; shape.iter().product()])
        });
        let bytes = safetensors::to_bytes(out, &[]).unwrap();
        PeftAdapter::new(
            Path::new("here"),
            lora(config),
            safetensors::File::from_memory("here/w", bytes).unwrap(),
        )
    }

    const A: (&str, &[usize]) = ("l.0.q.lora_A.weight", &[2, 8]);
    const B: (&str, &[usize]) = ("l.0.q.lora_B.weight", &[4, 2]);

    #[test]
    fn the_three_tools_are_told_apart() {
        assert_eq!(identify(&json!({"peft_type": "IA3"})), Producer::Peft("IA3".into()));
        let hub = json!({"config": {"architecture": "lora"}, "version": "adapters.1.3.0"});
        assert_eq!(identify(&hub), Producer::AdapterHub("adapters.1.3.0".into()));
        let mlx = json!({"fine_tune_type": "dora", "num_layers": 16, "lora_parameters": {}});
        assert_eq!(identify(&mlx), Producer::Mlx("dora".into()));
        assert_eq!(identify(&json!([])), Producer::Unknown);
        for (value, word) in [(hub, "AdapterHub"), (mlx, "mlx-lm"), (json!({"peft_type": "OFT"}), "`OFT`")] {
            let message = PeftConfig::parse(Path::new(CONFIG), &value.to_string()).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_whole_adapter_opens() {
        let adapter = open(json!({"r": 2, "target_modules": ["q"]}), &[A, B]).unwrap();
        let a = adapter.find("l.0.q", &Param::A).unwrap();
        assert_eq!(adapter.read_f32(a).unwrap(), [1.0; 16]);
        assert!(adapter.notes().is_empty());
        let named = [("l.0.q.lora_A.default.weight", A.1), ("l.0.q.lora_B.default.weight", B.1)];
        let adapter = open(json!({"r": 2, "target_modules": ["q"], "later": 1}), &named).unwrap();
        assert_eq!(adapter.notes().len(), 2);
        assert_eq!(adapter.tensors()[0].module, "l.0.q");
    }

    #[test]
    fn what_does_not_fit_the_configuration_is_named() {
        let q = json!({"r": 2, "target_modules": ["q"]});
        let cases: &[(Value, &[(&str, &[usize])], &str)] = &[
            (q.clone(), &[A], "only one of lora_A and lora_B"),
            (q.clone(), &[], "no tensors"),
            (json!({"r": 4, "target_modules": ["q"]}), &[A, B], "r = 4"),
            (json!({"r": 2, "target_modules": ["v"]}), &[A, B], "not among the target_modules"),
            (
                json!({"r": 2, "target_modules": ["q"], "use_dora": true}),
                &[A, B],
                "lacks lora_magnitude_vector",
            ),
            (q.clone(), &[A, B, ("l.0.q.lora_magnitude_vector", &[4])], "use_dora is false"),
            (q.clone(), &[A, B, ("l.0.q.lora_B.bias", &[4])], "lora_bias is false"),
            (q.clone(), &[A, B, ("l.0.norm.weight", &[4])], "neither of the method nor in modules_to_save"),
            (q.clone(), &[A, B, ("l.0.q.lora_E", &[4])], "no parameter of a LoRA"),
            (q.clone(), &[A, B, ("l.0.q.lora_A.other.weight", &[2, 8])], "no parameter of a LoRA"),
            (q.clone(), &[A, B, ("l.0.q.lora_A.default.weight", &[2, 8])], "two tensors"),
        ];
        for (config, tensors, word) in cases {
            let message = open(config.clone(), tensors).unwrap_err().to_string();
            assert!(message.starts_with("here/w: ") && message.contains(word), "{message}");
        }
    }

    fn open_as(config: Value, tensors: Vec<TensorOut>) -> Result<PeftAdapter> {
        let config = PeftConfig::parse(Path::new(CONFIG), &config.to_string())?;
        let bytes = safetensors::to_bytes(tensors, &[]).unwrap();
        PeftAdapter::new(Path::new("here"), config, safetensors::File::from_memory("here/w", bytes).unwrap())
    }

    fn indices(values: &[i32]) -> TensorOut<'static> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        TensorOut::bytes(key("q", &Param::ShiraIndices), Dtype::I32, &[2, values.len() / 2], bytes)
    }

    #[test]
    fn other_methods_are_held_to_their_configurations_too() {
        let f32 = |name: &str, shape: &[usize]| {
            TensorOut::f32(name.to_string(), shape, vec![1.0; shape.iter().product()])
        };
        let ia3 = |m: &str, shape: &[usize]| f32(&key(m, &Param::Ia3), shape);
        let ia3_config =
            json!({"peft_type": "IA3", "target_modules": ["k", "down"], "feedforward_modules": ["down"]});
        let prompt = json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "token_dim": 4});
        let prefix =
            json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3, "token_dim": 4, "num_layers": 2});
        let shira = json!({"peft_type": "SHIRA", "r": 1, "target_modules": ["q"]});
        let weight = || f32(&key("q", &Param::ShiraWeight), &[2]);
        open_as(ia3_config.clone(), vec![ia3("0.k", &[8, 1]), ia3("0.down", &[1, 8])]).unwrap();
        open_as(prompt.clone(), vec![f32("prompt_embeddings", &[3, 4])]).unwrap();
        open_as(prefix.clone(), vec![f32("prompt_embeddings", &[3, 16])]).unwrap();
        open_as(shira.clone(), vec![weight(), indices(&[0, 1, 1, 0])]).unwrap();
        for (config, tensors, word) in [
            (&ia3_config, vec![ia3("0.k", &[1, 8])], "wanted (out, 1)"),
            (&ia3_config, vec![ia3("0.down", &[8, 1])], "wanted (1, in)"),
            (&ia3_config, vec![ia3("0.up", &[8, 1])], "not among the target_modules"),
            (&ia3_config, vec![f32(&key("0.k", &Param::A), &[8, 1])], "lora_A.weight, which is not of IA3"),
            (&ia3_config, vec![f32(&key("0.k", &Param::Plain("weight".into())), &[1])], "no tensors of its"),
            (&prompt, vec![f32("prompt_embeddings", &[3, 5])], "[3, 4]"),
            (&prompt, vec![f32("prompt_embeddings", &[4, 4])], "[3, 4]"),
            (&prompt, vec![f32("prompt_embeddings.x", &[3, 4])], "does not begin with `base_model.`"),
            (&prompt, vec![f32("prompt_embeddings", &[3, 4]), f32("base_model.x.weight", &[1])], "neither"),
            (&prefix, vec![f32("prompt_embeddings", &[3, 4])], "[3, 16]"),
            (&shira, vec![weight()], "only one of shira_weight"),
            (&shira, vec![weight(), indices(&[0, 1, 2, 1, 0, 3])], "are not (n) and (2, n)"),
            (&shira, vec![weight(), indices(&[0, -1, 1, 0])], "holds the index -1"),
            (&shira, vec![weight(), indices(&[1, 1, 2, 2])], "the place (1, 2) twice"),
            (&shira, vec![weight(), f32(&key("q", &Param::ShiraIndices), &[2, 2])], "wanted I32"),
        ] {
            let message = open_as(config.clone(), tensors).unwrap_err().to_string();
            assert!(message.starts_with("here/w: ") && message.contains(word), "{message}");
        }
    }

    #[test]
    fn what_would_not_be_read_again_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let config = PeftConfig::Shira(ShiraConfig { r: 0, ..ShiraConfig::default() });
        let message = write(dir.path(), &config, [], None).unwrap_err().to_string();
        assert!(message.contains("`r` is 0"), "{message}");
        let config = PeftConfig::Ia3(Ia3Config::default());
        assert!(write(dir.path(), &config, [], None).unwrap_err().to_string().contains("no ia3_l"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64] {
            let mut values = vec![0.5f32; 16];
            values[13] = f32::NAN;
            let a = TensorOut { dtype, ..TensorOut::f32(format!("{PREFIX}{}", A.0), A.1, values) };
            let b = TensorOut::f32(format!("{PREFIX}{}", B.0), B.1, vec![0.0; 8]);
            let file =
                safetensors::File::from_memory("w", safetensors::to_bytes([a, b], &[]).unwrap()).unwrap();
            let config = lora(json!({"r": 2, "target_modules": ["q"]}));
            let message = PeftAdapter::new(Path::new("."), config, file).unwrap_err().to_string();
            assert!(message.contains("NaN at element 13") && message.contains("l.0.q.lora_A"), "{message}");
        }
    }

    #[test]
    fn a_folder_without_weights_or_config_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let message = |dir: &Path| PeftAdapter::open(dir).unwrap_err().to_string();
        assert!(message(dir.path()).contains("no adapter_config.json"));
        let inner = dir.path().join("mine");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join(CONFIG), r#"{"peft_type": "LORA"}"#).unwrap();
        assert!(message(dir.path()).contains("give that folder"));
        assert!(message(&inner).contains("no adapter_model.safetensors and no adapter_model.bin"));
        std::fs::write(inner.join("adapter_model.bin"), "").unwrap();
        assert!(message(&inner).contains("adapter_model.bin"));
    }
}
