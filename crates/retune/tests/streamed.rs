//! Weights that stay in their file give the very bytes of weights in memory, and a file that changes ends a run.

mod common;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use common::*;
use retune::generate::next_logits;
use retune::methods::{self, lora};
use retune::models::{LoadOptions, Model, Quantisation, StorageChoice, TextModel, fresh};
use retune::nn::{Active, Pass};
use retune::run_file::RunFile;
use retune::train::{self, Control, Event, Objective, ObjectiveError, TrainSettings};
use retune_formats::lora_config::{LoraConfig, Modules};
use retune_tensor::ops::LossRows;
use retune_tensor::{Gradients, Segments, Tape, Tensor, Var, Weight, ops};
use serde_json::{Value, json};

/// Blocks of the models here: a pager holds two of them.
const LAYERS: usize = 5;

fn llama(dtype: &str) -> Value {
    json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60, "initializer_range": 0.3,
        "tie_word_embeddings": true, "dtype": dtype
    })
}

fn gpt2(dtype: &str) -> Value {
    json!({
        "model_type": "gpt2", "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "vocab_size": 60, "n_positions": 64,
        "initializer_range": 0.3, "dtype": dtype
    })
}

fn bert() -> Value {
    json!({
        "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "vocab_size": 60, "max_position_embeddings": 40, "initializer_range": 0.3
    })
}

fn made(config: &Value, code: Option<&str>, dir: &Path) -> PathBuf {
    let quantise = code.map(|name| Quantisation::from_name(name, true).expect("code"));
    fresh::write_folder(Path::new("config.json"), config, 1, quantise, &[], dir)
        .unwrap_or_else(|e| panic!("{e}"));
    dir.to_path_buf()
}

fn open_model(path: &Path, storage: StorageChoice, streamed: bool) -> Model {
    let options = LoadOptions { streamed, ..storage.into() };
    let model = Model::load(path, options).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if let Some(pager) = &model.pager {
        pager.set_budget(Some(0));
    }
    model
}

fn inputs() -> Inputs {
    let lengths = [9, 1, 13];
    let ids: Vec<u32> = (0..23).map(|i| (i * 37 + 11) % 60).collect();
    let labels = LossRows {
        rows: vec![0, 3, 5, 12, 20],
        targets: vec![5, 7, 0, 59, 3],
        weights: vec![1.0; 5],
        denominator: 5.0,
    };
    Inputs { ids, segments: Segments::from_lengths(&lengths), places: Vec::new(), labels, padded: (0, 0) }
}

fn attach(model: &mut Model) {
    let config = LoraConfig { r: 3, target_modules: Some(Modules::AllLinear), ..LoraConfig::default() };
    lora::attach(model, &config, 1).expect("attach");
}

fn bits(values: &Tensor) -> Vec<u32> {
    values.data().iter().map(|x| x.to_bits()).collect()
}

/// Everything that a few steps of training and some inference give.
fn worked(mut model: Model) -> Vec<Vec<u32>> {
    attach(&mut model);
    let (inputs, mut all) = (inputs(), Vec::new());
    let mut trainer = Trainer::new();
    for checkpoint in [false, true, false] {
        let (loss, gradients) = loss_and_gradients(&model, &inputs, &Pass { checkpoint, ..Pass::default() });
        all.push(vec![loss.to_bits()]);
        trainer.update(&mut model, &gradients);
    }
    all.extend(model.params.trainable().iter().map(|id| bits(&model.params.get(*id).weight.to_tensor())));
    all.push(bits(&logits(&model, &inputs)));
    if model.net.as_text().expect("text").info().decoder {
        let mut cache = model.net.as_text().expect("text").new_cache(12, Active::default());
        for ids in [&[3, 4, 5, 6, 7, 8, 9][..], &[10], &[11]] {
            all.push(bits(&next_logits(&model, ids, &mut cache).expect("logits")));
        }
    }
    model.check_weights().expect("weights");
    all
}

#[test]
fn the_same_bytes_as_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (f32s, as_is, bf16) = (StorageChoice::F32, StorageChoice::AsIs, StorageChoice::Bf16);
    let float = made(&llama("float32"), None, &at("llama"));
    let half = made(&llama("bfloat16"), None, &at("half"));
    let four = made(&llama("bfloat16"), Some("nf4"), &at("four"));
    let conv = made(&gpt2("float32"), None, &at("gpt2"));
    let conv_half = made(&gpt2("float16"), None, &at("gpt2-half"));
    let conv_four = made(&gpt2("float32"), Some("fp4"), &at("gpt2-four"));
    let encoder = made(&bert(), None, &at("bert"));
    let encoder_eight = made(&bert(), Some("int8"), &at("bert-eight"));
    let blocks = at("gpt2.gguf");
    gguf::write_gguf(&conv, "q8_0", &blocks);
    let cases = [
        (&float, as_is),
        (&float, bf16),
        (&half, as_is),
        (&half, f32s),
        (&four, as_is),
        (&four, f32s),
        (&conv, as_is),
        (&conv_half, as_is),
        (&conv_half, f32s),
        (&conv_four, as_is),
        (&encoder, as_is),
        (&encoder_eight, as_is),
        (&blocks, as_is),
        (&blocks, f32s),
    ];
    for (path, storage) in cases {
        let what = format!("{} {storage:?}", path.display());
        let streamed = open_model(path, storage, true);
        let pager = streamed.pager.clone().expect("a pager");
        let sizes = pager.sizes();
        assert!(sizes.least < sizes.total, "{what}: {sizes:?}");
        assert_eq!(pager.stats().reads, 0, "{what}: loading reads nothing of it");
        let memory = open_model(path, storage, false);
        for ((_, a), (_, b)) in streamed.params.iter().zip(memory.params.iter()) {
            assert_eq!(a.weight.storage().format(), b.weight.storage().format(), "{what}: {}", a.name);
            assert_eq!(a.weight.storage().block(), b.weight.storage().block(), "{what}: {}", a.name);
        }
        assert_eq!(worked(memory), worked(streamed), "{what}");
        let stats = pager.stats();
        // Two of five blocks are held, and the others come again and again.
        assert!(stats.resident_bytes <= sizes.least, "{what}: {stats:?} {sizes:?}");
        assert!(stats.read_bytes > 3 * sizes.total, "{what}: {stats:?} {sizes:?}");
    }
}

/// llama.cpp's order of a head's rows, and every block type.
#[test]
fn a_gguf_of_all_block_types() {
    let path = data("gguf/tiny_mixed.gguf");
    for storage in [StorageChoice::AsIs, StorageChoice::Bf16, StorageChoice::F32] {
        let [memory, streamed] = [false, true].map(|streamed| open_model(&path, storage, streamed));
        assert_eq!(worked(memory), worked(streamed), "{storage:?}");
    }
}

#[test]
fn what_would_be_quantised_each_time_is_refused() {
    let storage = StorageChoice::Quantised(Quantisation::from_name("nf4", true).expect("nf4"));
    let options = LoadOptions { streamed: true, ..storage.into() };
    let said = Model::load(&data("parity/llama_base_full"), options).err().expect("refused").to_string();
    assert!(said.contains("retune quantize --to nf4") && said.contains("--weights memory"), "{said}");
}

#[test]
fn what_is_trained_lies_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(&llama("float32"), None, &folder.path().join("llama"));
    let mut model = open_model(&path, StorageChoice::AsIs, true);
    let pager = model.pager.clone().expect("a pager");
    let before = pager.sizes().total;
    let mut run = RunFile { method: "partial".into(), ..RunFile::default() };
    run.partial.last_blocks = 2;
    (methods::find("partial").expect("partial").attach)(&mut model, &run).expect("attach");
    for (_, param) in model.params.iter().filter(|(_, param)| param.trainable) {
        assert!(matches!(param.weight, Weight::F32(_)), "{}", param.name);
    }
    assert!(pager.sizes().total < before * 4 / 5, "{before} {:?}", pager.sizes());
    // Weights in fewer bits are refused as ever.
    let mut half = open_model(&path, StorageChoice::Bf16, true);
    let said = (methods::find("partial").expect("partial").attach)(&mut half, &run).err().expect("refused");
    assert!(said.to_string().contains("bf16"), "{said}");
}

/// The batch of [`inputs`], again and again.
struct Same<'a> {
    net: &'a dyn TextModel,
    inputs: Inputs,
}

impl Objective for Same<'_> {
    fn len(&self) -> usize {
        1
    }

    fn rows(&self, _: usize) -> usize {
        self.inputs.ids.len()
    }

    fn weight(&self, _: usize) -> f64 {
        5.0
    }

    fn describe(&self, _: usize) -> String {
        "the batch".into()
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        _: &[usize],
        _: u64,
        denominator: f64,
    ) -> Result<Var, ObjectiveError> {
        let input = retune::models::TextInput::new(&self.inputs.ids, &self.inputs.segments);
        let hidden = self.net.hidden(tape, &input, &Pass::default());
        let head = self.net.language_model().expect("a language model");
        let labels = LossRows { denominator: denominator as f32, ..self.inputs.labels.clone() };
        Ok(ops::linear_cross_entropy(tape, &hidden.x, &tape.weight(head.linear.weight), &labels))
    }
}

/// Trains some steps; after the first, something happens. What came of it, and the trained values.
fn trained(path: &Path, steps: u64, happens: &mut dyn FnMut()) -> (Result<(), train::Error>, Vec<Vec<u32>>) {
    let mut model = open_model(path, StorageChoice::AsIs, true);
    attach(&mut model);
    let Model { params, net, .. } = &mut model;
    let objective = Same { net: net.as_text().expect("text"), inputs: inputs() };
    let settings = TrainSettings { steps: Some(steps), warmup: 0.0, ..TrainSettings::default() };
    let outcome = train::train(params, &objective, None, &settings, None, &mut |event| {
        if matches!(event, Event::Step { step: 1, .. }) {
            happens();
        }
        Control::Continue
    });
    let values = params.trainable().iter().map(|id| bits(&params.get(*id).weight.to_tensor())).collect();
    (outcome.map(|_| ()), values)
}

#[test]
fn a_file_that_changes_ends_the_run_and_trains_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(&llama("float32"), None, &folder.path().join("llama"));
    let weights = path.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let (one_step, after_one) = trained(&path, 1, &mut || {});
    one_step.expect("a step");
    let open = || OpenOptions::new().write(true).open(&weights).unwrap();
    let cut = || open().set_len(whole.len() as u64 / 2).unwrap();
    let grown = || open().set_len(whole.len() as u64 + 1).unwrap();
    let overwritten = || {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = open();
        file.seek(SeekFrom::Start(whole.len() as u64 / 2)).unwrap();
        file.write_all(&[0; 64]).unwrap();
        // Clocks of file systems are coarse.
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(2)).unwrap();
    };
    let all: [(&dyn Fn(), &str); 3] =
        [(&cut, "cut from"), (&grown, "grew from"), (&overwritten, "written to")];
    for (happens, word) in all {
        fs::write(&weights, &whole).unwrap();
        let (outcome, values) = trained(&path, 4, &mut || happens());
        let said = outcome.expect_err("an error").to_string();
        assert!(said.contains(word) || word == "cut from" && said.contains("become shorter"), "{said}");
        assert!(said.contains("model.layers.") && said.contains("model.safetensors"), "{said}");
        assert_eq!(values, after_one, "{word}: nothing is trained with what cannot be had");
    }
    // Another file in its place is no matter: the one that was opened stays.
    fs::write(&weights, &whole).unwrap();
    let (undisturbed, want) = trained(&path, 3, &mut || {});
    undisturbed.expect("a run");
    let (replaced, got) = trained(&path, 3, &mut || {
        fs::write(path.join("other"), b"something else").unwrap();
        fs::rename(path.join("other"), &weights).unwrap();
    });
    replaced.expect("a run");
    assert_eq!(got, want);
}

#[test]
fn inference_tells_of_a_file_that_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(&llama("bfloat16"), Some("nf4"), &folder.path().join("llama"));
    let model = open_model(&path, StorageChoice::AsIs, true);
    let mut cache = model.net.as_text().expect("text").new_cache(12, Active::default());
    next_logits(&model, &[1, 2, 3], &mut cache).expect("logits");
    OpenOptions::new().write(true).open(path.join("model.safetensors")).unwrap().set_len(100).unwrap();
    let said =
        (0..4).find_map(|_| next_logits(&model, &[4], &mut cache).err()).expect("an error").to_string();
    assert!(said.contains("model.layers.") && said.contains("model.safetensors"), "{said}");
    let (loss, _): (f32, Gradients) = loss_and_gradients(&model, &inputs(), &Pass::default());
    assert!(loss.is_nan());
}
