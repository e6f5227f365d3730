//! Conversions keep what an adapter does: the change `s B A` of each weight is the same in every tool's files.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::*;
use retune::convert::{Base, Target, convert};
use retune::methods::{self, Source};
use retune::models::{Model, StorageChoice};
use retune_formats::lora_tensors::LoraTensors;
use retune_formats::peft::PeftAdapter;

/// `s B A` by module.
fn changes(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let adapter = PeftAdapter::open(folder).unwrap_or_else(|e| panic!("{e}"));
    let lora = LoraTensors::from_peft(&adapter).unwrap_or_else(|e| panic!("{e}"));
    lora.modules
        .iter()
        .map(|(name, m)| {
            let at = |o: usize, i: usize| {
                let sum: f64 =
                    (0..m.r).map(|k| f64::from(m.b[o * m.r + k]) * f64::from(m.a[k * m.inputs + i])).sum();
                (sum * m.scale) as f32
            };
            (name.clone(), (0..m.outputs * m.inputs).map(|n| at(n / m.inputs, n % m.inputs)).collect())
        })
        .collect()
}

/// There and back again.
fn round_trip(adapter: &Path, target: Target, base: &Base) {
    let folder = tempfile::tempdir().expect("folder");
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    convert(adapter, target, Some(base), &there).unwrap_or_else(|e| panic!("{target:?}: {e}"));
    convert(&there, Target::Peft, Some(base), &back).unwrap_or_else(|e| panic!("{target:?}: {e}"));
    let (before, after) = (changes(adapter), changes(&back));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{target:?}");
    for (module, values) in &before {
        close(&format!("{target:?} {module}"), &after[module], values, 1e-6);
    }
}

#[test]
fn a_lora_goes_through_every_tool() {
    let llama = Base::open(&data("parity/llama_base_full")).expect("base");
    for case in ["parity/llama_lora", "parity/llama_lora_rslora", "parity/llama_lora_qv"] {
        for target in [Target::Peft, Target::Mlx, Target::Gguf] {
            round_trip(&data(case), target, &llama);
        }
    }
    round_trip(&data("parity/llama_lora_qv"), Target::AdapterHub, &llama);
}

#[test]
fn an_adapter_hub_lora_becomes_pefts() {
    let base = Base::open(&data("parity/bert_base")).expect("base");
    let folder = tempfile::tempdir().expect("folder");
    let to = folder.path().join("peft");
    let done = convert(&data("formats/ah_bert_lora"), Target::Peft, None, &to).expect("converted");
    assert_eq!(changes(&to).len(), done.modules);
    let back = folder.path().join("task");
    convert(&to, Target::AdapterHub, Some(&base), &back).expect("converted back");
    let read = |path: &Path| std::fs::read(path.join("adapter.safetensors")).expect("weights");
    assert_eq!(read(&data("formats/ah_bert_lora")), read(&back), "there and back is the same file");
}

#[test]
fn what_a_target_cannot_carry_is_refused_by_name() {
    let base = Base::open(&data("parity/llama_base_full")).expect("base");
    let out = tempfile::tempdir().expect("folder");
    let refused = |adapter: &str, target, base: Option<&Base>, why: &str| {
        let to = out.path().join("out");
        let message = convert(&data(adapter), target, base, &to).expect_err(adapter).to_string();
        assert!(message.contains(why), "{adapter}: {message}");
        assert!(!to.exists(), "{adapter}: something was written");
    };
    refused("parity/llama_lora_dora", Target::Gguf, Some(&base), "magnitude");
    refused("parity/llama_lora_dora", Target::AdapterHub, Some(&base), "DoRA");
    refused("parity/llama_lora", Target::Gguf, None, "--model");
    refused("parity/llama_ia3", Target::Mlx, None, "IA3");
    refused("parity/llama_prefix_tuning", Target::Gguf, Some(&base), "PREFIX_TUNING");
    refused("formats/lora_mts_llama", Target::Mlx, None, "only A and B");
    refused("formats/ah_bert_seq_bn", Target::Peft, None, "bottleneck");
    refused("formats/ah_bert_prompt_tuning", Target::Peft, None, "no position");
    refused("formats/ah_bert_prefix_flat", Target::Peft, None, "no positions");
    refused("formats/ah_bert_dora", Target::Peft, None, "DoRA");
    refused("formats/lora_embed_llama", Target::Mlx, None, "only A and B");
    let bert = Base::open(&data("parity/bert_base")).expect("base");
    refused("parity/bert_ah_lora", Target::Gguf, Some(&bert), "classifier");
    refused("parity/bert_ia3", Target::AdapterHub, Some(&bert), "scales its input");
    refused("parity/bert_prompt_tuning", Target::AdapterHub, Some(&bert), "PROMPT_TUNING");
}

/// The logits of a base with an adapter on it, for some text.
fn logits(base: &str, adapter: &Path) -> Vec<f32> {
    let mut model = load(&data(base), StorageChoice::F32);
    load_on(&mut model, adapter).unwrap_or_else(|e| panic!("{}: {e}", adapter.display()));
    let ids: Vec<u32> = (3..12).collect();
    let segments = retune_tensor::Segments::from_lengths(&[4, 5]);
    let tape = retune_tensor::Tape::inference(&model.params);
    let input = retune::models::TextInput::new(&ids, &segments);
    let hidden = model.net.as_text().expect("text").hidden(&tape, &input, &retune::nn::Pass::default());
    match model.net.head() {
        retune::nn::Head::LanguageModel(head) => head.forward(&tape, &hidden.rows, &hidden.x),
        retune::nn::Head::Classifier(head) => head.forward(&tape, &hidden),
        retune::nn::Head::Detector(_) | retune::nn::Head::None => panic!("no head"),
    }
    .value()
    .data()
    .to_vec()
}

fn load_on(model: &mut Model, adapter: &Path) -> retune::error::Result<()> {
    methods::load(model, &[Source { path: adapter.into(), weight: 1.0 }], 0).map(drop)
}

/// What is loaded from another tool's files is what is loaded once they are converted to PEFT's, to the last bit.
#[test]
fn loading_is_converting_in_memory() {
    let folder = tempfile::tempdir().expect("folder");
    let check = |model: &str, adapter: &Path, name: &str| {
        let base = Base::open(&data(model)).expect("base");
        let to = folder.path().join(name);
        convert(adapter, Target::Peft, Some(&base), &to).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(logits(model, adapter), logits(model, &to), "{name}");
        let back = folder.path().join(format!("{name}_back/task"));
        if let Ok(adapter_hub) = convert(&to, Target::AdapterHub, Some(&base), &back) {
            close(name, &logits(model, &back), &logits(model, adapter), 1e-5);
            assert_eq!(adapter_hub.notes, [""; 0]);
        }
        to
    };
    for (model, name) in [
        ("parity/bert_base", "bert_ah_lora"),
        ("parity/bert_base", "bert_ah_ia3"),
        ("parity/gpt2_base", "gpt2_ah_lora"),
        ("parity/gpt2_base", "gpt2_ah_ia3"),
        ("parity/llama_base_full", "llama_ah_lora"),
        ("parity/llama_base_full", "llama_ah_ia3"),
    ] {
        check(model, &data("parity").join(name), name);
    }
    let llama = Base::open(&data("parity/llama_base_full")).expect("base");
    for case in ["llama_lora", "llama_lora_dora"] {
        for target in [Target::Mlx, Target::Gguf] {
            let there = folder.path().join(format!("{case}_{target:?}"));
            match convert(&data("parity").join(case), target, Some(&llama), &there) {
                Ok(_) => {}
                Err(_) if case == "llama_lora_dora" && target == Target::Gguf => continue,
                Err(error) => panic!("{case} {target:?}: {error}"),
            }
            let name = format!("{case}_{target:?}_peft");
            let peft = check("parity/llama_base_full", &there, &name);
            let original = logits("parity/llama_base_full", &data("parity").join(case));
            close(&name, &logits("parity/llama_base_full", &peft), &original, 1e-5);
        }
    }
}

/// Where positions are rotations, AdapterHub's prefix has a form in PEFT: its keys turned by the positions that PEFT's takes.
#[test]
fn prefixes_are_turned_where_positions_are_rotations() {
    let folder = tempfile::tempdir().expect("folder");
    let model = "parity/llama_base_full";
    let base = Base::open(&data(model)).expect("base");
    for (name, target, back) in [
        ("llama_ah_prefix", Target::Peft, Target::AdapterHub),
        ("llama_prefix_tuning", Target::AdapterHub, Target::Peft),
    ] {
        let from = data("parity").join(name);
        let (there, again) =
            (folder.path().join(format!("{name}/there")), folder.path().join(format!("{name}/again")));
        convert(&from, target, Some(&base), &there).unwrap_or_else(|e| panic!("{name}: {e}"));
        convert(&there, back, Some(&base), &again).unwrap_or_else(|e| panic!("{name}: {e}"));
        let want = logits(model, &from);
        close(name, &logits(model, &there), &want, 1e-5);
        close(name, &logits(model, &again), &want, 1e-5);
    }
    let refused =
        convert(&data("parity/gpt2_ah_prefix_flat"), Target::Peft, Some(&base), &folder.path().join("x"));
    assert!(refused.expect_err("another base").to_string().contains("for a gpt2 model"));
}

/// Another tool's folder without a module that its configuration asks for is refused by the module's name.
#[test]
fn what_is_missing_in_another_tools_files_is_told() {
    use retune_formats::{TensorOut, TensorSource, safetensors};
    let folder = tempfile::tempdir().expect("folder");
    let llama = Base::open(&data("parity/llama_base_full")).expect("base");
    let mlx = folder.path().join("mlx");
    convert(&data("parity/llama_lora"), Target::Mlx, Some(&llama), &mlx).expect("mlx");
    let drop_last = |from: &Path, to: &Path, file: &str, of: &str| {
        std::fs::create_dir_all(to).expect("folder");
        let config = "adapter_config.json";
        std::fs::copy(from.join(config), to.join(config)).expect("copy");
        let source = safetensors::File::open(from.join(file)).expect("weights");
        let kept = source.tensors().iter().filter(|info| !info.name.contains(of));
        let tensors: Vec<_> = kept.map(|info| TensorOut::copy(&source, info)).collect();
        safetensors::write(&to.join(file), tensors, &[]).expect("write");
    };
    let less = folder.path().join("less");
    drop_last(&mlx, &less, "adapters.safetensors", "layers.1.mlp.up_proj");
    let mut model = load(&data("parity/llama_base_full"), StorageChoice::F32);
    let error = load_on(&mut model, &less).expect_err("a module is missing").to_string();
    assert!(error.contains("model.layers.1.mlp.up_proj") && error.contains("asks for it"), "{error}");
    let hub = folder.path().join("hub");
    drop_last(&data("parity/llama_ah_ia3"), &hub, "adapter.safetensors", "layers.1.");
    let error = load_on(&mut model, &hub).expect_err("a layer is missing").to_string();
    assert!(error.contains("model.layers.1.self_attn") && error.contains("asks for it"), "{error}");
    let other = load_on(&mut load(&data("parity/bert_base"), StorageChoice::F32), &mlx);
    assert!(other.expect_err("another base").to_string().contains("model.layers.0"));
}

/// Every value of every other tool's configuration, replaced by odd ones: refused or used, never a panic; what does not change
/// the meaning of a tensor's shape cannot be accepted with tensors of another shape.
#[test]
fn damaged_configurations_of_other_tools_never_panic() {
    let folder = tempfile::tempdir().expect("folder");
    let llama = Base::open(&data("parity/llama_base_full")).expect("base");
    let mlx = folder.path().join("mlx");
    convert(&data("parity/llama_lora_dora"), Target::Mlx, Some(&llama), &mlx).expect("mlx");
    let hub = |name: &str| data("parity").join(name);
    let cases = [
        ("parity/llama_base_full", mlx),
        ("parity/bert_base", hub("bert_ah_lora")),
        ("parity/bert_base", hub("bert_ah_ia3")),
        ("parity/bert_base", hub("bert_ah_prompt")),
        ("parity/bert_base", hub("bert_ah_prefix")),
        ("parity/gpt2_base", hub("gpt2_ah_lora")),
        ("parity/gpt2_base", hub("gpt2_ah_prefix_flat")),
    ];
    let odd = ["0", "-1", "1e9", "3", "0.5", "\"x\"", "null", "[]", "[\"q\"]", "{}", "true", "false"];
    let odd = odd.map(|text| serde_json::from_str::<serde_json::Value>(text).expect("json"));
    let (mut refused, mut used) = (0, 0);
    for (base, adapter) in cases {
        let to = folder.path().join("damaged");
        let mut model = load(&data(base), StorageChoice::F32);
        for file in ["adapter_config.json", "head_config.json"] {
            let Ok(text) = std::fs::read_to_string(adapter.join(file)) else { continue };
            let whole: serde_json::Value = serde_json::from_str(&text).expect("json");
            for place in pointers(&whole) {
                for value in &odd {
                    copy(&adapter, &to);
                    let mut changed = whole.clone();
                    *changed.pointer_mut(&place).expect("there") = value.clone();
                    std::fs::write(to.join(file), changed.to_string()).expect("write");
                    match load_on(&mut model, &to) {
                        Err(_) => refused += 1,
                        Ok(()) => {
                            used += 1;
                            model = load(&data(base), StorageChoice::F32);
                        }
                    }
                }
            }
        }
    }
    assert!(refused > used && used > 0, "{refused} refused, {used} used");
}

/// The places of all values that hold no others.
fn pointers(value: &serde_json::Value) -> Vec<String> {
    let inner = |key: &str, value: &serde_json::Value| {
        let all = if value.is_object() { pointers(value) } else { vec![String::new()] };
        all.into_iter().map(|rest| format!("/{key}{rest}")).collect::<Vec<_>>()
    };
    value.as_object().map_or_else(Vec::new, |map| map.iter().flat_map(|(key, v)| inner(key, v)).collect())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for file in std::fs::read_dir(to).expect("read") {
        std::fs::remove_file(file.expect("file").path()).expect("remove");
    }
    let is_adapter =
        |name: &str| ["adapter", "head", "pytorch_adapter", "model_head"].iter().any(|s| name.starts_with(s));
    for file in std::fs::read_dir(from).expect("read") {
        let path = file.expect("file").path();
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        if is_adapter(&name) {
            std::fs::copy(&path, to.join(name)).expect("copy");
        }
    }
}
