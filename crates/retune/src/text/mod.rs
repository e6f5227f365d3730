//! Text in and out of a model: tokens, chat templates, streamed output.
//!
//! Tokenizer files and templates are hostile by assumption: everything here returns errors, within stated limits.

mod error;
mod export;
mod frame;
mod gguf_vocab;
mod hugging_face;
mod load;
mod pieces;
mod pretokenizers;
mod sentencepiece;
mod stream;
mod template;
mod to_gguf;
mod tokenizer;
mod train_bpe;

#[cfg(test)]
pub(crate) mod tests;

pub use error::{Error, Result};
pub use frame::Framed;
pub use gguf_vocab::GgufVocab;
pub use load::Language;
pub use pieces::{Piece, pieces};
pub use pretokenizers::known_names as known_pretokenizers;
pub use stream::TokenStream;
pub use template::{ChatTemplate, Message, TemplateOrigin};
pub use tokenizer::{SPECIAL_GUARD, Special, Tokenizer, TokenizerFiles};
pub use train_bpe::{NewTokenizer, train_bpe};
