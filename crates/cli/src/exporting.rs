//! What `merge` and `export` share: their output flags, the types of weights by name, and telling what was written.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use retune::export::{ExportDtype, ExportOptions, write_folder};
use retune::models::Model;

use crate::style::{bold, megabytes};

/// Where a model is written, and how.
#[derive(clap::Args)]
pub struct OutputArgs {
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// The type of the weights: as-source keeps the base's own (a quantised base is written in f32)
    #[arg(long, value_name = "f32|f16|bf16|as-source", default_value = "as-source", value_parser = dtype)]
    dtype: ExportDtype,

    /// Replace a model that lies in the folder
    #[arg(long)]
    overwrite: bool,
}

impl OutputArgs {
    /// The folder to write.
    pub fn folder(&self) -> &Path {
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

    /// Writes the model, with its adapters merged into it or without them, and says what was written.
    pub fn write(&self, model: &Model, merge: bool, json: bool) -> Result<()> {
        let options =
            ExportOptions { dtype: self.dtype, merge, overwrite: self.overwrite, ..ExportOptions::default() };
        write(model, &self.out, &options, json)
    }
}

/// `f32`, `f16`, `bf16` or `as-source`.
fn dtype(text: &str) -> Result<ExportDtype, String> {
    match text {
        "f32" => Ok(ExportDtype::F32),
        "f16" => Ok(ExportDtype::F16),
        "bf16" => Ok(ExportDtype::BF16),
        "as-source" => Ok(ExportDtype::AsSource),
        _ => Err("one of f32, f16, bf16, as-source".into()),
    }
}

/// Writes the folder and says what is in it.
fn write(model: &Model, out: &Path, options: &ExportOptions, json: bool) -> Result<()> {
    let report = write_folder(model, out, options)?;
    let mut to = stdout().lock();
    if json {
        let line = serde_json::json!({
            "out": out.display().to_string(), "files": report.files, "tensors": report.tensors, "bytes": report.bytes,
            "dtype": report.dtype.name(), "merged": report.merged, "max_change": report.max_change,
            "same_base": report.same_base, "notes": report.notes,
        });
        writeln!(to, "{line}")?;
        return Ok(());
    }
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    let (size, dtype) = (megabytes(report.bytes), report.dtype.name());
    writeln!(to, "{}  {} tensors, {size}, {dtype}", bold(&out.display().to_string()), report.tensors)?;
    if !report.merged.is_empty() {
        writeln!(
            to,
            "  merged into {} layers; the largest change of a weight is {:.3e}",
            report.merged.len(),
            report.max_change
        )?;
    }
    writeln!(to, "  {}", report.files.join(", "))?;
    Ok(())
}
