//! Small networks written out here: they build, wrong ones are refused with their line, and what is written is read back.

use std::borrow::Cow;
use std::path::Path;

use retune_formats::darknet::{Header, write_weights};
use retune_tensor::{Grid, Tape, Tensor, Var};

use super::*;
use crate::error::Error;
use crate::models::Network;
use crate::nn::{Head, Pass};

/// Two scales, a residual sum, half of the channels taken: 32 x 32 pictures.
const TINY: &str = "[net]
width=32
height=32
[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky
[route]
layers=-1
groups=2
group_id=1
[convolutional]
filters=2
activation=swish
[route]
layers=-1,-3
[convolutional]
filters=6
activation=linear
[shortcut]
from=-2
activation=relu
[maxpool]
size=2
stride=2
[maxpool]
size=2
stride=1
[convolutional]
filters=14
activation=linear
[yolo]
mask=1,2
anchors=4,5, 8,9, 16,12
num=3
classes=2
scale_x_y=1.05
iou_loss=ciou
[route]
layers=-3
[upsample]
stride=2
[route]
layers=-1,5
[convolutional]
filters=7
activation=linear
[yolo]
mask=0
anchors=4,5, 8,9, 16,12
num=3
classes=2
";

fn plan(text: &str) -> Result<Plan> {
    Plan::new(&darknet_config(text)?)
}

fn darknet_config(text: &str) -> Result<retune_formats::darknet::Config> {
    Ok(retune_formats::darknet::Config::parse("a.cfg", text)?)
}

/// Writes `TINY` with numbers 0.01, 0.02, ... into a folder.
fn write_tiny(folder: &Path) -> std::path::PathBuf {
    let (cfg, weights) = (folder.join("tiny.cfg"), folder.join("tiny.weights"));
    std::fs::write(&cfg, TINY).unwrap();
    let plan = plan(TINY).unwrap();
    let shapes = (0..plan.layers.len()).flat_map(|n| plan.tensors(n));
    let n: usize = shapes.map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let values: Vec<f32> = (0..n).map(|i| 0.01 * ((i * 7) % 23 + 1) as f32).collect();
    write_weights(&weights, Header::default(), [Cow::Owned(values)]).unwrap();
    cfg
}

fn outputs(model: &Model) -> Vec<(Tensor, Grid, usize)> {
    let net = model.image().unwrap();
    let input = net.input();
    let grid = Grid { images: 2, height: input.height, width: input.width };
    let x = Tensor::from_fn(grid.rows(), 3, |r, c| ((r * 3 + c) % 17) as f32 / 17.0);
    let tape = Tape::inference(&model.params);
    let pass = Pass::default();
    let state = net.run(&tape, net.start(Var::constant(x), grid), 0..net.blocks(), &pass);
    let found = net.detect(&tape, &state, &pass);
    found.into_iter().map(|(x, grid, stride)| (x.value().clone(), grid, stride)).collect()
}

#[test]
fn a_network_is_built_as_its_text_says() {
    let plan = plan(TINY).unwrap();
    assert_eq!((plan.classes, plan.layers.len()), (2, 15));
    let channels: Vec<usize> = plan.layers.iter().map(|layer| layer.channels).collect();
    assert_eq!(channels, [4, 2, 2, 6, 6, 6, 6, 6, 14, 14, 6, 6, 12, 7, 7]);
    let scales: Vec<_> = plan.heads().map(|(at, scale)| (at, scale.anchors.clone())).collect();
    assert_eq!(scales, [(8, vec![(8.0, 9.0), (16.0, 12.0)]), (13, vec![(4.0, 5.0)])]);

    let dir = tempfile::tempdir().unwrap();
    let model = Model::load(&write_tiny(dir.path()), LoadOptions::default()).unwrap();
    let shapes: Vec<_> =
        outputs(&model).iter().map(|(x, grid, stride)| (x.rows(), x.cols(), grid.width, *stride)).collect();
    assert_eq!(shapes, [(128, 14, 8, 4), (512, 7, 16, 2)]);
    let heads: Vec<&str> = model.net.head().linears().iter().map(|linear| linear.path.as_str()).collect();
    assert_eq!(heads, ["layers.8.conv", "layers.13.conv"]);
    let config = model.net.config_json();
    assert_eq!(config["id2label"]["1"], "LABEL_1");
    assert_eq!(config["architectures"][0], "DarknetForObjectDetection");
}

#[test]
fn mistakes_are_told_with_their_line() {
    let with = |from: &str, to: &str| TINY.replacen(from, to, 1);
    for (text, words) in [
        (with("layers=-1,-3", "layers=-1,9"), &["a.cfg:19:", "layer 3", "earlier ones alone"][..]),
        (with("layers=-1,-3", "layers=-1,3"), &["a.cfg:19:", "earlier ones alone"]),
        (with("layers=-1,-3", "layers=-9"), &["a.cfg:19:", "-9"]),
        (with("layers=-3", "layers=-1"), &["a.cfg:43:", "is a [yolo] layer"]),
        (with("layers=-3", "layers=-2"), &["a.cfg:43:", "alone may read it"]),
        (with("from=-2", "from=-4"), &["a.cfg:24:", "cannot be added"]),
        (with("group_id=1", "group_id=2"), &["a.cfg:13:", "no group 2 of 2"]),
        (with("filters=14", "filters=15"), &["a.cfg:35:", "filters = 15", "need 14"]),
        (with("filters=4\n", "filters=99999999\n"), &["a.cfg:6:", "filters", "99999999"]),
        (with("activation=swish", "activation=selu"), &["a.cfg:17:", "selu"]),
        (with("mask=1,2", "mask=1,3"), &["a.cfg:36:", "mask"]),
        (with("num=3", "num=2"), &["a.cfg:37:", "num = 2"]),
        (with("[upsample]", "[reorg]"), &["a.cfg:44:", "not supported"]),
        (with("width=32", "width=0"), &["a.cfg:2:", "width"]),
        (with("classes=2\nscale", "classes=3\nscale"), &["a.cfg:35:", "need 16"]),
        (with("layers=-1,-3", "layers=3"), &["a.cfg:19:", "layer 3", "earlier ones alone"]),
        (with("layers=-1,-3", "layers="), &["a.cfg:19:", "names no layer"]),
        (with("layers=-1,-3", "layers=99999999999999999999"), &["a.cfg:19:", "a whole number"]),
        (with("layers=-1,-3", "layers=-9223372036854775808"), &["a.cfg:19:", "a whole number"]),
        (with("from=-2", "from=-1048576"), &["a.cfg:24:", "none of the 5"]),
        (with("from=-2", "from=-2,-3"), &["a.cfg:24:", "more than two"]),
        (with("filters=4\n", "filters=-4\n"), &["a.cfg:6:", "`-4`"]),
        (with("filters=4\n", "filters=0\n"), &["a.cfg:6:", "from 1"]),
        (with("size=3\nstride=2", "size=99999\nstride=2"), &["a.cfg:7:", "size"]),
        (with("size=3\nstride=2", "size=35\nstride=2").replace("pad=1", "pad=0"), &["a.cfg:7:", "32 x 32"]),
        (with("stride=2\npad", "stride=0\npad"), &["a.cfg:8:", "stride"]),
        (with("stride=2\npad", "stride=2\nstride_x=1\npad"), &["a.cfg:9:", "stride_x = 1"]),
        (with("size=2\nstride=2", "size=17\nstride=2"), &["a.cfg:27:", "from 1 to 16"]),
        (with("size=2\nstride=2", "size=2\npadding=3\nstride=2"), &["a.cfg:28:", "from 0 to 2"]),
        (with("size=2\nstride=2", "size=2\nstride=-2"), &["a.cfg:28:", "`-2`"]),
        (with("stride=2\n[route]\nlayers=-1,5", "stride=65\n"), &["a.cfg:45:", "from 1 to 64"]),
        (
            with("stride=2\n[route]\nlayers=-1,5", "stride=4\n[route]\nlayers=-1,5"),
            &["a.cfg:47:", "layer 5 has 16 x 16"],
        ),
        (
            with("stride=2\n[route]", &"stride=64\n[upsample]\nstride=64\n".repeat(4)),
            &["a.cfg:46:", "[upsample]: 32768 x 32768 pixels of 6 channels", "for one picture"],
        ),
        (
            with("width=32", "width=16384")
                .replace("height=32", "height=16384")
                .replace("filters=4\n", "filters=4096\n"),
            &["a.cfg:4:", "8192 x 8192 pixels of 4096 channels"],
        ),
        (
            with("filters=4\n", "filters=65536\n").replace("filters=2\n", "filters=65536\n"),
            &["a.cfg:16:", "65536 kernels of 1 x 1 over 32768 channels"],
        ),
        (with("filters=6\n", "filters=6\ngroups=3\n"), &["a.cfg:22:", "groups = 3 of 6 channels to 6"]),
        (with("filters=6\n", "filters=6\ndilation=2\n"), &["a.cfg:22:", "dilation = 2 is not supported"]),
        (with("width=32", "width=-32"), &["a.cfg:2:", "`-32`"]),
        (with("width=32", "width=99999999"), &["a.cfg:2:", "from 1 to 16384"]),
        (with("anchors=4,5, 8,9, 16,12", "anchors=4,5, 8,-9, 16,12"), &["a.cfg:37:", "`-9`"]),
        (with("anchors=4,5, 8,9, 16,12", "anchors=4,5, 8,nan, 16,12"), &["a.cfg:37:", "`nan`"]),
        (with("num=3", "num=0"), &["a.cfg:38:", "num"]),
        (with("mask=1,2", "mask=-1,2"), &["a.cfg:36:", "`-1`"]),
        (with("classes=2\nscale", "classes=0\nscale"), &["a.cfg:39:", "classes"]),
        (with("scale_x_y=1.05", "scale_x_y=inf"), &["a.cfg:40:", "`inf`"]),
        ("[net]\nwidth=8\nheight=8\n[convolutional]\n".into(), &["no [yolo]"]),
        ("[net]\nwidth=8\nheight=8\n[yolo]\nanchors=1,2\n".into(), &["a.cfg:4:", "has to be a convolution"]),
    ] {
        let message = plan(&text).err().unwrap_or_else(|| panic!("{words:?} is let pass")).to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    }
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cfg = write_tiny(dir.path());
    let open = || Model::load(&cfg, LoadOptions::default()).err().map(|e| e.to_string()).unwrap_or_default();
    std::fs::write(dir.path().join("tiny.names"), "one\n").unwrap();
    assert!(open().contains("it has 1 names"), "{}", open());
    std::fs::write(dir.path().join("tiny.names"), "one\ntwo\n").unwrap();
    assert_eq!(open(), "");
    let weights = dir.path().join("tiny.weights");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 8]).unwrap();
    assert!(open().contains("layer 13 of line") && open().contains("cut short"), "{}", open());
    std::fs::write(&weights, [&bytes[..], &[0; 4]].concat()).unwrap();
    assert!(open().contains("1 numbers are left over"), "{}", open());
    std::fs::rename(&weights, dir.path().join("a.weights")).unwrap();
    std::fs::write(dir.path().join("b.weights"), &bytes).unwrap();
    assert!(open().contains("no tiny.weights beside it, and 2"), "{}", open());
    // A grid of cells that is not whole.
    std::fs::rename(dir.path().join("b.weights"), &weights).unwrap();
    let size =
        HeadRequest::Detector { labels: vec!["a".into()], keep: true, seed: 0, image_size: Some((30, 32)) };
    let message = Model::load_with(&cfg, LoadOptions::default(), &size).err().unwrap().to_string();
    assert!(
        message.contains("multiples of 32") || message.contains("choose another image_size"),
        "{message}"
    );
}

#[test]
fn other_classes_keep_the_boxes() {
    let dir = tempfile::tempdir().unwrap();
    let cfg = write_tiny(dir.path());
    let load = |labels: &[&str], keep: bool| {
        let labels = labels.iter().map(|label| label.to_string()).collect();
        let request = HeadRequest::Detector { labels, keep, seed: 3, image_size: None };
        Model::load_with(&cfg, LoadOptions::default(), &request).unwrap()
    };
    let (same, other) = (load(&["LABEL_0", "LABEL_1"], true), load(&["x", "y", "z"], true));
    let (before, after) = (outputs(&same), outputs(&other));
    assert_eq!(before.len(), after.len());
    for ((before, ..), (after, ..)) in before.iter().zip(&after) {
        assert_eq!(before.cols() / 7, after.cols() / 8);
        for row in [0, before.rows() - 1] {
            for anchor in 0..before.cols() / 7 {
                let (old, new) = (&before.row(row)[7 * anchor..][..5], &after.row(row)[8 * anchor..][..5]);
                assert_eq!(old, new, "the box of anchor {anchor}");
                assert!(after.row(row)[8 * anchor + 5] < -3.0, "classes are improbable at first");
            }
        }
    }
    let drawn = load(&["LABEL_0", "LABEL_1"], false);
    assert_ne!(outputs(&drawn)[0].0.data(), before[0].0.data());
    assert_eq!(other.net.config_json()["cfg"].as_str().unwrap().matches("classes=3").count(), 2);
    let Head::Detector(head) = other.net.head() else { panic!("a detector") };
    assert_eq!((head.detector.labels.len(), head.detector.input), (3, (32, 32)));

    let request = HeadRequest::Classifier {
        problem: Default::default(),
        labels: vec!["a".into()],
        pooling: None,
        keep: true,
        seed: 0,
        image_size: None,
    };
    let message = Model::load_with(&cfg, LoadOptions::default(), &request).err().unwrap();
    assert!(matches!(message, Error::Input(_)), "{message}");
}

#[test]
fn a_new_network_is_made_from_its_text() {
    let json = json!({ "model_type": "darknet", "cfg": TINY });
    let config = Config { path: "config.json".into(), value: &json };
    let params = fresh(&config, Draw::new(&config, 7).unwrap()).unwrap();
    let plan = plan(TINY).unwrap();
    for (name, shape) in (0..plan.layers.len()).flat_map(|n| plan.tensors(n)) {
        assert_eq!(params.get(params.find(&name).unwrap()).shape, shape, "{name}");
    }
    let bias = params.get(params.find("layers.13.conv.bias").unwrap()).weight.to_tensor();
    assert!(bias.data()[3] == 0.0 && bias.data()[4] < -4.5 && bias.data()[6] < -4.5);
    for (config, words) in [
        (json!({ "model_type": "darknet" }), "\"cfg\""),
        (json!({ "model_type": "darknet", "cfg": TINY, "id2label": { "0": "a" } }), "1 names of classes"),
    ] {
        let config = Config { path: "config.json".into(), value: &config };
        let message = fresh(&config, Draw::new(&config, 7).unwrap()).err().unwrap().to_string();
        assert!(message.contains(words), "{message}");
    }
}
