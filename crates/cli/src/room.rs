//! What a run may take of this machine, before its weights are read and its plan is made.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use retune::methods::{self, matrix};
use retune::models::quantised::{Quantisation, Quantised, layer_of_name};
use retune::models::{Model, ModelFiles, StorageChoice, spec_of};
use retune::run_file::{RunFile, Weights};
use retune::train::plan::{DoesNotFit, human};
use retune::train::{self, OtherStorage, Plan, Remedy, available_memory};
use retune_formats::atomic;

/// The storage that is offered where the base is too large: the smallest that is made while loading.
const SMALLEST: &str = "nf4";
/// Bytes of f32 that are decoded at a time while weights are read, and as much again of the file.
const STRIPS: u64 = 8 << 20;

/// Bytes that a run may write to its folder: what is free on its disk, and what its checkpoints, which make room, have.
pub fn free_for(out: &Path) -> Option<u64> {
    let disk = out.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let disk = if disk.as_os_str().is_empty() { Path::new(".") } else { disk };
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |file: std::fs::DirEntry| file.metadata().map_or(0, |meta| meta.len());
    let folders = entries(&out.join("checkpoints"));
    let own: u64 = folders.flat_map(|folder| entries(&folder.path()).map(size).collect::<Vec<_>>()).sum();
    Some(atomic::free_space(disk)? + own)
}

/// The base in a smaller storage, where the method leaves it as it is.
pub fn other_storages(model: &Model, run: &RunFile) -> Result<Vec<OtherStorage>> {
    if !may_be_quantised(&model.files, run)? {
        return Ok(vec![]);
    }
    let Some(how) = Quantisation::from_name(SMALLEST, run.quantization.double_quant) else {
        return Ok(vec![]);
    };
    let quantised = Quantised::new(&run.quantization.keep_modules)?;
    let (mut now, mut then, mut largest) = (0, 0, 0);
    for (_, param) in model.params.iter().filter(|(_, param)| !param.trainable) {
        let held = param.weight.held_bytes() as u64;
        let is_linear = !param.adapter && param.shape.len() == 2 && quantised.includes(&param.name);
        let (rows, cols) = (param.weight.rows(), param.weight.cols());
        now += held;
        then += if is_linear { how.bytes(rows, cols) as u64 } else { held };
        largest = largest.max(4 * param.elements() as u64);
    }
    let smaller = OtherStorage { name: SMALLEST, base_bytes: then, loading_bytes: then + largest + STRIPS };
    Ok(if then < now { vec![smaller] } else { vec![] })
}

/// Whether the base could be quantised while it is loaded, and is not yet.
fn may_be_quantised(files: &ModelFiles, run: &RunFile) -> Result<bool> {
    let method = methods::find(&run.method)?;
    let fits = matrix::fit(method, spec_of(files)?, matrix::Held::Quantised);
    let streamed = run.weights == Weights::Streamed;
    Ok(!matches!(fits, matrix::Fit::No(_)) && !run.storage.is_quantised() && !streamed)
}

/// Refuses a base that cannot fit, before it is read; with `auto`, takes the storage with which it may, and says so.
///
/// # Errors
/// [`train::Error::DoesNotFit`].
pub fn for_weights(mut run: RunFile) -> Result<(RunFile, Vec<String>)> {
    let Some(limit) = available_memory(run.memory_limit) else { return Ok((run, vec![])) };
    let files = ModelFiles::open(&crate::embedded::resolve(&run.model)?)?;
    let streamed = run.weights == Weights::Streamed;
    let least = least_bytes(&files, run.load_options().storage, streamed);
    if least <= limit.bytes {
        return Ok((run, vec![]));
    }
    let smallest =
        Quantisation::from_name(SMALLEST, run.quantization.double_quant).map(StorageChoice::Quantised);
    let quantised = match smallest {
        Some(smallest) if may_be_quantised(&files, &run)? => least_bytes(&files, smallest, false),
        _ => least,
    };
    let storage = OtherStorage { name: SMALLEST, base_bytes: quantised, loading_bytes: quantised };
    let remedy = Remedy { storage: Some(storage), ..Remedy::default() };
    let helps = quantised <= limit.bytes;
    let advice = match helps {
        true => format!("{} needs {} for them at least", remedy.words(), human(quantised)),
        false => "use a smaller model, or a machine with more memory".into(),
    };
    let plan = Plan {
        base_bytes: least,
        total_bytes: least,
        worst: train::plan::Worst::Loading,
        batch_size: u64::from(run.batch_size),
        limit_bytes: Some(limit.bytes),
        limit_source: Some(limit.source),
        ..Plan::default()
    };
    let refusal = DoesNotFit { plan: Box::new(plan), remedy: helps.then(|| remedy.clone()), advice };
    if !(run.auto && helps) {
        return Err(train::Error::from(refusal).into());
    }
    let changed = format!("auto: {}", refusal.in_words(&remedy));
    remedy.apply(&mut run);
    Ok((run, vec![changed]))
}

/// The least that the weights of some files take in a storage; of streamed ones two blocks are in memory at a time.
fn least_bytes(files: &ModelFiles, storage: StorageChoice, streamed: bool) -> u64 {
    let of = |tensor: &retune_formats::TensorInfo| match storage {
        StorageChoice::F32 => 4 * tensor.numel(),
        StorageChoice::Bf16 => 2 * tensor.numel(),
        StorageChoice::AsIs => tensor.byte_len(),
        StorageChoice::Quantised(_) => (tensor.numel() / 2).min(tensor.byte_len()),
    };
    let (mut all, mut blocks) = (0, BTreeMap::new());
    for tensor in files.source().tensors() {
        match layer_of_name(&tensor.name).filter(|_| streamed) {
            Some(layer) => *blocks.entry(layer).or_insert(0) += of(tensor),
            None => all += of(tensor),
        }
    }
    let (blocks, largest): (u64, u64) = (blocks.values().sum(), blocks.values().copied().max().unwrap_or(0));
    all + blocks.min(2 * largest)
}
