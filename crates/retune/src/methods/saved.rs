//! Modules that an adapter holds whole (PEFT's `modules_to_save`) and biases that it trains.
//!
//! At a linear or a token table the copy stands in for the base's own values, so that the base never changes and several
//! adapters may hold different ones. A norm has no site: there the base's values themselves are trained or replaced.

use std::collections::BTreeSet;

use retune_formats::lora_config::Bias;
use retune_formats::modules::ModuleMatcher;
use retune_tensor::ParamId;

use super::replace::Replaced;
use super::targets::{Known, nearest, short_names};
use super::values::{Saved, Value, Values};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Embedding, Head, Site};

/// What PEFT holds whole on every classifier besides what it is told.
pub(crate) const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

/// PEFT's `modules_to_save` of an adapter that is made for this model: the head of a classifier or detector is among them.
pub(crate) fn with_classifier(model: &Model, asked: Option<Vec<String>>) -> Option<Vec<String>> {
    let heads: Vec<String> = match model.net.head() {
        Head::LanguageModel(_) | Head::None => return asked.filter(|names| !names.is_empty()),
        // Networks over pixels call dense layers of the trunk `classifier` too: the head is named by its whole path.
        head if model.net.as_image().is_some() => {
            head.linears().into_iter().map(|layer| layer.path.clone()).collect()
        }
        _ => CLASSIFIERS.map(String::from).to_vec(),
    };
    let mut names = asked.unwrap_or_default();
    for name in heads {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Some(names)
}

/// PEFT's `task_type` of an adapter that is made for this model; it has none for pictures.
pub(crate) fn task_type(model: &Model) -> Option<String> {
    if model.net.as_image().is_some() {
        return None;
    }
    let name = match model.net.head() {
        Head::LanguageModel(_) if model.text().is_ok_and(|net| net.info().decoder) => "CAUSAL_LM",
        Head::LanguageModel(_) | Head::Detector(_) => return None,
        Head::Classifier(head) if head.problem == crate::nn::Problem::Tokens => "TOKEN_CLS",
        Head::Classifier(_) => "SEQ_CLS",
        Head::None => "FEATURE_EXTRACTION",
    };
    Some(name.into())
}

/// One module at a site, held whole or with its bias alone.
struct AtSite {
    path: String,
    weight: Option<Value>,
    bias: Option<Value>,
}

/// What an adapter holds whole.
#[derive(Default)]
pub(crate) struct Whole {
    linears: Vec<AtSite>,
    tables: Vec<AtSite>,
    /// The head's weight is the table's, and stays so.
    tied: Option<String>,
    /// Parameters of the base without a site.
    in_place: Vec<(ParamId, Value)>,
}

/// What is asked for.
pub(crate) struct Wanted<'a> {
    pub matcher: &'a ModuleMatcher,
    /// `modules_to_save`.
    pub names: &'a [String],
    /// Modules that the method itself acts on: it takes care of their biases.
    pub targets: &'a [String],
    pub bias: Bias,
    pub tie: bool,
}

impl Whole {
    /// Takes the modules that `wanted` holds whole, and the biases outside of its targets.
    ///
    /// # Errors
    /// If a file lacks one of them or has it in another shape.
    pub fn plan(model: &Model, known: &Known, values: &Values, wanted: &Wanted) -> Result<Whole> {
        check_names(model, known, wanted.names)?;
        let mut whole = Whole::default();
        let param = |id: ParamId| model.params.get(id);
        let is_saved = |path: &str| wanted.matcher.is_whole(known.name(path));
        if let Some(path) = wanted.targets.iter().find(|path| is_saved(path)) {
            let what = "is a target, and modules_to_save holds it whole: it can be one of them";
            return Err(Error::Method(format!("{path} {what}")));
        }
        let mut seen = BTreeSet::new();
        for table in model.net.embeddings() {
            seen.insert(table.path.clone());
            if is_saved(&table.path) {
                let weight = Some(values.whole(known, &table.path, "weight", param(table.weight))?);
                whole.tables.push(AtSite { path: table.path.clone(), weight, bias: None });
            }
        }
        for layer in model.net.linears() {
            seen.insert(layer.path.clone());
            let saved = is_saved(&layer.path);
            let biased = wanted.bias == Bias::All && !wanted.targets.contains(&layer.path);
            let take = |part, id| values.whole(known, &layer.path, part, param(id));
            let weight = saved.then(|| take("weight", layer.weight)).transpose()?;
            let bias = layer.bias.filter(|_| saved || biased).map(|id| take("bias", id)).transpose()?;
            if weight.is_none() && bias.is_none() {
                continue;
            }
            let shares = |table: &&Embedding| table.weight == layer.weight && is_saved(&table.path);
            if let Some(table) = model.net.embeddings().into_iter().find(shares).filter(|_| wanted.tie) {
                whole.tied = Some(table.path.clone());
            }
            whole.linears.push(AtSite { path: layer.path.clone(), weight, bias });
        }
        for (id, base) in model.params.iter().filter(|(_, p)| !p.adapter) {
            let Some((module, part)) = base.name.rsplit_once('.') else { continue };
            let biased = wanted.bias == Bias::All && part == "bias";
            if !seen.contains(module) && (is_saved(module) || biased) {
                whole.in_place.push((id, values.whole(known, module, part, base)?));
            }
        }
        Ok(whole)
    }

    pub fn is_empty(&self) -> bool {
        self.linears.is_empty() && self.tables.is_empty() && self.in_place.is_empty()
    }

    /// Are parameters of the base itself among them?
    pub fn changes_base(&self) -> bool {
        !self.in_place.is_empty()
    }

    /// Refuses what cannot be in this slot beside others.
    ///
    /// # Errors
    /// If parameters of the base itself would change while other adapters use it.
    pub fn check_slot(&self, model: &Model, slot: usize) -> Result<()> {
        if let Some(other) = model.adapters.iter().find(|on| on.slot != slot && on.changes_base) {
            let what = "changed the base in memory: no other adapter can be beside it";
            return Err(Error::Method(format!("the {} adapter that is loaded {what}", other.method)));
        }
        let Some((id, _)) = self.in_place.first() else { return Ok(()) };
        if slot == 0 && model.adapters.iter().all(|on| on.slot == 0) {
            return Ok(());
        }
        Err(Error::Method(format!(
            "the adapter changes {} in the base itself, which other adapters in memory use too; load it alone",
            model.params.get(*id).name
        )))
    }

    /// Puts it into a slot of the model; what was added is trainable.
    pub fn apply(self, model: &mut Model, slot: usize, saved: &mut Vec<Saved>) -> Vec<String> {
        let Whole { mut linears, mut tables, tied, in_place } = self;
        let mut modules = Vec::new();
        let Model { params, net, .. } = model;
        let mut table_copy = None;
        net.visit_sites(&mut |site| match site {
            Site::Embedding(table) => {
                let Some(at) = take(&mut tables, &table.path) else { return };
                let Some(weight) = at.weight.map(|value| value.add(params, slot, "")) else { return };
                if tied.as_ref() == Some(&table.path) {
                    table_copy = Some(weight.1);
                }
                table.deltas.put(slot, Box::new(Replaced { weight: Some(weight.1), bias: None }));
                saved.push(weight);
                modules.push(at.path);
            }
            Site::Linear(layer) => {
                let Some(at) = take(&mut linears, &layer.path) else { return };
                let weight = at.weight.map(|value| match table_copy {
                    // One matrix for both, under both names.
                    Some(id) if tied.is_some() => (value.key().to_string(), id),
                    _ => value.add(params, slot, ""),
                });
                let bias = at.bias.map(|value| value.add(params, slot, ""));
                let delta =
                    Replaced { weight: weight.as_ref().map(|w| w.1), bias: bias.as_ref().map(|b| b.1) };
                layer.deltas.put(slot, Box::new(delta));
                saved.extend(weight.into_iter().chain(bias));
                modules.push(at.path);
            }
            _ => {}
        });
        saved.extend(in_place.into_iter().map(|(id, value)| value.put(params, id)));
        modules
    }
}

/// PEFT lets a name that is no module's pass silently; only those that it adds itself may.
fn check_names(model: &Model, known: &Known, names: &[String]) -> Result<()> {
    let params = model.params.iter().filter(|(_, p)| !p.adapter);
    let of_params = params.filter_map(|(_, p)| Some(p.name.rsplit_once('.')?.0.to_string()));
    let modules: Vec<String> = of_params.chain(model.net.linears().iter().map(|l| l.path.clone())).collect();
    let ends = |path: &str, name: &str| path.ends_with(name) || path.contains(&format!("{name}."));
    let is_module = |name: &String| modules.iter().any(|path| ends(known.name(path), name));
    match names.iter().find(|name| !CLASSIFIERS.contains(&name.as_str()) && !is_module(name)) {
        None => Ok(()),
        Some(odd) => {
            let short = short_names(&modules);
            Err(Error::Method(format!(
                "modules_to_save names \"{odd}\", which this model has not; did you mean \"{}\"?",
                nearest(odd, short.iter().map(String::as_str)).unwrap_or_default()
            )))
        }
    }
}

fn take(all: &mut Vec<AtSite>, path: &str) -> Option<AtSite> {
    let at = all.iter().position(|at| at.path == path)?;
    Some(all.swap_remove(at))
}
