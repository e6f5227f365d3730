//! A reference case of an adapter: what PEFT or AdapterHub computed with it, and whether a model gives the same.

use std::path::{Path, PathBuf};

use retune::methods::Attached;
use retune::models::{Model, TextInput};
use retune::nn::{Head, Pass};
use retune_formats::{TensorSource, safetensors};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Gradients, ParamId, Segments, Tape, Tensor, Var};

use super::{Trainer, close, data, open};

pub const TOLERANCE: f32 = 1e-4;

/// A batch without its padding. Rows of a soft prompt stand in front of each example: labels of tokens move down, and the
/// last of those rows predicts the first token.
pub struct Case {
    pub ids: Vec<u32>,
    token_types: Vec<u32>,
    pub segments: Segments,
    labels: LossRows,
    folder: PathBuf,
    meta: serde_json::Value,
    /// Rows of the reference's logits in our order.
    places: Vec<usize>,
}

fn i64s(file: &safetensors::File, name: &str) -> Option<(Vec<usize>, Vec<i64>)> {
    let shape = file.find(name)?.shape.clone();
    let bytes = file.read(name).expect(name);
    Some((shape, bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()))
}

impl Case {
    /// Labels of tokens are those of the next token.
    pub fn read(name: &str, prompt_rows: usize) -> Case {
        let folder = data("parity").join(name);
        let file = open(&folder.join("inputs.safetensors"));
        let (shape, ids) = i64s(&file, "input_ids").expect("ids");
        let (_, mask) = i64s(&file, "attention_mask").expect("mask");
        let (label_shape, labels) = i64s(&file, "labels").expect("labels");
        let types = i64s(&file, "token_type_ids").map(|(_, types)| types);
        let (of_texts, padded, n) = (label_shape.len() == 1, shape[1], prompt_rows);
        let real: Vec<usize> = (0..ids.len()).filter(|&at| mask[at] != 0).collect();
        let (mut lengths, mut places, mut loss) = (Vec::new(), Vec::new(), LossRows::default());
        let mut add = |row: usize, label: i64| {
            if label >= 0 {
                loss.rows.push(row);
                loss.targets.push(label as u32);
                loss.weights.push(1.0);
            }
        };
        for example in 0..shape[0] {
            let own: Vec<usize> = real.iter().copied().filter(|at| at / padded == example).collect();
            places.extend((0..n).map(|i| example * (padded + n) + i));
            for &at in &own {
                if !of_texts && (at % padded > 0 || n > 0) {
                    add(places.len() - 1, labels[at]);
                }
                places.push(example * (padded + n) + n + at % padded);
            }
            if of_texts {
                add(example, labels[example]);
            }
            lengths.push(own.len());
        }
        // Of a text without a prompt the first token has no label.
        loss.denominator = loss.rows.len() as f32;
        let text = std::fs::read_to_string(folder.join("meta.json")).expect("meta");
        Case {
            ids: real.iter().map(|&at| ids[at] as u32).collect(),
            token_types: types.map(|t| real.iter().map(|&at| t[at] as u32).collect()).unwrap_or_default(),
            segments: Segments::from_lengths(&lengths),
            labels: loss,
            meta: serde_json::from_str(&text).expect("json"),
            places: if of_texts { (0..shape[0]).collect() } else { places },
            folder,
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn file(&self, name: &str) -> safetensors::File {
        open(&self.folder.join(name))
    }

    fn logits_on<'p>(&self, model: &'p Model, tape: &Tape<'p>, pass: &Pass) -> Var {
        let input = TextInput { token_types: &self.token_types, ..TextInput::new(&self.ids, &self.segments) };
        let hidden = model.net.as_text().expect("text").hidden(tape, &input, pass);
        match model.net.head() {
            Head::LanguageModel(head) => head.forward(tape, &hidden.rows, &hidden.x),
            Head::Classifier(head) => head.forward(tape, &hidden),
            Head::Detector(_) | Head::None => panic!("the model has no head"),
        }
    }

    pub fn logits(&self, model: &Model, pass: &Pass) -> Tensor {
        self.logits_on(model, &Tape::inference(&model.params), pass).value().clone()
    }

    pub fn check_logits(&self, model: &Model, pass: &Pass, what: &str) {
        self.check_logits_of(&self.folder, model, pass, what);
    }

    /// Against the logits in another folder, for the same inputs.
    pub fn check_logits_of(&self, folder: &Path, model: &Model, pass: &Pass, what: &str) {
        let got = self.logits(model, pass);
        let want = open(&folder.join("logits.safetensors")).read_f32("logits").expect("logits");
        let cols = got.cols();
        let rows = self.places.iter().flat_map(|p| want[p * cols..(p + 1) * cols].to_vec());
        close(what, got.data(), &rows.collect::<Vec<f32>>(), TOLERANCE);
    }

    pub fn loss_and_gradients(&self, model: &Model, pass: &Pass) -> (f32, Gradients) {
        let tape = Tape::new(&model.params);
        let loss = ops::cross_entropy(&tape, &self.logits_on(model, &tape, pass), &self.labels);
        let value = loss.value().data()[0];
        let mut gradients = Gradients::new();
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        (value, gradients)
    }

    /// Compares logits, loss, gradients, one AdamW step and five losses. `find` knows the reference's names.
    pub fn check(&self, model: &mut Model, attached: &Attached, find: fn(&Model, &str) -> ParamId) {
        assert_eq!(self.meta["trainable"].as_u64(), Some(attached.trainable as u64), "trainable values");
        self.check_logits(model, &Pass::default(), "logits");
        let grads = self.file("grads.safetensors");
        for checkpoint in [false, true] {
            let (loss, gradients) = self.loss_and_gradients(model, &Pass { checkpoint, ..Pass::default() });
            close("loss", &[loss], &[self.meta["loss"].as_f64().expect("loss") as f32], TOLERANCE);
            for info in grads.tensors() {
                let got = gradients.get(find(model, &info.name));
                let got = got.unwrap_or_else(|| panic!("no gradient for {}", info.name));
                let what = format!("gradient of {}", info.name);
                close(&what, got.data(), &grads.read_f32(&info.name).expect("read"), TOLERANCE);
            }
            assert_eq!(grads.tensors().len(), gradients.iter().count(), "no other gradients");
        }
        let mut trainer = Trainer::new();
        for (step, want) in self.meta["adamw_losses"].as_array().expect("losses").iter().enumerate() {
            let (loss, gradients) = self.loss_and_gradients(model, &Pass::default());
            trainer.update(model, &gradients);
            let tolerance = if step == 0 { 1e-4 } else { 1e-3 };
            close(&format!("loss {step}"), &[loss], &[want.as_f64().expect("number") as f32], tolerance);
            if step == 0 {
                self.check_step(model, &grads, find);
            }
        }
    }

    /// Adam's first step is `g / (|g| + eps)`: where the gradient is smaller than its tolerance the direction is rounding's.
    fn check_step(&self, model: &Model, grads: &safetensors::File, find: fn(&Model, &str) -> ParamId) {
        let stepped = self.file("step1.safetensors");
        for info in stepped.tensors() {
            let mut got = model.params.get(find(model, &info.name)).weight.to_tensor();
            let want = stepped.read_f32(&info.name).expect("read");
            let gradient = grads.read_f32(&info.name).expect("read");
            let largest = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            for i in 0..want.len() {
                if gradient[i] != 0.0 && gradient[i].abs() < 1e-6f32.max(TOLERANCE * largest) {
                    got.data_mut()[i] = want[i];
                }
            }
            close(&format!("{} after a step", info.name), got.data(), &want, TOLERANCE);
        }
    }
}

/// A JSON file.
pub fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("json")
}
