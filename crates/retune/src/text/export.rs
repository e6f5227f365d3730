//! A tokenizer and its template as the files of a Hugging Face folder, for a base that came as GGUF.

use super::error::{Error, Result};
use super::load::Language;
use super::sentencepiece::SentencePiece;
use super::template::TemplateOrigin;
use super::tokenizer::{SPECIAL_GUARD, Tokenizer, Vocabulary};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A piece of a vocabulary is a few characters; merges are found by cutting it everywhere.
const PIECE_BYTES_MAX: usize = 1024;

impl Language {
    /// `tokenizer.json`, `tokenizer_config.json` (with the model's chat template) and `generation_config.json` (which
    /// tokens end an answer), by name. `transformers` reads from them the tokens that [`Tokenizer::encode`] gives.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary cannot be written so.
    pub fn folder_files(&self) -> Result<Vec<(&'static str, String)>> {
        let files = [
            ("tokenizer.json", self.tokenizer.to_json()?),
            ("tokenizer_config.json", self.tokenizer_config()),
            ("generation_config.json", self.generation_config()),
        ];
        files.into_iter().map(|(name, value)| Ok((name, pretty(&value)?))).collect()
    }

    fn tokenizer_config(&self) -> Value {
        let tokenizer = &self.tokenizer;
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("add_bos_token".into(), tokenizer.add_bos().into());
        let roles = [
            ("bos", tokenizer.bos()),
            ("eos", tokenizer.eos()),
            ("unk", tokenizer.unk()),
            ("pad", tokenizer.pad()),
        ];
        for (role, id) in roles {
            if let Some(name) = id.and_then(|id| tokenizer.id_to_token(id)) {
                config.insert(format!("{role}_token"), name.into());
            }
        }
        if self.template.origin() == TemplateOrigin::Model {
            config.insert("chat_template".into(), self.template.source().into());
        }
        Value::Object(config)
    }

    fn generation_config(&self) -> Value {
        let tokenizer = &self.tokenizer;
        let mut config = Map::new();
        let ends: Vec<u32> = tokenizer.eos_ids().iter().copied().collect();
        config.insert("eos_token_id".into(), if let [one] = ends[..] { one.into() } else { ends.into() });
        for (role, id) in [("bos", tokenizer.bos()), ("pad", tokenizer.pad())] {
            if let Some(id) = id {
                config.insert(format!("{role}_token_id"), id.into());
            }
        }
        Value::Object(config)
    }
}

fn pretty(value: &Value) -> Result<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|e| wrong(&e))
}

fn wrong(problem: &impl std::fmt::Display) -> Error {
    Error::Tokenizer { origin: "writing tokenizer.json".into(), problem: problem.to_string() }
}

fn value(part: &impl Serialize) -> Result<Value> {
    serde_json::to_value(part).map_err(|e| wrong(&e))
}

impl Tokenizer {
    /// The tokenizer as the content of `tokenizer.json`.
    ///
    /// # Errors
    /// As [`Language::folder_files`].
    pub(super) fn to_json(&self) -> Result<Value> {
        let encoder = self.encoder();
        let mut model = match self.vocabulary() {
            Vocabulary::Library(model) => value(model)?,
            Vocabulary::SentencePiece { model, tokens } => merges_of(model, tokens, self.unk())?,
        };
        let mut added: Vec<_> = encoder.get_added_tokens_decoder().into_iter().collect();
        added.sort_by_key(|(id, _)| *id);
        // Readers number a token that the vocabulary lacks anew, whatever its id says.
        if let Some(vocab) = model.get_mut("vocab").and_then(Value::as_object_mut) {
            vocab.retain(|word, _| !word.starts_with(SPECIAL_GUARD));
            vocab.extend(added.iter().map(|(id, token)| (token.content.clone(), Value::from(*id))));
        }
        let added = added.iter().map(|(id, token)| {
            let mut token = value(token)?;
            token["id"] = (*id).into();
            Ok(token)
        });
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Result<Vec<Value>>>()?,
            "normalizer": value(&encoder.get_normalizer())?,
            "pre_tokenizer": value(&encoder.get_pre_tokenizer())?,
            "post_processor": self.post_processor(),
            "decoder": value(&encoder.get_decoder())?,
            "model": model,
        }))
    }

    /// What puts BOS in front of a plain text, if the model wants that.
    fn post_processor(&self) -> Value {
        let Some((id, name)) = self.bos().filter(|_| self.add_bos()).map(|id| (id, self.name_of(Some(id))))
        else {
            return Value::Null;
        };
        let bos = |text: u32| json!({"SpecialToken": {"id": name, "type_id": text}});
        let text = |name: &str, text: u32| json!({"Sequence": {"id": name, "type_id": text}});
        json!({
            "type": "TemplateProcessing",
            "single": [bos(0), text("A", 0)],
            "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
            "special_tokens": {name.clone(): {"id": name, "ids": [id], "tokens": [name]}},
        })
    }
}

/// SentencePiece's scores as BPE's merge list: every cut of a piece into two pieces, the best-scored pieces first.
fn merges_of(model: &SentencePiece, tokens: &[String], unknown: Option<u32>) -> Result<Value> {
    let mut pieces: Vec<(&String, u32, f32)> =
        model.pieces.iter().map(|(p, (id, score))| (p, *id, *score)).collect();
    pieces.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.1.cmp(&b.1)));
    let mut merges = Vec::new();
    for (piece, _, _) in pieces {
        if piece.len() > PIECE_BYTES_MAX {
            return Err(wrong(&format!("a piece of {} bytes, more than {PIECE_BYTES_MAX}", piece.len())));
        }
        let cut = |at| Some((model.pieces.get(&piece[..at])?.0, model.pieces.get(&piece[at..])?.0, at));
        let mut cuts: Vec<(u32, u32, usize)> =
            piece.char_indices().skip(1).filter_map(|(at, _)| cut(at)).collect();
        cuts.sort_unstable();
        merges.extend(cuts.into_iter().map(|(_, _, at)| json!([piece[..at], piece[at..]])));
    }
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, t)| (t.clone(), id.into())).collect();
    Ok(json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown.and_then(|id| tokens.get(id as usize)),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": true,
        "ignore_merges": false,
        "vocab": vocab,
        "merges": merges,
    }))
}
