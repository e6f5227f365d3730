//! Rotary positions (Su et al., 2021), the two halves of a head rotated against each other.
//!
//! `y1 = x1 cos - x2 sin`, `y2 = x2 cos + x1 sin`; backward turns the other way. `x1`, `x2` are the first and
//! second half of the rotated part of each head.

use std::sync::Arc;

use super::parallel::for_rows;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Cosines and sines of every row of a batch, `[T, D/2]` each, shared by all layers.
#[derive(Clone)]
pub struct RopeTable {
    cos: Arc<Tensor>,
    sin: Arc<Tensor>,
}

impl RopeTable {
    /// `positions[t]` is the position of row `t` in its example; `inv_freq` has D/2 frequencies. `scale` multiplies
    /// both tables (1 but for some rope scalings).
    pub fn new(positions: &[usize], inv_freq: &[f32], scale: f32) -> RopeTable {
        let half = inv_freq.len();
        let angle = |t: usize, i: usize| positions[t] as f32 * inv_freq[i];
        let cos = Tensor::from_fn(positions.len(), half, |t, i| angle(t, i).cos() * scale);
        let sin = Tensor::from_fn(positions.len(), half, |t, i| angle(t, i).sin() * scale);
        RopeTable { cos: Arc::new(cos), sin: Arc::new(sin) }
    }

    pub fn rows(&self) -> usize {
        self.cos.rows()
    }
}

/// Rotates in place; `sign` -1 turns back.
fn rotate(x: &mut Tensor, head_dim: usize, table: &RopeTable, sign: f32) {
    let (cols, half) = (x.cols(), table.cos.cols());
    for_rows(x.data_mut(), cols, |first, chunk| {
        for (i, row) in chunk.chunks_exact_mut(cols).enumerate() {
            rotate_row(row, head_dim, half, table.cos.row(first + i), table.sin.row(first + i), sign);
        }
    });
}

crate::multiversion! {
    fn rotate_row(row: &mut [f32], head_dim: usize, half: usize, cos: &[f32], sin: &[f32], sign: f32) {
        for head in row.chunks_exact_mut(head_dim) {
            let (x1, rest) = head.split_at_mut(half);
            for (((a, b), c), s) in x1.iter_mut().zip(&mut rest[..half]).zip(cos).zip(sin) {
                let s = s * sign;
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

/// Rotates every head of `x` `[T, H D]`. Heads longer than the table's frequencies keep their tail.
pub fn rope(tape: &Tape, x: Var, head_dim: usize, table: &RopeTable) -> Var {
    assert_eq!(x.rows(), table.rows(), "rope: rows");
    assert!(x.cols().is_multiple_of(head_dim) && 2 * table.cos.cols() <= head_dim, "rope: head size");
    let node = x.node();
    let mut y = x.value().clone();
    drop(x); // if nobody else holds the value, it is rotated in place
    rotate(&mut y, head_dim, table, 1.0);
    let table = table.clone();
    tape.record(y, node.is_some(), move |mut g, sink| {
        rotate(&mut g, head_dim, &table, -1.0);
        sink.add(node, g);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        let table = RopeTable::new(&[0, 3, 1000], &[1.0, 0.1], 1.0);
        check(&[random(3, 12, 1)], |tape, x| rope(tape, x[0].clone(), 6, &table));
    }

    #[test]
    fn position_zero_is_the_identity_and_norms_are_kept() {
        let x = random(2, 8, 1);
        let table = RopeTable::new(&[0, 5], &[1.0, 0.5], 1.0);
        let mut y = x.clone();
        rotate(&mut y, 4, &table, 1.0);
        assert_eq!(x.row(0), y.row(0));
        let norm = |t: &Tensor| t.row(1).iter().map(|v| v * v).sum::<f32>();
        assert!((norm(&x) - norm(&y)).abs() < 1e-5);
    }
}
