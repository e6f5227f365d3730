//! `retune export`: writes a model (a GGUF file, say) as a plain Hugging Face folder, so that PEFT and others can use an
//! adapter on the very same weights.

use std::path::PathBuf;

use anyhow::Result;
use retune::export::{ExportDtype, ExportOptions};
use retune::models::{Model, StorageChoice};

use crate::exporting::{dtype, write};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune export --model model.gguf --out model
  retune export --model model.gguf --out model --dtype bf16")]
pub struct Args {
    /// A Hugging Face folder or a GGUF file
    #[arg(long, value_name = "PATH")]
    model: PathBuf,

    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// The type of the weights: as-source keeps the model's own (a quantised one is written in f32)
    #[arg(long, value_name = "f32|f16|bf16|as-source", default_value = "as-source", value_parser = dtype)]
    dtype: ExportDtype,

    /// Replace a model that lies in the folder
    #[arg(long)]
    overwrite: bool,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let model = Model::load(&crate::embedded::resolve(&args.model)?, StorageChoice::AsIs)?;
    let options = ExportOptions {
        dtype: args.dtype,
        merge: false,
        overwrite: args.overwrite,
        ..ExportOptions::default()
    };
    write(&model, &args.out, &options, json)
}
