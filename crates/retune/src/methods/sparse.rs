//! Sparse fine-tuning: `y = W x + S x`, `S` with few entries at fixed places, zero at the start; its values are trained.
//!
//! The places are random (SHiRA, Bhardwaj et al., 2024), or those of the largest `|w|`, or of the largest Fisher information
//! `sum over examples of (d loss / d w)^2` (Sung et al., 2021). The base is frozen, in any storage.

mod files;
mod fisher;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use retune_formats::lora_config::{LoraConfig, Modules};
use retune_tensor::ops::{self, SparsePattern};
use retune_tensor::params::decode_all;
use retune_tensor::rng::Stream;
use retune_tensor::{Param, ParamId, Params, Tape, Tensor, Var};

pub(super) use files::load_shira;
pub(super) use fisher::at_a_time;

use super::targets::{Known, choose};
use super::{Attached, Spec, delta, param_name, put_param, remember, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Linear, LinearDelta, Rows, Site};
use crate::run_file::{self, RunFile, Selection, TargetModules};

pub const SPEC: Spec = Spec {
    name: "sparse",
    summary: "a small chosen share of the weights' entries: random (SHiRA), largest, or most informative",
    source: "arXiv:2406.13175; arXiv:2111.09839",
    default_lr: 1e-3,
    adapter: true,
    attach: |model, run| attach(model, &run.sparse, run),
};

/// Where a sparse change has its entries: known from the start, or chosen before the first step.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<OnceLock<SparsePattern>>);

impl Places {
    pub(super) fn known(pattern: SparsePattern) -> Places {
        let places = Places::default();
        places.set(pattern);
        places
    }

    /// What was set first stays.
    fn set(&self, pattern: SparsePattern) {
        let _ = self.0.set(pattern);
    }

    pub(super) fn get(&self) -> Option<&SparsePattern> {
        self.0.get()
    }
}

/// Sparse changes at one linear, one for each adapter in use.
pub(super) struct SparseDelta {
    /// Places, values `[1, nnz]`, and the weight with which they count.
    pub parts: Vec<(Places, ParamId, f32)>,
}

impl LinearDelta for SparseDelta {
    fn forward(&self, tape: &Tape, rows: &Rows, layer: &Linear, x: &Var) -> Var {
        // Asked for before its places are chosen too: who looks for what is trained (the trunk cache) must find it.
        let values = self.parts.iter().map(|(places, values, weight)| {
            let values = tape.param(*values);
            let values = if *weight == 1.0 { values } else { ops::scale(tape, &values, *weight) };
            Some((places.get()?, values))
        });
        let parts: Vec<(&SparsePattern, Var)> = values.collect::<Vec<_>>().into_iter().flatten().collect();
        if layer.is_pointwise() {
            let add = |y: Var, (pattern, values)| ops::sparse_linear_delta(tape, &y, x, pattern, &values);
            return parts.into_iter().fold(layer.plain(tape, rows, x), add);
        }
        let add = |w, (pattern, values)| ops::weight_with_entries(tape, &w, pattern, &values);
        let weight = parts.into_iter().fold(tape.weight(layer.weight), add);
        layer.product(tape, rows, x, &weight, layer.bias_var(tape).as_ref())
    }

    fn merge(
        &self,
        params: &Params,
        _layer: &Linear,
        weight: &mut Tensor,
        _bias: Option<&mut Tensor>,
    ) -> Result<()> {
        for (places, values, scale) in &self.parts {
            let mut values = params.get(*values).weight.to_tensor();
            values.scale_assign(*scale);
            if let Some(pattern) = places.get() {
                pattern.add_to(&values, weight);
            }
        }
        Ok(())
    }
}

/// One layer's change, as it is saved.
#[derive(Clone)]
pub(super) struct Part {
    pub path: String,
    /// The base's weight.
    pub weight: ParamId,
    pub values: ParamId,
    pub places: Places,
    pub nnz: usize,
}

/// Freezes the base and gives every chosen linear a sparse change of zeros, in slot 0; a classifier is trained whole.
///
/// # Errors
/// If a target is misspelt or nothing is chosen, or more entries are asked for than a weight has.
pub fn attach(model: &mut Model, settings: &run_file::Sparse, run: &RunFile) -> Result<Attached> {
    let targets = match &settings.target_modules {
        TargetModules::Pattern(text) if text == "all-linear" => Modules::AllLinear,
        TargetModules::Pattern(text) => Modules::Pattern(text.clone()),
        TargetModules::Names(names) => Modules::List(names.clone()),
    };
    let config = LoraConfig { target_modules: Some(targets), ..LoraConfig::default() };
    let chosen = choose(&config, Known::linears_of(model))?;
    let layers: Vec<&Linear> =
        model.net.linears().into_iter().filter(|layer| chosen.modules.contains(&layer.path)).collect();
    let r = rank(settings, &layers);
    let counts = layers.iter().map(|layer| count(settings, r, layer)).collect::<Result<Vec<usize>>>()?;
    let mut patterns = Vec::new();
    for (layer, nnz) in layers.iter().zip(&counts) {
        patterns.push(places(settings, run.seed, layer, model.params.get(layer.weight), *nnz)?);
    }
    let planned: Vec<(String, usize, Places)> =
        layers.iter().zip(counts).zip(patterns).map(|((l, nnz), p)| (l.path.clone(), nnz, p)).collect();

    model.params.freeze_all();
    let whole = delta::classifier_params(model);
    delta::train(model, SPEC.name, &whole)?;
    let Model { params, net, .. } = model;
    let mut parts = Vec::new();
    net.visit_sites(&mut |site| {
        let Site::Linear(layer) = site else { return };
        if let Some((_, nnz, places)) = planned.iter().find(|(path, ..)| *path == layer.path) {
            parts.push(put(params, layer, 0, "", Tensor::zeros(1, *nnz), places.clone(), 1.0));
        }
    });
    remember(model, 0, SPEC.name, None);
    let to_choose = parts.clone();
    let parts_bytes = parts.iter().map(|part| 8 * part.nnz as u64).sum();
    let chosen_by_data = settings.selection == Selection::Fisher;
    let examined = if chosen_by_data { parts.iter().map(|part| part.weight).collect() } else { Vec::new() };
    let examples = settings.fisher_examples as usize;
    let prepare: super::Prepare =
        Box::new(move |params, objective| fisher::choose(params, objective, &to_choose, examples));
    Ok(Attached {
        modules: chosen.modules.clone(),
        trainable: trainable_count(model),
        save: Some(files::saver(settings, run, r, chosen.config.target_modules, parts, whole)),
        prepare: chosen_by_data.then_some(prepare),
        examined,
        // Row and column of each entry.
        beside_bytes: parts_bytes,
        ..Attached::default()
    })
}

/// Puts a sparse change of these values `[1, nnz]` into a slot of a layer, beside those that are there already.
pub(super) fn put(
    params: &mut Params,
    layer: &mut Linear,
    slot: usize,
    prefix: &str,
    values: Tensor,
    places: Places,
    scale: f32,
) -> Part {
    let nnz = values.len();
    let name = format!("{prefix}{}.weight.values", layer.path);
    let values = put_param(params, &param_name(slot, &name), &[nnz], values);
    let part = Part { path: layer.path.clone(), weight: layer.weight, values, places: places.clone(), nnz };
    layer.deltas.put(slot, Box::new(SparseDelta { parts: vec![(places, values, scale)] }));
    part
}

/// PEFT's `r`, where the entries are counted so: the one that was given, or for a random selection the one that comes
/// nearest to the share.
fn rank(settings: &run_file::Sparse, layers: &[&Linear]) -> Option<usize> {
    match (settings.r, settings.selection) {
        (Some(r), _) => Some(r as usize),
        (None, Selection::Random) => {
            let entries: usize = layers.iter().map(|l| l.in_features * l.out_features).sum();
            let per_rank: usize = layers.iter().map(|l| l.in_features + l.out_features).sum();
            Some(((settings.share * entries as f64 / per_rank.max(1) as f64).round() as usize).max(1))
        }
        (None, _) => None,
    }
}

/// Entries of a layer's change.
fn count(settings: &run_file::Sparse, r: Option<usize>, layer: &Linear) -> Result<usize> {
    let (out, inp) = (layer.out_features, layer.in_features);
    let nnz = match r {
        Some(r) => r * (out + inp),
        None => ((settings.share * (out * inp) as f64).round() as usize).max(1),
    };
    if nnz > out * inp || out * inp > u32::MAX as usize {
        return Err(Error::Method(format!(
            "sparse: {nnz} entries were asked for at {}, whose weight {out} x {inp} has {}; lower sparse.r",
            layer.path,
            out * inp
        )));
    }
    Ok(nnz)
}

/// The places of a layer's entries, unless the data chooses them.
fn places(
    settings: &run_file::Sparse,
    seed: u64,
    layer: &Linear,
    weight: &Param,
    nnz: usize,
) -> Result<Places> {
    let total = layer.out_features * layer.in_features;
    let flat = match settings.selection {
        Selection::Random => random(Stream::named(seed, &format!("sparse {}", layer.path)), total, nnz),
        Selection::Magnitude => {
            let values = decode_all(weight.weight.storage());
            largest(values.data().iter().map(|x| x.abs()), nnz)
        }
        Selection::Fisher => return Ok(Places::default()),
    };
    Ok(Places::known(pattern(layer.out_features, layer.in_features, &flat)?))
}

/// Ascending flat places of a weight `[rows, cols]` as a pattern.
fn pattern(rows: usize, cols: usize, flat: &[u32]) -> Result<SparsePattern> {
    let entries = flat.iter().map(|at| (at / cols as u32, at % cols as u32)).collect();
    SparsePattern::new(rows, cols, entries).map_err(|e| Error::Method(e.to_string()))
}

/// `count` different numbers below `total`, ascending (Floyd's algorithm).
fn random(stream: Stream, total: usize, count: usize) -> Vec<u32> {
    let mut chosen = HashSet::with_capacity(count);
    for (i, top) in (total - count..total).enumerate() {
        let drawn = stream.below(i as u64, top + 1) as u32;
        if !chosen.insert(drawn) {
            chosen.insert(top as u32);
        }
    }
    let mut chosen: Vec<u32> = chosen.into_iter().collect();
    chosen.sort_unstable();
    chosen
}

/// The places of the `count` largest scores, ascending; of equal ones the first.
fn largest(scores: impl Iterator<Item = f32>, count: usize) -> Vec<u32> {
    let mut all: Vec<(f32, u32)> = scores.zip(0..).collect();
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    let mut places: Vec<u32> = all.into_iter().map(|(_, at)| at).collect();
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_places_are_different_and_all_within() {
        for (total, count) in [(10, 10), (1000, 37), (5, 0), (1, 1)] {
            let places = random(Stream::new(1, 2), total, count);
            assert_eq!(places.len(), count);
            assert!(places.windows(2).all(|w| w[0] < w[1]) && places.iter().all(|&p| (p as usize) < total));
        }
        assert_ne!(random(Stream::new(1, 2), 1000, 9), random(Stream::new(1, 3), 1000, 9));
    }

    #[test]
    fn the_largest_are_chosen_and_of_equals_the_first() {
        let scores = [1.0, 3.0, 2.0, 3.0, 0.0, 3.0];
        assert_eq!(largest(scores.into_iter(), 2), [1, 3]);
        assert_eq!(largest(scores.into_iter(), 4), [1, 2, 3, 5]);
        assert_eq!(largest(scores.into_iter(), 6).len(), 6);
    }
}
