//! Adapters from one tool's files to another's, with the same effect: PEFT, AdapterHub, mlx-lm and llama.cpp.
//!
//! A LoRA is `s B A` for each module ([`LoraTensors`]); what a target says with one number for all modules is folded into
//! B. What a target cannot carry is refused by name.

mod base;

use std::collections::BTreeMap;
use std::path::Path;

use retune_formats::adapter_hub::{self, HubAdapter, HubConfig, HubLora, HubMethod, HubParam};
use retune_formats::adapters::{AdapterKind, kind_of};
use retune_formats::lora_tensors::{LoraModule, LoraTensors};
use retune_formats::peft::{self, PeftAdapter, PeftConfig};
use retune_formats::peft_common::Common;
use retune_formats::{TensorOut, gguf, gguf_lora, mlx};

pub use base::Base;

use crate::error::{Error, Result};

/// Whose files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Peft,
    AdapterHub,
    Mlx,
    Gguf,
}

/// Names as the command line has them.
pub const TARGETS: &[(&str, Target)] = &[
    ("peft", Target::Peft),
    ("adapterhub", Target::AdapterHub),
    ("mlx", Target::Mlx),
    ("gguf", Target::Gguf),
];

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    pub from: AdapterKind,
    pub modules: usize,
    /// What people should know, in sentences.
    pub notes: Vec<String>,
}

fn refused(path: &Path, what: String) -> Error {
    Error::Adapter { path: path.to_path_buf(), what }
}

/// Writes the adapter at `from` as `target`'s files to `to` (a folder; for GGUF a file). `base` is the model that it is
/// for: GGUF needs it for its names and the order of its rows, AdapterHub for its class.
///
/// # Errors
/// If the adapter is damaged, is of a kind that the target cannot carry, or the base is needed and missing.
pub fn convert(from: &Path, target: Target, base: Option<&Base>, to: &Path) -> Result<Converted> {
    let kind = kind_of(from)?;
    let (lora, mut notes) = lora_of(from, kind, base)?;
    match target {
        Target::Peft => {
            let name = base.map(|b| b.name.clone());
            let common = Common { base_model_name_or_path: name, ..Common::default() };
            let (config, tensors) = lora.to_peft(common)?;
            peft::write(to, &PeftConfig::Lora(config), tensors, None)?;
        }
        Target::Mlx => mlx::write(to, &lora, base.map(|b| b.layers), base.map(|b| b.name.as_str()))?,
        Target::Gguf => to_gguf(from, &lora, base, to)?,
        Target::AdapterHub => to_hub(from, &lora, base, to, &mut notes)?,
    }
    Ok(Converted { from: kind, modules: lora.modules.len(), notes })
}

/// The factors of any tool's LoRA, by Hugging Face module paths.
fn lora_of(from: &Path, kind: AdapterKind, base: Option<&Base>) -> Result<(LoraTensors, Vec<String>)> {
    Ok(match kind {
        AdapterKind::Peft => {
            let adapter = PeftAdapter::open(from)?;
            (LoraTensors::from_peft(&adapter)?, adapter.notes().to_vec())
        }
        AdapterKind::AdapterHub => {
            let adapter = HubAdapter::open(from)?;
            (LoraTensors::from_hub(&adapter)?, adapter.notes().to_vec())
        }
        AdapterKind::Mlx => (mlx::read(from)?, Vec::new()),
        AdapterKind::GgufLora => {
            let read = gguf_lora::read(&gguf::File::open(from)?)?;
            (from_gguf(from, &read, base)?, read.notes)
        }
        AdapterKind::HubHead => {
            return Err(refused(from, "it is a head alone: no other tool has files for that".into()));
        }
        AdapterKind::Delta => {
            let what = "it is a delta, which holds new values of the base's own weights: no other tool has files for that; \
                        `retune merge` writes it as a whole model";
            return Err(refused(from, what.into()));
        }
    })
}

fn needs_base<'b>(from: &Path, base: Option<&'b Base>, why: &str) -> Result<&'b Base> {
    base.ok_or_else(|| refused(from, format!("{why}: name the model that it is for with --model")))
}

/// The same module under another name, its rows in another order.
type Renamed = (String, LoraModule);

fn renamed(
    from: &Path,
    lora: &LoraTensors,
    rename: impl Fn(&str, &LoraModule) -> Option<Renamed>,
    tool: &str,
) -> Result<LoraTensors> {
    let mut modules = BTreeMap::new();
    for (name, module) in &lora.modules {
        let (new, module) = rename(name, module)
            .ok_or_else(|| refused(from, format!("{tool} has no place for the module \"{name}\"")))?;
        modules.insert(new, module);
    }
    Ok(LoraTensors { path: lora.path.clone(), modules })
}

fn to_gguf(from: &Path, lora: &LoraTensors, base: Option<&Base>, to: &Path) -> Result<()> {
    let base = needs_base(from, base, "the names in a GGUF file are those of the base's architecture")?;
    let architecture = base.gguf_architecture().ok_or_else(|| {
        refused(from, format!("LoRAs for a {} model are not written for llama.cpp", base.model_type))
    })?;
    let rows = |name: &str, module: &LoraModule| match base.interleaves(name) {
        true => gguf_lora::to_interleaved(module, base.head_dim),
        false => Some(module.clone()),
    };
    let lora = renamed(
        from,
        lora,
        |name, module| Some((gguf_lora::llama_to_gguf(name)?, rows(name, module)?)),
        "a GGUF file",
    )?;
    Ok(gguf_lora::write(to, architecture, &lora)?)
}

fn from_gguf(from: &Path, read: &gguf_lora::GgufLora, base: Option<&Base>) -> Result<LoraTensors> {
    let why = "the order of rows in a GGUF file depends on the base";
    let base = needs_base(from, base, why)?;
    if base.gguf_architecture() != Some(read.architecture.as_str()) {
        let what =
            format!("it is for the architecture {}, the model is {}", read.architecture, base.model_type);
        return Err(refused(from, what));
    }
    let rename = |name: &str, module: &LoraModule| {
        let new = gguf_lora::llama_from_gguf(name)?;
        let module = match base.interleaves(&new) {
            true => gguf_lora::from_interleaved(module, base.head_dim)?,
            false => module.clone(),
        };
        Some((new, module))
    };
    renamed(from, &read.lora, rename, "a model of this architecture")
}

/// The places that AdapterHub's LoRA knows, by the ends of module paths.
const HUB_PLACES: &[(&str, &str)] = &[
    ("attention.self.query", "q"),
    ("attention.self.key", "k"),
    ("attention.self.value", "v"),
    ("attention.q_lin", "q"),
    ("attention.k_lin", "k"),
    ("attention.v_lin", "v"),
    ("self_attn.q_proj", "q"),
    ("self_attn.k_proj", "k"),
    ("self_attn.v_proj", "v"),
    ("intermediate.dense", "intermediate"),
    ("ffn.lin1", "intermediate"),
    ("mlp.up_proj", "intermediate"),
    ("ffn.lin2", "output"),
    ("mlp.down_proj", "output"),
    ("output.dense", "output"),
];

/// Which of AdapterHub's places a module is.
fn hub_place(module: &str) -> Option<&'static str> {
    // BERT's two `output.dense` differ in what stands before.
    let end = |end: &&(&str, &str)| module.ends_with(end.0) && !module.ends_with("attention.output.dense");
    HUB_PLACES.iter().find(end).map(|(_, place)| *place)
}

fn to_hub(
    from: &Path,
    lora: &LoraTensors,
    base: Option<&Base>,
    to: &Path,
    notes: &mut Vec<String>,
) -> Result<()> {
    let base = needs_base(from, base, "AdapterHub's configuration names the class of the base")?;
    if lora.modules.values().any(|m| m.magnitude.is_some()) {
        return Err(refused(
            from,
            "it is a DoRA, whose magnitudes are not carried over to AdapterHub".into(),
        ));
    }
    let mut places = std::collections::BTreeSet::new();
    for module in lora.modules.keys() {
        let place = hub_place(module);
        places.insert(place.ok_or_else(|| {
            let known = "query, key, value and the two linears of the feed-forward part";
            refused(from, format!("AdapterHub's LoRA has no place for \"{module}\": it knows {known}"))
        })?);
    }
    let r = lora.modules.values().map(|m| m.r).max().unwrap_or(8);
    let scale = lora.modules.values().map(|m| m.scale).next().unwrap_or(1.0);
    if lora.modules.values().any(|m| m.r != r) {
        notes.push(format!("ranks differ: the smaller ones were filled up with zeros to {r}"));
    }
    if lora.modules.values().any(|m| m.scale != scale) {
        notes.push(format!("scales differ: they were folded into B, so that alpha / r is {scale} for all"));
    }
    let name = to.file_name().map_or("adapter".into(), |n| n.to_string_lossy().replace('.', "_"));
    let config = HubConfig {
        name: name.clone(),
        model_type: base.model_type.clone(),
        model_class: base.hub_class(),
        model_name: Some(base.name.clone()),
        hidden_size: Some(base.hidden_size),
        version: Some(adapter_hub::ADAPTERS_VERSION.into()),
        method: HubMethod::Lora(HubLora {
            r,
            alpha: scale * r as f64,
            attn_matrices: ["q", "k", "v"]
                .iter()
                .filter(|p| places.contains(*p))
                .map(|p| p.to_string())
                .collect(),
            selfattn_lora: ["q", "k", "v"].iter().any(|p| places.contains(p)),
            intermediate_lora: places.contains("intermediate"),
            output_lora: places.contains("output"),
            leave_out: base.left_out(lora.modules.keys()),
            ..HubLora::default()
        }),
        unknown: BTreeMap::new(),
    };
    let modules: Vec<(&String, LoraModule)> = lora.modules.iter().map(|(n, m)| (n, m.padded(r))).collect();
    let tensors = modules.iter().flat_map(|(site, m)| {
        let key = |param| config.key(site, param);
        [
            TensorOut::f32(key(HubParam::LoraA), &[r, m.inputs], m.a.clone()),
            TensorOut::f32(key(HubParam::LoraB), &[m.outputs, r], m.b_for(scale)),
        ]
    });
    Ok(adapter_hub::write(to, &config, tensors)?)
}
