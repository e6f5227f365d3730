//! Writes a trained network as darknet reads it: `.cfg` with the classes of its head, `.weights`, `.names`.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use retune_formats::darknet::{Config, Header, write_weights};
use retune_formats::labels;

use super::plan::Plan;
use crate::error::{Error, Result};
use crate::models::{Model, Network};
use crate::nn::Head;

/// Writes `path` with the endings `.cfg`, `.weights` and `.names`, with the weights that the model has in memory; returns the three.
///
/// # Errors
/// If the model is no darknet network, or the disk fails.
pub fn write(model: &Model, path: &Path) -> Result<[PathBuf; 3]> {
    let fail = |what: String| Error::Export { path: path.to_path_buf(), what };
    let net = model.image()?;
    let Head::Detector(head) = net.head() else {
        return Err(fail("the model has no detector's head".into()));
    };
    let json = net.config_json();
    let Some(text) = json["cfg"].as_str() else {
        let what = format!("a {} model has no darknet .cfg; only darknet's networks do", net.model_type());
        return Err(fail(what));
    };
    let files = ["cfg", "weights", "names"].map(|ending| path.with_extension(ending));
    let config = Config::parse(&files[0], text)?;
    let plan = Plan::new(&config)?;
    let mut ids = Vec::new();
    for (name, shape) in (0..plan.layers.len()).flat_map(|number| plan.tensors(number)) {
        let id = model.params.find(&name).filter(|id| model.params.get(*id).shape == shape);
        ids.push(id.ok_or_else(|| fail(format!("the model has no \"{name}\" of shape {shape:?}")))?);
    }
    let runs = ids.into_iter().map(|id| {
        let param = model.params.get(id);
        Cow::Owned(param.layout.values_to_file(&param.weight.to_tensor()))
    });
    write_weights(&files[1], Header::default(), runs)?;
    model.check_weights()?;
    labels::write(&files[2], &head.detector.labels)?;
    config.write(&files[0])?;
    Ok(files)
}
