//! Adapters of AdapterHub against its own numbers: logits, loss, gradients, one AdamW step, five losses, files.
//!
//! Bottlenecks, prompts and prefixes are held as they are; LoRA and IA³ become PEFT's in memory.

mod common;

use std::path::Path;

use common::case::{Case, json};
use common::*;
use retune::methods::{self, Attached, Source};
use retune::models::{Model, StorageChoice};
use retune::nn::{Active, Pass};
use retune_formats::adapter_hub::{HubAdapter, HubHead};

fn find(model: &Model, name: &str) -> retune_tensor::ParamId {
    let lora = |from: &str, to: &str| {
        let module = name.strip_suffix(from)?;
        model.params.find(&format!("base_model.model.{module}{to}"))
    };
    // Every layer points to the one pool of prefixes, and torch names the first.
    let pooled = || {
        let end = name.split_once(".prefix_tuning.pool.")?.1;
        model.params.iter().find(|(_, param)| param.name.ends_with(end)).map(|(id, _)| id)
    };
    let found = model.params.find(name).or_else(|| lora(".loras.task.lora_A", ".lora_A.weight"));
    found
        .or_else(|| lora(".loras.task.lora_B", ".lora_B.weight"))
        .or_else(|| lora(".loras.task.lora_B", ".ia3_l"))
        .or_else(|| {
            model.params.find(&format!("base_model.model.classifier{}", name.strip_prefix("heads.task.1")?))
        })
        .or_else(pooled)
        .unwrap_or_else(|| panic!("no parameter {name}"))
}

/// Loads a case and compares its logits, in another slot than the first too.
fn check_logits(name: &str) -> (Case, Model, Attached) {
    let case = Case::read(name, 0);
    let meta = json(&case.folder().join("meta.json"));
    let base = data("parity").join(meta["base"].as_str().expect("base"));
    let mut model = load(&base, StorageChoice::F32);
    let plain = case.logits(&model, &Pass::default());
    let source = [Source { path: case.folder().into(), weight: 1.0 }];
    methods::load(&mut model, &source, 1).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(case.logits(&model, &Pass::default()).data(), plain.data(), "{name}: slot 0 is empty");
    case.check_logits(&model, &Pass { active: Active::Slot(1), ..Pass::default() }, name);
    let mut model = load(&base, StorageChoice::F32);
    let attached = methods::load(&mut model, &source, 0).expect("load");
    case.check_logits(&model, &Pass::default(), name);
    (case, model, attached)
}

#[test]
fn lora_and_ia3() {
    for name in ["bert_ah_lora", "bert_ah_ia3", "llama_ah_lora", "llama_ah_ia3"] {
        let (case, mut model, attached) = check_logits(name);
        case.check(&mut model, &attached, find);
    }
    // In PEFT's form the fused matrices have more values than are trained in AdapterHub's.
    for name in ["gpt2_ah_lora", "gpt2_ah_ia3"] {
        check_logits(name);
    }
}

#[test]
fn prompts_and_prefixes() {
    for name in ["bert_ah_prompt", "bert_ah_prefix_flat", "gpt2_ah_prefix_flat"] {
        let (case, mut model, attached) = check_logits(name);
        check_files(&model, &attached, case.folder());
        case.check(&mut model, &attached, find);
    }
    // The last linear lies in pieces here, so that its gradient has no counterpart.
    for name in ["bert_ah_prefix", "llama_ah_prefix"] {
        let (case, model, attached) = check_logits(name);
        check_files(&model, &attached, case.folder());
    }
}

/// Text by text through a cache: the rows of a prefix take keys, but no positions.
#[test]
fn a_prefix_without_positions_works_with_a_cache() {
    for name in ["llama_ah_prefix", "gpt2_ah_prefix_flat"] {
        let (case, model, _) = check_logits(name);
        let all = case.logits(&model, &Pass::default());
        let range = case.segments.range(0);
        let mut cache = model.net.as_text().expect("text").new_cache(range.len(), Active::Slot(0));
        for row in range.clone() {
            let ids = &case.ids[row..row + 1];
            let logits = retune::generate::next_logits(&model, ids, &mut cache).expect("logits");
            close(&format!("{name} row {row}"), logits.data(), all.row(row), 1e-5);
        }
    }
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
    for (name, what) in [
        ("ah_bert_seq_bn", "another base"),
        ("ah_bert_lora", "asks for it in this model"),
        ("ah_bert_ia3", "another base"),
        ("ah_bert_dora", "DoRA"),
        ("ah_bert_prompt_tuning", "another base"),
        ("ah_bert_prefix", "another base"),
        ("ah_bert_prefix_flat", "another base"),
        ("ah_gpt2_double_seq_bn", "place"),
    ] {
        let source = Source { path: data("formats").join(name), weight: 1.0 };
        let error = methods::load(&mut model, &[source], 0).err().expect(name).to_string();
        assert!(error.contains(what), "{name}: {error}");
    }
}
