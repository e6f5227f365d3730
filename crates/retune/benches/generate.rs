//! Prompts and greedy generation on SmolLM2's GGUF file, as `scripts/peer/bench_generate.py` measures llama.cpp:
//! `cargo bench -p retune --bench generate -- --json`.
//!
//! The weights stay as the file has them. End tokens don't end the generation. Each figure is the median of `--repeat` runs.

mod common;

use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{Args, load1, median, resident_mib, round};
use retune::generate::{Sampling, choose, next_logits};
use retune::models::{Model, StorageChoice};
use retune::nn::Active;
use retune::text::{Language, Special};
use retune_formats::gguf;
use retune_tensor::kernel;
use retune_tensor::rng::Stream;
use serde_json::{Value, json};

const USAGE: &str = "\
generate [--model FILE.gguf] [--prompt 512] [--tokens 128] [--repeat 3] [--threads 2] [--storage as-is|f32|bf16] [--json]

Without --model: $RETUNE_SMOLLM2_GGUF, else what `retune fetch smollm2` put into the cache.";

const OPTIONS: &[&str] = &["model", "prompt", "tokens", "repeat", "threads", "storage", "json"];

/// About 17 tokens; the peer's prompt too.
const WORDS: &str =
    "The robot walked along the river and told everybody about the machines that it had seen. ";

/// Tokens of the short prompt.
const SHORT: usize = 16;

fn main() {
    let Some(args) = Args::read(USAGE, OPTIONS) else { return };
    args.threads();
    let path = args.text("model").map(PathBuf::from).or_else(smollm2);
    let path = path.unwrap_or_else(|| panic!("no model: `retune fetch smollm2` gets it\n{USAGE}"));
    let result = run(&args, &path);
    if args.has("json") {
        println!("{result}");
        return;
    }
    for (key, value) in result.as_object().into_iter().flatten() {
        println!("{key:>24}  {value}");
    }
}

/// SmolLM2's file, wherever the program or the environment says it is.
fn smollm2() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = from("RETUNE_SMOLLM2_GGUF") {
        return Some(path);
    }
    let cache = from("RETUNE_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|cache| cache.join("retune")))
        .or_else(|| from("HOME").map(|home| home.join(".cache/retune")))?;
    let folders = std::fs::read_dir(cache).ok()?.flatten().map(|entry| entry.path());
    let file = |folder: PathBuf| folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    folders.map(file).find(|path| path.is_file())
}

fn run(args: &Args, path: &Path) -> Value {
    let (prompt, tokens) = (args.get("prompt", 512usize), args.get("tokens", 128usize));
    let storage = match args.text("storage").unwrap_or("as-is") {
        "as-is" => StorageChoice::AsIs,
        "f32" => StorageChoice::F32,
        "bf16" => StorageChoice::Bf16,
        other => panic!("no storage \"{other}\"\n{USAGE}"),
    };
    let start = Instant::now();
    let file = gguf::File::open(path).unwrap_or_else(|e| panic!("{e}"));
    let language = Language::from_gguf(&file).unwrap_or_else(|e| panic!("{e}"));
    let tokenizer_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let model = Model::load(path, storage).unwrap_or_else(|e| panic!("{e}"));
    let load_s = start.elapsed().as_secs_f64();
    let text = WORDS.repeat(prompt.div_ceil(8));
    let ids = language.tokenizer.encode(&text, Special::AsText).unwrap_or_else(|e| panic!("{e}"));
    let ids = &ids[..prompt];

    once(&model, &ids[..SHORT], 4);
    let (mut prompts, mut short, mut long) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.get("repeat", 3) {
        short.push(once(&model, &ids[..SHORT], tokens).1);
        let (prompt, after) = once(&model, ids, tokens);
        prompts.push(prompt);
        long.push(after);
    }
    let all = |values: &[f64]| values.iter().map(|v| round(*v, 1)).collect::<Vec<f64>>();
    json!({
        "bench": "generate", "engine": "retune", "model": path.file_name().unwrap_or_default().to_string_lossy(),
        "storage": args.text("storage").unwrap_or("as-is"),
        "prompt_tokens": prompt, "generated_tokens": tokens,
        "prompt_tok_s": round(median(&prompts), 1), "generate_tok_s": round(median(&short), 1),
        "generate_after_prompt_tok_s": round(median(&long), 1),
        "prompt_tok_s_runs": all(&prompts), "generate_tok_s_runs": all(&short), "generate_after_prompt_tok_s_runs": all(&long),
        "peak_rss_mib": round(resident_mib("VmHWM"), 1),
        "base_weights_mb": round(model.params.bytes() as f64 / 1e6, 1),
        "load_s": round(load_s, 3), "tokenizer_s": round(tokenizer_s, 3),
        "kernel": kernel::level().name(), "threads": rayon::current_num_threads(), "load1": load1(),
    })
}

/// Tokens a second of a prompt, and of `tokens` greedy tokens behind it.
fn once(model: &Model, prompt: &[u32], tokens: usize) -> (f64, f64) {
    let (sampling, random) = (Sampling::default(), Stream::new(0, 0));
    let mut cache = model.net.as_text().expect("text").new_cache(prompt.len() + tokens, Active::default());
    let start = Instant::now();
    let mut logits = next_logits(model, prompt, &mut cache).unwrap_or_else(|e| panic!("{e}"));
    let prompt_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for index in 0..tokens {
        let id = choose(logits.data(), &sampling, &random, index as u64).unwrap_or_else(|e| panic!("{e}"));
        logits = next_logits(model, &[id], &mut cache).unwrap_or_else(|e| panic!("{e}"));
    }
    (prompt.len() as f64 / prompt_s, tokens as f64 / start.elapsed().as_secs_f64())
}
