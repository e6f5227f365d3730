//! The laws that every combination of method, model and storage keeps (ARCHITECTURE.md).

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::*;
use retune::methods::{self, lora};
use retune::models::{Model, StorageChoice, TextInput};
use retune::nn::{Dropouts, Pass};
use retune_formats::lora_config::{LoraConfig, Modules};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Gradients, Segments, Tape, Tensor};

/// A model of the references as a GGUF file of q8_0 blocks, written once.
fn gguf_of(base: &str) -> PathBuf {
    static WRITTEN: std::sync::Once = std::sync::Once::new();
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("laws-{base}.gguf"));
    WRITTEN.call_once(|| common::gguf::write_gguf(&data("parity").join(base), "q8_0", &path));
    path
}

/// Tiny models and the storages that they are run with.
fn bases() -> Vec<(&'static str, PathBuf, StorageChoice)> {
    vec![
        ("llama, f32", data("parity/llama_base_full"), StorageChoice::F32),
        ("llama, bf16", data("parity/llama_base_full"), StorageChoice::Bf16),
        ("qwen3, f32", data("llama_variants/qwen3"), StorageChoice::F32),
        ("qwen2, bf16", data("llama_variants/qwen2"), StorageChoice::Bf16),
        ("mistral, as it is", data("llama_variants/mistral"), StorageChoice::AsIs),
        ("gguf of all block types", data("gguf/tiny_mixed.gguf"), StorageChoice::AsIs),
        ("gpt2, f32", data("parity/gpt2_base"), StorageChoice::F32),
        ("gpt2, bf16", data("parity/gpt2_base"), StorageChoice::Bf16),
        ("gpt2, q8_0", gguf_of("gpt2_base"), StorageChoice::AsIs),
        ("bert, f32", data("parity/bert_mlm_full"), StorageChoice::F32),
        ("bert, bf16", data("parity/bert_mlm_full"), StorageChoice::Bf16),
    ]
}

fn config(dropout: f64) -> LoraConfig {
    LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        lora_dropout: dropout,
        target_modules: Some(Modules::AllLinear),
        ..LoraConfig::default()
    }
}

/// Some texts of unequal lengths; every token but the first of each is a target.
fn texts() -> Vec<Vec<u32>> {
    [9usize, 1, 23, 4, 14]
        .iter()
        .enumerate()
        .map(|(t, &n)| (0..n).map(|i| ((i * 37 + t * 11) % 120 + 3) as u32).collect())
        .collect()
}

fn pack(texts: &[Vec<u32>], denominator: f32) -> Inputs {
    let mut labels = LossRows { denominator, ..LossRows::default() };
    let mut ids = Vec::new();
    for text in texts {
        for (i, &id) in text.iter().enumerate() {
            if i > 0 {
                labels.rows.push(ids.len() - 1);
                labels.targets.push(id);
                labels.weights.push(1.0);
            }
            ids.push(id);
        }
    }
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    Inputs { ids, segments: Segments::from_lengths(&lengths), places: Vec::new(), labels, padded: (0, 0) }
}

fn all_targets() -> f32 {
    texts().iter().map(|t| t.len() - 1).sum::<usize>() as f32
}

/// Gives `B` values, so that a branch does something.
fn stir(model: &mut Model) {
    for id in model.params.trainable() {
        let name = model.params.get(id).name.clone();
        let stream = retune_tensor::rng::Stream::named(5, &name);
        let tensor = model.params.tensor_mut(id).expect("trainable parameters are f32");
        for (i, x) in tensor.data_mut().iter_mut().enumerate() {
            *x += 0.05 * stream.normal(i as u64);
        }
    }
}

fn frozen_bytes(model: &Model) -> BTreeMap<String, Vec<u32>> {
    let values = |p: &retune_tensor::Param| p.weight.to_tensor().data().iter().map(|x| x.to_bits()).collect();
    model.params.iter().filter(|(_, p)| !p.trainable).map(|(_, p)| (p.name.clone(), values(p))).collect()
}

#[test]
fn nothing_changes_at_the_start() {
    for (name, path, storage) in bases() {
        let mut model = load(&path, storage);
        let inputs = pack(&texts(), 1.0);
        let before = logits(&model, &inputs);
        lora::attach(&mut model, &config(0.1), 1).expect("attach");
        assert_eq!(before.data(), logits(&model, &inputs).data(), "{name}");
    }
}

#[test]
fn only_what_is_declared_changes() {
    for (name, path, storage) in bases() {
        let mut model = load(&path, storage);
        lora::attach(&mut model, &config(0.0), 1).expect("attach");
        let frozen = frozen_bytes(&model);
        let inputs = pack(&texts(), all_targets());
        let mut trainer = Trainer::new();
        let first = trainer.step(&mut model, &inputs);
        let mut last = first;
        for _ in 0..5 {
            last = trainer.step(&mut model, &inputs);
        }
        assert!(last < first - 0.01, "{name}: the loss must fall, {first} to {last}");
        assert_eq!(frozen, frozen_bytes(&model), "{name}");
        let ids: Vec<_> = trainer.moments.keys().copied().collect();
        assert_eq!(
            ids,
            model.params.trainable(),
            "{name}: a gradient for each trainable parameter and no other"
        );
    }
}

#[test]
fn packed_is_one_by_one() {
    for (name, path, storage) in bases() {
        let mut model = load(&path, storage);
        lora::attach(&mut model, &config(0.0), 1).expect("attach");
        stir(&mut model);
        let together = logits(&model, &pack(&texts(), 1.0));
        let mut row = 0;
        for text in texts() {
            let alone = logits(&model, &pack(std::slice::from_ref(&text), 1.0));
            let part = &together.data()[row * together.cols()..(row + text.len()) * together.cols()];
            close(&format!("{name}: {} tokens", text.len()), alone.data(), part, 1e-5);
            row += text.len();
        }
    }
}

/// Gradients of passes over parts of the texts, with the denominator of all, sum to those of one pass: also with
/// dropout, whose masks follow the examples.
#[test]
fn accumulation_is_one_batch() {
    for (name, path, storage) in bases() {
        let mut model = load(&path, storage);
        lora::attach(&mut model, &config(0.3), 1).expect("attach");
        stir(&mut model);
        let gradients = |cuts: &[usize]| {
            let mut sum = Gradients::new();
            for cut in cuts.windows(2) {
                let inputs = pack(&texts()[cut[0]..cut[1]], all_targets());
                let examples = (cut[0]..cut[1]).map(|i| i as u64).collect();
                let pass = Pass {
                    dropout: Some(Dropouts { seed: 3, epoch: 1, examples }),
                    checkpoint: cut[0] == 0,
                    ..Pass::default()
                };
                let tape = Tape::new(&model.params);
                let hidden = model.net.as_text().expect("text").hidden(
                    &tape,
                    &TextInput::new(&inputs.ids, &inputs.segments),
                    &pass,
                );
                let head = lm_head(&model);
                let x = head.transform(&tape, &hidden.rows, &hidden.x);
                let head = tape.weight(head.linear.weight);
                let loss = ops::linear_cross_entropy(&tape, &x, &head, &inputs.labels);
                tape.backward(&loss, Tensor::scalar(1.0), &mut sum);
            }
            sum
        };
        let (one, parts) = (gradients(&[0, 5]), gradients(&[0, 2, 3, 5]));
        for (id, g) in one.iter() {
            let other = parts.get(id).expect("same parameters");
            close(&format!("{name}: {}", model.params.get(id).name), other.data(), g.data(), 2e-5);
        }
    }
}

#[test]
fn saved_and_loaded_is_the_same() {
    for (name, path, storage) in bases() {
        let mut model = load(&path, storage);
        let attached = lora::attach(&mut model, &config(0.0), 1).expect("attach");
        stir(&mut model);
        let inputs = pack(&texts(), 1.0);
        let before = logits(&model, &inputs);
        let folder = tempfile::tempdir().expect("folder");
        attached.write(&model, folder.path(), None).expect("save");
        let mut fresh = load(&path, storage);
        let source = methods::Source { path: folder.path().into(), weight: 1.0 };
        methods::load(&mut fresh, std::slice::from_ref(&source), 0).expect("load");
        assert_eq!(before.data(), logits(&fresh, &inputs).data(), "{name}");

        // Two halves of an adapter are the whole; none of it is the base.
        let half = methods::Source { weight: 0.5, ..source.clone() };
        let mut halves = load(&path, storage);
        methods::load(&mut halves, &[half.clone(), half], 0).expect("load");
        close(&format!("{name}: halves"), logits(&halves, &inputs).data(), before.data(), 1e-4);
        let mut none = load(&path, storage);
        methods::load(&mut none, &[methods::Source { weight: 0.0, ..source }], 0).expect("load");
        assert_eq!(logits(&load(&path, storage), &inputs).data(), logits(&none, &inputs).data(), "{name}");
    }
}

#[test]
fn threads_do_not_matter() {
    for (name, path, storage) in bases() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| {
                let mut model = load(&path, storage);
                lora::attach(&mut model, &config(0.0), 1).expect("attach");
                let mut trainer = Trainer::new();
                for _ in 0..3 {
                    trainer.step(&mut model, &pack(&texts(), all_targets()));
                }
                let bits =
                    |id| model.params.get(id).weight.to_tensor().data().iter().map(|x| x.to_bits()).collect();
                model.params.trainable().into_iter().map(bits).collect::<Vec<Vec<u32>>>()
            })
        };
        let one = run(1);
        assert_eq!(one, run(2), "{name}");
        assert_eq!(one, run(4), "{name}");
    }
}
