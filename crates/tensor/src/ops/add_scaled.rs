//! `y = a + s b` and `y = s x` for a fixed number `s`; backward: `da = g`, `db = s g`.

use super::parallel::for_rows;
use crate::kernel::simd;
use crate::tape::{Tape, Var};

/// `a + s b`, both `[T, C]`.
pub fn add_scaled(tape: &Tape, a: &Var, b: &Var, s: f32) -> Var {
    assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()), "add_scaled: shapes differ");
    let mut y = a.value().clone();
    let xb = b.value().data();
    for_rows(y.data_mut(), 1, |first, chunk| simd::axpy(s, &xb[first..], chunk));
    let (na, nb) = (a.node(), b.node());
    tape.record(y, na.is_some() || nb.is_some(), move |g, sink| {
        sink.add(na, g.clone());
        if nb.is_some() {
            let mut g = g;
            g.scale_assign(s);
            sink.add(nb, g);
        }
    })
}

/// `s x`.
pub fn scale(tape: &Tape, x: &Var, s: f32) -> Var {
    let mut y = x.value().clone();
    y.scale_assign(s);
    let node = x.node();
    tape.record(y, node.is_some(), move |mut g, sink| {
        g.scale_assign(s);
        sink.add(node, g);
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        check(&[random(3, 5, 1), random(3, 5, 2)], |tape, x| add_scaled(tape, &x[0], &x[1], -0.7));
        check(&[random(3, 5, 1)], |tape, x| add_scaled(tape, &x[0], &x[0], 2.0));
        check(&[random(3, 5, 1)], |tape, x| scale(tape, &x[0], 3.0));
    }
}
