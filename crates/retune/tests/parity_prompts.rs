//! Prompts, P-tuning and prefixes against PEFT's numbers: logits, loss, gradients, one AdamW step, five losses, files.
//!
//! The cases of the real all-MiniLM-L6-v2 need its folder: `RETUNE_TEST_MINILM=/path`. Skipped, saying so, without it.

mod common;

use std::path::{Path, PathBuf};

use common::case::{Case, json};
use common::*;
use retune::methods::{self, Attached, Source, prefix, prompt};
use retune::models::{HeadRequest, Model, StorageChoice};
use retune::nn::{Active, Pass, Problem};
use retune::run_file::{self, PromptEncoder, PromptTuningInit, RunFile};
use retune_formats::TensorSource;

/// The parameter that torch calls so.
fn find(model: &Model, torch: &str) -> retune_tensor::ParamId {
    let name = torch.replace(".default.", ".").replace(".modules_to_save.", ".");
    let table = || model.params.find("prompt_embeddings").filter(|_| name.ends_with("embedding.weight"));
    model.params.find(&name).or_else(table).unwrap_or_else(|| panic!("no parameter {name}"))
}

/// Gives the trainable parameters the reference's starting values.
fn start(model: &mut Model, folder: &Path) {
    let own = folder.join("trainable_init.safetensors");
    // Where that would be the adapter's own file, it is not there twice.
    let file = open(&if own.is_file() { own } else { folder.join("adapter_model.safetensors") });
    for info in file.tensors() {
        let id = find(model, &info.name);
        let values = file.read_f32(&info.name).expect("read");
        model.params.tensor_mut(id).expect("f32").data_mut().copy_from_slice(&values);
    }
}

/// What we write is what PEFT wrote: the same tensors and the same configuration.
fn check_files(model: &Model, attached: &Attached, reference: &Path) {
    let folder = tempfile::tempdir().expect("folder");
    attached.write(model, folder.path(), None).expect("save");
    let (ours, theirs) = (
        open(&folder.path().join("adapter_model.safetensors")),
        open(&reference.join("adapter_model.safetensors")),
    );
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for info in theirs.tensors() {
        assert_eq!(ours.get(&info.name).expect("tensor").shape, info.shape, "{}", info.name);
        let (got, want) = (ours.read_f32(&info.name), theirs.read_f32(&info.name));
        close(&info.name, &got.expect("read"), &want.expect("read"), 1e-6);
    }
    let config = |folder: &Path| {
        let mut value = json(&folder.join("adapter_config.json"));
        value["base_model_name_or_path"] = serde_json::Value::Null;
        if let Some(names) = value["modules_to_save"].as_array_mut() {
            names.sort_by_key(|name| name.to_string());
            names.dedup();
        }
        value
    };
    assert_eq!(config(folder.path()), config(reference));
}

/// The model that a case was made on; `None` (said aloud) if it is not there.
fn base(case: &str) -> Option<Model> {
    let kind = case.split('_').next().unwrap_or_default();
    let folder = match kind {
        "llama" => data("parity/llama_base_full"),
        "minilm" => match std::env::var_os("RETUNE_TEST_MINILM") {
            Some(folder) => PathBuf::from(folder),
            None => {
                eprintln!("{case} is SKIPPED: RETUNE_TEST_MINILM names no folder of all-MiniLM-L6-v2");
                return None;
            }
        },
        kind => data(&format!("parity/{kind}_base")),
    };
    let labels = ["a", "b", "c"].map(String::from).to_vec();
    let problem = Problem::SingleLabel;
    let request = match kind {
        "minilm" => {
            HeadRequest::Classifier { problem, labels, pooling: None, keep: false, seed: 1, image_size: None }
        }
        _ => HeadRequest::AsFile,
    };
    Some(Model::load_with(&folder, StorageChoice::F32, &request).unwrap_or_else(|e| panic!("{e}")))
}

fn run() -> RunFile {
    RunFile { seed: 3, ..RunFile::default() }
}

/// One case: attached by its settings with the reference's starting values, and loaded from its files.
fn case(name: &str, prompt_rows: usize, attach: impl Fn(&mut Model) -> Attached) {
    let case = Case::read(name, prompt_rows);
    let Some(mut model) = base(name) else { return };
    let attached = attach(&mut model);
    start(&mut model, case.folder());
    check_files(&model, &attached, case.folder());
    case.check(&mut model, &attached, find);

    let mut loaded = base(name).expect("there");
    let plain = case.logits(&loaded, &Pass::default());
    let source = Source { path: case.folder().into(), weight: 1.0 };
    // In another place of the model the first one stays empty.
    methods::load(&mut loaded, std::slice::from_ref(&source), 1).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(case.logits(&loaded, &Pass::default()).data(), plain.data(), "slot 0 is empty");
    let second = Pass { active: Active::Slot(1), ..Pass::default() };
    case.check_logits(&loaded, &second, "logits of the second place");
    let attached = methods::load(&mut loaded, std::slice::from_ref(&source), 0).expect("load");
    case.check_logits(&loaded, &Pass::default(), "logits of the loaded adapter");
    check_files(&loaded, &attached, case.folder());
    let error = methods::load(&mut loaded, &[source.clone(), source.clone()], 2).err().expect("two");
    assert!(error.to_string().contains("alone"), "{error}");
    let half = Source { weight: 0.5, ..source };
    let error = methods::load(&mut loaded, &[half], 2).err().expect("half");
    assert!(error.to_string().contains("0.5"), "{error}");
}

fn prompt_case(name: &str, prompt_rows: usize, encoder: PromptEncoder, hidden: u32) {
    let settings = run_file::Prompt {
        num_virtual_tokens: 5,
        prompt_tuning_init: PromptTuningInit::Random,
        encoder,
        encoder_hidden_size: Some(hidden),
        ..run_file::Prompt::default()
    };
    case(name, prompt_rows, |model| prompt::attach(model, &settings, &run()).expect("attach"));
}

fn prefix_case(name: &str) {
    let settings = run_file::Prefix { num_virtual_tokens: 5, ..run_file::Prefix::default() };
    case(name, 0, |model| prefix::attach(model, &settings, &run()).expect("attach"));
}

#[test]
fn llama() {
    prompt_case("llama_prompt_tuning", 5, PromptEncoder::None, 32);
    prompt_case("llama_p_tuning", 5, PromptEncoder::Mlp, 32);
    prefix_case("llama_prefix_tuning");
}

#[test]
fn gpt2() {
    prompt_case("gpt2_prompt_tuning", 5, PromptEncoder::None, 32);
    prompt_case("gpt2_p_tuning", 5, PromptEncoder::Mlp, 32);
    prompt_case("gpt2_p_tuning_lstm", 5, PromptEncoder::Lstm, 8);
    prefix_case("gpt2_prefix_tuning");
}

#[test]
fn bert() {
    prompt_case("bert_prompt_tuning", 5, PromptEncoder::None, 32);
    prompt_case("bert_p_tuning", 5, PromptEncoder::Mlp, 32);
    prefix_case("bert_prefix_tuning");
}

#[test]
fn minilm() {
    prompt_case("minilm_prompt_tuning", 5, PromptEncoder::None, 64);
    prompt_case("minilm_p_tuning", 5, PromptEncoder::Mlp, 64);
    prefix_case("minilm_prefix_tuning");
}
