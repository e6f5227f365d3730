//! The `adapter_config.json` of AdapterHub's `adapters` 1.3: every key that it writes, checked.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, quote};
use crate::fields::{Fields, number};
use crate::folder::kind;
use crate::limits;

/// The release of `adapters` whose files are written.
pub const ADAPTERS_VERSION: &str = "adapters.1.3.0";

/// What the method's configuration is wrapped in.
#[derive(Clone, Debug, PartialEq)]
pub struct HubConfig {
    /// The adapter's name, which is part of every key.
    pub name: String,
    /// `bert`, `gpt2`, …
    pub model_type: String,
    /// `BertAdapterModel`, …
    pub model_class: String,
    /// Where the base came from; never followed.
    pub model_name: Option<String>,
    /// `None` for models without one width.
    pub hidden_size: Option<usize>,
    pub version: Option<String>,
    pub method: HubMethod,
    /// Keys around the method's configuration that are not known, kept as they came.
    pub unknown: BTreeMap<String, Value>,
}

/// The configuration of a method.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // There are few of them and they are seldom moved.
pub enum HubMethod {
    Bottleneck(BnConfig),
    /// LoRA, DoRA, and with [`HubLora::scales`] IA³.
    Lora(HubLora),
    Prompt(HubPrompt),
    Prefix(HubPrefix),
}

/// How much narrower than the model a bottleneck is.
#[derive(Clone, Debug, PartialEq)]
pub enum Reduction {
    All(f64),
    /// By the number of a layer, or `default`.
    Layers(BTreeMap<String, f64>),
}

/// What the output of a bottleneck is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    Fixed(f64),
    /// One number.
    Learned,
    /// One number for each channel.
    Channel,
}

/// Where the residual connection around a bottleneck begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    BeforeNorm,
    AfterNorm,
    PostAdd,
}

/// A bottleneck adapter: `x + up(f(down(x)))`, at places that the flags say.
#[derive(Clone, Debug, PartialEq)]
pub struct BnConfig {
    /// One after the attention of each layer.
    pub mh_adapter: bool,
    /// One after the feed-forward part of each layer.
    pub output_adapter: bool,
    /// One after the cross attention of each decoder layer.
    pub cross_adapter: bool,
    pub reduction_factor: Reduction,
    pub non_linearity: String,
    /// The model's own LayerNorm and residual are applied before the bottleneck.
    pub original_ln_before: bool,
    /// … and after it.
    pub original_ln_after: bool,
    /// The bottleneck has a LayerNorm of its own at its input.
    pub ln_before: bool,
    /// … and at its output.
    pub ln_after: bool,
    pub init_weights: String,
    pub init_weights_seed: Option<u64>,
    /// It takes the input of the sub-layer, not its output.
    pub is_parallel: bool,
    pub scaling: Scaling,
    pub use_gating: bool,
    pub residual_before_ln: Residual,
    pub adapter_residual_before_ln: bool,
    /// Layers without an adapter.
    pub leave_out: Vec<usize>,
    pub dropout: f64,
    pub stochastic_depth: f64,
    /// Keys without an effect here (of parameterised hypercomplex layers), where they are not the default.
    pub carried: BTreeMap<String, Value>,
    /// Keys that `adapters` 1.3 does not know, kept as they came.
    pub unknown: BTreeMap<String, Value>,
}

impl BnConfig {
    /// Pfeiffer et al. (2020): one after each feed-forward part.
    pub fn seq_bn() -> BnConfig {
        BnConfig {
            mh_adapter: false,
            output_adapter: true,
            cross_adapter: false,
            reduction_factor: Reduction::All(16.0),
            non_linearity: "relu".into(),
            original_ln_before: true,
            original_ln_after: true,
            ln_before: false,
            ln_after: false,
            init_weights: "bert".into(),
            init_weights_seed: None,
            is_parallel: false,
            scaling: Scaling::Fixed(1.0),
            use_gating: false,
            residual_before_ln: Residual::BeforeNorm,
            adapter_residual_before_ln: false,
            leave_out: Vec::new(),
            dropout: 0.0,
            stochastic_depth: 0.0,
            carried: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// Houlsby et al. (2019): two a layer.
    pub fn double_seq_bn() -> BnConfig {
        BnConfig {
            mh_adapter: true,
            original_ln_before: false,
            non_linearity: "swish".into(),
            ..BnConfig::seq_bn()
        }
    }

    /// He et al. (2021): one beside each feed-forward part.
    pub fn par_bn() -> BnConfig {
        BnConfig {
            original_ln_before: false,
            reduction_factor: Reduction::All(2.0),
            init_weights: "mam_adapter".into(),
            is_parallel: true,
            scaling: Scaling::Fixed(4.0),
            ..BnConfig::seq_bn()
        }
    }

    /// The width of the bottleneck in a layer of a model of this width; `None` if the file names no factor for it.
    pub fn bottleneck(&self, hidden_size: usize, layer: usize) -> Option<usize> {
        let factor = match &self.reduction_factor {
            Reduction::All(factor) => factor,
            Reduction::Layers(map) => map.get(&layer.to_string()).or_else(|| map.get("default"))?,
        };
        Some(((hidden_size as f64 / factor).floor() as usize).max(1))
    }

    fn from_fields(mut f: Fields) -> Result<BnConfig> {
        let d = BnConfig::seq_bn();
        for key in ["phm_layer", "inv_adapter", "invertible_adapter"] {
            if let Some(value) = f.take(key).filter(|v| *v != Value::Bool(false)) {
                let what = format!("`config.{key}` is {}, which is not supported", kind(&value));
                let remedy = "bottleneck adapters of plain linear layers are";
                return Err(Error::unsupported(f.path, what, remedy));
            }
        }
        f.take("inv_adapter_reduction_factor");
        let needs = |f: &Fields, key: &str| Error::MissingKey {
            path: f.path.to_path_buf(),
            key: format!("config.{key}"),
            nearest: crate::source::nearest(key, f.map.keys().map(String::as_str)),
        };
        for key in ["mh_adapter", "output_adapter", "reduction_factor", "non_linearity"] {
            if !f.map.contains_key(key) {
                return Err(needs(&f, key));
            }
        }
        let mut kept = BTreeMap::new();
        for (key, default) in hypercomplex() {
            if let Some(value) = f.map.remove(key).filter(|v| *v != default) {
                kept.insert(key.to_string(), value);
            }
        }
        Ok(BnConfig {
            mh_adapter: f.flag("mh_adapter")?,
            output_adapter: f.flag("output_adapter")?,
            cross_adapter: f.flag("cross_adapter")?,
            reduction_factor: reduction(&mut f)?,
            non_linearity: f.string("non_linearity")?.unwrap_or(d.non_linearity),
            original_ln_before: f.flag("original_ln_before")?,
            original_ln_after: f.flag_or("original_ln_after", true)?,
            ln_before: f.flag("ln_before")?,
            ln_after: f.flag("ln_after")?,
            init_weights: f.string("init_weights")?.unwrap_or(d.init_weights),
            init_weights_seed: f.integer("init_weights_seed", 0..=u64::MAX)?,
            is_parallel: f.flag("is_parallel")?,
            scaling: scaling(&mut f)?,
            use_gating: f.flag("use_gating")?,
            residual_before_ln: match f.take("residual_before_ln") {
                None | Some(Value::Bool(true)) => Residual::BeforeNorm,
                Some(Value::Bool(false)) => Residual::AfterNorm,
                Some(Value::String(v)) if v == "post_add" => Residual::PostAdd,
                Some(other) => return f.bad("residual_before_ln", &other, "true, false or `post_add`"),
            },
            adapter_residual_before_ln: f.flag("adapter_residual_before_ln")?,
            leave_out: f.indices("leave_out")?.unwrap_or_default(),
            dropout: f.share("dropout")?.unwrap_or(0.0),
            stochastic_depth: f.share("stochastic_depth")?.unwrap_or(0.0),
            carried: kept,
            unknown: f.map.into_iter().collect(),
        })
    }

    fn to_json(&self) -> Value {
        let reduction = match &self.reduction_factor {
            Reduction::All(factor) => number(*factor),
            Reduction::Layers(map) => {
                Value::Object(map.iter().map(|(layer, factor)| (layer.clone(), number(*factor))).collect())
            }
        };
        let fields = [
            ("mh_adapter", json!(self.mh_adapter)),
            ("output_adapter", json!(self.output_adapter)),
            ("cross_adapter", json!(self.cross_adapter)),
            ("reduction_factor", reduction),
            ("non_linearity", json!(self.non_linearity)),
            ("original_ln_before", json!(self.original_ln_before)),
            ("original_ln_after", json!(self.original_ln_after)),
            ("ln_before", json!(self.ln_before)),
            ("ln_after", json!(self.ln_after)),
            ("init_weights", json!(self.init_weights)),
            ("init_weights_seed", json!(self.init_weights_seed)),
            ("inv_adapter", Value::Null),
            ("inv_adapter_reduction_factor", Value::Null),
            ("is_parallel", json!(self.is_parallel)),
            (
                "scaling",
                match self.scaling {
                    Scaling::Fixed(factor) => json!(factor),
                    Scaling::Learned => json!("learned"),
                    Scaling::Channel => json!("channel"),
                },
            ),
            ("use_gating", json!(self.use_gating)),
            (
                "residual_before_ln",
                match self.residual_before_ln {
                    Residual::BeforeNorm => json!(true),
                    Residual::AfterNorm => json!(false),
                    Residual::PostAdd => json!("post_add"),
                },
            ),
            ("adapter_residual_before_ln", json!(self.adapter_residual_before_ln)),
            ("leave_out", json!(self.leave_out)),
            ("dropout", json!(self.dropout)),
            ("stochastic_depth", json!(self.stochastic_depth)),
            ("phm_layer", json!(false)),
        ];
        object(&self.unknown, hypercomplex().into_iter().chain(fields), &self.carried)
    }
}

/// Keys of hypercomplex layers, with their defaults; without `phm_layer` they change nothing.
fn hypercomplex() -> [(&'static str, Value); 11] {
    [
        ("factorized_phm_W", json!(true)),
        ("factorized_phm_rule", json!(false)),
        ("hypercomplex_nonlinearity", json!("glorot-uniform")),
        ("learn_phm", json!(true)),
        ("phm_bias", json!(true)),
        ("phm_c_init", json!("normal")),
        ("phm_dim", json!(4)),
        ("phm_init_range", json!(0.0001)),
        ("phm_rank", json!(1)),
        ("shared_W_phm", json!(false)),
        ("shared_phm_rule", json!(true)),
    ]
}

fn reduction(f: &mut Fields) -> Result<Reduction> {
    let key = "reduction_factor";
    let factor = |f: &Fields, value: &Value| {
        let factor = f.to_number(key, value)?;
        if factor > 1e-6 { Ok(factor) } else { f.bad(key, value, "a number above 0") }
    };
    match f.take(key) {
        Some(Value::Object(map)) if map.len() <= limits::LAYERS + 1 => {
            let entries = map.iter().map(|(layer, value)| {
                let known = layer == "default" || layer.parse::<usize>().is_ok_and(|n| n < limits::LAYERS);
                if !known {
                    let wanted = "numbers of layers and `default`";
                    return Err(Error::key(f.path, format!("config.{key}"), quote(layer), wanted));
                }
                Ok((layer.clone(), factor(f, value)?))
            });
            Ok(Reduction::Layers(entries.collect::<Result<_>>()?))
        }
        Some(value) => Ok(Reduction::All(factor(f, &value)?)),
        None => f.bad(key, &Value::Null, "a number"),
    }
}

fn scaling(f: &mut Fields) -> Result<Scaling> {
    match f.take("scaling") {
        None => Ok(Scaling::Fixed(1.0)),
        Some(Value::String(v)) if v == "learned" => Ok(Scaling::Learned),
        Some(Value::String(v)) if v == "channel" => Ok(Scaling::Channel),
        Some(Value::Number(v)) => Ok(Scaling::Fixed(f.to_number("scaling", &Value::Number(v))?)),
        Some(other) => f.bad("scaling", &other, "a number, `learned` or `channel`"),
    }
}

/// LoRA, DoRA or IA³.
#[derive(Clone, Debug, PartialEq)]
pub struct HubLora {
    pub r: usize,
    /// The product is multiplied with alpha / r. Files of versions before 1.1 are corrected when they are read.
    pub alpha: f64,
    pub dropout: f64,
    /// `q`, `k`, `v`.
    pub attn_matrices: Vec<String>,
    pub selfattn_lora: bool,
    pub intermediate_lora: bool,
    pub output_lora: bool,
    /// `composition_mode` is `scale`: IA³, a vector `lora_B` (out, 1) that multiplies the output.
    pub scales: bool,
    pub use_dora: bool,
    pub leave_out: Vec<usize>,
    pub init_weights: String,
    pub init_weights_seed: Option<u64>,
    pub dtype: Option<String>,
    /// Keys that `adapters` 1.3 does not know, kept as they came.
    pub unknown: BTreeMap<String, Value>,
}

impl Default for HubLora {
    fn default() -> HubLora {
        HubLora {
            r: 8,
            alpha: 8.0,
            dropout: 0.0,
            attn_matrices: vec!["q".into(), "v".into()],
            selfattn_lora: true,
            intermediate_lora: false,
            output_lora: false,
            scales: false,
            use_dora: false,
            leave_out: Vec::new(),
            init_weights: "lora".into(),
            init_weights_seed: None,
            dtype: None,
            unknown: BTreeMap::new(),
        }
    }
}

impl HubLora {
    /// The library's IA³: keys, values and the first linear of the feed-forward part.
    pub fn ia3() -> HubLora {
        HubLora {
            r: 1,
            alpha: 1.0,
            attn_matrices: vec!["k".into(), "v".into()],
            intermediate_lora: true,
            scales: true,
            init_weights: "ia3".into(),
            ..HubLora::default()
        }
    }

    fn from_fields(mut f: Fields) -> Result<HubLora> {
        let d = HubLora::default();
        refuse_gating(&mut f)?;
        for key in ["vera_b", "vera_d"] {
            if let Some(value) = f.take(key) {
                let what = format!("`config.{key}` is {}, which is not supported", kind(&value));
                return Err(Error::unsupported(f.path, what, "LoRA, DoRA and IA3 are"));
            }
        }
        let config = HubLora {
            r: f.rank("r")?.unwrap_or(d.r),
            alpha: f.number("alpha")?.unwrap_or(d.alpha),
            dropout: f.share("dropout")?.unwrap_or(d.dropout),
            attn_matrices: f.strings("attn_matrices")?.unwrap_or(d.attn_matrices),
            selfattn_lora: f.flag_or("selfattn_lora", true)?,
            intermediate_lora: f.flag("intermediate_lora")?,
            output_lora: f.flag("output_lora")?,
            scales: f.choice("composition_mode", &[("add", false), ("scale", true)])?.unwrap_or(false),
            use_dora: f.flag("use_dora")?,
            leave_out: f.indices("leave_out")?.unwrap_or_default(),
            init_weights: f.string("init_weights")?.unwrap_or(d.init_weights),
            init_weights_seed: f.integer("init_weights_seed", 0..=u64::MAX)?,
            dtype: f.string("dtype")?,
            unknown: std::mem::take(&mut f.map).into_iter().collect(),
        };
        if let Some(odd) = config.attn_matrices.iter().find(|m| !["q", "k", "v"].contains(&m.as_str())) {
            return Err(Error::key(f.path, "config.attn_matrices", quote(odd), "`q`, `k` and `v`"));
        }
        if config.scales && (config.r != 1 || config.use_dora) {
            let found = format!("`scale` with r = {} and use_dora {}", config.r, config.use_dora);
            return Err(Error::key(f.path, "config.composition_mode", found, "r = 1 without DoRA"));
        }
        Ok(config)
    }

    fn to_json(&self) -> Value {
        let fields = [
            ("architecture", json!("lora")),
            ("r", json!(self.r)),
            ("alpha", number(self.alpha)),
            ("dropout", json!(self.dropout)),
            ("attn_matrices", json!(self.attn_matrices)),
            ("selfattn_lora", json!(self.selfattn_lora)),
            ("intermediate_lora", json!(self.intermediate_lora)),
            ("output_lora", json!(self.output_lora)),
            ("composition_mode", json!(if self.scales { "scale" } else { "add" })),
            ("use_dora", json!(self.use_dora)),
            ("use_gating", json!(false)),
            ("leave_out", json!(self.leave_out)),
            ("init_weights", json!(self.init_weights)),
            ("init_weights_seed", json!(self.init_weights_seed)),
            ("dtype", json!(self.dtype)),
            ("vera_b", Value::Null),
            ("vera_d", Value::Null),
        ];
        object(&self.unknown, fields, &BTreeMap::new())
    }
}

/// Prompt tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct HubPrompt {
    pub prompt_length: usize,
    /// `random_uniform` or `from_string`.
    pub prompt_init: String,
    pub prompt_init_text: Option<String>,
    /// The prompt stands after the first token, not before it.
    pub after_bos: bool,
    pub init_weights_seed: Option<u64>,
    /// Keys that `adapters` 1.3 does not know, kept as they came.
    pub unknown: BTreeMap<String, Value>,
}

impl Default for HubPrompt {
    fn default() -> HubPrompt {
        HubPrompt {
            prompt_length: 10,
            prompt_init: "random_uniform".into(),
            prompt_init_text: None,
            after_bos: false,
            init_weights_seed: None,
            unknown: BTreeMap::new(),
        }
    }
}

const COMBINE: &[(&str, bool)] = &[("prefix", false), ("prefix_after_bos", true)];

impl HubPrompt {
    fn from_fields(mut f: Fields) -> Result<HubPrompt> {
        let d = HubPrompt::default();
        Ok(HubPrompt {
            prompt_length: f.count("prompt_length", limits::VIRTUAL_TOKENS)?.unwrap_or(d.prompt_length),
            prompt_init: f.string("prompt_init")?.unwrap_or(d.prompt_init),
            prompt_init_text: f.string("prompt_init_text")?,
            after_bos: f.choice("combine", COMBINE)?.unwrap_or(false),
            init_weights_seed: f.integer("init_weights_seed", 0..=u64::MAX)?,
            unknown: f.map.into_iter().collect(),
        })
    }

    fn to_json(&self) -> Value {
        let fields = [
            ("architecture", json!("prompt_tuning")),
            ("prompt_length", json!(self.prompt_length)),
            ("prompt_init", json!(self.prompt_init)),
            ("prompt_init_text", json!(self.prompt_init_text)),
            ("combine", json!(if self.after_bos { "prefix_after_bos" } else { "prefix" })),
            ("init_weights_seed", json!(self.init_weights_seed)),
        ];
        object(&self.unknown, fields, &BTreeMap::new())
    }
}

/// Prefix tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct HubPrefix {
    pub prefix_length: usize,
    /// The prefix itself is in the file, not an embedding and the two layers that make it.
    pub flat: bool,
    pub bottleneck_size: usize,
    pub non_linearity: String,
    pub dropout: f64,
    pub encoder_prefix: bool,
    pub cross_prefix: bool,
    pub leave_out: Vec<usize>,
    pub shared_gating: bool,
    pub init_weights_seed: Option<u64>,
    /// Keys that `adapters` 1.3 does not know, kept as they came.
    pub unknown: BTreeMap<String, Value>,
}

impl Default for HubPrefix {
    fn default() -> HubPrefix {
        HubPrefix {
            prefix_length: 30,
            flat: false,
            bottleneck_size: 512,
            non_linearity: "tanh".into(),
            dropout: 0.0,
            encoder_prefix: true,
            cross_prefix: true,
            leave_out: Vec::new(),
            shared_gating: true,
            init_weights_seed: None,
            unknown: BTreeMap::new(),
        }
    }
}

impl HubPrefix {
    fn from_fields(mut f: Fields) -> Result<HubPrefix> {
        let d = HubPrefix::default();
        refuse_gating(&mut f)?;
        Ok(HubPrefix {
            prefix_length: f.count("prefix_length", limits::VIRTUAL_TOKENS)?.unwrap_or(d.prefix_length),
            flat: f.flag("flat")?,
            bottleneck_size: f.count("bottleneck_size", limits::WIDTH)?.unwrap_or(d.bottleneck_size),
            non_linearity: f.string("non_linearity")?.unwrap_or(d.non_linearity),
            dropout: f.share("dropout")?.unwrap_or(d.dropout),
            encoder_prefix: f.flag_or("encoder_prefix", true)?,
            cross_prefix: f.flag_or("cross_prefix", true)?,
            leave_out: f.indices("leave_out")?.unwrap_or_default(),
            shared_gating: f.flag_or("shared_gating", true)?,
            init_weights_seed: f.integer("init_weights_seed", 0..=u64::MAX)?,
            unknown: f.map.into_iter().collect(),
        })
    }

    fn to_json(&self) -> Value {
        let fields = [
            ("architecture", json!("prefix_tuning")),
            ("prefix_length", json!(self.prefix_length)),
            ("flat", json!(self.flat)),
            ("bottleneck_size", json!(self.bottleneck_size)),
            ("non_linearity", json!(self.non_linearity)),
            ("dropout", json!(self.dropout)),
            ("encoder_prefix", json!(self.encoder_prefix)),
            ("cross_prefix", json!(self.cross_prefix)),
            ("leave_out", json!(self.leave_out)),
            ("use_gating", json!(false)),
            ("shared_gating", json!(self.shared_gating)),
            ("init_weights_seed", json!(self.init_weights_seed)),
        ];
        object(&self.unknown, fields, &BTreeMap::new())
    }
}

fn refuse_gating(f: &mut Fields) -> Result<()> {
    match f.flag("use_gating")? {
        false => Ok(()),
        true => {
            let what = "`config.use_gating` is true, which is not supported for this method";
            Err(Error::unsupported(f.path, what, "gated bottleneck adapters are"))
        }
    }
}

/// An object of unknown keys, these fields, and values that replace them.
fn object(
    unknown: &BTreeMap<String, Value>,
    fields: impl IntoIterator<Item = (&'static str, Value)>,
    instead: &BTreeMap<String, Value>,
) -> Value {
    let mut map: Map<String, Value> = unknown.clone().into_iter().collect();
    map.extend(fields.into_iter().map(|(key, value)| (key.to_string(), value)));
    map.extend(instead.clone());
    Value::Object(map)
}

/// The keys that `adapters` and `head_config.json` have around the method's configuration.
pub(super) fn envelope(f: &mut Fields) -> Result<HubConfig> {
    let name = f.string("name")?.ok_or_else(|| Error::MissingKey {
        path: f.path.to_path_buf(),
        key: "name".into(),
        nearest: None,
    })?;
    if name.is_empty() || name.contains('.') {
        return Err(Error::key(f.path, "name", quote(&name), "a name without dots"));
    }
    Ok(HubConfig {
        name,
        model_type: f.string("model_type")?.unwrap_or_default(),
        model_class: f.string("model_class")?.unwrap_or_default(),
        model_name: f.string("model_name")?,
        hidden_size: f.count("hidden_size", limits::WIDTH)?,
        version: f.string("version")?,
        method: HubMethod::Bottleneck(BnConfig::seq_bn()),
        unknown: BTreeMap::new(),
    })
}

impl HubConfig {
    /// A configuration that is written as `adapters` 1.3 would.
    pub fn new(
        name: &str,
        model_type: &str,
        model_class: &str,
        hidden_size: usize,
        method: HubMethod,
    ) -> HubConfig {
        HubConfig {
            name: name.into(),
            model_type: model_type.into(),
            model_class: model_class.into(),
            model_name: Some(String::new()),
            hidden_size: Some(hidden_size),
            version: Some(ADAPTERS_VERSION.into()),
            method,
            unknown: BTreeMap::new(),
        }
    }

    /// Reads the object of an `adapter_config.json`; `path` is for messages. The second value is notes worth showing.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<(HubConfig, Vec<String>)> {
        let mut f = Fields::new(path, object);
        let mut config = envelope(&mut f)?;
        let Some(Value::Object(inner)) = f.take("config") else {
            return f.bad("config", object.get("config").unwrap_or(&Value::Null), "an object");
        };
        let mut inner = Fields::new(path, &inner);
        let mut notes = Vec::new();
        // Task adapters of the first versions name invertible parts that they do not have.
        if f.map.get("type").is_some_and(|v| v == "text_task") {
            inner.map.retain(|key, _| !key.starts_with("inv_adapter") && key != "invertible_adapter");
        }
        let architecture = inner.string("architecture")?;
        config.method = match architecture.as_deref() {
            None | Some("bottleneck") => HubMethod::Bottleneck(BnConfig::from_fields(inner)?),
            Some("lora") => HubMethod::Lora(HubLora::from_fields(inner)?),
            Some("prompt_tuning") => HubMethod::Prompt(HubPrompt::from_fields(inner)?),
            Some("prefix_tuning") => HubMethod::Prefix(HubPrefix::from_fields(inner)?),
            Some(other) => {
                let what = format!("its architecture is {}", quote(other));
                let read = "bottleneck, lora (with DoRA and IA3), prompt_tuning, prefix_tuning";
                return Err(Error::unsupported(path, what, format!("those that are read are: {read}")));
            }
        };
        config.unknown = f.map.into_iter().collect();
        if let (HubMethod::Lora(lora), Some(version)) = (&mut config.method, &config.version)
            && is_before_1_1(version)
            && lora.alpha != lora.r as f64
        {
            notes.push(format!(
                "it is of {}, which scaled LoRA wrongly: it is used as it was trained, with alpha {} and not {}",
                quote(version),
                lora.r,
                lora.alpha
            ));
            lora.alpha = lora.r as f64;
            // What is written from it is right.
            config.version = Some(ADAPTERS_VERSION.into());
        }
        let odd: Vec<&str> = config.unknown_keys().collect();
        if !odd.is_empty() {
            notes.push(format!("it has keys that are not known and not used: {}", odd.join(", ")));
        }
        Ok((config, notes))
    }

    fn unknown_keys(&self) -> impl Iterator<Item = &str> {
        let inner = match &self.method {
            HubMethod::Bottleneck(c) => &c.unknown,
            HubMethod::Lora(c) => &c.unknown,
            HubMethod::Prompt(c) => &c.unknown,
            HubMethod::Prefix(c) => &c.unknown,
        };
        self.unknown.keys().chain(inner.keys()).map(String::as_str)
    }

    /// The object that `adapters` would write, every key with its default.
    pub fn to_json(&self) -> Value {
        let method = match &self.method {
            HubMethod::Bottleneck(c) => c.to_json(),
            HubMethod::Lora(c) => c.to_json(),
            HubMethod::Prompt(c) => c.to_json(),
            HubMethod::Prefix(c) => c.to_json(),
        };
        self.wrap(method)
    }

    pub(super) fn wrap(&self, config: Value) -> Value {
        let fields = [
            ("name", json!(self.name)),
            ("model_type", json!(self.model_type)),
            ("model_class", json!(self.model_class)),
            ("model_name", json!(self.model_name)),
            ("hidden_size", json!(self.hidden_size)),
            ("version", json!(self.version)),
            ("config", config),
        ];
        object(&self.unknown, fields, &BTreeMap::new())
    }
}

/// `adapters.0.2.1`: the library's first two versions under this name.
fn is_before_1_1(version: &str) -> bool {
    let Some(number) = version.strip_prefix("adapters.") else { return false };
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < (1, 1)
}
