//! Opens a `.cfg` with the `.weights` and the names of classes that lie beside it.

use std::path::{Path, PathBuf};

use retune_formats::darknet::{Config, Named, Weights};
use retune_formats::labels;
use serde_json::{Map, Value, json};

use super::plan::Plan;
use crate::error::{Error, Result};

/// An open network.
pub struct Found {
    pub source: Named,
    /// What would be its `config.json`.
    pub config: Value,
    /// The file of its numbers.
    pub weights: PathBuf,
}

/// Opens a network by its `.cfg` or its `.weights`. The other file has the same name but for its ending, or is the only one of its kind in
/// the folder; the names of classes likewise (`.names`), and darknet's `coco.names` and `voc.names` if they have as many.
///
/// # Errors
/// If one of the two is not there, damaged, or not of the other.
pub fn open(path: &Path) -> Result<Found> {
    let (cfg, weights) = (beside(path, "cfg")?, beside(path, "weights")?);
    let config = Config::open(&cfg)?;
    let plan = Plan::new(&config)?;
    let mut tensors = Vec::new();
    for (number, layer) in plan.layers.iter().enumerate() {
        for (name, shape) in plan.tensors(number) {
            let what = format!("layer {number} of line {} of {}, {name}", layer.line, cfg.display());
            tensors.push((name, shape, what));
        }
    }
    let source = Weights::open(&weights)?.named(tensors)?;
    let mut json = json!({ "model_type": "darknet", "cfg": config.to_text() });
    if let Some(names) = names(&cfg, plan.classes)? {
        let pairs: Map<String, Value> =
            names.into_iter().enumerate().map(|(i, name)| (i.to_string(), json!(name))).collect();
        json["id2label"] = Value::Object(pairs);
    }
    Ok(Found { source, config: json, weights })
}

/// The file of this ending that belongs to `path`.
fn beside(path: &Path, ending: &str) -> Result<PathBuf> {
    let same = path.with_extension(ending);
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)) {
        return Ok(path.to_path_buf());
    }
    if same.is_file() {
        return Ok(same);
    }
    let folder = folder(path);
    match all(folder, ending).as_slice() {
        [one] => Ok(one.clone()),
        found => {
            let what = format!(
                "there is no {} beside it, and {} .{ending} files in {}: a darknet network is a .cfg and a .weights of one name",
                same.file_name().unwrap_or_default().display(),
                found.len(),
                folder.display()
            );
            Err(Error::Model { path: path.to_path_buf(), what })
        }
    }
}

/// The names of so many classes; `None` if no file has them.
fn names(cfg: &Path, classes: usize) -> Result<Option<Vec<String>>> {
    let own = cfg.with_extension("names");
    if own.is_file() {
        let names = labels::read(&own)?;
        if names.len() != classes {
            let what = format!(
                "it has {} names, {} has {classes} classes; they must be as many",
                names.len(),
                cfg.display()
            );
            return Err(Error::Model { path: own, what });
        }
        return Ok(Some(names));
    }
    let folder = folder(cfg);
    let others = match all(folder, "names").as_slice() {
        [one] => vec![one.clone()],
        _ => ["coco.names", "voc.names"].map(|name| folder.join(name)).to_vec(),
    };
    for path in others.into_iter().filter(|path| path.is_file()) {
        let names = labels::read(&path)?;
        if names.len() == classes {
            return Ok(Some(names));
        }
    }
    Ok(None)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The files of this ending in a folder, in order.
fn all(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)) && path.is_file())
        .collect();
    found.sort();
    found
}
