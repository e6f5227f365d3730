//! Training as a user does it, on a tiny model: what comes out, what is refused, interruption and resumption.

mod common;

use common::{Workshop, ran};
use serde_json::Value;

const TRAIN: &str =
    "train --model model --data train.jsonl --eval-data heldout.jsonl --storage f32 --epochs 4 --lr 1e-2";

#[test]
fn training_learns_and_writes_the_folder() {
    let shop = Workshop::new();
    let ran = shop.retune(&format!("{TRAIN} --out out")).ok();
    assert!(ran.stdout.contains("held-out loss"), "{}", ran.stdout);
    assert!(ran.stdout.contains("retune generate --model model --adapter out"), "{}", ran.stdout);
    for name in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "run.toml",
        "metrics.jsonl",
        "report.html",
    ] {
        assert!(!shop.read(&format!("out/{name}")).is_empty(), "{name}");
    }
    let evals: Vec<f64> = events(&String::from_utf8(shop.read("out/metrics.jsonl")).unwrap())
        .iter()
        .filter(|e| e["event"] == "eval")
        .map(|e| e["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(evals.len(), 5, "before, and after each epoch");
    assert!(evals[4] < evals[0] - 1.0, "{evals:?}");
    assert!(String::from_utf8(shop.read("out/report.html")).unwrap().matches("<svg").count() == 4);
    // The adapter is what eval says it is.
    let eval = |words: &str| {
        shop.retune(&format!("eval --model model --data heldout.jsonl --storage f32 --json {words}")).ok()
    };
    let loss = |words: &str| eval(words).json_lines()[0]["loss"].as_f64().unwrap();
    assert!((loss("") - evals[0]).abs() < 1e-5);
    assert!((loss("--adapter out") - evals[4]).abs() < 1e-5);
    // Weights that stay in their file are the same weights.
    assert_eq!(loss("--adapter out --weights streamed"), loss("--adapter out"));
    // Half an adapter lies between; twice half of it is the whole.
    let half = loss("--adapter out --adapter-weights 0.5");
    assert!(half < evals[0] && half > evals[4], "{half}");
    assert!((loss("--adapter out --adapter out --adapter-weights 0.5,0.5") - evals[4]).abs() < 1e-4);
}

#[test]
fn json_lines_tell_the_run() {
    let shop = Workshop::new();
    let lines = shop.retune(&format!("{TRAIN} --epochs 1 --out out --json")).ok().json_lines();
    let kinds: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["planned", "started", "eval", "step", "step", "step", "eval", "saved", "finished"]);
    for key in ["step", "loss", "lr", "grad_norm", "tokens_per_s", "peak_bytes"] {
        assert!(lines[3][key].is_number(), "{key}");
    }
}

#[test]
fn the_written_run_file_gives_the_same_run_and_threads_change_nothing() {
    let shop = Workshop::new();
    shop.retune(&format!("{TRAIN} --dropout 0.1 --out one")).ok();
    shop.retune("train one/run.toml --out two --threads 1").ok();
    assert_eq!(shop.read("one/adapter_model.safetensors"), shop.read("two/adapter_model.safetensors"));
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    use std::io::{BufRead, BufReader};
    let shop = Workshop::new();
    let words = format!("{TRAIN} --epochs 60 --dropout 0.1");
    shop.retune(&format!("{words} --out whole")).ok();
    let mut child = shop
        .command(&format!("{words} --out part --json"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"] == "step";
    assert!(lines.by_ref().any(|line| step(&line.unwrap())));
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    lines.for_each(drop);
    let stopped = ran(child.wait_with_output().unwrap());
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    // A new run doesn't mix with it; resuming goes on.
    shop.retune(&format!("{words} --out part")).failed(2, &["checkpoints of an earlier run", "resume"]);
    shop.retune("train part/run.toml --resume --epochs 61").failed(2, &["other settings"]);
    shop.retune("train part --resume").ok();
    assert_eq!(shop.read("whole/adapter_model.safetensors"), shop.read("part/adapter_model.safetensors"));
    let steps = |name: &str| {
        let text = String::from_utf8(shop.read(name)).unwrap();
        events(&text)
            .into_iter()
            .filter(|e| e["event"] == "step")
            .map(|e| e["loss"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(steps("whole/metrics.jsonl"), steps("part/metrics.jsonl"), "each step once");
}

#[test]
fn all_problems_of_run_file_and_flags_are_told_at_once() {
    let shop = Workshop::new();
    shop.write("run.toml", "model = \"model\"\ndata = \"train.jsonl\"\nlearing_rate = 1\n[lora]\nrank = 0\n");
    let ran = shop.retune("train run.toml --epochs many").failed(
        2,
        &[
            "run.toml:3: unknown key \"learing_rate\", did you mean \"lr\"?",
            "run.toml:5: rank must be",
            "--epochs: must be",
        ],
    );
    assert_eq!(ran.stderr.lines().count(), 3);
    shop.retune("train --modle model --learning-rate 1")
        .failed(2, &["did you mean --model?", "did you mean --lr?"]);
    shop.retune("train").failed(2, &["no model", "no data"]);
}

#[test]
fn wrong_inputs_are_named() {
    let shop = Workshop::new();
    shop.retune("train --model absent --data train.jsonl").failed(65, &["absent"]);
    shop.retune("train --model model --data absent.jsonl").failed(74, &["absent.jsonl"]);
    shop.retune("train --model model --data train.jsonl --method lorra").failed(2, &["\"lora\""]);
    shop.retune("train --model model --data train.jsonl --targets q_prj").failed(2, &["q_proj"]);
    shop.write("broken.jsonl", "{\"messages\": 3}\n");
    shop.retune("train --model model --data broken.jsonl").failed(65, &["broken.jsonl:1"]);
    shop.write("empty.jsonl", "{\"prompt\": \"a\", \"completion\": \"\"}\n");
    shop.retune("train --model model --data empty.jsonl").failed(65, &["nothing is left to train on"]);
    shop.retune("train --model train.jsonl --data train.jsonl").failed(65, &["train.jsonl"]);
    shop.retune("eval --model model --adapter model --data train.jsonl").failed(65, &["adapter_config.json"]);
}

#[test]
fn a_run_that_cannot_fit_is_refused_before_it_starts() {
    let shop = Workshop::new();
    let words = "--model model --data train.jsonl --memory-limit 1MiB";
    shop.retune(&format!("train {words} --out out")).failed(75, &["needs"]);
    shop.retune(&format!("plan {words}")).failed(75, &["needs"]);
    assert!(!shop.path("out").exists(), "nothing was written");
    assert!(shop.retune("plan --model model --data train.jsonl").ok().stdout.contains("peak"));
    let plan = &shop.retune("plan --model model --data train.jsonl --json").ok().json_lines()[0];
    assert!(plan["total_bytes"].as_u64().unwrap() > 1 << 20);
}

#[test]
fn auto_takes_what_fits_and_says_so() {
    let shop = Workshop::new();
    let row = serde_json::json!({"prompt": "a", "completion": "and so on ".repeat(60)}).to_string();
    shop.write("long.jsonl", &format!("{row}\n").repeat(32));
    let words = "--model model --data long.jsonl --batch 32 --checkpointing off";
    let total = |plan: &Value| plan["total_bytes"].as_u64().unwrap();
    let free = total(&shop.retune(&format!("plan {words} --json")).ok().json_lines()[0]);
    let tight = format!("{words} --memory-limit {}", free * 9 / 10);
    shop.retune(&format!("plan {tight}")).failed(75, &["needs", "checkpointing = \"on\""]);
    let plan = &shop.retune(&format!("plan {tight} --auto --json")).ok().json_lines()[0];
    assert!(total(plan) <= free * 9 / 10 && plan["checkpointing"] == true, "{plan}");
    assert!(plan["changed"][0].as_str().unwrap().contains("checkpointing"), "{plan}");
    let lines = shop.retune(&format!("train {tight} --auto --steps 1 --out out --json")).ok().json_lines();
    let event = |name: &str| lines.iter().find(|line| line["event"] == name).unwrap();
    let warnings: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
    assert!(warnings.iter().any(|said| said.contains("auto: `checkpointing")), "{warnings:?}");
    // Linux tells what the process held at most.
    let held = event("finished")["process_peak_bytes"].as_u64();
    assert!(held.is_none_or(|held| held <= free * 9 / 10), "{held:?} of {}", free * 9 / 10);
    assert!(String::from_utf8(shop.read("out/run.toml")).unwrap().contains("checkpointing = \"on\""));
}

#[test]
fn a_diverging_run_stops_with_its_own_code() {
    let shop = Workshop::new();
    let ran = shop.retune("train --model model --data train.jsonl --lr 1e4 --max-grad-norm 0 --epochs 200 --on-nan stop --out out");
    // An absurd rate may also merely wander; what must not happen is a success with numbers that aren't.
    if ran.code == 0 {
        let text = String::from_utf8(shop.read("out/metrics.jsonl")).unwrap();
        assert!(events(&text).iter().filter(|e| e["event"] == "step").all(|e| e["loss"].is_number()));
    } else {
        ran.failed(3, &["diverged"]);
    }
}

#[test]
fn preview_marks_what_carries_loss() {
    let shop = Workshop::new();
    let text = shop.retune("preview --model model --data train.jsonl --rows 1").ok().stdout;
    assert!(text.contains("«It is 0, of course.<|im_end|>"), "{text}");
    let lines = shop
        .retune("preview --model model --data train.jsonl --rows 2 --max-length 40 --json")
        .ok()
        .json_lines();
    assert_eq!((lines.len(), lines[0]["tokens"].as_u64()), (3, Some(40)));
    shop.retune("preview --model model --data train.jsonl --draw seen").failed(2, &["is for pictures"]);
}

/// Weights of 16 bits are widened where a method trains them, unless somebody asked for these very bits.
#[test]
fn half_precision_becomes_masters_where_it_is_trained() {
    let shop = Workshop::new();
    shop.retune("quantize model --to bf16 --out half").ok();
    let train = "train --model half --data train.jsonl --steps 2";
    let full = shop.retune(&format!("{train} --method full --out full")).ok();
    assert!(full.stderr.contains("storage = \"f32\": full trains the weights themselves"), "{}", full.stderr);
    assert!(String::from_utf8(shop.read("full/run.toml")).unwrap().contains("storage = \"f32\""));
    shop.retune(&format!("{train} --method full --storage bf16 --out no")).failed(2, &["--storage f32"]);
    let lora = shop.retune(&format!("{train} --method lora --out lora")).ok();
    assert!(!lora.stderr.contains("f32"), "what stays frozen stays small: {}", lora.stderr);
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn merging_and_exporting_give_models_of_the_same_loss() {
    let shop = Workshop::new();
    shop.retune(&format!("{TRAIN} --epochs 2 --out out")).ok();
    let loss = |words: &str| {
        let ran = shop.retune(&format!("eval {words} --data heldout.jsonl --storage f32 --json")).ok();
        ran.json_lines()[0]["loss"].as_f64().unwrap()
    };
    let adapted = loss("--model model --adapter out");
    assert!(
        shop.retune("merge --model model --adapter out --out merged")
            .ok()
            .stdout
            .contains("merged into 14 layers")
    );
    assert!((loss("--model merged") - adapted).abs() < 1e-5);
    // The export of a base takes the base's adapters; a merged model is another base.
    shop.retune("export --model model --out copy").ok();
    assert!((loss("--model copy --adapter out") - adapted).abs() < 1e-5);
    shop.retune("eval --model merged --adapter out --data heldout.jsonl")
        .failed(65, &["was made for", "--any-base"]);
    shop.retune("eval --model merged --adapter out --data heldout.jsonl --any-base").ok();
    shop.retune("merge --model model --out x").failed(2, &["--adapter"]);
    shop.retune("merge --model model --adapter out --out merged").failed(65, &["merged"]);
    shop.retune("merge --model model --adapter out --out merged --overwrite --dtype bf16").ok();
}

#[test]
fn full_fine_tuning_writes_a_whole_model() {
    let shop = Workshop::new();
    let ran = shop.retune(&format!("{TRAIN} --method full --lr 3e-3 --out out")).ok();
    assert!(ran.stdout.contains("retune generate --model out"), "{}", ran.stdout);
    let eval = |model: &str| {
        let words = format!("eval --model {model} --data heldout.jsonl --storage f32 --json");
        shop.retune(&words).ok().json_lines()[0]["loss"].as_f64().unwrap()
    };
    assert!(eval("out") < eval("model") - 1.0);
    shop.retune("train --model model --data train.jsonl --method full --storage bf16 --out x")
        .failed(2, &["--storage f32"]);
}
