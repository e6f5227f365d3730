//! An adapter folder of mlx-lm: `adapter_config.json` (the arguments of the training command) and `adapters.safetensors`.
//!
//! Keys: path of the module and `lora_a` (in, r), `lora_b` (r, out), with DoRA `m` (out): transposed against PEFT.
//! `y += scale (x a) b` with one absolute scale for all, and one rank.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, quote};
use crate::fields::{Fields, number};
use crate::lora_tensors::{LoraModule, LoraTensors, most_common_number, transposed};
use crate::peft::{self, Producer, identify};
use crate::source::{TensorOut, TensorSource};
use crate::{atomic, json as json_file, limits, safetensors};

const FORMAT: &str = "mlx-lm adapter";
/// The name of the configuration in a folder.
pub const CONFIG: &str = peft::CONFIG;
/// The name of the weights in a folder.
pub const WEIGHTS: &str = "adapters.safetensors";

/// Reads a folder. Notes worth showing come with it.
///
/// # Errors
/// If a file is damaged, a tensor is missing, not expected or of another rank than the configuration says, or the
/// folder holds a full fine-tuning or a LoRA of an embedding.
pub fn read(folder: &Path) -> Result<LoraTensors> {
    let path = folder.join(CONFIG);
    let value = json_file::read(&path, limits::CONFIG_BYTES)?;
    let settings = Settings::from_json(&path, &value)?;
    from_source(folder, &settings, &safetensors::File::open(folder.join(WEIGHTS))?)
}

/// What the configuration says that matters.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub rank: usize,
    pub scale: f64,
    pub dora: bool,
    /// Paths within a layer, or whole ones; `None`: all linear layers.
    pub keys: Option<Vec<String>>,
}

impl Settings {
    /// Reads an `adapter_config.json`; `path` is for messages.
    pub fn from_json(path: &Path, value: &Value) -> Result<Settings> {
        let kind = match identify(value) {
            Producer::Mlx(kind) => kind,
            other => {
                let what = format!("this is not an mlx-lm adapter but {other:?}");
                return Err(Error::unsupported(path, what, "give the folder that mlx_lm.lora wrote"));
            }
        };
        if !["lora", "dora"].contains(&kind.as_str()) {
            let what = format!("its fine_tune_type is {}", quote(&kind));
            return Err(Error::unsupported(path, what, "`lora` and `dora` are read"));
        }
        let empty = Map::new();
        let parameters = value.get("lora_parameters").and_then(Value::as_object).unwrap_or(&empty);
        let mut f = Fields::new(path, parameters);
        Ok(Settings {
            // mlx-lm's own defaults.
            rank: f.rank("rank")?.unwrap_or(8),
            scale: f.number("scale")?.unwrap_or(20.0),
            dora: kind == "dora",
            keys: f.strings("keys")?,
        })
    }
}

/// The factors in a file; `folder` is for messages.
pub fn from_source(folder: &Path, settings: &Settings, source: &dyn TensorSource) -> Result<LoraTensors> {
    let invalid = |what: String| Error::invalid(source.path(), FORMAT, what);
    let mut found: BTreeMap<&str, BTreeMap<&str, &crate::TensorInfo>> = BTreeMap::new();
    for info in source.tensors() {
        let parts = info.name.rsplit_once('.').filter(|(_, p)| ["lora_a", "lora_b", "m"].contains(p));
        let (module, param) =
            parts.ok_or_else(|| invalid(format!("tensor {} is not of a LoRA", quote(&info.name))))?;
        if module.rsplit('.').next().is_some_and(|last| last == "embed_tokens" || last == "wte") {
            let what = format!("tensor {} is of an embedding", quote(&info.name));
            return Err(Error::unsupported(source.path(), what, "only linear layers can be carried over"));
        }
        found.entry(module).or_default().insert(param, info);
    }
    let mut modules = BTreeMap::new();
    for (module, params) in found {
        let shown = quote(module);
        let get = |param: &str| {
            params.get(param).copied().ok_or_else(|| invalid(format!("module {shown} has no {param}")))
        };
        let (a, b) = (get("lora_a")?, get("lora_b")?);
        let (inputs, outputs) = match (a.shape.as_slice(), b.shape.as_slice()) {
            (&[inputs, r], &[also, outputs]) if r == settings.rank && also == r => (inputs, outputs),
            _ => {
                let r = settings.rank;
                let (a, b) = (&a.shape, &b.shape);
                return Err(invalid(format!(
                    "module {shown} has {a:?} and {b:?}, not (in, {r}) and ({r}, out)"
                )));
            }
        };
        if settings.dora != params.contains_key("m") {
            let has = if settings.dora { "lacks" } else { "has" };
            return Err(invalid(format!(
                "module {shown} {has} m, but it is {}a DoRA",
                if settings.dora { "" } else { "not " }
            )));
        }
        let magnitude = match params.get("m") {
            Some(m) if m.shape != [outputs] => {
                return Err(invalid(format!(
                    "module {shown} has m of shape {:?}, [{outputs}] was due",
                    m.shape
                )));
            }
            Some(m) => Some(read_finite(source, m)?),
            None => None,
        };
        let r = settings.rank;
        let (a, b) = (read_finite(source, a)?, read_finite(source, b)?);
        let (a, b) = (transposed(&a, inputs, r), transposed(&b, r, outputs));
        let scale = settings.scale;
        modules.insert(module.to_string(), LoraModule { r, inputs, outputs, a, b, scale, magnitude });
    }
    if modules.is_empty() {
        return Err(invalid("it holds no tensors".into()));
    }
    Ok(LoraTensors { path: folder.to_path_buf(), modules })
}

fn read_finite(source: &dyn TensorSource, info: &crate::TensorInfo) -> Result<Vec<f32>> {
    peft::check_finite(source, info)?;
    source.read_f32(&info.name)
}

/// Writes a folder that mlx-lm reads: smaller ranks are filled up with zeros, scales that are not the most common one go
/// into B. `layers` is the number of layers of the base (mlx-lm counts from the last); `model` its name.
///
/// # Errors
/// If there is nothing to write, a module is not named as in Llama-like models (the only ones whose names are the same in
/// mlx-lm), only some modules have DoRA's magnitudes, or the folder cannot be written.
pub fn write(folder: &Path, lora: &LoraTensors, layers: Option<usize>, model: Option<&str>) -> Result<()> {
    let weights = folder.join(WEIGHTS);
    lora.check(&weights)?;
    if let Some(odd) = lora.modules.keys().find(|m| !m.starts_with("model.layers.") && *m != "lm_head") {
        let what = format!("mlx-lm's name of module {} is not known", quote(odd));
        return Err(Error::unsupported(
            &lora.path,
            what,
            "adapters of Llama-like models can be written for it",
        ));
    }
    let dora = lora.all_or_no_magnitudes()?;
    let rank = lora.modules.values().map(|m| m.r).max().unwrap_or(1);
    let scale =
        most_common_number(lora.modules.values().map(|m| m.scale)).filter(|s| *s != 0.0).unwrap_or(1.0);
    let mut tensors = Vec::new();
    for (path, module) in &lora.modules {
        let m = module.padded(rank);
        let (a, b) = (transposed(&m.a, rank, m.inputs), transposed(&m.b_for(scale), m.outputs, rank));
        tensors.push(TensorOut::f32(format!("{path}.lora_a"), &[m.inputs, rank], a));
        tensors.push(TensorOut::f32(format!("{path}.lora_b"), &[rank, m.outputs], b));
        if let Some(magnitude) = m.magnitude {
            tensors.push(TensorOut::f32(format!("{path}.m"), &[m.outputs], magnitude));
        }
    }
    let (first, keys) = layers_and_keys(lora.modules.keys());
    let config = json!({
        "fine_tune_type": if dora { "dora" } else { "lora" },
        "model": model,
        // -1: all of them.
        "num_layers": layers.zip(first).map_or(-1, |(layers, first)| layers.saturating_sub(first) as i64),
        "lora_parameters": {"rank": rank, "scale": number(scale), "dropout": 0.0, "keys": keys},
    });
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    safetensors::write(&weights, tensors, &[])?;
    atomic::write_bytes(&folder.join(CONFIG), json_file::to_python_text(&config).as_bytes())
}

/// The first layer that is adapted, and the paths within a layer (whole ones outside of the layers).
fn layers_and_keys<'a>(paths: impl Iterator<Item = &'a String>) -> (Option<usize>, Vec<&'a str>) {
    let mut first: Option<usize> = None;
    let mut keys: Vec<&str> = Vec::new();
    for path in paths {
        let parts = path.split_once(".layers.").and_then(|(_, rest)| rest.split_once('.'));
        let key = match parts.and_then(|(layer, key)| Some((layer.parse::<usize>().ok()?, key))) {
            Some((layer, key)) => {
                first = Some(first.map_or(layer, |first| first.min(layer)));
                key
            }
            None => path,
        };
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_unstable();
    (first, keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora_tensors::tests::{example, product};

    #[test]
    fn what_is_written_has_the_same_products() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &example(), Some(4), Some("base")).unwrap();
        let config = json_file::read(&dir.path().join(CONFIG), 1 << 20).unwrap();
        assert_eq!(config["num_layers"], 4);
        assert_eq!(
            config["lora_parameters"],
            json!({"rank": 3, "scale": 4, "dropout": 0.0, "keys": ["mlp.up_proj", "self_attn.q_proj"]})
        );
        let again = read(dir.path()).unwrap();
        for (path, m) in &example().modules {
            for (x, y) in product(m).iter().zip(product(&again.modules[path])) {
                assert!((x - y).abs() < 1e-6 * (1.0 + x.abs()), "{path}");
            }
        }
        let file = safetensors::File::open(dir.path().join(WEIGHTS)).unwrap();
        assert_eq!(file.get("model.layers.1.mlp.up_proj.lora_a").unwrap().shape, [3, 3]);
        assert_eq!(file.get("model.layers.1.mlp.up_proj.lora_b").unwrap().shape, [3, 2]);
    }

    #[test]
    fn modules_that_mlx_names_otherwise_are_refused() {
        let mut lora = example();
        let module = lora.modules.pop_first().unwrap().1;
        lora.modules.insert("transformer.h.0.attn.c_attn".into(), module);
        let message = write(Path::new("nowhere"), &lora, None, None).unwrap_err().to_string();
        assert!(message.contains("transformer.h.0.attn.c_attn"), "{message}");
    }

    #[test]
    fn magnitudes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut lora = example();
        lora.modules.values_mut().for_each(|m| m.magnitude = Some(vec![0.5, 2.0]));
        write(dir.path(), &lora, None, None).unwrap();
        let again = read(dir.path()).unwrap();
        assert!(again.modules.values().all(|m| m.magnitude == Some(vec![0.5, 2.0])));
        assert_eq!(
            identify(&json_file::read(&dir.path().join(CONFIG), 1 << 20).unwrap()),
            Producer::Mlx("dora".into())
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let settings = Settings { rank: 2, scale: 20.0, dora: false, keys: None };
        let open = |tensors: &[(&str, &[usize])]| {
            let out =
                tensors.iter().map(|(n, s)| TensorOut::f32(n.to_string(), s, vec![1.0; s.iter().product()]));
            let bytes = safetensors::to_bytes(out, &[]).unwrap();
            let file = safetensors::File::from_memory("w", bytes).unwrap();
            from_source(Path::new("."), &settings, &file)
        };
        let (a, b): ((&str, &[usize]), (&str, &[usize])) = (("q.lora_a", &[4, 2]), ("q.lora_b", &[2, 3]));
        assert_eq!(open(&[a, b]).unwrap().modules["q"].scale, 20.0);
        let cases: &[(&[(&str, &[usize])], &str)] = &[
            (&[a], "has no lora_b"),
            (&[], "no tensors"),
            (&[a, b, ("q.m", &[3])], "not a DoRA"),
            (&[("q.lora_a", &[4, 3]), ("q.lora_b", &[3, 3])], "not (in, 2)"),
            (&[a, b, ("q.weight", &[3])], "`q.weight` is not of a LoRA"),
            (&[("embed_tokens.lora_a", &[4, 2])], "is of an embedding"),
        ];
        for (tensors, word) in cases {
            let message = open(tensors).unwrap_err().to_string();
            assert!(message.starts_with("w: ") && message.contains(word), "{message}");
        }
        let full = json!({"fine_tune_type": "full", "num_layers": 2, "lora_parameters": {}});
        assert!(Settings::from_json(Path::new("c"), &full).unwrap_err().to_string().contains("`full`"));
        let peft = json!({"peft_type": "LORA"});
        assert!(
            Settings::from_json(Path::new("c"), &peft).unwrap_err().to_string().contains("not an mlx-lm")
        );
    }
}
