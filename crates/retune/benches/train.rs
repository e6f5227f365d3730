//! Training steps of LoRA on a Llama with random weights, as `scripts/peer/bench_llama.py` runs them with PEFT:
//! `cargo bench -p retune --bench train -- --case full4x512 --json`.
//!
//! A step is forward, backward, clipping to 1.0 and AdamW. Speed does not depend on the weights' values. `full4x512`: 4 rows of
//! 512, every token a target. `instr`: the batches of `scripts/peer/lengths_instruction.json`, the second half of each row the target.

mod common;
#[path = "../../tensor/benches/library/mod.rs"]
mod library;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::shapes::Shape;
use common::{Args, Noise, cpu_seconds, load1, median, resident_mib, round};
use library::library;
use retune::methods::lora;
use retune::models::{Model, Quantisation, StorageChoice, TextInput};
use retune::nn::Pass;
use retune_formats::lora_config::{LoraConfig, Modules};
use retune_tensor::ops::{self, AdamW, LossRows, adamw_step};
use retune_tensor::{Gradients, ParamId, Segments, Tape, Tensor, kernel, memory};
use serde_json::{Value, json};

const USAGE: &str = "\
train [--case full4x512|instr] [--model smol|tinyllama|tiny] [--storage f32|bf16|q4_1|q4_0|q8_0|nf4|nf4+dq|fp4|int4|int8]
      [--checkpoint] [--rank 16] [--steps 5] [--warm 2] [--threads 2] [--bs 4] [--seq 512]
      [--lengths FILE] [--base PATH] [--no-floor] [--json]

--lengths FILE  {\"batches\": [[row lengths], ...]}, the first --warm of them not timed
--base PATH     a model of your own instead of random weights; it is held as the file has it
nf4 and those after it are quantised while a bf16 folder is loaded; +dq: their constants, too
--no-floor      do not measure the gemm crate's rate";

const OPTIONS: &[&str] = &[
    "case",
    "model",
    "storage",
    "checkpoint",
    "rank",
    "steps",
    "warm",
    "threads",
    "bs",
    "seq",
    "lengths",
    "base",
    "no-floor",
    "json",
    "make",
];

/// Floating-point operations of a LoRA step over 4 x 512 rows of SmolLM2's shape.
const FULL_STEP_FLOP: f64 = 1.28e12;

fn main() {
    let Some(args) = Args::read(USAGE, OPTIONS) else { return };
    let shape = Shape::find(args.text("model").unwrap_or("smol"));
    let storage = args.text("storage").unwrap_or("f32");
    if args.has("make") {
        shape.model(on_disk(storage), &models_folder());
        return;
    }
    args.threads();
    let path = args.text("base").map_or_else(|| made(shape, storage), PathBuf::from);
    let result = run(&args, shape, storage, &path);
    if args.has("json") {
        println!("{result}");
        return;
    }
    for (key, value) in result.as_object().into_iter().flatten() {
        println!("{key:>24}  {value}");
    }
}

/// Where the models of random weights lie; removed by `cargo clean`.
fn models_folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-models")
}

/// The model's path. It is made by a process of its own, which leaves this one's peak of memory clean.
fn made(shape: &Shape, storage: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap_or_else(|e| panic!("{e}"));
    let done = std::process::Command::new(program)
        .args(["--make", "--model", shape.name, "--storage", storage])
        .status();
    assert!(done.is_ok_and(|s| s.success()), "the model of random weights could not be written");
    shape.model(on_disk(storage), &models_folder())
}

/// How a storage that is made while loading is quantised.
fn quantisation(storage: &str) -> Option<Quantisation> {
    let (name, double) = storage.strip_suffix("+dq").map_or((storage, false), |name| (name, true));
    Quantisation::from_name(name, double)
}

/// The storage of the model's file: bf16 for what is quantised while it is loaded, as the peer does.
fn on_disk(storage: &str) -> &str {
    if quantisation(storage).is_some() { "bf16" } else { storage }
}

fn run(args: &Args, shape: &Shape, storage: &str, path: &Path) -> Value {
    let threads = rayon::current_num_threads();
    let (warm, rank) = (args.get("warm", 2), args.get("rank", 16));
    let (data, batches) = batches(args, shape, warm);
    let with_floor = shape.name == "smol" && data == "4x512" && !args.has("no-floor");
    let before = with_floor.then(gemm_rate);

    let start = Instant::now();
    let choice = match storage {
        _ if args.has("base") => StorageChoice::AsIs,
        "f32" => StorageChoice::F32,
        "bf16" => StorageChoice::Bf16,
        _ => quantisation(storage).map_or(StorageChoice::AsIs, StorageChoice::Quantised),
    };
    let mut model = Model::load(path, choice).unwrap_or_else(|e| panic!("{e}"));
    let load_s = start.elapsed().as_secs_f64();
    let (base_bytes, rss_loaded) = (model.params.bytes(), resident_mib("VmRSS"));
    let config = LoraConfig {
        r: rank,
        lora_alpha: 2.0 * rank as f64,
        target_modules: Some(Modules::AllLinear),
        ..LoraConfig::default()
    };
    let attached = lora::attach(&mut model, &config, 0).unwrap_or_else(|e| panic!("{e}"));

    let mut trainer = Trainer::new(model, args.has("checkpoint"));
    let mut steps: Vec<Step> = batches[..warm].iter().map(|batch| trainer.step(batch)).collect();
    let cpu = cpu_seconds();
    steps.extend(batches[warm..].iter().map(|batch| trainer.step(batch)));
    let cpu = cpu_seconds() - cpu;
    let peak_rss = resident_mib("VmHWM");
    let timed = &steps[warm..];
    let total: f64 = timed.iter().map(|s| s.seconds).sum();
    let rows: usize = batches[warm..].iter().map(|b| b.ids.len()).sum();
    let of = |part: fn(&Step) -> f64| timed.iter().map(part).collect::<Vec<f64>>();
    let seconds = of(|s| s.seconds);
    let extreme = |f: fn(f64, f64) -> f64| seconds.iter().copied().reduce(f).unwrap_or(f64::NAN);
    let mut out = json!({
        "bench": "causal_lm", "engine": "retune", "method": "lora", "model": shape.name, "storage": storage, "data": data,
        "bs": batches[0].segments.len(), "gc": args.has("checkpoint"), "rank": rank, "trainable": attached.trainable,
        "steps": timed.len(),
        "tok_real_per_step": round(rows as f64 / timed.len() as f64, 1),
        "s_per_step_median": round(median(&seconds), 4),
        "s_min": round(extreme(f64::min), 4), "s_max": round(extreme(f64::max), 4),
        "s_mean": round(total / timed.len() as f64, 4),
        "s_forward": round(median(&of(|s| s.forward)), 4), "s_backward": round(median(&of(|s| s.backward)), 4),
        "s_update": round(median(&of(|s| s.update)), 4),
        "cpu_s_per_step": round(cpu / timed.len() as f64, 2), "cpu_util": round(cpu / total / threads as f64, 3),
        "tok_s_real": round(rows as f64 / total, 1),
        "peak_rss_mib": round(peak_rss, 1), "rss_loaded_mib": round(rss_loaded, 1),
        "peak_tensor_mib": round(memory::peak_bytes() as f64 / f64::from(1 << 20), 1),
        "base_weights_mb": round(base_bytes as f64 / 1e6, 1), "load_s": round(load_s, 3),
        "loss_first": steps.first().map(|s| s.loss), "loss_last": steps.last().map(|s| s.loss),
        "kernel": kernel::level().name(), "threads": threads, "load1": load1(),
    });
    if let Some(before) = before {
        add_floor(&mut out, before, median(&seconds), cpu / timed.len() as f64);
    }
    out
}

/// The shortest time in which the machine could compute a step, by the `gemm` crate before and after it. Also by
/// processor time, which says something even where other programs compete.
fn add_floor(out: &mut Value, before: Rate, step: f64, step_cpu: f64) {
    let after = gemm_rate();
    let floor = FULL_STEP_FLOP / (0.5e9 * (before.clock + after.clock));
    let floor_cpu = FULL_STEP_FLOP / (0.5e9 * (before.cpu + after.cpu));
    out["gemm_gflops_before"] = round(before.clock, 1).into();
    out["gemm_gflops_after"] = round(after.clock, 1).into();
    out["s_floor"] = round(floor, 4).into();
    out["step_over_floor"] = round(step / floor, 3).into();
    out["step_over_floor_cpu"] = round(step_cpu / floor_cpu, 3).into();
}

/// GFLOP/s of the `gemm` crate: a median by the clock, and a mean for each processor second.
#[derive(Clone, Copy)]
struct Rate {
    clock: f64,
    cpu: f64,
}

/// The rate at `x Wᵀ`, 2048 rows, 1536 outputs, 576 inputs, on all threads of the pool.
fn gemm_rate() -> Rate {
    let (m, n, k) = (2048usize, 1536usize, 576usize);
    let mut noise = Noise(1);
    let mut matrix = |len: usize| (0..len).map(|_| noise.uniform()).collect::<Vec<f32>>();
    let (x, w, mut y) = (matrix(m * k), matrix(n * k), vec![0.0f32; m * n]);
    let mut rates = Vec::new();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    while rates.len() < 10 || start.elapsed().as_secs_f64() < 1.5 {
        let begin = Instant::now();
        library([m, n, k], (&x, [k, 1]), (&w, [1, k]), &mut y);
        rates.push(2e-9 * (m * n * k) as f64 / begin.elapsed().as_secs_f64());
    }
    let all = 2e-9 * (m * n * k * rates.len()) as f64;
    Rate { clock: median(&rates[2..]), cpu: all / (cpu_seconds() - cpu) }
}

/// Rows laid end to end, without padding.
struct Batch {
    ids: Vec<u32>,
    segments: Segments,
    labels: LossRows,
}

impl Batch {
    /// Random ids; the rows from `first(length)` on are targets. As in transformers, row `i - 1` predicts row `i`.
    fn new(lengths: &[usize], vocab: usize, first: impl Fn(usize) -> usize, noise: &mut Noise) -> Batch {
        let (mut ids, mut labels) = (Vec::new(), LossRows::default());
        for &length in lengths {
            let start = ids.len();
            ids.extend((0..length).map(|_| 3 + noise.bits() % (vocab as u32 - 3)));
            for row in start + first(length).max(1)..start + length {
                labels.rows.push(row - 1);
                labels.targets.push(ids[row]);
                labels.weights.push(1.0);
            }
        }
        labels.denominator = labels.rows.len() as f32;
        Batch { ids, segments: Segments::from_lengths(lengths), labels }
    }
}

/// The data's name and its batches, those for warming up first.
fn batches(args: &Args, shape: &Shape, warm: usize) -> (String, Vec<Batch>) {
    let count = warm + args.get("steps", 5);
    let case = args.text("case").unwrap_or("full4x512");
    let instructions =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/peer/lengths_instruction.json");
    let file = args.text("lengths").map(PathBuf::from).or_else(|| (case == "instr").then_some(instructions));
    assert!(file.is_some() || case == "full4x512", "no case \"{case}\": full4x512, instr\n{USAGE}");
    let mut noise = Noise(7);
    if let Some(file) = file {
        let lengths = read_lengths(&file, shape.max_position_embeddings);
        assert!(lengths.len() > warm, "{}: all batches are for warming up", file.display());
        let batch = |lengths: &Vec<usize>| Batch::new(lengths, shape.vocab_size, |n| n / 2, &mut noise);
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return (name, lengths.iter().take(count).map(batch).collect());
    }
    let (rows, length) = (args.get("bs", 4), args.get("seq", 512));
    let batch = || Batch::new(&vec![length; rows], shape.vocab_size, |_| 0, &mut noise);
    (format!("{rows}x{length}"), std::iter::repeat_with(batch).take(count).collect())
}

fn read_lengths(file: &Path, longest: usize) -> Vec<Vec<usize>> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let batches: Vec<Vec<usize>> = serde_json::from_value(value["batches"].clone())
        .unwrap_or_else(|e| panic!("{}: \"batches\": {e}", file.display()));
    let fits = batches.iter().flatten().all(|n| (1..=longest).contains(n));
    assert!(fits, "{}: a row is empty or longer than {longest}", file.display());
    batches
}

/// Seconds of one step and of its parts.
struct Step {
    seconds: f64,
    forward: f64,
    backward: f64,
    update: f64,
    loss: f32,
}

struct Trainer {
    model: Model,
    pass: Pass,
    moments: BTreeMap<ParamId, (Tensor, Tensor)>,
    steps: u64,
}

impl Trainer {
    fn new(model: Model, checkpoint: bool) -> Trainer {
        let pass = Pass { checkpoint, ..Pass::default() };
        Trainer { model, pass, moments: BTreeMap::new(), steps: 0 }
    }

    fn step(&mut self, batch: &Batch) -> Step {
        let start = Instant::now();
        let mut gradients = Gradients::new();
        let (loss, forward) = {
            let (params, net) = (&self.model.params, self.model.net.as_text().expect("text"));
            let tape = Tape::new(params);
            let hidden = net.hidden(&tape, &TextInput::new(&batch.ids, &batch.segments), &self.pass);
            let head = tape.weight(net.language_model().expect("a language model").linear.weight);
            let loss = ops::linear_cross_entropy(&tape, &hidden.x, &head, &batch.labels);
            drop(hidden);
            let forward = start.elapsed().as_secs_f64();
            tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
            (loss.value().data()[0], forward)
        };
        let backward = start.elapsed().as_secs_f64() - forward;
        self.update(&gradients);
        drop(gradients);
        let seconds = start.elapsed().as_secs_f64();
        Step { seconds, forward, backward, update: seconds - forward - backward, loss }
    }

    /// Clips to 1.0 and updates every parameter that has a gradient.
    fn update(&mut self, gradients: &Gradients) {
        self.steps += 1;
        let norm = gradients.global_norm() as f32;
        let scale = (1.0 / (norm + 1e-6)).min(1.0);
        for (id, g) in gradients.iter() {
            let zeros = || Tensor::zeros(g.rows(), g.cols());
            let (m, v) = self.moments.entry(id).or_insert_with(|| (zeros(), zeros()));
            let p = self.model.params.tensor_mut(id).expect("trainable parameters are f32");
            let p = p.data_mut();
            adamw_step(AdamW::default(), self.steps, scale, p, g.data(), m.data_mut(), v.data_mut());
        }
    }
}
