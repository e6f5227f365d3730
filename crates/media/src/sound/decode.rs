//! Files of sound (wav, flac, mp3, ogg/vorbis) as mono samples of 16 kHz, decoded piece by piece.
//!
//! A file is hostile: its rate and channels are checked before anything is read, memory follows what was really decoded, and a file of more
//! than [`SECONDS_MAX`] is refused. What is broken is told, not skipped; a sample that is no number is an error.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use symphonia::core::codecs::audio::well_known::CODEC_ID_OPUS;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Symphonia;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, SeekMode, SeekTo, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;
use symphonia::core::units::Time;

use super::error::{Error, Result};
use super::resample::{Resampler, period};
use super::samples;

/// The ends of names of the files that are read.
pub const EXTENSIONS: [&str; 6] = ["wav", "wave", "flac", "mp3", "ogg", "oga"];
/// Those of sounds that are refused by name.
const OTHERS: [&str; 12] =
    ["opus", "m4a", "mp4", "aac", "wma", "webm", "amr", "aiff", "aif", "caf", "ape", "sph"];
/// The longest sound, in seconds: a day.
pub const SECONDS_MAX: f64 = 24.0 * 3_600.0;
/// The longest one that is held in memory as a whole, in seconds: 4 hours (0.9 GB).
pub const LOADED_SECONDS_MAX: f64 = 4.0 * 3_600.0;
const RATES: std::ops::RangeInclusive<u32> = 1_000..=768_000;
const CHANNELS_MAX: usize = 64;
/// A float sample beyond this was never scaled.
const LOUDEST: f32 = 100.0;
/// A file may end this much before its header says, in seconds: encoders pad.
const SLACK_SECONDS: f64 = 0.1;
/// Before a part is sought rather than decoded up to, in seconds; and how far ahead of it the decoder starts.
const SEEK_SECONDS: f64 = 10.0;
const AHEAD_SECONDS: f64 = 1.0;
const CONVERT: &str = "convert it, as with `ffmpeg -i FILE -ac 1 -ar 16000 FILE.flac`";

/// Does the name end as that of a sound, one that is read or one that is refused by name?
pub fn is_sound(path: &Path) -> bool {
    extension(path).is_some_and(|e| EXTENSIONS.contains(&e.as_str()) || OTHERS.contains(&e.as_str()))
}

fn extension(path: &Path) -> Option<String> {
    path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase)
}

/// The whole sound, mono, [`super::SAMPLE_RATE`] samples a second.
///
/// # Errors
/// A file that is no sound, broken, empty, cut short, or longer than [`LOADED_SECONDS_MAX`]; a sample that is no number.
pub fn load(path: &Path) -> Result<Vec<f32>> {
    load_part(path, 0.0, f64::INFINITY)
}

/// From `start` to `end` in seconds, or to the end of the file. Only what is needed is decoded.
///
/// # Errors
/// As [`load`]; a part that begins behind the end.
pub fn load_part(path: &Path, start: f64, end: f64) -> Result<Vec<f32>> {
    let mut reader = Reader::open(path)?;
    let longest = samples(LOADED_SECONDS_MAX);
    let skipped = if start > SEEK_SECONDS { reader.seek(start)? } else { 0.0 };
    let mut skip = samples(start - skipped);
    let wanted = if end.is_finite() { samples(end - start) } else { usize::MAX };
    let mut out = Vec::new();
    while out.len() < wanted
        && let Some(mut part) = reader.next()?
    {
        let left_out = skip.min(part.len());
        skip -= left_out;
        part.drain(..left_out);
        out.extend_from_slice(&part);
        if out.len().min(wanted) > longest {
            return Err(Error::sound(
                path,
                format!(
                    "more than {} hours are too long to be held in memory: cut it",
                    LOADED_SECONDS_MAX / 3_600.0
                ),
            ));
        }
    }
    out.truncate(wanted);
    match out.is_empty() && start > 0.0 {
        true => Err(Error::sound(path, format!("it ends before {start} s"))),
        false => Ok(out),
    }
}

/// Decodes a file piece by piece.
pub struct Reader {
    path: PathBuf,
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    rate: u32,
    channels: usize,
    /// Of the source, as the header says.
    declared: Option<u64>,
    resampler: Resampler,
    /// Frames of the source so far, those before a place that was sought included.
    frames: u64,
    /// A piece that was decoded to see where it is.
    held: Option<Vec<f32>>,
    /// Frames still to be left out.
    left_out: usize,
    /// The time of the last piece, in seconds.
    time: f64,
    ended: bool,
    interleaved: Vec<f32>,
}

impl Reader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// A file that is no sound, or of a kind, rate or length that is not read.
    pub fn open(path: &Path) -> Result<Reader> {
        refuse_by_name(path)?;
        let io = |doing| move |source| Error::Io { path: path.to_path_buf(), doing, source };
        let meta = std::fs::metadata(path).map_err(io("open"))?;
        if !meta.is_file() {
            return Err(Error::sound(path, "this is not a regular file"));
        }
        if meta.len() == 0 {
            return Err(Error::sound(path, "the file is empty (0 bytes)"));
        }
        let file = File::open(path).map_err(io("open"))?;
        contained(path, || Reader::probe(path, file))
    }

    fn probe(path: &Path, file: File) -> Result<Reader> {
        let stream = MediaSourceStream::new(Box::new(file), Default::default());
        let mut hint = Hint::new();
        if let Some(extension) = extension(path) {
            hint.with_extension(&extension);
        }
        let (format, metadata) = (FormatOptions::default(), MetadataOptions::default());
        let format = symphonia::default::get_probe()
            .probe(&hint, stream, format, metadata)
            .map_err(|e| not_read(path, &e))?;
        let no_track = || Error::sound(path, format!("there is no sound in it that can be read; {CONVERT}"));
        let track = format.default_track(TrackType::Audio).ok_or_else(no_track)?;
        let parameters = track.codec_params.as_ref().and_then(|p| p.audio()).ok_or_else(no_track)?;
        if parameters.codec == CODEC_ID_OPUS {
            return Err(Error::sound(path, format!("Opus is not read; {CONVERT}")));
        }
        let (rate, channels) = shape(path, parameters)?;
        let resampler = Resampler::new(rate).ok_or_else(|| rate_error(path, rate))?;
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(parameters, &AudioDecoderOptions::default())
            .map_err(|e| not_read(path, &e))?;
        let (declared, track) = (track.num_frames, track.id);
        let reader = Reader {
            path: path.to_path_buf(),
            format,
            decoder,
            track,
            rate,
            channels,
            declared,
            resampler,
            frames: 0,
            held: None,
            left_out: 0,
            time: 0.0,
            ended: false,
            interleaved: Vec::new(),
        };
        reader.check_length(reader.seconds().unwrap_or(0.0))?;
        Ok(reader)
    }

    /// The length in seconds, if the header says it.
    pub fn seconds(&self) -> Option<f64> {
        self.declared.map(|frames| frames as f64 / f64::from(self.rate))
    }

    /// Samples a second in the file.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Channels in the file; of a piece they are averaged.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Goes to a place a little before `time`, in seconds, before anything was read: returns where, in seconds. A file that cannot be
    /// sought in stays at its beginning.
    fn seek(&mut self, time: f64) -> Result<f64> {
        let Some(ahead) = Time::try_from_secs_f64((time - AHEAD_SECONDS).max(0.0)) else { return Ok(0.0) };
        let path = self.path.clone();
        let to = SeekTo::Time { time: ahead, track_id: Some(self.track) };
        if contained(&path, || Ok(self.format.seek(SeekMode::Accurate, to).is_err()))? {
            *self = Reader::open(&path)?;
            return Ok(0.0);
        }
        self.decoder.reset();
        // The first piece tells where it is. What comes before an input and an output sample fall together is left out, so that
        // the samples are those that reading from the beginning gives.
        self.held = self.decode()?;
        let found = (self.time.max(0.0) * f64::from(self.rate)).round() as u64;
        let aligned = found.next_multiple_of(period(self.rate).max(1) as u64);
        self.frames = if aligned as f64 / f64::from(self.rate) <= time { aligned } else { found };
        self.left_out = (self.frames - found) as usize;
        Ok(self.now())
    }

    /// The next piece, mono, [`super::SAMPLE_RATE`] samples a second; `None` at the end.
    ///
    /// # Errors
    /// As [`load`].
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Vec<f32>>> {
        let mut out = Vec::new();
        while out.is_empty() && !self.ended {
            let piece = match self.held.take() {
                Some(piece) => Some(piece),
                None => self.decode()?,
            };
            let Some(mut mono) = piece else {
                self.ended = true;
                self.check_end()?;
                self.resampler.finish(&mut out);
                break;
            };
            let left_out = self.left_out.min(mono.len());
            self.left_out -= left_out;
            mono.drain(..left_out);
            self.check_samples(&mono)?;
            self.frames += mono.len() as u64;
            self.check_length(self.now())?;
            self.resampler.push(&mono, &mut out);
        }
        Ok(Some(out).filter(|out| !out.is_empty()))
    }

    /// Decodes packets until one has frames, and averages their channels; `None` at the end.
    fn decode(&mut self) -> Result<Option<Vec<f32>>> {
        let path = self.path.clone();
        contained(&path, || self.packets())
    }

    fn packets(&mut self) -> Result<Option<Vec<f32>>> {
        loop {
            let packet = match self.format.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(None),
                // A file that is cut short; whether it is, its length tells.
                Err(Symphonia::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(None);
                }
                Err(e) => return Err(self.broken(&e)),
            };
            if packet.track_id != self.track {
                continue;
            }
            let base = self.format.tracks().iter().find(|t| t.id == self.track).and_then(|t| t.time_base);
            let decoded = match self.decoder.decode(&packet) {
                Ok(decoded) => decoded,
                Err(e) => return Err(self.broken(&e)),
            };
            let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
            decoded.copy_to_vec_interleaved(&mut self.interleaved);
            if (rate, channels) != (self.rate, self.channels) {
                let what = format!(
                    "it changes from {} Hz and {} channels to {rate} Hz and {channels}; {CONVERT}",
                    self.rate, self.channels
                );
                return Err(Error::sound(&self.path, what));
            }
            if !self.interleaved.is_empty() {
                self.time =
                    base.and_then(|base| base.calc_time(packet.pts)).map_or(0.0, |time| time.as_secs_f64());
                let share = 1.0 / channels as f32;
                let mean = |frame: &[f32]| frame.iter().sum::<f32>() * share;
                return Ok(Some(self.interleaved.chunks_exact(channels).map(mean).collect()));
            }
        }
    }

    fn now(&self) -> f64 {
        self.frames as f64 / f64::from(self.rate)
    }

    fn broken(&self, e: &Symphonia) -> Error {
        Error::sound(
            &self.path,
            format!("it is broken {:.2} s after its beginning ({e}); get it again, or {CONVERT}", self.now()),
        )
    }

    fn check_samples(&self, mono: &[f32]) -> Result<()> {
        let Some(at) = mono.iter().position(|x| x.is_nan() || x.abs() > LOUDEST) else { return Ok(()) };
        let time = (self.frames + at as u64) as f64 / f64::from(self.rate);
        let what = match mono[at] {
            x if x.is_finite() => format!("a sample is {x}: float samples lie within -1 and 1, scale it"),
            x => format!("a sample is {x}, no number: the file was damaged when it was made"),
        };
        Err(Error::sound(&self.path, format!("{time:.3} s after its beginning {what}")))
    }

    fn check_length(&self, length: f64) -> Result<()> {
        match length > SECONDS_MAX {
            true => {
                let hours = SECONDS_MAX / 3_600.0;
                Err(Error::sound(
                    &self.path,
                    format!("it is longer than {hours} hours, the most that is read: cut it"),
                ))
            }
            false => Ok(()),
        }
    }

    fn check_end(&self) -> Result<()> {
        let (now, declared) = (self.now(), self.seconds().unwrap_or(0.0));
        if declared > now + SLACK_SECONDS {
            let what = format!(
                "it ends after {now:.2} s of the {declared:.2} s that its header says: it is cut short, get it again"
            );
            return Err(Error::sound(&self.path, what));
        }
        match self.frames {
            0 => Err(Error::sound(&self.path, "there is no sound in it (0 samples)")),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({}, {} Hz, {} channels)", self.path.display(), self.rate, self.channels)
    }
}

/// Files that the decoders do not know are named before they are tried.
fn refuse_by_name(path: &Path) -> Result<()> {
    let extension = extension(path).unwrap_or_default();
    match OTHERS.contains(&extension.as_str()) {
        true => Err(Error::sound(
            path,
            format!(".{extension} files are not read (wav, flac, mp3 and ogg are); {CONVERT}"),
        )),
        false => Ok(()),
    }
}

/// Rate and channels, within limits.
fn shape(path: &Path, parameters: &AudioCodecParameters) -> Result<(u32, usize)> {
    let rate = parameters.sample_rate.unwrap_or(0);
    if !RATES.contains(&rate) {
        return Err(rate_error(path, rate));
    }
    match parameters.channels.as_ref().map_or(0, |channels| channels.count()) {
        channels @ 1..=CHANNELS_MAX => Ok((rate, channels)),
        channels => {
            Err(Error::sound(path, format!("it has {channels} channels, 1 to {CHANNELS_MAX} are read")))
        }
    }
}

fn rate_error(path: &Path, rate: u32) -> Error {
    let what = format!("its rate is {rate} Hz, {} to {} are read", RATES.start(), RATES.end());
    Error::sound(path, what)
}

fn not_read(path: &Path, e: &Symphonia) -> Error {
    Error::sound(
        path,
        format!("this is no wav, flac, mp3 or ogg/vorbis file that can be read ({e}); {CONVERT}"),
    )
}

/// Runs a decoder. One that panics has met a file that it was not made for.
fn contained<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::sound(
            path,
            format!("it is broken: the decoder gave up on it; get it again, or {CONVERT}"),
        ))
    })
}

#[cfg(test)]
mod tests;
