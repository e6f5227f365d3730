//! Pictures as the network is given them, epoch by epoch, with what is to be learned of them.

use std::path::Path;

use anyhow::{Result, bail};
use retune::models::ImageModel;
use retune::run_file::RunFile;
use retune::tasks::detection::Detect;
use retune::tasks::images::ImageClassification;
use retune_media::pictures::Picture;
use retune_media::pictures::draw::{self, Cell, Drawn, sheet};
use serde_json::{Value, json};

use super::{Shown, Summary};
use crate::detection::Detected;
use crate::pictures::{Pictured, write_beside};
use crate::style::{count, dim};
use crate::tasks::Data;
use crate::training::Prepared;

/// Epochs that are drawn of what is another picture in each; pictures beside one another of what is not.
const EPOCHS: u64 = 4;
/// Pixels of a drawn picture's sides.
const SIDE: usize = 240;
/// Most boxes of a picture that bear their labels: more would hide it.
const LABELLED: usize = 40;
const GREY: [u8; 3] = [160; 3];

/// A picture of an epoch with what is true of it.
struct Seen {
    /// With its boxes drawn.
    picture: Picture,
    /// In a few words.
    truth: String,
    json: Value,
}

/// The first pictures and what is told of all.
pub fn rows(run: RunFile, n: usize, folder: Option<&Path>) -> Result<(Vec<Shown>, Summary)> {
    let prepared = Prepared::new(run)?;
    let (net, seed) = (prepared.model.image()?, prepared.run.seed);
    match &prepared.data {
        Data::Pictures(data) => {
            let names: Vec<String> = data.train.examples.iter().take(n).map(|e| e.origin.clone()).collect();
            let changes = data.augment.is_some();
            shown(&names, changes, data.rows(), folder, &|i, epoch| of_class(data, net, seed, (i, epoch)))
        }
        Data::Boxes(data) => {
            let pictures = data.train.pictures.iter().take(n);
            let names: Vec<String> = pictures.map(|p| p.path.display().to_string()).collect();
            let changes = data.augment.is_some();
            shown(&names, changes, data.rows(), folder, &|i, epoch| with_boxes(data, net, seed, (i, epoch)))
        }
        _ => bail!("the rows are no pictures"),
    }
}

fn shown(
    names: &[String],
    changes: bool,
    facts: Vec<(&'static str, String)>,
    folder: Option<&Path>,
    seen: &dyn Fn(usize, u64) -> Result<Seen>,
) -> Result<(Vec<Shown>, Summary)> {
    let epochs = if changes && folder.is_some() { EPOCHS } else { 1 };
    let (mut rows, mut cells) = (Vec::new(), Vec::new());
    for (i, name) in names.iter().enumerate() {
        for epoch in 0..epochs {
            let Seen { picture, truth, json } = seen(i, epoch)?;
            if epoch == 0 {
                let counts = format!("{} x {} pixels of the network", picture.width, picture.height);
                rows.push(Shown { source: name.clone(), counts, lines: vec![truth.clone()], json });
            }
            let file =
                Path::new(name).file_name().map_or(name.clone(), |name| name.to_string_lossy().into_owned());
            let first = if changes { format!("epoch {}: {file}", epoch + 1) } else { file };
            cells.push(Cell { picture, caption: vec![first, truth], frame: GREY });
        }
    }
    let mut lines: Vec<String> = facts.iter().map(|(name, value)| format!("{name:<10} {value}")).collect();
    let mut json: serde_json::Map<String, Value> =
        facts.into_iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
    match folder {
        Some(folder) if !cells.is_empty() => {
            let path = write_beside(&sheet(&cells, EPOCHS as usize, SIDE), folder, "preview")?;
            lines.push(format!("{:<10} {}", "drawn", path.display()));
            json.insert("drawn".into(), json!(path.display().to_string()));
        }
        _ => lines.push(dim("--draw FOLDER draws them as the network is given them")),
    }
    Ok((rows, Summary { lines, json: Value::Object(json) }))
}

/// A picture of a class, or of shares of two.
fn of_class(data: &Pictured, net: &ImageModel, seed: u64, (i, epoch): (usize, u64)) -> Result<Seen> {
    let objective = ImageClassification {
        seed: Some(seed),
        augment: data.augment.as_ref(),
        ..data.objective(net, &data.train)
    };
    let mixed = objective.seen(i, epoch)?;
    let name = |example: usize| &data.train.classes[data.train.examples[example].class as usize];
    let share = |(example, share): &(usize, f32)| match *share {
        share if share < 1.0 => format!("{} {:.0} %", name(*example), 100.0 * share),
        _ => name(*example).clone(),
    };
    let truth = mixed.labels.iter().map(share).collect::<Vec<_>>().join(", ");
    let json = json!({"label": name(i), "width": mixed.picture.width, "height": mixed.picture.height});
    Ok(Seen { picture: mixed.picture, truth, json })
}

/// A picture with its boxes, which are drawn.
fn with_boxes(data: &Detected, net: &ImageModel, seed: u64, (i, epoch): (usize, u64)) -> Result<Seen> {
    let objective =
        Detect { seed: Some(seed), augment: data.augment.as_ref(), ..data.objective(net, &data.train) };
    let (mut picture, boxes) = objective.seen(i, epoch)?;
    let (width, height) = (picture.width, picture.height);
    let name = |class: u32| data.train.classes[class as usize].clone();
    let drawn = |b: &retune::tasks::detection::LabelledBox| Drawn {
        bounds: b.bounds,
        label: if boxes.len() <= LABELLED { name(b.class) } else { String::new() },
        colour: draw::class_colour(b.class),
    };
    draw::boxes(&mut picture, &boxes.iter().map(drawn).collect::<Vec<_>>());
    let objects: Vec<Value> = boxes
        .iter()
        .map(|b| json!({"label": name(b.class), "box": b.bounds.to_pixels(width, height)}))
        .collect();
    let json = json!({"objects": objects, "width": width, "height": height});
    Ok(Seen { picture, truth: counted(data, &boxes), json })
}

/// How many boxes of each class.
fn counted(data: &Detected, boxes: &[retune::tasks::detection::LabelledBox]) -> String {
    let number = |class: usize| boxes.iter().filter(|b| b.class as usize == class).count();
    let each = data.train.classes.iter().enumerate().map(|(class, name)| (name, number(class)));
    let each: Vec<String> =
        each.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {}", count(n as u64))).collect();
    if each.is_empty() { "no boxes".into() } else { each.join(", ") }
}
