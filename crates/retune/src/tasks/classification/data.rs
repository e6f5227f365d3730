//! Labelled rows of a file as plain texts and labels: no tokens, no model.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::Path;

use super::Problem;
use super::error::{Error, Result, SHOWN_MAX, Source, collect};
use super::labels::{CLASSES_MAX, Labels, NAME_MAX};
use super::rows::{Found, RawLabel, Row, read_rows};
use crate::tasks::causal_lm::split::hash;
use crate::tasks::wording::shorten;

/// What a row is labelled with; classes are indices into [`Labels`].
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    One(u32),
    /// Sorted, each once.
    Many(Vec<u32>),
    /// Finite.
    Value(f32),
    /// One for each word.
    Tags(Vec<u32>),
}

/// One labelled text.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledText {
    /// Of words, the words with spaces between.
    pub text: String,
    pub pair: Option<String>,
    /// Empty unless words are tagged.
    pub words: Vec<String>,
    pub label: Label,
    /// File and line.
    pub source: Source,
    /// A number of the row's own, wherever it stands in the file: for dropout and shuffling.
    pub key: u64,
    /// Hash of the text, case and white space aside: rows with the same one belong on the same side of a split.
    pub content: u64,
}

/// How a file is read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What is predicted; without it, the labels tell.
    pub problem: Option<Problem>,
    /// The labels that there are: a row with another is an error. For evaluation, these are the training data's.
    pub labels: Option<Labels>,
    /// The model's own labels, which stay if the data has the same ones.
    pub model_labels: Option<Labels>,
}

/// Labelled texts and what their labels mean.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    pub examples: Vec<LabelledText>,
    pub problem: Problem,
    pub labels: Labels,
    pub report: DataReport,
}

/// Counts of a data set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataReport {
    pub rows: usize,
    /// Rows of two texts.
    pub pairs: usize,
    /// Rows of each class, label or tag, in the labels' order.
    pub counts: Vec<u64>,
    /// Rows that repeat an earlier one, label and all.
    pub duplicates: usize,
    /// Texts that occur with different labels, and the first such row.
    pub conflicts: usize,
    pub conflict: Option<(Source, Source)>,
    /// Lowest and highest value of a regression.
    pub range: Option<(f32, f32)>,
}

impl Dataset {
    /// Reads a data file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.conll`, CoNLL in `.txt`).
    ///
    /// # Errors
    /// [`Error::Rows`] counts all rows that are not understood and names the first five; [`Error::Labels`] if together the
    /// labels make no task.
    pub fn load(path: &Path, options: &Options) -> Result<Dataset> {
        Dataset::build(&path.display().to_string(), read_rows(path)?, options)
    }

    /// Gives the rows' labels their meaning.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn build(file: &str, rows: Vec<Row>, options: &Options) -> Result<Dataset> {
        let wrong = |what: String| Error::Labels { file: file.to_string(), what };
        if rows.is_empty() {
            return Err(wrong("the file has no rows".into()));
        }
        let found = Found::of(&rows, options.problem);
        check_shape(&rows, found.problem)?;
        let named = collect(rows.into_iter().map(|row| (row.source.clone(), name(row, &found))))?;
        let labels = match (&options.labels, found.problem) {
            (_, Problem::Regression) => Labels::default(),
            (Some(labels), _) => labels.clone(),
            (None, _) => learn(&named, &found, options.model_labels.as_ref()).map_err(wrong)?,
        };
        let index = labels.index();
        let told = Cell::new(0);
        let find = |name: &str| match index.get(name) {
            Some(class) => Ok(*class),
            // Nearest names are searched only for the errors that are shown.
            None if told.replace(told.get() + 1) < SHOWN_MAX => Err(labels.unknown(name)),
            None => Err(String::new()),
        };
        let examples = named.into_iter().map(|(row, named)| (row.source.clone(), example(row, named, &find)));
        let mut dataset = Dataset {
            examples: collect(examples)?,
            problem: found.problem,
            labels,
            report: DataReport::default(),
        };
        dataset.count();
        Ok(dataset)
    }

    /// Rows of each class (of sets, rows with each label; of tags, words with each tag).
    pub fn class_counts(&self) -> &[u64] {
        &self.report.counts
    }

    /// The key of each example.
    pub fn keys(&self) -> Vec<u64> {
        self.examples.iter().map(|e| e.key).collect()
    }

    /// The same task with these of its examples.
    pub(super) fn with(&self, examples: Vec<LabelledText>) -> Dataset {
        let mut dataset = Dataset {
            examples,
            problem: self.problem,
            labels: self.labels.clone(),
            report: DataReport::default(),
        };
        dataset.count();
        dataset
    }

    /// Counts, and gives rows that repeat one another keys of their own.
    fn count(&mut self) {
        let mut report = DataReport { rows: self.examples.len(), ..DataReport::default() };
        report.counts = vec![0; self.labels.names.len()];
        let mut twins: HashMap<u64, u64> = HashMap::with_capacity(self.examples.len());
        let mut by_text: HashMap<u64, (usize, bool)> = HashMap::with_capacity(self.examples.len());
        for i in 0..self.examples.len() {
            let example = &self.examples[i];
            report.pairs += usize::from(example.pair.is_some());
            for &class in example.label.classes() {
                if let Some(count) = report.counts.get_mut(class as usize) {
                    *count += 1;
                }
            }
            if let Label::Value(x) = example.label {
                let (low, high) = report.range.unwrap_or((x, x));
                report.range = Some((low.min(x), high.max(x)));
            }
            let (first, told) = by_text.entry(example.content).or_insert((i, false));
            let earlier = &self.examples[*first];
            if earlier.label != example.label && !*told {
                *told = true;
                report.conflicts += 1;
                report.conflict.get_or_insert_with(|| (earlier.source.clone(), example.source.clone()));
            }
            let key = own_key(example);
            let twin = twins.entry(key).or_default();
            report.duplicates += usize::from(*twin > 0);
            self.examples[i].key = match *twin {
                0 => key,
                n => hash(&[key.to_le_bytes(), n.to_le_bytes()].concat()),
            };
            *twin += 1;
        }
        self.report = report;
    }
}

impl Label {
    /// The classes named; none of a number.
    pub fn classes(&self) -> &[u32] {
        match self {
            Label::One(class) => std::slice::from_ref(class),
            Label::Many(classes) | Label::Tags(classes) => classes,
            Label::Value(_) => &[],
        }
    }
}

/// The hash of a row, label and all.
fn own_key(example: &LabelledText) -> u64 {
    let mut bytes = Vec::with_capacity(example.text.len() + 32);
    let parts = [example.text.as_str(), example.pair.as_deref().unwrap_or_default()];
    for part in parts.into_iter().chain(example.words.iter().map(String::as_str)) {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    example.label.classes().iter().for_each(|class| bytes.extend_from_slice(&class.to_le_bytes()));
    if let Label::Value(x) = example.label {
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    hash(&bytes)
}

/// The hash of what a row says, case and white space aside.
fn content(row: &Row) -> u64 {
    let words = |text: &str| text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ");
    hash(format!("{}\0{}", words(&row.text), words(row.pair.as_deref().unwrap_or_default())).as_bytes())
}

/// Refuses rows of another shape than the problem's.
fn check_shape(rows: &[Row], problem: Problem) -> Result<()> {
    collect(rows.iter().map(|row| {
        let ok = match (problem, row.words.is_empty(), &row.label) {
            (Problem::Tokens, true, _) => {
                Err("this row has no words to tag (\"tokens\" and \"tags\")".into())
            }
            (Problem::Tokens, false, _) => Ok(()),
            (_, false, _) => Err(format!("this row has words and tags; the problem is {problem}")),
            (Problem::SingleLabel | Problem::Regression, _, Some(RawLabel::List(_))) => {
                Err(format!("the label is a list; the problem is {problem}, one label a row"))
            }
            _ => Ok(()),
        };
        (row.source.clone(), ok)
    }))
    .map(|_| ())
}

/// A label whose classes still have names.
enum Named {
    One(String),
    Many(Vec<String>),
    Value(f32),
    Tags(Vec<String>),
}

impl Named {
    fn names(&self) -> &[String] {
        match self {
            Named::One(name) => std::slice::from_ref(name),
            Named::Many(names) | Named::Tags(names) => names,
            Named::Value(_) => &[],
        }
    }
}

fn name(mut row: Row, found: &Found) -> std::result::Result<(Row, Named), String> {
    let label = row.label.take().ok_or("there is no label")?;
    let named = match (found.problem, label) {
        (Problem::Regression, label) => Named::Value(value(&label)?),
        (Problem::SingleLabel, label) => Named::One(checked(label.name())?),
        (Problem::Tokens, RawLabel::List(tags)) => Named::Tags(checked_all(&tags)?),
        (Problem::MultiLabel, RawLabel::List(items)) if found.hot.is_some() => {
            let on = items.iter().enumerate().filter(|(_, item)| item.number() == Some(1.0));
            Named::Many(on.map(|(i, _)| i.to_string()).collect())
        }
        (Problem::MultiLabel, RawLabel::List(items)) => Named::Many(checked_all(&items)?),
        // A table has no lists: its labels stand between commas or bars.
        (Problem::MultiLabel, RawLabel::Text(text)) => {
            let parts = text.split([',', '|']).map(str::trim).filter(|part| !part.is_empty());
            Named::Many(parts.map(|part| checked(part.to_string())).collect::<std::result::Result<_, _>>()?)
        }
        (_, label) => Named::Many(vec![checked(label.name())?]),
    };
    Ok((row, named))
}

fn checked_all(items: &[RawLabel]) -> std::result::Result<Vec<String>, String> {
    items.iter().map(|item| checked(item.name())).collect()
}

fn checked(name: String) -> std::result::Result<String, String> {
    match name.chars().count() {
        0 => Err("the label is empty".into()),
        1..=NAME_MAX => Ok(name),
        n => Err(format!("the label has {n} characters ({:?}…); is it the right field?", shorten(&name))),
    }
}

fn value(label: &RawLabel) -> std::result::Result<f32, String> {
    let x =
        label.number().ok_or_else(|| format!("the label {:?} is not a number", shorten(&label.name())))?;
    let x = x as f32;
    if x.is_finite() { Ok(x) } else { Err(format!("the label {} is beyond 32-bit numbers", label.name())) }
}

/// The labels of training data.
fn learn(
    rows: &[(Row, Named)],
    found: &Found,
    model: Option<&Labels>,
) -> std::result::Result<Labels, String> {
    let mut names = BTreeSet::new();
    for name in rows.iter().flat_map(|(_, named)| named.names()) {
        if !names.contains(name) {
            names.insert(name.clone());
        }
        if names.len() > CLASSES_MAX {
            return Err(format!(
                "there are more than {CLASSES_MAX} different labels, such as {:?}; is it the right field?",
                shorten(name)
            ));
        }
    }
    // Places that are nowhere 1 are labels too.
    names.extend((0..found.hot.unwrap_or_default().min(CLASSES_MAX)).map(|i| i.to_string()));
    let labels = Labels::settle(names, model);
    let enough = match found.problem {
        Problem::SingleLabel | Problem::Tokens => 2,
        _ => 1,
    };
    if labels.names.len() < enough {
        return Err(match labels.names.first() {
            Some(only) => {
                format!("all rows have the label {:?}: there is nothing to tell apart", shorten(only))
            }
            None => "no row has any label: there is nothing to learn".into(),
        });
    }
    Ok(labels)
}

fn example(
    row: Row,
    named: Named,
    find: &impl Fn(&str) -> std::result::Result<u32, String>,
) -> std::result::Result<LabelledText, String> {
    let all = |names: &[String]| {
        names.iter().map(|name| find(name)).collect::<std::result::Result<Vec<u32>, String>>()
    };
    let label = match named {
        Named::One(name) => Label::One(find(&name)?),
        Named::Value(x) => Label::Value(x),
        Named::Tags(names) => Label::Tags(all(&names)?),
        Named::Many(names) => {
            let mut classes = all(&names)?;
            classes.sort_unstable();
            classes.dedup();
            Label::Many(classes)
        }
    };
    let content = content(&row);
    let Row { text, pair, words, source, .. } = row;
    Ok(LabelledText { text, pair, words, label, source, key: 0, content })
}

impl DataReport {
    /// What the user should know though nothing is wrong: one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.duplicates > 0 {
            warnings.push(format!("{} repeated exactly", rows(self.duplicates)));
        }
        if let Some((first, second)) = &self.conflict {
            let texts = if self.conflicts == 1 {
                "1 text occurs".into()
            } else {
                format!("{} texts occur", self.conflicts)
            };
            warnings.push(format!("{texts} with different labels (the first: {first} and {second})"));
        }
        let missing = self.counts.iter().filter(|n| **n == 0).count();
        if missing > 0 {
            warnings.push(format!("{missing} of {} labels do not occur", self.counts.len()));
        }
        warnings
    }

    /// Rows of each class by name, in the labels' order.
    pub fn by_name<'a>(&self, labels: &'a Labels) -> BTreeMap<&'a str, u64> {
        labels.names.iter().map(String::as_str).zip(self.counts.iter().copied()).collect()
    }
}

fn rows(n: usize) -> String {
    if n == 1 { "1 row".into() } else { format!("{n} rows") }
}

impl fmt::Display for Dataset {
    /// The counts in one line, then the warnings, one a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let report = &self.report;
        write!(f, "{}, {}", rows(report.rows), self.problem)?;
        if report.pairs > 0 {
            write!(f, ", {} of two texts", report.pairs)?;
        }
        if let Some((low, high)) = report.range {
            write!(f, ", values {low} to {high}")?;
        }
        let counted = self.labels.names.iter().zip(&report.counts).take(SHOWN);
        for (i, (name, count)) in counted.enumerate() {
            write!(f, "{} {} {count}", if i == 0 { ":" } else { "," }, shorten(name))?;
        }
        if self.labels.names.len() > SHOWN {
            write!(f, ", … {} more", self.labels.names.len() - SHOWN)?;
        }
        report.warnings().iter().try_for_each(|warning| write!(f, "\n{warning}"))
    }
}
