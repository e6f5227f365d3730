//! `data.yaml` of a YOLO data set: where the pictures are, and the names of the classes.
//!
//! The few keys that count are read from the parser's events, so a file cannot grow in memory: no anchors, no nesting.

use std::path::{Path, PathBuf};

use retune_formats::bytes::Bytes;
use retune_formats::error::{Error, Result, quote};
use saphyr_parser::{Event, Parser};

use super::super::limits;
use super::super::splits::{TEST, TRAIN, VAL};

/// What it says.
#[derive(Debug, Default)]
pub struct DataYaml {
    /// The folder that the parts are relative to.
    pub path: Option<PathBuf>,
    pub train: Vec<String>,
    pub val: Vec<String>,
    pub test: Vec<String>,
    /// By class index.
    pub names: Vec<String>,
}

/// The value of a key, one level deep.
enum Entry {
    Text(String),
    List(Vec<String>),
    Map(Vec<(String, String)>),
}

impl DataYaml {
    pub fn read(path: &Path) -> Result<DataYaml> {
        let text = Bytes::open(path)?.read_text("data.yaml", limits::DATA_YAML_BYTES)?;
        let mut yaml = DataYaml::default();
        let mut count = None;
        for (key, line, entry) in entries(path, &text)? {
            let bad = |what: String| Error::Record { path: path.to_path_buf(), line, what };
            let key = key.to_ascii_lowercase();
            match (key.as_str(), entry) {
                ("path", Entry::Text(text)) => yaml.path = Some(PathBuf::from(text)),
                ("nc", Entry::Text(text)) => count = Some((line, text)),
                ("names", entry) => yaml.names = names(entry).map_err(bad)?,
                (part, entry) => {
                    let list = match part {
                        part if TRAIN.contains(&part) => &mut yaml.train,
                        part if VAL.contains(&part) => &mut yaml.val,
                        part if TEST.contains(&part) => &mut yaml.test,
                        _ => continue,
                    };
                    *list = match entry {
                        Entry::Text(text) if text.is_empty() || text == "~" || text == "null" => Vec::new(),
                        Entry::Text(text) => vec![text],
                        Entry::List(list) => list,
                        Entry::Map(_) => {
                            return Err(bad(format!("`{part}` must be a folder or a list of folders")));
                        }
                    }
                }
            }
        }
        yaml.check(path, count)?;
        Ok(yaml)
    }

    fn check(&self, path: &Path, count: Option<(usize, String)>) -> Result<()> {
        if self.names.is_empty() {
            return Err(Error::missing(path, "it names no classes", "add `names: [first, second, …]`"));
        }
        if self.names.len() > limits::CLASSES {
            return Err(Error::limit(
                path,
                "the number of classes",
                self.names.len() as u64,
                limits::CLASSES as u64,
            ));
        }
        match count {
            Some((line, text)) if text.parse() != Ok(self.names.len()) => {
                let what = format!("`nc` is {}, and `names` has {} names", quote(&text), self.names.len());
                Err(Error::Record { path: path.to_path_buf(), line, what })
            }
            _ => Ok(()),
        }
    }
}

/// A list of names, or a map from 0, 1, … to them.
fn names(entry: Entry) -> Result<Vec<String>, String> {
    match entry {
        Entry::List(names) => Ok(names),
        Entry::Text(text) => Err(format!("`names` is {}; wanted a list of names", quote(&text))),
        Entry::Map(pairs) => {
            let mut names = vec![None; pairs.len()];
            for (key, name) in pairs {
                match key.parse::<usize>().ok().and_then(|i| names.get_mut(i)) {
                    Some(slot) if slot.is_none() => *slot = Some(name),
                    _ => {
                        return Err(format!(
                            "`names` has the key {}; wanted each of 0 to {} once",
                            quote(&key),
                            names.len() - 1
                        ));
                    }
                }
            }
            // As many keys as places, none of them twice: all are there.
            Ok(names.into_iter().flatten().collect())
        }
    }
}

/// The keys of the outermost map with their lines and values; what lies deeper than a list or a map of texts is left out.
fn entries(path: &Path, text: &str) -> Result<Vec<(String, usize, Entry)>> {
    let mut parser = Parser::new_from_str(text.trim_start_matches('\u{feff}'));
    let mut out = Vec::new();
    let (mut depth, mut key, mut inner_key) = (0usize, None, None);
    let mut entry = None;
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|e| Error::Record {
            path: path.to_path_buf(),
            line: e.marker().line(),
            what: format!("not valid YAML: {}", e.info()),
        })?;
        let line = span.start.line();
        let bad = |what: &str| Err(Error::Record { path: path.to_path_buf(), line, what: what.into() });
        match event {
            Event::Alias(_) => return bad("anchors and aliases are not read; write the value itself"),
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                let list = matches!(event, Event::SequenceStart(..));
                depth += 1;
                match (depth, list) {
                    (1, true) => return bad("the file is a list; wanted keys such as `train:` and `names:`"),
                    (2, true) => entry = Some(Entry::List(Vec::new())),
                    (2, false) => entry = Some(Entry::Map(Vec::new())),
                    // A nested value uses up the key that stands before it.
                    (3, _) => inner_key = None,
                    _ => {}
                }
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if depth == 2
                    && let (Some((key, line)), Some(entry)) = (key.take(), entry.take())
                {
                    out.push((key, line, entry));
                }
                depth = depth.saturating_sub(1);
            }
            Event::Scalar(text, ..) => match (depth, &mut entry) {
                (0, _) => return bad("wanted keys such as `train:` and `names:`"),
                (1, _) => match key.take() {
                    None => key = Some((text.into_owned(), line)),
                    Some((key, line)) => out.push((key, line, Entry::Text(text.into_owned()))),
                },
                (2, Some(Entry::List(list))) => list.push(text.into_owned()),
                (2, Some(Entry::Map(map))) => match inner_key.take() {
                    None => inner_key = Some(text.into_owned()),
                    Some(inner) => map.push((inner, text.into_owned())),
                },
                _ => {}
            },
            // The first document alone.
            Event::DocumentEnd => break,
            _ => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DataYaml> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.yaml");
        std::fs::write(&path, text).unwrap();
        DataYaml::read(&path)
    }

    #[test]
    fn the_forms_that_people_write() {
        let yaml = read("path: /data\ntrain: [a, b]\nvalid: v\ntest:\nroboflow:\n  workspace: x\n  tags: [1, [2]]\nnames: ['x: y', \"b\", c]\nnc: 3\n").unwrap();
        assert_eq!(
            (yaml.train.join(" "), yaml.val.join(" "), yaml.test.len()),
            ("a b".into(), "v".into(), 0)
        );
        assert_eq!(yaml.names, ["x: y", "b", "c"]);
        let yaml = read("train: t\nnames:\n  1: dog\n  0: cat\n").unwrap();
        assert_eq!(yaml.names, ["cat", "dog"]);
        assert_eq!(read("names:\n- a\n- b\n").unwrap().names, ["a", "b"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, word) in [
            ("train: x\n", "no classes"),
            ("nc: 3\nnames: [a, b]\n", ":1: `nc` is `3`"),
            ("x: &a [1]\nnames: *a\n", "anchors"),
            ("names:\n  0: a\n  2: b\n", "key `2`"),
            ("names: a\n", ":1: `names` is `a`"),
            ("train: [a\nnames: b", "YAML"),
            ("- a\n", "is a list"),
            ("just words", "wanted keys"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("data.yaml"), "{word}: {message}");
        }
        let deep = format!("x: {}\nnames: [a]", "[".repeat(100_000));
        assert!(read(&deep).is_err());
    }
}
