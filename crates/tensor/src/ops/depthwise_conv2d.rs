//! Depthwise convolution: every channel has a kernel of its own, `y[i, c] = b[c] + sum over places p of x[source(i, p), c] w[c, p]`.
//!
//! Backward: `dx[j, c]` sums `g w` over the outputs that read `j`, `dw[c, p] = sum over outputs of g x`, `db` the sum over rows of `g`.

use super::linear::column_sums;
use super::parallel::{for_readers, for_rows, sum_rows};
use crate::grid::{Grid, Window};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

crate::multiversion! {
    /// `y += x w`, element by element.
    fn add_product(x: &[f32], w: &[f32], y: &mut [f32]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y += x * w;
        }
    }
}

/// Convolves each channel of `x` `[T, C]`, the pixels of `grid`, with its row of `w` `[C, places]`; adds `bias` `[1, C]`: the output and its grid.
///
/// # Panics
/// If the shapes disagree or the window does not fit into the images.
pub fn depthwise_conv2d(
    tape: &Tape,
    x: &Var,
    grid: Grid,
    w: &Var,
    bias: Option<&Var>,
    window: &Window,
) -> (Var, Grid) {
    let (cols, window) = (x.cols(), *window);
    let to = window.output(grid).expect("depthwise_conv2d: the window fits into the images");
    assert_eq!(x.rows(), grid.rows(), "depthwise_conv2d: pixels");
    assert_eq!((w.rows(), w.cols()), (cols, window.taps()), "depthwise_conv2d: weight");
    // Places x channels, so that a place is a row of all channels.
    let places = w.value().transposed();
    let y = forward(x.value(), (grid, to), &places, bias.map(Var::value), &window);
    let (nx, nw, nb) = (x.node(), w.node(), bias.and_then(Var::node));
    let saved = nw.is_some().then(|| x.saved());
    let needed = nx.is_some() || nw.is_some() || nb.is_some();
    let y = tape.record(y, needed, move |g, sink| {
        if nb.is_some() {
            sink.add(nb, column_sums(&g));
        }
        if let Some(saved) = saved {
            sink.add(nw, weight_gradient(&g, &saved.get(), (grid, to), &window));
        }
        if nx.is_some() {
            sink.add(nx, input_gradient(&g, (grid, to), &places, &window));
        }
    });
    (y, to)
}

fn forward(
    x: &Tensor,
    (grid, to): (Grid, Grid),
    places: &Tensor,
    bias: Option<&Tensor>,
    window: &Window,
) -> Tensor {
    let cols = x.cols();
    let mut y = Tensor::scratch(to.rows(), cols);
    for_rows(y.data_mut(), cols, |first, chunk| {
        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
            let (image, line, column) = to.place(first + i);
            match bias {
                Some(bias) => out.copy_from_slice(bias.data()),
                None => out.fill(0.0),
            }
            for (tap, place) in window.places().enumerate() {
                if let Some((sy, sx)) = window.source(grid, (line, column), place) {
                    add_product(x.row((image * grid.height + sy) * grid.width + sx), places.row(tap), out);
                }
            }
        }
    });
    y
}

fn input_gradient(g: &Tensor, (grid, to): (Grid, Grid), places: &Tensor, window: &Window) -> Tensor {
    let cols = g.cols();
    let mut dx = Tensor::zeros(grid.rows(), cols);
    for_readers(dx.data_mut(), cols, (grid, to), window, |row, tap, pixel| {
        add_product(g.row(row), places.row(tap), pixel);
    });
    dx
}

fn weight_gradient(g: &Tensor, x: &Tensor, (grid, to): (Grid, Grid), window: &Window) -> Tensor {
    let (cols, taps) = (g.cols(), window.taps());
    let mut sums = Tensor::zeros(1, taps * cols);
    sum_rows(to.rows(), sums.data_mut(), |first, last, sums| {
        for row in first..last {
            let (image, line, column) = to.place(row);
            for ((tap, place), sum) in window.places().enumerate().zip(sums.chunks_exact_mut(cols)) {
                debug_assert!(tap < taps);
                if let Some((sy, sx)) = window.source(grid, (line, column), place) {
                    add_product(x.row((image * grid.height + sy) * grid.width + sx), g.row(row), sum);
                }
            }
        }
    });
    sums.reshaped(taps, cols).transposed()
}

#[cfg(test)]
mod tests {
    use super::super::conv2d;
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::*;
    use crate::params::Weight;
    use crate::tape::WeightVar;

    const GRID: Grid = Grid { images: 2, height: 4, width: 5 };

    fn windows() -> [Window; 4] {
        [Window::square(3, 1, 1), Window::square(3, 2, 1), Window::same(5, 2, 4, 5), Window::square(2, 1, 0)]
    }

    #[test]
    fn gradient() {
        for window in windows() {
            let inputs = [random(GRID.rows(), 3, 1), random(3, window.taps(), 2), random(1, 3, 3)];
            check(&inputs, |tape, x| depthwise_conv2d(tape, &x[0], GRID, &x[1], Some(&x[2]), &window).0);
        }
    }

    /// A depthwise kernel is a full one that is zero between different channels.
    #[test]
    fn equals_a_full_convolution_with_a_diagonal_kernel() {
        for window in windows() {
            let (x, w) = (random(GRID.rows(), 3, 1), random(3, window.taps(), 2));
            let full =
                Tensor::from_fn(3, window.taps() * 3, |o, k| if k % 3 == o { w.row(o)[k / 3] } else { 0.0 });
            let params = crate::Params::new();
            let (tape, x) = (Tape::inference(&params), Var::constant(x));
            let (y, to) = depthwise_conv2d(&tape, &x, GRID, &Var::constant(w), None, &window);
            let full = WeightVar { weight: Weight::F32(full), node: None };
            let (want, want_to) = conv2d(&tape, &x, GRID, &full, None, &window);
            assert_eq!(to, want_to);
            for (a, b) in y.value().data().iter().zip(want.value().data()) {
                assert!((a - b).abs() < 1e-5, "{window:?} {a} {b}");
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let grid = Grid { images: 2, height: 40, width: 30 };
        assert_same_on_any_threads(
            &[random(grid.rows(), 24, 1), random(24, 9, 2), random(1, 24, 3)],
            |tape, x| depthwise_conv2d(tape, &x[0], grid, &x[1], Some(&x[2]), &Window::square(3, 1, 1)).0,
        );
    }
}
