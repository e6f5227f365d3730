//! LoRA (Hu et al., 2021): `W x + s B A x`, `s = lora_alpha / r`, or `lora_alpha / sqrt(r)` for rsLoRA (Kalajdzievski, 2023).
//!
//! `A` `[r, in]` starts random, `B` `[out, r]` at zero, so that nothing changes at the start. Names and shapes are PEFT's.

mod files;

use retune_tensor::ops::{self, LoraBranch};
use retune_tensor::rng::Stream;
use retune_tensor::{ParamId, Params, Tape, Tensor, Var};

use files::save;

pub use files::load;
use retune_formats::lora_config::{Bias, Init, LoraConfig, Modules};
use retune_formats::peft::{LoraParam, lora_key as key};
use retune_formats::peft_common::Common;

use super::targets::choose;
use super::{Attached, Cost, Spec, remember, trainable_count};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Linear, LinearDelta, Rows, Site};
use crate::run_file::{RunFile, TargetModules};

pub const SPEC: Spec = Spec {
    name: "lora",
    summary: "low-rank branches beside frozen weights; a few megabytes",
    source: "arXiv:2106.09685; rsLoRA arXiv:2312.03732",
    default_lr: 2e-4,
    adapter: true,
    attach: |model, run| attach(model, &config_of(run), run.seed),
};

/// PEFT's targets for the decoders that are supported, where a configuration names none.
const USUAL_TARGETS: &[&str] = &["q_proj", "v_proj"];

/// One adapter's branch at one linear.
#[derive(Clone, Debug)]
struct Branch {
    a: ParamId,
    b: ParamId,
    scale: f32,
    dropout: f32,
}

/// The branches at one linear, one for each adapter in use.
#[derive(Default)]
struct LoraDelta {
    branches: Vec<Branch>,
}

impl LinearDelta for LoraDelta {
    fn forward(&self, tape: &Tape, rows: &Rows, layer: &Linear, x: &Var) -> Var {
        let parts: Vec<(Var, Var, Option<Var>)> = self
            .branches
            .iter()
            .map(|b| {
                let dropped = match &rows.dropout {
                    Some(keys) if b.dropout > 0.0 => {
                        Some(ops::dropout(tape, x, keys, &layer.path, b.dropout))
                    }
                    _ => None,
                };
                (tape.param(b.a), tape.param(b.b), dropped)
            })
            .collect();
        let branches: Vec<LoraBranch> = self
            .branches
            .iter()
            .zip(&parts)
            .map(|(branch, (a, b, input))| LoraBranch { a, b, scale: branch.scale, input: input.as_ref() })
            .collect();
        ops::linear(tape, x, &tape.weight(layer.weight), layer.bias_var(tape).as_ref(), &branches)
    }

    fn merge(
        &self,
        params: &Params,
        _layer: &Linear,
        weight: &mut Tensor,
        _bias: Option<&mut Tensor>,
    ) -> Result<()> {
        for branch in &self.branches {
            let (a, b) = (params.get(branch.a).weight.to_tensor(), params.get(branch.b).weight.to_tensor());
            add_product(weight, &a, &b, branch.scale);
        }
        Ok(())
    }
}

/// `weight += scale B A`.
fn add_product(weight: &mut Tensor, a: &Tensor, b: &Tensor, scale: f32) {
    let mut scaled = b.clone();
    scaled.scale_assign(scale);
    let (rows, cols) = (weight.rows(), weight.cols());
    let packed = retune_tensor::kernel::PackedLhs::new(ops::mat(&scaled));
    let term = (&packed, retune_tensor::kernel::Rhs::Dense(ops::mat(a)));
    retune_tensor::kernel::gemm(weight.data_mut(), cols, rows, cols, 1.0, &[term]);
}

/// The starting values of `A` `[r, in]`: uniform within 1/sqrt(in) (`kaiming_uniform_(a = sqrt 5)`), or normal with
/// deviation 1/r. `B` starts at zero in both cases.
fn initial_a(gaussian: bool, r: usize, inp: usize, seed: u64, name: &str) -> Tensor {
    let stream = Stream::named(seed, name);
    let bound = 1.0 / (inp as f32).sqrt();
    Tensor::from_fn(r, inp, |i, j| {
        let index = (i * inp + j) as u64;
        if gaussian { stream.normal(index) / r as f32 } else { (2.0 * stream.uniform(index) - 1.0) * bound }
    })
}

/// Refuses what LoRA files may ask for and this method does not do yet, all at once.
fn check_supported(config: &LoraConfig) -> Result<bool> {
    let gaussian = match &config.init_lora_weights {
        Init::Default(_) => false,
        Init::Named(name) if name == "gaussian" => true,
        Init::Named(name) => {
            let what = format!("init_lora_weights = \"{name}\" is not supported; true and \"gaussian\" are");
            return Err(Error::Method(what));
        }
    };
    let asked = [
        ("use_dora", config.use_dora),
        ("lora_bias", config.lora_bias),
        ("bias", config.bias != Bias::None),
        ("modules_to_save", config.modules_to_save.as_ref().is_some_and(|m| !m.is_empty())),
    ];
    let refused: Vec<&str> = asked.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    if refused.is_empty() {
        return Ok(gaussian);
    }
    Err(Error::Method(format!("LoRA with {} is not supported yet", refused.join(", "))))
}

/// A run file's settings as PEFT's configuration.
fn config_of(run: &RunFile) -> LoraConfig {
    let targets = match &run.lora.target_modules {
        TargetModules::Pattern(text) if text == "all-linear" => Modules::AllLinear,
        TargetModules::Pattern(text) => Modules::Pattern(text.clone()),
        TargetModules::Names(names) => Modules::List(names.clone()),
    };
    LoraConfig {
        r: run.lora.rank as usize,
        lora_alpha: run.lora.lora_alpha,
        lora_dropout: run.lora.lora_dropout,
        target_modules: Some(targets),
        use_rslora: run.lora.use_rslora,
        common: Common {
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(run.model.display().to_string()),
            ..Common::default()
        },
        ..LoraConfig::default()
    }
}

/// Freezes the base and gives every chosen linear a trainable branch in slot 0. The configuration is saved with its
/// targets spelt out.
///
/// # Errors
/// If a target is misspelt or nothing is chosen, a rank is out of range, or the configuration asks for what is not
/// supported.
pub fn attach(model: &mut Model, config: &LoraConfig, seed: u64) -> Result<Attached> {
    let gaussian = check_supported(config)?;
    let (paths, heads) = model.linear_paths();
    let chosen = choose(config, &paths, &heads, USUAL_TARGETS)?;
    if let Some(path) = chosen.modules.iter().find(|path| !(1..=4096).contains(&chosen.matcher.rank(path))) {
        let rank = chosen.matcher.rank(path);
        return Err(Error::Method(format!("rank {rank} at {path} is out of range: 1 to 4096")));
    }
    model.params.freeze_all();
    let mut cost = Cost::default();
    let Model { params, net, .. } = model;
    net.visit_sites(&mut |site| {
        let Site::Linear(layer) = site else { return };
        if chosen.modules.contains(&layer.path) {
            let (r, scale) = (chosen.matcher.rank(&layer.path), chosen.matcher.scale(&layer.path) as f32);
            let a = initial_a(gaussian, r, layer.in_features, seed, &key(&layer.path, &LoraParam::A));
            let b = Tensor::zeros(layer.out_features, r);
            let branch = add_branch(params, "", layer, (a, b), scale, config.lora_dropout as f32);
            cost.add(&branch, layer, r);
            layer.deltas.put(0, Box::new(LoraDelta { branches: vec![branch] }));
        }
    });
    remember(model, 0, SPEC.name, None);
    let config = chosen.config;
    Ok(Attached {
        modules: chosen.modules,
        trainable: trainable_count(model),
        cost,
        save: Some(Box::new(move |model, folder, readme| save(model, &config, folder, readme))),
        ..Attached::default()
    })
}

impl Cost {
    /// A branch keeps `x Aᵀ` of each row; with dropout its dropped input, the recipe's source and its gradient exist
    /// while the block runs.
    fn add(&mut self, branch: &Branch, layer: &Linear, r: usize) {
        self.kept_per_row += r;
        if branch.dropout > 0.0 {
            self.transient_per_row = self.transient_per_row.max(2 * layer.in_features);
        }
    }
}

/// Adds the factors `a` `[r, in]` and `b` `[out, r]` of a layer as trainable parameters; `prefix` tells adapters apart.
fn add_branch(
    params: &mut Params,
    prefix: &str,
    layer: &Linear,
    (a, b): (Tensor, Tensor),
    scale: f32,
    dropout: f32,
) -> Branch {
    let name = |param: &LoraParam| format!("{prefix}{}", key(&layer.path, param));
    let (a_shape, b_shape) = ([a.rows(), a.cols()], [b.rows(), b.cols()]);
    Branch {
        a: params.add_adapter(name(&LoraParam::A), &a_shape, a),
        b: params.add_adapter(name(&LoraParam::B), &b_shape, b),
        scale,
        dropout,
    }
}
