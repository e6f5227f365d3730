//! The laws over every registered method, on Llama, GPT-2 and BERT, in f32, bf16, NF4 with double quantisation, int8 and
//! from GGUF (ARCHITECTURE.md). A new method is under them from its line in the registry on.
//!
//! With `RETUNE_EXCHANGE=FOLDER` what each method writes is left there, with tokens and logits, for
//! `scripts/reference/check_exchange.py` to load with the tools whose files they are.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::gguf::write_gguf;
use common::*;
use retune::export::{ExportDtype, ExportOptions, write_folder};
use retune::methods::{self, Attached, METHODS};
use retune::models::{HeadRequest, Model, Quantisation, StorageChoice, TextInput};
use retune::nn::{Active, Head, Pass, Problem};
use retune::objective::{Objective, ObjectiveError};
use retune::run_file::RunFile;
use retune_formats::{TensorOut, safetensors};
use retune_tensor::ops::{self, AdamW, LossRows, adamw_step};
use retune_tensor::{Gradients, Segments, Tape, Tensor, Var};

/// One model to put methods on.
struct Base {
    name: String,
    path: PathBuf,
    storage: StorageChoice,
    head: HeadRequest,
}

impl Base {
    fn load(&self) -> Model {
        Model::load_with(&self.path, self.storage, &self.head)
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// `folder` is where GGUF files are made.
fn bases(folder: &Path) -> Vec<Base> {
    let classifier = HeadRequest::Classifier {
        problem: Problem::SingleLabel,
        labels: ["a", "b", "c"].map(String::from).to_vec(),
        pooling: None,
        keep: true,
        seed: 3,
        image_size: None,
    };
    let mut all = Vec::new();
    for (name, path, head) in [
        ("llama", "parity/llama_base_full", HeadRequest::AsFile),
        ("gpt2", "parity/gpt2_base", HeadRequest::AsFile),
        ("bert", "parity/bert_base", classifier.clone()),
    ] {
        let quantised = |code| StorageChoice::Quantised(Quantisation::from_name(code, true).expect("code"));
        for (kind, storage) in [
            ("f32", StorageChoice::F32),
            ("bf16", StorageChoice::Bf16),
            ("nf4", quantised("nf4")),
            ("int8", quantised("int8")),
        ] {
            let name = format!("{name} {kind}");
            all.push(Base { name, path: data(path), storage, head: head.clone() });
        }
    }
    let llama = data("gguf/tiny_mixed.gguf");
    let (storage, head) = (StorageChoice::AsIs, HeadRequest::AsFile);
    all.push(Base { name: "llama gguf".into(), path: llama, storage, head });
    for (name, head) in [("gpt2", HeadRequest::AsFile), ("bert", classifier)] {
        let path = folder.join(format!("{name}.gguf"));
        write_gguf(&data(&format!("parity/{name}_base")), "q8_0", &path);
        all.push(Base { name: format!("{name} gguf"), path, storage: StorageChoice::AsIs, head });
    }
    all
}

/// A run of this method with small settings.
fn run_of(method: &str) -> RunFile {
    let settings = match method {
        "lora" => "[lora]\nrank = 4\nlora_alpha = 8\nlora_dropout = 0\n",
        "prompt" => "[prompt]\nnum_virtual_tokens = 5\n",
        "prefix" => "[prefix]\nnum_virtual_tokens = 5\n",
        "partial" => "[partial]\nlast_blocks = 1\n",
        "bitfit" => "[bitfit]\nadd_biases = true\n",
        _ => "",
    };
    let text = format!("model = 'm'\ndata = 'd'\nmethod = '{method}'\n{settings}");
    RunFile::from_toml("conformance", &text).unwrap_or_else(|e| panic!("{method}: {e}"))
}

/// Methods that train the base's own weights, which must then be f32.
const IN_PLACE: &[&str] = &["full", "partial"];
/// Methods whose start is no copy of the base: what they add acts at once.
const CHANGE_AT_START: &[&str] = &["prompt", "prefix"];

struct Texts(Vec<Vec<u32>>);

fn texts() -> Texts {
    let text = |(t, n): (usize, usize)| (0..n).map(|i| ((i * 37 + t * 11) % 150 + 3) as u32).collect();
    Texts([9usize, 2, 23, 4, 14].into_iter().enumerate().map(text).collect())
}

impl Texts {
    fn segments(&self) -> (Vec<u32>, Segments) {
        let lengths: Vec<usize> = self.0.iter().map(Vec::len).collect();
        (self.0.concat(), Segments::from_lengths(&lengths))
    }

    /// Logits on the tape, and the rows of the texts then.
    fn forward<'p>(&self, tape: &Tape<'p>, model: &'p Model, active: Active) -> (Var, Segments) {
        let (ids, segments) = self.segments();
        let pass = Pass { active, ..Pass::default() };
        let hidden = model.net.as_text().expect("text").hidden(tape, &TextInput::new(&ids, &segments), &pass);
        let logits = match model.net.head() {
            Head::LanguageModel(head) => head.forward(tape, &hidden.rows, &hidden.x),
            Head::Classifier(head) => head.forward(tape, &hidden),
            Head::Detector(_) | Head::None => hidden.x.clone(),
        };
        (logits, hidden.rows.segments)
    }

    fn logits(&self, model: &Model, active: Active) -> Tensor {
        let tape = Tape::inference(&model.params);
        self.forward(&tape, model, active).0.value().clone()
    }

    /// Next tokens for a language model, some class for a classifier.
    fn loss<'p>(&self, tape: &Tape<'p>, model: &'p Model, denominator: f32) -> Var {
        let (logits, segments) = self.forward(tape, model, Active::default());
        let mut labels = LossRows { denominator, ..LossRows::default() };
        for (t, text) in self.0.iter().enumerate() {
            match model.net.head() {
                Head::LanguageModel(_) => {
                    let first = segments.range(t).end - text.len();
                    labels.rows.extend((1..text.len()).map(|i| first + i - 1));
                    labels.targets.extend_from_slice(&text[1..]);
                }
                _ => {
                    labels.rows.push(t);
                    labels.targets.push(text[0] % 3);
                }
            }
        }
        labels.weights = vec![1.0; labels.rows.len()];
        ops::cross_entropy(tape, &logits, &labels)
    }
}

/// What [`Attached::prepare`] is given.
struct Data<'a>(&'a Model);

impl Objective for Data<'_> {
    fn len(&self) -> usize {
        texts().0.len()
    }
    fn rows(&self, example: usize) -> usize {
        texts().0[example].len()
    }
    fn weight(&self, example: usize) -> f64 {
        self.rows(example) as f64
    }
    fn describe(&self, example: usize) -> String {
        format!("text {example}")
    }
    fn loss<'p>(&'p self, tape: &Tape<'p>, batch: &[usize], _: u64, d: f64) -> Result<Var, ObjectiveError> {
        let texts = Texts(batch.iter().map(|&i| texts().0[i].clone()).collect());
        // The tape holds the parameters; the network is the model's.
        let model: &'p Model = self.0;
        Ok(texts.loss(tape, model, d as f32))
    }
}

/// Puts a method on, or says why it was refused.
fn attach(model: &mut Model, method: &str) -> Result<Attached, String> {
    let spec = methods::find(method).expect("registered");
    let mut attached = (spec.attach)(model, &run_of(method)).map_err(|e| e.to_string())?;
    if let Some(prepare) = attached.prepare.take() {
        let mut params = std::mem::take(&mut model.params);
        prepare(&mut params, &Data(model)).unwrap_or_else(|e| panic!("{method}: {e}"));
        model.params = params;
    }
    Ok(attached)
}

/// Every method on every base that takes it. Where it is refused, the reason must name a remedy.
fn all(mut each: impl FnMut(&str, &str, &Base)) {
    let folder = tempfile::tempdir().expect("folder");
    for base in bases(folder.path()) {
        for method in METHODS {
            let name = format!("{} on {}", method.name, base.name);
            let in_place = IN_PLACE.contains(&method.name) && base.storage != StorageChoice::F32;
            match attach(&mut base.load(), method.name) {
                Ok(_) => {
                    assert!(!in_place, "{name}: weights that are not f32 cannot be trained");
                    each(&name, method.name, &base);
                }
                Err(why) => {
                    assert!(in_place, "{name}: {why}");
                    assert!(why.contains("--storage f32"), "{name}: {why}");
                }
            }
        }
    }
}

/// Some steps of AdamW; the losses before each.
fn train(model: &mut Model, steps: u64) -> Vec<f32> {
    let mut moments = BTreeMap::new();
    let mut losses = Vec::new();
    for step in 1..=steps {
        let mut gradients = Gradients::new();
        {
            let tape = Tape::new(&model.params);
            let loss = texts().loss(&tape, model, 50.0);
            losses.push(loss.value().data()[0]);
            tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        }
        for (id, g) in gradients.iter() {
            let zeros = || Tensor::zeros(g.rows(), g.cols());
            let (m, v) = moments.entry(id).or_insert_with(|| (zeros(), zeros()));
            let p = model.params.tensor_mut(id).expect("what is trained is f32");
            let o = AdamW { lr: 5e-3, ..AdamW::default() };
            adamw_step(o, step, 1.0, p.data_mut(), g.data(), m.data_mut(), v.data_mut());
        }
    }
    losses
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.data().iter().map(|x| x.to_bits()).collect()
}

fn frozen(model: &Model) -> BTreeMap<String, Vec<u32>> {
    let params = model.params.iter().filter(|(_, p)| !p.trainable);
    params.map(|(_, p)| (p.name.clone(), bits(&p.weight.to_tensor()))).collect()
}

fn source(path: &Path) -> methods::Source {
    methods::Source { path: path.into(), weight: 1.0 }
}

#[test]
fn law_1_nothing_changes_at_the_start() {
    all(|name, method, base| {
        let mut model = base.load();
        let before = texts().logits(&model, Active::default());
        attach(&mut model, method).expect("attach");
        if !CHANGE_AT_START.contains(&method) {
            assert_eq!(bits(&before), bits(&texts().logits(&model, Active::default())), "{name}");
        }
    });
}

#[test]
fn law_2_only_what_is_declared_changes_and_the_loss_falls() {
    all(|name, method, base| {
        let mut model = base.load();
        let attached = attach(&mut model, method).expect("attach");
        let trainable: usize =
            model.params.trainable().iter().map(|&id| model.params.get(id).elements()).sum();
        assert_eq!(attached.trainable, trainable, "{name}");
        let before = frozen(&model);
        let losses = train(&mut model, 5);
        assert!(losses[4] < losses[0], "{name}: {losses:?}");
        assert!(before == frozen(&model), "{name}: a frozen weight changed");
    });
}

#[test]
fn law_3_merged_is_unmerged_or_refused() {
    all(|name, method, base| {
        let mut model = base.load();
        attach(&mut model, method).expect("attach");
        train(&mut model, 3);
        let want = texts().logits(&model, Active::default());
        let folder = tempfile::tempdir().expect("folder");
        let options = ExportOptions { dtype: ExportDtype::F32, overwrite: true, ..ExportOptions::default() };
        let unmergeable = model.adapters.iter().find_map(|on| on.unmergeable.clone());
        match write_folder(&model, folder.path(), &options) {
            Ok(_) => {
                assert!(unmergeable.is_none(), "{name} was merged though it cannot be");
                let head = match base.head {
                    HeadRequest::AsFile => HeadRequest::AsFile,
                    _ => base.head.clone(),
                };
                let merged = Model::load_with(folder.path(), StorageChoice::F32, &head).expect("merged");
                close(name, texts().logits(&merged, Active::default()).data(), want.data(), 1e-5);
            }
            Err(why) => {
                let refused = unmergeable.is_some() || why.to_string().contains("no place");
                assert!(refused, "{name}: {why}");
            }
        }
    });
}

#[test]
fn law_4_saved_and_loaded_is_the_same() {
    all(|name, method, base| {
        let mut model = base.load();
        let attached = attach(&mut model, method).expect("attach");
        train(&mut model, 3);
        let trained = texts().logits(&model, Active::default());
        let folder = tempfile::tempdir().expect("folder");
        attached.write(&model, folder.path(), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut fresh = base.load();
        if attached.save.is_none() {
            write_folder(&model, folder.path(), &ExportOptions::default()).expect("export");
            fresh = Model::load_with(folder.path(), StorageChoice::F32, &base.head).expect("model");
        } else {
            methods::load(&mut fresh, &[source(folder.path())], 0).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert_eq!(bits(&trained), bits(&texts().logits(&fresh, Active::default())), "{name}");
        exchange(name, base, &model, folder.path());
    });
}

/// Leaves an f32 base's adapter, tokens and logits for the reference implementations.
fn exchange(name: &str, base: &Base, model: &Model, adapter: &Path) {
    let Some(root) = std::env::var_os("RETUNE_EXCHANGE") else { return };
    if base.storage != StorageChoice::F32 {
        return;
    }
    let out = Path::new(&root).join(name.replace(' ', "_"));
    std::fs::create_dir_all(&out).expect("folder");
    for entry in std::fs::read_dir(adapter).expect("adapter") {
        let path = entry.expect("entry").path();
        std::fs::copy(&path, out.join(path.file_name().expect("name"))).expect("copy");
    }
    let mut tensors = Vec::new();
    for (t, text) in texts().0.iter().enumerate() {
        let logits = Texts(vec![text.clone()]).logits(model, Active::default());
        let shape = [logits.rows(), logits.cols()];
        tensors.push(TensorOut::f32(format!("logits.{t}"), &shape, logits.data().to_vec()));
        let ids: Vec<f32> = text.iter().map(|id| *id as f32).collect();
        tensors.push(TensorOut::f32(format!("ids.{t}"), &[ids.len()], ids));
    }
    safetensors::write(&out.join("expected.safetensors"), tensors, &[]).expect("expected");
    let line = serde_json::json!({"base": base.path.display().to_string(), "name": name});
    std::fs::write(out.join("case.json"), line.to_string()).expect("case");
}

/// Adapters of several methods beside each other over one base: each example goes through its own, as if it were alone.
#[test]
fn law_5_adapters_share_a_base_and_a_batch() {
    let folder = tempfile::tempdir().expect("folder");
    for base in bases(folder.path()).iter().filter(|base| base.storage == StorageChoice::F32) {
        let mut model = base.load();
        let plain = texts().logits(&model, Active::Base);
        let mut alone = Vec::new();
        for method in METHODS {
            let mut own = base.load();
            let Ok(attached) = attach(&mut own, method.name) else { continue };
            train(&mut own, 3);
            let saved = tempfile::tempdir().expect("folder");
            attached.write(&own, saved.path(), None).expect("save");
            let slot = alone.len() + 1;
            let changes_base =
                attached.save.is_none() || methods::load(&mut model, &[source(saved.path())], slot).is_err();
            if !changes_base {
                alone.push((method.name, own));
            }
        }
        assert!(alone.len() >= 2, "{}: too few methods can share a base", base.name);
        assert_eq!(bits(&plain), bits(&texts().logits(&model, Active::Base)), "{}: the base", base.name);
        // One text for each adapter and one for the base, in one batch.
        let all = texts().0;
        let slots: Vec<Option<usize>> = (0..=alone.len()).map(|i| (i > 0).then_some(i)).collect();
        let batch = Texts(slots.iter().map(|slot| all[slot.unwrap_or(0) % all.len()].clone()).collect());
        let tape = Tape::inference(&model.params);
        let (logits, segments) = batch.forward(&tape, &model, Active::PerExample(slots.clone().into()));
        for (i, slot) in slots.iter().enumerate() {
            let text = Texts(vec![batch.0[i].clone()]);
            let (name, want) = match slot {
                Some(slot) => {
                    let (name, own) = &alone[slot - 1];
                    (*name, text.logits(own, Active::default()))
                }
                None => ("no adapter", text.logits(&model, Active::Base)),
            };
            let rows = match model.net.head() {
                Head::Classifier(_) => i..i + 1,
                _ => segments.range(i),
            };
            let cols = want.cols();
            let got = &logits.value().data()[rows.start * cols..rows.end * cols];
            close(&format!("{name} on {}", base.name), got, want.data(), 1e-5);
        }
    }
}

#[test]
fn law_6_packed_is_one_by_one_and_windows_add_up() {
    all(|name, method, base| {
        let mut model = base.load();
        attach(&mut model, method).expect("attach");
        train(&mut model, 2);
        let together = texts().logits(&model, Active::default());
        let alone: Vec<f32> = texts()
            .0
            .iter()
            .flat_map(|text| Texts(vec![text.clone()]).logits(&model, Active::default()).data().to_vec())
            .collect();
        close(name, together.data(), &alone, 1e-5);

        let gradients = |parts: &[Texts]| {
            let mut sum = Gradients::new();
            for part in parts {
                let tape = Tape::new(&model.params);
                let loss = part.loss(&tape, &model, 50.0);
                tape.backward(&loss, Tensor::scalar(1.0), &mut sum);
            }
            sum
        };
        let parts: Vec<Texts> = texts().0.into_iter().map(|text| Texts(vec![text])).collect();
        let (whole, summed) = (gradients(&[texts()]), gradients(&parts));
        let largest = whole.iter().flat_map(|(_, g)| g.data().to_vec()).fold(0.0f32, |m, x| m.max(x.abs()));
        for (id, gradient) in whole.iter() {
            let other = summed.get(id).unwrap_or_else(|| panic!("{name}: {}", model.params.get(id).name));
            let worst = gradient.data().iter().zip(other.data()).map(|(a, b)| (a - b).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst <= 1e-5 * largest, "{name}: {} by {worst}", model.params.get(id).name);
        }
    });
}

#[test]
fn law_7_threads_do_not_matter() {
    all(|name, method, base| {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| {
                let mut model = base.load();
                attach(&mut model, method).expect("attach");
                train(&mut model, 2);
                model
                    .params
                    .trainable()
                    .iter()
                    .map(|&id| bits(&model.params.get(id).weight.to_tensor()))
                    .collect::<Vec<_>>()
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(4), "{name}");
    });
}
