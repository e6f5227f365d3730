//! What a classifier says of pictures: the probability of each class.

use std::sync::Arc;

use rayon::prelude::*;
use retune_media::pictures::{Picture, Placement};
use retune_tensor::{Grid, Params, Tape, Tensor};

use super::error::{classifier, no_output};
use super::fitted;
use crate::error::{Error, Result};
use crate::models::graph::State;
use crate::models::{ImageModel, Network};
use crate::nn::{Active, Head, Pass};
use crate::tasks::classification::{argmax, softmax};

/// What is said of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The likeliest class.
    pub class: u32,
    /// Of each class.
    pub probabilities: Vec<f32>,
}

/// Which pictures to look at, and how.
pub struct Pictures<'a> {
    /// For each picture the slot of the adapter that it goes through; `None`: the base alone.
    pub slots: &'a [Option<usize>],
    /// At most so many at a time.
    pub batch_size: usize,
    /// Opens a picture by its number.
    pub read: &'a (dyn Fn(usize) -> Result<Picture> + Sync),
}

/// What stands behind the last block for some pictures.
pub(crate) struct Seen<'t, 'p> {
    pub tape: &'t Tape<'p>,
    pub pass: &'t Pass,
    pub state: State,
    pub placements: &'t [Placement],
}

impl Pictures<'_> {
    /// Runs the network over all pictures, batch by batch; `say` tells what it says of each, `each` is given a picture's number, the picture itself
    /// and that, and says whether to go on. `false` if it did not.
    ///
    /// # Errors
    /// If a picture cannot be read, or what the two say.
    pub(crate) fn run<'p, T, E: From<Error>>(
        &self,
        net: &'p ImageModel,
        params: &'p Params,
        say: impl Fn(&Seen<'_, 'p>) -> Result<Vec<T>>,
        each: &mut dyn FnMut(usize, Picture, T) -> std::result::Result<bool, E>,
    ) -> std::result::Result<bool, E> {
        let input = net.input();
        let mut order: Vec<usize> = (0..self.slots.len()).collect();
        // Neighbours share an adapter.
        order.sort_by_key(|&i| (self.slots[i], i));
        for part in order.chunks(self.batch_size.max(1)) {
            let open = |&i: &usize| {
                let picture = (self.read)(i)?;
                let (fitted, placement) = input.fit(&picture);
                Ok((picture, (fitted, placement)))
            };
            let opened: Vec<(Picture, (Picture, Placement))> =
                part.par_iter().map(open).collect::<Result<_>>()?;
            let (pictures, seen): (Vec<Picture>, Vec<(Picture, Placement)>) = opened.into_iter().unzip();
            let (seen, placements): (Vec<Picture>, Vec<Placement>) = seen.into_iter().unzip();
            let (x, grid) = fitted(input, seen.iter());
            drop(seen);
            let active: Arc<[Option<usize>]> = part.iter().map(|&i| self.slots[i]).collect();
            let pass = Pass { active: Active::PerExample(active), ..Pass::default() };
            let tape = Tape::inference(params);
            let state = net.trunk(&tape, x, grid, &pass);
            let said = say(&Seen { tape: &tape, pass: &pass, state, placements: &placements })?;
            for ((&i, picture), said) in part.iter().zip(pictures).zip(said) {
                if !each(i, picture, said)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// The classes of pictures, batch by batch: `each` is given a picture's number, the picture, and what is said of it, and says whether to go on.
/// `false` if it did not.
///
/// # Errors
/// If the model has no classifier, or a picture cannot be read; what `each` says.
pub fn predict<E: From<Error>>(
    net: &ImageModel,
    params: &Params,
    pictures: &Pictures,
    each: &mut dyn FnMut(usize, Picture, Answer) -> std::result::Result<bool, E>,
) -> std::result::Result<bool, E> {
    let head = classifier(net)?;
    let say = |seen: &Seen| {
        let hidden = net.hidden(&seen.state, seen.pass).ok_or_else(no_output)?;
        let logits = head.forward(seen.tape, &hidden);
        let logits = (0..logits.rows()).map(|row| logits.value().row(row));
        Ok(logits.map(|z| Answer { class: argmax(z), probabilities: softmax(z) }).collect())
    };
    pictures.run(net, params, say, each)
}

/// What a network says of pictures that are its input already, `[images * height * width, 3]`, raw: a classifier's logits `[images, classes]`, or
/// of each of a detector's scales `[images * h * w, columns]`, with their grids. For comparing with other implementations.
///
/// # Errors
/// If the network cannot read pictures of this size, or has neither head.
pub fn logits(net: &ImageModel, params: &Params, x: Tensor, grid: Grid) -> Result<Vec<(Tensor, Grid)>> {
    net.grids(grid.height, grid.width)?;
    let (tape, pass) = (Tape::inference(params), Pass::default());
    let state = net.trunk(&tape, x, grid, &pass);
    if let Head::Detector(_) = net.head() {
        let scales = net.detect(&tape, &state, &pass);
        return Ok(scales.into_iter().map(|(x, grid, _)| (x.value().clone(), grid)).collect());
    }
    let hidden = net.hidden(&state, &pass).ok_or_else(no_output)?;
    let logits = classifier(net)?.forward(&tape, &hidden);
    Ok(vec![(logits.value().clone(), Grid { height: 1, width: 1, ..grid })])
}
