//! Do the tensors of an AdapterHub folder fit its configuration? Every site whole, every layer like the others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::config::{BnConfig, HubConfig, HubLora, HubMethod, Scaling};
use super::keys::HubParam::{self, *};
use crate::error::{Error, Result, quote};
use crate::{Dtype, limits};

/// What is known of a tensor without its values.
pub(super) struct Part<'a> {
    pub site: &'a str,
    pub param: HubParam,
    pub dtype: Dtype,
    pub shape: &'a [usize],
}

type Shapes<'a> = BTreeMap<HubParam, &'a [usize]>;

fn invalid(path: &Path, what: String) -> Error {
    Error::invalid(path, super::FORMAT, what)
}

/// Checks all tensors against the configuration; `path` is the file, for messages.
pub(super) fn check<'a>(
    path: &Path,
    config: &HubConfig,
    parts: impl Iterator<Item = Part<'a>>,
) -> Result<()> {
    let mut sites: BTreeMap<&str, Shapes> = BTreeMap::new();
    for (count, part) in parts.enumerate() {
        if count == limits::ADAPTER_TENSORS {
            let limit = limits::ADAPTER_TENSORS as u64;
            return Err(Error::limit(path, "the number of tensors", limit + 1, limit));
        }
        let site = quote(part.site);
        if !part.dtype.is_float() {
            let what = format!("{site} has {:?} of {}, wanted a floating-point type", part.param, part.dtype);
            return Err(invalid(path, what));
        }
        if sites.entry(part.site).or_default().insert(part.param, part.shape).is_some() {
            return Err(invalid(path, format!("{site} has two tensors for {:?}", part.param)));
        }
    }
    if sites.is_empty() {
        return Err(invalid(path, format!("it holds no tensors of adapter {}", quote(&config.name))));
    }
    for (site, shapes) in &sites {
        let due = match &config.method {
            HubMethod::Bottleneck(bn) => bottleneck(path, config, bn, site, shapes)?,
            HubMethod::Lora(lora) => low_rank(path, lora, site, shapes)?,
            HubMethod::Prompt(prompt) => {
                let width = config.hidden_size.or_else(|| shapes.get(&PromptEmbedding)?.get(1).copied());
                BTreeMap::from([(PromptEmbedding, vec![prompt.prompt_length, width.unwrap_or(0)])])
            }
            HubMethod::Prefix(prefix) if prefix.flat => {
                let len = shapes.get(&PrefixFlat).and_then(|s| s.first()).copied().unwrap_or(0);
                // A layer's keys may be narrower than its rows.
                let unit = 2 * prefix.prefix_length;
                if len == 0 || !len.is_multiple_of(unit) {
                    let what =
                        format!("{} has a prefix of {len} values, not a multiple of {unit}", quote(site));
                    return Err(invalid(path, what));
                }
                BTreeMap::from([(PrefixFlat, vec![len])])
            }
            HubMethod::Prefix(prefix) => {
                let out = shapes.get(&PrefixOutBias).and_then(|s| s.first()).copied().unwrap_or(0);
                let embedding = shapes.get(&PrefixEmbedding).and_then(|s| s.get(1)).copied();
                let (n, b) = (prefix.prefix_length, prefix.bottleneck_size);
                let h = config.hidden_size.or(embedding).unwrap_or(0);
                BTreeMap::from([
                    (PrefixEmbedding, vec![n, h]),
                    (PrefixInWeight, vec![b, h]),
                    (PrefixInBias, vec![b]),
                    (PrefixOutWeight, vec![out, b]),
                    (PrefixOutBias, vec![out]),
                ])
            }
        };
        compare(path, site, shapes, &due)?;
    }
    match &config.method {
        HubMethod::Bottleneck(c) => check_layers(path, &sites, &c.leave_out),
        HubMethod::Lora(c) => check_layers(path, &sites, &c.leave_out),
        HubMethod::Prompt(_) | HubMethod::Prefix(_) => Ok(()),
    }
}

/// Exactly these parameters, in these shapes.
fn compare(path: &Path, site: &str, found: &Shapes, due: &BTreeMap<HubParam, Vec<usize>>) -> Result<()> {
    let site = quote(site);
    for (param, shape) in due {
        match found.get(param) {
            Some(found) if *found == shape => {}
            Some(found) => {
                return Err(invalid(
                    path,
                    format!("{site} has {param:?} of shape {found:?}, {shape:?} was due"),
                ));
            }
            None => return Err(invalid(path, format!("{site} lacks {param:?} of shape {shape:?}"))),
        }
    }
    match found.keys().find(|param| !due.contains_key(param)) {
        Some(odd) => {
            Err(invalid(path, format!("{site} has {odd:?}, which its configuration does not ask for")))
        }
        None => Ok(()),
    }
}

/// The first number in a path.
fn layer_of(site: &str) -> Option<(&str, usize, &str)> {
    let mut at = 0;
    for part in site.split('.') {
        if let Ok(layer) = part.parse::<usize>() {
            return Some((&site[..at], layer, &site[at + part.len()..]));
        }
        at += part.len() + 1;
    }
    None
}

fn bottleneck(
    path: &Path,
    config: &HubConfig,
    bn: &BnConfig,
    site: &str,
    shapes: &Shapes,
) -> Result<BTreeMap<HubParam, Vec<usize>>> {
    let attention = site.contains("attention");
    let asked = if attention { bn.mh_adapter || bn.cross_adapter } else { bn.output_adapter };
    if !asked {
        let flag = if attention { "mh_adapter" } else { "output_adapter" };
        return Err(invalid(path, format!("{} has an adapter, but {flag} is false", quote(site))));
    }
    let up = shapes.get(&UpBias).and_then(|s| s.first()).copied().unwrap_or(0);
    let h = config.hidden_size.unwrap_or(up);
    let layer = layer_of(site).map_or(0, |(_, layer, _)| layer);
    let b = bn.bottleneck(h, layer).ok_or_else(|| {
        Error::key(path, "config.reduction_factor", format!("without layer {layer}"), "it or `default`")
    })?;
    let mut due = BTreeMap::from([
        (DownWeight, vec![b, h]),
        (DownBias, vec![b]),
        (UpWeight, vec![h, b]),
        (UpBias, vec![h]),
    ]);
    if bn.ln_before {
        due.extend([(NormBeforeWeight, vec![h]), (NormBeforeBias, vec![h])]);
    }
    if bn.ln_after {
        due.extend([(NormAfterWeight, vec![h]), (NormAfterBias, vec![h])]);
    }
    if bn.use_gating {
        due.extend([(GateWeight, vec![1, h]), (GateBias, vec![1])]);
    }
    match bn.scaling {
        Scaling::Fixed(_) => {}
        Scaling::Learned => drop(due.insert(HubParam::Scaling, vec![1])),
        Scaling::Channel => drop(due.insert(HubParam::Scaling, vec![h])),
    }
    Ok(due)
}

fn low_rank(
    path: &Path,
    lora: &HubLora,
    site: &str,
    shapes: &Shapes,
) -> Result<BTreeMap<HubParam, Vec<usize>>> {
    let first = |param| shapes.get(&param).and_then(|s| s.first()).copied().unwrap_or(0);
    let out = first(LoraB);
    let mut due = BTreeMap::from([(LoraB, vec![out, lora.r])]);
    if lora.scales {
        return Ok(due);
    }
    // Where q, k and v are one matrix, the factors of those that are adapted stand one above the other.
    let rows = first(LoraA);
    let many = lora.attn_matrices.len().max(1);
    if rows != lora.r && rows != lora.r * many {
        let what =
            format!("{} has LoraA of {rows} rows, {} or {} were due", quote(site), lora.r, lora.r * many);
        return Err(invalid(path, what));
    }
    let inp = shapes.get(&LoraA).and_then(|s| s.get(1)).copied().unwrap_or(0);
    due.insert(LoraA, vec![rows, inp]);
    if lora.use_dora {
        due.insert(DoraM, vec![out, 1]);
    }
    Ok(due)
}

/// Under one prefix (`bert.encoder.layer.`) every layer has the same sites, and none is missing in between but those that are left out.
///
/// Behind an encoder the numbers of `leave_out` go on in the decoder, from a number that the file alone does not tell: there they are not compared.
fn check_layers(path: &Path, sites: &BTreeMap<&str, Shapes>, left_out: &[usize]) -> Result<()> {
    let mut stacks: BTreeMap<&str, BTreeMap<usize, BTreeSet<&str>>> = BTreeMap::new();
    for (front, layer, rest) in sites.keys().filter_map(|site| layer_of(site)) {
        stacks.entry(front).or_default().entry(layer).or_default().insert(rest);
    }
    for (front, layers) in stacks {
        let Some((last, usual)) = layers.iter().next_back() else { continue };
        if *last >= limits::LAYERS {
            return Err(Error::limit(path, "the number of a layer", *last as u64, limits::LAYERS as u64 - 1));
        }
        let counted = !front.ends_with("decoder.layers.");
        for layer in 0..=*last {
            let left_out = match counted {
                true => left_out.contains(&layer),
                false => !left_out.is_empty() && !layers.contains_key(&layer),
            };
            match (layers.get(&layer), left_out) {
                (None, true) => {}
                (Some(found), false) if found == usual => {}
                (Some(_), true) => {
                    let what =
                        format!("{} has an adapter, but is in leave_out", quote(&format!("{front}{layer}")));
                    return Err(invalid(path, what));
                }
                (found, _) => {
                    let none = BTreeSet::new();
                    let odd =
                        found.unwrap_or(&none).symmetric_difference(usual).next().copied().unwrap_or("");
                    let (one, other) =
                        (quote(&format!("{front}{layer}{odd}")), quote(&format!("{front}{last}{odd}")));
                    return Err(invalid(path, format!("only one of {one} and {other} has an adapter")));
                }
            }
        }
    }
    Ok(())
}
