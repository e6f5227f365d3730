//! Reads the reference numbers under `tests/data` and compares ours with them.
#![allow(dead_code)]

pub mod batch;
pub mod case;
pub mod gguf;
pub mod heap;
pub mod images;
pub mod texts;

use std::path::{Path, PathBuf};

use retune::models::{Model, StorageChoice, TextInput};
use retune::nn::{LanguageModelHead, Pass};
use retune_formats::{TensorSource, safetensors};
use retune_tensor::ops::{self, AdamW, LossRows, adamw_step};
use retune_tensor::{Gradients, ParamId, Segments, Tape, Tensor};

pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(path)
}

pub fn open(path: &Path) -> safetensors::File {
    safetensors::File::open(path).unwrap_or_else(|e| panic!("{e}"))
}

/// A batch as the references have it, with the padding taken away.
pub struct Inputs {
    pub ids: Vec<u32>,
    pub segments: Segments,
    /// Packed rows in the padded matrix.
    pub places: Vec<usize>,
    pub labels: LossRows,
    /// Rows and columns of the padded matrix.
    pub padded: (usize, usize),
}

fn i64s(file: &safetensors::File, name: &str) -> (Vec<usize>, Vec<i64>) {
    let shape = file.get(name).unwrap_or_else(|e| panic!("{e}")).shape.clone();
    let bytes = file.read(name).unwrap_or_else(|e| panic!("{e}"));
    (shape, bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect())
}

impl Inputs {
    pub fn read(path: &Path) -> Inputs {
        let file = open(path);
        let (shape, ids) = i64s(&file, "input_ids");
        let (_, mask) = i64s(&file, "attention_mask");
        let (_, labels) = i64s(&file, "labels");
        let (rows, cols) = (shape[0], shape[1]);
        let (mut packed, mut places, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut loss = LossRows::default();
        for r in 0..rows {
            let first = packed.len();
            for c in 0..cols {
                let at = r * cols + c;
                if mask[at] == 0 {
                    continue;
                }
                // transformers predicts label c from row c - 1.
                if labels[at] >= 0 && packed.len() > first {
                    loss.rows.push(packed.len() - 1);
                    loss.targets.push(labels[at] as u32);
                    loss.weights.push(1.0);
                }
                packed.push(ids[at] as u32);
                places.push(at);
            }
            lengths.push(packed.len() - first);
        }
        loss.denominator = loss.rows.len() as f32;
        Inputs {
            ids: packed,
            segments: Segments::from_lengths(&lengths),
            places,
            labels: loss,
            padded: (rows, cols),
        }
    }
}

/// `max|a - b| <= tolerance max|b|`.
pub fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let worst = got
        .iter()
        .zip(want)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0f32, |m, d| if d > m || d.is_nan() { d } else { m });
    assert!(worst <= tolerance * largest, "{what}: off by {worst}, largest value {largest}");
}

pub fn load(path: &Path, storage: StorageChoice) -> Model {
    Model::load(path, storage).unwrap_or_else(|e| panic!("{e}"))
}

pub fn lm_head(model: &Model) -> &LanguageModelHead {
    model.net.language_model().expect("a language model")
}

/// All logits, packed.
pub fn logits(model: &Model, inputs: &Inputs) -> Tensor {
    let tape = Tape::inference(&model.params);
    let input = TextInput::new(&inputs.ids, &inputs.segments);
    let hidden = model.net.as_text().expect("text").hidden(&tape, &input, &Pass::default());
    lm_head(model).forward(&tape, &hidden.rows, &hidden.x).value().clone()
}

/// Loss and gradients of one batch.
pub fn loss_and_gradients(model: &Model, inputs: &Inputs, pass: &Pass) -> (f32, Gradients) {
    let tape = Tape::new(&model.params);
    let hidden = model.net.as_text().expect("text").hidden(
        &tape,
        &TextInput::new(&inputs.ids, &inputs.segments),
        pass,
    );
    let head = lm_head(model);
    let x = head.transform(&tape, &hidden.rows, &hidden.x);
    let head = tape.weight(head.linear.weight);
    let loss = ops::linear_cross_entropy(&tape, &x, &head, &inputs.labels);
    let value = loss.value().data()[0];
    let mut gradients = Gradients::new();
    tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
    (value, gradients)
}

/// The logits of the real positions against the reference's padded matrix.
pub fn check_logits(model: &Model, inputs: &Inputs, reference: &Path, tolerance: f32) {
    let got = logits(model, inputs);
    let file = open(reference);
    let want = file.read_f32("logits").unwrap_or_else(|e| panic!("{e}"));
    let cols = got.cols();
    let want: Vec<f32> = inputs.places.iter().flat_map(|p| want[p * cols..(p + 1) * cols].to_vec()).collect();
    close("logits", got.data(), &want, tolerance);
}

/// Trains with AdamW as the references did; returns the loss before each step.
pub struct Trainer {
    pub moments: std::collections::BTreeMap<ParamId, (Tensor, Tensor)>,
    pub step: u64,
}

impl Trainer {
    pub fn new() -> Trainer {
        Trainer { moments: Default::default(), step: 0 }
    }

    pub fn step(&mut self, model: &mut Model, inputs: &Inputs) -> f32 {
        let (loss, gradients) = loss_and_gradients(model, inputs, &Pass::default());
        self.update(model, &gradients);
        loss
    }

    pub fn update(&mut self, model: &mut Model, gradients: &Gradients) {
        self.step += 1;
        for (id, g) in gradients.iter() {
            let zeros = || Tensor::zeros(g.rows(), g.cols());
            let (m, v) = self.moments.entry(id).or_insert_with(|| (zeros(), zeros()));
            let p = model.params.tensor_mut(id).expect("trainable parameters are f32");
            let o = AdamW { lr: 1e-2, ..AdamW::default() };
            adamw_step(o, self.step, 1.0, p.data_mut(), g.data(), m.data_mut(), v.data_mut());
        }
    }
}
