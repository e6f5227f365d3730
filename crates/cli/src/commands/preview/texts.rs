//! Rows of text, labelled or not, and of speech: their tokens as text again.

use anyhow::{Result, bail};
use retune::models::ModelFiles;
use retune::run_file::RunFile;
use retune::tasks::classification::{Examples, Label, Labels};
use retune::tasks::masked_lm::Texts;
use retune::tasks::speech::{Request, SpeechTokens};
use retune::text::{Language, Piece, Tokenizer, pieces};
use retune_formats::records::Records;
use serde_json::{Value, json};

use super::{Shown, Summary};
use crate::loading::{dataset, language};
use crate::style::{self, count, seconds};
use crate::tasks::Read;

/// The first rows and what is told of all.
pub fn rows(run: &RunFile, read: Read, files: &ModelFiles, n: usize) -> Result<(Vec<Shown>, Summary)> {
    let language = language(files)?;
    match read {
        Read::CausalLm => causal(run, &language, n),
        Read::MaskedLm => masked(run, &language, n),
        Read::Classification { train, .. } => {
            let examples = Examples::of(&language.tokenizer, &train, run.max_length as usize)?;
            classified(&language, &examples, n)
        }
        Read::Speech => spoken(run, files, &language, n),
        Read::Pictures(_) | Read::Boxes(_) => bail!("pictures are no texts"),
    }
}

/// A row's tokens; `counts` and `more` come behind what is told of every text.
fn shown(
    tokenizer: &Tokenizer,
    source: String,
    (ids, targets): (&[u32], &[bool]),
    truncated: usize,
    more: Value,
) -> Result<Shown> {
    let pieces = pieces(tokenizer, ids, targets)?;
    let carry = targets.iter().filter(|target| **target).count();
    let mut counts = format!("{} tokens", ids.len());
    if carry > 0 {
        counts += &format!(", {carry} carry loss");
    }
    if truncated > 0 {
        counts += &format!(", {truncated} more were cut");
    }
    let told: Vec<Value> = pieces.iter().map(|p| json!({"text": p.text, "target": p.target})).collect();
    let mut json = json!({"tokens": ids.len(), "targets": carry, "truncated": truncated, "pieces": told});
    super::merge(&mut json, more);
    Ok(Shown { source, counts, lines: vec![marked(&pieces)], json })
}

/// The text, with what carries loss marked.
fn marked(pieces: &[Piece]) -> String {
    let one = |piece: &Piece| {
        let text = style::printable(&piece.text);
        if piece.target { style::target(&text) } else { text }
    };
    pieces.iter().map(one).collect()
}

fn causal(run: &RunFile, language: &Language, n: usize) -> Result<(Vec<Shown>, Summary)> {
    let data = dataset(language, &run.data, run.max_length as usize, run.train_on)?;
    let row = |e: &retune::tasks::causal_lm::Example| {
        shown(&language.tokenizer, e.source.to_string(), (&e.ids, &e.target), e.truncated, Value::Null)
    };
    let rows = data.examples.iter().take(n).map(row).collect::<Result<_>>()?;
    let report = &data.report;
    let json = json!({
        "rows": report.rows, "examples": report.examples, "tokens": report.tokens,
        "target_tokens": report.target_tokens, "truncated_rows": report.truncated_rows,
        "duplicates": report.duplicates, "dropped": report.dropped.len(), "warnings": report.warnings(),
    });
    Ok((rows, Summary { lines: vec![report.to_string()], json }))
}

/// What is guessed in the first epoch is marked.
fn masked(run: &RunFile, language: &Language, n: usize) -> Result<(Vec<Shown>, Summary)> {
    let records = Records::read_all(&run.data)?;
    let name = run.data.display().to_string();
    let data = Texts::build(&language.tokenizer, &name, &records, run.max_length as usize)?;
    let row = |e: &retune::tasks::masked_lm::Example| {
        let mut targets = vec![false; e.tokens.ids.len()];
        data.shown(e, run.seed, 0).1.into_iter().for_each(|(position, _)| targets[position] = true);
        let text = (&e.tokens.ids[..], &targets[..]);
        shown(&language.tokenizer, e.source.to_string(), text, e.tokens.truncated, Value::Null)
    };
    let rows = data.examples.iter().take(n).map(row).collect::<Result<_>>()?;
    let texts = data.examples.len();
    let line = format!(
        "{} texts, {} cut, {} too short and left out; which tokens are guessed is another choice in every epoch",
        count(texts as u64),
        count(data.truncated as u64),
        count(data.dropped as u64)
    );
    let json = json!({"rows": records.len(), "examples": texts, "truncated_rows": data.truncated, "dropped": data.dropped});
    Ok((rows, Summary { lines: vec![line], json }))
}

fn classified(language: &Language, data: &Examples, n: usize) -> Result<(Vec<Shown>, Summary)> {
    let row = |e: &retune::tasks::classification::Example| {
        let label = label(&e.label, &data.labels);
        let (ids, targets) = (&e.tokens.ids, vec![false; e.tokens.ids.len()]);
        let more = json!({"label": label});
        let text = (&ids[..], &targets[..]);
        let mut shown = shown(&language.tokenizer, e.source.to_string(), text, e.tokens.truncated, more)?;
        shown.lines.push(style::target(&style::printable(&label)));
        Ok(shown)
    };
    let rows = data.examples.iter().take(n).map(row).collect::<Result<_>>()?;
    let each: Vec<String> = data
        .labels
        .names
        .iter()
        .zip(&data.report.counts)
        .map(|(name, n)| format!("{name} {}", count(*n)))
        .collect();
    let examples = data.examples.len();
    let cut = count(data.truncated as u64);
    let mut line =
        format!("{} rows, {} tokens, {cut} cut", count(examples as u64), count(data.tokens as u64));
    if !each.is_empty() {
        line += &format!("; {}", each.join(", "));
    }
    let json = json!({
        "rows": data.report.rows, "examples": examples, "tokens": data.tokens, "truncated_rows": data.truncated,
        "duplicates": data.report.duplicates, "labels": data.labels.names, "counts": data.report.counts,
    });
    Ok((rows, Summary { lines: vec![line], json }))
}

/// What is to be told of a text.
fn label(label: &Label, labels: &Labels) -> String {
    let name = |class: &u32| labels.names.get(*class as usize).cloned().unwrap_or_default();
    match label {
        Label::Value(value) => value.to_string(),
        Label::Many(classes) if classes.is_empty() => "(none)".into(),
        Label::One(class) => name(class),
        Label::Many(classes) => classes.iter().map(name).collect::<Vec<_>>().join(", "),
        Label::Tags(classes) => classes.iter().map(name).collect::<Vec<_>>().join(" "),
    }
}

fn spoken(run: &RunFile, files: &ModelFiles, language: &Language, n: usize) -> Result<(Vec<Shown>, Summary)> {
    let data = crate::speech::clips(run)?;
    let tokens = SpeechTokens::of(files, &language.tokenizer)?;
    let row = |clip: &retune::tasks::speech::Clip| {
        let sound = clip.sound().map_err(|what| anyhow::anyhow!("{}: {what}", clip.source))?;
        let labels = clip.labels(&tokens, &language.tokenizer, Request::default(), sound.start);
        let labels = labels.map_err(|what| anyhow::anyhow!("{}: {what}", clip.source))?;
        let length = retune_media::sound::seconds(sound.samples.len());
        let more = json!({"audio": clip.audio.display().to_string(), "seconds": length});
        let text = (&labels.ids[..], &labels.target[..]);
        let mut shown = shown(&language.tokenizer, clip.source.to_string(), text, 0, more)?;
        shown.counts = format!("{length:.1} s of {}, {}", clip.audio.display(), shown.counts);
        Ok(shown)
    };
    let rows = data.clips.iter().take(n).map(row).collect::<Result<_>>()?;
    let report = &data.report;
    let mut lines =
        vec![format!("{} clips, {} of speech", count(data.clips.len() as u64), seconds(report.seconds))];
    lines.extend(crate::speech::left_out(report));
    let json = json!({
        "rows": report.rows, "examples": data.clips.len(), "seconds": report.seconds, "duplicates": report.duplicates,
        "too_long": report.too_long.len(), "languages": report.languages,
    });
    Ok((rows, Summary { lines, json }))
}
