//! Runs the program as a user would.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::{Command, Output};

/// What a run of the program gave.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The lines of stdout, each parsed as JSON.
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    pub fn ok(self) -> Ran {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// Ended with this code, and stderr has all of these texts.
    pub fn failed(self, code: i32, texts: &[&str]) -> Ran {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in:\n{}", self.stderr);
        }
        self
    }
}

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retune"));
    command.env("NO_COLOR", "1").env_remove("RUST_BACKTRACE");
    command
}

pub fn retune<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Ran {
    ran(program().args(arguments).output().unwrap())
}

pub fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let ran = Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    };
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    ran
}

/// A file of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

/// A folder with a complete tiny model: the reference's Llama with 256 tokens, given a tokenizer of single bytes.
pub struct Workshop {
    pub dir: tempfile::TempDir,
}

impl Workshop {
    pub fn new() -> Workshop {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(data("parity/llama_base_full").join(name), model.join(name)).unwrap();
        }
        std::fs::write(model.join("tokenizer.json"), byte_tokenizer()).unwrap();
        let config = serde_json::json!({"eos_token": "<|im_end|>", "chat_template":
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"});
        std::fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
        let workshop = Workshop { dir };
        workshop.write("train.jsonl", &rows(0..24));
        workshop.write("heldout.jsonl", &rows(24..30));
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Runs the program in this folder; words are split at spaces.
    pub fn retune(&self, words: &str) -> Ran {
        ran(self.command(words).output().unwrap())
    }

    pub fn command(&self, words: &str) -> Command {
        let mut command = program();
        command.args(words.split_whitespace()).current_dir(self.dir.path());
        command
    }
}

fn rows(numbers: std::ops::Range<usize>) -> String {
    let row = |i: usize| {
        serde_json::json!({"messages": [
            {"role": "user", "content": format!("Which number is {i}?")},
            {"role": "assistant", "content": format!("It is {i}, of course.")},
        ]})
    };
    numbers.map(|i| row(i).to_string() + "\n").collect()
}

/// GPT-2's byte alphabet without merges; the first three control bytes give their places to special tokens.
fn byte_tokenizer() -> String {
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut vocab = serde_json::Map::new();
    let mut next = 256;
    for byte in 0..=255u8 {
        let letter = if printable(byte) { u32::from(byte) } else { next };
        next += u32::from(!printable(byte));
        if usize::from(byte) >= specials.len() {
            vocab.insert(char::from_u32(letter).unwrap().to_string(), byte.into());
        }
    }
    for (id, name) in specials.iter().enumerate() {
        vocab.insert(name.to_string(), id.into());
    }
    let added: Vec<_> = specials
        .iter()
        .enumerate()
        .map(|(id, name)| {
            serde_json::json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
    .to_string()
}
