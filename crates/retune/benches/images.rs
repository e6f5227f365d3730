//! Training steps of image networks, as `scripts/peer/bench_images.py` runs them with PyTorch:
//! `cargo bench -p retune --bench images -- --network vgg16 --method lora --json`.
//!
//! Random weights and pictures: speed does not depend on the values. Pictures are not decoded: what is measured is the network, its loss and
//! AdamW. With `--method head`, the speed from the second epoch on is told besides: the trunk's rows are kept then.

mod common;

use std::path::Path;

use common::{Args, resident_mib, round, timed};
use retune::methods;
use retune::models::{HeadRequest, ImageModel, Model, Network, StorageChoice, fresh};
use retune::nn::{Head, Pass, Problem};
use retune::objective::{Objective, ObjectiveError};
use retune::run_file::RunFile;
use retune::tasks::detection::{BoxF, LabelledBox, Output, detector, loss};
use retune::tasks::images::{ImageCache, Trunk};
use retune::tasks::trunk_cache::Limits;
use retune_tensor::ops::{self, LossRows};
use retune_tensor::rng::Stream;
use retune_tensor::{Grid, Tape, Tensor, Var, kernel, memory};
use serde_json::{Value, json};

const USAGE: &str = "\
images --network vgg16|yolov3-tiny [--cfg FILE] [--method full|lora|head|partial] [--size N] [--batch N] [--checkpoint]
       [--steps 4] [--warm 1] [--threads 2] [--json]

--cfg FILE   darknet's yolov3-tiny.cfg (its weights are drawn anew)
--method     lora: rank 8 on every convolution; head: the last layer; of yolov3-tiny the convolutions in front of [yolo]";

const OPTIONS: &[&str] =
    &["network", "cfg", "method", "size", "batch", "checkpoint", "steps", "warm", "threads", "json"];

fn run_file(method: &str) -> RunFile {
    let settings = match method {
        "lora" => "[lora]\nrank = 8\nlora_alpha = 16\nlora_dropout = 0",
        _ => "",
    };
    let text = format!("model = 'm'\ndata = 'd'\nmethod = '{method}'\nlr = 1e-4\n{settings}\n");
    RunFile::from_toml("bench", &text).unwrap_or_else(|e| panic!("{e}"))
}

/// torchvision's VGG16, pooled over the last pixels where the size is not 224.
fn vgg16(size: usize) -> Value {
    let mut cfg = Vec::new();
    for (width, times) in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)] {
        cfg.extend(vec![json!(width); times]);
        cfg.push(json!("M"));
    }
    json!({
        "model_type": "vgg", "cfg": cfg, "batch_norm": false, "dense": [], "num_labels": 10,
        "image_input": {"width": size, "height": size, "fit": "stretch"},
    })
}

fn darknet(cfg: &Path) -> Value {
    let text = std::fs::read_to_string(cfg).unwrap_or_else(|e| panic!("{}: {e}", cfg.display()));
    json!({"model_type": "darknet", "cfg": text})
}

/// Random pictures and labels.
struct Noise<'a> {
    net: &'a ImageModel,
    x: Tensor,
    grid: Grid,
    checkpoint: bool,
    cache: Option<&'a ImageCache>,
    steps: usize,
}

impl Noise<'_> {
    fn loss_of<'p>(&'p self, tape: &Tape<'p>, batch: &[usize]) -> Var {
        let pass = Pass { checkpoint: self.checkpoint, ..Pass::default() };
        let start = || self.net.start(Var::constant(self.x.clone()), self.grid);
        let blocks = 0..self.net.blocks();
        let (state, hidden) = match self.cache {
            Some(cache) => {
                let keys: Vec<u64> = batch.iter().map(|&e| e as u64).collect();
                let read = |_: &[usize]| Ok::<_, std::convert::Infallible>((self.x.clone(), self.grid));
                match cache.trunk(tape, self.net, &keys, &pass, &read).unwrap_or_else(|e| match e {}) {
                    Trunk::State(state) => (Some(state), None),
                    Trunk::Pooled(hidden) => (None, Some(hidden)),
                }
            }
            None => (Some(self.net.run(tape, start(), blocks, &pass)), None),
        };
        match self.net.head() {
            Head::Classifier(head) => {
                let hidden = hidden.or_else(|| self.net.hidden(state.as_ref()?, &pass)).expect("an output");
                let logits = head.forward(tape, &hidden);
                let rows = LossRows {
                    rows: (0..batch.len()).collect(),
                    targets: batch.iter().map(|&e| (e % logits.cols()) as u32).collect(),
                    weights: vec![1.0; batch.len()],
                    denominator: batch.len() as f32,
                };
                ops::cross_entropy(tape, &logits, &rows)
            }
            _ => {
                let outputs = self.net.detect(tape, &state.expect("a state"), &pass);
                let given: Vec<Output> = outputs
                    .iter()
                    .map(|(v, grid, stride)| Output { values: v.value(), grid: *grid, stride: *stride })
                    .collect();
                let bounds = BoxF { x: 0.5, y: 0.5, w: 0.3, h: 0.4 };
                let truths = vec![vec![LabelledBox { class: 1, bounds }]; batch.len()];
                let detector = detector(self.net).unwrap_or_else(|e| panic!("{e}"));
                let found =
                    loss(detector, &given, &truths, batch.len() as f64).unwrap_or_else(|e| panic!("{e}"));
                let vars: Vec<&Var> = outputs.iter().map(|(v, ..)| v).collect();
                ops::given_loss(tape, &vars, found.total as f32, found.gradients)
            }
        }
    }
}

impl Objective for Noise<'_> {
    fn len(&self) -> usize {
        self.steps * self.grid.images
    }

    fn rows(&self, _example: usize) -> usize {
        self.grid.pixels()
    }

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn describe(&self, example: usize) -> String {
        format!("picture {example}")
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        _epoch: u64,
        _denominator: f64,
    ) -> Result<Var, ObjectiveError> {
        Ok(self.loss_of(tape, batch))
    }
}

fn main() {
    let Some(args) = Args::read(USAGE, OPTIONS) else { return };
    let threads = args.threads();
    let network = args.text("network").unwrap_or("vgg16");
    let method = args.text("method").unwrap_or("lora");
    let (is_vgg, run) = (network == "vgg16", run_file(method));
    let size = args.get("size", if is_vgg { 240usize } else { 416 });
    let batch = args.get("batch", if is_vgg { 8usize } else { 4 });
    let (steps, warm) = (args.get("steps", 4usize), args.get("warm", 1usize));
    let folder = std::env::temp_dir().join(format!("retune-bench-{}", std::process::id()));
    let config = match is_vgg {
        true => vgg16(size),
        false => darknet(Path::new(args.text("cfg").unwrap_or_else(|| panic!("--cfg is missing\n{USAGE}")))),
    };
    fresh::write_folder(Path::new("bench"), &config, 1, None, &[], &folder).unwrap_or_else(|e| panic!("{e}"));
    let labels: Vec<String> = (0..10).map(|i| i.to_string()).collect();
    let (seed, image_size) = (0, Some((size, size)));
    let head = match is_vgg {
        true => HeadRequest::Classifier {
            problem: Problem::SingleLabel,
            labels,
            pooling: None,
            keep: false,
            seed,
            image_size,
        },
        false => HeadRequest::Detector { labels, keep: false, seed, image_size },
    };
    let model = Model::load_with(&folder, StorageChoice::F32, &head);
    let _ = std::fs::remove_dir_all(&folder);
    let mut model = model.unwrap_or_else(|e| panic!("{e}"));
    let spec = methods::find(&run.method).unwrap_or_else(|e| panic!("{e}"));
    let attached = (spec.attach)(&mut model, &run).unwrap_or_else(|e| panic!("{e}"));
    let Model { params, net, .. } = &mut model;
    let net = net.as_image().expect("an image network");
    let grid = Grid { images: batch, height: size, width: size };
    let stream = Stream::new(1, 2);
    let x = Tensor::from_fn(grid.rows(), 3, |r, c| stream.normal((3 * r + c) as u64));
    let limits = Limits { memory: 4 << 30, folder: None };
    let cache = (method == "head").then(|| ImageCache::new(net, params, limits)).flatten();
    let objective = Noise {
        net,
        x,
        grid,
        checkpoint: args.has("checkpoint"),
        cache: cache.as_ref(),
        steps: steps + warm,
    };
    let took = timed(params, &objective, &run, batch, (warm, steps), cache.is_some());
    let line = json!({
        "engine": "retune", "bench": "images", "network": network, "method": method, "size": size, "batch": batch,
        "trainable": attached.trainable, "steps": took.steps, "s_per_step_median": round(took.first, 4),
        "s_per_step_later_epochs": took.later.map(|s| round(s, 5)), "peak_rss_mib": round(resident_mib("VmHWM"), 1),
        "peak_tensor_mib": round(memory::peak_bytes() as f64 / 1_048_576.0, 1), "threads": threads,
        "kernel": kernel::level().name(),
    });
    match args.has("json") {
        true => println!("{line}"),
        false => println!("{line:#}"),
    }
}
