//! Speech: clips and their transcripts, Whisper's tokens, subtitles.

pub mod data;
mod error;
mod languages;
mod measure;
mod objective;
mod search;
mod subtitles;
mod tokens;
pub mod transcribe;
mod window;

pub use data::{Clip, DataReport, Dataset, Options, Sound};
pub use error::{BadRow, Error, Result, SHOWN_MAX, Source};
pub use languages::{LANGUAGES, language_code, language_name, without_spaces};
pub use measure::{Scoring, scored};
pub use objective::{Examples, SoundCache, SpeechToText};
pub use search::{Found, Search};
pub use subtitles::{Format, Segment};
pub use tokens::{Labels, PREVIOUS_MAX, Request, SpeechTask, SpeechTokens, Suppress, TOKENS_MAX, TOKENS_MIN};
pub use transcribe::{Progress, Transcriber, Transcript, Vocabulary};
pub use window::AudioWindow;
