//! Real files of vision models, read whole. Each test needs a path in the environment and is skipped, saying so, without it:
//! `RETUNE_TEST_LITE0=$(retune fetch efficientnet-lite0)`, `RETUNE_TEST_VGG16=$(retune fetch vgg16-tumor)`,
//! `RETUNE_TEST_YOLO=$(retune fetch yolov3-tiny)`, `RETUNE_TEST_DARKNET=$(retune fetch darknet-photos)`.

use std::path::PathBuf;

use retune_formats::darknet::{Config, Weights};
use retune_formats::{TensorSource, labels, onnx, torch};

fn path(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("SKIPPED: {variable} names no file");
    }
    path
}

#[test]
fn efficientnet_lite0() {
    let Some(path) = path("RETUNE_TEST_LITE0") else { return };
    let file = torch::File::open(path).unwrap();
    println!("{} tensors, notes {:?}, metadata {:?}", file.tensors().len(), file.notes(), file.metadata());
    let parameters: u64 =
        file.tensors().iter().filter(|t| !t.name.contains("running_")).map(|t| t.numel()).sum();
    assert!((4_600_000..4_700_000).contains(&parameters), "{parameters}");
    for tensor in file.tensors() {
        println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
        if tensor.dtype.is_float() {
            assert!(file.read_f32(&tensor.name).unwrap().iter().all(|v| v.is_finite()));
        }
    }
}

#[test]
fn vgg16() {
    let Some(path) = path("RETUNE_TEST_VGG16") else { return };
    let file = onnx::File::open(path).unwrap();
    let graph = file.graph();
    println!(
        "{} opset {} by {}: {:?} -> {:?}",
        graph.name, graph.opset, graph.producer, graph.inputs, graph.outputs
    );
    for node in &graph.nodes {
        println!("{} {:?} -> {:?} {:?}", node.op_type, node.inputs, node.outputs, node.attributes);
    }
    for tensor in file.tensors() {
        println!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape);
    }
    assert_eq!(graph.nodes.iter().filter(|node| node.op_type == "Conv").count(), 13);
    let parameters: u64 = file.tensors().iter().filter(|t| t.dtype.is_float()).map(|t| t.numel()).sum();
    assert!(parameters > 14_700_000, "{parameters}");
}

#[test]
fn yolov3_tiny() {
    let Some(path) = path("RETUNE_TEST_YOLO") else { return };
    // The folder, or the .cfg in it.
    let folder = if path.is_file() { path.parent().unwrap().to_path_buf() } else { path };
    let config = Config::open(folder.join("yolov3-tiny.cfg")).unwrap();
    let mut weights = Weights::open(folder.join("yolov3-tiny.weights")).unwrap();
    println!("{:?}, {} numbers", weights.header(), weights.remaining());
    // What the convolutions take, in darknet's order; the network itself is tested elsewhere.
    let mut channels = vec![config.net().size("channels", None, 1..=4).unwrap()];
    for (i, layer) in config.layers().iter().enumerate() {
        let before = *channels.last().unwrap();
        let now = match layer.name.as_str() {
            "convolutional" => {
                let filters = layer.size("filters", None, 1..=4096).unwrap();
                let size = layer.size("size", Some(1), 1..=11).unwrap();
                let vectors = if layer.flag("batch_normalize").unwrap() { 4 } else { 1 };
                for _ in 0..vectors {
                    weights.take(&format!("layer {i}"), filters).unwrap();
                }
                weights.take(&format!("layer {i}"), filters * before * size * size).unwrap();
                filters
            }
            "route" => layer
                .integers("layers", -1000..=1000)
                .unwrap()
                .iter()
                .map(|&n| channels[if n < 0 { (i as i64 + n + 1) as usize } else { n as usize + 1 }])
                .sum(),
            _ => before,
        };
        channels.push(now);
    }
    weights.finish().unwrap();
    assert_eq!(labels::read(&folder.join("coco.names")).unwrap().len(), 80);
}

#[test]
fn every_network_of_darknet() {
    let Some(folder) = path("RETUNE_TEST_DARKNET") else { return };
    let mut count = 0;
    for entry in std::fs::read_dir(folder.join("cfg")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "cfg") {
            count += 1;
            let config = Config::open(&path).unwrap();
            println!("{}: {} sections {:?}", path.display(), config.sections.len(), config.notes());
        }
    }
    assert!(count > 30);
    assert_eq!(labels::read(&folder.join("voc.names")).unwrap().len(), 20);
}
