//! Clips and what is said in them, as a user learns, measures and transcribes them, on the tiny random Whisper of the reference.

mod common;

use std::path::PathBuf;

use common::{Ran, data, ran};
use serde_json::{Value, json};

/// A folder with the model (windows of 0.48 s, six languages), the same as one that knows English only, and sounds.
struct Shop {
    dir: tempfile::TempDir,
}

impl Shop {
    fn new() -> Shop {
        let shop = Shop { dir: tempfile::tempdir().unwrap() };
        for (name, multilingual) in [("model", true), ("english", false)] {
            let to = shop.path(name);
            std::fs::create_dir(&to).unwrap();
            for file in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
                std::fs::copy(data("whisper_multilingual").join(file), to.join(file)).unwrap();
            }
            let path = to.join("generation_config.json");
            let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            config["is_multilingual"] = multilingual.into();
            std::fs::write(path, config.to_string()).unwrap();
        }
        for i in 0..8u32 {
            shop.tone(&format!("{i}.wav"), 0.1 + 0.05 * f64::from(i), 200.0 + 90.0 * f64::from(i));
        }
        let row = |i: usize| json!({"audio": format!("{i}.wav"), "text": WORDS[i], "language": "fr"});
        shop.rows("train.jsonl", (0..5).map(row));
        shop.rows("held.jsonl", (5..8).map(row));
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn rows(&self, name: &str, rows: impl Iterator<Item = Value>) {
        self.write(name, rows.map(|row| format!("{row}\n")).collect::<String>());
    }

    /// 8-bit mono at 4 kHz.
    fn wav(&self, name: &str, samples: impl Iterator<Item = u8>) {
        let samples: Vec<u8> = samples.collect();
        let mut out = b"RIFF".to_vec();
        out.extend((36 + samples.len() as u32).to_le_bytes());
        out.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\xa0\x0f\0\0\xa0\x0f\0\0\x01\0\x08\0data");
        out.extend((samples.len() as u32).to_le_bytes());
        out.extend(samples);
        self.write(name, out);
    }

    fn tone(&self, name: &str, seconds: f64, hertz: f64) {
        let value = |i: usize| (128.0 + 90.0 * (i as f64 * hertz * 6.3 / 4_000.0).sin()) as u8;
        self.wav(name, (0..(seconds * 4_000.0) as usize).map(value));
    }

    fn silence(&self, name: &str, seconds: usize) {
        self.wav(name, (0..seconds * 4_000).map(|_| 128));
    }

    fn retune(&self, words: &str) -> Ran {
        ran(common::program().args(words.split_whitespace()).current_dir(self.dir.path()).output().unwrap())
    }

    /// Trains a little; the lines of the run.
    fn train(&self, flags: &str, out: &str) -> Vec<Value> {
        let words = format!(
            "train --model model --data train.jsonl --eval-data held.jsonl --out {out} --method lora --rank 4 --targets q_proj,v_proj \
             --lr 0.02 --steps 4 --eval-every 2 --batch 2 --threads 1 --json {flags}"
        );
        self.retune(&words).ok().json_lines()
    }
}

const WORDS: [&str; 8] = ["un", "deux", "trois fois", "quatre", "cinq", "six", "sept", "huit et neuf"];

/// The error rates of the evaluation whose weights are the result.
fn best(lines: &[Value]) -> (Value, Value) {
    let best = lines.iter().rfind(|line| line["event"] == "eval" && line["best"] == true).unwrap();
    (best["metrics"]["wer"].clone(), best["metrics"]["cer"].clone())
}

#[test]
fn error_rates_are_the_same_wherever_they_are_measured() {
    let shop = Shop::new();
    for (flags, out) in
        [("", "whole"), ("--audio-window clip", "cut"), ("--normalizer none --metric cer", "plain")]
    {
        let lines = shop.train(flags, out);
        let rates = best(&lines);
        assert!(rates.0.as_f64().unwrap() > 0.0, "{rates:?}");
        let same = if out == "plain" { "--normalizer none" } else { "" };
        let eval =
            shop.retune(&format!("eval --model model --adapter {out} --data held.jsonl --json {same}")).ok();
        let eval = eval.json_lines().remove(0);
        assert_eq!((eval["wer"].clone(), eval["cer"].clone()), rates, "{out}: eval");
        assert_eq!(eval["transcribed"].as_array().unwrap().len(), 3);
        let told = shop
            .retune(&format!("transcribe --model model --adapter {out} --data held.jsonl --json {same}"))
            .ok();
        let last = told.json_lines().pop().unwrap();
        assert_eq!((last["wer"].clone(), last["cer"].clone()), rates, "{out}: transcribe");
        let report = String::from_utf8(std::fs::read(shop.path(out).join("report.html")).unwrap()).unwrap();
        let name = if out == "plain" { "Character error rate by step" } else { "Word error rate by step" };
        for part in ["The worst clips", "before: WER", name] {
            assert!(report.contains(part), "{out}: {part}");
        }
    }
    let record = |out: &str| std::fs::read_to_string(shop.path(out).join("task.json")).unwrap();
    assert!(
        record("cut").contains("\"audio_window\": \"clip\"") && !record("whole").contains("audio_window")
    );
    let note = "not what Whisper was trained on";
    assert!(
        shop.retune("transcribe --model model --adapter cut --language fr 5.wav").ok().stderr.contains(note)
    );
    let exact =
        shop.retune("transcribe --model model --adapter cut --language fr 5.wav --audio-window 30s").ok();
    assert!(!exact.stderr.contains(note));
}

#[test]
fn clips_are_previewed_with_what_carries_loss() {
    let shop = Shop::new();
    let lines = shop.retune("preview --model model --data train.jsonl --rows 2 --json").ok().json_lines();
    let [first, _, all] = &lines[..] else { panic!("{lines:?}") };
    let [prompt, text] = &first["pieces"].as_array().unwrap()[..] else { panic!("{first}") };
    assert!(
        prompt["text"].as_str().unwrap().starts_with("<|startoftranscript|><|fr|>")
            && prompt["target"] == false
    );
    assert!(
        text["text"].as_str().unwrap().trim_start().starts_with("un<|endoftext|>") && text["target"] == true
    );
    assert!((first["seconds"].as_f64().unwrap() - 0.1).abs() < 0.01, "{first}");
    assert_eq!((&all["examples"], &all["languages"]), (&json!(5), &json!({"fr": 5})));
    let shown = shop.retune("preview --model model --data train.jsonl --rows 1").ok().stdout;
    assert!(shown.contains("0.1 s of") && shown.contains("5 clips"), "{shown}");
}

#[test]
fn how_much_is_transcribed_is_a_setting() {
    let shop = Shop::new();
    let lines = shop.train("--wer-rows 0", "loss");
    let eval = lines.iter().find(|line| line["event"] == "eval").unwrap();
    assert!(eval.get("metrics").is_none() && eval["loss"].is_number(), "{eval}");
    let lines = shop.train("--wer-rows 1 --patience 1", "one");
    assert!(best(&lines).0.is_number());
    let words = "train --model model --data train.jsonl --eval-data held.jsonl --out x --steps 1";
    shop.retune(&format!("{words} --wer-rows 0 --metric wer")).failed(2, &["wer_rows is 0"]);
    shop.retune(&format!("{words} --metric accuracy")).failed(2, &["is not for speech", "wer, cer, loss"]);
}

#[test]
fn what_is_wrong_with_clips_is_told_of_all_rows_at_once() {
    let shop = Shop::new();
    shop.silence("silent.wav", 1);
    shop.silence("hour.wav", 3_600);
    shop.tone("long.wav", 31.0, 300.0);
    shop.write("empty.wav", "");
    shop.write("broken.wav", "RIFFxxxxWAVEnothing of this is a sound");
    let cut = std::fs::read(shop.path("7.wav")).unwrap();
    shop.write("cut.wav", &cut[..cut.len() / 2]);
    let row = |audio: &str, text: &str| json!({"audio": audio, "text": text, "language": "fr"});
    let good = row("0.wav", "un");
    let sounds = ["hour.wav", "long.wav", "empty.wav", "broken.wav"].map(|name| row(name, "deux"));
    shop.rows("sounds.jsonl", std::iter::once(good.clone()).chain(sounds.iter().cloned()));
    let of_sounds = [
        "sounds.jsonl:2: hour.wav is 3600.0 s long",
        "sounds.jsonl:3: long.wav is 31.0 s long",
        "skip_long = true",
        "sounds.jsonl:4: ",
        "sounds.jsonl:5: ",
    ];
    let rows = [
        good.clone(),
        row("missing.wav", "huit"),
        row("1.wav", ""),
        row("0.wav", "une autre chose"),
        json!({"audio": "2.wav", "text": "dix", "language": "klingon"}),
    ];
    shop.rows("rows.jsonl", rows.into_iter());
    let of_rows = [
        "rows.jsonl:2: missing.wav: there is no such file",
        "rows.jsonl:3: the text of 1.wav is empty",
        "rows.jsonl:4: the same sound has another text in rows.jsonl:1",
        "rows.jsonl:5: `klingon` is no language",
    ];
    for command in ["train --out x", "eval", "transcribe"] {
        shop.retune(&format!("{command} --model model --data sounds.jsonl")).failed(65, &of_sounds);
        shop.retune(&format!("{command} --model model --data rows.jsonl")).failed(65, &of_rows);
    }
    assert!(!shop.path("x").exists());
    // What only the sounds themselves tell: silence, and texts that are too long for the decoder.
    shop.rows("quiet.jsonl", [good.clone(), row("silent.wav", "deux"), row("cut.wav", "trois")].into_iter());
    let told = ["quiet.jsonl:2: ", "silent for all of its 1.0 s", "quiet.jsonl:3: "];
    for command in ["train --out x", "eval", "transcribe"] {
        shop.retune(&format!("{command} --model model --data quiet.jsonl")).failed(65, &told);
    }
    shop.rows("wordy.jsonl", [good.clone(), row("3.wav", &"mot ".repeat(20))].into_iter());
    let told = ["wordy.jsonl:2: ", "tokens are more than the 48"];
    shop.retune("train --out x --model model --data wordy.jsonl").failed(65, &told);
    // Rows that are too long can be left out; nothing else.
    shop.rows("longer.jsonl", [good, sounds[0].clone(), sounds[1].clone()].into_iter());
    for command in ["train --out short --steps 1 --threads 1", "eval", "transcribe"] {
        let words = format!("{command} --model model --data longer.jsonl");
        shop.retune(&words).failed(65, &["longer.jsonl:2", "longer.jsonl:3"]);
        let ran = shop.retune(&format!("{words} --skip-long")).ok();
        let told = "2 rows are longer than 30 s and left out (skip_long): longer.jsonl:2, longer.jsonl:3";
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
    shop.retune("transcribe --model model --data sounds.jsonl --skip-long").failed(65, &["sounds.jsonl:4"]);
    // Files by themselves: each that cannot be read is told, the others go on.
    let files = "0.wav empty.wav broken.wav hour.wav silent.wav";
    let ran = shop.retune(&format!("transcribe --model model --language fr --json {files}"));
    let ran = ran.failed(65, &["empty.wav", "broken.wav"]);
    let lines = ran.json_lines();
    assert!(lines[3].to_string().contains("2 files could not be transcribed"), "{lines:?}");
    assert_eq!((lines[1]["seconds"].clone(), lines[1]["text"].clone()), (json!(3600.0), json!("")));
}

#[test]
fn languages_are_heard_named_or_refused() {
    let shop = Shop::new();
    let line = |words: &str| shop.retune(&format!("transcribe --json {words}")).ok().json_lines().remove(0);
    let heard = line("--model model 5.wav");
    let language = heard["language"].as_str().unwrap();
    assert!(["en", "zh", "de", "es", "fr", "ja"].contains(&language), "{heard}");
    assert_eq!(line(&format!("--model model 5.wav --language {language}"))["text"], heard["text"]);
    assert_eq!(line("--model model 5.wav --language French --task translate")["language"], "fr");
    assert_eq!(line("--model english 5.wav")["language"], "en");
    let refused =
        |words: &str, told: &[&str]| drop(shop.retune(&format!("transcribe {words}")).failed(65, told));
    refused("--model english 5.wav --language fr", &["knows English only", "french", "multilingual"]);
    refused("--model english 5.wav --task translate", &["knows English only", "translate", "multilingual"]);
    refused("--model model 5.wav --language Swahili", &["no token for the language swahili"]);
    shop.retune("transcribe --model model 5.wav --language elvish").failed(2, &["elvish"]);
    // Rows that name no language: a multilingual model has to be told when it learns.
    shop.rows("mute.jsonl", (0..2).map(|i| json!({"audio": format!("{i}.wav"), "text": WORDS[i]})));
    let train = "train --model model --data mute.jsonl --out x --steps 1 --threads 1";
    shop.retune(train).failed(65, &["mute.jsonl:1", "say which one is spoken", "language = "]);
    shop.retune(&format!("{train} --language French")).ok();
    shop.retune(&format!("{train}2 --language elvish")).failed(2, &["elvish"]);
    let english = "train --model english --data train.jsonl --out x --steps 1";
    shop.retune(english).failed(65, &["train.jsonl:1", "knows English only", "french"]);
}
