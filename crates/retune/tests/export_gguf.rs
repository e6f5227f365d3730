//! Models written as GGUF files: the same values, the same logits, the same tokens as the model that they were made from.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use retune::export::{ExportDtype, ExportOptions, ExportReport, write};
use retune::methods;
use retune::models::{LoadOptions, Model, StorageChoice};
use retune::text::Special;
use retune_formats::{Dtype, TensorSource, gguf};
use retune_tensor::storage::Format;

fn options(dtype: ExportDtype) -> ExportOptions {
    ExportOptions { dtype, ..ExportOptions::default() }
}

fn export(model: &Model, out: &Path, options: &ExportOptions) -> ExportReport {
    write(model, out, options, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

fn error(model: &Model, out: &Path, options: &ExportOptions) -> String {
    write(model, out, options, &mut |_| {}).err().map(|e| e.to_string()).expect("an error")
}

/// Every architecture and every oddity of one: (folder, inputs).
fn models() -> Vec<(String, std::path::PathBuf)> {
    let variants = ["mistral", "qwen2", "qwen3", "llama_rope_llama3", "llama_bias"];
    let variants = variants.map(|name| format!("llama_variants/{name}"));
    let others = ["parity/llama_base_full", "parity/gpt2_base"].map(String::from);
    others.into_iter().chain(variants).map(|name| (name.clone(), data(&name))).collect()
}

#[test]
fn a_file_gives_the_folders_logits() {
    let dir = tempfile::tempdir().expect("folder");
    for (name, folder) in models() {
        let model = load(&folder, StorageChoice::F32);
        let mut inputs = Inputs::read(&data("parity/llama_base_full/inputs.safetensors"));
        let vocab = model.net.as_text().expect("text").info().vocab_size as u32;
        inputs.ids.iter_mut().for_each(|id| *id %= vocab);
        let want = logits(&model, &inputs);
        let out = dir.path().join(format!("{}.gguf", name.replace('/', "-")));
        let report = export(&model, &out, &options(ExportDtype::F32));
        assert!(report.same_base && report.losses.iter().all(|l| l.loss.is_exact()), "{name}");
        let written = load(&out, StorageChoice::AsIs);
        let got = logits(&written, &inputs);
        if name.contains("rope_llama3") {
            // Divisors of frequencies stand in the file, not the settings that they come from.
            close(&name, got.data(), want.data(), 1e-5);
        } else {
            assert_eq!(got.data(), want.data(), "{name}: the same bits");
        }
        for (_, param) in model.params.iter() {
            let id = written.params.find(&param.name).unwrap_or_else(|| panic!("{name}: {}", param.name));
            let (was, is) = (param.weight.to_tensor(), written.params.get(id).weight.to_tensor());
            assert_eq!(is.data(), was.data(), "{name}: {}", param.name);
        }
        if name.contains("rope_llama3") {
            continue; // Its divisors are of no original context that a configuration would name.
        }
        // And back: a folder of the same values.
        let back = dir.path().join(format!("{}-back", name.replace('/', "-")));
        export(&written, &back, &options(ExportDtype::F32));
        close(&name, logits(&load(&back, StorageChoice::F32), &inputs).data(), want.data(), 1e-5);
    }
}

#[test]
fn blocks_lose_what_the_report_says() {
    let dir = tempfile::tempdir().expect("folder");
    let model = load(&data("parity/llama_base_full"), StorageChoice::F32);
    for (format, most) in [(Format::Q8_0, 0.01), (Format::Q4_1, 0.12), (Format::Q4_0, 0.15)] {
        let out = dir.path().join(format!("{}.gguf", format.name()));
        let mut seen = 0;
        let report = write(&model, &out, &options(ExportDtype::Blocks(format)), &mut |step| {
            seen += 1;
            assert_eq!(step.done, seen);
        });
        let report = report.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(seen, report.losses.len());
        assert!(!report.same_base);
        let written = load(&out, StorageChoice::AsIs);
        for told in &report.losses {
            let id = model.params.find(&told.name).expect("tensor");
            let (was, is) =
                (model.params.get(id), written.params.get(written.params.find(&told.name).expect("tensor")));
            let (was, is) = (was.weight.to_tensor(), is.weight.to_tensor());
            let differences = was.data().iter().zip(is.data()).map(|(a, b)| f64::from(a - b));
            let squares: f64 = differences.clone().map(|d| d * d).sum();
            let rmse = (squares / was.data().len() as f64).sqrt();
            let max = differences.fold(0.0f64, |max, d| max.max(d.abs()));
            assert!((told.loss.rmse() - rmse).abs() <= 1e-6 * rmse.max(1e-12), "{}: {rmse}", told.name);
            assert!((f64::from(told.loss.max) - max).abs() <= 1e-6 * max, "{}: {max}", told.name);
            match is.rows() {
                1 => assert!(told.loss.is_exact() && told.encoding == "f32", "{}", told.name),
                _ => assert!(
                    told.loss.relative() < most && told.loss.relative() > 0.0,
                    "{}: {:?}",
                    told.name,
                    told.loss
                ),
            }
        }
        // The table is the head too: finer than the layers, in what fits rows of 64.
        let table = report.losses.iter().find(|l| l.name == "model.embed_tokens.weight").expect("table");
        assert_eq!(table.encoding, "q8_0");
        assert!(
            report.loss().elements as usize == model.params.iter().map(|(_, p)| p.elements()).sum::<usize>()
        );
    }
}

#[test]
fn what_came_from_a_gguf_stays_as_it_lay() {
    let source = data("gguf/tiny_mixed.gguf");
    let model = load(&source, StorageChoice::AsIs);
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("copy.gguf");
    let report = export(&model, &out, &ExportOptions::default());
    assert!(report.same_base, "{report:?}");
    let (was, is) = (gguf::File::open(&source).expect("source"), gguf::File::open(&out).expect("copy"));
    assert_eq!(is.tensors().len(), was.tensors().len());
    for info in was.tensors() {
        let copy = is.find(&info.name).expect("tensor");
        assert_eq!((copy.dtype, &copy.shape), (info.dtype, &info.shape), "{}", info.name);
        assert_eq!(is.read(&info.name).ok(), was.read(&info.name).ok(), "{}", info.name);
    }
    for (key, value) in was.metadata().iter().filter(|(key, _)| !key.starts_with("general.")) {
        assert_eq!(is.metadata().get(key), Some(value), "{key}");
    }

    // Other types: the file's own where they are the same.
    let report = export(&model, &dir.path().join("q8.gguf"), &options(ExportDtype::Blocks(Format::Q8_0)));
    assert!(report.notes.iter().any(|n| n.contains("quantised again")), "{:?}", report.notes);
    for told in &report.losses {
        let id = model.params.find(&told.name).expect("tensor");
        if model.params.get(id).weight.storage().format() == "q8_0" {
            assert!(told.loss.is_exact(), "{}", told.name);
        }
    }
}

#[test]
fn a_tokenizer_goes_there_and_back() {
    let gguf = load(&data("gguf/tiny_mixed.gguf"), StorageChoice::AsIs);
    let dir = tempfile::tempdir().expect("folder");
    let (folder, out) = (dir.path().join("folder"), dir.path().join("again.gguf"));
    export(&gguf, &folder, &options(ExportDtype::F32));
    let model = load(&folder, StorageChoice::F32);
    let report = export(&model, &out, &options(ExportDtype::F16));
    assert_eq!(report.dtype, Dtype::F16);
    let again = load(&out, StorageChoice::AsIs);
    let (was, is) = (gguf.files.language().expect("old"), again.files.language().expect("new"));
    let texts = [
        "Hello the world, 12345 times!\n\n  tabs\tand   spaces",
        "<|im_start|>user\nnaïve 東京 🦀<|im_end|>\n",
        "",
    ];
    for text in texts {
        for special in [Special::Parse, Special::AsText] {
            let ids = was.tokenizer.encode(text, special).expect("ids");
            assert_eq!(is.tokenizer.encode(text, special).expect("ids"), ids, "{text:?}");
            assert_eq!(is.tokenizer.decode(&ids, false).expect("text"), text);
        }
    }
    let roles =
        |t: &retune::text::Tokenizer| (t.bos(), t.eos(), t.pad(), t.unk(), t.add_bos(), t.eos_ids().clone());
    assert_eq!(roles(&is.tokenizer), roles(&was.tokenizer));
    assert_eq!(is.template.source(), was.template.source());
    let file = gguf::File::open(&out).expect("file");
    let metadata = file.metadata();
    assert_eq!(metadata.u32("general.file_type").expect("type"), 1);
    assert_eq!(
        metadata.array_str("tokenizer.ggml.tokens").expect("tokens").len(),
        model.net.as_text().expect("text").info().vocab_size
    );
}

#[test]
fn an_adapter_is_merged_into_a_gguf() {
    let folder = data("gguf");
    let inputs = Inputs::read(&folder.join("inputs.safetensors"));
    let mut model = load(&folder.join("tiny_mixed.gguf"), StorageChoice::AsIs);
    let source = methods::Source { path: folder.join("lora"), weight: 1.0 };
    methods::load(&mut model, &[source], 0).unwrap_or_else(|e| panic!("{e}"));
    let want = logits(&model, &inputs);
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("merged.gguf");
    let report = export(&model, &out, &ExportOptions::default());
    assert!(!report.merged.is_empty() && !report.same_base);
    // What was merged lies in f32, the rest as it was.
    let merged = load(&out, StorageChoice::AsIs);
    close("merged", logits(&merged, &inputs).data(), want.data(), 1e-5);
    for told in &report.losses {
        let id = model.params.find(&told.name).expect("tensor");
        let module = told.name.trim_end_matches(".weight");
        let was = model.params.get(id).weight.storage().format();
        let is = if report.merged.iter().any(|m| m == module) { "f32" } else { was };
        assert_eq!(told.encoding, is, "{}", told.name);
    }
    // On request all of it is quantised again, and the price is told.
    let report = export(&model, &dir.path().join("q8.gguf"), &options(ExportDtype::Blocks(Format::Q8_0)));
    assert!(report.notes.iter().any(|n| n.contains("merged and quantised again")), "{:?}", report.notes);
    let merged = load(&dir.path().join("q8.gguf"), StorageChoice::AsIs);
    close("q8", logits(&merged, &inputs).data(), want.data(), 0.05);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("out.gguf");
    let llama = load(&data("parity/llama_base_full"), StorageChoice::F32);
    let message = error(&llama, &dir.path().join("folder"), &options(ExportDtype::Blocks(Format::Q8_0)));
    assert!(message.contains("q8_0") && message.contains(".gguf"), "{message}");
    assert!(!dir.path().join("folder").exists());
    let bert = load(&data("parity/bert_base"), StorageChoice::F32);
    assert!(error(&bert, &out, &ExportOptions::default()).contains("write a folder"));
    assert!(!out.exists());

    fs::write(&out, "mine").expect("write");
    assert!(error(&llama, &out, &ExportOptions::default()).contains("--overwrite"));
    assert_eq!(fs::read(&out).expect("kept"), b"mine");
    export(&llama, &out, &ExportOptions { overwrite: true, ..ExportOptions::default() });
    let again = load(&out, StorageChoice::AsIs);
    assert!(
        error(&again, &out, &ExportOptions { overwrite: true, ..ExportOptions::default() })
            .contains("own file")
    );
}

#[test]
fn a_failure_leaves_the_old_file() {
    let mut model = load(&data("parity/llama_base_full"), StorageChoice::F32);
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("out.gguf");
    export(&model, &out, &ExportOptions::default());
    let before = fs::read(&out).expect("file");
    let id = model.params.find("model.layers.1.mlp.up_proj.weight").expect("weight");
    model.params.tensor_mut(id).expect("f32").data_mut()[5] = f32::INFINITY;
    let overwrite = ExportOptions { overwrite: true, ..options(ExportDtype::Blocks(Format::Q4_0)) };
    let message = error(&model, &out, &overwrite);
    assert!(message.contains("up_proj") && message.contains("inf"), "{message}");
    assert_eq!(fs::read(&out).expect("file"), before);
    assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 1);
}

#[test]
fn a_file_that_changes_underneath_is_an_error() {
    let dir = tempfile::tempdir().expect("folder");
    let (source, out) = (dir.path().join("model"), dir.path().join("out.gguf"));
    fs::create_dir(&source).expect("folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(data("parity/llama_base_full").join(name), source.join(name)).expect("copy");
    }
    let in_file = LoadOptions { in_file: true, ..LoadOptions::default() };
    let model = Model::load(&source, in_file).expect("model");
    let inputs = Inputs::read(&data("parity/llama_base_full/inputs.safetensors"));
    let plain = load(&source, StorageChoice::F32);
    assert_eq!(logits(&model, &inputs).data(), logits(&plain, &inputs).data(), "the same bits");

    let weights = fs::OpenOptions::new().write(true).open(source.join("model.safetensors")).expect("open");
    weights.set_len(20_000).expect("cut");
    let message = error(&model, &out, &options(ExportDtype::F16));
    assert!(message.contains("model.safetensors"), "{message}");
    assert!(!message.contains("NaN") && !out.exists(), "{message}");
}
