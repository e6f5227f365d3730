//! Adapters that PEFT has no name for: some of the base's own parameters with other values, or a few entries of them.
//!
//! Saved as a delta (`retune_formats::delta`): new values under the tensors' Hugging Face names, or the places and differences
//! of single entries. In slot 0 new values overwrite the copy in memory; in other slots they stand beside it, where a linear
//! or a token table can hold them.

use std::collections::BTreeMap;
use std::path::Path;

use retune_tensor::ops::SparsePattern;
use retune_tensor::{Layout, Param, ParamId, Params, Tensor, Weight};
use serde::Serialize;

use super::folder::{self, Change, Values};
use super::replace::Replaced;
use super::sparse::{Places, SparseDelta};
use super::{Attached, Save, Source, param_name, put_param, remember, targets::nearest, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Head, Site};

/// Marks parameters trainable, and no other.
///
/// # Errors
/// If one is not held in f32: quantised or half-precision weights cannot take an optimiser's small steps.
pub(super) fn train(model: &mut Model, method: &str, ids: &[ParamId]) -> Result<()> {
    for &id in ids {
        let param = model.params.get_mut(id);
        if let Weight::Stored(storage) = &param.weight {
            if storage.format() == "f32" {
                // It lay in its file until now; what is trained lies in memory.
                param.weight = Weight::F32(param.weight.to_tensor());
                continue;
            }
            return Err(Error::Method(format!(
                "{method} fine-tuning changes the weights themselves, which are held in {} here ({}); use --storage f32",
                storage.format(),
                param.name
            )));
        }
    }
    ids.iter().for_each(|&id| model.params.get_mut(id).trainable = true);
    Ok(())
}

pub(super) fn names(model: &Model, ids: &[ParamId]) -> Vec<String> {
    ids.iter().map(|&id| model.params.get(id).name.clone()).collect()
}

/// The parameters of a head without what belongs to the pre-trained trunk (BERT's pooler, a tied table).
pub(super) fn head_params(model: &Model) -> Vec<ParamId> {
    let linears = match model.net.head() {
        Head::Classifier(head) => {
            let own = head.dense.iter().map(|(dense, _)| dense).filter(|d| !d.path.ends_with("pooler.dense"));
            own.chain([&head.out]).collect()
        }
        Head::LanguageModel(_) | Head::Detector(_) => model.net.head().linears(),
        Head::None => Vec::new(),
    };
    let tables: Vec<ParamId> = model.net.embeddings().iter().map(|table| table.weight).collect();
    let all = linears.into_iter().flat_map(|linear| [Some(linear.weight), linear.bias]).flatten();
    all.filter(|id| !tables.contains(id)).collect()
}

/// The same of a classifier or detector; nothing for other heads.
pub(super) fn classifier_params(model: &Model) -> Vec<ParamId> {
    match model.net.head() {
        Head::Classifier(_) | Head::Detector(_) => head_params(model),
        _ => Vec::new(),
    }
}

/// How a method saves some parameters.
pub(super) fn saver(method: &'static str, settings: &impl Serialize, ids: Vec<ParamId>) -> Save {
    let settings = serde_json::to_value(settings).unwrap_or_default();
    Box::new(move |model, folder, readme| save(model, method, &settings, &ids, folder, readme))
}

/// Writes the values of some parameters as a delta.
///
/// # Errors
/// If a value is not finite or the folder cannot be written.
pub(super) fn save(
    model: &Model,
    method: &str,
    settings: &serde_json::Value,
    ids: &[ParamId],
    folder: &Path,
    readme: Option<&str>,
) -> Result<()> {
    let changes = ids.iter().map(|&id| dense(model.params.get(id))).collect();
    folder::write(model, folder, method, settings, changes, readme)
}

/// A parameter's values as its file holds them.
pub(super) fn dense(param: &Param) -> Change {
    let values = param.layout.values_to_file(&param.weight.to_tensor());
    Change { name: param.name.clone(), shape: param.file_shape(), values: Values::Dense(values) }
}

/// Where a tensor of a delta goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Over a parameter in memory.
    Param(ParamId),
    /// Beside a linear's own weight.
    Weight(String),
    /// Beside a linear's bias, or where it has none.
    Bias(String),
    /// Beside a token table.
    Table(String),
}

/// What goes to one place: from each adapter, with the weight it counts with.
struct Planned {
    place: Place,
    /// Of the parameter as the model sees it: `[rows, cols]`.
    shape: (usize, usize),
    /// Its shape and order in files.
    file_shape: Vec<usize>,
    layout: Layout,
    /// What the new values replace; `None` for a bias that is added.
    base: Option<ParamId>,
    parts: Vec<(f32, Change)>,
}

/// Puts one or more deltas into a slot of a model. Several are added up as differences from the base, each with its weight.
///
/// # Errors
/// If a file is damaged, a tensor is unknown or of a shape that does not fit the model, or cannot stand beside the base in
/// another slot than 0. The model is unchanged then.
pub fn load(model: &mut Model, sources: &[Source], slot: usize) -> Result<Attached> {
    let mut planned: BTreeMap<String, Planned> = BTreeMap::new();
    let mut method = None;
    for source in sources {
        let delta = folder::read(&source.path)?;
        method.get_or_insert(super::find(&delta.method).map_or("delta", |spec| spec.name));
        for change in delta.changes {
            add_to_plan(model, slot, source, change, &mut planned)?;
        }
    }
    super::clear(model, slot);
    model.params.freeze_all();
    let modules = planned.keys().cloned().collect();
    let plans: Vec<Planned> = planned.into_values().collect();
    let changes_base = plans.iter().any(|plan| matches!(plan.place, Place::Param(_)));
    let added = plans.iter().any(|plan| plan.base.is_none());
    apply(model, slot, plans);
    remember(model, slot, method.unwrap_or("delta"), added.then_some(super::bitfit::NO_PLACE));
    if let Some(on) = model.adapters.last_mut() {
        on.changes_base = changes_base;
    }
    Ok(Attached { modules, trainable: trainable_count(model), ..Attached::default() })
}

fn add_to_plan(
    model: &mut Model,
    slot: usize,
    source: &Source,
    change: Change,
    planned: &mut BTreeMap<String, Planned>,
) -> Result<()> {
    let fail = |what: String| Error::Adapter { path: source.path.clone(), what };
    let sparse = matches!(change.values, Values::Sparse { .. });
    let found = find(model, &change.name, slot, sparse).map_err(&fail)?;
    if change.shape != found.file_shape {
        let what = format!(
            "tensor \"{}\" is {:?}, this model has {:?}. Is it for another base?",
            change.name, change.shape, found.file_shape
        );
        return Err(fail(what));
    }
    let entry = planned.entry(change.name.clone()).or_insert(found);
    if let Some((_, other)) = entry.parts.first()
        && matches!(other.values, Values::Sparse { .. }) != sparse
    {
        let what =
            format!("\"{}\" has single entries in one adapter and whole values in another", change.name);
        return Err(fail(format!("{what}: they cannot be added up; merge one of them first")));
    }
    entry.parts.push((source.weight, change));
    Ok(())
}

/// Finds where a tensor of this name goes.
fn find(model: &mut Model, name: &str, slot: usize, sparse: bool) -> std::result::Result<Planned, String> {
    let plan = |params: &Params, place, base: Option<ParamId>, shape: (usize, usize)| {
        let (layout, file_shape) = match base {
            Some(id) => (params.get(id).layout, params.get(id).file_shape()),
            // A bias that is added.
            None => (Layout::Rows, vec![shape.1]),
        };
        Planned { place, shape, file_shape, layout, base, parts: Vec::new() }
    };
    let own = model.params.find(name).filter(|&id| !model.params.get(id).adapter);
    if let (Some(id), 0, false) = (own, slot, sparse) {
        let weight = &model.params.get(id).weight;
        let shape = (weight.rows(), weight.cols());
        return Ok(plan(&model.params, Place::Param(id), Some(id), shape));
    }
    let Model { params, net, .. } = model;
    let mut found = None;
    net.visit_sites(&mut |site| match site {
        Site::Linear(layer) if name.strip_suffix(".weight") == Some(&layer.path) => {
            let shape = (layer.out_features, layer.in_features);
            found = Some(plan(params, Place::Weight(layer.path.clone()), Some(layer.weight), shape));
        }
        Site::Linear(layer) if !sparse && name.strip_suffix(".bias") == Some(&layer.path) => {
            found = Some(plan(params, Place::Bias(layer.path.clone()), layer.bias, (1, layer.out_features)));
        }
        Site::Embedding(table) if !sparse && name.strip_suffix(".weight") == Some(&table.path) => {
            found = Some(plan(
                params,
                Place::Table(table.path.clone()),
                Some(table.weight),
                (table.vocab_size, table.dim),
            ));
        }
        _ => {}
    });
    found.ok_or_else(|| match own {
        Some(_) if sparse => format!("\"{name}\" is no linear's weight: single entries of it cannot be changed"),
        Some(_) => format!(
            "it changes \"{name}\", which is neither at a linear nor a token table, so that it cannot be one of several adapters \
             in memory; give it as the only --adapter"
        ),
        None => {
            let near = nearest(name, model.params.iter().map(|(_, p)| p.name.as_str())).unwrap_or_default();
            format!("tensor \"{name}\" is for a parameter that this model has not; the nearest is \"{near}\"")
        }
    })
}

impl Planned {
    /// The new values: of one adapter at full weight its own, else the base with all differences.
    fn values(&self, params: &Params) -> Tensor {
        let (rows, cols) = self.shape;
        let own = |change: &Change| {
            let Values::Dense(values) = &change.values else { return Tensor::zeros(rows, cols) };
            self.layout.values_from_file(rows, cols, values.clone())
        };
        if let [(1.0, change)] = self.parts.as_slice() {
            return own(change);
        }
        let base =
            self.base.map_or_else(|| Tensor::zeros(rows, cols), |id| params.get(id).weight.to_tensor());
        let mut sum = base.clone();
        for (weight, change) in &self.parts {
            let values = own(change);
            let each = sum.data_mut().iter_mut().zip(values.data().iter().zip(base.data()));
            each.for_each(|(sum, (new, old))| *sum += weight * (new - old));
        }
        sum
    }

    /// Single entries of a linear's weight, one part for each adapter.
    fn entries(&self) -> Vec<(SparsePattern, Tensor, f32)> {
        let (rows, cols) = self.shape;
        let place = |(at, value): (&u64, &f32)| {
            let (row, col) = self.layout.from_file(*at as usize, (rows, cols));
            ((row as u32, col as u32), *value)
        };
        let part = |(weight, change): &(f32, Change)| {
            let Values::Sparse { indices, values } = &change.values else { return None };
            let mut entries: Vec<((u32, u32), f32)> = indices.iter().zip(values).map(place).collect();
            // In the order of the weight in memory, as they were trained: sums have the order of the entries.
            entries.sort_by_key(|(place, _)| *place);
            let (places, values): (Vec<_>, Vec<f32>) = entries.into_iter().unzip();
            // The reader has checked that all places lie within the shape.
            let pattern = SparsePattern::new(rows, cols, places).ok()?;
            Some((pattern, Tensor::from_vec(1, values.len(), values), *weight))
        };
        self.parts.iter().filter_map(part).collect()
    }
}

/// Does what was planned.
fn apply(model: &mut Model, slot: usize, plans: Vec<Planned>) {
    let mut beside: BTreeMap<String, Replaced> = BTreeMap::new();
    let mut sparse: BTreeMap<String, Vec<(Places, ParamId, f32)>> = BTreeMap::new();
    let Model { params, net, .. } = model;
    for plan in plans {
        let name = plan.parts.first().map(|(_, change)| change.name.clone()).unwrap_or_default();
        if let (Place::Weight(path), [(_, Change { values: Values::Sparse { .. }, .. }), ..]) =
            (&plan.place, plan.parts.as_slice())
        {
            for (i, (pattern, values, weight)) in plan.entries().into_iter().enumerate() {
                let name = param_name(slot, &format!("{}{name}.values", prefix(i)));
                let values = put_param(params, &name, &[pattern.len()], values);
                sparse.entry(path.clone()).or_default().push((Places::known(pattern), values, weight));
            }
            continue;
        }
        let values = plan.values(params);
        if let Place::Param(id) = plan.place {
            let param = params.get_mut(id);
            (param.weight, param.trainable) = (Weight::F32(values), true);
            continue;
        }
        let shape = match plan.layout {
            Layout::Turned => plan.file_shape.iter().rev().copied().collect(),
            _ => plan.file_shape.clone(),
        };
        let id = put_param(params, &param_name(slot, &name), &shape, values);
        params.get_mut(id).layout = plan.layout;
        match plan.place {
            Place::Weight(path) | Place::Table(path) => beside.entry(path).or_default().weight = Some(id),
            Place::Bias(path) => beside.entry(path).or_default().bias = Some(id),
            Place::Param(_) => {}
        }
    }
    net.visit_sites(&mut |site| match site {
        Site::Linear(layer) => {
            if let Some(replaced) = beside.remove(&layer.path) {
                layer.deltas.put(slot, Box::new(replaced));
            }
            if let Some(parts) = sparse.remove(&layer.path) {
                layer.deltas.put(slot, Box::new(SparseDelta { parts }));
            }
        }
        Site::Embedding(table) => {
            if let Some(replaced) = beside.remove(&table.path) {
                table.deltas.put(slot, Box::new(replaced));
            }
        }
        _ => {}
    });
}

/// Tells the adapters of one slot apart.
fn prefix(index: usize) -> String {
    if index == 0 { String::new() } else { format!("{index}+") }
}
