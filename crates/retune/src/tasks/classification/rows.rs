//! What a labelled row says, whichever of the usual shapes it has: a text or a pair of texts, or words; and a label or tags.
//!
//! Texts are recognised by their keys (case does not matter): `text`, `sentence`, `content`, or the pairs in [`PAIRS`]. Labels are
//! under `label`, `labels`, `class`, `category` or `score`; words under `tokens` or `words`, their tags under `tags`, `ner_tags`
//! and the like. CoNLL files have a word and, in the last column, its tag on each line, and a blank line between sentences.

use std::path::Path;
use std::sync::Arc;

use retune_formats::records::{Record, Records};
use serde_json::{Map, Value};

use super::Problem;
use super::error::{Result, Source, collect};
use crate::tasks::wording::{describe, shorten};

/// The keys of the two texts of a pair, as the usual data sets name them.
const PAIRS: [(&str, &str); 10] = [
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("text", "text_pair"),
    ("text", "pair"),
];
const TEXTS: [&str; 3] = ["text", "sentence", "content"];
const LABELS: [&str; 5] = ["label", "labels", "class", "category", "score"];
const WORDS: [&str; 2] = ["tokens", "words"];
const TAGS: [&str; 8] =
    ["tags", "ner_tags", "pos_tags", "chunk_tags", "token_labels", "word_labels", "labels", "label"];
const SHAPES: &str = "text (or sentence) + label | text_a + text_b + label (also sentence1/sentence2, premise/hypothesis, \
                      question/sentence) | tokens + tags";
/// Files with a word and its tag on each line, whatever is done with them.
const CONLL: [&str; 3] = ["conll", "bio", "iob2"];
const SIMILAR: f64 = 0.8;

/// A row, understood but for its label's meaning.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Of words, the words with spaces between.
    pub text: String,
    pub pair: Option<String>,
    /// Empty unless the row is made of words.
    pub words: Vec<String>,
    /// As it stands in the file; `None` only where none is needed.
    pub label: Option<RawLabel>,
    pub source: Source,
}

/// A label as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum RawLabel {
    /// A name; also true and false, and all fields of a table.
    Text(String),
    Integer(i64),
    /// Finite.
    Number(f64),
    /// Names or numbers, no lists.
    List(Vec<RawLabel>),
}

impl RawLabel {
    /// As the name of a class: 1 and 1.0 are the same.
    pub fn name(&self) -> String {
        match self {
            RawLabel::Text(text) => text.clone(),
            RawLabel::Integer(i) => i.to_string(),
            RawLabel::Number(x) => x.to_string(),
            RawLabel::List(items) => items.iter().map(RawLabel::name).collect::<Vec<_>>().join(", "),
        }
    }

    /// As a number, if it is one (in a table, if it reads as one).
    pub fn number(&self) -> Option<f64> {
        match self {
            RawLabel::Text(text) => text.parse().ok().filter(|x: &f64| x.is_finite()),
            RawLabel::Integer(i) => Some(*i as f64),
            RawLabel::Number(x) => Some(*x),
            RawLabel::List(_) => None,
        }
    }
}

/// Reads rows whose labels, if any, don't matter: what `predict` answers. A `.txt` file has one text a paragraph.
///
/// # Errors
/// As [`read_rows`], but for missing labels.
pub fn read_texts(path: &Path) -> Result<Vec<Row>> {
    read(path, false)
}

/// Reads labelled rows. `.txt` is taken for CoNLL: no other labelled text ends so.
///
/// # Errors
/// An unreadable file; rows without text or label, or of no known shape, with file and line.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    read(path, true)
}

/// Whether an object is a labelled row.
pub fn is_labelled(value: &Value) -> bool {
    row(value, true, Source { file: "".into(), line: 0 }).is_ok()
}

fn read(path: &Path, labelled: bool) -> Result<Vec<Row>> {
    let file: Arc<str> = path.display().to_string().into();
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let records = Records::read_all(path)?;
    let at = |line| Source { file: file.clone(), line };
    if CONLL.contains(&extension.as_str()) || (labelled && extension == "txt") {
        let rows = records.iter().flat_map(|record| sentence(record, labelled, at(record.line)));
        return collect(rows);
    }
    collect(records.iter().map(|record| {
        let source = at(record.line);
        (source.clone(), row(&record.value, labelled, source))
    }))
}

/// One sentence of a CoNLL file; nothing of a `-DOCSTART-` line.
fn sentence(
    record: &Record,
    labelled: bool,
    source: Source,
) -> Option<(Source, std::result::Result<Row, String>)> {
    let text = record.value.get("text").and_then(Value::as_str).unwrap_or_default();
    let (mut words, mut tags) = (Vec::new(), Vec::new());
    for (i, line) in text.lines().enumerate() {
        if line.starts_with("-DOCSTART-") || line.starts_with("# ") {
            continue;
        }
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (word, tag) = match columns.as_slice() {
            [] => continue,
            [word] if !labelled => (*word, None),
            [word] => {
                let at = Source { line: source.line + i, ..source };
                let what = format!("one column, {:?}; a word and its tag were due", shorten(word));
                return Some((at, Err(what)));
            }
            [word, .., tag] => (*word, Some(RawLabel::Text((*tag).to_string()))),
        };
        words.push(word.to_string());
        tags.extend(tag);
    }
    let label = (tags.len() == words.len()).then_some(RawLabel::List(tags));
    let row = Row { text: words.join(" "), pair: None, words, label, source: source.clone() };
    (!row.words.is_empty()).then_some((source, Ok(row)))
}

/// Reads a row that is an object.
fn row(value: &Value, labelled: bool, source: Source) -> std::result::Result<Row, String> {
    let Value::Object(fields) = value else {
        return Err(format!("the row is {}, not an object with keys ({SHAPES})", describe(value)));
    };
    let fields = Fields(fields);
    if let Some((key, words)) = fields.find(&WORDS) {
        return tagged(&fields, key, words, labelled, source);
    }
    let (text, pair) = fields.texts()?;
    let label = match fields.find(&LABELS) {
        Some((key, value)) => label(key, value)?,
        None if labelled => return Err(fields.unknown("there is no label")),
        None => None,
    };
    if label.is_none() && labelled {
        return Err("the label is null".into());
    }
    Ok(Row { text, pair, words: Vec::new(), label, source })
}

fn tagged(
    fields: &Fields<'_>,
    key: &str,
    words: &Value,
    labelled: bool,
    source: Source,
) -> std::result::Result<Row, String> {
    let Value::Array(items) = words else {
        return Err(format!("{key:?} is {}, not a list of words", describe(words)));
    };
    let words = items.iter().enumerate().map(|(i, word)| text_of(&format!("{key}[{i}]"), word));
    let words: Vec<String> = words.collect::<std::result::Result<_, _>>()?;
    if words.is_empty() {
        return Err(format!("{key:?} is an empty list"));
    }
    let tags = fields.find(&TAGS).filter(|(_, tags)| !tags.is_null());
    let label = match tags {
        Some((key, tags)) => label(key, tags)?,
        None if labelled => return Err(fields.unknown("there are no tags")),
        None => None,
    };
    match &label {
        Some(RawLabel::List(tags)) if tags.len() != words.len() => {
            return Err(format!("{} words and {} tags", words.len(), tags.len()));
        }
        Some(RawLabel::List(_)) | None => {}
        Some(other) => return Err(format!("the tags are {:?}, not a list", shorten(&other.name()))),
    }
    Ok(Row { text: words.join(" "), pair: None, words, label, source })
}

struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The first of these keys that is there, whatever its case.
    fn find(&self, names: &[&str]) -> Option<(&'a str, &'a Value)> {
        names.iter().find_map(|name| {
            let exact = self.0.get_key_value(*name);
            let found =
                exact.or_else(|| self.0.iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name)));
            found.map(|(key, value)| (key.as_str(), value))
        })
    }

    fn texts(&self) -> std::result::Result<(String, Option<String>), String> {
        for (first, second) in PAIRS {
            let found = (self.find(&[first]), self.find(&[second]));
            if let (Some((ka, a)), Some((kb, b))) = found
                && !b.is_null()
            {
                return Ok((text_of(ka, a)?, Some(text_of(kb, b)?)));
            }
        }
        match self.find(&TEXTS) {
            Some((key, value)) => Ok((text_of(key, value)?, None)),
            None => Err(self.unknown("there is no text")),
        }
    }

    fn unknown(&self, what: &str) -> String {
        if self.0.is_empty() {
            return format!("the row has no keys; it needs {SHAPES}");
        }
        let keys = || self.0.keys().take(12);
        let quoted: Vec<String> = keys().map(|key| format!("{:?}", shorten(key))).collect();
        let hints: Vec<String> = keys().filter_map(|key| nearest_key(key)).collect();
        let hint =
            if hints.is_empty() { String::new() } else { format!(" Did you mean {}?", hints.join(", ")) };
        format!("{what} among the keys {}; a row needs {SHAPES}.{hint}", quoted.join(", "))
    }
}

/// `"labl" -> "label" for "labl"`, if a key is only nearly right.
fn nearest_key(key: &str) -> Option<String> {
    let lower = shorten(key).to_ascii_lowercase();
    let pairs = PAIRS.iter().flat_map(|(a, b)| [a, b]);
    let known = || pairs.clone().chain(&TEXTS).chain(&LABELS).chain(&WORDS).chain(&TAGS);
    if known().any(|name| **name == lower) {
        return None;
    }
    let closeness = |name: &&str| strsim::jaro_winkler(&lower, name);
    let name = known().max_by(|a, b| closeness(a).total_cmp(&closeness(b)))?;
    (closeness(name) >= SIMILAR).then(|| format!("{name:?} for {:?}", shorten(key)))
}

fn text_of(key: &str, value: &Value) -> std::result::Result<String, String> {
    match value {
        Value::String(text) if text.trim().is_empty() => Err(format!("{key:?} is empty")),
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{key:?} is {}, not a text", describe(other))),
    }
}

/// A label; `None` of null.
fn label(key: &str, value: &Value) -> std::result::Result<Option<RawLabel>, String> {
    Ok(Some(match value {
        Value::Null => return Ok(None),
        Value::Array(items) => {
            let items = items.iter().enumerate().map(|(i, item)| {
                let key = format!("{key}[{i}]");
                match label(&key, item)? {
                    Some(RawLabel::List(_)) => Err(format!("{key} is a list within a list")),
                    Some(item) => Ok(item),
                    None => Err(format!("{key} is null")),
                }
            });
            RawLabel::List(items.collect::<std::result::Result<_, String>>()?)
        }
        Value::Bool(b) => RawLabel::Text(b.to_string()),
        Value::String(text) => RawLabel::Text(text.trim().to_string()),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => RawLabel::Integer(i),
            (None, Some(x)) if x.is_finite() => RawLabel::Number(x),
            _ => return Err(format!("{key:?} is {n}, which is no usable number")),
        },
        Value::Object(_) => return Err(format!("{key:?} is an object, not a label")),
    }))
}

/// What rows are about, by their labels: words with tags; lists of labels; numbers of which at least one has a fraction; else
/// classes. Also tells lists of 0 and 1, one for each label, from lists of the labels themselves.
pub(super) struct Found {
    pub problem: Problem,
    /// The width of multi-hot lists.
    pub hot: Option<usize>,
}

impl Found {
    pub(super) fn of(rows: &[Row], wanted: Option<Problem>) -> Found {
        let labels = || rows.iter().filter_map(|row| row.label.as_ref());
        let any_list = labels().any(|label| matches!(label, RawLabel::List(_)));
        let fraction = |x: f64| x.fract() != 0.0;
        let numbers = || labels().map(RawLabel::number);
        let problem = wanted.unwrap_or_else(|| {
            if rows.iter().any(|row| !row.words.is_empty()) {
                Problem::Tokens
            } else if any_list {
                Problem::MultiLabel
            } else if numbers().all(|x| x.is_some()) && numbers().flatten().any(fraction) {
                Problem::Regression
            } else {
                Problem::SingleLabel
            }
        });
        Found { problem, hot: hot_width(labels()).filter(|_| problem == Problem::MultiLabel) }
    }
}

/// The length of lists that are all of one length, at least 2, and hold nothing but 0 and 1, where one of them is written with
/// a point or repeats itself.
fn hot_width<'a>(labels: impl Iterator<Item = &'a RawLabel>) -> Option<usize> {
    let (mut width, mut sure) = (None, false);
    for label in labels {
        let RawLabel::List(items) = label else { return None };
        if items.len() < 2 || *width.get_or_insert(items.len()) != items.len() {
            return None;
        }
        for item in items {
            match item {
                RawLabel::Integer(0 | 1) => {}
                RawLabel::Number(x) if *x == 0.0 || *x == 1.0 => sure = true,
                _ => return None,
            }
        }
        let ones = items.iter().filter(|item| item.number() == Some(1.0)).count();
        sure |= ones > 1 || items.len() - ones > 1;
    }
    width.filter(|_| sure)
}
