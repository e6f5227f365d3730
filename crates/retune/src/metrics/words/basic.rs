//! Whisper's normaliser for any language: lower case, nothing in brackets, no marks, symbols or punctuation.

use unicode_normalization::UnicodeNormalization;
use unicode_segmentation::UnicodeSegmentation;

use super::text::{is_diacritic, is_symbol, single_spaces, without_brackets};

/// Letters with a stroke and ligatures, which do not decompose.
const STROKES: [(char, &str); 16] = [
    ('œ', "oe"),
    ('Œ', "OE"),
    ('ø', "o"),
    ('Ø', "O"),
    ('æ', "ae"),
    ('Æ', "AE"),
    ('ß', "ss"),
    ('ẞ', "SS"),
    ('đ', "d"),
    ('Đ', "D"),
    ('ð', "d"),
    ('Ð', "D"),
    ('þ', "th"),
    ('Þ', "th"),
    ('ł', "l"),
    ('Ł', "L"),
];

/// Whisper's `BasicTextNormalizer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BasicNormalizer {
    /// Take the dots and accents off letters (else they are kept).
    pub remove_diacritics: bool,
    /// Put a space between any two letters.
    pub split_letters: bool,
}

impl BasicNormalizer {
    /// The text in the normaliser's form.
    pub fn normalize(self, text: &str) -> String {
        let text = without_brackets(&text.to_lowercase());
        let clean = match self.remove_diacritics {
            true => without_symbols_and_diacritics(&text, ""),
            false => text.nfkc().map(|c| if is_symbol(c) { ' ' } else { c }).collect(),
        };
        let clean = clean.to_lowercase();
        match self.split_letters {
            true => single_spaces(&clean.graphemes(true).collect::<Vec<_>>().join(" ")),
            false => single_spaces(&clean),
        }
    }
}

/// Letters without their diacritics; other marks, symbols and punctuation become spaces, but for those in `keep`.
pub(super) fn without_symbols_and_diacritics(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.nfkd() {
        let stroke = STROKES.iter().find(|(letter, _)| *letter == c);
        match stroke {
            _ if keep.contains(c) => out.push(c),
            Some((_, letters)) => out.push_str(letters),
            None if is_diacritic(c) => {}
            None if is_symbol(c) => out.push(' '),
            None => out.push(c),
        }
    }
    out
}
