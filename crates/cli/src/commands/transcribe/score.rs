//! `retune transcribe --data`: rows with their transcripts, how many words and letters are wrong, and the worst rows.

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, Result, bail};
use retune::metrics::words::{Edit, ErrorRates, NormalizerChoice, RowErrors, TranscribedRow};
use retune::tasks::speech::data::{self, Clip, Dataset};
use retune::tasks::speech::transcribe::Options;
use retune::tasks::speech::{Transcriber, scored};
use serde_json::json;

use super::bar;
use crate::exit::Ended;
use crate::signals::Signals;
use crate::style::{bold, count, dim, printable};
use crate::tasks::left_out;

/// Words of a row that are shown.
const WORDS_SHOWN: usize = 60;
/// Rows that are shown.
const WORST: usize = 5;

/// Which rows are read, and how they are compared.
pub struct Rows<'a> {
    pub path: &'a Path,
    pub skip_long: bool,
    pub normalizer: NormalizerChoice,
}

/// Transcribes all rows of a data set and compares.
pub fn run(
    transcriber: &Transcriber,
    adapter: Option<&Path>,
    of: &Rows,
    options: &Options,
    json: bool,
    signals: &Signals,
) -> Result<()> {
    let (language, task) = (options.language, Some(options.task));
    let data = Dataset::load(of.path, &data::Options { language, task, skip_long: of.skip_long })?;
    if let Some(left_out) = left_out(&data.report) {
        eprintln!("warning: {left_out}");
    }
    if data.clips.is_empty() {
        bail!("{}: there are no clips in it", of.path.display());
    }
    data.check_sounds()?;
    let bar = bar(of.path, data.clips.len() as f64);
    let mut rows = Vec::with_capacity(data.clips.len());
    for (i, clip) in data.clips.iter().enumerate() {
        let row = score(transcriber, clip, options, of.normalizer, signals)?;
        if json {
            let adapter = adapter.map(|path| path.display().to_string());
            let line = json!({
                "audio": clip.audio.display().to_string(), "source": row.source, "adapter": adapter,
                "reference": row.reference, "text": row.hypothesis, "wer": row.words.rate(), "cer": row.characters.rate(),
            });
            writeln!(stdout(), "{line}")?;
        }
        rows.push(row);
        bar.set_position(i as u64 + 1);
    }
    bar.finish_and_clear();
    let rates: ErrorRates = rows.iter().collect();
    if json {
        let line = json!({
            "wer": rates.wer(), "cer": rates.cer(), "rows": rates.rows, "words": rates.words, "characters": rates.characters,
            "adapter": adapter.map(|path| path.display().to_string()),
        });
        return Ok(writeln!(stdout(), "{line}")?);
    }
    show(adapter, rates, rows)
}

fn score(
    transcriber: &Transcriber,
    clip: &Clip,
    options: &Options,
    normalizer: NormalizerChoice,
    signals: &Signals,
) -> Result<TranscribedRow> {
    let row = || clip.source.to_string();
    let sound = clip.sound().map_err(|what| anyhow::anyhow!("{}: {what}", clip.source))?;
    let go_on = &mut || signals.exit_code().is_none();
    let found = scored(transcriber, clip, (&sound, None), options, normalizer, go_on).with_context(row)?;
    found.ok_or_else(|| Ended::new(signals.exit_code().unwrap_or(130), "interrupted").into())
}

fn show(adapter: Option<&Path>, rates: ErrorRates, mut rows: Vec<TranscribedRow>) -> Result<()> {
    let mut out = stdout().lock();
    let through = adapter.map(|path| format!("   {}", path.display())).unwrap_or_default();
    let (wer, cer) = (100.0 * rates.wer(), 100.0 * rates.cer());
    let told = format!("{} rows, {} words{through}", count(rates.rows), count(rates.words.reference()));
    writeln!(out, "{}   {}   {told}", bold(&format!("WER {wer:.1} %")), bold(&format!("CER {cer:.1} %")))?;
    show_worst(&mut out, &mut rows)
}

/// The rows with the most errors, aligned.
pub fn show_worst(out: &mut impl Write, rows: &mut Vec<TranscribedRow>) -> Result<()> {
    rows.retain(|row| row.words.errors() > 0);
    rows.sort_by(|a, b| b.words.rate().total_cmp(&a.words.rate()));
    for row in rows.iter().take(WORST) {
        let rate = 100.0 * row.words.rate();
        writeln!(out, "{}", dim(&format!("{}: {rate:.0} %", row.source)))?;
        writeln!(out, "  {}", difference(&row.errors()))?;
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
    let mut words: Vec<String> = row.diff().into_iter().map(one).collect();
    // A model that repeats itself says hundreds.
    let more = words.len().saturating_sub(WORDS_SHOWN);
    if more > 0 {
        words.truncate(WORDS_SHOWN);
        words.push(format!("… and {more} more"));
    }
    words.join(" ")
}
