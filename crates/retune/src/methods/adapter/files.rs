//! Bottleneck adapters on disk, as AdapterHub's `adapters` 1.3 writes and reads them, and the classifier's head beside.

use std::path::Path;

use retune_formats::adapter_hub::{
    self, BnConfig, HEAD_CONFIG, HeadConfig, HeadParam, HubAdapter, HubConfig, HubHead, HubMethod, HubParam,
    has_head, write_head,
};
use retune_formats::{TensorOut, json, limits};
use retune_tensor::ops::Activation;
use retune_tensor::{Param, ParamId, Tensor};

use super::{Values, bottleneck, matrix, put};
use crate::error::{Error, Result};
use crate::methods::replace::Replaced;
use crate::methods::{Attached, param_name};
use crate::models::Model;
use crate::nn::{self, Linear, Pooling, Problem, Site};

/// What AdapterHub calls the class of a model: `BertAdapterModel` of `BertForSequenceClassification`.
pub(super) fn model_class(config: &serde_json::Value) -> String {
    let class = config.pointer("/architectures/0").and_then(|v| v.as_str()).unwrap_or_default();
    let ends = ["For", "LMHead", "Model"];
    let end = ends.iter().filter_map(|end| class.find(end)).min().unwrap_or(class.len());
    format!("{}AdapterModel", &class[..end])
}

/// Puts a saved adapter into a slot, its head too; they are trainable, so that training may go on.
///
/// # Errors
/// If the folder is damaged or for another model, or holds another method.
pub fn load(model: &mut Model, adapter: &HubAdapter, slot: usize) -> Result<Attached> {
    let fail = |e: Error| match e {
        Error::Method(what) => Error::Adapter { path: adapter.path().to_path_buf(), what },
        other => other,
    };
    let HubMethod::Bottleneck(bn) = &adapter.config().method else {
        return Err(fail(Error::Method("it is no bottleneck adapter".into())));
    };
    bottleneck::check(bn).map_err(fail)?;
    let head = read_head(model, adapter).map_err(fail)?;
    let config = adapter.config().clone();
    let places = super::places(model, bn).map_err(fail)?;
    if let Some(odd) = adapter.tensors().iter().find(|t| !places.iter().any(|p| p.hub_site == t.site)) {
        let what = format!("tensor \"{}\" is for a place that this model does not have", odd.info.name);
        return Err(fail(Error::Method(what)));
    }
    put(model, slot, config, head, &mut Stored { adapter }).map_err(fail)
}

/// The head beside an adapter, if there is one.
///
/// # Errors
/// If it is none that the model has.
pub(in crate::methods) fn read_head(model: &Model, adapter: &HubAdapter) -> Result<Option<Head>> {
    let folder = adapter.path();
    match has_head(folder) {
        true if is_models_own(folder)? => Head::read_models_own(model, adapter.config(), folder),
        true => Ok(Some(Head::read(model, &HubHead::open(folder)?)?)),
        false => Ok(None),
    }
}

/// A language model's own head is saved with every adapter, and must be the base's.
///
/// # Errors
/// If it is not.
pub(in crate::methods) fn check_language_head(model: &Model, folder: &Path) -> Result<()> {
    let config = HubConfig::new("", "", "", 1, HubMethod::Bottleneck(BnConfig::seq_bn()));
    match Head::read_models_own(model, &config, folder) {
        Ok(_) => Ok(()),
        Err(Error::Method(what)) => Err(Error::Adapter { path: folder.to_path_buf(), what }),
        Err(other) => Err(other),
    }
}

/// Is the head one of a model's class (`BertForSequenceClassification`), not one of AdapterHub's own? Then its tensors have
/// the model's names, and nothing says how it works.
fn is_models_own(folder: &Path) -> Result<bool> {
    let config = json::read(&folder.join(HEAD_CONFIG), limits::CONFIG_BYTES)?;
    Ok(config.get("config").is_some_and(serde_json::Value::is_null))
}

/// Values from a file.
struct Stored<'a> {
    adapter: &'a HubAdapter,
}

impl Values for Stored<'_> {
    fn of(&mut self, site: &str, param: HubParam, sizes: &[usize]) -> Result<Tensor> {
        let key = self.adapter.config().key(site, param);
        let Some(tensor) = self.adapter.find(site, param) else {
            return Err(Error::Method(format!("tensor \"{key}\" is missing")));
        };
        if tensor.info.shape != sizes {
            let what = format!(
                "tensor \"{key}\" is {:?}; this model needs {sizes:?}. Is it for another base?",
                tensor.info.shape
            );
            return Err(Error::Method(what));
        }
        let (rows, cols) = matrix(sizes);
        Ok(Tensor::from_vec(rows, cols, self.adapter.read_f32(tensor)?))
    }
}

/// Writes the bottlenecks of a slot, and the head that was trained beside them.
///
/// # Errors
/// If the folder cannot be written, or a value is not finite.
pub(super) fn save(
    model: &Model,
    slot: usize,
    config: &HubConfig,
    head: Option<&Held>,
    folder: &Path,
    readme: Option<&str>,
) -> Result<()> {
    let prefix = param_name(slot, "");
    let mut tensors = Vec::new();
    for (_, param) in model.params.iter().filter(|(_, p)| p.adapter) {
        let Some(name) = param.name.strip_prefix(&prefix).filter(|name| !name.starts_with("heads.")) else {
            continue;
        };
        if slot > 0 || !name.contains(':') {
            tensors.push(out(name, param, folder)?);
        }
    }
    write(model, config, tensors, head, folder, readme)
}

/// Writes an adapter and the head that was trained beside it.
///
/// # Errors
/// If the folder cannot be written, or a value of the head is not finite.
pub(in crate::methods) fn write(
    model: &Model,
    config: &HubConfig,
    tensors: Vec<TensorOut>,
    head: Option<&Held>,
    folder: &Path,
    readme: Option<&str>,
) -> Result<()> {
    if let Some(head) = head {
        let mut parts = Vec::new();
        for (name, id) in &head.params {
            parts.push(out(name, model.params.get(*id), folder)?);
        }
        write_head(folder, &head.config, parts)?;
    }
    if let Some(text) = readme {
        retune_formats::atomic::write_bytes(&folder.join("README.md"), text.as_bytes())?;
    }
    Ok(adapter_hub::write(folder, config, tensors)?)
}

pub(in crate::methods) fn out(name: &str, param: &Param, folder: &Path) -> Result<TensorOut<'static>> {
    let values = param.weight.to_tensor();
    if !values.all_finite() {
        let what = format!("{name} is not finite and is not written");
        return Err(Error::Adapter { path: folder.to_path_buf(), what });
    }
    Ok(TensorOut::f32(name, &param.shape, values.data().to_vec()))
}

/// A classifier's linears as AdapterHub's head has them, before they are in the model.
pub(in crate::methods) struct Head {
    config: HeadConfig,
    /// Module path, and the values of weight and bias.
    layers: Vec<(String, Tensor, Option<Tensor>)>,
}

/// The head in the model: names in files and parameters.
pub(in crate::methods) struct Held {
    config: HeadConfig,
    params: Vec<(String, ParamId)>,
}

/// The linears of a classifier that are its own, in order: a pooler is the trunk's.
fn own_linears(head: &nn::Classifier) -> Vec<&Linear> {
    let dense = head.dense.as_ref().map(|(dense, _)| dense).filter(|dense| !is_pooler(dense));
    dense.into_iter().chain([&head.out]).collect()
}

fn is_pooler(dense: &Linear) -> bool {
    dense.path.ends_with("pooler.dense")
}

/// AdapterHub's names of the activations that heads have here.
fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Relu => "relu",
        Activation::Gelu => "gelu",
        _ => "tanh",
    }
}

impl Head {
    /// The head of a model, to be trained beside a fresh adapter; `None` if it is no classifier.
    pub fn of(model: &Model, config: &HubConfig) -> Option<Head> {
        let nn::Head::Classifier(head) = model.net.head() else { return None };
        let value = |id: ParamId| model.params.get(id).weight.to_tensor();
        let layers: Vec<_> = own_linears(head)
            .into_iter()
            .map(|l| (l.path.clone(), value(l.weight), l.bias.map(value)))
            .collect();
        let pooler = head.dense.as_ref().is_some_and(|(dense, _)| is_pooler(dense));
        let tokens = head.problem == Problem::Tokens;
        let mut config = HeadConfig {
            model: config.clone(),
            head_type: match head.problem {
                Problem::Tokens => "tagging",
                Problem::MultiLabel => "multilabel_classification",
                Problem::SingleLabel | Problem::Regression => "classification",
            }
            .into(),
            num_labels: head.labels.len(),
            layers: layers.len(),
            activation_function: head.dense.as_ref().map(|(_, f)| activation_name(*f).into()),
            label2id: Some(head.labels.iter().enumerate().map(|(i, label)| (label.clone(), i)).collect()),
            use_pooler: (!tokens).then_some(pooler),
            bias: (!tokens).then_some(head.out.bias.is_some()),
            dropout_prob: Some(0.0),
            unknown: Default::default(),
        };
        if head.pooling == Pooling::Mean {
            // AdapterHub has no such head, and must not take it for one of the first row.
            config.unknown.insert("pooling".into(), "mean".into());
        }
        Some(Head { config, layers })
    }

    /// A saved head, for the classifier that the model has.
    ///
    /// # Errors
    /// If the model has none, or another.
    pub fn read(model: &Model, file: &HubHead) -> Result<Head> {
        let config = file.config();
        let nn::Head::Classifier(head) = model.net.head() else {
            let what = format!(
                "it has a head of {} labels, but the model was loaded without a classifier",
                config.num_labels
            );
            return Err(Error::Method(what));
        };
        let all: Vec<&Linear> = head.dense.iter().map(|(dense, _)| dense).chain([&head.out]).collect();
        let linears = match config.layers {
            n if n <= all.len() => &all[all.len() - n..],
            n => {
                let what = format!("its head has {n} layers, but the model's classifier has {}", all.len());
                return Err(Error::Method(what));
            }
        };
        let pooler = head.dense.as_ref().is_some_and(|(dense, _)| is_pooler(dense)) && config.layers == 1;
        let first = matches!(config.head_type.as_str(), "classification" | "multilabel_classification");
        let own =
            if first { config.use_pooler.unwrap_or(false) == pooler } else { head.pooling == Pooling::Each };
        let same = config.layers == 1
            || head.dense.as_ref().map(|(_, f)| activation_name(*f)) == config.activation_function.as_deref();
        if !own || !same || (first && all.len() > config.layers && !pooler) {
            let what = "its head reads the trunk's rows in another way than the model's classifier does";
            return Err(Error::Method(what.into()));
        }
        let mut layers = Vec::new();
        for (index, linear) in linears.iter().enumerate() {
            let weight = file.read_f32(index, HeadParam::Weight)?;
            let (rows, cols) = (linear.out_features, linear.in_features);
            let last = index + 1 == linears.len();
            let has_bias = !last || config.bias.unwrap_or(true);
            if weight.len() != rows * cols || has_bias != linear.bias.is_some() {
                let what = format!(
                    "its head has {} labels; the model's classifier has {rows} at {}: load the model with the head's labels",
                    config.num_labels, linear.path
                );
                return Err(Error::Method(what));
            }
            let bias = has_bias.then(|| file.read_f32(index, HeadParam::Bias)).transpose()?;
            let bias = bias.map(|values| Tensor::from_vec(1, rows, values));
            layers.push((linear.path.clone(), Tensor::from_vec(rows, cols, weight), bias));
        }
        Ok(Head { config: config.clone(), layers })
    }

    /// A head with the names of the model's class. A language model's is saved with every adapter, and must be the base's.
    ///
    /// # Errors
    /// If the model has another head, or the language model's head was trained.
    fn read_models_own(model: &Model, config: &HubConfig, folder: &Path) -> Result<Option<Head>> {
        let file = crate::convert::own_tensors(folder)?;
        let linears = model.net.head().linears();
        let read = |name: String, id: ParamId| -> Result<Tensor> {
            let weight = &model.params.get(id).weight;
            let shape = file.find(&name).map(|info| info.shape.iter().product::<usize>());
            if shape != Some(weight.rows() * weight.cols()) {
                let what =
                    format!("its head has no tensor \"{name}\" of the size that this model's head has");
                return Err(Error::Method(what + ": load the model with the head that it was trained with"));
            }
            Ok(Tensor::from_vec(weight.rows(), weight.cols(), file.read_f32(&name)?))
        };
        if let Some(head) = model.net.language_model() {
            let name = format!("{}.weight", head.linear.path);
            let same = read(name.clone(), head.linear.weight)?;
            if file.tensors().len() > 1
                || same.data() != model.params.get(head.linear.weight).weight.to_tensor().data()
            {
                let what = format!(
                    "its language-model head ({name}) is not this model's: it was trained, or is of another base"
                );
                return Err(Error::Method(what));
            }
            return Ok(None);
        }
        let Some(mut head) = Head::of(model, config) else {
            let what = "it has a head beside, but the model was loaded without one";
            return Err(Error::Method(what.into()));
        };
        for (path, weight, bias) in &mut head.layers {
            let Some(layer) = linears.iter().find(|layer| layer.path == *path) else { continue };
            *weight = read(format!("{path}.weight"), layer.weight)?;
            if let (Some(bias), Some(id)) = (bias, layer.bias) {
                *bias = read(format!("{path}.bias"), id)?;
            }
        }
        Ok(Some(head))
    }

    /// Puts it in the place of the model's own.
    pub fn put(self, model: &mut Model, slot: usize) -> Result<Held> {
        let mut held = Held { config: self.config, params: Vec::new() };
        for (index, (path, weight, bias)) in self.layers.into_iter().enumerate() {
            let mut add = |param, shape: &[usize], values| {
                let name = held.config.key(index, param);
                let id = model.params.add_adapter(param_name(slot, &name), shape, values);
                held.params.push((name, id));
                id
            };
            let shape = [weight.rows(), weight.cols()];
            let weight = add(HeadParam::Weight, &shape, weight);
            let bias = bias.map(|bias| add(HeadParam::Bias, &[shape[0]], bias));
            model.net.visit_sites(&mut |site| {
                if let Site::Linear(layer) = site
                    && layer.path == path
                {
                    layer.deltas.put(slot, Box::new(Replaced { weight: Some(weight), bias }));
                }
            });
        }
        Ok(held)
    }
}
