//! What a model is: its architecture and sizes, what it reads, what it tells apart.

use std::path::Path;

use anyhow::Result;
use retune::models::{ModelFiles, Reads, image_head, spec_of};
use retune_formats::bitsandbytes::QuantizationConfig;
use retune_formats::darknet;
use retune_formats::folder::ModelFolder;
use retune_formats::gguf;
use serde_json::Value;

use super::{Facts, Found, facts_of, listed};
use crate::style::count;

/// Names of classes that are told.
const NAMED: usize = 6;

/// Looks at the files of a model, whichever they are.
pub fn look_at(path: &Path) -> Result<Found> {
    let files = ModelFiles::open(path)?;
    let reads_pictures = spec_of(&files).is_ok_and(|spec| spec.reads == Reads::Pictures);
    let (kind, facts) = match &files {
        ModelFiles::Gguf(file) => ("GGUF model", of_gguf(file)?),
        ModelFiles::Folder(folder) if reads_pictures => {
            ("model folder", of_pictures(&files, folder.config())?)
        }
        ModelFiles::Folder(folder) => ("Hugging Face model folder", of_folder(folder)?),
        ModelFiles::Image(file) => ("weights of an image network", of_pictures(&files, file.config())?),
        ModelFiles::Speech(folder) => ("Whisper model of CTranslate2", of_speech(folder.config())),
    };
    let tensors = listed(files.source())?;
    Ok(Found { kind, is_model: true, layers_differ: reads_pictures, path: path.into(), facts, tensors })
}

fn of_gguf(file: &gguf::File) -> Result<Facts> {
    let metadata = file.metadata();
    let mut facts = vec![("version", format!("GGUF {}", file.version()))];
    let names =
        [("name", "general.name"), ("architecture", "general.architecture"), ("licence", "general.license")];
    for (name, key) in names {
        if let Some(value) = metadata.opt_str(key)? {
            facts.push((name, value.to_owned()));
        }
    }
    let architecture = metadata.opt_str("general.architecture")?.unwrap_or_default().to_owned();
    let sizes = [
        ("layers", "block_count"),
        ("hidden size", "embedding_length"),
        ("feed-forward", "feed_forward_length"),
        ("heads", "attention.head_count"),
        ("key-value heads", "attention.head_count_kv"),
        ("context", "context_length"),
    ];
    for (name, key) in sizes {
        if let Some(value) = metadata.get(&format!("{architecture}.{key}")).and_then(gguf::Value::as_u64) {
            facts.push((name, count(value)));
        }
    }
    if let Some(tokens) = metadata.opt_array_str("tokenizer.ggml.tokens")? {
        let model = metadata.opt_str("tokenizer.ggml.model")?.unwrap_or("?");
        facts.push(("vocabulary", format!("{} tokens ({model})", count(tokens.len() as u64))));
    }
    let template = metadata.opt_str("tokenizer.chat_template")?.is_some();
    facts.push(("chat template", if template { "inside".into() } else { "none".into() }));
    Ok(facts)
}

fn of_folder(folder: &ModelFolder) -> Result<Facts> {
    let keys = [
        ("architecture", "model_type"),
        ("layers", "num_hidden_layers"),
        ("hidden size", "hidden_size"),
        ("feed-forward", "intermediate_size"),
        ("heads", "num_attention_heads"),
        ("key-value heads", "num_key_value_heads"),
        ("context", "max_position_embeddings"),
        ("vocabulary", "vocab_size"),
        ("tied embeddings", "tie_word_embeddings"),
    ];
    let mut facts = facts_of(folder.config(), &keys);
    facts.extend(quantisation(folder));
    facts.push(("tokenizer", if folder.tokenizer()?.is_some() { "inside".into() } else { "none".into() }));
    let templates = folder.chat_templates()?;
    facts.push(("chat template", if templates.is_empty() { "none".into() } else { "inside".into() }));
    Ok(facts)
}

/// Of a network over pixels: what it reads and what it tells apart.
fn of_pictures(files: &ModelFiles, config: &Value) -> Result<Facts> {
    let spec = spec_of(files)?;
    let what = if spec.detects { "finds objects" } else { "tells classes" };
    let mut facts = vec![("architecture", format!("{}, {what}", files.model_type()?))];
    if let Some((width, height)) = input(files.path(), config) {
        facts.push(("reads", format!("pictures of {width} x {height}")));
    }
    let labels = image_head::labels(&files.config()?)?;
    facts.push(("classes", classes(&labels)));
    Ok(facts)
}

/// How many classes, and the first of them.
pub fn classes(labels: &[String]) -> String {
    let named: Vec<&str> = labels.iter().take(NAMED).map(String::as_str).collect();
    let more = if labels.len() > NAMED { ", ..." } else { "" };
    format!("{}: {}{more}", count(labels.len() as u64), named.join(", "))
}

/// Width and height of the pictures that a network was made for.
fn input(path: &Path, config: &Value) -> Option<(u64, u64)> {
    if let Some(cfg) = config["cfg"].as_str() {
        let cfg = darknet::Config::parse(path, cfg).ok()?;
        let side = |key| cfg.net().size(key, None, 1..=1 << 16).ok().map(|n| n as u64);
        return side("width").zip(side("height"));
    }
    let input = config.get("image_input")?;
    input["width"].as_u64().zip(input["height"].as_u64())
}

/// Of a Whisper.
fn of_speech(config: &Value) -> Facts {
    let keys = [
        ("architecture", "model_type"),
        ("encoder layers", "encoder_layers"),
        ("decoder layers", "decoder_layers"),
        ("hidden size", "d_model"),
        ("mel bands", "num_mel_bins"),
        ("vocabulary", "vocab_size"),
    ];
    facts_of(config, &keys)
}

/// What a folder's configuration says of its quantisation.
fn quantisation(folder: &ModelFolder) -> Option<(&'static str, String)> {
    let path = folder.path().join("config.json");
    match QuantizationConfig::of(&path, folder.config()) {
        Ok(config) => config.map(|config| ("quantised", format!("{}, by bitsandbytes", config.describe()))),
        Err(_) => {
            let method = folder.config().get("quantization_config")?.get("quant_method")?.as_str()?;
            Some(("quantised", format!("by {method}, which Retune cannot read")))
        }
    }
}
