//! What a classifier says of texts: probabilities of labels, a number, or a tag for each word.
//!
//! Texts that go through different adapters share a batch; each one's answer is what it would be alone.

use std::sync::Arc;

use retune_tensor::{Params, Tensor};

use super::objective::{argmax, classifier, logits, word_rows};
use super::{Problem, Tokens};
use crate::error::Result;
use crate::models::TextModel;
use crate::nn::Active;

/// What is said of one text.
#[derive(Clone, Debug, PartialEq)]
pub enum Prediction {
    /// One class: the likeliest, and the probability of each.
    Class {
        class: u32,
        probabilities: Vec<f32>,
    },
    /// Any number of labels: those above one half, and the probability of each.
    Labels {
        classes: Vec<u32>,
        probabilities: Vec<f32>,
    },
    Value(f32),
    /// One for each word; `None` of words that were cut away.
    Words(Vec<Option<Tagged>>),
}

/// A word's likeliest tag.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tagged {
    pub class: u32,
    pub probability: f32,
}

/// The texts in the order of batches: neighbours share an adapter, and are of similar lengths.
pub(crate) fn in_batch_order(texts: &[Tokens], slots: &[Option<usize>]) -> Vec<usize> {
    let slot = |text: usize| slots.get(text).copied().flatten();
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&text| (slot(text), texts[text].ids.len(), text));
    order
}

/// Predicts for texts, each through the adapter in its slot (`None`: the base alone), in batches of `batch_size`, at most.
/// The answers are in the order of the texts. `progress` is told how many texts are done and says whether to go on; if not,
/// there is no result.
///
/// # Errors
/// If the model has no classifier.
pub fn predict(
    net: &dyn TextModel,
    params: &Params,
    texts: &[Tokens],
    slots: &[Option<usize>],
    batch_size: usize,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Vec<Prediction>>> {
    let problem = classifier(net)?.problem;
    let slot = |text: usize| slots.get(text).copied().flatten();
    let order = in_batch_order(texts, slots);
    let mut found: Vec<Option<Prediction>> = vec![None; texts.len()];
    let mut done = 0;
    for batch in order.chunks(batch_size.max(1)) {
        let tokens: Vec<&Tokens> = batch.iter().map(|&text| &texts[text]).collect();
        let each: Arc<[Option<usize>]> = batch.iter().map(|&text| slot(text)).collect();
        let (logits, segments) = logits(net, params, &tokens, Active::PerExample(each))?;
        for (place, &text) in batch.iter().enumerate() {
            found[text] = Some(match problem {
                Problem::Tokens => {
                    let rows = word_rows(&texts[text], &segments, place);
                    Prediction::Words(rows.into_iter().map(|row| Some(tagged(&logits, row?))).collect())
                }
                _ => of_row(problem, logits.row(place)),
            });
        }
        done += batch.len();
        if !progress(done) && done < texts.len() {
            return Ok(None);
        }
    }
    Ok(Some(found.into_iter().flatten().collect()))
}

fn tagged(logits: &Tensor, row: usize) -> Tagged {
    let class = argmax(logits.row(row));
    let probability = softmax(logits.row(row)).get(class as usize).copied().unwrap_or_default();
    Tagged { class, probability }
}

fn of_row(problem: Problem, logits: &[f32]) -> Prediction {
    match problem {
        Problem::Regression => Prediction::Value(logits.first().copied().unwrap_or(f32::NAN)),
        Problem::MultiLabel => {
            let probabilities: Vec<f32> = logits.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
            let above = logits.iter().zip(0u32..).filter(|(z, _)| **z > 0.0);
            Prediction::Labels { classes: above.map(|(_, class)| class).collect(), probabilities }
        }
        _ => Prediction::Class { class: argmax(logits), probabilities: softmax(logits) },
    }
}

/// Probabilities of logits.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let raised: Vec<f32> = logits.iter().map(|z| (z - largest).exp()).collect();
    let sum: f32 = raised.iter().sum();
    raised.into_iter().map(|x| x / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_become_answers() {
        let Prediction::Class { class, probabilities } = of_row(Problem::SingleLabel, &[0.0, 2.0, 0.0])
        else {
            panic!()
        };
        assert_eq!(class, 1);
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6 && probabilities[1] > 0.7);
        let Prediction::Labels { classes, probabilities } = of_row(Problem::MultiLabel, &[1.0, -1.0, 0.5])
        else {
            panic!()
        };
        assert_eq!(classes, [0, 2]);
        assert!((probabilities[0] - 0.731_058_6).abs() < 1e-6);
        assert_eq!(of_row(Problem::Regression, &[1.5]), Prediction::Value(1.5));
    }
}
