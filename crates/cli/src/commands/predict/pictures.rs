//! `retune predict` on pictures: the classes of each with their probabilities.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use retune::models::{Model, ModelFiles};
use retune::nn::Head;
use retune::tasks::TaskRecord;
use retune::tasks::images::{self, Answer};
use retune_media::pictures::decode;
use serde_json::{Value, json};

use super::{Args, bar, print_lines, write_lines};
use crate::exit::{Ended, UsageError};
use crate::signals::Signals;
use crate::style::{bold, dim, printable};

/// Classes that are told for people.
const CLASSES_SHOWN: usize = 3;

/// What is asked of pictures.
#[derive(clap::Args)]
pub struct PictureArgs {
    /// A picture, or a folder of them; may be given several times
    #[arg(long, value_name = "PATH", conflicts_with_all = ["text", "data"])]
    image: Vec<PathBuf>,
}

impl PictureArgs {
    /// For models that read text.
    ///
    /// # Errors
    /// If pictures were given.
    pub fn refuse(&self, model: &Path) -> Result<()> {
        match self.image.first() {
            None => Ok(()),
            Some(path) => Err(UsageError(format!(
                "--image {} is a picture, and {} reads text; give --text or --data",
                path.display(),
                model.display()
            ))
            .into()),
        }
    }
}

/// Answers for all pictures, through each adapter in turn.
pub fn run(args: &Args, files: &ModelFiles, json: bool, signals: &Signals) -> Result<()> {
    if args.task == "embed" || !args.text.is_empty() {
        let what =
            format!("{} reads pictures: give --image PATH or --data FOLDER", args.model.model.display());
        return Err(UsageError(what).into());
    }
    let paths = paths(args)?;
    if args.model.adapter.is_empty() && TaskRecord::of_files(files)?.is_none() {
        eprintln!("note: the model has no names for its classes; they are told by their numbers");
    }
    let several = args.model.adapter.len() > 1;
    let mut lines = Vec::new();
    args.model.one_by_one(|adapter, model, _| {
        let answers = answers(args, model, &paths, signals)?;
        let Head::Classifier(head) = model.net.head() else { bail!("this model has no classifier") };
        for (path, answer) in paths.iter().zip(&answers) {
            let mut line = line(path, answer, &head.labels);
            if let Some(adapter) = adapter {
                line["adapter"] = json!(adapter.display().to_string());
            }
            lines.push(line);
        }
        Ok(())
    })?;
    match &args.out {
        Some(path) => write_lines(path, &lines),
        None if json => print_lines(&lines),
        None => show(&lines, several),
    }
}

/// The pictures that were named, and those in folders.
fn paths(args: &Args) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for path in args.pictures.image.iter().chain(&args.data) {
        if !path.is_dir() {
            paths.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        collect(path, &mut inside)?;
        if inside.is_empty() {
            bail!("{}: there are no pictures in it (png, jpeg, webp, bmp)", path.display());
        }
        inside.sort();
        paths.extend(inside);
    }
    if paths.is_empty() {
        return Err(UsageError("no pictures: give --image PATH, a file or a folder".into()).into());
    }
    Ok(paths)
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        // Links are not followed: they may go round.
        if kind.is_dir() {
            collect(&path, into)?;
        } else if kind.is_file() && decode::is_picture_name(&path) {
            into.push(path);
        }
    }
    Ok(())
}

fn answers(args: &Args, model: &Model, paths: &[PathBuf], signals: &Signals) -> Result<Vec<Answer>> {
    let bar = bar(paths.len());
    let slots = vec![Some(0); paths.len()];
    let found = images::predict(
        model.image()?,
        &model.params,
        &slots,
        args.batch as usize,
        &|i| Ok(decode::read(&paths[i])?),
        &mut |done| {
            bar.set_position(done as u64);
            signals.exit_code().is_none()
        },
    )?;
    bar.finish_and_clear();
    model.check_weights()?;
    found.ok_or_else(|| Ended::new(signals.exit_code().unwrap_or(130), "interrupted").into())
}

fn line(path: &Path, answer: &Answer, labels: &[String]) -> Value {
    let name = |class: usize| labels.get(class).cloned().unwrap_or_default();
    let scores: serde_json::Map<String, Value> =
        answer.probabilities.iter().enumerate().map(|(class, p)| (name(class), json!(p))).collect();
    let class = answer.class as usize;
    json!({
        "image": path.display().to_string(), "label": name(class), "class": class,
        "score": answer.probabilities.get(class), "scores": scores,
    })
}

/// A line for each picture: its likeliest classes.
fn show(lines: &[Value], with_adapters: bool) -> Result<()> {
    let mut out = stdout().lock();
    for line in lines {
        let mut scores: Vec<(String, f64)> = line["scores"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, p)| (printable(name), p.as_f64().unwrap_or_default()))
            .collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        let told: Vec<String> =
            scores.iter().take(CLASSES_SHOWN).map(|(name, p)| format!("{name} {:.1} %", 100.0 * p)).collect();
        let text = |key: &str| printable(line[key].as_str().unwrap_or_default());
        let adapter = if with_adapters { dim(&format!("  {}", text("adapter"))) } else { String::new() };
        let (first, rest) = told.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        let rest = if rest.is_empty() { String::new() } else { dim(&format!("   {}", rest.join("   "))) };
        writeln!(out, "{}  {}{rest}{adapter}", text("image"), bold(first))?;
    }
    Ok(())
}
