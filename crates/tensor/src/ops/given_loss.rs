//! A loss that was computed outside the tape, with its gradients: backward `dx_i = g * gradients_i`.

use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The loss `value`, `[1, 1]`, with its gradient with regard to each of `xs`, in the same order and shapes.
///
/// # Panics
/// If there are more or fewer gradients than `xs`, or one has another shape.
pub fn given_loss(tape: &Tape, xs: &[&Var], value: f32, gradients: Vec<Tensor>) -> Var {
    assert_eq!(xs.len(), gradients.len(), "given_loss: inputs and gradients");
    for (x, dx) in xs.iter().zip(&gradients) {
        assert_eq!((dx.rows(), dx.cols()), (x.rows(), x.cols()), "given_loss: a gradient's shape");
    }
    let nodes: Vec<_> = xs.iter().map(|x| x.node()).collect();
    let needed = nodes.iter().any(Option::is_some);
    tape.record(Tensor::scalar(value), needed, move |g, sink| {
        for (node, mut dx) in nodes.into_iter().zip(gradients) {
            if node.is_some() {
                dx.scale_assign(g.data()[0]);
                sink.add(node, dx);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;
    use crate::params::Params;
    use crate::tape::Gradients;

    /// sum x^2 + sum y^3, whose gradients are 2 x and 3 y^2.
    fn outside<'p>(tape: &Tape<'p>, vars: &[Var]) -> Var {
        let [x, y] = vars else { panic!("two inputs") };
        let map = |t: &Tensor, f: fn(f32) -> f32| Tensor::from_fn(t.rows(), t.cols(), |r, c| f(t.row(r)[c]));
        let sum = |t: &Tensor| t.data().iter().map(|v| f64::from(*v)).sum::<f64>();
        let value = sum(&map(x.value(), |v| v * v)) + sum(&map(y.value(), |v| v * v * v));
        let gradients = vec![map(x.value(), |v| 2.0 * v), map(y.value(), |v| 3.0 * v * v)];
        given_loss(tape, &[x, y], value as f32, gradients)
    }

    #[test]
    fn gradient() {
        check(&[random(3, 2, 1), random(1, 5, 2)], outside);
    }

    #[test]
    fn scaled_by_what_comes_in_and_skipped_where_nothing_is_trained() {
        let params = Params::new();
        let tape = Tape::new(&params);
        let x = tape.input(Tensor::scalar(1.0));
        let fixed = Var::constant(Tensor::scalar(2.0));
        let loss = given_loss(&tape, &[&x, &fixed], 7.0, vec![Tensor::scalar(3.0), Tensor::scalar(4.0)]);
        assert_eq!(loss.value().data(), [7.0]);
        let dx = tape.backward_to(&loss, Tensor::scalar(0.5), &mut Gradients::new(), &[&x]);
        assert_eq!(dx[0].data(), [1.5]);

        let tape = Tape::new(&params);
        let loss = given_loss(&tape, &[&fixed], 7.0, vec![Tensor::scalar(4.0)]);
        assert!(loss.node().is_none() && tape.is_empty());
    }
}
