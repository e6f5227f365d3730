//! A network as darknet reads it: `.cfg` with the classes of its head, `.weights`, `.names`, in f32.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use retune_formats::darknet::{Config, Header, write_weights};
use retune_formats::{Dtype, atomic, labels};
use retune_tensor::Layout;

use super::selection::Selection;
use super::values::{Order, Values};
use super::weights::Tally;
use super::{Done, ExportDtype, ExportOptions, ExportReport, Step, TensorLoss, folder};
use crate::error::{Error, Result};
use crate::models::{Model, darknet};
use crate::nn::Head;

/// Does a name to write to mean darknet's files?
pub fn is_darknet(out: &Path) -> bool {
    let is = |ending: &str| out.extension().is_some_and(|end| end.eq_ignore_ascii_case(ending));
    is("cfg") || is("weights")
}

/// Writes `out` with the endings `.cfg`, `.weights` and `.names`.
///
/// # Errors
/// If the model is no darknet network, the type is not f32, a file is there already, or the disk fails.
pub fn write(
    model: &Model,
    out: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Step),
) -> Result<ExportReport> {
    let fail = |what: String| Error::Export { path: out.to_path_buf(), what };
    if !matches!(options.dtype, ExportDtype::AsSource | ExportDtype::F32) {
        return Err(fail("darknet's .weights hold f32 alone; leave the type out, or write a folder".into()));
    }
    let json = model.net.config_json();
    let (Some(text), Head::Detector(head)) = (json["cfg"].as_str(), model.net.head()) else {
        let what = format!(
            "a {} model has no darknet .cfg, only darknet's networks do; name a folder",
            model.net.model_type()
        );
        return Err(fail(what));
    };
    let [cfg, weights, names] = ["cfg", "weights", "names"].map(|ending| out.with_extension(ending));
    for file in [&cfg, &weights, &names] {
        folder::check_file(file, &model.files, options.overwrite)?;
    }
    let config = Config::parse(&cfg, text)?;
    let plan = darknet::Plan::new(&config)?;
    let selection = Selection::new(model, options);
    let values: HashMap<&str, &Values> = selection.values.iter().map(|v| (v.name.as_str(), v)).collect();
    let mut runs: Vec<&Values> = Vec::new();
    for (name, shape) in (0..plan.layers.len()).flat_map(|number| plan.tensors(number)) {
        let found = values.get(name.as_str()).filter(|values| values.param.shape == shape);
        runs.push(
            found.copied().ok_or_else(|| fail(format!("the model has no \"{name}\" of shape {shape:?}")))?,
        );
    }
    let bytes = 4 * runs.iter().map(|run| run.param.elements() as u64).sum::<u64>();
    atomic::check_space(weights.parent().unwrap_or(Path::new(".")), bytes)?;
    let done = numbers(model, &weights, &runs, progress)?;
    model.check_weights()?;
    labels::write(&names, &head.detector.labels)?;
    config.write(&cfg)?;
    Ok(ExportReport {
        files: [&cfg, &names, &weights].map(|path| file_name(path)).to_vec(),
        tensors: runs.len(),
        bytes,
        dtype: Dtype::F32,
        merged: selection.merged(),
        max_change: done.max_change,
        same_base: selection.is_base(),
        losses: done.losses,
        notes: selection.notes(model),
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes the numbers, one tensor at a time in memory.
fn numbers(model: &Model, path: &Path, runs: &[&Values], progress: &mut dyn FnMut(Step)) -> Result<Done> {
    let tally = RefCell::new(Tally { steps: runs.len(), progress, done: Done::default(), failure: None });
    let run = |values: &&Values| {
        let mut all = Vec::with_capacity(values.param.elements());
        let order = match values.param.layout {
            Layout::Kernel(h, w) => Order::Kernel(h, w),
            _ => Order::AsIs,
        };
        let change = values.strips(&model.params, order, &mut |strip| {
            all.extend_from_slice(strip);
            Ok(())
        });
        let mut tally = tally.borrow_mut();
        match change {
            Ok(change) => tally.add(TensorLoss::none(&values.name, Dtype::F32, all.len() as u64), change),
            // The writer stops at a number that is none.
            Err(failure) => {
                tally.failure.get_or_insert(failure);
                all = vec![f32::NAN];
            }
        }
        Cow::Owned(all)
    };
    let written = write_weights(path, Header::default(), runs.iter().map(run));
    let Tally { done, failure, .. } = tally.into_inner();
    match failure {
        Some(failure) => Err(failure),
        None => Ok(written.map(|()| done)?),
    }
}
