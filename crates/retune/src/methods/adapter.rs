//! Bottleneck adapters: `up(f(down(x)))` at the end of sub-layers, beside a residual connection.
//!
//! After attention and feed-forward (Houlsby et al., 2019), after feed-forward alone (Pfeiffer et al., 2020), or beside
//! feed-forward (He et al., 2021). Meaning and files are those of AdapterHub's `adapters` 1.3 ([`bottleneck`], [`files`]), but
//! for the start: `up` begins at zero, so that nothing changes at first (AdapterHub draws it from N(0, 0.02) for the first
//! two). With a norm of its own behind the bottleneck, or the residual taken behind the model's norm, that cannot be so.

mod bottleneck;
mod files;

use retune_formats::adapter_hub::{BnConfig, HubConfig, HubMethod, HubParam, Reduction, Residual, Scaling};
use retune_tensor::ops::Activation;
use retune_tensor::rng::Stream;
use retune_tensor::{Params, Tensor};

use super::{Attached, Spec, remember, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Site, SubLayer, SubLayerKind};
use crate::run_file::{self, Architecture, RunFile, ScalingSetting};
use bottleneck::Bottleneck;

pub(super) use files::{check_language_head, load, out, read_head, write};

pub const SPEC: Spec = Spec {
    name: "adapter",
    summary: "small bottlenecks with a non-linearity behind sub-layers; AdapterHub's files",
    source: "arXiv:1902.00751; arXiv:2005.00247; parallel arXiv:2110.04366",
    default_lr: 1e-3,
    adapter: true,
    attach: |model, run| attach(model, &run.adapter, run),
};

const UNMERGEABLE: &str = "a bottleneck's non-linearity is no change of a weight";

/// The adapter's name in its files.
const NAME: &str = "adapter";

/// Where one bottleneck goes.
struct Place {
    /// AdapterHub's name of the sub-layer's end.
    hub_site: String,
    /// The module path in the model.
    path: String,
    hidden: usize,
    layer: usize,
}

/// AdapterHub's name of a sub-layer's end: BERT's own module; elsewhere a part of the layer.
fn hub_site(at: &SubLayer) -> String {
    if at.path.ends_with(".output") {
        return at.path.clone();
    }
    let layer = at.path.rsplit_once('.').map_or("", |(layer, _)| layer);
    let part = match at.kind {
        SubLayerKind::Attention => "attention_adapters",
        SubLayerKind::FeedForward => "output_adapters",
    };
    format!("{layer}.{part}")
}

/// The places that a configuration chooses in a model.
///
/// # Errors
/// If there is none.
fn places(model: &mut Model, bn: &BnConfig) -> Result<Vec<Place>> {
    let (layers, kind) = (model.net.blocks(), model.net.model_type());
    if let Some(odd) = bn.leave_out.iter().find(|layer| **layer >= layers) {
        let what = format!("leave_out names layer {odd}, but this model has {layers}, counted from 0");
        return Err(Error::Method(what));
    }
    let (mut found, mut ends) = (Vec::new(), 0);
    model.net.visit_sites(&mut |site| {
        let Site::SubLayer(at) = site else { return };
        ends += 1;
        let wanted = match at.kind {
            SubLayerKind::Attention => bn.mh_adapter,
            SubLayerKind::FeedForward => bn.output_adapter,
        };
        if wanted && !bn.leave_out.contains(&at.layer) {
            let (path, hidden, layer) = (at.path.clone(), at.hidden, at.layer);
            found.push(Place { hub_site: hub_site(at), path, hidden, layer });
        }
    });
    match (ends, found.is_empty()) {
        (0, _) => {
            let what =
                format!("adapters need sub-layers with a residual connection; a {kind} model has none");
            Err(Error::Method(what))
        }
        (_, true) => Err(Error::Method("the adapter's settings leave out every place in this model".into())),
        _ => Ok(found),
    }
}

/// Freezes the base and puts fresh bottlenecks into slot 0; a classifier's head is trained beside them.
///
/// # Errors
/// If the model has no place for them, or the settings contradict each other.
pub fn attach(model: &mut Model, settings: &run_file::Adapter, run: &RunFile) -> Result<Attached> {
    let bn = config_of(settings);
    bottleneck::check(&bn)?;
    let class = files::model_class(&model.net.config_json());
    let method = HubMethod::Bottleneck(bn);
    let mut config = HubConfig::new(NAME, &model.net.model_type(), &class, model.net.hidden_size(), method);
    if model.net.as_image().is_some() {
        // Stages have widths of their own.
        config.hidden_size = None;
    }
    let head = files::Head::of(model, &config);
    put(model, 0, config, head, &mut Fresh { seed: run.seed })
}

/// Where the values of bottlenecks come from.
trait Values {
    /// The values of a parameter of one place: `rows * cols` of them.
    ///
    /// # Errors
    /// If there are none.
    fn of(&mut self, site: &str, param: HubParam, sizes: &[usize]) -> Result<Tensor>;
}

/// Values to start from.
struct Fresh {
    seed: u64,
}

impl Values for Fresh {
    fn of(&mut self, site: &str, param: HubParam, sizes: &[usize]) -> Result<Tensor> {
        let (rows, cols) = matrix(sizes);
        let stream = Stream::named(self.seed, site);
        Ok(match param {
            HubParam::DownWeight => {
                Tensor::from_fn(rows, cols, |r, c| 0.02 * stream.normal((r * cols + c) as u64))
            }
            HubParam::NormBeforeWeight | HubParam::NormAfterWeight | HubParam::Scaling => {
                Tensor::from_fn(rows, cols, |_, _| 1.0)
            }
            _ => Tensor::zeros(rows, cols),
        })
    }
}

/// A shape as rows and columns: a vector is one row.
fn matrix(sizes: &[usize]) -> (usize, usize) {
    match sizes {
        [rows, cols] => (*rows, *cols),
        other => (1, other.iter().product()),
    }
}

/// Puts bottlenecks into a slot of the model, and the classifier's head that goes with them.
fn put(
    model: &mut Model,
    slot: usize,
    config: HubConfig,
    head: Option<files::Head>,
    values: &mut dyn Values,
) -> Result<Attached> {
    let HubMethod::Bottleneck(bn) = &config.method else {
        return Err(Error::Method("this is no bottleneck adapter".into()));
    };
    let places = places(model, bn)?;
    // All of it is made before the model changes.
    let mut fresh = Vec::new();
    for place in &places {
        let width = bn.bottleneck(place.hidden, place.layer).ok_or_else(|| {
            Error::Method(format!("reduction_factor names none for layer {}, and no default", place.layer))
        })?;
        fresh.push(bottleneck::tensors(bn, place, width, values)?);
    }
    let taken = |params: &Params, name: &str| params.find(&super::param_name(slot, name)).is_some();
    for (place, tensors) in places.iter().zip(&fresh) {
        if tensors.iter().any(|t| taken(&model.params, &config.key(&place.hub_site, t.param))) {
            let what = "this place of the model holds an adapter of the same name already";
            return Err(Error::Method(format!("{what}; load the model again, or use another place")));
        }
    }
    model.params.freeze_all();
    let mut made: Vec<(String, Bottleneck)> = Vec::new();
    for (place, tensors) in places.iter().zip(fresh) {
        let ids = tensors.into_iter().map(|t| {
            let name = super::param_name(slot, &config.key(&place.hub_site, t.param));
            (t.param, model.params.add_adapter(name, &t.sizes, t.values))
        });
        made.push((place.path.clone(), Bottleneck::new(bn, &place.hub_site, ids.collect())));
    }
    let modules: Vec<String> = places.into_iter().map(|place| place.path).collect();
    model.net.visit_sites(&mut |site| {
        let Site::SubLayer(at) = site else { return };
        if let Some(index) = made.iter().position(|(path, _)| *path == at.path) {
            at.after.put(slot, Box::new(made.swap_remove(index).1));
        }
    });
    let held = head.map(|head| head.put(model, slot)).transpose()?;
    remember(model, slot, SPEC.name, Some(UNMERGEABLE));
    Ok(Attached {
        modules,
        trainable: trainable_count(model),
        save: Some(Box::new(move |model, folder, readme| {
            files::save(model, slot, &config, held.as_ref(), folder, readme)
        })),
        ..Attached::default()
    })
}

/// A run file's settings as AdapterHub's configuration.
fn config_of(settings: &run_file::Adapter) -> BnConfig {
    let usual = match settings.architecture {
        Architecture::Houlsby => BnConfig::double_seq_bn(),
        Architecture::Pfeiffer => BnConfig::seq_bn(),
        Architecture::Parallel => BnConfig::par_bn(),
    };
    BnConfig {
        reduction_factor: settings.reduction_factor.map_or(usual.reduction_factor, Reduction::All),
        non_linearity: settings.non_linearity.clone().unwrap_or(usual.non_linearity),
        original_ln_before: settings.original_ln_before.unwrap_or(usual.original_ln_before),
        original_ln_after: settings.original_ln_after.unwrap_or(usual.original_ln_after),
        ln_before: settings.ln_before,
        ln_after: settings.ln_after,
        residual_before_ln: match settings.residual_before_ln {
            true => usual.residual_before_ln,
            false => Residual::AfterNorm,
        },
        adapter_residual_before_ln: settings.adapter_residual_before_ln,
        scaling: match &settings.scaling {
            None => usual.scaling,
            Some(ScalingSetting::Factor(factor)) => Scaling::Fixed(*factor),
            Some(ScalingSetting::Word(word)) if word == "channel" => Scaling::Channel,
            Some(ScalingSetting::Word(_)) => Scaling::Learned,
        },
        leave_out: settings.leave_out.iter().map(|layer| *layer as usize).collect(),
        dropout: settings.dropout,
        ..usual
    }
}

/// The activation of a configuration.
///
/// # Errors
/// If its name is not known.
pub(crate) fn activation(name: &str) -> Result<Activation> {
    Activation::parse(name).ok_or_else(|| {
        let nearest = super::targets::nearest(name, Activation::NAMES.iter().copied()).unwrap_or("relu");
        let what = format!("non_linearity \"{name}\" is not known; did you mean \"{nearest}\"? There are: ");
        Error::Method(what + &Activation::NAMES.join(", "))
    })
}
