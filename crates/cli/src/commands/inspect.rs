//! `retune inspect`: what a file or folder is, what is in it, and what could be trained on it.

mod adapters;
mod data;
mod lines;
mod models;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use retune::run_file::RunFile;
use retune_formats::folder::is_model_folder;
use retune_formats::records::EXTENSIONS;
use retune_formats::{TensorInfo, TensorSource, bitsandbytes, gguf, gguf_lora, safetensors};
use serde_json::{Map, Value, json};

use crate::style::{bold, count, dim, megabytes};
use lines::{Line, without_layer};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune inspect model.gguf
  retune inspect out                  an adapter folder
  retune inspect yolov3-tiny.cfg      a detector: its classes, its layers by number
  retune inspect photos               pictures in folders by class, or with boxes
  retune inspect model.gguf --tensors every tensor, not only a summary")]
pub struct Args {
    /// A model (folder, .gguf, .onnx, .pth, .cfg, ...), an adapter, a .safetensors file, rows of data or a folder of pictures
    path: PathBuf,

    /// List every tensor instead of one line for all layers
    #[arg(long)]
    tensors: bool,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let found = look_at(&args.path)?;
    let mut out = stdout().lock();
    if json {
        writeln!(out, "{}", found.to_json())?;
    } else {
        found.print(&mut out, args.tensors)?;
    }
    Ok(())
}

/// What is known, by name, in the order in which it is told.
type Facts = Vec<(&'static str, String)>;

/// What is known of a path: facts in order, then the tensors.
struct Found {
    kind: &'static str,
    path: PathBuf,
    is_model: bool,
    /// Every layer has shapes of its own, as in networks over pixels.
    layers_differ: bool,
    facts: Facts,
    tensors: Vec<Listed>,
}

/// A tensor of a file, or a weight whose parts are several.
struct Listed {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    values: u64,
    bytes: u64,
}

impl From<&TensorInfo> for Listed {
    fn from(info: &TensorInfo) -> Listed {
        let (name, shape) = (info.name.clone(), info.shape.clone());
        Listed { name, shape, dtype: info.dtype.name().into(), values: info.numel(), bytes: info.byte_len() }
    }
}

/// The tensors of a file; what bitsandbytes quantised is one weight with all its parts.
fn listed(source: &dyn TensorSource) -> Result<Vec<Listed>> {
    let mut out = Vec::new();
    let mut parts = BTreeSet::new();
    for info in source.tensors() {
        let entry = match bitsandbytes::owner(&info.name) {
            None => bitsandbytes::find(source, &info.name)?,
            Some(_) => None,
        };
        let Some(entry) = entry else {
            out.push(Listed::from(info));
            continue;
        };
        let bytes = entry.tensors().filter_map(|part| source.find(part)).map(TensorInfo::byte_len).sum();
        parts.extend(entry.tensors().filter(|part| *part != info.name).map(str::to_string));
        out.push(Listed {
            name: info.name.clone(),
            shape: entry.shape().to_vec(),
            dtype: entry.kind().name(),
            values: entry.numel(),
            bytes,
        });
    }
    out.retain(|tensor| !parts.contains(&tensor.name));
    Ok(out)
}

fn look_at(path: &Path) -> Result<Found> {
    let meta = std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    if meta.is_dir() {
        return match path {
            _ if is_model_folder(path) => models::look_at(path),
            _ if adapters::is_folder(path) => adapters::look_at(path),
            _ => data::pictures(path),
        };
    }
    match path.extension().map(|ext| ext.to_string_lossy().to_ascii_lowercase()).as_deref() {
        _ if gguf::File::is_gguf(path) => match gguf_lora::is_adapter(&gguf::File::open(path)?) {
            true => adapters::look_at(path),
            false => models::look_at(path),
        },
        Some("safetensors") => models::look_at(path).or_else(|_| safetensors_file(path)),
        Some("cfg" | "weights" | "onnx" | "pth" | "pt" | "bin") => models::look_at(path),
        Some("yaml" | "yml") => data::pictures(path),
        Some(extension) if EXTENSIONS.contains(&extension) => data::rows(path),
        _ => bail!(
            "{}: not a kind of file that Retune knows: .gguf, .safetensors, .onnx, .pth, .pt, darknet's .cfg or .weights, .jsonl, \
             .json, .csv, .tsv, .txt, .yaml, or a folder of a model, an adapter or pictures",
            path.display()
        ),
    }
}

fn safetensors_file(path: &Path) -> Result<Found> {
    let file = safetensors::File::open(path)?;
    let facts = file.metadata().iter().map(|(key, value)| ("metadata", format!("{key}: {value}"))).collect();
    Ok(Found {
        kind: "safetensors file",
        is_model: false,
        layers_differ: false,
        path: path.into(),
        facts,
        tensors: listed(&file)?,
    })
}

/// The keys that an object has, as facts.
fn facts_of(config: &Value, keys: &[(&'static str, &str)]) -> Facts {
    let shown = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(n) => Some(n.as_u64().map_or_else(|| n.to_string(), count)),
        Value::Bool(on) => Some(if *on { "yes".into() } else { "no".into() }),
        Value::Array(items) => {
            let mut names: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            names.sort_unstable();
            Some(names.join(", "))
        }
        _ => None,
    };
    keys.iter().filter_map(|(name, key)| Some((*name, shown(config.get(key)?)?))).collect()
}

impl Found {
    fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.values).sum()
    }

    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Tensors and bytes of each type.
    fn types(&self) -> BTreeMap<&str, (u64, u64)> {
        let mut types = BTreeMap::new();
        for tensor in &self.tensors {
            let (tensors, bytes) = types.entry(tensor.dtype.as_str()).or_insert((0, 0));
            *tensors += 1;
            *bytes += tensor.bytes;
        }
        types
    }

    /// Values of a LoRA with the default settings on a model: rank x (in + out) for each matrix of a layer.
    fn trained_by_lora(&self) -> Option<u64> {
        if !self.is_model {
            return None;
        }
        let rank = u64::from(RunFile::default().lora.rank);
        let of = |tensor: &Listed| match tensor.shape.as_slice() {
            _ if without_layer(&tensor.name) == tensor.name => 0,
            [rows, cols] => rank * (rows + cols) as u64,
            // A convolution; one of each channel by itself has no LoRA.
            [out, inp, h, w] if *inp > 1 => rank * (out + inp * h * w) as u64,
            _ => 0,
        };
        Some(self.tensors.iter().map(of).sum())
    }

    fn to_json(&self) -> Value {
        let facts: Map<String, Value> = self.facts.iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
        let tensors: Vec<Value> = self
            .tensors
            .iter()
            .map(|t| json!({"name": t.name, "shape": t.shape, "dtype": t.dtype, "bytes": t.bytes}))
            .collect();
        json!({
            "path": self.path.display().to_string(),
            "kind": self.kind,
            "facts": facts,
            "parameters": self.parameters(),
            "bytes": self.bytes(),
            "lora_parameters": self.trained_by_lora(),
            "tensors": tensors,
        })
    }

    fn print(&self, out: &mut impl Write, every_tensor: bool) -> Result<()> {
        writeln!(out, "{}  {}", bold(&self.path.display().to_string()), dim(self.kind))?;
        for (name, value) in &self.facts {
            let value: String = value.chars().filter(|c| !c.is_control()).take(200).collect();
            writeln!(out, "  {name:<16} {value}")?;
        }
        if self.tensors.is_empty() {
            return Ok(());
        }
        let (parameters, tensors) = (count(self.parameters()), self.tensors.len());
        writeln!(out, "  {:<16} {parameters} in {tensors} tensors", "parameters")?;
        let types: Vec<String> = self
            .types()
            .iter()
            .map(|(name, (n, bytes))| format!("{n} x {name} ({})", megabytes(*bytes)))
            .collect();
        writeln!(out, "  {:<16} {}", "stored as", types.join(", "))?;
        if let Some(trained) = self.trained_by_lora() {
            let share = 100.0 * trained as f64 / self.parameters().max(1) as f64;
            let rank = RunFile::default().lora.rank;
            let trained = count(trained);
            writeln!(
                out,
                "  {:<16} {trained} parameters with lora, rank {rank} ({share:.1} %)",
                "would train"
            )?;
        }
        writeln!(out)?;
        let lines = match self.layers_differ {
            _ if every_tensor => lines::of_tensors(&self.tensors),
            true => lines::of_layers(&self.tensors),
            false => lines::of_like_layers(&self.tensors),
        };
        let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        let shapes: Vec<String> = lines.iter().map(|line| format!("{:?}", line.shape)).collect();
        let wide = shapes.iter().map(String::len).max().unwrap_or(0);
        for (Line { name, rest, .. }, shape) in lines.iter().zip(shapes) {
            writeln!(out, "  {name:<width$}  {shape:<wide$}  {rest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_one_line() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/parity/llama_base_full");
        let found = look_at(&data).unwrap();
        assert_eq!(lines::of_like_layers(&found.tensors).len(), 11);
        assert_eq!(lines::of_tensors(&found.tensors).len(), 20);
        assert!(found.facts.contains(&("architecture", "llama".into())));
    }

    #[test]
    fn a_quantised_weight_is_one_line_with_all_its_bytes() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/parity");
        let [plain, quantised] =
            ["llama_base_full", "llama_nf4"].map(|name| look_at(&data.join(name)).unwrap());
        assert_eq!(quantised.parameters(), plain.parameters());
        assert_eq!(lines::of_tensors(&quantised.tensors).len(), 20);
        assert_eq!(quantised.types()["nf4+dq"].0, 14);
        assert_eq!(quantised.trained_by_lora(), plain.trained_by_lora());
        let said = ("quantised", "nf4 with double quantisation, by bitsandbytes".to_string());
        assert!(quantised.facts.contains(&said));
        let file = std::fs::metadata(data.join("llama_nf4/model.safetensors")).unwrap().len();
        assert!(quantised.bytes() < file && quantised.bytes() * 5 > file * 4);
    }
}
