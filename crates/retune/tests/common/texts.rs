//! Batches of texts with labels of their own or of their next tokens, for any head.

use std::path::Path;

use retune::models::{Model, TextInput};
use retune::nn::{Head, Pass};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Gradients, Segments, Tape, Tensor, Var};

use super::batch::i64s;
use super::open;

/// Some texts laid end to end.
#[derive(Default)]
pub struct Texts {
    pub ids: Vec<u32>,
    pub token_types: Vec<u32>,
    pub lengths: Vec<usize>,
    /// Packed rows in a padded matrix.
    pub places: Vec<usize>,
    pub labels: LossRows,
}

impl Texts {
    /// A reference's batch without its padding: labels of texts, or, where there is one for each token, of the next.
    pub fn read(path: &Path) -> Texts {
        let file = open(path);
        let (shape, ids) = i64s(&file, "input_ids").expect("ids");
        let (_, mask) = i64s(&file, "attention_mask").expect("mask");
        let (label_shape, labels) = i64s(&file, "labels").expect("labels");
        let types = i64s(&file, "token_type_ids").map(|(_, types)| types);
        let (rows, cols) = (shape[0], shape[1]);
        let places: Vec<usize> = (0..rows * cols).filter(|&at| mask[at] != 0).collect();
        let of_texts = label_shape.len() == 1;
        let labelled: Vec<(usize, i64)> = match of_texts {
            true => labels.iter().copied().enumerate().collect(),
            false => {
                let next = places.iter().enumerate().filter(|(_, at)| **at % cols > 0);
                next.map(|(row, &at)| (row - 1, labels[at])).collect()
            }
        };
        let mut loss = LossRows::default();
        for (row, label) in labelled.into_iter().filter(|(_, label)| *label >= 0) {
            loss.rows.push(row);
            loss.targets.push(label as u32);
            loss.weights.push(1.0);
        }
        loss.denominator = loss.rows.len() as f32;
        Texts {
            ids: places.iter().map(|&at| ids[at] as u32).collect(),
            token_types: types.map(|t| places.iter().map(|&at| t[at] as u32).collect()).unwrap_or_default(),
            lengths: (0..rows).map(|r| places.iter().filter(|&&at| at / cols == r).count()).collect(),
            places,
            labels: loss,
        }
    }

    /// Texts of these lengths; a classifier's labels are of texts, a language model's of next tokens.
    pub fn made(model: &Model, lengths: &[usize]) -> Texts {
        let vocab = model.net.as_text().expect("text").info().vocab_size;
        let mut texts = Texts { lengths: lengths.to_vec(), ..Texts::default() };
        for (t, &length) in lengths.iter().enumerate() {
            for i in 0..length {
                texts.ids.push(((i * 37 + t * 11) % (vocab - 3) + 3) as u32);
            }
        }
        let labelled: Vec<(usize, u32)> = match model.net.head() {
            Head::Classifier(head) => {
                (0..lengths.len()).map(|t| (t, (t % head.labels.len()) as u32)).collect()
            }
            _ => {
                let ranges = Segments::from_lengths(lengths);
                ranges
                    .ranges()
                    .flat_map(|r| (r.start + 1)..r.end)
                    .map(|row| (row - 1, texts.ids[row]))
                    .collect()
            }
        };
        for (row, label) in labelled {
            texts.labels.rows.push(row);
            texts.labels.targets.push(label);
            texts.labels.weights.push(1.0);
        }
        texts.labels.denominator = texts.labels.rows.len() as f32;
        texts
    }

    pub fn segments(&self) -> Segments {
        Segments::from_lengths(&self.lengths)
    }
}

/// The head's output on a tape.
pub fn head_on<'p>(model: &'p Model, tape: &Tape<'p>, texts: &Texts, pass: &Pass) -> Var {
    let segments = texts.segments();
    let input = TextInput { token_types: &texts.token_types, ..TextInput::new(&texts.ids, &segments) };
    let hidden = model.net.as_text().expect("text").hidden(tape, &input, pass);
    match model.net.head() {
        Head::LanguageModel(head) => head.forward(tape, &hidden.rows, &hidden.x),
        Head::Classifier(head) => head.forward(tape, &hidden),
        Head::Detector(_) | Head::None => hidden.x,
    }
}

/// Logits, or the last rows of a bare trunk, through what `pass` says.
pub fn outputs_by(model: &Model, texts: &Texts, pass: &Pass) -> Tensor {
    head_on(model, &Tape::inference(&model.params), texts, pass).value().clone()
}

/// [`outputs_by`] of slot 0.
pub fn outputs(model: &Model, texts: &Texts) -> Tensor {
    outputs_by(model, texts, &Pass::default())
}

/// Cross-entropy and its gradients.
pub fn loss_and_grads(model: &Model, texts: &Texts, pass: &Pass) -> (f32, Gradients) {
    let tape = Tape::new(&model.params);
    let loss = ops::cross_entropy(&tape, &head_on(model, &tape, texts, pass), &texts.labels);
    let value = loss.value().data()[0];
    let mut gradients = Gradients::new();
    tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
    (value, gradients)
}
