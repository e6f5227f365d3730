//! Sweeps as a user makes them, on a tiny model, and what is kept of an old task.

mod common;

use common::Workshop;
use serde_json::Value;

const RUN: &str =
    "--model model --data train.jsonl --eval-data heldout.jsonl --storage f32 --epochs 2 --lr 1e-2";

fn record(shop: &Workshop, out: &str) -> Vec<Value> {
    let text = shop.read(&format!("{out}/sweep.json"));
    serde_json::from_slice::<Value>(&text).unwrap()["runs"].as_array().unwrap().clone()
}

fn states(runs: &[Value]) -> Vec<(String, String)> {
    let text = |run: &Value, key: &str| run[key].as_str().unwrap().to_owned();
    runs.iter().map(|run| (text(run, "name"), text(run, "state"))).collect()
}

#[test]
fn the_runs_of_a_sweep_are_those_of_train() {
    let shop = Workshop::new();
    let ran = shop
        .retune(&format!("sweep {RUN} --over last_blocks=1 --over rank=2,4 --no-early-stop --out out"))
        .ok();
    for name in ["partial_last_blocks-1", "lora_rank-2", "lora_rank-4"] {
        for file in ["README.md", "run.toml", "metrics.jsonl", "report.html"] {
            assert!(!shop.read(&format!("out/{name}/{file}")).is_empty(), "{name}/{file}");
        }
    }
    assert!(ran.stdout.contains("best") && ran.stdout.contains("--adapter out/"), "{}", ran.stdout);
    // Neither the runs before nor the shared base leave a trace: the bytes are those of a run of its own.
    shop.retune(&format!("train {RUN} --rank 4 --out alone")).ok();
    let [swept, alone] =
        ["out/lora_rank-4", "alone"].map(|d| shop.read(&format!("{d}/adapter_model.safetensors")));
    assert!(swept == alone);
    let runs = record(&shop, "out");
    assert!(
        runs.iter().all(|run| run["state"] == "finished" && run["value"].as_f64().unwrap() < 5.0),
        "{runs:?}"
    );
    assert!(runs[2]["trainable"].as_u64() > runs[1]["trainable"].as_u64());
    let page = String::from_utf8(shop.read("out/sweep.html")).unwrap();
    assert!(page.matches("<circle").count() >= 6 && page.contains("3 of 3"), "{page}");
}

#[test]
fn a_sweep_goes_on_and_grows() {
    let shop = Workshop::new();
    let words = |over: &str| format!("sweep {RUN} --over {over} --out out");
    shop.retune(&words("rank=2")).ok();
    let log = shop.read("out/rank-2/metrics.jsonl");
    shop.retune(&words("rank=2")).failed(2, &["holds a sweep", "--resume"]);
    shop.retune(&format!("{} --resume --epochs 3", words("rank=2")))
        .failed(2, &["other settings", "- epochs = 2", "+ epochs = 3"]);
    let ran = shop.retune(&format!("{} --resume", words("rank=2,3"))).ok();
    assert!(ran.stderr.contains("finished, kept"), "{}", ran.stderr);
    assert_eq!(shop.read("out/rank-2/metrics.jsonl"), log, "it was made again");
    assert_eq!(record(&shop, "out").len(), 2);
}

#[test]
fn the_hopeless_are_ended_early_and_can_go_on() {
    let shop = Workshop::new();
    let words = format!("sweep {RUN} --epochs 6 --over lr=1e-2,2e-2,1e-7 --out out --json");
    let lines = shop.retune(&words).ok().json_lines();
    let kinds: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["run", "run", "run", "swept"]);
    assert_eq!(lines[2]["state"], "stopped", "{}", lines[2]);
    assert_eq!((lines[2]["step"].as_u64(), lines[2]["steps"].as_u64()), (Some(6), Some(18)), "at a third");
    assert!(lines[2]["note"].as_str().unwrap().contains("the median of 2 finished runs"));
    assert_ne!(lines[3]["best"], "lr-1e-7");
    let lines = shop.retune(&format!("{words} --resume --no-early-stop")).ok().json_lines();
    assert!(lines.iter().take(3).all(|line| line["state"] == "finished"), "{lines:?}");
    let curve = lines[2]["curve"].as_array().unwrap();
    assert_eq!(curve.len(), 6, "evaluations of both parts: {curve:?}");
}

#[test]
fn a_run_that_cannot_be_made_does_not_end_the_sweep() {
    let shop = Workshop::new();
    shop.retune(&format!("sweep {RUN} --over last_blocks=1,99 --out out")).ok();
    let runs = record(&shop, "out");
    let expected =
        [("last_blocks-1", "finished"), ("last_blocks-99", "failed")].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(states(&runs), expected);
    assert!(runs[1]["note"].as_str().unwrap().contains("last_blocks = 99"));
    shop.retune(&format!("sweep {RUN} --over last_blocks=98,99 --out none")).failed(2, &["last_blocks = 98"]);
}

#[test]
fn what_is_swept_is_checked_before_anything_is_loaded() {
    let shop = Workshop::new();
    shop.retune(&format!("sweep {RUN} --over rnak=2 --over lr=0 --out out"))
        .failed(2, &["did you mean \"lora.rank\"", "lr must be a number above 0"]);
    let bare = "--model model --data train.jsonl --storage f32 --epochs 1";
    shop.retune(&format!("sweep {bare} --over rank=2 --out out")).failed(2, &["--eval-data", "--eval-share"]);
    let listed = |words: &str| {
        shop.retune(&format!("sweep {RUN} --over rank=1,2,3,4 --over epochs=1,2 --list {words}")).ok()
    };
    assert_eq!(listed("").stdout.lines().count(), 8);
    let sample = listed("--sample 3 --seed 5").stdout;
    assert_eq!(sample.lines().count(), 3);
    assert_eq!(sample, listed("--sample 3 --seed 5").stdout);
    assert!(!shop.path("out").exists());
}

#[cfg(unix)]
#[test]
fn an_interrupted_sweep_goes_on() {
    use std::io::{BufRead, BufReader};
    let shop = Workshop::new();
    let words = format!("sweep {RUN} --epochs 40 --no-early-stop --over rank=2,3 --json");
    shop.retune(&format!("{words} --out whole")).ok();
    let mut child = shop
        .command(&format!("{words} --out part"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("rank-2"));
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(record(&shop, "part").len(), 1);
    shop.retune(&format!("{words} --out part --resume")).ok();
    for name in ["rank-2", "rank-3"] {
        let [whole, part] =
            ["whole", "part"].map(|out| shop.read(&format!("{out}/{name}/adapter_model.safetensors")));
        assert!(whole == part, "{name}");
    }
}

#[test]
fn what_is_kept_of_an_old_task_is_measured() {
    let shop = Workshop::new();
    shop.write(
        "old.jsonl",
        "{\"text\": \"The old task was something else.\"}\n{\"text\": \"Another old text.\"}\n",
    );
    let words = format!("train {RUN} --retain-data old.jsonl");
    let ran = shop.retune(&format!("{words} --out out")).ok();
    assert!(ran.stdout.contains("the old task's loss went from"), "{}", ran.stdout);
    assert!(ran.stdout.contains("still, bit for bit"), "{}", ran.stdout);
    let report = String::from_utf8(shop.read("out/report.html")).unwrap();
    assert!(report.contains("What was kept of the old task") && report.contains("adapter off"));
    assert!(
        String::from_utf8(shop.read("out/README.md")).unwrap().contains("Forgetting, measured on 2 rows")
    );
    // The number is what eval says.
    let old = "eval --model model --adapter out --data old.jsonl --storage f32 --json";
    let evaluated = shop.retune(old).ok().json_lines()[0]["loss"].as_f64().unwrap();
    let lines = shop.retune(&format!("{words} --json --out again")).ok().json_lines();
    let told = lines.iter().find(|line| line["event"] == "retained").unwrap();
    assert!((told["after"]["on"].as_f64().unwrap() - evaluated).abs() < 1e-5, "{told} {evaluated}");
    assert_eq!((&told["untouched"], &told["before"]["off"]), (&Value::Bool(true), &told["after"]["off"]));
    assert!(told["after"]["on"] != told["before"]["on"]);
    // A base that was trained itself cannot be switched back.
    let ran = shop.retune(&format!("{words} --method full --out full")).ok();
    assert!(ran.stdout.contains("there is no adapter to switch off"), "{}", ran.stdout);
    shop.write("labelled.jsonl", "{\"text\": \"good\", \"label\": \"yes\"}\n");
    shop.retune(&format!("train {RUN} --retain-data labelled.jsonl --out odd"))
        .failed(65, &["not a classifier"]);
}
