//! The embedded model: its files load, a LoRA learns from its data, and the laws of fine-tuning hold on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use retune::generate::{Generated, Request, Sampling, generate, generate_each};
use retune::methods::{self, lora};
use retune::models::{Model, StorageChoice};
use retune::nn::Active;
use retune::run_file::TrainOn;
use retune::tasks::causal_lm::{CausalLm, Dataset, Options, logits};
use retune::text::{Language, Message, Special};
use retune::train::{Control, Event, Outcome, OutcomeEnd, RunFolder, Start, TrainSettings, train};
use retune_formats::lora_config::{LoraConfig, Modules};
use retune_tensor::Segments;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/tiny")
}

fn base() -> (Model, Language) {
    let model = Model::load(&folder(), StorageChoice::AsIs).unwrap();
    let language = model.files.language().unwrap();
    (model, language)
}

fn rows(language: &Language, name: &str) -> Dataset {
    let options = Options { max_length: 128, train_on: TrainOn::Answers, ..Options::default() };
    Dataset::load(language, &folder().join("data").join(name), &options).unwrap()
}

/// Puts a LoRA on.
fn adapt(model: &mut Model) -> methods::Attached {
    let config = LoraConfig {
        r: 8,
        lora_alpha: 16.0,
        lora_dropout: 0.05,
        target_modules: Some(Modules::AllLinear),
        ..LoraConfig::default()
    };
    lora::attach(model, &config, 1).unwrap()
}

fn settings(steps: u64) -> TrainSettings {
    TrainSettings {
        steps: Some(steps),
        batch_size: 8,
        lr: 3e-3,
        save_every: Some(4),
        ..TrainSettings::default()
    }
}

/// Trains, asking to stop once step `stop` is done.
fn run(
    model: &mut Model,
    data: &Dataset,
    eval: Option<&Dataset>,
    steps: u64,
    out: Option<&RunFolder>,
    stop: Option<u64>,
) -> Outcome {
    let net = model.net.as_text().expect("text");
    let objective = CausalLm { net, data, dropout_seed: Some(1), checkpoint: false, cache: None };
    let eval = eval.map(|data| CausalLm { net, data, dropout_seed: None, checkpoint: false, cache: None });
    let eval = eval.as_ref().map(|eval| eval as &dyn retune::train::Objective);
    train(&mut model.params, &objective, eval, &settings(steps), out, &mut |event: Event| match event.step()
        == stop
        && stop.is_some()
    {
        true => Control::Stop,
        false => Control::Continue,
    })
    .unwrap()
}

fn bits(model: &Model, language: &Language) -> Vec<u32> {
    let ids =
        language.tokenizer.encode("What are you, and why are you so nervous?", Special::AsText).unwrap();
    let segments = Segments::from_lengths(&[ids.len()]);
    let logits = logits(model.net.as_text().expect("text"), &model.params, &ids, &segments).unwrap();
    logits.data().iter().map(|x| x.to_bits()).collect()
}

/// The frozen weights as they lie, decoded.
fn frozen(model: &Model) -> Vec<(String, Vec<u32>)> {
    let frozen = model.params.iter().filter(|(_, param)| !param.trainable);
    let bits = |x: &f32| x.to_bits();
    frozen.map(|(_, p)| (p.name.clone(), p.weight.to_tensor().data().iter().map(bits).collect())).collect()
}

fn trained(model: &Model) -> Vec<(String, Vec<u32>)> {
    let trained = model.params.iter().filter(|(_, param)| param.trainable);
    let bits = |x: &f32| x.to_bits();
    trained.map(|(_, p)| (p.name.clone(), p.weight.to_tensor().data().iter().map(bits).collect())).collect()
}

fn answer(model: &Model, language: &Language, temperature: f32, seed: u64) -> Vec<u32> {
    let text = language.template.render(&[Message::new("user", "Who are you?")], true).unwrap();
    let ids = language.tokenizer.encode(&text, Special::Parse).unwrap();
    let sampling = Sampling { max_tokens: 24, temperature, seed, ..Sampling::default() };
    generate(model, &language.tokenizer, &ids, Active::default(), &sampling, &mut |_| true).unwrap().ids
}

#[test]
fn the_files_are_a_model_with_its_language_and_data() {
    let (model, language) = base();
    let info = model.net.as_text().expect("text").info();
    assert_eq!(info.vocab_size, language.tokenizer.vocab_size());
    assert_eq!(model.params.iter().map(|(_, p)| p.elements()).sum::<usize>(), 918_656);
    let text = "Words, 2024 and Ünïcode: <|im_end|>";
    let ids = language.tokenizer.encode(text, Special::AsText).unwrap();
    assert_eq!(language.tokenizer.decode(&ids, false).unwrap(), text);
    let (train, heldout) = (rows(&language, "train.jsonl"), rows(&language, "heldout.jsonl"));
    assert_eq!((train.examples.len(), heldout.examples.len()), (54, 10));
    let asked = |q: u64| train.examples.iter().any(|e| e.question == q);
    assert!(!heldout.examples.iter().any(|e| asked(e.question)), "a held-out question is trained on");
}

#[test]
fn generation_is_a_function_of_model_prompt_and_seed() {
    let (model, language) = base();
    assert_eq!(answer(&model, &language, 0.0, 1), answer(&model, &language, 0.0, 2));
    assert_eq!(answer(&model, &language, 1.0, 1), answer(&model, &language, 1.0, 1));
    assert_ne!(answer(&model, &language, 1.0, 1), answer(&model, &language, 1.0, 2));
}

/// The base, with two LoRAs of large random values in slots 1 and 2 and a prompt in slot 3.
fn with_adapters(folder: &Path) -> (Model, Language) {
    let run_file = retune::run_file::RunFile::default();
    for (name, spec) in [("1", &lora::SPEC), ("2", &lora::SPEC), ("3", &methods::prompt::SPEC)] {
        let (mut model, _) = base();
        let run = retune::run_file::RunFile { seed: name.len() as u64, ..run_file.clone() };
        let attached = (spec.attach)(&mut model, &run).unwrap();
        let stream = retune_tensor::rng::Stream::named(7, name);
        for (place, id) in model.params.trainable().into_iter().enumerate() {
            for (i, value) in model.params.tensor_mut(id).unwrap().data_mut().iter_mut().enumerate() {
                *value += 0.1 * stream.normal((place << 32 | i) as u64);
            }
        }
        attached.write(&model, &folder.join(name), None).unwrap();
    }
    let (mut model, language) = base();
    for slot in 1..=3 {
        let source = methods::Source { path: folder.join(slot.to_string()), weight: 1.0 };
        methods::load(&mut model, &[source], slot).unwrap();
    }
    (model, language)
}

#[test]
fn a_batch_of_mixed_adapters_is_what_each_prompt_gets_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (model, language) = with_adapters(folder.path());
    let tokenizer = &language.tokenizer;
    let texts = ["Who are you?", "A", "Tell me of the sea and of the sky.", "B C", "Who", "x"];
    for temperature in [0.0, 1.0] {
        let requests: Vec<Request> = texts
            .iter()
            .zip([None, Some(1), Some(3), Some(2), Some(1), None])
            .enumerate()
            .map(|(i, (text, slot))| Request {
                prompt: tokenizer.encode(text, Special::AsText).unwrap(),
                slot,
                // Some end long before others.
                sampling: Sampling {
                    max_tokens: 3 + 7 * (i % 3),
                    temperature,
                    seed: i as u64,
                    ..Sampling::default()
                },
            })
            .collect();
        let alone: Vec<Generated> = requests
            .iter()
            .map(|request| {
                let active = request.slot.map_or(Active::Base, Active::Slot);
                generate(&model, tokenizer, &request.prompt, active, &request.sampling, &mut |_| true)
                    .unwrap()
            })
            .collect();
        assert!(alone.iter().any(|one| one.ids != alone[0].ids));
        for batch in [1, 2, 4, 9] {
            let mut made: Vec<Option<Generated>> = texts.iter().map(|_| None).collect();
            let mut done = |place: usize, generated: Generated| {
                assert!(made[place].replace(generated).is_none(), "twice");
            };
            generate_each(&model, tokenizer, &requests, batch, &mut done, &|| true).unwrap();
            for (place, (made, alone)) in made.into_iter().zip(&alone).enumerate() {
                let made = made.expect("a text");
                assert_eq!((&made.ids, &made.text), (&alone.ids, &alone.text), "batch {batch}, text {place}");
                assert_eq!((made.finish, made.prompt_tokens), (alone.finish, alone.prompt_tokens));
            }
        }
    }
    let empty = Request { prompt: Vec::new(), slot: None, sampling: Sampling::default() };
    let error = generate_each(&model, tokenizer, &[empty], 4, &mut |_, _| {}, &|| true).unwrap_err();
    assert!(error.to_string().contains("prompt 1"), "{error}");
}

#[test]
fn a_lora_begins_as_the_base_learns_and_comes_back_from_its_files() {
    let (mut model, language) = base();
    let (train, heldout) = (rows(&language, "train.jsonl"), rows(&language, "heldout.jsonl"));
    let plain = bits(&model, &language);
    let attached = adapt(&mut model);
    assert!(bits(&model, &language) == plain, "a new adapter changes the model");
    let before = frozen(&model);

    let outcome = run(&mut model, &train, Some(&heldout), 42, None, None);
    let (first, last) = (outcome.eval_before.unwrap(), outcome.eval_after.unwrap());
    assert!((4.4..5.0).contains(&first), "the base's held-out loss is {first}");
    assert!(last < first - 0.5, "held-out loss {first} -> {last}");
    assert!(frozen(&model) == before, "training changed a frozen weight");
    let learned = bits(&model, &language);
    assert!(learned != plain);

    let saved = tempfile::tempdir().unwrap();
    attached.write(&model, saved.path(), None).unwrap();
    let (mut again, _) = base();
    methods::load(&mut again, &[methods::Source { path: saved.path().to_path_buf(), weight: 1.0 }], 0)
        .unwrap();
    assert!(bits(&again, &language) == learned, "the saved adapter is another one");
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let (_, language) = base();
    let data = rows(&language, "train.jsonl");
    let adapted = || {
        let (mut model, _) = base();
        adapt(&mut model);
        model
    };
    let mut straight = adapted();
    assert_eq!(run(&mut straight, &data, None, 10, None, None).end, OutcomeEnd::Finished);

    let out = tempfile::tempdir().unwrap();
    let open = |start| RunFolder::open(out.path(), start, BTreeMap::new(), String::new()).unwrap();
    let mut stopped = adapted();
    let outcome = run(&mut stopped, &data, None, 10, Some(&open(Start::New)), Some(6));
    assert_eq!((outcome.end, outcome.step), (OutcomeEnd::Interrupted, 6));
    let mut resumed = adapted();
    let outcome = run(&mut resumed, &data, None, 10, Some(&open(Start::Resume)), None);
    assert_eq!((outcome.end, outcome.step), (OutcomeEnd::Finished, 10));
    assert!(trained(&resumed) == trained(&straight), "the resumed run went another way");
}
