//! Turns recordings and what is said in them into rows `{"audio": ..., "text": ...}`; audio is a path beside the rows.
//!
//! - Asterisk's prompts come with a list `name: text` (packed, `;` begins a comment). Prompts that are tones, silence or music,
//!   or whose text has a remark in it, are left out; of a letter's sign, `at [@]`, the words are kept. `all.jsonl` has the
//!   order of the list; `train.jsonl`, `validation.jsonl` and `heldout.jsonl` are about 80, 10 and 10 in 100 of it, by the hash
//!   of the text, so that no text stands in two of them.
//! - The LibriVox clips of pocketsphinx come with lines `<s> text </s> (name)`: five rows, `all.jsonl`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Of an unpacked list of texts.
const TEXTS_BYTES_MAX: u64 = 16 << 20;

struct Row {
    audio: String,
    text: String,
}

/// Reads `folder/texts.txt.gz` and the recordings below `folder/VOICE/`, and writes the rows.
pub fn write_asterisk_rows(folder: &Path) -> Result<()> {
    let path = folder.join("texts.txt.gz");
    let mut list = String::new();
    flate2::read::GzDecoder::new(File::open(&path)?)
        .take(TEXTS_BYTES_MAX)
        .read_to_string(&mut list)
        .with_context(|| format!("{} is damaged", path.display()))?;
    let clips = clips_below(folder)?;
    let rows: Vec<Row> = list
        .lines()
        .filter_map(prompt)
        .filter_map(|(name, text)| Some(Row { audio: clips.get(name)?.clone(), text }))
        .collect();
    if rows.is_empty() {
        bail!("no recording of {} was found", path.display());
    }
    let part = |wanted: &str| rows.iter().filter(|row| part_of(&row.text) == wanted).collect::<Vec<_>>();
    for name in ["train", "validation", "heldout"] {
        write(&folder.join(format!("{name}.jsonl")), part(name))?;
    }
    write(&folder.join("all.jsonl"), rows.iter().collect())
}

/// Reads `folder/transcription` and writes the rows.
pub fn write_librivox_rows(folder: &Path) -> Result<()> {
    let path = folder.join("transcription");
    let list = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rows = Vec::new();
    for line in list.lines().filter(|line| !line.trim().is_empty()) {
        let parts = line.trim().strip_prefix("<s>").and_then(|line| line.split_once("</s>"));
        let name = parts.and_then(|(_, name)| name.trim().strip_prefix('(')?.strip_suffix(')'));
        let (Some((text, _)), Some(name)) = (parts, name) else { bail!("{}: {line:?}", path.display()) };
        let audio = format!("{name}.wav");
        if !folder.join(&audio).is_file() {
            bail!("{} names {audio}, which is not there", path.display());
        }
        rows.push(Row { audio, text: text.trim().into() });
    }
    write(&folder.join("all.jsonl"), rows.iter().collect())
}

/// The recordings in the one folder of a voice: name (with `digits/` and the like) to path.
fn clips_below(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut clips = BTreeMap::new();
    for path in super::files_below(folder)? {
        let path = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        let name = path.strip_suffix(".wav").and_then(|path| path.split_once('/'));
        if let Some((_voice, name)) = name {
            clips.insert(name.to_string(), path.clone());
        }
    }
    Ok(clips)
}

/// Name and text of a line, if it is speech and nothing else.
fn prompt(line: &str) -> Option<(&str, String)> {
    let (name, text) = line.trim().split_once(':').filter(|(name, _)| !name.starts_with(';'))?;
    // `[` or `<` begins a noise; behind words `[` is the sign that they name.
    let text = text.split(['[', '<']).next().unwrap_or_default();
    let is_speech = !text.trim().is_empty() && !text.contains('(');
    let words: Vec<&str> = text.trim_matches(['“', '”', '"', ' ']).split_whitespace().collect();
    is_speech.then(|| (name.trim(), words.join(" ")))
}

fn part_of(text: &str) -> &'static str {
    match Sha256::digest(text.to_lowercase().as_bytes())[0] % 10 {
        0 => "heldout",
        1 => "validation",
        _ => "train",
    }
}

fn write(path: &Path, rows: Vec<&Row>) -> Result<()> {
    let line = |row: &&Row| format!("{{\"audio\": {}, \"text\": {}}}\n", json!(row.audio), json!(row.text));
    let lines: String = rows.iter().map(line).collect();
    fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn prompts_become_rows_and_noises_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let list = "; comment: here\n\nadded: ajouté\nbeep: [a beep]\njoin: <beep>\nletters/at: at [@]\ndigits/1: “un\"\nsilence/1: (1 second)\nno-clip: non\nempty:\nfor: Pour (emphase)\ncolon: deux  points: oui\n";
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        packed.write_all(list.as_bytes()).unwrap();
        fs::write(dir.path().join("texts.txt.gz"), packed.finish().unwrap()).unwrap();
        for name in ["added", "beep", "join", "letters/at", "digits/1", "silence/1", "empty", "for", "colon"]
        {
            let path = dir.path().join(format!("fr_voice/{name}.wav"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"RIFF").unwrap();
        }
        write_asterisk_rows(dir.path()).unwrap();
        let all = lines(&dir.path().join("all.jsonl"));
        let texts: Vec<_> = all.iter().map(|row| row["text"].as_str().unwrap()).collect();
        assert_eq!(texts, ["ajouté", "at", "un", "deux points: oui"]);
        assert_eq!(all[2]["audio"], "fr_voice/digits/1.wav");
        let parts = ["train", "validation", "heldout"];
        let count: usize =
            parts.iter().map(|part| lines(&dir.path().join(format!("{part}.jsonl"))).len()).sum();
        assert_eq!(count, 4);
    }

    #[test]
    fn the_transcription_becomes_rows() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("transcription"), "<s> he was not </s> (a-1)\n").unwrap();
        assert!(
            write_librivox_rows(dir.path()).unwrap_err().to_string().contains("a-1.wav, which is not there")
        );
        fs::write(dir.path().join("a-1.wav"), b"RIFF").unwrap();
        write_librivox_rows(dir.path()).unwrap();
        assert_eq!(lines(&dir.path().join("all.jsonl")), [json!({"audio": "a-1.wav", "text": "he was not"})]);
        fs::write(dir.path().join("transcription"), "he was not\n").unwrap();
        assert!(write_librivox_rows(dir.path()).is_err());
    }
}
