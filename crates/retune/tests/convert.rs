//! Conversions keep what an adapter does: the change `s B A` of each weight is the same in every tool's files.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::*;
use retune::convert::{Base, Target, convert};
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
    refused("formats/ah_bert_seq_bn", Target::Peft, None, "no LoRA");
    refused("formats/lora_embed_llama", Target::Mlx, None, "only A and B");
    let bert = Base::open(&data("parity/bert_base")).expect("base");
    refused("parity/bert_lora", Target::Gguf, Some(&bert), "bert");
}
