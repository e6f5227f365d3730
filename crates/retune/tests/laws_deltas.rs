//! The laws for the methods that train some of the base's own parameters: full, partial, bitfit, sparse and head.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Inputs, close, data, load, open};
use retune::methods::matrix::{self, Fit, Held};
use retune::methods::{self, Attached};
use retune::models::{HeadRequest, Model, Quantisation, StorageChoice, TextInput};
use retune::nn::{Head, Hidden, Pass, Pooling, Problem};
use retune::objective::{Objective, ObjectiveError};
use retune::run_file::{RunFile, Selection, TargetModules};
use retune::tasks::causal_lm::{self, CausalLm, Dataset};
use retune::tasks::trunk_cache::{self, Limits, Text, TrunkCache};
use retune_formats::TensorSource;
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Segments, Tape, Tensor, Var};

/// A method with settings of its own.
struct Case {
    name: &'static str,
    run: RunFile,
    /// It trains weights in place: these must be f32.
    in_place: bool,
}

fn case(name: &'static str, method: &str, in_place: bool, set: impl Fn(&mut RunFile)) -> Case {
    let mut run = RunFile { method: method.into(), ..RunFile::default() };
    set(&mut run);
    Case { name, run, in_place }
}

fn cases() -> Vec<Case> {
    vec![
        case("only-changed", "full", true, |run| run.full.only_changed = true),
        case("last block", "partial", true, |run| run.partial.last_blocks = 1),
        case("by name", "partial", true, |run| {
            run.partial.train = Some(vec!["*norm*".into(), "layers.0.mlp.up_proj".into()]);
        }),
        case("biases", "bitfit", false, |_| {}),
        case("added biases", "bitfit", false, |run| run.bitfit.add_biases = true),
        case("random", "sparse", false, |_| {}),
        case("random, r", "sparse", false, |run| {
            run.sparse.r = Some(2);
            run.sparse.target_modules = TargetModules::Names(vec!["q_proj".into(), "down_proj".into()]);
        }),
        case("magnitude", "sparse", false, |run| run.sparse.selection = Selection::Magnitude),
        case("fisher", "sparse", false, |run| run.sparse.selection = Selection::Fisher),
        case("head", "head", false, |_| {}),
    ]
}

const BASES: &[(&str, &str, StorageChoice)] = &[
    ("llama, f32", "parity/llama_base_full", StorageChoice::F32),
    ("llama, bf16", "parity/llama_base_full", StorageChoice::Bf16),
    ("qwen2, f32", "llama_variants/qwen2", StorageChoice::F32),
    ("gguf", "gguf/tiny_mixed.gguf", StorageChoice::AsIs),
    ("bert, f32", "parity/bert_base", StorageChoice::F32),
    ("bert, bf16", "parity/bert_base", StorageChoice::Bf16),
    ("gpt2, f32", "parity/gpt2_base", StorageChoice::F32),
    ("gpt2, bf16", "parity/gpt2_base", StorageChoice::Bf16),
];

/// The names of an architecture in the place of Llama's.
fn translated(run: &RunFile, base: &str) -> RunFile {
    let names = |llama: &str| match (base.split(',').next(), llama) {
        (Some("bert"), "*norm*") => "*LayerNorm*".to_string(),
        (Some("bert"), "layers.0.mlp.up_proj") => "layer.0.intermediate.dense".into(),
        (Some("bert"), "q_proj") => "query".into(),
        (Some("bert"), "down_proj") => "intermediate.dense".into(),
        (Some("gpt2"), "*norm*") => "*.ln_*".into(),
        (Some("gpt2"), "layers.0.mlp.up_proj") => "h.0.mlp.c_fc".into(),
        (Some("gpt2"), "q_proj") => "c_attn".into(),
        (Some("gpt2"), "down_proj") => "mlp.c_proj".into(),
        _ => llama.to_string(),
    };
    let mut run = run.clone();
    run.partial.train = run.partial.train.map(|all| all.iter().map(|name| names(name)).collect());
    if let TargetModules::Names(all) = &mut run.sparse.target_modules {
        all.iter_mut().for_each(|name| *name = names(name));
    }
    run
}

/// Every case on every base that can take it, with the name of the pair.
fn all(mut each: impl FnMut(&str, &Case, &dyn Fn() -> Model)) {
    for &(base, path, storage) in BASES {
        for case in cases() {
            // Biases are f32 in every storage.
            let biases = base.contains("bert") || base.contains("gpt2") || base.contains("qwen2");
            let possible = biases || case.name != "biases";
            if possible && (!case.in_place || storage == StorageChoice::F32) {
                let case = Case { run: translated(&case.run, base), ..case };
                each(&format!("{} on {base}", case.name), &case, &|| load(&data(path), storage));
            }
        }
    }
}

fn texts() -> Vec<Vec<u32>> {
    let text = |(t, n): (usize, usize)| (0..n).map(|i| ((i * 37 + t * 11) % 150 + 3) as u32).collect();
    [9usize, 2, 23, 4, 14].into_iter().enumerate().map(text).collect()
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

/// The loss of [`texts`], for what is chosen by gradients.
struct Texts<'a>(&'a Model);

impl Objective for Texts<'_> {
    fn len(&self) -> usize {
        texts().len()
    }
    fn rows(&self, example: usize) -> usize {
        texts()[example].len()
    }
    fn weight(&self, example: usize) -> f64 {
        self.rows(example) as f64 - 1.0
    }
    fn describe(&self, example: usize) -> String {
        format!("text {example}")
    }
    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        _epoch: u64,
        denominator: f64,
    ) -> Result<Var, ObjectiveError> {
        let texts: Vec<Vec<u32>> = batch.iter().map(|&i| texts()[i].clone()).collect();
        let inputs = pack(&texts, denominator as f32);
        let hidden = self.0.net.as_text().expect("text").hidden(
            tape,
            &TextInput::new(&inputs.ids, &inputs.segments),
            &Pass::default(),
        );
        Ok(head_loss(tape, self.0, &hidden, &inputs.labels))
    }
}

/// What the head says of hidden rows.
fn head_of(tape: &Tape, model: &Model, hidden: &Hidden) -> Var {
    match model.net.head() {
        Head::LanguageModel(head) => head.forward(tape, &hidden.rows, &hidden.x),
        Head::Classifier(head) => head.forward(tape, hidden),
        Head::Detector(_) | Head::None => panic!("a head"),
    }
}

/// Of next tokens; of a classifier, of a class for each text.
fn head_loss(tape: &Tape, model: &Model, hidden: &Hidden, labels: &LossRows) -> Var {
    let logits = head_of(tape, model, hidden);
    if matches!(model.net.head(), Head::LanguageModel(_)) {
        return ops::cross_entropy(tape, &logits, labels);
    }
    let rows: Vec<usize> = (0..logits.rows()).collect();
    let targets = hidden.rows.segments.lengths().iter().map(|n| (n % logits.cols()) as u32).collect();
    let labels = LossRows { weights: vec![1.0; rows.len()], rows, targets, denominator: labels.denominator };
    ops::cross_entropy(tape, &logits, &labels)
}

fn outputs_with(model: &Model, inputs: &Inputs, pass: &Pass) -> Tensor {
    let tape = Tape::inference(&model.params);
    let hidden = model.net.as_text().expect("text").hidden(
        &tape,
        &TextInput::new(&inputs.ids, &inputs.segments),
        pass,
    );
    head_of(&tape, model, &hidden).value().clone()
}

fn logits(model: &Model, inputs: &Inputs) -> Tensor {
    outputs_with(model, inputs, &Pass::default())
}

fn attach(model: &mut Model, run: &RunFile) -> Attached {
    let spec = methods::find(&run.method).expect("method");
    let mut attached = (spec.attach)(model, run).unwrap_or_else(|e| panic!("{e}"));
    if let Some(prepare) = attached.prepare.take() {
        // The objective reads the network alone; the parameters are those that it is given.
        let mut params = std::mem::take(&mut model.params);
        prepare(&mut params, &Texts(model)).unwrap_or_else(|e| panic!("{e}"));
        model.params = params;
    }
    attached
}

/// Some steps of plain gradient descent.
fn train(model: &mut Model) -> (f32, f32) {
    let inputs = pack(&texts(), texts().iter().map(|t| t.len() - 1).sum::<usize>() as f32);
    let mut losses = Vec::new();
    let mut moments = BTreeMap::new();
    for step in 1..=4 {
        let tape = Tape::new(&model.params);
        let hidden = model.net.as_text().expect("text").hidden(
            &tape,
            &TextInput::new(&inputs.ids, &inputs.segments),
            &Pass::default(),
        );
        let loss = head_loss(&tape, model, &hidden, &inputs.labels);
        losses.push(loss.value().data()[0]);
        let mut gradients = retune_tensor::Gradients::new();
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        let trained: Vec<_> = gradients.iter().map(|(id, _)| id).collect();
        assert_eq!(trained, model.params.trainable(), "a gradient for each trainable parameter and no other");
        for (id, g) in gradients.iter() {
            let zeros = || Tensor::zeros(g.rows(), g.cols());
            let (m, v) = moments.entry(id).or_insert_with(|| (zeros(), zeros()));
            let p = model.params.tensor_mut(id).expect("f32");
            let o = ops::AdamW { lr: 2e-3, ..ops::AdamW::default() };
            ops::adamw_step(o, step, 1.0, p.data_mut(), g.data(), m.data_mut(), v.data_mut());
        }
    }
    (losses[0], losses[3])
}

fn bits(values: &Tensor) -> Vec<u32> {
    values.data().iter().map(|x| x.to_bits()).collect()
}

fn base_bits(model: &Model, only: impl Fn(&retune_tensor::Param) -> bool) -> BTreeMap<String, Vec<u32>> {
    let base = model.params.iter().filter(|(_, p)| !p.adapter && only(p));
    base.map(|(_, p)| (p.name.clone(), bits(&p.weight.to_tensor()))).collect()
}

fn source(path: &Path) -> methods::Source {
    methods::Source { path: path.into(), weight: 1.0 }
}

#[test]
fn nothing_changes_at_the_start() {
    all(|name, case, base| {
        let mut model = base();
        let inputs = pack(&texts(), 1.0);
        let before = logits(&model, &inputs);
        attach(&mut model, &case.run);
        assert_eq!(before.data(), logits(&model, &inputs).data(), "{name}");
    });
}

#[test]
fn only_what_is_declared_changes() {
    all(|name, case, base| {
        let mut model = base();
        let untouched = base_bits(&model, |_| true);
        let attached = attach(&mut model, &case.run);
        let elements = |id| model.params.get(id).elements();
        assert_eq!(attached.trainable, model.params.trainable().into_iter().map(elements).sum::<usize>());
        let frozen = base_bits(&model, |p| !p.trainable);
        let (first, last) = train(&mut model);
        assert!(last < first, "{name}: {first} to {last}");
        for (tensor, values) in frozen {
            assert_eq!(untouched.get(&tensor), Some(&values), "{name}: {tensor} at the start");
            let after = model.params.find(&tensor).map(|id| bits(&model.params.get(id).weight.to_tensor()));
            assert_eq!(Some(values), after, "{name}: {tensor}");
        }
    });
}

#[test]
fn saved_and_loaded_is_the_same_in_any_slot() {
    all(|name, case, base| {
        let mut model = base();
        let attached = attach(&mut model, &case.run);
        train(&mut model);
        let inputs = pack(&texts(), 1.0);
        let trained = logits(&model, &inputs);
        let folder = tempfile::tempdir().expect("folder");
        attached.write(&model, folder.path(), None).expect("save");

        let mut fresh = base();
        methods::load(&mut fresh, &[source(folder.path())], 0).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(trained.data(), logits(&fresh, &inputs).data(), "{name}");
        let count = |model: &Model| methods_count(model);
        assert_eq!(count(&model), count(&fresh), "{name}: as much is trainable as before");

        // Two halves are the whole.
        let half = methods::Source { weight: 0.5, ..source(folder.path()) };
        let mut halves = base();
        methods::load(&mut halves, &[half.clone(), half], 0).expect("load");
        close(&format!("{name}: halves"), logits(&halves, &inputs).data(), trained.data(), 1e-4);

        // Beside the base, in another slot, where nothing but linears and tables changed.
        let mut beside = base();
        let plain = logits(&beside, &inputs);
        match methods::load(&mut beside, &[source(folder.path())], 2) {
            Ok(_) => {
                assert_eq!(plain.data(), logits(&beside, &inputs).data(), "{name}: slot 0 is the base");
                let pass = Pass { active: retune::nn::Active::Slot(2), ..Pass::default() };
                assert_eq!(trained.data(), outputs_with(&beside, &inputs, &pass).data(), "{name}: slot 2");
            }
            Err(error) => assert!(error.to_string().contains("give it as the only"), "{name}: {error}"),
        }
    });
}

fn methods_count(model: &Model) -> usize {
    model.params.trainable().into_iter().map(|id| model.params.get(id).elements()).sum()
}

#[test]
fn packed_is_one_by_one() {
    all(|name, case, base| {
        let mut model = base();
        attach(&mut model, &case.run);
        train(&mut model);
        let together = logits(&model, &pack(&texts(), 1.0));
        let mut row = 0;
        for text in texts() {
            let alone = logits(&model, &pack(std::slice::from_ref(&text), 1.0));
            let part = &together.data()[row * together.cols()..(row + alone.rows()) * together.cols()];
            close(name, alone.data(), part, 1e-5);
            row += alone.rows();
        }
    });
}

/// The folder that export writes gives the same numbers; biases that have no place in the files are refused.
#[test]
fn merged_is_unmerged() {
    all(|name, case, base| {
        let mut model = base();
        attach(&mut model, &case.run);
        train(&mut model);
        let inputs = pack(&texts(), 1.0);
        let want = logits(&model, &inputs);
        let folder = tempfile::tempdir().expect("folder");
        let options = retune::export::ExportOptions {
            dtype: retune::export::ExportDtype::F32,
            overwrite: true,
            ..retune::export::ExportOptions::default()
        };
        match retune::export::write_folder(&model, folder.path(), &options) {
            Ok(_) => {
                let merged = load(folder.path(), StorageChoice::F32);
                close(name, logits(&merged, &inputs).data(), want.data(), 1e-5);
            }
            Err(error) => {
                assert!(case.run.bitfit.add_biases, "{name}: {error}");
                assert!(error.to_string().contains("no place"), "{name}: {error}");
            }
        }
    });
}

/// As many entries change as were chosen, and the folder lists exactly them.
#[test]
fn sparse_changes_exactly_its_entries() {
    for selection in [Selection::Random, Selection::Magnitude, Selection::Fisher] {
        let base = data("parity/llama_base_full");
        let mut run = RunFile { method: "sparse".into(), ..RunFile::default() };
        (run.sparse.selection, run.sparse.share) = (selection, 0.05);
        run.sparse.target_modules = TargetModules::Names(vec!["v_proj".into()]);
        let mut model = load(&base, StorageChoice::F32);
        let attached = attach(&mut model, &run);
        train(&mut model);
        let folder = tempfile::tempdir().expect("folder");
        let export = retune::export::ExportOptions::default();
        retune::export::write_folder(&model, folder.path(), &export).expect("export");
        let merged = load(folder.path(), StorageChoice::F32);
        let plain = load(&base, StorageChoice::F32);
        let mut changed = 0;
        for (_, p) in plain.params.iter() {
            let other = merged.params.get(merged.params.find(&p.name).expect("same names"));
            let pairs = bits(&p.weight.to_tensor()).into_iter().zip(bits(&other.weight.to_tensor()));
            let here = pairs.filter(|(a, b)| a != b).count();
            assert!(here == 0 || p.name.contains("v_proj"), "{selection:?}: {}", p.name);
            changed += here;
        }
        // v_proj is 32 x 64: 5 % of it are 102 entries; r = 1 is as near as PEFT's counting comes to it.
        let wanted = if selection == Selection::Random { 2 * (32 + 64) } else { 2 * 102 };
        assert_eq!(changed, wanted, "{selection:?}");
        assert_eq!(attached.trainable, wanted, "{selection:?}");
    }
}

/// The largest squared gradients of the whole weight are those that are chosen.
#[test]
fn fisher_chooses_the_largest_squares() {
    let mut run = RunFile { method: "sparse".into(), ..RunFile::default() };
    run.sparse.selection = Selection::Fisher;
    run.sparse.target_modules = TargetModules::Names(vec!["layers.1.mlp.up_proj".into()]);
    let mut model = load(&data("parity/llama_base_full"), StorageChoice::F32);
    let name = "model.layers.1.mlp.up_proj.weight";
    let id = model.params.find(name).expect("weight");
    model.params.get_mut(id).trainable = true;
    let mut sums = vec![0.0f32; model.params.get(id).elements()];
    for example in 0..texts().len() {
        let objective = Texts(&model);
        let tape = Tape::new(&model.params);
        let loss = objective.loss(&tape, &[example], 0, objective.weight(example)).expect("loss");
        let mut gradients = retune_tensor::Gradients::new();
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        let g = gradients.get(id).expect("gradient");
        sums.iter_mut().zip(g.data()).for_each(|(s, g)| *s += g * g);
    }
    let attached = attach(&mut model, &run);
    train(&mut model);
    let folder = tempfile::tempdir().expect("folder");
    attached.write(&model, folder.path(), None).expect("save");
    let file = open(&folder.path().join("delta.safetensors"));
    let bytes = file.read(&format!("{name}.indices")).expect("indices");
    let chosen: Vec<usize> =
        bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("4 bytes")) as usize).collect();
    assert_eq!(chosen.len(), (sums.len() as f64 * 0.01).round() as usize);
    let least = chosen.iter().map(|&i| sums[i]).fold(f32::INFINITY, f32::min);
    let larger = sums.iter().enumerate().filter(|(i, s)| **s > least && !chosen.contains(i)).count();
    assert_eq!(larger, 0);
}

/// PEFT's own SHiRA folder is read, and written again with the same names, shapes, types and settings.
#[test]
fn shira_of_peft_is_read_and_written() {
    let folder = data("formats/shira");
    let theirs = open(&folder.join("adapter_model.safetensors"));
    let config = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(path.join("adapter_config.json")).expect("config"))
            .expect("json")
    };
    let mut run = RunFile { method: "sparse".into(), ..RunFile::default() };
    run.sparse.r = Some(2);
    run.sparse.target_modules = TargetModules::Names(vec!["q_proj".into()]);
    let mut model = load(&data("parity/llama_base_full"), StorageChoice::F32);
    let attached = attach(&mut model, &run);
    train(&mut model);
    let out = tempfile::tempdir().expect("folder");
    attached.write(&model, out.path(), None).expect("save");
    let ours = open(&out.path().join("adapter_model.safetensors"));
    let about = |file: &dyn TensorSource| -> BTreeMap<String, (String, Vec<usize>)> {
        let each = file.tensors().iter();
        each.map(|t| (t.name.clone(), (t.dtype.name().to_string(), t.shape.clone()))).collect()
    };
    let (got, want) = (about(&ours), about(&theirs));
    let first: PathBuf = want.keys().next().expect("a tensor").into();
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{}", first.display());
    let (mut got, want) = (config(out.path()), config(&folder));
    got["base_model_name_or_path"] = serde_json::Value::Null;
    assert_eq!(got, want);
}

#[test]
fn refusals_name_the_remedy() {
    let refusal = |path: &str, storage, set: &dyn Fn(&mut RunFile)| {
        let mut run = RunFile::default();
        set(&mut run);
        let mut model = load(&data(path), storage);
        let spec = methods::find(&run.method).expect("method");
        match (spec.attach)(&mut model, &run) {
            Ok(_) => panic!("{} must be refused", run.method),
            Err(error) => error.to_string(),
        }
    };
    let llama = "parity/llama_base_full";
    let text = refusal(llama, StorageChoice::F32, &|run| run.method = "bitfit".into());
    assert!(text.contains("no bias") && text.contains("--add-biases"), "{text}");
    for method in ["full", "partial"] {
        let text = refusal(llama, StorageChoice::Bf16, &|run| run.method = method.into());
        assert!(text.contains("bf16") && text.contains("--storage f32"), "{text}");
    }
    let text = refusal(llama, StorageChoice::F32, &|run| {
        run.method = "partial".into();
        run.partial.train = Some(vec!["up_porj".into()]);
    });
    assert!(text.contains("up_porj") && text.contains("did you mean \"up_proj\""), "{text}");
    let text = refusal(llama, StorageChoice::F32, &|run| {
        run.method = "partial".into();
        run.partial.last_blocks = 9;
    });
    assert!(text.contains("2 blocks"), "{text}");
    let text = refusal(llama, StorageChoice::F32, &|run| {
        run.method = "partial".into();
        run.partial.freeze = Some(3);
    });
    assert!(text.contains("freeze = 3") && text.contains("numbered 0 to 1"), "{text}");
    let text = refusal(llama, StorageChoice::F32, &|run| {
        run.method = "sparse".into();
        run.sparse.r = Some(64);
    });
    assert!(text.contains("lower sparse.r"), "{text}");
}

/// A classifier is trained whole with every method of these, and the trunk as the method says.
#[test]
fn classifiers_are_trained_and_saved() {
    let request = HeadRequest::Classifier {
        problem: Problem::SingleLabel,
        labels: ["a", "b", "c"].map(String::from).to_vec(),
        pooling: None,
        keep: true,
        seed: 1,
        image_size: None,
    };
    let base =
        || Model::load_with(&data("llama_variants/qwen2"), StorageChoice::F32, &request).expect("model");
    let scores = |model: &Model| logits(model, &pack(&texts(), 1.0));
    for case in cases().iter().filter(|case| case.run.sparse.selection != Selection::Fisher) {
        let mut model = base();
        let attached = attach(&mut model, &case.run);
        let trains = |name: &str| model.params.find(name).is_some_and(|id| model.params.get(id).trainable);
        assert_eq!(trains("score.weight"), case.name != "by name", "{}", case.name);
        for id in model.params.trainable() {
            let values = model.params.tensor_mut(id).expect("f32");
            values.data_mut().iter_mut().enumerate().for_each(|(i, x)| *x += 1e-3 * (i % 7) as f32);
        }
        let folder = tempfile::tempdir().expect("folder");
        attached.write(&model, folder.path(), None).expect("save");
        for slot in [0, 1] {
            let mut fresh = base();
            if methods::load(&mut fresh, &[source(folder.path())], slot).is_ok() && slot == 0 {
                assert_eq!(scores(&model).data(), scores(&fresh).data(), "{}", case.name);
            }
        }
    }
}

fn dataset() -> Dataset {
    let source = |line| causal_lm::Source { file: "texts".into(), line };
    let example = |(i, ids): (usize, Vec<u32>)| causal_lm::Example {
        target: (0..ids.len()).map(|i| i > 0).collect(),
        ids,
        source: source(i + 1),
        key: 1000 + i as u64,
        question: i as u64,
        truncated: 0,
    };
    Dataset { examples: texts().into_iter().enumerate().map(example).collect(), report: Default::default() }
}

/// Trains for some epochs in changing orders and batches; returns what was trained and the last evaluation, as bits.
fn trained_bits(model: &mut Model, cache: Option<&TrunkCache>) -> (Vec<Vec<u32>>, u32) {
    let data = dataset();
    let Model { params, net, .. } = model;
    let net = net.as_text().expect("text");
    let mut moments = BTreeMap::new();
    let mut step = 0;
    for epoch in 0..3u64 {
        let objective = CausalLm { net, data: &data, dropout_seed: Some(3), checkpoint: epoch == 1, cache };
        let order: Vec<usize> = (0..5).map(|i| (i * 3 + epoch as usize) % 5).collect();
        for batch in order.chunks(2 + epoch as usize) {
            let tape = Tape::new(params);
            let loss = objective.loss(&tape, batch, epoch, 20.0).expect("loss");
            let mut gradients = retune_tensor::Gradients::new();
            tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
            step += 1;
            for (id, g) in gradients.iter() {
                let zeros = || Tensor::zeros(g.rows(), g.cols());
                let (m, v) = moments.entry(id).or_insert_with(|| (zeros(), zeros()));
                let p = params.tensor_mut(id).expect("f32");
                let o = ops::AdamW { lr: 2e-3, ..ops::AdamW::default() };
                ops::adamw_step(o, step, 1.0, p.data_mut(), g.data(), m.data_mut(), v.data_mut());
            }
        }
    }
    let eval = CausalLm { net, data: &data, dropout_seed: None, checkpoint: false, cache };
    let loss = eval.loss(&Tape::inference(params), &[0, 1, 2, 3, 4], 0, 47.0).expect("loss");
    let of = |id| bits(&params.get(id).weight.to_tensor());
    (params.trainable().into_iter().map(of).collect(), loss.value().data()[0].to_bits())
}

/// With the rows in memory, in a file, in both or nowhere, training and evaluation give the same bytes.
#[test]
fn the_trunk_cache_changes_no_bit() {
    let lora = |run: &mut RunFile| {
        run.lora.target_modules = TargetModules::Pattern(r".*layers\.1\.mlp\..*".into());
        run.lora.lora_dropout = 0.3;
    };
    let cases = [
        case("last block", "partial", true, |run| run.partial.last_blocks = 1),
        case("behind a frozen layer", "partial", true, |run| run.partial.freeze = Some(1)),
        case("norm", "partial", true, |run| run.partial.last_blocks = 0),
        case("head", "head", false, |_| {}),
        case("upper lora", "lora", false, lora),
    ];
    for (base, path, storage) in &BASES[..3] {
        for case in cases.iter().filter(|case| !case.in_place || *storage == StorageChoice::F32) {
            let start = || {
                let mut model = load(&data(path), *storage);
                attach(&mut model, &case.run);
                model
            };
            let plain = trained_bits(&mut start(), None);
            let folder = tempfile::tempdir().expect("folder");
            let file = || Some(folder.path().to_path_buf());
            for (memory, folder) in [(1 << 20, None), (0, file()), (2500, file()), (2500, None), (0, None)] {
                let mut model = start();
                let whole = memory > 2500 || folder.is_some();
                let limits = Limits { memory, folder };
                let cache =
                    TrunkCache::new(model.net.as_text().expect("text"), &model.params, limits.clone())
                        .unwrap_or_else(|| panic!("{} on {base}: the trunk is frozen", case.name));
                assert!(
                    plain == trained_bits(&mut model, Some(&cache)),
                    "{} on {base}, {limits:?}",
                    case.name
                );
                assert!(!whole || cache.len() == 5, "{} on {base}, {limits:?}: {}", case.name, cache.len());
            }
            assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0, "nothing stays behind");
        }
    }
}

/// There is no cache where the first block is trained.
#[test]
fn a_trained_trunk_is_not_cached() {
    for method in ["full", "lora", "sparse"] {
        let mut model = load(&data("parity/llama_base_full"), StorageChoice::F32);
        attach(&mut model, &RunFile { method: method.into(), ..RunFile::default() });
        let cache = TrunkCache::new(model.net.as_text().expect("text"), &model.params, Limits::default());
        assert!(cache.is_none(), "{method}");
    }
}

/// A classifier over a frozen trunk: one row for each text is kept, and the logits are the same.
#[test]
fn pooled_rows_are_kept() {
    let texts = texts();
    for pooling in [Pooling::First, Pooling::Last, Pooling::Mean] {
        let request = HeadRequest::Classifier {
            problem: Problem::SingleLabel,
            labels: ["a", "b"].map(String::from).to_vec(),
            pooling: Some(pooling),
            keep: false,
            seed: 1,
            image_size: None,
        };
        for base in ["llama_variants/qwen2", "parity/bert_base"] {
            let mut model = Model::load_with(&data(base), StorageChoice::F32, &request).expect("model");
            attach(&mut model, &RunFile { method: "head".into(), ..RunFile::default() });
            let Head::Classifier(head) = model.net.head() else { panic!("a classifier") };
            let limits = Limits { memory: 1 << 20, folder: None };
            let cache =
                TrunkCache::new(model.net.as_text().expect("text"), &model.params, limits).expect("frozen");
            let each: Vec<Text> =
                texts.iter().map(|ids| Text { ids: &ids[..ids.len().min(9)], token_types: &[] }).collect();
            for batch in [&each[..], &each[1..3], &each[..1]] {
                let logits = |cache| {
                    let tape = Tape::inference(&model.params);
                    let hidden = trunk_cache::hidden(
                        cache,
                        &tape,
                        model.net.as_text().expect("text"),
                        batch,
                        &Pass::default(),
                    );
                    let rows = hidden.rows.segments.rows();
                    (bits(head.forward(&tape, &hidden).value()), rows)
                };
                let ((plain, all), (cached, rows)) = (logits(None), logits(Some(&cache)));
                assert!(plain == cached, "{pooling:?} on {base}");
                assert!(rows == batch.len() && all > rows, "{pooling:?} on {base}");
            }
            assert_eq!(cache.len(), 5);
        }
    }
}

/// The printed matrix says what happens.
#[test]
fn the_matrix_is_what_happens() {
    let bases =
        [("llama", "parity/llama_base_full"), ("bert", "parity/bert_base"), ("gpt2", "parity/gpt2_base")];
    for (method, model, held, fit) in matrix::all() {
        let storage = match held {
            Held::F32 => StorageChoice::F32,
            Held::Half => StorageChoice::Bf16,
            Held::Quantised => StorageChoice::Quantised(Quantisation::from_name("nf4", true).expect("code")),
        };
        let Some((_, path)) = bases.iter().find(|(name, _)| *name == model.name) else { continue };
        let mut loaded = load(&data(path), storage);
        let run = RunFile { method: method.name.into(), ..RunFile::default() };
        let name = format!("{} on {}, {held:?}", method.name, model.name);
        match ((method.attach)(&mut loaded, &run), fit) {
            (Ok(_), Fit::Yes) | (Err(_), Fit::No(_) | Fit::If(_)) => {}
            (Ok(_), _) => panic!("{name} is said to be refused"),
            (Err(error), _) => panic!("{name}: {error}"),
        }
    }
}
