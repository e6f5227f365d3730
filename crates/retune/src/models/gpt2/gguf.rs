//! GPT-2 as llama.cpp's architecture `gpt2`.

use retune_formats::gguf::Value;
use retune_tensor::ops::Activation;

use super::Gpt2Config;
use super::load::gguf_name;
use crate::models::{GgufForm, Keys};

impl Gpt2Config {
    /// The configuration in llama.cpp's words.
    ///
    /// # Errors
    /// If it asks for what these words cannot say.
    pub fn gguf_form(&self) -> Result<GgufForm, String> {
        if !matches!(self.activation, Activation::GeluNew) {
            return Err(format!(
                "its activation is \"{}\"; a GGUF file of GPT-2 means \"gelu_new\"",
                self.activation_function
            ));
        }
        if !self.scale_attn_weights || self.scale_attn_by_inverse_layer_idx {
            return Err(
                "its attention scores are scaled in a way of its own, which a GGUF file cannot say".into()
            );
        }
        let keys = Keys::new("gpt2")
            .size("block_count", self.n_layer)
            .size("context_length", self.n_positions)
            .size("embedding_length", self.n_embd)
            .size("feed_forward_length", self.n_inner)
            .size("attention.head_count", self.n_head)
            .put("attention.layer_norm_epsilon", Value::F32(self.layer_norm_epsilon))
            .size("vocab_size", self.vocab_size);
        Ok(GgufForm {
            architecture: "gpt2".into(),
            metadata: keys.entries(),
            name: gguf_name,
            interleaved: None,
            extra: Vec::new(),
        })
    }
}
