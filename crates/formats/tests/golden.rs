//! Files written by PEFT, AdapterHub, bitsandbytes, transformers and llama.cpp's own library, read and written again.

use std::fs;
use std::path::{Path, PathBuf};

use retune_formats::peft::{self, Param, PeftAdapter, PeftConfig};
use retune_formats::{Dtype, TensorOut, TensorSource, folder, gguf, gguf_write, json, safetensors};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(path)
}

fn copies(source: &dyn TensorSource) -> impl Iterator<Item = TensorOut<'_>> {
    source.tensors().iter().map(|info| TensorOut::copy(source, info))
}

/// All files below a folder whose names end so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            out.push(path);
        }
    }
    out
}

#[test]
fn every_safetensors_file_is_rewritten_byte_for_byte() {
    let files = files(&data(""), ".safetensors");
    assert!(files.len() > 30, "{}", files.len());
    for path in files {
        let file = safetensors::File::open(&path).unwrap();
        let metadata: Vec<_> = file.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let bytes = safetensors::to_bytes(copies(&file), &metadata).unwrap();
        assert!(bytes == fs::read(&path).unwrap(), "{}", path.display());
    }
}

const PEFT: &[&str] = &[
    "formats/ia3_bert",
    "formats/ia3_llama",
    "formats/lora_bert_seqcls",
    "formats/lora_dora",
    "formats/lora_embed_llama",
    "formats/lora_gpt2",
    "formats/lora_mts_llama",
    "formats/lora_pissa",
    "formats/lora_whisper",
    "formats/prefix_gpt2",
    "formats/prefix_t5",
    "formats/prompt_bert_seqcls",
    "formats/shira",
    "formats/vgg_dora",
    "formats/vgg_ia3",
    "formats/vgg_lora",
    "parity/llama_ia3",
    "parity/llama_lora",
    "parity/llama_lora_qv",
    "parity/llama_lora_rslora",
    "parity/llama_p_tuning",
    "parity/llama_prefix_tuning",
    "parity/llama_prompt_tuning",
    "parity/minilm_ia3",
    "parity/minilm_p_tuning",
    "parity/minilm_prefix_tuning",
    "parity/minilm_prompt_tuning",
];

#[test]
fn peft_folders_are_rewritten_byte_for_byte() {
    for name in PEFT {
        let adapter = PeftAdapter::open(data(name)).unwrap();
        assert!(adapter.notes().is_empty() || *name == "formats/lora_mts_llama", "{:?}", adapter.notes());
        for tensor in adapter.tensors() {
            assert_eq!(adapter.config().key(&tensor.module, &tensor.param), tensor.info.name);
        }
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/adapter");
        peft::write(&out, adapter.config(), copies(adapter.source()), Some("# Card\n")).unwrap();
        for file in [peft::CONFIG, peft::WEIGHTS] {
            let (ours, theirs) =
                (fs::read(out.join(file)).unwrap(), fs::read(data(name).join(file)).unwrap());
            assert!(ours == theirs, "{name}/{file}: {}", String::from_utf8_lossy(&ours));
        }
        assert_eq!(fs::read_to_string(out.join("README.md")).unwrap(), "# Card\n");
        let mut left: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["README.md", peft::CONFIG, peft::WEIGHTS], "{name}");
    }
}

#[test]
fn keys_are_taken_apart() {
    let adapter = PeftAdapter::open(data("formats/lora_mts_llama")).unwrap();
    let q = "model.layers.1.self_attn.q_proj";
    let b = adapter.find(q, &Param::B).unwrap();
    assert_eq!(b.info.shape, [32, 4]);
    assert_eq!(adapter.read_f32(b).unwrap().len(), 128);
    assert_eq!(peft::lora_key(q, &Param::B), b.info.name);
    assert!(adapter.find("lm_head", &Param::Plain("weight".into())).is_some());
    let (table, head) = adapter.differing_tied_pair().unwrap();
    assert!(table.ends_with("embed_tokens.weight") && head.ends_with("lm_head.weight"));
    assert!(adapter.notes()[0].contains("embed_tokens.weight` and `base_model.model.lm_head.weight`"));
    let embedding = PeftAdapter::open(data("formats/lora_embed_llama")).unwrap();
    let a = embedding.find("model.embed_tokens", &Param::EmbeddingA).unwrap();
    assert_eq!(a.info.shape, [4, 64]);
    let pissa = PeftAdapter::open(data("formats/lora_pissa")).unwrap();
    assert!(matches!(pissa.config(), PeftConfig::Lora(c) if c.init_lora_weights.changes_base()));
    let prompt = PeftAdapter::open(data("parity/minilm_prompt_tuning")).unwrap();
    let embeddings = prompt.find("", &Param::PromptEmbeddings).unwrap();
    assert_eq!(embeddings.info.shape, [5, 384]);
    assert!(prompt.find("classifier", &Param::Plain("bias".into())).is_some());
    let shira = PeftAdapter::open(data("formats/shira")).unwrap();
    let indices = shira.find(q, &Param::ShiraIndices).unwrap();
    let places = shira.read_indices(indices).unwrap();
    assert_eq!(places.len(), 128);
    assert!(places.is_sorted() && places.iter().all(|&(row, column)| row < 32 && column < 32));
    let dora = PeftAdapter::open(data("formats/vgg_dora")).unwrap();
    assert_eq!(dora.find("features.0", &Param::Magnitude).unwrap().info.shape.len(), 4);
    let rslora = PeftAdapter::open(data("parity/llama_lora_rslora")).unwrap();
    let PeftConfig::Lora(config) = rslora.config() else { panic!("no LoRA") };
    assert_eq!(config.matcher(Path::new("")).unwrap().scale(q), 8.0 / 2.0);
}

#[test]
fn adapters_of_other_kinds_are_named() {
    for (name, word) in [
        ("lora_replication", "`layer_replication` is a list of 2"),
        ("ah_bert_lora", "this is an AdapterHub adapter (`adapters.1.3.0`)"),
    ] {
        let message = PeftAdapter::open(data("formats").join(name)).unwrap_err().to_string();
        assert!(message.contains(word) && message.contains(name), "{message}");
    }
}

#[test]
fn python_wrote_the_same_text_of_every_configuration() {
    for path in files(&data("formats"), "adapter_config.json") {
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(json::to_python_text(&json::parse(&path, &text).unwrap()), text, "{}", path.display());
    }
}

#[test]
fn model_folders_in_one_file_and_in_shards() {
    for entry in fs::read_dir(data("llama_variants")).unwrap() {
        let model = folder::ModelFolder::open(entry.unwrap().path()).unwrap();
        assert_eq!(model.config()["hidden_size"], 64);
        assert!(model.weights().unlisted().is_empty());
        let embedding = model.weights().find("model.embed_tokens.weight").unwrap();
        assert_eq!(embedding.shape, [160, 64]);
        assert_eq!(model.weights().read_f32(&embedding.name).unwrap().len(), 160 * 64);
    }
    let sharded = folder::ModelFolder::open(data("llama_variants/llama_sharded")).unwrap();
    assert_eq!(sharded.weights().files().count(), 3);
}

#[test]
fn a_gguf_of_many_types_is_rewritten_with_the_same_tensors() {
    let path = data("gguf/tiny_mixed.gguf");
    let file = gguf::File::open(&path).unwrap();
    let m = file.metadata();
    assert_eq!(m.str("general.architecture").unwrap(), "llama");
    assert!(m.u32("llama.block_count").unwrap() > 0);
    assert!(file.tensors().iter().any(|t| t.dtype == Dtype::Q4_K));
    assert_eq!(file.find("token_embd.weight").unwrap().shape.len(), 2);
    let metadata: Vec<_> = m.iter().map(|(k, v)| (k, v.clone())).collect();
    let again =
        gguf::File::from_memory("again", gguf_write::to_bytes(&metadata, copies(&file)).unwrap()).unwrap();
    assert_eq!(again.tensors().len(), file.tensors().len());
    for (a, b) in file.tensors().iter().zip(again.tensors()) {
        assert_eq!((&a.name, a.dtype, &a.shape), (&b.name, b.dtype, &b.shape));
        assert!(file.read(&a.name).unwrap() == again.read(&b.name).unwrap(), "{}", a.name);
    }
    assert!(m.iter().zip(again.metadata().iter()).all(|(a, b)| a == b));
}

#[test]
fn what_bitsandbytes_wrote_is_read() {
    let file = safetensors::File::open(data("formats/bnb_nf4_dq.safetensors")).unwrap();
    let state = file.read("weight.quant_state.bitsandbytes__nf4").unwrap();
    assert!(String::from_utf8(state).unwrap().contains("nested_offset"));
    assert_eq!(file.find("weight").unwrap().dtype, Dtype::U8);
}
