use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use retune_tensor::Tensor;

use super::*;

/// `layers` blocks of two matrices of 1 x 25 floats, 100 bytes each.
struct Model {
    pager: Pager,
    matrices: Vec<Arc<dyn Storage>>,
    reads: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
}

fn model(layers: usize) -> Model {
    let (reads, broken): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
    let pager = Pager::new();
    let place = |i: usize| Place {
        name: format!("layer.{i}"),
        format: "f32",
        shape: (1, 25),
        block: 1,
        bytes: 100,
        reading: 0,
        layer: i / 2,
        read: {
            let (reads, broken) = (reads.clone(), broken.clone());
            Box::new(move || {
                if broken.load(Ordering::Relaxed) {
                    return Err(Error::Input("the file is gone".into()));
                }
                reads.fetch_add(1, Ordering::Relaxed);
                Ok(Weight::F32(Tensor::from_fn(1, 25, |_, _| i as f32)))
            })
        },
    };
    let matrices = (0..2 * layers).map(|i| pager.add(place(i))).collect();
    Model { pager, matrices, reads, broken }
}

impl Model {
    /// Uses a matrix; what it holds, and what was read since.
    fn value(&self, i: usize) -> f32 {
        let mut out = [0.0];
        pin(self.matrices[i].as_ref()).decode(0, 3, &mut out);
        out[0]
    }

    /// Uses all these, and waits until nothing more is read ahead.
    fn go(&self, uses: impl Iterator<Item = usize>) -> usize {
        let before = self.reads.load(Ordering::Relaxed);
        for i in uses {
            assert_eq!(self.value(i), i as f32);
            self.settle();
            let held = self.pager.0.shared.lock().held;
            assert!(held <= self.pager.0.shared.lock().budget, "{held} bytes are held");
        }
        self.reads.load(Ordering::Relaxed) - before
    }

    fn settle(&self) {
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < Duration::from_secs(20), "the reader does not come to its end");
            let mut state = self.pager.0.shared.lock();
            let reading = state.pages.iter().any(|page| matches!(page.state, PageState::Reading));
            // As the reader would: room made for the next page is no harm.
            if !reading && (state.closing || state.next_ahead().is_none()) {
                return;
            }
            drop(state);
            // What a product held is free now; in a run the next use says so.
            self.pager.0.shared.work.notify_all();
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

#[test]
fn sizes_are_two_blocks_to_all() {
    let sizes = Sizes::of([(0, 10, 1), (0, 20, 0), (1, 25, 3), (2, 5, 0)]);
    assert_eq!(sizes, Sizes { total: 63, least: 60 + 3 });
    assert_eq!((sizes.resident(None), sizes.resident(Some(0)), sizes.resident(Some(1000))), (63, 63, 63));
    let sizes = Sizes::of((0..9).map(|layer| (layer, 10, 0)));
    assert_eq!((sizes.resident(None), sizes.resident(Some(0)), sizes.resident(Some(33))), (90, 20, 33));
    assert_eq!(Sizes::of([]).resident(Some(7)), 0);
}

#[test]
fn with_room_for_all_each_is_read_once() {
    let model = model(5);
    model.pager.set_budget(None);
    for _ in 0..3 {
        model.go((0..10).chain((0..10).rev()));
    }
    assert_eq!(model.reads.load(Ordering::Relaxed), 10);
    let stats = model.pager.stats();
    assert_eq!((stats.total_bytes, stats.resident_bytes, stats.read_bytes), (1000, 1000, 1000));
}

#[test]
fn up_and_down_what_was_used_last_is_found_again() {
    let model = model(5);
    let step = || (0..10).chain((0..10).rev());
    model.pager.set_budget(Some(600));
    model.go(step());
    // Six of ten stay at either end: four are read on the way up, and four on the way down.
    for _ in 0..3 {
        assert_eq!(model.go(step()), 8);
    }
    assert_eq!(model.pager.stats().resident_bytes, 600);
}

#[test]
fn round_and_round_most_stay() {
    let model = model(5);
    model.pager.set_budget(Some(700));
    (0..3).for_each(|_| {
        model.go(0..10);
    });
    // Six stay, and the seventh place is for the other four in turn; reading ahead takes it now and then from one that stays.
    let read = model.go((0..10).chain(0..10));
    assert!(read <= 10, "{read} read in two rounds");
}

#[test]
fn products_may_hold_more_than_the_budget() {
    let model = model(5);
    model.pager.set_budget(Some(0));
    let held: Vec<_> = (0..10).map(|i| pin(model.matrices[i].as_ref())).collect();
    for (i, storage) in held.iter().enumerate() {
        let mut out = [0.0];
        storage.decode(0, 0, &mut out);
        assert_eq!(out, [i as f32]);
    }
    drop(held);
    model.value(0);
    model.pager.set_budget(Some(0));
    model.settle();
    assert!(model.pager.0.shared.lock().held <= 400);
}

#[test]
fn a_fault_is_told_and_all_is_nan() {
    let model = model(4);
    assert_eq!(model.value(0), 0.0);
    model.settle();
    model.broken.store(true, Ordering::Relaxed);
    let values: Vec<f32> = (0..8).map(|i| model.value(i)).collect();
    assert!(values[7].is_nan() && model.value(0).is_nan(), "{values:?}");
    let fault = model.matrices[0].fault().unwrap();
    assert!(fault.contains("layer.") && fault.contains("the file is gone"), "{fault}");
    let mut y = [0.0; 1];
    pin(model.matrices[3].as_ref()).dot_rows(0, &[1.0; 25], &mut y);
    assert!(y[0].is_nan());
}

#[test]
fn what_is_no_longer_used_does_not_count() {
    let mut model = model(4);
    assert_eq!(model.pager.sizes(), Sizes { total: 800, least: 400 });
    model.matrices.truncate(3);
    assert_eq!(model.pager.sizes(), Sizes { total: 300, least: 300 });
    // The reader ends with its last user.
    model.go(0..3);
    let Model { pager, matrices, .. } = model;
    drop(pager);
    assert_eq!(matrices[1].format(), "f32");
}
