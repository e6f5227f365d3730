//! The real SmolLM2-135M-Instruct (Q4_1) against transformers: logits, losses, greedy answers, and what a LoRA keeps.
//!
//! Needs the model's GGUF file: `RETUNE_TEST_SMOLLM2=/path/to/SmolLM2-135M-Instruct.Q4_1.gguf` (`retune fetch smollm2`
//! gets it). Skipped, saying so, without it.

mod common;

use common::*;
use retune::generate::{Finish, Sampling, generate, next_logits};
use retune::methods::{self, lora};
use retune::models::{Model, StorageChoice};
use retune::nn::Active;
use retune_formats::lora_config::{LoraConfig, Modules};
use retune_tensor::Segments;
use serde_json::Value;

fn model(storage: StorageChoice) -> Option<Model> {
    let Some(path) = std::env::var_os("RETUNE_TEST_SMOLLM2") else {
        eprintln!(
            "SKIPPED: RETUNE_TEST_SMOLLM2 does not name SmolLM2's GGUF file (`retune fetch smollm2` gets it)"
        );
        return None;
    };
    Some(load(path.as_ref(), storage))
}

fn prompts() -> Vec<Value> {
    let text = std::fs::read_to_string(data("smollm2/reference.json")).expect("reference");
    let value: Value = serde_json::from_str(&text).expect("json");
    value["prompts"].as_array().expect("prompts").clone()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|x| x.as_u64().expect("id") as u32).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().expect("numbers").iter().map(|x| x.as_f64().expect("number") as f32).collect()
}

/// -log softmax(row)[target].
fn nll(row: &[f32], target: u32) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
    sum.ln() + f64::from(largest) - f64::from(row[target as usize])
}

#[test]
fn logits_and_losses() {
    let Some(model) = model(StorageChoice::AsIs) else { return };
    for prompt in prompts() {
        let ids = ids(&prompt["ids"]);
        let all = retune::tasks::causal_lm::logits(
            model.net.as_text().expect("text"),
            &model.params,
            &ids,
            &Segments::from_lengths(&[ids.len()]),
        )
        .expect("logits");
        let largest = prompt["max_abs_logit"].as_f64().expect("number") as f32;
        let last = all.row(ids.len() - 1);
        for pair in prompt["top20"].as_array().expect("top20") {
            let (id, want) =
                (pair[0].as_u64().expect("id") as usize, pair[1].as_f64().expect("logit") as f32);
            assert!((last[id] - want).abs() <= 1e-4 * largest, "logit {id}: {} instead of {want}", last[id]);
        }
        for (i, want) in numbers(&prompt["every_1024th_logit"]).iter().enumerate() {
            assert!(
                (last[i * 1024] - want).abs() <= 1e-4 * largest,
                "logit {}: {}",
                i * 1024,
                last[i * 1024]
            );
        }
        let losses: Vec<f64> = (1..ids.len()).map(|i| nll(all.row(i - 1), ids[i])).collect();
        for (i, (got, want)) in losses.iter().zip(numbers(&prompt["prompt_nll"])).enumerate() {
            assert!((got - f64::from(want)).abs() < 2e-3, "token {i}: loss {got} instead of {want}");
        }
        // The cached path must agree with the packed one.
        let mut cache = model.net.as_text().expect("text").new_cache(ids.len(), Active::default());
        next_logits(&model, &ids[..ids.len() - 1], &mut cache).expect("prompt");
        let one = next_logits(&model, &ids[ids.len() - 1..], &mut cache).expect("last");
        close("cached logits", one.data(), last, 1e-4);
    }
}

#[test]
fn greedy_answers() {
    let Some(model) = model(StorageChoice::AsIs) else { return };
    let language = model.files.language().expect("tokenizer");
    for prompt in prompts() {
        let want = ids(&prompt["greedy_ids"]);
        let leads = numbers(&prompt["greedy_leads"]);
        let sampling = Sampling { max_tokens: want.len(), ..Sampling::default() };
        let mut streamed = String::new();
        let out = generate(
            &model,
            &language.tokenizer,
            &ids(&prompt["ids"]),
            Active::default(),
            &sampling,
            &mut |text| {
                streamed.push_str(text);
                true
            },
        )
        .expect("generated");
        assert!(
            leads.iter().all(|lead| *lead > 0.01),
            "a tie in the reference would make either answer right"
        );
        assert_eq!(out.ids, want, "{}", prompt["name"]);
        assert_eq!(streamed, out.text);
        if prompt["name"] == "france" {
            assert_eq!(out.text, "The capital of France is Paris.");
            assert_eq!(out.finish, Finish::End);
        }
    }
}

/// Right after attaching, every logit is the base's bit for bit; a saved and loaded adapter gives the same logits.
#[test]
fn a_fresh_lora_changes_nothing_and_survives_the_disk() {
    let Some(mut model) = model(StorageChoice::AsIs) else { return };
    let prompt = prompts().remove(0);
    let ids = ids(&prompt["ids"]);
    let segments = Segments::from_lengths(&[ids.len()]);
    let logits = |model: &Model| {
        retune::tasks::causal_lm::logits(model.net.as_text().expect("text"), &model.params, &ids, &segments)
            .expect("logits")
    };
    let base = logits(&model);
    let config = LoraConfig { r: 8, target_modules: Some(Modules::AllLinear), ..LoraConfig::default() };
    let attached = lora::attach(&mut model, &config, 1).expect("attach");
    assert_eq!(attached.modules.len(), 210);
    assert_eq!(base.data(), logits(&model).data());
    let trained: Vec<_> = model.params.trainable();
    for id in trained {
        let tensor = model.params.tensor_mut(id).expect("f32");
        for (i, x) in tensor.data_mut().iter_mut().enumerate() {
            *x += ((i % 7) as f32 - 3.0) * 1e-3;
        }
    }
    let changed = logits(&model);
    assert_ne!(base.data(), changed.data());
    let folder = tempfile::tempdir().expect("folder");
    attached.write(&model, folder.path(), None).expect("save");
    let mut fresh = self::model(StorageChoice::AsIs).expect("model");
    methods::load(&mut fresh, &[methods::Source { path: folder.path().into(), weight: 1.0 }], 0)
        .expect("load");
    assert_eq!(changed.data(), logits(&fresh).data());
}
