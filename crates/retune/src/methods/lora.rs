//! LoRA (Hu et al., 2021): `W x + s B A x`, `s = lora_alpha / r`, or `lora_alpha / sqrt(r)` for rsLoRA (Kalajdzievski, 2023).
//!
//! `A` `[r, in]` starts random, `B` `[out, r]` at zero, so that nothing changes at the start. Names and shapes are PEFT's.
//! DoRA (Liu et al., 2024) learns the length of each row of the sum besides.

mod apply;
mod branch;
mod files;
mod init;
mod plan;
mod table;

use retune_formats::lora_config::{Init, LoraConfig, Modules};
use retune_formats::peft_common::Common;

use super::saved::{task_type, with_classifier};
use super::targets::{Known, choose};
use super::values::Values;
use super::{Attached, Spec, remember_mergeable, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::run_file::{RunFile, TargetModules};
use apply::{Counted, apply};
use init::Start;
use plan::Plan;

pub(super) use files::load;

pub const SPEC: Spec = Spec {
    name: "lora",
    summary: "low-rank branches beside frozen weights; a few megabytes",
    source: "arXiv:2106.09685; rsLoRA arXiv:2312.03732; DoRA arXiv:2402.09353",
    default_lr: 2e-4,
    adapter: true,
    attach: |model, run| attach(model, &config_of(run), run.seed),
};

/// Refuses settings that contradict each other.
fn check_supported(config: &LoraConfig) -> Result<Start> {
    let start = Start::of(&config.init_lora_weights)?;
    let refused = match () {
        _ if config.use_dora && config.lora_bias => "lora_bias cannot be had with use_dora",
        _ if config.use_dora && start.moves_base() => "use_dora cannot be had with pissa or olora",
        _ if config.lora_bias && !matches!(config.init_lora_weights, Init::Default(_)) => {
            "lora_bias needs init_lora_weights = true or false"
        }
        _ => return Ok(start),
    };
    Err(Error::Method(refused.into()))
}

/// A run file's targets as PEFT's.
pub(super) fn modules_of(targets: &TargetModules) -> Modules {
    match targets {
        TargetModules::Pattern(text) if text == "all-linear" => Modules::AllLinear,
        TargetModules::Pattern(text) => Modules::Pattern(text.clone()),
        TargetModules::Names(names) => Modules::List(names.clone()),
    }
}

/// A run file's settings as PEFT's configuration.
fn config_of(run: &RunFile) -> LoraConfig {
    let lora = &run.lora;
    let init = match lora.init_lora_weights.as_str() {
        "true" => Init::Default(true),
        "false" => Init::Default(false),
        name => Init::Named(name.into()),
    };
    LoraConfig {
        r: lora.rank as usize,
        lora_alpha: lora.lora_alpha,
        lora_dropout: lora.lora_dropout,
        target_modules: Some(modules_of(&lora.target_modules)),
        exclude_modules: lora.exclude_modules.clone().map(Modules::List),
        rank_pattern: lora.rank_pattern.iter().map(|(name, r)| (name.clone(), *r as usize)).collect(),
        alpha_pattern: lora.alpha_pattern.clone(),
        use_rslora: lora.use_rslora,
        use_dora: lora.use_dora,
        lora_bias: lora.lora_bias,
        bias: lora.bias.into(),
        modules_to_save: lora.modules_to_save.clone(),
        layers_to_transform: lora.layers_to_transform.clone(),
        init_lora_weights: init,
        ensure_weight_tying: lora.ensure_weight_tying,
        common: Common {
            base_model_name_or_path: Some(run.model.display().to_string()),
            ..Common::default()
        },
        ..LoraConfig::default()
    }
}

/// Freezes the base and gives every chosen module a trainable branch in slot 0. The configuration is saved with its
/// targets spelt out, and with a classifier's head among `modules_to_save`.
///
/// # Errors
/// If a target is misspelt or nothing is chosen, a rank is out of range, or the configuration asks for what cannot be.
/// The model is unchanged then.
pub fn attach(model: &mut Model, config: &LoraConfig, seed: u64) -> Result<Attached> {
    let start = check_supported(config)?;
    let mut config = config.clone();
    config.modules_to_save = with_classifier(model, config.modules_to_save);
    config.common.task_type = config.common.task_type.or_else(|| task_type(model));
    let mut chosen = choose(&config, Known::of(model))?;
    let is_target = |path: &String| chosen.modules.contains(path);
    chosen.config.fan_in_fan_out =
        model.net.linears().iter().any(|layer| layer.fan_in_fan_out && is_target(&layer.path));
    let plan = Plan::new(model, &chosen, &Values::Drawn, start, seed)?;
    let applied = apply(model, vec![Counted { plan, weight: 1.0, front: String::new() }], 0);
    remember_mergeable(model, 0, SPEC.name, applied.changes_base);
    let modules = applied.modules.clone();
    let save = Some(files::saver(chosen.config, applied));
    Ok(Attached { modules, trainable: trainable_count(model), save, ..Attached::default() })
}
