//! What `merge`, `export` and `quantize` share: their output flags, the types of weights by name, and telling what was
//! written and what it cost.

use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use retune::export::{ExportDtype, ExportOptions, ExportReport, TensorLoss, is_gguf, write};
use retune::models::quantised::QuantCode;
use retune::models::{Model, Quantisation};
use retune_tensor::storage::Format;
use serde_json::{Value, json};

use crate::exit::UsageError;
use crate::style::{bold, dim, megabytes};
use crate::tasks::did_you_mean;

/// Where a model is written, and how.
#[derive(clap::Args)]
pub struct OutputArgs {
    /// The folder to write; a name that ends with .gguf: one GGUF file; with .cfg: darknet's .cfg, .weights and .names
    #[arg(long, value_name = "PATH")]
    out: PathBuf,

    /// The type of the weights: f32, f16, bf16; in folders nf4, fp4, int4, int8; in GGUF files q8_0, q4_0, q4_1, q4_k and the
    /// like; as-source keeps the base's own (what was quantised is written in f32)
    #[arg(long, visible_alias = "to", value_name = "TYPE", value_parser = dtype)]
    dtype: Option<String>,

    /// Keep the constants of 4-bit blocks in f32: 4.5 bits a weight instead of 4.13
    #[arg(long)]
    no_double_quant: bool,

    /// Modules that are not quantised, by the beginning or the end of their paths; as often as you like. The output head,
    /// tables and norms never are in folders
    #[arg(long, value_name = "PATTERN")]
    keep: Vec<String>,

    /// Replace a model that lies there
    #[arg(long)]
    overwrite: bool,
}

/// Every name of a type, as `--dtype` takes it.
fn type_names() -> impl Iterator<Item = &'static str> {
    ["as-source"].into_iter().chain(Format::all().map(Format::name)).chain(Quantisation::NAMES)
}

fn dtype(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    if ExportDtype::parse(&name, true).is_some() {
        return Ok(name);
    }
    let near = did_you_mean(&name, type_names());
    Err(format!("not a type of weights{near}: {}", type_names().collect::<Vec<_>>().join(", ")))
}

impl OutputArgs {
    /// The folder or file to write.
    pub fn path(&self) -> &Path {
        &self.out
    }

    /// The folder to write, if nothing is in it or what is in it may be replaced.
    pub fn new_folder(&self) -> Result<&Path> {
        let taken = std::fs::read_dir(&self.out).is_ok_and(|mut entries| entries.next().is_some());
        if taken && !self.overwrite {
            bail!("{} holds files already: name another folder, or --overwrite", self.out.display());
        }
        Ok(&self.out)
    }

    /// The type that was asked for.
    pub fn dtype(&self) -> Result<Option<ExportDtype>> {
        let parsed = self.dtype.as_ref().and_then(|name| ExportDtype::parse(name, !self.no_double_quant));
        let four_bit = matches!(parsed, Some(ExportDtype::Quantised(how)) if how.code != QuantCode::Int8);
        if self.no_double_quant && !four_bit {
            return Err(UsageError("--no-double-quant is for nf4, fp4 and int4".into()).into());
        }
        if !self.keep.is_empty() && !parsed.is_some_and(ExportDtype::is_quantised) {
            return Err(UsageError("--keep is for types that quantise".into()).into());
        }
        Ok(parsed)
    }

    /// Writes the model, with its adapters merged into it or without them, with a bar on a terminal.
    pub fn write(&self, model: &Model, merge: bool) -> Result<ExportReport> {
        let options = ExportOptions {
            dtype: self.dtype()?.unwrap_or_default(),
            keep: self.keep.clone(),
            merge,
            overwrite: self.overwrite,
            ..ExportOptions::default()
        };
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} tensors  {eta} left  {msg}") {
            bar.set_style(style);
        }
        let report = write(model, &self.out, &options, &mut |step| {
            bar.set_length(step.tensors as u64);
            bar.set_position(step.done as u64);
            bar.set_message(step.written.name.clone());
        });
        bar.finish_and_clear();
        Ok(report?)
    }

    /// What was written, for machines.
    pub fn to_json(&self, report: &ExportReport) -> Value {
        json!({
            "out": self.out.display().to_string(), "files": report.files, "tensors": report.tensors, "bytes": report.bytes,
            "dtype": report.dtype.name(), "types": types(report), "merged": report.merged, "max_change": report.max_change,
            "same_base": report.same_base, "notes": report.notes, "error": error_json(&report.losses),
        })
    }

    /// What was written, for people.
    pub fn show(&self, report: &ExportReport) -> Result<()> {
        for note in &report.notes {
            eprintln!("note: {note}");
        }
        let mut to = stdout().lock();
        let types: Vec<String> = types(report).into_iter().map(|(name, n)| format!("{n} {name}")).collect();
        writeln!(
            to,
            "{}  {} tensors ({}), {}",
            bold(&self.out.display().to_string()),
            report.tensors,
            types.join(", "),
            megabytes(report.bytes)
        )?;
        if !report.merged.is_empty() {
            writeln!(
                to,
                "  merged into {} layers; the largest change of a weight is {:.3e}",
                report.merged.len(),
                report.max_change
            )?;
        }
        if report.losses.iter().any(|told| !told.loss.is_exact()) {
            writeln!(to, "  {}", summary(&report.losses))?;
        }
        if !is_gguf(&self.out) {
            writeln!(to, "  {}", report.files.join(", "))?;
        }
        Ok(())
    }
}

/// How many tensors are in each type, the most first.
fn types(report: &ExportReport) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for told in &report.losses {
        match found.iter_mut().find(|(name, _)| *name == told.encoding) {
            Some((_, n)) => *n += 1,
            None => found.push((told.encoding.clone(), 1)),
        }
    }
    found.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    found
}

fn sum<'a>(losses: impl Iterator<Item = &'a TensorLoss>) -> retune::export::Loss {
    losses.fold(retune::export::Loss::default(), |sum, told| sum.plus(told.loss))
}

/// The error over the tensors that lost something, and over all.
fn summary(losses: &[TensorLoss]) -> String {
    let lossy = sum(losses.iter().filter(|told| !told.loss.is_exact()));
    let all = sum(losses.iter());
    format!(
        "error of the weights: RMSE {:.3e}, {:.3} % of their size, at most {:.3e}; over the whole model RMSE {:.3e}",
        lossy.rmse(),
        100.0 * lossy.relative(),
        lossy.max,
        all.rmse()
    )
}

fn error_json(losses: &[TensorLoss]) -> Value {
    let of = |loss: retune::export::Loss| json!({"elements": loss.elements, "rmse": loss.rmse(), "relative": loss.relative(), "max": loss.max});
    json!({
        "changed_tensors": of(sum(losses.iter().filter(|told| !told.loss.is_exact()))),
        "model": of(sum(losses.iter())),
    })
}

/// One line for each tensor that lost something.
pub fn show_losses(losses: &[TensorLoss], to: &mut impl Write) -> Result<()> {
    let lossy: Vec<&TensorLoss> = losses.iter().filter(|told| !told.loss.is_exact()).collect();
    let width = lossy.iter().map(|told| told.name.len()).max().unwrap_or(6).max(6);
    if !lossy.is_empty() {
        let head =
            format!("{:<width$}  {:<7}  {:>9}  {:>9}  {:>9}", "tensor", "type", "RMSE", "relative", "max");
        writeln!(to, "{}", dim(&head))?;
    }
    for told in lossy {
        let (name, kind, loss) = (&told.name, &told.encoding, &told.loss);
        let (rmse, relative, max) = (loss.rmse(), 100.0 * loss.relative(), loss.max);
        writeln!(to, "{name:<width$}  {kind:<7}  {rmse:>9.3e}  {relative:>7.3} %  {max:>9.3e}")?;
    }
    Ok(())
}

/// Every tensor, for machines.
pub fn losses_json(losses: &[TensorLoss]) -> Value {
    let of = |told: &TensorLoss| {
        let loss = &told.loss;
        json!({
            "name": told.name, "type": told.encoding, "elements": loss.elements, "rmse": loss.rmse(),
            "relative": loss.relative(), "max": loss.max,
        })
    };
    losses.iter().map(of).collect()
}
