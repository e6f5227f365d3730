//! LoRA, DoRA and IA³ against PEFT: logits, loss, gradients, one AdamW step, five losses, merged weights, and the files,
//! which are read and written again.
//!
//! The cases of the real all-MiniLM-L6-v2 need its folder: `RETUNE_TEST_MINILM=/path`. Skipped, saying so, without it.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::texts::*;
use common::*;
use retune::export::{ExportDtype, ExportOptions, write_folder};
use retune::methods::{self, Attached, Source};
use retune::models::fresh;
use retune::models::{HeadRequest, Model, StorageChoice};
use retune::nn::{Pass, Problem};
use retune_formats::{Dtype, TensorSource};
use retune_tensor::{Tensor, Weight};
use serde_json::{Value, json};

const TOLERANCE: f32 = 1e-4;

/// `classifier.modules_to_save.default.weight` and the like of torch to the name on disk.
fn saved_name(torch: &str) -> String {
    let name = torch.replace(".modules_to_save.default.", ".").replace(".default.", ".");
    let name = name.strip_suffix(".default").unwrap_or(&name).to_string();
    name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
}

fn attach(model: &mut Model, folder: &Path, slot: usize) -> Attached {
    let source = Source { path: folder.to_path_buf(), weight: 1.0 };
    methods::load(model, &[source], slot).unwrap_or_else(|e| panic!("{e}"))
}

fn classes(n: usize) -> HeadRequest {
    HeadRequest::Classifier {
        problem: Problem::SingleLabel,
        labels: (0..n).map(|i| format!("LABEL_{i}")).collect(),
        pooling: None,
        keep: false,
        seed: 9,
        image_size: None,
    }
}

fn open_model(path: &Path, head: &HeadRequest) -> Model {
    Model::load_with(path, StorageChoice::F32, head).unwrap_or_else(|e| panic!("{e}"))
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<f32>)>;

fn tensors(folder: &Path) -> Tensors {
    let file = open(&folder.join("adapter_model.safetensors"));
    let read = |name: &str| file.read_f32(name).expect("read");
    file.tensors().iter().map(|t| (t.name.clone(), (t.dtype, t.shape.clone(), read(&t.name)))).collect()
}

/// The configuration; lists that are sets to PEFT in one order.
fn config(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("adapter_config.json")).expect("config");
    let mut value: Value = serde_json::from_str(&text).expect("json");
    for key in ["target_modules", "modules_to_save", "feedforward_modules"] {
        if let Some(list) = value[key].as_array_mut() {
            list.sort_by_key(|name| name.to_string());
            list.dedup();
        }
    }
    value
}

/// What was loaded from a folder is written again as it was.
fn check_files(model: &Model, attached: &Attached, folder: &Path) {
    let out = tempfile::tempdir().expect("folder");
    attached.write(model, out.path(), None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config(out.path()), config(folder), "{}", folder.display());
    let (ours, theirs) = (tensors(out.path()), tensors(folder));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{}", folder.display());
    for (name, tensor) in &theirs {
        assert_eq!(&ours[name], tensor, "{name}");
    }
}

/// Everything that a case says.
fn check(base: &Path, head: &HeadRequest, folder: &Path) {
    let mut model = open_model(base, head);
    let texts = Texts::read(&folder.join("inputs.safetensors"));
    let attached = attach(&mut model, folder, 0);
    let file = open(&folder.join("logits.safetensors"));
    let want = file.read_f32("logits").expect("logits");
    let got = outputs(&model, &texts);
    let cols = got.cols();
    let of_texts = file.get("logits").expect("logits").shape.len() == 2;
    let want: Vec<f32> = match of_texts {
        true => want,
        false => texts.places.iter().flat_map(|p| want[p * cols..(p + 1) * cols].to_vec()).collect(),
    };
    close("logits", got.data(), &want, TOLERANCE);
    check_files(&model, &attached, folder);
    check_merge(&model, &texts, head, &got);
    check_training(&mut model, &texts, folder);
}

/// The merged folder, loaded as a plain model, gives the same.
fn check_merge(model: &Model, texts: &Texts, head: &HeadRequest, want: &Tensor) {
    let out = tempfile::tempdir().expect("folder");
    let folder = out.path().join("merged");
    let options = ExportOptions { dtype: ExportDtype::F32, ..ExportOptions::default() };
    write_folder(model, &folder, &options).unwrap_or_else(|e| panic!("{e}"));
    let keep = match head.clone() {
        HeadRequest::Classifier { problem, labels, pooling, seed, .. } => {
            HeadRequest::Classifier { problem, labels, pooling, keep: true, seed, image_size: None }
        }
        other => other,
    };
    close("merged", outputs(&open_model(&folder, &keep), texts).data(), want.data(), 2e-5);
}

fn check_training(model: &mut Model, texts: &Texts, folder: &Path) {
    let text = std::fs::read_to_string(folder.join("meta.json")).expect("meta");
    let meta: Value = serde_json::from_str(&text).expect("json");
    let number = |value: &Value| value.as_f64().expect("number") as f32;
    let reference = open(&folder.join("grads.safetensors"));
    for checkpoint in [true, false] {
        let (loss, gradients) = loss_and_grads(model, texts, &Pass { checkpoint, ..Pass::default() });
        close("loss", &[loss], &[number(&meta["loss"])], TOLERANCE);
        for info in reference.tensors() {
            let name = saved_name(&info.name);
            let id = model.params.find(&name).unwrap_or_else(|| panic!("no parameter {name}"));
            let got = gradients.get(id).unwrap_or_else(|| panic!("no gradient for {name}"));
            let want = reference.read_f32(&info.name).expect("read");
            close(&format!("gradient of {name}"), got.data(), &want, TOLERANCE);
        }
        assert_eq!(
            reference.tensors().len(),
            gradients.iter().count(),
            "as many gradients as the reference has"
        );
    }
    let mut trainer = Trainer::new();
    for (step, want) in meta["adamw_losses"].as_array().expect("losses").iter().enumerate() {
        let (loss, gradients) = loss_and_grads(model, texts, &Pass::default());
        trainer.update(model, &gradients);
        close(&format!("loss {step}"), &[loss], &[number(want)], if step == 0 { 1e-4 } else { 1e-3 });
        if step > 0 {
            continue;
        }
        let after = open(&folder.join("step1.safetensors"));
        for info in after.tensors() {
            let id = model.params.find(&saved_name(&info.name)).expect("parameter");
            let mut got = model.params.get(id).weight.to_tensor();
            let want = after.read_f32(&info.name).expect("read");
            let gradient = reference.read_f32(&info.name).expect("gradient");
            let largest = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            // Adam's first step is g / (|g| + eps): where g is smaller than its tolerance its sign is rounding's.
            for i in
                (0..want.len()).filter(|&i| gradient[i] != 0.0 && gradient[i].abs() < TOLERANCE * largest)
            {
                got.data_mut()[i] = want[i];
            }
            close(&format!("{} after a step", info.name), got.data(), &want, TOLERANCE);
        }
    }
}

fn llama(case: &str) {
    check(&data("parity/llama_base_full"), &HeadRequest::AsFile, &data("parity").join(case));
}

#[test]
fn llama_lora() {
    llama("llama_lora");
    llama("llama_lora_qv");
    llama("llama_lora_rslora");
}

#[test]
fn llama_dora() {
    llama("llama_lora_dora");
}

#[test]
fn llama_ia3() {
    llama("llama_ia3");
}

#[test]
fn bert_lora_and_dora() {
    for case in ["bert_lora", "bert_lora_dora"] {
        check(&data("parity/bert_base"), &HeadRequest::AsFile, &data("parity").join(case));
    }
}

#[test]
fn bert_ia3() {
    check(&data("parity/bert_base"), &HeadRequest::AsFile, &data("parity/bert_ia3"));
}

#[test]
fn gpt2_cases() {
    for case in ["gpt2_lora", "gpt2_lora_dora", "gpt2_ia3"] {
        check(&data("parity/gpt2_base"), &HeadRequest::AsFile, &data("parity").join(case));
    }
    check(&data("parity/gpt2_base"), &classes(3), &data("parity/gpt2_seqcls_lora"));
}

#[test]
fn the_real_minilm() {
    let Some(base) = std::env::var_os("RETUNE_TEST_MINILM").map(PathBuf::from) else {
        eprintln!("SKIPPED: set RETUNE_TEST_MINILM to the folder of all-MiniLM-L6-v2");
        return;
    };
    for case in ["minilm_lora_qv", "minilm_lora_rslora", "minilm_lora_dora", "minilm_ia3"] {
        check(&base, &classes(3), &data("parity").join(case));
    }
}

/// A tiny new model of the shape that the adapters under `formats/` are for.
fn tiny(config: Value, head: &HeadRequest) -> (tempfile::TempDir, Model) {
    let out = tempfile::tempdir().expect("folder");
    let folder = out.path().join("model");
    fresh::write_folder(Path::new("config.json"), &config, 3, None, &[], &folder)
        .unwrap_or_else(|e| panic!("{e}"));
    let model = open_model(&folder, head);
    (out, model)
}

fn tiny_llama() -> (tempfile::TempDir, Model) {
    let config = json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": true,
        "initializer_range": 0.5
    });
    tiny(config, &HeadRequest::AsFile)
}

fn tiny_bert() -> (tempfile::TempDir, Model) {
    let config = json!({
        "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2,
        "initializer_range": 0.5
    });
    tiny(config, &classes(3))
}

fn tiny_gpt2() -> (tempfile::TempDir, Model) {
    let config = json!({
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64,
        "initializer_range": 0.5
    });
    tiny(config, &HeadRequest::AsFile)
}

/// Reads a folder that PEFT wrote, writes it again, and sees that it does something.
fn read_and_written(name: &str, (_kept, mut model): (tempfile::TempDir, Model)) {
    let folder = data("formats").join(name);
    let texts = Texts::made(&model, &[7, 3]);
    let before = outputs(&model, &texts);
    let attached = attach(&mut model, &folder, 0);
    // Three of them hold the values of the start.
    let moved = outputs(&model, &texts).data() != before.data();
    assert_eq!(moved, !["ia3_llama", "lora_embed_llama", "lora_gpt2"].contains(&name), "{name}");
    check_files(&model, &attached, &folder);
}

#[test]
fn folders_for_llama() {
    for name in ["lora_dora", "lora_pissa", "lora_mts_llama", "ia3_llama"] {
        read_and_written(name, tiny_llama());
    }
}

/// PEFT saves a targeted table's own weight: it must be this model's.
#[test]
fn a_folder_with_a_table() {
    let folder = data("formats/lora_embed_llama");
    let (kept, mut model) = tiny_llama();
    let source = Source { path: folder.clone(), weight: 1.0 };
    let message = methods::load(&mut model, &[source], 0).err().expect("another base").to_string();
    assert!(message.contains("model.embed_tokens") && message.contains("resized"), "{message}");
    let key = "base_model.model.model.embed_tokens.base_layer.weight";
    let table = open(&folder.join("adapter_model.safetensors")).read_f32(key).expect("table");
    let id = model.params.find("model.embed_tokens.weight").expect("table");
    model.params.get_mut(id).weight = Weight::F32(Tensor::from_vec(64, 32, table));
    read_and_written("lora_embed_llama", (kept, model));
}

#[test]
fn folders_for_bert() {
    for name in ["lora_bert_seqcls", "ia3_bert"] {
        read_and_written(name, tiny_bert());
    }
}

#[test]
fn a_folder_for_gpt2() {
    read_and_written("lora_gpt2", tiny_gpt2());
}

/// Adapters of several kinds in slots 0, 1 and 2: each example gives what it gives alone, to the bit.
#[test]
fn a_mixed_batch_is_each_alone() {
    let base = data("parity/llama_base_full");
    let cases = ["llama_lora", "llama_lora_dora", "llama_ia3"].map(|name| data("parity").join(name));
    mixed(&base, &cases, &[(5, Some(1)), (9, None), (7, Some(0)), (6, Some(2)), (8, Some(2)), (11, Some(1))]);
    let cases = ["bert_lora", "bert_lora_dora", "bert_ia3"].map(|name| data("parity").join(name));
    mixed(&data("parity/bert_base"), &cases, &[(5, Some(1)), (9, None), (7, Some(0)), (6, Some(2))]);
}

/// Examples of these lengths through these slots. Up to four rows are multiplied another way, with another rounding: no
/// text is so short, and no more are pooled.
fn mixed(base: &Path, cases: &[PathBuf; 3], examples: &[(usize, Option<usize>)]) {
    let (lengths, slots): (Vec<usize>, Vec<Option<usize>>) = examples.iter().copied().unzip();
    let mut model = open_model(base, &HeadRequest::AsFile);
    for (slot, case) in cases.iter().enumerate() {
        attach(&mut model, case, slot);
    }
    let texts = Texts::made(&model, &lengths);
    let pass = Pass { active: retune::nn::Active::PerExample(slots.clone().into()), ..Pass::default() };
    let together = outputs_by(&model, &texts, &pass);
    let per_row = together.rows() == texts.ids.len();
    let mut row = 0;
    for (range, slot) in texts.segments().ranges().zip(slots) {
        let mut alone = open_model(base, &HeadRequest::AsFile);
        if let Some(slot) = slot {
            attach(&mut alone, &cases[slot], 0);
        }
        let one =
            Texts { ids: texts.ids[range.clone()].to_vec(), lengths: vec![range.len()], ..Texts::default() };
        let want = outputs(&alone, &one);
        let rows = if per_row { range.len() } else { 1 };
        let cols = together.cols();
        assert!(want.data() == &together.data()[row * cols..(row + rows) * cols], "slot {slot:?}");
        row += rows;
    }
}
