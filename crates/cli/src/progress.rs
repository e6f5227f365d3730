//! Shows a run as it goes on: a live bar on a terminal, plain lines elsewhere, JSON lines with `--json`.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use retune::models::streamed::Stats;
use retune::report::Retained;
use retune::train::Event;

use crate::sweeping::RunView;

use crate::style::{count, mebibytes, seconds};

/// Where and how progress is shown.
pub enum Progress {
    /// One JSON object a line, on stdout.
    Json,
    /// A bar on stderr; what is worth keeping goes above it.
    Bar(ProgressBar),
    /// Lines on stderr, at most one every few seconds.
    Lines { last: Option<Instant> },
    /// One run of several, in their table.
    OfSweep(Box<RunView>),
}

/// A speed: with a decimal where it is small.
fn rate(x: f64) -> String {
    if x < 10.0 { format!("{x:.1}") } else { count(x as u64) }
}

const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// JSON if asked for, else a bar on a terminal, else lines.
    pub fn new(json: bool) -> Progress {
        match (json, std::io::stderr().is_terminal()) {
            (true, _) => Progress::Json,
            (false, true) => Progress::Bar(bar()),
            (false, false) => Progress::Lines { last: None },
        }
    }

    /// Shows one event.
    ///
    /// # Errors
    /// If stdout is closed or full.
    pub fn show(&mut self, event: &Event) -> Result<()> {
        match self {
            Progress::Json if event.is_transient() => {}
            Progress::Json => {
                let mut out = stdout().lock();
                writeln!(out, "{}", serde_json::to_string(event)?)?;
                out.flush()?;
            }
            Progress::Bar(bar) => show_on_bar(bar, event),
            Progress::OfSweep(view) => view.show(event),
            Progress::Lines { last } => {
                let is_due = last.is_none_or(|last| last.elapsed() >= LINE_EVERY);
                let is_last = matches!(event, Event::Step { step, steps, .. } if step == steps);
                match event {
                    Event::Step { .. } if !is_due && !is_last => {}
                    Event::Step { .. } => {
                        *last = Some(Instant::now());
                        eprintln!("{}", step_line(event).unwrap_or_default());
                    }
                    _ => {
                        if let Some(line) = line(event) {
                            eprintln!("{line}");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells people something; nothing with `--json`.
    pub fn note(&mut self, text: &str) -> Result<()> {
        match self {
            Progress::Json | Progress::OfSweep(_) => {}
            Progress::Bar(bar) => bar.println(text),
            Progress::Lines { .. } => eprintln!("{text}"),
        }
        Ok(())
    }

    /// Shows a warning.
    ///
    /// # Errors
    /// If stdout is closed or full.
    pub fn warn(&mut self, text: &str) -> Result<()> {
        match self {
            Progress::Json => {
                writeln!(stdout(), "{}", serde_json::json!({"event": "warning", "message": text}))?
            }
            Progress::Bar(bar) => bar.println(format!("warning: {text}")),
            Progress::Lines { .. } => eprintln!("warning: {text}"),
            Progress::OfSweep(view) => view.warn(text),
        }
        Ok(())
    }

    /// Whether somebody who watches wants the run to end.
    pub fn wants_stop(&self) -> bool {
        matches!(self, Progress::OfSweep(view) if view.hopeless.is_some())
    }

    /// Tells machines what was kept of the old task; people find it in the closing lines.
    ///
    /// # Errors
    /// If stdout is closed or full.
    pub fn retained(&mut self, retained: &Retained) -> Result<()> {
        if matches!(self, Progress::Json) {
            let mut line = serde_json::to_value(retained)?;
            line["event"] = "retained".into();
            line["untouched"] = retained.is_untouched().into();
            writeln!(stdout(), "{line}")?;
        }
        Ok(())
    }

    /// Says what was read of weights that stayed in their file.
    ///
    /// # Errors
    /// If stdout is closed or full.
    pub fn streamed(&mut self, stats: &Stats) -> Result<()> {
        if matches!(self, Progress::Json) {
            let line = serde_json::json!({
                "event": "streamed", "resident_bytes": stats.resident_bytes, "total_bytes": stats.total_bytes,
                "reads": stats.reads, "read_bytes": stats.read_bytes, "waited_s": stats.waited.as_secs_f64(),
            });
            writeln!(stdout(), "{line}")?;
            return Ok(());
        }
        self.note(&format!("streamed weights: {stats}"))
    }

    /// Takes the bar away, so that results can be printed below.
    pub fn finish(&self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
    bar.set_style(style("{elapsed:>4}  {bar:30.cyan/dim} {pos}/{len}  {msg}"));
    bar
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━╸─")
}

fn show_on_bar(bar: &ProgressBar, event: &Event) {
    match event {
        Event::Step { step, steps, loss, tokens_per_s, unit, peak_bytes, eta_s, .. } => {
            bar.set_length(*steps);
            bar.set_position(*step);
            bar.set_message(format!(
                "loss {loss:.3}  {} {}/s  {} left  {}",
                rate(*tokens_per_s),
                unit.name(),
                seconds(*eta_s),
                mebibytes(*peak_bytes)
            ));
        }
        Event::Evaluating { done, examples, .. } => bar.set_message(format!("evaluating {done}/{examples}")),
        Event::Started { step, steps, .. } => {
            bar.set_length(*steps);
            bar.set_position(*step);
            bar.set_message("starting");
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        _ => {}
    }
    if let Some(line) = line(event) {
        bar.println(line);
    }
}

fn step_line(event: &Event) -> Option<String> {
    let Event::Step { step, steps, loss, lr, grad_norm, tokens_per_s, unit, peak_bytes, eta_s, .. } = event
    else {
        return None;
    };
    Some(format!(
        "step {step}/{steps}  loss {loss:.4}  lr {lr:.2e}  grad norm {grad_norm:.3}  {} {}/s  {} left  {}",
        rate(*tokens_per_s),
        unit.name(),
        seconds(*eta_s),
        mebibytes(*peak_bytes)
    ))
}

/// The few metrics that people quote.
pub fn measured(metrics: &std::collections::BTreeMap<String, f64>) -> String {
    const QUOTED: [&str; 9] = ["wer", "cer", "map50", "map", "accuracy", "f1", "matthews", "spearman", "mse"];
    let found = QUOTED.iter().filter_map(|name| Some((name, metrics.get(*name)?)));
    found.map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>().join(", ")
}

/// What is worth a line that stays.
fn line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Started { step, steps, examples, targets, trainable_parameters, resumed_from, .. } => {
            let from = match resumed_from {
                Some(path) => format!("going on after step {step} from {}", path.display()),
                None => "starting".into(),
            };
            // Of labels and pictures there is one a row: no tokens are learned.
            let tokens = Some(*targets as u64).filter(|targets| targets != examples);
            let tokens = tokens.map(|n| format!(", {} target tokens", count(n))).unwrap_or_default();
            let (rows, trained) = (count(*examples), count(*trainable_parameters));
            format!("{from}: {steps} steps, {rows} rows{tokens}, {trained} trained parameters")
        }
        Event::Paged { path, resident_bytes, file_bytes } => {
            format!(
                "optimiser: {} of moments lie in {} and are moved as they are needed; {} are in memory",
                mebibytes(*file_bytes),
                path.display(),
                mebibytes(*resident_bytes)
            )
        }
        Event::Eval { step, loss, perplexity, best, metrics } => {
            let best = if *best { "  (the best so far)" } else { "" };
            let measured = match measured(metrics) {
                text if text.is_empty() => format!("perplexity {perplexity:.2}"),
                text => text,
            };
            format!("step {step}: held-out loss {loss:.4}, {measured}{best}")
        }
        Event::StoppedEarly { step, steps, waited } => {
            format!(
                "stopped after step {step} of {steps}: the last {waited} evaluations were no better than the best"
            )
        }
        Event::Finished { restored: Some(step), .. } => {
            format!(
                "the weights are those of step {step}, the best evaluation (keep_last = true keeps the last ones)"
            )
        }
        Event::Saved { step, path, bytes } => {
            format!("step {step}: saved {} ({})", path.display(), mebibytes(*bytes))
        }
        Event::Skipped { step, loss, grad_norm, tensor, examples, in_a_row } => {
            let tensor = tensor.as_ref().map(|name| format!(", first in {name}")).unwrap_or_default();
            let rows = examples.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
            format!(
                "warning: step {step} was skipped, nothing was updated: loss {loss}, gradient norm {grad_norm}{tensor}; rows {rows}; {in_a_row} in a row"
            )
        }
        Event::Spike { step, what, value, z } => {
            format!("warning: step {step}: {what:?} of {value:.3} stands out of the last steps (z {z:.1})")
        }
        Event::CheckpointRejected { path, why } => format!("warning: {} is not used: {why}", path.display()),
        _ => return None,
    })
}
