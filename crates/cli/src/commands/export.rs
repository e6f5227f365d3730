//! `retune export`: writes a model (a GGUF file, say) as a plain Hugging Face folder, so that PEFT and others can use an
//! adapter on the very same weights.

use std::path::PathBuf;

use anyhow::Result;
use retune::models::{Model, StorageChoice};

use crate::exporting::OutputArgs;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune export --model model.gguf --out model
  retune export --model model.gguf --out model --dtype bf16")]
pub struct Args {
    /// A Hugging Face folder or a GGUF file
    #[arg(long, value_name = "PATH")]
    model: PathBuf,

    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    args.output.write(
        &Model::load(&crate::embedded::resolve(&args.model)?, StorageChoice::AsIs)?,
        false,
        json,
    )
}
