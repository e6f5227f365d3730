//! New models from nothing but a configuration and a seed: matrices `N(0, std)`, norms 1, biases 0.
//!
//! `std` is `initializer_range` (0.02 if absent). Projections into the residual stream have `std / sqrt(2 L)`, L layers,
//! so that its variance does not grow with depth (Radford et al., 2019). Each value depends on the seed, its tensor's
//! name and its place alone, so it is drawn where it is written: a model may be larger than the memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use retune_formats::bitsandbytes::{Layer, Original, QuantizationConfig, config::KEY};
use retune_formats::source::Data;
use retune_formats::{Dtype, Error as FormatError, TensorOut, atomic, json, safetensors};
use retune_tensor::params::Param;
use retune_tensor::rng::Stream;
use retune_tensor::storage::{Format, Storage, encode};
use retune_tensor::{Layout, Params, Tensor, Weight};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::quantised::{Quantisation, Quantised, in_block, layer_of};
use crate::models::spec_of_type;
use crate::train::available_memory;

const DEFAULT_STD: f64 = 0.02;
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The most that one file of weights holds, and of quantised ones, which are made before they are written.
const SHARD_BYTES: u64 = 4 << 30;
const QUANTISED_SHARD_BYTES: u64 = 512 << 20;
/// Elements drawn at a time, and those of one task of it.
const DRAWN: usize = 1 << 22;
const TASK: usize = 1 << 16;

/// Draws tensors by their names.
pub struct Draw<'a> {
    seed: u64,
    std: f32,
    /// Ends of the names that are scaled down, and by what.
    residual: (&'static [&'static str], f32),
    /// Bytes that vectors may still take, and who says so.
    left: u64,
    limit: String,
    config: &'a Config<'a>,
}

impl<'a> Draw<'a> {
    /// # Errors
    /// If `initializer_range` is not a number above 0.
    pub fn new(config: &'a Config, seed: u64) -> Result<Draw<'a>> {
        let std = config.positive("initializer_range")?.unwrap_or(DEFAULT_STD) as f32;
        let (left, limit) = match available_memory(None) {
            Some(limit) => (limit.bytes, limit.source),
            None => (u64::MAX, String::new()),
        };
        Ok(Draw { seed, std, residual: (&[], 1.0), left, limit, config })
    }

    /// What the model is to be.
    pub fn config(&self) -> &Config<'a> {
        self.config
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tensors whose names end so are sums' `terms`: their standard deviation is divided by `sqrt(terms)`.
    pub fn with_residual(self, ends: &'static [&'static str], terms: usize) -> Draw<'a> {
        Draw { residual: (ends, 1.0 / (terms as f32).sqrt()), ..self }
    }

    /// A norm's weights or a bias.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let bytes = (len as u64).saturating_mul(4);
        // A configuration of a few bytes must not decide how much is allocated.
        self.left = self.left.checked_sub(bytes).ok_or_else(|| self.too_large(name, 1, len, &self.limit))?;
        Ok(vec![if name.ends_with(".bias") || name.ends_with(".running_mean") { 0.0 } else { 1.0 }; len])
    }

    /// A matrix `[rows, cols]`, of which nothing lies in memory.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        self.matrix_of(name, rows, cols, self.std)
    }

    /// The same for a convolution whose output goes through a rectifier: `std = sqrt(2 / cols)` (He et al., 2015).
    pub fn kernel(&self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        self.matrix_of(name, rows, cols, (2.0 / cols.max(1) as f32).sqrt())
    }

    fn matrix_of(&self, name: &str, rows: usize, cols: usize, std: f32) -> Result<Weight> {
        let bytes =
            rows.checked_mul(cols).and_then(|n| n.checked_mul(4)).filter(|n| *n <= isize::MAX as usize);
        if bytes.is_none() {
            return Err(self.too_large(name, rows, cols, "what a tensor can be"));
        }
        let (ends, scale) = self.residual;
        let std = if ends.iter().any(|end| name.ends_with(end)) { std * scale } else { std };
        let stream = Stream::named(self.seed, name);
        Ok(Weight::Stored(Arc::new(Drawn { stream, std, rows, cols })))
    }

    fn too_large(&self, name: &str, rows: usize, cols: usize, limit: &str) -> Error {
        let what =
            format!("tensor \"{name}\" of {rows} x {cols} goes beyond {limit}; make the model smaller");
        Error::Model { path: self.config.path.clone(), what }
    }
}

/// A matrix whose values are drawn where they are looked at.
struct Drawn {
    stream: Stream,
    std: f32,
    rows: usize,
    cols: usize,
}

impl Storage for Drawn {
    fn format(&self) -> &'static str {
        "f32"
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        0
    }
    fn block(&self) -> usize {
        1
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        assert!(row < self.rows && col0 <= self.cols && out.len() <= self.cols - col0, "outside the matrix");
        let first = (row * self.cols + col0) as u64;
        for (index, value) in (first..).zip(out) {
            *value = self.std * self.stream.normal(index);
        }
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        let mut row = vec![0.0; self.cols];
        for (i, y) in y.iter_mut().enumerate() {
            self.decode(row0 + i, 0, &mut row);
            *y = row.iter().zip(x).map(|(w, x)| w * x).sum();
        }
    }
}

/// What [`write_folder`] made.
#[derive(Clone, Debug, PartialEq)]
pub struct Fresh {
    /// Names of the files in the folder.
    pub files: Vec<String>,
    pub parameters: u64,
    /// The type of the weights that are not quantised.
    pub dtype: Dtype,
    /// Bytes of all weights.
    pub bytes: u64,
}

/// Writes a new model of the configuration `config` (read from `path`) into the folder `dir`, which must not exist or
/// be empty, with the given further files. The weights have the type that `dtype` (or `torch_dtype`) names, else F32;
/// with `quantise`, the linears of the blocks ([`Quantised`]) are written as bitsandbytes quantises them.
/// The folder appears whole or not at all. Memory holds one tensor, or one file's worth of quantised ones.
///
/// # Errors
/// If the configuration is incomplete, of an unknown architecture or larger than the disk; if `dir` holds files; if
/// the disk fails.
pub fn write_folder(
    path: &Path,
    config: &Value,
    seed: u64,
    quantise: Option<Quantisation>,
    more: &[(String, Vec<u8>)],
    dir: &Path,
) -> Result<Fresh> {
    let config = Config { path: path.to_path_buf(), value: config };
    let model_type = config.text("model_type").ok_or_else(|| config.fail("it has no \"model_type\""))?;
    if config.get("quantization_config").is_some() {
        let what = "\"quantization_config\": a new model is not quantised; leave that out (and train on it with --storage nf4)";
        return Err(config.fail(what));
    }
    let dtype = dtype_of(&config)?;
    let params = (spec_of_type(model_type, path)?.fresh)(&config, Draw::new(&config, seed)?)?;
    let parameters = params.iter().map(|(_, param)| param.elements() as u64).sum();
    let plan = WritePlan::new(&params, dtype, quantise)?;

    let staged = stage(dir)?;
    let written = atomic::check_space(&staged, plan.bytes())
        .map_err(Error::from)
        .and_then(|()| plan.write(&staged, config.value, more))
        .and_then(|files| Ok(atomic::publish_dir(&staged, dir).map(|()| files)?));
    if written.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(&staged);
    }
    Ok(Fresh { files: written?, parameters, dtype, bytes: plan.bytes() })
}

fn dtype_of(config: &Config) -> Result<Dtype> {
    match config.text("dtype").or_else(|| config.text("torch_dtype")) {
        None | Some("float32") => Ok(Dtype::F32),
        Some("bfloat16") => Ok(Dtype::BF16),
        Some("float16") => Ok(Dtype::F16),
        Some(other) => {
            Err(config.fail(format!("\"dtype\" is \"{other}\"; a new model is float32, bfloat16 or float16")))
        }
    }
}

/// An empty folder beside `dir`, which is checked to be free.
fn stage(dir: &Path) -> Result<PathBuf> {
    let fail = |what: String| Error::Model { path: dir.to_path_buf(), what };
    let taken = dir.is_file() || std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if taken {
        return Err(fail(
            "it is there already, and a new model replaces nothing; name another folder".into(),
        ));
    }
    let name = dir.file_name().ok_or_else(|| fail("this is not the name of a folder".into()))?;
    let mut staged = std::ffi::OsString::from(".");
    staged.push(name);
    staged.push(format!(".{}", std::process::id()));
    let staged = dir.with_file_name(staged);
    std::fs::create_dir_all(&staged).map_err(|e| fail(format!("cannot create it: {e}")))?;
    Ok(staged)
}

/// The tensors of a new model in the order in which they are written, and how.
struct WritePlan<'a> {
    items: Vec<Item<'a>>,
    dtype: Dtype,
    quantise: Option<Quantisation>,
}

struct Item<'a> {
    param: &'a Param,
    quantise: Option<Quantisation>,
    bytes: u64,
}

impl<'a> WritePlan<'a> {
    fn new(params: &'a Params, dtype: Dtype, quantise: Option<Quantisation>) -> Result<WritePlan<'a>> {
        let rule = Quantised::new(&[])?;
        let item = |param: &'a Param| {
            let quantise = quantise.filter(|_| param.shape.len() == 2 && rule.includes(&param.name));
            let bytes = match quantise {
                Some(how) => how.bytes(param.weight.rows(), param.weight.cols()) as u64,
                None => dtype.byte_len(&param.shape).unwrap_or(u64::MAX),
            };
            Item { param, quantise, bytes }
        };
        Ok(WritePlan { items: params.iter().map(|(_, param)| item(param)).collect(), dtype, quantise })
    }

    fn bytes(&self) -> u64 {
        self.items.iter().fold(0, |sum, item| sum.saturating_add(item.bytes))
    }

    /// Tensors in order, as many to a file as fit.
    fn shards(&self) -> Vec<&[Item<'a>]> {
        let most = if self.quantise.is_some() { QUANTISED_SHARD_BYTES } else { SHARD_BYTES };
        let (mut shards, mut first, mut filled) = (Vec::new(), 0, 0u64);
        for (i, item) in self.items.iter().enumerate() {
            if filled > 0 && filled.saturating_add(item.bytes) > most {
                shards.push(&self.items[first..i]);
                (first, filled) = (i, 0);
            }
            filled = filled.saturating_add(item.bytes);
        }
        shards.push(&self.items[first..]);
        shards
    }

    /// Writes all files of the model; their names.
    fn write(&self, folder: &Path, config: &Value, more: &[(String, Vec<u8>)]) -> Result<Vec<String>> {
        let shards = self.shards();
        let mut files = vec![CONFIG.to_string()];
        let mut weight_map = Map::new();
        for (i, items) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => WEIGHTS.to_string(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            let names = self.write_shard(&folder.join(&name), items)?;
            weight_map.extend(names.into_iter().map(|tensor| (tensor, Value::from(name.clone()))));
            files.push(name);
        }
        if shards.len() > 1 {
            let index = json!({"metadata": {"total_size": self.bytes()}, "weight_map": weight_map});
            atomic::write_bytes(&folder.join(INDEX), json::to_python_text(&index).as_bytes())?;
            files.push(INDEX.to_string());
        }
        for (name, bytes) in more {
            atomic::write_bytes(&folder.join(name), bytes)?;
            files.push(name.clone());
        }
        let config = self.config(config);
        atomic::write_bytes(&folder.join(CONFIG), json::to_python_text(&config).as_bytes())?;
        Ok(files)
    }

    /// Writes one file; the names of its tensors.
    fn write_shard(&self, path: &Path, items: &[Item<'a>]) -> Result<Vec<String>> {
        let quantised = items.iter().filter_map(|item| {
            let layer = item.quantise.map(|how| quantised(item.param, how, original(self.dtype)))?;
            Some(layer.map(|layer| (item.param.name.as_str(), layer)))
        });
        let quantised: Vec<(&str, Layer)> = quantised.collect::<Result<_>>()?;
        let plain = items.iter().filter(|item| item.quantise.is_none());
        let mut tensors: Vec<TensorOut> = plain.map(|item| tensor(item.param, self.dtype)).collect();
        tensors.extend(quantised.iter().flat_map(|(name, layer)| layer.tensors(name)));
        let names = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        safetensors::write(path, tensors, &[("format", "pt")])?;
        Ok(names)
    }

    /// The configuration, which says how the weights are quantised.
    fn config(&self, config: &Value) -> Value {
        let mut config = config.clone();
        let (Some(how), Some(map)) = (self.quantise, config.as_object_mut()) else { return config };
        let outside =
            self.items.iter().filter(|item| item.param.shape.len() == 2 && !in_block(&item.param.name));
        let modules: Vec<&str> =
            outside.map(|item| item.param.name.strip_suffix(".weight").unwrap_or(&item.param.name)).collect();
        let ends_with = |module: &&str, ends: &[&str]| ends.iter().any(|end| module.ends_with(end));
        let mut said = QuantizationConfig::new(how.kind());
        // Language models need no word: there it is what transformers does. Other heads are named, as it would quantise them.
        if !modules.iter().all(|module| ends_with(module, &["embed_tokens", "lm_head", "wte", "wpe"])) {
            said.llm_int8_skip_modules = Some(modules.into_iter().map(String::from).collect());
        }
        map.insert(KEY.to_string(), said.to_json());
        config
    }
}

fn original(dtype: Dtype) -> Original {
    match dtype {
        Dtype::BF16 => Original::Bf16,
        Dtype::F16 => Original::F16,
        _ => Original::F32,
    }
}

/// A matrix, drawn and quantised.
fn quantised(param: &Param, how: Quantisation, original: Original) -> Result<Layer> {
    let fail = |what: String| Error::Input(format!("tensor \"{}\" cannot be quantised: {what}", param.name));
    let storage = param.weight.storage();
    let (rows, cols) = (storage.rows(), storage.cols());
    let mut values = Tensor::scratch(rows, cols);
    values
        .data_mut()
        .par_chunks_exact_mut(cols.max(1))
        .enumerate()
        .for_each(|(row, out)| storage.decode(row, 0, out));
    let made = how.quantise(rows, cols, values.data()).map_err(|e| fail(e.to_string()))?;
    drop(values);
    let parts = made.quantized().ok_or_else(|| fail(format!("{} has no parts", made.format())))?;
    Ok(layer_of(parts, original))
}

/// A parameter as files hold it: drawn, some rows at a time, when its turn comes.
fn tensor(param: &Param, dtype: Dtype) -> TensorOut<'_> {
    let (rows, cols) = (param.weight.rows(), param.weight.cols());
    let turned = param.layout == Layout::Turned;
    let (file_rows, file_cols) = if turned { (cols, rows) } else { (rows, cols) };
    let shape = param.file_shape();
    let storage = param.weight.storage();
    let row_of = move |row: usize, out: &mut [f32]| match turned {
        true => out.chunks_exact_mut(1).enumerate().for_each(|(r, out)| storage.decode(r, row, out)),
        false => storage.decode(row, 0, out),
    };
    let stream = move |out: &mut dyn Write| {
        let at_once = (DRAWN / file_cols.max(1)).max(1);
        let task = (TASK / file_cols.max(1)).max(1);
        for first in (0..file_rows).step_by(at_once) {
            let last = (first + at_once).min(file_rows);
            let starts: Vec<usize> = (first..last).step_by(task).collect();
            let pieces = starts.par_iter().map(|&start| {
                let n = task.min(last - start);
                let mut values = vec![0.0; n * file_cols];
                let rows = values.chunks_exact_mut(file_cols.max(1)).enumerate();
                rows.for_each(|(i, out)| row_of(start + i, out));
                encode(format_of(dtype), n, file_cols, &values)
            });
            let pieces = pieces.collect::<std::result::Result<Vec<_>, _>>();
            let fail = |what: String| FormatError::Write { path: PathBuf::from(&param.name), what };
            for piece in pieces.map_err(|e| fail(e.to_string()))? {
                out.write_all(&piece).map_err(FormatError::io(Path::new(&param.name), "write the tensor"))?;
            }
        }
        Ok(())
    };
    TensorOut { name: param.name.clone(), dtype, shape, data: Data::Stream(Box::new(stream)) }
}

fn format_of(dtype: Dtype) -> Format {
    match dtype {
        Dtype::BF16 => Format::BF16,
        Dtype::F16 => Format::F16,
        _ => Format::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Model, StorageChoice};
    use serde_json::json;

    fn config(model_type: &str) -> Value {
        json!({
            "model_type": model_type, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
            "tie_word_embeddings": true, "initializer_range": 0.5, "attention_bias": true
        })
    }

    fn write(config: &Value, seed: u64, dir: &Path) -> Result<Fresh> {
        write_folder(Path::new("config.json"), config, seed, None, &[], dir)
    }

    #[test]
    fn a_new_model_loads_and_is_the_seeds() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
        for model_type in ["llama", "mistral", "qwen2", "qwen3"] {
            for (dir, seed) in [(&a, 1), (&b, 1), (&c, 2)] {
                write(&config(model_type), seed, dir).unwrap();
                Model::load(dir, StorageChoice::F32).unwrap();
            }
            let [x, y, z] = [&a, &b, &c].map(|dir| std::fs::read(dir.join(WEIGHTS)).unwrap());
            assert!(x == y && x != z);
            let _ = [&a, &b, &c].map(|dir| std::fs::remove_dir_all(dir).unwrap());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
    }

    #[test]
    fn encoders_and_gpt2_too() {
        let folder = tempfile::tempdir().unwrap();
        let bert = json!({
            "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 60, "max_position_embeddings": 40
        });
        let mut classifier = bert.clone();
        classifier["architectures"] = json!(["BertForSequenceClassification"]);
        classifier["id2label"] = json!({"0": "no", "1": "yes", "2": "perhaps"});
        let mut tagger = classifier.clone();
        tagger["architectures"] = json!(["BertForTokenClassification"]);
        let mut roberta = bert.clone();
        roberta["model_type"] = "roberta".into();
        let distil = json!({
            "model_type": "distilbert", "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 60
        });
        let gpt2 = json!({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60});
        let all = [(bert, 60), (classifier, 3), (tagger, 3), (roberta, 60), (distil, 60), (gpt2, 60)];
        for (i, (config, width)) in all.iter().enumerate() {
            let dir = folder.path().join(i.to_string());
            write(config, 1, &dir).unwrap_or_else(|e| panic!("{config}: {e}"));
            let model = Model::load(&dir, StorageChoice::F32).unwrap_or_else(|e| panic!("{config}: {e}"));
            let last = model.net.head().linears().last().map(|linear| linear.out_features);
            assert_eq!(last, Some(*width), "{config}");
        }
    }

    #[test]
    fn tensors_have_their_spread() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        write(&config("llama"), 3, &dir).unwrap();
        let model = Model::load(&dir, StorageChoice::F32).unwrap();
        let get = |name: &str| {
            let id = model.params.find(name).unwrap();
            model.params.get(id).weight.to_tensor().data().to_vec()
        };
        let std = |xs: &[f32]| (xs.iter().map(|x| x * x).sum::<f32>() / xs.len() as f32).sqrt();
        assert!((std(&get("model.embed_tokens.weight")) - 0.5).abs() < 0.02);
        assert!((std(&get("model.layers.1.mlp.down_proj.weight")) - 0.25).abs() < 0.02);
        assert!(get("model.layers.0.input_layernorm.weight").iter().all(|x| *x == 1.0));
        assert!(get("model.layers.0.self_attn.q_proj.bias").iter().all(|x| *x == 0.0));
    }

    #[test]
    fn what_cannot_be_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        let mut huge = config("llama");
        huge["vocab_size"] = (4 << 20).into();
        huge["hidden_size"] = (1 << 20).into();
        huge["num_attention_heads"] = 4096.into();
        huge["num_key_value_heads"] = 4096.into();
        assert!(write(&huge, 1, &dir).unwrap_err().to_string().contains("bytes are to be written"));
        let mut endless = config("llama");
        endless["vocab_size"] = (1u64 << 62).into();
        assert!(write(&endless, 1, &dir).is_err());
        assert!(write(&config("gpt9"), 1, &dir).unwrap_err().to_string().contains("gpt9"));
        let mut odd = config("llama");
        odd["dtype"] = "int4".into();
        assert!(write(&odd, 1, &dir).unwrap_err().to_string().contains("int4"));
        let mut quantised = config("llama");
        quantised["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
        assert!(write(&quantised, 1, &dir).unwrap_err().to_string().contains("--storage nf4"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("mine"), "x").unwrap();
        assert!(write(&config("llama"), 1, &dir).is_err());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    }

    /// What a quantised folder holds is what the plain one of the same seed is quantised to.
    #[test]
    fn quantised_as_if_it_had_been_written_before() {
        let folder = tempfile::tempdir().unwrap();
        let gpt2 = json!({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60});
        for (i, config) in [config("llama"), gpt2].iter().enumerate() {
            for name in Quantisation::NAMES {
                let how = Quantisation::from_name(name, true).unwrap();
                let [plain, small] =
                    ["plain", "small"].map(|kind| folder.path().join(format!("{kind}{i}{name}")));
                write(config, 7, &plain).unwrap();
                let path = Path::new("config.json");
                let made = write_folder(path, config, 7, Some(how), &[], &small).unwrap();
                let load = |dir: &Path, storage: StorageChoice| Model::load(dir, storage).unwrap();
                let quantised = load(&plain, StorageChoice::Quantised(how));
                let read = load(&small, StorageChoice::AsIs);
                let mut seen = 0;
                for ((_, a), (_, b)) in quantised.params.iter().zip(read.params.iter()) {
                    assert_eq!(a.weight.storage().format(), b.weight.storage().format(), "{}", a.name);
                    assert_eq!(a.weight.to_tensor().data(), b.weight.to_tensor().data(), "{}", a.name);
                    seen += usize::from(b.weight.storage().quantized().is_some());
                }
                assert!(seen >= 8, "{seen} quantised matrices of {name}");
                assert_eq!(
                    made.parameters,
                    write(config, 7, &folder.path().join(format!("{i}{name}"))).unwrap().parameters
                );
            }
        }
    }

    #[test]
    fn large_models_are_cut_into_files() {
        let folder = tempfile::tempdir().unwrap();
        let value = config("llama");
        let config = Config { path: "config.json".into(), value: &value };
        let params =
            (spec_of_type("llama", &config.path).unwrap().fresh)(&config, Draw::new(&config, 1).unwrap())
                .unwrap();
        let plan = WritePlan::new(&params, Dtype::F32, None).unwrap();
        let mut cut = WritePlan::new(&params, Dtype::F32, None).unwrap();
        // As if the tables were as large as a file.
        cut.items
            .iter_mut()
            .filter(|item| item.param.name.contains("up_proj"))
            .for_each(|item| item.bytes = SHARD_BYTES);
        assert_eq!((plan.shards().len(), cut.shards().len()), (1, 5));
        let files = cut.write(folder.path(), &value, &[]).unwrap();
        assert!(files.contains(&INDEX.to_string()) && files.len() == 7, "{files:?}");
        let whole = folder.path().join("whole");
        write(&value, 1, &whole).unwrap();
        let [a, b] = [folder.path(), &whole].map(|dir| Model::load(dir, StorageChoice::F32).unwrap());
        for ((_, a), (_, b)) in a.params.iter().zip(b.params.iter()) {
            assert_eq!(a.weight.to_tensor().data(), b.weight.to_tensor().data(), "{}", a.name);
        }
    }
}
