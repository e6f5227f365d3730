//! LoRA adapters on disk, as PEFT writes and reads them.

use std::collections::BTreeMap;
use std::path::Path;

use retune_formats::TensorOut;
use retune_formats::lora_config::LoraConfig;
use retune_formats::peft::{self, LoraParam, PeftAdapter, PeftConfig};
use retune_tensor::Tensor;

use super::{LoraDelta, SPEC, USUAL_TARGETS, add_branch, check_supported, choose, key};
use crate::error::{Error, Result};
use crate::methods::{Attached, Source, param_name, remember, trainable_count};
use crate::models::Model;
use crate::nn::Site;

/// Writes the model's LoRA parameters as a PEFT adapter folder; `readme` is the model card.
///
/// # Errors
/// If the folder cannot be written, or a value is not finite.
pub(super) fn save(model: &Model, config: &LoraConfig, folder: &Path, readme: Option<&str>) -> Result<()> {
    let mut tensors = Vec::new();
    for (_, param) in model.params.iter().filter(|(_, p)| p.adapter && p.name.starts_with(peft::PREFIX)) {
        let values = param.weight.to_tensor();
        if !values.all_finite() {
            let what = format!("{} is not finite and is not written", param.name);
            return Err(Error::Adapter { path: folder.to_path_buf(), what });
        }
        tensors.push(TensorOut::f32(param.name.clone(), &param.shape, values.data().to_vec()));
    }
    Ok(peft::write(folder, &PeftConfig::Lora(config.clone()), tensors, readme)?)
}

/// Puts one or more adapters into a slot of a model, side by side, each scaled with its weight. The base is frozen; the
/// adapters' own parameters are trainable, so that training may go on.
///
/// # Errors
/// If a file is damaged, a tensor is missing, unexpected or of a shape that does not fit the model, or the adapter
/// asks for what is not supported. The model is unchanged then.
pub fn load(model: &mut Model, sources: &[Source], slot: usize) -> Result<Attached> {
    let adapters = sources.iter().map(|s| Ok(PeftAdapter::open(&s.path)?)).collect::<Result<Vec<_>>>()?;
    let (paths, heads) = model.linear_paths();
    let mut plans = Vec::new();
    for adapter in &adapters {
        plans.push(plan(model, adapter, &paths, &heads)?);
    }
    model.params.freeze_all();
    let mut by_module: BTreeMap<String, Vec<(String, Part)>> = BTreeMap::new();
    for (index, (source, plan)) in sources.iter().zip(plans).enumerate() {
        let prefix = if sources.len() == 1 { String::new() } else { format!("{index}+") };
        let prefix = param_name(slot, &prefix);
        for (module, mut part) in plan {
            part.scale *= source.weight;
            by_module.entry(module).or_default().push((prefix.clone(), part));
        }
    }
    let modules: Vec<String> = by_module.keys().cloned().collect();
    let Model { params, net, .. } = model;
    net.visit_sites(&mut |site| {
        let Site::Linear(layer) = site else { return };
        let Some(parts) = by_module.remove(&layer.path) else { return };
        let add = |(prefix, part): (String, Part)| {
            add_branch(params, &prefix, layer, (part.a, part.b), part.scale, part.dropout)
        };
        let branches = parts.into_iter().map(add).collect();
        layer.deltas.put(slot, Box::new(LoraDelta { branches }));
    });
    remember(model, slot, SPEC.name, None);
    Ok(Attached { modules, trainable: trainable_count(model), ..Attached::default() })
}

/// One adapter's factors for one module.
struct Part {
    a: Tensor,
    b: Tensor,
    scale: f32,
    dropout: f32,
}

/// Reads an adapter and checks it against the model.
fn plan(
    model: &mut Model,
    adapter: &PeftAdapter,
    paths: &[String],
    heads: &[String],
) -> Result<Vec<(String, Part)>> {
    let fail = |what: String| Error::Adapter { path: adapter.path().to_path_buf(), what };
    let PeftConfig::Lora(config) = adapter.config() else {
        return Err(fail(format!("its peft_type is {}, not LORA", adapter.config().peft_type())));
    };
    check_supported(config).map_err(|e| fail(e.to_string()))?;
    let chosen = choose(config, paths, heads, USUAL_TARGETS).map_err(|e| fail(e.to_string()))?;
    if let Some(odd) = adapter.tensors().iter().find(|t| !chosen.modules.contains(&t.module)) {
        let what = format!(
            "tensor \"{}\" is for a module that the configuration does not target in this model",
            odd.info.name
        );
        return Err(fail(what));
    }
    let mut shapes = BTreeMap::new();
    model.net.visit_sites(&mut |site| {
        if let Site::Linear(layer) = site {
            shapes.insert(layer.path.clone(), (layer.in_features, layer.out_features));
        }
    });
    let mut parts = Vec::new();
    for module in chosen.modules {
        let (inp, out) = shapes.get(&module).copied().unwrap_or_default();
        let r = chosen.matcher.rank(&module);
        let read = |param: LoraParam, rows: usize, cols: usize| {
            let tensor = adapter.find(&module, &param).ok_or_else(|| {
                fail(format!(
                    "tensor \"{}\" is missing: the configuration targets this module",
                    key(&module, &param)
                ))
            })?;
            if tensor.info.shape != [rows, cols] {
                let what = format!(
                    "tensor \"{}\" is {:?}; this model and rank {r} need [{rows}, {cols}]. Is it for another base?",
                    tensor.info.name, tensor.info.shape
                );
                return Err(fail(what));
            }
            Ok(Tensor::from_vec(rows, cols, adapter.read_f32(tensor)?))
        };
        let part = Part {
            a: read(LoraParam::A, r, inp)?,
            b: read(LoraParam::B, out, r)?,
            scale: chosen.matcher.scale(&module) as f32,
            dropout: config.lora_dropout as f32,
        };
        parts.push((module, part));
    }
    Ok(parts)
}
