//! An example as text again, with what carries loss marked: what `retune preview` colours.

use super::error::Result;
use super::stream::TokenStream;
use super::tokenizer::Tokenizer;

/// A stretch of an example's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub text: String,
    /// Its tokens carry loss.
    pub target: bool,
}

/// The text of some tokens in stretches that do or do not carry loss (`targets`, one for each token); special tokens appear by name. A character that is
/// spread over tokens belongs to the stretch of its last one.
///
/// # Errors
/// If the tokenizer cannot decode its own tokens.
pub fn pieces(tokenizer: &Tokenizer, ids: &[u32], targets: &[bool]) -> Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut add = |text: String, target: bool| match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(last) if last.target == target => last.text.push_str(&text),
        _ => pieces.push(Piece { text, target }),
    };
    let mut stream = TokenStream::new(tokenizer, false);
    for (id, target) in ids.iter().zip(targets) {
        add(stream.push(*id)?, *target);
    }
    add(stream.finish()?, targets.last().copied().unwrap_or(false));
    Ok(pieces)
}
