//! Texts and pairs as ids with their special tokens, and the row that carries each word's label.

use std::ops::Range;

use rayon::prelude::*;

use super::{DataReport, Dataset, Label, Labels, Problem, Source};
use crate::error::{Error, Result};
use crate::models::{TextModel, check_ids};
use crate::text::Tokenizer;

/// A text, or a pair, as a model reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// One for each id; empty where the model knows none.
    pub token_types: Vec<u32>,
    /// The id that carries each word's label, its first; `None` of words that were cut away.
    pub words: Vec<Option<usize>>,
    /// Ids that were cut away.
    pub truncated: usize,
}

impl Tokens {
    /// `words` are the bytes of the text's words, if they are to be labelled.
    ///
    /// # Errors
    /// If the tokenizer cannot read the text, or nothing of it is left.
    pub fn of(
        tokenizer: &Tokenizer,
        text: &str,
        pair: Option<&str>,
        words: &[Range<usize>],
        max_length: usize,
    ) -> Result<Tokens> {
        let framed = tokenizer.encode_framed(text, pair, max_length)?;
        if framed.offsets.iter().all(Option::is_none) && pair.is_none() {
            return Err(Error::Input("the text has no tokens to classify".into()));
        }
        let mut tokens = Tokens {
            ids: framed.ids,
            token_types: framed.token_types,
            words: Vec::with_capacity(words.len()),
            truncated: framed.truncated,
        };
        // Words and ids are in the same order: one walk over both.
        let mut row = 0;
        for word in words {
            let before = |row: usize| match framed.offsets.get(row) {
                Some(Some(range)) => range.end <= word.start,
                Some(None) => true,
                None => false,
            };
            while before(row) {
                row += 1;
            }
            let is_here = matches!(framed.offsets.get(row), Some(Some(range)) if range.start < word.end);
            tokens.words.push(is_here.then_some(row));
            row += usize::from(is_here);
        }
        Ok(tokens)
    }
}

/// The bytes of words that stand in a text with one space between each two.
fn joined(words: &[String]) -> Vec<Range<usize>> {
    let mut at = 0;
    let place = |word: &String| {
        let start = at;
        at += word.len() + 1;
        start..start + word.len()
    };
    words.iter().map(place).collect()
}

/// The bytes of the words of a plain text: runs of letters and digits, and each other sign by itself.
pub fn words_of(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut in_word = false;
    for (at, c) in text.char_indices() {
        let end = at + c.len_utf8();
        let is_letter = c.is_alphanumeric() || c == '_';
        match words.last_mut() {
            Some(last) if in_word && is_letter => last.end = end,
            _ if !c.is_whitespace() => words.push(at..end),
            _ => {}
        }
        in_word = is_letter;
    }
    words
}

/// A labelled row, ready to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub tokens: Tokens,
    pub label: Label,
    pub source: Source,
    /// A number of the row's own: for dropout.
    pub key: u64,
}

/// Labelled texts as ids.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    pub examples: Vec<Example>,
    pub problem: Problem,
    pub labels: Labels,
    pub report: DataReport,
    /// Tokens of the examples.
    pub tokens: usize,
    /// Examples that were cut at `max_length`.
    pub truncated: usize,
}

impl Examples {
    /// # Errors
    /// If a text cannot be read by the tokenizer, with its file and line.
    pub fn of(tokenizer: &Tokenizer, data: &Dataset, max_length: usize) -> Result<Examples> {
        let examples: Vec<Result<Example>> = data
            .examples
            .par_iter()
            .map(|row| {
                let tokens =
                    Tokens::of(tokenizer, &row.text, row.pair.as_deref(), &joined(&row.words), max_length)
                        .map_err(|e| Error::Input(format!("{}: {e}", row.source)))?;
                Ok(Example { tokens, label: row.label.clone(), source: row.source.clone(), key: row.key })
            })
            .collect();
        let examples = examples.into_iter().collect::<Result<Vec<Example>>>()?;
        Ok(Examples {
            tokens: examples.iter().map(|e| e.tokens.ids.len()).sum(),
            truncated: examples.iter().filter(|e| e.tokens.truncated > 0).count(),
            examples,
            problem: data.problem,
            labels: data.labels.clone(),
            report: data.report.clone(),
        })
    }

    /// # Errors
    /// If an example holds ids outside the model's vocabulary: tokenizer and model do not belong together.
    pub fn check(&self, net: &dyn TextModel) -> Result<()> {
        self.examples.iter().try_for_each(|example| {
            check_ids(net, &example.tokens.ids).map_err(|e| Error::Input(format!("{}: {e}", example.source)))
        })
    }

    /// What the user should know though nothing is wrong.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.report.warnings();
        if self.truncated > 0 {
            warnings.push(format!(
                "{} of {} rows are cut at max_length",
                self.truncated,
                self.examples.len()
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_where_they_are() {
        let text = "Anna's in São Paulo, ok?";
        let found: Vec<&str> = words_of(text).into_iter().map(|word| &text[word]).collect();
        assert_eq!(found, ["Anna", "'", "s", "in", "São", "Paulo", ",", "ok", "?"]);
        assert_eq!(joined(&["ab".into(), "c".into()]), [0..2, 3..4]);
    }
}
