//! Sparse changes on disk: PEFT's SHiRA folder where the places are random, else a delta of places and values.

use std::path::Path;

use retune_formats::lora_config::Modules;
use retune_formats::peft::{self, Param as Key, PeftAdapter, PeftConfig};
use retune_formats::peft_common::Common;
use retune_formats::shira_config::ShiraConfig;
use retune_formats::{Dtype, TensorOut};
use retune_tensor::ops::SparsePattern;
use retune_tensor::{Layout, ParamId, Tensor};
use std::collections::BTreeMap;

use super::{Part, Places, SPEC, SparseDelta};
use crate::error::{Error, Result};
use crate::methods::folder::{self, Change, Values};
use crate::methods::replace::Replaced;
use crate::methods::saved::task_type;
use crate::methods::{
    Attached, Save, Source, clear, delta, param_name, put_param, remember, trainable_count,
};
use crate::models::Model;
use crate::nn::Site;
use crate::run_file::{self, RunFile, Selection};

/// How the changes of `parts` and the parameters `whole` are saved.
pub(super) fn saver(
    settings: &run_file::Sparse,
    run: &RunFile,
    r: Option<usize>,
    targets: Option<Modules>,
    parts: Vec<Part>,
    whole: Vec<ParamId>,
) -> Save {
    let base = run.model.display().to_string();
    let json = serde_json::to_value(settings).unwrap_or_default();
    let r = r.filter(|_| settings.selection == Selection::Random);
    Box::new(move |model, folder, readme| {
        // PEFT's SHiRA knows linears alone, no Conv1D and no convolution.
        let plain = parts.iter().all(|part| model.params.get(part.weight).layout == Layout::Rows);
        match r.filter(|_| plain) {
            Some(r) => {
                let config = ShiraConfig {
                    r,
                    target_modules: targets.clone(),
                    modules_to_save: modules_to_save(model, &whole),
                    common: Common {
                        task_type: task_type(model),
                        base_model_name_or_path: Some(base.clone()),
                        ..Common::default()
                    },
                    ..ShiraConfig::default()
                };
                save_shira(model, config, &parts, &whole, folder, readme)
            }
            None => save_delta(model, &json, &parts, &whole, folder, readme),
        }
    })
}

/// The modules whose parameters are saved whole: `classifier`, `score`.
fn modules_to_save(model: &Model, whole: &[ParamId]) -> Option<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for id in whole {
        let name = &model.params.get(*id).name;
        names.extend(name.split('.').next().map(String::from));
    }
    names.dedup();
    (!names.is_empty()).then_some(names)
}

fn finite(model: &Model, id: ParamId, folder: &Path) -> Result<Tensor> {
    let param = model.params.get(id);
    let values = param.weight.to_tensor();
    match values.all_finite() {
        true => Ok(values),
        false => {
            let what = format!("{} is not finite and is not written", param.name);
            Err(Error::Adapter { path: folder.to_path_buf(), what })
        }
    }
}

/// Entries that were chosen; before that there is nothing to save.
fn chosen<'a>(part: &'a Part, folder: &Path) -> Result<&'a SparsePattern> {
    part.places.get().ok_or_else(|| {
        let what = format!("the entries of {} are not chosen yet: train before saving", part.path);
        Error::Adapter { path: folder.to_path_buf(), what }
    })
}

fn save_shira(
    model: &Model,
    config: ShiraConfig,
    parts: &[Part],
    whole: &[ParamId],
    folder: &Path,
    readme: Option<&str>,
) -> Result<()> {
    let mut tensors = Vec::new();
    for part in parts {
        let (values, pattern) = (finite(model, part.values, folder)?, chosen(part, folder)?);
        let entries = pattern.entries();
        let places = entries.iter().map(|e| e.0).chain(entries.iter().map(|e| e.1));
        let bytes: Vec<u8> = places.flat_map(u32::to_le_bytes).collect();
        let (weight, indices) =
            (peft::key(&part.path, &Key::ShiraWeight), peft::key(&part.path, &Key::ShiraIndices));
        tensors.push(TensorOut::f32(weight, &[pattern.len()], values.data().to_vec()));
        tensors.push(TensorOut::bytes(indices, Dtype::I32, &[2, pattern.len()], bytes));
    }
    for &id in whole {
        let (values, param) = (finite(model, id, folder)?, model.params.get(id));
        let name = format!("{}{}", peft::PREFIX, param.name);
        tensors.push(TensorOut::f32(name, &param.shape, values.data().to_vec()));
    }
    Ok(peft::write(folder, &PeftConfig::Shira(config), tensors, readme)?)
}

fn save_delta(
    model: &Model,
    settings: &serde_json::Value,
    parts: &[Part],
    whole: &[ParamId],
    folder: &Path,
    readme: Option<&str>,
) -> Result<()> {
    let mut changes = Vec::new();
    for part in parts {
        let (values, pattern) = (finite(model, part.values, folder)?, chosen(part, folder)?);
        let weight = model.params.get(part.weight);
        let size = (weight.weight.rows(), weight.weight.cols());
        // As the file has the weight; ascending there too.
        let place =
            |&(row, col): &(u32, u32)| weight.layout.to_file((row as usize, col as usize), size) as u64;
        let mut entries: Vec<(u64, f32)> =
            pattern.entries().iter().map(place).zip(values.data().iter().copied()).collect();
        entries.sort_unstable_by_key(|(at, _)| *at);
        let (indices, values) = entries.into_iter().unzip();
        changes.push(Change {
            name: format!("{}.weight", part.path),
            shape: weight.file_shape(),
            values: Values::Sparse { indices, values },
        });
    }
    changes.extend(whole.iter().map(|&id| delta::dense(model.params.get(id))));
    folder::write(model, folder, SPEC.name, settings, changes, readme)
}

/// One layer's entries of one adapter.
struct Entries {
    pattern: SparsePattern,
    values: Tensor,
    weight: f32,
}

/// Puts PEFT's SHiRA adapters into a slot of a model, side by side, each scaled with its weight.
///
/// # Errors
/// If a file is damaged, or a tensor is missing or of a shape that does not fit the model. The model is unchanged then.
pub(in crate::methods) fn load_shira(model: &mut Model, sources: &[Source], slot: usize) -> Result<Attached> {
    let mut layers: BTreeMap<String, Vec<Entries>> = BTreeMap::new();
    let mut whole: BTreeMap<String, (ParamId, Tensor)> = BTreeMap::new();
    for source in sources {
        read_shira(model, source, &mut layers, &mut whole)?;
    }
    clear(model, slot);
    model.params.freeze_all();
    let modules = layers.keys().cloned().collect();
    let Model { params, net, .. } = model;
    let mut replaced: BTreeMap<String, Replaced> = BTreeMap::new();
    for (name, (base, values)) in whole {
        let shape = params.get(base).shape.clone();
        let key = param_name(slot, &format!("{}{name}", peft::PREFIX));
        let id = put_param(params, &key, &shape, values);
        let Some((path, part)) = name.rsplit_once('.') else { continue };
        let entry = replaced.entry(path.to_string()).or_default();
        if part == "bias" { entry.bias = Some(id) } else { entry.weight = Some(id) }
    }
    net.visit_sites(&mut |site| {
        let Site::Linear(layer) = site else { return };
        if let Some(entry) = replaced.remove(&layer.path) {
            layer.deltas.put(slot, Box::new(entry));
        }
        let Some(entries) = layers.remove(&layer.path) else { return };
        let mut parts = Vec::new();
        for (i, Entries { pattern, values, weight }) in entries.into_iter().enumerate() {
            let name = format!("{i}+{}", peft::key(&layer.path, &Key::ShiraWeight));
            let values = put_param(params, &param_name(slot, &name), &[pattern.len()], values);
            parts.push((Places::known(pattern), values, weight));
        }
        layer.deltas.put(slot, Box::new(SparseDelta { parts }));
    });
    remember(model, slot, SPEC.name, None);
    Ok(Attached { modules, trainable: trainable_count(model), ..Attached::default() })
}

fn read_shira(
    model: &mut Model,
    source: &Source,
    layers: &mut BTreeMap<String, Vec<Entries>>,
    whole: &mut BTreeMap<String, (ParamId, Tensor)>,
) -> Result<()> {
    let adapter = PeftAdapter::open(&source.path)?;
    let fail = |what: String| Error::Adapter { path: source.path.clone(), what };
    let PeftConfig::Shira(config) = adapter.config() else {
        return Err(fail(format!("its peft_type is {}, not SHIRA", adapter.config().peft_type())));
    };
    let matcher = config.matcher(&source.path)?;
    let mut targeted = Vec::new();
    for layer in model.net.linears() {
        let holds = adapter.find(&layer.path, &Key::ShiraWeight).is_some();
        if matcher.is_target(&layer.path) == Some(true) && !holds {
            let what = format!("tensor \"{}\" is missing", peft::key(&layer.path, &Key::ShiraWeight));
            return Err(fail(format!("{what}: the configuration targets this module")));
        }
        if holds {
            targeted.push((layer.path.clone(), layer.out_features, layer.in_features));
        }
    }
    for tensor in adapter.tensors() {
        let known = targeted.iter().find(|(path, ..)| *path == tensor.module);
        match (&tensor.param, known) {
            (Key::ShiraIndices, Some(_)) => {}
            (Key::ShiraWeight, Some((path, out, inp))) => {
                let indices = adapter.find(path, &Key::ShiraIndices).ok_or_else(|| {
                    fail(format!("tensor \"{}\" is missing", peft::key(path, &Key::ShiraIndices)))
                })?;
                let narrow = |(row, col): (usize, usize)| (row as u32, col as u32);
                let entries = adapter.read_indices(indices)?.into_iter().map(narrow).collect();
                let pattern =
                    SparsePattern::new(*out, *inp, entries).map_err(|e| fail(format!("{path}: {e}")))?;
                let values = adapter.read_f32(tensor)?;
                let values = Tensor::from_vec(1, values.len(), values);
                layers.entry(path.clone()).or_default().push(Entries {
                    pattern,
                    values,
                    weight: source.weight,
                });
            }
            (Key::Plain(part), _) => {
                let name = format!("{}.{part}", tensor.module);
                let of_linear = |l: &&crate::nn::Linear| l.path == tensor.module;
                let base = model.params.find(&name).filter(|_| model.net.linears().iter().any(of_linear));
                let base = base.ok_or_else(|| fail(format!("\"{name}\" is no linear of this model")))?;
                let param = model.params.get(base);
                if tensor.info.shape != param.shape {
                    let what = format!("tensor \"{}\" is {:?}", tensor.info.name, tensor.info.shape);
                    return Err(fail(format!("{what}, this model has {:?}", param.shape)));
                }
                let (rows, cols) = (param.weight.rows(), param.weight.cols());
                whole.insert(name, (base, Tensor::from_vec(rows, cols, adapter.read_f32(tensor)?)));
            }
            _ => {
                let what = format!("tensor \"{}\" is for a module that this model has not", tensor.info.name);
                return Err(fail(what));
            }
        }
    }
    Ok(())
}
