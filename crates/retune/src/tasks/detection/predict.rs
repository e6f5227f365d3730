//! Finding objects in pictures.

use std::sync::Arc;

use rayon::prelude::*;
use retune_media::pictures::{Picture, Placement};
use retune_tensor::{Params, Tape};

use super::{Detection, Nms, objective};
use crate::error::Result;
use crate::models::ImageModel;
use crate::nn::{Active, Pass};
use crate::tasks::images::fitted;

/// The objects in pictures `0..slots.len()`, which `read` opens, each through the adapter in its slot (`None`: the base alone), in batches of
/// `batch_size`, at most: those that score at least `confidence`, best first, as fractions of the picture. `progress` is told how many are done
/// and says whether to go on; if not, there is no result.
///
/// # Errors
/// If the model is no detector, or a picture cannot be read.
pub fn predict(
    net: &ImageModel,
    params: &Params,
    slots: &[Option<usize>],
    batch_size: usize,
    (confidence, settings): (f32, &Nms),
    read: &(dyn Fn(usize) -> Result<Picture> + Sync),
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Vec<Vec<Detection>>>> {
    objective::detector(net)?;
    let input = net.input();
    let all: Vec<usize> = (0..slots.len()).collect();
    let mut answers = Vec::with_capacity(slots.len());
    for part in all.chunks(batch_size.max(1)) {
        let (pictures, placements): (Vec<Picture>, Vec<Placement>) = part
            .par_iter()
            .map(|&i| Ok(input.fit(&read(i)?)))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        let (x, grid) = fitted(input, pictures.iter());
        let active: Arc<[Option<usize>]> = part.iter().map(|&i| slots[i]).collect();
        let pass = Pass { active: Active::PerExample(active), ..Pass::default() };
        let tape = Tape::inference(params);
        let state = net.trunk(&tape, x, grid, &pass);
        let outputs = net.detect(&tape, &state, &pass);
        answers.extend(objective::found(net, &outputs, &placements, confidence, settings)?);
        if !progress(answers.len()) && answers.len() < slots.len() {
            return Ok(None);
        }
    }
    Ok(Some(answers))
}
