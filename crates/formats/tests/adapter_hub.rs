//! Folders that AdapterHub's `adapters` 1.3 wrote, read and written again, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use retune_formats::adapter_hub::{
    self, BnConfig, HeadParam, HubAdapter, HubConfig, HubHead, HubLora, HubMethod, HubParam, HubPrompt,
    Scaling,
};
use retune_formats::{TensorOut, TensorSource, json, safetensors};
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/formats").join(name)
}

fn copies(source: &dyn TensorSource) -> impl Iterator<Item = TensorOut<'_>> {
    source.tensors().iter().map(|info| TensorOut::copy(source, info))
}

const ADAPTERS: &[&str] = &[
    "ah_bert_double_seq_bn",
    "ah_bert_seq_bn",
    "ah_bert_par_bn",
    "ah_gpt2_double_seq_bn",
    "ah_bert_lora",
    "ah_bert_dora",
    "ah_bert_ia3",
    "ah_bert_prompt_tuning",
];

fn same(theirs: &Path, ours: &Path, files: &[&str]) {
    for file in files {
        let (one, other) = (fs::read(theirs.join(file)).unwrap(), fs::read(ours.join(file)).unwrap());
        assert!(one == other, "{}/{file}: {}", theirs.display(), String::from_utf8_lossy(&other));
    }
}

#[test]
fn adapters_are_rewritten_byte_for_byte() {
    for name in ADAPTERS {
        let adapter = HubAdapter::open(data(name)).unwrap();
        assert!(adapter.notes().is_empty(), "{name}: {:?}", adapter.notes());
        for tensor in adapter.tensors() {
            assert_eq!(adapter.config().key(&tensor.site, tensor.param), tensor.info.name);
        }
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/adapter");
        adapter_hub::write(&out, adapter.config(), copies(adapter.source())).unwrap();
        same(&data(name), &out, &[adapter_hub::CONFIG, adapter_hub::WEIGHTS]);
    }
}

#[test]
fn a_head_is_rewritten_byte_for_byte() {
    let head = HubHead::open(data("ah_head")).unwrap();
    assert_eq!((head.config().layers, head.config().num_labels), (2, 3));
    assert_eq!(head.read_f32(1, HeadParam::Weight).unwrap().len(), 3 * 32);
    let dir = tempfile::tempdir().unwrap();
    adapter_hub::write_head(dir.path(), head.config(), copies(head.source())).unwrap();
    same(&data("ah_head"), dir.path(), &[adapter_hub::HEAD_CONFIG, "model_head.safetensors"]);
    assert!(adapter_hub::has_head(dir.path()));
    let config = adapter_hub::HeadConfig { num_labels: 2, ..head.config().clone() };
    let message =
        adapter_hub::write_head(dir.path(), &config, copies(head.source())).unwrap_err().to_string();
    assert!(message.contains("label2id"), "{message}");
    let config = adapter_hub::HeadConfig { layers: 1, ..head.config().clone() };
    let message =
        adapter_hub::write_head(dir.path(), &config, copies(head.source())).unwrap_err().to_string();
    assert!(message.contains("heads.task"), "{message}");
}

#[test]
fn parts_are_found_by_site() {
    let adapter = HubAdapter::open(data("ah_gpt2_double_seq_bn")).unwrap();
    let HubMethod::Bottleneck(bn) = &adapter.config().method else { panic!("no bottleneck") };
    assert_eq!(*bn, BnConfig::double_seq_bn());
    assert_eq!(bn.bottleneck(32, 0), Some(2));
    let up = adapter.find("transformer.h.0.attention_adapters", HubParam::UpWeight).unwrap();
    assert_eq!(up.info.shape, [32, 2]);
    assert_eq!(adapter.read_f32(up).unwrap().len(), 64);
    let ia3 = HubAdapter::open(data("ah_bert_ia3")).unwrap();
    assert!(matches!(&ia3.config().method, HubMethod::Lora(lora) if *lora == HubLora::ia3()));
    let par = HubAdapter::open(data("ah_bert_par_bn")).unwrap();
    assert!(matches!(&par.config().method, HubMethod::Bottleneck(bn) if bn.scaling == Scaling::Fixed(4.0)));
}

#[test]
fn pickled_folders_are_read_and_shared_tensors_counted_once() {
    let parts = HubAdapter::open(data("ah_bert_all_parts")).unwrap();
    assert_eq!(parts.source().tensors().len(), 52);
    assert_eq!(parts.tensors().len(), 44);
    let site = "bert.encoder.layer.1.attention.output";
    assert_eq!(parts.find(site, HubParam::DownWeight).unwrap().info.shape, [4, 32]);
    assert_eq!(parts.find(site, HubParam::NormBeforeWeight).unwrap().info.shape, [32]);
    // Written as safetensors it has each tensor once, and is read again.
    let dir = tempfile::tempdir().unwrap();
    let once = parts.tensors().iter().map(|t| TensorOut::copy(parts.source(), &t.info));
    adapter_hub::write(dir.path(), parts.config(), once).unwrap();
    assert_eq!(HubAdapter::open(dir.path()).unwrap().tensors().len(), 44);
    let prefix = HubAdapter::open(data("ah_bert_prefix")).unwrap();
    assert_eq!(prefix.tensors().len(), 5);
    let site = "bert.prefix_tuning.self_prefix";
    assert_eq!(prefix.find(site, HubParam::PrefixOutWeight).unwrap().info.shape, [128, 4]);
    let key = prefix.config().key(site, HubParam::PrefixEmbedding);
    assert_eq!(key, "bert.prefix_tuning.prefix_tunings.task.self_prefix.wte.weight");
    let flat = HubAdapter::open(data("ah_bert_prefix_flat")).unwrap();
    assert_eq!(flat.find(site, HubParam::PrefixFlat).unwrap().info.shape, [384]);
}

fn config(method: Value) -> HubConfig {
    let value = json!({"name": "t", "hidden_size": 8, "config": method, "version": "adapters.1.3.0"});
    HubConfig::from_json(Path::new("c"), value.as_object().unwrap()).unwrap().0
}

fn open(config: HubConfig, tensors: &[(&str, &[usize])]) -> retune_formats::Result<HubAdapter> {
    let out = tensors
        .iter()
        .map(|(name, shape)| TensorOut::f32(name.to_string(), shape, vec![1.0; shape.iter().product()]));
    let bytes = safetensors::to_bytes(out, &[]).unwrap();
    HubAdapter::new(Path::new("here"), config, safetensors::File::from_memory("here/w", bytes).unwrap())
}

fn bottleneck(container: &str, layers: &[usize]) -> Vec<(String, Vec<usize>)> {
    let parts: [(&str, &[usize]); 4] = [
        ("adapter_down.0.weight", &[2, 8]),
        ("adapter_down.0.bias", &[2]),
        ("adapter_up.weight", &[8, 2]),
        ("adapter_up.bias", &[8]),
    ];
    let of = |layer: &usize| {
        parts.map(|(name, shape)| (format!("b.layer.{layer}.output.{container}.t.{name}"), shape.to_vec()))
    };
    layers.iter().flat_map(of).collect()
}

/// Behind an encoder the numbers of `leave_out` go on in the decoder.
#[test]
fn a_decoder_behind_an_encoder_that_is_left_out_is_accepted() {
    let mut method =
        json!({"mh_adapter": false, "output_adapter": true, "reduction_factor": 4, "non_linearity": "relu"});
    method["leave_out"] = json!([0, 1]);
    let reads = |front: &str| {
        let mut tensors = bottleneck("adapters", &[0, 1]);
        tensors.iter_mut().for_each(|(name, _)| *name = name.replace("b.layer.", front));
        let tensors: Vec<(&str, &[usize])> =
            tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        open(config(method.clone()), &tensors).is_ok()
    };
    assert!(reads("model.decoder.layers.") && !reads("bert.encoder.layer."));
}

#[test]
fn what_does_not_fit_the_configuration_is_named() {
    let bn =
        json!({"mh_adapter": false, "output_adapter": true, "reduction_factor": 4, "non_linearity": "relu"});
    let lora = json!({"architecture": "lora", "r": 2});
    let with = |key: &str, value: Value| {
        let mut method = bn.clone();
        method[key] = value;
        config(method)
    };
    let owned = |layers| bottleneck("adapters", layers);
    let a = ("l.0.q.loras.t.lora_A".to_string(), vec![2, 8]);
    let b = ("l.0.q.loras.t.lora_B".to_string(), vec![8, 2]);
    let cases: Vec<(HubConfig, Vec<(String, Vec<usize>)>, &str)> = vec![
        (config(bn.clone()), vec![], "holds no tensors"),
        (config(bn.clone()), owned(&[0])[..3].to_vec(), "lacks UpBias"),
        (config(bn.clone()), owned(&[0, 2]), "only one of `b.layer.1.output` and `b.layer.2.output`"),
        (config(bn.clone()), bottleneck("adapter", &[0]), "has no `.adapters.t.`"),
        (with("reduction_factor", json!(2)), owned(&[0]), "[4, 8] was due"),
        (with("reduction_factor", json!({"1": 4})), owned(&[0]), "without layer 0"),
        (with("leave_out", json!([0])), owned(&[0]), "is in leave_out"),
        (with("output_adapter", json!(false)), owned(&[0]), "output_adapter is false"),
        (with("ln_after", json!(true)), owned(&[0]), "lacks NormAfterWeight"),
        (with("scaling", json!("learned")), owned(&[0]), "lacks Scaling"),
        (config(lora.clone()), vec![a.clone()], "has shape"),
        (config(lora.clone()), vec![a.clone(), b.clone(), owned(&[0])[0].clone()], "has no `.loras.t.`"),
        (config(json!({"architecture": "lora", "r": 3})), vec![a.clone(), b.clone()], "LoraA of 2 rows"),
        (config(json!({"architecture": "lora", "r": 2, "use_dora": true})), vec![a, b], "lacks DoraM"),
    ];
    for (config, tensors, word) in cases {
        let tensors: Vec<(&str, &[usize])> =
            tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        let message = open(config, &tensors).unwrap_err().to_string();
        let word = if word == "has shape" { "LoraB" } else { word };
        assert!(message.starts_with("here/w: ") && message.contains(word), "{message}");
    }
}

#[test]
fn older_files_are_understood() {
    let old = HubConfig {
        method: HubMethod::Bottleneck(BnConfig {
            reduction_factor: adapter_hub::Reduction::All(4.0),
            ..BnConfig::seq_bn()
        }),
        ..config(json!({"architecture": "lora"}))
    };
    let tensors = bottleneck("layer_text_task_adapters", &[0, 1]);
    let tensors: Vec<(&str, &[usize])> = tensors.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let adapter = open(old, &tensors).unwrap();
    assert!(adapter.notes()[0].contains("8 tensors have names of the library's first versions"));
    assert!(adapter.find("b.layer.1.output", HubParam::UpBias).is_some());
    for (version, alpha) in [("adapters.1.0.1", 2.0), ("adapters.1.1.0", 16.0), ("3.2.1", 16.0)] {
        let value =
            json!({"name": "t", "version": version, "config": {"architecture": "lora", "r": 2, "alpha": 16}});
        let (config, notes) = HubConfig::from_json(Path::new("c"), value.as_object().unwrap()).unwrap();
        assert!(matches!(config.method, HubMethod::Lora(lora) if lora.alpha == alpha), "{version}");
        assert_eq!(notes.len(), usize::from(alpha == 2.0), "{version}");
    }
}

#[test]
fn configurations_that_cannot_be_honoured_are_named() {
    let bn =
        json!({"mh_adapter": false, "output_adapter": true, "reduction_factor": 4, "non_linearity": "relu"});
    let cases = [
        ("phm_layer", json!(true), "phm_layer"),
        ("inv_adapter", json!("nice"), "inv_adapter"),
        ("reduction_factor", json!(0), "above 0"),
        ("reduction_factor", json!({"x": 2}), "numbers of layers"),
        ("scaling", json!("some"), "`learned`"),
        ("residual_before_ln", json!("pre"), "`post_add`"),
        ("architecture", json!("reft"), "architecture is `reft`"),
        ("dropout", json!(2), "from 0 to 1"),
    ];
    for (key, value, word) in cases {
        let mut method = bn.clone();
        method[key] = value;
        let value = json!({"name": "t", "config": method});
        let message =
            HubConfig::from_json(Path::new("c"), value.as_object().unwrap()).unwrap_err().to_string();
        assert!(message.starts_with("c: ") && message.contains(word), "{message}");
    }
    let parse = |value: Value| HubConfig::from_json(Path::new("c"), value.as_object().unwrap());
    let message = parse(json!({"name": "t", "config": {"output_adapter": true}})).unwrap_err().to_string();
    assert!(message.contains("config.mh_adapter"), "{message}");
    let message = parse(json!({"name": "a.b", "config": bn})).unwrap_err().to_string();
    assert!(message.contains("without dots"), "{message}");
    let message = HubAdapter::open(data("lora_gpt2")).unwrap_err().to_string();
    assert!(message.contains("this is a PEFT adapter (`LORA`)"), "{message}");
}

#[test]
fn what_is_made_from_scratch_is_what_the_library_writes() {
    for (method, folder) in [
        (HubMethod::Bottleneck(BnConfig::seq_bn()), "ah_bert_seq_bn"),
        (HubMethod::Bottleneck(BnConfig::double_seq_bn()), "ah_bert_double_seq_bn"),
        (HubMethod::Lora(HubLora::default()), "ah_bert_lora"),
        (HubMethod::Prompt(HubPrompt::default()), "ah_bert_prompt_tuning"),
    ] {
        let config = HubConfig::new("task", "bert", "BertAdapterModel", 32, method);
        let theirs = fs::read_to_string(data(folder).join(adapter_hub::CONFIG)).unwrap();
        assert_eq!(json::to_python_text(&config.to_json()), theirs);
    }
}
