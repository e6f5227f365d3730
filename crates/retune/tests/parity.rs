//! Our numbers against PyTorch's: logits, loss, gradients, one AdamW step and five losses (see tests/data/README.md).

mod common;

use std::path::Path;

use common::*;
use retune::methods::{self, full};
use retune::models::{Model, StorageChoice};
use retune::nn::Pass;
use retune_formats::TensorSource;

const TOLERANCE: f32 = 1e-4;

/// `model...lora_A.default.weight` of torch to the name on disk.
fn saved_name(torch: &str) -> String {
    torch.replace(".default.", ".")
}

fn check_case(model: &mut Model, folder: &Path) {
    let inputs = Inputs::read(&folder.join("inputs.safetensors"));
    check_logits(model, &inputs, &folder.join("logits.safetensors"), TOLERANCE);
    let meta: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("meta.json")).expect("meta"))
            .expect("json");
    let losses: Vec<f32> = meta["adamw_losses"]
        .as_array()
        .expect("losses")
        .iter()
        .map(|x| x.as_f64().expect("number") as f32)
        .collect();

    for checkpoint in [false, true] {
        let (loss, gradients) = loss_and_gradients(model, &inputs, &Pass { checkpoint, ..Pass::default() });
        close("loss", &[loss], &[meta["loss"].as_f64().expect("loss") as f32], TOLERANCE);
        let reference = open(&folder.join("grads.safetensors"));
        let mut checked = 0;
        for info in reference.tensors() {
            let name = saved_name(&info.name);
            let id = model.params.find(&name).unwrap_or_else(|| panic!("no parameter {name}"));
            let got = gradients.get(id).unwrap_or_else(|| panic!("no gradient for {name}"));
            close(
                &format!("gradient of {name}"),
                got.data(),
                &reference.read_f32(&info.name).expect("read"),
                TOLERANCE,
            );
            checked += 1;
        }
        assert_eq!(checked, gradients.iter().count(), "as many gradients as the reference has");
    }

    let mut trainer = Trainer::new();
    for (step, want) in losses.iter().enumerate() {
        close(
            &format!("loss {step}"),
            &[trainer.step(model, &inputs)],
            &[*want],
            if step == 0 { 1e-4 } else { 1e-3 },
        );
        if step == 0 {
            let reference = open(&folder.join("step1.safetensors"));
            for info in reference.tensors() {
                let name = saved_name(&info.name);
                let id = model.params.find(&name).unwrap_or_else(|| panic!("no parameter {name}"));
                let got = model.params.get(id).weight.to_tensor();
                close(
                    &format!("{name} after a step"),
                    got.data(),
                    &reference.read_f32(&info.name).expect("read"),
                    TOLERANCE,
                );
            }
        }
    }
}

#[test]
fn full_fine_tuning() {
    let folder = data("parity/llama_base_full");
    let mut model = load(&folder, StorageChoice::F32);
    full::attach(&mut model).expect("attach");
    check_case(&mut model, &folder);
}

fn lora_case(name: &str) {
    let folder = data("parity").join(name);
    let mut model = load(&data("parity/llama_base_full"), StorageChoice::F32);
    let source = methods::Source { path: folder.clone(), weight: 1.0 };
    methods::load(&mut model, &[source], 0).unwrap_or_else(|e| panic!("{e}"));
    check_case(&mut model, &folder);
}

#[test]
fn lora_on_all_linears() {
    lora_case("llama_lora");
}

#[test]
fn lora_on_q_and_v() {
    lora_case("llama_lora_qv");
}

#[test]
fn rank_stabilised_lora() {
    lora_case("llama_lora_rslora");
}

/// Every Llama-shaped kind, its configuration in the words of transformers 5 and 4.
#[test]
fn variants() {
    let mut seen = 0;
    for entry in std::fs::read_dir(data("llama_variants")).expect("folder") {
        let folder = entry.expect("entry").path();
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().expect("name").to_string_lossy().into_owned();
        variant(&name, &folder, &folder);
        let old = tempfile::tempdir().expect("folder");
        for file in std::fs::read_dir(&folder).expect("folder") {
            let file = file.expect("file").path();
            std::fs::copy(&file, old.path().join(file.file_name().expect("name"))).expect("copy");
        }
        std::fs::copy(folder.join("config_v4.json"), old.path().join("config.json")).expect("copy");
        variant(&name, old.path(), &folder);
        seen += 1;
    }
    assert_eq!(seen, 7, "variants");
}

fn variant(name: &str, model: &Path, folder: &Path) {
    let mut model = load(model, StorageChoice::F32);
    full::attach(&mut model).expect("attach");
    let inputs = Inputs::read(&folder.join("inputs.safetensors"));
    check_logits(&model, &inputs, &folder.join("logits.safetensors"), TOLERANCE);
    let (loss, gradients) = loss_and_gradients(&model, &inputs, &Pass::default());
    let want = open(&folder.join("logits.safetensors")).read_f32("loss").expect("loss");
    close(&format!("{name}: loss"), &[loss], &want, TOLERANCE);
    let reference = open(&folder.join("grads.safetensors"));
    for info in reference.tensors() {
        let id =
            model.params.find(&info.name).unwrap_or_else(|| panic!("{name}: no parameter {}", info.name));
        let got = gradients.get(id).unwrap_or_else(|| panic!("{name}: no gradient for {}", info.name));
        let want = reference.read_f32(&info.name).expect("read");
        close(&format!("{name}: gradient of {}", info.name), got.data(), &want, TOLERANCE);
    }
}

/// A GGUF whose matrices use every block type, trained upon as it lies and expanded.
#[test]
fn gguf_blocks_as_they_lie() {
    for storage in [StorageChoice::AsIs, StorageChoice::F32] {
        let folder = data("gguf");
        let inputs = Inputs::read(&folder.join("inputs.safetensors"));
        let mut model = load(&folder.join("tiny_mixed.gguf"), storage);
        check_logits(&model, &inputs, &folder.join("logits.safetensors"), TOLERANCE);
        let adapter = folder.join("lora");
        methods::load(&mut model, &[methods::Source { path: adapter.clone(), weight: 1.0 }], 0)
            .unwrap_or_else(|e| panic!("{e}"));
        check_logits(&model, &inputs, &adapter.join("logits.safetensors"), TOLERANCE);
        let (_, gradients) = loss_and_gradients(&model, &inputs, &Pass::default());
        let reference = open(&adapter.join("grads.safetensors"));
        for info in reference.tensors() {
            let name = saved_name(&info.name);
            let id = model.params.find(&name).unwrap_or_else(|| panic!("no parameter {name}"));
            let got = gradients.get(id).unwrap_or_else(|| panic!("no gradient for {name}"));
            close(&name, got.data(), &reference.read_f32(&info.name).expect("read"), TOLERANCE);
        }
    }
}
