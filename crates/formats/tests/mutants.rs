//! A hundred thousand spoilt adapters of every kind: no panic, and nothing passes silently.
//!
//! What is accepted must have the same tensors (names, types, shapes) and the same keys of its configuration as the good
//! adapter: then only values differ. If its tensors are named or shaped otherwise, a model would find one missing; if its
//! keys are others, there must be a note. `RETUNE_HOSTILE_CASES` sets the number of cases.

#[path = "hostile/mutants.rs"]
mod mutants;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use mutants::{Rng, mutate};
use retune_formats::adapter_hub::{HeadConfig, HubAdapter, HubConfig, HubHead};
use retune_formats::adapters::{AdapterKind, kind_of};
use retune_formats::delta::{self, Delta, DeltaConfig, DeltaOut};
use retune_formats::lora_tensors::LoraTensors;
use retune_formats::mlx;
use retune_formats::peft::{PeftAdapter, PeftConfig};
use retune_formats::{Dtype, Result, TensorOut, TensorSource, gguf, gguf_lora, json, safetensors, torch};
use serde_json::{Map, Value};

/// What an adapter is, but for its values.
#[derive(Clone, Debug, PartialEq)]
struct Shape {
    tensors: BTreeSet<(String, Dtype, Vec<usize>)>,
    keys: BTreeSet<String>,
    settings: String,
    notes: usize,
}

impl Shape {
    fn new(source: &dyn TensorSource, settings: Value, notes: usize) -> Shape {
        let tensors = source.tensors().iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone()));
        let mut keys = BTreeSet::new();
        collect_keys("", &settings, &mut keys);
        Shape { tensors: tensors.collect(), keys, settings: settings.to_string(), notes }
    }
}

fn collect_keys(path: &str, value: &Value, into: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}/{key}");
        // Other objects are free: what is in them is a value.
        if ["config", "base", "tensors"].contains(&key.as_str()) {
            collect_keys(&path, value, into);
        }
        into.insert(path);
    }
}

/// The files of an adapter: names and bytes.
type Files = Vec<(&'static str, Vec<u8>)>;

fn text(bytes: &[u8]) -> Result<String> {
    // As reading a file does.
    let bytes = retune_formats::bytes::Bytes::from_memory("adapter/config", bytes.to_vec());
    bytes.read_text("configuration", 1 << 24)
}

fn config_value(bytes: &[u8]) -> Result<Map<String, Value>> {
    let value = json::parse(Path::new("adapter/config"), &text(bytes)?)?;
    Ok(value.as_object().cloned().unwrap_or_default())
}

fn open_safetensors(bytes: &[u8]) -> Result<safetensors::File> {
    safetensors::File::from_memory("adapter/weights", bytes.to_vec())
}

fn peft_shape(config: &[u8], source: impl TensorSource + 'static) -> Result<Shape> {
    let config = PeftConfig::parse(Path::new("adapter/config"), &text(config)?)?;
    let adapter = PeftAdapter::new(Path::new("adapter"), config, source)?;
    assert_eq!(adapter.tensors().len(), adapter.source().tensors().len(), "a tensor was dropped");
    for tensor in adapter.tensors() {
        adapter.source().read(&tensor.info.name)?;
    }
    let settings = serde_json::from_str(&adapter.config().to_text()).unwrap();
    Ok(Shape::new(adapter.source(), settings, adapter.notes().len()))
}

fn open_peft(files: &Files) -> Result<Shape> {
    peft_shape(&files[0].1, open_safetensors(&files[1].1)?)
}

fn open_peft_bin(files: &Files) -> Result<Shape> {
    peft_shape(&files[0].1, torch::File::from_memory("adapter/weights", files[1].1.clone())?)
}

fn hub_shape(config: &[u8], source: impl TensorSource + 'static) -> Result<Shape> {
    let (config, notes) = HubConfig::from_json(Path::new("adapter/config"), &config_value(config)?)?;
    let adapter = HubAdapter::new(Path::new("adapter"), config, source)?;
    for tensor in adapter.tensors() {
        adapter.read_f32(tensor)?;
    }
    let notes = notes.len() + adapter.notes().len();
    Ok(Shape::new(adapter.source(), adapter.config().to_json(), notes))
}

fn open_hub(files: &Files) -> Result<Shape> {
    hub_shape(&files[0].1, open_safetensors(&files[1].1)?)
}

fn open_hub_bin(files: &Files) -> Result<Shape> {
    hub_shape(&files[0].1, torch::File::from_memory("adapter/weights", files[1].1.clone())?)
}

fn open_head(files: &Files) -> Result<Shape> {
    let config = HeadConfig::from_json(Path::new("adapter/config"), &config_value(&files[0].1)?)?;
    let head = HubHead::new(Path::new("adapter"), config, open_safetensors(&files[1].1)?)?;
    Ok(Shape::new(head.source(), head.config().to_json(), head.notes().len()))
}

fn open_delta(files: &Files) -> Result<Shape> {
    let config = DeltaConfig::parse(Path::new("adapter/config"), &text(&files[0].1)?)?;
    let delta = Delta::new(Path::new("adapter"), config, open_safetensors(&files[1].1)?)?;
    for (name, changed) in &delta.config().tensors {
        match changed.kind {
            delta::Kind::Dense => drop(delta.read_dense(name)?),
            delta::Kind::Sparse => drop(delta.read_sparse(name)?),
        }
    }
    Ok(Shape::new(delta.source(), serde_json::from_str(&delta.config().to_text()).unwrap(), 0))
}

fn open_mlx(files: &Files) -> Result<Shape> {
    let path = Path::new("adapter/config");
    let settings = mlx::Settings::from_json(path, &json::parse(path, &text(&files[0].1)?)?)?;
    let source = open_safetensors(&files[1].1)?;
    let lora = mlx::from_source(Path::new("adapter"), &settings, &source)?;
    assert_eq!(lora.modules.len() * 2, source.tensors().len(), "a tensor was dropped");
    // mlx-lm's configuration is a list of arguments, of which few matter.
    Ok(Shape::new(&source, serde_json::json!({"rank": settings.rank, "scale": settings.scale}), 0))
}

fn open_gguf(files: &Files) -> Result<Shape> {
    let file = gguf::File::from_memory("adapter/weights", files[0].1.clone())?;
    let lora = gguf_lora::read(&file)?;
    let factors = 2 * lora.lora.modules.len();
    assert!(factors == file.tensors().len() || !lora.notes.is_empty(), "a tensor was dropped");
    let keys: Map<String, Value> =
        file.metadata().iter().map(|(k, _)| (k.to_string(), Value::Null)).collect();
    // Metadata of a GGUF file is open: other tools add their own.
    let known = keys.into_iter().filter(|(k, _)| k.starts_with("adapter.lora")).collect();
    Ok(Shape::new(&file, Value::Object(known), 1))
}

struct Kind {
    name: &'static str,
    files: Files,
    open: fn(&Files) -> Result<Shape>,
}

/// Opens a folder on disk as the program does.
fn open_folder(path: &Path) -> Result<()> {
    match kind_of(path)? {
        AdapterKind::Peft => PeftAdapter::open(path).map(drop),
        AdapterKind::AdapterHub => HubAdapter::open(path).map(drop),
        AdapterKind::HubHead => HubHead::open(path).map(drop),
        AdapterKind::Mlx => mlx::read(path).map(drop),
        AdapterKind::Delta => Delta::open(path).map(drop),
        AdapterKind::GgufLora => gguf_lora::read(&gguf::File::open(path)?).map(drop),
    }
}

/// The same spoilt adapter in a folder is accepted or refused as it was in memory.
fn judge_on_disk(folder: &Path, files: &Files, accepted: bool) {
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let path = if files.len() == 1 { folder.join(files[0].0) } else { folder.to_path_buf() };
    match open_folder(&path) {
        Ok(()) => assert!(accepted, "refused in memory, accepted as a folder"),
        Err(e) => {
            assert!(!accepted, "accepted in memory, refused as a folder: {e}");
            assert!(
                e.to_string().starts_with(&folder.display().to_string()),
                "the message names no file: {e}"
            );
        }
    }
}

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(path)
}

fn kind(name: &'static str, files: [&'static str; 2], open: fn(&Files) -> Result<Shape>) -> Kind {
    let files = files.map(|file| (file, fs::read(data(name).join(file)).unwrap()));
    Kind { name, files: files.to_vec(), open }
}

fn kinds() -> Vec<Kind> {
    let peft = ["adapter_config.json", "adapter_model.safetensors"];
    let hub = ["adapter_config.json", "adapter.safetensors"];
    let mut kinds: Vec<Kind> = [
        "formats/lora_bert_seqcls",
        "formats/lora_dora",
        "formats/lora_embed_llama",
        "formats/ia3_bert",
        "formats/prefix_gpt2",
        "formats/prompt_bert_seqcls",
        "formats/shira",
        "parity/llama_p_tuning",
    ]
    .map(|name| kind(name, peft, open_peft))
    .into();
    kinds.push(kind("torch/peft_bin", ["adapter_config.json", "adapter_model.bin"], open_peft_bin));
    for name in ["formats/ah_bert_double_seq_bn", "formats/ah_bert_ia3", "formats/ah_bert_prompt_tuning"] {
        kinds.push(kind(name, hub, open_hub));
    }
    kinds.push(kind("formats/ah_bert_prefix", ["adapter_config.json", "pytorch_adapter.bin"], open_hub_bin));
    kinds.push(kind("formats/ah_head", ["head_config.json", "model_head.safetensors"], open_head));
    kinds.extend([delta_kind(), mlx_kind(), gguf_kind()]);
    kinds
}

/// A small LoRA under the names of a Llama (or of its GGUF).
fn lora(name: fn(usize) -> String) -> LoraTensors {
    let lora = LoraTensors::from_peft(&PeftAdapter::open(data("formats/lora_gpt2")).unwrap()).unwrap();
    let modules = lora.modules.into_values().enumerate().map(|(i, module)| (name(i), module)).collect();
    LoraTensors { modules, ..lora }
}

fn delta_kind() -> Kind {
    let dir = tempfile::tempdir().unwrap();
    let hash = "0123456789abcdef".repeat(4);
    let base = delta::Base { blake3: hash.clone(), shapes: hash };
    let config = DeltaConfig { method: "sparse".into(), base, ..DeltaConfig::default() };
    let tensors = [
        DeltaOut::Dense(TensorOut::f32("l.0.bias", &[4], vec![0.5; 4])),
        DeltaOut::Sparse {
            name: "l.0.weight".into(),
            shape: vec![4, 8],
            indices: vec![0, 3, 9, 31],
            values: vec![1.0; 4],
        },
    ];
    delta::write(dir.path(), &config, tensors, None).unwrap();
    let files = [delta::CONFIG, delta::WEIGHTS].map(|file| (file, fs::read(dir.path().join(file)).unwrap()));
    Kind { name: "delta", files: files.to_vec(), open: open_delta }
}

fn mlx_kind() -> Kind {
    let dir = tempfile::tempdir().unwrap();
    mlx::write(dir.path(), &lora(|i| format!("model.layers.{i}.self_attn.q_proj")), None, None).unwrap();
    let files = [mlx::CONFIG, mlx::WEIGHTS].map(|file| (file, fs::read(dir.path().join(file)).unwrap()));
    Kind { name: "mlx", files: files.to_vec(), open: open_mlx }
}

fn gguf_kind() -> Kind {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    gguf_lora::write(&path, "llama", &lora(|i| format!("blk.{i}.attn_q"))).unwrap();
    Kind { name: "gguf", files: vec![("adapter.gguf", fs::read(path).unwrap())], open: open_gguf }
}

/// Opens a spoilt adapter and holds it to the law; was it accepted?
fn judge(kind: &Kind, good: &Shape, files: &Files, spoilt: usize) -> bool {
    match (kind.open)(files) {
        Err(e) => {
            let message = e.to_string();
            assert!(message.starts_with("adapter"), "the message names no file: {message}");
            assert!(message.len() < 1000, "a message of {} bytes", message.len());
            false
        }
        // A model that is asked for these tensors finds others: its loader refuses them.
        Ok(shape) if shape.tensors != good.tensors => false,
        Ok(shape) => {
            let alike = shape.keys == good.keys || shape.notes > 0;
            assert!(alike, "other keys pass silently: {}\n{}", shape.settings, good.settings);
            let untouched = spoilt == 0 || kind.files.len() == 1 || shape.settings == good.settings;
            assert!(untouched, "other weights, other settings: {}", shape.settings);
            true
        }
    }
}

fn run(kind: &Kind, cases: usize, seed: u64) -> (usize, usize) {
    let good = (kind.open)(&kind.files).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
    let folder = tempfile::tempdir().unwrap();
    let (mut accepted, mut total) = (0, 0);
    let mut check = |case: &str, files: &Files, spoilt: usize| {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if total % 50 == 0 {
                judge_on_disk(folder.path(), files, (kind.open)(files).is_ok());
            }
            judge(kind, &good, files, spoilt)
        }));
        match outcome {
            Ok(yes) => accepted += usize::from(yes),
            Err(cause) => {
                let what = cause.downcast_ref::<String>().cloned().unwrap_or_default();
                panic!("{} {}, {case}: {what}", kind.name, files[spoilt].0);
            }
        }
        total += 1;
    };
    // Every truncation of the first part of each file, a quarter of the cases at most.
    for (index, (_, bytes)) in kind.files.iter().enumerate() {
        for len in 0..bytes.len().min(cases / 4 / kind.files.len()) {
            let mut files = kind.files.clone();
            files[index].1.truncate(len);
            check(&format!("cut to {len}"), &files, index);
        }
    }
    for case in 0..cases * 3 / 4 {
        let mut rng = Rng::new(seed + case as u64);
        let index = rng.below(kind.files.len());
        let mut files = kind.files.clone();
        files[index].1 = mutate(&kind.files[index].1, kind.files[index].0, &mut rng);
        check(&format!("seed {}", seed + case as u64), &files, index);
    }
    // Shown with `--nocapture`.
    println!("{}: {accepted} of {total} differ in values only", kind.name);
    (accepted, total)
}

#[test]
fn spoilt_adapters_are_refused_or_differ_in_values_only() {
    let cases = std::env::var("RETUNE_HOSTILE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let kinds = kinds();
    // Panics are reported with their case; their own messages would bury it.
    std::panic::set_hook(Box::new(|_| {}));
    let each = cases / kinds.len() + 1;
    let run_all = |part: usize| -> Vec<std::thread::Result<(usize, usize)>> {
        let mine = kinds.iter().enumerate().filter(|(i, _)| i % 2 == part);
        mine.map(|(i, kind)| catch_unwind(AssertUnwindSafe(|| run(kind, each, (i as u64) << 32)))).collect()
    };
    let results = std::thread::scope(|scope| {
        let other = scope.spawn(|| run_all(1));
        let mut results = run_all(0);
        results.extend(other.join().unwrap());
        results
    });
    drop(std::panic::take_hook());
    let mut accepted = 0;
    for result in results {
        match result {
            Ok((yes, total)) => {
                assert!(yes < total / 2, "{yes} of {total} were accepted");
                accepted += yes;
            }
            Err(cause) => panic!("{}", cause.downcast_ref::<String>().cloned().unwrap_or_default()),
        }
    }
    assert!(accepted > 0, "not even changed values were accepted");
}
