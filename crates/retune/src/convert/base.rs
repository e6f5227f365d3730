//! What a conversion needs to know of the model that an adapter is for; its weights are not read.

use std::path::Path;

use crate::error::{Error, Result};
use crate::models::ModelFiles;
use crate::models::llama::LlamaConfig;

/// The facts of a base model.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// Its path, as it is written into configurations.
    pub name: String,
    pub model_type: String,
    pub layers: usize,
    pub hidden_size: usize,
    /// Columns of one head.
    pub head_dim: usize,
    /// Where positions are rotations, those of the pairs of a head.
    pub frequencies: Option<Vec<f32>>,
}

impl Base {
    /// From a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// If the files are damaged or say too little.
    pub fn open(path: &Path) -> Result<Base> {
        let files = ModelFiles::open(path)?;
        let model_type = files.model_type()?;
        let frequencies = frequencies(&files, &model_type)?;
        let (layers, hidden_size, heads, head_dim) = match &files {
            ModelFiles::Folder(_) | ModelFiles::Image(_) | ModelFiles::Speech(_) => {
                let config = files.config()?;
                let any = |keys: [&str; 3]| {
                    let found = keys.iter().find(|key| config.get(key).is_some());
                    config.size(found.unwrap_or(&keys[0]), 1 << 20)
                };
                (
                    any(["num_hidden_layers", "n_layer", "n_layers"])?,
                    any(["hidden_size", "n_embd", "dim"])?,
                    any(["num_attention_heads", "n_head", "n_heads"])?,
                    config.opt_size("head_dim", 1 << 20)?,
                )
            }
            ModelFiles::Gguf(file) => {
                let get = |key: &str| {
                    let key = format!("{model_type}.{key}");
                    crate::models::config::gguf_size(file.metadata(), path, &key, 1 << 20)
                };
                let head_dim = get("attention.key_length").ok();
                (get("block_count")?, get("embedding_length")?, get("attention.head_count")?, head_dim)
            }
        };
        if !hidden_size.is_multiple_of(heads) && head_dim.is_none() {
            let what = format!("{hidden_size} channels are not {heads} whole heads");
            return Err(Error::Model { path: path.to_path_buf(), what });
        }
        let name = path.display().to_string();
        let head_dim = head_dim.unwrap_or(hidden_size / heads);
        Ok(Base { name, model_type, layers, hidden_size, head_dim, frequencies })
    }

    /// llama.cpp's name of the architecture, where its LoRAs are known.
    pub fn gguf_architecture(&self) -> Option<&'static str> {
        match self.model_type.as_str() {
            "llama" | "mistral" => Some("llama"),
            "qwen2" => Some("qwen2"),
            "qwen3" => Some("qwen3"),
            _ => None,
        }
    }

    /// Does llama.cpp hold the rows of this module with the two halves of each head interleaved?
    pub fn interleaves(&self, module: &str) -> bool {
        let rotated = module.ends_with("self_attn.q_proj") || module.ends_with("self_attn.k_proj");
        rotated && self.gguf_architecture() == Some("llama")
    }

    /// Are its linears stored `(in, out)`?
    pub fn transposed(&self) -> bool {
        self.model_type == "gpt2"
    }

    /// AdapterHub's class for the architecture, `BertAdapterModel`.
    pub fn hub_class(&self) -> String {
        let class = match self.model_type.as_str() {
            "bert" => "Bert",
            "roberta" => "Roberta",
            "distilbert" => "DistilBert",
            "xlm-roberta" => "XLMRoberta",
            "gpt2" => "GPT2",
            "llama" => "Llama",
            "mistral" => "Mistral",
            other => other,
        };
        format!("{class}AdapterModel")
    }

    /// The layers that none of the modules is in.
    pub fn left_out<'m>(&self, modules: impl Iterator<Item = &'m String>) -> Vec<usize> {
        let layer = |path: &String| path.split('.').find_map(|part| part.parse::<usize>().ok());
        let found: std::collections::BTreeSet<usize> = modules.filter_map(layer).collect();
        (0..self.layers).filter(|layer| !found.contains(layer)).collect()
    }
}

/// The frequencies of a Llama-like model.
fn frequencies(files: &ModelFiles, model_type: &str) -> Result<Option<Vec<f32>>> {
    if !crate::models::llama::SPEC.model_types.contains(&model_type) {
        return Ok(None);
    }
    let config = match files {
        ModelFiles::Gguf(file) => LlamaConfig::from_gguf(file)?,
        _ => LlamaConfig::from_json(&files.config()?)?,
    };
    Ok(Some(crate::models::llama::frequencies(&config)))
}
