//! What goes with what: method, architecture and storage of the base, with the reason for each refusal.

use super::{METHODS, Spec};
use crate::models::{self, MODELS};

/// How a base's weights are held while a method works on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    F32,
    /// bf16 or f16.
    Half,
    /// A GGUF's blocks, or linears in nf4, fp4, int4 or int8.
    Quantised,
}

impl Held {
    /// All of them, with their names in tables.
    pub const ALL: [(Held, &str); 3] =
        [(Held::F32, "f32"), (Held::Half, "bf16"), (Held::Quantised, "quantised")];
}

/// Whether a method can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    Yes,
    /// Under this condition.
    If(&'static str),
    /// It is refused, for this reason.
    No(&'static str),
}

const MASTERS: &str = "it changes the weights themselves, and an optimiser's steps are lost in anything coarser than f32: \
                       use --storage f32";
const BIASES: &str =
    "Llama, Mistral and Qwen3 have no bias terms: let zeros be added with --add-biases (Qwen2 has some)";

const SOUND: &str = "what a Whisper model reads is sound, and its transcript begins with tokens that must come first: use prefix";

/// Whether a method can be used on an architecture whose weights are held so.
pub fn fit(method: &Spec, model: &models::Spec, held: Held) -> Fit {
    match (method.name, model.name, held) {
        ("full" | "partial", _, Held::Half | Held::Quantised) => Fit::No(MASTERS),
        ("prompt", "whisper", _) => Fit::No(SOUND),
        ("bitfit", "llama", _) => Fit::If(BIASES),
        _ => Fit::Yes,
    }
}

/// Every method with every architecture and storage.
pub fn all() -> impl Iterator<Item = (&'static Spec, &'static models::Spec, Held, Fit)> {
    let pairs = METHODS.iter().flat_map(|method| MODELS.iter().map(move |model| (*method, *model)));
    pairs.flat_map(|(method, model)| {
        Held::ALL.map(|(held, _)| (method, model, held, fit(method, model, held)))
    })
}
