//! Full fine-tuning: every parameter is trained, as an f32 master.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use retune_tensor::{Param, ParamId};

use super::{Attached, Spec, delta, trainable_count};
use crate::error::Result;
use crate::models::Model;
use crate::run_file;

pub const SPEC: Spec = Spec {
    name: "full",
    summary: "all parameters; writes a whole model folder",
    source: "-",
    default_lr: 2e-5,
    adapter: false,
    attach: |model, run| attach_with(model, &run.full),
};

/// Marks every parameter trainable; the whole model is what is written.
///
/// # Errors
/// If a weight is not held in f32: quantised or half-precision bases cannot take an optimiser's small steps.
pub fn attach(model: &mut Model) -> Result<Attached> {
    attach_with(model, &run_file::Full::default())
}

/// As [`attach`]; with `only_changed`, the tensors that differ from the base's are written, as a delta.
///
/// # Errors
/// As [`attach`].
pub fn attach_with(model: &mut Model, settings: &run_file::Full) -> Result<Attached> {
    let ids: Vec<ParamId> = {
        let base = model.params.iter().filter(|(_, p)| !p.adapter && !p.buffer);
        base.map(|(id, _)| id).collect()
    };
    delta::train(model, SPEC.name, &ids)?;
    let mut attached = Attached {
        modules: delta::names(model, &ids),
        trainable: trainable_count(model),
        ..Attached::default()
    };
    if settings.only_changed {
        let before: BTreeMap<ParamId, u64> = ids.iter().map(|&id| (id, hash(model.params.get(id)))).collect();
        let settings = serde_json::json!({ "only_changed": true });
        attached.save = Some(Box::new(move |model, folder, readme| {
            let changed =
                |(id, hashed): (&ParamId, &u64)| (hash(model.params.get(*id)) != *hashed).then_some(*id);
            let ids: Vec<ParamId> = before.iter().filter_map(changed).collect();
            delta::save(model, SPEC.name, &settings, &ids, folder, readme)
        }));
    }
    Ok(attached)
}

/// Of the values of a parameter, to tell later whether they changed.
fn hash(param: &Param) -> u64 {
    let mut hasher = DefaultHasher::new();
    param.weight.to_tensor().data().iter().for_each(|x| hasher.write_u32(x.to_bits()));
    hasher.finish()
}
