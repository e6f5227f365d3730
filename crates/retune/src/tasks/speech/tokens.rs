//! Whisper's special tokens, the prompt of a request, and the labels of a transcript (Radford et al., 2022, figure 1).
//!
//! `<|startoftranscript|> <|fr|> <|transcribe|> <|notimestamps|> text <|endoftext|>`: what stands in front of the text is given to the model and
//! carries no loss. English-only models know neither language nor task. With timestamps `<|notimestamps|>` is left out, and each
//! segment stands between two times, `<|0.00|> text<|2.40|>`, in steps of 0.02 s up to 30 s.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::languages::{LANGUAGES, language_code, language_name, without_spaces};
use super::subtitles::Segment;
use crate::error::{Error, Result};
use crate::models::ModelFiles;
use crate::text::{Special, Tokenizer};

/// Tokens that a transcript may have in all (Whisper's `max_target_positions`).
pub const TOKENS_MAX: usize = 448;
/// Tokens of the shortest transcript: start, language, task, no timestamps, a word, the end.
pub const TOKENS_MIN: usize = 6;
/// Tokens of the text before that a prompt may hold.
pub const PREVIOUS_MAX: usize = TOKENS_MAX / 2 - 1;
/// Steps of a timestamp in a second, and the last of them.
const STEPS: f64 = 50.0;
const LAST_STEP: u32 = 1_500;
/// `<|endoftext|>` in the English-only vocabulary.
const ENGLISH_END: u32 = 50_256;
const START: &str = "<|startoftranscript|>";
const END: &str = "<|endoftext|>";
const PREVIOUS: &str = "<|startofprev|>";
const NO_TIMESTAMPS: &str = "<|notimestamps|>";

/// What is wanted of a clip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpeechTask {
    /// The words, in the language that is spoken.
    #[default]
    Transcribe,
    /// The words in English.
    Translate,
}

impl SpeechTask {
    /// Its name, which its token has too.
    pub fn name(self) -> &'static str {
        match self {
            SpeechTask::Transcribe => "transcribe",
            SpeechTask::Translate => "translate",
        }
    }

    /// # Errors
    /// For anything but `transcribe` and `translate`.
    pub fn from_name(name: &str) -> std::result::Result<SpeechTask, String> {
        let all = [SpeechTask::Transcribe, SpeechTask::Translate];
        let found = all.into_iter().find(|task| task.name().eq_ignore_ascii_case(name.trim()));
        found.ok_or_else(|| {
            let shown: String = name.chars().take(40).collect();
            format!("`{shown}` is no task; transcribe and translate are")
        })
    }
}

/// How a clip is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// A code (`fr`). Multilingual models need one; where it is unknown the model is asked first.
    pub language: Option<&'static str>,
    pub task: SpeechTask,
    /// With the times of segments.
    pub timestamps: bool,
}

/// Ids of the tokens with a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeechTokens {
    /// Knows languages and tasks.
    pub multilingual: bool,
    pub start: u32,
    pub end: u32,
    pub previous: u32,
    pub no_timestamps: u32,
    pub no_speech: Option<u32>,
    pub transcribe: u32,
    pub translate: u32,
    /// `<|0.00|>`; the others follow.
    pub first_timestamp: u32,
    /// (code, id) of the languages that there are.
    pub languages: Vec<(&'static str, u32)>,
}

/// A transcript as the model learns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// The prompt, the text, the end.
    pub ids: Vec<u32>,
    /// `target[i]`: `ids[i]` is predicted, from the sound and `ids[..i]`, and counted in the loss. Never of the prompt.
    pub target: Vec<bool>,
}

impl SpeechTokens {
    /// Those of a model's files.
    ///
    /// # Errors
    /// If the tokenizer is none of Whisper's.
    pub fn of(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<SpeechTokens> {
        let multilingual = SpeechTokens::generation(files);
        let multilingual = multilingual.and_then(|config| config.get("is_multilingual")?.as_bool());
        SpeechTokens::new(tokenizer, multilingual)
    }

    /// What a model's files say of how it writes: `generation_config.json`.
    pub fn generation(files: &ModelFiles) -> Option<&Value> {
        match files {
            ModelFiles::Folder(folder) => folder.generation_config(),
            ModelFiles::Speech(folder) => Some(folder.settings()),
            _ => None,
        }
    }

    /// Finds them by name. Whether the model is multilingual is told by `multilingual` (generation_config.json's `is_multilingual`) or, without
    /// it, by the vocabulary: in the English-only one `<|endoftext|>` is 50256.
    ///
    /// # Errors
    /// If the tokenizer is none of Whisper's.
    pub fn new(tokenizer: &Tokenizer, multilingual: Option<bool>) -> Result<SpeechTokens> {
        let id = |name: &str| tokenizer.token_to_id(name);
        let need = |name: &str| {
            let what =
                || Error::Input(format!("the tokenizer has no {name} token: it is not one of Whisper's"));
            id(name).ok_or_else(what)
        };
        let (end, no_timestamps) = (need(END)?, need(NO_TIMESTAMPS)?);
        let languages = LANGUAGES.iter().filter_map(|(code, _)| Some((*code, id(&format!("<|{code}|>"))?)));
        Ok(SpeechTokens {
            multilingual: multilingual.unwrap_or(end != ENGLISH_END),
            start: need(START)?,
            end,
            previous: need(PREVIOUS)?,
            no_timestamps,
            no_speech: id("<|nospeech|>").or_else(|| id("<|nocaptions|>")),
            transcribe: need("<|transcribe|>")?,
            translate: need("<|translate|>")?,
            // Older tokenizer files name none of the times; they follow all that is named.
            first_timestamp: id("<|0.00|>").unwrap_or(no_timestamps.saturating_add(1)),
            languages: languages.collect(),
        })
    }

    /// What the model is given before the text.
    ///
    /// # Errors
    /// A multilingual model without a language, one that it does not know, another than English or a translation for an English-only one.
    pub fn prompt(&self, request: Request) -> Result<Vec<u32>> {
        let mut ids = vec![self.start];
        if self.multilingual {
            ids.push(self.language(request.language)?);
            ids.push(match request.task {
                SpeechTask::Transcribe => self.transcribe,
                SpeechTask::Translate => self.translate,
            });
        } else {
            english_only(request)?;
        }
        if !request.timestamps {
            ids.push(self.no_timestamps);
        }
        Ok(ids)
    }

    /// The text before, as the beginning of a prompt: its last tokens, behind `<|startofprev|>`.
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    pub fn previous(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let ids = tokenizer.encode(&format!(" {}", text.trim()), Special::AsText)?;
        let kept = &ids[ids.len().saturating_sub(PREVIOUS_MAX)..];
        Ok(std::iter::once(self.previous).chain(kept.iter().copied()).collect())
    }

    /// The token of a time in seconds, to the nearest step.
    pub fn timestamp(&self, seconds: f64) -> u32 {
        self.first_timestamp + ((seconds * STEPS).round().max(0.0) as u32).min(LAST_STEP)
    }

    /// The time in seconds of a token, if it is one.
    pub fn time(&self, id: u32) -> Option<f64> {
        let step = id.checked_sub(self.first_timestamp).filter(|step| *step <= LAST_STEP)?;
        Some(f64::from(step) / STEPS)
    }

    /// (code, probability) of the languages, the likeliest first, from the logits behind the first token: those of other tokens are not looked at.
    pub fn language_probabilities(&self, logits: &[f32]) -> Vec<(&'static str, f64)> {
        let score = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let largest = self.languages.iter().map(|(_, id)| score(*id)).fold(f32::NEG_INFINITY, f32::max);
        let weight = |id: u32| f64::from(score(id) - largest).exp();
        let total: f64 = self.languages.iter().map(|(_, id)| weight(*id)).sum();
        let mut found: Vec<(&'static str, f64)> =
            self.languages.iter().map(|(code, id)| (*code, weight(*id) / total)).collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        found
    }

    /// The language of a token.
    pub fn language_of(&self, id: u32) -> Option<&'static str> {
        self.languages.iter().find(|(_, known)| *known == id).map(|(code, _)| *code)
    }

    fn language(&self, code: Option<&str>) -> Result<u32> {
        let Some(code) = code else {
            let what = "this model knows many languages: say which one is spoken (language = \"fr\")";
            return Err(Error::Input(what.into()));
        };
        let found = self.languages.iter().find(|(known, _)| *known == code);
        found.map(|(_, id)| *id).ok_or_else(|| {
            let name = language_name(code).unwrap_or(code);
            Error::Input(format!("this model has no token for the language {name} (`{code}`)"))
        })
    }

    /// The labels of a transcript. Start tokens that the text has already are taken off, and added once; `<|0.00|>` and the like are
    /// times. Where times are asked for and neither the text nor `segments` (seconds from the clip's beginning) has any,
    /// the transcript is one without.
    ///
    /// # Errors
    /// No text; special tokens inside it, or others than the request's; times that go back or are beyond 30 s; more than
    /// [`TOKENS_MAX`] tokens. The message is for the end of one with file and line.
    pub fn labels(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        segments: &[Segment],
        request: Request,
    ) -> std::result::Result<Labels, String> {
        let (text, request) = unframed(text, request)?;
        let language = request.language.filter(|_| self.multilingual).unwrap_or("en");
        let marked = TIME.is_match(text);
        let body = match (request.timestamps, marked, segments) {
            (true, true, _) => self.marked(tokenizer, text, language)?,
            (true, false, [_, ..]) => self.timed(tokenizer, segments, language)?,
            _ => encode(tokenizer, &TIME.replace_all(text, " "), language)?,
        };
        if body.iter().all(|id| self.time(*id).is_some()) {
            return Err("there is no text".into());
        }
        let timestamps = request.timestamps && (marked || !segments.is_empty());
        let prompt = self.prompt(Request { timestamps, ..request }).map_err(|e| e.to_string())?;
        let ids: Vec<u32> = prompt.iter().chain(&body).copied().chain([self.end]).collect();
        if ids.len() > TOKENS_MAX {
            return Err(format!(
                "the transcript takes {} tokens, Whisper reads {TOKENS_MAX} at most: cut the clip into shorter ones",
                ids.len()
            ));
        }
        let target = (0..ids.len()).map(|i| i >= prompt.len()).collect();
        Ok(Labels { ids, target })
    }

    /// A text with times in it.
    fn marked(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        language: &str,
    ) -> std::result::Result<Vec<u32>, String> {
        let (mut ids, mut last, mut from) = (Vec::new(), 0.0, 0);
        for found in TIME.captures_iter(text) {
            let (Some(mark), Some(digits)) = (found.get(0), found.get(1)) else { continue };
            ids.extend(encode(tokenizer, &text[from..mark.start()], language)?);
            let seconds: f64 = digits.as_str().parse().unwrap_or(f64::INFINITY);
            if seconds < last || seconds > f64::from(LAST_STEP) / STEPS {
                return Err(format!("the time {} is before the last one, or beyond 30 s", mark.as_str()));
            }
            ids.push(self.timestamp(seconds));
            (last, from) = (seconds, mark.end());
        }
        ids.extend(encode(tokenizer, &text[from..], language)?);
        Ok(ids)
    }

    /// Segments, each between its times.
    fn timed(
        &self,
        tokenizer: &Tokenizer,
        segments: &[Segment],
        language: &str,
    ) -> std::result::Result<Vec<u32>, String> {
        let (mut ids, mut last) = (Vec::new(), 0.0);
        for segment in segments {
            if !(segment.start >= last && segment.end >= segment.start && segment.end <= 30.0 + 1.0 / STEPS) {
                let (start, end) = (segment.start, segment.end);
                return Err(format!(
                    "a segment from {start} s to {end} s does not follow {last} s, or ends after 30 s"
                ));
            }
            ids.push(self.timestamp(segment.start));
            ids.extend(encode(tokenizer, &segment.text, language)?);
            ids.push(self.timestamp(segment.end));
            last = segment.end;
        }
        Ok(ids)
    }

    /// The segments of a transcript, its prompt and end left out: `offset` is the time of the window's beginning, `length` its length, both in
    /// seconds. Text without times is one segment over the whole window.
    ///
    /// # Errors
    /// If the ids cannot be decoded.
    pub fn segments(
        &self,
        tokenizer: &Tokenizer,
        ids: &[u32],
        offset: f64,
        length: f64,
    ) -> Result<Vec<Segment>> {
        let mut out: Vec<Segment> = Vec::new();
        let (mut start, mut text) = (0.0, Vec::new());
        for id in ids.iter().map(Some).chain([None]) {
            match id.map(|id| (*id, self.time(*id))) {
                Some((id, None)) if id < self.end || !tokenizer.is_special(id) => text.push(id),
                Some((_, None)) => {}
                time => {
                    let time = time.and_then(|(_, time)| time).unwrap_or(length).min(length);
                    let said = tokenizer.decode(&text, true)?;
                    if !said.trim().is_empty() {
                        let (start, end) = (offset + start, offset + time.max(start));
                        out.push(Segment { start, end, text: said.trim().to_string() });
                    }
                    text.clear();
                    start = time;
                }
            }
        }
        Ok(out)
    }
}

static TIME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"<\|(\d{1,4}\.\d{1,3})\|>").expect("a pattern of our own"));

fn english_only(request: Request) -> Result<()> {
    let fail = |what: String| {
        Err(Error::Input(format!("this model knows English only: {what}; take a multilingual one")))
    };
    match request {
        Request { task: SpeechTask::Translate, .. } => fail("it cannot translate".into()),
        Request { language: Some(code), .. } if code != "en" => {
            fail(format!("it has no token for {}", language_name(code).unwrap_or(code)))
        }
        _ => Ok(()),
    }
}

/// The ids of words, as the model writes them: with a space in front, where the language has spaces.
fn encode(tokenizer: &Tokenizer, text: &str, language: &str) -> std::result::Result<Vec<u32>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(name) = tokenizer.find_special(text) {
        return Err(format!("the text holds the special token {name}: take it out"));
    }
    let space = if without_spaces(language) { "" } else { " " };
    tokenizer.encode(&format!("{space}{text}"), Special::AsText).map_err(|e| e.to_string())
}

/// A text without the start and end tokens that it has already, and the request with what they say.
fn unframed(text: &str, mut request: Request) -> std::result::Result<(&str, Request), String> {
    let mut text = text.trim();
    let mut task = None;
    while let Some((name, rest)) = text.strip_prefix("<|").and_then(|rest| rest.split_once("|>")) {
        match name {
            "startoftranscript" | "notimestamps" => {}
            "transcribe" | "translate" => task = Some(SpeechTask::from_name(name)?),
            code if LANGUAGES.iter().any(|(known, _)| *known == code) => {
                let code = language_code(code)?;
                if request.language.is_some_and(|wanted| wanted != code) {
                    let wanted = request.language.unwrap_or_default();
                    return Err(format!("the text begins with <|{code}|>, but its language is `{wanted}`"));
                }
                request.language = Some(code);
            }
            _ => break,
        }
        text = rest.trim_start();
    }
    if let Some(task) = task {
        request.task = task;
    }
    while let Some(rest) = text.strip_suffix(END) {
        text = rest.trim_end();
    }
    Ok((text, request))
}

/// Tokens that a transcript never holds: symbols that are not said, and start tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suppress {
    /// Anywhere.
    pub always: Vec<u32>,
    /// As the first of a text: an empty one, or a space.
    pub first: Vec<u32>,
}

impl Suppress {
    /// The lists of `generation_config.json` (or of CTranslate2's `config.json`), if it has any.
    pub fn from_config(config: &Value) -> Option<Suppress> {
        let list = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| config.get(name)?.as_array());
            found
                .map(|ids| ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Vec<u32>>())
        };
        let always = list(["suppress_tokens", "suppress_ids"]);
        let first = list(["begin_suppress_tokens", "suppress_ids_begin"]);
        (always.is_some() || first.is_some())
            .then(|| Suppress { always: always.unwrap_or_default(), first: first.unwrap_or_default() })
    }

    /// As Whisper's authors choose them: symbols and brackets that stand for no sound (not `-` and `'` within words), notes of
    /// music, and all start tokens.
    ///
    /// # Errors
    /// If the vocabulary cannot spell one.
    pub fn of(tokenizer: &Tokenizer, tokens: &SpeechTokens) -> Result<Suppress> {
        let encode = |text: &str| tokenizer.encode(text, Special::AsText);
        let single = "\"#()*+/:;<=>@[\\]^_`{|}~「」『』".chars().map(String::from);
        let several = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split(' ');
        let music = "♩♪♫♬♭♮♯";
        let mut always = Vec::new();
        for text in [" -", " '"] {
            always.extend(encode(text)?.first().copied());
        }
        for symbol in single.chain(several.map(String::from)).chain(music.chars().map(String::from)) {
            for text in [symbol.clone(), format!(" {symbol}")] {
                let ids = encode(&text)?;
                // Notes are spelt in bytes: all of them begin with the same.
                if ids.len() == 1 || music.contains(symbol.as_str()) {
                    always.extend(ids.first().copied());
                }
            }
        }
        let named = [tokens.start, tokens.previous, tokens.transcribe, tokens.translate];
        always
            .extend(named.into_iter().chain(tokens.no_speech).chain(tokenizer.token_to_id("<|startoflm|>")));
        always.sort_unstable();
        always.dedup();
        Ok(Suppress { always, first: encode(" ")?.into_iter().take(1).chain([tokens.end]).collect() })
    }
}

#[cfg(test)]
pub(super) mod tests;
