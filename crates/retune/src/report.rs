//! `report.html`: one self-contained page about a finished run, without scripts, readable by daylight and at night.
//!
//! [`ReportData`] is plain data: the training command fills it, and its curves can be rebuilt from `metrics.jsonl`.

mod card;
pub(crate) mod chart;
pub(crate) mod quality;
mod retained;
pub(crate) mod scatter;
mod spoken;

use base64::Engine;
use serde::{Deserialize, Serialize};

use crate::metrics::{Metric, Metrics};
use crate::objective::Unit;
use crate::tasks::classification::Problem;
use crate::train::Event;

pub use card::model_card;
use chart::{Chart, Line, Style};
pub use retained::{OnOff, Retained};

/// Everything the page shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportData {
    /// What was adapted: the model's name, and where it lies.
    pub model: String,
    pub model_path: String,
    /// The method's name, such as `lora`.
    pub method: String,
    /// The folder with the adapter, or with the whole model.
    pub out: String,
    /// The method wrote a model of its own, not an adapter.
    pub whole_model: bool,
    /// The command line that made the run.
    pub command: String,
    /// The program's version.
    pub version: String,
    /// The day it ended, as `2026-11-22`; empty if unknown.
    pub date: String,
    /// Wall-clock time of the training.
    pub seconds: f64,
    /// Tokens gone through, over all epochs.
    pub tokens: u64,
    /// What those are.
    pub unit: Unit,
    pub trainable_parameters: u64,
    pub total_parameters: u64,
    /// Settings of the run and what is known of the data: rows of two columns.
    pub settings: Vec<(String, String)>,
    pub data: Vec<(String, String)>,
    pub memory: Memory,
    pub steps: Vec<StepPoint>,
    pub evals: Vec<EvalPoint>,
    pub answers: Vec<Answer>,
    /// Examples of a task of pictures, as one PNG.
    pub pictures: Option<Vec<u8>>,
    /// Scores on the held-out rows, of runs that have more than a loss.
    pub metrics: Option<BeforeAfter>,
    /// What was learned is to write down what is said.
    pub transcribes: bool,
    /// The head's outputs: classes, tags, or 1.
    pub outputs: usize,
    /// What [`EvalPoint::metric`] is; without it, the problem's usual one.
    pub metric: Option<Metric>,
    /// Scores on rows of an old task.
    pub retained: Option<Retained>,
}

/// The same rows, scored before and after training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BeforeAfter {
    /// `None` if a new head knew nothing yet.
    pub before: Option<Metrics>,
    pub after: Metrics,
}

/// Bytes, predicted by the plan and measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    pub peak_bytes: u64,
    pub predicted_bytes: u64,
    /// Moments of the optimiser that lay in a file.
    pub paged_bytes: u64,
    /// Seconds that the run waited for that file.
    pub paging_wait_s: f64,
    /// The plan's parts, such as ("base weights", 95 MB).
    pub parts: Vec<(String, u64)>,
}

/// One optimiser step, as a line of `metrics.jsonl` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepPoint {
    pub step: u64,
    pub loss: f64,
    pub lr: f64,
    pub grad_norm: f64,
    pub tokens_per_second: f64,
    pub peak_bytes: u64,
}

/// The held-out loss after `step` steps; step 0 is the base model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalPoint {
    pub step: u64,
    pub loss: f64,
    /// The value of [`ReportData::metric`] at that step.
    pub metric: Option<f64>,
}

/// One question, answered by the base model and by the adapted one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    pub question: String,
    pub before: String,
    pub after: String,
}

impl ReportData {
    /// Takes the curves (of [`ReportData::metric`] too) and the peak memory from the text of a `metrics.jsonl`; lines that
    /// aren't events are passed over.
    pub fn read_metrics(&mut self, text: &str) {
        for event in text.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok()) {
            match event {
                Event::Step { step, loss, lr, grad_norm, tokens_per_s, unit, peak_bytes, .. } => {
                    self.unit = unit;
                    let tokens_per_second = tokens_per_s;
                    self.steps.push(StepPoint { step, loss, lr, grad_norm, tokens_per_second, peak_bytes });
                    self.memory.peak_bytes = self.memory.peak_bytes.max(peak_bytes);
                }
                Event::Eval { step, loss, metrics, .. } => {
                    let metric = self.metric.and_then(|metric| metrics.get(metric.name()).copied());
                    self.evals.push(EvalPoint { step, loss, metric });
                }
                Event::Paged { file_bytes, .. } => self.memory.paged_bytes = file_bytes,
                Event::Finished { peak_bytes, paging_wait_s, .. } => {
                    self.memory.peak_bytes = self.memory.peak_bytes.max(peak_bytes);
                    self.memory.paging_wait_s = paging_wait_s.unwrap_or_default();
                }
                _ => {}
            }
        }
    }

    /// What was learned, if not to write on.
    fn problem(&self) -> Option<Problem> {
        self.metrics.as_ref().filter(|_| !self.transcribes).map(|metrics| metrics.after.problem)
    }

    /// What to type after `--model`.
    fn model_path(&self) -> &str {
        if self.model_path.is_empty() { &self.model } else { &self.model_path }
    }
}

/// The page as HTML text.
pub fn html(data: &ReportData) -> String {
    let mut page = page_head(&format!("{} on {}", data.method, data.model));
    page += &header(data);
    page += &headline(data);
    page += &quality::section(data);
    page += &curves(data);
    page += &retained::section(data);
    page += &spoken::section(data);
    page += &answers(data);
    page += &pictures(data);
    page += &tables(data);
    page += &how_to_use(data);
    page + PAGE_END
}

/// A page up to its first element.
pub(crate) fn page_head(title: &str) -> String {
    let mut page = String::new();
    page += "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    // Nothing outside this file may be loaded, whatever text found its way in.
    page += "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n";
    page + &format!("<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n", escape(title), CSS)
}

/// What closes a page.
pub(crate) const PAGE_END: &str = "</main>\n</body>\n</html>\n";

const CSS: &str = include_str!("report/style.css");

fn header(data: &ReportData) -> String {
    let when = if data.date.is_empty() { String::new() } else { format!("{} · ", escape(&data.date)) };
    format!(
        "<header>\n<p class=\"kicker\">Retune {} · {when}{}</p>\n<h1>{}</h1>\n<pre class=\"command\">{}</pre>\n</header>\n",
        escape(&data.version),
        escape(&data.out),
        escape(&format!("{} on {}", data.method, data.model)),
        escape(&data.command)
    )
}

/// With a capital.
fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Held-out pictures with what is true and what was said.
fn pictures(data: &ReportData) -> String {
    let Some(png) = &data.pictures else { return String::new() };
    let text = base64::engine::general_purpose::STANDARD.encode(png);
    let alt = "held-out pictures, each with what is true of it and what the model says";
    format!(
        "<section>\n<h2>Examples</h2>\n<p>Held-out pictures: what is true, and below it what the model says after training. Framed green where \
         it is right, red where it is wrong.</p>\n<img class=\"sheet\" alt=\"{alt}\" src=\"data:image/png;base64,{text}\">\n</section>\n"
    )
}

/// The five numbers that people look for first.
fn headline(data: &ReportData) -> String {
    let mut tiles = Vec::new();
    if let Some(tile) = quality::headline(data) {
        tiles.push(tile);
    } else if let (Some(first), Some(last)) = (data.evals.first(), data.evals.last()) {
        let small = format!("perplexity {} → {}", number(first.loss.exp()), number(last.loss.exp()));
        let big = format!("{} → {}", number(first.loss), number(last.loss));
        tiles.push(("held-out loss", big, small));
    } else if let (Some(first), Some(last)) = (data.steps.first(), data.steps.last()) {
        tiles.push((
            "training loss",
            format!("{} → {}", number(first.loss), number(last.loss)),
            String::new(),
        ));
    }
    let share = 100.0 * data.trainable_parameters as f64 / data.total_parameters.max(1) as f64;
    tiles.push((
        "trained",
        count(data.trainable_parameters),
        format!("{share:.2} % of {}", count(data.total_parameters)),
    ));
    let rate = data.tokens as f64 / data.seconds.max(1e-9);
    tiles.push(("time", duration(data.seconds), format!("{} {}/s", count(rate as u64), data.unit.name())));
    tiles.push((
        "peak memory",
        bytes(data.memory.peak_bytes),
        format!("{} predicted", bytes(data.memory.predicted_bytes)),
    ));
    draw_tiles(&tiles)
}

/// Name, number and note of each tile.
pub(crate) fn draw_tiles(tiles: &[(&str, String, String)]) -> String {
    let tiles: Vec<String> = tiles
        .iter()
        .map(|(name, big, small)| {
            format!("<div><dt>{name}</dt><dd>{}</dd><p>{}</p></div>\n", escape(big), escape(small))
        })
        .collect();
    format!("<dl class=\"tiles\">\n{}</dl>\n", tiles.concat())
}

fn curves(data: &ReportData) -> String {
    if data.steps.is_empty() {
        return String::new();
    }
    let series = |pick: fn(&StepPoint) -> f64| -> Vec<(f64, f64)> {
        data.steps.iter().map(|point| (point.step as f64, pick(point))).collect()
    };
    let loss = series(|point| point.loss);
    let held_out: Vec<(f64, f64)> = data.evals.iter().map(|point| (point.step as f64, point.loss)).collect();
    let mut lines = vec![Line { name: "", points: loss.clone(), style: Style::Faint }];
    lines.push(Line { name: "training", points: smoothed(&loss), style: Style::Main });
    if !held_out.is_empty() {
        lines.push(Line { name: "held out", points: held_out, style: Style::Dots });
    }
    let what = match data.problem() {
        None => "Cross-entropy in nats for each target token",
        Some(Problem::Regression) => "Mean squared error",
        Some(Problem::MultiLabel) => "Binary cross-entropy in nats for each label",
        Some(Problem::SingleLabel) => "Cross-entropy in nats for each row",
        Some(Problem::Tokens) => "Cross-entropy in nats for each tagged word",
    };
    let mut text = format!("<section>\n<h2>Loss</h2>\n<p class=\"note\">{what}, by step. ");
    text += "The faint line is each step, the strong one a moving average.</p>\n";
    text += &Chart { height: 300.0, from_zero: false, lines }.svg();
    text += "<div class=\"small-charts\">\n";
    type Pick = fn(&StepPoint) -> f64;
    let speed = format!("{} a second", capital(data.unit.name()));
    let small: [(&str, Pick); 3] = [
        ("Learning rate", |point| point.lr),
        ("Gradient norm", |point| point.grad_norm),
        (&speed, |point| point.tokens_per_second),
    ];
    for (name, pick) in small {
        let lines = vec![Line { name: "", points: series(pick), style: Style::Main }];
        let chart = Chart { height: 190.0, from_zero: true, lines }.svg_small();
        text += &format!("<figure>\n<figcaption>{name}</figcaption>\n{chart}</figure>\n");
    }
    text + "</div>\n</section>\n"
}

/// Exponential moving average over about a twentieth of the run, bias-corrected so that it starts at the first point.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).clamp(1.0, 50.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let finite = points.iter().filter(|(_, y)| y.is_finite());
    finite
        .map(|&(x, y)| {
            sum = keep * sum + (1.0 - keep) * y;
            weight = keep * weight + (1.0 - keep);
            (x, sum / weight)
        })
        .collect()
}

fn answers(data: &ReportData) -> String {
    if data.answers.is_empty() {
        return String::new();
    }
    let mut text = String::from("<section>\n<h2>Answers before and after</h2>\n");
    for Answer { question, before, after } in &data.answers {
        text += &format!(
            "<article>\n<p class=\"question\">{}</p>\n<div class=\"pair\">\n<div><h3>before</h3><p>{}</p></div>\n<div class=\"after\"><h3>after training</h3><p>{}</p></div>\n</div>\n</article>\n",
            escape(question),
            escape(before),
            escape(after)
        );
    }
    text + "</section>\n"
}

fn tables(data: &ReportData) -> String {
    let mut memory: Vec<(String, String)> =
        data.memory.parts.iter().map(|(name, size)| (name.clone(), bytes(*size))).collect();
    memory.push(("predicted peak".into(), bytes(data.memory.predicted_bytes)));
    memory.push(("measured peak".into(), bytes(data.memory.peak_bytes)));
    if data.memory.paged_bytes > 0 {
        memory.push(("moments in a file".into(), bytes(data.memory.paged_bytes)));
        memory.push(("waited for that file".into(), duration(data.memory.paging_wait_s)));
    }
    let mut about_data = data.data.clone();
    about_data.push((format!("{} gone through", data.unit.name()), count(data.tokens)));
    let tables = [("Settings", &data.settings), ("Data", &about_data), ("Memory", &memory)];
    let tables: Vec<String> = tables.iter().map(|(name, rows)| table(name, rows)).collect();
    format!("<section class=\"tables\">\n{}</section>\n", tables.concat())
}

fn table(name: &str, rows: &[(String, String)]) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(value)))
        .collect();
    format!("<div>\n<h2>{name}</h2>\n<table>\n{}</table>\n</div>\n", rows.concat())
}

fn how_to_use(data: &ReportData) -> String {
    let commands = escape(&card::commands(data));
    let what = if data.whole_model { "a whole model" } else { "a PEFT adapter" };
    let python = escape(&card::python_snippet(data));
    format!(
        "<section>\n<h2>Use it</h2>\n<pre>{commands}</pre>\n<p class=\"note\">The folder is {what}; in Python:</p>\n<pre>{python}</pre>\n</section>\n"
    )
}

/// Text as HTML text or attribute value. Everything from outside goes through here.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            // Control characters are not allowed in HTML.
            c if c.is_control() && c != '\n' && c != '\t' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// Three significant digits or so: 0.000123, 2.31, 17.4, 1,234.
pub(crate) fn number(x: f64) -> String {
    match x.abs() {
        _ if !x.is_finite() => "not finite".into(),
        a if a >= 1e15 => format!("{x:.2e}"),
        a if a >= 1000.0 => count(x as u64),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 0.1 => format!("{x:.2}"),
        a if a >= 0.001 => format!("{x:.4}"),
        0.0 => "0".into(),
        _ => format!("{x:.2e}"),
    }
}

/// Digits in groups of three.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

fn bytes(n: u64) -> String {
    match n {
        0..1_048_576 => format!("{} KiB", n / 1024),
        1_048_576..1_073_741_824 => format!("{:.0} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run as it might have been: falling noisy loss, cosine schedule.
    pub(super) fn sample() -> ReportData {
        let steps = (1..=210u64).map(|step| {
            let x = step as f64 / 210.0;
            let noise = ((step * 2_654_435_761) % 1000) as f64 / 1000.0 - 0.5;
            StepPoint {
                step,
                loss: 1.6 + 1.7 * (-4.0 * x).exp() + 0.35 * noise,
                lr: 2e-4 * (0.5 + 0.5 * (std::f64::consts::PI * x).cos()) * (step as f64 / 7.0).min(1.0),
                grad_norm: 0.8 + 1.5 * (-6.0 * x).exp() + 0.3 * noise,
                tokens_per_second: 900.0 + 120.0 * noise,
                peak_bytes: 1_200_000_000,
            }
        });
        let evals = [(0, 3.42), (70, 2.21), (140, 2.02), (210, 1.97)];
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        ReportData {
            model: "SmolLM2-135M-Instruct.Q4_1".into(),
            model_path: "SmolLM2-135M-Instruct.Q4_1.gguf".into(),
            method: "lora".into(),
            out: "out".into(),
            whole_model: false,
            command: "retune train --model SmolLM2-135M-Instruct.Q4_1.gguf --data train.jsonl --method lora --out out".into(),
            version: "0.1.0".into(),
            date: "2026-11-22".into(),
            seconds: 174.3,
            tokens: 92_310,
            trainable_parameters: 4_884_480,
            total_parameters: 134_515_008,
            settings: vec![pair("method", "lora"), pair("rank", "16"), pair("lora_alpha", "32"), pair("learning rate", "2e-4, cosine"), pair("batch", "8 rows"), pair("epochs", "3")],
            data: vec![pair("training rows", "556"), pair("held-out rows", "61"), pair("cut at max_length", "0")],
            memory: Memory {
                peak_bytes: 1_180_000_000,
                predicted_bytes: 1_250_000_000,
                parts: vec![("base weights".into(), 95 << 20), ("adapter, gradients, moments".into(), 75 << 20), ("activations".into(), 870 << 20)],
                ..Memory::default()
            },
            steps: steps.collect(),
            evals: evals.iter().map(|&(step, loss)| EvalPoint { step, loss, metric: None }).collect(),
            answers: vec![Answer {
                question: "Are you <b>sentient</b>?".into(),
                before: "I'm an AI language model, so I don't have consciousness or emotions in the way that humans do.".into(),
                after: "Sort of.".into(),
            }],
            ..ReportData::default()
        }
    }

    /// A run that learned to tell three classes.
    pub(super) fn labelled_sample() -> ReportData {
        let names = ["negative", "neutral", "positive"].map(String::from);
        let truth: Vec<u32> = (0..200).map(|i| i % 3).collect();
        let guess = |wrong: &dyn Fn(u32) -> bool| -> Vec<u32> {
            (0..200).map(|i| if wrong(i) { (i + 1 + i % 2) % 3 } else { i % 3 }).collect()
        };
        let scored = |wrong: &dyn Fn(u32) -> bool, loss: f64| {
            Metrics::of_classes(&names, &truth, &guess(wrong)).unwrap().with_loss(loss)
        };
        let evals = [(0, 1.12, 0.34), (70, 0.52, 0.82), (140, 0.35, 0.9), (210, 0.29, 0.91)];
        let eval = |&(step, loss, metric)| EvalPoint { step, loss, metric: Some(metric) };
        ReportData {
            model: "all-MiniLM-L6-v2".into(),
            model_path: "all-MiniLM-L6-v2".into(),
            command: "retune train --model all-MiniLM-L6-v2 --data train.jsonl --method lora --out out"
                .into(),
            evals: evals.iter().map(eval).collect(),
            answers: Vec::new(),
            outputs: 3,
            metrics: Some(BeforeAfter {
                before: Some(scored(&|i| i % 100 < 66, 1.12)),
                after: scored(&|i| i % 100 < 9, 0.29),
            }),
            ..sample()
        }
    }

    #[test]
    fn page_is_self_contained_and_escaped() {
        let mut data = sample();
        data.answers[0].after = "<script>alert(1)</script>\u{1b}[31m".into();
        data.model = "a\"onload='x".into();
        let page = html(&data);
        for bad in ["<script", "http://", "https://", "src=\"", "<b>sentient", "\u{1b}", "\"onload"] {
            assert!(!page.contains(bad), "{bad}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.contains("3.42 → 1.97"));
    }

    #[test]
    fn odd_runs_still_make_a_page() {
        assert!(html(&ReportData::default()).contains("</html>"));
        let mut data = sample();
        data.steps.truncate(1);
        data.steps[0].loss = f64::NAN;
        data.steps[0].grad_norm = f64::INFINITY;
        let page = html(&data);
        assert!(!page.contains("NaN") && !page.contains("inf\""), "no such coordinates");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(4_884_480), "4,884,480");
        assert_eq!(number(0.0002), "2.00e-4");
        assert_eq!(bytes(95 << 20), "95 MiB");
        assert_eq!(duration(174.3), "2 min 54 s");
    }

    /// `RETUNE_SAMPLE_REPORT=page.html cargo test -p retune sample_page` writes the page to look at; with
    /// `RETUNE_SAMPLE_LABELLED=1` that of a classification.
    #[test]
    fn sample_page() {
        if let Some(path) = std::env::var_os("RETUNE_SAMPLE_REPORT") {
            let data = if std::env::var_os("RETUNE_SAMPLE_LABELLED").is_some() {
                labelled_sample()
            } else {
                sample()
            };
            std::fs::write(path, html(&data)).unwrap();
        }
    }
}
