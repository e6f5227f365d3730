//! Transcripts as files: plain text, SubRip (`.srt`), WebVTT (`.vtt`) and JSON.
//!
//! Times are rounded to the millisecond. A text goes on one line: a blank one would end its cue. WebVTT escapes `&`, `<` and `>`; SubRip
//! knows no escapes, so there an arrow (`-->`) becomes `->`.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::json;

/// Something said, with its times in seconds from the beginning of the sound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    pub start: f64,
    pub end: f64,
    pub text: String,
}

/// How a transcript is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One line a segment.
    Text,
    Srt,
    Vtt,
    Json,
}

impl Format {
    /// All, in the order of [`Format::name`]'s mention in help texts.
    pub const ALL: [Format; 4] = [Format::Text, Format::Srt, Format::Vtt, Format::Json];

    /// Its name, which is the file's extension too.
    pub fn name(self) -> &'static str {
        match self {
            Format::Text => "txt",
            Format::Srt => "srt",
            Format::Vtt => "vtt",
            Format::Json => "json",
        }
    }

    /// The format of a name or extension.
    pub fn from_name(name: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name))
    }

    /// The whole file; `language` is a code (`fr`) and goes into JSON alone.
    pub fn write(self, segments: &[Segment], language: Option<&str>) -> String {
        match self {
            Format::Text => segments.iter().map(|segment| one_line(&segment.text) + "\n").collect(),
            Format::Srt => srt(segments),
            Format::Vtt => vtt(segments),
            Format::Json => json(segments, language),
        }
    }
}

fn srt(segments: &[Segment]) -> String {
    let mut out = String::new();
    for (i, segment) in segments.iter().enumerate() {
        let (start, end) = times(segment);
        let text = one_line(&segment.text).replace("-->", "->");
        let _ =
            write!(out, "{}\n{} --> {}\n{text}\n\n", i + 1, clock(start, true, ','), clock(end, true, ','));
    }
    out
}

fn vtt(segments: &[Segment]) -> String {
    let mut out = "WEBVTT\n\n".to_string();
    for segment in segments {
        let (start, end) = times(segment);
        let text = one_line(&segment.text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = write!(out, "{} --> {}\n{text}\n\n", clock(start, false, '.'), clock(end, false, '.'));
    }
    out
}

fn json(segments: &[Segment], language: Option<&str>) -> String {
    let text = segments.iter().map(|s| one_line(&s.text)).filter(|text| !text.is_empty());
    let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
    let segments = segments.iter().enumerate().map(|(id, segment)| {
        let (start, end) = times(segment);
        json!({"id": id, "start": seconds(start), "end": seconds(end), "text": one_line(&segment.text)})
    });
    let text = text.collect::<Vec<_>>().join(" ");
    let whole = json!({"text": text, "language": language, "segments": segments.collect::<Vec<_>>()});
    format!("{whole:#}\n")
}

/// Start and end in milliseconds, the end never before the start.
fn times(segment: &Segment) -> (u64, u64) {
    let milliseconds = |seconds: f64| (seconds * 1000.0).round().max(0.0) as u64;
    let start = milliseconds(segment.start);
    (start, milliseconds(segment.end).max(start))
}

/// `HH:MM:SS.mmm`; the hours may be left out while there are none.
fn clock(milliseconds: u64, hours: bool, mark: char) -> String {
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    match (minutes / 60, hours) {
        (0, false) => format!("{minutes:02}:{seconds:02}{mark}{rest:03}"),
        (h, _) => format!("{h:02}:{:02}:{seconds:02}{mark}{rest:03}", minutes % 60),
    }
}

/// The text without line breaks, NULs and outer white space.
fn one_line(text: &str) -> String {
    let breaks =
        |c: char| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}' | '\0');
    text.split(breaks).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<Segment> {
        let segment = |start, end, text: &str| Segment { start, end, text: text.into() };
        vec![
            segment(0.0, 2.4996, " And so,\n\nmy <fellow> & Americans "),
            segment(59.9995, 3661.0004, "a --> b"),
            segment(7_200.5, 7_200.1, ""),
        ]
    }

    #[test]
    fn subrip() {
        let wanted = "1\n00:00:00,000 --> 00:00:02,500\nAnd so, my <fellow> & Americans\n\n\
                      2\n00:01:00,000 --> 01:01:01,000\na -> b\n\n3\n02:00:00,500 --> 02:00:00,500\n\n\n";
        assert_eq!(Format::Srt.write(&segments(), None), wanted);
    }

    #[test]
    fn web_vtt() {
        let wanted = "WEBVTT\n\n00:00.000 --> 00:02.500\nAnd so, my &lt;fellow&gt; &amp; Americans\n\n\
                      01:00.000 --> 01:01:01.000\na --&gt; b\n\n02:00:00.500 --> 02:00:00.500\n\n\n";
        assert_eq!(Format::Vtt.write(&segments(), None), wanted);
    }

    #[test]
    fn text_and_json() {
        assert_eq!(Format::Text.write(&segments(), None), "And so, my <fellow> & Americans\na --> b\n\n");
        let text = Format::Json.write(&segments(), Some("en"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["language"], &value["segments"][0]["end"]), (&json!("en"), &json!(2.5)));
        assert_eq!(value["text"], "And so, my <fellow> & Americans a --> b");
        assert_eq!(Format::Json.write(&[], None).matches("null").count(), 1);
    }

    #[test]
    fn strange_times_and_names() {
        for seconds in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let segment = Segment { start: seconds, end: seconds, text: "x".into() };
            for format in Format::ALL {
                format.write(std::slice::from_ref(&segment), None);
            }
        }
        assert_eq!(Format::from_name("VTT"), Some(Format::Vtt));
        assert_eq!(Format::from_name("tsv"), None);
    }
}
