//! LoRAs and IA³s as AdapterHub's files, and the places in a model that its LoRA knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use retune_formats::TensorOut;
use retune_formats::adapter_hub::{self, HubConfig, HubLora, HubMethod, HubParam};
use retune_formats::lora_tensors::{LoraModule, LoraTensors, is_fused};

use super::form::{Form, What};
use super::scales::Scales;
use super::{Base, needs_base, refused};
use crate::error::Result;

/// The ends of module paths and what AdapterHub calls the place: the names of `attn_matrices`, or a linear of the
/// feed-forward part. In Llama-like models its "intermediate" is `down_proj`.
const PLACES: &[(&str, &str)] = &[
    ("attention.self.query", "q"),
    ("attention.self.key", "k"),
    ("attention.self.value", "v"),
    ("attention.q_lin", "q"),
    ("attention.k_lin", "k"),
    ("attention.v_lin", "v"),
    ("self_attn.q_proj", "q"),
    ("self_attn.k_proj", "k"),
    ("self_attn.v_proj", "v"),
    ("attn.c_attn", "qkv"),
    ("intermediate.dense", "intermediate"),
    ("ffn.lin1", "intermediate"),
    ("mlp.down_proj", "intermediate"),
    ("mlp.c_fc", "intermediate"),
    ("ffn.lin2", "output"),
    ("mlp.up_proj", "output"),
    ("mlp.c_proj", "output"),
    ("output.dense", "output"),
];

/// Which of AdapterHub's places a module is.
fn place_of(module: &str) -> Option<&'static str> {
    // BERT's two `output.dense` differ in what stands before.
    let end = |end: &&(&str, &str)| module.ends_with(end.0) && !module.ends_with("attention.output.dense");
    PLACES.iter().find(end).map(|(_, place)| *place)
}

/// The modules among `linears` that a configuration adapts.
pub(crate) fn places<'m>(
    config: &HubLora,
    linears: impl Iterator<Item = &'m str>,
) -> impl Iterator<Item = &'m str> {
    let matrix = |name: &str| config.attn_matrices.iter().any(|m| m == name);
    let layer = |path: &str| path.split('.').find_map(|part| part.parse::<usize>().ok());
    linears.filter(move |path| {
        let wanted = match place_of(path) {
            Some("intermediate") => config.intermediate_lora,
            Some("output") => config.output_lora,
            Some("qkv") => config.selfattn_lora && ["q", "k", "v"].into_iter().any(matrix),
            Some(name) => config.selfattn_lora && matrix(name),
            None => false,
        };
        wanted && layer(path).is_none_or(|layer| !config.leave_out.contains(&layer))
    })
}

/// Writes a folder, the classifier beside it.
///
/// # Errors
/// If AdapterHub has no place for a module or no such method, or the folder cannot be written.
pub(super) fn write(from: &Path, form: &mut Form, base: Option<&Base>, to: &Path) -> Result<()> {
    let base = needs_base(from, base, "AdapterHub's configuration names the class of the base")?;
    let name = to.file_name().map_or("adapter".into(), |n| n.to_string_lossy().replace('.', "_"));
    let config = |lora: HubLora| HubConfig {
        name: name.clone(),
        model_type: base.model_type.clone(),
        model_class: base.hub_class(),
        model_name: Some(base.name.clone()),
        hidden_size: Some(base.hidden_size),
        version: Some(adapter_hub::ADAPTERS_VERSION.into()),
        method: HubMethod::Lora(lora),
        unknown: BTreeMap::new(),
    };
    let (config, tensors) = match &form.what {
        What::Lora(lora) => {
            let settings = lora_settings(from, lora, base, &mut form.notes)?;
            let (r, scale) = (settings.r, settings.alpha / settings.r as f64);
            let config = config(settings);
            (config.clone(), lora_tensors(lora, &config, r, scale))
        }
        What::Ia3(scales) => {
            let config = config(ia3_settings(from, scales, base)?);
            (config.clone(), ia3_tensors(scales, &config))
        }
    };
    adapter_hub::write(to, &config, tensors)?;
    match &form.head {
        Some(head) => head.write_hub(from, to, &config),
        None => Ok(()),
    }
}

/// Where the modules are, in the words of a configuration.
fn settings_for<'m>(
    from: &Path,
    modules: impl Iterator<Item = &'m String> + Clone,
    base: &Base,
) -> Result<HubLora> {
    let mut places = BTreeSet::new();
    for module in modules.clone() {
        places.insert(place_of(module).ok_or_else(|| {
            let known = "query, key, value and the two linears of the feed-forward part";
            refused(from, format!("AdapterHub's LoRA has no place for \"{module}\": it knows {known}"))
        })?);
    }
    let has = |place: &str| places.contains(place) || (place.len() == 1 && places.contains("qkv"));
    let attn_matrices: Vec<String> =
        ["q", "k", "v"].into_iter().filter(|p| has(p)).map(String::from).collect();
    Ok(HubLora {
        selfattn_lora: !attn_matrices.is_empty(),
        attn_matrices,
        intermediate_lora: has("intermediate"),
        output_lora: has("output"),
        leave_out: base.left_out(modules),
        ..HubLora::default()
    })
}

fn lora_settings(from: &Path, lora: &LoraTensors, base: &Base, notes: &mut Vec<String>) -> Result<HubLora> {
    if lora.modules.values().any(|m| m.magnitude.is_some()) {
        let what = "it is a DoRA; AdapterHub's scales biases too, so that none of them does the same";
        return Err(refused(from, what.into()));
    }
    let r = lora.modules.values().map(|m| m.r).max().unwrap_or(8);
    let scale = lora.modules.values().map(|m| m.scale).next().unwrap_or(1.0);
    if lora.modules.values().any(|m| m.r != r) {
        notes.push(format!("ranks differ: the smaller ones were filled up with zeros to {r}"));
    }
    if lora.modules.values().any(|m| m.scale != scale) {
        notes.push(format!("scales differ: they were folded into B, so that alpha / r is {scale} for all"));
    }
    let settings = settings_for(from, lora.modules.keys(), base)?;
    Ok(HubLora { r, alpha: scale * r as f64, ..settings })
}

fn lora_tensors(lora: &LoraTensors, config: &HubConfig, r: usize, scale: f64) -> Vec<TensorOut<'static>> {
    let of_module = |(site, module): (&String, &LoraModule)| {
        let m = module.padded(r);
        let m = if is_fused(site) { m.fused() } else { m };
        let (a, b) = (config.key(site, HubParam::LoraA), config.key(site, HubParam::LoraB));
        let b = TensorOut::f32(b, &[m.outputs, r], m.b_for(scale));
        [TensorOut::f32(a, &[m.a.len() / m.inputs.max(1), m.inputs], m.a), b]
    };
    lora.modules.iter().flat_map(of_module).collect()
}

fn ia3_settings(from: &Path, scales: &Scales, base: &Base) -> Result<HubLora> {
    if let Some((module, _)) = scales.modules.iter().find(|(_, scale)| scale.feedforward) {
        let what = format!("{module} scales its input; AdapterHub's IA3 scales outputs alone");
        return Err(refused(from, what));
    }
    let HubLora { attn_matrices, selfattn_lora, intermediate_lora, output_lora, leave_out, .. } =
        settings_for(from, scales.modules.keys(), base)?;
    let ia3 = HubLora::ia3();
    Ok(HubLora { attn_matrices, selfattn_lora, intermediate_lora, output_lora, leave_out, ..ia3 })
}

fn ia3_tensors(scales: &Scales, config: &HubConfig) -> Vec<TensorOut<'static>> {
    let tensor = |(site, scale): (&String, &super::scales::Scale)| {
        TensorOut::f32(config.key(site, HubParam::LoraB), &[scale.values.len(), 1], scale.values.clone())
    };
    scales.modules.iter().map(tensor).collect()
}
