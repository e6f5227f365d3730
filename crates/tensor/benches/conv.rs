//! Convolutions of VGG16 (240 x 240, 8 pictures) and YOLOv3-tiny (416 x 416, 4): `cargo bench -p retune-tensor --bench conv`.
//!
//! Milliseconds of forward, of the gradient of the input, and of input and weight together; the best of three, in turn. GFLOP/s count the
//! products of the definition (two operations each), whatever way is taken, so that they may be above what the machine can multiply.

use std::time::Instant;

use retune_tensor::{Gradients, Grid, Params, Tape, Tensor, Var, Weight, WeightVar, Window, kernel, ops};

/// images, side, channels, outputs, kernel
const SHAPES: &[(usize, usize, usize, usize, usize)] = &[
    (8, 240, 3, 64, 3),
    (8, 240, 64, 64, 3),
    (8, 120, 64, 128, 3),
    (8, 60, 256, 256, 3),
    (8, 30, 512, 512, 3),
    (8, 15, 512, 512, 3),
    (4, 416, 3, 16, 3),
    (4, 208, 16, 32, 3),
    (4, 104, 32, 64, 3),
    (4, 52, 64, 128, 3),
    (4, 26, 128, 256, 3),
    (4, 13, 512, 1024, 3),
    (4, 13, 1024, 256, 1),
];

fn noise(rows: usize, cols: usize) -> Tensor {
    let mut s = 1u32;
    Tensor::from_fn(rows, cols, |_, _| {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn main() {
    println!("kernels: {}, threads: {}", kernel::level().name(), rayon::current_num_threads());
    println!("images  side  in   out  k   forward        input gradient   weight and input");
    for &(images, side, channels, outputs, size) in SHAPES {
        let grid = Grid { images, height: side, width: side };
        let window = Window::square(size, 1, size / 2);
        let (x, w) = (noise(grid.rows(), channels), noise(outputs, size * size * channels));
        let g = noise(grid.rows(), outputs);
        let run = |input: bool, trained: bool| {
            let params = Params::new();
            let tape = Tape::new(&params);
            let (w, node) = match trained {
                true => {
                    let w = tape.input(w.clone());
                    (w.value().clone(), w.node())
                }
                false => (w.clone(), None),
            };
            let x = if input { tape.input(x.clone()) } else { Var::constant(x.clone()) };
            let start = Instant::now();
            let weight = WeightVar { weight: Weight::F32(w), node };
            let (y, _) = ops::conv2d(&tape, &x, grid, &weight, None, &window);
            let forward = start.elapsed().as_secs_f64();
            if input {
                let start = Instant::now();
                tape.backward_to(&y, g.clone(), &mut Gradients::new(), &[&x]);
                return start.elapsed().as_secs_f64();
            }
            forward
        };
        let mut best = [f64::MAX; 3];
        for _ in 0..4 {
            for (best, (input, trained)) in best.iter_mut().zip([(false, false), (true, false), (true, true)])
            {
                *best = best.min(run(input, trained));
            }
        }
        let work = 2.0 * (grid.rows() * channels * outputs * size * size) as f64;
        let show = |s: f64, times: f64| format!("{:7.2} ms {:5.0}", s * 1e3, times * work / s / 1e9);
        println!(
            "{images:6}  {side:4} {channels:4} {outputs:4}  {size} {} {} {}",
            show(best[0], 1.0),
            show(best[1], 1.0),
            show(best[2], 2.0)
        );
    }
}
