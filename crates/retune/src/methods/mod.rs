//! The fine-tuning methods, one file each; a new one is a file and two adjacent lines here.

pub mod bitfit;
pub mod delta;
mod folder;
pub mod full;
pub mod head;
pub mod lora;
pub mod partial;
pub(crate) mod replace;
pub mod sparse;
pub mod targets;

use std::path::{Path, PathBuf};

use retune_formats::delta::is_delta_folder;
use retune_formats::{json, limits, peft};
use retune_tensor::Params;

use crate::error::{Error, Result};
use crate::models::{Model, OnModel};
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
    match deltas {
        0 if sources.first().is_some_and(|source| is_peft(&source.path, "SHIRA")) => {
            sparse::load_shira(model, sources, slot)
        }
        0 => lora::load(model, sources, slot),
        n if n == sources.len() => delta::load(model, sources, slot),
        _ => {
            let what =
                "adapters of different kinds cannot be added up: merge one of them into the base first";
            Err(Error::Method(what.into()))
        }
    }
}

/// Is there a PEFT adapter of this `peft_type`? What is wrong with it is told when it is opened.
fn is_peft(folder: &Path, peft_type: &str) -> bool {
    let path = folder.join(peft::CONFIG);
    let config = json::read(&path, limits::CONFIG_BYTES).ok();
    config.is_some_and(|config| peft::identify(&config) == peft::Producer::Peft(peft_type.into()))
}

/// Remembers what was put on a model: once for each slot.
pub(crate) fn remember(model: &mut Model, slot: usize, method: &'static str, unmergeable: Option<&str>) {
    model.adapters.retain(|on| on.slot != slot);
    let unmergeable = unmergeable.map(String::from);
    model.adapters.push(OnModel { slot, method, unmergeable, changes_base: false });
}

/// The name of a parameter of an adapter in a slot, from its name in the adapter's files.
pub(crate) fn param_name(slot: usize, name: &str) -> String {
    if slot == 0 { name.to_string() } else { format!("{slot}:{name}") }
}

/// Counts what is trainable now.
pub(crate) fn trainable_count(model: &Model) -> usize {
    model.params.iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.elements()).sum()
}
