//! The fine-tuning methods, one file each; a new one is a file and two adjacent lines here.

pub mod adapter;
pub mod bitfit;
pub mod delta;
mod folder;
mod foreign;
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

use retune_formats::adapter_hub::{HubAdapter, HubMethod};
use retune_formats::adapters::{AdapterKind, kind_of};
use retune_formats::delta::is_delta_folder;
use retune_formats::peft::{PeftAdapter, PeftConfig};
use retune_tensor::{ParamId, Params, Tensor, Weight};

use crate::convert::Base;
use crate::convert::form::Form;
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

/// How many of these weights are looked at in one pass over the examples.
pub(crate) fn examined_at_a_time(params: &Params, weights: &[ParamId]) -> usize {
    sparse::at_a_time(params, weights)
}

/// What a method did to a model.
#[derive(Default)]
pub struct Attached {
    /// Module paths that carry the method.
    pub modules: Vec<String>,
    /// Trainable values.
    pub trainable: usize,
    /// What people should know of the files that it was loaded from, in sentences.
    pub notes: Vec<String>,
    /// `None`: the whole model is what was trained.
    pub save: Option<Save>,
    /// To be called once before the first step, where the method needs the training data to be ready.
    pub prepare: Option<Prepare>,
    /// Bytes that the method holds beside parameters and passes.
    pub beside_bytes: u64,
    /// Weights of the base whose gradients [`Attached::prepare`] looks at, one example after the other: for the memory plan.
    pub examined: Vec<ParamId>,
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

/// Puts the adapters of some folders (or llama.cpp's files), added up with their weights, into one slot of a model. The base
/// is frozen; the adapter's own parameters are trainable, so that training may go on. What another tool wrote is turned into
/// PEFT's form in memory ([`crate::convert`]), where PEFT has one.
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
    let opened = sources.iter().map(|source| Opened::new(model, source)).collect::<Result<Vec<_>>>()?;
    let mut notes: Vec<String> = opened.iter().flat_map(Opened::notes).collect();
    let attached = match opened.first().map(|first| &first.files) {
        Some(Files::Peft(adapter)) if matches!(adapter.config(), PeftConfig::Shira(_)) => {
            sparse::load_shira(model, sources, slot)
        }
        _ if opened.iter().any(Opened::is_alone) => load_alone(model, &opened, slot),
        _ => lora::load(model, &opened, slot),
    }?;
    notes.extend(attached.notes.iter().cloned());
    Ok(Attached { notes, ..attached })
}

/// The files of an adapter.
pub(crate) enum Files {
    Peft(PeftAdapter),
    /// A bottleneck, prompt or prefix of AdapterHub: PEFT has none of them.
    Hub(HubAdapter),
}

/// An adapter that was opened.
pub(crate) struct Opened<'s> {
    pub source: &'s Source,
    pub files: Files,
    notes: Vec<String>,
}

impl<'s> Opened<'s> {
    fn new(model: &Model, source: &'s Source) -> Result<Opened<'s>> {
        let path = &source.path;
        let kind = kind_of(path)?;
        if kind == AdapterKind::Peft {
            return Ok(Opened { source, files: Files::Peft(PeftAdapter::open(path)?), notes: Vec::new() });
        }
        if kind == AdapterKind::AdapterHub {
            let adapter = HubAdapter::open(path)?;
            let HubMethod::Lora(lora) = &adapter.config().method else {
                let notes = adapter.notes().to_vec();
                return Ok(Opened { source, files: Files::Hub(adapter), notes });
            };
            foreign::check_hub_lora(model, &adapter, lora)?;
        }
        if kind == AdapterKind::Mlx {
            foreign::check_mlx(model, path)?;
        }
        let base = Base::open(model.files.path())?;
        let form = Form::read(path, kind, Some(&base))?;
        let files = Files::Peft(form.as_peft(path, base.transposed())?);
        Ok(Opened { source, files, notes: form.notes })
    }

    /// What people should know about the files.
    fn notes(&self) -> impl Iterator<Item = String> {
        let own: &[String] = if let Files::Peft(adapter) = &self.files { adapter.notes() } else { &[] };
        let named = |note: &String| format!("adapter {}: {note}", self.source.path.display());
        self.notes.iter().chain(own).map(named).collect::<Vec<_>>().into_iter()
    }

    /// Does its method not add up?
    fn is_alone(&self) -> bool {
        match &self.files {
            Files::Hub(_) => true,
            Files::Peft(adapter) => !matches!(adapter.config(), PeftConfig::Lora(_) | PeftConfig::Shira(_)),
        }
    }
}

/// Loads the only one of some adapters.
///
/// # Errors
/// Besides those of its method: if there are several, or its weight is not 1, since what such a method does is no sum.
fn load_alone(model: &mut Model, opened: &[Opened], slot: usize) -> Result<Attached> {
    let fail = |path: &Path, what: String| Err(Error::Adapter { path: path.to_path_buf(), what });
    let [Opened { source, files, .. }] = opened else {
        let what =
            "what its method does cannot be added to other adapters: load it alone, in a place of its own";
        let odd = opened.iter().find(|one| one.is_alone()).map_or(Path::new(""), |odd| &odd.source.path);
        return fail(odd, what.into());
    };
    if source.weight != 1.0 {
        let what = format!("its weight is {}, but what its method does is not linear", source.weight);
        return fail(&source.path, what);
    }
    match files {
        Files::Hub(adapter) => match &adapter.config().method {
            HubMethod::Prompt(_) => prompt::load_hub(model, adapter, slot),
            HubMethod::Prefix(_) => prefix::load_hub(model, adapter, slot),
            HubMethod::Bottleneck(_) | HubMethod::Lora(_) => adapter::load(model, adapter, slot),
        },
        Files::Peft(adapter) => match adapter.config() {
            PeftConfig::Ia3(_) => ia3::load(model, adapter, slot),
            PeftConfig::PrefixTuning(_) => prefix::load(model, adapter, slot),
            _ => prompt::load(model, adapter, slot),
        },
    }
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
