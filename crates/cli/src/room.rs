//! What a run may take of this machine, before its weights are read and its plan is made.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use retune::methods::{self, matrix};
use retune::models::quantised::{Quantisation, Quantised, layer_of_name};
use retune::models::streamed::Sizes;
use retune::models::{Model, ModelFiles, StorageChoice, spec_of};
use retune::run_file::{RunFile, Storage, Weights};
use retune::train::plan::{DoesNotFit, human};
use retune::train::{self, OtherStorage, Plan, Remedy, available_memory};
use retune_formats::{Dtype, atomic};
use retune_tensor::Param;

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

/// How else the base could be held, where the method leaves it as it is: in a smaller storage, or in its file.
pub fn other_storages(model: &Model, run: &RunFile) -> Result<Vec<OtherStorage>> {
    let quantised = if may_be_quantised(&model.files, run)? { in_few_bits(model, run)? } else { None };
    let streamed = if may_be_streamed(&model.files, run)? { streamed(model) } else { None };
    Ok(quantised.into_iter().chain(streamed).collect())
}

/// Frozen weights, and whether each is a linear of a block.
fn frozen(model: &Model) -> impl Iterator<Item = (&Param, bool)> {
    let frozen = model.params.iter().map(|(_, param)| param).filter(|param| !param.trainable);
    frozen.map(|param| (param, !param.adapter && param.shape.len() == 2 && param.name.ends_with(".weight")))
}

fn in_few_bits(model: &Model, run: &RunFile) -> Result<Option<OtherStorage>> {
    let Some(how) = Quantisation::from_name(SMALLEST, run.quantization.double_quant) else { return Ok(None) };
    let quantised = Quantised::new(&run.quantization.keep_modules)?;
    let (mut now, mut then, mut largest) = (0, 0, 0);
    for (param, is_linear) in frozen(model) {
        let held = param.weight.held_bytes() as u64;
        let (rows, cols) = (param.weight.rows(), param.weight.cols());
        now += held;
        then += match is_linear && quantised.includes(&param.name) {
            true => how.bytes(rows, cols) as u64,
            false => held,
        };
        largest = largest.max(4 * param.elements() as u64);
    }
    let loading_bytes = then + largest + STRIPS;
    let smaller = OtherStorage { key: "storage", name: SMALLEST, base_bytes: then, loading_bytes };
    Ok((then < now).then_some(smaller))
}

/// Weights of the blocks in their file: two blocks are in memory at a time.
fn streamed(model: &Model) -> Option<OtherStorage> {
    let (mut others, mut matrices) = (0, Vec::new());
    for (param, is_linear) in frozen(model) {
        let held = param.weight.held_bytes() as u64;
        match layer_of_name(&param.name).filter(|_| is_linear) {
            Some(layer) => matrices.push((layer, held, held)),
            None => others += held,
        }
    }
    let sizes = Sizes::of(matrices);
    let base_bytes = others + sizes.least;
    let streamed = OtherStorage { key: "weights", name: "streamed", base_bytes, loading_bytes: base_bytes };
    (sizes.least < sizes.total).then_some(streamed)
}

/// Whether the base could be quantised while it is loaded, and is not yet.
fn may_be_quantised(files: &ModelFiles, run: &RunFile) -> Result<bool> {
    Ok(may_be_streamed(files, run)? && !run.storage.is_quantised())
}

/// Whether the base, which the method leaves as it is, could stay in its file, and does not yet.
fn may_be_streamed(files: &ModelFiles, run: &RunFile) -> Result<bool> {
    let method = methods::find(&run.method)?;
    let fits = matrix::fit(method, spec_of(files)?, matrix::Held::Quantised);
    Ok(!matches!(fits, matrix::Fit::No(_)) && run.weights == Weights::Memory)
}

/// Takes half-precision weights into f32 where the method trains them and nobody asked for another storage; says so. An optimiser's steps would be
/// lost in 16 bits. Quantised weights stay what they are, and the method refuses them.
///
/// # Errors
/// If the model or the method is not known.
pub fn with_masters(mut run: RunFile) -> Result<(RunFile, Vec<String>)> {
    let method = methods::find(&run.method)?;
    let refuses = |(m, _, held, fit): &(&methods::Spec, _, matrix::Held, matrix::Fit)| {
        m.name == method.name && *held == matrix::Held::Half && matches!(fit, matrix::Fit::No(_))
    };
    // Most methods take any: then no file need be opened for this.
    if run.storage != Storage::AsIs || !matrix::all().any(|row| refuses(&row)) {
        return Ok((run, vec![]));
    }
    let files = ModelFiles::open(&crate::embedded::resolve(&run.model)?)?;
    let spec = spec_of(&files)?;
    let takes = |held| !matches!(matrix::fit(method, spec, held), matrix::Fit::No(_));
    let tensors = || files.source().tensors().iter();
    let half = tensors().find(|info| matches!(info.dtype, Dtype::F16 | Dtype::BF16));
    let coarser = files.quantization_config()?.is_some() || tensors().any(|info| info.dtype.is_quantized());
    let wanted = takes(matrix::Held::F32) && !takes(matrix::Held::Half) && !coarser;
    let Some(half) = half.filter(|_| wanted) else { return Ok((run, vec![])) };
    let (method, half) = (run.method.clone(), half.dtype.name());
    run.storage = Storage::F32;
    let said = format!(
        "storage = \"f32\": {method} trains the weights themselves, and the file's {half} is too coarse for that"
    );
    Ok((run, vec![said]))
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
    let mut others = Vec::new();
    let few_bits = Quantisation::from_name(SMALLEST, run.quantization.double_quant);
    if let Some(how) = few_bits.filter(|_| may_be_quantised(&files, &run).unwrap_or(false)) {
        others.push(("storage", SMALLEST, least_bytes(&files, StorageChoice::Quantised(how), false)));
    }
    if may_be_streamed(&files, &run)? {
        others.push(("weights", "streamed", least_bytes(&files, run.load_options().storage, true)));
    }
    let helps = others.into_iter().find(|(.., bytes)| *bytes <= limit.bytes);
    let remedy = helps.map(|(key, name, base_bytes)| {
        let storage = Some(OtherStorage { key, name, base_bytes, loading_bytes: base_bytes });
        Remedy { storage, ..Remedy::default() }
    });
    let advice = match (&remedy, helps) {
        (Some(remedy), Some((.., bytes))) => {
            format!("{} needs {} for them at least", remedy.words(), human(bytes))
        }
        _ => "use a smaller model, or a machine with more memory".into(),
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
    let refusal = DoesNotFit { plan: Box::new(plan), remedy, advice };
    let Some(remedy) = refusal.remedy.as_ref().filter(|_| run.auto) else {
        return Err(train::Error::from(refusal).into());
    };
    let changed = format!("auto: {}", refusal.in_words(remedy));
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
