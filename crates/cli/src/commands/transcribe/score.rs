//! `retune transcribe --data`: rows with their transcripts, how many words and letters are wrong, and the worst rows.

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, Result, bail};
use retune::metrics::words::{Edit, ErrorRates, Normalizer, RowErrors};
use retune::tasks::speech::data::{self, Clip, Dataset};
use retune::tasks::speech::transcribe::Options;
use retune::tasks::speech::{Progress, Transcriber};
use serde_json::json;

use super::bar;
use crate::exit::Ended;
use crate::signals::Signals;
use crate::style::{bold, count, dim, printable};

/// Rows that are shown.
const WORST: usize = 5;

/// How texts are made alike.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Alike {
    /// As the row's language asks for.
    Auto,
    As(Normalizer),
}

impl Alike {
    pub const NAMES: [&str; 4] = ["auto", "basic", "english", "none"];

    /// # Errors
    /// For other names.
    pub fn from_name(name: &str) -> Result<Alike, String> {
        match name {
            "auto" => Ok(Alike::Auto),
            "basic" => Ok(Alike::As(Normalizer::Basic)),
            "english" => Ok(Alike::As(Normalizer::English)),
            "none" => Ok(Alike::As(Normalizer::None)),
            _ => Err(format!("there are {}", Alike::NAMES.join(", "))),
        }
    }

    fn of(self, language: Option<&str>) -> Normalizer {
        match self {
            Alike::Auto => Normalizer::for_language(language),
            Alike::As(normalizer) => normalizer,
        }
    }
}

struct Scored<'a> {
    clip: &'a Clip,
    errors: RowErrors,
}

/// Transcribes all rows of a data set and compares.
pub fn run(
    transcriber: &Transcriber,
    adapter: Option<&Path>,
    path: &Path,
    options: &Options,
    alike: Alike,
    json: bool,
    signals: &Signals,
) -> Result<()> {
    let data = Dataset::load(path, &data::Options { language: options.language, task: Some(options.task) })?;
    if data.clips.is_empty() {
        bail!("{}: there are no clips in it", path.display());
    }
    let bar = bar(path, data.clips.len() as f64);
    let mut rows = Vec::with_capacity(data.clips.len());
    for (i, clip) in data.clips.iter().enumerate() {
        let scored = score(transcriber, clip, options, alike, signals)?;
        if json {
            let (row, adapter) = (&scored.errors, adapter.map(|path| path.display().to_string()));
            let line = json!({
                "audio": clip.audio.display().to_string(), "source": clip.source.to_string(), "adapter": adapter,
                "reference": row.reference.join(" "), "text": row.hypothesis.join(" "),
                "wer": row.words.rate(), "cer": row.characters.rate(),
            });
            writeln!(stdout(), "{line}")?;
        }
        rows.push(scored);
        bar.set_position(i as u64 + 1);
    }
    bar.finish_and_clear();
    let rates: ErrorRates = rows.iter().map(|row| &row.errors).collect();
    if json {
        let line = json!({
            "wer": rates.wer(), "cer": rates.cer(), "rows": rates.rows, "words": rates.words, "characters": rates.characters,
            "adapter": adapter.map(|path| path.display().to_string()),
        });
        return Ok(writeln!(stdout(), "{line}")?);
    }
    show(adapter, rates, rows)
}

fn score<'a>(
    transcriber: &Transcriber,
    clip: &'a Clip,
    options: &Options,
    alike: Alike,
    signals: &Signals,
) -> Result<Scored<'a>> {
    let row = || clip.source.to_string();
    let sound = clip.sound().map_err(|what| anyhow::anyhow!("{}: {what}", clip.source))?;
    let own = Options {
        language: clip.language.or(options.language),
        task: clip.task.unwrap_or(options.task),
        ..options.clone()
    };
    let go_on = &mut |_: Progress| signals.exit_code().is_none();
    let found = transcriber.transcribe(&sound.samples, &own, go_on).with_context(row)?;
    let found = found.ok_or_else(|| Ended::new(signals.exit_code().unwrap_or(130), "interrupted"))?;
    let errors = RowErrors::of(alike.of(found.language), &clip.text, &found.text());
    Ok(Scored { clip, errors })
}

fn show(adapter: Option<&Path>, rates: ErrorRates, mut rows: Vec<Scored>) -> Result<()> {
    let mut out = stdout().lock();
    let through = adapter.map(|path| format!("   {}", path.display())).unwrap_or_default();
    let (wer, cer) = (100.0 * rates.wer(), 100.0 * rates.cer());
    let told = format!("{} rows, {} words{through}", count(rates.rows), count(rates.words.reference()));
    writeln!(out, "{}   {}   {told}", bold(&format!("WER {wer:.1} %")), bold(&format!("CER {cer:.1} %")))?;
    rows.retain(|row| row.errors.words.errors() > 0);
    rows.sort_by(|a, b| b.errors.words.rate().total_cmp(&a.errors.words.rate()));
    for row in rows.iter().take(WORST) {
        let rate = 100.0 * row.errors.words.rate();
        writeln!(out, "{}", dim(&format!("{}: {rate:.0} %", row.clip.source)))?;
        writeln!(out, "  {}", difference(&row.errors))?;
    }
    Ok(())
}

/// `ask not [-what-] {+that+} your`: what was said and what was recognised instead.
fn difference(row: &RowErrors) -> String {
    let word = |word: Option<&str>| printable(word.unwrap_or_default());
    let one = |(edit, said, heard): (Edit, Option<&str>, Option<&str>)| match edit {
        Edit::Hit => word(said),
        Edit::Deletion => format!("[-{}-]", word(said)),
        Edit::Insertion => format!("{{+{}+}}", word(heard)),
        Edit::Substitution => format!("[-{}-]{{+{}+}}", word(said), word(heard)),
    };
    row.diff().into_iter().map(one).collect::<Vec<_>>().join(" ")
}
