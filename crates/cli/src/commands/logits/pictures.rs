//! What a network says of pictures that are its input already, `[pictures, height, width, 3]`.

use std::path::Path;

use anyhow::{Result, bail};
use retune::models::{Model, Network};
use retune::nn::Head;
use retune::tasks::images;
use retune_formats::{TensorOut, TensorSource, safetensors};
use retune_tensor::{Grid, Tensor};

use super::LOGITS_MAX;

/// `logits` of a classifier, or `logits.0`, `logits.1`, ... of a detector's scales.
pub fn logits(model: &Model, path: &Path) -> Result<Vec<TensorOut<'static>>> {
    let net = model.image()?;
    let file = safetensors::File::open(path)?;
    let shape = file.get("pictures")?.shape.clone();
    let &[pictures, height, width, 3] = shape.as_slice() else {
        bail!("{}: pictures is {shape:?}; it must be [pictures, height, width, 3]", path.display());
    };
    let values = file.read_f32("pictures")?;
    if values.is_empty() {
        bail!("{}: pictures is {shape:?}, which is no picture at all", path.display());
    }
    let one = Grid { images: 1, height, width };
    let mut said: Vec<(Vec<f32>, Vec<usize>)> = Vec::new();
    // One by one: what they say does not depend on each other, and the memory is one picture's.
    for pixels in values.chunks_exact(3 * one.pixels()) {
        let x = Tensor::from_vec(one.rows(), 3, pixels.to_vec());
        let scales = images::logits(net, &model.params, x, one)?;
        said.resize_with(scales.len(), Default::default);
        for ((all, shape), (values, grid)) in said.iter_mut().zip(scales) {
            if (values.len() * pictures) as u64 > LOGITS_MAX {
                bail!(
                    "{}: {pictures} pictures of {} logits are more than {LOGITS_MAX}",
                    path.display(),
                    values.len()
                );
            }
            *shape = vec![pictures, grid.height, grid.width, values.cols()];
            all.extend_from_slice(values.data());
        }
    }
    Ok(match net.head() {
        Head::Detector(_) => said
            .into_iter()
            .enumerate()
            .map(|(i, (values, shape))| TensorOut::f32(format!("logits.{i}"), &shape, values))
            .collect(),
        _ => said
            .into_iter()
            .map(|(values, _)| TensorOut::f32("logits", &[pictures, values.len() / pictures], values))
            .collect(),
    })
}
