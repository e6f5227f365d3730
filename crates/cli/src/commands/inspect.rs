//! `retune inspect`: what a file or folder is, what is in it, and what could be trained on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use retune::run_file::RunFile;
use retune_formats::bitsandbytes::{self, QuantizationConfig};
use retune_formats::folder::{ModelFolder, is_model_folder};
use retune_formats::peft::{PeftAdapter, is_adapter_folder};
use retune_formats::records::{EXTENSIONS, Records};
use retune_formats::{TensorInfo, TensorSource, gguf, json, limits, safetensors};
use serde_json::{Map, Value, json};

use crate::style::{bold, count, dim, megabytes};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune inspect model.gguf
  retune inspect out                  an adapter folder
  retune inspect model.gguf --tensors every tensor, not only a summary")]
pub struct Args {
    /// A model (folder or .gguf), an adapter folder, a .safetensors file or a data file
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

/// What is known of a path: facts in order, then the tensors.
struct Found {
    kind: &'static str,
    path: PathBuf,
    is_model: bool,
    facts: Vec<(&'static str, String)>,
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

/// What a folder's configuration says of its quantisation.
fn quantisation(folder: &ModelFolder) -> Option<(&'static str, String)> {
    let path = folder.path().join("config.json");
    match QuantizationConfig::of(&path, folder.config()) {
        Ok(config) => config.map(|config| ("quantised", format!("{}, by bitsandbytes", config.describe()))),
        Err(_) => {
            let method = folder.config().get("quantization_config")?.get("quant_method")?.as_str()?;
            Some(("quantised", format!("by {method}, which Retune cannot read")))
        }
    }
}

fn look_at(path: &Path) -> Result<Found> {
    let meta = std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    if meta.is_dir() {
        return match path {
            _ if is_adapter_folder(path) => adapter_folder(path),
            _ if is_model_folder(path) => model_folder(path),
            _ => bail!(
                "{}: neither a model folder (config.json) nor an adapter folder (adapter_config.json)",
                path.display()
            ),
        };
    }
    match path.extension().map(|ext| ext.to_string_lossy().to_ascii_lowercase()).as_deref() {
        _ if gguf::File::is_gguf(path) => gguf_file(path),
        Some("safetensors") => safetensors_file(path),
        Some(extension) if EXTENSIONS.contains(&extension) => data_file(path),
        _ => bail!(
            "{}: not a kind of file that Retune knows: .gguf, .safetensors, .jsonl, .json, .csv, .tsv, .txt, or a folder with config.json",
            path.display()
        ),
    }
}

fn gguf_file(path: &Path) -> Result<Found> {
    let file = gguf::File::open(path)?;
    let metadata = file.metadata();
    let mut facts = vec![("version", format!("GGUF {}", file.version()))];
    let names =
        [("name", "general.name"), ("architecture", "general.architecture"), ("licence", "general.license")];
    for (name, key) in names {
        if let Some(value) = metadata.opt_str(key)? {
            facts.push((name, value.to_owned()));
        }
    }
    let architecture = metadata.opt_str("general.architecture")?.unwrap_or_default().to_owned();
    let sizes = [
        ("layers", "block_count"),
        ("hidden size", "embedding_length"),
        ("feed-forward", "feed_forward_length"),
        ("heads", "attention.head_count"),
        ("key-value heads", "attention.head_count_kv"),
        ("context", "context_length"),
    ];
    for (name, key) in sizes {
        if let Some(value) = metadata.get(&format!("{architecture}.{key}")).and_then(gguf::Value::as_u64) {
            facts.push((name, count(value)));
        }
    }
    if let Some(tokens) = metadata.opt_array_str("tokenizer.ggml.tokens")? {
        let model = metadata.opt_str("tokenizer.ggml.model")?.unwrap_or("?");
        facts.push(("vocabulary", format!("{} tokens ({model})", count(tokens.len() as u64))));
    }
    let template = metadata.opt_str("tokenizer.chat_template")?.is_some();
    facts.push(("chat template", if template { "inside".into() } else { "none".into() }));
    Ok(Found { kind: "GGUF model", is_model: true, path: path.into(), facts, tensors: listed(&file)? })
}

fn model_folder(path: &Path) -> Result<Found> {
    let folder = ModelFolder::open(path)?;
    let keys = [
        ("architecture", "model_type"),
        ("layers", "num_hidden_layers"),
        ("hidden size", "hidden_size"),
        ("feed-forward", "intermediate_size"),
        ("heads", "num_attention_heads"),
        ("key-value heads", "num_key_value_heads"),
        ("context", "max_position_embeddings"),
        ("vocabulary", "vocab_size"),
        ("tied embeddings", "tie_word_embeddings"),
    ];
    let mut facts = facts_of(folder.config(), &keys);
    facts.extend(quantisation(&folder));
    facts.push(("tokenizer", if folder.tokenizer()?.is_some() { "inside".into() } else { "none".into() }));
    let templates = folder.chat_templates()?;
    facts.push(("chat template", if templates.is_empty() { "none".into() } else { "inside".into() }));
    Ok(Found {
        kind: "Hugging Face model folder",
        is_model: true,
        path: path.into(),
        facts,
        tensors: listed(folder.weights())?,
    })
}

fn adapter_folder(path: &Path) -> Result<Found> {
    let config = json::read(&path.join("adapter_config.json"), limits::CONFIG_BYTES)?;
    let keys = [
        ("method", "peft_type"),
        ("base model", "base_model_name_or_path"),
        ("task", "task_type"),
        ("rank", "r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
        ("rslora", "use_rslora"),
        ("targets", "target_modules"),
    ];
    let mut facts = facts_of(&config, &keys);
    // Opening checks keys, shapes, ranks and that every value is finite.
    let adapter = PeftAdapter::open(path)?;
    facts.extend(adapter.notes().iter().map(|note| ("note", note.clone())));
    let tensors = adapter.source().tensors().iter().map(Listed::from).collect();
    Ok(Found { kind: "PEFT adapter", is_model: false, path: path.into(), facts, tensors })
}

fn safetensors_file(path: &Path) -> Result<Found> {
    let file = safetensors::File::open(path)?;
    let facts = file.metadata().iter().map(|(key, value)| ("metadata", format!("{key}: {value}"))).collect();
    Ok(Found { kind: "safetensors file", is_model: false, path: path.into(), facts, tensors: listed(&file)? })
}

fn data_file(path: &Path) -> Result<Found> {
    let mut rows = 0;
    let mut longest = (0, 0);
    let mut keys: BTreeMap<String, u64> = BTreeMap::new();
    for record in Records::open(path)? {
        let record = record?;
        rows += 1;
        let length = record.value.to_string().len() as u64;
        if length > longest.0 {
            longest = (length, record.line);
        }
        for key in record.value.as_object().into_iter().flat_map(Map::keys) {
            *keys.entry(key.clone()).or_default() += 1;
        }
    }
    let keys: Vec<String> = keys
        .iter()
        .map(|(key, n)| if *n == rows { key.clone() } else { format!("{key} (in {} rows)", count(*n)) })
        .collect();
    let facts = vec![
        ("size", megabytes(std::fs::metadata(path)?.len())),
        ("rows", count(rows)),
        ("columns", keys.join(", ")),
        ("longest row", format!("{} in line {}", megabytes(longest.0), longest.1)),
    ];
    Ok(Found { kind: "data file", is_model: false, path: path.into(), facts, tensors: Vec::new() })
}

/// The keys that an object has, as facts.
fn facts_of(config: &Value, keys: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
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
            [rows, cols] if without_layer(&tensor.name) != tensor.name => rank * (rows + cols) as u64,
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
        writeln!(
            out,
            "  {:<16} {} in {} tensors",
            "parameters",
            count(self.parameters()),
            self.tensors.len()
        )?;
        let types: Vec<String> = self
            .types()
            .iter()
            .map(|(name, (n, bytes))| format!("{n} x {name} ({})", megabytes(*bytes)))
            .collect();
        writeln!(out, "  {:<16} {}", "stored as", types.join(", "))?;
        if let Some(trained) = self.trained_by_lora() {
            let share = 100.0 * trained as f64 / self.parameters().max(1) as f64;
            let rank = RunFile::default().lora.rank;
            writeln!(
                out,
                "  {:<16} {} parameters with lora, rank {rank} ({share:.1} %)",
                "would train",
                count(trained)
            )?;
        }
        writeln!(out)?;
        let lines = self.lines(every_tensor);
        let width = lines.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
        for (name, shape, dtype, tensors) in lines {
            let times = if tensors > 1 { format!("  x {tensors}") } else { String::new() };
            writeln!(out, "  {name:<width$}  {:<16} {dtype}{times}", format!("{shape:?}"))?;
        }
        Ok(())
    }

    /// One line for each tensor, or one for all layers' tensors of the same name, shape and type.
    fn lines(&self, every_tensor: bool) -> Vec<(String, Vec<usize>, &str, usize)> {
        let mut lines: Vec<(String, Vec<usize>, &str, usize)> = Vec::new();
        for tensor in &self.tensors {
            let name = if every_tensor { tensor.name.clone() } else { without_layer(&tensor.name) };
            let same = lines.iter_mut().find(|(n, shape, dtype, _)| {
                !every_tensor && *n == name && *shape == tensor.shape && *dtype == tensor.dtype
            });
            match same {
                Some(line) => line.3 += 1,
                None => lines.push((name, tensor.shape.clone(), &tensor.dtype, 1)),
            }
        }
        lines
    }
}

/// `model.layers.17.mlp` as `model.layers.*.mlp`.
fn without_layer(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_one_line() {
        assert_eq!(without_layer("model.layers.17.mlp.up_proj.weight"), "model.layers.*.mlp.up_proj.weight");
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/parity/llama_base_full");
        let found = look_at(&data).unwrap();
        assert_eq!(found.lines(false).len(), 11);
        assert_eq!(found.lines(true).len(), 20);
        assert!(found.facts.contains(&("architecture", "llama".into())));
    }

    #[test]
    fn a_quantised_weight_is_one_line_with_all_its_bytes() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/parity");
        let [plain, quantised] =
            ["llama_base_full", "llama_nf4"].map(|name| look_at(&data.join(name)).unwrap());
        assert_eq!(quantised.parameters(), plain.parameters());
        assert_eq!(quantised.lines(true).len(), 20);
        assert_eq!(quantised.types()["nf4+dq"].0, 14);
        assert_eq!(quantised.trained_by_lora(), plain.trained_by_lora());
        let said = ("quantised", "nf4 with double quantisation, by bitsandbytes".to_string());
        assert!(quantised.facts.contains(&said));
        let file = std::fs::metadata(data.join("llama_nf4/model.safetensors")).unwrap().len();
        assert!(quantised.bytes() < file && quantised.bytes() * 5 > file * 4);
    }
}
