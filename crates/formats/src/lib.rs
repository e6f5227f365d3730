//! Reads and writes the files of models, adapters and data: hostile bytes in, checked values out.
//!
//! Everything that a file says about itself is checked against the length of the file before any memory is asked
//! for, so a damaged or hostile file ends in an [`Error`] that names it, never in a panic or a huge allocation.
//! Nothing here prints, follows a path found inside a file, or runs code found in one.
#![forbid(unsafe_code)]

pub mod adapter_hub;
pub mod adapters;
pub mod atomic;
pub mod bitsandbytes;
pub mod bytes;
pub mod ctranslate2;
pub mod darknet;
pub mod delta;
pub mod dtype;
pub mod error;
mod fields;
pub mod folder;
pub mod gguf;
pub mod gguf_lora;
pub mod gguf_write;
pub mod hash;
pub mod hash_data;
pub mod ia3_config;
pub mod json;
pub mod labels;
pub mod limits;
pub mod lora_config;
pub mod lora_tensors;
pub mod memory;
pub mod mlx;
pub mod modules;
pub mod onnx;
pub mod peft;
pub mod peft_common;
pub mod prompt_config;
pub mod records;
pub mod safetensors;
pub mod scratch;
pub mod shira_config;
pub mod source;
pub mod torch;

pub use dtype::Dtype;
pub use error::{Error, Result};
pub use source::{Data, TensorInfo, TensorOut, TensorSource};
