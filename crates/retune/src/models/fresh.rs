//! New models from nothing but a configuration and a seed: matrices `N(0, std)`, norms 1, biases 0.
//!
//! `std` is `initializer_range` (0.02 if absent). Projections into the residual stream have `std / sqrt(2 L)`, L layers,
//! so that its variance does not grow with depth (Radford et al., 2019). Each value depends on the seed, its tensor's
//! name and its place alone.

use std::path::{Path, PathBuf};

use retune_formats::source::Data;
use retune_formats::{Dtype, TensorOut, atomic, json, safetensors};
use retune_tensor::params::Param;
use retune_tensor::rng::Stream;
use retune_tensor::{Params, Tensor};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::spec_of_type;
use crate::train::available_memory;

const DEFAULT_STD: f64 = 0.02;
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// Draws tensors by their names.
pub struct Draw<'a> {
    seed: u64,
    std: f32,
    /// Ends of the names that are scaled down, and by what.
    residual: (&'static [&'static str], f32),
    /// Bytes that may still be drawn, and who says so.
    left: u64,
    limit: String,
    /// The configuration, for messages.
    path: &'a Path,
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
        Ok(Draw { seed, std, residual: (&[], 1.0), left, limit, path: &config.path })
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
        self.take(name, len, 1)?;
        Ok(vec![if name.ends_with(".bias") { 0.0 } else { 1.0 }; len])
    }

    /// A matrix `[rows, cols]`.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.take(name, rows, cols)?;
        let (ends, scale) = self.residual;
        let std = if ends.iter().any(|end| name.ends_with(end)) { self.std * scale } else { self.std };
        let stream = Stream::named(self.seed, name);
        let values = (0..rows as u64 * cols as u64).map(|i| std * stream.normal(i)).collect();
        Ok(Tensor::from_vec(rows, cols, values))
    }

    /// A configuration of a few bytes must not decide how much is allocated.
    fn take(&mut self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let bytes = (rows as u64).saturating_mul(cols as u64).saturating_mul(4);
        self.left = self.left.checked_sub(bytes).ok_or_else(|| Error::Model {
            path: self.path.to_path_buf(),
            what: format!(
                "tensor \"{name}\" of {rows} x {cols} goes beyond {}; make the model smaller",
                self.limit
            ),
        })?;
        Ok(())
    }
}

/// What [`write_folder`] made.
#[derive(Clone, Debug, PartialEq)]
pub struct Fresh {
    /// Names of the files in the folder.
    pub files: Vec<String>,
    pub parameters: u64,
    pub dtype: Dtype,
}

/// Writes a new model of the configuration `config` (read from `path`) into the folder `dir`, which must not exist or
/// be empty, with the given further files. The weights have the type that `dtype` (or `torch_dtype`) names, else F32.
/// The folder appears whole or not at all.
///
/// # Errors
/// If the configuration is incomplete, of an unknown architecture or larger than the memory; if `dir` holds files; if
/// the disk fails.
pub fn write_folder(
    path: &Path,
    config: &Value,
    seed: u64,
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

    let staged = stage(dir)?;
    let written = write_files(&staged, &params, dtype, config.value, more)
        .and_then(|files| Ok(atomic::publish_dir(&staged, dir).map(|()| files)?));
    if written.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(&staged);
    }
    Ok(Fresh { files: written?, parameters, dtype })
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

/// A parameter's name, shape and values as files hold them.
fn in_files(param: &Param) -> (&str, Vec<usize>, Tensor) {
    let values = param.weight.to_tensor();
    if !param.transposed {
        return (&param.name, param.shape.clone(), values);
    }
    let (rows, cols) = (values.rows(), values.cols());
    let turned = Tensor::from_fn(cols, rows, |r, c| values.row(c)[r]);
    (&param.name, vec![cols, rows], turned)
}

fn write_files(
    folder: &Path,
    params: &Params,
    dtype: Dtype,
    config: &Value,
    more: &[(String, Vec<u8>)],
) -> Result<Vec<String>> {
    let tensors: Vec<(&str, Vec<usize>, Tensor)> = params.iter().map(|(_, param)| in_files(param)).collect();
    let out = tensors.iter().map(|(name, shape, values)| TensorOut {
        name: name.to_string(),
        dtype,
        shape: shape.clone(),
        data: Data::F32(values.data().into()),
    });
    safetensors::write(&folder.join(WEIGHTS), out, &[("format", "pt")])?;
    let mut files = vec![CONFIG.to_string(), WEIGHTS.to_string()];
    for (name, bytes) in more {
        atomic::write_bytes(&folder.join(name), bytes)?;
        files.push(name.clone());
    }
    atomic::write_bytes(&folder.join(CONFIG), json::to_python_text(config).as_bytes())?;
    Ok(files)
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
        write_folder(Path::new("config.json"), config, seed, &[], dir)
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
        assert!(write(&huge, 1, &dir).unwrap_err().to_string().contains("model.embed_tokens.weight"));
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
}
