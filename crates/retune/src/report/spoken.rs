//! The held-out clips that are understood worst after training: what was said, what was recognised instead, and how it was before.

use super::{ReportData, escape};
use crate::metrics::words::{Edit, TranscribedRow};

/// Clips that are shown.
const SHOWN: usize = 10;

/// The whole section; empty where nothing was transcribed, or everything is right.
pub fn section(data: &ReportData) -> String {
    let Some(metrics) = &data.metrics else { return String::new() };
    let mut worst: Vec<&TranscribedRow> =
        metrics.after.transcribed.iter().filter(|row| row.words.errors() > 0).collect();
    worst.sort_by(|a, b| b.words.rate().total_cmp(&a.words.rate()).then(a.source.cmp(&b.source)));
    if worst.is_empty() {
        return String::new();
    }
    let before = metrics.before.as_ref().map_or(&[][..], |before| &before.transcribed);
    let article = |row: &&TranscribedRow| {
        let old = before.iter().find(|old| old.source == row.source && old.reference == row.reference);
        let side = |name: &str, class: &str, row: &TranscribedRow| {
            format!(
                "<div{class}><h3>{name}: WER {} CER {}</h3><p>{}</p></div>\n",
                percent(row.words.rate()),
                percent(row.characters.rate()),
                difference(row)
            )
        };
        let old = old.map(|old| side("before", "", old)).unwrap_or_default();
        let new = side("after training", " class=\"after\"", row);
        let source = escape(&row.source);
        format!(
            "<article>\n<p class=\"question\">{source}</p>\n<div class=\"pair\">\n{old}{new}</div>\n</article>\n"
        )
    };
    let articles: String = worst.iter().take(SHOWN).map(article).collect();
    format!(
        "<section>\n<h2>The worst clips</h2>\n<p class=\"note\">{} of {} held-out clips that were transcribed have errors. Struck out is what was \
         said and not recognised, underlined what was recognised instead; case and punctuation were taken off.</p>\n{articles}</section>\n",
        metrics.after.transcribed.iter().filter(|row| row.words.errors() > 0).count(),
        metrics.after.transcribed.len()
    )
}

/// The aligned words of a row.
fn difference(row: &TranscribedRow) -> String {
    let word = |word: Option<&str>| escape(word.unwrap_or_default());
    let one = |(edit, said, heard): (Edit, Option<&str>, Option<&str>)| match edit {
        Edit::Hit => word(said),
        Edit::Deletion => format!("<del>{}</del>", word(said)),
        Edit::Insertion => format!("<ins>{}</ins>", word(heard)),
        Edit::Substitution => format!("<del>{}</del> <ins>{}</ins>", word(said), word(heard)),
    };
    row.errors().diff().into_iter().map(one).collect::<Vec<_>>().join(" ")
}

fn percent(rate: f64) -> String {
    format!("{:.0} %", 100.0 * rate)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::super::{BeforeAfter, html, model_card};
    use super::*;
    use crate::metrics::Metrics;
    use crate::metrics::words::{Normalizer, RowErrors};

    fn row(source: &str, said: &str, heard: &str) -> TranscribedRow {
        TranscribedRow::new(source.into(), &RowErrors::of(Normalizer::None, said, heard))
    }

    #[test]
    fn the_worst_clips_come_first_with_what_they_were_before() {
        let mut data = sample();
        data.transcribes = true;
        let before = vec![row("a.tsv:1", "one two", "nine ten"), row("a.tsv:2", "le chat", "the shah")];
        let after = vec![row("a.tsv:1", "one two", "one two"), row("a.tsv:2", "le chat", "le chat <noir>")];
        let scored = |rows: Vec<TranscribedRow>| Metrics::of_transcripts(rows, 2).with_loss(1.0);
        data.metrics = Some(BeforeAfter { before: Some(scored(before)), after: scored(after) });
        let page = html(&data);
        for part in [
            "The worst clips",
            "1 of 2 held-out clips",
            "a.tsv:2",
            "before: WER 100 %",
            "after training: WER 50 %",
            "le chat <ins>&lt;noir&gt;</ins>",
            "<del>chat</del> <ins>shah</ins>",
            "word error rate",
            "100.0 → 25.0 %",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("a.tsv:1"), "nothing is wrong there any more");
        let card = model_card(&data, "");
        assert!(
            card.contains("pipeline_tag: automatic-speech-recognition") && card.contains("retune transcribe")
        );
        assert!(card.contains("| word error rate | 100.0 % | 25.0 % |"), "{card}");
        assert!(!html(&sample()).contains("worst clips"));
    }
}
