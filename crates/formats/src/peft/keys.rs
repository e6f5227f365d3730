//! The names of PEFT's tensors: path of a module and parameter, without the adapter's name.

use std::path::Path;

use crate::error::{Error, Result, quote};

/// What stands before the path of a module in a key.
pub const PREFIX: &str = "base_model.model.";
/// The same for prompt learning, which puts no layers into the model.
pub const PROMPT_PREFIX: &str = "base_model.";

/// A parameter of an adapter in one module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Param {
    /// LoRA: (r, in), or (r, in, kh, kw).
    A,
    /// LoRA: (out, r), or (out, r, 1, 1).
    B,
    /// LoRA: (out), with `lora_bias`.
    BBias,
    /// LoRA: (r, vocabulary).
    EmbeddingA,
    /// LoRA: (dim, r).
    EmbeddingB,
    /// DoRA: (out), or (1, out, 1, 1).
    Magnitude,
    /// IA³: (out, 1), or (1, in) for a feedforward module.
    Ia3,
    /// SHiRA: (nnz).
    ShiraWeight,
    /// SHiRA: (2, nnz) of i32, rows and columns.
    ShiraIndices,
    /// Prompts and prefixes: one tensor, whose module is empty.
    PromptEmbeddings,
    /// A parameter of the base model saved whole: `modules_to_save`, a trained bias, an embedding's own weight.
    Plain(String),
}

/// [`Param`], for those who know LoRA only.
pub type LoraParam = Param;

const PARAMS: &[(Param, &str)] = &[
    (Param::A, "lora_A.weight"),
    (Param::B, "lora_B.weight"),
    (Param::BBias, "lora_B.bias"),
    (Param::EmbeddingA, "lora_embedding_A"),
    (Param::EmbeddingB, "lora_embedding_B"),
    (Param::Magnitude, "lora_magnitude_vector"),
    (Param::Ia3, "ia3_l"),
    (Param::ShiraWeight, "shira_weight"),
    (Param::ShiraIndices, "shira_indices"),
    (Param::PromptEmbeddings, "prompt_embeddings"),
];

impl Param {
    /// What follows the module in a key.
    pub fn suffix(&self) -> &str {
        match self {
            Param::Plain(name) => name,
            other => PARAMS.iter().find(|(param, _)| param == other).map_or("", |(_, suffix)| suffix),
        }
    }
}

/// The key on disk of a parameter of a module (`model.layers.0.self_attn.q_proj`), for all but prompt learning.
pub fn key(module: &str, param: &Param) -> String {
    format!("{PREFIX}{module}.{}", param.suffix())
}

/// [`key`].
pub fn lora_key(module: &str, param: &Param) -> String {
    key(module, param)
}

/// The key on disk in prompt learning: `prompt_embeddings`, or a module that is held whole.
pub fn prompt_key(module: &str, param: &Param) -> String {
    match param {
        Param::PromptEmbeddings => param.suffix().to_string(),
        other => format!("{PROMPT_PREFIX}{module}.{}", other.suffix()),
    }
}

/// Module, parameter, and whether the key carries the adapter name `default`.
pub(super) fn parse(path: &Path, key: &str, prompt: bool) -> Result<(String, Param, bool)> {
    let unexpected =
        |what: String| Err(Error::invalid(path, "PEFT adapter", format!("tensor {}: {what}", quote(key))));
    if prompt && key == Param::PromptEmbeddings.suffix() {
        return Ok((String::new(), Param::PromptEmbeddings, false));
    }
    let prefix = if prompt { PROMPT_PREFIX } else { PREFIX };
    let Some(rest) = key.strip_prefix(prefix) else {
        return unexpected(format!("its name does not begin with `{prefix}`"));
    };
    let (rest, mut named) = match rest.replacen(".modules_to_save.default.", ".", 1) {
        short if short.len() < rest.len() => (short, true),
        same => (same, false),
    };
    // DoRA's vector is a module of its own while it is trained.
    let magnitude = rest
        .strip_suffix(".weight")
        .filter(|m| m.strip_suffix(".default").unwrap_or(m).ends_with(".lora_magnitude_vector"));
    let rest = magnitude.unwrap_or(&rest);
    let (plain, without) = match rest.rsplit_once(".default") {
        Some((front, end)) if end.is_empty() || [".weight", ".bias"].contains(&end) => {
            (false, format!("{front}{end}"))
        }
        _ => (true, rest.to_string()),
    };
    for (param, suffix) in PARAMS.iter().filter(|(param, _)| *param != Param::PromptEmbeddings) {
        let module = without.strip_suffix(suffix).and_then(|front| front.strip_suffix('.'));
        if let Some(module) = module.filter(|module| !module.is_empty()) {
            named |= !plain;
            return Ok((module.to_string(), param.clone(), named));
        }
    }
    let foreign = [".lora_", ".ia3_", ".shira_"].iter().any(|part| format!(".{rest}").contains(part));
    match rest.rsplit_once('.') {
        Some((module, param)) if !module.is_empty() && !param.is_empty() && !foreign => {
            Ok((module.to_string(), Param::Plain(param.to_string()), named))
        }
        _ => unexpected("this is no parameter of a LoRA, IA3, SHiRA or prompt".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_from_their_parts() {
        let path = Path::new("w");
        for (param, _) in PARAMS {
            let prompt = *param == Param::PromptEmbeddings;
            let (module, key) =
                if prompt { ("", prompt_key("", param)) } else { ("l.0.q", key("l.0.q", param)) };
            assert_eq!(parse(path, &key, prompt).unwrap(), (module.into(), param.clone(), false));
        }
        for (key, param) in [
            ("lora_A.default.weight", Param::A),
            ("lora_B.default.bias", Param::BBias),
            ("lora_embedding_A.default", Param::EmbeddingA),
            ("lora_magnitude_vector.default.weight", Param::Magnitude),
            ("lora_magnitude_vector.default", Param::Magnitude),
            ("ia3_l.default", Param::Ia3),
            ("shira_indices.default", Param::ShiraIndices),
            ("modules_to_save.default.weight", Param::Plain("weight".into())),
        ] {
            let found = parse(path, &format!("{PREFIX}l.q.{key}"), false).unwrap();
            assert_eq!(found, ("l.q".into(), param, true), "{key}");
        }
        let found = parse(path, "base_model.model.l.q.lora_magnitude_vector.weight", false).unwrap();
        assert_eq!(found, ("l.q".into(), Param::Magnitude, false));
        let found = parse(path, "base_model.classifier.weight", true).unwrap();
        assert_eq!(found, ("classifier".into(), Param::Plain("weight".into()), false));
        for key in ["q.lora_E", "q.lora_A.other.weight", "q.ia3_l.x", "weight", "q.", ".weight"] {
            assert!(parse(path, &format!("{PREFIX}{key}"), false).is_err(), "{key}");
        }
        assert!(parse(path, "prompt_embeddings", false).is_err());
        assert!(parse(path, "q.weight", true).is_err());
    }
}
