//! `retune sweep`: many runs over a grid of settings, on a model that is loaded once; the hopeless are ended early.

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use retune::models::Snapshot;
use retune::report::ReportData;
use retune::run_file::RunFile;
use retune::sweep::{Axis, Done, Grid, Page, Record, SWEEP_FILE, State, Trial, html};
use retune::train::{Outcome, OutcomeEnd, Start};
use retune_formats::atomic;

use super::train::use_words;
use crate::exit::{BAD_INPUT, Ended, NO_MEMORY, USAGE, UsageError, code_of, message};
use crate::loading::set_threads;
use crate::progress::Progress;
use crate::room;
use crate::run_flags::RunFlags;
use crate::signals::Signals;
use crate::style::{bold, count};
use crate::sweeping::{RunView, Table, is_ended, row, seconds, settings, why};
use crate::training::{Base, METRICS, Prepared, command_line, program};

const PAGE: &str = "sweep.html";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune sweep run.toml --over rank=4,8,16 --over lr=1e-4,1e-3 --out sweep
  retune sweep run.toml --over method=lora,bitfit,partial --over rank=4,16 --over last_blocks=1,2
  retune sweep run.toml --over rank=2,4,8,16,32 --over lr=1e-4,3e-4,1e-3 --sample 6 --seed 7
  retune sweep run.toml --over 'target_modules=q_proj,v_proj;all-linear'     ; between values that hold commas
  retune sweep run.toml --over rank=4,8 --list                               show the runs, train nothing
  retune sweep run.toml --over rank=4,8,16,32 --resume                       go on, or add to a sweep

A setting of one method is varied in that method's runs alone: rank x last_blocks are LoRAs and partial fine-tunings.
All runs have the same seed and held-out rows (--eval-data, --eval-share, or the share of labelled rows). A run is ended
early if its metric is worse than the median of the finished runs' at the same share of their steps (not before two
finished runs and a third of its own).

The folder gets sweep.json, sweep.html (metric against trained parameters and time) and a folder for each run, as
`retune train` writes it.")]
pub struct Args {
    #[command(flatten)]
    run: RunFlags,

    /// A setting and its values, once for each setting: the grid of all combinations is run
    #[arg(long, value_name = "KEY=A,B,...", required = true, allow_hyphen_values = true)]
    over: Vec<String>,

    /// Run only so many combinations, drawn by the seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sample: Option<u32>,

    /// Let every run come to its end
    #[arg(long)]
    no_early_stop: bool,

    /// Go on with the sweep in the output folder: runs that ended are not made again
    #[arg(long)]
    resume: bool,

    /// Show the runs and train nothing
    #[arg(long)]
    list: bool,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let base = args.run.load()?;
    let axes = Axis::parse_all(&args.over, &base.method)?;
    let trials = Grid::new(&base, axes)?.trials(args.sample.map(|n| n as usize), base.seed)?;
    if args.list {
        return list(&trials, json);
    }
    let earlier = earlier(&base, args.resume)?;
    set_threads(base.threads)?;
    let signals = Signals::catch()?;
    let mut sweep = Sweep { args, json, base, trials, signals, bench: Bench::default() };
    let first = sweep.first(earlier.as_ref())?;
    let record = match earlier {
        Some(record) => record,
        None => Record::new(first.run.metric.unwrap_or_default(), &sweep.base),
    };
    sweep.bench.give_back(first);
    sweep.run(record)
}

/// The runs, one a line.
fn list(trials: &[Trial], json: bool) -> Result<()> {
    let mut out = stdout().lock();
    for trial in trials {
        match json {
            true => {
                let settings: serde_json::Map<_, _> =
                    trial.settings.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
                let out_folder = &trial.run.out;
                writeln!(
                    out,
                    "{}",
                    serde_json::json!({"name": trial.name, "method": trial.run.method, "settings": settings, "out": out_folder})
                )?;
            }
            false => writeln!(out, "{}", trial.name)?,
        }
    }
    Ok(())
}

/// What an interrupted sweep left, if it is to go on.
fn earlier(base: &RunFile, resume: bool) -> Result<Option<Record>> {
    let out = base.out.display();
    let Some(record) = Record::read(&base.out)? else { return Ok(None) };
    if !resume {
        let what =
            format!("{out} holds a sweep ({SWEEP_FILE}): go on with --resume, or choose another --out");
        return Err(UsageError(what).into());
    }
    let differences = record.differences(base);
    if !differences.is_empty() {
        let what = format!(
            "the sweep in {out} was started with other settings:\n  {}\ngive the old ones, or choose another --out",
            differences.join("\n  ")
        );
        return Err(UsageError(what).into());
    }
    Ok(Some(record))
}

/// The loaded base, between two runs.
#[derive(Default)]
struct Bench {
    base: Option<(RunFile, Base, Snapshot)>,
    /// What the run that is out was loaded for.
    out: Option<(RunFile, Snapshot)>,
}

/// The settings that decide what is loaded.
fn loaded_by(run: &RunFile) -> RunFile {
    let run = run.clone();
    RunFile {
        model: run.model,
        data: run.data,
        eval_data: run.eval_data,
        storage: run.storage,
        quantization: run.quantization,
        task: run.task,
        max_length: run.max_length,
        train_on: run.train_on,
        eval_share: run.eval_share,
        labels: run.labels,
        pooling: run.pooling,
        class_weights: run.class_weights,
        keep_head: run.keep_head,
        seed: run.seed,
        ..RunFile::default()
    }
}

impl Bench {
    /// Puts a run's method on the base; loads it first if it isn't there, or another is.
    fn prepare(&mut self, run: &RunFile) -> Result<Prepared> {
        let (run, _) = room::with_masters(run.clone())?;
        let key = loaded_by(&run);
        let (base, snapshot) = match self.base.take() {
            Some((known, base, snapshot)) if known == key => (base, snapshot),
            _ => {
                let base = Base::load(&run)?;
                let snapshot = base.snapshot();
                (base, snapshot)
            }
        };
        let prepared = Prepared::on(base, run)?.keeping_base();
        self.out = Some((key, snapshot));
        Ok(prepared)
    }

    fn give_back(&mut self, prepared: Prepared) {
        if let Some((key, snapshot)) = self.out.take() {
            let base = prepared.into_base(&snapshot);
            self.base = Some((key, base, snapshot));
        }
    }
}

struct Sweep<'a> {
    args: &'a Args,
    json: bool,
    base: RunFile,
    trials: Vec<Trial>,
    signals: Signals,
    bench: Bench,
}

impl Sweep<'_> {
    /// The first run that can be prepared: it says by what runs are compared.
    fn first(&mut self, earlier: Option<&Record>) -> Result<Prepared> {
        let mut failure = None;
        for trial in &self.trials {
            match self.bench.prepare(&trial.run) {
                Ok(prepared) => {
                    if prepared.data.eval(&prepared.model.net, None).is_none() {
                        let what = "a sweep compares runs on rows that they were not trained on, and there are none: give \
                                    --eval-data FILE or --eval-share 0.1";
                        return Err(UsageError(what.into()).into());
                    }
                    let metric = prepared.run.metric.unwrap_or_default();
                    if let Some(known) = earlier.map(|record| record.metric).filter(|known| *known != metric)
                    {
                        let what =
                            format!("the sweep was started with metric {known}, and goes on with {metric}");
                        return Err(UsageError(what).into());
                    }
                    return Ok(prepared);
                }
                Err(error) if can_go_on_after(&error) => failure = failure.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| UsageError("there is nothing to run".into()).into()))
    }

    fn run(mut self, mut record: Record) -> Result<()> {
        let table = Table::new(self.json, &self.trials, record.metric_label());
        let trials = std::mem::take(&mut self.trials);
        let mut failure = None;
        for (i, trial) in trials.iter().enumerate() {
            let place = format!("{}/{}", i + 1, trials.len());
            let kept =
                record.find(trial).filter(|done| is_ended(done.state, !self.args.no_early_stop)).cloned();
            let is_kept = kept.is_some();
            let done = match kept {
                Some(done) => done,
                None => match self.one(trial, &place, &record, &table) {
                    Ok(Some(done)) => done,
                    Ok(None) => return self.interrupted(&table, &record, trials.len()),
                    Err(error) if can_go_on_after(&error) => {
                        let done = failed(trial, message(&error));
                        failure = failure.or(Some(error));
                        done
                    }
                    Err(error) => {
                        table.finish();
                        return Err(error);
                    }
                },
            };
            table.print_done(&place, &done, &record, is_kept);
            if self.json {
                self.print_json(&done, trial)?;
            }
            record.put(done);
            self.write(&record, trials.len())?;
        }
        table.finish();
        self.write(&record, trials.len())?;
        match (record.best(), failure) {
            (None, Some(error)) => Err(error.context("no run came to its end")),
            _ if self.json => self.print_json_end(&record),
            _ => self.print_end(&record),
        }
    }

    /// Makes one run; `None` if the program was asked to end.
    fn one(&mut self, trial: &Trial, place: &str, record: &Record, table: &Table) -> Result<Option<Done>> {
        let mut prepared = self.bench.prepare(&trial.run)?;
        let file = trial.run.out.join(METRICS);
        let early_stop = !self.args.no_early_stop;
        let view = RunView::new(table, place.into(), trial, record, early_stop, &file);
        let mut progress = Progress::OfSweep(Box::new(view));
        let start = if self.args.resume { Start::Resume } else { Start::New };
        let ended = prepared.train_in_place(start, &command_line(), &mut progress, &self.signals);
        let Progress::OfSweep(view) = progress else { return Ok(None) };
        let (outcome, report) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                self.bench.give_back(prepared);
                return Err(error);
            }
        };
        let done = match (&outcome.end, self.signals.exit_code()) {
            (OutcomeEnd::Interrupted, Some(_)) => None,
            _ => Some(done_of(trial, &prepared, &view, &outcome, report.as_ref(), record)),
        };
        self.bench.give_back(prepared);
        Ok(done)
    }

    fn write(&self, record: &Record, planned: usize) -> Result<()> {
        let out = &self.base.out;
        std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        record.write(out)?;
        let page = Page {
            model: self.base.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            out: out.display().to_string(),
            command: command_line(),
            version: env!("CARGO_PKG_VERSION").into(),
            date: crate::style::today(),
            use_best: use_best(record).map(|words| format!("retune {words}")).unwrap_or_default(),
            planned,
        };
        Ok(atomic::write_bytes(&out.join(PAGE), html(&page, record).as_bytes())?)
    }

    fn interrupted(&self, table: &Table, record: &Record, planned: usize) -> Result<()> {
        table.finish();
        self.write(record, planned)?;
        let again = match self.args.resume {
            true => command_line(),
            false => format!("{} --resume", command_line()),
        };
        let again = again.trim_start_matches("retune").trim_start();
        let ended = record.runs.len();
        let what = format!(
            "stopped after {ended} of {planned} runs, all saved; go on with\n  {} {again}",
            program()
        );
        Err(Ended::new(self.signals.exit_code().unwrap_or(130), what).into())
    }

    fn print_json(&self, done: &Done, trial: &Trial) -> Result<()> {
        let mut line = serde_json::to_value(done)?;
        line["event"] = "run".into();
        line["out"] = trial.run.out.display().to_string().into();
        let mut out = stdout().lock();
        writeln!(out, "{line}")?;
        Ok(out.flush()?)
    }

    fn print_json_end(&self, record: &Record) -> Result<()> {
        let best = record.best();
        let folder = best.map(|best| self.base.out.join(&best.name).display().to_string());
        let line = serde_json::json!({
            "event": "swept", "metric": record.metric, "runs": record.runs.len(), "best": best.map(|best| &best.name),
            "value": best.and_then(|best| best.value), "out": folder, "command": use_best(record),
            "page": self.base.out.join(PAGE).display().to_string(),
        });
        Ok(writeln!(stdout(), "{line}")?)
    }

    /// All runs by their metric, the best and how to use it.
    fn print_end(&self, record: &Record) -> Result<()> {
        let mut out = stdout().lock();
        let ranked = record.ranked();
        let width =
            ranked.iter().map(|run| settings(&run.settings).chars().count()).max().unwrap_or(8).max(8);
        writeln!(out, "\n{}", row(width, ["", "settings", "trained", record.metric_label(), "time", ""]))?;
        for (i, run) in ranked.iter().enumerate() {
            let value = run.value.map_or("–".into(), |value| record.shown(value));
            let number = (i + 1).to_string();
            let cells = [
                &number,
                &settings(&run.settings),
                &count(run.trainable),
                &value,
                &seconds(run.seconds),
                run.state.name(),
            ];
            let line = row(width, cells);
            let is_best = record.best().is_some_and(|best| best.name == run.name);
            writeln!(out, "{}", if is_best { bold(&line) } else { line })?;
        }
        let Some((best, value)) = record.best().and_then(|best| Some((best, best.value?))) else {
            return Ok(writeln!(out, "\nno run came to its end with a finite {}", record.metric_label())?);
        };
        let what = format!("{}: {} {}", settings(&best.settings), record.metric_label(), record.shown(value));
        writeln!(out, "\n  best           {}", bold(&what))?;
        writeln!(out, "  folder         {}", self.base.out.join(&best.name).display())?;
        writeln!(out, "  picture        {}", self.base.out.join(PAGE).display())?;
        if let Some(words) = use_best(record) {
            writeln!(out, "\nTry next:\n  {} {words}", program())?;
        }
        Ok(())
    }
}

fn use_best(record: &Record) -> Option<String> {
    record.best()?.command.clone()
}

/// A run that cannot be made with its settings does not end the sweep; a full disk or an interruption does.
fn can_go_on_after(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Ended>().is_none() && [USAGE, NO_MEMORY, BAD_INPUT].contains(&code_of(error))
}

fn failed(trial: &Trial, note: String) -> Done {
    Done {
        name: trial.name.clone(),
        settings: trial.settings.clone(),
        method: trial.run.method.clone(),
        state: State::Failed,
        value: None,
        curve: Default::default(),
        trainable: 0,
        total: 0,
        seconds: 0.0,
        step: 0,
        steps: 0,
        note: Some(note),
        command: None,
        retained: None,
    }
}

/// What a run came to.
fn done_of(
    trial: &Trial,
    prepared: &Prepared,
    view: &RunView,
    outcome: &Outcome,
    report: Option<&ReportData>,
    record: &Record,
) -> Done {
    let metric = record.metric;
    let (state, note) = match (&outcome.end, &view.hopeless) {
        (OutcomeEnd::Finished, _) => (State::Finished, None),
        (OutcomeEnd::Interrupted, Some(hopeless)) => {
            (State::Stopped, Some(why(hopeless, record, record.finished().count())))
        }
        (OutcomeEnd::Interrupted, None) => (State::Failed, Some("interrupted".into())),
        (OutcomeEnd::Diverged { why }, _) => (State::Diverged, Some(why.clone())),
    };
    let at_end = match (metric, &outcome.metrics_after) {
        (retune::metrics::Metric::Loss, _) => outcome.eval_after,
        (metric, Some(metrics)) => metrics.get(metric),
        (_, None) => None,
    };
    let best = || view.curve.best_by(1.0, metric);
    let value = if state == State::Finished { at_end } else { best() };
    let retained = report.and_then(|report| report.retained.as_ref());
    Done {
        state,
        note,
        value: value.filter(|value| value.is_finite()),
        curve: view.curve.clone(),
        trainable: prepared.attached.trainable as u64,
        total: prepared.total as u64,
        seconds: view.seconds_before + outcome.seconds,
        step: outcome.step,
        steps: outcome.steps,
        command: report.map(|report| use_words(report, prepared.data.task())),
        retained: retained.map(|r| (r.base(), r.after.on)).filter(|(a, b)| a.is_finite() && b.is_finite()),
        ..failed(trial, String::new())
    }
}
