//! Reads `tokenizer.json`, and from the small files beside it which tokens begin and end a text.

use super::error::{Error, Result};
use super::frame::Frame;
use super::tokenizer::{Parts, SpecialIds, TokenizerFiles, Vocabulary, contained};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap, HashSet};
use tokenizers::AddedToken;
use tokenizers::models::ModelWrapper;

pub(super) const VOCAB_MAX: u64 = 4 << 20;
const PATTERN_BYTES_MAX: usize = 4096;

/// Names under which well-known models end a turn; taken where the files themselves name no set of ends.
pub(super) const TURN_ENDS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
];

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Option<Value>,
    #[serde(default)]
    pre_tokenizer: Option<Value>,
    #[serde(default)]
    post_processor: Option<Value>,
    #[serde(default)]
    decoder: Option<Value>,
    model: Value,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

pub(super) fn parts(files: &TokenizerFiles<'_>) -> Result<Parts> {
    let origin = match files.origin.trim_end_matches('/') {
        "" => "tokenizer.json".to_string(),
        folder => format!("{folder}/tokenizer.json"),
    };
    let wrong = |problem: String| Error::Tokenizer { origin: origin.clone(), problem };
    let mut json: TokenizerJson = serde_json::from_str(files.tokenizer).map_err(|e| wrong(e.to_string()))?;
    let mut vocabulary = check_model(&mut json.model).map_err(wrong)?;
    for (part, value) in
        [("normalizer", &json.normalizer), ("pre_tokenizer", &json.pre_tokenizer), ("decoder", &json.decoder)]
    {
        value.as_ref().map_or(Ok(()), check_step).map_err(|problem| wrong(format!("{part}: {problem}")))?;
    }
    let model_size = vocabulary.values().copied().max().map_or(0, |id| id as usize + 1);
    let added = check_added(json.added_tokens, &mut vocabulary).map_err(wrong)?;
    let ids = special_ids(files, &vocabulary, json.post_processor.as_ref());
    let frame = json.post_processor.as_ref().filter(|processor| !processor.is_null());
    Ok(Parts {
        frame: frame.map_or_else(|| Ok(Frame::default()), Frame::read),
        model: Vocabulary::Library(Box::new(part::<ModelWrapper>("model", json.model).map_err(wrong)?)),
        added,
        normalizer: optional("normalizer", json.normalizer).map_err(wrong)?,
        pre_tokenizer: optional("pre_tokenizer", json.pre_tokenizer).map_err(wrong)?,
        decoder: optional("decoder", json.decoder).map_err(wrong)?,
        ids,
        model_size,
        origin,
    })
}

fn part<T: DeserializeOwned>(name: &str, value: Value) -> std::result::Result<T, String> {
    contained(|| Ok(serde_json::from_value(value)?)).map_err(|e| format!("{name}: {e}"))
}

fn optional<T: DeserializeOwned>(name: &str, value: Option<Value>) -> std::result::Result<Option<T>, String> {
    value.filter(|value| !value.is_null()).map(|value| part(name, value)).transpose()
}

/// Checks what the library does not, switches merge dropout off (training would no longer be reproducible), and returns
/// the vocabulary.
fn check_model(model: &mut Value) -> std::result::Result<HashMap<String, u32>, String> {
    let Value::Object(fields) = model else { return Err("\"model\" is not an object".into()) };
    fields.insert("dropout".into(), Value::Null);
    let vocabulary = match fields.get("vocab") {
        Some(Value::Object(entries)) => {
            entries.iter().map(|(token, id)| Ok((token.clone(), id_in_range(token, id)?))).collect()
        }
        Some(Value::Array(pieces)) => unigram(pieces),
        _ => Err("model.vocab is missing".to_string()),
    }?;
    let mut seen = HashSet::with_capacity(vocabulary.len());
    if let Some((token, id)) = vocabulary.iter().find(|(_, id)| !seen.insert(**id)) {
        return Err(format!("model.vocab gives the id {id} to {token:?} and to another token"));
    }
    if let Some(prefix) = fields.get("continuing_subword_prefix").and_then(Value::as_str)
        && !prefix.is_empty()
        && let Some(Value::Array(merges)) = fields.get("merges")
    {
        let right = |merge: &Value| match merge {
            Value::String(text) => text.split_once(' ').map(|(_, right)| right.to_string()),
            Value::Array(pair) => pair.get(1).and_then(Value::as_str).map(str::to_string),
            _ => None,
        };
        if let Some(at) = merges.iter().position(|m| !right(m).is_some_and(|right| right.starts_with(prefix)))
        {
            return Err(format!("model.merges[{at}] continues a word, but lacks the prefix {prefix:?}"));
        }
    }
    Ok(vocabulary)
}

fn id_in_range(token: &str, id: &Value) -> std::result::Result<u32, String> {
    match id.as_u64() {
        Some(id) if id < VOCAB_MAX => Ok(id as u32),
        _ => Err(format!("model.vocab gives {token:?} the id {id}; ids go from 0 to {}", VOCAB_MAX - 1)),
    }
}

fn unigram(pieces: &[Value]) -> std::result::Result<HashMap<String, u32>, String> {
    if pieces.len() as u64 > VOCAB_MAX {
        return Err(format!("model.vocab has {} pieces, more than {VOCAB_MAX}", pieces.len()));
    }
    let piece = |(i, entry): (usize, &Value)| match entry.as_array().map(Vec::as_slice) {
        Some([Value::String(piece), score]) if score.as_f64().is_some_and(f64::is_finite) => {
            Ok((piece.clone(), i as u32))
        }
        _ => Err(format!("model.vocab[{i}] is not a pair of piece and score")),
    };
    pieces.iter().enumerate().map(piece).collect()
}

/// Refuses the steps that the library takes on trust: see each message.
fn check_step(step: &Value) -> std::result::Result<(), String> {
    match step {
        Value::Array(steps) => steps.iter().try_for_each(check_step),
        Value::Object(fields) => {
            match fields.get("type").and_then(Value::as_str) {
                Some("Precompiled") => {
                    return Err("a Precompiled character map (SentencePiece Unigram) is not supported".into());
                }
                Some("FixedLength") if fields.get("length").and_then(Value::as_u64) == Some(0) => {
                    return Err("FixedLength pieces of length 0".into());
                }
                _ => {}
            }
            if let Some(pattern) = fields.get("Regex").and_then(Value::as_str)
                && pattern.len() > PATTERN_BYTES_MAX
            {
                return Err(format!(
                    "an expression of {} bytes, more than {PATTERN_BYTES_MAX}",
                    pattern.len()
                ));
            }
            fields.values().try_for_each(check_step)
        }
        _ => Ok(()),
    }
}

fn check_added(
    added: Vec<Added>,
    vocabulary: &mut HashMap<String, u32>,
) -> std::result::Result<Vec<(u32, AddedToken)>, String> {
    let mut by_id: HashMap<u32, String> = HashMap::new();
    let mut tokens = Vec::with_capacity(added.len());
    for token in added {
        let Added { id, content, single_word, lstrip, rstrip, normalized, special } = token;
        if content.is_empty() || u64::from(id) >= VOCAB_MAX {
            return Err(format!("added_tokens: {content:?} with id {id} (empty, or beyond {VOCAB_MAX})"));
        }
        if let Some(other) = by_id.insert(id, content.clone())
            && other != content
        {
            return Err(format!("added_tokens: the id {id} is given to {other:?} and {content:?}"));
        }
        if let Some(&known) = vocabulary.get(&content)
            && known != id
        {
            return Err(format!("added_tokens: {content:?} has id {id}, but model.vocab gives it {known}"));
        }
        vocabulary.insert(content.clone(), id);
        tokens.push((id, AddedToken { content, single_word, lstrip, rstrip, normalized, special }));
    }
    Ok(tokens)
}

/// Whose ids are BOS, EOS and so on: by name in the tokenizer's files, else by number in the model's.
fn special_ids(
    files: &TokenizerFiles<'_>,
    vocabulary: &HashMap<String, u32>,
    post_processor: Option<&Value>,
) -> SpecialIds {
    let tokenizer = files.tokenizer_config.unwrap_or(&Value::Null);
    let map = files.special_tokens_map.unwrap_or(&Value::Null);
    let generation = files.generation_config.unwrap_or(&Value::Null);
    let config = files.config.unwrap_or(&Value::Null);

    let by_name = |role: &str| {
        let key = format!("{role}_token");
        let name = |file: &Value| match &file[&key] {
            Value::String(name) => Some(name.clone()),
            Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_string),
            _ => None,
        };
        name(tokenizer).or_else(|| name(map)).and_then(|name| vocabulary.get(&name).copied())
    };
    let numbers = |file: &Value, role: &str| ids_in(&file[format!("{role}_token_id")]);
    let id = |role: &str| {
        by_name(role)
            .or_else(|| [generation, config].into_iter().find_map(|f| numbers(f, role).first().copied()))
    };
    let (bos, eos) = (id("bos"), id("eos"));
    let mut ends: BTreeSet<u32> = eos.into_iter().chain(numbers(generation, "eos")).collect();
    if generation["eos_token_id"].is_null() {
        ends.extend(numbers(config, "eos"));
        ends.extend(TURN_ENDS.iter().filter_map(|name| vocabulary.get(*name)));
    }
    let bos_name = bos.and_then(|id| vocabulary.iter().find(|(_, v)| **v == id)).map(|(name, _)| name);
    let add_bos = tokenizer["add_bos_token"]
        .as_bool()
        .unwrap_or_else(|| bos_name.is_some_and(|name| post_processor.is_some_and(|p| puts_first(p, name))));
    SpecialIds { bos, eos, pad: id("pad"), unk: by_name("unk"), ends, add_bos }
}

/// A token id, or a list of them, as configurations write either.
fn ids_in(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().filter(|id| *id < VOCAB_MAX).map(|id| id as u32);
    match value {
        Value::Array(values) => values.iter().filter_map(id).collect(),
        value => id(value).into_iter().collect(),
    }
}

/// Whether the post-processor puts the token of that name in front of a text.
fn puts_first(processor: &Value, name: &str) -> bool {
    match processor["type"].as_str() {
        Some("Sequence") => {
            processor["processors"].as_array().is_some_and(|all| all.iter().any(|p| puts_first(p, name)))
        }
        Some("TemplateProcessing") => processor["single"][0]["SpecialToken"]["id"].as_str() == Some(name),
        Some("BertProcessing" | "RobertaProcessing") => processor["cls"][0].as_str() == Some(name),
        _ => false,
    }
}
