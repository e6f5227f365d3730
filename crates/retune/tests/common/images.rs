//! Tiny random networks over pixels, pictures for them, and what a network says of them.

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
/// Lines and columns of the pictures that they read.
pub const SIDE: usize = 32;

/// A VGG of three stages with a dense layer, whose input is pictures of `side` pixels.
pub fn vgg(batch_norm: bool, side: usize) -> Value {
    json!({
        "model_type": "vgg", "cfg": [6, "M", 7, "M", 8, "M"], "batch_norm": batch_norm, "dense": [10],
        "grid": side / 8, "num_labels": CLASSES, "image_input": Prepare::torchvision(side, side),
    })
}

/// A YOLOv3-tiny's layers with few channels: two scales, a route over half of the channels, a residual sum.
const DARKNET: &str = "[net]
width=32
height=32
[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=6
size=3
pad=1
activation=mish
[route]
layers=-1
groups=2
group_id=1
[convolutional]
batch_normalize=1
filters=6
size=1
activation=leaky
[convolutional]
batch_normalize=1
filters=6
groups=6
size=3
pad=1
activation=leaky
[shortcut]
from=-4
activation=linear
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=1
[convolutional]
size=1
filters=16
activation=linear
[yolo]
mask=1,2
anchors=4,5, 8,9, 16,12
num=3
classes=3
[route]
layers=-3
[upsample]
stride=2
[route]
layers=-1,6
[convolutional]
size=1
filters=8
activation=linear
[yolo]
mask=0
anchors=4,5, 8,9, 16,12
num=3
classes=3
";

/// A network of each architecture for pictures of 32 pixels, with its name.
pub fn every() -> Vec<(&'static str, Value)> {
    let stage = |width: usize, repeats: usize, kernel: usize, stride: usize, expand: usize| json!({ "width": width, "repeats": repeats, "kernel": kernel, "stride": stride, "expand": expand });
    let efficientnet = json!({
        "model_type": "efficientnet_lite", "stem": 4, "head": 8, "num_labels": CLASSES,
        "stages": [
            stage(4, 1, 3, 1, 1), stage(6, 2, 3, 2, 2), stage(4, 1, 5, 2, 1), stage(6, 1, 3, 2, 2), stage(4, 1, 5, 1, 1),
            stage(6, 1, 5, 2, 1), stage(8, 1, 3, 1, 1),
        ],
        "image_input": Prepare::torchvision(SIDE, SIDE),
    });
    let yolov8 = json!({
        "model_type": "yolov8", "widths": [2, 4, 4, 4, 6], "repeats": [1, 0, 1, 0], "neck_widths": [4, 4, 4, 6],
        "neck_repeats": [0, 1, 0, 0], "towers": [4, 4], "reg_max": 3, "num_labels": CLASSES,
        "image_input": Prepare::ultralytics(SIDE),
    });
    vec![
        ("vgg", vgg(false, SIDE)),
        ("vgg_bn", vgg(true, SIDE)),
        ("efficientnet", efficientnet),
        ("darknet", json!({ "model_type": "darknet", "cfg": DARKNET })),
        ("yolov8", yolov8),
    ]
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

    /// What the head says, one row for each picture, on a tape: logits of the classes, or all cells of a detector's scales side by side.
    pub fn forward<'p>(&self, tape: &Tape<'p>, model: &'p Model, pass: &Pass) -> Var {
        let net = model.net.as_image().expect("pictures");
        let state = net.trunk(tape, self.x.clone(), self.grid, pass);
        if let Head::Classifier(head) = model.net.head() {
            return head.forward(tape, &net.hidden(&state, pass).expect("an output"));
        }
        let scales = net.detect(tape, &state, pass);
        assert!(!scales.is_empty(), "neither a classifier nor a detector");
        let rows = |(x, grid, _): &(Var, Grid, usize)| {
            ops::reshape(tape, x, grid.images, grid.pixels() * x.value().cols())
        };
        let rows: Vec<Var> = scales.iter().map(rows).collect();
        ops::concat_columns(tape, &rows.iter().collect::<Vec<_>>())
    }

    pub fn logits(&self, model: &Model, pass: &Pass) -> Tensor {
        self.forward(&Tape::inference(&model.params), model, pass).value().clone()
    }

    /// Cross-entropy of the classes, or a detector's mean square distance from numbers that follow from them, divided by `denominator`.
    pub fn loss<'p>(&self, tape: &Tape<'p>, model: &'p Model, pass: &Pass, denominator: f32) -> Var {
        let n = self.classes.len();
        let said = self.forward(tape, model, pass);
        if let Head::Detector(_) = model.net.head() {
            let cols = said.value().cols();
            let target = |row: usize, c: usize| ((self.classes[row] as usize + c) % 5) as f32 / 5.0;
            return ops::mse(tape, &said, &Tensor::from_fn(n, cols, target), denominator * cols as f32);
        }
        let labels = LossRows {
            rows: (0..n).collect(),
            targets: self.classes.clone(),
            weights: vec![1.0; n],
            denominator,
        };
        ops::cross_entropy(tape, &said, &labels)
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
