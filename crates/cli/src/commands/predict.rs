//! `retune predict`: the labels of texts and pictures with their probabilities, tagged words, numbers, embeddings, boxes.

mod pictures;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stdout};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use retune::metrics::{is_span_scheme, spans};
use retune::models::{HeadRequest, Model, ModelFiles, Reads, spec_of};
use retune::nn::{Head, Problem};
use retune::tasks::TaskRecord;
use retune::tasks::classification::{Labels, Prediction, Tagged, Tokens, predict, read_texts, words_of};
use retune::tasks::embeddings::embed;
use retune::text::Language;
use retune_formats::records::Records;
use retune_formats::{TensorOut, atomic, safetensors};
use retune_tensor::Tensor;
use serde_json::{Map, Value, json};

use crate::exit::{Ended, UsageError};
use crate::loading::{BASE, ModelArgs, language, set_threads, shares_head, tell_streamed};
use crate::signals::Signals;
use crate::style::{bold, dim, printable};
use crate::tasks::{in_words, room};

/// Characters of a text that are shown.
const TEXT_SHOWN: usize = 72;
/// Tokens of a text where neither a flag nor the adapter says.
const MAX_LENGTH: usize = 512;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune predict --model minilm --adapter sentiment --text 'What a day!'
  retune predict --model minilm --adapter sentiment --data texts.txt --out labels.jsonl
  retune predict --model minilm --adapter sentiment --adapter topic --data rows.jsonl --json
  retune predict --model minilm --task embed --data texts.txt --out vectors.safetensors
  retune predict --model vgg16.pth --adapter flowers --image photo.jpg --image more/
  retune predict --model yolov3-tiny.cfg --image street.jpg --draw found
  retune predict --model yolov3-tiny.cfg --image street.jpg --classes person --draw hidden --anonymise

Data is .jsonl, .json, .csv, .tsv (text, or a pair such as text_a and text_b; tokens) or .txt (a text a paragraph). A row's
\"adapter\" names the --adapter that it goes through, \"base\" none; without it, the last one. They share batches.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// A text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Vec<String>,

    /// A file of texts; of models that read pictures, a folder or table of them
    #[arg(long, value_name = "PATH", conflicts_with = "text")]
    data: Option<PathBuf>,

    #[command(flatten)]
    pictures: pictures::PictureArgs,

    /// Labels as trained, or the embeddings of the texts (mean of the last rows, of length 1)
    #[arg(long, value_name = "label|embed", default_value = "label", value_parser = ["label", "embed"])]
    task: String,

    /// Write JSON lines into this file instead of printing; embeddings also as .safetensors
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Texts in one pass
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// Tokens of one text; longer ones are cut. Without it, as the adapter was trained
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    max_length: Option<u32>,
}

/// A text to answer, and the place of its adapter among the `--adapter`s; `None`: the base.
struct Asked {
    text: String,
    pair: Option<String>,
    /// Bytes of its words, if they came as words.
    words: Vec<Range<usize>>,
    adapter: Option<usize>,
}

/// Adapters that can stand on one model, because they have the same head.
struct Group {
    record: TaskRecord,
    /// Places among the `--adapter`s; the slot of each is its place here.
    adapters: Vec<usize>,
    /// Rows of the base alone belong here.
    base: bool,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    if !args.model.adapter_weights.is_empty() {
        return Err(UsageError(
            "--adapter-weights adds adapters up; predict gives each its own slot: merge them first".into(),
        )
        .into());
    }
    let signals = Signals::catch()?;
    let files = args.model.files()?;
    if spec_of(&files)?.reads == Reads::Pictures {
        return pictures::run(args, &files, json, &signals);
    }
    args.pictures.refuse(&args.model.model)?;
    set_threads(args.model.machine.threads)?;
    let asked = args.asked()?;
    if args.task == "embed" {
        return args.embed(&asked, json, &signals);
    }
    let lines = args.answers(&asked, json, &signals)?;
    match &args.out {
        Some(path) => write_lines(path, &lines),
        None if json => print_lines(&lines),
        None => show(&asked, &lines, args.model.adapter.len() > 1),
    }
}

impl Args {
    fn asked(&self) -> Result<Vec<Asked>> {
        let last = self.model.named(None)?;
        if let Some(path) = &self.data {
            return self.read(path);
        }
        if self.text.is_empty() {
            return Err(UsageError("no texts: give --text TEXT or --data FILE".into()).into());
        }
        if let Some(empty) = self.text.iter().position(|text| text.trim().is_empty()) {
            return Err(UsageError(format!("--text number {} is empty", empty + 1)).into());
        }
        let asked = |text: &String| Asked { text: text.clone(), pair: None, words: vec![], adapter: last };
        Ok(self.text.iter().map(asked).collect())
    }

    fn read(&self, path: &Path) -> Result<Vec<Asked>> {
        let rows = read_texts(path)?;
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        // A row stands where its record does; only CoNLL files have none.
        let is_objects = !["conll", "bio", "iob2"].contains(&extension.as_str());
        let records = if is_objects { Records::read_all(path)? } else { vec![] };
        let mut asked = Vec::with_capacity(rows.len());
        for (i, row) in rows.into_iter().enumerate() {
            let field = records.get(i).and_then(|record| record.value.get("adapter"));
            let name = match field {
                None | Some(Value::Null) => None,
                Some(Value::String(name)) if name.is_empty() => None,
                Some(Value::String(name)) => Some(name.as_str()),
                Some(_) => bail!("{}: \"adapter\" is not a name", row.source),
            };
            let adapter = self.model.named(name).with_context(|| row.source.to_string())?;
            let mut at = 0;
            let words = row.words.iter().map(|word| {
                let start = at;
                at += word.len() + 1;
                start..start + word.len()
            });
            asked.push(Asked { words: words.collect(), text: row.text, pair: row.pair, adapter });
        }
        if asked.is_empty() {
            bail!("{} has no texts", path.display());
        }
        Ok(asked)
    }

    /// What is needed of adapters and base, by head.
    fn groups(&self, asked: &[Asked], files: &ModelFiles) -> Result<Vec<Group>> {
        let mut groups: Vec<Group> = Vec::new();
        for (place, path) in self.model.adapter.iter().enumerate() {
            if !asked.iter().any(|row| row.adapter == Some(place)) {
                continue;
            }
            let record = TaskRecord::of_adapter(path)?.or(TaskRecord::of_files(files)?);
            let record = record.filter(TaskRecord::classifies).with_context(|| {
                let what =
                    "it was not trained to tell labels (no task.json, and no classifier among its tensors)";
                format!("adapter {}: {what}; --task embed gives embeddings", path.display())
            })?;
            match groups.iter_mut().find(|group| shares_head(&group.record, &record)) {
                Some(group) => group.adapters.push(place),
                None => groups.push(Group { record, adapters: vec![place], base: false }),
            }
        }
        if asked.iter().any(|row| row.adapter.is_none()) {
            let record = TaskRecord::of_files(files)?.filter(TaskRecord::classifies).with_context(|| {
                let path = self.model.model.display();
                format!("{path} has no classifier of its own: give an --adapter with one, or --task embed")
            })?;
            match groups.iter_mut().find(|group| shares_head(&group.record, &record)) {
                Some(group) => group.base = true,
                None => groups.push(Group { record, adapters: vec![], base: true }),
            }
        }
        Ok(groups)
    }

    /// One object for each text, in their order.
    fn answers(&self, asked: &[Asked], json: bool, signals: &Signals) -> Result<Vec<Value>> {
        let files = self.model.files()?;
        let groups = self.groups(asked, &files)?;
        let language = language(&files)?;
        let bar = bar(asked.len());
        let mut lines = vec![Value::Null; asked.len()];
        for group in &groups {
            let paths: Vec<PathBuf> = group.adapters.iter().map(|&i| self.model.adapter[i].clone()).collect();
            let (model, first) = self.model.load_slots(&group.record.head(), &paths, group.base)?;
            let slot = |place: usize| {
                group.adapters.iter().position(|&other| other == place).map(|place| first + place)
            };
            let mine: Vec<usize> = (0..asked.len())
                .filter(|&i| asked[i].adapter.map_or(group.base, |place| slot(place).is_some()))
                .collect();
            let slots: Vec<Option<usize>> = mine.iter().map(|&i| asked[i].adapter.and_then(slot)).collect();
            let asks: Vec<&Asked> = mine.iter().map(|&i| &asked[i]).collect();
            let length = self.max_length.map_or(group.record.max_length, |n| n as usize);
            let (texts, words) = tokens(&model, &language, &asks, length, &slots)?;
            let start = bar.position();
            let found =
                predict(model.text()?, &model.params, &texts, &slots, self.batch as usize, &mut |done| {
                    bar.set_position(start + done as u64);
                    signals.exit_code().is_none()
                })?;
            model.check_weights()?;
            tell_streamed(&model, json);
            let Some(found) = found else {
                return Err(Ended::new(signals.exit_code().unwrap_or(130), "interrupted").into());
            };
            let Head::Classifier(head) = model.net.head() else { bail!("this model has no classifier") };
            let labels = Labels { names: head.labels.clone() };
            for ((&i, prediction), words) in mine.iter().zip(&found).zip(&words) {
                lines[i] = self.line(&asked[i], prediction, head.problem, &labels, words);
            }
        }
        bar.finish_and_clear();
        Ok(lines)
    }

    fn line(
        &self,
        asked: &Asked,
        prediction: &Prediction,
        problem: Problem,
        labels: &Labels,
        words: &[Range<usize>],
    ) -> Value {
        let mut line = Map::new();
        line.insert("text".into(), json!(asked.text));
        if let Some(pair) = &asked.pair {
            line.insert("pair".into(), json!(pair));
        }
        if !self.model.adapter.is_empty() {
            let name = asked.adapter.map_or(BASE.to_owned(), |i| self.model.adapter[i].display().to_string());
            line.insert("adapter".into(), json!(name));
        }
        let scores = |probabilities: &[f32]| -> Value {
            let pairs = labels.names.iter().zip(probabilities);
            Value::Object(pairs.map(|(name, p)| (name.clone(), json!(p))).collect())
        };
        match prediction {
            Prediction::Class { class, probabilities } => {
                line.insert("label".into(), json!(labels.name(*class)));
                line.insert("score".into(), json!(probabilities.get(*class as usize)));
                line.insert("scores".into(), scores(probabilities));
            }
            Prediction::Labels { classes, probabilities } => {
                let names: Vec<&str> = classes.iter().map(|class| labels.name(*class)).collect();
                line.insert("labels".into(), json!(names));
                line.insert("scores".into(), scores(probabilities));
            }
            Prediction::Value(x) => drop(line.insert("value".into(), json!(x))),
            Prediction::Words(tags) => {
                line.insert("spans".into(), Value::Array(found_spans(&asked.text, words, tags, labels)));
            }
        }
        line.insert("answer".into(), json!(answer(prediction, problem, labels, &line)));
        Value::Object(line)
    }

    fn embed(&self, asked: &[Asked], json: bool, signals: &Signals) -> Result<()> {
        let used: Vec<usize> = (0..self.model.adapter.len())
            .filter(|&place| asked.iter().any(|row| row.adapter == Some(place)))
            .collect();
        let paths: Vec<PathBuf> = used.iter().map(|&i| self.model.adapter[i].clone()).collect();
        let files = self.model.files()?;
        let head = match paths.as_slice() {
            [] => HeadRequest::AsFile,
            paths => crate::loading::head_for(&files, paths)?.0,
        };
        let base = asked.iter().any(|row| row.adapter.is_none());
        let (model, first) = self.model.load_slots(&head, &paths, base)?;
        let language = language(&files)?;
        let slot = |place: usize| used.iter().position(|&other| other == place).map(|place| first + place);
        let slots: Vec<Option<usize>> = asked.iter().map(|row| row.adapter.and_then(slot)).collect();
        let asks: Vec<&Asked> = asked.iter().collect();
        let length = self.max_length.map_or(MAX_LENGTH, |n| n as usize);
        let (texts, _) = tokens(&model, &language, &asks, length, &slots)?;
        let bar = bar(asked.len());
        let vectors = embed(model.text()?, &model.params, &texts, &slots, self.batch as usize, &mut |done| {
            bar.set_position(done as u64);
            signals.exit_code().is_none()
        });
        bar.finish_and_clear();
        model.check_weights()?;
        tell_streamed(&model, json);
        let Some(vectors) = vectors else {
            return Err(Ended::new(signals.exit_code().unwrap_or(130), "interrupted").into());
        };
        let is_tensor = |path: &Path| path.extension().is_some_and(|e| e == "safetensors");
        if let Some(path) = self.out.as_ref().filter(|path| is_tensor(path)) {
            let shape = [vectors.rows(), vectors.cols()];
            let tensor = TensorOut::f32("embeddings", &shape, vectors.data().to_vec());
            return Ok(safetensors::write(path, [tensor], &[])?);
        }
        let lines = embedded(asked, &vectors);
        match &self.out {
            Some(path) => write_lines(path, &lines),
            None if json => print_lines(&lines),
            None => print_lines(&lines),
        }
    }
}

fn embedded(asked: &[Asked], vectors: &Tensor) -> Vec<Value> {
    let line = |(i, row): (usize, &Asked)| json!({"text": row.text, "embedding": vectors.row(i)});
    asked.iter().enumerate().map(line).collect()
}

/// The texts as ids, and the bytes of their words where these are labelled.
fn tokens(
    model: &Model,
    language: &Language,
    asked: &[&Asked],
    length: usize,
    slots: &[Option<usize>],
) -> Result<(Vec<Tokens>, Vec<Vec<Range<usize>>>)> {
    let net = model.text()?;
    let tags = matches!(net.head(), Head::Classifier(head) if head.problem == Problem::Tokens);
    let longest = slots.iter().map(|slot| net.virtual_rows(*slot)).max().unwrap_or(0);
    let length = room(net, length).min(net.info().context_length.saturating_sub(longest)).max(2);
    let mut texts = Vec::with_capacity(asked.len());
    let mut all_words = Vec::with_capacity(asked.len());
    for row in asked {
        let words = match (tags, row.words.is_empty()) {
            (false, _) => vec![],
            (true, true) => words_of(&row.text),
            (true, false) => row.words.clone(),
        };
        let tokens = Tokens::of(&language.tokenizer, &row.text, row.pair.as_deref(), &words, length)
            .with_context(|| format!("{:?}", shortened(&row.text)))?;
        model.check_ids(&tokens.ids)?;
        texts.push(tokens);
        all_words.push(words);
    }
    Ok((texts, all_words))
}

/// Spans of tags such as `B-PER`, `I-PER`; of other tags each word. Bytes of the text.
fn found_spans(text: &str, words: &[Range<usize>], tags: &[Option<Tagged>], labels: &Labels) -> Vec<Value> {
    let span = |kind: &str, first: usize, last: usize| {
        let (start, end) = (words.get(first)?.start, words.get(last)?.end);
        let inside = tags.get(first..=last)?.iter().flatten();
        let score = inside.clone().map(|t| t.probability).sum::<f32>() / inside.count().max(1) as f32;
        Some(
            json!({"label": kind, "score": score, "text": text.get(start..end)?, "start": start, "end": end}),
        )
    };
    let name = |tag: &Option<Tagged>| tag.map_or("O", |tag| labels.name(tag.class));
    if is_span_scheme(&labels.names) {
        let found = spans(tags.iter().map(name));
        return found.iter().filter_map(|s| span(s.kind, s.first, s.last)).collect();
    }
    tags.iter().enumerate().filter_map(|(i, tag)| span(labels.name((*tag)?.class), i, i)).collect()
}

/// The answer in one line.
fn answer(prediction: &Prediction, problem: Problem, labels: &Labels, line: &Map<String, Value>) -> String {
    if problem != Problem::Tokens {
        return in_words(prediction, labels);
    }
    let spans = line.get("spans").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let one = |span: &Value| {
        let text = |key: &str| span.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        format!("{} [{}]", text("text"), text("label"))
    };
    if spans.is_empty() { "none".into() } else { spans.iter().map(one).collect::<Vec<_>>().join(", ") }
}

fn bar(texts: usize) -> ProgressBar {
    if std::io::stderr().is_terminal() { ProgressBar::new(texts as u64) } else { ProgressBar::hidden() }
}

fn without_answer(line: &Value) -> Value {
    let mut line = line.clone();
    if let Some(fields) = line.as_object_mut() {
        fields.remove("answer");
    }
    line
}

fn print_lines(lines: &[Value]) -> Result<()> {
    let mut out = stdout().lock();
    for line in lines {
        writeln!(out, "{}", without_answer(line))?;
    }
    Ok(())
}

fn write_lines(path: &Path, lines: &[Value]) -> Result<()> {
    let text: String = lines.iter().map(|line| without_answer(line).to_string() + "\n").collect();
    Ok(atomic::write_bytes(path, text.as_bytes())?)
}

/// A line for each text: what is said of it, and its beginning; how often each label came, at the end.
fn show(asked: &[Asked], lines: &[Value], with_adapters: bool) -> Result<()> {
    let mut out = stdout().lock();
    let text = |line: &Value, key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let width = lines.iter().map(|line| text(line, "answer").chars().count()).max().unwrap_or(0).min(48);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (row, line) in asked.iter().zip(lines) {
        let answer = printable(&text(line, "answer"));
        let adapter =
            if with_adapters { dim(&format!("{}  ", text(line, "adapter"))) } else { String::new() };
        writeln!(out, "{}  {adapter}{}", bold(&format!("{answer:<width$}")), shortened(&row.text))?;
        *counts.entry(text(line, "label")).or_default() += 1;
    }
    if lines.len() > 1 && counts.keys().all(|label| !label.is_empty()) {
        let told: Vec<String> = counts.iter().map(|(label, n)| format!("{n} {}", printable(label))).collect();
        writeln!(out, "{}", dim(&format!("{} texts: {}", lines.len(), told.join(", "))))?;
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    let line = printable(text).replace(['\n', '\t'], " ");
    match line.char_indices().nth(TEXT_SHOWN) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}
