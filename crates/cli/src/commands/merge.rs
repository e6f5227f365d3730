//! `retune merge`: adds adapters to their base and writes the result as a plain Hugging Face folder.

use anyhow::Result;

use crate::exit::UsageError;
use crate::exporting::OutputArgs;
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

    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    if args.model.adapter.is_empty() {
        let what = "no adapter: give --adapter DIR, or use `retune export` to write the model alone";
        return Err(UsageError(what.into()).into());
    }
    args.output.write(&args.model.load()?, true, json)
}
