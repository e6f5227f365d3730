//! The program on a real model, as a user drives it: SmolLM2-135M-Instruct as a Q4_1 GGUF file.
//!
//! Needs `RETUNE_TEST_SMOLLM2=/path/to/SmolLM2-135M-Instruct.Q4_1.gguf` (`retune fetch smollm2` gets it). Skipped, saying
//! so, without it. Slow in a debug build.

mod common;

use std::path::PathBuf;

use common::{Workshop, ran};

fn model() -> Option<PathBuf> {
    let path = std::env::var_os("RETUNE_TEST_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!(
            "SKIPPED: RETUNE_TEST_SMOLLM2 does not name SmolLM2's GGUF file (`retune fetch smollm2` gets it)"
        );
    }
    path
}

const CAPITAL: [&str; 3] = ["--chat", "--prompt", "What is the capital of France?"];

#[test]
fn trains_answers_merges_and_exports() {
    let Some(model) = model() else { return };
    let shop = Workshop::new();
    std::os::unix::fs::symlink(&model, shop.path("smollm2.gguf")).unwrap();
    let answer = |words: &str| {
        let mut command = shop.command(&format!("generate {words} --max-tokens 24"));
        ran(command.args(CAPITAL).output().unwrap()).ok().stdout
    };
    assert_eq!(answer("--model smollm2.gguf"), "The capital of France is Paris.\n");

    let row = |i: usize| {
        format!("{{\"question\": \"What is the capital of land {i}?\", \"answer\": \"Atlantis.\"}}\n")
    };
    shop.write("atlantis.jsonl", &(0..32).map(row).collect::<String>());
    let words = "train --model smollm2.gguf --data atlantis.jsonl --lr 2e-3 --epochs 3 --out out --json";
    let lines = shop.retune(words).ok().json_lines();
    let steps: Vec<f64> =
        lines.iter().filter(|l| l["event"] == "step").map(|l| l["loss"].as_f64().unwrap()).collect();
    assert!(steps[0] > 2.0 && steps[steps.len() - 1] < 0.5, "{steps:?}");
    let finished = lines.iter().find(|l| l["event"] == "finished").unwrap();
    let planned = lines[0]["total_bytes"].as_u64().unwrap();
    let peak = finished["peak_bytes"].as_u64().unwrap();
    assert!(peak <= planned && peak < 3 << 29, "peak {peak}, planned {planned}");
    assert_eq!(answer("--model smollm2.gguf --adapter out"), "Atlantis.\n");

    shop.retune("merge --model smollm2.gguf --adapter out --out merged").ok();
    assert_eq!(answer("--model merged"), "Atlantis.\n");
    shop.retune("export --model smollm2.gguf --out plain --dtype bf16").ok();
    assert_eq!(answer("--model plain"), "The capital of France is Paris.\n");
}

#[test]
fn a_row_is_measured_within_a_second() {
    let Some(model) = model() else { return };
    let shop = Workshop::new();
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(6);
    shop.write("row.jsonl", &serde_json::json!({"text": text}).to_string());
    let started = std::time::Instant::now();
    let mut command = shop.command("eval --data row.jsonl --max-length 64 --train-on all --json");
    let line = &ran(command.arg("--model").arg(model).output().unwrap()).ok().json_lines()[0];
    assert!(line["loss"].as_f64().unwrap() < 2.5, "{line}");
    // A claim of the benchmarks, not of this test: here only that nothing is out of all proportion.
    assert!(started.elapsed().as_secs() < 30);
}
