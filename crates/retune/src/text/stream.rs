//! Tokens that arrive one by one, as text: whole characters only, with the spaces that the whole text would have.

use super::error::Result;
use super::tokenizer::Tokenizer;

/// A character has at most 4 bytes, a token at least one; after this many tokens the bytes are no character.
const PENDING_MAX: usize = 8;

/// Decodes a growing list of tokens. Text is held back while its last character is incomplete.
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// The last tokens only. `ids[..shown]` has been given out; it is decoded again with what follows, because a token's
    /// spaces depend on what stands before it.
    ids: Vec<u32>,
    shown: usize,
}

impl<'t> TokenStream<'t> {
    /// A stream that has seen nothing; special tokens appear by name or, with `skip_special`, not at all.
    pub fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), shown: 0 }
    }

    /// Takes the next token and returns the text that is now complete, possibly none.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, text) = self.texts()?;
        let hopeless = self.ids.len() - self.shown > PENDING_MAX;
        if text.ends_with('\u{FFFD}') && !hopeless {
            return Ok(String::new());
        }
        Ok(self.advance(&before, &text))
    }

    /// The text of what was held back, if anything: an unfinished character at the end is U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(mut self) -> Result<String> {
        let (before, text) = self.texts()?;
        Ok(self.advance(&before, &text))
    }

    fn texts(&self) -> Result<(String, String)> {
        let before = self.tokenizer.decode(&self.ids[..self.shown], self.skip_special)?;
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok((before, text))
    }

    fn advance(&mut self, before: &str, text: &str) -> String {
        let new = text.get(before.len()..).unwrap_or_default().to_string();
        if !new.is_empty() {
            self.ids.drain(..self.shown);
        }
        self.shown = self.ids.len();
        new
    }
}
