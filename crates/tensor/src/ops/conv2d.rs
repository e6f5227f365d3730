//! Convolution over pixels as rows: `y[i, o] = b[o] + sum over places (a, b) and channels c of x[source(i, a, b), c] w[o, (a, b, c)]`.
//!
//! `x` `[T, C]`, `w` `[N, places C]` in any storage, a row's columns ordered line, column, channel (OHWI), `y` `[T', N]`. Three ways, chosen by
//! shape alone: 3 x 3 with enough channels by minimal filtering; where neighbours step by one pixel, a sum of products over shifted views of one
//! padded copy (nothing is unfolded); else the pixels under the kernel are gathered into rows, a chunk at a time. Backward: `dx` is the product of `g` with the kernel turned round,
//! `dw = gᵀ x` for each place, `db` the sum over rows of `g`; what was gathered is gathered again, not kept.

mod gathered;
mod shifted;
mod winograd;

use super::linear::{column_sums, linear};
use crate::grid::{Grid, Window};
use crate::storage::pin;
use crate::tape::{Tape, Var, WeightVar};
use crate::tensor::Tensor;

/// Below this many channels a place of the kernel is too little for a product of its own.
const FEW_CHANNELS: usize = 8;

/// What both ways are told: the sizes of one convolution.
#[derive(Clone, Copy)]
struct Shape {
    from: Grid,
    to: Grid,
    window: Window,
    channels: usize,
    outputs: usize,
}

impl Shape {
    fn way(&self, block: usize) -> Way {
        match (winograd::serves(self), self.is_shifted(block)) {
            (true, _) => Way::Winograd,
            (_, true) => Way::Shifted,
            _ => Way::Gathered,
        }
    }

    /// Whether products over shifted views serve: a step of one pixel, padding within the kernel, channels worth it and blocks unsplit.
    fn is_shifted(&self, block: usize) -> bool {
        let Window { kernel, stride, dilation, pad_before, pad_after } = self.window;
        let reach = ((kernel.0 - 1) * dilation.0, (kernel.1 - 1) * dilation.1);
        let within = |pad: (usize, usize)| pad.0 <= reach.0 && pad.1 <= reach.1;
        let wide = self.channels >= FEW_CHANNELS && self.channels.is_multiple_of(block);
        stride == (1, 1) && within(pad_before) && within(pad_after) && wide
    }
}

/// Convolves `x` `[T, C]`, the pixels of `grid`, with `w` `[N, places C]` and adds `bias` `[1, N]`: the output and its grid.
///
/// # Panics
/// If the shapes disagree or the window does not fit into the images.
pub fn conv2d(
    tape: &Tape,
    x: &Var,
    grid: Grid,
    w: &WeightVar,
    bias: Option<&Var>,
    window: &Window,
) -> (Var, Grid) {
    let storage = w.weight.storage();
    let to = window.output(grid).expect("conv2d: the window fits into the images");
    assert_eq!(x.rows(), grid.rows(), "conv2d: pixels");
    assert_eq!(storage.cols(), window.taps() * x.cols(), "conv2d: places x channels");
    if *window == Window::square(1, 1, 0) {
        return (linear(tape, x, w, bias, &[]), to);
    }
    let (channels, outputs) = (x.cols(), storage.rows());
    let shape = Shape { from: grid, to, window: *window, channels, outputs };
    let bias_row = bias.map(|b| b.value().clone());
    let y = forward(x.value(), &shape, w, bias_row.as_ref());

    let (nx, nb) = (x.node(), bias.and_then(Var::node));
    let saved = w.node.is_some().then(|| x.saved());
    let w = w.clone();
    let needed = nx.is_some() || w.node.is_some() || nb.is_some();
    let y = tape.record(y, needed, move |g, sink| {
        if nb.is_some() {
            sink.add(nb, column_sums(&g));
        }
        if let Some(saved) = saved {
            sink.add(w.node, weight_gradient(&g, &saved.get(), &shape));
        }
        if nx.is_some() {
            sink.add(nx, input_gradient(&g, &shape, &w));
        }
    });
    (y, to)
}

/// How a convolution is computed.
enum Way {
    Winograd,
    Shifted,
    Gathered,
}

fn forward(x: &Tensor, shape: &Shape, w: &WeightVar, bias: Option<&Tensor>) -> Tensor {
    let w = pin(w.weight.storage());
    let bias = bias.map(Tensor::data);
    match shape.way(w.block()) {
        Way::Winograd => winograd::forward(x, shape, &*w, bias, winograd::HELD),
        Way::Shifted => shifted::forward(x, shape, &*w, bias, shifted::ROWS),
        Way::Gathered => gathered::forward(x, shape, &*w, bias),
    }
}

fn input_gradient(g: &Tensor, shape: &Shape, w: &WeightVar) -> Tensor {
    let w = pin(w.weight.storage());
    match shape.way(w.block()) {
        Way::Winograd => winograd::input_gradient(g, shape, &*w, winograd::HELD),
        Way::Shifted => shifted::input_gradient(g, shape, &*w, shifted::ROWS),
        Way::Gathered => gathered::input_gradient(g, shape, &*w),
    }
}

fn weight_gradient(g: &Tensor, x: &Tensor, shape: &Shape) -> Tensor {
    match shape.way(1) {
        Way::Winograd => winograd::weight_gradient(g, x, shape, winograd::HELD),
        Way::Shifted => shifted::weight_gradient(g, x, shape, shifted::ROWS),
        Way::Gathered => gathered::weight_gradient(g, x, shape),
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::*;
    use crate::params::Weight;
    use crate::storage::{Format, encode, from_bytes};
    use crate::tensor::Tensor;

    fn weight(v: &Var) -> WeightVar {
        WeightVar { weight: Weight::F32(v.value().clone()), node: v.node() }
    }

    /// By the definition, one number at a time.
    fn by_definition(x: &Tensor, grid: Grid, w: &Tensor, bias: &Tensor, window: &Window) -> Tensor {
        let to = window.output(grid).unwrap();
        Tensor::from_fn(to.rows(), w.rows(), |row, o| {
            let (image, y, x_) = to.place(row);
            let mut sum = f64::from(bias.data()[o]);
            for (tap, place) in window.places().enumerate() {
                let Some((sy, sx)) = window.source(grid, (y, x_), place) else { continue };
                let pixel = x.row((image * grid.height + sy) * grid.width + sx);
                for (c, v) in pixel.iter().enumerate() {
                    sum += f64::from(*v) * f64::from(w.row(o)[tap * x.cols() + c]);
                }
            }
            sum as f32
        })
    }

    /// Windows of every kind: padded, not, strided, dilated, odd sizes, TensorFlow's.
    fn windows() -> Vec<Window> {
        let dilated = Window { dilation: (2, 1), ..Window::square(3, 1, 1) };
        let uneven =
            Window { kernel: (3, 2), pad_before: (0, 1), pad_after: (2, 0), ..Window::square(3, 1, 0) };
        vec![
            Window::square(1, 1, 0),
            Window::square(1, 2, 0),
            Window::square(3, 1, 1),
            Window::square(3, 1, 0),
            Window::square(3, 2, 1),
            Window::square(5, 1, 2),
            Window::square(2, 2, 0),
            Window::square(3, 1, 2),
            Window::square(2, 1, 3),
            Window::same(3, 2, 5, 6),
            Window::same(2, 1, 5, 6),
            dilated,
            uneven,
        ]
    }

    const GRID: Grid = Grid { images: 3, height: 5, width: 6 };

    #[test]
    fn follows_the_definition() {
        for window in windows() {
            for (channels, outputs) in [(3, 4), (8, 5), (17, 16), (16, 35)] {
                let x = random(GRID.rows(), channels, 1);
                let (w, b) = (random(outputs, window.taps() * channels, 2), random(1, outputs, 3));
                let params = crate::Params::new();
                let tape = Tape::inference(&params);
                let (wv, bv) =
                    (WeightVar { weight: Weight::F32(w.clone()), node: None }, Var::constant(b.clone()));
                let (y, to) = conv2d(&tape, &Var::constant(x.clone()), GRID, &wv, Some(&bv), &window);
                let want = by_definition(&x, GRID, &w, &b, &window);
                assert_eq!((y.rows(), y.cols(), to.rows()), (want.rows(), want.cols(), want.rows()));
                for (got, want) in y.value().data().iter().zip(want.data()) {
                    assert!((got - want).abs() < 1e-4 * want.abs().max(10.0), "{window:?} {got} {want}");
                }
            }
        }
    }

    #[test]
    fn gradient() {
        let grid = Grid { images: 2, height: 3, width: 4 };
        for window in windows().into_iter().filter(|w| w.output(grid).is_some() && w.taps() < 10) {
            for (channels, outputs) in [(2, 3), (8, 3)] {
                let inputs = [
                    random(grid.rows(), channels, 1),
                    random(outputs, window.taps() * channels, 2),
                    random(1, outputs, 3),
                ];
                check(&inputs, |tape, x| conv2d(tape, &x[0], grid, &weight(&x[1]), Some(&x[2]), &window).0);
            }
        }
    }

    /// Cutting the work into bands of lines or groups of images touches no result.
    #[test]
    fn pieces_change_nothing() {
        let window = Window { dilation: (1, 2), ..Window::square(3, 1, 1) };
        let to = window.output(GRID).unwrap();
        let shape = Shape { from: GRID, to, window, channels: 9, outputs: 7 };
        let (x, w, g) = (random(GRID.rows(), 9, 1), random(7, 81, 2), random(to.rows(), 7, 3));
        let bias = random(1, 7, 4);
        let of = |rows| {
            let y = shifted::forward(&x, &shape, &w, Some(bias.data()), rows);
            [y, shifted::input_gradient(&g, &shape, &w, rows), shifted::weight_gradient(&g, &x, &shape, rows)]
        };
        let whole = of(1 << 14);
        for rows in [1, 6, 13, 25, 61] {
            let [y, dx, dw] = of(rows);
            assert_eq!((y.data(), dx.data()), (whole[0].data(), whole[1].data()), "{rows}");
            for (a, b) in dw.data().iter().zip(whole[2].data()) {
                assert!((a - b).abs() < 1e-4, "{rows} {a} {b}");
            }
        }
    }

    /// Lines of tiles held together touch no pixel; weights sum their pieces one after the other.
    #[test]
    fn tiles_held_change_nothing() {
        for (window, grid) in [
            (Window::square(3, 1, 1), GRID),
            (Window::square(3, 1, 0), GRID),
            (Window::square(3, 1, 2), GRID),
        ] {
            let to = window.output(grid).unwrap();
            let shape = Shape { from: grid, to, window, channels: 19, outputs: 33 };
            let (x, w, g) = (random(grid.rows(), 19, 1), random(33, 9 * 19, 2), random(to.rows(), 33, 3));
            let bias = random(1, 33, 4);
            let of = |held| {
                let y = winograd::forward(&x, &shape, &w, Some(bias.data()), held);
                [
                    y,
                    winograd::input_gradient(&g, &shape, &w, held),
                    winograd::weight_gradient(&g, &x, &shape, held),
                ]
            };
            let (whole, cut) = (of(winograd::HELD), of(winograd::Held::LITTLE));
            assert_eq!((whole[0].data(), whole[1].data()), (cut[0].data(), cut[1].data()));
            let plain = [
                gathered::forward(&x, &shape, &w, Some(bias.data())),
                gathered::input_gradient(&g, &shape, &w),
                gathered::weight_gradient(&g, &x, &shape),
            ];
            for (what, (a, b)) in whole.iter().zip(&plain).chain(cut.iter().zip(&plain)).enumerate() {
                assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()));
                for (a, b) in a.data().iter().zip(b.data()) {
                    assert!((a - b).abs() < 1e-4, "{what} {window:?} {a} {b}");
                }
            }
        }
    }

    #[test]
    fn both_ways_agree() {
        for window in windows() {
            let Some(to) = window.output(GRID) else { continue };
            let shape = Shape { from: GRID, to, window, channels: 9, outputs: 5 };
            if !shape.is_shifted(1) {
                continue;
            }
            let (x, w, g) =
                (random(GRID.rows(), 9, 1), random(5, window.taps() * 9, 2), random(to.rows(), 5, 3));
            let pairs = [
                (shifted::forward(&x, &shape, &w, None, 64), gathered::forward(&x, &shape, &w, None)),
                (shifted::input_gradient(&g, &shape, &w, 64), gathered::input_gradient(&g, &shape, &w)),
                (shifted::weight_gradient(&g, &x, &shape, 64), gathered::weight_gradient(&g, &x, &shape)),
            ];
            for (what, (a, b)) in pairs.iter().enumerate() {
                for (a, b) in a.data().iter().zip(b.data()) {
                    assert!((a - b).abs() < 1e-4, "{what} {window:?} {a} {b}");
                }
            }
        }
    }

    #[test]
    fn a_stored_weight_is_its_decoded_values() {
        for (window, outputs) in
            [(Window::square(3, 1, 1), 6), (Window::square(3, 1, 1), 16), (Window::square(3, 2, 1), 6)]
        {
            let values = random(outputs, 9 * 16, 2);
            let bytes = encode(Format::BF16, outputs, 9 * 16, values.data()).unwrap();
            let stored =
                || Weight::Stored(from_bytes(Format::BF16, outputs, 9 * 16, bytes.clone()).unwrap().into());
            let decoded = Weight::F32(stored().to_tensor());
            let run = |weight: Weight| {
                let params = crate::Params::new();
                let tape = Tape::new(&params);
                let x = tape.input(random(GRID.rows(), 16, 1));
                let (y, _) = conv2d(&tape, &x, GRID, &WeightVar { weight, node: None }, None, &window);
                let seed = random(y.rows(), y.cols(), 5);
                let dx = tape.backward_to(&y, seed, &mut crate::Gradients::new(), &[&x]);
                (y.value().data().to_vec(), dx[0].data().to_vec())
            };
            assert!(run(stored()) == run(decoded), "{window:?}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let grid = Grid { images: 2, height: 40, width: 30 };
        for window in [Window::square(3, 1, 1), Window::square(3, 2, 1)] {
            let inputs = [random(grid.rows(), 16, 1), random(24, 9 * 16, 2), random(1, 24, 3)];
            assert_same_on_any_threads(&inputs, |tape, x| {
                conv2d(tape, &x[0], grid, &weight(&x[1]), Some(&x[2]), &window).0
            });
        }
    }
}
