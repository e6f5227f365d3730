//! Text to token ids and back, over the `tokenizers` crate.
//!
//! Two encoders share one vocabulary: one takes the text of special tokens for what it says (`<|im_end|>` in a
//! template's output is one token), the other for letters (a user's text is never a command to the model).

use super::error::{Error, Result};
use super::frame::{Frame, not_understood};
use super::gguf_vocab::{self, GgufVocab};
use super::hugging_face;
use super::sentencepiece::SentencePiece;
use regex::Regex;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{
    AddedToken, DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Token,
    TokenizerImpl,
};

/// Longest text that is tokenised at once.
pub(super) const TEXT_BYTES_MAX: usize = 1 << 20;
/// Longest run of white space: `\s+(?!\S)` pushes one backtrack per character, and the regex engine gives up (silently,
/// one level below us) at a million.
const WHITESPACE_RUN_MAX: usize = 100_000;

const GUARD_PASSES: usize = 4;

/// Put into a text between the characters of a special token's name, this (a Unicode noncharacter) keeps it from being
/// read as that token: see [`Tokenizer::guard`]. It is removed before the text is tokenised.
pub const SPECIAL_GUARD: char = '\u{FDD0}';

/// What the names of special tokens in a text mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// `<|im_end|>` is the special token: output of a chat template.
    Parse,
    /// `<|im_end|>` is ten characters: content that a user wrote.
    AsText,
}

/// The files of a Hugging Face folder that say how text becomes tokens; absent ones are `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenizerFiles<'a> {
    /// The folder, for messages.
    pub origin: &'a str,
    /// The text of `tokenizer.json`.
    pub tokenizer: &'a str,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a Value>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<&'a Value>,
    /// `generation_config.json`.
    pub generation_config: Option<&'a Value>,
    /// `config.json`.
    pub config: Option<&'a Value>,
}

pub(super) type Encoder =
    TokenizerImpl<Shared, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Turns text into token ids and back.
pub struct Tokenizer {
    /// Knows special tokens by their names.
    parsing: Encoder,
    /// Sees letters in their place.
    literal: Encoder,
    specials: HashMap<String, (u32, AddedToken)>,
    special_ids: HashSet<u32>,
    /// Matches the name of any special token, the longest first; `None` if there is none.
    special_names: Option<Regex>,
    ids: SpecialIds,
    /// What it puts around texts; why not, if its post-processor is not understood.
    frame: std::result::Result<Frame, String>,
    vocab_size: usize,
}

/// The ids that have a role, where the model's files name them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    pub unk: Option<u32>,
    /// Every id that ends an answer, `eos` among them.
    pub ends: BTreeSet<u32>,
    pub add_bos: bool,
}

/// Everything a tokenizer is made of, checked by its reader (`tokenizer.json` or GGUF).
pub(super) struct Parts {
    pub origin: String,
    pub model: Vocabulary,
    /// (id, token) that are looked for before anything else.
    pub added: Vec<(u32, AddedToken)>,
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    pub decoder: Option<DecoderWrapper>,
    pub ids: SpecialIds,
    pub frame: std::result::Result<Frame, String>,
    /// One more than the highest id of `model`.
    pub model_size: usize,
}

pub(super) enum Vocabulary {
    Library(Box<ModelWrapper>),
    SentencePiece { model: SentencePiece, tokens: Vec<String> },
}

/// One vocabulary in two encoders; answers for added tokens with the ids that the file declares, where the library
/// would count on from the vocabulary's size.
pub(super) struct Shared(Arc<(Vocabulary, HashMap<String, u32>, HashMap<u32, String>)>);

impl Model for Shared {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        match &self.0.0 {
            Vocabulary::Library(model) => model.tokenize(text),
            Vocabulary::SentencePiece { model, .. } => {
                let ids = model.encode(text)?;
                Ok(ids.into_iter().map(|(id, range)| Token::new(id, String::new(), range)).collect())
            }
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.1.get(token).copied().or_else(|| match &self.0.0 {
            Vocabulary::Library(model) => model.token_to_id(token),
            Vocabulary::SentencePiece { model, .. } => model.pieces.get(token).map(|(id, _)| *id),
        })
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.2.get(&id).cloned().or_else(|| match &self.0.0 {
            Vocabulary::Library(model) => model.id_to_token(id),
            Vocabulary::SentencePiece { tokens, .. } => tokens.get(id as usize).cloned(),
        })
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match &self.0.0 {
            Vocabulary::Library(model) => model.get_vocab(),
            Vocabulary::SentencePiece { model, .. } => {
                model.pieces.iter().map(|(piece, (id, _))| (piece.clone(), *id)).collect()
            }
        }
    }

    fn get_vocab_size(&self) -> usize {
        match &self.0.0 {
            Vocabulary::Library(model) => model.get_vocab_size(),
            Vocabulary::SentencePiece { tokens, .. } => tokens.len(),
        }
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("this vocabulary is read only".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        match &self.0.0 {
            Vocabulary::Library(model) => model.get_trainer(),
            Vocabulary::SentencePiece { .. } => ModelWrapper::BPE(Default::default()).get_trainer(),
        }
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder. Padding and truncation, which such files may switch on, stay off.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] names the file and what in it is wrong or not supported.
    pub fn from_files(files: &TokenizerFiles<'_>) -> Result<Self> {
        hugging_face::parts(files).and_then(Self::assemble)
    }

    /// Builds the tokenizer that a GGUF file carries in its metadata.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] or [`Error::UnknownPre`] names the file, the key and what is wrong with it.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        gguf_vocab::parts(vocab).and_then(Self::assemble)
    }

    pub(super) fn assemble(parts: Parts) -> Result<Self> {
        let Parts { origin, model, added, normalizer, pre_tokenizer, decoder, ids, frame, model_size } =
            parts;
        let highest_added = added.iter().map(|(id, _)| *id as usize + 1).max().unwrap_or(0);
        let by_name = added.iter().map(|(id, token)| (token.content.clone(), *id)).collect();
        let by_id = added.iter().map(|(id, token)| (*id, token.content.clone())).collect();
        let shared = Arc::new((model, by_name, by_id));
        let vocab_size = highest_added.max(model_size);
        let encoder = |parse: bool| {
            let mut encoder = Encoder::new(Shared(shared.clone()));
            encoder.with_normalizer(normalizer.clone()).with_pre_tokenizer(pre_tokenizer.clone());
            encoder.with_decoder(decoder.clone());
            let tokens: Vec<AddedToken> = added.iter().map(|(_, token)| token.clone()).collect();
            encoder.add_tokens(&tokens);
            encoder.set_encode_special_tokens(!parse);
            encoder
        };
        let (parsing, literal) = contained(|| Ok((encoder(true), encoder(false))))
            .map_err(|problem| Error::Tokenizer { origin: origin.clone(), problem })?;
        let specials: HashMap<_, _> = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content.clone(), (*id, token.clone())))
            .collect();
        let special_names = any_of(specials.keys())
            .map_err(|e| Error::Tokenizer { origin, problem: format!("special tokens: {e}") })?;
        let special_ids = specials.values().map(|(id, _)| *id).collect();
        let bos = ids.bos.filter(|_| ids.add_bos);
        let frame = frame.map(|frame| bos.map_or_else(|| frame.clone(), |bos| frame.clone().with_first(bos)));
        let frame = frame.and_then(|frame| match frame.highest() {
            Some(id) if id as usize >= vocab_size => {
                Err(format!("it adds the id {id}, beyond the vocabulary"))
            }
            _ => Ok(frame),
        });
        Ok(Self { parsing, literal, specials, special_ids, special_names, ids, frame, vocab_size })
    }

    pub(super) fn frame(&self) -> Result<&Frame> {
        self.frame.as_ref().map_err(|problem| not_understood(problem))
    }

    pub(super) fn encoder(&self) -> &Encoder {
        &self.parsing
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.parsing.get_model().0.0
    }

    /// The ids of `text`. Neither BOS nor EOS is added: see [`Tokenizer::add_bos`].
    ///
    /// # Errors
    /// [`Error::TextTooLong`] above 1 MiB, [`Error::Encode`] where the vocabulary cannot spell the text.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        check_text(text)?;
        match special {
            Special::AsText => ids_of(&self.literal, text),
            Special::Parse if text.contains(SPECIAL_GUARD) => {
                Ok(self.encode_guarded(text)?.into_iter().map(|(id, _)| id).collect())
            }
            Special::Parse => ids_of(&self.parsing, text),
        }
    }

    /// As [`Tokenizer::encode`], each id with the bytes of the text that it stands for (guards not counted). Tokens that
    /// share a character both have its range.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str, special: Special) -> Result<Vec<(u32, Range<usize>)>> {
        check_text(text)?;
        match special {
            Special::AsText => offsets_of(&self.literal, text, 0),
            Special::Parse if text.contains(SPECIAL_GUARD) => self.encode_guarded(text),
            Special::Parse => offsets_of(&self.parsing, text, 0),
        }
    }

    /// `content` such that, inside a text encoded with [`Special::Parse`], it remains text: the name of every special
    /// token in it is broken by a [`SPECIAL_GUARD`]. Borrowed where it holds no such name.
    pub fn guard<'a>(&self, content: &'a str) -> Cow<'a, str> {
        let Some(names) = &self.special_names else { return Cow::Borrowed(content) };
        if !content.contains(SPECIAL_GUARD) && !names.is_match(content) {
            return Cow::Borrowed(content);
        }
        let mut guarded = content.replace(SPECIAL_GUARD, "");
        // Names may overlap, so that breaking one leaves another: a few passes.
        for _ in 0..GUARD_PASSES {
            if !names.is_match(&guarded) {
                break;
            }
            let broken = names.replace_all(&guarded, |found: &regex::Captures<'_>| {
                let mut name = found[0].to_string();
                name.insert(name.chars().next().map_or(0, char::len_utf8), SPECIAL_GUARD);
                name
            });
            guarded = broken.into_owned();
        }
        Cow::Owned(guarded)
    }

    /// The first special token whose name stands in `text`.
    pub fn find_special<'a>(&self, text: &'a str) -> Option<&'a str> {
        self.special_names.as_ref()?.find(text).map(|found| found.as_str())
    }

    /// As the parsing encoder, for a text with guards: cut at special tokens first, then drop the guards.
    fn encode_guarded(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let names = self.special_names.as_ref();
        let mut ids = Vec::new();
        let mut rest = text;
        let mut at = 0; // bytes of `text` done, guards not counted
        let mut strip_left = false;
        loop {
            let found = names.and_then(|names| names.find(rest));
            let special = found.and_then(|found| self.specials.get(found.as_str()));
            let before = rest[..found.map_or(rest.len(), |found| found.start())].replace(SPECIAL_GUARD, "");
            let mut plain = before.as_str();
            if special.is_some_and(|(_, token)| token.lstrip) {
                plain = plain.trim_end();
            }
            if strip_left {
                plain = plain.trim_start();
            }
            if !plain.is_empty() {
                let skipped = before.find(plain).unwrap_or(0);
                ids.extend(offsets_of(&self.literal, plain, at + skipped)?);
            }
            at += before.len();
            let (Some(found), Some((id, token))) = (found, special) else { return Ok(ids) };
            ids.push((*id, at..at + found.len()));
            at += found.len();
            strip_left = token.rstrip;
            rest = &rest[found.end()..];
        }
    }

    /// The text of `ids`; special tokens appear by name, or not at all with `skip_special`. Ids beyond the vocabulary
    /// (a model's output layer may be wider) have no text. Bytes that are no UTF-8 become U+FFFD: to show tokens one by
    /// one use [`super::TokenStream`].
    ///
    /// # Errors
    /// [`Error::Decode`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        contained(|| self.parsing.decode(ids, skip_special)).map_err(|problem| Error::Decode { problem })
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token by its name (in a byte-level vocabulary a space is written `Ġ`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.parsing.get_model().token_to_id(token)
    }

    /// The name of a token.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.parsing.get_model().id_to_token(id)
    }

    /// Whether the id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.ids.bos
    }

    /// The token that ends a text, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.ids.eos
    }

    /// The padding token; nothing here pads, but other programs want its id.
    pub fn pad(&self) -> Option<u32> {
        self.ids.pad
    }

    /// The token of what the vocabulary cannot spell.
    pub fn unk(&self) -> Option<u32> {
        self.ids.unk
    }

    /// Every token after which an answer is finished: EOS and the ends of turns.
    pub fn eos_ids(&self) -> &BTreeSet<u32> {
        &self.ids.ends
    }

    /// Whether a plain text must start with [`Tokenizer::bos`]. A chat template writes its own.
    pub fn add_bos(&self) -> bool {
        self.ids.add_bos && self.ids.bos.is_some()
    }

    /// The name of a special id, or an empty text: what templates call `bos_token` and `eos_token`.
    pub fn name_of(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.id_to_token(id)).unwrap_or_default()
    }
}

fn ids_of(encoder: &Encoder, text: &str) -> Result<Vec<u32>> {
    contained(|| encoder.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()))
        .map_err(|problem| Error::Encode { problem })
}

fn offsets_of(encoder: &Encoder, text: &str, at: usize) -> Result<Vec<(u32, Range<usize>)>> {
    let encoding = contained(|| encoder.encode(text, false)).map_err(|problem| Error::Encode { problem })?;
    let ranges = encoding.get_offsets().iter().map(|(start, end)| at + start..at + end);
    Ok(encoding.get_ids().iter().copied().zip(ranges).collect())
}

/// Runs the tokenizers crate on a file's settings. Its readers check little of what they build (a slice at a merge's
/// prefix, chunks of length 0), so a panic in it, beyond what we check ourselves, is taken as an error of the file.
pub(super) fn contained<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizers library gave up on the tokenizer's settings".to_string()),
    }
}

fn any_of<'a>(names: impl Iterator<Item = &'a String>) -> std::result::Result<Option<Regex>, regex::Error> {
    let mut names: Vec<&String> = names.collect();
    if names.is_empty() {
        return Ok(None);
    }
    names.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
    let pattern: Vec<String> = names.iter().map(|name| regex::escape(name)).collect();
    regex::RegexBuilder::new(&pattern.join("|")).size_limit(256 << 20).build().map(Some)
}

fn check_text(text: &str) -> Result<()> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::TextTooLong { bytes: text.len(), limit: TEXT_BYTES_MAX });
    }
    let mut run = 0;
    for c in text.chars() {
        run = if c.is_whitespace() { run + 1 } else { 0 };
        if run > WHITESPACE_RUN_MAX {
            let problem = format!("more than {WHITESPACE_RUN_MAX} characters of white space in a row");
            return Err(Error::Encode { problem });
        }
    }
    Ok(())
}
