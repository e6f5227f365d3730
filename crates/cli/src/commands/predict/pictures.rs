//! `retune predict` on pictures: the classes of each with their probabilities, or the objects in it.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use retune::models::{ImageModel, Model, ModelFiles};
use retune::nn::Head;
use retune::tasks::detection::{self, BoxF, Detection, Nms};
use retune::tasks::images::{self, Answer, Pictures};
use retune_media::pictures::draw::{self, Hide};
use retune_media::pictures::{Picture, decode};
use serde_json::{Value, json};

use super::{Args, bar, print_lines, write_lines};
use crate::exit::{Ended, UsageError};
use crate::sheets::write_beside;
use crate::signals::Signals;
use crate::style::{bold, dim, printable};
use crate::tasks::{did_you_mean, drawn};

/// Classes that are told for people.
const CLASSES_SHOWN: usize = 3;

/// What is asked of pictures.
#[derive(clap::Args)]
pub struct PictureArgs {
    /// A picture, or a folder of them; may be given several times
    #[arg(long, value_name = "PATH", conflicts_with_all = ["text", "data"])]
    image: Vec<PathBuf>,

    /// Detectors: the least score of a box
    #[arg(long, value_name = "X", default_value_t = 0.25, value_parser = share)]
    confidence: f32,

    /// Detectors: boxes of one class that overlap by more (IoU) are one object
    #[arg(long, value_name = "X", default_value_t = 0.45, value_parser = share)]
    overlap: f32,

    /// Detectors: only these classes
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    classes: Vec<String>,

    /// Detectors: write each picture with its boxes into this folder, as PNG
    #[arg(long, value_name = "FOLDER")]
    draw: Option<PathBuf>,

    /// Detectors: blur what was found in the pictures of --draw instead of framing it
    #[arg(long, requires = "draw")]
    anonymise: bool,
}

fn share(text: &str) -> Result<f32, String> {
    let x: f32 = text.parse().map_err(|_| "a number from 0 to 1".to_string())?;
    if (0.0..=1.0).contains(&x) { Ok(x) } else { Err("a number from 0 to 1".into()) }
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

impl PictureArgs {
    /// What only a detector can do.
    fn refuse_for_classifiers(&self) -> Result<()> {
        let given = [("--draw", self.draw.is_some()), ("--classes", !self.classes.is_empty())];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                Err(UsageError(format!("{flag} is for detectors; this model tells classes")).into())
            }
            None => Ok(()),
        }
    }
}

/// The objects in each picture, which is drawn too where that was asked for.
fn objects(
    args: &Args,
    model: &Model,
    labels: &[String],
    paths: &[PathBuf],
    signals: &Signals,
) -> Result<Vec<Value>> {
    let PictureArgs { confidence, overlap, classes, draw, .. } = &args.pictures;
    if let Some(odd) = classes.iter().find(|name| !labels.contains(name)) {
        let near = did_you_mean(odd, labels.iter().map(String::as_str));
        return Err(UsageError(format!("the model knows no class {odd:?}{near}")).into());
    }
    if let Some(folder) = draw {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let settings = (*confidence, &Nms { overlap: *overlap, ..Nms::default() });
    let name = |d: &Detection| labels.get(d.class as usize).cloned().unwrap_or_default();
    each_picture(args, model, paths, signals, |net, pictures, each| {
        detection::predict(net, &model.params, pictures, settings, &mut |i, picture, mut found| {
            found.retain(|d| classes.is_empty() || classes.contains(&name(d)));
            let (width, height) = (picture.width, picture.height);
            let object = |d: &Detection| {
                let pixels = d.bounds.to_pixels(width, height).map(|x| (f64::from(x) * 10.0).round() / 10.0);
                json!({"label": name(d), "score": d.score, "box": pixels})
            };
            let mut line = json!({
                "width": width, "height": height, "objects": found.iter().map(object).collect::<Vec<_>>(),
            });
            if let Some(folder) = draw {
                let drawn = write_drawn(picture, &paths[i], folder, &found, labels, args.pictures.anonymise)?;
                line["drawn"] = json!(drawn.display().to_string());
            }
            each(line)
        })
    })
}

/// Runs a prediction over all pictures with a bar; what `each` was given of them, in their order.
fn each_picture<T>(
    args: &Args,
    model: &Model,
    paths: &[PathBuf],
    signals: &Signals,
    predict: impl FnOnce(&ImageModel, &Pictures, &mut dyn FnMut(T) -> Result<bool>) -> Result<bool>,
) -> Result<Vec<T>> {
    let bar = bar(paths.len());
    let slots = vec![Some(0); paths.len()];
    let pictures =
        Pictures { slots: &slots, batch_size: args.batch as usize, read: &|i| Ok(decode::read(&paths[i])?) };
    let mut found = Vec::with_capacity(paths.len());
    let whole = predict(model.image()?, &pictures, &mut |one| {
        found.push(one);
        bar.set_position(found.len() as u64);
        Ok(signals.exit_code().is_none())
    })?;
    bar.finish_and_clear();
    model.check_weights()?;
    match whole || found.len() == paths.len() {
        true => Ok(found),
        false => Err(Ended::new(signals.exit_code().unwrap_or(130), "interrupted").into()),
    }
}

/// Writes a picture with its objects framed, or hidden.
fn write_drawn(
    mut picture: Picture,
    path: &Path,
    folder: &Path,
    found: &[Detection],
    labels: &[String],
    anonymise: bool,
) -> Result<PathBuf> {
    if anonymise {
        let boxes: Vec<BoxF> = found.iter().map(|d| d.bounds).collect();
        draw::hide(&mut picture, &boxes, Hide::Blur);
    } else {
        draw::boxes(&mut picture, &drawn(found, labels, true));
    }
    // Pictures of several folders may share a name.
    write_beside(&picture, folder, &path.file_stem().unwrap_or_default().to_string_lossy())
}

/// Answers for all pictures, through each adapter in turn.
pub fn run(args: &Args, files: &ModelFiles, json: bool, signals: &Signals) -> Result<()> {
    if args.task == "embed" || !args.text.is_empty() {
        let what =
            format!("{} reads pictures: give --image PATH or --data FOLDER", args.model.model.display());
        return Err(UsageError(what).into());
    }
    let paths = paths(args)?;
    let named = files.config().is_ok_and(|config| config.get("id2label").is_some());
    if args.model.adapter.is_empty() && !named {
        eprintln!("note: the model has no names for its classes; they are told by their numbers");
    }
    let several = args.model.adapter.len() > 1;
    let mut lines = Vec::new();
    args.model.one_by_one(|adapter, model, _| {
        if let Head::Detector(head) = model.net.head() {
            let found = objects(args, model, &head.detector.labels, &paths, signals)?;
            for (path, mut line) in paths.iter().zip(found) {
                line["image"] = json!(path.display().to_string());
                if let Some(adapter) = adapter {
                    line["adapter"] = json!(adapter.display().to_string());
                }
                lines.push(line);
            }
            return Ok(());
        }
        args.pictures.refuse_for_classifiers()?;
        let answers = each_picture(args, model, &paths, signals, |net, pictures, each| {
            images::predict(net, &model.params, pictures, &mut |_, _, answer| each(answer))
        })?;
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

/// The objects of a picture, a line each.
fn show_objects(line: &Value, objects: &[Value], out: &mut impl Write) -> Result<()> {
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let n = match objects.len() {
        0 => "nothing found".to_string(),
        1 => "1 object".to_string(),
        n => format!("{n} objects"),
    };
    let drawn = line["drawn"].as_str().map(|path| format!(" -> {}", printable(path))).unwrap_or_default();
    writeln!(out, "{}  {}", text(&line["image"]), dim(&format!("{n}{drawn}")))?;
    for object in objects {
        let corners: Vec<String> = object["box"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|x| format!("{:.0}", x.as_f64().unwrap_or_default()))
            .collect();
        let score = object["score"].as_f64().unwrap_or_default();
        writeln!(out, "  {} {score:.2}  {}", bold(&text(&object["label"])), dim(&corners.join(" ")))?;
    }
    Ok(())
}

/// A line for each picture: its likeliest classes.
fn show(lines: &[Value], with_adapters: bool) -> Result<()> {
    let mut out = stdout().lock();
    for line in lines {
        if let Some(objects) = line["objects"].as_array() {
            show_objects(line, objects, &mut out)?;
            continue;
        }
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
