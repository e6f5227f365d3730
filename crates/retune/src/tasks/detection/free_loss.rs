//! The loss of detectors without anchors (YOLOv8): cross-entropy of classes with soft targets, CIoU (arXiv:1911.08287), and the
//! distribution focal loss of the distances (arXiv:2006.04388).
//!
//! `(0.5 sum BCE + 7.5 sum s (1 - CIoU) + 1.5 sum s DFL) / max(sum s, 1) * images`, where s are the target scores of the cells
//! that learn a truth (`assign`); `DFL(t) = (i + 1 - t) CE(i) + (t - i) CE(i + 1)`, i = floor(t), mean over the four sides.
//! No derivative is taken through the assignment.

use rayon::prelude::*;

use super::LabelledBox;
use super::assign::{Assigned, Cell, assign};
use super::decode::{column_and_line, free_box};
use super::head::{BoxLoss, Output};
use super::loss::{LossParts, cross_entropy, for_pictures, rows_of, sigmoid, summed};
use super::overlap::{Centred, overlap_loss, scaled};

const NAMES: [&str; 3] = ["box", "class", "dfl"];
const BOX_GAIN: f64 = 7.5;
const CLASS_GAIN: f64 = 0.5;
const DFL_GAIN: f64 = 1.5;
/// A distance stays this far below the last one that the distribution has.
const SHORT_OF_LAST: f64 = 0.01;

/// As [`super::loss`], of checked outputs and truths.
pub fn loss(
    reg_max: usize,
    classes: usize,
    outputs: &[Output],
    truths: &[Vec<LabelledBox>],
    denominator: f64,
) -> LossParts {
    let picture = |image: usize| Picture { reg_max, classes, outputs, image, truths: &truths[image] };
    let assigned: Vec<Vec<Assigned>> =
        (0..truths.len()).into_par_iter().map(|image| picture(image).assigned()).collect();
    let scores = assigned.iter().flatten().map(|one| one.score).sum::<f64>().max(1.0);
    let by = truths.len() as f64 / scores;
    let (gradients, mut parts) = for_pictures(outputs, truths.len(), |image, gradients| {
        picture(image).loss(&assigned[image], by / denominator, gradients)
    });
    parts.iter_mut().flatten().for_each(|part| *part *= by);
    summed(NAMES, &parts, gradients, denominator)
}

struct Picture<'a> {
    reg_max: usize,
    classes: usize,
    outputs: &'a [Output<'a>],
    image: usize,
    truths: &'a [LabelledBox],
}

impl Picture<'_> {
    fn columns(&self) -> usize {
        4 * self.reg_max + self.classes
    }

    /// The cells of all outputs, one after the other: output, cell of its grid.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let of_output = |(i, output): (usize, &Output)| (0..output.grid.pixels()).map(move |cell| (i, cell));
        self.outputs.iter().enumerate().flat_map(of_output)
    }

    /// A cell's distances and classes.
    fn row(&self, (output, cell): (usize, usize)) -> (&[f32], &[f32]) {
        let columns = self.columns();
        let row = &rows_of(&self.outputs[output], self.image)[cell * columns..(cell + 1) * columns];
        row.split_at(4 * self.reg_max)
    }

    fn assigned(&self) -> Vec<Assigned> {
        let Some(first) = self.outputs.first().filter(|_| !self.truths.is_empty()) else { return Vec::new() };
        let places: Vec<(usize, usize)> = self.places().collect();
        let pixels = |(output, cell): &(usize, usize)| {
            let Output { grid, stride, .. } = self.outputs[*output];
            let (column, line) = column_and_line(grid, *cell);
            let stride = stride as f64;
            let predicted = free_box(grid, *cell, self.row((*output, *cell)).0).map(|v| v * stride);
            Cell { middle: ((column + 0.5) * stride, (line + 0.5) * stride), predicted }
        };
        let cells: Vec<Cell> = places.iter().map(pixels).collect();
        let stride = first.stride as f64;
        let (width, height) = (first.grid.width as f64 * stride, first.grid.height as f64 * stride);
        let truths: Vec<Centred> = self.truths.iter().map(|t| scaled(&t.bounds, width, height)).collect();
        assign(&cells, &truths, |cell, truth| {
            f64::from(sigmoid(self.row(places[cell]).1[self.truths[truth].class as usize]))
        })
    }

    /// Writes the gradients, times `by`; the parts of the loss, not scaled.
    fn loss(&self, assigned: &[Assigned], by: f64, gradients: &mut [&mut [f32]]) -> [f64; 3] {
        let columns = self.columns();
        let mut parts = [0.0; 3];
        let mut next = assigned.iter().peekable();
        for (i, place) in self.places().enumerate() {
            let gradient = &mut gradients[place.0][place.1 * columns..(place.1 + 1) * columns];
            let (to_distances, to_classes) = gradient.split_at_mut(4 * self.reg_max);
            let here = next.next_if(|one| one.cell == i);
            parts[1] += self.classes(place, here, CLASS_GAIN * by, to_classes);
            if let Some(one) = here {
                let [overlap, dfl] = self.distances(place, one, by, to_distances);
                parts[0] += overlap;
                parts[2] += dfl;
            }
        }
        [parts[0], CLASS_GAIN * parts[1], parts[2]]
    }

    fn classes(&self, place: (usize, usize), here: Option<&Assigned>, by: f64, gradient: &mut [f32]) -> f64 {
        let target = here.map(|one| (self.truths[one.truth].class as usize, one.score as f32));
        let mut sum = 0.0;
        for (class, (logit, gradient)) in self.row(place).1.iter().zip(gradient).enumerate() {
            let target = target.filter(|(is, _)| *is == class).map_or(0.0, |(_, score)| score);
            let (value, slope) = cross_entropy(*logit, target);
            sum += value;
            *gradient = by as f32 * slope;
        }
        sum
    }

    /// CIoU and DFL of a cell that learns a truth, weighted.
    fn distances(&self, place: (usize, usize), one: &Assigned, by: f64, gradient: &mut [f32]) -> [f64; 2] {
        let grid = self.outputs[place.0].grid;
        let logits = self.row(place).0;
        let truth = scaled(&self.truths[one.truth].bounds, grid.width as f64, grid.height as f64);
        let (overlap, [dx, dy, dw, dh]) = overlap_loss(BoxLoss::Ciou, free_box(grid, place.1, logits), truth);
        let (column, line) = column_and_line(grid, place.1);
        let (x, y) = (truth[0] - column - 0.5, truth[1] - line - 0.5);
        // Left, top, right, bottom: how far the truth reaches, and what the box's derivatives are with regard to each.
        let reach = [0.5 * truth[2] - x, 0.5 * truth[3] - y, 0.5 * truth[2] + x, 0.5 * truth[3] + y];
        let slopes = [dw - 0.5 * dx, dh - 0.5 * dy, dw + 0.5 * dx, dh + 0.5 * dy];
        let last = (self.reg_max - 1) as f64;
        let mut dfl = 0.0;
        let sides = logits.chunks_exact(self.reg_max).zip(gradient.chunks_exact_mut(self.reg_max));
        for ((logits, gradient), (reach, slope)) in sides.zip(reach.into_iter().zip(slopes)) {
            let side = Side {
                target: reach.min(last - SHORT_OF_LAST).max(0.0),
                slope: BOX_GAIN * one.score * by * slope,
                focal: DFL_GAIN * one.score * by / 4.0,
            };
            dfl += side.loss(logits, gradient) / 4.0;
        }
        [BOX_GAIN * one.score * overlap, DFL_GAIN * one.score * dfl]
    }
}

/// One of the four distances.
struct Side {
    /// In cells.
    target: f64,
    /// Derivative of the box's loss with regard to the distance.
    slope: f64,
    /// Weight of the distribution's own loss.
    focal: f64,
}

impl Side {
    /// The distribution's loss; with probabilities p and mean distance d, `slope p (i - d) + focal (p - target)` into `gradient`.
    fn loss(&self, logits: &[f32], gradient: &mut [f32]) -> f64 {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| f64::from(logit - largest).exp();
        let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
        let mean = logits.iter().enumerate().map(|(i, logit)| i as f64 * weight(*logit)).sum::<f64>() / total;
        let below = self.target.floor();
        let share = |i: usize| (1.0 - (self.target - i as f64).abs()).max(0.0);
        for (i, (logit, gradient)) in logits.iter().zip(gradient).enumerate() {
            let p = weight(*logit) / total;
            *gradient = (self.slope * p * (i as f64 - mean) + self.focal * (p - share(i))) as f32;
        }
        let cross_entropy = |i: usize| {
            logits.get(i).map_or(0.0, |logit| share(i) * (total.ln() - f64::from(logit - largest)))
        };
        cross_entropy(below as usize) + cross_entropy(below as usize + 1)
    }
}
