//! Layers: parameters with their sites. A layer knows no method; a method puts its own code into the sites.

pub mod attention;
pub mod detector;
pub mod detector_head;
pub mod embedding;
pub mod head;
pub mod kv_cache;
pub mod linear;
pub mod norm;
pub mod pass;
pub mod prompt;
pub mod slots;
pub mod sub_layer;

pub use attention::{Attention, AttentionPrefix};
pub use detector_head::{DetectorHead, Scale};
pub use embedding::{Embedding, EmbeddingDelta};
pub use head::{Classifier, Head, Hidden, LanguageModelHead, Pooling, Problem};
pub use kv_cache::{Caches, KvCache};
pub use linear::{Linear, LinearDelta, Sliding, linear_many};
pub use norm::{LayerNorm, RmsNorm};
pub use pass::{Active, Dropouts, Pass, Rows, Shared};
pub use prompt::{Prompt, PromptRows};
pub use slots::Slots;
pub use sub_layer::{Meeting, SubLayer, SubLayerDelta, SubLayerKind};

/// A place in a model where a method may act, with its module path.
pub enum Site<'a> {
    /// A weight's product, which a method may add to or scale.
    Linear(&'a mut Linear),
    /// A token table.
    Embedding(&'a mut Embedding),
    /// Keys and values that a method may put others in front of.
    Attention(&'a mut Attention),
    /// Where a sub-layer's output meets the residual stream.
    SubLayer(&'a mut SubLayer),
    /// The rows in front of the embedded tokens.
    Prompt(&'a mut Prompt),
}

impl Site<'_> {
    /// Takes away what methods put into other slots than these.
    pub fn keep_only(self, slots: &[usize]) {
        match self {
            Site::Linear(site) => site.deltas.keep_only(slots),
            Site::Embedding(site) => site.deltas.keep_only(slots),
            Site::Attention(site) => site.prefix.keep_only(slots),
            Site::SubLayer(site) => site.after.keep_only(slots),
            Site::Prompt(site) => site.rows.keep_only(slots),
        }
    }
}
