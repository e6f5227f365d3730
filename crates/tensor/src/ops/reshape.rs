//! `y = x` seen in another shape of as many elements: `[T, H D]` as `[T H, D]` for norms over heads.

use crate::tape::{Tape, Var};

/// `x` as `[rows, cols]`.
pub fn reshape(tape: &Tape, x: &Var, rows: usize, cols: usize) -> Var {
    let (old_rows, old_cols, node) = (x.rows(), x.cols(), x.node());
    tape.record(x.value().clone().reshaped(rows, cols), node.is_some(), move |g, sink| {
        sink.add(node, g.reshaped(old_rows, old_cols));
    })
}
