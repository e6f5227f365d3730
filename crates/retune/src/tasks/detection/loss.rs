//! A detector's loss with its gradients, picture by picture; what the two generations of it share.

use rayon::prelude::*;
use retune_tensor::Tensor;

use super::head::{Detector, Generation, Output};
use super::{LabelledBox, anchor_loss, free_loss};
use crate::error::{Error, Result};

/// A loss and its gradients.
#[derive(Clone, Debug)]
pub struct LossParts {
    pub total: f64,
    /// What the total is the sum of, by name: the same three for every output and picture.
    pub parts: Vec<(&'static str, f64)>,
    /// d total / d values of each output, in its shape.
    pub gradients: Vec<Tensor>,
}

/// The loss of `outputs` for what `truths` says of each picture, summed over the pictures and divided by `denominator`.
///
/// YOLOv3, v4: every picture counts for itself, so parts of a batch add up to the whole. YOLOv8: boxes count by how well
/// the batch at hand finds them, as its authors have it; parts of a batch add up only about.
///
/// # Errors
/// If an output has another shape than the detector says, or a truth is no box of a known class.
pub fn loss(
    detector: &Detector,
    outputs: &[Output],
    truths: &[Vec<LabelledBox>],
    denominator: f64,
) -> Result<LossParts> {
    let images = detector.check(outputs)?;
    check_truths(detector, images, truths)?;
    Ok(match &detector.generation {
        Generation::Anchors { scales } => {
            anchor_loss::loss(scales, detector.labels.len(), outputs, truths, denominator)
        }
        Generation::Free { reg_max } => {
            free_loss::loss(*reg_max, detector.labels.len(), outputs, truths, denominator)
        }
    })
}

fn check_truths(detector: &Detector, images: usize, truths: &[Vec<LabelledBox>]) -> Result<()> {
    if truths.len() != images {
        return Err(Error::Input(format!("{images} pictures, but boxes for {}", truths.len())));
    }
    for (image, truths) in truths.iter().enumerate() {
        for (i, LabelledBox { class, bounds }) in truths.iter().enumerate() {
            let place = || format!("box {} of picture {} of the batch", i + 1, image + 1);
            let classes = detector.labels.len();
            if *class as usize >= classes {
                return Err(Error::Input(format!("{} has class {class}; there are {classes}", place())));
            }
            let finite = [bounds.x, bounds.y, bounds.w, bounds.h].iter().all(|v| v.is_finite());
            if !finite || bounds.w <= 0.0 || bounds.h <= 0.0 {
                return Err(Error::Input(format!("{} has no area: {bounds:?}", place())));
            }
        }
    }
    Ok(())
}

pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Binary cross-entropy of a logit with a target in 0..=1, and its derivative `sigmoid - target`.
pub fn cross_entropy(logit: f32, target: f32) -> (f64, f32) {
    let e = (-logit.abs()).exp();
    let sigmoid = if logit >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
    (f64::from(logit.max(0.0) - logit * target + e.ln_1p()), sigmoid - target)
}

/// Runs `work` on each picture with the rows of all gradients that are the picture's; the gradients, and what `work` gave,
/// in the pictures' order.
pub fn for_pictures<T: Send>(
    outputs: &[Output],
    images: usize,
    work: impl Fn(usize, &mut [&mut [f32]]) -> T + Sync,
) -> (Vec<Tensor>, Vec<T>) {
    let mut gradients: Vec<Tensor> =
        outputs.iter().map(|output| Tensor::zeros(output.values.rows(), output.values.cols())).collect();
    let mut of_image: Vec<Vec<&mut [f32]>> = (0..images).map(|_| Vec::new()).collect();
    for (gradient, output) in gradients.iter_mut().zip(outputs) {
        let values = (output.grid.pixels() * output.values.cols()).max(1);
        for (rows, part) in of_image.iter_mut().zip(gradient.data_mut().chunks_mut(values)) {
            rows.push(part);
        }
    }
    let results = of_image.into_par_iter().enumerate().map(|(image, mut rows)| work(image, &mut rows));
    let results = results.collect();
    (gradients, results)
}

/// The rows of an output that belong to one picture.
pub fn rows_of<'a>(output: &Output<'a>, image: usize) -> &'a [f32] {
    let values = output.grid.pixels() * output.values.cols();
    &output.values.data()[image * values..(image + 1) * values]
}

/// Parts summed over the pictures, divided by the denominator; in the order of `names`.
pub fn summed<const N: usize>(
    names: [&'static str; N],
    of_images: &[[f64; N]],
    gradients: Vec<Tensor>,
    denominator: f64,
) -> LossParts {
    let sum = |i: usize| of_images.iter().map(|parts| parts[i]).sum::<f64>() / denominator;
    let parts: Vec<_> = names.into_iter().enumerate().map(|(i, name)| (name, sum(i))).collect();
    LossParts { total: parts.iter().map(|(_, part)| part).sum(), parts, gradients }
}
