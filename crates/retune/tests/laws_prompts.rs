//! The laws for methods that put something beside the weights: prompts, prefixes and bottleneck adapters.

mod common;

use std::path::PathBuf;

use common::*;
use retune::generate::next_logits;
use retune::methods::{self, Attached, Source, adapter, prefix, prompt};
use retune::models::{Model, StorageChoice, TextInput};
use retune::nn::{Active, Dropouts, Head, Pass};
use retune::run_file::{
    Adapter, Architecture, Prefix, PrefixInit, Prompt, PromptEncoder, PromptTuningInit, RunFile,
    ScalingSetting,
};
use retune::text::Special;
use retune_tensor::ops::{self, LossRows};
use retune_tensor::rng::Stream;
use retune_tensor::{Gradients, Segments, Tape, Tensor, Var};

fn bases() -> Vec<(&'static str, PathBuf, StorageChoice)> {
    vec![
        ("llama", data("parity/llama_base_full"), StorageChoice::F32),
        ("qwen3, bf16", data("llama_variants/qwen3"), StorageChoice::Bf16),
        ("gguf of all block types", data("gguf/tiny_mixed.gguf"), StorageChoice::AsIs),
        ("gpt2", data("parity/gpt2_base"), StorageChoice::F32),
        ("bert", data("parity/bert_base"), StorageChoice::F32),
    ]
}

/// A method with some settings.
struct Tuning {
    name: &'static str,
    attach: Box<dyn Fn(&mut Model) -> methods_result::Result>,
    /// Virtual rows in front of each example.
    prompt_rows: usize,
    /// The start is the base's output, bit for bit.
    starts_equal: bool,
}

mod methods_result {
    pub type Result = std::result::Result<retune::methods::Attached, retune::Error>;
}

fn run() -> RunFile {
    RunFile { seed: 5, ..RunFile::default() }
}

fn with_prompt(settings: Prompt) -> Box<dyn Fn(&mut Model) -> methods_result::Result> {
    Box::new(move |model| prompt::attach(model, &settings, &run()))
}

fn with_prefix(settings: Prefix) -> Box<dyn Fn(&mut Model) -> methods_result::Result> {
    Box::new(move |model| prefix::attach(model, &settings, &run()))
}

fn with_adapter(settings: Adapter) -> Box<dyn Fn(&mut Model) -> methods_result::Result> {
    Box::new(move |model| adapter::attach(model, &settings, &run()))
}

fn tunings(dropout: f64) -> Vec<Tuning> {
    let prompt = |name, encoder, init| Tuning {
        name,
        attach: with_prompt(Prompt {
            num_virtual_tokens: 3,
            encoder,
            encoder_hidden_size: Some(8),
            prompt_tuning_init: init,
            ..Prompt::default()
        }),
        prompt_rows: 3,
        starts_equal: false,
    };
    let prefix = |name, prefix_projection, init_weights| Tuning {
        name,
        attach: with_prefix(Prefix {
            num_virtual_tokens: 4,
            prefix_projection,
            encoder_hidden_size: Some(8),
            init_weights,
        }),
        prompt_rows: 0,
        starts_equal: false,
    };
    let bottleneck = |name, settings: Adapter, starts_equal| Tuning {
        name,
        attach: with_adapter(Adapter { dropout, reduction_factor: Some(8.0), ..settings }),
        prompt_rows: 0,
        starts_equal,
    };
    let of = |architecture| Adapter { architecture, ..Adapter::default() };
    vec![
        prompt("prompt", PromptEncoder::None, PromptTuningInit::SampleVocab),
        prompt("p-tuning", PromptEncoder::Mlp, PromptTuningInit::Random),
        prefix("prefix", false, PrefixInit::Random),
        prefix("projected prefix", true, PrefixInit::Random),
        bottleneck("houlsby", of(Architecture::Houlsby), true),
        bottleneck("pfeiffer", of(Architecture::Pfeiffer), true),
        bottleneck("parallel", of(Architecture::Parallel), true),
        bottleneck(
            "a learned scaling and norms",
            Adapter {
                ln_before: true,
                ln_after: true,
                scaling: Some(ScalingSetting::Word("learned".into())),
                leave_out: vec![1],
                ..of(Architecture::Houlsby)
            },
            false,
        ),
        prompt("p-tuning, lstm", PromptEncoder::Lstm, PromptTuningInit::Random),
    ]
}

fn texts() -> Vec<Vec<u32>> {
    [9usize, 1, 23, 4, 14]
        .iter()
        .enumerate()
        .map(|(t, &n)| (0..n).map(|i| ((i * 37 + t * 11) % 150 + 3) as u32).collect())
        .collect()
}

/// Rows with a target, of texts or of tokens.
fn labels(model: &Model, texts: &[Vec<u32>], denominator: f32) -> LossRows {
    let mut labels = LossRows { denominator, ..LossRows::default() };
    let mut add = |row: usize, target: u32| {
        labels.rows.push(row);
        labels.targets.push(target);
        labels.weights.push(1.0);
    };
    let n = model.net.as_text().expect("text").prompt_rows(Some(0));
    let mut row = 0;
    for (example, text) in texts.iter().enumerate() {
        row += n;
        match model.net.head() {
            Head::Classifier(_) => add(example, text[0] % 3),
            _ => (1..text.len()).for_each(|i| add(row + i - 1, text[i])),
        }
        row += text.len();
    }
    labels
}

fn outputs<'p>(model: &'p Model, tape: &Tape<'p>, texts: &[Vec<u32>], pass: &Pass) -> Var {
    let ids: Vec<u32> = texts.concat();
    let segments = Segments::from_lengths(&texts.iter().map(Vec::len).collect::<Vec<_>>());
    let hidden = model.net.as_text().expect("text").hidden(tape, &TextInput::new(&ids, &segments), pass);
    match model.net.head() {
        Head::Classifier(head) => head.forward(tape, &hidden),
        Head::LanguageModel(head) => head.forward(tape, &hidden.rows, &hidden.x),
        Head::Detector(_) | Head::None => hidden.x,
    }
}

fn values(model: &Model, texts: &[Vec<u32>]) -> Tensor {
    outputs(model, &Tape::inference(&model.params), texts, &Pass::default()).value().clone()
}

fn gradients_of(model: &Model, texts: &[Vec<u32>], pass: &Pass, sum: &mut Gradients) -> f32 {
    let tape = Tape::new(&model.params);
    let logits = outputs(model, &tape, texts, pass);
    let loss = ops::cross_entropy(&tape, &logits, &labels(model, texts, 40.0));
    let value = loss.value().data()[0];
    tape.backward(&loss, Tensor::scalar(1.0), sum);
    value
}

/// Moves every trainable value, so that each method does something.
fn stir(model: &mut Model) {
    for id in model.params.trainable() {
        let stream = Stream::named(5, &model.params.get(id).name);
        let tensor = model.params.tensor_mut(id).expect("trainable parameters are f32");
        for (i, x) in tensor.data_mut().iter_mut().enumerate() {
            *x += 0.05 * stream.normal(i as u64);
        }
    }
}

/// Every tuning on every base, loaded and attached.
fn each(dropout: f64, mut test: impl FnMut(&str, &Tuning, Model, Attached)) {
    for (base, path, storage) in bases() {
        for tuning in tunings(dropout) {
            let mut model = load(&path, storage);
            let attached = (tuning.attach)(&mut model).unwrap_or_else(|e| panic!("{base}: {e}"));
            test(&format!("{} on {base}", tuning.name), &tuning, model, attached);
        }
    }
}

#[test]
fn fresh_bottlenecks_change_nothing() {
    for (base, path, storage) in bases() {
        for tuning in tunings(0.1).iter().filter(|t| t.starts_equal) {
            let mut model = load(&path, storage);
            let before = values(&model, &texts());
            (tuning.attach)(&mut model).expect("attach");
            assert_eq!(before.data(), values(&model, &texts()).data(), "{} on {base}", tuning.name);
        }
    }
}

#[test]
fn only_what_is_declared_changes() {
    each(0.0, |name, _, mut model, attached| {
        let frozen = |model: &Model| -> Vec<Vec<u32>> {
            let bits =
                |p: &retune_tensor::Param| p.weight.to_tensor().data().iter().map(|x| x.to_bits()).collect();
            model.params.iter().filter(|(_, p)| !p.trainable).map(|(_, p)| bits(p)).collect()
        };
        let before = frozen(&model);
        let own: Vec<_> = model.params.iter().map(|(_, p)| p).filter(|p| p.trainable).collect();
        assert!(own.iter().all(|p| p.adapter), "{name}: parameters of the base are frozen");
        assert_eq!(own.iter().map(|p| p.elements()).sum::<usize>(), attached.trainable, "{name}");
        let mut trainer = Trainer::new();
        let mut losses = Vec::new();
        for _ in 0..6 {
            let mut gradients = Gradients::new();
            losses.push(gradients_of(&model, &texts(), &Pass::default(), &mut gradients));
            trainer.update(&mut model, &gradients);
        }
        assert!(losses[5] < losses[0], "{name}: the loss must fall: {losses:?}");
        assert_eq!(before, frozen(&model), "{name}");
        let ids: Vec<_> = trainer.moments.keys().copied().collect();
        assert_eq!(
            ids,
            model.params.trainable(),
            "{name}: a gradient for each trainable parameter, and no other"
        );
    });
}

#[test]
fn saved_and_loaded_is_the_same() {
    each(0.0, |name, _, mut model, attached| {
        stir(&mut model);
        let before = values(&model, &texts());
        let folder = tempfile::tempdir().expect("folder");
        attached.write(&model, folder.path(), Some("a card")).expect("save");
        assert!(folder.path().join("README.md").is_file(), "{name}");
        let (_, path, storage) = bases().into_iter().find(|(base, ..)| name.ends_with(base)).expect("base");
        let mut fresh = load(&path, storage);
        let source = Source { path: folder.path().into(), weight: 1.0 };
        let again = methods::load(&mut fresh, std::slice::from_ref(&source), 0)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(before.data(), values(&fresh, &texts()).data(), "{name}");
        let copy = tempfile::tempdir().expect("folder");
        again.write(&fresh, copy.path(), Some("a card")).expect("save");
        for file in std::fs::read_dir(folder.path()).expect("folder") {
            let file = file.expect("file").file_name();
            let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(&file)).expect("read");
            assert_eq!(read(&folder), read(&copy), "{name}: {file:?}");
        }
        let message = methods::load(&mut fresh, &[source], 0).err().map(|e| e.to_string());
        assert!(message.is_some_and(|m| m.contains("already")), "{name}: twice at one place");
    });
}

#[test]
fn packed_is_one_by_one() {
    each(0.0, |name, tuning, mut model, _| {
        stir(&mut model);
        let together = values(&model, &texts());
        let classes = matches!(model.net.head(), Head::Classifier(_));
        let mut row = 0;
        for text in texts() {
            let alone = values(&model, std::slice::from_ref(&text));
            let rows = if classes { 1 } else { text.len() + tuning.prompt_rows };
            assert_eq!(alone.rows(), rows, "{name}");
            let part = &together.data()[row * together.cols()..(row + rows) * together.cols()];
            close(&format!("{name}: {} tokens", text.len()), alone.data(), part, 1e-5);
            row += rows;
        }
    });
}

/// Gradients of parts sum to those of one pass; blocks that are run again give the same bits; masks follow examples.
#[test]
fn accumulation_and_checkpointing_change_nothing() {
    each(0.3, |name, _, mut model, _| {
        stir(&mut model);
        let gradients = |cuts: &[usize], checkpoint: bool| {
            let mut sum = Gradients::new();
            for cut in cuts.windows(2) {
                let examples = (cut[0]..cut[1]).map(|i| i as u64).collect();
                let dropout = Some(Dropouts { seed: 3, epoch: 1, examples });
                let pass = Pass { dropout, checkpoint, ..Pass::default() };
                gradients_of(&model, &texts()[cut[0]..cut[1]], &pass, &mut sum);
            }
            sum
        };
        let one = gradients(&[0, 5], false);
        let (parts, again) = (gradients(&[0, 2, 3, 5], true), gradients(&[0, 5], true));
        for (id, g) in one.iter() {
            let what = format!("{name}: {}", model.params.get(id).name);
            assert_eq!(again.get(id).expect("same parameters").data(), g.data(), "{what}");
            // A learned scaling's gradient is one sum of many that nearly cancel.
            let tolerance = if g.len() == 1 { 2e-3 } else { 5e-5 };
            close(&what, parts.get(id).expect("same parameters").data(), g.data(), tolerance);
        }
    });
}

/// Finite differences along a random direction of each trainable parameter.
#[test]
fn gradients_are_right() {
    for (base, path, storage) in
        bases().into_iter().filter(|(base, ..)| ["llama", "gpt2", "bert"].contains(base))
    {
        for tuning in tunings(0.0) {
            let mut model = load(&path, storage);
            (tuning.attach)(&mut model).expect("attach");
            stir(&mut model);
            let mut gradients = Gradients::new();
            gradients_of(&model, &texts(), &Pass::default(), &mut gradients);
            for id in model.params.trainable() {
                let name = format!("{} on {base}: {}", tuning.name, model.params.get(id).name);
                let gradient = gradients.get(id).expect("gradient").clone();
                let start = model.params.get(id).weight.to_tensor();
                // Along the gradient the difference is largest, and least of it is rounding.
                let norm = gradient.data().iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                let step = 3e-3 / norm.max(1e-9);
                let mut loss_at = |sign: f64| {
                    let tensor = model.params.tensor_mut(id).expect("f32");
                    for ((x, s), g) in tensor.data_mut().iter_mut().zip(start.data()).zip(gradient.data()) {
                        *x = (f64::from(*s) + sign * step * f64::from(*g)) as f32;
                    }
                    f64::from(gradients_of(&model, &texts(), &Pass::default(), &mut Gradients::new()))
                };
                let slope = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * step);
                loss_at(0.0);
                let due = norm * norm;
                assert!((slope - due).abs() <= 0.02 * due + 2e-6 / step, "{name}: {slope} {due}");
            }
        }
    }
}

/// Token by token through the cache is all at once.
#[test]
fn cached_is_uncached() {
    each(0.0, |name, _, mut model, _| {
        if !model.net.as_text().expect("text").info().decoder {
            return;
        }
        stir(&mut model);
        let text = texts().remove(2);
        let mut cache = model.net.as_text().expect("text").new_cache(text.len(), Active::Slot(0));
        let mut cuts = vec![0, 5];
        cuts.extend(6..=text.len());
        for cut in cuts.windows(2) {
            let got = next_logits(&model, &text[cut[0]..cut[1]], &mut cache).expect("logits");
            let all = values(&model, &[text[..cut[1]].to_vec()]);
            close(&format!("{name}: {} tokens", cut[1]), got.data(), all.row(all.rows() - 1), 1e-5);
        }
        assert_eq!(
            cache.len,
            text.len() + model.net.as_text().expect("text").virtual_rows(Some(0)),
            "{name}"
        );
    });
}

/// Examples of one batch through adapters of different methods, each as if alone.
#[test]
fn methods_mix_in_one_batch() {
    for (base, path, storage) in bases() {
        let mut model = load(&path, storage);
        let mut alone = vec![values(&model, &[texts()[0].clone()])];
        let kinds = tunings(0.0);
        let chosen = [0, 2, 4];
        for (slot, kind) in chosen.iter().enumerate() {
            let mut one = load(&path, storage);
            let attached = (kinds[*kind].attach)(&mut one).expect("attach");
            stir(&mut one);
            let folder = tempfile::tempdir().expect("folder");
            attached.write(&one, folder.path(), None).expect("save");
            let source = Source { path: folder.path().into(), weight: 1.0 };
            methods::load(&mut model, &[source], slot).unwrap_or_else(|e| panic!("{base}: {e}"));
            alone.push(values(&one, &[texts()[slot + 2].clone()]));
        }
        let batch: Vec<Vec<u32>> = [0, 2, 3, 4].iter().map(|&t| texts()[t].clone()).collect();
        let slots = vec![None, Some(0), Some(1), Some(2)];
        let pass = Pass { active: Active::PerExample(slots.into()), ..Pass::default() };
        let mixed = outputs(&model, &Tape::inference(&model.params), &batch, &pass).value().clone();
        let want: Vec<f32> = alone.iter().flat_map(|t| t.data().to_vec()).collect();
        close(base, mixed.data(), &want, 1e-5);
    }
}

#[test]
fn none_of_them_merges() {
    each(0.0, |name, _, model, _| {
        let on = model.adapters.first().expect("remembered");
        assert!(on.unmergeable.as_ref().is_some_and(|why| !why.is_empty()), "{name}");
    });
}

#[test]
fn a_prompt_starts_from_a_text() {
    let mut model = load(&data("gguf/tiny_mixed.gguf"), StorageChoice::AsIs);
    let text = "ab abc";
    let tokenizer = model.files.language().expect("language").tokenizer;
    let ids = tokenizer.encode(text, Special::AsText).expect("ids");
    let n = 2 * ids.len() + 1;
    let settings = Prompt {
        num_virtual_tokens: n as u32,
        prompt_tuning_init: PromptTuningInit::Text,
        prompt_tuning_init_text: Some(text.into()),
        ..Prompt::default()
    };
    prompt::attach(&mut model, &settings, &run()).expect("attach");
    let rows = model.params.get(model.params.find("prompt_embeddings").expect("rows")).weight.to_tensor();
    let table = model.params.get(model.net.embeddings()[0].weight).weight.to_tensor();
    for i in 0..n {
        assert_eq!(rows.row(i), table.row(ids[i % ids.len()] as usize), "row {i}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    type Attach = Box<dyn Fn(&mut Model) -> methods_result::Result>;
    let cases: Vec<(Attach, &str)> = vec![
        (with_prompt(Prompt { num_virtual_tokens: 128, ..Prompt::default() }), "context has 128"),
        (with_prefix(Prefix { num_virtual_tokens: 500, ..Prefix::default() }), "context has 128"),
        (
            with_prompt(Prompt { prompt_tuning_init: PromptTuningInit::Text, ..Prompt::default() }),
            "prompt_tuning_init_text",
        ),
        (
            with_prompt(Prompt { prompt_tuning_init_text: Some("a".into()), ..Prompt::default() }),
            "is not \"text\"",
        ),
        (with_adapter(Adapter { leave_out: vec![7], ..Adapter::default() }), "layer 7"),
        (with_adapter(Adapter { leave_out: vec![0, 1], ..Adapter::default() }), "every place"),
        (with_adapter(Adapter { non_linearity: Some("rellu".into()), ..Adapter::default() }), "\"relu\""),
        (
            with_adapter(Adapter {
                original_ln_before: Some(false),
                original_ln_after: Some(false),
                ..Adapter::default()
            }),
            "residual connection would be lost",
        ),
    ];
    for (attach, what) in cases {
        let mut model = load(&data("parity/llama_base_full"), StorageChoice::F32);
        let before = model.params.len();
        let error = attach(&mut model).err().expect(what).to_string();
        assert!(error.contains(what), "{error}");
        assert_eq!((model.params.len(), model.adapters.len()), (before, 0), "{what}: the model is unchanged");
    }
}
