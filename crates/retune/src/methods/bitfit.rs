//! BitFit (Ben Zaken et al., 2022): only bias terms are trained, and the classifier where there is one.
//!
//! `y = W x + b`, `W` frozen. On BERT the biases are about 0.1 % of the parameters. Where a linear has no bias (Llama),
//! `add_biases` gives it one of zeros, which is kept beside the layer.

use retune_tensor::{ParamId, Tensor};

use super::replace::Replaced;
use super::{Attached, Spec, delta, put_param, remember, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Head, Site};
use crate::run_file;

pub const SPEC: Spec = Spec {
    name: "bitfit",
    summary: "bias terms alone: about a thousandth of the parameters",
    source: "arXiv:2106.10199",
    default_lr: 1e-3,
    adapter: true,
    attach: |model, run| attach(model, &run.bitfit),
};

pub(super) const NO_PLACE: &str =
    "biases were added to linears that have none, and the model's files have no place for them";

/// Marks every bias trainable, and a classifier whole.
///
/// # Errors
/// If the model has no biases and none may be added.
pub fn attach(model: &mut Model, settings: &run_file::BitFit) -> Result<Attached> {
    let classifier = matches!(model.net.head(), Head::Classifier(_));
    let base = |p: &retune_tensor::Param| !p.adapter && p.name.ends_with(".bias");
    let mut ids: Vec<ParamId> = model.params.iter().filter(|(_, p)| base(p)).map(|(id, _)| id).collect();
    let of_trunk = ids.iter().any(|id| !delta::head_params(model).contains(id));
    if !of_trunk && !settings.add_biases {
        let what = "this model's trunk has no bias terms to train; let zeros be added with --add-biases (bitfit.add_biases = \
                    true), or use another method, such as lora";
        return Err(Error::Method(what.into()));
    }
    model.params.freeze_all();
    if classifier {
        ids.extend(delta::head_params(model));
    }
    ids.sort_unstable();
    ids.dedup();
    let mut unmergeable = None;
    if settings.add_biases {
        let added = add_biases(model);
        unmergeable = (!added.is_empty()).then_some(NO_PLACE);
        ids.extend(added);
    }
    delta::train(model, SPEC.name, &ids)?;
    remember(model, 0, SPEC.name, unmergeable);
    Ok(Attached {
        modules: delta::names(model, &ids),
        trainable: trainable_count(model),
        save: Some(delta::saver(SPEC.name, settings, ids)),
        ..Attached::default()
    })
}

/// Gives each linear of the trunk without a bias one of zeros, in slot 0.
fn add_biases(model: &mut Model) -> Vec<ParamId> {
    let trunk: Vec<String> = model.net.trunk_linears().iter().map(|layer| layer.path.clone()).collect();
    let Model { params, net, .. } = model;
    let mut added = Vec::new();
    net.visit_sites(&mut |site| {
        let Site::Linear(layer) = site else { return };
        if layer.bias.is_none() && trunk.contains(&layer.path) {
            let zeros = Tensor::zeros(1, layer.out_features);
            let id = put_param(params, &format!("{}.bias", layer.path), &[layer.out_features], zeros);
            layer.deltas.put(0, Box::new(Replaced { weight: None, bias: Some(id) }));
            added.push(id);
        }
    });
    added
}
