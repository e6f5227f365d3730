//! Several LoRA adapters as one, as PEFT's `add_weighted_adapter` makes it.
//!
//! Each adapter i changes a weight by `s_i B_i A_i`; `w_i` is its weight in the mix. A [`Rule`] says how several matrices
//! become one: their weighted sum (task arithmetic, Ilharco et al., 2023), or that of what pruning leaves (TIES, Yadav et
//! al., 2023; DARE, Yu et al., 2024). It works on the factors (`sqrt(|w_i s_i|) A_i`, and B likewise), or on the products,
//! whose result is brought back to a rank by its singular values. `cat` lays the factors side by side and is exact.

mod rule;

use std::collections::BTreeMap;
use std::path::Path;

use retune_formats::lora_config::{Bias, LoraConfig, Modules};
use retune_formats::peft::{self, Param, PeftAdapter, PeftConfig};
use retune_formats::{TensorOut, atomic};
use retune_tensor::Tensor;
use retune_tensor::rng::Stream;

pub use rule::{Majority, Rule};

use crate::base::BaseIdentity;
use crate::error::{Error, Result};
use crate::linalg::{truncated_svd, truncated_svd_of_product};
use crate::methods::{Source, targets::nearest};
use crate::tasks::TASK_FILE;

/// What a rule works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The factors A and B, each by itself: all ranks must be equal.
    Factors,
    /// The products B A, brought back to a rank by their singular values.
    Products,
}

/// How adapters are combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combination {
    /// Side by side: exactly the sum; ranks add up.
    Cat,
    By(Rule, On),
}

/// PEFT's names.
const NAMES: &[(&str, Combination)] = &[
    ("linear", Combination::By(Rule::Sum, On::Factors)),
    ("cat", Combination::Cat),
    ("svd", Combination::By(Rule::Sum, On::Products)),
    ("ties", Combination::By(Rule::Ties, On::Factors)),
    ("ties_svd", Combination::By(Rule::Ties, On::Products)),
    ("dare_linear", Combination::By(Rule::DareLinear, On::Factors)),
    ("dare_linear_svd", Combination::By(Rule::DareLinear, On::Products)),
    ("dare_ties", Combination::By(Rule::DareTies, On::Factors)),
    ("dare_ties_svd", Combination::By(Rule::DareTies, On::Products)),
    ("magnitude_prune", Combination::By(Rule::MagnitudePrune, On::Factors)),
    ("magnitude_prune_svd", Combination::By(Rule::MagnitudePrune, On::Products)),
];

impl Combination {
    /// PEFT's names, in its order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// # Errors
    /// If there is no such name; the message has the nearest.
    pub fn parse(name: &str) -> Result<Combination> {
        let plain = name.replace('-', "_");
        let found = NAMES.iter().find(|(n, _)| *n == plain).map(|(_, how)| *how);
        found.ok_or_else(|| {
            let all: Vec<&str> = Combination::names().collect();
            let near = nearest(&plain, Combination::names()).unwrap_or_default();
            let all = all.join(", ");
            Error::Input(format!(
                "no combination is called \"{name}\"; did you mean \"{near}\"? There are: {all}"
            ))
        })
    }

    /// PEFT's name.
    pub fn name(&self) -> &'static str {
        NAMES.iter().find(|(_, how)| how == self).map_or("", |(name, _)| name)
    }
}

/// The settings of a combination.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub how: Combination,
    /// The share of values that pruning leaves; needed where the rule prunes.
    pub density: Option<f64>,
    pub majority: Majority,
    /// The rank of the result where products are combined; the largest of the adapters' if `None`.
    pub svd_rank: Option<usize>,
    /// Of DARE's random pruning.
    pub seed: u64,
    /// Combine adapters of different bases all the same.
    pub any_base: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Combined {
    pub rank: usize,
    pub modules: usize,
    /// What people should know, in sentences.
    pub notes: Vec<String>,
}

/// One adapter's factors at one module.
struct Part {
    /// `[r, in]`
    a: Tensor,
    /// `[out, r]`
    b: Tensor,
    /// `lora_alpha / r` or its like.
    scale: f32,
    /// Its weight in the mix.
    weight: f32,
}

/// An open adapter with its configuration and its weight.
struct Adapter {
    files: PeftAdapter,
    config: LoraConfig,
    weight: f32,
}

/// Combines LoRA folders into a new one in `out`; the adapters stay as they are.
///
/// # Errors
/// If an adapter is damaged or not a plain LoRA, if ranks or shapes do not fit the combination, if two hold a copy of the
/// same module (`modules_to_save`), if they are for different bases, or if `out` cannot be written.
pub fn combine(sources: &[Source], options: &Options, out: &Path) -> Result<Combined> {
    let adapters = sources.iter().map(open).collect::<Result<Vec<_>>>()?;
    let Some(first) = adapters.first() else {
        return Err(Error::Input("there is no adapter to combine".into()));
    };
    // As PEFT: one adapter alone can only be scaled.
    let how = if adapters.len() == 1 { Combination::By(Rule::Sum, On::Factors) } else { options.how };
    rule::check(how, options)?;
    let mut notes: Vec<String> = adapters.iter().flat_map(|a| a.files.notes().to_vec()).collect();
    let base = one_base(sources, options.any_base, &mut notes)?;
    let rank = new_rank(how, &adapters, options)?;
    let mut tensors = Vec::new();
    let modules = modules_of(&adapters);
    for (module, embedding) in &modules {
        let parts = parts_at(&adapters, module, *embedding)?;
        let (a, b) = at_module(how, module, &parts, rank, options)?;
        let (a_key, b_key) = match embedding {
            true => (Param::EmbeddingA, Param::EmbeddingB),
            false => (Param::A, Param::B),
        };
        for (key, values) in [(a_key, a), (b_key, b)] {
            let shape = [values.rows(), values.cols()];
            tensors.push(TensorOut::f32(peft::key(module, &key), &shape, values.data().to_vec()));
        }
    }
    tensors.extend(copies(&adapters)?);
    let config = LoraConfig {
        r: rank,
        lora_alpha: rank as f64,
        use_rslora: false,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        ..targets(&adapters, modules.keys().cloned().collect(), &first.config)
    };
    peft::write(out, &PeftConfig::Lora(config), tensors, None)?;
    if let Some(base) = base {
        base.write(out)?;
    }
    let task = first.files.path().join(TASK_FILE);
    if task.is_file() {
        let bytes = std::fs::read(&task).map_err(retune_formats::Error::io(&task, "read"))?;
        atomic::write_bytes(&out.join(TASK_FILE), &bytes)?;
    }
    Ok(Combined { rank, modules: modules.len(), notes })
}

fn fail(adapter: &PeftAdapter, what: String) -> Error {
    Error::Adapter { path: adapter.path().to_path_buf(), what }
}

/// Opens an adapter and refuses what has no factors to combine.
fn open(source: &Source) -> Result<Adapter> {
    let files = PeftAdapter::open(&source.path)?;
    let PeftConfig::Lora(config) = files.config().clone() else {
        let what = format!("it is {}; only LoRA adapters can be combined", files.config().peft_type());
        return Err(fail(&files, what));
    };
    let odd = [
        ("use_dora", config.use_dora),
        ("lora_bias", config.lora_bias),
        ("bias", config.bias != Bias::None),
        ("an init that changes the base", config.init_lora_weights.changes_base()),
    ];
    if let Some((name, _)) = odd.iter().find(|(_, on)| *on) {
        return Err(fail(
            &files,
            format!("it has {name}: it is not a sum of factors, so it cannot be combined"),
        ));
    }
    Ok(Adapter { files, config, weight: source.weight })
}

/// The base of all adapters, if they say one.
fn one_base(sources: &[Source], any_base: bool, notes: &mut Vec<String>) -> Result<Option<BaseIdentity>> {
    let mut found: Option<(BaseIdentity, &Path)> = None;
    for source in sources {
        match (BaseIdentity::read(&source.path)?, &found) {
            (None, _) => notes.push(format!("{} does not say which base it is for", source.path.display())),
            (Some(base), None) => found = Some((base, &source.path)),
            (Some(base), Some((other, path))) if !base.is(other) => {
                let what = format!("it is for {}, {} for {}", base.path, path.display(), other.path);
                match any_base {
                    true => notes.push(format!("{}: {what}", source.path.display())),
                    false => {
                        let what = format!(
                            "{what}: adapters of different bases; --any-base combines them all the same"
                        );
                        return Err(Error::Adapter { path: source.path.clone(), what });
                    }
                }
            }
            _ => {}
        }
    }
    Ok(found.map(|(base, _)| base))
}

/// The largest rank that a configuration gives.
fn largest_rank(config: &LoraConfig) -> usize {
    config.rank_pattern.values().copied().fold(config.r, usize::max)
}

fn new_rank(how: Combination, adapters: &[Adapter], options: &Options) -> Result<usize> {
    let ranks: Vec<usize> = adapters.iter().map(|a| largest_rank(&a.config)).collect();
    let largest = ranks.iter().copied().max().unwrap_or(1);
    match how {
        Combination::Cat => Ok(ranks.iter().sum()),
        Combination::By(_, On::Products) => Ok(options.svd_rank.unwrap_or(largest)),
        Combination::By(_, On::Factors) if ranks.iter().all(|r| *r == largest) => Ok(largest),
        Combination::By(_, On::Factors) => Err(Error::Input(format!(
            "{} needs adapters of one rank, and these have {ranks:?}; \"cat\" and \"svd\" take any",
            how.name()
        ))),
    }
}

/// All modules with a LoRA, and whether each is a token table.
fn modules_of(adapters: &[Adapter]) -> BTreeMap<String, bool> {
    let tensors = adapters.iter().flat_map(|a| a.files.tensors());
    tensors
        .filter(|t| matches!(t.param, Param::A | Param::EmbeddingA))
        .map(|t| (t.module.clone(), t.param == Param::EmbeddingA))
        .collect()
}

fn parts_at(adapters: &[Adapter], module: &str, embedding: bool) -> Result<Vec<Part>> {
    let (a_key, b_key) =
        if embedding { (Param::EmbeddingA, Param::EmbeddingB) } else { (Param::A, Param::B) };
    let mut parts: Vec<Part> = Vec::new();
    for adapter in adapters {
        let read = |param: &Param| match adapter.files.find(module, param) {
            Some(tensor) => match tensor.info.shape[..] {
                [rows, cols] => Ok(Some(Tensor::from_vec(rows, cols, adapter.files.read_f32(tensor)?))),
                _ => Err(fail(&adapter.files, format!("tensor \"{}\" is no matrix", tensor.info.name))),
            },
            None => Ok(None),
        };
        let (Some(a), Some(b)) = (read(&a_key)?, read(&b_key)?) else { continue };
        if let Some(first) = parts.first()
            && (first.a.cols(), first.b.rows()) != (a.cols(), b.rows())
        {
            let what = format!(
                "{module} is [{}, {}] in it and [{}, {}] in another adapter",
                b.rows(),
                a.cols(),
                first.b.rows(),
                first.a.cols()
            );
            return Err(fail(&adapter.files, what));
        }
        let matcher = adapter.config.matcher(adapter.files.path())?;
        parts.push(Part { a, b, scale: matcher.scale(module) as f32, weight: adapter.weight });
    }
    Ok(parts)
}

/// The factors `[rank, in]` and `[out, rank]` of the result at one module.
fn at_module(
    how: Combination,
    module: &str,
    parts: &[Part],
    rank: usize,
    options: &Options,
) -> Result<(Tensor, Tensor)> {
    let draws = |what: &str| Stream::named(options.seed, &format!("{module}.{what}"));
    Ok(match how {
        Combination::Cat => side_by_side(parts, rank),
        Combination::By(rule, On::Factors) => {
            let scales: Vec<f32> = parts.iter().map(|p| p.weight * p.scale).collect();
            // The sign stands on one side only: on both it would cancel.
            let roots: Vec<f32> = scales.iter().map(|s| s.abs().sqrt()).collect();
            let signed: Vec<f32> = roots.iter().zip(&scales).map(|(r, s)| r.copysign(*s)).collect();
            let of = |pick: fn(&Part) -> &Tensor| parts.iter().map(|p| pick(p).clone()).collect::<Vec<_>>();
            let a = rule.apply(of(|p| &p.a), &signed, options, &draws("A"))?;
            let b = rule.apply(of(|p| &p.b), &roots, options, &draws("B"))?;
            (grown(&a, rank, a.cols()), grown(&b, b.rows(), rank))
        }
        Combination::By(rule, On::Products) => {
            if rule == Rule::Sum {
                let (a, b) = side_by_side(parts, parts.iter().map(|p| p.a.rows()).sum());
                return Ok(of_values(truncated_svd_of_product(&b, &a, rank), rank));
            }
            let products = parts.iter().map(|p| rule::product(&p.b, &p.a, p.scale)).collect();
            let weights: Vec<f32> = parts.iter().map(|p| p.weight).collect();
            let change = rule.apply(products, &weights, options, &draws("BA"))?;
            of_values(truncated_svd(&change, rank), rank)
        }
    })
}

/// Singular vectors and values as factors `A = Vᵀ`, `B = U S`.
fn of_values((u, s, vt): (Tensor, Vec<f32>, Tensor), rank: usize) -> (Tensor, Tensor) {
    let b = Tensor::from_fn(u.rows(), u.cols(), |r, c| u.row(r)[c] * s[c]);
    (grown(&vt, rank, vt.cols()), grown(&b, b.rows(), rank))
}

/// `[w s A]` below each other, `[B]` beside each other; zeros where ranks are left over.
fn side_by_side(parts: &[Part], rank: usize) -> (Tensor, Tensor) {
    let (inp, out) = parts.first().map_or((0, 0), |p| (p.a.cols(), p.b.rows()));
    let (mut a, mut b) = (Tensor::zeros(rank, inp), Tensor::zeros(out, rank));
    let mut at = 0;
    for part in parts {
        for r in 0..part.a.rows() {
            let to = &mut a.data_mut()[(at + r) * inp..][..inp];
            to.iter_mut().zip(part.a.row(r)).for_each(|(to, x)| *to = x * part.weight * part.scale);
        }
        for o in 0..out {
            b.data_mut()[o * rank + at..][..part.b.cols()].copy_from_slice(part.b.row(o));
        }
        at += part.a.rows();
    }
    (a, b)
}

/// The same matrix with zeros at its right and below.
fn grown(x: &Tensor, rows: usize, cols: usize) -> Tensor {
    Tensor::from_fn(rows, cols, |r, c| if r < x.rows() && c < x.cols() { x.row(r)[c] } else { 0.0 })
}

/// The modules that are held whole, each by one adapter at most.
fn copies(adapters: &[Adapter]) -> Result<Vec<TensorOut<'static>>> {
    let mut held: BTreeMap<&str, &Adapter> = BTreeMap::new();
    let mut tensors = Vec::new();
    for adapter in adapters {
        for tensor in adapter.files.tensors().iter().filter(|t| matches!(t.param, Param::Plain(_))) {
            if let Some(other) = held.insert(&tensor.info.name, adapter) {
                let (name, other) = (&tensor.info.name, other.files.path().display());
                let what =
                    format!("\"{name}\" is held whole in it and in {other}: two copies cannot be combined");
                return Err(fail(&adapter.files, what));
            }
            let values = adapter.files.read_f32(tensor)?;
            tensors.push(TensorOut::f32(tensor.info.name.clone(), &tensor.info.shape, values));
        }
    }
    Ok(tensors)
}

/// The first adapter's configuration with the targets of all: the union of the names where they are names that hold
/// everywhere, else the modules by their paths.
fn targets(adapters: &[Adapter], modules: Vec<String>, first: &LoraConfig) -> LoraConfig {
    let plain = |c: &LoraConfig| c.exclude_modules.is_none() && c.layers_to_transform.is_none();
    let names: Option<Vec<&Vec<String>>> = adapters
        .iter()
        .map(|a| match &a.config.target_modules {
            Some(Modules::List(names)) if plain(&a.config) => Some(names),
            _ => None,
        })
        .collect();
    let mut all = match names {
        Some(names) => names.into_iter().flatten().cloned().collect(),
        None => modules,
    };
    all.sort();
    all.dedup();
    let mut saved: Vec<String> =
        adapters.iter().flat_map(|a| a.config.modules_to_save.clone().unwrap_or_default()).collect();
    saved.sort();
    saved.dedup();
    LoraConfig {
        target_modules: Some(Modules::List(all)),
        exclude_modules: None,
        layers_to_transform: None,
        layers_pattern: None,
        modules_to_save: (!saved.is_empty()).then_some(saved),
        ..first.clone()
    }
}
