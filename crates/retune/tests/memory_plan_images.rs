//! The memory plan of networks over pixels against what the process really takes, counted by its allocator: `memory_plan.rs` for pictures.
//!
//! The test is alone in its program, for the count is the process's.

mod common;

use common::heap::{self, Heap};
use common::images;
use rayon::ThreadPoolBuilder;
use retune::methods::{self, Attached};
use retune::models::{ImageModel, Model, StorageChoice};
use retune::nn::{Head, Pass};
use retune::run_file::RunFile;
use retune::train::dry_run::{DryRun, Purpose};
use retune::train::plan::{human, plan};
use retune::train::{Beside, Control, Objective, ObjectiveError, Plan, PlanRequest, TrainSettings, train};
use retune_media::pictures::Prepare;
use retune_tensor::ops::{self, LossRows};
use retune_tensor::rng::Stream;
use retune_tensor::{Grid, Tape, Tensor, Var, memory};
use serde_json::{Value, json};

#[global_allocator]
static HEAP: Heap = heap::heap();

const THREADS: usize = 2;
const PICTURES: usize = 9;

/// Pictures of random pixels.
struct Pixels<'a> {
    net: &'a ImageModel,
    checkpoint: bool,
}

impl Objective for Pixels<'_> {
    fn len(&self) -> usize {
        PICTURES
    }
    fn rows(&self, _: usize) -> usize {
        self.net.input().height * self.net.input().width
    }
    fn targets(&self, _: usize) -> usize {
        1
    }
    fn weight(&self, _: usize) -> f64 {
        1.0
    }
    fn describe(&self, example: usize) -> String {
        format!("picture {example}")
    }
    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> Result<Var, ObjectiveError> {
        let (net, n) = (self.net, batch.len());
        let grid = Grid { images: n, height: net.input().height, width: net.input().width };
        let mut x = Tensor::scratch(grid.rows(), 3);
        let stream = Stream::named(epoch, "pixels");
        x.data_mut().iter_mut().enumerate().for_each(|(i, x)| *x = stream.uniform(i as u64));
        let keys = batch.iter().map(|&e| e as u64);
        let pass = Pass::of_step(tape, Some(1), epoch, keys, self.checkpoint);
        let state =
            net.run(tape, net.start(Var::constant(x), grid), 0..retune::models::Network::blocks(net), &pass);
        let Head::Classifier(head) = retune::models::Network::head(net) else { panic!("no classifier") };
        let logits = head.forward(tape, &net.hidden(&state, &pass).expect("an output"));
        let labels = LossRows {
            rows: (0..n).collect(),
            targets: batch.iter().map(|&e| (e % images::CLASSES) as u32).collect(),
            weights: vec![1.0; n],
            denominator: denominator as f32,
        };
        Ok(ops::cross_entropy(tape, &logits, &labels))
    }
}

/// A network, a method and a run.
struct Case {
    config: Value,
    storage: StorageChoice,
    run: RunFile,
}

fn cases() -> Vec<Case> {
    let vgg = |batch_norm: bool, side: usize, cfg: Value| {
        json!({
            "model_type": "vgg", "cfg": cfg, "batch_norm": batch_norm, "dense": [96], "grid": side / 8,
            "num_labels": images::CLASSES, "image_input": Prepare::torchvision(side, side),
        })
    };
    let wide = json!([16, "M", 24, 32, "M", 48, "M"]);
    let narrow = json!([7, 9, "M", 40, "M", 64, 64, "M"]);
    let case = |config: &Value, storage, text: &str| Case {
        config: config.clone(),
        storage,
        run: RunFile::from_toml("case", &format!("model = 'm'\ndata = 'd'\nsteps = 2\n{text}"))
            .unwrap_or_else(|e| panic!("{e}")),
    };
    let (plain, normed, large) = (vgg(false, 64, wide.clone()), vgg(true, 64, narrow), vgg(true, 136, wide));
    let f32 = StorageChoice::F32;
    vec![
        case(&plain, f32, "method = 'full'\nbatch_size = 2\ncheckpointing = 'off'\n"),
        case(&normed, f32, "method = 'full'\nbatch_size = 4\ncheckpointing = 'on'\n"),
        case(&large, f32, "method = 'lora'\nbatch_size = 1\ncheckpointing = 'off'\n[lora]\nrank = 8\n"),
        case(
            &normed,
            StorageChoice::Bf16,
            "method = 'lora'\nbatch_size = 3\ncheckpointing = 'on'\n[lora]\nrank = 4\nuse_dora = true\nlora_dropout = 0.1\n",
        ),
        case(&large, f32, "method = 'head'\nbatch_size = 4\ncheckpointing = 'off'\n"),
        case(
            &large,
            f32,
            "method = 'partial'\nbatch_size = 2\ngradient_accumulation = 2\ncheckpointing = 'off'\n[partial]\nlast_blocks = 3\n",
        ),
        case(&normed, f32, "method = 'ia3'\nbatch_size = 4\ncheckpointing = 'off'\n"),
        case(
            &plain,
            f32,
            "method = 'sparse'\nbatch_size = 3\ncheckpointing = 'off'\n[sparse]\nselection = 'random'\nshare = 0.05\n",
        ),
    ]
}

fn planned(case: &Case, model: &Model, attached: &Attached) -> Plan {
    let net = model.net.as_image().expect("pictures");
    for purpose in [
        Purpose::Training { checkpointing: false },
        Purpose::Training { checkpointing: true },
        Purpose::Evaluation,
    ] {
        let dry_run = DryRun::of(&model.net, &model.params, purpose);
        assert!(dry_run.is_exact(), "{} takes another path with another number of pictures", case.run.method);
    }
    let pixels = Pixels { net, checkpoint: false };
    plan(&PlanRequest {
        model,
        attached,
        objective: &pixels,
        evaluated: &[&pixels],
        settings: &TrainSettings::from_run_file(&case.run, 1e-4),
        checkpointing: case.run.checkpointing,
        beside: Beside::default(),
        storages: &[],
        limit: None,
        disk_free: None,
    })
    .unwrap_or_else(|e| panic!("{e}"))
}

/// The plan of a case, and the bytes of heap that it really took.
fn planned_and_measured(case: &Case) -> (Plan, u64) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model");
    images::write(&case.config, &path);
    let ready = || {
        let mut model = images::load(&path, case.storage);
        let spec = methods::find(&case.run.method).expect("registered");
        let attached = (spec.attach)(&mut model, &case.run).unwrap_or_else(|e| panic!("{e}"));
        (model, attached)
    };
    let plan = {
        let (model, attached) = ready();
        planned(case, &model, &attached)
    };
    // From here on: the dry run's buffers are never written to (a system gives them no memory, but this allocator counts them).
    memory::trim();
    memory::reset_peak();
    memory::count_heap(|| heap::peak_since(&HEAP));
    let before = heap::held();
    let (mut model, _attached) = ready();
    let Model { params, net, .. } = &mut model;
    let pixels = Pixels { net: net.as_image().expect("pictures"), checkpoint: plan.checkpointing };
    let settings = TrainSettings {
        optimizer_budget: plan.optimizer_budget,
        ..TrainSettings::from_run_file(&case.run, 1e-4)
    };
    train(params, &pixels, Some(&pixels), &settings, None, &mut |_| Control::Continue)
        .unwrap_or_else(|e| panic!("{e}"));
    (plan, (memory::heap_and_region_peak_bytes() - before) as u64)
}

#[test]
fn every_peak_is_from_80_to_100_percent_of_its_plan() {
    let mut wrong = Vec::new();
    for (number, case) in cases().iter().enumerate() {
        // Packed operands of the threads are gone with them.
        let pool = ThreadPoolBuilder::new().num_threads(THREADS).build().expect("threads");
        let (plan, measured) = pool.install(|| planned_and_measured(case));
        let share = measured as f64 / plan.heap_bytes() as f64;
        let line = format!(
            "{number} {:>7} of {} pictures: {} of {} planned ({:?}): {share:.3}",
            case.run.method,
            case.run.batch_size,
            human(measured),
            human(plan.heap_bytes()),
            plan.worst,
        );
        eprintln!("{line}");
        if !(0.8..=1.0).contains(&share) {
            wrong.push(format!("{line}\n{plan:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
