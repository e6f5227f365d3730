//! Bottleneck adapters against AdapterHub's numbers: logits, loss, gradients, one AdamW step, five losses, files.

mod common;

use std::path::Path;

use common::case::{Case, json};
use common::*;
use retune::methods::{self, Attached, Source};
use retune::models::{Model, StorageChoice};
use retune::nn::{Active, Pass};
use retune_formats::adapter_hub::{HubAdapter, HubHead};

fn find(model: &Model, name: &str) -> retune_tensor::ParamId {
    model.params.find(name).unwrap_or_else(|| panic!("no parameter {name}"))
}

/// What we write is what AdapterHub wrote, as safetensors.
fn check_files(model: &Model, attached: &Attached, reference: &Path) {
    let folder = tempfile::tempdir().expect("folder");
    attached.write(model, folder.path(), None).expect("save");
    let (ours, theirs) = (HubAdapter::open(folder.path()), HubAdapter::open(reference));
    let (ours, theirs) = (ours.expect("ours"), theirs.expect("theirs"));
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for tensor in theirs.tensors() {
        let own = ours.find(&tensor.site, tensor.param).unwrap_or_else(|| panic!("{tensor:?}"));
        assert_eq!(own.info.shape, tensor.info.shape, "{}", own.info.name);
        assert_eq!(ours.read_f32(own).expect("ours"), theirs.read_f32(tensor).expect("theirs"));
    }
    assert_eq!(
        json(&folder.path().join("adapter_config.json")),
        json(&reference.join("adapter_config.json"))
    );
    // A language model's own head is read, and being the base's is not written.
    let has_head = ["head_config.json", "model_head.safetensors"].iter().all(|f| reference.join(f).is_file())
        && !json(&reference.join("head_config.json"))["config"].is_null()
        || reference.join("pytorch_model_head.bin").is_file();
    assert_eq!(folder.path().join("head_config.json").is_file(), has_head);
    if has_head {
        assert_eq!(json(&folder.path().join("head_config.json")), json(&reference.join("head_config.json")));
        let names = |head: HubHead| {
            let of = |t: &retune_formats::TensorInfo| (t.name.clone(), t.shape.clone());
            head.source().tensors().iter().map(of).collect::<std::collections::BTreeMap<_, _>>()
        };
        let (ours, theirs) = (HubHead::open(folder.path()), HubHead::open(reference));
        assert_eq!(names(ours.expect("ours")), names(theirs.expect("theirs")));
    }
}

fn case(name: &str) {
    let case = Case::read(name, 0);
    let meta = json(&case.folder().join("meta.json"));
    let base = data("parity").join(meta["base"].as_str().expect("base"));
    let mut model = load(&base, StorageChoice::F32);
    let plain = case.logits(&model, &Pass::default());
    let source = Source { path: case.folder().into(), weight: 1.0 };
    methods::load(&mut model, std::slice::from_ref(&source), 1).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(case.logits(&model, &Pass::default()).data(), plain.data(), "{name}: slot 0 is empty");
    let second = Pass { active: Active::Slot(1), ..Pass::default() };
    case.check_logits(&model, &second, name);

    let mut model = load(&base, StorageChoice::F32);
    let attached = methods::load(&mut model, std::slice::from_ref(&source), 0).expect("load");
    check_files(&model, &attached, case.folder());
    case.check(&mut model, &attached, find);
    let half = Source { weight: 0.5, ..source };
    let error = methods::load(&mut model, &[half], 2).err().expect("half");
    assert!(error.to_string().contains("0.5"), "{error}");
}

#[test]
fn bert() {
    for kind in ["double_seq_bn", "seq_bn", "par_bn", "odd", "plus"] {
        case(&format!("bert_ah_{kind}"));
    }
}

#[test]
fn gpt2() {
    for kind in ["double_seq_bn", "seq_bn", "par_bn"] {
        case(&format!("gpt2_ah_{kind}"));
    }
}

#[test]
fn llama() {
    for kind in ["double_seq_bn", "seq_bn", "par_bn"] {
        case(&format!("llama_ah_{kind}"));
    }
}

/// Adapters that the library wrote itself, on a model of another size: refused by what does not fit.
#[test]
fn another_base_is_refused() {
    let mut model = load(&data("parity/bert_base"), StorageChoice::F32);
    for (name, what) in
        [("ah_bert_seq_bn", "another base"), ("ah_bert_lora", "convert"), ("ah_gpt2_double_seq_bn", "place")]
    {
        let source = Source { path: data("formats").join(name), weight: 1.0 };
        let error = methods::load(&mut model, &[source], 0).err().expect(name).to_string();
        assert!(error.contains(what), "{name}: {error}");
    }
}
