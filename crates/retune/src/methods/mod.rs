//! The fine-tuning methods, one file each; a new one is a file and two adjacent lines here.

pub mod full;
pub mod lora;
pub mod targets;

use crate::error::{Error, Result};
use crate::models::Model;

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
}

/// All methods.
pub const METHODS: &[&Spec] = &[
    &lora::SPEC, //
    &full::SPEC,
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

/// What a method did to a model.
#[derive(Clone, Debug, Default)]
pub struct Attached {
    /// Module paths that carry the method.
    pub modules: Vec<String>,
    /// Trainable values.
    pub trainable: usize,
}

/// Counts what is trainable now.
pub(crate) fn trainable_count(model: &Model) -> usize {
    model.params.iter().filter(|(_, p)| p.trainable).map(|(_, p)| p.elements()).sum()
}
