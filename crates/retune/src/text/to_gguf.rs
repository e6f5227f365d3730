//! A tokenizer and its template as the `tokenizer.*` entries of a GGUF file, for a model that came as a Hugging Face folder.
//!
//! What is written is read again and compared with the original on a set of texts before anybody relies on it: llama.cpp
//! knows the rule that cuts words by its name alone, and SentencePiece's scores are made from the order of the merges.

use super::error::{Error, Result};
use super::gguf_vocab::{BYTE, CONTROL, GgufVocab, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, byte_of};
use super::load::Language;
use super::pretokenizers;
use super::template::TemplateOrigin;
use super::tokenizer::{Special, Tokenizer};
use retune_formats::gguf::{Array, Value};
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

/// Score of a piece that no merge makes.
const UNREACHABLE: f32 = -1e9;

/// Texts on which two tokenizers that cut words differently are likely to differ.
const CHECKS: &[&str] = &[
    "Hello world, it's the 1st of 1984's 12345 and 3.14159 tests; we'll SEE 'RE IT'S don't I'VE",
    "  leading, trailing  \n\n\n and\ttabs\t\t \r\n windows\r\n\r\n   spaces   x ",
    "naïve café Ünïcödé Привет мир, 東京タワーへ行く 한국어 \u{1F980}\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467} e\u{301} ﬁn",
    "fn main() { let x = vec![1, 22, 333]; println!(\"{:?}\", x[0] + 4444); } // ---===>>> #$%^&*()_+~`|",
    "http://example.com/a_b?c=d&e=%20f user@host CamelCase snake_case UPPERlower İstanbul \u{661}\u{662}\u{663} ½ ² ①",
    "a",
    " ",
    "\n",
    "१२३ ทดสอบ मानक हिन्दी",
];

impl Language {
    /// The `tokenizer.*` entries of a GGUF file for a model whose table has `rows` rows.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if this kind of tokenizer has no place in a GGUF file, or would give other tokens there.
    pub fn gguf_entries(&self, rows: usize) -> Result<Vec<(String, Value)>> {
        let vocab = self.tokenizer.to_gguf(rows)?;
        self.tokenizer.compare(&Tokenizer::from_gguf(vocab.clone())?)?;
        let mut entries = entries_of(vocab);
        if self.template.origin() == TemplateOrigin::Model {
            entries.push(("tokenizer.chat_template".into(), Value::Str(self.template.source().into())));
        }
        Ok(entries)
    }
}

fn wrong(problem: impl Into<String>) -> Error {
    Error::Tokenizer { origin: "writing the tokenizer into a GGUF file".into(), problem: problem.into() }
}

impl Tokenizer {
    /// As the vocabulary of a GGUF file of `rows` tokens.
    fn to_gguf(&self, rows: usize) -> Result<GgufVocab> {
        let json = self.to_json()?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            return Err(wrong(format!(
                "its model is {}; byte-level BPE and SentencePiece's BPE can be written",
                model["type"]
            )));
        }
        let pieces = model["byte_fallback"] == true;
        let (tokens, kinds) = self.tokens(&json, rows, pieces)?;
        let merges = merges(model)?;
        let (scores, merges, pre) = match pieces {
            true => (Some(scores(&tokens, &merges)), None, None),
            false => {
                (None, Some(merges.iter().map(|(a, b)| format!("{a} {b}")).collect()), Some(self.pre(model)?))
            }
        };
        Ok(GgufVocab {
            origin: "the GGUF file".into(),
            model: if pieces { "llama" } else { "gpt2" }.into(),
            pre: pre.map(String::from),
            tokens,
            token_types: Some(kinds),
            scores,
            merges,
            bos: self.bos(),
            eos: self.eos(),
            eot: None,
            eom: None,
            unk: self.unk(),
            pad: self.pad(),
            cls: None,
            sep: None,
            add_bos: Some(self.add_bos()),
            add_space_prefix: Some(pieces && prepends_space(&json)),
        })
    }

    /// The tokens by id, and their kinds; ids that nothing has are filled up.
    fn tokens(&self, json: &Json, rows: usize, pieces: bool) -> Result<(Vec<String>, Vec<i32>)> {
        if self.vocab_size() > rows {
            return Err(wrong(format!(
                "it has {} tokens, but the model's table only {rows} rows",
                self.vocab_size()
            )));
        }
        let mut names: Vec<Option<String>> = vec![None; rows];
        let mut kinds = vec![UNUSED; rows];
        let vocab = json["model"]["vocab"].as_object().ok_or_else(|| wrong("it has no vocabulary"))?;
        for (name, id) in vocab {
            let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
            let id = id.ok_or_else(|| wrong(format!("token {name:?} has an id out of range")))?;
            let byte = pieces && byte_of(name).is_some();
            kinds[id] = if byte { BYTE } else { NORMAL };
            names[id] = Some(name.clone());
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let id = token["id"].as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
            let (Some(id), Some(name)) = (id, token["content"].as_str()) else { continue };
            let unknown = pieces && self.unk() == u32::try_from(id).ok();
            kinds[id] = match (unknown, token["special"] == true) {
                (true, _) => UNKNOWN,
                (false, true) => CONTROL,
                (false, false) => USER_DEFINED,
            };
            names[id] = Some(name.to_string());
        }
        let taken: HashSet<String> = names.iter().flatten().cloned().collect();
        let filled = names.into_iter().enumerate().map(|(id, name)| {
            let free =
                || (0..).map(|n| format!("[PAD{id}{}]", "_".repeat(n))).find(|name| !taken.contains(name));
            name.or_else(free).unwrap_or_default()
        });
        Ok((filled.collect(), kinds))
    }

    /// llama.cpp's name of the rule that cuts this tokenizer's words.
    fn pre(&self, model: &Json) -> Result<&'static str> {
        let own =
            self.encoder().get_pre_tokenizer().ok_or_else(|| wrong("it does not cut texts into words"))?;
        let texts: Vec<&str> = CHECKS.to_vec();
        let want: Option<Vec<Words>> = texts.iter().map(|text| words(own, text)).collect();
        let ignores = model["ignore_merges"] == true;
        let same = |rule: &pretokenizers::Rule| {
            let Ok(built) = rule.build() else { return false };
            let got: Option<Vec<Words>> = texts.iter().map(|text| words(&built, text)).collect();
            got.is_some() && got == want
        };
        let found = pretokenizers::named(ignores).find(|(_, rule)| same(rule));
        let found = found.or_else(|| pretokenizers::named(!ignores).find(|(_, rule)| same(rule)));
        found.map(|(name, _)| name).ok_or_else(|| {
            wrong("none of the rules that llama.cpp knows by name cuts texts into words as its pre_tokenizer does")
        })
    }

    /// An error if the other gives other ids.
    fn compare(&self, other: &Tokenizer) -> Result<()> {
        let special: Vec<String> =
            self.eos_ids().iter().chain(&self.bos()).filter_map(|id| self.id_to_token(*id)).collect();
        let marked = format!("{}Hi there{}\n", special.first().map_or("", |s| s), special.concat());
        for text in CHECKS.iter().copied().chain([marked.as_str()]) {
            for special in [Special::Parse, Special::AsText] {
                let (want, got) = (self.encode(text, special)?, other.encode(text, special)?);
                if want != got {
                    return Err(wrong(format!(
                        "the text {text:?} would be {} tokens there and not the {} that the model was trained with",
                        got.len(),
                        want.len()
                    )));
                }
            }
        }
        Ok(())
    }
}

type Words = Vec<(String, (usize, usize))>;

/// The pieces of a text, with their places.
fn words(rule: &PreTokenizerWrapper, text: &str) -> Option<Words> {
    let mut pieces = PreTokenizedString::from(text);
    rule.pre_tokenize(&mut pieces).ok()?;
    let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Some(splits.into_iter().map(|(piece, place, _)| (piece.to_string(), place)).collect())
}

/// The merge list; older files write a pair as one text.
fn merges(model: &Json) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())),
        Json::Array(pair) => match pair.as_slice() {
            [Json::String(a), Json::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    };
    let list = model["merges"].as_array().ok_or_else(|| wrong("it has no merges"))?;
    list.iter()
        .map(|merge| pair(merge).ok_or_else(|| wrong(format!("the merge {merge} is no pair"))))
        .collect()
}

/// The earlier a piece is made, the better its score.
fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (i, (a, b)) in merges.iter().enumerate() {
        rank.entry(format!("{a}{b}")).or_insert(i);
    }
    tokens.iter().map(|token| rank.get(token).map_or(UNREACHABLE, |rank| -(*rank as f32 + 1.0))).collect()
}

/// Does a text get a space in front?
fn prepends_space(json: &Json) -> bool {
    fn any(step: &Json, holds: &dyn Fn(&Json) -> bool) -> bool {
        let inner = ["normalizers", "pretokenizers"].iter().filter_map(|key| step[*key].as_array());
        holds(step) || inner.flatten().any(|step| any(step, holds))
    }
    any(&json["normalizer"], &|step| step["type"] == "Prepend")
        || any(&json["pre_tokenizer"], &|step| {
            step["type"] == "Metaspace"
                && step["prepend_scheme"] != "never"
                && step["add_prefix_space"] != false
        })
}

fn entries_of(vocab: GgufVocab) -> Vec<(String, Value)> {
    let ids = [
        ("bos_token_id", vocab.bos),
        ("eos_token_id", vocab.eos),
        ("unknown_token_id", vocab.unk),
        ("padding_token_id", vocab.pad),
    ];
    let mut all = vec![("model", Value::Str(vocab.model))];
    all.extend(vocab.pre.map(|pre| ("pre", Value::Str(pre))));
    all.push(("tokens", Value::Array(Array::Str(vocab.tokens))));
    all.extend(vocab.scores.map(|scores| ("scores", Value::Array(Array::F32(scores)))));
    all.extend(vocab.token_types.map(|kinds| ("token_type", Value::Array(Array::I32(kinds)))));
    all.extend(vocab.merges.map(|merges| ("merges", Value::Array(Array::Str(merges)))));
    all.extend(ids.into_iter().filter_map(|(key, id)| Some((key, Value::U32(id?)))));
    all.extend(vocab.add_bos.map(|add| ("add_bos_token", Value::Bool(add))));
    all.extend(vocab.add_space_prefix.map(|add| ("add_space_prefix", Value::Bool(add))));
    all.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
}
