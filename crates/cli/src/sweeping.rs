//! A sweep on the screen: a table that grows by a row for each run, with the running one live below it on a terminal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use retune::metrics::Metric;
use retune::sweep::{Curve, Done, Hopeless, MedianRule, Record, State, Trial};
use retune::train::Event;

use crate::style::{count, printable};

/// Widest column of settings.
const SETTINGS_MAX: usize = 48;

/// Where the rows go.
#[derive(Clone)]
pub enum Table {
    /// Nowhere: machines get a line a run.
    Json,
    /// Rows above a live line, on stderr.
    Live { bar: ProgressBar, width: usize },
    /// Lines on stderr.
    Lines { width: usize },
}

impl Table {
    /// For these runs; prints the head.
    pub fn new(json: bool, trials: &[Trial], metric: &str) -> Table {
        let longest = trials.iter().map(|trial| settings(&trial.settings).chars().count()).max();
        let width = longest.unwrap_or(0).clamp(8, SETTINGS_MAX);
        let table = match (json, std::io::stderr().is_terminal()) {
            (true, _) => Table::Json,
            (false, true) => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
                bar.set_style(
                    ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
                bar.enable_steady_tick(Duration::from_millis(500));
                Table::Live { bar, width }
            }
            (false, false) => Table::Lines { width },
        };
        let metric = metric.chars().take(12).collect::<String>();
        table.print(&row(width, ["run", "settings", "trained", &metric, "time", ""]));
        table
    }

    /// A line that stays.
    pub fn print(&self, text: &str) {
        match self {
            Table::Json => {}
            Table::Live { bar, .. } => bar.println(text),
            Table::Lines { .. } => eprintln!("{text}"),
        }
    }

    /// A row that stays.
    pub fn print_done(&self, place: &str, done: &Done, record: &Record, kept: bool) {
        let Some(width) = self.width() else { return };
        let state = match (&done.note, kept) {
            (Some(note), false) => format!("{}: {}", done.state.name(), printable(note)),
            (_, true) => format!("{}, kept", done.state.name()),
            (None, false) => done.state.name().into(),
        };
        let value = done.value.map_or("–".into(), |value| record.shown(value));
        let trained = count(done.trainable);
        self.print(&row(
            width,
            [place, &settings(&done.settings), &trained, &value, &seconds(done.seconds), &state],
        ));
    }

    fn width(&self) -> Option<usize> {
        match self {
            Table::Json => None,
            Table::Live { width, .. } | Table::Lines { width } => Some(*width),
        }
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Table::Live { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}

/// As everywhere, with a digit more of short times: sweeps are often over small models.
pub fn seconds(time: f64) -> String {
    if time < 9.95 { format!("{time:.1} s") } else { crate::style::seconds(time) }
}

/// The columns of a row: place, settings, trained, metric, time, state.
pub fn row(width: usize, [place, settings, trained, value, time, state]: [&str; 6]) -> String {
    let short: String = settings.chars().take(width).collect();
    format!("{place:>7}  {short:<width$}  {trained:>12}  {value:>12}  {time:>10}  {state}").trim_end().into()
}

/// A run's settings in words.
pub fn settings(settings: &[(String, String)]) -> String {
    if settings.is_empty() {
        return "as the run file".into();
    }
    let parts: Vec<String> = settings.iter().map(|(key, value)| format!("{key} {value}")).collect();
    printable(&parts.join(", "))
}

/// One run as it goes on: its row, and whether it is worth going on with.
pub struct RunView {
    table: Table,
    /// `3/12`.
    place: String,
    settings: String,
    metric: Metric,
    /// Without one, no run is ended early.
    rule: Option<MedianRule>,
    finished: Vec<Curve>,
    metrics_file: PathBuf,
    began: Instant,
    trainable: u64,
    pub curve: Curve,
    pub step: u64,
    pub steps: u64,
    /// Spent in steps before the process that goes on now.
    pub seconds_before: f64,
    /// Why it is to be ended.
    pub hopeless: Option<Hopeless>,
}

impl RunView {
    pub fn new(
        table: &Table,
        place: String,
        trial: &Trial,
        record: &Record,
        early_stop: bool,
        metrics_file: &Path,
    ) -> RunView {
        RunView {
            table: table.clone(),
            place,
            settings: settings(&trial.settings),
            metric: record.metric,
            rule: early_stop.then(|| MedianRule::new(record.metric)),
            finished: record.finished().cloned().collect(),
            metrics_file: metrics_file.into(),
            began: Instant::now(),
            trainable: 0,
            curve: Curve::default(),
            step: 0,
            steps: 0,
            seconds_before: 0.0,
            hopeless: None,
        }
    }

    /// Takes an event in.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Started { step, steps, trainable_parameters, resumed_from, .. } => {
                (self.step, self.steps, self.trainable) = (*step, *steps, *trainable_parameters);
                if resumed_from.is_some() {
                    self.recall();
                }
                self.draw("starting");
            }
            Event::Step { step, eta_s, .. } => {
                self.step = *step;
                self.draw(&format!("step {step}/{}, {} left", self.steps, seconds(*eta_s)));
            }
            Event::Evaluating { done, examples, .. } => self.draw(&format!("evaluating {done}/{examples}")),
            Event::Eval { step, .. } if *step > 0 => {
                self.note(event);
                let rule = self.rule.as_ref();
                self.hopeless = rule.and_then(|rule| rule.judge(&self.curve, self.finished.iter()));
                if let (Table::Lines { .. }, Some((_, Some(value)))) = (&self.table, self.curve.points.last())
                {
                    let (name, steps) = (self.metric.name(), self.steps);
                    eprintln!("{:>7}  step {step}/{steps}: {name} {value:.4}", self.place);
                }
            }
            Event::Skipped { step, .. } => {
                self.warn(&format!("step {step} was skipped: its numbers are not finite"))
            }
            _ => {}
        }
    }

    pub fn warn(&self, text: &str) {
        self.table.print(&format!("{:>7}  warning: {}", self.place, printable(text)));
    }

    fn draw(&self, state: &str) {
        let Table::Live { bar, width } = &self.table else { return };
        let so_far = self.curve.best_by(1.0, self.metric).filter(|value| value.is_finite());
        let so_far = so_far.map_or("–".into(), |value| format!("{value:.4}"));
        let time = seconds(self.seconds_before + self.began.elapsed().as_secs_f64());
        bar.set_message(row(
            *width,
            [&self.place, &self.settings, &count(self.trainable), &so_far, &time, state],
        ));
    }

    fn note(&mut self, event: &Event) {
        let Event::Eval { step, loss, metrics, .. } = event else { return };
        let value = match self.metric {
            Metric::Loss => *loss,
            metric => metrics.get(metric.name()).copied().unwrap_or(f64::NAN),
        };
        self.curve.push(*step as f64 / self.steps.max(1) as f64, value);
    }

    /// What the run's log knows of the steps before.
    fn recall(&mut self) {
        let text = std::fs::read_to_string(&self.metrics_file).unwrap_or_default();
        for event in text.lines().filter_map(|line| serde_json::from_str::<Event>(line).ok()) {
            match &event {
                Event::Eval { step, .. } if *step > 0 && *step <= self.step => self.note(&event),
                Event::Step { tokens, tokens_per_s, .. } if *tokens_per_s > 0.0 => {
                    self.seconds_before += *tokens as f64 / tokens_per_s;
                }
                _ => {}
            }
        }
    }
}

/// Why a run was ended, as a note of its row.
pub fn why(hopeless: &Hopeless, record: &Record, others: usize) -> String {
    let value = if hopeless.value.is_finite() { record.shown(hopeless.value) } else { "not finite".into() };
    format!(
        "{value} after {:.0} % of the steps; the median of {others} finished runs was {} by then",
        100.0 * hopeless.share,
        record.shown(hopeless.median)
    )
}

/// Whether a state is worth a place among the results.
pub fn is_ended(state: State, early_stop: bool) -> bool {
    early_stop || state != State::Stopped
}
