//! The `adapter_config.json` of a LoRA (PEFT 0.21): every field, checked; what cannot be honoured is refused by name.
//!
//! Scale of a module: `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`; both numbers come from the first
//! pattern that matches the module, if one does.

use std::collections::BTreeMap;
use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Number, Value, json};

use crate::error::{Error, Result, quote};
use crate::folder::kind;
use crate::limits;

/// The release of PEFT whose files are written.
pub const PEFT_VERSION: &str = "0.21.2";

/// Which modules of a model are meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Modules {
    /// Modules of these names, or whose path ends in `.name`.
    List(Vec<String>),
    /// Modules whose whole path matches this regular expression.
    Pattern(String),
    /// Every linear layer but the output layer.
    AllLinear,
}

/// Which biases are trained and saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bias {
    #[default]
    None,
    All,
    LoraOnly,
}

/// How the adapter was initialised: no part of its result.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// `true`: B = 0; `false`: both random.
    Default(bool),
    /// `gaussian`, `eva` or `orthogonal`.
    Named(String),
}

/// All that a LoRA's `adapter_config.json` says. [`LoraConfig::default`] is PEFT's default.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    /// `None`: PEFT's own choice for the architecture.
    pub target_modules: Option<Modules>,
    pub exclude_modules: Option<Modules>,
    /// Rank of the modules whose path ends in a match of the pattern; the first in order wins.
    pub rank_pattern: BTreeMap<String, usize>,
    /// The same for `lora_alpha`.
    pub alpha_pattern: BTreeMap<String, f64>,
    pub use_rslora: bool,
    pub use_dora: bool,
    pub bias: Bias,
    /// B has a bias.
    pub lora_bias: bool,
    /// The base weight is stored (in, out), as GPT-2's.
    pub fan_in_fan_out: bool,
    pub modules_to_save: Option<Vec<String>>,
    pub layers_to_transform: Option<Vec<usize>>,
    pub layers_pattern: Option<Vec<String>>,
    pub init_lora_weights: Init,
    pub ensure_weight_tying: bool,
    pub task_type: Option<String>,
    pub base_model_name_or_path: Option<String>,
    pub revision: Option<String>,
    pub inference_mode: bool,
    pub peft_version: Option<String>,
    /// `{base_model_class, parent_library}`; never followed.
    pub auto_mapping: Value,
    /// Fields of PEFT that change nothing here, kept as they came.
    pub carried: BTreeMap<String, Value>,
    /// Keys that PEFT 0.21 does not know, kept as they came; worth a warning.
    pub unknown: BTreeMap<String, Value>,
}

impl Default for LoraConfig {
    fn default() -> LoraConfig {
        LoraConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            use_dora: false,
            bias: Bias::None,
            lora_bias: false,
            fan_in_fan_out: false,
            modules_to_save: None,
            layers_to_transform: None,
            layers_pattern: None,
            init_lora_weights: Init::Default(true),
            ensure_weight_tying: false,
            task_type: None,
            base_model_name_or_path: None,
            revision: None,
            inference_mode: true,
            peft_version: Some(PEFT_VERSION.into()),
            auto_mapping: Value::Null,
            carried: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }
}

/// Fields that say only how the adapter came to be, with their defaults.
fn carried() -> [(&'static str, Value); 6] {
    [
        ("corda_config", Value::Null),
        ("eva_config", Value::Null),
        ("loftq_config", json!({})),
        ("lora_ga_config", Value::Null),
        ("megatron_core", json!("megatron.core")),
        ("qalora_group_size", json!(16)),
    ]
}

/// Fields that change the result and are not honoured unless they are off, with their defaults.
fn refused() -> [(&'static str, Value); 11] {
    [
        ("alora_invocation_tokens", Value::Null),
        ("arrow_config", Value::Null),
        ("kasa_config", Value::Null),
        ("layer_replication", Value::Null),
        ("megatron_config", Value::Null),
        ("monteclora_config", Value::Null),
        ("target_parameters", Value::Null),
        ("trainable_token_indices", Value::Null),
        ("use_bdlora", Value::Null),
        ("use_qalora", Value::Bool(false)),
        ("velora_config", Value::Null),
    ]
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(v) => v.is_empty(),
        Value::Object(v) => v.is_empty(),
        _ => false,
    }
}

impl LoraConfig {
    /// Reads the object of an `adapter_config.json`; `path` is for messages.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<LoraConfig> {
        let mut f = Fields { path, map: object.clone() };
        f.map.remove("peft_type");
        // PEFT drops this one when it loads.
        f.map.remove("runtime_config");
        let d = LoraConfig::default();
        for (key, _) in refused() {
            if let Some(value) = f.map.remove(key).filter(|v| !is_off(v)) {
                let what = format!("`{key}` is {}, which is not supported", kind(&value));
                return Err(Error::unsupported(path, what, "only adapters without it can be read"));
            }
        }
        let mut config = LoraConfig {
            r: f.rank("r")?.unwrap_or(d.r),
            lora_alpha: f.number("lora_alpha")?.unwrap_or(d.lora_alpha),
            lora_dropout: f.number("lora_dropout")?.unwrap_or(d.lora_dropout),
            target_modules: f.modules("target_modules")?,
            exclude_modules: f.modules("exclude_modules")?,
            rank_pattern: f.patterns("rank_pattern", |f, key, value| f.to_rank(key, value))?,
            alpha_pattern: f.patterns("alpha_pattern", |f, key, value| f.to_number(key, value))?,
            use_rslora: f.flag("use_rslora")?,
            use_dora: f.flag("use_dora")?,
            bias: f.bias()?,
            lora_bias: f.flag("lora_bias")?,
            fan_in_fan_out: f.flag("fan_in_fan_out")?,
            modules_to_save: f.strings("modules_to_save")?,
            layers_to_transform: f.indices("layers_to_transform")?,
            layers_pattern: f.strings("layers_pattern")?.filter(|v| !v.is_empty()),
            init_lora_weights: f.init()?,
            ensure_weight_tying: f.flag("ensure_weight_tying")?,
            task_type: f.string("task_type")?,
            base_model_name_or_path: f.string("base_model_name_or_path")?,
            revision: f.string("revision")?,
            inference_mode: f.flag("inference_mode")?,
            peft_version: f.string("peft_version")?,
            auto_mapping: f.map.remove("auto_mapping").unwrap_or_default(),
            carried: BTreeMap::new(),
            unknown: BTreeMap::new(),
        };
        for (key, default) in carried() {
            if let Some(value) = f.map.remove(key).filter(|v| *v != default) {
                config.carried.insert(key.to_string(), value);
            }
        }
        config.unknown = f.map.into_iter().collect();
        if !(0.0..=1.0).contains(&config.lora_dropout) {
            return Err(Error::key(
                path,
                "lora_dropout",
                config.lora_dropout.to_string(),
                "a number from 0 to 1",
            ));
        }
        // Says now what is wrong with a pattern.
        config.matcher(path)?;
        Ok(config)
    }

    /// The object that PEFT would write, every field with its default.
    pub fn to_json(&self) -> Value {
        let mut map: Map<String, Value> = self.unknown.clone().into_iter().collect();
        for (key, value) in carried().into_iter().chain(refused()) {
            map.insert(key.to_string(), value);
        }
        map.extend(self.carried.clone());
        let modules = |modules: &Option<Modules>| match modules {
            None => Value::Null,
            Some(Modules::List(names)) => json!(names),
            Some(Modules::Pattern(pattern)) => json!(pattern),
            Some(Modules::AllLinear) => json!("all-linear"),
        };
        let alphas: Map<String, Value> =
            self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let fields = [
            ("peft_type", json!("LORA")),
            ("r", json!(self.r)),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("target_modules", modules(&self.target_modules)),
            ("exclude_modules", modules(&self.exclude_modules)),
            ("rank_pattern", json!(self.rank_pattern)),
            ("alpha_pattern", Value::Object(alphas)),
            ("use_rslora", json!(self.use_rslora)),
            ("use_dora", json!(self.use_dora)),
            ("bias", json!(self.bias.name())),
            ("lora_bias", json!(self.lora_bias)),
            ("fan_in_fan_out", json!(self.fan_in_fan_out)),
            ("modules_to_save", json!(self.modules_to_save)),
            ("layers_to_transform", json!(self.layers_to_transform)),
            ("layers_pattern", json!(self.layers_pattern)),
            (
                "init_lora_weights",
                match &self.init_lora_weights {
                    Init::Default(v) => json!(v),
                    Init::Named(v) => json!(v),
                },
            ),
            ("ensure_weight_tying", json!(self.ensure_weight_tying)),
            ("task_type", json!(self.task_type)),
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("revision", json!(self.revision)),
            ("inference_mode", json!(self.inference_mode)),
            ("peft_version", json!(self.peft_version)),
            ("auto_mapping", self.auto_mapping.clone()),
        ];
        map.extend(fields.map(|(key, value)| (key.to_string(), value)));
        Value::Object(map)
    }

    /// Compiles the patterns; `path` is for messages.
    pub fn matcher(&self, path: &Path) -> Result<Matcher> {
        let modules = |modules: &Option<Modules>, key| match modules {
            None => Ok(Targets::Unknown),
            Some(Modules::AllLinear) => Ok(Targets::All),
            Some(Modules::List(names)) => Ok(Targets::List(names.clone())),
            Some(Modules::Pattern(p)) => Ok(Targets::Pattern(compile(path, key, p, &format!("^(?:{p})$"))?)),
        };
        let mut matcher = Matcher {
            targets: modules(&self.target_modules, "target_modules")?,
            excluded: modules(&self.exclude_modules, "exclude_modules")?,
            saved: self.modules_to_save.clone().unwrap_or_default(),
            layers: self.layers_to_transform.clone().filter(|v| !v.is_empty()),
            layer_index: Vec::new(),
            ranks: Vec::new(),
            alphas: Vec::new(),
            r: self.r,
            alpha: self.lora_alpha,
            rslora: self.use_rslora,
        };
        if matcher.layers.is_some() {
            matcher.layer_index = match &self.layers_pattern {
                None => vec![compile(path, "layers_pattern", "", r"^.*?\.[^.]*\.([0-9]+)\.")?],
                Some(names) => {
                    let whole = |p: &String| {
                        compile(path, "layers_pattern", p, &format!(r"^(?:.*?\.)?(?:{p})\.([0-9]+)\."))
                    };
                    names.iter().take(limits::PATTERNS).map(whole).collect::<Result<_>>()?
                }
            };
        }
        let mut left = limits::PATTERNS;
        for (pattern, rank) in &self.rank_pattern {
            matcher.ranks.push((Suffix::new(path, "rank_pattern", pattern, &mut left)?, *rank));
        }
        for (pattern, alpha) in &self.alpha_pattern {
            matcher.alphas.push((Suffix::new(path, "alpha_pattern", pattern, &mut left)?, *alpha));
        }
        Ok(matcher)
    }
}

/// A whole number is written without a point, as Python writes an int.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

impl Bias {
    /// The name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Bias::None => "none",
            Bias::All => "all",
            Bias::LoraOnly => "lora_only",
        }
    }
}

enum Targets {
    Unknown,
    All,
    List(Vec<String>),
    Pattern(Regex),
}

/// The compiled patterns of a [`LoraConfig`]: which modules it adapts, with which rank and scale.
///
/// A module is its path in the base model (`model.layers.0.self_attn.q_proj`).
pub struct Matcher {
    targets: Targets,
    excluded: Targets,
    saved: Vec<String>,
    layers: Option<Vec<usize>>,
    layer_index: Vec<Regex>,
    ranks: Vec<(Suffix, usize)>,
    alphas: Vec<(Suffix, f64)>,
    r: usize,
    alpha: f64,
    rslora: bool,
}

impl Matcher {
    /// Does PEFT adapt this module? `None` if the configuration leaves that to the model (no `target_modules`, or
    /// `all-linear`).
    pub fn is_target(&self, module: &str) -> Option<bool> {
        let excluded = match &self.excluded {
            Targets::Unknown | Targets::All => false,
            Targets::List(names) => ends_in(module, names),
            Targets::Pattern(regex) => regex.is_match(module),
        };
        if excluded || self.is_saved(module) {
            return Some(false);
        }
        match &self.targets {
            Targets::Unknown | Targets::All => None,
            Targets::Pattern(regex) => Some(regex.is_match(module)),
            Targets::List(names) if names.iter().any(|n| n == module) => Some(true),
            Targets::List(names) => Some(ends_in(module, names) && self.is_chosen_layer(module)),
        }
    }

    /// Is this module, or one around it, in `modules_to_save`?
    pub fn is_saved(&self, module: &str) -> bool {
        let around = |name: &String| {
            let mut from = 0;
            while let Some(at) =
                module.get(from..).and_then(|rest| rest.find(name.as_str())).map(|i| i + from)
            {
                let end = at + name.len();
                let whole = (at == 0 || module.as_bytes()[at - 1] == b'.')
                    && (end == module.len() || module.as_bytes()[end] == b'.');
                if whole && !name.is_empty() {
                    return true;
                }
                from = at + 1;
                while from < module.len() && !module.is_char_boundary(from) {
                    from += 1;
                }
                if from >= module.len() {
                    break;
                }
            }
            false
        };
        self.saved.iter().any(around)
    }

    fn is_chosen_layer(&self, module: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        let found = self.layer_index.iter().find_map(|regex| regex.captures(module));
        let index = found.and_then(|c| c.get(1)?.as_str().parse::<usize>().ok());
        index.is_some_and(|index| layers.contains(&index))
    }

    /// The rank of a module.
    pub fn rank(&self, module: &str) -> usize {
        self.ranks.iter().find(|(p, _)| p.matches(module)).map_or(self.r, |(_, rank)| *rank)
    }

    /// `lora_alpha` of a module.
    pub fn alpha(&self, module: &str) -> f64 {
        self.alphas.iter().find(|(p, _)| p.matches(module)).map_or(self.alpha, |(_, alpha)| *alpha)
    }

    /// What B(A x) is multiplied with in a module.
    pub fn scale(&self, module: &str) -> f64 {
        let rank = self.rank(module) as f64;
        self.alpha(module) / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// Is a module one of these, or does its path end in `.name`?
fn ends_in(module: &str, names: &[String]) -> bool {
    let ends = |name: &String| {
        let front = module.strip_suffix(name.as_str());
        front.is_some_and(|front| front.is_empty() || front.ends_with('.'))
    };
    names.iter().any(ends)
}

/// PEFT's `(.*\.)?(pattern)$`.
enum Suffix {
    /// Letters, digits, `_`, `-` and dots, as nearly all are. A dot stands for any character, being a pattern still.
    Plain(String),
    Regex(Regex),
}

impl Suffix {
    fn new(path: &Path, key: &str, pattern: &str, left: &mut usize) -> Result<Suffix> {
        if pattern.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
            return Ok(Suffix::Plain(pattern.to_string()));
        }
        *left = left.checked_sub(1).ok_or_else(|| {
            let what = format!("the number of regular expressions in {key}");
            Error::limit(path, what, limits::PATTERNS as u64 + 1, limits::PATTERNS as u64)
        })?;
        Ok(Suffix::Regex(compile(path, key, pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"))?))
    }

    fn matches(&self, module: &str) -> bool {
        match self {
            Suffix::Regex(regex) => regex.is_match(module),
            Suffix::Plain(pattern) => {
                let mut rest = module.chars().rev();
                pattern.chars().rev().all(|p| rest.next().is_some_and(|c| c == p || p == '.'))
                    && rest.next().is_none_or(|c| c == '.')
            }
        }
    }
}

/// Compiles `whole`, a regular expression around the `pattern` of the file.
fn compile(path: &Path, key: &str, pattern: &str, whole: &str) -> Result<Regex> {
    if pattern.len() > limits::PATTERN_BYTES {
        let what = format!("the length of a pattern in {key}");
        return Err(Error::limit(path, what, pattern.len() as u64, limits::PATTERN_BYTES as u64));
    }
    let mut builder = RegexBuilder::new(whole);
    builder.size_limit(limits::PATTERN_COMPILED_BYTES).dfa_size_limit(limits::PATTERN_COMPILED_BYTES);
    builder.build().map_err(|e| {
        let reason = e.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let what = format!("the pattern {} in `{key}` cannot be used: {reason}", quote(pattern));
        Error::unsupported(path, what, "list the module names instead")
    })
}

/// Takes fields out of an object and checks their types; null counts as absent.
struct Fields<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Fields<'_> {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    fn bad<T>(&self, key: &str, value: &Value, wanted: &str) -> Result<T> {
        Err(Error::key(self.path, key, kind(value), wanted))
    }

    fn few(&self, key: &str, count: usize) -> Result<()> {
        let limit = limits::MODULE_NAMES as u64;
        let what = || format!("the number of entries of `{key}`");
        if count as u64 > limit { Err(Error::limit(self.path, what(), count as u64, limit)) } else { Ok(()) }
    }

    fn to_rank(&self, key: &str, value: &Value) -> Result<usize> {
        match value.as_u64() {
            Some(rank) if (1..=limits::RANK).contains(&rank) => Ok(rank as usize),
            _ => self.bad(key, value, &format!("an integer from 1 to {}", limits::RANK)),
        }
    }

    fn to_number(&self, key: &str, value: &Value) -> Result<f64> {
        match value.as_f64().filter(|v| v.is_finite() && (*v as f32).is_finite()) {
            Some(v) => Ok(v),
            None => self.bad(key, value, "a finite number"),
        }
    }

    fn rank(&mut self, key: &str) -> Result<Option<usize>> {
        self.take(key).map(|value| self.to_rank(key, &value)).transpose()
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.take(key).map(|value| self.to_number(key, &value)).transpose()
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(v)) => Ok(v),
            Some(other) => self.bad(key, &other, "true or false"),
        }
    }

    fn string(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(other) => self.bad(key, &other, "a text"),
        }
    }

    /// A list of texts, or one.
    fn strings(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(vec![v])),
            Some(Value::Array(list)) => {
                self.few(key, list.len())?;
                let text =
                    |v: &Value| v.as_str().map(str::to_string).map_or_else(|| self.bad(key, v, "a name"), Ok);
                list.iter().map(text).collect::<Result<_>>().map(Some)
            }
            Some(other) => self.bad(key, &other, "a list of names"),
        }
    }

    /// A list of layer numbers, or one.
    fn indices(&mut self, key: &str) -> Result<Option<Vec<usize>>> {
        let list = match self.take(key) {
            None => return Ok(None),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        let index =
            |v: &Value| v.as_u64().map(|n| n as usize).map_or_else(|| self.bad(key, v, "a layer number"), Ok);
        list.iter().map(index).collect::<Result<_>>().map(Some)
    }

    fn modules(&mut self, key: &str) -> Result<Option<Modules>> {
        match self.map.get(key) {
            Some(Value::String(v)) if v.eq_ignore_ascii_case("all-linear") => {
                self.map.remove(key);
                Ok(Some(Modules::AllLinear))
            }
            Some(Value::String(_)) => Ok(self.string(key)?.map(Modules::Pattern)),
            _ => Ok(self.strings(key)?.map(Modules::List)),
        }
    }

    fn patterns<T>(
        &mut self,
        key: &str,
        each: impl Fn(&Self, &str, &Value) -> Result<T>,
    ) -> Result<BTreeMap<String, T>> {
        match self.take(key) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => {
                self.few(key, map.len())?;
                let each = |(p, v)| Ok((String::clone(&p), each(self, &format!("{key}.{p}"), &v)?));
                map.into_iter().map(each).collect()
            }
            Some(other) => self.bad(key, &other, "an object of patterns and numbers"),
        }
    }

    fn bias(&mut self) -> Result<Bias> {
        match self.take("bias") {
            None => Ok(Bias::None),
            Some(value) => match value.as_str() {
                Some("none") => Ok(Bias::None),
                Some("all") => Ok(Bias::All),
                Some("lora_only") => Ok(Bias::LoraOnly),
                _ => self.bad("bias", &value, "`none`, `all` or `lora_only`"),
            },
        }
    }

    fn init(&mut self) -> Result<Init> {
        match self.take("init_lora_weights") {
            None => Ok(Init::Default(true)),
            Some(Value::Bool(v)) => Ok(Init::Default(v)),
            Some(Value::String(v)) if ["gaussian", "eva", "orthogonal"].contains(&v.as_str()) => {
                Ok(Init::Named(v))
            }
            Some(Value::String(v)) => {
                let what = format!(
                    "`init_lora_weights` is {}, which changes the base model's own weights",
                    quote(&v)
                );
                let remedy = "save it in PEFT with path_initial_model_for_weight_conversion, which makes it an ordinary LoRA";
                Err(Error::unsupported(self.path, what, remedy))
            }
            Some(other) => self.bad("init_lora_weights", &other, "true, false or a name"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> Result<LoraConfig> {
        LoraConfig::from_json(Path::new("adapter_config.json"), value.as_object().unwrap())
    }

    fn matcher(value: Value) -> Matcher {
        config(value).unwrap().matcher(Path::new("c")).unwrap()
    }

    #[test]
    fn the_least_config_has_pefts_defaults() {
        let c = config(json!({"peft_type": "LORA", "target_modules": ["q_proj"]})).unwrap();
        assert_eq!((c.r, c.lora_alpha, c.use_rslora), (8, 8.0, false));
        assert_eq!(c.target_modules, Some(Modules::List(vec!["q_proj".into()])));
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for (key, value) in [
            ("use_qalora", json!(true)),
            ("layer_replication", json!([[0, 2]])),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("target_parameters", json!(["experts"])),
            ("r", json!(0)),
            ("r", json!(5000)),
            ("r", json!("8")),
            ("lora_alpha", json!("x")),
            ("lora_alpha", json!(1e300)),
            ("lora_dropout", json!(2)),
            ("bias", json!("some")),
            ("target_modules", json!("(")),
            ("target_modules", json!("a(?=b)")),
            ("target_modules", json!("(((a{100}){100}){100}){100}")),
            ("target_modules", json!([1])),
            ("rank_pattern", json!({"q": 0})),
            ("use_dora", json!(1)),
        ] {
            let message = config(json!({"peft_type": "LORA", key: value})).unwrap_err().to_string();
            assert!(message.starts_with("adapter_config.json: ") && message.contains(key), "{message}");
        }
        let c = config(json!({"use_qalora": false, "kasa_config": null, "newer": 3})).unwrap();
        assert_eq!(c.unknown["newer"], 3);
        assert_eq!(c.to_json()["newer"], 3);
    }

    #[test]
    fn targets_match_as_in_peft() {
        let m =
            matcher(json!({"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["layers.1.q_proj"]}));
        assert_eq!(m.is_target("model.layers.0.q_proj"), Some(true));
        assert_eq!(m.is_target("model.layers.0.xq_proj"), Some(false));
        assert_eq!(m.is_target("model.layers.1.q_proj"), Some(false));
        assert_eq!(m.is_target("lm_head"), Some(true));
        let m = matcher(json!({"target_modules": r".*\.(q|v)_proj"}));
        assert_eq!(m.is_target("model.layers.0.v_proj"), Some(true));
        assert_eq!(m.is_target("model.layers.0.v_proj.x"), Some(false));
        let m = matcher(json!({"target_modules": ["q_proj"], "layers_to_transform": 1}));
        assert_eq!(m.is_target("model.layers.1.mlp.experts.3.q_proj"), Some(true));
        assert_eq!(m.is_target("model.layers.0.mlp.experts.1.q_proj"), Some(false));
        let m =
            matcher(json!({"target_modules": ["q"], "layers_to_transform": [2], "layers_pattern": "blocks"}));
        assert_eq!(m.is_target("blocks.2.q"), Some(true));
        assert_eq!(m.is_target("layers.2.q"), Some(false));
        let m = matcher(json!({"target_modules": ["dense"], "modules_to_save": ["classifier"]}));
        assert_eq!(m.is_target("classifier.dense"), Some(false));
        assert_eq!(m.is_target("my_classifier.dense"), Some(true));
        assert_eq!(matcher(json!({"target_modules": "ALL-linear"})).is_target("x"), None);
    }

    #[test]
    fn ranks_and_scales_follow_the_patterns() {
        let m = matcher(json!({
            "r": 8, "lora_alpha": 16, "use_rslora": true,
            "rank_pattern": {"layers.0.q_proj": 4, "layers\\.[12]\\.q_proj": 2},
            "alpha_pattern": {"q_proj": 6.5}
        }));
        assert_eq!(m.rank("model.layers.0.q_proj"), 4);
        assert_eq!(m.rank("model.xlayers.0.q_proj"), 8);
        assert_eq!(m.rank("model.layers.2.q_proj"), 2);
        assert_eq!(m.rank("model.layers.3.q_proj"), 8);
        assert_eq!(m.alpha("model.layers.0.q_proj"), 6.5);
        assert_eq!(m.scale("model.layers.0.q_proj"), 6.5 / 2.0);
        assert_eq!(m.scale("model.layers.0.v_proj"), 16.0 / 8f64.sqrt());
    }
}
