//! Task-aligned assignment (TOOD, arXiv:2108.07755): which cells of a detector without anchors learn which truth.
//!
//! Alignment `t = score^alpha CIoU^beta` of the cells whose middle lies in the truth; each truth takes the `TOPK` best.
//! A cell that several took goes to the truth it overlaps most. Its target score is `t / max t * max CIoU`, maxima over the truth's cells.

use super::overlap::{Centred, ciou};

const TOPK: usize = 10;
const ALPHA: f64 = 0.5;
const BETA: i32 = 6;
/// Keeps a truth whose cells are not aligned at all from dividing by zero.
const TINY: f64 = 1e-9;

/// A cell of any of the outputs, in pixels of the network's input.
#[derive(Clone, Copy)]
pub struct Cell {
    pub middle: (f64, f64),
    pub predicted: Centred,
}

/// What a cell has to learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assigned {
    pub cell: usize,
    pub truth: usize,
    /// The target of the truth's class, and the weight of the box.
    pub score: f64,
}

/// How well a cell and a truth fit.
#[derive(Clone, Copy)]
struct Fit {
    cell: usize,
    alignment: f64,
    overlap: f64,
}

/// The cells that learn something, in order. `score(cell, truth)` is the score of the truth's class.
pub fn assign(cells: &[Cell], truths: &[Centred], score: impl Fn(usize, usize) -> f64) -> Vec<Assigned> {
    let fits: Vec<Vec<Fit>> =
        (0..truths.len()).map(|t| fits(cells, truths[t], |cell| score(cell, t))).collect();
    let owners = owners(cells.len(), &fits);
    let mut best = vec![(0.0f64, 0.0f64); truths.len()];
    for (truth, fit) in owners.iter().flatten() {
        let (alignment, overlap) = &mut best[*truth];
        *alignment = alignment.max(fit.alignment);
        *overlap = overlap.max(fit.overlap);
    }
    let target = |(truth, fit): &(usize, Fit)| {
        let (alignment, overlap) = best[*truth];
        let score = fit.alignment * overlap / (alignment + TINY);
        Assigned { cell: fit.cell, truth: *truth, score }
    };
    owners.iter().flatten().map(target).collect()
}

/// All cells whose middle lies in a truth, in order.
fn fits(cells: &[Cell], truth: Centred, score: impl Fn(usize) -> f64) -> Vec<Fit> {
    let [x, y, w, h] = truth;
    let inside = |at: (f64, f64)| (at.0 - x).abs() < 0.5 * w - TINY && (at.1 - y).abs() < 0.5 * h - TINY;
    let fit = |(cell, place): (usize, &Cell)| {
        let overlap = ciou(place.predicted, truth).max(0.0);
        Fit { cell, alignment: score(cell).powf(ALPHA) * overlap.powi(BETA), overlap }
    };
    cells.iter().enumerate().filter(|(_, cell)| inside(cell.middle)).map(fit).collect()
}

/// For each cell the truth that it goes to, if any.
fn owners(cells: usize, fits: &[Vec<Fit>]) -> Vec<Option<(usize, Fit)>> {
    let mut owners: Vec<Option<(usize, Fit)>> = vec![None; cells];
    let mut disputed = vec![false; cells];
    for (truth, fits) in fits.iter().enumerate() {
        let mut order: Vec<&Fit> = fits.iter().filter(|fit| fit.alignment > 0.0).collect();
        order.sort_by(|a, b| b.alignment.total_cmp(&a.alignment));
        for fit in order.into_iter().take(TOPK) {
            disputed[fit.cell] = owners[fit.cell].is_some();
            owners[fit.cell] = Some((truth, *fit));
        }
    }
    // Whoever overlaps most wins, the first of equals; even a truth that did not take the cell itself.
    let mut most = vec![f64::NEG_INFINITY; cells];
    for (truth, fits) in fits.iter().enumerate() {
        for fit in fits.iter().filter(|fit| disputed[fit.cell]) {
            if fit.overlap > most[fit.cell] {
                most[fit.cell] = fit.overlap;
                owners[fit.cell] = Some((truth, *fit));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4 x 4 cells of 8 pixels, each predicting `predicted`.
    fn cells(predicted: impl Fn(usize) -> Centred) -> Vec<Cell> {
        let middle = |i: usize| ((i % 4) as f64 * 8.0 + 4.0, (i / 4) as f64 * 8.0 + 4.0);
        (0..16).map(|i| Cell { middle: middle(i), predicted: predicted(i) }).collect()
    }

    #[test]
    fn the_best_ten_of_the_cells_inside() {
        let truth = [16.0, 16.0, 32.0, 32.0];
        // All predict the truth itself; the score alone tells them apart.
        let all = assign(&cells(|_| truth), &[truth], |cell, _| 0.05 * (cell + 1) as f64);
        assert_eq!(all.iter().map(|a| a.cell).collect::<Vec<_>>(), (6..16).collect::<Vec<_>>());
        assert!((all[9].score - 1.0).abs() < 1e-6);
        assert!((all[0].score - (0.35f64 / 0.8).sqrt()).abs() < 1e-6);
        let corner = assign(&cells(|_| truth), &[[7.0, 7.0, 14.0, 14.0]], |_, _| 0.5);
        assert_eq!(corner.iter().map(|a| a.cell).collect::<Vec<_>>(), [0, 1, 4, 5]);
    }

    #[test]
    fn a_disputed_cell_goes_where_it_overlaps_most() {
        let (a, b) = ([11.0, 16.0, 22.0, 32.0], [20.0, 16.0, 24.0, 32.0]);
        let all = assign(&cells(|i| if i % 2 == 0 { a } else { b }), &[a, b], |_, _| 0.9);
        for Assigned { cell, truth, .. } in all {
            // Columns 0 lies in a alone, 3 in b alone, 1 and 2 in both.
            let expected = match cell % 4 {
                0 => 0,
                3 => 1,
                column => column % 2,
            };
            assert_eq!(truth, expected, "cell {cell}");
        }
    }

    #[test]
    fn nothing_to_assign() {
        let far = [100.0, 100.0, 4.0, 4.0];
        assert!(assign(&cells(|_| far), &[], |_, _| 1.0).is_empty());
        assert!(assign(&cells(|_| far), &[far], |_, _| 1.0).is_empty(), "no middle lies in it");
        let nan = [f64::NAN; 4];
        assert!(assign(&cells(|_| nan), &[[16.0, 16.0, 32.0, 32.0]], |_, _| f64::NAN).is_empty());
    }
}
