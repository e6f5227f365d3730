//! Whisper's normaliser for English: besides what the basic one does, contractions are written out, numbers are digits, and
//! spellings American.
//!
//! `english.json` is the table of spellings of OpenAI's Whisper (MIT License, Copyright (c) 2022 OpenAI), 1,739 words.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::basic::without_symbols_and_diacritics;
use super::number::standardize_numbers;
use super::text::{Literal, is_space, pattern, single_spaces, without_brackets};

/// Said while thinking, and not counted.
const FILLERS: [&str; 6] = ["hmm", "mm", "mhm", "mmm", "uh", "um"];

/// `find`, a whole word.
const fn word(find: &'static str, with: &'static str) -> Literal {
    Literal { find, begins: true, with }
}

/// `find`, the end of a word.
const fn end(find: &'static str, with: &'static str) -> Literal {
    Literal { find, begins: false, with }
}

/// In this order.
const CONTRACTIONS: [Literal; 49] = [
    word("won't", "will not"),
    word("can't", "can not"),
    word("let's", "let us"),
    word("ain't", "aint"),
    word("y'all", "you all"),
    word("wanna", "want to"),
    word("gotta", "got to"),
    word("gonna", "going to"),
    word("i'ma", "i am going to"),
    word("imma", "i am going to"),
    word("woulda", "would have"),
    word("coulda", "could have"),
    word("shoulda", "should have"),
    word("ma'am", "madam"),
    word("mr", "mister "),
    word("mrs", "missus "),
    word("st", "saint "),
    word("dr", "doctor "),
    word("prof", "professor "),
    word("capt", "captain "),
    word("gov", "governor "),
    word("ald", "alderman "),
    word("gen", "general "),
    word("sen", "senator "),
    word("rep", "representative "),
    word("pres", "president "),
    word("rev", "reverend "),
    word("hon", "honorable "),
    word("asst", "assistant "),
    word("assoc", "associate "),
    word("lt", "lieutenant "),
    word("col", "colonel "),
    word("jr", "junior "),
    word("sr", "senior "),
    word("esq", "esquire "),
    end("'d been", " had been"),
    end("'s been", " has been"),
    end("'d gone", " had gone"),
    end("'s gone", " has gone"),
    end("'d done", " had done"),
    end("'s got", " has got"),
    end("n't", " not"),
    end("'re", " are"),
    end("'s", " is"),
    end("'d", " would"),
    end("'ll", " will"),
    end("'t", " not"),
    end("'ve", " have"),
    end("'m", " am"),
];

static SPELLINGS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("english.json")).expect("the table of spellings is JSON")
});
static DIGIT_COMMA: LazyLock<Regex> = LazyLock::new(|| pattern(r"(\d),(\d)"));
static FULL_STOP: LazyLock<Regex> = LazyLock::new(|| pattern(r"\.([^0-9]|$)"));
static LONE_PREFIX: LazyLock<Regex> = LazyLock::new(|| pattern(r"[.$¢€£]([^0-9])"));
static LONE_PERCENT: LazyLock<Regex> = LazyLock::new(|| pattern(r"([^0-9])%"));

/// Whisper's `EnglishTextNormalizer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnglishNormalizer;

impl EnglishNormalizer {
    /// The text in the normaliser's form.
    pub fn normalize(self, text: &str) -> String {
        let text = without_brackets(&text.to_lowercase());
        let mut text = joined_apostrophes(&without_fillers(&text));
        for contraction in &CONTRACTIONS {
            text = contraction.replace(&text).unwrap_or(text);
        }
        let text = DIGIT_COMMA.replace_all(&text, "$1$2");
        let text = FULL_STOP.replace_all(&text, " $1");
        let text = without_symbols_and_diacritics(&text, ".%$¢€£");
        let text = standardize_numbers(&text);
        let words = text.split(is_space).filter(|word| !word.is_empty());
        let words: Vec<&str> = words.map(|word| SPELLINGS.get(word).map_or(word, String::as_str)).collect();
        let text = words.join(" ");
        let text = LONE_PREFIX.replace_all(&text, " $1");
        let text = LONE_PERCENT.replace_all(&text, "$1 ");
        single_spaces(&text)
    }
}

/// One after the other is as all at once: between two of them stands something that is no letter.
fn without_fillers(text: &str) -> String {
    let mut text = text.to_string();
    for filler in FILLERS {
        text = word(filler, "").replace(&text).unwrap_or(text);
    }
    text
}

/// No white space in front of an apostrophe.
fn joined_apostrophes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\'' {
            out.truncate(out.trim_end_matches(is_space).len());
        }
        out.push(c);
    }
    out
}
