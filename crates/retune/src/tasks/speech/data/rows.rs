//! Rows of a manifest: which sound, what is said, in which language, when.
//!
//! Columns are known by the names that the usual data sets give them, whatever their case. Common Voice's tables have no quoting: a quotation
//! mark there is one.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retune_formats::limits::RECORD_BYTES;
use retune_formats::records::Records;
use serde_json::{Map, Value};

use crate::tasks::speech::error::{Error, Result, Source};
use crate::tasks::speech::languages::language_code;
use crate::tasks::speech::subtitles::Segment;
use crate::tasks::speech::tokens::SpeechTask;
use crate::tasks::wording::{describe, shorten};

const AUDIO: [&str; 8] =
    ["audio", "path", "file", "file_name", "filename", "audio_path", "audio_filepath", "wav"];
const TEXT: [&str; 4] = ["text", "sentence", "transcription", "transcript"];
const LANGUAGE: [&str; 3] = ["language", "lang", "locale"];
const TASK: [&str; 1] = ["task"];
const START: [&str; 2] = ["start", "start_time"];
const END: [&str; 2] = ["end", "end_time"];
const SEGMENTS: [&str; 2] = ["segments", "chunks"];
const SHAPE: &str =
    "a row needs the sound (audio, path or file) and what is said in it (text, sentence or transcription)";
/// Common Voice's folder of sounds.
pub(super) const CLIPS: &str = "clips";
const SIMILAR: f64 = 0.85;

/// A row, read but not yet held against its sound.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    pub audio: PathBuf,
    pub text: String,
    pub language: Option<&'static str>,
    pub task: Option<SpeechTask>,
    /// Start and end in seconds: finite, not negative.
    pub times: (Option<f64>, Option<f64>),
    /// In the file's seconds: finite, not negative, each ends after it starts.
    pub segments: Vec<Segment>,
}

/// Rows by where they stand.
pub(super) type Rows = Vec<(Source, std::result::Result<Row, String>)>;

/// Reads a manifest; sounds are named from its folder, or from the `clips` beside it.
pub(super) fn read(path: &Path) -> Result<Rows> {
    let file: Arc<str> = path.display().to_string().into();
    let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
    let at = |line| Source { file: file.clone(), line };
    if let Some(rows) = unquoted(path, &file)? {
        let row = |(line, value): (usize, std::result::Result<Map<String, Value>, String>)| {
            (at(line), value.and_then(|value| row(&value, &folder)))
        };
        return Ok(rows.into_iter().map(row).collect());
    }
    let mut rows = Rows::new();
    for record in Records::open(path)? {
        let record = record?;
        let found = match &record.value {
            Value::Object(value) => row(value, &folder),
            other => Err(format!("a row is an object, this one is {}", describe(other))),
        };
        rows.push((at(record.line), found));
    }
    Ok(rows)
}

/// The rows of a table of Common Voice, told by its first column; `None` for other files.
fn unquoted(
    path: &Path,
    file: &str,
) -> Result<Option<Vec<(usize, std::result::Result<Map<String, Value>, String>)>>> {
    let is_table = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
    let io = |source| Error::Folder { path: file.to_string(), source };
    if !is_table || !path.is_file() {
        return Ok(None);
    }
    let mut lines = BufReader::new(fs::File::open(path).map_err(io)?);
    let mut next = || -> Result<Option<String>> {
        let mut line = Vec::new();
        let read = (&mut lines).take(RECORD_BYTES as u64 + 1).read_until(b'\n', &mut line).map_err(io)?;
        if read > RECORD_BYTES {
            let what = format!("a line of it has more than {} MiB", RECORD_BYTES >> 20);
            return Err(Error::Data { file: file.to_string(), what });
        }
        let text = || String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_string();
        Ok((read > 0).then(text))
    };
    let header = next()?.unwrap_or_default();
    let columns: Vec<&str> = header.trim_start_matches('\u{feff}').split('\t').collect();
    if columns.first() != Some(&"client_id") || !columns.contains(&"path") {
        return Ok(None);
    }
    let mut rows = Vec::new();
    let mut number = 1;
    while let Some(line) = next()? {
        number += 1;
        let fields: Vec<&str> = line.split('\t').collect();
        if line.is_empty() {
            continue;
        }
        let (have, want) = (fields.len(), columns.len());
        let value = match line.contains('\u{fffd}') {
            true => Err("it is not UTF-8".to_string()),
            false if have != want => Err(format!("{have} fields, the header has {want}")),
            false => {
                let pair =
                    |(name, field): (&&str, &str)| (name.to_string(), Value::String(field.to_string()));
                Ok(columns.iter().zip(fields).map(pair).collect())
            }
        };
        rows.push((number, value));
    }
    Ok(Some(rows))
}

/// One row; `folder` is where its sound is looked for.
pub(super) fn row(value: &Map<String, Value>, folder: &Path) -> std::result::Result<Row, String> {
    let segments = field(value, &SEGMENTS).map(segments).transpose()?.unwrap_or_default();
    let audio = match field(value, &AUDIO) {
        // As the `datasets` library has it.
        Some(Value::Object(audio)) => audio.get("path"),
        other => other,
    };
    let audio = text(audio, "the sound")?.ok_or_else(|| wanted(value, "the sound", &AUDIO))?;
    let said = match text(field(value, &TEXT), "the text")? {
        Some(text) => text.to_string(),
        None if !segments.is_empty() => joined(&segments),
        None if field(value, &TEXT).is_some() => {
            return Err(format!("the text of {} is empty", shorten(audio)));
        }
        None => return Err(wanted(value, "what is said", &TEXT)),
    };
    let row = Row {
        audio: place(folder, audio),
        text: said,
        language: text(field(value, &LANGUAGE), "the language")?.map(language_code).transpose()?,
        task: text(field(value, &TASK), "the task")?.map(SpeechTask::from_name).transpose()?,
        times: (seconds(field(value, &START), "start")?, seconds(field(value, &END), "end")?),
        segments,
    };
    match row.times {
        (Some(start), Some(end)) if start >= end => {
            Err(format!("it starts at {start} s and ends at {end} s"))
        }
        (None | Some(_), _) => Ok(row),
    }
}

fn joined(segments: &[Segment]) -> String {
    segments.iter().map(|segment| segment.text.trim()).collect::<Vec<_>>().join(" ")
}

/// The value under the first of these names that there is.
fn field<'a>(row: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    names
        .iter()
        .find_map(|name| row.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

/// A text without outer white space; `None` for an empty one and null.
fn text<'a>(value: Option<&'a Value>, what: &str) -> std::result::Result<Option<&'a str>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
        Some(other) => Err(format!("{what} is {}, a text is wanted", describe(other))),
    }
}

/// A time: a number, or in a table what reads as one.
fn seconds(value: Option<&Value>, what: &str) -> std::result::Result<Option<f64>, String> {
    let number = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(value) => value.as_f64(),
    };
    let found = number.filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0);
    let shown = || value.map(|value| shorten(&value.to_string())).unwrap_or_default();
    found.map(Some).ok_or_else(|| format!("`{what}` is {}, a number of seconds from 0 on is wanted", shown()))
}

/// `[{"start": 0.0, "end": 2.5, "text": "…"}]`; also `{"timestamp": [0.0, 2.5], "text": "…"}`, as transformers writes them.
fn segments(value: &Value) -> std::result::Result<Vec<Segment>, String> {
    let Some(items) = value.as_array() else {
        return Err(format!("`segments` is {}, a list is wanted", describe(value)));
    };
    let one = |(i, item): (usize, &Value)| {
        let pair = item.get("timestamp").and_then(Value::as_array).map(Vec::as_slice);
        let (start, end) = match pair {
            Some([start, end]) => (Some(start), Some(end)),
            _ => (item.get("start"), item.get("end")),
        };
        let said = text(item.get("text"), "the text")?.unwrap_or_default().to_string();
        match (seconds(start, "start")?, seconds(end, "end")?) {
            (Some(start), Some(end)) if start < end => Ok(Segment { start, end, text: said }),
            (Some(start), Some(end)) => {
                Err(format!("segment {} starts at {start} s and ends at {end} s", i + 1))
            }
            _ => Err(format!("segment {} has no start or no end", i + 1)),
        }
    };
    let all: Vec<Segment> = items.iter().enumerate().map(one).collect::<std::result::Result<_, _>>()?;
    Ok(all.into_iter().filter(|segment| !segment.text.is_empty()).collect())
}

fn wanted(row: &Map<String, Value>, what: &str, names: &[&str]) -> String {
    let near = |key: &String| {
        let nearest =
            names.iter().map(|name| strsim::jaro_winkler(&key.to_lowercase(), name)).fold(0.0, f64::max);
        (nearest > SIMILAR).then(|| key.clone())
    };
    match row.keys().find_map(near) {
        Some(key) => format!("no {} for {what}; is `{}` meant?", names[0], shorten(&key)),
        None => {
            let keys = row.keys().take(8).map(|key| shorten(key)).collect::<Vec<_>>().join(", ");
            format!("{what} is missing: {SHAPE}; this one has {keys}")
        }
    }
}

/// Where a sound is: in the folder, or in Common Voice's folder of clips.
fn place(folder: &Path, name: &str) -> PathBuf {
    let here = folder.join(name);
    let in_clips = || Some(folder.join(CLIPS).join(name)).filter(|path| path.is_file());
    if here.is_file() { here } else { in_clips().unwrap_or(here) }
}
