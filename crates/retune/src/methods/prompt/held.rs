//! A classifier's head that is trained beside virtual tokens and saved with them: PEFT's `modules_to_save`.

use retune_formats::peft::{Param, PeftAdapter, prompt_key};
use retune_tensor::{ParamId, Tensor};

use super::encoder::Adder;
use crate::error::{Error, Result};
use crate::methods::replace::Replaced;
use crate::methods::saved::CLASSIFIERS;
use crate::models::Model;
use crate::nn::{Head, Linear, Site};

/// Names in files, and parameters.
pub(crate) type Held = Vec<(String, ParamId)>;

/// A linear's own values, before they are in the model.
pub(crate) struct Part {
    path: String,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

pub(crate) fn is_classifier(model: &Model) -> bool {
    matches!(model.net.head(), Head::Classifier(_))
}

/// PEFT takes what ends in one of the names, and what is in there: DistilBERT's `pre_classifier` too, no pooler.
fn is_held(path: &str) -> bool {
    path.split('.').any(|part| CLASSIFIERS.iter().any(|name| part.ends_with(name)))
}

/// A classifier's head as it is.
pub(crate) fn of_model(model: &Model) -> Vec<Part> {
    if !is_classifier(model) {
        return Vec::new();
    }
    let value = |id: ParamId| model.params.get(id).weight.to_tensor();
    let part = |layer: &Linear| Part {
        path: layer.path.clone(),
        weight: Some(value(layer.weight)),
        bias: layer.bias.map(value),
    };
    model.net.head().linears().into_iter().filter(|layer| is_held(&layer.path)).map(part).collect()
}

/// What an adapter's files hold besides its virtual tokens.
///
/// # Errors
/// If it is not a linear of this model, or of another shape.
pub(crate) fn of_files(model: &Model, adapter: &PeftAdapter) -> Result<Vec<Part>> {
    let fail = |what: String| Err(Error::Adapter { path: adapter.path().to_path_buf(), what });
    let mut parts: Vec<Part> = Vec::new();
    for tensor in adapter.tensors().iter().filter(|t| t.param != Param::PromptEmbeddings) {
        let linears = model.net.linears();
        let layer = linears.iter().find(|layer| layer.path == tensor.module && !layer.fan_in_fan_out);
        let (name, shape) = (&tensor.info.name, &tensor.info.shape);
        let (due, is_weight) = match (layer, tensor.param.suffix()) {
            (Some(layer), "weight") => (vec![layer.out_features, layer.in_features], true),
            (Some(layer), "bias") if layer.bias.is_some() => (vec![layer.out_features], false),
            _ => {
                let what = format!("tensor \"{name}\" is for a module that this model does not have");
                return fail(what + ": is it loaded with the head that the adapter was made for?");
            }
        };
        if *shape != due {
            let what = format!("tensor \"{name}\" is {shape:?}, but this model has {due:?} there");
            return fail(what + ": load it with the labels that the adapter was made for");
        }
        let (rows, cols) = if is_weight { (due[0], due[1]) } else { (1, due[0]) };
        let values = Tensor::from_vec(rows, cols, adapter.read_f32(tensor)?);
        let at = parts.iter().position(|part| part.path == tensor.module).unwrap_or_else(|| {
            parts.push(Part { path: tensor.module.clone(), weight: None, bias: None });
            parts.len() - 1
        });
        let place = if is_weight { &mut parts[at].weight } else { &mut parts[at].bias };
        *place = Some(values);
    }
    Ok(parts)
}

/// Puts them in the place of the model's own values; they are trainable.
///
/// # Errors
/// If the slot holds such values already.
pub(crate) fn put(model: &mut Model, slot: usize, parts: Vec<Part>) -> Result<Held> {
    let mut held = Held::new();
    for Part { path, weight, bias } in parts {
        let mut add = Adder { params: &mut model.params, slot, seed: 0 };
        let mut own = |part: &str, values: Option<Tensor>| -> Result<Option<ParamId>> {
            let Some(values) = values else { return Ok(None) };
            let name = prompt_key(&path, &Param::Plain(part.into()));
            let shape = [values.rows(), values.cols()];
            let id = add.add(&name, if part == "bias" { &shape[1..] } else { &shape }, values)?;
            held.push((name, id));
            Ok(Some(id))
        };
        let replaced = Replaced { weight: own("weight", weight)?, bias: own("bias", bias)? };
        model.net.visit_sites(&mut |site| {
            if let Site::Linear(layer) = site
                && layer.path == path
            {
                layer.deltas.put(slot, Box::new(replaced));
            }
        });
    }
    Ok(held)
}
