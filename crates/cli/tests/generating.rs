//! Generation as a user does it, on a tiny model that was trained on one answer.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{Workshop, ran};

const GENERATE: &str = "generate --model model --storage f32";

/// A workshop whose adapter `out` has learned to say "Hello there." to everything.
fn taught() -> Workshop {
    let shop = Workshop::new();
    let row = |i: usize| format!("{{\"question\": \"Say hello {i}\", \"answer\": \"Hello there.\"}}\n");
    shop.write("hello.jsonl", &(0..8).map(row).collect::<String>());
    shop.retune("train --model model --data hello.jsonl --storage f32 --epochs 150 --lr 2e-2 --out out").ok();
    shop
}

#[test]
fn an_adapter_changes_the_answer_and_the_text_streams() {
    let shop = taught();
    let answer = |words: &str| {
        let mut command = shop.command(&format!("{GENERATE} {words} --chat --max-tokens 20 --json"));
        ran(command.args(["--prompt", "Say hello 3"]).output().unwrap()).ok().json_lines()
    };
    let lines = answer("--adapter out");
    let done = lines.last().unwrap();
    assert_eq!((done["text"].as_str(), done["finish"].as_str()), (Some("Hello there."), Some("end")));
    let streamed: String =
        lines.iter().filter(|l| l["event"] == "text").map(|l| l["text"].as_str().unwrap()).collect();
    assert_eq!(streamed, "Hello there.");
    assert!(lines.len() > 5, "it comes in pieces");
    assert_ne!(answer("").last().unwrap()["text"], "Hello there.");
    // Of several adapters the last counts, unless weights are given.
    assert_eq!(answer("--adapter absent-but-unused --adapter out").last().unwrap()["text"], "Hello there.");
    assert_ne!(answer("--adapter out --adapter-weights 0").last().unwrap()["text"], "Hello there.");

    let mut plain = shop.command(&format!("{GENERATE} --adapter out --chat --stop there"));
    assert_eq!(ran(plain.args(["--prompt", "Say hello 3"]).output().unwrap()).ok().stdout, "Hello \n");
    let mut child = shop
        .command(&format!("{GENERATE} --adapter out --chat"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"Say hello 5\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"Hello there.\n");
}

#[test]
fn a_file_of_prompts_is_answered_in_one_batch() {
    let shop = taught();
    let rows = [
        r#"{"messages": [{"role": "user", "content": "Say hello 3"}, {"role": "assistant", "content": "?"}], "adapter": "out"}"#,
        r#"{"prompt": "abc", "adapter": "base"}"#,
        r#"{"prompt": "Once", "adapter": "out", "seed": 5}"#,
        r#"{"prompt": "b", "adapter": "base"}"#,
    ];
    shop.write("prompts.jsonl", &rows.map(|row| format!("{row}\n")).concat());
    let answers = |batch: usize| {
        let words = format!(
            "{GENERATE} --adapter out --data prompts.jsonl --max-tokens 24 --temperature 0.3 --batch-size {batch} --json"
        );
        shop.retune(&words).ok().json_lines()
    };
    let one = answers(1);
    assert_eq!(one[0]["text"], "Hello there.");
    assert_eq!(
        one.iter().map(|l| l["adapter"].as_str().unwrap()).collect::<Vec<_>>(),
        ["out", "base", "out", "base"]
    );
    for batch in [2, 8] {
        assert_eq!(answers(batch), one, "in the order of the file, whatever ends first");
    }
    shop.write("odd.jsonl", "{\"prompt\": \"a\", \"seed\": -1}\n");
    shop.retune(&format!("{GENERATE} --data odd.jsonl")).failed(65, &["odd.jsonl:1", "seed is -1"]);
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let shop = Workshop::new();
    let text = |seed: u32| {
        let words = format!(
            "{GENERATE} --prompt abc --max-tokens 12 --temperature 1.5 --top-p 0.95 --seed {seed} --json"
        );
        shop.retune(&words).ok().json_lines().last().unwrap()["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(1), text(1));
    assert!((2..8).any(|seed| text(seed) != text(1)));
}

#[test]
fn wrong_settings_are_refused() {
    let shop = Workshop::new();
    shop.retune(&format!("{GENERATE} --prompt a --temperature -1")).failed(2, &["temperature"]);
    shop.retune(&format!("{GENERATE} --prompt a --top-p 0")).failed(2, &["top_p"]);
    shop.retune(&format!("{GENERATE} --prompt a --system b")).failed(2, &["--chat"]);
    shop.retune(&format!("{GENERATE} --prompt a --adapter-weights 1")).failed(2, &["--adapter"]);
    shop.retune(&format!("{GENERATE} --prompt a --adapter x --adapter y --adapter-weights 1"))
        .failed(2, &["one for each"]);
    shop.retune(&format!("{GENERATE} --prompt a --weights 0.5")).failed(2, &["--adapter-weights"]);
    shop.retune(&format!("{GENERATE} --prompt a --max-token 3")).failed(2, &["did you mean --max-tokens?"]);
    shop.retune(&format!("{GENERATE} --prompt a --adapter train.jsonl")).failed(65, &["train.jsonl"]);
}
