//! A weight that lies elsewhere is asked for once a product, and gives what the same weight in memory gives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use retune_tensor::ops::{column_norms_squared, embedding, linear, row_norms_squared};
use retune_tensor::params::decode_all;
use retune_tensor::storage::{Storage, pin};
use retune_tensor::{Gradients, Params, Tape, Tensor, Weight};

/// Not to be read without having been asked for.
struct Elsewhere {
    inner: Arc<Tensor>,
    asked: AtomicUsize,
}

impl Storage for Elsewhere {
    fn format(&self) -> &'static str {
        "f32"
    }
    fn rows(&self) -> usize {
        self.inner.rows()
    }
    fn cols(&self) -> usize {
        self.inner.cols()
    }
    fn bytes(&self) -> usize {
        0
    }
    fn block(&self) -> usize {
        1
    }
    fn decode(&self, _: usize, _: usize, _: &mut [f32]) {
        panic!("read without having been asked for");
    }
    fn dot_rows(&self, _: usize, _: &[f32], _: &mut [f32]) {
        panic!("multiplied without having been asked for");
    }
    fn pinned(&self) -> Option<Arc<dyn Storage>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Some(self.inner.clone())
    }
    fn fault(&self) -> Option<String> {
        (self.asked.load(Ordering::Relaxed) > 100).then(|| "asked too often".to_owned())
    }
}

fn wave(rows: usize, cols: usize, step: f32) -> Tensor {
    Tensor::from_fn(rows, cols, |r, c| ((r * cols + c) as f32 * step).sin())
}

fn weights() -> (Tensor, Arc<Elsewhere>) {
    let tensor = wave(24, 40, 0.37);
    (tensor.clone(), Arc::new(Elsewhere { inner: Arc::new(tensor), asked: AtomicUsize::new(0) }))
}

#[test]
fn products_ask_once_and_are_the_same() {
    for rows in [1, 7] {
        let (tensor, elsewhere) = weights();
        let run = |weight: Weight| {
            let mut params = Params::new();
            let x = params.add("x", &[rows, 40], Weight::F32(wave(rows, 40, 0.11)), true);
            let w = params.add("w", &[24, 40], weight, false);
            let tape = Tape::new(&params);
            let y = linear(&tape, &tape.param(x), &tape.weight(w), None, &[]);
            let mut gradients = Gradients::new();
            tape.backward(&y, wave(rows, 24, 0.7), &mut gradients);
            (y.value().data().to_vec(), gradients.get(x).unwrap().data().to_vec())
        };
        assert_eq!(run(Weight::F32(tensor)), run(Weight::Stored(elsewhere.clone())));
        assert_eq!(elsewhere.asked.load(Ordering::Relaxed), 2, "forward and backward of {rows} rows");
    }
}

#[test]
fn passes_over_rows_ask_once() {
    let (tensor, elsewhere) = weights();
    let same = |f: &dyn Fn(&dyn Storage) -> Tensor| {
        let before = elsewhere.asked.load(Ordering::Relaxed);
        assert_eq!(f(&tensor).data(), f(elsewhere.as_ref()).data());
        assert_eq!(elsewhere.asked.load(Ordering::Relaxed) - before, 1);
    };
    same(&decode_all);
    same(&row_norms_squared);
    same(&column_norms_squared);
    let look_up = |weight: Weight| {
        let mut params = Params::new();
        let id = params.add("w", &[24, 40], weight, false);
        let tape = Tape::inference(&params);
        embedding(&tape, &tape.weight(id), &[3, 0, 3]).value().data().to_vec()
    };
    assert_eq!(look_up(Weight::F32(tensor.clone())), look_up(Weight::Stored(elsewhere.clone())));
    assert_eq!(pin(&tensor).rows(), 24);
}

#[test]
fn a_fault_is_the_parameters() {
    let (tensor, elsewhere) = weights();
    let mut params = Params::new();
    params.add("a", &[24, 40], Weight::F32(tensor), false);
    params.add("b", &[24, 40], Weight::Stored(elsewhere.clone()), false);
    assert_eq!(params.fault(), None);
    elsewhere.asked.store(1000, Ordering::Relaxed);
    assert_eq!(params.fault().as_deref(), Some("asked too often"));
}
