//! Training steps of Whisper, as `scripts/peer/bench_speech.py` runs them with transformers and PEFT:
//! `cargo bench -p retune --bench speech -- --method lora --json`.
//!
//! whisper-tiny.en's shape with random weights, batches of random features of 30 s (or less: `--seconds`) and of random texts: speed does not
//! depend on the values. Sounds are not decoded: what is measured is the model, its loss and AdamW. Where the encoder is frozen, the
//! speed from the second epoch on is told besides: its rows are kept then.

mod common;

use std::path::Path;

use common::{Args, resident_mib, round, timed};
use retune::methods;
use retune::models::{Model, Network, StorageChoice, Whisper, fresh};
use retune::nn::Pass;
use retune::objective::{Objective, ObjectiveError};
use retune::run_file::RunFile;
use retune::tasks::causal_lm::head_loss;
use retune::tasks::speech::SoundCache;
use retune::tasks::trunk_cache::Limits;
use retune_tensor::ops::LossRows;
use retune_tensor::rng::Stream;
use retune_tensor::{Segments, Tape, Tensor, Var, kernel, memory};
use serde_json::json;

const USAGE: &str = "\
speech [--method lora|full|partial|adapter] [--targets q_proj,v_proj] [--batch 8] [--tokens 20] [--checkpoint] [--steps 4] [--warm 1]
       [--threads 2] [--json]

--method    lora: rank 8 on --targets; partial: the decoder, behind a frozen encoder";

const OPTIONS: &[&str] =
    &["method", "targets", "batch", "tokens", "checkpoint", "steps", "warm", "threads", "json"];

fn run_file(args: &Args) -> RunFile {
    let method = args.text("method").unwrap_or("lora");
    let targets: Vec<&str> = args.text("targets").unwrap_or("q_proj,v_proj").split(',').collect();
    let settings = match method {
        "lora" => {
            format!("[lora]\nrank = 8\nlora_alpha = 16\nlora_dropout = 0\ntarget_modules = {targets:?}")
        }
        "partial" => "[partial]\nlast_blocks = 4".into(),
        _ => String::new(),
    };
    let text = format!("model = 'm'\ndata = 'd'\nmethod = '{method}'\nlr = 1e-4\n{settings}\n");
    RunFile::from_toml("bench", &text).unwrap_or_else(|e| panic!("{e}"))
}

/// Random sounds and texts.
struct Noise<'a> {
    net: &'a Whisper,
    features: Tensor,
    batch: usize,
    tokens: usize,
    checkpoint: bool,
    cache: Option<&'a SoundCache>,
    steps: usize,
}

impl Objective for Noise<'_> {
    fn len(&self) -> usize {
        self.steps * self.batch
    }

    fn rows(&self, _example: usize) -> usize {
        self.tokens
    }

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn describe(&self, example: usize) -> String {
        format!("clip {example}")
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        _epoch: u64,
        _denominator: f64,
    ) -> Result<Var, ObjectiveError> {
        let pass = Pass { checkpoint: self.checkpoint, ..Pass::default() };
        let clips = batch.len();
        let frames = self.features.rows() / self.batch;
        let windows = |clips: usize| Segments::from_lengths(&vec![frames; clips]);
        let sound = match self.cache {
            Some(cache) => {
                let keys: Vec<u64> = batch.iter().map(|&e| e as u64).collect();
                let read = |which: &[usize]| {
                    let part = &self.features.data()[..which.len() * frames * self.features.cols()];
                    let part = Tensor::from_slice(which.len() * frames, self.features.cols(), part);
                    Ok((part, windows(which.len())))
                };
                cache.sounds(tape, self.net, &keys, &pass, &read)?
            }
            None => {
                let features = Var::constant(self.features.clone());
                self.net.encode(tape, &features, &windows(clips), &pass)
            }
        };
        let rows = clips * self.tokens;
        let ids: Vec<u32> = (0..rows).map(|i| (i * 7919 % 50_000) as u32).collect();
        let segments = Segments::from_lengths(&vec![self.tokens; clips]);
        let hidden = self.net.decode(tape, &sound, &ids, &segments, &pass);
        let labels = LossRows {
            rows: (0..rows).collect(),
            targets: ids.iter().map(|id| (id + 17) % 50_000).collect(),
            weights: vec![1.0; rows],
            denominator: rows as f32,
        };
        Ok(head_loss(tape, self.net.language_model().expect("a head"), &hidden, &labels))
    }
}

fn main() {
    let Some(args) = Args::read(USAGE, OPTIONS) else { return };
    let (threads, run) = (args.threads(), run_file(&args));
    let (batch, tokens) = (args.get("batch", 8usize), args.get("tokens", 20usize));
    let (steps, warm) = (args.get("steps", 4usize), args.get("warm", 1usize));
    let folder = std::env::temp_dir().join(format!("retune-bench-{}", std::process::id()));
    let config = json!({
        "model_type": "whisper", "vocab_size": 51864, "num_mel_bins": 80, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4,
        "encoder_attention_heads": 6, "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536,
        "max_source_positions": 1500, "max_target_positions": 448,
    });
    fresh::write_folder(Path::new("bench"), &config, 1, None, &[], &folder).unwrap_or_else(|e| panic!("{e}"));
    let model = Model::load(&folder, StorageChoice::F32);
    let _ = std::fs::remove_dir_all(&folder);
    let mut model = model.unwrap_or_else(|e| panic!("{e}"));
    let spec = methods::find(&run.method).unwrap_or_else(|e| panic!("{e}"));
    let attached = (spec.attach)(&mut model, &run).unwrap_or_else(|e| panic!("{e}"));
    let limits = Limits { memory: 4 << 30, folder: None };
    let cache = match run.method.as_str() {
        "partial" => SoundCache::new(model.speech().expect("a Whisper"), &model.params, limits),
        _ => None,
    };
    let Model { params, net, .. } = &mut model;
    let net = net.as_speech().expect("a Whisper");
    let stream = Stream::new(1, 2);
    let features =
        Tensor::from_fn(batch * net.config().frames(), 80, |r, c| stream.normal((80 * r + c) as u64));
    let objective = Noise {
        net,
        features,
        batch,
        tokens,
        checkpoint: args.has("checkpoint"),
        cache: cache.as_ref(),
        steps: steps + warm,
    };
    let took = timed(params, &objective, &run, batch, (warm, steps), cache.is_some());
    let line = json!({
        "engine": "retune", "bench": "speech", "method": run.method, "batch": batch, "tokens": tokens,
        "trainable": attached.trainable, "steps": took.steps, "s_per_step_median": round(took.first, 4),
        "s_per_step_later_epochs": took.later.map(|s| round(s, 4)), "peak_rss_mib": round(resident_mib("VmHWM"), 1),
        "peak_tensor_mib": round(memory::peak_bytes() as f64 / 1_048_576.0, 1), "threads": threads,
        "kernel": kernel::level().name(),
    });
    match args.has("json") {
        true => println!("{line}"),
        false => println!("{line:#}"),
    }
}
