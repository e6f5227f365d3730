//! What rows of data and sets of pictures are: how many, of what, and how they are laid out.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use retune_formats::records::Records;
use retune_media::pictures::annotations::{Annotations, Rules};
use retune_media::pictures::{Labelled, Splits};
use serde_json::Map;

use super::{Facts, Found};
use crate::style::{count, megabytes};

pub fn rows(path: &Path) -> Result<Found> {
    let mut rows = 0;
    let mut longest = (0, 0);
    let mut keys: BTreeMap<String, u64> = BTreeMap::new();
    for record in Records::open(path)? {
        let record = record?;
        rows += 1;
        let length = record.value.to_string().len() as u64;
        if length > longest.0 {
            longest = (length, record.line);
        }
        for key in record.value.as_object().into_iter().flat_map(Map::keys) {
            *keys.entry(key.clone()).or_default() += 1;
        }
    }
    let keys: Vec<String> = keys
        .iter()
        .map(|(key, n)| if *n == rows { key.clone() } else { format!("{key} (in {} rows)", count(*n)) })
        .collect();
    let facts = vec![
        ("size", megabytes(std::fs::metadata(path)?.len())),
        ("rows", count(rows)),
        ("columns", keys.join(", ")),
        ("longest row", format!("{} in line {}", megabytes(longest.0), longest.1)),
    ];
    Ok(Found {
        kind: "data file",
        is_model: false,
        layers_differ: false,
        path: path.into(),
        facts,
        tensors: Vec::new(),
    })
}

/// Classes that are told with their numbers.
const CLASSES: usize = 12;

/// A folder of pictures: with boxes, if there are any, else by class.
pub fn pictures(path: &Path) -> Result<Found> {
    let boxes = Annotations::open(path, Rules::default());
    let (kind, facts) = match (boxes, Labelled::open(path)) {
        (Ok(sets), _) => {
            ("pictures with boxes", facts(&sets, |set| (set.len(), set.counts(), &set.classes), "boxes"))
        }
        (_, Ok(sets)) => {
            ("pictures by class", facts(&sets, |set| (set.len(), set.counts(), &set.classes), "pictures"))
        }
        (Err(boxes), Err(labelled)) => bail!(
            "{}: no model (config.json), no adapter (adapter_config.json, delta.json) and no pictures to learn from\n  as pictures \
             with boxes: {boxes}\n  as pictures by class: {labelled}",
            path.display()
        ),
    };
    Ok(Found { kind, is_model: false, layers_differ: false, path: path.into(), facts, tensors: Vec::new() })
}

/// Numbers of each part of a set, and of each class of what it is trained on.
fn facts<T>(sets: &Splits<T>, of: impl Fn(&T) -> (usize, Vec<usize>, &Vec<String>), things: &str) -> Facts {
    let parts = [
        ("pictures", Some(&sets.train)),
        ("to validate", sets.val.as_ref()),
        ("to test", sets.test.as_ref()),
    ];
    let numbers = |set: &T| {
        let (pictures, counts, _) = of(set);
        let boxes = format!(" with {} {things}", count(counts.iter().sum::<usize>() as u64));
        format!("{}{}", count(pictures as u64), if things == "boxes" { boxes } else { String::new() })
    };
    let mut facts: Facts = parts.into_iter().filter_map(|(name, set)| Some((name, numbers(set?)))).collect();
    let (_, counts, classes) = of(&sets.train);
    let each =
        classes.iter().zip(&counts).take(CLASSES).map(|(name, n)| format!("{name} {}", count(*n as u64)));
    let more = if classes.len() > CLASSES { ", ..." } else { "" };
    let each: Vec<String> = each.collect();
    facts.push(("classes", format!("{}: {}{more}", classes.len(), each.join(", "))));
    facts
}
