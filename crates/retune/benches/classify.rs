//! Training steps of a BERT sequence classifier by any method, as `scripts/peer/bench_bert.py` runs them with PEFT:
//! `cargo bench -p retune --bench classify -- --method lora --model MINILM --json`.
//!
//! The rows of `scripts/peer/lengths_sentences.json`, 16 a batch, go through the library's own training loop. With --epochs
//! the speed from the second epoch on is told besides: what lies below the lowest trained layer is then known.

mod common;

use std::path::Path;
use std::time::Instant;

use common::{Args, Noise, cpu_seconds, load1, median, resident_mib, round};
use retune::methods;
use retune::models::{HeadRequest, Model, StorageChoice};
use retune::nn::Problem;
use retune::run_file::RunFile;
use retune::tasks::classification::{Classification, Example, Examples, Label, Labels, Source, Tokens};
use retune::tasks::trunk_cache::{Limits, TrunkCache};
use retune::train::{Control, Event, TrainSettings, train};
use retune_tensor::{kernel, memory};
use serde_json::json;

const USAGE: &str = "\
classify --model FOLDER [--method full|lora|dora|ia3|bitfit|adapter|prompt|prefix|head] [--lengths FILE]
         [--steps 30] [--warm 3] [--epochs 1] [--threads 2] [--json]

--model FOLDER  MiniLM's folder, `retune fetch minilm --print-path`
--lengths FILE  {\"batches\": [[row lengths], ...]}";

const OPTIONS: &[&str] = &["model", "method", "lengths", "steps", "warm", "epochs", "threads", "json"];

/// What the peer's methods are in a run file.
fn run_file(method: &str) -> RunFile {
    let (name, settings) = match method {
        "lora" => (
            "lora",
            "[lora]\nrank = 8\nlora_alpha = 16\nlora_dropout = 0\ntarget_modules = ['query', 'value']",
        ),
        "dora" => (
            "lora",
            "[lora]\nrank = 8\nlora_alpha = 16\nlora_dropout = 0\ntarget_modules = ['query', 'value']\nuse_dora = true",
        ),
        "adapter" => {
            ("adapter", "[adapter]\narchitecture = 'houlsby'\nreduction_factor = 6\nnon_linearity = 'gelu'")
        }
        "prompt" => ("prompt", "[prompt]\nnum_virtual_tokens = 20"),
        "prefix" => ("prefix", "[prefix]\nnum_virtual_tokens = 20"),
        other => (other, ""),
    };
    let text = format!("model = 'm'\ndata = 'd'\nmethod = '{name}'\nlr = 1e-3\n{settings}\n");
    RunFile::from_toml("bench", &text).unwrap_or_else(|e| panic!("{e}"))
}

/// The batches of a file, at most so many, as examples with random ids.
fn examples(path: &Path, batches: usize) -> (Examples, usize) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}"));
    let rows = |v: &serde_json::Value| -> Vec<usize> {
        v.as_array().into_iter().flatten().filter_map(|n| n.as_u64()).map(|n| n as usize).collect()
    };
    let all: Vec<Vec<usize>> =
        value["batches"].as_array().into_iter().flatten().map(rows).take(batches).collect();
    let batch_size = all.first().map_or(1, Vec::len);
    let mut noise = Noise(1);
    let mut list = Vec::new();
    for n in all.into_iter().flatten() {
        let mut ids: Vec<u32> = (0..n).map(|_| 1996 + noise.bits() % 27_004).collect();
        (ids[0], ids[n - 1]) = (101, 102);
        let tokens = Tokens { token_types: vec![0; n], ids, ..Tokens::default() };
        let label = Label::One(noise.bits() % 2);
        let source = Source { file: "bench".into(), line: list.len() + 1 };
        list.push(Example { tokens, label, source, key: list.len() as u64 });
    }
    let tokens = list.iter().map(|e| e.tokens.ids.len()).sum();
    let labels = Labels { names: vec!["a".into(), "b".into()] };
    let examples =
        Examples { examples: list, problem: Problem::SingleLabel, labels, tokens, ..Examples::default() };
    (examples, batch_size)
}

fn main() {
    let Some(args) = Args::read(USAGE, OPTIONS) else { return };
    let threads = args.threads();
    let method = args.text("method").unwrap_or("lora");
    let run = run_file(method);
    let (steps, warm) = (args.get("steps", 30usize), args.get("warm", 3usize));
    let epochs = args.get("epochs", 1usize);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/peer/lengths_sentences.json");
    let lengths = args.text("lengths").map_or(root, Into::into);
    let (data, batch_size) = examples(&lengths, steps + warm);
    let head = HeadRequest::Classifier {
        problem: Problem::SingleLabel,
        labels: data.labels.names.clone(),
        pooling: None,
        keep: false,
        seed: 0,
        image_size: None,
    };
    let model = args.text("model").unwrap_or_else(|| panic!("--model is missing\n{USAGE}"));
    let mut model =
        Model::load_with(Path::new(model), StorageChoice::F32, &head).unwrap_or_else(|e| panic!("{e}"));
    let before = resident_mib("VmRSS");
    let spec = methods::find(&run.method).unwrap_or_else(|e| panic!("{e}"));
    let attached = (spec.attach)(&mut model, &run).unwrap_or_else(|e| panic!("{e}"));

    let per_epoch = data.examples.len().div_ceil(batch_size);
    let settings = TrainSettings {
        batch_size,
        steps: Some((per_epoch * epochs) as u64),
        ..TrainSettings::from_run_file(&run, 1e-3)
    };
    let Model { params, net, .. } = &mut model;
    let limits = Limits { memory: 1 << 30, folder: None };
    let cache = TrunkCache::new(net.as_text().expect("text"), params, limits);
    let objective = Classification {
        net: net.as_text().expect("text"),
        data: &data,
        class_weights: None,
        dropout_seed: Some(run.seed),
        checkpoint: false,
        cache: cache.as_ref(),
    };
    let mut timed: Vec<(f64, u64, f64)> = Vec::new();
    let mut last = Instant::now();
    let cpu = cpu_seconds();
    train(params, &objective, None, &settings, None, &mut |event| {
        if let Event::Step { tokens, loss, .. } = event {
            timed.push((last.elapsed().as_secs_f64(), tokens, loss));
            last = Instant::now();
        }
        Control::Continue
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let cpu = cpu_seconds() - cpu;
    let rate = |steps: &[(f64, u64, f64)]| {
        let (seconds, tokens) = steps.iter().fold((0.0, 0), |(s, t), step| (s + step.0, t + step.1));
        round(tokens as f64 / seconds, 1)
    };
    let first = &timed[warm.min(timed.len())..per_epoch.min(timed.len())];
    let seconds: Vec<f64> = first.iter().map(|s| s.0).collect();
    let later = (epochs > 1).then(|| rate(&timed[per_epoch..]));
    let line = json!({
        "engine": "retune", "bench": "bert", "method": method, "trainable": attached.trainable,
        "steps": first.len(), "tok_s_real": rate(first), "tok_s_real_later_epochs": later,
        "s_per_step_median": round(median(&seconds), 5), "cpu_s": round(cpu, 2),
        "peak_rss_mib": round(resident_mib("VmHWM"), 1), "rss_before_training_mib": round(before, 1),
        "peak_tensor_mib": round(memory::peak_bytes() as f64 / 1_048_576.0, 1),
        "loss_first": timed.first().map(|s| s.2), "loss_last": timed.last().map(|s| s.2),
        "threads": threads, "kernel": kernel::level().name(), "load1": load1(),
    });
    match args.has("json") {
        true => println!("{line}"),
        false => println!("{line:#}"),
    }
}
