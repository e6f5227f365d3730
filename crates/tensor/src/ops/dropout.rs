//! Dropout (Srivastava et al., 2014) with stateless masks: `y = x m / (1 - p)`, `m` 0 with probability `p`.
//!
//! The mask of an element is a function of (seed, epoch, example, site, row within the example, channel): neither
//! batching, order, threads nor a resume can change it, and the backward pass makes it again.

use std::sync::Arc;

use super::parallel::for_rows;
use crate::rng::{fnv1a, philox};
use crate::segments::Segments;
use crate::tape::{Saved, Tape, Var};
use crate::tensor::Tensor;

/// Identifies the rows of a batch for their masks.
#[derive(Clone)]
pub struct DropoutRows {
    row_keys: Arc<[u64]>,
}

impl DropoutRows {
    /// `examples[i]` is the stable key of segment `i`.
    pub fn new(seed: u64, epoch: u64, segments: &Segments, examples: &[u64]) -> DropoutRows {
        let mut row_keys = Vec::with_capacity(segments.rows());
        for (range, &example) in segments.ranges().zip(examples) {
            for row in 0..range.len() {
                row_keys.push(mix(mix(mix(seed, epoch), example), row as u64));
            }
        }
        DropoutRows { row_keys: row_keys.into() }
    }

    pub fn rows(&self) -> usize {
        self.row_keys.len()
    }
}

/// Folds `b` into `a` (one round of splitmix64).
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn apply(x: &mut Tensor, rows: &DropoutRows, site: u64, p: f32) {
    let cols = x.cols();
    let threshold = (f64::from(p) * 4_294_967_296.0) as u64;
    let keep = 1.0 / (1.0 - p);
    for_rows(x.data_mut(), cols, |first, chunk| {
        for (i, row) in chunk.chunks_exact_mut(cols).enumerate() {
            let key = rows.row_keys[first + i];
            let key = [key as u32, (key >> 32) as u32];
            for (block, four) in row.chunks_mut(4).enumerate() {
                let bits = philox([block as u32, 0, site as u32, (site >> 32) as u32], key);
                for (x, b) in four.iter_mut().zip(bits) {
                    *x *= if u64::from(b) < threshold { 0.0 } else { keep };
                }
            }
        }
    });
}

/// Drops elements of `x` `[T, C]` with probability `p` in [0, 1); `site` is the module path.
pub fn dropout(tape: &Tape, x: &Var, rows: &DropoutRows, site: &str, p: f32) -> Var {
    assert!((0.0..1.0).contains(&p) && x.rows() == rows.rows(), "dropout: p {p}, rows {}", x.rows());
    let site = fnv1a(site.as_bytes());
    let mut y = x.value().clone();
    apply(&mut y, rows, site, p);
    let (node, saved) = (x.node(), x.saved());
    let out = {
        let rows = rows.clone();
        tape.record(y, node.is_some(), move |mut g, sink| {
            apply(&mut g, &rows, site, p);
            sink.add(node, g);
        })
    };
    let rows = rows.clone();
    out.with_recipe(move || {
        let mut y = Saved::get(&saved);
        apply(&mut y, &rows, site, p);
        y
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::params::Params;

    #[test]
    fn gradient() {
        let rows = DropoutRows::new(1, 2, &Segments::from_lengths(&[2, 3]), &[10, 11]);
        check(&[random(5, 6, 1)], |tape, x| dropout(tape, &x[0], &rows, "layer", 0.4));
    }

    #[test]
    fn masks_follow_the_example_not_the_batch() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        let ones = |n| Var::constant(Tensor::from_fn(n, 40, |_, _| 1.0));
        let both = DropoutRows::new(1, 2, &Segments::from_lengths(&[2, 3]), &[10, 11]);
        let alone = DropoutRows::new(1, 2, &Segments::from_lengths(&[3]), &[11]);
        let a = dropout(&tape, &ones(5), &both, "layer", 0.5);
        let b = dropout(&tape, &ones(3), &alone, "layer", 0.5);
        assert_eq!(&a.value().data()[80..], b.value().data());
    }

    #[test]
    fn keeps_the_expected_share() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        let rows = DropoutRows::new(3, 0, &Segments::from_lengths(&[100]), &[0]);
        let x = Var::constant(Tensor::from_fn(100, 100, |_, _| 1.0));
        let y = dropout(&tape, &x, &rows, "s", 0.3);
        let mean = y.value().data().iter().sum::<f32>() / 10_000.0;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
    }
}
