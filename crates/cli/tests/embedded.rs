//! What works without a network: the model inside the program, new models, and the recipe's way of splitting rows.

mod common;

use std::path::Path;

use common::{Ran, program, ran};

/// Runs the program in a folder, with a cache of its own and no package clients.
fn offline(dir: &Path, words: &str) -> Ran {
    let mut command = program();
    command.current_dir(dir).env("RETUNE_CACHE", dir.join("cache")).env("PATH", "/nowhere");
    ran(command.args(words.split_whitespace()).output().unwrap())
}

#[test]
fn the_quickstart_runs_without_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let lines = offline(dir.path(), "quickstart --json").ok().json_lines();
    assert!(lines[0]["message"].as_str().unwrap().contains("no pip"), "{}", lines[0]);
    let losses: Vec<f64> = lines
        .iter()
        .filter(|line| line["event"] == "eval")
        .filter_map(|line| line["loss"].as_f64())
        .collect();
    assert!(losses.last().unwrap() < &(losses[0] - 0.5), "{losses:?}");
    for name in ["adapter_config.json", "adapter_model.safetensors", "report.html", "run.toml"] {
        assert!(dir.path().join("quickstart").join(name).is_file(), "{name}");
    }
    let answer = offline(dir.path(), "generate --model tiny --adapter quickstart --chat --prompt hello").ok();
    assert!(!answer.stdout.trim().is_empty());
}

#[test]
fn tiny_is_listed_and_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    offline(dir.path(), "fetch tiny --print-path").failed(65, &["not fetched yet"]);
    let path = offline(dir.path(), "fetch tiny").ok().stdout;
    assert!(Path::new(path.trim()).join("data/train.jsonl").is_file(), "{path}");
    let lines = offline(dir.path(), "fetch --json").ok().json_lines();
    assert_eq!((lines[0]["name"].as_str(), lines[0]["cached"].as_str()), (Some("tiny"), Some(path.trim())));
}

#[test]
fn a_new_model_with_a_tokenizer_of_its_own_can_be_trained() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..30)
        .map(|i| {
            format!("{{\"question\": \"How much is {i} and one?\", \"answer\": \"It is {}.\"}}\n", i + 1)
        })
        .collect();
    std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let init = "init --config tiny --train-tokenizer rows.jsonl --vocab-size 270 --out new --json";
    let made = offline(dir.path(), init).ok().json_lines();
    assert_eq!(made[0]["parameters"], 918_656 - (1024 - 270) * 128);
    offline(dir.path(), init.trim_end_matches(" --json")).failed(65, &["is there already"]);
    let train =
        "train --method full --storage f32 --model new --data rows.jsonl --steps 3 --lr 1e-3 --out trained";
    offline(dir.path(), train).ok();
    offline(dir.path(), "generate --model trained --chat --prompt hello --max-tokens 3").ok();
    offline(dir.path(), "init --config tiny --train-tokenizer rows.jsonl --vocab-size 9 --out x")
        .failed(65, &["259"]);
}
