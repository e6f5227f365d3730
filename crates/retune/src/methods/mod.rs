//! The fine-tuning methods, one file each; a new one is a file and two adjacent lines here.

pub mod adapter;
pub mod bitfit;
pub mod delta;
mod folder;
pub mod full;
pub mod head;
pub mod ia3;
pub mod lora;
pub mod matrix;
mod p_tuning;
pub mod partial;
pub mod prefix;
pub mod prompt;
pub(crate) mod replace;
pub(crate) mod saved;
pub mod sparse;
pub mod targets;
pub(crate) mod values;

use std::path::{Path, PathBuf};

use retune_formats::delta::is_delta_folder;
use retune_formats::peft::{self, Producer};
use retune_formats::{json, limits};
use retune_tensor::{ParamId, Params, Tensor, Weight};

use crate::error::{Error, Result};
use crate::models::{Model, OnModel};
use crate::nn::Site;
use crate::objective::Objective;
use crate::run_file::RunFile;

/// A method as help texts and tables show it.
pub struct Spec {
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Paper or origin.
    pub source: &'static str,
    /// The learning rate used when none is given.
    pub default_lr: f64,
    /// Whether the result is an adapter folder (else a whole model folder).
    pub adapter: bool,
    /// Puts the method on slot 0 of a model, ready to be trained.
    pub attach: fn(&mut Model, &RunFile) -> Result<Attached>,
}

/// All methods.
pub const METHODS: &[&Spec] = &[
    &lora::SPEC, //
    &ia3::SPEC,
    &prompt::SPEC,
    &prefix::SPEC,
    &adapter::SPEC,
    &full::SPEC,
    &partial::SPEC,
    &bitfit::SPEC,
    &sparse::SPEC,
    &head::SPEC,
];

/// The method of this name, or an error that names the nearest.
pub fn find(name: &str) -> Result<&'static Spec> {
    METHODS.iter().find(|m| m.name == name).copied().ok_or_else(|| {
        let nearest = targets::nearest(name, METHODS.iter().map(|m| m.name));
        let all: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
        Error::Method(format!(
            "no method is called \"{name}\"; did you mean \"{}\"? There are: {}",
            nearest.unwrap_or("lora"),
            all.join(", ")
        ))
    })
}

/// Writes what was trained into a folder; the text is its model card.
pub type Save = Box<dyn Fn(&Model, &Path, Option<&str>) -> Result<()> + Send + Sync>;

/// Makes a method ready with the training data: choosing what is trained by its gradients, say. The parameters are the same
/// afterwards, but for the method's own.
pub type Prepare = Box<dyn Fn(&mut Params, &dyn Objective) -> Result<()> + Send + Sync>;

/// What a method costs in memory while training, in f32 elements per row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Kept in all blocks together until the backward pass.
    pub kept_per_row: usize,
    /// On top while one block runs.
    pub transient_per_row: usize,
}

/// What a method did to a model.
#[derive(Default)]
pub struct Attached {
    /// Module paths that carry the method.
    pub modules: Vec<String>,
    /// Trainable values.
    pub trainable: usize,
    pub cost: Cost,
    /// `None`: the whole model is what was trained.
    pub save: Option<Save>,
    /// To be called once before the first step, where the method needs the training data to be ready.
    pub prepare: Option<Prepare>,
}

impl Attached {
    /// Writes what was trained into a folder; `readme` is its model card. Does nothing where the whole model was.
    ///
    /// # Errors
    /// If the folder cannot be written, or a value is not finite.
    pub fn write(&self, model: &Model, folder: &Path, readme: Option<&str>) -> Result<()> {
        self.save.as_ref().map_or(Ok(()), |save| save(model, folder, readme))
    }
}

/// An adapter folder and the weight it counts with.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub path: PathBuf,
    pub weight: f32,
}

/// Puts the adapters of some folders, added up with their weights, into one slot of a model. The base is frozen; the
/// adapter's own parameters are trainable, so that training may go on.
///
/// # Errors
/// If a folder is damaged, or is for another model, or of a method that cannot be added up. The model is unchanged then.
pub fn load(model: &mut Model, sources: &[Source], slot: usize) -> Result<Attached> {
    let deltas = sources.iter().filter(|source| is_delta_folder(&source.path)).count();
    if deltas > 0 {
        return match deltas == sources.len() {
            true => delta::load(model, sources, slot),
            false => {
                let what =
                    "adapters of different kinds cannot be added up: merge one of them into the base first";
                Err(Error::Method(what.into()))
            }
        };
    }
    let mut kinds = Vec::new();
    for source in sources {
        kinds.push(kind(&source.path)?);
    }
    if kinds.first() == Some(&Producer::Peft("SHIRA".into())) {
        return sparse::load_shira(model, sources, slot);
    }
    match kinds.iter().find_map(alone) {
        Some(load) => load(model, alone_in(sources)?, slot),
        None => lora::load(model, sources, slot),
    }
}

type LoadOne = fn(&mut Model, &Source, usize) -> Result<Attached>;

/// Who wrote an adapter folder, and what it is.
fn kind(folder: &Path) -> Result<Producer> {
    let path = folder.join(peft::CONFIG);
    if !path.is_file() {
        return Ok(Producer::Unknown);
    }
    Ok(peft::identify(&json::read(&path, limits::CONFIG_BYTES)?))
}

/// How adapters are loaded whose method does not add up.
fn alone(kind: &Producer) -> Option<LoadOne> {
    match kind {
        Producer::AdapterHub(_) => Some(adapter::load),
        Producer::Peft(peft_type) => match peft_type.as_str() {
            "IA3" => Some(ia3::load),
            "PROMPT_TUNING" | "P_TUNING" => Some(prompt::load),
            "PREFIX_TUNING" => Some(prefix::load),
            _ => None,
        },
        _ => None,
    }
}

/// The only one of some sources.
///
/// # Errors
/// If there are several, or its weight is not 1: what such a method does is no sum.
fn alone_in(sources: &[Source]) -> Result<&Source> {
    let (path, what) = match sources {
        [one] if one.weight == 1.0 => return Ok(one),
        [one] => (&one.path, format!("its weight is {}, but what its method does is not linear", one.weight)),
        _ => {
            let odd = sources.iter().find(|s| matches!(kind(&s.path), Ok(kind) if alone(&kind).is_some()));
            let path = odd.or(sources.first()).map(|s| &s.path);
            let what = "what its method does cannot be added to other adapters: load it alone, in a place of its own";
            return Err(Error::Adapter { path: path.cloned().unwrap_or_default(), what: what.into() });
        }
    };
    Err(Error::Adapter { path: path.clone(), what })
}

/// Remembers what was put on a model: once for each slot.
pub(crate) fn remember(model: &mut Model, slot: usize, method: &'static str, unmergeable: Option<&str>) {
    model.adapters.retain(|on| on.slot != slot);
    let unmergeable = unmergeable.map(String::from);
    model.adapters.push(OnModel { slot, method, unmergeable, changes_base: false });
}

/// [`remember`] of a method that can become part of the weights, and may have changed the base in memory.
pub(crate) fn remember_mergeable(model: &mut Model, slot: usize, method: &'static str, changes_base: bool) {
    remember(model, slot, method, None);
    model.adapters.iter_mut().filter(|on| on.slot == slot).for_each(|on| on.changes_base = changes_base);
}

/// The name of a parameter of an adapter in a slot, from its name in the adapter's files.
pub(crate) fn param_name(slot: usize, name: &str) -> String {
    if slot == 0 { name.to_string() } else { format!("{slot}:{name}") }
}

/// Adds a trainable parameter of an adapter, in place of one of that name.
pub(crate) fn put_param(params: &mut Params, name: &str, shape: &[usize], values: Tensor) -> ParamId {
    let Some(id) = params.find(name) else { return params.add_adapter(name, shape, values) };
    let param = params.get_mut(id);
    (param.shape, param.weight, param.trainable) = (shape.to_vec(), Weight::F32(values), true);
    id
}

/// Takes what is in a slot out of every site.
pub(crate) fn clear(model: &mut Model, slot: usize) {
    model.net.visit_sites(&mut |site| match site {
        Site::Linear(at) => drop(at.deltas.remove(slot)),
        Site::Embedding(at) => drop(at.deltas.remove(slot)),
        Site::Attention(at) => drop(at.prefix.remove(slot)),
        Site::SubLayer(at) => drop(at.after.remove(slot)),
        Site::Prompt(at) => drop(at.rows.remove(slot)),
    });
    model.adapters.retain(|on| on.slot != slot);
}

/// Counts what is trainable now.
pub(crate) fn trainable_count(model: &Model) -> usize {
    model.params.iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.elements()).sum()
}
