//! What is said in sounds of any length: window by window, again at higher temperatures where the text repeats itself or is unlikely.
//!
//! A text is doubted if `bytes / bytes deflated > 2.4`, or the mean log probability of its tokens is below -1; a doubted window in which the
//! model hears no speech is left out (Radford et al., 2022, section 4.5). Windows that are silent are not asked about. With timestamps the
//! next window begins at the end of the last whole segment; without, sounds are cut at pauses.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use retune_media::sound::{LogMel, SAMPLE_RATE, WINDOW_SAMPLES, cuts, is_silent, seconds};
use retune_tensor::{Params, Tensor};

use super::search::{Found, Search, Window};
use super::subtitles::Segment;
use super::tokens::{Request, SpeechTask, SpeechTokens, Suppress, TOKENS_MIN};
use super::window::AudioWindow;
use crate::error::{Error, Result};
use crate::models::whisper::Heard;
use crate::models::{Model, Whisper};
use crate::nn::Active;
use crate::text::Tokenizer;

/// Samples of a step of time: 0.02 s.
const STEP: usize = SAMPLE_RATE / 50;
/// Texts that are drawn at a temperature.
const DRAWN: usize = 5;

/// How sounds are transcribed.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `None`: the model is asked, of the first window.
    pub language: Option<&'static str>,
    pub task: SpeechTask,
    pub timestamps: bool,
    /// Texts side by side; 1 is greedy.
    pub beam_size: usize,
    /// Tried one after the other until a text is not doubted; 0 searches, above is drawn.
    pub temperatures: Vec<f32>,
    pub compression_ratio_max: f64,
    pub logprob_min: f64,
    /// Above, a doubted window is taken for one without speech.
    pub no_speech_max: f64,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            language: None,
            task: SpeechTask::Transcribe,
            timestamps: false,
            beam_size: 1,
            temperatures: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            compression_ratio_max: 2.4,
            logprob_min: -1.0,
            no_speech_max: 0.6,
            seed: 0,
        }
    }
}

impl Options {
    /// # Errors
    /// If a setting is out of its range.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Input(what));
        if !(1..=64).contains(&self.beam_size) {
            return bad(format!("the beam size is {}; 1 to 64 are possible", self.beam_size));
        }
        match self.temperatures.iter().find(|t| !(t.is_finite() && **t >= 0.0 && **t <= 10.0)) {
            Some(odd) => bad(format!("a temperature is {odd}; 0 to 10 are possible")),
            None if self.temperatures.is_empty() => {
                bad("no temperature is given; 0 takes the likeliest text".into())
            }
            None => Ok(()),
        }
    }
}

/// What is told on the way.
pub enum Progress<'a> {
    /// A segment is ready.
    Segment(&'a Segment),
    /// Seconds of the sound that are done.
    Done(f64),
    /// A token was written.
    Step,
}

/// What was said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    /// A code; `None` of a sound in which nothing was heard.
    pub language: Option<&'static str>,
    pub segments: Vec<Segment>,
}

impl Transcript {
    /// All of it as one text.
    pub fn text(&self) -> String {
        let texts: Vec<&str> =
            self.segments.iter().map(|s| s.text.trim()).filter(|t| !t.is_empty()).collect();
        texts.join(" ")
    }
}

/// How a model's tokens are read, and which it never writes.
pub struct Vocabulary {
    pub tokenizer: Arc<Tokenizer>,
    pub tokens: SpeechTokens,
    suppress: Suppress,
}

impl Vocabulary {
    /// # Errors
    /// If the model does not read sound, or the tokenizer is none of Whisper's.
    pub fn of(model: &Model, tokenizer: &Arc<Tokenizer>) -> Result<Vocabulary> {
        let net = model.speech()?;
        let tokens = SpeechTokens::of(&model.files, tokenizer)?;
        let vocab = net.config().vocab_size;
        if tokens.first_timestamp as usize > vocab {
            let what = format!(
                "the tokenizer has {} tokens, the model {vocab}: they do not belong together",
                tokens.first_timestamp
            );
            return Err(Error::Input(what));
        }
        let suppress = match SpeechTokens::generation(&model.files).and_then(Suppress::from_config) {
            Some(suppress) => suppress,
            None => Suppress::of(tokenizer, &tokens)?,
        };
        Ok(Vocabulary { tokenizer: tokenizer.clone(), tokens, suppress })
    }

    /// What is never written.
    pub fn suppress(&self) -> &Suppress {
        &self.suppress
    }
}

/// A model made ready to transcribe.
pub struct Transcriber<'a> {
    net: &'a Whisper,
    params: &'a Params,
    vocabulary: Arc<Vocabulary>,
    mel: LogMel,
    active: Active,
    window: AudioWindow,
}

impl<'a> Transcriber<'a> {
    /// With the adapter in a slot; [`Active::Base`] for none.
    ///
    /// # Errors
    /// If the model does not read sound, the tokenizer is none of Whisper's, or an adapter's prefix leaves no room for a text.
    pub fn new(model: &'a Model, tokenizer: &Arc<Tokenizer>, active: Active) -> Result<Transcriber<'a>> {
        let vocabulary = Arc::new(Vocabulary::of(model, tokenizer)?);
        Transcriber::over(model.speech()?, &model.params, vocabulary, active)
    }

    /// The same over a network whose parameters lie elsewhere.
    ///
    /// # Errors
    /// If an adapter's prefix leaves no room for a text.
    pub fn over(
        net: &'a Whisper,
        params: &'a Params,
        vocabulary: Arc<Vocabulary>,
        active: Active,
    ) -> Result<Transcriber<'a>> {
        net.check_room(active.of(0), TOKENS_MIN)?;
        let mel = LogMel::new(net.config().num_mel_bins);
        Ok(Transcriber { net, params, vocabulary, mel, active, window: AudioWindow::Whole })
    }

    /// The encoder sees each part of a sound through such a window.
    pub fn through(self, window: AudioWindow) -> Transcriber<'a> {
        Transcriber { window, ..self }
    }

    fn tokens(&self) -> &SpeechTokens {
        &self.vocabulary.tokens
    }

    fn check_weights(&self) -> Result<()> {
        self.params.fault().map_or(Ok(()), |fault| Err(Error::Weights(fault)))
    }

    /// What the decoder looks at of a part of a sound.
    fn hear(&self, samples: &[f32]) -> Heard {
        let frames = self.window.frames(samples.len(), self.net.config().frames());
        let features = Tensor::from_vec(frames, self.mel.bands(), self.mel.frames(samples, frames));
        self.net.hear(self.params, features, self.active.clone())
    }

    /// Transcribes a sound of 16 kHz. `progress` answers whether to go on; if not, there is no result.
    ///
    /// # Errors
    /// If the model cannot do what is asked: another language than English with an English-only model, say.
    pub fn transcribe(
        &self,
        samples: &[f32],
        options: &Options,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<Transcript>> {
        self.transcribe_heard(samples, None, options, progress)
    }

    /// The same where what the decoder looks at of the first window is known.
    ///
    /// # Errors
    /// As [`Transcriber::transcribe`].
    pub fn transcribe_heard(
        &self,
        samples: &[f32],
        mut first: Option<Heard>,
        options: &Options,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<Transcript>> {
        options.check()?;
        let mut out = Transcript { language: self.asked_language(options), segments: Vec::new() };
        // Said before anything is computed.
        self.tokens().prompt(Request { language: out.language.or(Some("en")), ..request(options) })?;
        let mut parts = match options.timestamps {
            true => Vec::new(),
            false => cuts(samples, WINDOW_SAMPLES),
        };
        parts.reverse();
        let mut at = 0;
        while at < samples.len() {
            let end = match options.timestamps {
                true => samples.len().min(at + WINDOW_SAMPLES),
                false => parts.pop().map_or(samples.len(), |part| part.end),
            };
            let part = &samples[at..end];
            let Some((segments, used)) =
                self.window(part, (at, first.take()), options, &mut out.language, progress)?
            else {
                return Ok(None);
            };
            for segment in segments {
                if !progress(Progress::Segment(&segment)) {
                    return Ok(None);
                }
                out.segments.push(segment);
            }
            at = if options.timestamps {
                at + used.clamp(STEP, (end - at).max(STEP))
            } else {
                end.max(at + 1)
            };
            if !progress(Progress::Done(seconds(at.min(samples.len())))) {
                return Ok(None);
            }
        }
        Ok(Some(out))
    }

    fn asked_language(&self, options: &Options) -> Option<&'static str> {
        options.language.or((!self.tokens().multilingual).then_some("en"))
    }

    /// The segments of a window that begins at a sample (with what was heard of it, if that is known), and how many of its samples they take.
    fn window(
        &self,
        samples: &[f32],
        (at, heard): (usize, Option<Heard>),
        options: &Options,
        language: &mut Option<&'static str>,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<(Vec<Segment>, usize)>> {
        if is_silent(samples) {
            return Ok(Some((Vec::new(), samples.len())));
        }
        let (net, params) = (self.net, self.params);
        let heard = heard.unwrap_or_else(|| self.hear(samples));
        self.check_weights()?;
        let room = net.room(self.active.of(0));
        // The first token alone: what the model says behind it tells whether there is speech, and in which language.
        let mut spoken = net.begin(params, &heard, room);
        let first = net.step(params, &heard, &mut [&mut spoken], &[self.tokens().start]);
        let no_speech = self.tokens().no_speech.map_or(0.0, |id| probability(first.row(0), id));
        if language.is_none() {
            let likeliest = self.tokens().language_probabilities(first.row(0));
            *language = likeliest.first().map(|(code, _)| *code);
        }
        let prompt = self.tokens().prompt(Request { language: *language, ..request(options) })?;
        let logits = match prompt.get(1..).filter(|rest| !rest.is_empty()) {
            Some(rest) => net.step(params, &heard, &mut [&mut spoken], rest),
            None => first,
        };
        let window = Window {
            net,
            params,
            tokens: self.tokens(),
            suppress: &self.vocabulary.suppress,
            heard: &heard,
            timestamps: options.timestamps,
            most: (net.config().max_target_positions / 2).min(room.saturating_sub(prompt.len())),
        };
        let mut found = None;
        for (i, &temperature) in options.temperatures.iter().enumerate() {
            let how = match temperature == 0.0 {
                true => Search::Beam(options.beam_size),
                false => {
                    let seed = options.seed ^ ((at as u64) << 8) ^ i as u64;
                    Search::Sampled { temperature, texts: DRAWN, seed }
                }
            };
            let Some(one) = window.search(&spoken, logits.row(0), how, &mut || progress(Progress::Step))
            else {
                return Ok(None);
            };
            let unlikely = one.mean_logprob < options.logprob_min;
            let silent = unlikely && no_speech > options.no_speech_max;
            let repeats = compression_ratio(&self.said(&one.ids)?) > options.compression_ratio_max;
            let good = silent || !(unlikely || repeats);
            found = Some((one, silent));
            if good {
                break;
            }
        }
        self.check_weights()?;
        let Some((found, false)) = found else { return Ok(Some((Vec::new(), samples.len()))) };
        self.segments(&found, samples.len(), at).map(Some)
    }

    fn said(&self, ids: &[u32]) -> Result<String> {
        let text: Vec<u32> = ids.iter().copied().filter(|id| self.tokens().time(*id).is_none()).collect();
        Ok(self.vocabulary.tokenizer.decode(&text, true)?)
    }

    /// The whole segments among the tokens of a window, and how many samples they take.
    fn segments(&self, found: &Found, samples: usize, at: usize) -> Result<(Vec<Segment>, usize)> {
        let is_time = |i: usize| found.ids.get(i).is_some_and(|id| self.tokens().time(*id).is_some());
        let n = found.ids.len();
        let closed = n >= 2 && is_time(n - 1) && !is_time(n - 2);
        // Two times in a row end a segment and begin one. What follows the last such pair is cut off by the window's end.
        let pair = (1..n).rev().find(|&i| is_time(i) && is_time(i - 1));
        let (ids, used) = match pair {
            Some(i) if !closed => {
                let steps = self.tokens().time(found.ids[i - 1]).unwrap_or(0.0);
                let used = retune_media::sound::samples(steps);
                (&found.ids[..i], if used < STEP { samples } else { used })
            }
            _ => (&found.ids[..], samples),
        };
        let segments =
            self.tokens().segments(&self.vocabulary.tokenizer, ids, seconds(at), seconds(samples))?;
        Ok((segments, used))
    }
}

fn request(options: &Options) -> Request {
    Request { language: options.language, task: options.task, timestamps: options.timestamps }
}

fn probability(logits: &[f32], id: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    logits.get(id as usize).map_or(0.0, |x| f64::from(x - largest).exp() / total)
}

/// Bytes of a text for each byte of it deflated: what repeats itself has many.
fn compression_ratio(text: &str) -> f64 {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    // Writing into memory does not fail.
    let written = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    written.map_or(0.0, |bytes| text.len() as f64 / bytes.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_itself_is_found() {
        assert!(compression_ratio(&"and then ".repeat(40)) > 2.4);
        assert!(compression_ratio("Ask not what your country can do for you.") < 2.4);
        assert_eq!(compression_ratio(""), 0.0);
    }

    #[test]
    fn settings_have_ranges() {
        let bad = |options: Options| options.check().unwrap_err().to_string();
        assert!(bad(Options { beam_size: 0, ..Options::default() }).contains("beam"));
        assert!(bad(Options { temperatures: vec![], ..Options::default() }).contains("temperature"));
        assert!(bad(Options { temperatures: vec![f32::NAN], ..Options::default() }).contains("NaN"));
        Options::default().check().unwrap();
    }
}
