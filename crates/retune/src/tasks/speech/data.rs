//! Clips and their transcripts, from a manifest, Common Voice's layout, or a folder of pairs. Sound is decoded when it is wanted.
//!
//! Whisper hears 30 s at a time. A longer file is refused, unless its rows say which part they mean (`start`, `end`) or when what
//! is said (`segments`): then it becomes several clips, each cut in the pauses around it, where they are quietest.

mod folder;
mod rows;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use retune_media::sound;

use super::error::{Error, Problems, Result, Source};
use super::subtitles::Segment;
use super::tokens::{Labels, Request, SpeechTask, SpeechTokens};
use crate::tasks::causal_lm::split::hash;
use crate::text::Tokenizer;
use rows::Row;

/// Seconds that Whisper hears at a time.
pub const CLIP_SECONDS_MAX: f64 = 30.0;
/// How far around a clip of a longer file a pause is looked for, in seconds.
const PAUSE_SECONDS: f64 = 0.5;
/// A time may be this far behind the end of its file, in seconds: transcripts are rounded.
const SLACK_SECONDS: f64 = 0.1;

/// A stretch of sound and what is said in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    pub audio: PathBuf,
    pub text: String,
    /// A code, where the row names one.
    pub language: Option<&'static str>,
    /// Where the row names one.
    pub task: Option<SpeechTask>,
    /// The part of the file, in seconds; `None` is all of it.
    pub part: Option<Part>,
    /// When what is said, in seconds from the beginning of the *file*; empty if unknown.
    pub segments: Vec<Segment>,
    /// File and line.
    pub source: Source,
    /// A number of the clip's own, wherever it stands in the data: for dropout and shuffling.
    pub key: u64,
    /// Hash of the sound's file: clips of one file belong on the same side of a split.
    pub content: u64,
}

/// A part of a file, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    pub start: f64,
    pub end: f64,
    /// How much before and after it belongs to nobody: there the cut is made.
    pub pause: (f64, f64),
}

/// A clip's samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// Mono, [`sound::SAMPLE_RATE`] a second, at most 30 s.
    pub samples: Vec<f32>,
    /// The time of the first sample within the file, in seconds.
    pub start: f64,
}

/// How rows are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Of rows that name none.
    pub language: Option<&'static str>,
    /// Of rows that name none.
    pub task: Option<SpeechTask>,
    /// Rows longer than Whisper hears at a time are left out and counted, not refused.
    pub skip_long: bool,
}

/// Clips, checked but for their sound.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    pub clips: Vec<Clip>,
    pub report: DataReport,
}

/// Counts of a data set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataReport {
    pub rows: usize,
    /// Rows that repeat an earlier one, sound, times and text; they are left out.
    pub duplicates: usize,
    /// Rows that are left out since they are longer than 30 s ([`Options::skip_long`]).
    pub too_long: Vec<Source>,
    /// Of all clips together, where the files tell.
    pub seconds: f64,
    /// Clips by language; those without one are not in it.
    pub languages: BTreeMap<&'static str, usize>,
}

impl Dataset {
    /// Reads a manifest (`.csv`, `.tsv`, `.jsonl`, `.json`), or a folder: Common Voice's (its `train.tsv`), one with a `metadata.csv` or
    /// `metadata.jsonl`, or pairs of sounds and texts of the same name. The headers of all sounds are read, for their length.
    ///
    /// # Errors
    /// All rows that cannot be used, the first few by file and line: no such sound, no text, too long, times that make no sense, two texts
    /// for one sound.
    pub fn load(path: &Path, options: &Options) -> Result<Dataset> {
        let rows = if path.is_dir() { folder::read(path)? } else { rows::read(path)? };
        Dataset::build(&path.display().to_string(), rows, options)
    }

    fn build(
        file: &str,
        rows: Vec<(Source, std::result::Result<Row, String>)>,
        options: &Options,
    ) -> Result<Dataset> {
        let mut report = DataReport { rows: rows.len(), ..DataReport::default() };
        if rows.is_empty() {
            return Err(Error::Data { file: file.into(), what: "there are no rows in it".into() });
        }
        let mut problems = Problems::default();
        let mut good = Vec::with_capacity(rows.len());
        for (source, row) in rows {
            match row {
                Ok(row) => good.push((source, row)),
                Err(what) => problems.add(source, what),
            }
        }
        let lengths = lengths(&good, options.skip_long);
        let mut seen: HashMap<u64, (u64, Source)> = HashMap::new();
        let mut clips: Vec<Clip> = Vec::new();
        for (source, row) in good {
            let length = match lengths.get(&row.audio) {
                Some(Ok(length)) => *length,
                Some(Err(what)) => {
                    problems.add(source, what.clone());
                    continue;
                }
                None => None,
            };
            let place = hash(format!("{}\0{:?}", row.audio.display(), row.times).as_bytes());
            let text = hash(row.text.as_bytes());
            match seen.get(&place) {
                Some((same, _)) if *same == text => {
                    report.duplicates += 1;
                    continue;
                }
                Some((_, first)) => {
                    problems.add(source, format!("the same sound has another text in {first}"));
                    continue;
                }
                None => drop(seen.insert(place, (text, source.clone()))),
            }
            match row.clips(&source, length, options) {
                Ok(found) => clips.extend(found),
                Err(Unusable::TooLong(_)) if options.skip_long => report.too_long.push(source),
                Err(Unusable::TooLong(what) | Unusable::Otherwise(what)) => problems.add(source, what),
            }
        }
        find_pauses(&mut clips);
        report.count(&clips, &lengths);
        problems.or(Dataset { clips, report })
    }

    /// Decodes every clip and tokenises every text once, on all threads, so that what is wrong is told before anything is trained. Returns
    /// how many samples each clip has. `done` is called after each clip.
    ///
    /// # Errors
    /// All clips that are broken, silent or longer than 30 s, and all texts that make no labels.
    pub fn check(
        &self,
        tokens: &SpeechTokens,
        tokenizer: &Tokenizer,
        request: Request,
        done: impl Fn() + Sync,
    ) -> Result<Vec<usize>> {
        let look = |clip: &Clip| {
            let sound = clip.sound()?;
            clip.labels(tokens, tokenizer, request, sound.start)?;
            Ok(sound.samples.len())
        };
        self.each(|clip| {
            let found = look(clip);
            done();
            found
        })
    }

    /// Decodes every clip once.
    ///
    /// # Errors
    /// All clips that are broken, silent or longer than 30 s.
    pub fn check_sounds(&self) -> Result<()> {
        self.each(|clip| clip.sound().map(|_| ())).map(|_| ())
    }

    /// What `look` finds in each clip, on all threads; all that it finds wrong.
    fn each<T: Send>(&self, look: impl Fn(&Clip) -> std::result::Result<T, String> + Sync) -> Result<Vec<T>> {
        let found: Vec<std::result::Result<T, String>> = self.clips.par_iter().map(&look).collect();
        let mut problems = Problems::default();
        let wrong = found.iter().zip(&self.clips).filter_map(|(f, clip)| Some((clip, f.as_ref().err()?)));
        wrong.for_each(|(clip, what)| problems.add(clip.source.clone(), what.clone()));
        problems.or(found.into_iter().flatten().collect())
    }

    /// Splits off two shares of the *files* (validation and test): clips of one file never stand on two sides. Which ones is a matter of
    /// the seed and the files' names alone. Returns (training, validation, test).
    ///
    /// # Errors
    /// [`Error::Shares`] unless each is at least 0 and together they are less than 1.
    pub fn split(self, shares: [f64; 2], seed: u64) -> Result<[Dataset; 3]> {
        let total = shares[0] + shares[1];
        if shares.iter().any(|share| !(0.0..1.0).contains(share)) || total >= 1.0 {
            return Err(Error::Shares(shares));
        }
        let files: BTreeSet<u64> = self.clips.iter().map(|clip| clip.content).collect();
        let key = |file: &u64| (hash(&[seed.to_le_bytes(), file.to_le_bytes()].concat()), *file);
        let mut order: Vec<(u64, u64)> = files.iter().map(key).collect();
        order.sort_unstable();
        let count = |share: f64| (share * order.len() as f64).round() as usize;
        let (validation, test) = (count(shares[0]), count(shares[1]));
        let side: HashMap<u64, usize> = order
            .iter()
            .enumerate()
            .map(|(i, (_, file))| {
                (
                    *file,
                    if i < validation {
                        1
                    } else if i < validation + test {
                        2
                    } else {
                        0
                    },
                )
            })
            .collect();
        let mut parts = [Dataset::default(), Dataset::default(), Dataset::default()];
        for clip in self.clips {
            parts[side.get(&clip.content).copied().unwrap_or(0)].clips.push(clip);
        }
        for part in &mut parts {
            part.report.rows = part.clips.len();
            part.report.count(&part.clips, &HashMap::new());
        }
        Ok(parts)
    }
}

impl DataReport {
    fn count(&mut self, clips: &[Clip], lengths: &Lengths) {
        for clip in clips {
            let whole = || lengths.get(&clip.audio)?.as_ref().ok().copied().flatten();
            self.seconds += clip.part.map_or_else(|| whole().unwrap_or(0.0), |part| part.end - part.start);
            if let Some(language) = clip.language {
                *self.languages.entry(language).or_default() += 1;
            }
        }
    }
}

impl Clip {
    /// Decodes it. Parts of longer files are cut at the quietest place of the pauses around them.
    ///
    /// # Errors
    /// A message without the row: the file is broken, silent, or longer than 30 s.
    pub fn sound(&self) -> std::result::Result<Sound, String> {
        let sound = match self.part {
            None => Sound { samples: self.whole()?, start: 0.0 },
            Some(part) => self.cut(part)?,
        };
        if sound::is_silent(&sound.samples) {
            let seconds = sound::seconds(sound.samples.len());
            return Err(format!(
                "{} is silent for all of its {seconds:.1} s, yet has a text",
                self.audio.display()
            ));
        }
        Ok(sound)
    }

    fn whole(&self) -> std::result::Result<Vec<f32>, String> {
        let most = CLIP_SECONDS_MAX + SLACK_SECONDS;
        let mut samples = sound::load_part(&self.audio, 0.0, most + 1.0).map_err(|e| e.to_string())?;
        if sound::seconds(samples.len()) > most {
            return Err(too_long(&self.audio, None));
        }
        samples.truncate(sound::samples(CLIP_SECONDS_MAX));
        Ok(samples)
    }

    fn cut(&self, part: Part) -> std::result::Result<Sound, String> {
        let from = (part.start - part.pause.0).max(0.0);
        let to = part.end + part.pause.1;
        let mut samples = sound::load_part(&self.audio, from, to).map_err(|e| e.to_string())?;
        let at = |seconds: f64| sound::samples((seconds - from).max(0.0)).min(samples.len());
        let quietest = |range: Range<usize>| sound::quietest(&samples, range);
        let longest = sound::samples(CLIP_SECONDS_MAX);
        // Never so early that the end would be beyond 30 s.
        let end = at(part.end);
        let first = if part.pause.0 > 0.0 {
            quietest(end.saturating_sub(longest)..at(part.start))
        } else {
            at(part.start)
        };
        let room = at(to).min(first + longest);
        let last =
            if part.pause.1 > 0.0 && room > end { quietest(end..room) } else { end.min(first + longest) };
        samples.truncate(last);
        samples.drain(..first.min(last));
        Ok(Sound { samples, start: from + sound::seconds(first) })
    }

    /// Its labels. `request` says what rows that name no language or task mean, and whether times are learned; `start` is
    /// [`Sound::start`].
    ///
    /// # Errors
    /// A message without the row.
    pub fn labels(
        &self,
        tokens: &SpeechTokens,
        tokenizer: &Tokenizer,
        request: Request,
        start: f64,
    ) -> std::result::Result<Labels, String> {
        let shifted = |segment: &Segment| Segment {
            start: (segment.start - start).clamp(0.0, CLIP_SECONDS_MAX),
            end: (segment.end - start).clamp(0.0, CLIP_SECONDS_MAX),
            text: segment.text.clone(),
        };
        let segments: Vec<Segment> = self.segments.iter().map(shifted).collect();
        let request = Request {
            language: self.language.or(request.language),
            task: self.task.unwrap_or(request.task),
            ..request
        };
        tokens.labels(tokenizer, &self.text, &segments, request)
    }
}

/// Why a row makes no clips.
enum Unusable {
    /// More than Whisper hears at a time.
    TooLong(String),
    Otherwise(String),
}

impl From<String> for Unusable {
    fn from(what: String) -> Unusable {
        Unusable::Otherwise(what)
    }
}

/// The length of each file in seconds, if its header tells; why it cannot be read.
type Lengths = HashMap<PathBuf, std::result::Result<Option<f64>, String>>;

/// With `decoded`, files whose headers tell nothing are decoded, as far as Whisper hears and a bit.
fn lengths(rows: &[(Source, Row)], decoded: bool) -> Lengths {
    let files: BTreeSet<&PathBuf> = rows.iter().map(|(_, row)| &row.audio).collect();
    let files: Vec<&PathBuf> = files.into_iter().collect();
    let length = |path: &Path| match path.is_file() {
        false => Err(missing(path)),
        true => match sound::Reader::open(path).map(|reader| reader.seconds()) {
            Ok(None) if decoded => {
                let samples = sound::load_part(path, 0.0, CLIP_SECONDS_MAX + 1.0);
                samples.map(|samples| Some(sound::seconds(samples.len()))).map_err(|e| e.to_string())
            }
            told => told.map_err(|e| e.to_string()),
        },
    };
    files.into_par_iter().map(|path| (path.clone(), length(path))).collect()
}

fn missing(path: &Path) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
    match folder {
        Some(folder) => format!("{}: there is no folder {}", path.display(), folder.display()),
        None => format!("{}: there is no such file", path.display()),
    }
}

fn too_long(path: &Path, seconds: Option<f64>) -> String {
    let length = seconds.map_or("longer than 30 s".into(), |seconds| format!("{seconds:.1} s long"));
    format!(
        "{} is {length}, Whisper hears 30 s at a time: cut it, say which part the text is of (start, end) or when what is said (segments), \
         or leave such rows out (skip_long = true)",
        path.display()
    )
}

impl Row {
    /// The clips of a row: one, or as many as its segments need.
    fn clips(
        self,
        source: &Source,
        length: Option<f64>,
        options: &Options,
    ) -> std::result::Result<Vec<Clip>, Unusable> {
        let (part, segments) = (self.part(length)?, self.segments.clone());
        if let Some(segment) = segments.windows(2).find(|pair| pair[1].start < pair[0].start) {
            return Err(format!("the segment at {} s stands after a later one", segment[1].start).into());
        }
        let parts = match (part, &segments[..]) {
            (part @ Some(_), _) | (part, []) => vec![(part, self.text.clone(), segments)],
            (None, _) => gathered(&segments, length)?,
        };
        let clip = |(part, text, segments): (Option<Part>, String, Vec<Segment>)| {
            let name = self.audio.file_name().unwrap_or_default().to_string_lossy();
            let said = format!("{name}\0{:?}\0{text}", part.map(|part| (part.start, part.end)));
            Clip {
                audio: self.audio.clone(),
                text,
                language: self.language.or(options.language),
                task: self.task.or(options.task),
                part,
                segments,
                source: source.clone(),
                key: hash(said.as_bytes()),
                content: hash(name.as_bytes()),
            }
        };
        Ok(parts.into_iter().map(clip).collect())
    }

    /// The part that `start` and `end` name, checked against the file's length.
    fn part(&self, length: Option<f64>) -> std::result::Result<Option<Part>, Unusable> {
        let whole = self.times == (None, None);
        let Some((start, end)) = Some(self.times.0.unwrap_or(0.0)).zip(self.times.1.or(length)) else {
            return if whole {
                Ok(None)
            } else {
                Err(Unusable::Otherwise("`start` needs an `end`: the file does not tell its length".into()))
            };
        };
        if whole {
            return match length.filter(|length| *length > CLIP_SECONDS_MAX + SLACK_SECONDS) {
                Some(length) if self.segments.is_empty() => {
                    Err(Unusable::TooLong(too_long(&self.audio, Some(length))))
                }
                _ => Ok(None),
            };
        }
        match length {
            Some(length) if end > length + SLACK_SECONDS => {
                let what = format!("`end` is {end} s, {} ends at {length:.2} s", self.audio.display());
                return Err(what.into());
            }
            _ if start >= end => return Err(format!("it starts at {start} s and ends at {end} s").into()),
            _ if end - start > CLIP_SECONDS_MAX => {
                return Err(Unusable::TooLong(format!(
                    "from {start} s to {end} s is more than the 30 s that Whisper hears at a time"
                )));
            }
            _ => {}
        }
        Ok(Some(Part { start, end, pause: (0.0, 0.0) }))
    }
}

/// Segments put together to clips of at most 30 s.
fn gathered(
    segments: &[Segment],
    length: Option<f64>,
) -> std::result::Result<Vec<(Option<Part>, String, Vec<Segment>)>, Unusable> {
    let mut clips: Vec<(Option<Part>, String, Vec<Segment>)> = Vec::new();
    for segment in segments {
        let (start, end) = (segment.start, segment.end);
        if end - start > CLIP_SECONDS_MAX {
            return Err(Unusable::TooLong(format!(
                "the segment from {start} s to {end} s is longer than the 30 s that Whisper hears at a time"
            )));
        }
        if length.is_some_and(|length| end > length + SLACK_SECONDS) {
            let what = format!("the segment from {start} s to {end} s is behind the end of the file");
            return Err(what.into());
        }
        match clips.last_mut() {
            Some((Some(part), text, gathered)) if end - part.start <= CLIP_SECONDS_MAX => {
                part.end = part.end.max(end);
                text.push(' ');
                text.push_str(segment.text.trim());
                gathered.push(segment.clone());
            }
            _ => {
                let part = Part { start, end, pause: (0.0, 0.0) };
                clips.push((Some(part), segment.text.trim().to_string(), vec![segment.clone()]));
            }
        }
    }
    Ok(clips)
}

/// Gives each part of a file the pauses to its neighbours.
fn find_pauses(clips: &mut [Clip]) {
    let mut order: Vec<usize> = (0..clips.len()).filter(|&i| clips[i].part.is_some()).collect();
    let place = |clip: &Clip| (clip.audio.clone(), clip.part.map_or(0.0, |part| part.start));
    order.sort_by(|&a, &b| {
        let (a, b) = (place(&clips[a]), place(&clips[b]));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let mut previous: Option<usize> = None;
    for &i in &order {
        let same = previous.filter(|&p| clips[p].audio == clips[i].audio);
        let Some(mut part) = clips[i].part else { continue };
        let free = match same.and_then(|p| clips[p].part) {
            Some(before) => part.start - before.end,
            None => part.start,
        };
        part.pause = (free.clamp(0.0, PAUSE_SECONDS), PAUSE_SECONDS);
        clips[i].part = Some(part);
        if let Some(before) = same.and_then(|p| clips[p].part.as_mut()) {
            before.pause.1 = free.clamp(0.0, PAUSE_SECONDS);
        }
        previous = Some(i);
    }
}

#[cfg(test)]
mod tests;
