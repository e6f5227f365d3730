//! `retune merge`: adds adapters to their base and writes the result as a plain Hugging Face folder.

use std::path::PathBuf;

use anyhow::Result;
use retune::export::{ExportDtype, ExportOptions};

use crate::exit::UsageError;
use crate::exporting::{dtype, write};
use crate::loading::ModelArgs;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune merge --model model --adapter out --out merged
  retune merge --model model.gguf --adapter out --out merged --dtype bf16
  retune merge --model model --adapter a --adapter b --weights 0.7,0.3 --out mixed

The folder is a whole model that transformers loads; the base and the adapter stay as they are.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

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

pub fn run(args: &Args, json: bool) -> Result<()> {
    if args.model.adapter.is_empty() {
        let what = "no adapter: give --adapter DIR, or use `retune export` to write the model alone";
        return Err(UsageError(what.into()).into());
    }
    let options = ExportOptions {
        dtype: args.dtype,
        merge: true,
        overwrite: args.overwrite,
        ..ExportOptions::default()
    };
    write(&args.model.load()?, &args.out, &options, json)
}
