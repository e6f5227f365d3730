//! Quantised layers of bitsandbytes: its own files read and written again byte for byte; spoilt ones refused by name.

use std::path::{Path, PathBuf};

use retune_formats::bitsandbytes::{
    self, Absmax, Code, FourBit, Int8, Kind, Layer, Original, QuantizationConfig,
};
use retune_formats::{Dtype, Result, TensorOut, TensorSource, json, safetensors};
use serde_json::{Value, json};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(path)
}

/// All tensors of a file, the quantised ones taken apart and put together again.
fn rewritten(file: &safetensors::File) -> Vec<u8> {
    let entries: Vec<_> = file
        .tensors()
        .iter()
        .filter(|info| bitsandbytes::owner(&info.name).is_none())
        .filter_map(|info| bitsandbytes::find(file, &info.name).unwrap())
        .collect();
    assert!(!entries.is_empty());
    let layers: Vec<Layer> = entries.iter().map(|entry| entry.read(file).unwrap()).collect();
    let parts: Vec<&str> = entries.iter().flat_map(|entry| entry.tensors()).collect();
    let others = file.tensors().iter().filter(|info| !parts.contains(&info.name.as_str()));
    let mut out: Vec<TensorOut> = others.map(|info| TensorOut::copy(file, info)).collect();
    out.extend(entries.iter().zip(&layers).flat_map(|(entry, layer)| layer.tensors(entry.weight())));
    let metadata: Vec<_> = file.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    safetensors::to_bytes(out, &metadata).unwrap()
}

#[test]
fn what_bitsandbytes_wrote_is_rewritten_byte_for_byte() {
    for name in [
        "formats/bnb_nf4.safetensors",
        "formats/bnb_fp4.safetensors",
        "formats/bnb_nf4_dq.safetensors",
        "formats/bnb_int8.safetensors",
        "parity/llama_nf4/model.safetensors",
        "parity/gpt2_nf4/model.safetensors",
        "parity/bert_fp4/model.safetensors",
        "parity/llama_int8/model.safetensors",
    ] {
        let file = safetensors::File::open(data(name)).unwrap();
        assert!(rewritten(&file) == std::fs::read(data(name)).unwrap(), "{name}");
    }
}

#[test]
fn parts_belong_to_their_weight() {
    for (name, weight) in [
        ("a.b.weight.absmax", Some("a.b.weight")),
        ("a.weight.quant_state.bitsandbytes__fp4", Some("a.weight")),
        ("weight.nested_quant_map", Some("weight")),
        ("a.SCB", Some("a.weight")),
        ("SCB", Some("weight")),
        ("a.weight_format", Some("a.weight")),
        ("a.weight", None),
        ("a.bias", None),
        ("absmax", None),
        ("a.SCBs", None),
    ] {
        assert_eq!(bitsandbytes::owner(name).as_deref(), weight, "{name}");
    }
}

#[test]
fn settings_are_read_and_written_as_transformers_does() {
    for name in ["llama_nf4", "gpt2_nf4", "bert_fp4", "llama_int8"] {
        let path = data(&format!("parity/{name}/config.json"));
        let config = json::read(&path, 1 << 20).unwrap();
        let read = QuantizationConfig::of(&path, &config).unwrap().unwrap();
        assert_eq!(read.to_json(), config["quantization_config"], "{name}");
    }
    let of = |value: Value| {
        QuantizationConfig::of(Path::new("config.json"), &json!({"quantization_config": value}))
    };
    let made = QuantizationConfig::new(Kind::FourBit { code: Code::Nf4, blocksize: 64, double: true });
    assert_eq!(of(made.to_json()).unwrap().unwrap(), made);
    assert_eq!(made.describe(), "nf4 with double quantisation");
    assert!(of(Value::Null).unwrap().is_none());
    // The oldest folders do not name their method.
    assert!(of(json!({"load_in_8bit": true})).unwrap().is_some());
    for (value, says) in [
        (json!({"quant_method": "gptq", "bits": 4}), "quantised by gptq"),
        (json!({"quant_method": "awq"}), "--storage nf4"),
        (json!({"bits": 4}), "quant_method"),
        (json!({"quant_method": "bitsandbytes"}), "load_in_4bit"),
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": true}), "load_in_4bit"),
        (json!({"quant_method": "bitsandbytes", "load_in_4bit": 1}), "load_in_4bit"),
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "af4"}),
            "`af4`",
        ),
        (
            json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "llm_int8_skip_modules": 3}),
            "skip_modules",
        ),
        (json!(7), "quantization_config"),
    ] {
        let error = of(value.clone()).unwrap_err().to_string();
        assert!(error.starts_with("config.json") && error.contains(says), "{value}: {error}");
    }
}

const STATE: &str = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [5, 27], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}"#;

/// A good file's tensors, built without the writer that is under test: 135 values in 3 blocks.
fn good() -> Vec<TensorOut<'static>> {
    let map: Vec<f32> = (0..16).map(|i| i as f32 / 8.0 - 1.0).collect();
    let nested: Vec<f32> = (0..256).map(|i| i as f32 / 128.0 - 1.0).collect();
    vec![
        TensorOut::bytes("p.weight", Dtype::U8, &[68, 1], vec![0x7eu8; 68]),
        TensorOut::bytes("p.weight.absmax", Dtype::U8, &[3], vec![1u8, 128, 255]),
        TensorOut::f32("p.weight.quant_map", &[16], map),
        TensorOut::f32("p.weight.nested_absmax", &[1], vec![0.25]),
        TensorOut::f32("p.weight.nested_quant_map", &[256], nested),
        state(STATE),
    ]
}

fn state(text: &str) -> TensorOut<'static> {
    let name = "p.weight.quant_state.bitsandbytes__nf4";
    TensorOut::bytes(name, Dtype::U8, &[text.len()], text.as_bytes().to_vec())
}

fn int8() -> Vec<TensorOut<'static>> {
    vec![
        TensorOut::bytes("p.weight", Dtype::I8, &[3, 4], vec![200u8; 12]),
        TensorOut::f32("p.SCB", &[3], vec![0.0, 1.0, 2.0]),
        TensorOut::bytes("p.weight_format", Dtype::U8, &[], vec![0u8]),
    ]
}

/// The file with some tensors in place of those of their names.
fn with(base: Vec<TensorOut<'static>>, new: Vec<TensorOut<'static>>) -> Vec<TensorOut<'static>> {
    let kept = base.into_iter().filter(|old| new.iter().all(|n| n.name != old.name));
    kept.collect::<Vec<_>>().into_iter().chain(new).collect()
}

fn without(base: Vec<TensorOut<'static>>, name: &str) -> Vec<TensorOut<'static>> {
    base.into_iter().filter(|t| t.name != name).collect()
}

fn read(tensors: Vec<TensorOut>) -> Result<Option<Layer>> {
    read_bytes(safetensors::to_bytes(tensors, &[])?)
}

fn read_bytes(bytes: Vec<u8>) -> Result<Option<Layer>> {
    let file = safetensors::File::from_memory("model.safetensors", bytes)?;
    bitsandbytes::find(&file, "p.weight")?.map(|entry| entry.read(&file)).transpose()
}

#[test]
fn the_good_ones_are_good() {
    let Some(Layer::FourBit(layer)) = read(good()).unwrap() else { panic!("4 bit") };
    assert_eq!((layer.shape, layer.blocksize, layer.code), ([5, 27], 64, Code::Nf4));
    let Absmax::Double { codes, offset, .. } = &layer.absmax else { panic!("nested") };
    assert_eq!((&codes[..], *offset), (&[1u8, 128, 255][..], 0.5));
    assert_eq!(Layer::FourBit(layer.clone()).tensors("p.weight").len(), 6);
    let Some(Layer::Int8(layer)) = read(int8()).unwrap() else { panic!("8 bit") };
    assert_eq!((layer.shape, layer.values[0], layer.scales.len()), ([3, 4], -56, 3));
    // Old files do not say how they lie.
    assert!(read(without(int8(), "p.weight_format")).unwrap().is_some());
    // A weight like any other.
    assert!(read(vec![TensorOut::f32("p.weight", &[2, 2], vec![0.0; 4])]).unwrap().is_none());
    // quant_storage: the same bytes under another type.
    let floats = TensorOut::bytes("p.weight", Dtype::BF16, &[34, 1], vec![0x7eu8; 68]);
    assert_eq!(read(with(good(), vec![floats])).unwrap(), read(good()).unwrap());
}

#[test]
fn parts_that_do_not_fit_are_refused_by_name() {
    let f32s = |name: &str, values: Vec<f32>| TensorOut::f32(name.to_string(), &[values.len()], values);
    let changed = |from: &str, to: &str| {
        assert!(STATE.contains(from));
        with(good(), vec![state(&STATE.replace(from, to))])
    };
    let mut map = vec![0.5f32; 16];
    map[3] = f32::NAN;
    let mut nested = vec![0.5f32; 256];
    nested[200] = f32::INFINITY;
    let bytes = |name: &str, n: usize| TensorOut::bytes(name.to_string(), Dtype::U8, &[n], vec![1u8; n]);
    let second = |end: &str| {
        let name = format!("p.weight.quant_state.{end}");
        with(good(), vec![TensorOut::bytes(name, Dtype::U8, &[2], b"{}".to_vec())])
    };
    let cases: Vec<(Vec<TensorOut>, &str)> = vec![
        (without(good(), "p.weight.absmax"), "`p.weight.absmax` is missing"),
        (without(good(), "p.weight.quant_map"), "`p.weight.quant_map` is missing"),
        (without(good(), "p.weight.nested_absmax"), "`p.weight.nested_absmax` is missing"),
        (without(good(), "p.weight.nested_quant_map"), "`p.weight.nested_quant_map` is missing"),
        (without(good(), "p.weight.quant_state.bitsandbytes__nf4"), "not the state itself"),
        (vec![bytes("p.weight", 4)], "no quant state lies beside it"),
        (with(good(), vec![bytes("p.weight", 67)]), "has 67 bytes"),
        (with(good(), vec![bytes("p.weight", 69)]), "has 69 bytes"),
        (with(good(), vec![f32s("p.weight", vec![0.0; 135])]), "has 540 bytes"),
        (with(good(), vec![bytes("p.weight.absmax", 2)]), "U8 with 3 elements"),
        (with(good(), vec![bytes("p.weight.absmax", 4)]), "U8 with 3 elements"),
        (with(good(), vec![f32s("p.weight.absmax", vec![1.0; 3])]), "U8 with 3 elements"),
        (with(good(), vec![f32s("p.weight.quant_map", vec![1.0; 15])]), "F32 with 16 elements"),
        (with(good(), vec![f32s("p.weight.quant_map", map)]), "`p.weight.quant_map` holds NaN at element 3"),
        (with(good(), vec![f32s("p.weight.nested_quant_map", vec![1.0; 255])]), "F32 with 256 elements"),
        (with(good(), vec![f32s("p.weight.nested_quant_map", nested)]), "holds inf at element 200"),
        (with(good(), vec![f32s("p.weight.nested_absmax", vec![1.0; 2])]), "F32 with 1 elements"),
        (with(good(), vec![f32s("p.weight.nested_absmax", vec![f32::NAN])]), "nested_absmax` holds NaN"),
        (with(good(), vec![f32s("p.weight.nested_absmax", vec![-1.0])]), "cannot be below 0"),
        (second("bitsandbytes__fp4"), "more than one kind"),
        (with(good(), vec![f32s("p.SCB", vec![1.0; 5])]), "more than one kind"),
        (with(good(), vec![state("{")]), "not JSON"),
        (with(good(), vec![state("[]")]), "not a JSON object"),
        (with(good(), vec![state("")]), "not JSON"),
        (with(good(), vec![state(&" ".repeat(5000))]), "the limit is 4096"),
        (changed("\"nf4\"", "\"fp4\""), "its name says nf4"),
        (changed("\"nf4\"", "4"), "`quant_type` is 4"),
        (changed(": 64", ": 63"), "`blocksize` is 63"),
        (changed(": 64", ": 0"), "`blocksize` is 0"),
        (changed(": 64", ": 32"), "U8 with 5 elements"),
        (changed(": 64", ": 18446744073709551616"), "`blocksize`"),
        (changed(": 256", ": 100"), "`nested_blocksize` is 100"),
        (changed("\"float32\", \"shape\"", "\"int64\", \"shape\""), "`dtype` is `int64`"),
        (changed("\"nested_dtype\": \"float32\"", "\"nested_dtype\": \"float16\""), "`nested_dtype`"),
        (changed("[5, 27]", "[5]"), "`shape`"),
        (changed("[5, 27]", "[5, 27, 1]"), "`shape`"),
        (changed("[5, 27]", "[0, 27]"), "`shape`"),
        (changed("[5, 27]", "[-5, 27]"), "`shape`"),
        (changed("[5, 27]", "null"), "`shape` is null"),
        (changed("[5, 27]", "[5, 28]"), "5 x 28 values of 4 bits take 70"),
        (changed("[5, 27]", "[4294967296, 4294967296]"), "shape overflows"),
        (changed("[5, 27]", "[9223372036854775807, 1]"), "has 68 bytes"),
        (changed(": 0.5", ": NaN"), "not JSON"),
        (changed(": 0.5", ": 1e39"), "`nested_offset`"),
        (changed(": 0.5", ": null"), "`nested_offset` is null"),
        (
            changed(", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.5", ""),
            "F32 with 3 elements",
        ),
        (without(int8(), "p.SCB"), "SCB"),
        (with(int8(), vec![f32s("p.SCB", vec![1.0; 4])]), "F32 with 3 elements"),
        (with(int8(), vec![f32s("p.SCB", vec![1.0, f32::NAN, 1.0])]), "`p.SCB` holds NaN at element 1"),
        (with(int8(), vec![f32s("p.SCB", vec![1.0, 2.0, -1.0])]), "`p.SCB` holds -1 at element 2"),
        (
            with(int8(), vec![TensorOut::bytes("p.weight", Dtype::U8, &[3, 4], vec![0u8; 12])]),
            "says that it is I8",
        ),
        (
            with(int8(), vec![TensorOut::bytes("p.weight", Dtype::I8, &[12], vec![0u8; 12])]),
            "a matrix is needed",
        ),
        (with(int8(), vec![TensorOut::bytes("p.weight_format", Dtype::U8, &[], vec![2u8])]), "col_turing"),
        (with(int8(), vec![TensorOut::bytes("p.weight_format", Dtype::U8, &[], vec![9u8])]), "number 9"),
        (with(int8(), vec![bytes("p.weight_format", 3)]), "not one byte"),
    ];
    for (tensors, says) in cases {
        match read(tensors) {
            Ok(_) => panic!("accepted: {says}"),
            Err(e) => {
                let e = e.to_string();
                assert!(e.starts_with("model.safetensors"), "{e}");
                assert!(e.contains(says) && e.contains("p.") && e.len() < 500, "{says}: {e}");
            }
        }
    }
    let huge = with(
        good(),
        vec![f32s("p.weight.nested_absmax", vec![3e38]), state(&STATE.replace("0.5}", "3e38}"))],
    );
    assert!(read(huge).unwrap_err().to_string().contains("overflow"));
    let single = FourBit {
        code: Code::Fp4,
        blocksize: 64,
        original: Original::Bf16,
        shape: [1, 3],
        packed: vec![1, 2],
        map: [0.0; 16],
        absmax: Absmax::Single(vec![-1.0]),
    };
    let error = read(single.tensors("p.weight")).unwrap_err().to_string();
    assert!(error.contains("`p.weight.absmax` holds -1"), "{error}");
}

/// Hands over every truncation, and changes of each byte.
fn every_change(good: &[u8], mut each: impl FnMut(Vec<u8>)) {
    for len in 0..good.len() {
        each(good[..len].to_vec());
    }
    for at in 0..good.len() {
        // All values of what is read as text or as a number of few bytes; elsewhere the ones that make odd floats.
        for value in [0, 1, b'"', b',', b'9', b'}', 0x7f, 0x80, 0xc0, 0xff] {
            let mut bytes = good.to_vec();
            bytes[at] = value;
            each(bytes);
        }
    }
}

#[test]
fn every_byte_of_a_quantised_layer() {
    let small = Int8 { shape: [2, 3], values: vec![1; 6], scales: vec![1.0; 2] };
    for tensors in [good(), Layer::Int8(small).tensors("p.weight")] {
        let good = safetensors::to_bytes(tensors, &[]).unwrap();
        let (mut refused, mut read) = (0, 0);
        every_change(&good, |bytes| match read_bytes(bytes) {
            Ok(Some(layer)) => {
                // What is accepted is whole: it can be written.
                safetensors::to_bytes(layer.tensors("p.weight"), &[]).unwrap();
                read += 1;
            }
            Ok(None) => {}
            Err(_) => refused += 1,
        });
        assert!(refused > good.len() && read > 0, "{refused} {read}");
    }
}
