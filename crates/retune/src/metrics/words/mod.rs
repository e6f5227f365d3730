//! Word and character error rates, over texts that were normalised as Whisper's authors do.
//!
//! `WER = (S + D + I) / N`: substituted, deleted and inserted words of the best alignment, N words of the reference. Of several
//! rows the edits and the lengths are summed first. CER is the same with characters, white space between words counting as one.

mod align;
mod basic;
mod english;
mod number;
mod text;

pub use align::{Edit, align};
pub use basic::BasicNormalizer;
pub use english::EnglishNormalizer;

use serde::{Deserialize, Serialize};

/// Edits of one row, or summed over many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EditCounts {
    pub hits: u64,
    pub substitutions: u64,
    pub deletions: u64,
    pub insertions: u64,
}

impl EditCounts {
    /// Of an alignment.
    pub fn of(edits: &[Edit]) -> EditCounts {
        let count = |edit: Edit| edits.iter().filter(|e| **e == edit).count() as u64;
        EditCounts {
            hits: count(Edit::Hit),
            substitutions: count(Edit::Substitution),
            deletions: count(Edit::Deletion),
            insertions: count(Edit::Insertion),
        }
    }

    /// The length of the reference.
    pub fn reference(&self) -> u64 {
        self.hits + self.substitutions + self.deletions
    }

    /// What is wrong.
    pub fn errors(&self) -> u64 {
        self.substitutions + self.deletions + self.insertions
    }

    /// Errors by the length of the reference, 0 and more (insertions may lead above 1). Where the reference is empty: 0 if the
    /// answer is too, else 1.
    pub fn rate(&self) -> f64 {
        match (self.errors(), self.reference()) {
            (0, _) => 0.0,
            (_, 0) => 1.0,
            (errors, reference) => errors as f64 / reference as f64,
        }
    }
}

impl std::ops::AddAssign for EditCounts {
    fn add_assign(&mut self, other: EditCounts) {
        self.hits += other.hits;
        self.substitutions += other.substitutions;
        self.deletions += other.deletions;
        self.insertions += other.insertions;
    }
}

/// How texts are made alike before they are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalizer {
    /// Lower case, no punctuation: for any language.
    #[default]
    Basic,
    /// The same without diacritics.
    BasicNoDiacritics,
    /// Each letter a word: for languages without spaces (Chinese, Japanese, Thai).
    BasicLetters,
    /// Numbers, contractions and British spellings too: for English.
    English,
    /// As they are.
    None,
}

impl Normalizer {
    /// What Whisper's authors use for a language, by its code (`en`, `zh`); without one, [`Normalizer::Basic`].
    pub fn for_language(code: Option<&str>) -> Normalizer {
        match code {
            Some("en") => Normalizer::English,
            Some("zh" | "ja" | "th" | "lo" | "my" | "yue") => Normalizer::BasicLetters,
            _ => Normalizer::Basic,
        }
    }

    /// A text made comparable.
    pub fn normalize(self, text: &str) -> String {
        let basic = |remove_diacritics, split_letters| {
            BasicNormalizer { remove_diacritics, split_letters }.normalize(text)
        };
        match self {
            Normalizer::Basic => basic(false, false),
            Normalizer::BasicNoDiacritics => basic(true, false),
            Normalizer::BasicLetters => basic(false, true),
            Normalizer::English => EnglishNormalizer.normalize(text),
            Normalizer::None => text.to_string(),
        }
    }
}

/// Which normaliser texts are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizerChoice {
    /// As Whisper's authors do for the row's language.
    #[default]
    Auto,
    Basic,
    English,
    None,
}

impl NormalizerChoice {
    /// As they are written.
    pub const NAMES: &[&str] = &["auto", "basic", "english", "none"];

    /// The normaliser for a row in this language.
    pub fn of(self, language: Option<&str>) -> Normalizer {
        match self {
            NormalizerChoice::Auto => Normalizer::for_language(language),
            NormalizerChoice::Basic => Normalizer::Basic,
            NormalizerChoice::English => Normalizer::English,
            NormalizerChoice::None => Normalizer::None,
        }
    }
}

impl std::str::FromStr for NormalizerChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<NormalizerChoice, String> {
        match name {
            "auto" => Ok(NormalizerChoice::Auto),
            "basic" => Ok(NormalizerChoice::Basic),
            "english" => Ok(NormalizerChoice::English),
            "none" => Ok(NormalizerChoice::None),
            _ => Err(format!("there are {}", NormalizerChoice::NAMES.join(", "))),
        }
    }
}

/// A row that was transcribed: what was said and what was recognised, both normalised.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TranscribedRow {
    /// File and line.
    pub source: String,
    pub reference: String,
    pub hypothesis: String,
    pub words: EditCounts,
    pub characters: EditCounts,
}

impl TranscribedRow {
    pub fn new(source: String, errors: &RowErrors) -> TranscribedRow {
        TranscribedRow {
            source,
            reference: errors.reference.join(" "),
            hypothesis: errors.hypothesis.join(" "),
            words: errors.words,
            characters: errors.characters,
        }
    }

    /// How its words align.
    pub fn errors(&self) -> RowErrors {
        RowErrors::of(Normalizer::None, &self.reference, &self.hypothesis)
    }
}

/// One row compared: normalised words and how they align.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowErrors {
    /// Normalised words that were said.
    pub reference: Vec<String>,
    /// Normalised words that were recognised.
    pub hypothesis: Vec<String>,
    /// Walks over both: see [`RowErrors::diff`].
    pub edits: Vec<Edit>,
    pub words: EditCounts,
    pub characters: EditCounts,
}

impl RowErrors {
    /// Compares what was recognised with what was said.
    pub fn of(normalizer: Normalizer, reference: &str, hypothesis: &str) -> RowErrors {
        let split = |text: &str| -> Vec<String> {
            normalizer
                .normalize(text)
                .split(text::is_space)
                .filter(|w| !w.is_empty())
                .map(str::to_string)
                .collect()
        };
        let (reference, hypothesis) = (split(reference), split(hypothesis));
        let characters = |words: &[String]| words.join(" ").chars().collect::<Vec<char>>();
        let edits = align(&reference, &hypothesis);
        let characters = EditCounts::of(&align(&characters(&reference), &characters(&hypothesis)));
        RowErrors { words: EditCounts::of(&edits), characters, reference, hypothesis, edits }
    }

    /// The aligned words, (edit, said, recognised): a deletion has nothing recognised, an insertion nothing said.
    pub fn diff(&self) -> Vec<(Edit, Option<&str>, Option<&str>)> {
        let (mut said, mut heard) = (self.reference.iter(), self.hypothesis.iter());
        let pair = |edit: &Edit| {
            let reference = if *edit == Edit::Insertion { None } else { said.next() };
            let hypothesis = if *edit == Edit::Deletion { None } else { heard.next() };
            (*edit, reference.map(String::as_str), hypothesis.map(String::as_str))
        };
        self.edits.iter().map(pair).collect()
    }
}

/// Error rates of many rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorRates {
    pub rows: u64,
    pub words: EditCounts,
    pub characters: EditCounts,
}

impl ErrorRates {
    /// Adds a row's edits.
    pub fn add(&mut self, words: EditCounts, characters: EditCounts) {
        self.rows += 1;
        self.words += words;
        self.characters += characters;
    }

    /// Word error rate.
    pub fn wer(&self) -> f64 {
        self.words.rate()
    }

    /// Character error rate.
    pub fn cer(&self) -> f64 {
        self.characters.rate()
    }
}

impl<'a> FromIterator<&'a RowErrors> for ErrorRates {
    fn from_iter<I: IntoIterator<Item = &'a RowErrors>>(rows: I) -> ErrorRates {
        let mut rates = ErrorRates::default();
        rows.into_iter().for_each(|row| rates.add(row.words, row.characters));
        rates
    }
}

impl<'a> FromIterator<&'a TranscribedRow> for ErrorRates {
    fn from_iter<I: IntoIterator<Item = &'a TranscribedRow>>(rows: I) -> ErrorRates {
        let mut rates = ErrorRates::default();
        rows.into_iter().for_each(|row| rates.add(row.words, row.characters));
        rates
    }
}

#[cfg(test)]
mod tests;
