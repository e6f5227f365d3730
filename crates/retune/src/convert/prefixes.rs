//! Prefixes between PEFT and AdapterHub, on models whose positions are rotations.
//!
//! PEFT moves a text behind its prefix, AdapterHub does not; the keys are not rotated. With R(m) the rotation of position m, a
//! query at p gives `R(n + p) q . k` there and `R(p) q . k'` here: the same for `k' = R(-n) k`. Learned positions have no such way.

use std::collections::BTreeMap;
use std::path::Path;

use retune_formats::TensorOut;
use retune_formats::adapter_hub::{self, HubAdapter, HubConfig, HubMethod, HubParam, HubPrefix};
use retune_formats::adapters::AdapterKind;
use retune_formats::peft::{self, Param, PeftAdapter, PeftConfig, prompt_key};
use retune_formats::peft_common::Common;
use retune_formats::prompt_config::{PrefixTuningConfig, Prompt};
use retune_tensor::Tensor;
use retune_tensor::ops::Activation;

use super::{Base, Converted, Target, heads, refused};
use crate::error::Result;

/// Keys and values of all layers: `[n, 2 L d]`, for each layer its keys and then its values.
struct Prefix {
    n: usize,
    layers: usize,
    values: Vec<f32>,
}

/// Converts a prefix; `None` if it is none, or there is no way.
///
/// # Errors
/// If the adapter is damaged or does not fit the base.
pub(super) fn convert(
    from: &Path,
    (kind, target): (AdapterKind, Target),
    base: Option<&Base>,
    to: &Path,
) -> Result<Option<Converted>> {
    let Some((base, frequencies)) = base.and_then(|base| Some((base, base.frequencies.as_deref()?))) else {
        return Ok(None);
    };
    match (kind, target) {
        (AdapterKind::Peft, Target::AdapterHub) => {
            let adapter = PeftAdapter::open(from)?;
            let Some(mut prefix) = of_peft(from, &adapter, base)? else { return Ok(None) };
            prefix.rotate(-(prefix.n as f64), base.head_dim, frequencies);
            let layers = prefix.layers;
            write_hub(prefix, base, to)?;
            Ok(Some(Converted { from: kind, modules: layers, notes: adapter.notes().to_vec() }))
        }
        (AdapterKind::AdapterHub, Target::Peft) => {
            let adapter = HubAdapter::open(from)?;
            let Some(mut prefix) = of_hub(from, &adapter, base)? else { return Ok(None) };
            let mut notes = adapter.notes().to_vec();
            if heads::of_hub(from, &base.model_type, &mut notes)?.is_some() {
                return Err(refused(from, "it is a prefix with a head, which is not carried over".into()));
            }
            prefix.rotate(prefix.n as f64, base.head_dim, frequencies);
            let layers = prefix.layers;
            write_peft(prefix, base, to)?;
            Ok(Some(Converted { from: kind, modules: layers, notes }))
        }
        _ => Ok(None),
    }
}

impl Prefix {
    /// # Errors
    /// If the values are not those of this base's layers.
    fn new(from: &Path, n: usize, values: Vec<f32>, base: &Base) -> Result<Prefix> {
        let unit = n * 2 * base.layers * base.head_dim;
        if unit == 0 || values.is_empty() || !values.len().is_multiple_of(unit) {
            let what = format!(
                "{} values are not {n} keys and values of {} layers with heads of {}: it is for another base",
                values.len(),
                base.layers,
                base.head_dim
            );
            return Err(refused(from, what));
        }
        Ok(Prefix { n, layers: base.layers, values })
    }

    /// Columns of one layer's keys.
    fn width(&self) -> usize {
        self.values.len() / (self.n * 2 * self.layers)
    }

    /// Moves all keys by so many positions: the two halves of a head are the parts of its pairs.
    fn rotate(&mut self, by: f64, head_dim: usize, frequencies: &[f32]) {
        let width = self.width();
        let half = head_dim / 2;
        // Keys, values, keys, values.
        for keys in self.values.chunks_exact_mut(width).step_by(2) {
            for head in keys.chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(half);
                for ((a, b), frequency) in first.iter_mut().zip(second).zip(frequencies) {
                    let (sin, cos) = (by * f64::from(*frequency)).sin_cos();
                    let (x, y) = (f64::from(*a), f64::from(*b));
                    (*a, *b) = ((x * cos - y * sin) as f32, (y * cos + x * sin) as f32);
                }
            }
        }
    }
}

fn of_peft(from: &Path, adapter: &PeftAdapter, base: &Base) -> Result<Option<Prefix>> {
    let PeftConfig::PrefixTuning(config) = adapter.config() else { return Ok(None) };
    let [tensor] = adapter.tensors() else {
        return Err(refused(from, "it is a prefix with a head, which is not carried over".into()));
    };
    let values = adapter.read_f32(tensor)?;
    Prefix::new(from, config.prompt.num_virtual_tokens, values, base).map(Some)
}

fn of_hub(from: &Path, adapter: &HubAdapter, base: &Base) -> Result<Option<Prefix>> {
    let HubMethod::Prefix(prefix) = &adapter.config().method else { return Ok(None) };
    let model_type = &adapter.config().model_type;
    if !model_type.is_empty() && *model_type != base.model_type {
        return Err(refused(
            from,
            format!("it is for a {model_type} model, and this is a {}", base.model_type),
        ));
    }
    if !prefix.leave_out.is_empty() {
        return Err(refused(
            from,
            format!("it leaves layers out ({:?}), as PEFT's cannot", prefix.leave_out),
        ));
    }
    let site = adapter.tensors().first().map(|tensor| tensor.site.clone()).unwrap_or_default();
    if adapter.tensors().iter().any(|tensor| tensor.site != site) {
        return Err(refused(from, "it has prefixes of several kinds of attention".into()));
    }
    let read = |param: HubParam| -> Result<Vec<f32>> {
        let tensor = adapter.find(&site, param);
        let missing =
            || refused(from, format!("tensor \"{}\" is missing", adapter.config().key(&site, param)));
        Ok(adapter.read_f32(tensor.ok_or_else(missing)?)?)
    };
    if prefix.flat {
        return Prefix::new(from, prefix.prefix_length, read(HubParam::PrefixFlat)?, base).map(Some);
    }
    let activation = crate::methods::adapter::activation(&prefix.non_linearity)?;
    let table = read(HubParam::PrefixEmbedding)?;
    let inner = affine(&table, &read(HubParam::PrefixInWeight)?, &read(HubParam::PrefixInBias)?, activation);
    let out = (read(HubParam::PrefixOutWeight)?, read(HubParam::PrefixOutBias)?);
    let values = affine(&inner, &out.0, &out.1, Activation::Identity);
    Prefix::new(from, prefix.prefix_length, values, base).map(Some)
}

/// `f(x W^T + b)`, row by row; the shapes were checked when the files were read.
fn affine(x: &[f32], weight: &[f32], bias: &[f32], activation: Activation) -> Vec<f32> {
    let (out, inp) = (bias.len(), weight.len() / bias.len().max(1));
    let params = retune_tensor::Params::new();
    let tape = retune_tensor::Tape::inference(&params);
    let mut rows = Vec::new();
    for row in x.chunks_exact(inp.max(1)) {
        let sum = |o: usize| {
            let own = weight[o * inp..(o + 1) * inp].iter().zip(row);
            own.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() + f64::from(bias[o])
        };
        rows.extend((0..out).map(|o| sum(o) as f32));
    }
    let y = retune_tensor::Var::constant(Tensor::from_vec(rows.len() / out.max(1), out, rows));
    retune_tensor::ops::activation(&tape, &y, activation).value().data().to_vec()
}

fn write_hub(prefix: Prefix, base: &Base, to: &Path) -> Result<()> {
    let name = to.file_name().map_or("adapter".into(), |n| n.to_string_lossy().replace('.', "_"));
    let config = HubConfig {
        name,
        model_type: base.model_type.clone(),
        model_class: base.hub_class(),
        model_name: Some(base.name.clone()),
        hidden_size: Some(base.hidden_size),
        version: Some(adapter_hub::ADAPTERS_VERSION.into()),
        method: HubMethod::Prefix(HubPrefix { prefix_length: prefix.n, flat: true, ..HubPrefix::default() }),
        unknown: BTreeMap::new(),
    };
    let key = config.key("model.prefix_tuning.self_prefix", HubParam::PrefixFlat);
    let tensor = TensorOut::f32(key, &[prefix.values.len()], prefix.values);
    Ok(adapter_hub::write(to, &config, [tensor])?)
}

fn write_peft(prefix: Prefix, base: &Base, to: &Path) -> Result<()> {
    let width = prefix.width();
    let config = PeftConfig::PrefixTuning(PrefixTuningConfig {
        prompt: Prompt {
            num_virtual_tokens: prefix.n,
            token_dim: Some(width),
            num_attention_heads: Some(width / base.head_dim),
            num_layers: Some(prefix.layers),
            common: Common {
                task_type: Some("CAUSAL_LM".into()),
                base_model_name_or_path: Some(base.name.clone()),
                ..Common::default()
            },
            ..Prompt::default()
        },
        encoder_hidden_size: Some(width),
        ..PrefixTuningConfig::default()
    });
    let shape = [prefix.n, prefix.values.len() / prefix.n];
    let name = prompt_key("", &Param::PromptEmbeddings);
    Ok(peft::write(to, &config, [TensorOut::f32(name, &shape, prefix.values)], None)?)
}
