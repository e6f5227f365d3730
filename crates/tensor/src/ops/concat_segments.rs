//! Rows in front of each example: `y = [front; x_0; front; x_1; ...]`, for soft prompts and for prefix keys and values.
//!
//! Backward hands each row of the gradient to where the row came from; a front's gradient is summed over the segments
//! that it stands in front of, in order.

use crate::memory;
use crate::segments::Segments;
use crate::tape::{NodeId, Tape, Var};
use crate::tensor::Tensor;

/// Puts the rows of `front` `[n, C]` before every segment of `x` `[T, C]`: `[T + n B, C]` and its segments.
pub fn concat_segments(tape: &Tape, front: &Var, x: &Var, segments: &Segments) -> (Var, Segments) {
    concat_segments_each(tape, &vec![Some(front); segments.len()], x, segments)
}

/// As [`concat_segments`] with rows of its own, or none, for each segment: batches of several adapters.
///
/// # Panics
/// If there is not one entry for each segment, or the columns differ.
pub fn concat_segments_each(
    tape: &Tape,
    fronts: &[Option<&Var>],
    x: &Var,
    segments: &Segments,
) -> (Var, Segments) {
    assert_eq!((x.rows(), fronts.len()), (segments.rows(), segments.len()), "concat_segments: segments");
    let cols = x.cols();
    assert!(fronts.iter().flatten().all(|f| f.cols() == cols), "concat_segments: columns");
    let counts: Vec<usize> = fronts.iter().map(|f| f.map_or(0, Var::rows)).collect();
    let lengths: Vec<usize> = counts.iter().zip(segments.ranges()).map(|(n, own)| n + own.len()).collect();
    let joined = Segments::from_lengths(&lengths);
    let mut y = Tensor::scratch(joined.rows(), cols);
    for ((front, own), all) in fronts.iter().zip(segments.ranges()).zip(joined.ranges()) {
        let out = &mut y.data_mut()[all.start * cols..all.end * cols];
        let (first, rest) = out.split_at_mut((all.len() - own.len()) * cols);
        first.copy_from_slice(front.map_or(&[], |f| f.value().data()));
        rest.copy_from_slice(&x.value().data()[own.start * cols..own.end * cols]);
    }
    let nx = x.node();
    let nodes: Vec<Option<NodeId>> = fronts.iter().map(|f| f.and_then(Var::node)).collect();
    let needed = nx.is_some() || nodes.iter().any(Option::is_some);
    let (own, all) = (segments.clone(), joined.clone());
    let y = tape.record(y, needed, move |g, sink| {
        // A plan's dry run sees what one segment takes, and what adding another does.
        let seen = if memory::is_tracing() { 2 } else { nodes.len() };
        for ((node, n), all) in nodes.iter().zip(&counts).zip(all.ranges()).take(seen) {
            if node.is_some() {
                let rows = all.start * cols..(all.start + n) * cols;
                sink.add(*node, Tensor::from_slice(*n, cols, &g.data()[rows]));
            }
        }
        if nx.is_some() {
            sink.add(nx, own_rows(&g, &own, &all));
        }
    });
    (y, joined)
}

/// The gradient of `x`: the last rows of each joined segment.
fn own_rows(g: &Tensor, own: &Segments, all: &Segments) -> Tensor {
    let cols = g.cols();
    let mut dx = Tensor::scratch(own.rows(), cols);
    let data = dx.data_mut();
    for (own, all) in own.ranges().zip(all.ranges()) {
        let from = (all.end - own.len()) * cols..all.end * cols;
        data[own.start * cols..own.end * cols].copy_from_slice(&g.data()[from]);
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::super::{AttentionShape, attention};
    use super::*;
    use crate::params::Params;

    #[test]
    fn gradient_of_a_shared_front() {
        let segments = Segments::from_lengths(&[2, 0, 3]);
        check(&[random(2, 3, 1), random(5, 3, 2)], |tape, x| {
            concat_segments(tape, &x[0], &x[1], &segments).0
        });
    }

    #[test]
    fn gradient_of_fronts_of_their_own() {
        let segments = Segments::from_lengths(&[2, 1, 3, 1]);
        check(&[random(2, 3, 1), random(1, 3, 2), random(7, 3, 3)], |tape, x| {
            let fronts = [Some(&x[0]), None, Some(&x[1]), Some(&x[0])];
            concat_segments_each(tape, &fronts, &x[2], &segments).0
        });
    }

    #[test]
    fn rows_and_segments_are_in_order() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        let numbers =
            |from: usize, rows: usize| Var::constant(Tensor::from_fn(rows, 1, |r, _| (from + r) as f32));
        let (front, x) = (numbers(100, 2), numbers(0, 3));
        let fronts = [None, Some(&front)];
        let (y, segments) = concat_segments_each(&tape, &fronts, &x, &Segments::from_lengths(&[1, 2]));
        assert_eq!(y.value().data(), [0.0, 100.0, 101.0, 1.0, 2.0]);
        assert_eq!(segments, Segments::from_lengths(&[1, 4]));
    }

    fn shape(causal: bool, window: Option<usize>) -> AttentionShape {
        AttentionShape { heads: 4, kv_heads: 2, head_dim: 4, scale: 0.5, causal, window }
    }

    /// `x`: queries, keys, values, prefix keys, prefix values.
    fn prefixed(tape: &Tape, shape: AttentionShape, x: &[Var], segments: &Segments) -> Var {
        let (k, keys) = concat_segments(tape, &x[3], &x[1], segments);
        let (v, _) = concat_segments(tape, &x[4], &x[2], segments);
        attention(tape, shape, &x[0], segments, &k, &v, &keys)
    }

    fn attention_inputs(rows: usize) -> Vec<Tensor> {
        let of = |(i, (rows, cols)): (usize, (usize, usize))| random(rows, cols, i as u64);
        [(rows, 16), (rows, 8), (rows, 8), (3, 8), (3, 8)].into_iter().enumerate().map(of).collect()
    }

    #[test]
    fn gradients_of_attention_reach_the_prefix() {
        let segments = Segments::from_lengths(&[6, 1]);
        for shape in [shape(true, None), shape(false, None), shape(true, Some(4))] {
            check(&attention_inputs(7), |tape, x| prefixed(tape, shape, x, &segments));
        }
    }

    /// Under the causal mask a query sees the whole prefix and its own past: what it would see alone, as the last row.
    #[test]
    fn every_query_sees_the_prefix_and_its_past() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        let vars = |inputs: &[Tensor]| inputs.iter().cloned().map(Var::constant).collect::<Vec<Var>>();
        let first_rows =
            |t: &Tensor, rows: usize| Tensor::from_slice(rows, t.cols(), &t.data()[..rows * t.cols()]);
        let inputs = attention_inputs(6);
        let all = prefixed(&tape, shape(true, None), &vars(&inputs), &Segments::from_lengths(&[6]));
        for n in 1..=6 {
            let mut cut = inputs.clone();
            for t in &mut cut[..3] {
                *t = first_rows(t, n);
            }
            let alone = prefixed(&tape, shape(false, None), &vars(&cut), &Segments::from_lengths(&[n]));
            for (a, b) in all.value().row(n - 1).iter().zip(alone.value().row(n - 1)) {
                assert!((a - b).abs() < 1e-5, "query {n}: {a} {b}");
            }
        }
    }

    /// A window counts from the query's own position, so the prefix slides out of it like any other key.
    #[test]
    fn a_window_leaves_the_prefix_behind() {
        let params = Params::new();
        let tape = Tape::inference(&params);
        let segments = Segments::from_lengths(&[6]);
        let mut inputs = attention_inputs(6);
        let run = |inputs: &[Tensor]| {
            let vars: Vec<Var> = inputs.iter().cloned().map(Var::constant).collect();
            prefixed(&tape, shape(true, Some(4)), &vars, &segments).value().clone()
        };
        let before = run(&inputs);
        inputs[3] = random(3, 8, 77);
        inputs[4] = random(3, 8, 78);
        let after = run(&inputs);
        for row in 0..6 {
            assert_eq!(before.row(row) == after.row(row), row >= 3, "row {row}");
        }
    }
}
