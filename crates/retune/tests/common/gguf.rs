//! Tiny models written as GGUF files, with llama.cpp's names, in any block type.

use std::path::Path;

use retune::models::StorageChoice;
use retune_formats::gguf::Value;
use retune_formats::source::Data;
use retune_formats::{Dtype, TensorOut, gguf_write};
use retune_tensor::storage::{self, Format};

use super::load;

const GPT2: &[(&str, &str)] = &[
    ("transformer.wte.", "token_embd."),
    ("transformer.wpe.", "position_embd."),
    ("transformer.ln_f.", "output_norm."),
    ("transformer.h.", "blk."),
    (".ln_1.", ".attn_norm."),
    (".ln_2.", ".ffn_norm."),
    (".attn.c_attn.", ".attn_qkv."),
    (".attn.c_proj.", ".attn_output."),
    (".mlp.c_fc.", ".ffn_up."),
    (".mlp.c_proj.", ".ffn_down."),
];

const BERT: &[(&str, &str)] = &[
    ("bert.embeddings.word_embeddings.", "token_embd."),
    ("bert.embeddings.position_embeddings.", "position_embd."),
    ("bert.embeddings.token_type_embeddings.", "token_types."),
    ("bert.embeddings.LayerNorm.", "token_embd_norm."),
    ("bert.encoder.layer.", "blk."),
    (".attention.self.query.", ".attn_q."),
    (".attention.self.key.", ".attn_k."),
    (".attention.self.value.", ".attn_v."),
    (".attention.output.dense.", ".attn_output."),
    (".attention.output.LayerNorm.", ".attn_output_norm."),
    (".intermediate.dense.", ".ffn_up."),
    (".output.dense.", ".ffn_down."),
    (".output.LayerNorm.", ".layer_output_norm."),
];

/// Writes the trunk of the GPT-2 or BERT in `folder` as a GGUF file; matrices whose rows fit have the type `kind` (`f32`, `q8_0`).
pub fn write_gguf(folder: &Path, kind: &str, path: &Path) {
    let model = load(folder, StorageChoice::F32);
    let info = model.net.as_text().expect("text").info();
    let (arch, names) = if info.model_type == "gpt2" { ("gpt2", GPT2) } else { ("bert", BERT) };
    let config = model.net.config_json();
    let size = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| config[*name].as_u64());
        Value::U32(u32::try_from(found.expect("size")).expect("32 bits"))
    };
    let eps = ["layer_norm_epsilon", "layer_norm_eps"].iter().find_map(|name| config[*name].as_f64());
    let metadata = [
        ("general.architecture".into(), Value::Str(arch.into())),
        (format!("{arch}.context_length"), size(["n_positions", "max_position_embeddings"])),
        (format!("{arch}.embedding_length"), size(["n_embd", "hidden_size"])),
        (format!("{arch}.block_count"), size(["n_layer", "num_hidden_layers"])),
        (format!("{arch}.feed_forward_length"), size(["n_inner", "intermediate_size"])),
        (format!("{arch}.attention.head_count"), size(["n_head", "num_attention_heads"])),
        (format!("{arch}.attention.layer_norm_epsilon"), Value::F32(eps.expect("epsilon") as f32)),
    ];
    let metadata: Vec<(&str, Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    let prefix = if arch == "gpt2" { "transformer." } else { "bert." };
    let trunk = model.params.iter().map(|(_, param)| param);
    let trunk = trunk.filter(|param| param.name.starts_with(prefix) && !param.name.contains("pooler"));
    let tensors: Vec<TensorOut> = trunk
        .map(|param| {
            let name = names.iter().fold(param.name.clone(), |name, (hf, gguf)| name.replace(hf, gguf));
            tensor(name, param, kind)
        })
        .collect();
    gguf_write::write(path, &metadata, tensors).expect("gguf");
}

fn tensor(name: String, param: &retune_tensor::Param, kind: &str) -> TensorOut<'static> {
    let values = param.weight.to_tensor();
    if param.shape.len() == 1 || kind == "f32" {
        return TensorOut::f32(name, &param.shape, values.data().to_vec());
    }
    let format = Format::all().find(|format| format.name() == kind).expect("a block type");
    let dtype = Dtype::all().find(|dtype| dtype.name().eq_ignore_ascii_case(kind)).expect("a file type");
    let bytes = storage::encode(format, values.rows(), values.cols(), values.data()).expect("encode");
    TensorOut { name, dtype, shape: param.shape.clone(), data: Data::Bytes(bytes.into()) }
}
