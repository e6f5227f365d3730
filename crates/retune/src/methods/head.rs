//! The task head alone, over a frozen trunk: linear probing.
//!
//! A classifier is trained as it was loaded: with the files' classes, or with others (then it starts fresh). A pooler that is
//! a part of the pre-trained trunk (BERT's) stays frozen, as in transformers with a frozen base. Of a language model it is
//! the last linear; where that is tied to the token table, a copy of its own is trained and the table stays.

use retune_tensor::{ParamId, Weight};

use super::replace::Replaced;
use super::{Attached, Spec, delta, put_param, remember, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Head, Site};

pub const SPEC: Spec = Spec {
    name: "head",
    summary: "the task head alone; from the second epoch on the trunk is not computed again",
    source: "-",
    default_lr: 1e-3,
    adapter: true,
    attach: |model, _| attach(model),
};

/// Marks the head's parameters trainable.
///
/// # Errors
/// If the model has no head.
pub fn attach(model: &mut Model) -> Result<Attached> {
    model.params.freeze_all();
    let ids = match model.net.head() {
        Head::None => {
            let what = "the head alone is to be trained, but this model has none: only its trunk is in the files; \
                        train a classifier on it, or use another method";
            return Err(Error::Method(what.into()));
        }
        Head::Classifier(_) | Head::Detector(_) => delta::head_params(model),
        Head::LanguageModel(_) => language_model(model),
    };
    // A head is held in f32 while it is trained, whatever the storage of the trunk.
    for &id in &ids {
        let param = model.params.get_mut(id);
        param.weight = Weight::F32(param.weight.to_tensor());
    }
    delta::train(model, SPEC.name, &ids)?;
    remember(model, 0, SPEC.name, None);
    Ok(Attached {
        modules: delta::names(model, &ids),
        trainable: trainable_count(model),
        save: Some(delta::saver(SPEC.name, &serde_json::json!({}), ids)),
        ..Attached::default()
    })
}

/// The last linear's parameters; if its weight is the token table's, a copy in its place.
fn language_model(model: &mut Model) -> Vec<ParamId> {
    let tables: Vec<ParamId> = model.net.embeddings().iter().map(|table| table.weight).collect();
    let Some(head) = model.net.language_model() else { return Vec::new() };
    let (path, bias) = (head.linear.path.clone(), head.linear.bias);
    let (out, inp) = (head.linear.out_features, head.linear.in_features);
    if !tables.contains(&head.linear.weight) {
        return std::iter::once(head.linear.weight).chain(bias).collect();
    }
    let copy = model.params.get(head.linear.weight).weight.to_tensor();
    let weight = put_param(&mut model.params, &format!("{path}.weight"), &[out, inp], copy);
    model.net.visit_sites(&mut |site| {
        if let Site::Linear(layer) = site
            && layer.path == path
        {
            layer.deltas.put(0, Box::new(Replaced { weight: Some(weight), bias: None }));
        }
    });
    std::iter::once(weight).chain(bias).collect()
}
