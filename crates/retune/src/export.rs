//! Writes a model as a plain Hugging Face folder that transformers loads, as a GGUF file that llama.cpp loads, or as darknet's files: merged,
//! converted, quantised or as it is.
//!
//! Everything is first written beside the final names and moved there at the end, `config.json` last: a folder with a
//! configuration is whole. Weights are streamed, a strip of one tensor at a time in f32.

mod config;
mod darknet;
mod difference;
mod encode;
mod folder;
mod gguf;
mod keep;
mod layer;
mod selection;
mod spool;
mod texts;
mod values;
mod weights;

use std::path::Path;

use retune_formats::json::to_python_text;
use retune_formats::{Dtype, atomic};
use retune_tensor::storage::Format;

use crate::base::{self, BaseIdentity};
use crate::error::{Error, Result};
use crate::models::{Model, ModelFiles, Quantisation};
pub use difference::Difference;
pub use encode::Loss;
use folder::Staging;

/// The element type of the weights that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportDtype {
    F32,
    F16,
    BF16,
    /// Each tensor as in the model's files. Values of quantised ones are written in f32; from GGUF to GGUF they stay as they
    /// lie, unless an adapter changes them.
    #[default]
    AsSource,
    /// ggml's blocks: in GGUF files alone.
    Blocks(Format),
    /// bitsandbytes' codes of four or eight bits (and Retune's own int4): in folders alone.
    Quantised(Quantisation),
}

impl ExportDtype {
    /// The type of this name ("f16", "q4_k", "nf4"; "as-source"); `double` is for those of four bits.
    pub fn parse(name: &str, double: bool) -> Option<ExportDtype> {
        Some(match name {
            "f32" => ExportDtype::F32,
            "f16" => ExportDtype::F16,
            "bf16" => ExportDtype::BF16,
            "as-source" => ExportDtype::AsSource,
            _ => match Quantisation::from_name(name, double) {
                Some(how) => ExportDtype::Quantised(how),
                None => ExportDtype::Blocks(Format::all().find(|format| format.name() == name)?),
            },
        })
    }

    /// Does it lose more of the values than rounding each by itself?
    pub fn is_quantised(self) -> bool {
        matches!(self, ExportDtype::Blocks(_) | ExportDtype::Quantised(_))
    }
}

/// How [`write`] writes.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportOptions {
    pub dtype: ExportDtype,
    /// Modules that are not quantised.
    pub keep: Vec<String>,
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
            keep: Vec::new(),
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
    /// The type that loads every tensor without loss: what `config.json` says. Of a GGUF file the type of most values.
    pub dtype: Dtype,
    /// Module paths into which an adapter was merged.
    pub merged: Vec<String>,
    /// The largest |change| of a weight by merging, before it is rounded to the type written.
    pub max_change: f32,
    /// The values are the base's own, bit for bit: an adapter for one fits the other.
    pub same_base: bool,
    /// What each tensor lost by the type that it is written in, in the order of the file.
    pub losses: Vec<TensorLoss>,
    /// What people should know, in sentences.
    pub notes: Vec<String>,
}

impl ExportReport {
    /// What all tensors lost together.
    pub fn loss(&self) -> Loss {
        self.losses.iter().fold(Loss::default(), |sum, tensor| sum.plus(tensor.loss))
    }
}

/// One tensor that was written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorLoss {
    /// Its Hugging Face name.
    pub name: String,
    /// Its type in the file: "f16", "q4_k".
    pub encoding: String,
    /// Its values against those in the file.
    pub loss: Loss,
}

impl TensorLoss {
    /// Of a tensor that was copied as it lay.
    fn none(name: &str, dtype: Dtype, elements: u64) -> TensorLoss {
        let encoding = dtype.name().to_ascii_lowercase();
        TensorLoss { name: name.into(), encoding, loss: Loss { elements, ..Loss::default() } }
    }
}

/// Progress: tensor `done` of `tensors` is written.
pub struct Step<'a> {
    pub done: usize,
    pub tensors: usize,
    pub written: &'a TensorLoss,
}

/// What writing showed.
#[derive(Default)]
struct Done {
    files: Vec<String>,
    max_change: f32,
    losses: Vec<TensorLoss>,
}

impl Done {
    /// Every value was written as it is in memory.
    fn is_exact(&self) -> bool {
        self.losses.iter().all(|tensor| tensor.loss.is_exact())
    }
}

/// Writes `model` to `out`: a GGUF file if its name ends with `.gguf`, darknet's three files if it ends with `.cfg`, else a folder. `progress` is told of each tensor.
///
/// # Errors
/// As [`write_folder`]; besides, if the model has no place in a GGUF file, or the type none in a folder.
pub fn write(
    model: &Model,
    out: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Step),
) -> Result<ExportReport> {
    refuse_unmergeable(model, out, options)?;
    if darknet::is_darknet(out) {
        return darknet::write(model, out, options, progress);
    }
    match is_gguf(out) {
        true => write_gguf(model, out, options, progress),
        false => write_in_folder(model, out, options, progress),
    }
}

/// Does a name to write to mean files of another program, not a folder?
pub fn is_no_folder(out: &Path) -> bool {
    is_gguf(out) || darknet::is_darknet(out)
}

/// Does a name to write to mean a GGUF file?
pub fn is_gguf(out: &Path) -> bool {
    out.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// Writes `model` to the folder `dir`, which is made if need be. Files there that do not belong to a model stay.
///
/// # Errors
/// If `dir` is the model's own folder, holds an adapter, or holds a model and `overwrite` is off; if a value is not
/// finite or does not fit the type; if the disk is full or fails. What was in `dir` before is then still there,
/// and nothing else.
pub fn write_folder(model: &Model, dir: &Path, options: &ExportOptions) -> Result<ExportReport> {
    refuse_unmergeable(model, dir, options)?;
    write_in_folder(model, dir, options, &mut |_| {})
}

fn refuse_unmergeable(model: &Model, out: &Path, options: &ExportOptions) -> Result<()> {
    let unmergeable =
        |on: &&crate::models::OnModel| on.slot == 0 && options.merge && on.unmergeable.is_some();
    match model.adapters.iter().find(unmergeable) {
        Some(on) => {
            let why = on.unmergeable.as_deref().unwrap_or_default();
            let what = format!("{} cannot be merged into the weights: {why}", on.method);
            Err(Error::Export { path: out.to_path_buf(), what })
        }
        None => Ok(()),
    }
}

fn write_in_folder(
    model: &Model,
    dir: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Step),
) -> Result<ExportReport> {
    let plan = weights::Plan::new(model, dir, options)?;
    let staging = Staging::open(dir, &model.files, options.overwrite)?;
    atomic::check_space(staging.path(), plan.space())?;
    let mut notes = plan.notes(model);
    let context_length = model.net.as_text().map(|net| net.info().context_length);
    let texts = texts::write(&model.files, context_length, staging.path(), &mut notes)?;
    let config = config::model(model, &plan, texts.as_ref())?;
    let done = plan.write(model, staging.path(), progress)?;
    let (is_base, exact) = (plan.selection.is_base(), done.is_exact());
    if is_base && !exact && plan.quantization().is_none() {
        let dtype = plan.dtype().name().to_ascii_lowercase();
        notes.push(format!(
            "the values were rounded to {dtype}: an adapter for the base fits them only nearly"
        ));
    }
    if is_base && exact {
        record_origin(model, dir, staging.path(), &done.files)?;
    }
    atomic::write_bytes(&staging.path().join(folder::CONFIG), to_python_text(&config).as_bytes())?;
    let files = staging.publish()?;
    Ok(ExportReport {
        files,
        tensors: plan.tensors(),
        bytes: plan.bytes(),
        dtype: plan.dtype(),
        merged: plan.selection.merged(),
        max_change: done.max_change,
        same_base: is_base && exact,
        losses: done.losses,
        notes,
    })
}

fn write_gguf(
    model: &Model,
    out: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Step),
) -> Result<ExportReport> {
    folder::check_file(out, &model.files, options.overwrite)?;
    let plan = gguf::Plan::new(model, out, options)?;
    let done = plan.write(model, out, progress)?;
    Ok(ExportReport {
        same_base: plan.selection.is_base() && done.is_exact(),
        files: done.files,
        tensors: plan.tensors(),
        bytes: plan.bytes(),
        dtype: plan.dtype(),
        merged: plan.selection.merged(),
        max_change: done.max_change,
        losses: done.losses,
        notes: plan.notes(model),
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
    // A folder that was opened has been checked.
    if let Ok(Some(config)) = files.quantization_config() {
        return vec![config.describe()];
    }
    let types = files.source().tensors().iter().map(|info| info.dtype).filter(|dtype| dtype.is_quantized());
    let names: std::collections::BTreeSet<_> = types.map(|dtype| dtype.name().to_ascii_lowercase()).collect();
    names.into_iter().collect()
}
