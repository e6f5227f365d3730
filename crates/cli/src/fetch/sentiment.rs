//! Turns the fixtures of the sentiment package (lists of text and class 0 or 1) into rows of text and label.
//!
//! `all.jsonl` holds all 3,000 rows; `train.jsonl` and `heldout.jsonl` a stratified split of them, 2,400 to 600, in which no
//! text stands on both sides. The last entry of each fixture has no class and is passed over.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use retune::tasks::classification::{Dataset, Label, Options};
use serde::Deserialize;
use serde_json::json;

const FIXTURES: [&str; 3] = ["amazon.json", "imdb.json", "yelp.json"];
const NAMES: [&str; 2] = ["negative", "positive"];
const HELD_OUT: f64 = 0.2;

#[derive(Deserialize)]
struct Entry {
    text: String,
    class: Option<usize>,
}

/// Reads the fixtures in `folder` and writes `all.jsonl`, `train.jsonl` and `heldout.jsonl` beside them.
pub fn write_rows(folder: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for name in FIXTURES {
        let path = folder.join(name);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let entries: Vec<Entry> =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        for Entry { text, class } in entries {
            match class {
                None => {}
                Some(class) if class < NAMES.len() => lines.push(line(&text, NAMES[class])),
                Some(class) => bail!("{}: the class is {class}, not 0 or 1", path.display()),
            }
        }
    }
    let all = folder.join("all.jsonl");
    fs::write(&all, lines.concat()).with_context(|| format!("cannot write {}", all.display()))?;
    let (train, heldout) = Dataset::load(&all, &Options::default())?.split_stratified(HELD_OUT, 0)?;
    for (name, rows) in [("train.jsonl", train), ("heldout.jsonl", heldout)] {
        let lines = rows.examples.iter().map(|row| match row.label {
            Label::One(class) => line(&row.text, rows.labels.name(class)),
            _ => String::new(),
        });
        let path = folder.join(name);
        fs::write(&path, lines.collect::<String>())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn line(text: &str, label: &str) -> String {
    format!("{{\"text\": {}, \"label\": {}}}\n", json!(text), json!(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixtures_become_rows() {
        let dir = tempfile::tempdir().unwrap();
        for name in FIXTURES {
            let rows: Vec<_> =
                (0..20).map(|i| json!({"text": format!("{name} \"{i}\""), "class": i % 2})).collect();
            let text = json!([rows, vec![json!({"text": "", "class": null})]].concat()).to_string();
            fs::write(dir.path().join(name), text).unwrap();
        }
        write_rows(dir.path()).unwrap();
        let count = |name: &str| {
            let rows = Dataset::load(&dir.path().join(name), &Options::default()).unwrap();
            assert_eq!(rows.labels.names, NAMES);
            rows.examples.len()
        };
        assert_eq!(["all.jsonl", "train.jsonl", "heldout.jsonl"].map(count), [60, 48, 12]);
        fs::write(dir.path().join("yelp.json"), r#"[{"text": "x", "class": 2}]"#).unwrap();
        assert!(write_rows(dir.path()).unwrap_err().to_string().contains("the class is 2"));
    }
}
