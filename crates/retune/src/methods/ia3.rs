//! IA³ (Liu et al., 2022): learned scales on keys, values and the feed-forward's inner activations, ones at the start.
//!
//! Ordinary modules: `y = (W x + b) * l`, l `[out]`; feed-forward modules: `y = W (x * l) + b`, l `[in]` (channels, of a convolution). Names, shapes
//! and the usual modules of each architecture are PEFT's.

use std::collections::BTreeMap;
use std::path::Path;

use retune_formats::ia3_config::{Ia3Config, Ia3Matcher};
use retune_formats::lora_config::{Bias, Modules};
use retune_formats::peft::{Param, PeftAdapter, PeftConfig};
use retune_formats::peft_common::Common;
use retune_tensor::rng::Stream;
use retune_tensor::{Layout, ParamId, Params, Tape, Tensor, Var, ops};

use super::saved::{CLASSIFIERS, Wanted, Whole, task_type, with_classifier};
use super::targets::Known;
use super::values::{Form, Saved, Value, Values, write};
use super::{Attached, Spec, clear, remember_mergeable, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Linear, LinearDelta, Rows, Site};
use crate::run_file::RunFile;

pub const SPEC: Spec = Spec {
    name: "ia3",
    summary: "learned scales on keys, values and the feed-forward; a few kilobytes",
    source: "arXiv:2205.05638",
    default_lr: 3e-3,
    adapter: true,
    attach: |model, run| attach(model, &config_of(run), run.seed),
};

/// One module's scale.
struct Scale {
    /// `[1, out]`, or `[1, in]`.
    l: ParamId,
    feedforward: bool,
}

impl LinearDelta for Scale {
    fn forward(&self, tape: &Tape, rows: &Rows, layer: &Linear, x: &Var) -> Var {
        let l = tape.param(self.l);
        match self.feedforward {
            true => layer.plain(tape, rows, &ops::scale_columns(tape, x, &l)),
            false => ops::scale_columns(tape, &layer.plain(tape, rows, x), &l),
        }
    }

    fn merge(
        &self,
        params: &Params,
        _layer: &Linear,
        weight: &mut Tensor,
        bias: Option<&mut Tensor>,
    ) -> Result<()> {
        let l = params.get(self.l).weight.to_tensor();
        let cols = weight.cols().max(1);
        for (row, values) in weight.data_mut().chunks_exact_mut(cols).enumerate() {
            match self.feedforward {
                // A kernel has every channel once for each of its places.
                true => values.iter_mut().zip(l.data().iter().cycle()).for_each(|(w, l)| *w *= l),
                false => values.iter_mut().for_each(|w| *w *= l.data()[row]),
            }
        }
        if let Some(bias) = bias.filter(|_| !self.feedforward) {
            bias.data_mut().iter_mut().zip(l.data()).for_each(|(b, l)| *b *= l);
        }
        Ok(())
    }
}

/// A run file's settings as PEFT's configuration.
fn config_of(run: &RunFile) -> Ia3Config {
    let settings = &run.ia3;
    let names = |names: &Option<Vec<String>>| names.clone().map(Modules::List);
    Ia3Config {
        target_modules: settings.target_modules.as_ref().map(super::lora::modules_of),
        feedforward_modules: names(&settings.feedforward_modules),
        exclude_modules: names(&settings.exclude_modules),
        modules_to_save: settings.modules_to_save.clone(),
        common: Common {
            base_model_name_or_path: Some(run.model.display().to_string()),
            ..Common::default()
        },
        ..Ia3Config::default()
    }
}

/// A configuration whose modules are spelt out for one model, and those that it chooses.
struct Chosen {
    config: Ia3Config,
    matcher: Ia3Matcher,
    modules: Vec<String>,
    known: Known,
}

impl Chosen {
    /// # Errors
    /// If a name matches nothing, nothing is chosen, or a token table is.
    fn new(mut config: Ia3Config, known: Known) -> Result<Chosen> {
        if known.is_convolutional() {
            config.target_modules.get_or_insert(Modules::AllLinear);
        }
        let targets = if config.target_modules.is_none() { known.usual()?.ia3 } else { &[] };
        known.spell_out("target_modules", &mut config.target_modules, targets)?;
        if config.feedforward_modules.is_none() {
            let names = usual_feedforward(&known, config.target_modules.as_ref())?;
            config.feedforward_modules = Some(Modules::List(names));
        }
        if let Some(Modules::List(names)) = &config.exclude_modules {
            known.check_names("exclude_modules", names)?;
        }
        let matcher = config.matcher(Path::new("IA3 settings"))?;
        let modules = known.chosen(|name| matcher.modules().is_target(name) == Some(true))?;
        match modules.iter().find(|path| known.tables.contains(path)) {
            Some(table) => Err(Error::Method(format!("IA3 is for linears, and {table} is a token table"))),
            None => Ok(Chosen { config, matcher, modules, known }),
        }
    }

    fn is_feedforward(&self, path: &str) -> bool {
        self.matcher.is_feedforward(self.known.name(path)) == Some(true)
    }
}

/// The modules among the targets that scale their input as usual.
///
/// # Errors
/// If nothing is known of the architecture.
fn usual_feedforward(known: &Known, targets: Option<&Modules>) -> Result<Vec<String>> {
    if known.is_convolutional() {
        let names = if let Some(Modules::List(names)) = targets { names } else { &known.linears };
        return Ok(known.dense_among(names));
    }
    let among = |name: &&&str| match targets {
        Some(Modules::List(names)) => names.iter().any(|n| n == **name),
        _ => true,
    };
    Ok(known.usual()?.feedforward.iter().filter(among).map(|name| name.to_string()).collect())
}

/// What an IA³ puts on a model.
struct Plan {
    scales: BTreeMap<String, (Value, bool)>,
    whole: Whole,
}

impl Plan {
    fn new(model: &Model, chosen: &Chosen, values: &Values, seed: u64) -> Result<Plan> {
        let mut scales = BTreeMap::new();
        for layer in model.net.linears().into_iter().filter(|l| chosen.modules.contains(&l.path)) {
            let feedforward = chosen.is_feedforward(&layer.path);
            let n = if feedforward { layer.channels() } else { layer.out_features };
            let shape = match (layer.sliding, feedforward) {
                (Some(_), _) => vec![1, n, 1, 1],
                (None, true) => vec![1, n],
                (None, false) => vec![n, 1],
            };
            let key = chosen.known.key(&layer.path, &Param::Ia3);
            let drawn = || match chosen.config.init_ia3_weights {
                true => Tensor::from_fn(1, n, |_, _| 1.0),
                // PEFT's `torch.randn`, for tests.
                false => Tensor::from_fn(1, n, |_, i| Stream::named(seed, &key).normal(i as u64)),
            };
            // What scales the inputs of a dense layer has their order in files: of flattened pixels, channel by channel.
            let layout = if feedforward && layer.sliding.is_none() { layer.layout } else { Layout::Rows };
            let layout = if matches!(layout, Layout::Kernel(..)) { layout } else { Layout::Rows };
            let form = Form { shape: &shape, size: (1, n), layout };
            let l = values.take_as(&chosen.known, &layer.path, &Param::Ia3, &form, drawn)?;
            scales.insert(layer.path.clone(), (l, feedforward));
        }
        let wanted = Wanted {
            matcher: chosen.matcher.modules(),
            names: chosen.config.modules_to_save.as_deref().unwrap_or_default(),
            targets: &chosen.modules,
            bias: Bias::None,
            tie: false,
        };
        Ok(Plan { scales, whole: Whole::plan(model, &chosen.known, values, &wanted)? })
    }
}

/// Freezes the base and gives every chosen linear a trainable scale in slot 0. The configuration is saved with its
/// modules spelt out, and with a classifier's head among `modules_to_save`.
///
/// # Errors
/// If a name is misspelt or nothing is chosen. The model is unchanged then.
pub fn attach(model: &mut Model, config: &Ia3Config, seed: u64) -> Result<Attached> {
    let mut config = config.clone();
    config.modules_to_save = with_classifier(model, config.modules_to_save);
    config.common.task_type = config.common.task_type.or_else(|| task_type(model));
    let mut chosen = Chosen::new(config, Known::of(model))?;
    let is_target = |path: &String| chosen.modules.contains(path);
    chosen.config.fan_in_fan_out =
        model.net.linears().iter().any(|layer| layer.fan_in_fan_out && is_target(&layer.path));
    let plan = Plan::new(model, &chosen, &Values::Drawn, seed)?;
    Ok(apply(model, plan, 0, chosen.config))
}

/// Puts an adapter into a slot of a model. The base is frozen; the adapter's own parameters are trainable.
///
/// # Errors
/// If a file is damaged, or a tensor is missing, unexpected or of a shape that does not fit the model. The model is
/// unchanged then.
pub(super) fn load(model: &mut Model, adapter: &PeftAdapter, slot: usize) -> Result<Attached> {
    let named = |e: Error| match e {
        Error::Method(what) => Error::Adapter { path: adapter.path().to_path_buf(), what },
        other => other,
    };
    let PeftConfig::Ia3(config) = adapter.config() else {
        return Err(named(Error::Method(format!(
            "its peft_type is {}, not IA3",
            adapter.config().peft_type()
        ))));
    };
    let mut as_read = config.clone();
    if config.common.classifies() {
        as_read.modules_to_save.get_or_insert_default().extend(CLASSIFIERS.map(String::from));
    }
    let values = Values::read(adapter);
    let plan = Chosen::new(as_read, Known::in_files(model, adapter))
        .and_then(|chosen| Plan::new(model, &chosen, &values, 0))
        .and_then(|plan| values.finish().map(|()| plan))
        .and_then(|plan| plan.whole.check_slot(model, slot).map(|()| plan))
        .map_err(named)?;
    Ok(apply(model, plan, slot, config.clone()))
}

fn apply(model: &mut Model, plan: Plan, slot: usize, config: Ia3Config) -> Attached {
    clear(model, slot);
    model.params.freeze_all();
    let Plan { mut scales, whole } = plan;
    let (mut modules, mut saved) = (Vec::new(), Vec::<Saved>::new());
    let Model { params, net, .. } = model;
    net.visit_sites(&mut |site| {
        let Site::Linear(layer) = site else { return };
        let Some((value, feedforward)) = scales.remove(&layer.path) else { return };
        modules.push(layer.path.clone());
        saved.push(value.add(params, slot, ""));
        let Some((_, l)) = saved.last() else { return };
        layer.deltas.put(slot, Box::new(Scale { l: *l, feedforward }));
    });
    let changes_base = whole.changes_base();
    modules.extend(whole.apply(model, slot, &mut saved));
    remember_mergeable(model, slot, SPEC.name, changes_base);
    let config = PeftConfig::Ia3(config);
    Attached {
        modules,
        trainable: trainable_count(model),
        save: Some(Box::new(move |model, folder, readme| write(model, &config, &saved, folder, readme))),
        ..Attached::default()
    }
}
