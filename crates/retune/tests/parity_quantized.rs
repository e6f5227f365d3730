//! Bases quantised by bitsandbytes, or by us while they are loaded: the same bytes, the reference's numbers.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::case::{Case, TOLERANCE, json};
use common::*;
use retune::base;
use retune::export::{ExportDtype, ExportOptions, write_folder};
use retune::methods;
use retune::models::quantised::layer_of;
use retune::models::{LoadOptions, Model, Quantisation, StorageChoice};
use retune::nn::Pass;
use retune_formats::bitsandbytes::{Absmax, Layer, Original};
use retune_formats::{TensorOut, TensorSource, safetensors};

/// A folder of bitsandbytes', the base that it was made of, the case that has the inputs, and how we quantise it ourselves.
const FOLDERS: [(&str, &str, &str, &str, bool); 4] = [
    ("llama_nf4", "llama_base_full", "llama_qlora_nf4", "nf4", true),
    ("llama_int8", "llama_base_full", "llama_base_full", "int8", false),
    ("gpt2_nf4", "gpt2_base", "gpt2_full", "nf4", true),
    ("bert_fp4", "bert_base", "bert_full", "fp4", false),
];

fn folder(name: &str) -> PathBuf {
    data("parity").join(name)
}

fn quantised(code: &str, double: bool) -> StorageChoice {
    StorageChoice::Quantised(Quantisation::from_name(code, double).expect("code"))
}

fn layers(model: &Model) -> Vec<(String, Layer)> {
    let params = model.params.iter();
    params
        .filter_map(|(_, p)| Some((p.name.clone(), layer_of(p.weight.storage().quantized()?, Original::F32))))
        .collect()
}

fn error(path: &Path, options: impl Into<LoadOptions>) -> String {
    Model::load(path, options).err().expect("refused").to_string()
}

#[test]
fn qlora_is_pefts() {
    let case = folder("llama_qlora_nf4");
    let inputs = Inputs::read(&case.join("inputs.safetensors"));
    for storage in [StorageChoice::AsIs, quantised("nf4", true), StorageChoice::F32] {
        let mut model = load(&folder("llama_nf4"), storage);
        let source = methods::Source { path: case.clone(), weight: 1.0 };
        methods::load(&mut model, &[source], 0).unwrap_or_else(|e| panic!("{e}"));
        check_logits(&model, &inputs, &case.join("logits.safetensors"), TOLERANCE);
        for checkpoint in [false, true] {
            let pass = Pass { checkpoint, ..Pass::default() };
            let (loss, gradients) = loss_and_gradients(&model, &inputs, &pass);
            let want = json(&case.join("meta.json"))["loss"].as_f64().expect("loss") as f32;
            close("loss", &[loss], &[want], TOLERANCE);
            let reference = open(&case.join("grads.safetensors"));
            for info in reference.tensors() {
                let name = info.name.replace(".default.", ".");
                let id = model.params.find(&name).unwrap_or_else(|| panic!("no parameter {name}"));
                let got = gradients.get(id).unwrap_or_else(|| panic!("no gradient for {name}"));
                close(&name, got.data(), &reference.read_f32(&info.name).expect("read"), TOLERANCE);
            }
            assert_eq!(reference.tensors().len(), gradients.iter().count());
        }
    }
}

#[test]
fn folders_of_bitsandbytes_give_what_they_gave_there() {
    for (name, _, inputs, ..) in FOLDERS.iter().skip(1) {
        let case = Case::read(inputs, 0);
        for storage in [StorageChoice::AsIs, StorageChoice::F32] {
            let model = load(&folder(name), storage);
            case.check_logits_of(&folder(name), &model, &Pass::default(), name);
            assert_eq!(layers(&model).is_empty(), storage == StorageChoice::F32, "{name}");
        }
        // bf16 rounds what the codes stand for.
        assert!(layers(&load(&folder(name), StorageChoice::Bf16)).is_empty(), "{name}");
    }
}

/// A folder written of one holds what its codes stand for, turned back where the architecture turns it.
#[test]
fn folders_of_bitsandbytes_are_written_as_plain_ones() {
    for (name, _, inputs, ..) in FOLDERS.iter().skip(1) {
        let case = Case::read(inputs, 0);
        let model = load(&folder(name), StorageChoice::AsIs);
        let out = tempfile::tempdir().expect("folder");
        let options = ExportOptions { dtype: ExportDtype::F32, overwrite: true, ..ExportOptions::default() };
        write_folder(&model, out.path(), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(json(&out.path().join("config.json")).get("quantization_config").is_none(), "{name}");
        let again = load(out.path(), StorageChoice::AsIs);
        assert!(layers(&again).is_empty(), "{name}");
        case.check_logits_of(&folder(name), &again, &Pass::default(), name);
    }
}

/// What we quantise while loading is what bitsandbytes quantised: the same modules, codes and constants.
#[test]
fn quantising_while_loading_is_bitsandbytes() {
    for (name, base, _, code, double) in FOLDERS {
        let theirs = layers(&load(&folder(name), StorageChoice::AsIs));
        let ours = layers(&load(&folder(base), quantised(code, double)));
        let names =
            |all: &[(String, Layer)]| all.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
        assert_eq!(names(&ours), names(&theirs), "{name}");
        let meta = folder(name).join("meta.json");
        if meta.is_file() {
            let meta = json(&meta);
            let listed = meta["quantised"].as_array().expect("names");
            // Heads are held in f32 here.
            let listed = listed
                .iter()
                .filter_map(|v| v.as_str())
                .filter(|m| m.contains(".layer") || m.contains(".h."));
            assert_eq!(names(&ours), listed.map(|m| format!("{m}.weight")).collect(), "{name}");
        }
        let (mut codes, mut off) = (0, 0);
        let exact = load(&folder(base), StorageChoice::F32);
        for ((param, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            let what = format!("{name}: {param}");
            match (ours, theirs) {
                (Layer::FourBit(a), Layer::FourBit(b)) => {
                    assert!(a.packed == b.packed && a.map == b.map, "{what}");
                    let (n, differ) = constants(&what, &a.absmax, &b.absmax);
                    codes += n;
                    off += differ;
                }
                // bitsandbytes rounds 8-bit weights to f16 first, which we don't.
                (Layer::Int8(_), Layer::Int8(_)) => {
                    let values = exact.params.get(exact.params.find(param).expect(param)).weight.to_tensor();
                    let halves: Vec<f32> =
                        values.data().iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
                    let StorageChoice::Quantised(how) = quantised(code, double) else { unreachable!() };
                    let rounded = how.quantise(values.rows(), values.cols(), &halves).expect("finite");
                    let rounded = layer_of(rounded.quantized().expect("8 bit"), Original::F32);
                    assert!(rounded == *theirs, "{what}");
                }
                _ => panic!("{what}: of another kind"),
            }
        }
        // The mean of the constants is summed in another order.
        assert!(off * 50 <= codes, "{name}: {off} of {codes} constants");
    }
}

/// Compares constants: how many codes of constants there are, and how many differ.
fn constants(what: &str, ours: &Absmax, theirs: &Absmax) -> (usize, usize) {
    match (ours, theirs) {
        (Absmax::Double { codes: a, nested: x, .. }, Absmax::Double { codes: b, nested: y, .. }) => {
            close(what, x, y, 1e-5);
            assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= 1), "{what}");
            (a.len(), a.iter().zip(b).filter(|(a, b)| a != b).count())
        }
        (a, b) => {
            assert!(a == b, "{what}");
            (0, 0)
        }
    }
}

#[test]
fn a_gguf_is_quantised_through_its_values() {
    let path = data("gguf/tiny_mixed.gguf");
    let exact = load(&path, StorageChoice::F32);
    let model = load(&path, quantised("nf4", true));
    let how = Quantisation::from_name("nf4", true).expect("code");
    let mut seen = 0;
    for (name, layer) in layers(&model) {
        let values = exact.params.get(exact.params.find(&name).expect(&name)).weight.to_tensor();
        let want = how.quantise(values.rows(), values.cols(), values.data()).expect("finite");
        assert!(layer_of(want.quantized().expect("4 bit"), Original::F32) == layer, "{name}");
        seen += 1;
    }
    assert_eq!(seen, 14);
    // Tables and the head stay as they lie.
    let as_is = load(&path, StorageChoice::AsIs);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let format = |m: &Model| m.params.get(m.params.find(name).expect(name)).weight.storage().format();
        assert_eq!(format(&model), format(&as_is), "{name}");
    }
}

#[test]
fn modules_that_are_kept_stay_as_they_are() {
    let options = |keep: &[&str]| LoadOptions {
        storage: quantised("nf4", false),
        keep_modules: keep.iter().map(|k| k.to_string()).collect(),
        ..LoadOptions::default()
    };
    let path = folder("llama_base_full");
    let model = Model::load(&path, options(&["down_proj", "model.layers.1.self_attn"])).expect("model");
    let names: Vec<String> = layers(&model).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 14 - 2 - 4);
    assert!(names.iter().all(|n| !n.contains("down_proj") && !n.contains("layers.1.self_attn")), "{names:?}");
    let said = error(&path, options(&["down_porj"]));
    assert!(said.contains("keep_modules: \"down_porj\"") && said.contains("\"down_proj\"?"), "{said}");
    let said = error(&folder("llama_nf4"), options(&["down_proj"]));
    assert!(said.contains("quantised already"), "{said}");
}

#[test]
fn another_code_on_a_quantised_folder_is_refused_with_the_remedy() {
    for (name, code) in
        [("llama_nf4", "fp4"), ("llama_nf4", "int8"), ("bert_fp4", "nf4"), ("llama_int8", "nf4")]
    {
        let said = error(&folder(name), quantised(code, true));
        assert!(said.contains("--storage as-is") && said.contains(code), "{said}");
    }
    // The same code is the same, however its constants lie.
    assert_eq!(
        layers(&load(&folder("llama_nf4"), quantised("nf4", false))),
        layers(&load(&folder("llama_nf4"), StorageChoice::AsIs))
    );
}

/// A copy of a folder, its tensors and its configuration changed.
fn spoilt(
    base: &str,
    config: &dyn Fn(&mut serde_json::Value),
    tensor: &dyn Fn(TensorOut<'static>) -> Option<TensorOut<'static>>,
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("folder");
    let mut value = json(&folder(base).join("config.json"));
    config(&mut value);
    std::fs::write(dir.path().join("config.json"), value.to_string()).expect("config");
    let file = open(&folder(base).join("model.safetensors"));
    let copies = file.tensors().iter().map(|info| {
        TensorOut::bytes(info.name.clone(), info.dtype, &info.shape, file.read(&info.name).expect("read"))
    });
    let tensors: Vec<TensorOut> = copies.filter_map(tensor).collect();
    safetensors::write(&dir.path().join("model.safetensors"), tensors, &[]).expect("write");
    dir
}

#[test]
fn damaged_folders_are_refused_by_the_tensors_name() {
    let weight = "model.layers.1.mlp.up_proj.weight";
    let with = |end: &str, bytes: Vec<u8>| {
        let name = format!("{weight}{end}");
        spoilt("llama_nf4", &|_| {}, &move |t| {
            let bytes = bytes.clone();
            Some(if t.name == name { TensorOut::bytes(t.name, t.dtype, &t.shape, bytes) } else { t })
        })
    };
    let blocks = open(&folder("llama_nf4").join("model.safetensors"));
    let nested = blocks.find(&format!("{weight}.nested_absmax")).expect("nested").numel() as usize;
    let nan = f32::NAN.to_le_bytes().repeat(nested);
    let said = error(with(".nested_absmax", nan).path(), StorageChoice::AsIs);
    assert!(said.contains(weight) && said.contains("NaN"), "{said}");
    let without = |end: &'static str| {
        spoilt("llama_nf4", &|_| {}, &move |t| (t.name != format!("{weight}{end}")).then_some(t))
    };
    for end in
        [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"]
    {
        let said = error(without(end).path(), StorageChoice::AsIs);
        assert!(said.contains(weight), "{end}: {said}");
    }
    let said = error(without("").path(), StorageChoice::AsIs);
    assert!(said.contains(&format!("no tensor named `{weight}`")), "{said}");
    // A configuration for other sizes.
    let wide = spoilt("llama_nf4", &|c| c["intermediate_size"] = 96.into(), &Some);
    let said = error(wide.path(), StorageChoice::AsIs);
    assert!(said.contains("mlp.") && said.contains("its shape is [128, 64]"), "{said}");
    // Other people's methods.
    for (method, says) in [("gptq", "quantised by gptq"), ("awq", "--storage nf4")] {
        let config = |c: &mut serde_json::Value| c["quantization_config"]["quant_method"] = method.into();
        let said = error(spoilt("llama_nf4", &config, &Some).path(), StorageChoice::AsIs);
        assert!(said.contains(says), "{said}");
    }
}

/// An adapter remembers how its base was quantised while it was trained; elsewhere it works, with a note.
#[test]
fn the_storage_that_an_adapter_was_trained_on_is_noted() {
    let path = folder("llama_base_full");
    let adapter = tempfile::tempdir().expect("folder");
    let nf4 = load(&path, quantised("nf4", true));
    base::record(&nf4, adapter.path()).expect("record");
    assert_eq!(base::check(&nf4, adapter.path(), false).expect("the same base"), None);
    for (storage, here) in [(StorageChoice::F32, "as its files have it"), (quantised("int8", true), "int8")] {
        let note = base::check(&load(&path, storage), adapter.path(), false)
            .expect("the same base")
            .expect("a note");
        assert!(note.contains("nf4+dq") && note.contains(here), "{note}");
    }
    // Trained on the files as they are.
    base::record(&load(&path, StorageChoice::AsIs), adapter.path()).expect("record");
    assert_eq!(base::check(&load(&path, StorageChoice::F32), adapter.path(), false).expect("same"), None);
    let note = base::check(&nf4, adapter.path(), false).expect("the same base").expect("a note");
    assert!(note.contains("nf4+dq"), "{note}");
    // A folder of bitsandbytes is its own base: nothing was quantised while loading.
    base::record(&load(&folder("llama_nf4"), StorageChoice::AsIs), adapter.path()).expect("record");
    assert_eq!(
        base::check(&load(&folder("llama_nf4"), StorageChoice::F32), adapter.path(), false).expect("same"),
        None
    );
}
