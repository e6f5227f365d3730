//! Image classification: which of some classes a picture shows.

mod cache;
mod error;
mod objective;
mod predict;

pub use cache::{ImageCache, Trunk};
pub use objective::ImageClassification;
pub(crate) use predict::Seen;
pub use predict::{Answer, Pictures, logits, predict};

use rayon::prelude::*;
use retune_media::pictures::{Labelled, Picture, Prepare};
use retune_tensor::{Grid, Tensor};

use crate::error::{Error, Result};

/// Pictures as a network reads them: `[n * height * width, 3]` and its grid. They are decoded on all threads.
///
/// # Errors
/// If one cannot be read; the message names it.
pub fn batch(
    input: Prepare,
    n: usize,
    read: impl Fn(usize) -> Result<Picture> + Sync,
) -> Result<(Tensor, Grid)> {
    let grid = Grid { images: n, height: input.height, width: input.width };
    let mut x = Tensor::scratch(grid.rows(), 3);
    let each = 3 * grid.pixels();
    x.data_mut().par_chunks_exact_mut(each.max(1)).enumerate().try_for_each(|(i, out)| {
        input.normalise.write(&input.fit(&read(i)?).0, out);
        Ok::<(), Error>(())
    })?;
    Ok((x, grid))
}

/// Pictures that have the network's size already, as it reads them: `[n * height * width, 3]` and its grid.
pub(crate) fn fitted<'p>(
    input: Prepare,
    pictures: impl ExactSizeIterator<Item = &'p Picture>,
) -> (Tensor, Grid) {
    let grid = Grid { images: pictures.len(), height: input.height, width: input.width };
    let mut x = Tensor::scratch(grid.rows(), 3);
    let each = x.data_mut().chunks_exact_mut((3 * grid.pixels()).max(1));
    each.zip(pictures).for_each(|(out, picture)| input.normalise.write(picture, out));
    (x, grid)
}

/// The picture of a labelled example.
///
/// # Errors
/// If it cannot be decoded.
pub fn picture_of(data: &Labelled, example: usize) -> Result<Picture> {
    Ok(data.read(example)?)
}

/// Splits off a share of each class, drawn from the seed: (the rest, the share). A class keeps at least one picture to learn from.
pub fn split_stratified(data: &Labelled, share: f64, seed: u64) -> (Labelled, Labelled) {
    let stream = retune_tensor::rng::Stream::named(seed, "held-out pictures");
    let mut held: Vec<usize> = Vec::new();
    for (class, count) in data.counts().into_iter().enumerate() {
        let mut of_class: Vec<(f32, usize)> = (0..data.len())
            .filter(|&i| data.examples[i].class as usize == class)
            .map(|i| (stream.uniform(i as u64), i))
            .collect();
        of_class.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let n = ((count as f64 * share).round() as usize).min(count.saturating_sub(1));
        held.extend(of_class.into_iter().take(n).map(|(_, i)| i));
    }
    held.sort_unstable();
    let kept: Vec<usize> = (0..data.len()).filter(|i| held.binary_search(i).is_err()).collect();
    (data.subset(&kept), data.subset(&held))
}
