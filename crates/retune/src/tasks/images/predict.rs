//! What a classifier says of pictures: the probability of each class.

use std::sync::Arc;

use retune_media::pictures::Picture;
use retune_tensor::{Params, Tape};

use super::batch;
use super::error::{classifier, no_output};
use crate::error::Result;
use crate::models::ImageModel;
use crate::nn::{Active, Pass};
use crate::tasks::classification::{argmax, softmax};

/// What is said of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The likeliest class.
    pub class: u32,
    /// Of each class.
    pub probabilities: Vec<f32>,
}

/// Predicts for pictures `0..slots.len()`, which `read` opens, each through the adapter in its slot (`None`: the base alone), in batches of
/// `batch_size`, at most. `progress` is told how many are done and says whether to go on; if not, there is no result.
///
/// # Errors
/// If the model has no classifier, or a picture cannot be read.
pub fn predict(
    net: &ImageModel,
    params: &Params,
    slots: &[Option<usize>],
    batch_size: usize,
    read: &(dyn Fn(usize) -> Result<Picture> + Sync),
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Vec<Answer>>> {
    let head = classifier(net)?;
    let mut order: Vec<usize> = (0..slots.len()).collect();
    // Neighbours share an adapter.
    order.sort_by_key(|&i| (slots[i], i));
    let mut found: Vec<Option<Answer>> = vec![None; slots.len()];
    let mut done = 0;
    for part in order.chunks(batch_size.max(1)) {
        let each: Arc<[Option<usize>]> = part.iter().map(|&i| slots[i]).collect();
        let pass = Pass { active: Active::PerExample(each), ..Pass::default() };
        let (x, grid) = batch(net.input(), part.len(), |i| read(part[i]))?;
        let tape = Tape::inference(params);
        let state = net.trunk(&tape, x, grid, &pass);
        let logits = head.forward(&tape, &net.hidden(&state, &pass).ok_or_else(no_output)?);
        for (place, &picture) in part.iter().enumerate() {
            let logits = logits.value().row(place);
            found[picture] = Some(Answer { class: argmax(logits), probabilities: softmax(logits) });
        }
        done += part.len();
        if !progress(done) && done < slots.len() {
            return Ok(None);
        }
    }
    Ok(Some(found.into_iter().flatten().collect()))
}
