//! Writes a model as a plain Hugging Face folder that transformers loads: merged, converted or as it is.
//!
//! Everything is first written beside the final names and moved there at the end, `config.json` last: a folder with a
//! configuration is whole. Weights are streamed, one tensor at a time in f32.

mod config;
mod folder;
mod texts;
mod weights;

use std::path::Path;

use retune_formats::json::to_python_text;
use retune_formats::{Dtype, atomic};

use crate::base::{self, BaseIdentity};
use crate::error::{Error, Result};
use crate::models::{Model, ModelFiles};
use folder::Staging;

/// The element type of the weights that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportDtype {
    F32,
    F16,
    BF16,
    /// Each tensor as in the model's files; a GGUF with quantised tensors all in f32, the values that they stand for.
    #[default]
    AsSource,
}

/// How [`write_folder`] writes.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportOptions {
    pub dtype: ExportDtype,
    /// Add the adapters on the model to its weights; otherwise they are left out.
    pub merge: bool,
    /// Largest weight file; a model above it is written in several with an index.
    pub max_shard_bytes: u64,
    /// Replace a model that lies in the folder.
    pub overwrite: bool,
}

impl Default for ExportOptions {
    fn default() -> ExportOptions {
        ExportOptions {
            dtype: ExportDtype::AsSource,
            merge: true,
            max_shard_bytes: 5_000_000_000,
            overwrite: false,
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportReport {
    /// Names of the files in the folder.
    pub files: Vec<String>,
    pub tensors: usize,
    /// Bytes of the tensors.
    pub bytes: u64,
    /// The type that loads every tensor without loss: what `config.json` says.
    pub dtype: Dtype,
    /// Module paths into which an adapter was merged.
    pub merged: Vec<String>,
    /// The largest |change| of a weight by merging, before it is rounded to the type written.
    pub max_change: f32,
    /// The values are the base's own, bit for bit: an adapter for one fits the other.
    pub same_base: bool,
    /// What people should know, in sentences.
    pub notes: Vec<String>,
}

/// Writes `model` to the folder `dir`, which is made if need be. Files there that do not belong to a model stay.
///
/// # Errors
/// If `dir` is the model's own folder, holds an adapter, or holds a model and `overwrite` is off; if a value is not
/// finite or does not fit the type; if the disk is full or fails. What was in `dir` before is then still there,
/// and nothing else.
pub fn write_folder(model: &Model, dir: &Path, options: &ExportOptions) -> Result<ExportReport> {
    if let Some(on) = model.adapters.iter().find(|on| on.slot == 0 && options.merge)
        && let Some(why) = &on.unmergeable
    {
        let what = format!("{} cannot be merged into the weights: {why}", on.method);
        return Err(Error::Export { path: dir.to_path_buf(), what });
    }
    let plan = weights::Plan::new(model, options);
    let staging = Staging::open(dir, &model.files, options.overwrite)?;
    atomic::check_space(staging.path(), plan.bytes())?;
    let mut notes = plan.notes(model);
    let texts = texts::write(&model.files, model.net.info().context_length, staging.path(), &mut notes)?;
    let config = config::model(model, &plan, texts.as_ref())?;
    let done = plan.write(model, staging.path())?;
    let same_base = done.exact && plan.is_base();
    if plan.is_base() && !done.exact {
        let dtype = plan.dtype().name().to_ascii_lowercase();
        notes.push(format!(
            "the values were rounded to {dtype}: an adapter for the base fits them only nearly"
        ));
    }
    if same_base {
        record_origin(model, dir, staging.path(), &done.files)?;
    }
    atomic::write_bytes(&staging.path().join(folder::CONFIG), to_python_text(&config).as_bytes())?;
    let files = staging.publish()?;
    Ok(ExportReport {
        files,
        tensors: plan.tensors(),
        bytes: plan.bytes(),
        dtype: plan.dtype(),
        merged: plan.merged(),
        max_change: done.max_change,
        same_base,
        notes,
    })
}

/// Writes which base the folder is an exact copy of, with its own hash: a later change makes the record void.
fn record_origin(model: &Model, dir: &Path, staged: &Path, weights: &[String]) -> Result<()> {
    let source = BaseIdentity::of(model)?;
    let files: Vec<_> = weights.iter().map(|name| staged.join(name)).collect();
    let own = BaseIdentity {
        path: dir.display().to_string(),
        blake3: base::hash_files(&files)?,
        exported_from: Some(source.exported_from.clone().unwrap_or(source.blake3.clone())),
        ..source
    };
    Ok(own.write(staged)?)
}

/// The names of the quantised types in the model's files, in order.
fn quantised(files: &ModelFiles) -> Vec<String> {
    let types = files.source().tensors().iter().map(|info| info.dtype).filter(|dtype| dtype.is_quantized());
    let names: std::collections::BTreeSet<_> = types.map(|dtype| dtype.name().to_ascii_lowercase()).collect();
    names.into_iter().collect()
}
