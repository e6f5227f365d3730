//! The `adapter_config.json` of a LoRA (PEFT 0.21): every field, checked; what cannot be honoured is refused by name.
//!
//! Scale of a module: `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`; both numbers come from the first
//! pattern that matches the module, if one does.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::fields::{Fields, number};
use crate::folder::kind;
use crate::limits;
use crate::modules::{ModuleMatcher, Selection, Suffix};
use crate::peft_common::Common;

pub use crate::modules::Modules;
pub use crate::peft_common::PEFT_VERSION;

/// Which biases are trained and saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bias {
    #[default]
    None,
    All,
    LoraOnly,
}

/// How the adapter was initialised.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// `true`: B = 0; `false`: both random.
    Default(bool),
    /// One of [`INITS`], or `pissa_niter_N`.
    Named(String),
}

/// The names that `init_lora_weights` may have, and whether the weight of the base is changed at the start, so that the
/// adapter alone on the untouched base is not the trained model.
pub const INITS: &[(&str, bool)] = &[
    ("gaussian", false),
    ("eva", false),
    ("orthogonal", false),
    ("pissa", true),
    ("olora", true),
    ("corda", true),
    ("loftq", true),
    ("lora_ga", true),
    ("mica", true),
];

impl Init {
    /// Was the base's own weight W changed to W - s B A at the start? (By `pissa`, `olora` and others.)
    pub fn changes_base(&self) -> bool {
        match self {
            Init::Default(_) => false,
            Init::Named(name) => INITS.iter().find(|(n, _)| n == name).is_none_or(|(_, changes)| *changes),
        }
    }

    fn take(f: &mut Fields) -> Result<Init> {
        let wanted = "true, false or a name that PEFT knows, like `gaussian` or `pissa`";
        match f.take("init_lora_weights") {
            None => Ok(Init::Default(true)),
            Some(Value::Bool(v)) => Ok(Init::Default(v)),
            Some(Value::String(v)) if INITS.iter().any(|(name, _)| *name == v) || is_fast_pissa(&v) => {
                Ok(Init::Named(v))
            }
            Some(other) => f.bad("init_lora_weights", &other, wanted),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Init::Default(v) => json!(v),
            Init::Named(v) => json!(v),
        }
    }
}

/// `pissa_niter_4`: the approximate singular value decomposition.
fn is_fast_pissa(name: &str) -> bool {
    let rounds = name.strip_prefix("pissa_niter_");
    rounds.is_some_and(|n| (1..=4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
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
    pub common: Common,
    /// Fields of PEFT that change nothing here, kept as they came.
    pub carried: BTreeMap<String, Value>,
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
            common: Common::default(),
            carried: BTreeMap::new(),
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
        let mut f = Fields::new(path, object);
        let d = LoraConfig::default();
        for (key, _) in refused() {
            if let Some(value) = f.map.remove(key).filter(|v| !is_off(v)) {
                let what = format!("`{key}` is {}, which is not supported", kind(&value));
                return Err(Error::unsupported(path, what, "only adapters without it can be read"));
            }
        }
        let mut carried_on = BTreeMap::new();
        for (key, default) in carried() {
            if let Some(value) = f.map.remove(key).filter(|v| *v != default) {
                carried_on.insert(key.to_string(), value);
            }
        }
        let config = LoraConfig {
            r: f.rank("r")?.unwrap_or(d.r),
            lora_alpha: f.number("lora_alpha")?.unwrap_or(d.lora_alpha),
            lora_dropout: f.share("lora_dropout")?.unwrap_or(d.lora_dropout),
            target_modules: f.modules("target_modules")?,
            exclude_modules: f.modules("exclude_modules")?,
            rank_pattern: f.patterns("rank_pattern", |f, key, value| f.to_rank(key, value))?,
            alpha_pattern: f.patterns("alpha_pattern", |f, key, value| f.to_number(key, value))?,
            use_rslora: f.flag("use_rslora")?,
            use_dora: f.flag("use_dora")?,
            bias: f.choice("bias", BIASES)?.unwrap_or_default(),
            lora_bias: f.flag("lora_bias")?,
            fan_in_fan_out: f.flag("fan_in_fan_out")?,
            modules_to_save: f.strings("modules_to_save")?,
            layers_to_transform: f.indices("layers_to_transform")?,
            layers_pattern: f.strings("layers_pattern")?.filter(|v| !v.is_empty()),
            init_lora_weights: Init::take(&mut f)?,
            ensure_weight_tying: f.flag("ensure_weight_tying")?,
            carried: carried_on,
            // Takes all that is left, so it stands last.
            common: Common::rest(f)?,
        };
        // Says now what is wrong with a pattern.
        config.matcher(path)?;
        Ok(config)
    }

    /// The object that PEFT would write, every field with its default.
    pub fn to_json(&self) -> Value {
        let alphas: Map<String, Value> =
            self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let fields = [
            ("r", json!(self.r)),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("target_modules", Modules::to_json(&self.target_modules)),
            ("exclude_modules", Modules::to_json(&self.exclude_modules)),
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
            ("init_lora_weights", self.init_lora_weights.to_json()),
            ("ensure_weight_tying", json!(self.ensure_weight_tying)),
        ];
        let mut fields: BTreeMap<&'static str, Value> =
            carried().into_iter().chain(refused()).chain(fields).collect();
        for (key, _) in carried() {
            if let Some(value) = self.carried.get(key) {
                fields.insert(key, value.clone());
            }
        }
        self.common.object("LORA", fields)
    }

    fn selection(&self) -> Selection<'_> {
        Selection {
            target_modules: self.target_modules.as_ref(),
            exclude_modules: self.exclude_modules.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            layers_to_transform: self.layers_to_transform.as_deref(),
            layers_pattern: self.layers_pattern.as_deref(),
        }
    }

    /// Compiles the patterns; `path` is for messages.
    pub fn matcher(&self, path: &Path) -> Result<Matcher> {
        let mut matcher = Matcher {
            modules: ModuleMatcher::new(path, &self.selection())?,
            ranks: Vec::new(),
            alphas: Vec::new(),
            r: self.r,
            alpha: self.lora_alpha,
            rslora: self.use_rslora,
        };
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

const BIASES: &[(&str, Bias)] = &[("none", Bias::None), ("all", Bias::All), ("lora_only", Bias::LoraOnly)];

impl Bias {
    /// The name in the file.
    pub fn name(self) -> &'static str {
        BIASES.iter().find(|(_, bias)| *bias == self).map_or("none", |(name, _)| name)
    }
}

/// The compiled patterns of a [`LoraConfig`]: which modules it adapts, with which rank and scale.
///
/// A module is its path in the base model (`model.layers.0.self_attn.q_proj`).
pub struct Matcher {
    modules: ModuleMatcher,
    ranks: Vec<(Suffix, usize)>,
    alphas: Vec<(Suffix, f64)>,
    r: usize,
    alpha: f64,
    rslora: bool,
}
impl Matcher {
    /// See [`ModuleMatcher::is_target`].
    pub fn is_target(&self, module: &str) -> Option<bool> {
        self.modules.is_target(module)
    }

    /// See [`ModuleMatcher::is_saved`].
    pub fn is_saved(&self, module: &str) -> bool {
        self.modules.is_saved(module)
    }

    /// Which modules are meant.
    pub fn modules(&self) -> &ModuleMatcher {
        &self.modules
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
            ("init_lora_weights", json!("pissa_niter_")),
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
        assert_eq!(c.common.unknown["newer"], 3);
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
