//! From a detector's outputs to boxes with scores.
//!
//! YOLOv3, v4: `x = (s sigmoid(tx) - (s - 1) / 2 + column) / width`, `w = anchor exp(tw) / input`, score = objectness x class.
//! YOLOv8: each side's distance is the mean of its distribution in cells, score = class.

use retune_tensor::Grid;

use super::head::{AnchorScale, Detector, Generation, Output};
use super::loss::sigmoid;
use super::{BoxF, Detection};
use crate::error::Result;

/// Beyond it `exp` of a width is no width of anything, and overflows soon.
const LOG_SIZE_MAX: f32 = 20.0;

/// Every box and class that scores at least `confidence`, of each picture; a box once for each such class. Boxes are fractions of the network's input.
///
/// # Errors
/// If an output has another shape than the detector says.
pub fn decode(detector: &Detector, outputs: &[Output], confidence: f32) -> Result<Vec<Vec<Detection>>> {
    let images = detector.check(outputs)?;
    let mut found = vec![Vec::new(); images];
    for (i, output) in outputs.iter().enumerate() {
        for row in 0..output.grid.rows() {
            let (image, cell) = (output.grid.place(row).0, row % output.grid.pixels());
            let (values, found) = (output.values.row(row), &mut found[image]);
            match &detector.generation {
                Generation::Anchors { scales } => {
                    decode_anchors(&scales[i], output, cell, values, confidence, found);
                }
                Generation::Free { reg_max } => {
                    decode_free(*reg_max, output.grid, cell, values, confidence, found);
                }
            }
        }
    }
    Ok(found)
}

/// Column and line of a cell of one picture.
pub fn column_and_line(grid: Grid, cell: usize) -> (f64, f64) {
    ((cell % grid.width) as f64, (cell / grid.width) as f64)
}

fn decode_anchors(
    scale: &AnchorScale,
    output: &Output,
    cell: usize,
    values: &[f32],
    confidence: f32,
    found: &mut Vec<Detection>,
) {
    let columns = values.len() / scale.anchors.len().max(1);
    for (anchor, values) in scale.anchors.iter().zip(values.chunks_exact(columns)) {
        let objectness = sigmoid(values[4]);
        // No class makes it more.
        if objectness < confidence || objectness.is_nan() {
            continue;
        }
        let [x, y, w, h] = anchor_box(scale, *anchor, output.grid, output.stride, cell, values);
        let (width, height) = (output.grid.width as f64, output.grid.height as f64);
        let bounds = fractions(x / width, y / height, w / width, h / height);
        push_classes(&values[5..], |class| objectness * sigmoid(class), confidence, bounds, found);
    }
}

/// The box that `tx, ty, tw, th` say, in cells.
pub fn anchor_box(
    scale: &AnchorScale,
    anchor: (f32, f32),
    grid: Grid,
    stride: usize,
    cell: usize,
    t: &[f32],
) -> [f64; 4] {
    let s = f64::from(scale.scale_x_y);
    let within = |t: f32| s * f64::from(sigmoid(t)) - (s - 1.0) / 2.0;
    let size = |anchor: f32, t: f32| {
        f64::from(anchor) / stride as f64 * f64::from(t.clamp(-LOG_SIZE_MAX, LOG_SIZE_MAX)).exp()
    };
    let (column, line) = column_and_line(grid, cell);
    [column + within(t[0]), line + within(t[1]), size(anchor.0, t[2]), size(anchor.1, t[3])]
}

fn decode_free(
    reg_max: usize,
    grid: Grid,
    cell: usize,
    values: &[f32],
    confidence: f32,
    found: &mut Vec<Detection>,
) {
    let (distances, classes) = values.split_at(4 * reg_max);
    if !classes.iter().any(|class| sigmoid(*class) >= confidence) {
        return;
    }
    let [x, y, w, h] = free_box(grid, cell, distances);
    let (width, height) = (grid.width as f64, grid.height as f64);
    let bounds = fractions(x / width, y / height, w / width, h / height);
    push_classes(classes, sigmoid, confidence, bounds, found);
}

/// The box that four distributions of distances from a cell's middle say, in cells.
pub fn free_box(grid: Grid, cell: usize, distances: &[f32]) -> [f64; 4] {
    let mut sides = [0.0; 4];
    for (side, logits) in sides.iter_mut().zip(distances.chunks_exact((distances.len() / 4).max(1))) {
        *side = mean_distance(logits);
    }
    let [left, top, right, bottom] = sides;
    let (column, line) = column_and_line(grid, cell);
    [column + 0.5 + 0.5 * (right - left), line + 0.5 + 0.5 * (bottom - top), left + right, top + bottom]
}

/// `sum_i i softmax(logits)_i`.
fn mean_distance(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut total, mut mean) = (0.0, 0.0);
    for (i, logit) in logits.iter().enumerate() {
        let weight = (logit - largest).exp();
        total += weight;
        mean += i as f32 * weight;
    }
    f64::from(mean / total)
}

fn fractions(x: f64, y: f64, w: f64, h: f64) -> BoxF {
    BoxF { x: x as f32, y: y as f32, w: w as f32, h: h as f32 }
}

/// A detection for each class that scores enough, if the box is one.
fn push_classes(
    classes: &[f32],
    score: impl Fn(f32) -> f32,
    confidence: f32,
    bounds: BoxF,
    found: &mut Vec<Detection>,
) {
    if ![bounds.x, bounds.y, bounds.w, bounds.h].iter().all(|v| v.is_finite()) {
        return;
    }
    for (class, logit) in (0u32..).zip(classes) {
        let score = score(*logit);
        if score >= confidence {
            found.push(Detection { class, score, bounds });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retune_tensor::Tensor;

    fn close(a: f32, b: f64) {
        assert!((f64::from(a) - b).abs() < 1e-6, "{a} for {b}");
    }

    fn labels() -> Vec<String> {
        vec!["cat".into(), "dog".into()]
    }

    /// 2 pictures of 2 x 3 cells, 2 anchors, everything improbable but what is set.
    fn anchors(set: &[(usize, usize, [f32; 7])]) -> (Detector, Tensor, Grid) {
        let scale = AnchorScale {
            anchors: vec![(10.0, 20.0), (48.0, 16.0)],
            scale_x_y: 1.05,
            ..AnchorScale::default()
        };
        let generation = Generation::Anchors { scales: vec![scale] };
        let mut values = Tensor::from_fn(12, 14, |_, _| -9.0);
        for (row, anchor, columns) in set {
            values.data_mut()[row * 14 + anchor * 7..][..7].copy_from_slice(columns);
        }
        let grid = Grid { images: 2, height: 2, width: 3 };
        (Detector { labels: labels(), generation, input: (64, 96) }, values, grid)
    }

    #[test]
    fn boxes_of_anchors() {
        let hit = [0.3, -0.2, 0.5, -0.4, 2.0, 1.0, -8.0];
        let (detector, values, grid) = anchors(&[(10, 1, hit)]);
        let found = decode(&detector, &[Output { values: &values, grid, stride: 32 }], 0.1).unwrap();
        assert!(found[0].is_empty() && found[1].len() == 1);
        let [Detection { class: 0, score, bounds }] = found[1][..] else { panic!("{found:?}") };
        let s = |x: f64| 1.0 / (1.0 + (-x).exp());
        close(score, s(2.0) * s(1.0));
        // Row 10 is picture 1, line 1, column 1.
        close(bounds.x, (1.05 * s(0.3) - 0.025 + 1.0) / 3.0);
        close(bounds.y, (1.05 * s(-0.2) - 0.025 + 1.0) / 2.0);
        close(bounds.w, 48.0 * 0.5f64.exp() / 96.0);
        close(bounds.h, 16.0 * (-0.4f64).exp() / 64.0);
    }

    #[test]
    fn a_box_counts_once_for_each_class() {
        let hit = [0.0, 0.0, 0.0, 0.0, 9.0, 1.0, 2.0];
        let (detector, values, grid) = anchors(&[(0, 0, hit)]);
        let output = Output { values: &values, grid, stride: 32 };
        let found = decode(&detector, &[output], 0.5).unwrap();
        assert_eq!(found[0].iter().map(|d| d.class).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(decode(&detector, &[output], 0.8).unwrap()[0].len(), 1);
    }

    #[test]
    fn what_is_not_finite_is_dropped() {
        let nan = f32::NAN;
        let (detector, values, grid) = anchors(&[
            (0, 0, [0.0, 0.0, 0.0, 0.0, nan, 1.0, 1.0]),
            (1, 0, [0.0, nan, 0.0, 0.0, 9.0, 1.0, 1.0]),
            (2, 0, [0.0, 0.0, 1e30, 0.0, 9.0, nan, 9.0]),
        ]);
        let found = decode(&detector, &[Output { values: &values, grid, stride: 32 }], 0.1).unwrap();
        assert_eq!(found[0].len(), 1, "{found:?}");
        assert!(found[0][0].class == 1 && found[0][0].bounds.w.is_finite());
    }

    #[test]
    fn boxes_without_anchors() {
        let generation = Generation::Free { reg_max: 4 };
        let detector = Detector { labels: labels(), generation, input: (64, 96) };
        let grid = Grid { images: 1, height: 2, width: 3 };
        let mut values = Tensor::from_fn(6, 18, |_, _| -9.0);
        // Left 2 for sure, top half 1 half 2, right 3, bottom 0.
        let row: [f32; 18] = [
            -90.0, -90.0, 90.0, -90.0, -90.0, 5.0, 5.0, -90.0, -90.0, -90.0, -90.0, 90.0, 90.0, -90.0, -90.0,
            -90.0, -1.0, 1.0,
        ];
        values.data_mut()[4 * 18..5 * 18].copy_from_slice(&row);
        let found = decode(&detector, &[Output { values: &values, grid, stride: 32 }], 0.5).unwrap();
        let [Detection { class: 1, score, bounds }] = found[0][..] else { panic!("{found:?}") };
        close(score, 1.0 / (1.0 + (-1.0f64).exp()));
        // The middle of cell (1, 1), moved by half of what the sides differ.
        close(bounds.x, (1.5 + 0.5) / 3.0);
        close(bounds.y, (1.5 - 0.75) / 2.0);
        close(bounds.w, 5.0 / 3.0);
        close(bounds.h, 1.5 / 2.0);
    }
}
