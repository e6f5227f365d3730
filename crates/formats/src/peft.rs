//! A PEFT adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Key on disk: `base_model.model.` + path of the module in the base model + parameter, without the adapter's name.
//! For a linear layer W (out, in): `lora_A.weight` (r, in), `lora_B.weight` (out, r), `lora_magnitude_vector` (out)
//! with DoRA. PEFT ignores tensors that it does not expect without a word; here they are errors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result, quote};
use crate::lora_config::{Bias, LoraConfig, Matcher};
use crate::source::{TensorInfo, TensorOut, TensorSource, for_each_chunk};
use crate::{Dtype, atomic, json, limits, safetensors};

/// The name of the configuration in a folder.
pub const CONFIG: &str = "adapter_config.json";
/// The name of the weights in a folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What stands before the path of a module in a key.
pub const PREFIX: &str = "base_model.model.";

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
    if let (Some(Value::Object(_)), Some(version)) = (config.get("config"), text("version")) {
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
pub enum PeftConfig {
    Lora(LoraConfig),
}

impl PeftConfig {
    /// Reads the text of an `adapter_config.json`; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<PeftConfig> {
        let value = json::parse(path, text)?;
        let peft_type = match identify(&value) {
            Producer::Peft(peft_type) => peft_type,
            Producer::AdapterHub(version) => {
                let what = format!("this is an AdapterHub adapter ({})", quote(&version));
                return Err(Error::unsupported(path, what, "only PEFT adapters are read"));
            }
            Producer::Mlx(kind) => {
                let what = format!("this is an mlx-lm adapter (fine_tune_type {})", quote(&kind));
                return Err(Error::unsupported(path, what, "only PEFT adapters are read"));
            }
            Producer::Unknown => {
                let what = "there is no `peft_type` in it, so it is not a PEFT adapter";
                return Err(Error::unsupported(
                    path,
                    what,
                    "give the folder that PEFT's save_pretrained wrote",
                ));
            }
        };
        let empty = Map::new();
        let object = value.as_object().unwrap_or(&empty);
        match peft_type.as_str() {
            "LORA" => Ok(PeftConfig::Lora(LoraConfig::from_json(path, object)?)),
            other => {
                let what = format!("its peft_type is {}", quote(other));
                Err(Error::unsupported(path, what, "the types that are read are: LORA"))
            }
        }
    }

    /// The text that PEFT would write.
    pub fn to_text(&self) -> String {
        match self {
            PeftConfig::Lora(config) => json::to_python_text(&config.to_json()),
        }
    }

    /// Keys that PEFT 0.21 does not know; worth a warning.
    pub fn unknown_keys(&self) -> Vec<&str> {
        match self {
            PeftConfig::Lora(config) => config.unknown.keys().map(String::as_str).collect(),
        }
    }
}

/// A parameter of a LoRA in one module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoraParam {
    /// (r, in), or (r, in, kh, kw).
    A,
    /// (out, r), or (out, r, 1, 1).
    B,
    /// (out), with `lora_bias`.
    BBias,
    /// (r, vocabulary).
    EmbeddingA,
    /// (dim, r).
    EmbeddingB,
    /// (out), or (1, out, 1, 1): DoRA.
    Magnitude,
    /// A parameter of the base model saved whole: `modules_to_save`, a trained bias, an embedding's own weight.
    Plain(String),
}

impl LoraParam {
    /// What follows the module in a key.
    fn suffix(&self) -> &str {
        match self {
            LoraParam::A => "lora_A.weight",
            LoraParam::B => "lora_B.weight",
            LoraParam::BBias => "lora_B.bias",
            LoraParam::EmbeddingA => "lora_embedding_A",
            LoraParam::EmbeddingB => "lora_embedding_B",
            LoraParam::Magnitude => "lora_magnitude_vector",
            LoraParam::Plain(name) => name,
        }
    }
}

/// The key on disk of a parameter of a module (`model.layers.0.self_attn.q_proj`).
pub fn lora_key(module: &str, param: &LoraParam) -> String {
    format!("{PREFIX}{module}.{}", param.suffix())
}

/// One tensor of an adapter.
#[derive(Clone, Debug)]
pub struct AdapterTensor {
    /// Path of the module in the base model.
    pub module: String,
    pub param: LoraParam,
    /// The tensor in the file (its name is the key).
    pub info: TensorInfo,
}

/// An open adapter folder, all checked: keys, shapes, ranks, finite values.
#[derive(Debug)]
pub struct PeftAdapter {
    folder: PathBuf,
    config: PeftConfig,
    file: safetensors::File,
    tensors: Vec<AdapterTensor>,
    notes: Vec<String>,
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
        let weights = folder.join(WEIGHTS);
        if !weights.is_file() {
            return Err(no_weights(folder));
        }
        PeftAdapter::new(folder, config, safetensors::File::open(weights)?)
    }

    /// Checks a configuration and weights that are already open; `folder` is for messages.
    pub fn new(folder: &Path, config: PeftConfig, file: safetensors::File) -> Result<PeftAdapter> {
        let mut notes = Vec::new();
        let unknown = config.unknown_keys();
        if !unknown.is_empty() {
            notes.push(format!("{CONFIG} has keys that are not known and not used: {}", unknown.join(", ")));
        }
        let PeftConfig::Lora(lora) = &config;
        let mut tensors = Vec::with_capacity(file.tensors().len());
        let mut default_named = 0;
        for info in file.tensors() {
            let (module, param, named) = parse_key(file.path(), &info.name)?;
            default_named += usize::from(named);
            tensors.push(AdapterTensor { module, param, info: info.clone() });
        }
        if default_named > 0 {
            notes.push(format!(
                "{default_named} tensors carry the adapter's name (`.default.`), which PEFT does not write"
            ));
        }
        let parts = tensors.iter().map(|t| Part { module: &t.module, param: &t.param, shape: &t.info.shape });
        check_lora(file.path(), lora, &lora.matcher(folder)?, parts)?;
        for info in file.tensors() {
            check_finite(&file, info)?;
        }
        Ok(PeftAdapter { folder: folder.to_path_buf(), config, file, tensors, notes })
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
    pub fn find(&self, module: &str, param: &LoraParam) -> Option<&AdapterTensor> {
        self.tensors.iter().find(|t| t.module == module && t.param == *param)
    }

    /// The values of a tensor, row-major.
    pub fn read_f32(&self, tensor: &AdapterTensor) -> Result<Vec<f32>> {
        self.file.read_f32(&tensor.info.name)
    }

    /// The weights as a file of named tensors.
    pub fn source(&self) -> &safetensors::File {
        &self.file
    }

    /// What is odd about the files but no error; worth showing.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Writes an adapter folder as PEFT does: weights, model card, then the configuration (its presence says that the rest
/// is there). Each file is replaced atomically. Keys come from [`lora_key`].
pub fn write<'a>(
    folder: &Path,
    config: &PeftConfig,
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
    readme: Option<&str>,
) -> Result<()> {
    let weights = folder.join(WEIGHTS);
    let tensors: Vec<TensorOut> = tensors.into_iter().collect();
    let PeftConfig::Lora(lora) = config;
    let mut parsed = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let (module, param, _) = parse_key(&weights, &tensor.name)?;
        parsed.push((module, param, tensor.shape.clone()));
    }
    let parts = parsed.iter().map(|(module, param, shape)| Part { module, param, shape });
    check_lora(&weights, lora, &lora.matcher(folder)?, parts)?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    safetensors::write(&weights, tensors, &[("format", "pt")])?;
    if let Some(text) = readme {
        atomic::write_bytes(&folder.join("README.md"), text.as_bytes())?;
    }
    let saved = PeftConfig::Lora(LoraConfig { inference_mode: true, ..lora.clone() });
    atomic::write_bytes(&folder.join(CONFIG), saved.to_text().as_bytes())
}

/// Module, parameter, and whether the key carries the adapter name `default`.
fn parse_key(path: &Path, key: &str) -> Result<(String, LoraParam, bool)> {
    let unexpected =
        |what: &str| Error::invalid(path, "PEFT adapter", format!("tensor {}: {what}", quote(key)));
    let Some(rest) = key.strip_prefix(PREFIX) else {
        return Err(unexpected("its name does not begin with `base_model.model.`"));
    };
    const NAMES: &[(&str, LoraParam, bool)] = &[
        (".lora_A.weight", LoraParam::A, false),
        (".lora_A.default.weight", LoraParam::A, true),
        (".lora_B.weight", LoraParam::B, false),
        (".lora_B.default.weight", LoraParam::B, true),
        (".lora_B.bias", LoraParam::BBias, false),
        (".lora_B.default.bias", LoraParam::BBias, true),
        (".lora_embedding_A", LoraParam::EmbeddingA, false),
        (".lora_embedding_A.default", LoraParam::EmbeddingA, true),
        (".lora_embedding_B", LoraParam::EmbeddingB, false),
        (".lora_embedding_B.default", LoraParam::EmbeddingB, true),
        (".lora_magnitude_vector", LoraParam::Magnitude, false),
        (".lora_magnitude_vector.weight", LoraParam::Magnitude, false),
        (".lora_magnitude_vector.default", LoraParam::Magnitude, true),
        (".lora_magnitude_vector.default.weight", LoraParam::Magnitude, true),
    ];
    for (suffix, param, named) in NAMES {
        if let Some(module) = rest.strip_suffix(suffix).filter(|m| !m.is_empty()) {
            return Ok((module.to_string(), param.clone(), *named));
        }
    }
    match rest.rsplit_once('.') {
        Some((module, param)) if !module.is_empty() && !param.is_empty() && !rest.contains(".lora_") => {
            Ok((module.to_string(), LoraParam::Plain(param.to_string()), false))
        }
        _ => Err(unexpected("this is no parameter of a LoRA")),
    }
}

struct Part<'a> {
    module: &'a str,
    param: &'a LoraParam,
    shape: &'a [usize],
}

/// Every tensor must be one that the configuration asks for, whole pairs of them, with the rank it says.
fn check_lora<'a>(
    path: &Path,
    config: &LoraConfig,
    matcher: &Matcher,
    parts: impl Iterator<Item = Part<'a>>,
) -> Result<()> {
    let bad = |what: String| Err(Error::invalid(path, "PEFT adapter", what));
    let mut modules: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
    for (count, part) in parts.enumerate() {
        if count == limits::ADAPTER_TENSORS {
            let limit = limits::ADAPTER_TENSORS as u64;
            return Err(Error::limit(path, "the number of tensors", limit + 1, limit));
        }
        modules.entry(part.module).or_default().push(part);
    }
    if modules.is_empty() {
        return bad("it holds no tensors".into());
    }
    for (module, parts) in &mut modules {
        let shown = quote(module);
        parts.sort_unstable_by(|x, y| x.param.cmp(y.param));
        if let Some(pair) = parts.windows(2).find(|pair| pair[0].param == pair[1].param) {
            return bad(format!("module {shown} has two tensors for {}", pair[0].param.suffix()));
        }
        for part in parts.iter() {
            if let LoraParam::Plain(name) = part.param {
                check_plain(path, config, matcher, module, name)?;
            }
        }
        let of = |param: LoraParam| parts.iter().find(|p| *p.param == param).map(|p| p.shape);
        let (a, b, magnitude) = (of(LoraParam::A), of(LoraParam::B), of(LoraParam::Magnitude));
        let (ea, eb) = (of(LoraParam::EmbeddingA), of(LoraParam::EmbeddingB));
        let out = match (a, b, ea, eb) {
            (None, None, None, None) => {
                if magnitude.is_some() || of(LoraParam::BBias).is_some() {
                    return bad(format!("module {shown} has neither lora_A nor lora_B"));
                }
                continue;
            }
            (Some(a), Some(b), None, None) => check_pair(path, &shown, matcher.rank(module), a, b)?,
            (None, None, Some(a), Some(b)) => check_pair(path, &shown, matcher.rank(module), a, b)?,
            _ => return bad(format!("module {shown} has only one of lora_A and lora_B")),
        };
        if matcher.is_target(module) == Some(false) {
            return bad(format!("module {shown} is not among the target_modules of {CONFIG}"));
        }
        if config.use_dora != magnitude.is_some() {
            let has = if config.use_dora { "lacks" } else { "has" };
            return bad(format!(
                "module {shown} {has} lora_magnitude_vector, but use_dora is {}",
                config.use_dora
            ));
        }
        for (name, shape) in [("lora_magnitude_vector", magnitude), ("lora_B.bias", of(LoraParam::BBias))] {
            if let Some(shape) = shape.filter(|shape| shape.iter().product::<usize>() != out) {
                return bad(format!("module {shown}: {name} has shape {shape:?}, {out} values were due"));
            }
        }
        if !config.lora_bias && of(LoraParam::BBias).is_some() {
            return bad(format!("module {shown} has lora_B.bias, but lora_bias is false"));
        }
    }
    Ok(())
}

/// A (r, …) and B (out, r, …); returns out.
fn check_pair(path: &Path, module: &str, rank: usize, a: &[usize], b: &[usize]) -> Result<usize> {
    match (a, b) {
        (&[ra, ..], &[out, rb, ..]) if a.len() >= 2 && a.len() == b.len() && ra == rank && rb == rank => {
            Ok(out)
        }
        _ => {
            let what = format!(
                "module {module}: shapes {a:?} and {b:?} are not (r, in) and (out, r) with r = {rank} of {CONFIG}"
            );
            Err(Error::invalid(path, "PEFT adapter", what))
        }
    }
}

/// A parameter of the base model must have a reason to be in the file.
fn check_plain(path: &Path, config: &LoraConfig, matcher: &Matcher, module: &str, param: &str) -> Result<()> {
    // PEFT adds these two to modules_to_save for classification.
    let classifies = matches!(config.task_type.as_deref(), Some("SEQ_CLS" | "TOKEN_CLS"));
    let head = classifies && module.split('.').any(|part| part == "classifier" || part == "score");
    let bias = param == "bias" && config.bias != Bias::None;
    let base = module.ends_with(".base_layer") || module == "base_layer";
    // An embedding whose vocabulary was resized, or that is a target, is saved whole.
    let embedding =
        param == "weight" && module.split('.').any(|part| part == "embed_tokens" || part == "lm_head");
    if head || bias || base || embedding || matcher.is_saved(module) {
        return Ok(());
    }
    let name = quote(&format!("{module}.{param}"));
    Err(Error::invalid(
        path,
        "PEFT adapter",
        format!("tensor {name} is neither of a LoRA nor in modules_to_save"),
    ))
}

/// NaN and infinity come from diverged runs and would silently spoil the model.
fn check_finite(file: &safetensors::File, info: &TensorInfo) -> Result<()> {
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

fn no_config(folder: &Path) -> Error {
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

fn no_weights(folder: &Path) -> Error {
    if folder.join("adapter_model.bin").is_file() {
        let what =
            "its weights are in adapter_model.bin, a Python pickle, which can run code when it is read";
        return Error::unsupported(
            folder,
            what,
            format!("convert it to {WEIGHTS} once, on a machine you trust with it"),
        );
    }
    Error::missing(
        folder,
        format!("there is no {WEIGHTS} in it"),
        "copy the weights beside the configuration",
    )
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
        for (value, word) in [(hub, "AdapterHub"), (mlx, "mlx-lm"), (json!({"peft_type": "IA3"}), "`IA3`")] {
            let message = PeftConfig::parse(Path::new(CONFIG), &value.to_string()).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_whole_adapter_opens() {
        let adapter = open(json!({"r": 2, "target_modules": ["q"]}), &[A, B]).unwrap();
        let a = adapter.find("l.0.q", &LoraParam::A).unwrap();
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
            (q.clone(), &[A, B, ("l.0.norm.weight", &[4])], "neither of a LoRA nor in modules_to_save"),
            (q.clone(), &[A, B, ("l.0.q.lora_E", &[4])], "no parameter of a LoRA"),
            (q.clone(), &[A, B, ("l.0.q.lora_A.other.weight", &[2, 8])], "no parameter of a LoRA"),
            (q.clone(), &[A, B, ("l.0.q.lora_A.default.weight", &[2, 8])], "two tensors"),
        ];
        for (config, tensors, word) in cases {
            let message = open(config.clone(), tensors).unwrap_err().to_string();
            assert!(message.starts_with("here/w: ") && message.contains(word), "{message}");
        }
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
        assert!(message(&inner).contains("no adapter_model.safetensors"));
        std::fs::write(inner.join("adapter_model.bin"), "").unwrap();
        assert!(message(&inner).contains("pickle"));
    }
}
