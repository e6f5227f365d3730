//! `retune train`: fine-tunes a model and writes the adapter, the run file, the metrics and the report.

use std::io::{Write, stdout};

use anyhow::Result;
use retune::metrics::Metric;
use retune::report::{BeforeAfter, ReportData};
use retune::run_file::RunFile;
use retune::tasks::Task;
use retune::train::Start;

use crate::progress::Progress;
use crate::run_flags::RunFlags;
use crate::signals::Signals;
use crate::style::{bold, count};
use crate::training::{Prepared, RUN_FILE, Trained, command_line, program, shell_word};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune train --model model.gguf --data rows.jsonl --out out
  retune train --model model --data rows.jsonl --eval-data heldout.jsonl --rank 32 --lr 1e-4 --out out
  retune train --model minilm --data labelled.csv --method lora --out out       rows with labels: a classifier
  retune train run.toml --epochs 5          flags beat the file, the file beats the defaults
  retune train out --resume                 go on after an interruption, to the same bytes
  retune train run.toml --retain-data old.jsonl   how much of an old task is forgotten
  retune plan run.toml                      how much memory it would take

What is learned follows from the rows (--task): answers, or labels of texts, pairs and words. Of what was evaluated the best
weights are written (--metric, --keep-last); of labelled rows a tenth is held out if there is no --eval-data.

The folder gets adapter_config.json and adapter_model.safetensors (as PEFT writes them), task.json, README.md, run.toml,
metrics.jsonl, report.html and checkpoints/.")]
pub struct Args {
    #[command(flatten)]
    run: RunFlags,

    /// Go on from the newest whole checkpoint of the output folder
    #[arg(long)]
    resume: bool,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let run = args.load()?;
    let signals = Signals::catch()?;
    let start = if args.resume { Start::Resume } else { Start::New };
    let mut progress = Progress::new(json);
    let prepared = Prepared::new(run)?;
    for warning in prepared.data.warnings().iter().chain(&prepared.changed) {
        progress.warn(warning)?;
    }
    let trained = prepared.train(start, &command_line(), &mut progress, &signals)?;
    if json { Ok(()) } else { print_summary(&trained) }
}

impl Args {
    /// With `--resume` and no run file, the folder's own is taken.
    fn load(&self) -> Result<RunFile> {
        let out = self.run.values.iter().find(|(key, _)| key.name == "out");
        if let (true, None, Some((_, out))) = (self.resume, &self.run.file, out) {
            let file = std::path::Path::new(out).join(RUN_FILE);
            if file.is_file() {
                return Ok(RunFile::load(Some(&file), &self.run.values)?);
            }
        }
        Ok(self.run.load()?)
    }
}

/// What came out, where it lies, and what to try next.
pub fn print_summary(trained: &Trained) -> Result<()> {
    let (run, report) = (&trained.prepared.run, &trained.report);
    let mut out = stdout().lock();
    writeln!(out)?;
    match (&report.metrics, trained.outcome.eval_before, trained.outcome.eval_after) {
        (Some(metrics), ..) => write_metrics(&mut out, metrics)?,
        (None, Some(before), Some(after)) => {
            let (p, q) = (before.exp(), after.exp());
            writeln!(
                out,
                "  held-out loss  {}  (perplexity {p:.2} → {q:.2})",
                bold(&format!("{before:.4} → {after:.4}"))
            )?;
        }
        _ => {
            if let Some(loss) = trained.outcome.loss {
                writeln!(out, "  training loss  {}", bold(&format!("{loss:.4}")))?;
            }
        }
    }
    let took = crate::style::seconds(report.seconds);
    let peak = crate::style::mebibytes(report.memory.peak_bytes);
    writeln!(
        out,
        "  trained        {} parameters, {} {} in {took}, at most {peak}",
        count(report.trainable_parameters),
        count(report.tokens),
        report.unit.name()
    )?;
    if report.memory.paged_bytes > 0 {
        let waited = crate::style::seconds(report.memory.paging_wait_s);
        let paged = crate::style::mebibytes(report.memory.paged_bytes);
        writeln!(out, "  optimiser      {paged} of moments in a file; waited {waited} for it")?;
    }
    if let Some(retained) = &report.retained {
        writeln!(out, "  kept           {}", crate::style::printable(&retained.sentence()))?;
    }
    for answer in &report.answers {
        writeln!(out, "\n  {}", bold(&crate::style::printable(&answer.question)))?;
        writeln!(out, "  before: {}", crate::style::printable(&answer.before))?;
        writeln!(out, "  after:  {}", crate::style::printable(&answer.after))?;
    }
    let what = if report.whole_model { "model" } else { "adapter" };
    writeln!(out, "\n  {what:<14} {}", run.out.display())?;
    writeln!(out, "  report         {}", run.out.join("report.html").display())?;
    let model = model_words(report);
    let data = shell_word(&run.eval_data.as_ref().unwrap_or(&run.data).display().to_string());
    writeln!(out, "\nTry next:")?;
    let retune = program();
    writeln!(out, "  {retune} {}", use_words(report, trained.prepared.data.task()))?;
    writeln!(out, "  {retune} eval {model} --data {data}")?;
    if !report.whole_model {
        writeln!(out, "  {retune} merge {model} --out merged")?;
    }
    Ok(())
}

/// How a command names what came out.
fn model_words(report: &ReportData) -> String {
    match report.whole_model {
        true => format!("--model {}", shell_word(&report.out)),
        false => format!("--model {} --adapter {}", shell_word(&report.model_path), shell_word(&report.out)),
    }
}

/// The command, without the program, that uses what came out.
pub fn use_words(report: &ReportData, task: Task) -> String {
    let model = model_words(report);
    match task {
        Task::TextGeneration => format!("generate {model} --chat --prompt \"...\""),
        Task::MaskedLm => format!("predict {model} --task embed --text \"...\""),
        Task::ImageClassification => format!("predict {model} --image PHOTO.jpg"),
        Task::ObjectDetection => format!("predict {model} --image PHOTO.jpg --draw found"),
        Task::AutomaticSpeechRecognition => format!("transcribe {model} FILE"),
        _ => format!("predict {model} --text \"...\""),
    }
}

/// The task's numbers on the held-out rows; of a new head only those after training, for before it knew nothing.
fn write_metrics(out: &mut impl Write, metrics: &BeforeAfter) -> Result<()> {
    const QUOTED: [Metric; 10] = [
        Metric::Loss,
        Metric::Wer,
        Metric::Cer,
        Metric::Map50,
        Metric::Map,
        Metric::Accuracy,
        Metric::F1,
        Metric::Matthews,
        Metric::Spearman,
        Metric::Mse,
    ];
    for metric in QUOTED {
        let Some(after) = metrics.after.get(metric) else { continue };
        let before = metrics.before.as_ref().and_then(|before| before.get(metric));
        let change = before.map(|before| format!("{before:.4} → ")).unwrap_or_default();
        let name = if metric == Metric::Loss { "held-out loss" } else { metric.name() };
        writeln!(out, "  {name:<14} {}", bold(&format!("{change}{after:.4}")))?;
    }
    Ok(())
}
