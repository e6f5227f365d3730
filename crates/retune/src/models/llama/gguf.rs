//! Llama and its relatives as llama.cpp's architectures `llama`, `qwen2` and `qwen3`.

use retune_formats::gguf::Value;

use super::LlamaConfig;
use super::load::gguf_name;
use crate::models::rope::{RopeScaling, inv_freq};
use crate::models::{GgufForm, Keys};

impl LlamaConfig {
    /// The configuration in llama.cpp's words.
    ///
    /// # Errors
    /// If it asks for what these words cannot say.
    pub fn gguf_form(&self) -> Result<GgufForm, String> {
        let architecture = match self.model_type.as_str() {
            "qwen2" | "qwen3" => self.model_type.as_str(),
            _ => "llama",
        };
        let window = self.windows.first().copied().flatten();
        if self.windows.iter().any(|w| *w != window) {
            return Err(
                "some of its layers have a sliding window and others none, which a GGUF file of this \
                        architecture cannot say"
                    .into(),
            );
        }
        let mut keys = Keys::new(architecture)
            .size("block_count", self.num_hidden_layers)
            .size("context_length", self.max_position_embeddings)
            .size("embedding_length", self.hidden_size)
            .size("feed_forward_length", self.intermediate_size)
            .size("attention.head_count", self.num_attention_heads)
            .size("attention.head_count_kv", self.num_key_value_heads)
            .size("attention.key_length", self.head_dim)
            .size("attention.value_length", self.head_dim)
            .put("attention.layer_norm_rms_epsilon", Value::F32(self.rms_norm_eps))
            .put("rope.freq_base", Value::F32(self.rope_theta as f32))
            .size("rope.dimension_count", self.head_dim)
            .size("vocab_size", self.vocab_size);
        if let Some(window) = window {
            keys = keys.size("attention.sliding_window", window);
        }
        if let RopeScaling::Linear { factor } = self.rope_scaling {
            let kind = Value::Str("linear".into());
            keys = keys.put("rope.scaling.type", kind).put("rope.scaling.factor", Value::F32(factor));
        }
        Ok(GgufForm {
            architecture: architecture.into(),
            metadata: keys.entries(),
            name: gguf_name,
            interleaved: (architecture == "llama").then_some(self.head_dim),
            extra: self.divisors().map(|values| ("rope_freqs.weight".into(), values)).into_iter().collect(),
        })
    }

    /// What each rotary frequency is divided by, where a single factor does not say it.
    fn divisors(&self) -> Option<Vec<f32>> {
        match &self.rope_scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => None,
            RopeScaling::Divisors(divisors) => Some(divisors.clone()),
            scaling @ RopeScaling::Llama3 { .. } => {
                let plain = inv_freq(self.rope_theta, self.head_dim, &RopeScaling::None);
                let scaled = inv_freq(self.rope_theta, self.head_dim, scaling);
                Some(plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect())
            }
        }
    }
}
