//! Labels as a user learns and tells them, on a tiny BERT with a tokenizer of words and letters.

mod common;

use common::{Ran, data, ran};
use retune_formats::{TensorInfo, TensorSource, safetensors};
use serde_json::{Value, json};
use std::path::PathBuf;

const GOOD: [&str; 4] = ["good", "fine", "great", "nice"];
const BAD: [&str; 4] = ["bad", "poor", "sad", "ugly"];
const THINGS: [&str; 6] = ["day", "film", "song", "meal", "room", "book"];

struct Shop {
    dir: tempfile::TempDir,
}

impl Shop {
    fn new() -> Shop {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("bert");
        std::fs::create_dir(&model).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(data("parity/bert_base").join(name), model.join(name)).unwrap();
        }
        std::fs::write(model.join("tokenizer.json"), tokenizer()).unwrap();
        let shop = Shop { dir };
        shop.write("train.jsonl", &rows(0..64));
        shop.write("heldout.jsonl", &rows(64..96));
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn retune(&self, words: &str) -> Ran {
        ran(common::program().args(words.split_whitespace()).current_dir(self.dir.path()).output().unwrap())
    }

    fn train(&self, words: &str) -> Ran {
        self.retune(&format!("train --model bert --storage f32 --batch 8 {words}"))
    }

    /// `predict` of a file, one object a row.
    fn predict(&self, words: &str) -> Vec<Value> {
        self.retune(&format!("predict --model bert --storage f32 --json {words}")).ok().json_lines()
    }
}

fn rows(numbers: std::ops::Range<usize>) -> String {
    let row = |i: usize| {
        let word = if i.is_multiple_of(2) { GOOD[i / 2 % 4] } else { BAD[i / 2 % 4] };
        let text = format!("a {word} {} and a {}", THINGS[i / 8 % 6], THINGS[i / 3 % 6]);
        json!({"text": text, "label": if i.is_multiple_of(2) { "positive" } else { "negative" }}).to_string()
            + "\n"
    };
    numbers.map(row).collect()
}

/// BERT's WordPiece over a few words and all letters, with padding and truncation on, as sentence encoders have them.
fn tokenizer() -> String {
    let mut tokens: Vec<String> =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "and"].map(String::from).into();
    tokens.extend(GOOD.iter().chain(&BAD).chain(&THINGS).map(|word| word.to_string()));
    tokens.extend(('b'..='z').map(|c| c.to_string()));
    tokens.extend(('a'..='z').map(|c| format!("##{c}")));
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added: Vec<Value> = tokens[..5]
        .iter()
        .enumerate()
        .map(|(id, name)| {
            json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab},
    })
    .to_string()
}

fn evals(text: &str) -> Vec<Value> {
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|event| event["event"] == "eval").collect()
}

#[test]
fn labels_and_guessed_words_are_previewed() {
    let shop = Shop::new();
    let lines = shop.retune("preview --model bert --data train.jsonl --rows 1 --json").ok().json_lines();
    assert_eq!((&lines[0]["label"], &lines[0]["targets"]), (&json!("positive"), &json!(0)));
    assert!(lines[0]["pieces"][0]["text"].as_str().unwrap().starts_with("[CLS]"), "{}", lines[0]);
    let counts = &lines[1]["counts"];
    assert!(counts[0] == counts[1] && lines[1]["labels"] == json!(["negative", "positive"]), "{}", lines[1]);
    let shown = shop.retune("preview --model bert --data train.jsonl --rows 1").ok().stdout;
    assert!(shown.contains("«positive»"), "{shown}");
    let guessed = shop.retune("preview --model bert --data train.jsonl --task masked-lm --rows 1 --json");
    assert!(guessed.ok().json_lines()[0]["targets"].as_u64().unwrap() > 0);
}

#[test]
fn labels_are_learned_measured_and_told() {
    let shop = Shop::new();
    let ran = shop
        .train("--data train.jsonl --eval-data heldout.jsonl --method full --epochs 4 --lr 2e-3 --out out")
        .ok();
    assert!(ran.stdout.contains("accuracy") && ran.stdout.contains("predict --model out"), "{}", ran.stdout);
    let task: Value = serde_json::from_str(&shop.read("out/task.json")).unwrap();
    assert_eq!(task["labels"], json!(["negative", "positive"]));
    let config: Value = serde_json::from_str(&shop.read("out/config.json")).unwrap();
    assert_eq!(config["id2label"]["1"], "positive");
    let evals = evals(&shop.read("out/metrics.jsonl"));
    let best = evals[1..].iter().map(|e| e["metrics"]["accuracy"].as_f64().unwrap()).fold(0.0, f64::max);
    assert!(best > 0.95, "{evals:?}");
    // The folder holds the best weights, and says by itself what they are for.
    let measured = &shop.retune("eval --model out --data heldout.jsonl --json").ok().json_lines()[0];
    assert!((measured["accuracy"].as_f64().unwrap() - best).abs() < 1e-9);
    assert_eq!(measured["confusion"].as_array().unwrap().len(), 2);
    assert!(shop.retune("eval --model out --data heldout.jsonl").ok().stdout.contains("rows: true"));
    let told = shop.retune("predict --model out --data heldout.jsonl --json").ok().json_lines();
    let rows = shop.read("heldout.jsonl");
    let right = told
        .iter()
        .zip(rows.lines())
        .filter(|(told, row)| serde_json::from_str::<Value>(row).unwrap()["label"] == told["label"]);
    assert!((right.count() as f64 / told.len() as f64 - best).abs() < 1e-9);
    let sum: f64 = told[0]["scores"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5);
    // A label that was never learned is named.
    shop.write("odd.jsonl", "{\"text\": \"a day\", \"label\": \"positiv\"}\n");
    shop.retune("eval --model out --data odd.jsonl").failed(65, &["odd.jsonl:1", "positiv", "\"positive\""]);
    // An adapter of nothing but the head, on the mean of the rows.
    shop.train("--data train.jsonl --method head --pooling mean --epochs 1 --out head").ok();
    let task: Value = serde_json::from_str(&shop.read("head/task.json")).unwrap();
    assert_eq!(task["pooling"], "mean");
    assert!(shop.read("head/metrics.jsonl").contains("\"accuracy\""), "a tenth of the rows is held out");
}

#[test]
fn adapters_share_batches_and_answer_as_if_alone() {
    let shop = Shop::new();
    for (name, seed) in [("one", 1), ("two", 2)] {
        shop.train(&format!(
            "--data train.jsonl --method lora --epochs 1 --lr 5e-3 --seed {seed} --out {name}"
        ))
        .ok();
    }
    let texts = ["a good day", "a bad film and a room", "song", "a sad and ugly book", "nice"];
    let file = |adapter: Option<&str>| -> String {
        let pick = |i: usize| adapter.unwrap_or(["one", "two", "base"][i % 3]).to_owned();
        let row = |(i, text): (usize, &&str)| json!({"text": text, "adapter": pick(i)}).to_string() + "\n";
        texts.iter().enumerate().map(row).collect()
    };
    shop.write("mixed.jsonl", &file(None));
    let mixed = shop.predict("--adapter one --adapter two --data mixed.jsonl");
    for (at, adapter) in ["one", "two", "base"].into_iter().enumerate() {
        shop.write("alone.jsonl", &file(Some(adapter)));
        let flag = if adapter == "base" { String::new() } else { format!("--adapter {adapter}") };
        let alone = shop.predict(&format!("{flag} --data alone.jsonl"));
        for i in (at..texts.len()).step_by(3) {
            assert_eq!(mixed[i]["label"], alone[i]["label"]);
            for (label, p) in alone[i]["scores"].as_object().unwrap() {
                let other = mixed[i]["scores"][label].as_f64().unwrap();
                assert!((other - p.as_f64().unwrap()).abs() < 1e-6, "{adapter} {i} {label}");
            }
        }
    }
    // Measured one after the other over one base, each is as it would be alone.
    let both = shop
        .retune("eval --model bert --adapter one --adapter two --data heldout.jsonl --json")
        .ok()
        .json_lines();
    for (measured, name) in both.iter().zip(["one", "two"]) {
        let alone =
            shop.retune(&format!("eval --model bert --adapter {name} --data heldout.jsonl --json")).ok();
        assert_eq!(measured["adapter"], name);
        assert_eq!(measured["loss"], alone.json_lines()[0]["loss"], "{name}");
    }
    assert_eq!(both.len(), 2);
    // The base has three labels of its own.
    assert_eq!(mixed[2]["scores"].as_object().unwrap().len(), 3);
    shop.write("odd.jsonl", "{\"text\": \"a\", \"adapter\": \"tow\"}\n");
    shop.retune("predict --model bert --adapter one --adapter two --data odd.jsonl")
        .failed(65, &["odd.jsonl:1", "tow", "\"two\""]);
}

/// The run file that the program brings along trains as it stands, but for the names in it.
#[test]
fn a_recipe_is_a_run_file() {
    let shop = Shop::new();
    let ran = shop.retune("init --recipe classify --out run.toml").ok();
    assert!(ran.stdout.contains("retune train run.toml"), "{}", ran.stdout);
    assert!(shop.read("run.toml").contains("retune train run.toml"), "its own name stands in its comments");
    shop.retune("init --recipe classify --out run.toml").failed(65, &["there already"]);
    shop.retune("init --recipe clasify --out x").failed(2, &["did you mean \"classify\"?"]);
    shop.retune("init --recipe chat --config bert --out x").failed(2, &["--config"]);
    shop.retune("train run.toml --model bert --storage f32 --epochs 1 --out labels").ok();
    assert!(shop.path("labels/adapter_model.safetensors").is_file());
}

/// What overwrites the base in memory cannot be used beside others, which need the base as it is.
#[test]
fn what_changes_the_base_is_refused_beside_others() {
    let shop = Shop::new();
    let train = |words: &str| shop.train(&format!("--data train.jsonl --epochs 1 {words}")).ok();
    train("--method lora --out plain");
    train("--method lora --modules-to-save LayerNorm --out norms");
    train("--method bitfit --out biases");
    let row = |adapter: &str| json!({"text": "a good day", "adapter": adapter}).to_string() + "\n";
    for (odd, why) in [("norms", "the base itself"), ("biases", "LayerNorm")] {
        shop.write("mixed.jsonl", &(row("plain") + &row(odd)));
        let both =
            format!("predict --model bert --storage f32 --adapter plain --adapter {odd} --data mixed.jsonl");
        shop.retune(&both).failed(65, &[odd, why]);
        shop.write("alone.jsonl", &row(odd));
        assert_eq!(shop.predict(&format!("--adapter {odd} --data alone.jsonl")).len(), 1);
    }
}

/// A masked-language-model head learns which words follow which; what is measured while training is measured again.
#[test]
fn masked_words_are_guessed() {
    let shop = Shop::new();
    let model = shop.path("mlm");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(data("parity/bert_mlm_full").join(name), model.join(name)).unwrap();
    }
    std::fs::write(model.join("tokenizer.json"), tokenizer()).unwrap();
    let texts = |numbers: std::ops::Range<usize>| -> String {
        let text = |i: usize| format!("a {} {} and a {}", GOOD[i % 4], THINGS[i % 6], THINGS[i % 6]);
        numbers.map(|i| json!({"text": text(i)}).to_string() + "\n").collect()
    };
    shop.write("texts.jsonl", &texts(0..48));
    shop.write("more.jsonl", &texts(48..64));
    let train = |words: &str| {
        let fixed = "train --model mlm --storage f32 --batch 8 --task masked-lm --data texts.jsonl --eval-data more.jsonl";
        shop.retune(&format!("{fixed} {words}")).ok()
    };
    train("--method full --epochs 6 --lr 5e-3 --out full");
    train("--method lora --epochs 2 --lr 1e-2 --out lora");
    for (out, flags) in [("full", "--model full"), ("lora", "--model mlm --adapter lora")] {
        let losses: Vec<f64> = evals(&shop.read(&format!("{out}/metrics.jsonl")))
            .iter()
            .map(|e| e["loss"].as_f64().unwrap())
            .collect();
        let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(best < losses[0] - 0.3, "{out}: {losses:?}");
        let task: Value = serde_json::from_str(&shop.read(&format!("{out}/task.json"))).unwrap();
        assert_eq!(task["task"], "masked-lm");
        let measured =
            &shop.retune(&format!("eval {flags} --data more.jsonl --storage f32 --json")).ok().json_lines()
                [0];
        let loss = measured["loss"].as_f64().unwrap();
        assert!(loss < losses[0] - 0.3, "{out}: {loss} of {losses:?}");
    }
    // Without a task and with labels there it is a classifier that is learned; without a head there is nothing to guess with.
    shop.train("--task masked-lm --data texts.jsonl --method full --out x").failed(65, &["head"]);
}

/// Entries that the data chooses are trained in every layer: the frozen part's rows are not kept from before the choice.
#[test]
fn entries_chosen_by_the_data_are_trained() {
    let shop = Shop::new();
    for selection in ["random", "magnitude", "fisher"] {
        let flags = format!(
            "--method sparse --selection {selection} --share 0.05 --epochs 2 --lr 5e-3 --out {selection}"
        );
        shop.train(&format!("--data train.jsonl {flags}")).ok();
        let folder = shop.path(selection);
        let file = ["delta.safetensors", "adapter_model.safetensors"].map(|name| folder.join(name));
        let file = file.iter().find(|path| path.is_file()).expect("what was trained");
        let file = safetensors::File::open(file).unwrap();
        let trained = |part: &str| {
            let of = |info: &&TensorInfo| {
                let values = info.name.ends_with(".values") || info.name.ends_with("shira_weight");
                values && info.name.contains(part)
            };
            file.tensors()
                .iter()
                .filter(of)
                .any(|t| file.read_f32(&t.name).unwrap().iter().any(|x| *x != 0.0))
        };
        assert!(trained("layer.0.") && trained("layer.1."), "{selection}");
    }
}

#[test]
fn words_are_tagged_and_texts_embedded() {
    let shop = Shop::new();
    let tagged = |i: usize| {
        let (word, thing) = (GOOD[i % 4], THINGS[i % 6]);
        json!({"tokens": ["a", word, thing], "tags": ["O", "O", "B-THING"]}).to_string() + "\n"
    };
    shop.write("tags.jsonl", &(0..48).map(tagged).collect::<String>());
    shop.train("--data tags.jsonl --method full --epochs 8 --lr 2e-3 --out tags").ok();
    let told = &shop.retune("predict --model tags --text xx --json --data tags.jsonl");
    assert_eq!(told.code, 2, "--text and --data exclude one another");
    shop.write("text.txt", "A nice film\n");
    let told = &shop.retune("predict --model tags --data text.txt --json").ok().json_lines()[0];
    assert_eq!(told["spans"][0]["text"], "film", "{told}");
    assert_eq!((&told["spans"][0]["label"], &told["spans"][0]["start"]), (&json!("THING"), &json!(7)));
    // Vectors of length 1, the same for the same text, whatever stands beside it.
    shop.write("texts.txt", "a good day\n\na room and a very long book\n\na good day\n");
    let vectors = shop.predict("--task embed --data texts.txt");
    let vector = |i: usize| -> Vec<f64> {
        vectors[i]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    assert!((vector(0).iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    assert!(vector(0) == vector(2) && vector(0) != vector(1) && vector(0).len() == 64);
    shop.retune("predict --model bert --task embed --data texts.txt --out v.safetensors").ok();
    assert!(shop.path("v.safetensors").is_file());
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let shop = Shop::new();
    shop.train("--data train.jsonl --metric spearman").failed(2, &["spearman", "accuracy"]);
    shop.train("--data train.jsonl --metric acuracy").failed(2, &["accuracy"]);
    shop.train("--data train.jsonl --class-weights balnced").failed(65, &["balnced", "balanced"]);
    shop.train("--data train.jsonl --eval-share 0 --patience 2")
        .failed(2, &["early_stopping_patience", "eval_data"]);
    shop.train("--data train.jsonl --labels negative,positve --out x")
        .failed(65, &["train.jsonl:1", "positve"]);
    shop.retune("predict --model bert").failed(2, &["--text"]);
}

#[test]
fn a_sweep_over_methods_and_an_old_task_of_the_same_labels() {
    let shop = Shop::new();
    let words =
        "--model bert --storage f32 --batch 8 --data train.jsonl --eval-data heldout.jsonl --epochs 2";
    let over = "--over method=lora,head,full --over lr=1e-2 --no-early-stop --json --out swept";
    let lines = shop.retune(&format!("sweep {words} {over}")).ok().json_lines();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines.iter().take(3).all(|line| line["state"] == "finished"), "{lines:?}");
    let end = &lines[3];
    assert_eq!(end["metric"], "accuracy");
    assert!(end["command"].as_str().unwrap().starts_with("predict --model"), "{end}");
    // A new classifier knows nothing that it could forget; one that was trained does.
    let refused = shop.train("--data train.jsonl --retain-data heldout.jsonl --out out");
    refused.failed(65, &["a new one, which knows no old task"]);
    let whole = format!(
        "train {} --retain-data heldout.jsonl --json --out next",
        words.replace("bert", "swept/full_lr-1e-2")
    );
    let lines = shop.retune(&whole).ok().json_lines();
    let told = lines.iter().find(|line| line["event"] == "retained").unwrap();
    assert_eq!((&told["metric"], &told["rows"]), (&json!("accuracy"), &json!(32)), "{told}");
    assert!(told["before"]["on"].as_f64().unwrap() > 0.0, "{told}");
}
