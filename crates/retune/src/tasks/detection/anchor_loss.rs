//! The loss of YOLOv3 and v4 (arXiv:1804.02767, arXiv:2004.10934), as the terms whose derivatives darknet's yolo layer computes.
//!
//! A truth belongs to the cell that its centre lies in and to the anchor, of all scales, whose shape it overlaps best; with
//! `iou_thresh` below 1 also to those it overlaps by more. There: cross-entropy of every class, of objectness 1, and the box:
//! `mse`: `(2 - w h) (s BCE(tx, x) + s BCE(ty, y) + (tw - log w)^2 / 2 + (th - log h)^2 / 2)`; else `2 (W + H) (1 - IoU)`.
//! Everywhere else objectness 0, except where the box overlaps some truth by more than `ignore_thresh`.
//!
//! darknet's deltas of the IoU losses leave the decoding's chain rule out, which is `1 / (4 W)` in the middle of a cell of a grid
//! W wide. Here the derivative is the loss's own; the factor `2 (W + H)` keeps the meaning of a cfg's `iou_normalizer`.

use std::collections::BTreeMap;

use super::LabelledBox;
use super::decode::{anchor_box, column_and_line};
use super::head::{AnchorScale, BoxLoss, Output};
use super::loss::{LossParts, cross_entropy, for_pictures, rows_of, sigmoid, summed};
use super::overlap::{Centred, iou, overlap_loss, scaled};

const NAMES: [&str; 3] = ["box", "objectness", "class"];

/// One predicted box: which output, which cell of the picture, which of the output's anchors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    scale: usize,
    cell: usize,
    anchor: usize,
}

/// The truths (by index) that places have to learn.
type Assigned = BTreeMap<Place, Vec<usize>>;

/// As [`super::loss`], of checked outputs and truths.
pub fn loss(
    scales: &[AnchorScale],
    classes: usize,
    outputs: &[Output],
    truths: &[Vec<LabelledBox>],
    denominator: f64,
) -> LossParts {
    let (gradients, parts) = for_pictures(outputs, truths.len(), |image, gradients| {
        let picture = Picture { scales, classes, outputs, image, truths: &truths[image] };
        picture.loss(1.0 / denominator, gradients)
    });
    summed(NAMES, &parts, gradients, denominator)
}

struct Picture<'a> {
    scales: &'a [AnchorScale],
    classes: usize,
    outputs: &'a [Output<'a>],
    image: usize,
    truths: &'a [LabelledBox],
}

impl Picture<'_> {
    /// Writes the gradients, times `by`; the parts of the loss, not scaled.
    fn loss(&self, by: f64, gradients: &mut [&mut [f32]]) -> [f64; 3] {
        let mut assigned = self.by_shape();
        let mut parts = [0.0; 3];
        for (scale, gradient) in gradients.iter_mut().enumerate() {
            self.objectness(scale, &mut assigned, by, gradient, &mut parts);
        }
        for (place, truths) in &assigned {
            let columns = 5 + self.classes;
            let all = self.scales[place.scale].anchors.len() * columns;
            let at = place.cell * all + place.anchor * columns;
            let gradient = &mut gradients[place.scale][at..at + columns];
            let t = &rows_of(&self.outputs[place.scale], self.image)[at..at + columns];
            parts[0] += self.boxes(*place, truths, t, by, gradient);
            parts[2] += self.class(*place, truths, t, by, gradient);
        }
        parts
    }

    /// The truths by the shapes of the anchors.
    fn by_shape(&self) -> Assigned {
        let mut assigned = Assigned::new();
        for (i, truth) in self.truths.iter().enumerate() {
            let shapes: Vec<(usize, usize, f64)> = self.shape_overlaps(truth);
            // The first of equals.
            let Some(best) = (0..shapes.len()).reduce(|a, b| if shapes[b].2 > shapes[a].2 { b } else { a })
            else {
                continue;
            };
            for (n, &(scale, anchor, overlap)) in shapes.iter().enumerate() {
                let thresh = f64::from(self.scales[scale].iou_thresh);
                if n == best || (thresh < 1.0 && overlap > thresh) {
                    let place = Place { scale, cell: self.cell(scale, truth), anchor };
                    assigned.entry(place).or_default().push(i);
                }
            }
        }
        assigned
    }

    /// Scale, anchor, and how much its shape overlaps the truth's.
    fn shape_overlaps(&self, truth: &LabelledBox) -> Vec<(usize, usize, f64)> {
        let of_scale = |(scale, (settings, output)): (usize, (&AnchorScale, &Output))| {
            let [_, _, w, h] = self.in_cells(scale, truth);
            let cell = output.stride as f64;
            let overlap = move |&(anchor_w, anchor_h): &(f32, f32)| {
                let anchor = [0.0, 0.0, f64::from(anchor_w) / cell, f64::from(anchor_h) / cell];
                iou(anchor, [0.0, 0.0, w, h])
            };
            settings.anchors.iter().enumerate().map(move |(n, a)| (scale, n, overlap(a))).collect::<Vec<_>>()
        };
        self.scales.iter().zip(self.outputs).enumerate().flat_map(of_scale).collect()
    }

    /// A truth in cells of an output.
    fn in_cells(&self, scale: usize, truth: &LabelledBox) -> Centred {
        let grid = self.outputs[scale].grid;
        scaled(&truth.bounds, grid.width as f64, grid.height as f64)
    }

    /// The cell that a truth's centre lies in; the nearest, if it lies outside the picture.
    fn cell(&self, scale: usize, truth: &LabelledBox) -> usize {
        let grid = self.outputs[scale].grid;
        let [x, y, ..] = self.in_cells(scale, truth);
        let within = |v: f64, cells: usize| (v.max(0.0) as usize).min(cells.saturating_sub(1));
        within(y, grid.height) * grid.width + within(x, grid.width)
    }

    /// Objectness of all boxes of one output; those that overlap a truth enough become its places too.
    fn objectness(
        &self,
        scale: usize,
        assigned: &mut Assigned,
        by: f64,
        gradient: &mut [f32],
        parts: &mut [f64; 3],
    ) {
        let settings = &self.scales[scale];
        let output = &self.outputs[scale];
        let truths: Vec<Centred> = self.truths.iter().map(|truth| self.in_cells(scale, truth)).collect();
        let weight = f64::from(settings.obj_normalizer);
        let columns = 5 + self.classes;
        let anchors = settings.anchors.len().max(1);
        let rows = rows_of(output, self.image).chunks_exact(columns).zip(gradient.chunks_exact_mut(columns));
        for (n, (t, gradient)) in rows.enumerate() {
            let place = Place { scale, cell: n / anchors, anchor: n % anchors };
            let predicted = || {
                anchor_box(
                    settings,
                    settings.anchors[place.anchor],
                    output.grid,
                    output.stride,
                    place.cell,
                    t,
                )
            };
            let (best, overlap) = if truths.is_empty() { (0, 0.0) } else { nearest(predicted(), &truths) };
            if settings.truth_thresh < 1.0 && overlap > f64::from(settings.truth_thresh) {
                let learned = assigned.entry(place).or_default();
                if !learned.contains(&best) {
                    learned.push(best);
                }
            }
            let target = assigned.contains_key(&place);
            if !target && overlap > f64::from(settings.ignore_thresh) {
                continue;
            }
            let (value, slope) = cross_entropy(t[4], if target { 1.0 } else { 0.0 });
            parts[1] += weight * value;
            gradient[4] = (weight * by * f64::from(slope)) as f32;
        }
    }

    /// The box against all truths of its place, divided by how many classes they have.
    fn boxes(&self, place: Place, truths: &[usize], t: &[f32], by: f64, gradient: &mut [f32]) -> f64 {
        let settings = &self.scales[place.scale];
        let mut classes: Vec<u32> = truths.iter().map(|i| self.truths[*i].class).collect();
        classes.sort_unstable();
        classes.dedup();
        let weight = f64::from(settings.iou_normalizer) / classes.len() as f64;
        let mut sum = 0.0;
        let mut slopes = [0.0; 4];
        for i in truths {
            let (value, slope) = match settings.box_loss {
                BoxLoss::Mse => self.squares(place, &self.truths[*i], t),
                kind => self.overlap(kind, place, &self.truths[*i], t),
            };
            sum += weight * value;
            for (all, one) in slopes.iter_mut().zip(slope) {
                *all += weight * by * one;
            }
        }
        for (gradient, slope) in gradient.iter_mut().zip(slopes) {
            *gradient = slope as f32;
        }
        sum
    }

    /// Value and derivatives of the box's loss, `mse`.
    fn squares(&self, place: Place, truth: &LabelledBox, t: &[f32]) -> (f64, [f64; 4]) {
        let (settings, output) = (&self.scales[place.scale], &self.outputs[place.scale]);
        let s = f64::from(settings.scale_x_y);
        let anchor = settings.anchors[place.anchor];
        let (column, line) = column_and_line(output.grid, place.cell);
        let [x, y, w, h] = self.in_cells(place.scale, truth);
        let small = 2.0 - f64::from(truth.bounds.w) * f64::from(truth.bounds.h);
        let centre = |at: f64, t: f32| {
            let target = (at + (s - 1.0) / 2.0) / s;
            let (value, slope) = cross_entropy(t, target as f32);
            (small * s * value, small * s * f64::from(slope))
        };
        let size = |cells: f64, anchor: f32, t: f32| {
            let off = f64::from(t) - (cells * output.stride as f64 / f64::from(anchor)).ln();
            (small * off * off / 2.0, small * off)
        };
        let terms = [
            centre(x - column, t[0]),
            centre(y - line, t[1]),
            size(w, anchor.0, t[2]),
            size(h, anchor.1, t[3]),
        ];
        (terms.iter().map(|term| term.0).sum(), terms.map(|term| term.1))
    }

    /// Value and derivatives of the box's loss, the others.
    fn overlap(&self, kind: BoxLoss, place: Place, truth: &LabelledBox, t: &[f32]) -> (f64, [f64; 4]) {
        let (settings, output) = (&self.scales[place.scale], &self.outputs[place.scale]);
        let anchor = settings.anchors[place.anchor];
        let predicted = anchor_box(settings, anchor, output.grid, output.stride, place.cell, t);
        let (value, [dx, dy, dw, dh]) = overlap_loss(kind, predicted, self.in_cells(place.scale, truth));
        let by = 2.0 * (output.grid.width + output.grid.height) as f64;
        let within = |t: f32| {
            let sigmoid = f64::from(sigmoid(t));
            f64::from(settings.scale_x_y) * sigmoid * (1.0 - sigmoid)
        };
        let slopes = [dx * within(t[0]), dy * within(t[1]), dw * predicted[2], dh * predicted[3]];
        (by * value, slopes.map(|slope| by * slope))
    }

    /// Cross-entropy of the classes of a place.
    fn class(&self, place: Place, truths: &[usize], t: &[f32], by: f64, gradient: &mut [f32]) -> f64 {
        let settings = &self.scales[place.scale];
        let weight = f64::from(settings.cls_normalizer);
        let low = 0.5 * settings.label_smoothing;
        let mut sum = 0.0;
        for (class, (t, gradient)) in (0u32..).zip(t[5..].iter().zip(&mut gradient[5..])) {
            let is = truths.iter().any(|i| self.truths[*i].class == class);
            let (value, slope) = cross_entropy(*t, if is { 1.0 - low } else { low });
            sum += weight * value;
            *gradient = (weight * by * f64::from(slope)) as f32;
        }
        sum
    }
}

/// The truth that a box overlaps most, and by how much.
fn nearest(predicted: Centred, truths: &[Centred]) -> (usize, f64) {
    let overlaps = truths.iter().map(|truth| iou(predicted, *truth)).enumerate();
    overlaps.fold((0, 0.0), |best, (i, overlap)| if overlap > best.1 { (i, overlap) } else { best })
}
