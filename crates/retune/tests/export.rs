//! Models written as Hugging Face folders, merged and as they are, and the identity of a base.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use retune::base::{self, BaseIdentity};
use retune::export::{ExportDtype, ExportOptions, write_folder};
use retune::methods::{self, full, lora};
use retune::models::{Model, ModelFiles, StorageChoice};
use retune::text::{Language, Special};
use retune_formats::Dtype;
use retune_formats::lora_config::LoraConfig;

const ALL: fn() -> ExportOptions = ExportOptions::default;

fn f32s() -> ExportOptions {
    ExportOptions { dtype: ExportDtype::F32, ..ALL() }
}

/// Every file of a folder and its hash.
fn bytes_of(folder: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_file() {
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            all.insert(name, retune_formats::hash::file(&path).expect("hash"));
        }
    }
    all
}

fn names(folder: &Path) -> Vec<String> {
    let list = fs::read_dir(folder).expect("folder").map(|e| e.expect("entry").file_name());
    let mut names: Vec<String> = list.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn export(model: &Model, dir: &Path, options: &ExportOptions) -> retune::export::ExportReport {
    write_folder(model, dir, options).unwrap_or_else(|e| panic!("{e}"))
}

fn error(model: &Model, dir: &Path, options: &ExportOptions) -> String {
    write_folder(model, dir, options).err().map(|e| e.to_string()).expect("an error")
}

fn config(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(dir.join("config.json")).expect("config")).expect("json")
}

fn with_adapter(base: &Path, adapter: &Path, storage: StorageChoice) -> Model {
    let mut model = load(base, storage);
    let source = methods::Source { path: adapter.to_path_buf(), weight: 1.0 };
    methods::load(&mut model, &[source], 0).unwrap_or_else(|e| panic!("{e}"));
    model
}

fn base_folder() -> PathBuf {
    data("parity/llama_base_full")
}

/// A copy of a model folder, to be changed.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        if from.join(name).is_file() {
            fs::copy(from.join(name), to.join(name)).expect("copy");
        }
    }
}

#[test]
fn merged_weights_give_the_adapters_logits() {
    for name in ["llama_lora", "llama_lora_qv", "llama_lora_rslora"] {
        let (base, adapter) = (base_folder(), data("parity").join(name));
        let before = (bytes_of(&base), bytes_of(&adapter));
        let inputs = Inputs::read(&adapter.join("inputs.safetensors"));
        let model = with_adapter(&base, &adapter, StorageChoice::F32);
        let want = logits(&model, &inputs);

        let dir = tempfile::tempdir().expect("folder");
        let out = dir.path().join("merged");
        let report = export(&model, &out, &f32s());
        let merged = load(&out, StorageChoice::F32);
        close(name, logits(&merged, &inputs).data(), want.data(), 1e-5);
        assert_eq!(report.merged.len(), if name == "llama_lora_qv" { 4 } else { 14 }, "{:?}", report.merged);
        assert!(report.max_change > 0.0 && !report.same_base);
        assert!(merged.files.source().tensors().iter().all(|t| !t.name.contains("lora")));
        assert!(!out.join("base.json").exists(), "a merged model is a base of its own");
        assert_eq!((bytes_of(&base), bytes_of(&adapter)), before, "nothing of the sources changed");
        assert_eq!(names(&out), report.files);
    }
}

#[test]
fn a_merge_into_quantised_weights_says_so() {
    let folder = data("gguf");
    let inputs = Inputs::read(&folder.join("inputs.safetensors"));
    let model = with_adapter(&folder.join("tiny_mixed.gguf"), &folder.join("lora"), StorageChoice::AsIs);
    let dir = tempfile::tempdir().expect("folder");
    let report = export(&model, &dir.path().join("merged"), &ALL());
    let merged = load(&dir.path().join("merged"), StorageChoice::F32);
    close("merged", logits(&merged, &inputs).data(), logits(&model, &inputs).data(), 1e-5);
    assert!(report.notes.iter().any(|n| n.contains("q4_1") && n.contains("merged")), "{:?}", report.notes);
    check_logits(&merged, &inputs, &folder.join("lora/logits.safetensors"), 1e-4);
}

#[test]
fn without_merging_the_base_alone_is_written() {
    let adapter = data("parity/llama_lora");
    let model = with_adapter(&base_folder(), &adapter, StorageChoice::F32);
    let dir = tempfile::tempdir().expect("folder");
    let report = export(&model, &dir.path().join("base"), &ExportOptions { merge: false, ..ALL() });
    assert!(report.same_base && report.merged.is_empty());
    assert!(report.notes.iter().any(|n| n.contains("left out")), "{:?}", report.notes);
    let inputs = Inputs::read(&adapter.join("inputs.safetensors"));
    let plain = load(&base_folder(), StorageChoice::F32);
    let written = load(&dir.path().join("base"), StorageChoice::F32);
    assert_eq!(logits(&written, &inputs).data(), logits(&plain, &inputs).data());
}

#[test]
fn a_gguf_becomes_a_folder_of_the_same_values_and_tokens() {
    let path = data("gguf/tiny_mixed.gguf");
    let before = retune_formats::hash::file(&path).expect("hash");
    let model = load(&path, StorageChoice::F32);
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("folder");
    let report = export(&model, &out, &f32s());
    assert!(report.same_base && report.dtype == Dtype::F32);
    assert_eq!(retune_formats::hash::file(&path).expect("hash"), before);

    let written = load(&out, StorageChoice::F32);
    let inputs = Inputs::read(&data("gguf/inputs.safetensors"));
    assert_eq!(logits(&written, &inputs).data(), logits(&model, &inputs).data(), "the same bits");

    let (ModelFiles::Gguf(gguf), ModelFiles::Folder(folder)) = (&model.files, &written.files) else {
        panic!("a file and a folder");
    };
    let (old, new) =
        (Language::from_gguf(gguf).expect("gguf"), Language::from_folder(folder).expect("folder"));
    let texts = [
        "Hello the world, 12345 times!\n\n  tabs\tand   spaces",
        "<|im_start|>user\nnaïve 東京 🦀<|im_end|>\n",
        "<|endoftext|>",
        "",
    ];
    for text in texts {
        for special in [Special::Parse, Special::AsText] {
            let ids = old.tokenizer.encode(text, special).expect("ids");
            assert_eq!(new.tokenizer.encode(text, special).expect("ids"), ids, "{text:?} {special:?}");
            assert_eq!(new.tokenizer.decode(&ids, false).expect("text"), text);
        }
    }
    let roles = |l: &Language| {
        let t = &l.tokenizer;
        (t.bos(), t.eos(), t.pad(), t.unk(), t.add_bos(), t.eos_ids().clone())
    };
    assert_eq!(roles(&new), roles(&old));
    let template = folder.chat_templates().expect("templates");
    let original = gguf.metadata().opt_str("tokenizer.chat_template").expect("text");
    assert_eq!(template.get("default").map(String::as_str), original);
}

#[test]
fn either_hash_names_the_same_base() {
    let gguf = load(&data("gguf/tiny_mixed.gguf"), StorageChoice::AsIs);
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("folder");
    export(&gguf, &out, &f32s());
    let folder = load(&out, StorageChoice::F32);
    let (of_gguf, of_folder) = (dir.path().join("a"), dir.path().join("b"));
    for (model, adapter) in [(&gguf, &of_gguf), (&folder, &of_folder)] {
        fs::create_dir(adapter).expect("folder");
        base::record(model, adapter).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(base::check(&gguf, adapter, false).expect("the same base"), None);
        assert_eq!(base::check(&folder, adapter, false).expect("the same base"), None);
    }
    let again = dir.path().join("again");
    export(&folder, &again, &f32s());
    let again = load(&again, StorageChoice::F32);
    assert_eq!(base::check(&again, &of_gguf, false).expect("a copy of a copy"), None);

    // The record is void once the weights are others.
    let weights = out.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("read");
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).expect("write");
    let changed = load(&out, StorageChoice::F32);
    assert_eq!(BaseIdentity::of(&changed).expect("identity").exported_from, None);
    let message = base::check(&changed, &of_gguf, false).expect_err("another base").to_string();
    assert!(message.contains("tiny_mixed.gguf") && message.contains("other weights"), "{message}");
}

#[test]
fn an_adapter_of_another_base_is_refused_unless_asked_for() {
    let model = load(&base_folder(), StorageChoice::F32);
    let other = load(&data("gguf/tiny_mixed.gguf"), StorageChoice::AsIs);
    let dir = tempfile::tempdir().expect("folder");
    let note = base::check(&model, dir.path(), false).expect("no record").expect("a note");
    assert!(note.contains("no base.json"), "{note}");
    let identity = base::record(&other, dir.path()).expect("record");
    assert_eq!(BaseIdentity::read(dir.path()).expect("read"), Some(identity));
    let message = base::check(&model, dir.path(), false).expect_err("another base").to_string();
    for part in ["tiny_mixed.gguf", "llama_base_full", "another shape", "--any-base"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(base::check(&model, dir.path(), true).expect("allowed").is_some());
    fs::write(dir.path().join("base.json"), r#"{"path": 3}"#).expect("write");
    let message = base::check(&model, dir.path(), false).expect_err("damaged").to_string();
    assert!(message.contains("base.json") && message.contains("remove it"), "{message}");
}

#[test]
fn configurations_lose_nothing() {
    for name in ["mistral", "qwen2", "qwen3", "llama_rope_llama3", "llama_bias", "llama_sharded"] {
        let source = data("llama_variants").join(name);
        let model = load(&source, StorageChoice::AsIs);
        let dir = tempfile::tempdir().expect("folder");
        let out = dir.path().join("out");
        let report = export(&model, &out, &ALL());
        assert_eq!(config(&out), config(&source), "{name}");
        assert!(report.same_base, "{name}");
        let (was, is) = (model.files.source(), load(&out, StorageChoice::AsIs).files);
        for info in was.tensors() {
            let copy = is.source().get(&info.name).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!((copy.dtype, &copy.shape), (info.dtype, &info.shape), "{name}: {}", info.name);
            assert_eq!(is.source().read(&info.name).ok(), was.read(&info.name).ok(), "{name}: {}", info.name);
        }
        let report =
            export(&model, &dir.path().join("f16"), &ExportOptions { dtype: ExportDtype::F16, ..ALL() });
        assert_eq!(report.same_base, !report.notes.iter().any(|n| n.contains("rounded to f16")), "{name}");
        assert_eq!(config(&dir.path().join("f16"))["dtype"], "float16", "{name}");
    }
}

#[test]
fn texts_are_copied_byte_for_byte() {
    let dir = tempfile::tempdir().expect("folder");
    let (source, out) = (dir.path().join("model"), dir.path().join("out"));
    copy(&base_folder(), &source);
    let texts = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"];
    for (i, name) in texts.iter().enumerate() {
        fs::write(source.join(name), format!("{{ \"odd\":\t{i} }}\r\n")).expect("write");
    }
    let model = load(&source, StorageChoice::F32);
    export(&model, &out, &ALL());
    let (was, is) = (bytes_of(&source), bytes_of(&out));
    for name in texts.iter().chain(&["generation_config.json"]) {
        assert_eq!(is.get(*name), was.get(*name), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_model_is_not_followed() {
    let dir = tempfile::tempdir().expect("folder");
    let source = dir.path().join("model");
    copy(&base_folder(), &source);
    fs::write(dir.path().join("secret"), "mine").expect("write");
    std::os::unix::fs::symlink("../secret", source.join("tokenizer.json")).expect("link");
    let message = error(&load(&source, StorageChoice::F32), &dir.path().join("out"), &ALL());
    assert!(message.contains("link out of the model's folder"), "{message}");
    assert!(!dir.path().join("out").exists());
}

#[test]
fn what_lies_there_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let source = dir.path().join("model");
    copy(&base_folder(), &source);
    let model = load(&source, StorageChoice::F32);
    let overwrite = ExportOptions { overwrite: true, ..ALL() };
    let before = bytes_of(&source);
    for options in [ALL(), overwrite.clone()] {
        assert!(error(&model, &source, &options).contains("own folder"));
        assert!(error(&model, &source.join("../model"), &options).contains("own folder"));
    }
    assert_eq!(bytes_of(&source), before);
    assert_eq!(names(&source).len(), before.len());

    let file = dir.path().join("file");
    fs::write(&file, "x").expect("write");
    assert!(error(&model, &file, &overwrite).contains("this is a file"));

    let adapter = dir.path().join("adapter");
    fs::create_dir(&adapter).expect("folder");
    fs::write(adapter.join("adapter_config.json"), "{}").expect("write");
    assert!(error(&model, &adapter, &overwrite).contains("an adapter lies"));
    assert_eq!(names(&adapter), ["adapter_config.json"]);

    let run = dir.path().join("run");
    fs::create_dir(&run).expect("folder");
    fs::write(run.join("metrics.jsonl"), "{}").expect("write");
    export(&model, &run, &ALL());
    assert!(error(&model, &run, &ALL()).contains("--overwrite"));
    export(&model, &run, &overwrite);
    assert_eq!(fs::read_to_string(run.join("metrics.jsonl")).expect("kept"), "{}");
}

#[test]
fn shards_and_back() {
    let model = load(&base_folder(), StorageChoice::F32);
    let inputs = Inputs::read(&base_folder().join("inputs.safetensors"));
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("out");
    let options = ExportOptions { max_shard_bytes: 60_000, overwrite: true, ..ALL() };
    let report = export(&model, &out, &options);
    let shards: Vec<_> = report.files.iter().filter(|n| n.starts_with("model-")).collect();
    assert!(shards.len() > 3 && report.files.contains(&"model.safetensors.index.json".into()), "{shards:?}");
    let want = logits(&model, &inputs);
    assert_eq!(logits(&load(&out, StorageChoice::F32), &inputs).data(), want.data());
    for name in shards {
        assert!(fs::metadata(out.join(name)).expect("shard").len() < 70_000, "{name}");
    }
    // A single file in their place leaves none of them.
    let report = export(&model, &out, &ExportOptions { overwrite: true, ..ALL() });
    assert_eq!(names(&out), report.files);
    assert!(!report.files.iter().any(|n| n.contains("-of-") || n.ends_with("index.json")));
    assert_eq!(logits(&load(&out, StorageChoice::F32), &inputs).data(), want.data());
    export(&model, &out, &options);
    assert_eq!(logits(&load(&out, StorageChoice::F32), &inputs).data(), want.data());
}

#[test]
fn a_failure_leaves_what_was_there() {
    let mut model = load(&base_folder(), StorageChoice::F32);
    let dir = tempfile::tempdir().expect("folder");
    let (fresh, old) = (dir.path().join("deep/fresh"), dir.path().join("old"));
    export(&model, &old, &ALL());
    let before = bytes_of(&old);
    let id = model.params.find("model.norm.weight").expect("norm");
    model.params.tensor_mut(id).expect("f32").data_mut()[5] = f32::NAN;
    let options = ExportOptions { overwrite: true, max_shard_bytes: 60_000, ..ALL() };
    let message = error(&model, &fresh, &options);
    assert!(message.contains("model.norm.weight") && message.contains("NaN"), "{message}");
    assert!(!fresh.exists());
    error(&model, &old, &options);
    assert_eq!((bytes_of(&old), names(&old).len()), (before.clone(), before.len()));

    model.params.tensor_mut(id).expect("f32").data_mut()[5] = 70_000.0;
    let half = ExportOptions { dtype: ExportDtype::F16, ..ALL() };
    assert!(error(&model, &fresh, &half).contains("beyond the range of f16"));
    assert!(!fresh.exists());
    let report = export(&model, &fresh, &ExportOptions { dtype: ExportDtype::BF16, ..ALL() });
    assert!(!report.same_base && report.dtype == Dtype::BF16);
}

#[test]
fn a_changed_head_is_untied() {
    let mut model = load(&base_folder(), StorageChoice::F32);
    let fields =
        serde_json::json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["lm_head"]});
    let fields = fields.as_object().expect("object");
    let lora_config = LoraConfig::from_json(Path::new("adapter_config.json"), fields).expect("config");
    lora::attach(&mut model, &lora_config, 3).unwrap_or_else(|e| panic!("{e}"));
    for id in model.params.trainable() {
        let tensor = model.params.tensor_mut(id).expect("f32");
        for (i, x) in tensor.data_mut().iter_mut().enumerate() {
            *x += (i % 7) as f32 * 0.01;
        }
    }
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("out");
    let report = export(&model, &out, &ALL());
    assert_eq!(report.merged, ["lm_head"]);
    assert!(report.notes.iter().any(|n| n.contains("a weight of its own")), "{:?}", report.notes);
    assert_eq!(config(&out)["tie_word_embeddings"], false);
    let inputs = Inputs::read(&base_folder().join("inputs.safetensors"));
    let merged = load(&out, StorageChoice::F32);
    close("logits", logits(&merged, &inputs).data(), logits(&model, &inputs).data(), 1e-5);
    let table = |m: &Model| m.files.source().read("model.embed_tokens.weight").expect("table");
    assert_eq!(table(&merged), table(&model));
}

#[test]
fn a_whole_model_that_was_trained() {
    let mut model = load(&base_folder(), StorageChoice::F32);
    full::attach(&mut model).expect("attach");
    let inputs = Inputs::read(&base_folder().join("inputs.safetensors"));
    Trainer::new().step(&mut model, &inputs);
    let dir = tempfile::tempdir().expect("folder");
    let report = export(&model, &dir.path().join("out"), &ALL());
    assert!(!report.same_base && report.tensors == model.params.len());
    let written = load(&dir.path().join("out"), StorageChoice::F32);
    assert_eq!(logits(&written, &inputs).data(), logits(&model, &inputs).data());
    assert_eq!(config(&dir.path().join("out")), config(&base_folder()));
}
