//! What can go wrong with tokenizers and templates: what, where, the value, the remedy.

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a tokenizer or a chat template.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model cannot be read.
    #[error(transparent)]
    File(#[from] retune_formats::Error),

    /// The tokenizer's own data are wrong or unsupported.
    #[error("{origin}: {problem}")]
    Tokenizer { origin: String, problem: String },

    /// A GGUF names a pre-tokenizer (`tokenizer.ggml.pre`) whose splitting rule is not known here.
    #[error(
        "{origin}: tokenizer.ggml.pre is {name:?}, whose splitting rule is not known; known are {known}{hint}. \
         The model's Hugging Face folder carries the rule in its tokenizer.json: use that"
    )]
    UnknownPre { origin: String, name: String, known: String, hint: String },

    /// One text is longer than the tokenizer takes at once.
    #[error("a text of {bytes} bytes is longer than the {limit} bytes that are tokenised at once; split it")]
    TextTooLong { bytes: usize, limit: usize },

    /// The text cannot be tokenised.
    #[error("the text cannot be tokenised: {problem}")]
    Encode { problem: String },

    /// These token ids cannot be turned into text.
    #[error("the tokens cannot be turned into text: {problem}")]
    Decode { problem: String },

    /// The chat template does not parse, does not finish, or refuses the messages.
    #[error("the chat template ({origin}): {problem}")]
    Template { origin: String, problem: String },
}
