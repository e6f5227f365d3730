//! What `merge` and `export` share: the types of weights by name, and telling what was written.

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::Result;
use retune::export::{ExportDtype, ExportOptions, write_folder};
use retune::models::Model;

use crate::style::{bold, megabytes};

/// `f32`, `f16`, `bf16` or `as-source`.
pub fn dtype(text: &str) -> Result<ExportDtype, String> {
    match text {
        "f32" => Ok(ExportDtype::F32),
        "f16" => Ok(ExportDtype::F16),
        "bf16" => Ok(ExportDtype::BF16),
        "as-source" => Ok(ExportDtype::AsSource),
        _ => Err("one of f32, f16, bf16, as-source".into()),
    }
}

/// Writes the folder and says what is in it.
pub fn write(model: &Model, out: &Path, options: &ExportOptions, json: bool) -> Result<()> {
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
