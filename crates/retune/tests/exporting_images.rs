//! Networks over pixels come back in the form that their own programs load, and say the same: files of torchvision's, EfficientNet-PyTorch's and
//! Ultralytics' names, and darknet's `.cfg` with `.weights`.

mod common;

use std::path::Path;

use common::close;
use common::images::{self, Pictures, SIDE};
use retune::export::{ExportDtype, ExportOptions, write};
use retune::methods::{self, full};
use retune::models::{HeadRequest, LoadOptions, Model};
use retune::nn::{Head, Pass};
use retune::run_file::RunFile;
use retune_formats::darknet::{Header, Weights};
use retune_formats::{TensorSource, safetensors};
use retune_tensor::Tensor;
use retune_tensor::rng::Stream;
use serde_json::{Value, json};

/// The head of a network for other classes than its files'.
fn request(config: &Value) -> HeadRequest {
    // The names of a file that has none.
    let (labels, image_size) = (["LABEL_0", "LABEL_1"].map(String::from).to_vec(), Some((SIDE, SIDE)));
    match config["model_type"].as_str() {
        Some("darknet" | "yolov8") => HeadRequest::Detector { labels, keep: true, seed: 3, image_size },
        _ => HeadRequest::Classifier {
            problem: Default::default(),
            labels,
            pooling: None,
            keep: true,
            seed: 3,
            image_size,
        },
    }
}

/// A network with two classes, all of its weights as if they had been trained.
fn trained(config: &Value, folder: &Path) -> Model {
    images::write(config, folder);
    let mut model = load(folder, &request(config));
    full::attach(&mut model).unwrap();
    move_all(&mut model);
    model
}

/// Moves all that is trainable a little.
fn move_all(model: &mut Model) {
    for id in model.params.trainable() {
        let stream = Stream::named(9, &model.params.get(id).name.clone());
        let values = model.params.tensor_mut(id).unwrap().data_mut();
        values.iter_mut().enumerate().for_each(|(i, v)| *v += 0.05 * stream.normal(i as u64));
    }
}

fn load(path: &Path, head: &HeadRequest) -> Model {
    Model::load_with(path, LoadOptions::default(), head).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn said(model: &Model) -> Tensor {
    Pictures::of(model, 2).logits(model, &Pass::default())
}

fn export(model: &Model, out: &Path) -> Vec<String> {
    let report = write(model, out, &ExportOptions::default(), &mut |_| {});
    report.unwrap_or_else(|e| panic!("{}: {e}", out.display())).files
}

fn refused(model: &Model, out: &Path, options: ExportOptions) -> String {
    write(model, out, &options, &mut |_| {}).expect_err("refused").to_string()
}

#[test]
fn a_file_of_weights_alone_tells_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for (name, config) in images::every().into_iter().filter(|(name, _)| *name != "darknet") {
        let model = trained(&config, &dir.path().join(name));
        let out = dir.path().join(format!("{name} out"));
        export(&model, &out);
        let file = out.join("model.safetensors");
        let of_folder = load(&out, &HeadRequest::AsFile);
        let alone = load(&file, &request(&config));
        for again in [of_folder, alone] {
            assert_eq!(said(&model).data(), said(&again).data(), "{name}");
        }
        let file = safetensors::File::open(&file).unwrap();
        for (network, tensor, shape) in [
            ("vgg", "features.0.weight", &[6, 3, 3, 3][..]),
            ("vgg", "classifier.0.weight", &[10, 8 * 16]),
            ("vgg_bn", "features.1.running_var", &[6]),
            ("efficientnet", "_blocks.0._depthwise_conv.weight", &[4, 1, 3, 3]),
            ("efficientnet", "_fc.weight", &[2, 8]),
            ("yolov8", "model.22.cv3.0.2.weight", &[2, 4, 1, 1]),
            ("yolov8", "model.22.dfl.conv.weight", &[1, 3, 1, 1]),
        ] {
            if network == name {
                assert_eq!(file.find(tensor).map(|info| info.shape.as_slice()), Some(shape), "{tensor}");
            }
        }
    }
}

#[test]
fn pixels_flattened_as_tensorflow_does_come_back_as_torch_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = images::vgg(false, SIDE);
    config["channels_last"] = json!(true);
    let model = trained(&config, &dir.path().join("base"));
    let out = dir.path().join("out");
    export(&model, &out);
    assert_eq!(model.net.config_json()["channels_last"], false);
    let first = |folder: &Path| {
        let file = safetensors::File::open(folder.join("model.safetensors")).unwrap();
        file.read_f32("classifier.0.weight").unwrap()
    };
    let id = model.params.find("classifier.0.weight").unwrap();
    let memory = model.params.get(id).weight.to_tensor();
    // Channel 1 of the first pixel lies behind the 4 x 4 pixels of channel 0.
    assert_eq!(first(&out)[16], memory.data()[1]);
    assert_eq!(said(&model).data(), said(&load(&out, &HeadRequest::AsFile)).data());
}

/// Darknet's network of [`images::every`].
fn darknet() -> Value {
    images::every().into_iter().find(|(name, _)| *name == "darknet").unwrap().1
}

#[test]
fn darknet_gets_its_own_files_back() {
    let dir = tempfile::tempdir().unwrap();
    let model = trained(&darknet(), &dir.path().join("base"));
    let out = dir.path().join("trees.cfg");
    assert_eq!(export(&model, &out), ["trees.cfg", "trees.names", "trees.weights"]);
    let again = load(&out, &HeadRequest::AsFile);
    assert_eq!(said(&model).data(), said(&again).data());
    let Head::Detector(head) = again.net.head() else { panic!("a detector") };
    assert_eq!(head.detector.labels, ["LABEL_0", "LABEL_1"]);
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.contains("filters=14") && text.contains("classes=2") && text.contains("activation=mish"));
    assert_eq!(Weights::open(dir.path().join("trees.weights")).unwrap().header(), Header::default());

    // And from there to a folder.
    let folder = dir.path().join("folder");
    export(&again, &folder);
    assert_eq!(said(&load(&folder, &HeadRequest::AsFile)).data(), said(&model).data());
}

#[test]
fn adapters_are_merged_into_darknets_files() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    images::write(&darknet(), &base);
    for settings in ["method = 'lora'\n[lora]\nuse_dora = true\nrank = 2\n", "method = 'ia3'\n"] {
        let mut model = load(&base, &request(&darknet()));
        let run = RunFile::from_toml("run", &format!("model = 'm'\ndata = 'd'\n{settings}")).unwrap();
        (methods::find(run.method.as_str()).unwrap().attach)(&mut model, &run).unwrap();
        move_all(&mut model);
        let out = dir.path().join("merged.cfg");
        let options = ExportOptions { overwrite: true, ..ExportOptions::default() };
        let report = write(&model, &out, &options, &mut |_| {}).unwrap();
        assert!(!report.merged.is_empty() && report.max_change > 0.0 && !report.same_base, "{settings}");
        close(settings, said(&load(&out, &HeadRequest::AsFile)).data(), said(&model).data(), 1e-5);
    }
}

#[test]
fn what_darknet_has_no_place_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = trained(&darknet(), &dir.path().join("base"));
    let out = dir.path().join("a.cfg");
    let bf16 = ExportOptions { dtype: ExportDtype::BF16, ..ExportOptions::default() };
    assert!(refused(&model, &out, bf16).contains("f32 alone"));
    assert!(!out.exists());
    export(&model, &out);
    assert!(refused(&model, &out, ExportOptions::default()).contains("--overwrite"));
    let overwrite = || ExportOptions { overwrite: true, ..ExportOptions::default() };
    let own = load(&out, &HeadRequest::AsFile);
    for name in ["a.cfg", "a.weights"] {
        assert!(refused(&own, &dir.path().join(name), overwrite()).contains("own file"), "{name}");
    }
    let vgg = trained(&images::vgg(false, SIDE), &dir.path().join("vgg"));
    assert!(refused(&vgg, &dir.path().join("vgg.cfg"), overwrite()).contains("vgg model has no darknet"));
}

#[test]
fn darknets_own_weights_come_back_to_the_byte() {
    let Some(cfg) = std::env::var_os("RETUNE_TEST_YOLO").map(std::path::PathBuf::from) else {
        eprintln!("SKIPPED: set RETUNE_TEST_YOLO to yolov3-tiny.cfg, its .weights beside it, to run this");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let model = load(&cfg, &HeadRequest::AsFile);
    let options = ExportOptions::default();
    assert!(write(&model, &dir.path().join("again.cfg"), &options, &mut |_| {}).unwrap().same_base);
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    let (was, now) = (bytes(&cfg.with_extension("weights")), bytes(&dir.path().join("again.weights")));
    // Behind the header, whose count of pictures differs.
    assert!(was[20..] == now[20..]);
}
