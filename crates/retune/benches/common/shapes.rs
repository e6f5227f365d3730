//! Llamas of known shapes with random weights, written as ordinary files and loaded as any model is.
//!
//! f32 and bf16 are Hugging Face folders. Quantised ones are GGUF files whose token table is in Q8_0, as llama.cpp makes them.

use std::io::Write;
use std::path::{Path, PathBuf};

use retune_formats::source::Data;
use retune_formats::{Dtype, TensorOut, gguf, gguf_write, safetensors};
use retune_tensor::storage::{Format, encode};
use serde_json::json;

use super::Noise;

/// Field names as in transformers' `LlamaConfig`.
pub struct Shape {
    pub name: &'static str,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub tie_word_embeddings: bool,
    pub max_position_embeddings: usize,
}

/// The same as in `scripts/peer/bench_llama.py`.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "smol",
        hidden_size: 576,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        intermediate_size: 1536,
        vocab_size: 49152,
        tie_word_embeddings: true,
        max_position_embeddings: 2048,
    },
    Shape {
        name: "tinyllama",
        hidden_size: 2048,
        num_hidden_layers: 22,
        num_attention_heads: 32,
        num_key_value_heads: 4,
        intermediate_size: 5632,
        vocab_size: 32000,
        tie_word_embeddings: false,
        max_position_embeddings: 2048,
    },
    Shape {
        name: "tiny",
        hidden_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        intermediate_size: 128,
        vocab_size: 256,
        tie_word_embeddings: true,
        max_position_embeddings: 512,
    },
];

/// Hugging Face's and GGUF's names of a block's matrices, and which sizes they have.
const MATRICES: &[(&str, &str, fn(&Shape) -> [usize; 2])] = &[
    ("self_attn.q_proj", "attn_q", |s| [s.hidden_size, s.hidden_size]),
    ("self_attn.k_proj", "attn_k", |s| [s.kv_size(), s.hidden_size]),
    ("self_attn.v_proj", "attn_v", |s| [s.kv_size(), s.hidden_size]),
    ("self_attn.o_proj", "attn_output", |s| [s.hidden_size, s.hidden_size]),
    ("mlp.gate_proj", "ffn_gate", |s| [s.intermediate_size, s.hidden_size]),
    ("mlp.up_proj", "ffn_up", |s| [s.intermediate_size, s.hidden_size]),
    ("mlp.down_proj", "ffn_down", |s| [s.hidden_size, s.intermediate_size]),
];

impl Shape {
    pub fn find(name: &str) -> &'static Shape {
        let names: Vec<&str> = SHAPES.iter().map(|s| s.name).collect();
        SHAPES.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no shape \"{name}\": {names:?}"))
    }

    fn kv_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads * self.num_key_value_heads
    }

    /// Multiply-adds of one row through every frozen matrix, the head included.
    pub fn matrix_elements(&self) -> usize {
        let block: usize = MATRICES.iter().map(|m| (m.2)(self)).map(|[n, k]| n * k).sum();
        self.num_hidden_layers * block + self.vocab_size * self.hidden_size
    }

    /// The model's file or folder inside `folder`; written first if it isn't there.
    pub fn model(&self, storage: &str, folder: &Path) -> PathBuf {
        let format = Format::all().find(|f| f.name() == storage);
        let format = format.unwrap_or_else(|| panic!("no storage is called \"{storage}\""));
        let quantised = format.block() > 1;
        let path = folder.join(format!("{}-{storage}{}", self.name, if quantised { ".gguf" } else { "" }));
        let done = if quantised { path.clone() } else { path.join("config.json") };
        if !done.exists() {
            std::fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            match quantised {
                true => self.write_gguf(format, &path),
                false => self.write_folder(format, &path),
            }
        }
        path
    }

    fn write_folder(&self, format: Format, path: &Path) {
        std::fs::create_dir_all(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = self.tensors(format, format, &|hugging_face, _| hugging_face.to_string());
        safetensors::write(&path.join("model.safetensors"), tensors, &[("format", "pt")])
            .unwrap_or_else(|e| panic!("{e}"));
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": 1e-5,
        });
        let path = path.join("config.json");
        std::fs::write(&path, config.to_string()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    fn write_gguf(&self, format: Format, path: &Path) {
        let table = Format::all().find(|f| f.name() == "q8_0").unwrap_or(format);
        let tensors = self.tensors(format, table, &|_, gguf| gguf.to_string());
        let size = |n: usize| gguf::Value::U32(n as u32);
        let metadata = [
            ("general.architecture", gguf::Value::Str("llama".into())),
            ("llama.block_count", size(self.num_hidden_layers)),
            ("llama.context_length", size(self.max_position_embeddings)),
            ("llama.embedding_length", size(self.hidden_size)),
            ("llama.feed_forward_length", size(self.intermediate_size)),
            ("llama.attention.head_count", size(self.num_attention_heads)),
            ("llama.attention.head_count_kv", size(self.num_key_value_heads)),
            ("llama.attention.layer_norm_rms_epsilon", gguf::Value::F32(1e-5)),
        ];
        gguf_write::write(path, &metadata, tensors).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Every tensor, its values made when it is written. `name` chooses between the two names.
    fn tensors(
        &self,
        format: Format,
        table: Format,
        name: &dyn Fn(&str, &str) -> String,
    ) -> Vec<TensorOut<'static>> {
        let hidden = self.hidden_size;
        let mut out = Vec::new();
        let mut add = |hugging_face: &str, gguf: &str, format, [n, k]: [usize; 2]| {
            out.push(random(name(hugging_face, gguf), format, n, k));
        };
        add("model.embed_tokens.weight", "token_embd.weight", table, [self.vocab_size, hidden]);
        for i in 0..self.num_hidden_layers {
            let at = |part: &str| format!("model.layers.{i}.{part}.weight");
            for (hugging_face, gguf, size) in MATRICES {
                add(&at(hugging_face), &format!("blk.{i}.{gguf}.weight"), format, size(self));
            }
        }
        if !self.tie_word_embeddings {
            add("lm_head.weight", "output.weight", table, [self.vocab_size, hidden]);
        }
        let mut norm = |hugging_face: &str, gguf: &str| {
            out.push(TensorOut::f32(name(hugging_face, gguf), &[hidden], vec![1.0; hidden]));
        };
        norm("model.norm.weight", "output_norm.weight");
        for i in 0..self.num_hidden_layers {
            let at = |part: &str| format!("model.layers.{i}.{part}.weight");
            norm(&at("input_layernorm"), &format!("blk.{i}.attn_norm.weight"));
            norm(&at("post_attention_layernorm"), &format!("blk.{i}.ffn_norm.weight"));
        }
        out
    }
}

/// Uniform values of deviation 0.02, transformers' `initializer_range`.
fn random(name: String, format: Format, rows: usize, cols: usize) -> TensorOut<'static> {
    let dtype = Dtype::all().find(|d| d.name().eq_ignore_ascii_case(format.name()));
    let dtype = dtype.unwrap_or_else(|| panic!("no file type for {}", format.name()));
    let seed = name.bytes().fold(1u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let stream = move |out: &mut dyn Write| {
        let mut noise = Noise(seed);
        let bound = 0.02 * 3f32.sqrt();
        let mut row = vec![0.0; cols];
        for _ in 0..rows {
            row.fill_with(|| bound * noise.uniform());
            let bytes = encode(format, 1, cols, &row).unwrap_or_else(|e| panic!("{e}"));
            out.write_all(&bytes).unwrap_or_else(|e| panic!("{e}"));
        }
        Ok(())
    };
    TensorOut { name, dtype, shape: vec![rows, cols], data: Data::Stream(Box::new(stream)) }
}
