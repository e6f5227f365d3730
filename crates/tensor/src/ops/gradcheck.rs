//! Finite differences: every op's backward pass is tested against its own forward pass.

use crate::params::Params;
use crate::rng::Stream;
use crate::tape::{Gradients, Tape, Var};
use crate::tensor::Tensor;

/// Standard normal values, fixed by `seed`.
pub fn random(rows: usize, cols: usize, seed: u64) -> Tensor {
    let s = Stream::new(seed, 99);
    Tensor::from_fn(rows, cols, |r, c| s.normal((r * cols + c) as u64))
}

/// Checks d sum(y * k) / dx for fixed random k by central differences, for every element of every input.
pub fn check(inputs: &[Tensor], op: impl for<'p> Fn(&Tape<'p>, &[Var]) -> Var) {
    check_within(inputs, 2e-2, op);
}

/// As [`check`] with a tolerance relative to the largest gradient of the input.
pub fn check_within(inputs: &[Tensor], tolerance: f32, op: impl for<'p> Fn(&Tape<'p>, &[Var]) -> Var) {
    let params = Params::new();
    let tape = Tape::new(&params);
    let vars: Vec<Var> = inputs.iter().map(|x| tape.input(x.clone())).collect();
    let y = op(&tape, &vars);
    let k = random(y.rows(), y.cols(), 1234);
    let refs: Vec<&Var> = vars.iter().collect();
    let grads = tape.backward_to(&y, k.clone(), &mut Gradients::new(), &refs);

    let value = |inputs: &[Tensor]| -> f64 {
        let tape = Tape::inference(&params);
        let vars: Vec<Var> = inputs.iter().map(|x| Var::constant(x.clone())).collect();
        let y = op(&tape, &vars);
        y.value().data().iter().zip(k.data()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    for (which, x) in inputs.iter().enumerate() {
        let largest = grads[which].data().iter().fold(1e-3f32, |m, g| m.max(g.abs()));
        for i in 0..x.len() {
            let h = 1e-2 * x.data()[i].abs().max(0.3);
            let mut moved = inputs.to_vec();
            moved[which].data_mut()[i] = x.data()[i] + h;
            let up = value(&moved);
            moved[which].data_mut()[i] = x.data()[i] - h;
            let down = value(&moved);
            let numeric = ((up - down) / (2.0 * f64::from(h))) as f32;
            let analytic = grads[which].data()[i];
            assert!(
                (numeric - analytic).abs() <= tolerance * largest,
                "input {which} element {i}: backward {analytic}, finite difference {numeric}, largest {largest}"
            );
        }
    }
}

/// Checks that value and gradients are the same bytes on one thread and on several.
pub fn assert_same_on_any_threads(inputs: &[Tensor], op: impl for<'p> Fn(&Tape<'p>, &[Var]) -> Var + Sync) {
    let run = |threads: usize| -> Vec<Vec<f32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
        pool.install(|| {
            let params = Params::new();
            let tape = Tape::new(&params);
            let vars: Vec<Var> = inputs.iter().map(|x| tape.input(x.clone())).collect();
            let y = op(&tape, &vars);
            let value = y.value().data().to_vec();
            let refs: Vec<&Var> = vars.iter().collect();
            let seed = random(y.rows(), y.cols(), 9);
            let grads = tape.backward_to(&y, seed, &mut Gradients::new(), &refs);
            std::iter::once(value).chain(grads.iter().map(|g| g.data().to_vec())).collect()
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(4), "results depend on the number of threads");
}
