//! The packed kernel against the `gemm` crate, storages against f32, one-row products against the memory: `cargo bench -p retune-tensor`.
//!
//! Times are the best of several runs taken in turn, because other programs disturb single runs. Arguments choose among the parts
//! `dense`, `storages`, `decode`, `skinny`, `rows`.

mod library;

use std::time::Instant;

use library::library;
use retune_tensor::Tensor;
use retune_tensor::kernel::{self, MatRef, PackedLhs, Rhs};
use retune_tensor::storage::{Code4, Format, FourBit, RowInt8, Storage, encode, from_bytes};

/// rows, out_features, in_features
const SHAPES: &[(usize, usize, usize)] = &[
    (2048, 1536, 576),
    (2048, 576, 1536),
    (2048, 576, 576),
    (2048, 192, 576),
    (2048, 16, 576),
    (512, 49152, 576),
    (64, 1536, 576),
    (64, 576, 1536),
    (16, 1536, 576),
    (2048, 5632, 2048),
    (64, 5632, 2048),
];

fn main() {
    println!("kernels: {}, threads: {}", kernel::level().name(), rayon::current_num_threads());
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let parts: [(&str, fn()); 5] =
        [("dense", dense), ("storages", storages), ("decode", decode), ("skinny", skinny), ("rows", one_row)];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            part();
        }
    }
}

fn noise(n: usize) -> Vec<f32> {
    let mut s = 1u32;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Best time of each candidate in seconds, run in turn.
fn best(candidates: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let mut best = vec![f64::MAX; candidates.len()];
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < 5 || (rounds < 200 && start.elapsed().as_secs_f64() < 1.0) {
        for (best, run) in best.iter_mut().zip(candidates.iter_mut()) {
            let start = Instant::now();
            run();
            *best = best.min(start.elapsed().as_secs_f64());
        }
        rounds += 1;
    }
    best
}

/// f32, forward (x Wᵀ) and backward (g W), against the library.
fn dense() {
    println!("  rows    out    in       x Wt  library  ratio        g W  library  ratio   (GFLOP/s)");
    for &(m, n, k) in SHAPES {
        let (x, g, w) = (noise(m * k), noise(m * n), Tensor::from_vec(n, k, noise(n * k)));
        let (mut y1, mut y2) = (vec![0.0; m * n], vec![0.0; m * n]);
        let (mut d1, mut d2) = (vec![0.0; m * k], vec![0.0; m * k]);
        let times = best(&mut [
            &mut || {
                let x = PackedLhs::new(MatRef::new(&x, m, k));
                kernel::gemm(&mut y1, n, m, n, 0.0, &[(&x, Rhs::WeightT(&w))]);
            },
            &mut || library([m, n, k], (&x, [k, 1]), (w.data(), [1, k]), &mut y2),
            &mut || {
                let g = PackedLhs::new(MatRef::new(&g, m, n));
                kernel::gemm(&mut d1, k, m, k, 0.0, &[(&g, Rhs::Weight(&w))]);
            },
            &mut || library([m, k, n], (&g, [n, 1]), (w.data(), [k, 1]), &mut d2),
        ]);
        let rate = |i: usize| 2e-9 * (m * n * k) as f64 / times[i];
        let [forward, f_library, backward, b_library] = [0, 1, 2, 3].map(rate);
        println!(
            "{m:>6}{n:>7}{k:>6}  {forward:>9.1}{f_library:>9.1}{:>7.2}  {backward:>9.1}{b_library:>9.1}{:>7.2}",
            forward / f_library,
            backward / b_library
        );
    }
}

fn stored(format: Format, n: usize, k: usize, data: &[f32]) -> Box<dyn Storage> {
    let bytes = encode(format, n, k, data).expect("whole blocks");
    from_bytes(format, n, k, bytes).expect("the size is right")
}

/// A matrix in every storage but f32 that takes rows of `k` columns.
fn all_storages(n: usize, k: usize, data: &[f32]) -> Vec<Box<dyn Storage>> {
    let fits = |f: &Format| n.is_multiple_of(f.block()) && k.is_multiple_of(f.block());
    let formats = Format::all().filter(|f| *f != Format::F32 && fits(f));
    let mut all: Vec<_> = formats.map(|format| stored(format, n, k, data)).collect();
    for (code, double) in [(Code4::Nf4, false), (Code4::Nf4, true), (Code4::Fp4, true), (Code4::Int4, true)] {
        all.push(Box::new(FourBit::quantize(code, 64, double, n, k, data).expect("finite")));
    }
    all.push(Box::new(RowInt8::quantize(n, k, data).expect("finite")));
    all
}

/// Elements decoded in a second, and made, on all threads: rows of 2048 to a buffer that stays in the first-level cache.
fn decode() {
    let (n, k) = (2048, 2048);
    let data = noise(n * k);
    for w in all_storages(n, k, &data) {
        let threads = rayon::current_num_threads();
        let time = best(&mut [&mut || {
            kernel::parallel::for_each_task(threads, |task| {
                let mut row = vec![0.0f32; k];
                for i in n * task / threads..n * (task + 1) / threads {
                    w.decode(i, 0, &mut row);
                    std::hint::black_box(&mut row);
                }
            })
        }]);
        println!("decode {:>8}: {:.2} G elements/s", w.format(), 1e-9 * (n * k) as f64 / time[0]);
    }
    // Little enough to be done before another program takes the core.
    let n = 64;
    let data = &data[..n * k];
    let made = |name: &str, run: &mut dyn FnMut()| {
        let time = best(&mut [run])[0];
        println!("encode {name:>8}: {:.3} G elements/s", 1e-9 * (n * k) as f64 / time);
    };
    made("nf4+dq", &mut || _ = std::hint::black_box(FourBit::quantize(Code4::Nf4, 64, true, n, k, data)));
    for format in [Format::Q8_0, Format::Q4_K, Format::Q6_K] {
        made(format.name(), &mut || _ = std::hint::black_box(encode(format, n, k, data)));
    }
}

/// Every storage against f32, both orientations: time relative to f32.
fn storages() {
    for (m, n, k) in
        [(2048, 1536, 576), (2048, 576, 1536), (64, 1536, 576), (2048, 2048, 2048), (64, 2048, 2048)]
    {
        let (x, g, data) = (noise(m * k), noise(m * n), noise(n * k));
        let plain = Tensor::from_vec(n, k, data.clone());
        println!("{m} rows, {n} x {k}: time / f32's, x Wt and g W");
        for w in all_storages(n, k, &data) {
            let (mut y, mut d) = (vec![0.0; m * n], vec![0.0; m * k]);
            let (mut y2, mut d2) = (vec![0.0; m * n], vec![0.0; m * k]);
            let forward = |w: &dyn Storage, y: &mut [f32]| {
                let x = PackedLhs::new(MatRef::new(&x, m, k));
                kernel::gemm(y, n, m, n, 0.0, &[(&x, Rhs::WeightT(w))]);
            };
            let backward = |w: &dyn Storage, d: &mut [f32]| {
                let g = PackedLhs::new(MatRef::new(&g, m, n));
                kernel::gemm(d, k, m, k, 0.0, &[(&g, Rhs::Weight(w))]);
            };
            let times = best(&mut [
                &mut || forward(&plain, &mut y),
                &mut || forward(w.as_ref(), &mut y2),
                &mut || backward(&plain, &mut d),
                &mut || backward(w.as_ref(), &mut d2),
            ]);
            println!("{:>8} {:.3} {:.3}", w.format(), times[1] / times[0], times[3] / times[2]);
        }
    }
}

/// LoRA's weight gradients, against the library.
fn skinny() {
    for (t, r, k) in [(2048, 16, 576), (2048, 16, 1536), (2048, 64, 576), (128, 16, 576)] {
        let (a, b) = (noise(t * r), noise(t * k));
        let (mut c1, mut c2) = (vec![0.0; r * k], vec![0.0; r * k]);
        let times =
            best(&mut [&mut || kernel::gemm_tn_skinny(t, r, k, &a, &b, 1.0, &mut c1, 0.0), &mut || {
                library([r, k, t], (&a, [1, r]), (&b, [k, 1]), &mut c2)
            }]);
        println!(
            "skinny {t} {r} {k}: {:.3} ms, {:.1} GB/s, {:.2} x the library's speed",
            1e3 * times[0],
            4e-9 * (t * k) as f64 / times[0],
            times[1] / times[0]
        );
    }
}

/// All matrices of SmolLM2-135M once, as generating a token does, per storage; the head in Q8_0 where the rest is quantised.
fn one_row() {
    const LAYERS: usize = 30;
    let shapes: &[&[(usize, usize)]] =
        &[&[(576, 576), (192, 576), (192, 576)], &[(576, 576)], &[(1536, 576), (1536, 576)], &[(576, 1536)]];
    type Make = Box<dyn Fn(usize, usize, &[f32]) -> Box<dyn Storage>>;
    let formats = Format::all().filter(|f| f.block() <= 32);
    let mut makers: Vec<(usize, Make)> = formats
        .map(|format| (format.block(), Box::new(move |n, k, x: &[f32]| stored(format, n, k, x)) as Make))
        .collect();
    for double in [false, true] {
        let make = move |n, k, x: &[f32]| -> Box<dyn Storage> {
            Box::new(FourBit::quantize(Code4::Nf4, 64, double, n, k, x).expect("finite"))
        };
        makers.push((64, Box::new(make)));
    }
    makers.push((64, Box::new(|n, k, x| Box::new(RowInt8::quantize(n, k, x).expect("finite")))));
    for (block, make) in makers {
        let group = |g: &&[(usize, usize)]| g.iter().map(|&(n, k)| make(n, k, &noise(n * k))).collect();
        let layers: Vec<Vec<Box<dyn Storage>>> = (0..LAYERS).flat_map(|_| shapes.iter().map(group)).collect();
        let head = noise(49152 * 576);
        let head = if block > 1 { stored(Format::Q8_0, 49152, 576, &head) } else { make(49152, 576, &head) };
        let mut outs = vec![vec![0.0f32; 1536]; 3];
        let mut logits = vec![0.0f32; 49152];
        let x = noise(1536);
        let bytes = layers.iter().flatten().map(|w| w.bytes()).sum::<usize>() + head.bytes();
        let token = &mut || {
            for group in &layers {
                let ws: Vec<&dyn Storage> = group.iter().map(|w| w.as_ref()).collect();
                let outs = outs.iter_mut().zip(&ws);
                let mut outs: Vec<&mut [f32]> = outs.map(|(o, w)| &mut o[..w.rows()]).collect();
                kernel::matvec_many(&ws, &x[..ws[0].cols()], 1, &mut outs);
            }
            kernel::matvec(head.as_ref(), &x[..576], 1, &mut logits);
        };
        let time = best(&mut [token])[0];
        println!(
            "one token {:>6}: {:.2} ms, {:.1} GB/s",
            layers[0][0].format(),
            1e3 * time,
            1e-9 * bytes as f64 / time
        );
    }
}
