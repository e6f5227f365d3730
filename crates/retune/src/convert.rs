//! Adapters from one tool's files to another's, with the same effect: PEFT, AdapterHub, mlx-lm and llama.cpp.
//!
//! A LoRA is `s B A` for each module, an IA³ a vector ([`form`]); what a target says with one number for all modules is
//! folded into B. What a target cannot carry is refused by name.

mod base;
pub(crate) mod form;
mod heads;
mod hub;
mod prefixes;
mod scales;

use std::collections::BTreeMap;
use std::path::Path;

use retune_formats::adapters::{AdapterKind, kind_of};
use retune_formats::lora_tensors::{LoraModule, LoraTensors};
use retune_formats::peft::{self, PeftAdapter};
use retune_formats::peft_common::Common;
use retune_formats::{gguf_lora, mlx};

pub use base::Base;
pub(crate) use heads::own_tensors;
pub(crate) use hub::places as hub_places;

use crate::error::{Error, Result};
use form::{Form, rewritten};

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
    let name = base.map(|base| base.name.clone());
    if (kind, target) == (AdapterKind::Peft, Target::Peft) {
        return rewrite(from, name, to);
    }
    if let Some(done) = prefixes::convert(from, (kind, target), base, to)? {
        return Ok(done);
    }
    let mut form = Form::read(from, kind, base)?;
    match target {
        Target::Peft => {
            let common = Common { base_model_name_or_path: name, ..Common::default() };
            let transposed = base.is_some_and(Base::transposed);
            let (config, tensors) = form.to_peft(common, transposed)?;
            peft::write(to, &config, tensors, None)?;
        }
        Target::Mlx => mlx::write(to, form.lora(from, "mlx-lm")?, base.map(|b| b.layers), name.as_deref())?,
        Target::Gguf => to_gguf(from, form.lora(from, "llama.cpp")?, base, to)?,
        Target::AdapterHub => hub::write(from, &mut form, base, to)?,
    }
    Ok(Converted { from: kind, modules: form.modules(), notes: form.notes })
}

/// PEFT's files of any method under the names and in the format of today.
fn rewrite(from: &Path, base: Option<String>, to: &Path) -> Result<Converted> {
    let adapter = PeftAdapter::open(from)?;
    let mut config = adapter.config().clone();
    let named = &mut config.common_mut().base_model_name_or_path;
    *named = base.or(named.take());
    let modules: std::collections::BTreeSet<&str> =
        adapter.tensors().iter().map(|t| t.module.as_str()).collect();
    peft::write(to, &config, rewritten(&adapter).into_values(), None)?;
    Ok(Converted { from: AdapterKind::Peft, modules: modules.len(), notes: adapter.notes().to_vec() })
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
