//! Batches of any text model, with labels of texts, of tokens or of next tokens, as the references have them.

use std::path::Path;

use retune::models::{Model, TextInput};
use retune::nn::{Head, Pass};
use retune_formats::{TensorSource, safetensors};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Gradients, Segments, Tape, Tensor, Var};

use super::open;

/// A batch with the padding taken away; labels of texts, of tokens, or of the next tokens.
pub struct Batch {
    pub ids: Vec<u32>,
    pub token_types: Vec<u32>,
    pub segments: Segments,
    /// Packed rows in the padded matrix.
    pub places: Vec<usize>,
    pub labels: LossRows,
    pub of_texts: bool,
}

pub fn i64s(file: &safetensors::File, name: &str) -> Option<(Vec<usize>, Vec<i64>)> {
    let shape = file.find(name)?.shape.clone();
    let bytes = file.read(name).expect(name);
    Some((shape, bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()))
}

impl Batch {
    /// `shifted`: label `c` belongs to row `c - 1`.
    pub fn read(path: &Path, shifted: bool) -> Batch {
        let file = open(path);
        let (shape, ids) = i64s(&file, "input_ids").expect("ids");
        let (_, mask) = i64s(&file, "attention_mask").expect("mask");
        let (label_shape, labels) = i64s(&file, "labels").expect("labels");
        let types = i64s(&file, "token_type_ids").map(|(_, types)| types);
        let places: Vec<usize> = (0..ids.len()).filter(|&at| mask[at] != 0).collect();
        let cols = shape[1];
        let lengths: Vec<usize> =
            (0..shape[0]).map(|r| places.iter().filter(|&&at| at / cols == r).count()).collect();
        let of_texts = label_shape.len() == 1;
        let mut loss = LossRows::default();
        let mut add = |row: usize, label: i64| {
            if label >= 0 {
                loss.rows.push(row);
                loss.targets.push(label as u32);
                loss.weights.push(1.0);
            }
        };
        if of_texts {
            labels.iter().enumerate().for_each(|(row, &label)| add(row, label));
        } else {
            for (row, &at) in places.iter().enumerate() {
                match shifted {
                    false => add(row, labels[at]),
                    true if at % cols > 0 => add(row - 1, labels[at]),
                    true => {}
                }
            }
        }
        loss.denominator = loss.rows.len() as f32;
        Batch {
            ids: places.iter().map(|&at| ids[at] as u32).collect(),
            token_types: types.map(|t| places.iter().map(|&at| t[at] as u32).collect()).unwrap_or_default(),
            segments: Segments::from_lengths(&lengths),
            places,
            labels: loss,
            of_texts,
        }
    }

    pub fn input(&self) -> TextInput<'_> {
        TextInput { token_types: &self.token_types, ..TextInput::new(&self.ids, &self.segments) }
    }
}

pub fn logits_on<'p>(model: &'p Model, tape: &Tape<'p>, batch: &Batch, pass: &Pass) -> Var {
    let hidden = model.net.as_text().expect("text").hidden(tape, &batch.input(), pass);
    match model.net.head() {
        Head::LanguageModel(head) => head.forward(tape, &hidden.rows, &hidden.x),
        Head::Classifier(head) => head.forward(tape, &hidden),
        Head::Detector(_) | Head::None => panic!("the model has no head"),
    }
}

pub fn logits_of(model: &Model, batch: &Batch) -> Tensor {
    logits_on(model, &Tape::inference(&model.params), batch, &Pass::default()).value().clone()
}

pub fn loss_and_grads(model: &Model, batch: &Batch, pass: &Pass) -> (f32, Gradients) {
    let tape = Tape::new(&model.params);
    let loss = ops::cross_entropy(&tape, &logits_on(model, &tape, batch, pass), &batch.labels);
    let value = loss.value().data()[0];
    let mut gradients = Gradients::new();
    tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
    (value, gradients)
}

/// The real rows of the reference's padded matrix.
pub fn reference_rows(file: &safetensors::File, name: &str, batch: &Batch, of_texts: bool) -> Vec<f32> {
    let all = file.read_f32(name).expect(name);
    let cols = *file.get(name).expect(name).shape.last().expect("columns");
    if of_texts {
        return all;
    }
    batch.places.iter().flat_map(|p| all[p * cols..(p + 1) * cols].to_vec()).collect()
}
