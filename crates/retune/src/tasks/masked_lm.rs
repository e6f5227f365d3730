//! Masked language modelling (Devlin et al., 2019): 15 % of the tokens are guessed from the others. Of these 80 % are
//! shown as the mask, 10 % as another token, 10 % as they are.
//!
//! `loss = -sum over chosen i of log p(ids[i] | shown) / number of them`. What is chosen is a function of (seed, epoch, example,
//! position); an evaluation chooses as epoch 0 does.

use rayon::prelude::*;
use retune_formats::records::Record;
use retune_tensor::ops::LossRows;
use retune_tensor::rng::{Stream, fnv1a};
use retune_tensor::{Tape, Var};

use super::causal_lm::{Row, head_loss, language_model};
use super::classification::{Packed, Source, Tokens};
use crate::error::{Error, Result};
use crate::models::{TextModel, check_ids};
use crate::nn::Pass;
use crate::objective::{Objective, ObjectiveError};
use crate::text::{SPECIAL_GUARD, Tokenizer};

/// The share of tokens to guess, and of those what is shown as the mask or as another token.
const CHOSEN: f32 = 0.15;
const MASKED: f32 = 0.8;
const OTHER: f32 = 0.1;
/// Shorter texts say nothing.
const TOKENS_MIN: usize = 4;

/// One text.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub tokens: Tokens,
    /// Whether an id may be guessed: special tokens are not.
    pub open: Vec<bool>,
    pub source: Source,
    pub key: u64,
}

/// Texts to guess tokens of.
#[derive(Clone, Debug)]
pub struct Texts {
    pub examples: Vec<Example>,
    /// Rows that were too short.
    pub dropped: usize,
    pub truncated: usize,
    mask: u32,
    vocabulary: u32,
}

impl Texts {
    /// Rows with a `text`; of conversations and the like all turns, one after the other.
    ///
    /// # Errors
    /// If the tokenizer has no mask token, or a row has no text.
    pub fn build(tokenizer: &Tokenizer, file: &str, rows: &[Record], max_length: usize) -> Result<Texts> {
        let mask = ["[MASK]", "<mask>"].iter().find_map(|name| tokenizer.token_to_id(name));
        let mask = mask.ok_or_else(|| {
            Error::Input("the tokenizer has no mask token ([MASK] or <mask>): it is not for masked-lm".into())
        })?;
        let found: Vec<Result<Example>> = rows
            .par_iter()
            .map(|record| {
                let source = Source { file: file.into(), line: record.line };
                let fail = |what: String| Error::Input(format!("{source}: {what}"));
                let text = text_of(Row::parse(&record.value).map_err(fail)?);
                let fail = |e: crate::text::Error| Error::Input(format!("{source}: {e}"));
                let framed = tokenizer.encode_framed(&text, None, max_length).map_err(fail)?;
                let bytes: Vec<u8> = framed.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                let open = framed.offsets.iter().map(Option::is_some).collect();
                let tokens = Tokens {
                    ids: framed.ids,
                    token_types: framed.token_types,
                    truncated: framed.truncated,
                    words: Vec::new(),
                };
                Ok(Example { tokens, open, source, key: fnv1a(&bytes) })
            })
            .collect();
        let mut examples = found.into_iter().collect::<Result<Vec<Example>>>()?;
        let rows = examples.len();
        examples.retain(|e| e.open.iter().filter(|open| **open).count() >= TOKENS_MIN);
        Ok(Texts {
            dropped: rows - examples.len(),
            truncated: examples.iter().filter(|e| e.tokens.truncated > 0).count(),
            examples,
            mask,
            vocabulary: tokenizer.vocab_size() as u32,
        })
    }

    /// What the model sees of an example in an epoch, and the positions and ids that it guesses: at least one.
    pub fn shown(&self, example: &Example, seed: u64, epoch: u64) -> (Vec<u32>, Vec<(usize, u32)>) {
        let stream = Stream::named(seed, &format!("masks of epoch {epoch} of example {:016x}", example.key));
        let mut ids = example.tokens.ids.clone();
        let mut guessed = Vec::new();
        // Three numbers a position: is it chosen, how is it shown, as which other token.
        let number = |position: usize, which: u64| stream.uniform(3 * position as u64 + which);
        let open = || (0..ids.len()).filter(|&p| example.open.get(p) == Some(&true));
        let mut chosen: Vec<usize> = open().filter(|&p| number(p, 0) < CHOSEN).collect();
        if chosen.is_empty() {
            chosen.extend(open().min_by(|&a, &b| number(a, 0).total_cmp(&number(b, 0))));
        }
        for position in chosen {
            guessed.push((position, ids[position]));
            let how = number(position, 1);
            if how < MASKED {
                ids[position] = self.mask;
            } else if how < MASKED + OTHER {
                let other = (f64::from(number(position, 2)) * f64::from(self.vocabulary)) as u32;
                ids[position] = other.min(self.vocabulary.saturating_sub(1));
            }
        }
        (ids, guessed)
    }
}

fn text_of(row: Row) -> String {
    let text = match row {
        Row::Text(text) => text,
        Row::Completion { prompt, completion } => format!("{prompt} {completion}"),
        Row::Chat { messages, .. } => {
            messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join(" ")
        }
    };
    text.replace(SPECIAL_GUARD, "")
}

/// Texts seen through an encoder with a language model's head.
pub struct MaskedLm<'a> {
    pub net: &'a dyn TextModel,
    pub data: &'a Texts,
    /// Chooses what is masked.
    pub seed: u64,
    /// Seed of the dropout masks; `None` for evaluation.
    pub dropout_seed: Option<u64>,
    pub checkpoint: bool,
}

impl MaskedLm<'_> {
    /// # Errors
    /// If the model reads from left to right, has no such head, or another vocabulary.
    pub fn check(&self) -> Result<()> {
        let info = self.net.info();
        if info.decoder {
            let what =
                "a {} model reads from left to right: it cannot guess masked tokens; use text-generation";
            return Err(Error::Input(what.replace("{}", &info.model_type)));
        }
        language_model(self.net)?;
        let longest = |e: Error, example: &Example| Error::Input(format!("{}: {e}", example.source));
        check_ids(self.net, &[self.data.mask, self.data.vocabulary.saturating_sub(1)])?;
        self.data
            .examples
            .iter()
            .try_for_each(|e| check_ids(self.net, &e.tokens.ids).map_err(|error| longest(error, e)))
    }

    fn example(&self, index: usize) -> &Example {
        &self.data.examples[index]
    }
}

impl Objective for MaskedLm<'_> {
    fn len(&self) -> usize {
        self.data.examples.len()
    }

    fn rows(&self, example: usize) -> usize {
        self.example(example).tokens.ids.len() + self.net.prompt_rows(Some(0))
    }

    /// The most that an epoch chooses, nearly.
    fn targets(&self, example: usize) -> usize {
        (self.rows(example) / 4).max(1)
    }

    /// How many tokens are guessed differs from epoch to epoch: an example counts 1, its loss is a mean over its tokens.
    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn describe(&self, example: usize) -> String {
        self.example(example).source.to_string()
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> std::result::Result<Var, ObjectiveError> {
        let mut texts = Vec::with_capacity(batch.len());
        let mut labels = LossRows { denominator: denominator as f32, ..LossRows::default() };
        let prompt_rows = self.net.prompt_rows(Some(0));
        let mut first = 0;
        for &index in batch {
            let example = self.example(index);
            let (ids, guessed) = self.data.shown(example, self.seed, epoch);
            first += prompt_rows;
            for (position, id) in &guessed {
                labels.rows.push(first + position);
                labels.targets.push(*id);
                labels.weights.push(1.0 / guessed.len() as f32);
            }
            first += ids.len();
            texts.push(Tokens { ids, ..example.tokens.clone() });
        }
        let packed = Packed::of(texts.iter());
        let keys = batch.iter().map(|&i| self.example(i).key);
        let pass = Pass::of_step(tape, self.dropout_seed, epoch, keys, self.checkpoint);
        let hidden = self.net.hidden(tape, &packed.input(), &pass);
        Ok(head_loss(tape, language_model(self.net)?, &hidden, &labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(length: usize) -> Texts {
        let ids: Vec<u32> = (0..length as u32).map(|i| 10 + i % 50).collect();
        let mut open = vec![true; length];
        open[0] = false;
        let tokens = Tokens { ids, ..Tokens::default() };
        let source = Source { file: "a".into(), line: 1 };
        let examples = vec![Example { tokens, open, source, key: 7 }];
        Texts { examples, dropped: 0, truncated: 0, mask: 3, vocabulary: 100 }
    }

    #[test]
    fn shares_are_those_of_the_paper_and_nothing_is_drawn_from_a_state() {
        let data = texts(20_001);
        let example = &data.examples[0];
        let (shown, guessed) = data.shown(example, 1, 0);
        let share = |n: usize, of: usize| n as f64 / of as f64;
        assert!((share(guessed.len(), 20_000) - 0.15).abs() < 0.01);
        let masked = guessed.iter().filter(|(p, _)| shown[*p] == 3).count();
        let kept = guessed.iter().filter(|(p, id)| shown[*p] == *id).count();
        assert!((share(masked, guessed.len()) - 0.8).abs() < 0.02);
        assert!((share(kept, guessed.len()) - 0.1).abs() < 0.02);
        assert!(guessed.iter().all(|(p, _)| *p > 0), "the special token stays");
        assert_eq!(data.shown(example, 1, 0), (shown, guessed.clone()));
        assert_ne!(data.shown(example, 1, 1).1, guessed);
        assert_ne!(data.shown(example, 2, 0).1, guessed);
    }

    #[test]
    fn short_texts_have_something_to_guess() {
        for length in 2..8 {
            let data = texts(length);
            assert!(!data.shown(&data.examples[0], 5, 3).1.is_empty());
        }
    }
}
