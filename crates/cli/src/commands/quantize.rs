//! `retune quantize`: writes a model in fewer bits (or back in more), one tensor at a time, and says what that costs.

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use retune::export::ExportReport;
use retune::models::{LoadOptions, Model, ModelFiles, StorageChoice};
use serde_json::Value;

use super::eval::{Measured, PassArgs, Rows};
use crate::exit::UsageError;
use crate::exporting::{OutputArgs, losses_json, show_losses};
use crate::loading::{head_for, set_threads};
use crate::signals::Signals;
use crate::style::{bold, megabytes};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune quantize model --to nf4 --out model-nf4                   a folder that transformers and bitsandbytes load
  retune quantize model --to q4_k --out model.gguf                 a file that llama.cpp loads
  retune quantize model.gguf --to q4_0 --out small.gguf --data heldout.jsonl
  retune quantize model-nf4 --to bf16 --out model-bf16             the values that four bits stand for

nf4, fp4, int8 are bitsandbytes'; int4 is Retune's own, for comparison. In folders the linear layers of the trunk are quantised
alone, never head, tables and norms. In GGUF files the head is in q6_k or q8_0, vectors are in f32, and a tensor whose rows
do not fit a type gets the nearest that does.")]
pub struct Args {
    /// A Hugging Face folder, quantised by bitsandbytes or not, or a GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    #[command(flatten)]
    output: OutputArgs,

    /// Measure loss and perplexity on these rows, before and after
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,

    #[command(flatten)]
    passes: PassArgs,

    /// Worker threads; without it, one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
}

/// What was measured on the data.
struct BeforeAfter {
    rows: Rows,
    before: Measured,
    after: Measured,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    if args.output.dtype()?.is_none() {
        return Err(UsageError("say which type the weights get, such as --to nf4 or --to q4_k".into()).into());
    }
    set_threads(args.threads)?;
    let path = crate::embedded::resolve(&args.model)?;
    let files = ModelFiles::open(&path)?;
    let (head, record) = head_for(&files, &[])?;
    let report = {
        // Never more than one tensor of it in memory.
        let in_file = LoadOptions { in_file: true, ..LoadOptions::default() };
        let model = Model::load_with(&path, in_file, &head)?;
        args.output.write(&model, false)?
    };
    if let (Some(record), false) = (&record, retune::export::is_no_folder(args.output.path())) {
        record.write(args.output.path())?;
    }
    let source_bytes = files.weight_files().iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    let measured = match &args.data {
        None => None,
        Some(data) => {
            let signals = Signals::catch()?;
            let model = Model::load_with(&path, StorageChoice::AsIs, &head)?;
            let rows = args.passes.rows(data, &model, record.as_ref())?;
            let before = args.passes.measure(&rows, &model, &signals)?;
            drop(model);
            let model = Model::load_with(args.output.path(), StorageChoice::AsIs, &head)?;
            let after = args.passes.measure(&rows, &model, &signals)?;
            Some(BeforeAfter { rows, before, after })
        }
    };
    match json {
        true => Ok(writeln!(stdout(), "{}", to_json(args, &report, source_bytes, measured.as_ref()))?),
        false => show(args, &report, source_bytes, measured.as_ref()),
    }
}

fn to_json(args: &Args, report: &ExportReport, source_bytes: u64, measured: Option<&BeforeAfter>) -> Value {
    let mut line = args.output.to_json(report);
    line["source_bytes"] = source_bytes.into();
    line["weights"] = losses_json(&report.losses);
    if let Some(BeforeAfter { rows, before, after }) = measured {
        line["before"] = rows.line(before);
        line["after"] = rows.line(after);
    }
    line
}

fn show(args: &Args, report: &ExportReport, source_bytes: u64, measured: Option<&BeforeAfter>) -> Result<()> {
    show_losses(&report.losses, &mut stdout().lock())?;
    args.output.show(report)?;
    let mut to = stdout().lock();
    writeln!(to, "  {} of weights before, {} now", megabytes(source_bytes), megabytes(report.bytes))?;
    if let Some(BeforeAfter { rows, before, after }) = measured {
        writeln!(to, "  before: {}", bold(&rows.text(before)))?;
        writeln!(to, "  after:  {}", bold(&rows.text(after)))?;
    }
    Ok(())
}
