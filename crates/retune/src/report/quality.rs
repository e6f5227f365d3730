//! How good the answers are on held-out rows, before and after: a table of scores, one of each class, the confusion matrix.

use super::chart::{Chart, Line, Style};
use super::{ReportData, count, escape, number};
use crate::metrics::{ClassScores, Interval, Metric, Metrics};
use crate::tasks::classification::Problem;

/// The confusion matrices' counts are written into the cells up to this many classes.
const NUMBERED_MAX: usize = 24;
/// Rows of the table of classes.
const CLASSES_SHOWN: usize = 100;
/// Width and height of the largest matrix, without its names.
const SIDE: f64 = 420.0;

/// The chosen metric, else the one that people quote.
pub fn chosen(data: &ReportData) -> Option<Metric> {
    let known = data.metrics.as_ref()?.after.known();
    data.metric.or_else(|| known.first().copied())
}

/// A metric's value as people read it: shares in percent.
pub fn shown(metric: Metric, value: f64) -> String {
    match metric {
        _ if !value.is_finite() => "–".into(),
        Metric::Loss | Metric::Mse | Metric::Mae => number(value),
        Metric::Matthews | Metric::Pearson | Metric::Spearman | Metric::R2 => format!("{value:.3}"),
        _ => percent(value),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// "before → after" of the chosen metric, and its name.
pub fn headline(data: &ReportData) -> Option<(&'static str, String, String)> {
    let metrics = data.metrics.as_ref()?;
    let metric = chosen(data)?;
    let after = metrics.after.get(metric)?;
    let before = metrics.before.as_ref().and_then(|before| before.get(metric));
    let big = match before {
        // One sign serves both.
        Some(before) => {
            format!("{} → {}", shown(metric, before).trim_end_matches(" %"), shown(metric, after))
        }
        None => shown(metric, after),
    };
    let losses = (metrics.before.as_ref().and_then(|before| before.loss), metrics.after.loss);
    let small = match losses {
        (Some(before), Some(after)) => format!("loss {} → {}", number(before), number(after)),
        (None, Some(after)) => format!("loss {}", number(after)),
        _ => format!("{} rows", count(metrics.after.examples)),
    };
    Some((label(metric), big, small))
}

fn within(Interval { low, high }: Interval) -> String {
    format!("95 %: {:.1} to {:.1} %", 100.0 * low, 100.0 * high)
}

/// The metric's name in words.
pub fn label(metric: Metric) -> &'static str {
    match metric {
        Metric::Loss => "loss",
        Metric::Accuracy => "accuracy",
        Metric::F1 => "F1",
        Metric::Precision => "precision",
        Metric::Recall => "recall",
        Metric::MacroF1 => "macro F1",
        Metric::MicroF1 => "micro F1",
        Metric::WeightedF1 => "weighted F1",
        Metric::Matthews => "Matthews' correlation",
        Metric::Pearson => "Pearson's correlation",
        Metric::Spearman => "Spearman's correlation",
        Metric::Mse => "mean squared error",
        Metric::Mae => "mean absolute error",
        Metric::R2 => "R²",
        Metric::Map => "mAP@50-95",
        Metric::Map50 => "mAP@50",
        Metric::Wer => "word error rate",
        Metric::Cer => "character error rate",
    }
}

/// Name, before and after of every number that says something of its own.
pub fn rows(data: &ReportData) -> Vec<(String, String, String)> {
    let Some(metrics) = &data.metrics else { return Vec::new() };
    let of = |side: Option<&Metrics>, metric| match side.and_then(|side| side.get(metric)) {
        Some(value) => shown(metric, value),
        None => "–".into(),
    };
    (metrics.after.known().iter())
        .filter(|metric| metrics.after.get(**metric).is_some() && !is_repeated(**metric, &metrics.after))
        .map(|&metric| {
            let after = &metrics.after;
            let name = match (after.problem, metric, after.classes.as_slice()) {
                (Problem::SingleLabel, Metric::F1 | Metric::Precision | Metric::Recall, [_, second])
                    if after.detection.is_none() =>
                {
                    format!("{} of {}", label(metric), second.name)
                }
                _ => label(metric).to_string(),
            };
            (name, of(metrics.before.as_ref(), metric), of(Some(&metrics.after), metric))
        })
        .collect()
}

/// Of one class a row the micro average is the accuracy; elsewhere F1 is one of the averages.
fn is_repeated(metric: Metric, metrics: &Metrics) -> bool {
    if metrics.detection.is_some() {
        return false;
    }
    match (metrics.problem, metrics.classes.len(), metric) {
        (Problem::SingleLabel, 2, _) => metric == Metric::MicroF1,
        (Problem::SingleLabel, ..) => {
            matches!(metric, Metric::F1 | Metric::Precision | Metric::Recall | Metric::MicroF1)
        }
        (_, _, metric) => metric == Metric::F1,
    }
}

/// The whole section; empty without metrics.
pub fn section(data: &ReportData) -> String {
    let Some(metrics) = &data.metrics else { return String::new() };
    let after = &metrics.after;
    let mut text = format!(
        "<section>\n<h2>Quality</h2>\n<p class=\"note\">On {} held-out rows, {}after training.",
        count(after.examples),
        if metrics.before.is_some() { "before and " } else { "" }
    );
    if !after.transcribed.is_empty() {
        text += &format!(" {} of them were transcribed.", count(after.transcribed.len() as u64));
    }
    if let Some(interval) = after.accuracy_interval {
        text += &format!(" Accuracy after training, {}.", within(interval));
    }
    text += "</p>\n";
    text += &curve(data);
    text += "<div class=\"tables\">\n";
    text += &scores(data);
    text += "</div>\n";
    text += &class_table(metrics.before.as_ref(), after);
    text += &matrices(metrics.before.as_ref(), after);
    text + "</section>\n"
}

/// The chosen metric by step.
fn curve(data: &ReportData) -> String {
    let Some(metric) = chosen(data) else { return String::new() };
    let points: Vec<(f64, f64)> =
        data.evals.iter().filter_map(|point| Some((point.step as f64, point.metric?))).collect();
    if points.len() < 2 {
        return String::new();
    }
    let lines = vec![Line { name: "held out", points, style: Style::Dots }];
    let chart = Chart { height: 200.0, from_zero: false, lines }.svg();
    format!(
        "<figure class=\"wide\">\n<figcaption>{} by step</figcaption>\n{chart}</figure>\n",
        capital(label(metric))
    )
}

pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn scores(data: &ReportData) -> String {
    // A head that was drawn for the run has no before worth a column.
    let has_before = data.metrics.as_ref().is_some_and(|metrics| metrics.before.is_some());
    let before = |cell: &str| if has_before { format!("<td>{cell}</td>") } else { String::new() };
    let row = |(name, first, after): &(String, String, String)| {
        format!("<tr><th>{}</th>{}<td>{after}</td></tr>\n", escape(name), before(first))
    };
    let rows: String = rows(data).iter().map(row).collect();
    let head = format!("<tr class=\"head\"><th></th>{}<td>after</td></tr>\n", before("before"));
    format!("<table class=\"scores\">\n{head}{rows}</table>\n")
}

/// Precision, recall and F1 of each class after training, with a bar for F1 and a mark where it was before.
fn class_table(before: Option<&Metrics>, after: &Metrics) -> String {
    if after.classes.is_empty() {
        return String::new();
    }
    let f1_before = |name: &str| {
        let classes = before.map_or(&[][..], |before| &before.classes);
        classes.iter().find(|class| class.name == name).map(|class| class.scores.f1)
    };
    let row = |class: &ClassScores| {
        let scores = &class.scores;
        let (p, r, f1) = (percent(scores.precision), percent(scores.recall), percent(scores.f1));
        let bar = bar(scores.f1, f1_before(&class.name));
        let (name, support) = (escape(&class.name), count(class.support));
        format!(
            "<tr><th>{name}</th><td>{p}</td><td>{r}</td><td>{f1}</td><td>{bar}</td><td>{support}</td></tr>\n"
        )
    };
    let rows: String = after.classes.iter().take(CLASSES_SHOWN).map(row).collect();
    let hidden = after.classes.len().saturating_sub(CLASSES_SHOWN);
    let more =
        if hidden > 0 { format!("<p class=\"note\">… and {hidden} more.</p>\n") } else { String::new() };
    let mark = if before.is_some() { "F1 (dot: before)" } else { "" };
    format!(
        "<h3 class=\"above\">each class after training</h3>\n<table class=\"classes\">\n<tr class=\"head\"><th>class</th><td>precision</td><td>recall</td><td>F1</td><td>{mark}</td><td>rows</td></tr>\n{rows}</table>\n{more}"
    )
}

/// 0..=1 as a bar of 100 by 10, with a dot.
fn bar(share: f64, before: Option<f64>) -> String {
    let width = 100.0 * share.clamp(0.0, 1.0);
    let dot = before.map_or(String::new(), |before| {
        let (at, text) = (100.0 * before.clamp(0.0, 1.0), percent(before));
        format!(
            "<circle class=\"second\" cx=\"{at:.1}\" cy=\"5\" r=\"4\"><title>before: {text}</title></circle>"
        )
    });
    format!(
        "<svg class=\"bar\" viewBox=\"0 0 100 10\" role=\"img\"><rect class=\"track\" width=\"100\" height=\"10\" rx=\"3\"/><rect class=\"fill\" width=\"{width:.1}\" height=\"10\" rx=\"3\"/>{dot}</svg>"
    )
}

fn matrices(before: Option<&Metrics>, after: &Metrics) -> String {
    if after.confusion.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "<h3 class=\"above\">confusion</h3>\n<p class=\"note\">A row for each true class, a column for each predicted one. The stronger the colour, the larger the share of its row.</p>\n<div class=\"matrices\">\n",
    );
    let before = before.filter(|before| before.confusion_labels == after.confusion_labels);
    for (name, side) in [("before", before), ("after training", Some(after))] {
        if let Some(metrics) = side.filter(|side| !side.confusion.is_empty()) {
            let svg = matrix(&metrics.confusion_labels, &metrics.confusion);
            text += &format!("<figure>\n<figcaption>{name}</figcaption>\n{svg}</figure>\n");
        }
    }
    text + "</div>\n"
}

/// `counts[true][predicted]` as coloured squares, each with a tooltip.
fn matrix(names: &[String], counts: &[Vec<u64>]) -> String {
    let classes = counts.len().max(1);
    let cell = (SIDE / classes as f64).min(92.0);
    let named = cell >= 9.0;
    let longest = names.iter().map(|name| short(name).chars().count()).max().unwrap_or_default();
    let letters = if named { 16.0 + 7.0 * longest as f64 } else { 8.0 };
    // Names over the columns lie flat where they fit, else they stand.
    let flat = 7.0 * longest as f64 + 6.0 <= cell;
    let top = if flat && named { 26.0 } else { letters };
    let (width, height) = (letters + cell * classes as f64 + 2.0, top + cell * classes as f64 + 2.0);
    let mut svg = format!(
        "<svg class=\"matrix\" viewBox=\"0 0 {width:.0} {height:.0}\" style=\"max-width:{width:.0}px\" role=\"img\">\n"
    );
    for (i, name) in names.iter().enumerate().filter(|_| named) {
        let middle = cell * (i as f64 + 0.5);
        let (x, y) = (letters + middle, top + middle);
        let name = escape(&short(name));
        svg += &format!(
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            letters - 8.0,
            y + 4.0
        );
        svg += &match flat {
            true => format!(
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>\n",
                top - 9.0
            ),
            false => format!(
                "<text class=\"tick\" transform=\"translate({:.1} {:.1}) rotate(-90)\">{name}</text>\n",
                x + 4.0,
                top - 8.0
            ),
        };
    }
    for (t, row) in counts.iter().enumerate() {
        let total: u64 = row.iter().sum();
        for (p, &n) in row.iter().enumerate() {
            let share = n as f64 / total.max(1) as f64;
            let (x, y) = (letters + cell * p as f64, top + cell * t as f64);
            svg += &square(x, y, cell, share, t == p);
            if classes <= NUMBERED_MAX && (n > 0 || classes <= 8) {
                let class = if share > 0.55 { "on-dark" } else { "on-light" };
                let size = (cell * 0.32).clamp(8.0, 17.0);
                let (x, y) = (x + cell / 2.0, y + cell / 2.0 + size * 0.35);
                let n = count(n);
                svg += &format!(
                    "<text class=\"{class}\" font-size=\"{size:.1}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{n}</text>"
                );
            }
            if n > 0 {
                let [t, p] = [t, p].map(|i| names.get(i).map_or(String::new(), |name| escape(name)));
                svg += &format!("<title>{t} predicted as {p}: {} ({})</title>", count(n), percent(share));
            }
            svg += "</g>\n";
        }
    }
    svg + "</svg>\n"
}

/// Opens the cell's group; right ones in the main colour, wrong ones in the second.
fn square(x: f64, y: f64, cell: f64, share: f64, right: bool) -> String {
    let gap = if cell > 12.0 { 2.0 } else { 0.5 };
    let class = if right { "right" } else { "wrong" };
    let opacity = if share > 0.0 { 0.08 + 0.92 * share } else { 0.0 };
    let side = cell - gap;
    format!(
        "<g><rect class=\"track\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" height=\"{side:.1}\"/><rect class=\"{class}\" fill-opacity=\"{opacity:.2}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{side:.1}\" height=\"{side:.1}\"/>"
    )
}

/// A name that fits beside a matrix.
fn short(name: &str) -> String {
    const MAX: usize = 18;
    match name.chars().count() {
        0..=MAX => name.to_string(),
        _ => name.chars().take(MAX - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{labelled_sample, sample};
    use super::super::{html, model_card};
    use super::*;

    #[test]
    fn scores_classes_and_confusion_are_drawn() {
        let page = html(&labelled_sample());
        for part in [
            "<h2>Quality</h2>",
            "accuracy",
            "macro F1",
            "neutral",
            "positive predicted as negative",
            "Accuracy by step",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("class=\"matrix\"").count(), 2);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.contains("retune predict") && !page.contains("perplexity"));
        assert!(!html(&sample()).contains("Quality"));
        let card = model_card(&labelled_sample(), "");
        assert!(
            card.contains("pipeline_tag: text-classification")
                && card.contains("| accuracy | 34.0 % | 91.0 % |")
        );
    }

    #[test]
    fn odd_metrics_still_make_a_page() {
        let mut data = labelled_sample();
        let names: Vec<String> = (0..90).map(|i| format!("<b>class {i}")).collect();
        let truth: Vec<u32> = (0..900).map(|i| i % 90).collect();
        let guess: Vec<u32> = (0..900).map(|i| i * 7 % 90).collect();
        let metrics = data.metrics.as_mut().unwrap();
        metrics.before = None;
        metrics.after = Metrics::of_classes(&names, &truth, &guess).unwrap();
        let page = html(&data);
        assert!(!page.contains("<b>class") && !page.contains("NaN"));
        assert!(!page.contains("<td>before</td>") && page.contains("<td>after</td>"));
        data.metrics.as_mut().unwrap().after = Metrics::of_numbers(&[1.0, 1.0], &[1.0, 2.0]).unwrap();
        assert!(html(&data).contains("mean squared error"));
        data.metrics.as_mut().unwrap().after = Metrics::default();
        assert!(html(&data).contains("</html>"));
    }
}
