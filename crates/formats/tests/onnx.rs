//! An ONNX file that onnx itself wrote: its graph and its tensors, however they are stored; and files that nobody should write.

use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use retune_formats::onnx::{Attribute, Dim, File};
use retune_formats::{Dtype, Result, TensorSource};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx").join(path)
}

fn numbers(file: &File, name: &str) -> Vec<f64> {
    let (info, bytes) = (file.get(name).unwrap(), file.read(name).unwrap());
    let size = info.dtype.block_bytes();
    let number = |b: &[u8]| match info.dtype {
        Dtype::F32 => f32::from_le_bytes(b.try_into().unwrap()).into(),
        Dtype::F64 => f64::from_le_bytes(b.try_into().unwrap()),
        Dtype::F16 => f16::from_le_bytes(b.try_into().unwrap()).to_f64(),
        Dtype::I64 => i64::from_le_bytes(b.try_into().unwrap()) as f64,
        Dtype::U64 => u64::from_le_bytes(b.try_into().unwrap()) as f64,
        Dtype::I8 => (b[0] as i8).into(),
        _ => b[0].into(),
    };
    bytes.chunks(size).map(number).collect()
}

#[test]
fn nodes_and_tensors_are_those_of_onnx() {
    let file = File::open(data("net.onnx")).unwrap();
    let wanted: serde_json::Value = serde_json::from_slice(&fs::read(data("net.json")).unwrap()).unwrap();
    let tensors = wanted["tensors"].as_object().unwrap();
    assert_eq!(file.tensors().len(), tensors.len());
    for (name, values) in tensors {
        let values: Vec<f64> = values.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!(numbers(&file, name), values, "{name}");
    }
    let graph = file.graph();
    for (node, wanted) in graph.nodes.iter().zip(wanted["nodes"].as_array().unwrap()) {
        assert_eq!(serde_json::json!([node.op_type, node.inputs, node.outputs]), *wanted);
    }
    assert_eq!((graph.name.as_str(), graph.opset, graph.producer.as_str()), ("net", 13, "retune-tests 1"));
    assert_eq!(file.get("conv.weight").unwrap().shape, [4, 3, 3, 3]);
    assert!(file.get("scalar").unwrap().shape.is_empty());
}

#[test]
fn settings_and_shapes_are_read() {
    let file = File::open(data("net.onnx")).unwrap();
    let graph = file.graph();
    let inputs: Vec<_> = graph.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(inputs, ["x"], "an initializer is no input");
    let wanted = [Dim::Named("N".into()), Dim::Size(3), Dim::Size(8), Dim::Unknown];
    assert_eq!(graph.inputs[0].shape.as_deref(), Some(&wanted[..]));
    assert_eq!((graph.inputs[0].dtype, graph.outputs[0].name.as_str()), (Some(Dtype::F32), "z"));
    let node = |op: &str| graph.nodes.iter().find(|node| node.op_type == op).unwrap();
    let conv = node("Conv");
    assert_eq!((conv.name.as_str(), conv.domain.as_str()), ("first", ""));
    assert_eq!(conv.ints("pads"), Some(&[1, 1, 1, 1][..]));
    assert_eq!((conv.int("group", 7), conv.int("nothing", 7), conv.text("auto_pad")), (1, 7, Some("NOTSET")));
    assert_eq!(node("LeakyRelu").float("alpha", 0.0), 0.1);
    let odd = node("Odd");
    assert_eq!(odd.domain, "my.own");
    assert!(matches!(odd.attribute("numbers"), Some(Attribute::Floats(f)) if *f == [0.5, -1.0]));
    assert!(matches!(odd.attribute("words"), Some(Attribute::Texts(t)) if *t == ["a", "b"]));
    assert!(matches!(odd.attribute("zero"), Some(Attribute::Int(0))));
    assert!(matches!(odd.attribute("none"), Some(Attribute::Float(0.0))));
    let Some(Attribute::Tensor(two)) = node("Constant").attribute("value") else { panic!("no tensor") };
    let mut bytes = [0; 4];
    file.read_at(two, 0, &mut bytes).unwrap();
    assert_eq!(f32::from_le_bytes(bytes), 2.0);
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![(number << 3) | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    [out, bytes.to_vec()].concat()
}

fn int(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn model(graph: &[Vec<u8>]) -> Result<File> {
    File::from_memory("m.onnx", field(7, &graph.concat()))
}

fn tensor(parts: &[Vec<u8>]) -> Vec<u8> {
    field(5, &[field(8, b"w"), parts.concat()].concat())
}

fn relu(from: &[u8], to: &[u8]) -> Vec<u8> {
    field(1, &[field(1, from), field(2, to), field(4, b"Relu")].concat())
}

#[test]
fn what_does_not_fit_is_named() {
    let (f32s, two) = (int(2, 1), int(1, 2));
    let input = field(11, &field(1, b"x"));
    let good = tensor(&[two.clone(), f32s.clone(), field(9, &[0; 8])]);
    assert_eq!(model(std::slice::from_ref(&good)).unwrap().read_f32("w").unwrap(), [0.0, 0.0]);
    let minus = vec![1 << 3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
    for (graph, word) in [
        (vec![tensor(&[two.clone(), f32s.clone(), field(9, &[0; 7])])], "takes 8 bytes, 7 are there"),
        (vec![tensor(&[two.clone(), f32s.clone()])], "takes 8 bytes, 0 are there"),
        (vec![tensor(&[minus, f32s.clone()])], "shape is [-1]"),
        (vec![tensor(&[two.clone(), int(2, 8)])], "type number 8"),
        (vec![tensor(&[two.clone(), f32s.clone(), field(9, &[0; 8]), field(4, &[0; 8])])], "in 2 pieces"),
        (vec![tensor(&[two.clone(), int(2, 3), field(5, &[1, 200, 1])])], "does not fit I8"),
        (vec![tensor(&[two.clone(), int(2, 7), field(7, &[1, 2, 3])])], "3 numbers are there"),
        (vec![tensor(&[two.clone(), f32s.clone(), int(14, 1)])], "lie in another file"),
        (vec![tensor(&vec![int(1, 1); 9])], "type number 0"),
        (vec![tensor(&[vec![int(1, 1); 9].concat(), f32s.clone()])], "9 dimensions"),
        (vec![good.clone(), good.clone()], "two tensors are named `w`"),
        (vec![relu(b"x", b"y")], "reads `x`, which nothing before it gives"),
        (vec![input.clone(), relu(b"y", b"z"), relu(b"x", b"y")], "reads `y`, which nothing"),
        (vec![input.clone(), relu(b"x", b"x")], "gives `x` a second time"),
        (vec![input.clone(), good.clone(), relu(b"x", b"w")], "gives `w` a second time"),
        (vec![input.clone(), field(12, &field(1, b"y"))], "nothing gives its output `y`"),
        (vec![field(15, b"")], "sparse"),
    ] {
        let message = model(&graph).err().unwrap().to_string();
        assert!(message.starts_with("m.onnx: ") && message.contains(word), "{word}: {message}");
    }
    assert!(File::from_memory("m.onnx", &b""[..]).err().unwrap().to_string().contains("0 graphs"));
    let many = field(7, &field(1, b"").repeat(1 << 16));
    let message = File::from_memory("m.onnx", many).err().unwrap().to_string();
    assert!(message.contains("more than a file of this size"), "{message}");
}

#[test]
fn every_byte_of_a_file() {
    let good = fs::read(data("net.onnx")).unwrap();
    let check = |bytes: Vec<u8>| match File::from_memory("m.onnx", bytes) {
        Ok(file) => file.tensors().iter().for_each(|t| drop(file.read(&t.name).unwrap())),
        Err(error) => assert!(error.to_string().starts_with("m.onnx: ")),
    };
    for len in 0..good.len() {
        check(good[..len].to_vec());
    }
    for at in 0..good.len() {
        for value in [0, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at].wrapping_add(8)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            check(bytes);
        }
    }
}
