//! LoRA adapters on disk, as PEFT writes and reads them.

use retune_formats::lora_config::{Init, LoraConfig};
use retune_formats::peft::{Param, PeftAdapter, PeftConfig};
use retune_formats::{TensorOut, peft};
use retune_tensor::{ParamId, Tensor};

use super::apply::{Applied, Counted, apply};
use super::init::Start;
use super::plan::Plan;
use super::{SPEC, check_supported};
use crate::error::{Error, Result};
use crate::methods::targets::{Known, choose};
use crate::methods::values::{Values, tensor_out};
use crate::methods::{Attached, Files, Opened, Save, Source, remember_mergeable, trainable_count};
use crate::models::Model;

/// Puts one or more adapters into a slot of a model, side by side, each scaled with its weight. The base is frozen; the
/// adapters' own parameters are trainable, so that training may go on.
///
/// # Errors
/// If a file is damaged, a tensor is missing, unexpected or of a shape that does not fit the model, the adapter asks for
/// what is not supported, or it cannot be weighted or added to others. The model is unchanged then.
pub(in crate::methods) fn load(model: &mut Model, sources: &[Opened], slot: usize) -> Result<Attached> {
    let mut plans = Vec::new();
    let mut alone = None;
    let mut approximate = Vec::new();
    for (index, Opened { source, files, .. }) in sources.iter().enumerate() {
        let named = |e: Error| match e {
            Error::Method(what) => Error::Adapter { path: source.path.clone(), what },
            other => other,
        };
        let (plan, config) = match files {
            Files::Peft(adapter) => read(model, adapter).map_err(named)?,
            Files::Hub(_) => return Err(named(Error::Method("it is no LoRA".into()))),
        };
        plan.check_slot(model, slot).map_err(named)?;
        approximate.extend(self::approximate(source, &config));
        if (sources.len() > 1 || source.weight != 1.0)
            && let Err(why) = plan.check_sum()
        {
            let what = format!(
                "it cannot be weighted or added to others: {why}; load it alone, into a slot of its own"
            );
            return Err(named(Error::Method(what)));
        }
        let front = if sources.len() == 1 { String::new() } else { format!("{index}+") };
        plans.push(Counted { plan, weight: source.weight, front });
        alone = Some(config);
    }
    let applied = apply(model, plans, slot);
    remember_mergeable(model, slot, SPEC.name, applied.changes_base);
    let config = alone.filter(|_| sources.len() == 1);
    let modules = applied.modules.clone();
    // What was read is written as it came: a moved part of the base is not in it.
    let save = config.map(|config| saver(config, Applied { starts: Vec::new(), ..applied }));
    Ok(Attached {
        modules,
        trainable: trainable_count(model),
        notes: approximate,
        save,
        ..Attached::default()
    })
}

/// What people should know of an adapter that was started from an approximate decomposition.
fn approximate(source: &Source, config: &LoraConfig) -> Option<String> {
    let Init::Named(name) = &config.init_lora_weights else { return None };
    name.starts_with("pissa_niter_").then(|| {
        format!(
            "adapter {}: it was started with {name}, an approximation that cannot be made again: the exact decomposition \
             stands in for it; PEFT's path_initial_model_for_weight_conversion saves adapters that need none",
            source.path.display()
        )
    })
}

/// Reads an adapter and checks it against the model.
fn read(model: &Model, adapter: &PeftAdapter) -> Result<(Plan, LoraConfig)> {
    let PeftConfig::Lora(config) = adapter.config() else {
        let what = format!("its peft_type is {}, not LORA", adapter.config().peft_type());
        return Err(Error::Method(what));
    };
    let start = match check_supported(config)? {
        // The approximation's random start is in no file: PEFT, too, makes other starting values when it loads.
        Start::Pissa(Some(_)) => Start::Pissa(None),
        start => start,
    };
    let mut as_read = config.clone();
    as_read.modules_to_save = holds_whole(config);
    let chosen = choose(&as_read, Known::in_files(model, adapter))?;
    let values = Values::read(adapter);
    let plan = Plan::new(model, &chosen, &values, start, 0)?;
    for path in &chosen.modules {
        check_table(model, &chosen.known, &values, path)?;
    }
    values.finish()?;
    Ok((plan, config.clone()))
}

/// The modules that are held whole: PEFT adds the names of classifiers when it loads, too.
fn holds_whole(config: &LoraConfig) -> Option<Vec<String>> {
    let mut names = config.modules_to_save.clone();
    if config.common.classifies() {
        names.get_or_insert_default().extend(crate::methods::saved::CLASSIFIERS.map(String::from));
    }
    names
}

/// PEFT saves the weight of a targeted table or head beside its factors. It must be the model's: the vocabulary was not
/// resized, and the adapter is for this base.
fn check_table(model: &Model, known: &Known, values: &Values, path: &str) -> Result<()> {
    let inner = format!("{path}.base_layer");
    let param = Param::Plain("weight".into());
    if !values.has(known, &inner, &param) {
        return Ok(());
    }
    let Some(id) = weight_of(model, path) else { return Ok(()) };
    let weight = &model.params.get(id).weight;
    let shape = [weight.rows(), weight.cols()];
    let own =
        values.take(known, &inner, &param, &shape, (shape[0], shape[1]), || Tensor::zeros(0, 0))?.tensor;
    let base = weight.to_tensor();
    let sum = |pairs: &mut dyn Iterator<Item = f64>| pairs.sum::<f64>();
    let off = sum(&mut own.data().iter().zip(base.data()).map(|(a, b)| f64::from((a - b).abs())));
    let size = sum(&mut base.data().iter().map(|b| f64::from(b.abs())));
    // Half precision and block types round.
    let rounding = match weight.storage().format() {
        "f32" => 1e-5,
        "bf16" | "f16" => 0.01,
        _ => 0.25,
    };
    if off <= rounding * size {
        return Ok(());
    }
    Err(Error::Method(format!(
        "it carries a weight of {path} that is not this model's: it was made for another base, or with a vocabulary \
         that was resized"
    )))
}

/// The weight of a linear or a table.
fn weight_of(model: &Model, path: &str) -> Option<ParamId> {
    let table = model.net.embeddings().into_iter().find(|t| t.path == path).map(|t| t.weight);
    table.or_else(|| model.net.linears().into_iter().find(|l| l.path == path).map(|l| l.weight))
}

/// Writes an adapter's parameters with its configuration, and the tables that PEFT saves too. `starts` are the starting
/// values of factors that a part of the base was moved into: the files are then for the base as it is,
/// `A' = [A; A0]`, `B' = [B, -B0]`.
pub(super) fn saver(config: LoraConfig, applied: Applied) -> Save {
    let Applied { saved, starts, tables, transposed, .. } = applied;
    let config = if starts.is_empty() { config } else { doubled(config) };
    Box::new(move |model, folder, readme| {
        let mut tensors = Vec::new();
        for (key, id) in &saved {
            let tensor = tensor_out(model, key, *id, folder)?;
            tensors.push(match starts.iter().find(|(name, _)| name == key) {
                Some((_, start)) => widened(model, key, [*id, *start]),
                None => tensor,
            });
        }
        for (key, id) in &tables {
            tensors.push(tensor_out(model, key, *id, folder)?);
        }
        for (key, id) in &transposed {
            let values = model.params.get(*id).weight.to_tensor().transposed();
            let shape = [values.rows(), values.cols()];
            tensors.push(TensorOut::f32(key.clone(), &shape, values.data().to_vec()));
        }
        Ok(peft::write(folder, &PeftConfig::Lora(config.clone()), tensors, readme)?)
    })
}

/// `[A; A0]` or `[B, -B0]`.
fn widened(model: &Model, key: &str, [now, start]: [ParamId; 2]) -> TensorOut<'static> {
    let [now, start] = [now, start].map(|id| model.params.get(id).weight.to_tensor());
    let (rows, cols) = (now.rows(), now.cols());
    let wide =
        match key.ends_with(Param::A.suffix()) {
            true => {
                Tensor::from_fn(
                    2 * rows,
                    cols,
                    |r, c| {
                        if r < rows { now.row(r)[c] } else { start.row(r - rows)[c] }
                    },
                )
            }
            false => Tensor::from_fn(rows, 2 * cols, |r, c| {
                if c < cols { now.row(r)[c] } else { -start.row(r)[c - cols] }
            }),
        };
    TensorOut::f32(key.to_string(), &[wide.rows(), wide.cols()], wide.data().to_vec())
}

/// Twice the rank at the same scale: `alpha / r`, or `alpha / sqrt(r)`. It is an ordinary LoRA then.
fn doubled(mut config: LoraConfig) -> LoraConfig {
    let factor = if config.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
    config.r *= 2;
    config.lora_alpha *= factor;
    config.rank_pattern.values_mut().for_each(|rank| *rank *= 2);
    config.alpha_pattern.values_mut().for_each(|alpha| *alpha *= factor);
    config.init_lora_weights = Init::Default(true);
    config
}
