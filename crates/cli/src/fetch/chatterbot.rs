//! Turns the chatterbot corpus (YAML lists of statements) into instruction rows.
//!
//! Most categories are dialogues: each statement answers the one before it. In `computers` and `emotion` the first
//! statement is the question and all others are alternative answers to it. Pairs that occur twice are taken once.
//! `train.jsonl` and `heldout.jsonl` hold the categories in which the corpus speaks as its robot and share no question;
//! `all.jsonl` holds all 21 categories, and `categories/` each by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use saphyr::{LoadableYamlNode, Yaml};
use serde_json::json;
use sha2::{Digest, Sha256};

/// One list of statements: a question and alternative answers.
const ALTERNATIVES: [&str; 2] = ["computers", "emotion"];

/// What the robot says about itself and its world: the part worth learning in four minutes.
const PERSONA: [&str; 12] = [
    "ai",
    "botprofile",
    "computers",
    "emotion",
    "food",
    "gossip",
    "greetings",
    "humor",
    "literature",
    "movies",
    "psychology",
    "science",
];

/// Of the persona's rows, one in this many is held out, always with all rows of the same question.
const HELD_OUT_ONE_IN: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    question: String,
    answer: String,
}

/// Reads `folder/english/*.yml` and writes `all.jsonl`, `train.jsonl` and `heldout.jsonl` into `folder`.
pub fn write_rows(folder: &Path) -> Result<()> {
    let mut all = Vec::new();
    let mut persona = Vec::new();
    let mut seen = BTreeSet::new();
    fs::create_dir_all(folder.join("categories"))?;
    for path in super::files_below(&folder.join("english"))? {
        let category = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut own = pairs(&category, &text).with_context(|| format!("{} is damaged", path.display()))?;
        own.retain(|pair| seen.insert(pair.clone()));
        write_lines(&folder.join(format!("categories/{category}.jsonl")), &own)?;
        if PERSONA.contains(&category.as_str()) {
            persona.extend(own.iter().cloned());
        }
        all.extend(own);
    }
    let (train, heldout) = split(persona);
    for (name, rows) in [("all.jsonl", all), ("train.jsonl", train), ("heldout.jsonl", heldout)] {
        write_lines(&folder.join(name), &rows)?;
    }
    Ok(())
}

fn write_lines(path: &Path, rows: &[Pair]) -> Result<()> {
    let lines: Vec<String> = rows.iter().map(|row| line(row) + "\n").collect();
    fs::write(path, lines.concat()).with_context(|| format!("cannot write {}", path.display()))
}

fn line(pair: &Pair) -> String {
    let (question, answer) = (json!(pair.question), json!(pair.answer));
    let user = format!(r#"{{"role": "user", "content": {question}}}"#);
    let assistant = format!(r#"{{"role": "assistant", "content": {answer}}}"#);
    format!(r#"{{"messages": [{user}, {assistant}]}}"#)
}

fn pairs(category: &str, text: &str) -> Result<Vec<Pair>> {
    let documents = Yaml::load_from_str(text)?;
    let document = documents.first().context("it is empty")?;
    let Some(conversations) = document.as_mapping_get("conversations").and_then(Yaml::as_sequence) else {
        bail!("it has no list of conversations");
    };
    let mut pairs = Vec::new();
    for conversation in conversations {
        // The corpus has one entry whose hyphen is missing, which makes it a text: nothing can be learned from it.
        let Some(statements) = conversation.as_sequence() else { continue };
        let statements: Vec<&str> = statements
            .iter()
            .map(|s| s.as_str().map(str::trim))
            .collect::<Option<_>>()
            .context("a statement is not a text")?;
        for i in 1..statements.len() {
            let question = if ALTERNATIVES.contains(&category) { statements[0] } else { statements[i - 1] };
            if !question.is_empty() && !statements[i].is_empty() {
                pairs.push(Pair { question: question.into(), answer: statements[i].into() });
            }
        }
    }
    Ok(pairs)
}

/// Splits by question, so that no held-out question was trained on, in an order that depends on the questions only.
fn split(pairs: Vec<Pair>) -> (Vec<Pair>, Vec<Pair>) {
    let wanted = pairs.len() / HELD_OUT_ONE_IN;
    let mut questions: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for pair in &pairs {
        *questions.entry(fingerprint(&pair.question)).or_default() += 1;
    }
    let mut held_out = BTreeSet::new();
    let mut rows = 0;
    for (question, count) in questions {
        if rows + count <= wanted {
            rows += count;
            held_out.insert(question);
        }
    }
    pairs.into_iter().partition(|pair| !held_out.contains(&fingerprint(&pair.question)))
}

/// The same for questions that differ only in case, spaces and punctuation.
fn fingerprint(question: &str) -> Vec<u8> {
    let words: String =
        question.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    Sha256::digest(words.as_bytes()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(question: &str, answer: &str) -> Pair {
        Pair { question: question.into(), answer: answer.into() }
    }

    #[test]
    fn dialogues_chain_and_alternatives_share_their_question() {
        let text = "categories:\n- x\nconversations:\n- - Hello\n  - Hi\n  - 'It''s \"me\"\n    again'\n- - Code?\n  - |\n    a = 1\n\n    b\n";
        let chain = [pair("Hello", "Hi"), pair("Hi", "It's \"me\" again"), pair("Code?", "a = 1\n\nb")];
        assert_eq!(pairs("coding", text).unwrap(), chain);
        assert_eq!(pairs("emotion", text).unwrap()[1], pair("Hello", "It's \"me\" again"));
        assert!(pairs("x", "conversations: 3").is_err());
        assert!(pairs("x", "").is_err());
    }

    #[test]
    fn no_question_is_on_both_sides() {
        let rows: Vec<Pair> =
            (0..200).map(|i| pair(&format!("Question {}?", i / 3), &i.to_string())).collect();
        let (train, heldout) = split(rows);
        assert!((15..=20).contains(&heldout.len()), "{}", heldout.len());
        assert_eq!(train.len() + heldout.len(), 200);
        assert!(heldout.iter().all(|row| train.iter().all(|other| other.question != row.question)));
        assert_eq!(fingerprint("Who are  you"), fingerprint("who are you?"));
    }
}
