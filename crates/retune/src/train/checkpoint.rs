//! Checkpoints that are whole or absent, whatever happens in between.
//!
//! `step-00000400.tmp/` is filled (weights, moments, state, run file; each synced), its manifest of sizes and BLAKE3 hashes
//! comes last; then it is renamed to `step-00000400/`, the parent is synced, and only then are older ones deleted, by
//! listing. The newest whose manifest verifies wins; a damaged one is named and skipped, never deleted silently.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use retune_formats::{Data, Dtype, TensorInfo, TensorOut, TensorSource, atomic, hash, safetensors};
use retune_tensor::Params;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::folder::RunFolder;
use super::guard::Guard;
use super::optimizer::moments::{Part, Piece};
use super::optimizer::{Optimizer, Slot};
use crate::metrics::{Metric, Metrics};

const WEIGHTS: &str = "weights.safetensors";
const MOMENTS: &str = "moments.safetensors";
const STATE: &str = "state.json";
const RUN_FILE: &str = "run.toml";
const MANIFEST: &str = "manifest.json";
/// The files that a manifest lists.
const FILES: [&str; 4] = [WEIGHTS, MOMENTS, STATE, RUN_FILE];
const FORMAT: &str = "retune-checkpoint-1";
/// Largest state or manifest, in bytes.
const JSON_BYTES: u64 = 4 << 20;

/// All that a run knows besides weights and moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done (skipped ones included): the place in the data and in the schedule.
    pub step: u64,
    /// Updates made: AdamW's t.
    pub updates: u64,
    /// Rows (tokens) trained on.
    pub tokens: u64,
    pub guard: Guard,
    /// The evaluation before the first step.
    pub eval_before: Option<f64>,
    pub eval_last: Option<Evaluation>,
    pub best: Option<Best>,
    /// Evaluations since the best one.
    #[serde(default)]
    pub eval_waited: u32,
    /// The metrics of the evaluation before the first step, of the last one and of the best one.
    #[serde(default)]
    pub metrics_before: Option<Metrics>,
    #[serde(default)]
    pub metrics_last: Option<Metrics>,
    #[serde(default)]
    pub metrics_best: Option<Metrics>,
    /// The settings that the numbers depend on.
    pub settings: BTreeMap<String, String>,
}

impl Best {
    /// The number that it is the best by.
    pub fn value(&self) -> f64 {
        self.value.unwrap_or(self.loss)
    }
}

/// One evaluation's result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub step: u64,
    /// Mean loss per target; `null` if it is not finite.
    pub loss: Option<f64>,
}

/// The best evaluation after the first step; its checkpoint is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub loss: f64,
    /// What it is the best by.
    #[serde(default)]
    pub metric: Metric,
    /// Its value; without one, the loss.
    #[serde(default)]
    pub value: Option<f64>,
    /// Name of its folder within `checkpoints/`.
    pub name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    step: u64,
    best: Option<Best>,
    files: BTreeMap<String, Entry>,
}

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    blake3: String,
}

/// Writes the checkpoint of `state.step`; returns its folder and size once it is on the disk for good.
///
/// # Errors
/// If the disk is full or refuses, or a weight is not finite. Nothing half-made stays behind.
pub fn save(
    folder: &RunFolder,
    state: &State,
    params: &Params,
    optimizer: &mut Optimizer,
) -> Result<(PathBuf, u64)> {
    let done = folder.checkpoint_path(state.step);
    let temporary = done.with_extension("tmp");
    remove(&temporary)?;
    optimizer.settle()?;
    let bytes = optimizer.elements() * 4 + optimizer.bytes() + JSON_BYTES;
    atomic::check_space(&folder.checkpoint_folder(), bytes)?;
    let written = fill(&temporary, folder, state, params, optimizer).and_then(|bytes| {
        set_aside(&done)?;
        atomic::publish_dir(&temporary, &done)?;
        Ok(bytes)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = remove(&temporary);
    }
    Ok((done, written?))
}

fn fill(
    temporary: &Path,
    folder: &RunFolder,
    state: &State,
    params: &Params,
    optimizer: &Optimizer,
) -> Result<u64> {
    fs::create_dir(temporary).map_err(Error::io(temporary, "create"))?;
    let tensors: Vec<_> =
        optimizer.slots().iter().map(|slot| (slot, params.get(slot.id).weight.to_tensor())).collect();
    let mut weights = Vec::new();
    for (slot, weight) in &tensors {
        if !weight.all_finite() {
            let what =
                format!("weight `{}` is not finite after step {}; nothing was saved", slot.name, state.step);
            return Err(Error::checkpoint(temporary, what));
        }
        weights.push(TensorOut::f32(slot.name.as_str(), &slot.shape, weight.data()));
    }
    let path = temporary.join(MOMENTS);
    let moments: Vec<_> =
        optimizer.parts().map(|(slot, _, eight, part)| moment(&path, optimizer, slot, eight, part)).collect();
    safetensors::write(&temporary.join(WEIGHTS), weights, &[("format", "pt")])?;
    safetensors::write(&path, moments, &[])?;
    write_json(&temporary.join(STATE), state)?;
    atomic::write_bytes(&temporary.join(RUN_FILE), folder.run_file.as_bytes())?;
    let mut manifest = Manifest {
        format: FORMAT.into(),
        step: state.step,
        best: state.best.clone(),
        files: BTreeMap::new(),
    };
    for name in FILES {
        manifest.files.insert(name.into(), entry(&temporary.join(name))?);
    }
    write_json(&temporary.join(MANIFEST), &manifest)?;
    Ok(manifest.files.values().map(|entry| entry.bytes).sum())
}

/// A part of a parameter's moments as a tensor: `NAME.m` and `NAME.v` in the parameter's shape, f32 or codes of 8 bits;
/// `NAME.m.absmax` and `NAME.v.absmax` with a constant for each 256 codes.
fn described(name: &str, shape: &[usize], eight: bool, part: Part) -> (String, Dtype, Vec<usize>) {
    let name = format!("{name}.{}", part.suffix());
    match part {
        _ if part.is_codes(eight) => (name, Dtype::U8, shape.to_vec()),
        Part::M | Part::V => (name, Dtype::F32, shape.to_vec()),
        Part::MAbsmax | Part::VAbsmax => {
            (name, Dtype::F32, vec![part.bytes(eight, shape.iter().product()) / 4])
        }
    }
}

/// A part of a parameter's moments, to be written page by page.
fn moment<'a>(
    path: &'a Path,
    optimizer: &'a Optimizer,
    slot: usize,
    eight: bool,
    part: Part,
) -> TensorOut<'a> {
    let Slot { name, shape, .. } = &optimizer.slots()[slot];
    let (name, dtype, shape) = described(name, shape, eight, part);
    let stream = move |out: &mut dyn std::io::Write| {
        optimizer.write_part(slot, part, &mut |bytes| {
            out.write_all(bytes).map_err(retune_formats::Error::io(path, "write"))
        })
    };
    TensorOut { name, dtype, shape, data: Data::Stream(Box::new(stream)) }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text =
        serde_json::to_vec_pretty(value).map_err(std::io::Error::other).map_err(Error::io(path, "write"))?;
    text.push(b'\n');
    Ok(atomic::write_bytes(path, &text)?)
}

fn entry(path: &Path) -> Result<Entry> {
    let bytes = fs::metadata(path).map_err(Error::io(path, "read"))?.len();
    Ok(Entry { bytes, blake3: hash::file(path)? })
}

/// Gives a damaged checkpoint another name, under which it is kept but not looked at.
pub(crate) fn set_aside(done: &Path) -> Result<()> {
    if !done.exists() {
        return Ok(());
    }
    for n in 1.. {
        let aside = done.with_extension(format!("damaged-{n}"));
        if !aside.exists() {
            return fs::rename(done, &aside).map_err(Error::io(done, "set aside"));
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, "remove")(e)),
        _ => Ok(()),
    }
}

/// Deletes what exceeds `keep`, oldest first. `best` stays besides.
///
/// # Errors
/// If the folder cannot be listed or a checkpoint cannot be removed.
pub fn prune(folder: &RunFolder, keep: usize, best: Option<&Best>) -> Result<()> {
    let is_best =
        |path: &Path| best.is_some_and(|b| path.file_name().is_some_and(|name| name == b.name.as_str()));
    let whole = folder.checkpoints()?;
    let surplus = whole.len().saturating_sub(keep.max(2));
    for (_, path) in whole.iter().take(surplus).filter(|(_, path)| !is_best(path)) {
        // Out of the list first: a removal cut short must not look like a damaged checkpoint.
        let gone = path.with_extension("tmp");
        remove(&gone)?;
        fs::rename(path, &gone).map_err(Error::io(path, "remove"))?;
        remove(&gone)?;
    }
    Ok(())
}

/// Removes what a process that was killed left unfinished.
pub(crate) fn remove_unfinished(folder: &RunFolder) -> Result<()> {
    let checkpoints = folder.checkpoint_folder();
    for entry in fs::read_dir(&checkpoints).map_err(Error::io(&checkpoints, "list"))? {
        let path = entry.map_err(Error::io(&checkpoints, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("step-") && name.ends_with(".tmp") {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Checks a checkpoint against its manifest: every file is there, with the size and hash that were written.
///
/// # Errors
/// What is wrong with it.
pub fn verify(path: &Path) -> Result<()> {
    let manifest: Manifest = read_json(&path.join(MANIFEST))?;
    if manifest.format != FORMAT {
        let what = format!("its format is `{}`, this program writes `{FORMAT}`", manifest.format);
        return Err(Error::checkpoint(path, what));
    }
    for name in FILES {
        let Some(expected) = manifest.files.get(name) else {
            return Err(Error::checkpoint(path, format!("its manifest does not list {name}")));
        };
        let file = path.join(name);
        let bytes = fs::metadata(&file).map_err(Error::io(&file, "read"))?.len();
        if bytes != expected.bytes {
            let what = format!("{name} has {bytes} bytes, {} were written", expected.bytes);
            return Err(Error::checkpoint(path, what));
        }
        if hash::file(&file)? != expected.blake3 {
            return Err(Error::checkpoint(
                path,
                format!("{name} is not what was written (its hash differs)"),
            ));
        }
    }
    Ok(())
}

/// The newest whole checkpoint, and those newer ones that are not whole, with the reason.
///
/// # Errors
/// If the folder cannot be listed.
pub fn newest_whole(folder: &RunFolder) -> Result<(Option<PathBuf>, Vec<(PathBuf, String)>)> {
    let mut rejected = Vec::new();
    for (_, path) in folder.checkpoints()?.into_iter().rev() {
        match verify(&path) {
            Ok(()) => return Ok((Some(path), rejected)),
            Err(e) => rejected.push((path, e.to_string())),
        }
    }
    Ok((None, rejected))
}

/// Reads a checkpoint's state alone.
///
/// # Errors
/// If it is damaged.
pub fn read_state(path: &Path) -> Result<State> {
    let mut state: State = read_json(&path.join(STATE))?;
    // Checkpoints from before there was a choice do not say it.
    state.settings.entry("optim".into()).or_insert_with(|| "adamw".into());
    Ok(state)
}

/// Loads the trainable weights of a checkpoint, in place.
///
/// # Errors
/// If the checkpoint is damaged or has other parameters than `params` trains.
pub fn load_weights(path: &Path, params: &mut Params) -> Result<()> {
    verify(path)?;
    let file = safetensors::File::open(path.join(WEIGHTS))?;
    let ids = params.trainable();
    check_count(path, file.tensors().len(), ids.len())?;
    for id in ids {
        let (name, shape) = (params.get(id).name.clone(), params.get(id).shape.clone());
        let values = read(path, &file, &name, &shape)?;
        if let Some(tensor) = params.tensor_mut(id) {
            tensor.data_mut().copy_from_slice(&values);
        }
    }
    Ok(())
}

/// Loads the moments of a checkpoint that belongs to the same parameters, page by page.
pub(crate) fn load_moments(path: &Path, state: &State, optimizer: &mut Optimizer) -> Result<()> {
    let file = safetensors::File::open(path.join(MOMENTS))?;
    check_count(path, file.tensors().len(), optimizer.parts().count())?;
    let mut tensors = BTreeMap::new();
    for (slot, Slot { name, shape, .. }, eight, part) in optimizer.parts() {
        let (name, dtype, shape) = described(name, shape, eight, part);
        let info = file.get(&name)?;
        check_shape(path, info, &shape)?;
        if info.dtype != dtype {
            let what =
                format!("`{name}` is {}, the run's moments are {dtype}: its `optim` differs", info.dtype);
            return Err(Error::checkpoint(path, what));
        }
        tensors.insert((slot, part.suffix()), info);
    }
    optimizer.fill(|piece, part, bytes| match tensors.get(&(piece.slot, part.suffix())) {
        Some(info) => read_piece(path, &file, info, piece, part, bytes),
        None => Ok(()),
    })?;
    optimizer.set_updates(state.updates);
    Ok(())
}

/// One part of a piece of moments: finite, and what is a square or a size not below 0.
fn read_piece(
    path: &Path,
    file: &safetensors::File,
    info: &TensorInfo,
    piece: &Piece,
    part: Part,
    bytes: &mut [u8],
) -> Result<()> {
    file.read_at(info, piece.offset(part), bytes)?;
    if part.is_codes(piece.eight) {
        return Ok(());
    }
    let usable = |x: f32| x.is_finite() && (part == Part::M || x >= 0.0);
    let values = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
    match values.enumerate().find(|(_, x)| !usable(*x)) {
        None => Ok(()),
        Some((at, x)) => {
            let what = if x.is_finite() { "below 0" } else { "not finite" };
            let index = piece.offset(part) as usize / 4 + at;
            Err(Error::checkpoint(path, format!("`{}` is {what} at element {index}: {x}", info.name)))
        }
    }
}

fn check_count(path: &Path, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::checkpoint(
        path,
        format!("it holds {found} tensors, the run trains {wanted}; its method or targets differ"),
    ))
}

fn check_shape(path: &Path, info: &TensorInfo, shape: &[usize]) -> Result<()> {
    if info.shape == shape {
        return Ok(());
    }
    let (name, found) = (&info.name, &info.shape);
    let what = format!("`{name}` has shape {found:?}, the run trains {shape:?}; its method or rank differs");
    Err(Error::checkpoint(path, what))
}

/// The values of one tensor of exactly this shape, all finite.
fn read(path: &Path, file: &safetensors::File, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    check_shape(path, file.get(name)?, shape)?;
    let values = file.read_f32(name)?;
    match values.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(Error::checkpoint(path, format!("`{name}` is not finite at element {index}"))),
        None => Ok(values),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let value = retune_formats::json::read(path, JSON_BYTES)?;
    serde_json::from_value(value).map_err(|e| Error::checkpoint(path, e.to_string()))
}
