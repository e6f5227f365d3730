//! Full fine-tuning: every parameter is trained, as an f32 master.

use retune_tensor::Weight;

use super::{Attached, Spec, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;

pub const SPEC: Spec = Spec {
    name: "full",
    summary: "all parameters; writes a whole model folder",
    source: "-",
    default_lr: 2e-5,
    adapter: false,
    attach: |model, _| attach(model),
};

/// Marks every parameter trainable.
///
/// # Errors
/// If a weight is not held in f32: quantised or half-precision bases cannot take an optimiser's small steps.
pub fn attach(model: &mut Model) -> Result<Attached> {
    let ids: Vec<_> = model.params.ids().collect();
    for &id in &ids {
        let param = model.params.get(id);
        if let Weight::Stored(storage) = &param.weight {
            return Err(Error::Method(format!(
                "full fine-tuning changes the weights themselves, which are held in {} here ({}); use --storage f32",
                storage.format(),
                param.name
            )));
        }
    }
    for &id in &ids {
        model.params.get_mut(id).trainable = true;
    }
    let modules = ids.iter().map(|&id| model.params.get(id).name.clone()).collect();
    Ok(Attached { modules, trainable: trainable_count(model), ..Attached::default() })
}
