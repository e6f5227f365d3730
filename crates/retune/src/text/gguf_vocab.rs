//! The tokenizer inside a GGUF file: its token list, types, scores and merges (`tokenizer.ggml.*`).

use super::error::{Error, Result};
use super::frame::Frame;
use super::hugging_face::{TURN_ENDS, VOCAB_MAX};
use super::pretokenizers;
use super::sentencepiece::SentencePiece;
use super::tokenizer::{Parts, SPECIAL_GUARD, SpecialIds, Vocabulary, contained};
use std::collections::{BTreeSet, HashMap, HashSet};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::decoders::wordpiece::WordPiece as WordPieces;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper};

pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// The `tokenizer.ggml.*` values of a GGUF file, as they stand there.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab {
    /// The file, for messages.
    pub origin: String,
    /// `model`: "gpt2" (byte-level BPE), "llama" (SentencePiece) or "bert" (WordPiece).
    pub model: String,
    /// `pre`: how words are cut, for "gpt2".
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    /// `token_type`, one for each token; absent: all normal.
    pub token_types: Option<Vec<i32>>,
    /// `scores`, one for each token; needed for "llama".
    pub scores: Option<Vec<f32>>,
    /// `merges` ("a b"); needed for "gpt2".
    pub merges: Option<Vec<String>>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    /// `cls` and `seperator` (so it is spelt): what stands around a text, for "bert".
    pub cls: Option<u32>,
    pub sep: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_space_prefix: Option<bool>,
}

pub(super) fn parts(vocab: GgufVocab) -> Result<Parts> {
    check(&vocab).map_err(|problem| Error::Tokenizer { origin: vocab.origin.clone(), problem })?;
    match vocab.model.as_str() {
        "gpt2" => byte_level(vocab),
        "llama" => sentencepiece(vocab),
        "bert" => word_piece(vocab),
        other => {
            let problem = format!(
                "tokenizer.ggml.model is {other:?}; known are \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece) and \
                 \"bert\" (WordPiece)"
            );
            Err(Error::Tokenizer { origin: vocab.origin, problem })
        }
    }
}

fn check(vocab: &GgufVocab) -> std::result::Result<(), String> {
    let n = vocab.tokens.len();
    if n == 0 || n as u64 > VOCAB_MAX {
        return Err(format!("tokenizer.ggml.tokens has {n} tokens; 1 to {VOCAB_MAX} are possible"));
    }
    let lengths = [
        ("token_type", vocab.token_types.as_ref().map(Vec::len)),
        ("scores", vocab.scores.as_ref().map(Vec::len)),
    ];
    for (key, len) in lengths {
        if let Some(len) = len.filter(|len| *len != n) {
            return Err(format!("tokenizer.ggml.{key} has {len} entries for {n} tokens"));
        }
    }
    let mut seen = HashSet::with_capacity(n);
    if let Some((id, token)) =
        vocab.tokens.iter().enumerate().find(|(_, token)| !token.is_empty() && !seen.insert(token.as_str()))
    {
        return Err(format!("tokenizer.ggml.tokens[{id}] is {token:?}, which stands there already"));
    }
    let roles = [
        ("bos", vocab.bos),
        ("eos", vocab.eos),
        ("eot", vocab.eot),
        ("eom", vocab.eom),
        ("unknown", vocab.unk),
        ("padding", vocab.pad),
        ("cls", vocab.cls),
        ("seperator", vocab.sep),
    ];
    match roles.iter().find(|(_, id)| id.is_some_and(|id| id as usize >= n)) {
        Some((role, Some(id))) => {
            Err(format!("tokenizer.ggml.{role}_token_id is {id}, but there are {n} tokens"))
        }
        _ => Ok(()),
    }
}

impl GgufVocab {
    fn kind(&self, id: usize) -> i32 {
        self.token_types.as_ref().and_then(|kinds| kinds.get(id)).copied().unwrap_or(NORMAL)
    }

    /// The tokens that are looked for before the text is cut: control and unknown (special), user-defined (not).
    fn added(&self) -> Vec<(u32, AddedToken)> {
        let token = |(id, text): (usize, &String)| {
            let special = match self.kind(id) {
                CONTROL | UNKNOWN => true,
                USER_DEFINED => false,
                _ => return None,
            };
            let token = AddedToken::from(text.clone(), special).normalized(false);
            (!text.is_empty()).then_some((id as u32, token))
        };
        self.tokens.iter().enumerate().filter_map(token).collect()
    }

    fn special_ids(&self, add_bos: bool) -> SpecialIds {
        let mut ends: BTreeSet<u32> = [self.eos, self.eot, self.eom].into_iter().flatten().collect();
        for (id, token) in self.tokens.iter().enumerate() {
            if matches!(self.kind(id), CONTROL | USER_DEFINED) && TURN_ENDS.contains(&token.as_str()) {
                ends.insert(id as u32);
            }
        }
        let add_bos = self.add_bos.unwrap_or(add_bos);
        SpecialIds { bos: self.bos, eos: self.eos, pad: self.pad, unk: self.unk, ends, add_bos }
    }
}

/// GPT-2's scheme: bytes as printable letters, words cut by a rule, merges in order.
fn byte_level(vocab: GgufVocab) -> Result<Parts> {
    let pre = vocab.pre.as_deref().unwrap_or("default");
    let rule = pretokenizers::find(pre).ok_or_else(|| unknown_pre(&vocab.origin, pre))?;
    let wrong = |problem: String| Error::Tokenizer { origin: vocab.origin.clone(), problem };
    let merges = vocab.merges.as_ref().ok_or_else(|| wrong("tokenizer.ggml.merges is missing".into()))?;
    let merges = merges.iter().enumerate().map(|(i, merge)| {
        merge
            .split_once(' ')
            .filter(|(a, b)| !a.is_empty() && !b.is_empty())
            .map(|(a, b)| (a.to_string(), b.to_string()))
            .ok_or_else(|| {
                wrong(format!("tokenizer.ggml.merges[{i}] is {merge:?}, not two tokens with a space"))
            })
    });
    let merges: Vec<(String, String)> = merges.collect::<Result<_>>()?;
    // Special tokens are not words: a text must never spell one, even where a word is taken whole.
    // A name that none can spell stands for them: the library prints a warning when it writes a vocabulary with holes.
    let words = vocab.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty());
    let word = |(id, token): (usize, &String)| match vocab.kind(id) {
        CONTROL | UNKNOWN => (format!("{SPECIAL_GUARD}{id}"), id as u32),
        _ => (token.clone(), id as u32),
    };
    let words: Vocab = words.map(word).collect();
    let model: ModelWrapper = contained(|| {
        BPE::builder().vocab_and_merges(words, merges).ignore_merges(rule.ignore_merges).build()
    })
    .map_err(|e| wrong(format!("tokenizer.ggml.merges: {e}")))?
    .into();
    Ok(Parts {
        origin: vocab.origin.clone(),
        model: Vocabulary::Library(Box::new(model)),
        added: vocab.added(),
        normalizer: None,
        pre_tokenizer: Some(rule.build().map_err(|e| wrong(e.to_string()))?),
        decoder: Some(ByteLevel::default().into()),
        ids: vocab.special_ids(rule.add_bos),
        frame: Ok(Frame::default()),
        model_size: vocab.tokens.len(),
    })
}

fn unknown_pre(origin: &str, name: &str) -> Error {
    let near = pretokenizers::known_names()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.8);
    Error::UnknownPre {
        origin: origin.to_string(),
        name: name.to_string(),
        known: pretokenizers::known_names().collect::<Vec<_>>().join(", "),
        hint: near.map(|(_, known)| format!(" (did you mean {known:?}?)")).unwrap_or_default(),
    }
}

/// SentencePiece's scheme: spaces as `▁`, pieces merged by score, the rest in bytes.
fn sentencepiece(vocab: GgufVocab) -> Result<Parts> {
    let wrong = |problem: String| Error::Tokenizer { origin: vocab.origin.clone(), problem };
    let scores = vocab.scores.as_ref().ok_or_else(|| wrong("tokenizer.ggml.scores is missing".into()))?;
    let mut pieces = HashMap::with_capacity(vocab.tokens.len());
    let mut bytes = Box::new([None; 256]);
    for (id, (token, score)) in vocab.tokens.iter().zip(scores).enumerate() {
        if !score.is_finite() {
            return Err(wrong(format!("tokenizer.ggml.scores[{id}] is {score}")));
        }
        match vocab.kind(id) {
            BYTE => {
                let byte = byte_of(token).ok_or_else(|| {
                    wrong(format!(
                        "tokenizer.ggml.tokens[{id}] is {token:?}, but a byte is written <0x00> to <0xFF>"
                    ))
                })?;
                bytes[usize::from(byte)] = Some(id as u32);
            }
            CONTROL | UNKNOWN | UNUSED => {}
            _ if token.is_empty() => {}
            _ => drop(pieces.insert(token.clone(), (id as u32, *score))),
        }
    }
    let add_space = vocab.add_space_prefix.unwrap_or(true);
    let step = |e: tokenizers::Error| wrong(e.to_string());
    let mut normalizer = vec![Replace::new(" ", "▁").map_err(step)?.into()];
    let mut decoder: Vec<DecoderWrapper> =
        vec![Replace::new("▁", " ").map_err(step)?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_space {
        normalizer.insert(0, Prepend::new("▁".into()).into());
        decoder.push(Strip::new(' ', 1, 0).into());
    }
    Ok(Parts {
        origin: vocab.origin.clone(),
        added: vocab.added(),
        normalizer: Some(Normalizers::new(normalizer).into()),
        pre_tokenizer: None,
        decoder: Some(Decoders::new(decoder).into()),
        ids: vocab.special_ids(true),
        frame: Ok(Frame::default()),
        model_size: vocab.tokens.len(),
        model: Vocabulary::SentencePiece {
            model: SentencePiece { pieces, bytes, unknown: vocab.unk },
            tokens: vocab.tokens,
        },
    })
}

/// Longest word that is cut into pieces: BERT's.
const WORD_CHARS_MAX: usize = 100;

/// BERT's scheme: the longest piece first, whole words without a mark and their later pieces with `##`. In the file it is the
/// other way round: words begin with `▁`.
fn word_piece(vocab: GgufVocab) -> Result<Parts> {
    let wrong = |problem: String| Error::Tokenizer { origin: vocab.origin.clone(), problem };
    let named = |name: &str| vocab.tokens.iter().position(|token| token == name).map(|id| id as u32);
    let role = |id: Option<u32>, name: &str| {
        id.or_else(|| named(name)).ok_or_else(|| wrong(format!("tokenizer.ggml.tokens has no {name}")))
    };
    let (cls, sep) = (role(vocab.cls.or(vocab.bos), "[CLS]")?, role(vocab.sep.or(vocab.eos), "[SEP]")?);
    let unk = role(vocab.unk, "[UNK]")?;
    let is_bracketed = |token: &str| token.len() > 2 && token.starts_with('[') && token.ends_with(']');
    let mut words = Vocab::default();
    for (id, token) in vocab.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        let word = match token.strip_prefix('▁') {
            // What cannot be cut out of a word keeps its name; a text must never spell one that is special.
            _ if id as u32 == unk => token.clone(),
            _ if matches!(vocab.kind(id), CONTROL | UNKNOWN) => format!("{SPECIAL_GUARD}{id}"),
            Some(word) => word.to_string(),
            None if is_bracketed(token) => token.clone(),
            None => format!("##{token}"),
        };
        if words.insert(word.clone(), id as u32).is_some() {
            return Err(wrong(format!(
                "tokenizer.ggml.tokens[{id}] is {token:?}: {word:?} stands there already"
            )));
        }
    }
    // The file does not say it: where no word has a capital, texts lose theirs.
    let lowercase = !words.keys().any(|word| !is_bracketed(word) && word.chars().any(char::is_uppercase));
    let unknown = vocab.tokens.get(unk as usize).cloned().unwrap_or_default();
    let model: ModelWrapper = contained(|| {
        WordPiece::builder().vocab(words).unk_token(unknown).max_input_chars_per_word(WORD_CHARS_MAX).build()
    })
    .map_err(|e| wrong(format!("tokenizer.ggml.tokens: {e}")))?
    .into();
    let around = serde_json::json!({"type": "BertProcessing", "cls": ["[CLS]", cls], "sep": ["[SEP]", sep]});
    let mut added = vocab.added();
    // Files of the first converters do not tell special tokens apart.
    for id in [Some(cls), Some(sep), Some(unk), vocab.pad, named("[MASK]")].into_iter().flatten() {
        if let Some(name) =
            vocab.tokens.get(id as usize).filter(|_| !added.iter().any(|(known, _)| *known == id))
        {
            added.push((id, AddedToken::from(name.clone(), true).normalized(false)));
        }
    }
    let mut ids = vocab.special_ids(false);
    ids.add_bos = false;
    Ok(Parts {
        origin: vocab.origin.clone(),
        model: Vocabulary::Library(Box::new(model)),
        added,
        normalizer: Some(BertNormalizer::new(true, true, None, lowercase).into()),
        pre_tokenizer: Some(BertPreTokenizer.into()),
        decoder: Some(WordPieces::default().into()),
        ids,
        frame: Frame::read(&around),
        model_size: vocab.tokens.len(),
    })
}

/// `<0x0A>` is byte 10; nothing else than two hexadecimal digits will do.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let exact = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if exact { u8::from_str_radix(digits, 16).ok() } else { None }
}
