//! Tiny random networks over pixels, pictures for them, and what a classifier says of them.

use std::path::Path;

use retune::models::{Model, StorageChoice, fresh};
use retune::nn::{Head, Pass};
use retune_formats::{TensorOut, TensorSource, safetensors};
use retune_media::pictures::Prepare;
use retune_tensor::ops::{self, LossRows};
use retune_tensor::rng::Stream;
use retune_tensor::{Gradients, Grid, Tape, Tensor, Var};
use serde_json::{Value, json};

/// Classes of the networks here.
pub const CLASSES: usize = 3;

/// A VGG of three stages with a dense layer, whose input is pictures of `side` pixels.
pub fn vgg(batch_norm: bool, side: usize) -> Value {
    json!({
        "model_type": "vgg", "cfg": [6, "M", 7, "M", 8, "M"], "batch_norm": batch_norm, "dense": [10],
        "grid": side / 8, "num_labels": CLASSES, "image_input": Prepare::torchvision(side, side),
    })
}

/// Writes a new network of this configuration; vectors (biases, norms and their statistics) are drawn too, so that none of them is a zero or a one.
pub fn write(config: &Value, folder: &Path) {
    fresh::write_folder(Path::new("config.json"), config, 3, None, &[], folder)
        .unwrap_or_else(|e| panic!("{e}"));
    let path = folder.join("model.safetensors");
    let file = safetensors::File::open(&path).expect("weights");
    let drawn = |name: &str, values: Vec<f32>| -> Vec<f32> {
        let stream = Stream::named(5, name);
        let near = |(i, x): (usize, f32)| {
            if name.ends_with("var") {
                x + stream.uniform(i as u64)
            } else {
                x + 0.1 * stream.normal(i as u64)
            }
        };
        values.into_iter().enumerate().map(near).collect()
    };
    let tensors: Vec<TensorOut> = file
        .tensors()
        .iter()
        .map(|info| {
            let values = file.read_f32(&info.name).expect("values");
            let values = if info.shape.len() == 1 { drawn(&info.name, values) } else { values };
            TensorOut::f32(info.name.clone(), &info.shape, values)
        })
        .collect();
    drop(file);
    std::fs::remove_file(&path).expect("old weights");
    safetensors::write(&path, tensors, &[]).expect("weights");
}

pub fn load(folder: &Path, storage: StorageChoice) -> Model {
    Model::load(folder, storage).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

/// Pictures `[images * height * width, 3]` as a network reads them, and their classes.
#[derive(Clone)]
pub struct Pictures {
    pub x: Tensor,
    pub grid: Grid,
    pub classes: Vec<u32>,
}

impl Pictures {
    pub fn of(model: &Model, images: usize) -> Pictures {
        let input = model.net.as_image().expect("pictures").input();
        let grid = Grid { images, height: input.height, width: input.width };
        let stream = Stream::named(8, "pictures");
        let x = Tensor::from_fn(grid.rows(), 3, |row, c| stream.normal((3 * row + c) as u64));
        Pictures { x, grid, classes: (0..images).map(|i| (i * 7 % CLASSES) as u32).collect() }
    }

    /// One of them alone.
    pub fn one(&self, image: usize) -> Pictures {
        self.pick(&[image])
    }

    /// Some of them.
    pub fn pick(&self, images: &[usize]) -> Pictures {
        let each = 3 * self.grid.pixels();
        let values: Vec<f32> =
            images.iter().flat_map(|i| self.x.data()[i * each..][..each].to_vec()).collect();
        let grid = Grid { images: images.len(), ..self.grid };
        Pictures {
            x: Tensor::from_vec(grid.rows(), 3, values),
            grid,
            classes: images.iter().map(|&i| self.classes[i]).collect(),
        }
    }

    /// Logits `[images, classes]` on a tape.
    pub fn forward<'p>(&self, tape: &Tape<'p>, model: &'p Model, pass: &Pass) -> Var {
        let net = model.net.as_image().expect("pictures");
        let state =
            net.run(tape, net.start(Var::constant(self.x.clone()), self.grid), 0..model.net.blocks(), pass);
        let Head::Classifier(head) = model.net.head() else { panic!("no classifier") };
        head.forward(tape, &net.hidden(&state, pass).expect("an output"))
    }

    pub fn logits(&self, model: &Model, pass: &Pass) -> Tensor {
        self.forward(&Tape::inference(&model.params), model, pass).value().clone()
    }

    /// Cross-entropy of the classes, divided by `denominator`.
    pub fn loss<'p>(&self, tape: &Tape<'p>, model: &'p Model, pass: &Pass, denominator: f32) -> Var {
        let n = self.classes.len();
        let logits = self.forward(tape, model, pass);
        let labels = LossRows {
            rows: (0..n).collect(),
            targets: self.classes.clone(),
            weights: vec![1.0; n],
            denominator,
        };
        ops::cross_entropy(tape, &logits, &labels)
    }

    pub fn loss_and_gradients(&self, model: &Model, pass: &Pass) -> (f32, Gradients) {
        let tape = Tape::new(&model.params);
        let loss = self.loss(&tape, model, pass, self.classes.len() as f32);
        let value = loss.value().data()[0];
        let mut gradients = Gradients::new();
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        (value, gradients)
    }
}
