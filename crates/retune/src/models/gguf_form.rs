//! A model in llama.cpp's words: what an architecture says of itself so that it can be written as a GGUF file.

use retune_formats::gguf::Value;

/// Names and layout of a model in a GGUF file. The tokenizer's entries are not among them.
pub struct GgufForm {
    /// `general.architecture`.
    pub architecture: String,
    /// The architecture's own keys (`llama.block_count`, ...).
    pub metadata: Vec<(String, Value)>,
    /// The GGUF name of a tensor, by its Hugging Face name; a name that GGUF has not stays as it is.
    pub name: fn(&str) -> String,
    /// Head size, if the rows of queries and keys lie with the two halves of each head interleaved.
    pub interleaved: Option<usize>,
    /// Tensors that follow from the configuration, by their GGUF names.
    pub extra: Vec<(String, Vec<f32>)>,
}

/// Collects the keys of one architecture.
pub struct Keys {
    architecture: String,
    entries: Vec<(String, Value)>,
}

impl Keys {
    pub fn new(architecture: &str) -> Keys {
        Keys { architecture: architecture.into(), entries: Vec::new() }
    }

    /// `ARCHITECTURE.name`.
    pub fn put(mut self, name: &str, value: Value) -> Keys {
        self.entries.push((format!("{}.{name}", self.architecture), value));
        self
    }

    /// A size; those of models fit 32 bits.
    pub fn size(self, name: &str, value: usize) -> Keys {
        self.put(name, Value::U32(u32::try_from(value).unwrap_or(u32::MAX)))
    }

    pub fn entries(self) -> Vec<(String, Value)> {
        self.entries
    }
}
