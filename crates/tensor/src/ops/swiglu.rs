//! SwiGLU (Shazeer, 2020): `y = silu(gate) * up`, `silu(x) = x sigmoid(x)`.
//!
//! Backward: `dup = g silu(gate)`, `dgate = g up s (1 + gate (1 - s))` with `s = sigmoid(gate)`.

use super::parallel::{for_rows, for_rows2};
use crate::kernel::simd;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

fn forward(gate: &Tensor, up: &Tensor) -> Tensor {
    let mut y = Tensor::scratch(gate.rows(), gate.cols());
    let (gate, up) = (gate.data(), up.data());
    for_rows(y.data_mut(), 1, |first, chunk| forward_chunk(&gate[first..], &up[first..], chunk));
    y
}

crate::multiversion! {
    fn forward_chunk(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, x), u) in y.iter_mut().zip(gate).zip(up) {
            *y = x * simd::sigmoid(*x) * u;
        }
    }

    /// `g` becomes the gradient of the gate, `dup` that of up.
    fn backward_chunk(gate: &[f32], up: &[f32], g: &mut [f32], dup: &mut [f32]) {
        for (((g, du), x), u) in g.iter_mut().zip(dup).zip(gate).zip(up) {
            let s = simd::sigmoid(*x);
            *du = *g * x * s;
            *g *= u * s * (1.0 + x * (1.0 - s));
        }
    }
}

/// `silu(gate) * up`, both `[T, C]`. The output is made again when needed.
pub fn swiglu(tape: &Tape, gate: &Var, up: &Var) -> Var {
    assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "swiglu: shapes differ");
    let y = forward(gate.value(), up.value());
    let (ng, nu) = (gate.node(), up.node());
    let (gate, up) = (gate.value().clone(), up.value().clone());
    let out = {
        let (gate, up) = (gate.clone(), up.clone());
        tape.record(y, ng.is_some() || nu.is_some(), move |mut g, sink| {
            let mut dup = Tensor::scratch(gate.rows(), gate.cols());
            for_rows2(g.data_mut(), 1, dup.data_mut(), 1, |first, g, dup| {
                backward_chunk(&gate.data()[first..], &up.data()[first..], g, dup);
            });
            sink.add(ng, g);
            sink.add(nu, dup);
        })
    };
    out.with_recipe(move || forward(&gate, &up))
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        check(&[random(3, 5, 1), random(3, 5, 2)], |tape, x| swiglu(tape, &x[0], &x[1]));
    }
}
