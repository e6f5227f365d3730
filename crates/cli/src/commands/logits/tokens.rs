//! Logits of a model that reads text, on ids with padding.

use std::path::Path;

use anyhow::{Context, Result, bail};
use retune::models::Model;
use retune::tasks::causal_lm;
use retune_formats::{Dtype, TensorOut, TensorSource, safetensors};
use retune_tensor::Segments;

use super::LOGITS_MAX;

/// Padded rows of ids with the padding taken away.
pub struct Batch {
    /// Rows and columns as given.
    shape: (usize, usize),
    ids: Vec<u32>,
    lengths: Vec<usize>,
    /// Where each packed row stands in the padded matrix.
    places: Vec<usize>,
}

impl Batch {
    pub fn read(path: &Path) -> Result<Batch> {
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

    /// `logits` [rows, columns, vocabulary]; zero at padding.
    pub fn logits(&self, model: &Model, path: &Path) -> Result<TensorOut<'static>> {
        let (rows, cols) = self.shape;
        let vocab = model.text()?.info().vocab_size;
        if (rows * cols) as u64 * vocab as u64 > LOGITS_MAX {
            bail!(
                "{}: {:?} rows and columns by {vocab} logits is more than {LOGITS_MAX}; give fewer rows",
                path.display(),
                self.shape
            );
        }
        let segments = Segments::from_lengths(&self.lengths);
        let packed = causal_lm::logits(model.text()?, &model.params, &self.ids, &segments)?;
        let mut padded = vec![0.0; rows * cols * vocab];
        for (row, &place) in packed.data().chunks_exact(vocab).zip(&self.places) {
            padded[place * vocab..(place + 1) * vocab].copy_from_slice(row);
        }
        Ok(TensorOut::f32("logits", &[rows, cols, vocab], padded))
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
