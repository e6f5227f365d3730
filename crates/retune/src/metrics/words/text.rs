//! What both normalisers share: Unicode classes as Python sees them, brackets, symbols.
//!
//! The reference runs on Python's `re` and `unicodedata`. A character of a word is there a letter or number (classes L and N) or `_`;
//! white space includes U+001C to U+001F. Rust's `\w` also has marks, so boundaries of words are found here.

use std::sync::LazyLock;

use regex::Regex;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

static BRACKETS: LazyLock<Regex> = LazyLock::new(|| pattern(r"[<\[][^>\]]*[>\]]"));
static PARENTHESES: LazyLock<Regex> = LazyLock::new(|| pattern(r"\([^)]+?\)"));

/// A pattern of ours.
pub(super) fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern of our own")
}

pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn is_word(c: char) -> bool {
    let group = c.general_category_group();
    c == '_' || matches!(group, GeneralCategoryGroup::Letter | GeneralCategoryGroup::Number)
}

/// Is `at` between a character of a word and something else?
fn is_boundary(text: &str, at: usize) -> bool {
    let word = |c: Option<char>| c.is_some_and(is_word);
    word(text[..at].chars().next_back()) != word(text[at..].chars().next())
}

/// Without what stands between brackets, then between parentheses.
pub(super) fn without_brackets(text: &str) -> String {
    PARENTHESES.replace_all(&BRACKETS.replace_all(text, ""), "").into_owned()
}

/// Every run of white space as one space.
pub(super) fn single_spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_space(c) {
            true if out.ends_with(' ') => {}
            true => out.push(' '),
            false => out.push(c),
        }
    }
    out
}

/// What becomes of a mark, symbol or punctuation: a space.
pub(super) fn is_symbol(c: char) -> bool {
    use GeneralCategoryGroup::{Mark, Punctuation, Symbol};
    matches!(c.general_category_group(), Mark | Symbol | Punctuation)
}

/// A mark that takes no room of its own (Mn): what diacritics decompose into.
pub(super) fn is_diacritic(c: char) -> bool {
    c.general_category() == GeneralCategory::NonspacingMark
}

/// A literal to be replaced, where it begins and ends at a boundary if so marked.
pub(super) struct Literal {
    pub find: &'static str,
    pub begins: bool,
    pub with: &'static str,
}

impl Literal {
    /// Replaces it wherever its end, and if wanted its beginning, is a boundary of words.
    pub fn replace(&self, text: &str) -> Option<String> {
        let mut out: Option<String> = None;
        let (mut done, mut from) = (0, 0);
        while let Some(found) = text[from..].find(self.find) {
            let (start, end) = (from + found, from + found + self.find.len());
            if (self.begins && !is_boundary(text, start)) || !is_boundary(text, end) {
                // The literals are ASCII at their beginning: the next byte begins a character.
                from = start + 1;
                continue;
            }
            let out = out.get_or_insert_default();
            out.push_str(&text[done..start]);
            out.push_str(self.with);
            (done, from) = (end, end);
        }
        out.map(|out| out + &text[done..])
    }
}
