//! `retune logits`: what a model says of given ids or pictures, raw, to compare the numbers with another implementation.

mod pictures;
mod tokens;

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use retune_formats::safetensors;

use crate::loading::{ModelArgs, tell_streamed};
use tokens::Batch;

/// What a mistaken shape could ask for: 4 GiB of logits.
const LOGITS_MAX: u64 = 1 << 30;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune logits --model model --ids ids.safetensors --out logits.safetensors
  retune logits --model model --adapter out --ids ids.safetensors --out logits.safetensors
  retune logits --model yolov8n.pt --pictures pictures.safetensors --out logits.safetensors

The ids file holds `input_ids` and `attention_mask` [rows, columns] (I64 or I32; 1 marks a real token, padding may
stand on either side). The result holds `logits` F32 [rows, columns, vocabulary], zero at padding.
The pictures file holds `pictures` F32 [pictures, height, width, 3], as the network itself reads them: neither resized nor
normalised any more. The result holds a classifier's `logits` F32 [pictures, classes], or a detector's scales, `logits.0`,
`logits.1`, ... F32 [pictures, lines, columns, channels], as its last convolutions give them.")]
#[command(group = clap::ArgGroup::new("input").required(true))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// A safetensors file with `input_ids` and `attention_mask`
    #[arg(long, value_name = "PATH", group = "input")]
    ids: Option<PathBuf>,

    /// A safetensors file with `pictures`, for networks that read them
    #[arg(long, value_name = "PATH", group = "input")]
    pictures: Option<PathBuf>,

    /// The safetensors file to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let ids =
        args.ids.as_deref().map(|path| Ok::<_, anyhow::Error>((path, Batch::read(path)?))).transpose()?;
    let model = args.model.load()?;
    let logits = match (&ids, &args.pictures) {
        (Some((path, batch)), _) => vec![batch.logits(&model, path)?],
        (None, Some(path)) => pictures::logits(&model, path)?,
        (None, None) => Vec::new(),
    };
    model.check_weights()?;
    tell_streamed(&model, json);
    let shapes: Vec<Vec<usize>> = logits.iter().map(|tensor| tensor.shape.clone()).collect();
    safetensors::write(&args.out, logits, &[("format", "pt")])?;
    if json {
        let (out, shape) = (args.out.display().to_string(), shapes.first());
        writeln!(stdout(), "{}", serde_json::json!({"out": out, "shape": shape, "shapes": shapes}))?;
    } else {
        let shapes: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
        eprintln!("wrote logits {} to {}", shapes.join(", "), args.out.display());
    }
    Ok(())
}
