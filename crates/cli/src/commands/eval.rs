//! `retune eval`: loss, perplexity and the task's metrics of a model, with or without adapters, on rows of data.

use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::Result;
use indicatif::ProgressBar;
use retune::metrics::{Metric, Metrics};
use retune::models::Model;
use retune::run_file::TrainOn;
use retune::tasks::TaskRecord;
pub use retune::train::Measured;
use retune::train::{Control, measure};
use serde_json::Value;

use super::transcribe::score;
use crate::exit::Ended;
use crate::loading::{ModelArgs, tell_streamed};
use crate::signals::Signals;
use crate::style::{bold, count, dim, printable};
use crate::tasks::{self, Counts, Measuring, SpeechArgs, TaskData, View};

/// Tokens of a row where neither a flag nor the adapter says.
const MAX_LENGTH: usize = 1024;
/// Classes and characters of names that are shown; a larger confusion matrix is for the report.
const CLASSES_SHOWN: usize = 40;
const CONFUSION_SHOWN: usize = 8;
const NAME_SHOWN: usize = 24;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune eval --model model.gguf --data heldout.jsonl
  retune eval --model model.gguf --adapter out --data heldout.jsonl --json
  retune eval --model minilm --adapter sentiment --data labelled.csv     accuracy, F1 of each class, confusion
  retune eval --model model --adapter a --adapter b --data heldout.jsonl  one after the other over one base

What is measured is what the adapter (or the model) was trained for: its task.json tells.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Rows (.jsonl, .csv, .tsv, .txt, ...), or a folder of pictures or of sounds with their texts
    #[arg(long, value_name = "PATH")]
    data: PathBuf,

    #[command(flatten)]
    passes: PassArgs,
}

/// How rows are measured.
#[derive(clap::Args)]
pub struct PassArgs {
    /// Rows in one pass
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// Tokens of one row; longer rows are cut. Without it, as the adapter was trained, else 1024
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    max_length: Option<u32>,

    /// Which tokens count
    #[arg(long, value_name = "answers|all", default_value = "answers", value_parser = ["answers", "all"])]
    train_on: String,

    #[command(flatten)]
    speech: SpeechArgs,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let signals = Signals::catch()?;
    let several = args.model.adapter.len() > 1 && args.model.adapter_weights.is_empty();
    args.model.one_by_one(|adapter, model, record| {
        let named = adapter.filter(|_| several);
        if let Some(path) = named.filter(|_| !json) {
            println!("{}", bold(&path.display().to_string()));
        }
        measured(args, named, model, record, json, &signals)?;
        if several && !json {
            println!();
        }
        Ok(())
    })
}

/// Measures one model and prints what was found; `named` is the adapter where there are several.
fn measured(
    args: &Args,
    named: Option<&Path>,
    model: &Model,
    record: Option<&TaskRecord>,
    json: bool,
    signals: &Signals,
) -> Result<()> {
    let data = args.passes.rows(&args.data, model, record)?;
    let measured = args.passes.measure(&data, model, signals)?;
    tell_streamed(model, json);
    if !json {
        data.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    }
    let mut out = stdout().lock();
    match &measured.metrics {
        _ if json => writeln!(out, "{}", with_name(data.line(&measured), named))?,
        Some(metrics) => show(metrics, &mut out)?,
        None => writeln!(out, "{}", data.text(&measured))?,
    }
    Ok(())
}

/// The line of one of several adapters says which.
fn with_name(mut line: Value, named: Option<&Path>) -> Value {
    if let Some(path) = named {
        line["adapter"] = path.display().to_string().into();
    }
    line
}

/// The rows to measure on.
pub struct Rows(Box<dyn TaskData>);

impl PassArgs {
    /// The rows, as the model's task reads them.
    pub fn rows(&self, data: &Path, model: &Model, record: Option<&TaskRecord>) -> Result<Rows> {
        let asked = self.max_length.map(|n| n as usize).or(record.map(|record| record.max_length));
        let max_length = asked.unwrap_or(MAX_LENGTH);
        let train_on = if self.train_on == "all" { TrainOn::All } else { TrainOn::Answers };
        let with = Measuring { model, record, max_length, train_on, speech: &self.speech };
        Ok(Rows(tasks::measured(data, &with)?))
    }

    /// Measures a model on rows, with a bar on a terminal.
    pub fn measure(&self, rows: &Rows, model: &Model, signals: &Signals) -> Result<Measured> {
        let view = View::on(&model.net);
        let objective = rows.0.measured(&view);
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(objective.len() as u64)
        } else {
            ProgressBar::hidden()
        };
        let measured = measure(&model.params, objective.as_ref(), self.batch as usize, &mut |done| {
            bar.set_position(done as u64);
            if signals.exit_code().is_some() { Control::Stop } else { Control::Continue }
        })?;
        bar.finish_and_clear();
        measured.ok_or_else(|| Ended::new(signals.exit_code().unwrap_or(130), "interrupted").into())
    }
}

impl Rows {
    /// The ids of each text, and its token types.
    pub fn texts(&self) -> Vec<(&[u32], &[u32])> {
        self.0.texts()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.0.warnings()
    }

    /// What was measured, for machines.
    pub fn line(&self, measured: &Measured) -> Value {
        match &measured.metrics {
            Some(metrics) => serde_json::to_value(metrics).unwrap_or_default(),
            None => self.loss_line(measured.loss),
        }
    }

    /// What was measured, in a line for people.
    pub fn text(&self, measured: &Measured) -> String {
        let Counts { rows, targets, .. } = self.0.counts();
        let (loss, rows) = (measured.loss, count(rows as u64));
        match &measured.metrics {
            Some(metrics) => {
                let found = metrics.known().iter().filter(|metric| **metric != Metric::Loss);
                let found = found.filter_map(|metric| Some((metric.name(), metrics.get(*metric)?)));
                let found: Vec<String> = found.map(|(name, value)| format!("{name} {value:.4}")).collect();
                format!("loss {loss:.4}   {}   {rows} rows", found.join("   "))
            }
            None => {
                let targets =
                    targets.map(|n| format!(", {} target tokens", count(n as u64))).unwrap_or_default();
                format!("loss {loss:.4}   perplexity {:.3}   {rows} rows{targets}", loss.exp())
            }
        }
    }

    fn loss_line(&self, loss: f64) -> Value {
        let Counts { rows, tokens, targets } = self.0.counts();
        serde_json::json!({
            "loss": loss, "perplexity": loss.exp(), "rows": rows, "tokens": tokens, "target_tokens": targets,
        })
    }
}

/// Numbers for people: the quoted ones, one line a class, and the confusion matrix if it is small.
fn show(metrics: &Metrics, out: &mut impl Write) -> Result<()> {
    let loss = metrics.loss.unwrap_or(f64::NAN);
    writeln!(out, "loss {loss:.4}   {} rows", count(metrics.examples))?;
    for metric in metrics.known() {
        let Some(value) = metrics.get(*metric).filter(|_| *metric != Metric::Loss) else { continue };
        let interval = metrics.accuracy_interval.filter(|_| *metric == Metric::Accuracy);
        let interval =
            interval.map(|i| format!("   (95 %: {:.4} to {:.4})", i.low, i.high)).unwrap_or_default();
        writeln!(out, "{:<12} {}{interval}", metric.name(), bold(&format!("{value:.4}")))?;
    }
    let mut transcribed = metrics.transcribed.clone();
    score::show_worst(out, &mut transcribed)?;
    let classes = &metrics.classes[..metrics.classes.len().min(CLASSES_SHOWN)];
    let width = classes.iter().map(|c| c.name.chars().count()).max().unwrap_or(0).clamp(5, NAME_SHOWN);
    if !classes.is_empty() {
        writeln!(out, "\n{:<width$}  precision  recall      f1    rows", "class")?;
    }
    for class in classes {
        let (name, s) = (short(&class.name), class.scores);
        let rows = count(class.support);
        writeln!(out, "{name:<width$}  {:>9.4}  {:>6.4}  {:>6.4}  {rows:>6}", s.precision, s.recall, s.f1)?;
    }
    if !(2..=CONFUSION_SHOWN).contains(&metrics.confusion.len()) {
        return Ok(());
    }
    writeln!(out, "\n{}", dim("rows: true, columns: predicted"))?;
    let names: Vec<String> = metrics.confusion_labels.iter().map(|name| short(name)).collect();
    let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0).max(6);
    let line = |name: &str, cells: Vec<String>| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>width$}")).collect();
        format!("{name:<width$}  {}", cells.join("  "))
    };
    writeln!(out, "{}", line("", names.clone()))?;
    for (name, counts) in names.iter().zip(&metrics.confusion) {
        writeln!(out, "{}", line(name, counts.iter().map(|n| n.to_string()).collect()))?;
    }
    Ok(())
}

fn short(name: &str) -> String {
    printable(name).chars().take(NAME_SHOWN).collect()
}
