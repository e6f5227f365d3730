use super::pages::tests::Flaky;
use super::*;
use crate::run_file::Optim;
use retune_formats::{TensorSource, safetensors};
use retune_tensor::ops::decode_8bit;
use retune_tensor::{Tensor, Weight};

fn set_up(weight_decay: f64) -> (Params, Optimizer, Gradients) {
    let mut params = Params::new();
    let w = params.add("w", &[1, 2], Weight::F32(Tensor::from_vec(1, 2, vec![1.0, 1.0])), true);
    let b = params.add("b", &[2], Weight::F32(Tensor::from_vec(1, 2, vec![1.0, 1.0])), true);
    let settings = TrainSettings { weight_decay, ..TrainSettings::default() };
    let mut gradients = Gradients::new();
    gradients.add(w, Tensor::from_vec(1, 2, vec![0.0, 3.0]));
    gradients.add(b, Tensor::from_vec(1, 2, vec![0.0, 4.0]));
    (params.clone(), Optimizer::new(&params, &settings, None).unwrap(), gradients)
}

/// All bytes of one part of a parameter's moments.
fn part(optimizer: &Optimizer, slot: usize, part: Part) -> Vec<u8> {
    let mut all = Vec::new();
    let mut take = |bytes: &[u8]| {
        all.extend_from_slice(bytes);
        Ok(())
    };
    optimizer.write_part(slot, part, &mut take).unwrap();
    all
}

#[test]
fn biases_and_norms_are_not_decayed() {
    let (mut params, mut optimizer, gradients) = set_up(0.5);
    optimizer.step(&mut params, &gradients, 0.1, 5.0, 0.0).unwrap();
    let first = |name| params.get(params.find(name).unwrap()).weight.to_tensor().data()[0];
    assert!((first("w") - 0.95).abs() < 1e-6);
    assert_eq!(first("b"), 1.0);
}

#[test]
fn clipping_scales_the_gradient_to_the_norm() {
    let (mut params, mut optimizer, gradients) = set_up(0.0);
    optimizer.step(&mut params, &gradients, 0.1, gradients.global_norm(), 1.0).unwrap();
    // m = (1 - beta1) g / 5
    for (slot, expected) in [(0, 0.06), (1, 0.08)] {
        let m = part(&optimizer, slot, Part::M);
        assert!((f32::from_le_bytes(m.as_chunks().0[1]) - expected).abs() < 1e-6);
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Three steps of bitsandbytes' own update, some blocks without gradients.
#[test]
fn moments_of_8_bits_are_those_of_bitsandbytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/adamw_8bit.safetensors");
    let file = safetensors::File::open(path).unwrap();
    let read = |name: &str| file.read_f32(name).unwrap();
    let (mut params, shape) = (Params::new(), [60, 70]);
    let matrix = |values: &[f32]| Tensor::from_vec(shape[0], shape[1], values.to_vec());
    let id = params.add("w", &shape, Weight::F32(matrix(&read("start"))), true);
    let settings = TrainSettings { optim: Optim::Adamw8bit, weight_decay: 0.01, ..TrainSettings::default() };
    let mut optimizer = Optimizer::new(&params, &settings, None).unwrap();
    for gradient in read("gradients").chunks_exact(shape[0] * shape[1]) {
        let mut gradients = Gradients::new();
        gradients.add(id, matrix(gradient));
        optimizer.step(&mut params, &gradients, 1e-2, 0.0, 0.0).unwrap();
    }
    let weight = params.get(id).weight.to_tensor();
    for (found, expected) in weight.data().iter().zip(read("weight")) {
        assert!((found - expected).abs() <= 2e-6, "{found}, not {expected}");
    }
    let parts = [(Part::M, Part::MAbsmax, true), (Part::V, Part::VAbsmax, false)];
    for ((codes, absmax, signed), name) in parts.into_iter().zip(["m", "v"]) {
        let (codes, absmax) = (part(&optimizer, 0, codes), floats(&part(&optimizer, 0, absmax)));
        let theirs = file.read(name).unwrap();
        let (mut off, mut values) = (0, vec![0.0; codes.len()]);
        decode_8bit(signed, &codes, &absmax, &mut values);
        for (i, expected) in read(&format!("{name}.absmax")).into_iter().enumerate() {
            let block = 256 * i..codes.len().min(256 * (i + 1));
            if i == 3 {
                // Never a gradient: theirs is 0 times 1.
                assert!(values[block].iter().all(|x| *x == 0.0));
                continue;
            }
            // 1 - beta2 is computed from a beta2 of 32 bits here.
            assert!((absmax[i] - expected).abs() <= 3e-5 * expected, "absmax {i}: {} {expected}", absmax[i]);
            for at in block {
                assert!(codes[at].abs_diff(theirs[at]) <= 1, "{name}[{at}]: {} {}", codes[at], theirs[at]);
                off += usize::from(codes[at] != theirs[at]);
            }
        }
        assert!(off <= 4, "{off} codes of {name} are the neighbours of theirs");
    }
}

/// Parameters of odd sizes, the third without a gradient.
fn several() -> (Params, Vec<ParamId>) {
    let mut params = Params::new();
    let shapes: [&[usize]; 5] = [&[70, 71], &[300], &[64, 80], &[33, 201], &[3]];
    let add = |(i, shape): (usize, &&[usize])| {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|k| ((k * 37 + i) % 101) as f32 * 0.02 - 1.0).collect();
        params.add(
            format!("p{i}"),
            shape,
            Weight::F32(Tensor::from_vec(shape[0], n / shape[0], values)),
            true,
        )
    };
    let ids = shapes.iter().enumerate().map(add).collect();
    (params, ids)
}

fn gradients(params: &Params, ids: &[ParamId], step: usize) -> Gradients {
    let mut gradients = Gradients::new();
    for &id in ids.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, id)| id) {
        let weight = params.get(id).weight.to_tensor();
        let wave = |(k, w): (usize, &f32)| w * 0.3 + ((k * 13 + step * 7) % 29) as f32 * 1e-3;
        let values = weight.data().iter().enumerate().map(wave).collect();
        gradients.add(id, Tensor::from_vec(weight.rows(), weight.cols(), values));
    }
    gradients
}

/// Weights and moments after some steps.
fn after_steps(settings: &TrainSettings, steps: usize) -> Vec<Vec<u8>> {
    let (mut params, ids) = several();
    let dir = tempfile::tempdir().unwrap();
    let mut optimizer = Optimizer::new(&params, settings, Some(dir.path())).unwrap();
    assert_eq!(optimizer.page_file().is_some(), optimizer.memory().file_bytes > 0);
    for step in 0..steps {
        let gradients = gradients(&params, &ids, step);
        optimizer.step(&mut params, &gradients, 1e-2, gradients.global_norm(), 1.0).unwrap();
    }
    optimizer.settle().unwrap();
    let moments: Vec<_> = optimizer.parts().map(|(slot, .., p)| part(&optimizer, slot, p)).collect();
    let bytes = |id| {
        let weight = params.get(id).weight.to_tensor();
        weight.data().iter().flat_map(|x: &f32| x.to_le_bytes()).collect()
    };
    ids.into_iter().map(bytes).chain(moments).collect()
}

#[test]
fn the_result_does_not_depend_on_where_the_moments_lie_or_on_threads() {
    for (plain, paged) in [(Optim::Adamw, Optim::PagedAdamw), (Optim::Adamw8bit, Optim::PagedAdamw8bit)] {
        let base = TrainSettings { optim: plain, ..TrainSettings::default() };
        let expected = after_steps(&base, 5);
        for page_bytes in [4096, 7000, 40_000, 4 << 20] {
            for (optim, budget) in [(plain, Some(0)), (plain, Some(60_000)), (paged, None)] {
                let settings = TrainSettings { optim, optimizer_budget: budget, page_bytes, ..base.clone() };
                assert!(after_steps(&settings, 5) == expected, "{optim:?}, {budget:?}, {page_bytes}");
            }
        }
        for threads in [1, 2, 4] {
            let settings = TrainSettings { optim: paged, page_bytes: 9000, ..base.clone() };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| after_steps(&settings, 5)) == expected, "{threads} threads");
        }
    }
}

#[test]
fn eight_bits_find_what_32_find() {
    let distance = |optim| {
        let (mut params, ids) = several();
        let settings = TrainSettings { optim, ..TrainSettings::default() };
        let mut optimizer = Optimizer::new(&params, &settings, None).unwrap();
        for step in 0..300 {
            let gradients = gradients(&params, &ids, step);
            let norm = gradients.global_norm();
            optimizer.step(&mut params, &gradients, 2e-2 * (1.0 - step as f64 / 300.0), norm, 0.0).unwrap();
        }
        let last = gradients(&params, &ids, 300);
        last.global_norm()
    };
    let (exact, coarse) = (distance(Optim::Adamw), distance(Optim::Adamw8bit));
    assert!(coarse < 1.1 * exact + 1e-3, "gradient norm at the end: {coarse}, with f32 moments {exact}");
}

#[test]
fn a_disk_that_fails_ends_the_step_with_the_path() {
    let settings = TrainSettings { optim: Optim::PagedAdamw, page_bytes: 8192, ..TrainSettings::default() };
    for fails_from in [0, 1, 7, 30, 60] {
        let (mut params, ids) = several();
        let make = |bytes| Ok(Arc::new(Flaky::new(bytes, fails_from)) as Arc<dyn Backing>);
        let mut optimizer = Optimizer::with_file(&params, &settings, make).unwrap();
        let error = (0..5)
            .find_map(|step| {
                let gradients = gradients(&params, &ids, step);
                let stepped = optimizer.step(&mut params, &gradients, 1e-2, 1.0, 1.0);
                stepped.and_then(|()| optimizer.settle()).err()
            })
            .unwrap();
        assert!(error.is_io() && error.to_string().contains("out/pages.tmp"), "{error}");
    }
    let (params, _) = several();
    let nowhere = Optimizer::new(&params, &settings, Some(Path::new("/does/not/exist"))).err().unwrap();
    assert!(nowhere.is_io() && nowhere.to_string().contains("/does/not/exist"), "{nowhere}");
}
