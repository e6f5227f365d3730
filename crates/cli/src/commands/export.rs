//! `retune export`: writes a model as a plain Hugging Face folder, so that PEFT and others can use an adapter on the very same
//! weights, as a GGUF file, or as darknet's files.

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use retune::models::{LoadOptions, Model};

use crate::exporting::OutputArgs;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune export --model model.gguf --out model
  retune export --model model.gguf --out model --dtype bf16
  retune export --model model --out model.gguf --dtype f16
  retune export --model trained-yolo --out trained.cfg")]
pub struct Args {
    /// A Hugging Face folder, a GGUF file, or an image network's weights (.pth, .pt, .safetensors, .onnx, .cfg)
    #[arg(long, value_name = "PATH")]
    model: PathBuf,

    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    args.output.dtype()?;
    // Never more than one tensor of it in memory.
    let in_file = LoadOptions { in_file: true, ..LoadOptions::default() };
    let model = Model::load(&crate::embedded::resolve(&args.model)?, in_file)?;
    let report = args.output.write(&model, false)?;
    match json {
        true => Ok(writeln!(stdout(), "{}", args.output.to_json(&report))?),
        false => args.output.show(&report),
    }
}
