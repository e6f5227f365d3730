//! `retune logits`: a model's logits on given ids, to compare the numbers with another implementation.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use retune::models::Model;
use retune::tasks::causal_lm;
use retune_formats::{Dtype, TensorOut, TensorSource, safetensors};
use retune_tensor::Segments;

use crate::loading::{ModelArgs, tell_streamed};

/// What a mistaken shape could ask for: 4 GiB of logits.
const LOGITS_MAX: u64 = 1 << 30;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune logits --model model --ids ids.safetensors --out logits.safetensors
  retune logits --model model --adapter out --ids ids.safetensors --out logits.safetensors

The ids file holds `input_ids` and `attention_mask` [rows, columns] (I64 or I32; 1 marks a real token, padding may
stand on either side). The result holds `logits` F32 [rows, columns, vocabulary], zero at padding.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// A safetensors file with `input_ids` and `attention_mask`
    #[arg(long, value_name = "PATH")]
    ids: PathBuf,

    /// The safetensors file to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let batch = Batch::read(&args.ids)?;
    let model = args.model.load()?;
    let vocab = model.text()?.info().vocab_size;
    let size = (batch.shape.0 * batch.shape.1) as u64 * vocab as u64;
    if size > LOGITS_MAX {
        bail!(
            "{}: {:?} rows and columns by {vocab} logits is more than {LOGITS_MAX}; give fewer rows",
            args.ids.display(),
            batch.shape
        );
    }
    let logits = batch.logits(&model)?;
    model.check_weights()?;
    tell_streamed(&model, json);
    let shape = [batch.shape.0, batch.shape.1, vocab];
    safetensors::write(&args.out, [TensorOut::f32("logits", &shape, logits)], &[("format", "pt")])?;
    if json {
        writeln!(stdout(), "{}", serde_json::json!({"out": args.out.display().to_string(), "shape": shape}))?;
    } else {
        eprintln!("wrote logits {shape:?} to {}", args.out.display());
    }
    Ok(())
}

/// Padded rows of ids with the padding taken away.
struct Batch {
    /// Rows and columns as given.
    shape: (usize, usize),
    ids: Vec<u32>,
    lengths: Vec<usize>,
    /// Where each packed row stands in the padded matrix.
    places: Vec<usize>,
}

impl Batch {
    fn read(path: &Path) -> Result<Batch> {
        let file = safetensors::File::open(path)?;
        let (shape, ids) = integers(&file, "input_ids")?;
        let (mask_shape, mask) = integers(&file, "attention_mask")?;
        if shape != mask_shape {
            bail!(
                "{}: input_ids is {shape:?}, attention_mask {mask_shape:?}; they must agree",
                path.display()
            );
        }
        let mut batch = Batch { shape, ids: Vec::new(), lengths: Vec::new(), places: Vec::new() };
        for row in 0..shape.0 {
            let places: Vec<usize> =
                (row * shape.1..(row + 1) * shape.1).filter(|&at| mask[at] != 0).collect();
            for &at in &places {
                let id = u32::try_from(ids[at]);
                batch
                    .ids
                    .push(id.with_context(|| format!("{}: {} is no token id", path.display(), ids[at]))?);
            }
            batch.lengths.push(places.len());
            batch.places.extend(places);
        }
        if batch.ids.is_empty() {
            bail!("{}: attention_mask marks no token", path.display());
        }
        batch.lengths.retain(|&length| length > 0);
        Ok(batch)
    }

    /// Row-major over (rows, columns, vocabulary); zero at padding.
    fn logits(&self, model: &Model) -> Result<Vec<f32>> {
        let segments = Segments::from_lengths(&self.lengths);
        let packed = causal_lm::logits(model.text()?, &model.params, &self.ids, &segments)?;
        let vocab = packed.cols();
        let mut padded = vec![0.0; self.shape.0 * self.shape.1 * vocab];
        for (row, &place) in packed.data().chunks_exact(vocab).zip(&self.places) {
            padded[place * vocab..(place + 1) * vocab].copy_from_slice(row);
        }
        Ok(padded)
    }
}

/// A matrix of whole numbers.
fn integers(file: &safetensors::File, name: &str) -> Result<((usize, usize), Vec<i64>)> {
    let info = file.get(name)?;
    let &[rows, cols] = info.shape.as_slice() else {
        bail!("{}: {name} is {:?}; it must be [rows, columns]", file.path().display(), info.shape);
    };
    let bytes = file.read(name)?;
    let values = match info.dtype {
        Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
        other => bail!("{}: {name} is {}; it must be I64 or I32", file.path().display(), other.name()),
    };
    Ok(((rows, cols), values))
}
