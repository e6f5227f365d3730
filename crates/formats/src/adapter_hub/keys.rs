//! The names of AdapterHub's tensors: site in the model, kind of container, the adapter's name, parameter.

use std::path::Path;

use super::config::{HubConfig, HubMethod};
use crate::error::{Error, Result, quote};

/// A parameter of an adapter at one site. h: width of the model, b: of the bottleneck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HubParam {
    /// (b, h).
    DownWeight,
    /// (b).
    DownBias,
    /// (h, b).
    UpWeight,
    /// (h).
    UpBias,
    /// (h), with `ln_before`.
    NormBeforeWeight,
    /// (h).
    NormBeforeBias,
    /// (h), with `ln_after`.
    NormAfterWeight,
    /// (h).
    NormAfterBias,
    /// (1, h), with `use_gating`.
    GateWeight,
    /// (1).
    GateBias,
    /// (1), or (h).
    Scaling,
    /// (r, in); n r rows where n matrices are one.
    LoraA,
    /// (out, r); for IA³ (out, 1).
    LoraB,
    /// (out, 1), with `use_dora`.
    DoraM,
    /// (prompt length, h).
    PromptEmbedding,
    /// (prefix length, h).
    PrefixEmbedding,
    /// (bottleneck, h).
    PrefixInWeight,
    /// (bottleneck).
    PrefixInBias,
    /// (2 L h, bottleneck).
    PrefixOutWeight,
    /// (2 L h).
    PrefixOutBias,
    /// (prefix length 2 L h), in the order token, layer, key or value, head, channel.
    PrefixFlat,
}

use HubParam::*;

const BOTTLENECK: &[(HubParam, &str)] = &[
    (DownWeight, "adapter_down.0.weight"),
    (DownBias, "adapter_down.0.bias"),
    (UpWeight, "adapter_up.weight"),
    (UpBias, "adapter_up.bias"),
    (NormBeforeWeight, "adapter_norm_before.weight"),
    (NormBeforeBias, "adapter_norm_before.bias"),
    (NormAfterWeight, "adapter_norm_after.weight"),
    (NormAfterBias, "adapter_norm_after.bias"),
    (GateWeight, "gate.weight"),
    (GateBias, "gate.bias"),
    (Scaling, "scaling"),
];
/// With `ln_before` the norm is the first of the modules in a row, and is in the file twice.
const AFTER_NORM: &[(HubParam, &str)] = &[
    (DownWeight, "adapter_down.1.weight"),
    (DownBias, "adapter_down.1.bias"),
    (NormBeforeWeight, "adapter_down.0.weight"),
    (NormBeforeBias, "adapter_down.0.bias"),
];
const LORA: &[(HubParam, &str)] = &[(LoraA, "lora_A"), (LoraB, "lora_B"), (DoraM, "m.weight")];
const PROMPT: &[(HubParam, &str)] = &[(PromptEmbedding, "prompt_embedding.weight")];
const PREFIX: &[(HubParam, &str)] = &[
    (PrefixEmbedding, "wte.weight"),
    (PrefixInWeight, "control_trans.0.weight"),
    (PrefixInBias, "control_trans.0.bias"),
    (PrefixOutWeight, "control_trans.2.weight"),
    (PrefixOutBias, "control_trans.2.bias"),
    (PrefixFlat, "control_trans"),
];

/// Older names of the container of bottlenecks.
const LEGACY: &[&str] = &[
    "attention_text_task_adapters",
    "attention_text_lang_adapters",
    "layer_text_task_adapters",
    "layer_text_lang_adapters",
];

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub site: String,
    pub param: HubParam,
    /// The key has one of the older names.
    pub legacy: bool,
    /// It is a second name of a tensor: the norm of a bottleneck, or the prefixes that every layer points to.
    pub copy: bool,
}

fn container(method: &HubMethod) -> &'static str {
    match method {
        HubMethod::Bottleneck(_) => "adapters",
        HubMethod::Lora(_) => "loras",
        HubMethod::Prompt(_) => "prompt_tunings",
        HubMethod::Prefix(_) => "prefix_tunings",
    }
}

fn params(method: &HubMethod) -> &'static [(HubParam, &'static str)] {
    match method {
        HubMethod::Bottleneck(_) => BOTTLENECK,
        HubMethod::Lora(_) => LORA,
        HubMethod::Prompt(_) => PROMPT,
        HubMethod::Prefix(_) => PREFIX,
    }
}

fn has_norm_before(method: &HubMethod) -> bool {
    matches!(method, HubMethod::Bottleneck(c) if c.ln_before)
}

impl HubConfig {
    /// The key on disk of a parameter at a site (`bert.encoder.layer.0.output`). The site of a prefix ends in its kind
    /// (`bert.prefix_tuning.self_prefix`), which in the key follows the adapter's name.
    pub fn key(&self, site: &str, param: HubParam) -> String {
        let shifted = AFTER_NORM[..2].iter().filter(|_| has_norm_before(&self.method));
        let suffix = shifted.chain(params(&self.method)).find(|(p, _)| *p == param).map_or("", |(_, s)| s);
        let (container, name) = (container(&self.method), &self.name);
        match (&self.method, site.rsplit_once('.')) {
            (HubMethod::Prefix(_), Some((site, kind))) => {
                format!("{site}.{container}.{name}.{kind}.{suffix}")
            }
            _ => format!("{site}.{container}.{name}.{suffix}"),
        }
    }

    /// Takes a key apart; `path` is for messages.
    pub(super) fn parse_key(&self, path: &Path, key: &str) -> Result<Parsed> {
        let bad = |what: &str| Error::invalid(path, super::FORMAT, format!("tensor {}: {what}", quote(key)));
        let wanted = container(&self.method);
        let named = format!(".{}.", self.name);
        // The container may stand anywhere and the name, too: `<site>.<container>.<name>.<parameter>`.
        let parts = key.match_indices(&named).find_map(|(at, _)| {
            let (site, kind) = key.get(..at)?.rsplit_once('.')?;
            let legacy = wanted == "adapters" && LEGACY.contains(&kind);
            (kind == wanted || legacy).then_some((site, legacy, key.get(at + named.len()..)?))
        });
        let Some((site, legacy, rest)) = parts else {
            return Err(bad(&format!("its name has no `.{wanted}{named}`")));
        };
        let (mut site, mut rest, mut copy) = (site.to_string(), rest, false);
        if let HubMethod::Prefix(_) = self.method {
            let (kind, inner) = rest.split_once('.').ok_or_else(|| bad("it names no kind of prefix"))?;
            copy = site.ends_with(".prefix_tuning.pool");
            site = format!("{site}.{kind}");
            rest = inner;
        }
        let shifted = has_norm_before(&self.method);
        let found =
            AFTER_NORM.iter().filter(|_| shifted).chain(params(&self.method)).find(|(_, s)| *s == rest);
        let Some((param, suffix)) = found else {
            return Err(bad(&format!("{} is no parameter of its method", quote(rest))));
        };
        copy |= matches!(param, NormBeforeWeight | NormBeforeBias) && suffix.starts_with("adapter_down");
        Ok(Parsed { site, param: *param, legacy, copy })
    }
}
