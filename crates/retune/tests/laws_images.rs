//! The laws (ARCHITECTURE.md) over every registered method, on a network of each architecture over pixels, in f32, bf16 and NF4.
//!
//! With `RETUNE_EXCHANGE=FOLDER` what each method writes is left there, with pictures and logits, for
//! `scripts/reference/check_exchange_images.py` (VGG) and `check_exchange_detectors.py` (the others) to load with PEFT and the networks' own programs.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::close;
use common::images::{self, Pictures, SIDE};
use retune::export::{ExportDtype, ExportOptions, write, write_folder};
use retune::methods::{self, Attached, METHODS, Source};
use retune::models::{ImageModel, Model, Quantisation, StorageChoice};
use retune::nn::{Active, Dropouts, Head, Linear, Pass, Rows, Site, Sliding};
use retune::objective::{Objective, ObjectiveError};
use retune::run_file::RunFile;
use retune::tasks::detection::Detect;
use retune::tasks::images::{ImageCache, ImageClassification};
use retune::tasks::kept_rows::Limits;
use retune::train::{Control, Event, Outcome, OutcomeEnd, RunFolder, Start, TrainSettings, train};
use retune_formats::{TensorOut, safetensors};
use retune_media::pictures::Labelled;
use retune_media::pictures::annotations::{Annotations, Rules};
use retune_tensor::ops::{self, AdamW, adamw_step};
use retune_tensor::rng::Stream;
use retune_tensor::{Gradients, Grid, ParamId, Segments, Tape, Tensor, Var, Window};

/// Methods that train the base's own weights, which must then be f32.
const IN_PLACE: &[&str] = &["full", "partial"];
/// Methods that need tokens or attention.
const FOR_TEXT: &[&str] = &["prompt", "prefix"];

/// A method with settings of its own.
struct Case {
    name: &'static str,
    method: &'static str,
    settings: &'static str,
}

/// Every method, and those whose settings take other paths at convolutions.
fn cases() -> Vec<Case> {
    let more = [
        ("dora", "lora", "[lora]\nrank = 4\nlora_alpha = 8\nuse_dora = true\nlora_dropout = 0\n"),
        ("sparse by magnitude", "sparse", "[sparse]\nselection = 'magnitude'\nshare = 0.05\n"),
        ("sparse by fisher", "sparse", "[sparse]\nselection = 'fisher'\nshare = 0.05\nfisher_examples = 2\n"),
        ("all but the first layer", "partial", "[partial]\nfreeze = 1\n"),
    ];
    let usual = |method: &'static str| match method {
        "lora" => "[lora]\nrank = 4\nlora_alpha = 8\nlora_dropout = 0\n",
        "partial" => "[partial]\nlast_blocks = 1\n",
        "bitfit" => "[bitfit]\nadd_biases = true\n",
        "sparse" => "[sparse]\nselection = 'random'\nshare = 0.05\n",
        _ => "",
    };
    let all = METHODS.iter().map(|m| Case { name: m.name, method: m.name, settings: usual(m.name) });
    all.chain(more.map(|(name, method, settings)| Case { name, method, settings })).collect()
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).expect("a case")
}

struct Base {
    name: String,
    /// As `config.json` has it.
    model_type: String,
    path: PathBuf,
    storage: StorageChoice,
}

impl Base {
    fn load(&self) -> Model {
        images::load(&self.path, self.storage)
    }
}

fn bases(folder: &Path) -> Vec<Base> {
    let nf4 = StorageChoice::Quantised(Quantisation::from_name("nf4", true).expect("code"));
    let kinds = [("f32", StorageChoice::F32), ("bf16", StorageChoice::Bf16), ("nf4", nf4)];
    let mut all = Vec::new();
    for (name, config) in images::every() {
        let path = folder.join(name);
        images::write(&config, &path);
        for (kind, storage) in kinds {
            let model_type = config["model_type"].as_str().expect("a name").to_owned();
            all.push(Base { name: format!("{name} {kind}"), model_type, path: path.clone(), storage });
        }
    }
    all
}

/// What [`Attached::prepare`] is given.
struct Data<'a>(&'a Model, Pictures);

impl Objective for Data<'_> {
    fn len(&self) -> usize {
        self.1.classes.len()
    }
    fn rows(&self, _: usize) -> usize {
        self.1.grid.pixels()
    }
    fn weight(&self, _: usize) -> f64 {
        1.0
    }
    fn describe(&self, example: usize) -> String {
        format!("picture {example}")
    }
    fn loss<'p>(&'p self, tape: &Tape<'p>, batch: &[usize], _: u64, d: f64) -> Result<Var, ObjectiveError> {
        let some = self.1.pick(batch);
        Ok(some.loss(tape, self.0, &Pass::default(), d as f32))
    }
}

fn attach(model: &mut Model, case: &Case) -> Result<Attached, String> {
    let text = format!("model = 'm'\ndata = 'd'\nmethod = '{}'\n{}", case.method, case.settings);
    let run = RunFile::from_toml("laws", &text).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let spec = methods::find(case.method).expect("registered");
    let mut attached = (spec.attach)(model, &run).map_err(|e| e.to_string())?;
    if let Some(prepare) = attached.prepare.take() {
        let mut params = std::mem::take(&mut model.params);
        // The pictures' loss is over the parameters on the tape.
        prepare(&mut params, &Data(model, Pictures::of(model, 3)))
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        model.params = params;
    }
    Ok(attached)
}

/// Every method on every base that takes it; where it is refused, the reason says why.
fn all(mut each: impl FnMut(&str, &Case, &Base)) {
    let folder = tempfile::tempdir().expect("folder");
    for base in bases(folder.path()) {
        for case in cases() {
            let name = format!("{} on {}", case.name, base.name);
            // EfficientNet's last convolution has no number in its name, so that it is not quantised.
            let whole = base.storage == StorageChoice::F32 || name == "partial on efficientnet nf4";
            let in_place = IN_PLACE.contains(&case.method) && !whole;
            match attach(&mut base.load(), &case) {
                Ok(_) => {
                    assert!(!in_place && !FOR_TEXT.contains(&case.method), "{name} was taken");
                    each(&name, &case, &base);
                }
                Err(why) if FOR_TEXT.contains(&case.method) => {
                    assert!(why.contains(&base.model_type) && why.contains("lora"), "{name}: {why}");
                }
                Err(why) => {
                    assert!(in_place && why.contains("--storage f32"), "{name}: {why}");
                }
            }
        }
    }
}

/// Some steps of AdamW; the losses before each.
fn learn(model: &mut Model, steps: u64) -> Vec<f32> {
    let pictures = Pictures::of(model, 5);
    let mut moments = BTreeMap::new();
    let mut losses = Vec::new();
    for step in 1..=steps {
        let (loss, gradients) = pictures.loss_and_gradients(model, &Pass::default());
        losses.push(loss);
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

fn logits(model: &Model) -> Tensor {
    Pictures::of(model, 5).logits(model, &Pass::default())
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.data().iter().map(|x| x.to_bits()).collect()
}

fn values_of(model: &Model, which: impl Fn(&retune_tensor::Param) -> bool) -> BTreeMap<String, Vec<u32>> {
    let params = model.params.iter().filter(|(_, p)| which(p));
    params.map(|(_, p)| (p.name.clone(), bits(&p.weight.to_tensor()))).collect()
}

fn put(model: &mut Model, path: &Path, slot: usize) -> Result<Attached, retune::Error> {
    methods::load(model, &[Source { path: path.into(), weight: 1.0 }], slot)
}

#[test]
fn law_1_nothing_changes_at_the_start() {
    all(|name, case, base| {
        let mut model = base.load();
        let before = logits(&model);
        attach(&mut model, case).expect("attach");
        // DoRA adds a convolution's bias behind its factors.
        match case.name {
            "dora" => close(name, logits(&model).data(), before.data(), 1e-6),
            _ => assert_eq!(bits(&before), bits(&logits(&model)), "{name}"),
        }
    });
}

#[test]
fn law_2_only_what_is_declared_changes_and_the_loss_falls() {
    all(|name, case, base| {
        let mut model = base.load();
        let attached = attach(&mut model, case).expect("attach");
        let trainable: usize =
            model.params.iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.elements()).sum();
        assert_eq!(attached.trainable, trainable, "{name}");
        let statistics = |p: &retune_tensor::Param| p.name.contains(".running_");
        let (frozen, moments) = (values_of(&model, |p| !p.trainable), values_of(&model, statistics));
        assert!(
            model.params.iter().all(|(_, p)| !(p.trainable && statistics(p))),
            "{name}: statistics are trained"
        );
        assert_eq!(moments.is_empty(), base.name.starts_with("vgg "), "{name}");
        let losses = learn(&mut model, 5);
        assert!(losses[4] < losses[0], "{name}: {losses:?}");
        assert!(frozen == values_of(&model, |p| !p.trainable), "{name}: a frozen weight changed");
        assert!(moments == values_of(&model, statistics), "{name}: statistics moved");
    });
}

#[test]
fn law_3_merged_is_unmerged_or_refused() {
    all(|name, case, base| {
        let mut model = base.load();
        let attached = attach(&mut model, case).expect("attach");
        learn(&mut model, 3);
        let want = logits(&model);
        let folder = tempfile::tempdir().expect("folder");
        let options = ExportOptions { dtype: ExportDtype::F32, overwrite: true, ..ExportOptions::default() };
        let unmergeable = model.adapters.iter().find_map(|on| on.unmergeable.clone());
        match write_folder(&model, folder.path(), &options) {
            Ok(_) => {
                assert!(
                    unmergeable.is_none() && case.method != "adapter",
                    "{name} was merged though it cannot be"
                );
                let merged = images::load(folder.path(), StorageChoice::F32);
                close(name, logits(&merged).data(), want.data(), 1e-5);
                if attached.save.is_some() && base.storage == StorageChoice::F32 {
                    exchange(&format!("{name} merged"), base, &model, folder.path());
                }
            }
            Err(why) => {
                assert!(unmergeable.is_some() || why.to_string().contains("no place"), "{name}: {why}")
            }
        }
    });
}

#[test]
fn law_4_saved_and_loaded_is_the_same() {
    all(|name, case, base| {
        let mut model = base.load();
        let attached = attach(&mut model, case).expect("attach");
        learn(&mut model, 3);
        let trained = logits(&model);
        let folder = tempfile::tempdir().expect("folder");
        attached.write(&model, folder.path(), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut again = base.load();
        if attached.save.is_none() {
            write_folder(&model, folder.path(), &ExportOptions::default()).expect("export");
            again = images::load(folder.path(), StorageChoice::F32);
            let config = |net: &Model| net.net.config_json();
            assert_eq!(config(&again), config(&model), "{name}");
        } else {
            put(&mut again, folder.path(), 0).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert_eq!(bits(&trained), bits(&logits(&again)), "{name}");
        if base.storage == StorageChoice::F32 {
            exchange(name, base, &model, folder.path());
        }
    });
}

/// Leaves what was written, with pictures and logits, for the reference implementations; whole darknet networks as darknet's files, too.
fn exchange(name: &str, base: &Base, model: &Model, written: &Path) {
    let Some(root) = std::env::var_os("RETUNE_EXCHANGE") else { return };
    let out = Path::new(&root).join(name.replace(' ', "_"));
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).expect("folder");
        for entry in std::fs::read_dir(from).expect("files") {
            let path = entry.expect("entry").path();
            std::fs::copy(&path, to.join(path.file_name().expect("name"))).expect("copy");
        }
    };
    copy(written, &out);
    copy(&base.path, &out.join("base"));
    if base.model_type == "darknet" && written.join("config.json").exists() {
        let options = ExportOptions { overwrite: true, ..ExportOptions::default() };
        write(model, &out.join("darknet.cfg"), &options, &mut |_| {}).expect("darknet's files");
    }
    let pictures = Pictures::of(model, 5);
    let logits = pictures.logits(model, &Pass::default());
    let shape = [5, pictures.grid.height, pictures.grid.width, 3];
    let tensors = vec![
        TensorOut::f32("pictures", &shape, pictures.x.data().to_vec()),
        TensorOut::f32("logits", &[logits.rows(), logits.cols()], logits.data().to_vec()),
    ];
    safetensors::write(&out.join("expected.safetensors"), tensors, &[]).expect("expected");
    std::fs::write(out.join("case.json"), serde_json::json!({ "name": name }).to_string()).expect("case");
}

/// Adapters of several methods over one base: each picture goes through its own, as if it were alone.
#[test]
fn law_5_adapters_share_a_base_and_a_batch() {
    let folder = tempfile::tempdir().expect("folder");
    for base in bases(folder.path()).iter().filter(|base| base.storage == StorageChoice::F32) {
        let mut model = base.load();
        let mut alone = Vec::new();
        for case in cases() {
            let mut own = base.load();
            let Ok(attached) = attach(&mut own, &case) else { continue };
            learn(&mut own, 3);
            let saved = tempfile::tempdir().expect("folder");
            attached.write(&own, saved.path(), None).expect("save");
            let slot = alone.len() + 1;
            if attached.save.is_some() && put(&mut model, saved.path(), slot).is_ok() {
                alone.push((case.name, own));
            }
        }
        for name in ["lora", "dora", "ia3", "adapter", "sparse"] {
            assert!(alone.iter().any(|(n, _)| *n == name), "{}: {name} does not share the base", base.name);
        }
        let slots: Vec<Option<usize>> = (0..=alone.len()).map(|i| (i > 0).then_some(i)).collect();
        let batch = Pictures::of(&model, slots.len());
        let pass = |active: Active| Pass { active, ..Pass::default() };
        let together = batch.logits(&model, &pass(Active::PerExample(slots.clone().into())));
        for (i, slot) in slots.iter().enumerate() {
            let (name, want) = match slot {
                Some(slot) => {
                    (alone[slot - 1].0, batch.one(i).logits(&alone[slot - 1].1, &pass(Active::Slot(0))))
                }
                None => ("no adapter", batch.one(i).logits(&base.load(), &pass(Active::Base))),
            };
            close(&format!("{name} on {}", base.name), together.row(i), want.data(), 1e-5);
        }
    }
}

#[test]
fn law_6_batches_do_not_matter() {
    all(|name, case, base| {
        let mut model = base.load();
        attach(&mut model, case).expect("attach");
        learn(&mut model, 2);
        let pictures = Pictures::of(&model, 5);
        let pass = Pass::default();
        let alone: Vec<f32> =
            (0..5).flat_map(|i| pictures.one(i).logits(&model, &pass).data().to_vec()).collect();
        close(name, pictures.logits(&model, &pass).data(), &alone, 1e-5);

        let gradients = |parts: &[Pictures]| {
            let mut sum = Gradients::new();
            for part in parts {
                let tape = Tape::new(&model.params);
                let loss = part.loss(&tape, &model, &pass, 5.0);
                tape.backward(&loss, Tensor::scalar(1.0), &mut sum);
            }
            sum
        };
        let parts: Vec<Pictures> = (0..5).map(|i| pictures.one(i)).collect();
        let (whole, summed) = (gradients(std::slice::from_ref(&pictures)), gradients(&parts));
        let largest = whole.iter().flat_map(|(_, g)| g.data().to_vec()).fold(0.0f32, |m, x| m.max(x.abs()));
        for (id, gradient) in whole.iter() {
            let name = format!("{name}: {}", model.params.get(id).name);
            let other = summed.get(id).unwrap_or_else(|| panic!("{name}"));
            let off = gradient.data().iter().zip(other.data()).map(|(a, b)| (a - b).abs());
            let worst = off.fold(0.0, f32::max);
            assert!(worst <= 1e-5 * largest, "{name} by {worst}");
        }
    });
}

#[test]
fn law_7_threads_do_not_matter() {
    all(|name, case, base| {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| {
                let mut model = base.load();
                attach(&mut model, case).expect("attach");
                learn(&mut model, 2);
                values_of(&model, |p| p.trainable)
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(4), "{name}");
    });
}

#[test]
fn checkpointing_changes_nothing() {
    all(|name, case, base| {
        let mut model = base.load();
        attach(&mut model, case).expect("attach");
        learn(&mut model, 1);
        let pictures = Pictures::of(&model, 3);
        let dropout = Some(Dropouts { seed: 1, epoch: 2, examples: vec![5, 6, 7] });
        let of = |checkpoint| {
            pictures
                .loss_and_gradients(&model, &Pass { checkpoint, dropout: dropout.clone(), ..Pass::default() })
        };
        let (kept, again) = (of(false), of(true));
        assert_eq!(kept.0.to_bits(), again.0.to_bits(), "{name}");
        let all = |gradients: &Gradients| -> BTreeMap<ParamId, Vec<u32>> {
            gradients.iter().map(|(id, g)| (id, bits(g))).collect()
        };
        assert!(all(&kept.1) == all(&again.1), "{name}: other gradients");
    });
}

/// Two convolutions, one of stride 2, without anything between that has corners: finite differences are exact but for rounding.
///
/// DoRA's gradients take the lengths of the rows as constants, as PEFT's do: where a factor moves, the magnitudes move with the lengths.
struct Chain {
    model: Model,
    x: Tensor,
    grid: Grid,
    pass: Pass,
}

impl Chain {
    fn new(settings: &Case, dropout: bool) -> Chain {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model");
        images::write(&images::vgg(false, SIDE), &path);
        let mut model = images::load(&path, StorageChoice::F32);
        model.net.visit_sites(&mut |site| {
            if let Site::Linear(Linear { path, sliding, .. }) = site
                && path == "features.0"
            {
                *sliding = Some(Sliding::Fixed(Window::square(3, 2, 1)));
            }
        });
        attach(&mut model, settings).expect("attach");
        for id in model.params.trainable() {
            let stream = Stream::named(4, &model.params.get(id).name.clone());
            let values = model.params.tensor_mut(id).expect("f32").data_mut();
            values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.2 * stream.normal(i as u64));
        }
        let grid = Grid { images: 2, height: 7, width: 6 };
        let stream = Stream::named(4, "x");
        let x = Tensor::from_fn(grid.rows(), 3, |r, c| stream.normal((3 * r + c) as u64));
        let keys = Dropouts { seed: 3, epoch: 1, examples: vec![4, 9] };
        Chain { model, x, grid, pass: Pass { dropout: dropout.then_some(keys), ..Pass::default() } }
    }

    fn loss<'p>(&self, tape: &Tape<'p>, model: &'p Model) -> Var {
        let (mut x, mut grid) = (Var::constant(self.x.clone()), self.grid);
        for layer in &model.net.trunk_linears()[..2] {
            let rows = Rows::new(Segments::from_lengths(&[1, 1]), &self.pass).on_grid(grid);
            x = layer.forward(tape, &rows, &x);
            grid = layer.sliding.and_then(|s| s.output(grid)).expect("a convolution");
        }
        let target = Tensor::from_fn(x.rows(), x.cols(), |r, c| ((r * 5 + c * 3) % 7) as f32 / 7.0);
        ops::mse(tape, &x, &target, target.len() as f32)
    }

    /// The magnitudes of a DoRA, and the lengths that its rows have now.
    fn lengths(&self) -> Vec<(ParamId, Tensor)> {
        let params = &self.model.params;
        let of = |layer: &&Linear| {
            let find = |name: &str| params.find(&format!("base_model.model.{}.{name}", layer.path));
            let magnitude = find("lora_magnitude_vector")?;
            let [a, b] = ["lora_A.weight", "lora_B.weight"].map(|name| find(name).expect("a factor"));
            let [a, b] = [a, b].map(|id| params.get(id).weight.to_tensor());
            let weight = &params.get(layer.weight).weight;
            let base = ops::row_norms_squared(weight.storage());
            // lora_alpha / rank of the cases here.
            Some((magnitude, ops::dora_norms(weight.storage(), &base, &a, &b, 2.0)))
        };
        self.model.net.trunk_linears()[..2].iter().filter_map(of).collect()
    }

    fn check(&mut self, name: &str) {
        let mut gradients = Gradients::new();
        let tape = Tape::new(&self.model.params);
        let loss = self.loss(&tape, &self.model);
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        drop(loss);
        let found: Vec<(ParamId, Tensor)> = gradients.iter().map(|(id, g)| (id, g.clone())).collect();
        assert!(found.len() >= 2, "{name}: {} gradients", found.len());
        for (id, gradient) in found {
            let largest = gradient.data().iter().fold(0.0f32, |m, g| m.max(g.abs()));
            assert!(largest > 0.0, "{name}: {} has no gradient", self.model.params.get(id).name);
            let step = 1e-2;
            for at in (0..gradient.len()).step_by((gradient.len() / 12).max(1)) {
                let mut at_step = |by: f32| {
                    let kept = self.model.params.clone();
                    let before = self.lengths();
                    self.model.params.tensor_mut(id).expect("f32").data_mut()[at] += by;
                    for ((magnitude, before), (_, now)) in before.into_iter().zip(self.lengths()) {
                        let values = self.model.params.tensor_mut(magnitude).expect("f32").data_mut();
                        let ratios = now.data().iter().zip(before.data()).map(|(now, before)| now / before);
                        values.iter_mut().zip(ratios).for_each(|(m, ratio)| *m *= ratio);
                    }
                    let value = {
                        let tape = Tape::inference(&self.model.params);
                        f64::from(self.loss(&tape, &self.model).value().data()[0])
                    };
                    self.model.params = kept;
                    value
                };
                let slope = (at_step(step) - at_step(-step)) / f64::from(2.0 * step);
                let off = (slope as f32 - gradient.data()[at]).abs();
                let name = format!("{name}: {}[{at}]", self.model.params.get(id).name);
                assert!(
                    off <= 5e-3 * largest + 2e-4,
                    "{name}: {slope} by differences, {}",
                    gradient.data()[at]
                );
            }
        }
    }
}

#[test]
fn gradients_at_convolutions_of_stride_1_and_2() {
    let with_dropout = |name, dora: bool| Case {
        name,
        method: "lora",
        settings: match dora {
            true => "[lora]\nrank = 3\nlora_alpha = 6\nuse_dora = true\nlora_dropout = 0.3\n",
            false => "[lora]\nrank = 3\nlora_alpha = 6\nlora_dropout = 0.3\n",
        },
    };
    for name in ["lora", "dora", "ia3", "sparse"] {
        Chain::new(&case(name), false).check(name);
    }
    let feedforward = "[ia3]\ntarget_modules = ['features.0', 'features.3']\nfeedforward_modules = ['features.0', 'features.3']\n";
    Chain::new(&Case { name: "ia3 of inputs", method: "ia3", settings: feedforward }, false)
        .check("ia3 of inputs");
    Chain::new(&with_dropout("lora", false), true).check("lora with dropout");
    Chain::new(&with_dropout("dora", true), true).check("dora with dropout");
}

/// Pictures on a disk: in folders, one a class, or beside files of boxes, one each.
enum Examples {
    Classes(Labelled),
    Boxes(Annotations),
}

impl Examples {
    /// So many of each class, for a network of this kind.
    fn write(model: &Model, folder: &Path, each: usize) -> Examples {
        let boxes = matches!(model.net.head(), Head::Detector(_));
        for class in 0..images::CLASSES {
            for i in 0..each {
                let stream = Stream::named(class as u64, &format!("picture {i}"));
                let pixel = |at| stream.below(at as u64, 200) as u8 + (class * 20) as u8;
                let name = format!("{class} {i}");
                let of_class = if boxes { "images".into() } else { format!("class {class}") };
                let path = folder.join(of_class).join(format!("{name}.bmp"));
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
                std::fs::write(path, bitmap(&(0..3 * WIDTH * SIDE).map(pixel).collect::<Vec<u8>>()))
                    .expect("picture");
                if boxes {
                    let centre = 0.3 + 0.1 * i as f32;
                    std::fs::create_dir_all(folder.join("labels")).expect("folder");
                    std::fs::write(
                        folder.join("labels").join(format!("{name}.txt")),
                        format!("{class} {centre} 0.5 0.4 0.{}\n", 3 + class),
                    )
                    .expect("boxes");
                }
            }
        }
        if boxes {
            std::fs::write(folder.join("classes.txt"), "LABEL_0\nLABEL_1\nLABEL_2\n").expect("names");
            let open = Annotations::open(folder, Rules::Strict).unwrap_or_else(|e| panic!("{e}"));
            return Examples::Boxes(open.train);
        }
        Examples::Classes(Labelled::open(folder).unwrap_or_else(|e| panic!("{e}")).train)
    }

    fn len(&self) -> usize {
        match self {
            Examples::Classes(data) => data.len(),
            Examples::Boxes(data) => data.pictures.len(),
        }
    }

    fn objective<'a>(
        &'a self,
        net: &'a ImageModel,
        cache: Option<&'a ImageCache>,
        seed: Option<u64>,
    ) -> Box<dyn Objective + 'a> {
        let (input, augment, checkpoint, active) = (net.input(), None, false, Active::default());
        match self {
            Examples::Boxes(data) => {
                Box::new(Detect { net, data, input, augment, seed, checkpoint, cache, active })
            }
            Examples::Classes(data) => Box::new(ImageClassification {
                net,
                data,
                input,
                augment,
                class_weights: None,
                seed,
                checkpoint,
                cache,
                active,
            }),
        }
    }
}

/// Columns of the pictures in files: not those of the networks' input, so that boxes move.
const WIDTH: usize = 48;

fn bitmap(pixels: &[u8]) -> Vec<u8> {
    let mut out = b"BM".to_vec();
    for number in [54 + pixels.len() as u32, 0, 54, 40, WIDTH as u32, SIDE as u32, 1 | 24 << 16, 0] {
        out.extend(number.to_le_bytes());
    }
    out.extend((pixels.len() as u32).to_le_bytes());
    out.extend([0; 16]);
    out.extend(pixels);
    out
}

/// Trains `steps` steps of three pictures; what was trained then.
fn run(
    model: &mut Model,
    data: &Examples,
    cached: bool,
    steps: u64,
    out: Option<&RunFolder>,
    stop: Option<u64>,
) -> (Outcome, BTreeMap<String, Vec<u32>>) {
    let net = model.net.as_image().expect("pictures");
    let limits = Limits { memory: 1 << 30, folder: None };
    let cache = cached.then(|| ImageCache::new(net, &model.params, limits).expect("a frozen trunk"));
    let settings = TrainSettings {
        steps: Some(steps),
        batch_size: 3,
        lr: 3e-3,
        save_every: Some(2),
        ..TrainSettings::default()
    };
    let of = |seed| data.objective(net, cache.as_ref(), seed);
    let (objective, eval) = (of(Some(1)), of(None));
    let outcome = train(&mut model.params, &*objective, Some(&*eval), &settings, out, &mut |event: Event| {
        if stop.is_some() && event.step() == stop { Control::Stop } else { Control::Continue }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    if let Some(cache) = &cache {
        assert_eq!(cache.len(), data.len(), "pictures that are kept");
    }
    drop((objective, eval));
    (outcome, values_of(model, |p| p.trainable))
}

#[test]
fn what_is_kept_of_a_frozen_trunk_changes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let pooled = Case { name: "head", method: "head", settings: "" };
    let frozen = Case { name: "freeze", method: "partial", settings: "[partial]\nfreeze = 3\n" };
    for base in bases(folder.path()).iter().filter(|base| base.storage == StorageChoice::F32) {
        let data = Examples::write(&base.load(), &folder.path().join(format!("{} data", base.name)), 4);
        for case in [&pooled, &frozen, &case("partial")] {
            let trained = |cached| {
                let mut model = base.load();
                attach(&mut model, case).expect("attach");
                let (outcome, values) = run(&mut model, &data, cached, 10, None, None);
                (outcome.eval_after.map(|loss| loss.to_bits()), values)
            };
            assert!(trained(false) == trained(true), "{} on {}", case.name, base.name);
        }
    }
}

/// Later epochs open no picture: they may be gone by then.
#[test]
fn what_is_kept_needs_no_picture() {
    let folder = tempfile::tempdir().expect("folder");
    for base in bases(folder.path()).iter().filter(|base| base.storage == StorageChoice::F32) {
        let mut model = base.load();
        let place = folder.path().join(format!("{} data", base.name));
        let data = Examples::write(&model, &place, 2);
        attach(&mut model, &Case { name: "head", method: "head", settings: "" }).expect("attach");
        let net = model.net.as_image().expect("pictures");
        let limits = Limits { memory: 1 << 30, folder: None };
        let cache = ImageCache::new(net, &model.params, limits).expect("a frozen trunk");
        let objective = data.objective(net, Some(&cache), None);
        let all: Vec<usize> = (0..objective.len()).collect();
        let loss = || {
            let tape = Tape::inference(&model.params);
            objective.loss(&tape, &all, 0, 1.0).map(|loss| loss.value().data()[0].to_bits())
        };
        let measured = || objective.measured().expect("metrics").metrics(&model.params, 4, &mut |_| true);
        let before = (loss().expect("a loss"), measured().expect("metrics"));
        std::fs::remove_dir_all(&place).expect("gone");
        assert!(before == (loss().expect("kept"), measured().expect("kept")), "{}", base.name);
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().expect("folder");
    let dropped = Case {
        name: "lora",
        method: "lora",
        settings: "[lora]\nrank = 4\nlora_dropout = 0.1\nuse_dora = true\n",
    };
    let chosen = |base: &&Base| base.storage == StorageChoice::F32 && !base.name.starts_with("vgg ");
    for base in bases(folder.path()).iter().filter(chosen) {
        let data = Examples::write(&base.load(), &folder.path().join(format!("{} data", base.name)), 3);
        for case in [&dropped, &case("full"), &case("ia3")] {
            let adapted = || {
                let mut model = base.load();
                attach(&mut model, case).expect("attach");
                model
            };
            let out = tempfile::tempdir().expect("folder");
            let open = |name: &str, start| {
                RunFolder::open(&out.path().join(name), start, BTreeMap::new(), String::new()).expect("run")
            };
            let whole = open("whole", Start::New);
            let (outcome, straight) = run(&mut adapted(), &data, false, 7, Some(&whole), None);
            assert_eq!(outcome.end, OutcomeEnd::Finished);
            let (outcome, _) =
                run(&mut adapted(), &data, false, 7, Some(&open("parts", Start::New)), Some(3));
            assert_eq!((outcome.end, outcome.step), (OutcomeEnd::Interrupted, 3));
            let (outcome, resumed) =
                run(&mut adapted(), &data, false, 7, Some(&open("parts", Start::Resume)), None);
            assert_eq!(outcome.end, OutcomeEnd::Finished);
            assert!(resumed == straight, "{} on {}: the resumed run went another way", case.name, base.name);
        }
    }
}
