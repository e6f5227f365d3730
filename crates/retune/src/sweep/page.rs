//! `sweep.html`: one self-contained page about a sweep, in the style of a run's report.

use super::{Done, Record, State};
use crate::metrics::Metric;
use crate::report::chart::{Chart, Line, Style};
use crate::report::quality::{capital, label, shown};
use crate::report::scatter::{Dot, Mark, Scale, Scatter};
use crate::report::{PAGE_END, count, draw_tiles, duration, escape, page_head};

/// What the page shows besides the runs.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The model's name.
    pub model: String,
    /// The folder of the sweep.
    pub out: String,
    pub command: String,
    pub version: String,
    /// As `2026-11-22`.
    pub date: String,
    /// How to use the best run.
    pub use_best: String,
    /// Runs that were planned.
    pub planned: usize,
}

/// The page as HTML text.
pub fn html(page: &Page, record: &Record) -> String {
    let ranked = record.ranked();
    let title = format!("Sweep over {} on {}", keys(&ranked).join(", "), page.model);
    let mut html = page_head(&title);
    let when = if page.date.is_empty() { String::new() } else { format!("{} · ", escape(&page.date)) };
    html += &format!(
        "<header>\n<p class=\"kicker\">Retune {} · {when}{}</p>\n<h1>{}</h1>\n<pre class=\"command\">{}</pre>\n</header>\n",
        escape(&page.version),
        escape(&page.out),
        escape(&title),
        escape(&page.command)
    );
    html += &tiles(page, record);
    html += &pictures(record, &ranked);
    html += &curves(record, &ranked);
    html += &table(record, &ranked);
    if !page.use_best.is_empty() {
        html +=
            &format!("<section>\n<h2>Use the best</h2>\n<pre>{}</pre>\n</section>\n", escape(&page.use_best));
    }
    html + PAGE_END
}

/// The settings that were swept, in order of appearance.
fn keys<'a>(runs: &[&'a Done]) -> Vec<&'a str> {
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in runs.iter().flat_map(|run| &run.settings) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    keys.sort_by_key(|key| *key != "method");
    keys
}

/// A run's settings in words.
fn settings(run: &Done) -> String {
    let parts: Vec<String> = run.settings.iter().map(|(key, value)| format!("{key} {value}")).collect();
    if parts.is_empty() { run.name.clone() } else { parts.join(", ") }
}

fn tiles(page: &Page, record: &Record) -> String {
    let mut tiles = Vec::new();
    if let Some((best, value)) = record.best().and_then(|best| Some((best, best.value?))) {
        tiles.push((label(record.metric), record.shown(value), settings(best)));
        let share = 100.0 * best.trainable as f64 / best.total.max(1) as f64;
        tiles.push((
            "trained by the best",
            count(best.trainable),
            format!("{share:.2} % of {}", count(best.total)),
        ));
    }
    let of = |state| record.runs.iter().filter(|run| run.state == state).count();
    let parts =
        [State::Finished, State::Stopped, State::Diverged, State::Failed].map(|state| (state, of(state)));
    let parts: Vec<String> =
        parts.iter().filter(|(_, n)| *n > 0).map(|(state, n)| format!("{n} {}", state.name())).collect();
    tiles.push(("runs", format!("{} of {}", record.runs.len(), page.planned), parts.join(", ")));
    let seconds: f64 = record.runs.iter().map(|run| run.seconds).sum();
    tiles.push(("time", duration(seconds), "of training, all runs".into()));
    draw_tiles(&tiles)
}

fn pictures(record: &Record, ranked: &[&Done]) -> String {
    let what = capital(label(record.metric));
    let better = if record.metric.higher_is_better() { "Higher" } else { "Lower" };
    let charts = [
        (
            "trained parameters (powers of ten)",
            Scale::Log,
            parameters as fn(&Done) -> f64,
            short as fn(f64) -> String,
        ),
        ("time", Scale::Linear, |run: &Done| run.seconds, time as fn(f64) -> String),
    ];
    let figures: Vec<String> = charts
        .into_iter()
        .map(|(name, scale, x, label)| {
            let dots = dots(record, ranked, x);
            let svg = Scatter { scale, label, dots }.svg();
            format!("<figure>\n<figcaption>{what} against {name}</figcaption>\n{svg}</figure>\n")
        })
        .collect();
    format!(
        "<section>\n<h2>What it costs, what it brings</h2>\n<p class=\"note\">One dot a run, with its number in the table below; \
         the large one is the best; hollow ones, which have none, were ended early. {better} is better. Point at a dot to see its settings.</p>\n\
         <div class=\"two-charts\">\n{}</div>\n</section>\n",
        figures.concat()
    )
}

fn parameters(run: &Done) -> f64 {
    run.trainable as f64
}

fn dots(record: &Record, ranked: &[&Done], x: fn(&Done) -> f64) -> Vec<Dot> {
    let best = record.best().map(|best| best.name.as_str());
    let numbered = ranked.iter().enumerate();
    numbered
        .filter_map(|(i, run)| {
            let value = run.value?;
            let mark = match run.state {
                _ if best == Some(run.name.as_str()) => Mark::Best,
                State::Finished => Mark::Plain,
                _ => Mark::Hollow,
            };
            let title = format!(
                "{}. {}: {} {}, {} trained parameters, {}{}",
                i + 1,
                settings(run),
                label(record.metric),
                record.shown(value),
                count(run.trainable),
                duration(run.seconds),
                if mark == Mark::Hollow { format!(", {}", run.state.name()) } else { String::new() }
            );
            Some(Dot { x: x(run), y: value, number: i + 1, title, mark })
        })
        .collect()
}

/// `12 k`, `3.4 M`.
fn short(n: f64) -> String {
    let (value, unit) = match n {
        n if n >= 1e9 => (n / 1e9, " G"),
        n if n >= 1e6 => (n / 1e6, " M"),
        n if n >= 1e3 => (n / 1e3, " k"),
        n => (n, ""),
    };
    let digits = usize::from(value < 10.0 && (value - value.round()).abs() > 0.01);
    format!("{value:.digits$}{unit}")
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 120.0 => format!("{:.1} min", s / 60.0).replace(".0 ", " "),
        s if s >= 10.0 || s == 0.0 => format!("{s:.0} s"),
        s => format!("{s:.1} s"),
    }
}

/// The metric of all runs by the share of their steps; the best strong.
fn curves(record: &Record, ranked: &[&Done]) -> String {
    let best = record.best().map(|best| best.name.as_str());
    let points = |run: &Done| -> Vec<(f64, f64)> {
        run.curve.points.iter().filter_map(|(share, value)| Some((100.0 * share, (*value)?))).collect()
    };
    let mut lines: Vec<Line> = Vec::new();
    for run in ranked.iter().rev().filter(|run| best != Some(run.name.as_str())) {
        lines.push(Line { name: "", points: points(run), style: Style::Faint });
    }
    for run in ranked.iter().filter(|run| best == Some(run.name.as_str())) {
        lines.push(Line { name: "the best", points: points(run), style: Style::Dots });
    }
    if !lines.iter().any(|line| line.points.len() > 1) {
        return String::new();
    }
    let what = capital(label(record.metric));
    format!(
        "<section>\n<h2>On the way</h2>\n<p class=\"note\">{what} on the held-out rows by the percentage of steps done, a faint \
         line for each other run.</p>\n{}</section>\n",
        Chart { height: 260.0, from_zero: false, lines }.svg()
    )
}

fn table(record: &Record, ranked: &[&Done]) -> String {
    let keys = keys(ranked);
    let best = record.best().map(|best| best.name.as_str());
    let retained = ranked.iter().any(|run| run.retained.is_some());
    let mut head: Vec<String> = keys.iter().map(|key| format!("<td>{}</td>", escape(key))).collect();
    head.push(format!("<td class=\"n\">{}</td>", label(record.metric)));
    if retained {
        head.push("<td class=\"n\">old task</td>".into());
    }
    let rows: Vec<String> = ranked
        .iter()
        .enumerate()
        .map(|(i, run)| {
            let of = |key: &str| run.settings.iter().find(|(k, _)| k == key).map_or("–", |(_, value)| value);
            let mut cells: Vec<String> = keys.iter().map(|key| format!("<td>{}</td>", escape(of(key)))).collect();
            let value = run.value.map_or("–".into(), |value| record.shown(value));
            cells.push(format!("<td class=\"n\">{value}</td>"));
            if retained {
                let told = run.retained.map_or("–".into(), |(from, to)| format!("{} → {}", three(from), three(to)));
                cells.push(format!("<td class=\"n\">{told}</td>"));
            }
            let state = match &run.note {
                Some(note) => format!("<span title=\"{}\">{}</span>", escape(note), run.state.name()),
                None => run.state.name().into(),
            };
            let class = if best == Some(run.name.as_str()) { " class=\"best\"" } else { "" };
            format!(
                "<tr{class}><td>{}</td>{}<td class=\"n\">{}</td><td class=\"n\">{}</td><td>{state}</td></tr>\n",
                i + 1,
                cells.concat(),
                count(run.trainable),
                duration(run.seconds)
            )
        })
        .collect();
    format!(
        "<section>\n<h2>All runs</h2>\n<table class=\"runs\">\n<tr class=\"head\"><td></td>{}<td class=\"n\">trained</td><td \
         class=\"n\">time</td><td></td></tr>\n{}</table>\n</section>\n",
        head.concat(),
        rows.concat()
    )
}

fn three(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "–".into() }
}

/// The metric's name in words, for tables elsewhere.
impl Record {
    pub fn metric_label(&self) -> &'static str {
        label(self.metric)
    }

    /// A value of the metric as people read it.
    pub fn shown(&self, value: f64) -> String {
        match self.metric {
            Metric::Loss => format!("{value:.4}"),
            metric => shown(metric, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{done, record};
    use super::*;

    #[test]
    fn the_page_shows_every_run_and_marks_the_best() {
        let page = Page {
            model: "tiny <m>".into(),
            planned: 5,
            use_best: "retune generate".into(),
            ..Page::default()
        };
        let html = html(&page, &record());
        assert_eq!(html.matches("<tr").count(), 6);
        assert_eq!(html.matches("class=\"best\"").count(), 1);
        // Two pictures with the four runs that have a metric; the best's curve.
        assert_eq!(html.matches("<circle").count(), 2 * 4 + 2);
        assert_eq!(html.matches("circle class=\"second\"").count(), 2 + 2);
        assert!(!html.contains("NaN") && !html.contains("<m>") && html.contains("5 of 5"), "{html}");
    }

    #[test]
    fn odd_sweeps_are_drawn() {
        let page = Page::default();
        let mut record = Record { runs: vec![], ..record() };
        assert!(!html(&page, &record).contains("NaN"));
        record.put(done("x\"><script>", State::Failed, f64::NAN, 0));
        record.put(done("one", State::Finished, 3.0, 7));
        let html = html(&page, &record);
        assert!(!html.contains("NaN") && !html.contains("<script>"), "{html}");
    }

    #[test]
    fn numbers_of_axes() {
        assert_eq!([7.0, 1000.0, 3400.0, 20_000.0, 2e6].map(short), ["7", "1 k", "3.4 k", "20 k", "2 M"]);
        assert_eq!([0.0, 0.5, 30.0, 180.0, 9000.0].map(time), ["0 s", "0.5 s", "30 s", "3 min", "2.5 h"]);
    }
}
