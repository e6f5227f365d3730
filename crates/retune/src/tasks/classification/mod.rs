//! Classification: rows of text with a class, a set of labels, a number, or a tag for each word.

mod data;
mod error;
mod examples;
mod labels;
mod objective;
mod predict;
mod rows;
mod split;

use std::fmt;
use std::str::FromStr;

pub use data::{DataReport, Dataset, Label, LabelledText, Options};
pub use error::{BadRow, Error, Result, Source};
pub use examples::{Example, Examples, Tokens, words_of};
pub use labels::{CLASSES_MAX, ClassWeights, Labels, balanced};
pub(crate) use objective::Packed;
pub use objective::{Classification, argmax, classifier, logits, word_rows};
pub(crate) use predict::in_batch_order;
pub use predict::{Prediction, Tagged, predict, softmax};
pub use rows::{RawLabel, Row, is_labelled, read_rows, read_texts};
pub use split::HELD_OUT;

pub use crate::nn::Problem;

use crate::methods::targets::nearest;

use Problem::*;

impl Problem {
    /// All of them, as they are written.
    pub const NAMES: [(Problem, &str); 4] = [
        (SingleLabel, "single_label"),
        (MultiLabel, "multi_label"),
        (Regression, "regression"),
        (Tokens, "tokens"),
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        Problem::NAMES.iter().find(|(problem, _)| *problem == self).map_or("", |(_, name)| name)
    }

    /// What `problem_type` in a Hugging Face config.json calls it; token classification has none.
    pub fn hugging_face_name(self) -> Option<&'static str> {
        match self {
            SingleLabel => Some("single_label_classification"),
            MultiLabel => Some("multi_label_classification"),
            Regression => Some("regression"),
            Tokens => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Problem {
    type Err = crate::Error;

    /// Also Hugging Face's names.
    fn from_str(text: &str) -> crate::Result<Problem> {
        let name = text.trim().to_ascii_lowercase().replace(['-', ' '], "_");
        let short = name.strip_suffix("_classification").unwrap_or(&name);
        let short = if short == "token" { "tokens" } else { short };
        let known = Problem::NAMES.iter().find(|(_, known)| *known == short);
        known.map(|(problem, _)| *problem).ok_or_else(|| {
            let names = Problem::NAMES.map(|(_, name)| name);
            let near = nearest(short, names.into_iter()).unwrap_or_default();
            let shown: String = text.chars().take(40).collect();
            crate::Error::Input(format!(
                "there is no problem {shown:?}; did you mean {near:?}? There are {}",
                names.join(", ")
            ))
        })
    }
}

#[cfg(test)]
mod tests;
