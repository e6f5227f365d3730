//! Do the tensors of an adapter fit its configuration? Every one must be asked for, in whole sets, of the right shape.

use std::collections::BTreeMap;
use std::path::Path;

use super::keys::Param;
use super::{CONFIG, PeftConfig};
use crate::error::{Error, Result, quote};
use crate::ia3_config::Ia3Matcher;
use crate::lora_config::{Bias, LoraConfig, Matcher};
use crate::modules::ModuleMatcher;
use crate::{Dtype, limits};

/// What is known of a tensor without its values.
pub(super) struct Part<'a> {
    pub module: &'a str,
    pub param: &'a Param,
    pub dtype: Dtype,
    pub shape: &'a [usize],
}

/// What a configuration asks for, with its patterns compiled.
enum Rules<'a> {
    Lora(&'a LoraConfig, Matcher),
    Ia3(Ia3Matcher),
    Shira(ModuleMatcher),
    Prompt((usize, Option<usize>), ModuleMatcher),
}

impl Rules<'_> {
    fn new<'a>(path: &Path, config: &'a PeftConfig) -> Result<Rules<'a>> {
        Ok(match config {
            PeftConfig::Lora(c) => Rules::Lora(c, c.matcher(path)?),
            PeftConfig::Ia3(c) => Rules::Ia3(c.matcher(path)?),
            PeftConfig::Shira(c) => Rules::Shira(c.matcher(path)?),
            PeftConfig::PromptTuning(c) => Rules::Prompt(c.prompt.prompt_shape(), c.prompt.matcher(path)?),
            PeftConfig::PTuning(c) => Rules::Prompt(c.prompt.prompt_shape(), c.prompt.matcher(path)?),
            PeftConfig::PrefixTuning(c) => Rules::Prompt(c.prompt.prefix_shape(), c.prompt.matcher(path)?),
        })
    }

    fn matcher(&self) -> &ModuleMatcher {
        match self {
            Rules::Lora(_, matcher) => matcher.modules(),
            Rules::Ia3(matcher) => matcher.modules(),
            Rules::Shira(matcher) | Rules::Prompt(_, matcher) => matcher,
        }
    }

    /// The parameters that may be in the file besides plain ones.
    fn params(&self) -> &'static [Param] {
        match self {
            Rules::Lora(..) => {
                &[Param::A, Param::B, Param::BBias, Param::EmbeddingA, Param::EmbeddingB, Param::Magnitude]
            }
            Rules::Ia3(_) => &[Param::Ia3],
            Rules::Shira(_) => &[Param::ShiraWeight, Param::ShiraIndices],
            Rules::Prompt(..) => &[Param::PromptEmbeddings],
        }
    }
}

/// One module of an adapter and the shapes of its parameters.
struct Module<'a> {
    path: &'a Path,
    /// Its path, made fit for a message.
    shown: String,
    name: &'a str,
    parts: Vec<Part<'a>>,
}

impl Module<'_> {
    fn shape(&self, param: Param) -> Option<&[usize]> {
        self.parts.iter().find(|p| *p.param == param).map(|p| p.shape)
    }

    fn bad<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(Error::invalid(self.path, "PEFT adapter", format!("module {} {what}", self.shown)))
    }
}

/// Checks all tensors against the configuration; `path` is the file, for messages.
pub(super) fn check<'a>(
    path: &Path,
    config: &PeftConfig,
    parts: impl Iterator<Item = Part<'a>>,
) -> Result<()> {
    let rules = Rules::new(path, config)?;
    let mut modules: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
    for (count, part) in parts.enumerate() {
        if count == limits::ADAPTER_TENSORS {
            let limit = limits::ADAPTER_TENSORS as u64;
            return Err(Error::limit(path, "the number of tensors", limit + 1, limit));
        }
        modules.entry(part.module).or_default().push(part);
    }
    let own = |part: &Part| !matches!(part.param, Param::Plain(_));
    if !modules.values().flatten().any(own) {
        let needs = rules.params().first().map_or("", |param| param.suffix());
        let what = format!("it holds no tensors of its method (no {needs})");
        return Err(Error::invalid(path, "PEFT adapter", what));
    }
    for (name, mut parts) in modules {
        parts.sort_unstable_by(|x, y| x.param.cmp(y.param));
        let module = Module { path, shown: quote(name), name, parts };
        check_module(&module, config, &rules)?;
    }
    Ok(())
}

fn check_module(module: &Module, config: &PeftConfig, rules: &Rules) -> Result<()> {
    if let Some(pair) = module.parts.windows(2).find(|pair| pair[0].param == pair[1].param) {
        return module.bad(format!("has two tensors for {}", pair[0].param.suffix()));
    }
    let mut adapted = false;
    for part in &module.parts {
        match part.param {
            Param::Plain(name) => check_plain(module, config, rules, name)?,
            other if rules.params().contains(other) => adapted = true,
            other => {
                let what = format!("has {}, which is not of {}", other.suffix(), config.peft_type());
                return module.bad(what);
            }
        }
        let integers = *part.param == Param::ShiraIndices;
        if integers != (part.dtype == Dtype::I32) || !(integers || part.dtype.is_float()) {
            let wanted = if integers { "I32" } else { "a floating-point type" };
            return module.bad(format!("has {} of {}, wanted {wanted}", part.param.suffix(), part.dtype));
        }
    }
    // A head that is tied to a targeted table shares its factors, and PEFT writes them there, too.
    let tied = matches!(config, PeftConfig::Lora(c) if c.ensure_weight_tying);
    let shared = tied && is_one_of(module.name, UNEMBEDDINGS);
    if adapted && !shared && rules.matcher().is_target(module.name) == Some(false) {
        return module.bad(format!("is not among the target_modules of {CONFIG}"));
    }
    match rules {
        Rules::Lora(config, matcher) if adapted => check_lora(module, config, matcher),
        Rules::Ia3(matcher) if adapted => check_ia3(module, matcher),
        Rules::Shira(_) if adapted => check_shira(module),
        Rules::Prompt(shape, _) if adapted => check_prompt(module, *shape),
        _ => Ok(()),
    }
}

fn check_lora(module: &Module, config: &LoraConfig, matcher: &Matcher) -> Result<()> {
    let rank = matcher.rank(module.name);
    let (a, b) = (module.shape(Param::A), module.shape(Param::B));
    let out = match (a, b, module.shape(Param::EmbeddingA), module.shape(Param::EmbeddingB)) {
        (None, None, None, None) => return module.bad("has neither lora_A nor lora_B"),
        (Some(a), Some(b), None, None) | (None, None, Some(a), Some(b)) => check_pair(module, rank, a, b)?,
        _ => return module.bad("has only one of lora_A and lora_B"),
    };
    let (magnitude, bias) = (module.shape(Param::Magnitude), module.shape(Param::BBias));
    if config.use_dora != magnitude.is_some() {
        let has = if config.use_dora { "lacks" } else { "has" };
        return module.bad(format!("{has} lora_magnitude_vector, but use_dora is {}", config.use_dora));
    }
    // An embedding's B is a plain matrix: it has no bias even with lora_bias.
    if config.lora_bias != bias.is_some() && (bias.is_some() || b.is_some()) {
        let has = if config.lora_bias { "lacks" } else { "has" };
        return module.bad(format!("{has} lora_B.bias, but lora_bias is {}", config.lora_bias));
    }
    for (name, shape) in [("lora_magnitude_vector", magnitude), ("lora_B.bias", bias)] {
        if let Some(shape) = shape.filter(|shape| !is_vector(shape, out)) {
            return module.bad(format!("has {name} of shape {shape:?}, {out} values were due"));
        }
    }
    Ok(())
}

/// (n), or for a convolution (1, n, 1, 1).
fn is_vector(shape: &[usize], n: usize) -> bool {
    match shape {
        [len] => *len == n,
        [1, len, rest @ ..] => *len == n && rest.iter().all(|d| *d == 1),
        _ => false,
    }
}

/// A (r, …) and B (out, r, …); returns out.
fn check_pair(module: &Module, rank: usize, a: &[usize], b: &[usize]) -> Result<usize> {
    match (a, b) {
        (&[ra, ..], &[out, rb, ..]) if a.len() >= 2 && a.len() == b.len() && ra == rank && rb == rank => {
            Ok(out)
        }
        _ => module.bad(format!(
            "has shapes {a:?} and {b:?}, which are not (r, in) and (out, r) with r = {rank} of {CONFIG}"
        )),
    }
}

fn check_ia3(module: &Module, matcher: &Ia3Matcher) -> Result<()> {
    let shape = module.shape(Param::Ia3).unwrap_or_default();
    let wanted = match (shape, matcher.is_feedforward(module.name)) {
        // A convolution's vector lies along the channels, scaled before or after.
        ([1, _, 1, 1] | [1, _, 1, 1, 1], _) => return Ok(()),
        ([1, _], Some(true) | None) | ([_, 1], Some(false) | None) => return Ok(()),
        (_, Some(true)) => "(1, in) of a feedforward module",
        (_, Some(false)) => "(out, 1) of a module that is not among feedforward_modules",
        (_, None) => "(out, 1) or (1, in)",
    };
    module.bad(format!("has ia3_l of shape {shape:?}, wanted {wanted}"))
}

fn check_shira(module: &Module) -> Result<()> {
    match (module.shape(Param::ShiraWeight), module.shape(Param::ShiraIndices)) {
        (Some(&[n]), Some(&[2, m])) if n == m => Ok(()),
        (Some(weight), Some(indices)) => module.bad(format!(
            "has shira_weight {weight:?} and shira_indices {indices:?}, which are not (n) and (2, n)"
        )),
        _ => module.bad("has only one of shira_weight and shira_indices"),
    }
}

fn check_prompt(module: &Module, (rows, width): (usize, Option<usize>)) -> Result<()> {
    let what = "not what the tokens, layers and width of";
    match module.shape(Param::PromptEmbeddings) {
        Some(&[n, d]) if n == rows && width.is_none_or(|width| d == width) => Ok(()),
        found => {
            let found = found.unwrap_or_default();
            let due = width.map_or_else(|| format!("[{rows}, any]"), |width| format!("[{rows}, {width}]"));
            let what = format!("prompt_embeddings is {found:?}, {what} {CONFIG} make: {due}");
            Err(Error::invalid(module.path, "PEFT adapter", what))
        }
    }
}

/// Embeddings whose own weight PEFT saves if it was targeted or the vocabulary was resized.
const EMBEDDINGS: &[&str] =
    &["embed_tokens", "wte", "word_embeddings", "shared", "embed_in", "tok_embeddings"];
/// Their counterparts at the end of the model.
const UNEMBEDDINGS: &[&str] = &["lm_head", "embed_out"];

fn is_one_of(module: &str, names: &[&str]) -> bool {
    let module = module.strip_suffix(".base_layer").unwrap_or(module);
    let last = module.rsplit('.').next().unwrap_or(module);
    names.contains(&last)
}

/// Is this plain tensor half of what is one matrix in a tied model? `Some(true)` for the look-up table.
pub(super) fn half_of_tied(module: &str, param: &Param) -> Option<bool> {
    let is = |names| *param == Param::Plain("weight".into()) && is_one_of(module, names);
    if is(EMBEDDINGS) { Some(true) } else { is(UNEMBEDDINGS).then_some(false) }
}

/// A parameter of the base model must have a reason to be in the file.
fn check_plain(module: &Module, config: &PeftConfig, rules: &Rules, param: &str) -> Result<()> {
    let name = module.name;
    // PEFT matches these names as ends: DistilBERT's `pre_classifier` is one, too.
    let is_head = |part: &str| part == "score" || part.ends_with("classifier");
    let head = config.common().classifies() && name.split('.').any(is_head);
    let embedding = is_one_of(name, EMBEDDINGS) || is_one_of(name, UNEMBEDDINGS);
    let base = name.strip_suffix(".base_layer");
    let bias = match config {
        PeftConfig::Lora(lora) if param == "bias" => match lora.bias {
            Bias::None => false,
            Bias::All => true,
            Bias::LoraOnly => base.is_some_and(|inner| rules.matcher().is_target(inner) != Some(false)),
        },
        _ => false,
    };
    if head || bias || embedding || (base.is_none() && rules.matcher().is_whole(name)) {
        return Ok(());
    }
    let shown = quote(&format!("{name}.{param}"));
    let what = format!("tensor {shown} is neither of the method nor in modules_to_save");
    Err(Error::invalid(module.path, "PEFT adapter", what))
}
