//! The laws of training on a small network: accumulation, exact resume under SIGKILL, threads, numbers that are not finite.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use retune::train::{
    self, Control, Error, Event, Objective, ObjectiveError, OnNan, Optim, Outcome, OutcomeEnd, RunFolder,
    Schedule, Start, TrainSettings, checkpoint, train,
};
use retune_tensor::ops::{self, DropoutRows, LossRows};
use retune_tensor::rng::Stream;
use retune_tensor::{Params, Segments, Tape, Tensor, Var, Weight};

/// Examples of 1 to 5 rows whose classes a fixed random matrix decides; the network is
/// `W_out swiglu(W_gate dropout(rms_norm(x)), W_up dropout(rms_norm(x)))`.
struct Toy {
    features: usize,
    classes: usize,
    rows: Vec<Tensor>,
    targets: Vec<Vec<u32>>,
    dropout: f32,
}

impl Toy {
    fn new(examples: usize, features: usize) -> Toy {
        let classes = 7;
        let teacher = random("teacher", classes, features);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for example in 0..examples {
            let x = random(&format!("example {example}"), 1 + example * 7 % 5, features);
            let best = |row: usize| {
                let score = |class: usize| -> f32 {
                    x.row(row).iter().zip(teacher.row(class)).map(|(a, b)| a * b).sum()
                };
                (0..classes).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap() as u32
            };
            targets.push((0..x.rows()).map(best).collect());
            rows.push(x);
        }
        Toy { features, classes, rows, targets, dropout: 0.1 }
    }

    fn params(&self, hidden: usize) -> Params {
        let mut params = Params::new();
        let mut matrix = |name: &str, rows: usize, cols: usize, trainable| {
            let mut weight = random(name, rows, cols);
            weight.scale_assign(1.0 / (cols as f32).sqrt());
            params.add(name, &[rows, cols], Weight::F32(weight), trainable);
        };
        matrix("gate", hidden, self.features, true);
        matrix("up", hidden, self.features, false);
        matrix("out", self.classes, hidden, true);
        let ones = Tensor::from_fn(1, self.features, |_, _| 1.0);
        params.add("norm", &[self.features], Weight::F32(ones), true);
        params
    }

    /// The rows of a batch, and which example each segment is.
    fn gather(&self, batch: &[usize]) -> (Tensor, Segments) {
        let lengths: Vec<usize> = batch.iter().map(|&e| self.rows[e].rows()).collect();
        let data: Vec<f32> = batch.iter().flat_map(|&e| self.rows[e].data().to_vec()).collect();
        (Tensor::from_vec(lengths.iter().sum(), self.features, data), Segments::from_lengths(&lengths))
    }
}

impl Objective for Toy {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn rows(&self, example: usize) -> usize {
        self.rows[example].rows()
    }

    fn weight(&self, example: usize) -> f64 {
        self.rows(example) as f64
    }

    fn describe(&self, example: usize) -> String {
        format!("toy.jsonl:{}", example + 1)
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> Result<Var, ObjectiveError> {
        let find = |name: &str| tape.params().find(name).ok_or_else(|| format!("no parameter {name}"));
        let (x, segments) = self.gather(batch);
        let keys: Vec<u64> = batch.iter().map(|&e| e as u64).collect();
        let mut x = ops::rms_norm(tape, &Var::constant(x), &tape.param(find("norm")?), 1e-5);
        if tape.is_recording() && self.dropout > 0.0 {
            x = ops::dropout(tape, &x, &DropoutRows::new(7, epoch, &segments, &keys), "in", self.dropout);
        }
        let gate = ops::linear(tape, &x, &tape.weight(find("gate")?), None, &[]);
        let up = ops::linear(tape, &x, &tape.weight(find("up")?), None, &[]);
        let labels = LossRows {
            rows: (0..segments.rows()).collect(),
            targets: batch.iter().flat_map(|&e| self.targets[e].clone()).collect(),
            weights: vec![1.0; segments.rows()],
            denominator: denominator as f32,
        };
        let hidden = ops::swiglu(tape, &gate, &up);
        Ok(ops::linear_cross_entropy(tape, &hidden, &tape.weight(find("out")?), &labels))
    }
}

fn random(name: &str, rows: usize, cols: usize) -> Tensor {
    let stream = Stream::named(1, name);
    Tensor::from_fn(rows, cols, |r, c| stream.normal((r * cols + c) as u64))
}

fn settings() -> TrainSettings {
    TrainSettings {
        epochs: 6.0,
        batch_size: 4,
        gradient_accumulation: 2,
        lr: 0.02,
        schedule: Schedule::Cosine,
        warmup: 3.0,
        weight_decay: 0.01,
        save_every: Some(5),
        eval_every: Some(10),
        ..TrainSettings::default()
    }
}

fn go_on(_: Event) -> Control {
    Control::Continue
}

fn bytes(params: &Params) -> Vec<u8> {
    params.iter().flat_map(|(_, p)| p.weight.to_tensor().data().to_vec()).flat_map(f32::to_le_bytes).collect()
}

fn open(path: &Path, start: Start) -> RunFolder {
    let identity = BTreeMap::from([("model".to_string(), "toy".to_string())]);
    for _ in 0..200 {
        match RunFolder::open(path, start, identity.clone(), "model = \"toy\"\n".into()) {
            // A process that another test is just starting holds the lock of its parent for a moment.
            Err(Error::Busy { .. }) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.unwrap(),
        }
    }
    panic!("{} stays busy", path.display());
}

/// A whole run, or the rest of one, in a folder.
fn run(path: &Path, start: Start, settings: &TrainSettings) -> (Result<Outcome, Error>, Vec<Event>) {
    let (toy, folder) = (Toy::new(37, 12), open(path, start));
    let (mut params, mut events) = (toy.params(24), Vec::new());
    let mut note = |event| {
        events.push(event);
        Control::Continue
    };
    (train(&mut params, &toy, Some(&Toy::new(9, 12)), settings, Some(&folder), &mut note), events)
}

/// Every file of every checkpoint of a finished run.
fn checkpoint_files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in fs::read_dir(path.join("checkpoints")).unwrap().map(|e| e.unwrap().path()) {
        if folder.is_dir() {
            for file in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
                let name = file.strip_prefix(path).unwrap().to_path_buf();
                files.insert(name, fs::read(&file).unwrap());
            }
        }
    }
    files
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path.join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_loss_goes_down_and_frozen_weights_stay() {
    let toy = Toy::new(37, 12);
    let mut params = toy.params(24);
    let before = params.get(params.find("up").unwrap()).weight.to_tensor();
    let outcome = train(&mut params, &toy, Some(&toy), &settings(), None, &mut go_on).unwrap();
    assert_eq!((outcome.end, outcome.step), (OutcomeEnd::Finished, 30));
    let (before_loss, after_loss) = (outcome.eval_before.unwrap(), outcome.eval_after.unwrap());
    assert!(after_loss < 0.7 * before_loss, "{before_loss} -> {after_loss}");
    assert_eq!(params.get(params.find("up").unwrap()).weight.to_tensor().data(), before.data());
}

#[test]
fn accumulation_is_one_large_batch() {
    let toy = Toy::new(37, 12);
    let trained = |batch_size, gradient_accumulation| {
        let mut params = toy.params(24);
        let settings = TrainSettings { batch_size, gradient_accumulation, epochs: 3.0, ..settings() };
        train(&mut params, &toy, None, &settings, None, &mut go_on).unwrap();
        params
    };
    let one = trained(8, 1);
    for (batch, passes) in [(4, 2), (1, 8), (3, 3)] {
        let other = trained(batch, passes);
        let furthest = one
            .iter()
            .flat_map(|(id, p)| {
                let (a, b) = (p.weight.to_tensor(), other.get(id).weight.to_tensor());
                a.data().iter().zip(b.data()).map(|(a, b)| (a - b).abs()).collect::<Vec<_>>()
            })
            .fold(0.0, f32::max);
        // 3 x 3 is another window: it must differ, or this test would prove nothing.
        assert_eq!(furthest < 2e-5, batch * passes == 8, "{batch} x {passes}: {furthest}");
    }
}

#[test]
fn one_step_of_accumulation_agrees_to_1e_6() {
    let toy = Toy::new(37, 12);
    let losses = |batch_size, gradient_accumulation| {
        let settings =
            TrainSettings { batch_size, gradient_accumulation, steps: Some(1), warmup: 0.0, ..settings() };
        let mut seen = (0.0, 0.0);
        let mut note = |event| {
            if let Event::Step { loss, grad_norm, .. } = event {
                seen = (loss, grad_norm);
            }
            Control::Continue
        };
        train(&mut toy.params(24), &toy, None, &settings, None, &mut note).unwrap();
        seen
    };
    let (one, many) = (losses(8, 1), losses(1, 8));
    assert!((one.0 - many.0).abs() < 1e-6 && (one.1 - many.1).abs() < 1e-6, "{one:?} {many:?}");
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let toy = Toy::new(40, 64);
    let trained = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut params = toy.params(512);
            let settings = TrainSettings { steps: Some(6), batch_size: 20, ..settings() };
            train(&mut params, &toy, None, &settings, None, &mut go_on).unwrap();
            bytes(&params)
        })
    };
    let one = trained(1);
    for threads in [2, 4] {
        assert!(trained(threads) == one, "{threads} threads");
    }
}

#[test]
fn a_nan_in_one_example_is_named_and_changes_nothing() {
    let mut toy = Toy::new(8, 12);
    toy.rows[5].data_mut()[3] = f32::NAN;
    let mut params = toy.params(24);
    let before = bytes(&params);
    let mut seen = Vec::new();
    let mut note = |event| {
        if let Event::Skipped { examples, loss, tensor, .. } = event {
            seen.push((examples, loss.is_nan(), tensor));
        }
        Control::Continue
    };
    let settings = TrainSettings { steps: Some(20), ..settings() };
    let outcome = train(&mut params, &toy, None, &settings, None, &mut note).unwrap();
    let OutcomeEnd::Diverged { why } = &outcome.end else { panic!("{outcome:?}") };
    assert!(why.contains("toy.jsonl:6") && why.contains("3 steps in a row"), "{why}");
    assert!(bytes(&params) == before);
    assert_eq!((outcome.step, seen.len()), (3, 3));
    assert_eq!(seen[0], (vec!["toy.jsonl:6".to_string()], true, Some("gate".to_string())));
}

#[test]
fn a_nan_in_a_weight_is_named() {
    let toy = Toy::new(8, 12);
    let mut params = toy.params(24);
    let up = params.find("up").unwrap();
    params.tensor_mut(up).unwrap().data_mut()[7] = f32::NAN;
    let before = bytes(&params);
    let outcome = train(&mut params, &toy, None, &settings(), None, &mut go_on).unwrap();
    let OutcomeEnd::Diverged { why } = &outcome.end else { panic!("{outcome:?}") };
    assert!(why.contains("the weight `up` is not") && bytes(&params) == before, "{why}");
}

#[test]
fn on_nan_stop_ends_at_the_first() {
    let mut toy = Toy::new(8, 12);
    toy.rows[5].data_mut()[3] = f32::INFINITY;
    let settings = TrainSettings { on_nan: OnNan::Stop, ..settings() };
    let outcome = train(&mut toy.params(24), &toy, None, &settings, None, &mut go_on).unwrap();
    assert!(matches!(outcome.end, OutcomeEnd::Diverged { .. }) && outcome.step == 1);
}

#[test]
fn skipped_steps_are_forgotten_once_a_good_one_comes() {
    let mut toy = Toy::new(40, 12);
    toy.rows[5].data_mut()[3] = f32::NAN;
    let outcome = train(&mut toy.params(24), &toy, None, &settings(), None, &mut go_on).unwrap();
    assert_eq!(outcome.end, OutcomeEnd::Finished);
}

#[test]
fn a_far_too_large_learning_rate_diverges_and_leaves_the_last_good_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (toy, folder) = (Toy::new(37, 12), open(dir.path(), Start::New));
    let wild = |lr| TrainSettings { lr, warmup: 0.0, save_every: Some(1), ..settings() };
    let (mut params, mut skipped) = (toy.params(24), 0);
    let before = bytes(&params);
    let error = train(&mut params, &toy, None, &wild(1e38), Some(&folder), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("`lr`") && bytes(&params) == before, "{error}");
    let mut count = |event| {
        skipped += usize::from(matches!(event, Event::Skipped { .. }));
        Control::Continue
    };
    let outcome = train(&mut params, &toy, None, &wild(1e37), Some(&folder), &mut count).unwrap();
    assert!(matches!(outcome.end, OutcomeEnd::Diverged { .. }), "{outcome:?}");
    assert_eq!(skipped, 3);
    let mut good = toy.params(24);
    // Skipped steps are saved too (`save_every` is 1), with the weights of the last update.
    checkpoint::load_weights(&outcome.checkpoint.unwrap(), &mut good).unwrap();
    assert!(bytes(&good) == bytes(&params) && bytes(&params) != before);
}

#[test]
fn a_stopped_and_resumed_run_ends_in_the_same_bytes() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(whole.path(), Start::New, &settings()).0.unwrap();
    let toy = Toy::new(37, 12);
    let mut start = Start::New;
    for stop_at in [3, 5, 11, 19, 100] {
        let folder = open(parts.path(), start);
        let mut params = toy.params(24);
        let mut stop = |event| match event {
            Event::Step { step, .. } if step == stop_at => Control::Stop,
            _ => Control::Continue,
        };
        let outcome =
            train(&mut params, &toy, Some(&Toy::new(9, 12)), &settings(), Some(&folder), &mut stop).unwrap();
        let end = if stop_at == 100 { OutcomeEnd::Finished } else { OutcomeEnd::Interrupted };
        assert_eq!((outcome.end, outcome.step), (end, stop_at.min(30)));
        start = Start::Resume;
    }
    let last = |path: &Path| {
        let files = checkpoint_files(path);
        files
            .into_iter()
            .filter(|(name, _)| name.starts_with("checkpoints/step-00000030"))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(last(whole.path()).len(), 5);
    assert!(last(whole.path()) == last(parts.path()));
}

/// Where the moments lie: all in memory, most of them in a file, all in a file; and with 8 bits.
fn homes() -> [[TrainSettings; 3]; 2] {
    [(Optim::Adamw, Optim::PagedAdamw), (Optim::Adamw8bit, Optim::PagedAdamw8bit)].map(|(plain, paged)| {
        let base = TrainSettings { steps: Some(11), optim: plain, ..settings() };
        [
            base.clone(),
            TrainSettings { optimizer_budget: Some(40_000), page_bytes: 4096, ..base.clone() },
            TrainSettings { optim: paged, page_bytes: 10_000, ..base },
        ]
    })
}

/// A run (or the rest of one) whose largest weights have more than 4096 elements.
fn run_large(path: &Path, start: Start, settings: &TrainSettings, stop_at: u64) -> (Outcome, Vec<Event>) {
    let (toy, folder) = (Toy::new(37, 30), open(path, start));
    let (mut params, mut events) = (toy.params(600), Vec::new());
    let mut stop = |event| {
        let last = matches!(event, Event::Step { step, .. } if step == stop_at);
        events.push(event);
        if last { Control::Stop } else { Control::Continue }
    };
    (train(&mut params, &toy, None, settings, Some(&folder), &mut stop).unwrap(), events)
}

#[test]
fn where_moments_lie_changes_no_byte_however_often_a_run_is_stopped() {
    for homes in homes() {
        let whole = tempfile::tempdir().unwrap();
        run_large(whole.path(), Start::New, &homes[0], 100);
        let expected = checkpoint_files(whole.path());
        for (home, settings) in homes.iter().enumerate().skip(1) {
            let paged = tempfile::tempdir().unwrap();
            let (_, events) = run_large(paged.path(), Start::New, settings, 100);
            assert!(checkpoint_files(paged.path()) == expected, "home {home} of {:?}", settings.optim);
            let file = events.iter().find_map(|event| match event {
                Event::Paged { path, file_bytes, .. } => Some((path, *file_bytes)),
                _ => None,
            });
            let (file, bytes) = file.unwrap();
            assert!(file.starts_with(paged.path()) && !file.exists() && bytes > 0);
            let waited = |event: &Event| matches!(event, Event::Finished { paging_wait_s: Some(_), .. });
            assert!(events.iter().any(waited));
        }
        // Each part of the run has another home.
        let parts = tempfile::tempdir().unwrap();
        let mut start = Start::New;
        for (stop_at, settings) in
            [3, 4, 7, 100].into_iter().zip([&homes[2], &homes[0], &homes[1], &homes[2]])
        {
            run_large(parts.path(), start, settings, stop_at);
            start = Start::Resume;
        }
        let last = Path::new("checkpoints/step-00000011");
        for (name, bytes) in expected.iter().filter(|(name, _)| name.starts_with(last)) {
            assert!(fs::read(parts.path().join(name)).unwrap() == *bytes, "{}", name.display());
        }
    }
}

#[test]
fn eight_bits_train_as_well_and_are_no_other_runs_moments() {
    let dir = tempfile::tempdir().unwrap();
    let losses = homes().map(|homes| {
        let (toy, settings) = (Toy::new(37, 30), TrainSettings { steps: Some(40), ..homes[0].clone() });
        let outcome = train(&mut toy.params(600), &toy, Some(&toy), &settings, None, &mut go_on).unwrap();
        (outcome.eval_before.unwrap(), outcome.eval_after.unwrap())
    });
    let [(before, exact), (_, coarse)] = losses;
    assert!(
        coarse < exact + 0.02 * (before - exact),
        "from {before} to {coarse}, with f32 moments to {exact}"
    );

    let [plain, eight] = homes().map(|homes| homes[0].clone());
    let (toy, folder) = (Toy::new(37, 30), open(dir.path(), Start::New));
    train(&mut toy.params(600), &toy, None, &eight, Some(&folder), &mut go_on).unwrap();
    drop(folder);
    let folder = open(dir.path(), Start::Resume);
    let error = train(&mut toy.params(600), &toy, None, &plain, Some(&folder), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("`optim` was adamw_8bit and is now adamw"), "{error}");
}

/// The evaluation gets worse again at this rate, so the best weights are not the last ones.
fn impatient() -> TrainSettings {
    let lr = 0.3;
    TrainSettings {
        lr,
        schedule: Schedule::Constant,
        eval_every: Some(2),
        patience: Some(3),
        epochs: 40.0,
        ..settings()
    }
}

#[test]
fn an_impatient_run_ends_early_with_its_best_weights_however_often_it_was_stopped() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (toy, eval) = (Toy::new(37, 12), Toy::new(9, 12));
    let mut expected = toy.params(24);
    let folder = open(whole.path(), Start::New);
    let straight = train(&mut expected, &toy, Some(&eval), &impatient(), Some(&folder), &mut go_on).unwrap();
    let best = straight.best.clone().unwrap();
    assert!(straight.stopped_early && straight.step < straight.steps, "{straight:?}");
    assert_eq!((straight.restored, straight.step), (Some(best.step), best.step + 6));
    assert_eq!(straight.eval_after, Some(best.loss));
    let found = train::evaluate(&expected, &eval, 4, &mut |_| Control::Continue).unwrap().unwrap();
    assert!((found - best.loss).abs() < 1e-6, "the weights are the best ones");
    let mut start = Start::New;
    let mut params = toy.params(24);
    for stop_at in 1..=straight.step + 1 {
        let folder = open(parts.path(), start);
        params = toy.params(24);
        let mut stop = |event| match event {
            Event::Step { step, .. } if step == stop_at => Control::Stop,
            _ => Control::Continue,
        };
        let outcome = train(&mut params, &toy, Some(&eval), &impatient(), Some(&folder), &mut stop).unwrap();
        start = Start::Resume;
        if outcome.end == OutcomeEnd::Finished {
            assert_eq!(
                (outcome.step, outcome.restored, outcome.best),
                (straight.step, straight.restored, straight.best)
            );
            break;
        }
    }
    assert!(bytes(&params) == bytes(&expected));
    // Who wants the last weights gets them.
    let last = tempfile::tempdir().unwrap();
    let kept = TrainSettings { keep_last: true, ..impatient() };
    let (outcome, _) = run(last.path(), Start::New, &kept);
    assert_eq!(outcome.unwrap().restored, None);
}

#[test]
fn two_checkpoints_and_the_best_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, _) = run(dir.path(), Start::New, &settings());
    let best = outcome.unwrap().best.unwrap();
    let found = names(dir.path());
    assert!(found.contains(&"step-00000025".into()) && found.contains(&"step-00000030".into()), "{found:?}");
    assert!(found.contains(&best.name));
    assert!(found.len() <= 4, "{found:?}");
    let manifest = fs::read_to_string(dir.path().join("checkpoints/step-00000030/manifest.json")).unwrap();
    assert!(manifest.contains(&best.name));
}

#[test]
fn damaged_checkpoints_are_named_and_skipped() {
    let whole = tempfile::tempdir().unwrap();
    run(whole.path(), Start::New, &settings()).0.unwrap();
    let damage: [(&str, fn(&Path)); 4] = [
        ("bytes", |folder| {
            let file = folder.join("weights.safetensors");
            let bytes = fs::read(&file).unwrap();
            fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("hash", |folder| {
            let file = folder.join("moments.safetensors");
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            fs::write(&file, &bytes).unwrap();
        }),
        ("state.json", |folder| fs::remove_file(folder.join("state.json")).unwrap()),
        ("manifest.json", |folder| fs::write(folder.join("manifest.json"), "{").unwrap()),
    ];
    for (word, damage) in damage {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), Start::New, &settings()).0.unwrap();
        damage(&dir.path().join("checkpoints/step-00000030"));
        let (outcome, events) = run(dir.path(), Start::Resume, &settings());
        assert_eq!(outcome.unwrap().end, OutcomeEnd::Finished);
        let rejected: Vec<_> = events
            .iter()
            .filter_map(|e| match e {
                Event::CheckpointRejected { path, why } => Some((path.clone(), why.clone())),
                _ => None,
            })
            .collect();
        assert_eq!(rejected.len(), 1);
        assert!(rejected[0].0.ends_with("step-00000030") && rejected[0].1.contains(word), "{rejected:?}");
        let resumed = events.iter().any(|e| matches!(e, Event::Started { step: 25, .. }));
        assert!(resumed, "{events:?}");
        // The damaged one is still there, under another name, and the new one is what it should have been.
        assert!(names(dir.path()).contains(&"step-00000030.damaged-1".into()));
        let file = "checkpoints/step-00000030/weights.safetensors";
        assert!(fs::read(dir.path().join(file)).unwrap() == fs::read(whole.path().join(file)).unwrap());
    }
}

#[test]
fn nothing_whole_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), Start::New, &settings()).0.unwrap();
    for name in names(dir.path()).iter().filter(|name| name.starts_with("step")) {
        fs::remove_file(dir.path().join("checkpoints").join(name).join("run.toml")).unwrap();
    }
    let message = run(dir.path(), Start::Resume, &settings()).0.unwrap_err().to_string();
    assert!(message.contains("run.toml") && message.contains("no checkpoint is whole"), "{message}");
}

#[test]
fn other_settings_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), Start::New, &settings()).0.unwrap();
    let other = TrainSettings { lr: 0.5, seed: 1, ..settings() };
    let message = run(dir.path(), Start::Resume, &other).0.unwrap_err().to_string();
    assert!(message.contains("`lr` was 0.02 and is now 0.5") && message.contains("`seed`"), "{message}");
    assert!(!message.contains("`batch_size`"), "{message}");
    // How often it is saved changes no number.
    let same = TrainSettings { save_every: Some(7), keep: 5, ..settings() };
    run(dir.path(), Start::Resume, &same).0.unwrap();
}

#[test]
fn a_run_at_a_constant_rate_can_be_made_longer() {
    let (short, long) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with = |steps| TrainSettings { schedule: Schedule::Constant, steps: Some(steps), ..settings() };
    run(short.path(), Start::New, &with(10)).0.unwrap();
    run(short.path(), Start::Resume, &with(20)).0.unwrap();
    run(long.path(), Start::New, &with(20)).0.unwrap();
    let file = "checkpoints/step-00000020/weights.safetensors";
    assert!(fs::read(short.path().join(file)).unwrap() == fs::read(long.path().join(file)).unwrap());
}

#[test]
fn without_targets_there_is_nothing_to_train() {
    let toy = Toy::new(0, 12);
    let error = train(&mut toy.params(24), &toy, None, &settings(), None, &mut go_on).unwrap_err();
    assert!(matches!(error, Error::NothingToLearn { .. }));
}

const CHILD: &str = "RETUNE_TEST_TRAIN_IN";

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_of_the_kill_test() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let outcome = run(&path, Start::Resume, &kill_settings()).0.unwrap();
    assert_eq!(outcome.end, OutcomeEnd::Finished);
}

fn kill_settings() -> TrainSettings {
    TrainSettings { epochs: 60.0, save_every: Some(5), eval_every: Some(50), ..settings() }
}

/// Kills a run at random moments, sometimes cuts its newest checkpoint, resumes it until it is done: same bytes as the
/// run that nobody disturbed.
#[test]
fn a_killed_run_ends_in_the_same_bytes() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let began = std::time::Instant::now();
    run(whole.path(), Start::New, &kill_settings()).0.unwrap();
    let undisturbed = began.elapsed();
    let moments = Stream::new(u64::from(std::process::id()), 1);
    let (mut kills, mut truncations, mut round) = (0, 0, 0);
    loop {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_of_the_kill_test"])
            .env(CHILD, killed.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Late rounds get longer and longer, so that the run ends on any machine.
        let wait = undisturbed.mul_f64(moments.uniform_f64(round) * (0.1 + 0.1 * round as f64));
        std::thread::sleep(wait + Duration::from_millis(5));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        round += 1;
        if moments.below(1000 + round, 4) == 0 {
            truncations += usize::from(truncate_newest(killed.path()));
        }
    }
    let file = |path: &Path, name: &str| {
        let step = kill_settings().steps_total(5);
        fs::read(path.join(format!("checkpoints/step-{step:08}/{name}"))).unwrap()
    };
    for name in ["weights.safetensors", "moments.safetensors", "state.json"] {
        assert!(file(whole.path(), name) == file(killed.path(), name), "{name} differs after {kills} kills");
    }
    eprintln!("{kills} kills, {truncations} truncated checkpoints");
    assert!(kills >= 3, "only {kills} kills");
}

/// A disk that refuses in the middle of a checkpoint (files may not grow past 3 KiB): an error that names the file, no torso,
/// and the older checkpoints are as they were.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_older_checkpoints_and_no_torso() {
    let dir = tempfile::tempdir().unwrap();
    let (toy, folder) = (Toy::new(37, 12), open(dir.path(), Start::New));
    let mut stop = |event| match event {
        Event::Step { step: 12, .. } => Control::Stop,
        _ => Control::Continue,
    };
    let eval = Toy::new(9, 12);
    train(&mut toy.params(24), &toy, Some(&eval), &kill_settings(), Some(&folder), &mut stop).unwrap();
    drop(folder);
    let before = checkpoint_files(dir.path());
    assert!(!before.is_empty());
    let limited =
        "trap '' XFSZ; ulimit -f 3 || exit 0; exec \"$0\" --exact child_of_the_kill_test --nocapture";
    let output = Command::new("bash")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("moments.safetensors"), "{said}");
    assert!(checkpoint_files(dir.path()) == before, "{:?}", names(dir.path()));
    assert!(names(dir.path()).iter().all(|name| !name.contains("tmp")));
}

/// Cuts a file of the newest checkpoint, if there is an older one to fall back to.
fn truncate_newest(path: &Path) -> bool {
    let is_step = |name: &String| name.starts_with("step-") && !name.contains('.');
    let found: Vec<String> = names(path).into_iter().filter(is_step).collect();
    let [.., older, newest] = &found[..] else { return false };
    let whole = |name: &str| checkpoint::verify(&path.join("checkpoints").join(name)).is_ok();
    if !whole(older) {
        return false;
    }
    let file = path.join("checkpoints").join(newest).join("weights.safetensors");
    let length = fs::metadata(&file).unwrap().len();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    true
}
