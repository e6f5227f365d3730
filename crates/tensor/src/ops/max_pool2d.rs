//! Max pooling over pixels as rows: `y[i, c] = max over the window of x[source, c]`; padding never wins.
//!
//! Backward: the gradient goes to the first of the largest (in the order of the window), as in torch.

use super::parallel::{for_readers, for_rows2};
use crate::grid::{Grid, Window};
use crate::memory;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The largest of each window of `x` `[T, C]`, the pixels of `grid`: `[T', C]` and its grid.
///
/// # Panics
/// If the window does not fit into the images, has more than 256 places, or may lie in the padding alone.
pub fn max_pool2d(tape: &Tape, x: &Var, grid: Grid, window: &Window) -> (Var, Grid) {
    let to = window.output(grid).expect("max_pool2d: the window fits into the images");
    assert_eq!(x.rows(), grid.rows(), "max_pool2d: pixels");
    assert!(window.taps() <= 256, "max_pool2d: at most 256 places");
    let cols = x.cols();
    let mut y = Tensor::scratch(to.rows(), cols);
    // Which place won: a byte each.
    let mut won = Tensor::scratch(to.rows(), cols.div_ceil(4));
    let values = x.value();
    // A plan's dry run asks what is taken: what nobody writes to takes no memory.
    if !memory::is_tracing() {
        for_rows2(y.data_mut(), cols, won.data_mut(), cols.div_ceil(4), |first, y, won| {
            let won = bytes_mut(won).chunks_exact_mut(cols.next_multiple_of(4));
            for (i, (y, won)) in y.chunks_exact_mut(cols).zip(won).enumerate() {
                pixel(values, grid, to, window, first + i, y, &mut won[..cols]);
            }
        });
    }
    let (node, window) = (x.node(), *window);
    let y = tape.record(y, node.is_some(), move |g, sink| {
        sink.add(node, input_gradient(&g, &won, grid, to, &window));
    });
    (y, to)
}

/// The memory of floats as bytes.
fn bytes_mut(floats: &mut [f32]) -> &mut [u8] {
    // SAFETY: every float is four initialised bytes, and any bytes are a float; the slice is borrowed exclusively. The gradients' tests read what
    // is written here.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), 4 * floats.len()) }
}

fn bytes(floats: &[f32]) -> &[u8] {
    // SAFETY: as above, shared.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), 4 * floats.len()) }
}

/// One output pixel: the largest values and the places that they are from.
fn pixel(x: &Tensor, grid: Grid, to: Grid, window: &Window, row: usize, y: &mut [f32], won: &mut [u8]) {
    let (image, line, column) = to.place(row);
    let mut any = false;
    for (tap, place) in window.places().enumerate() {
        let Some((sy, sx)) = window.source(grid, (line, column), place) else { continue };
        let from = x.row((image * grid.height + sy) * grid.width + sx);
        match any {
            false => {
                y.copy_from_slice(from);
                won.fill(tap as u8);
                any = true;
            }
            true => larger(from, tap as u8, y, won),
        }
    }
    assert!(any, "max_pool2d: a window lies in the padding alone");
}

crate::multiversion! {
    fn larger(from: &[f32], tap: u8, y: &mut [f32], won: &mut [u8]) {
        for ((y, won), from) in y.iter_mut().zip(won).zip(from) {
            // NaN wins and stays, so that it is seen.
            let wins = *from > *y || from.is_nan();
            *won = if wins { tap } else { *won };
            *y = if wins { *from } else { *y };
        }
    }

    /// Adds the gradient where this place won.
    fn add_won(g: &[f32], won: &[u8], tap: u8, out: &mut [f32]) {
        for ((out, g), won) in out.iter_mut().zip(g).zip(won) {
            *out += if *won == tap { *g } else { 0.0 };
        }
    }
}

fn input_gradient(g: &Tensor, won: &Tensor, grid: Grid, to: Grid, window: &Window) -> Tensor {
    let cols = g.cols();
    let mut dx = Tensor::zeros(grid.rows(), cols);
    if memory::is_tracing() {
        return dx;
    }
    for_readers(dx.data_mut(), cols, (grid, to), window, |row, tap, pixel| {
        add_won(g.row(row), &bytes(won.row(row))[..cols], tap as u8, pixel);
    });
    dx
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, random};
    use super::*;
    use crate::{Gradients, Params};

    /// Distinct values far enough apart for finite differences: a shuffled ramp.
    fn ramp(rows: usize, cols: usize) -> Tensor {
        let n = (rows * cols) as u64;
        Tensor::from_fn(rows, cols, |r, c| (((r * cols + c) as u64 * 7919) % n) as f32 * 0.1 - 3.0)
    }

    #[test]
    fn gradient() {
        let grid = Grid { images: 2, height: 5, width: 4 };
        for window in [
            Window::square(2, 2, 0),
            Window::square(3, 2, 1),
            Window::square(5, 1, 2),
            Window::square(2, 1, 0),
        ] {
            super::super::gradcheck::check(&[ramp(grid.rows(), 3)], |tape, x| {
                max_pool2d(tape, &x[0], grid, &window).0
            });
        }
    }

    #[test]
    fn the_first_of_equals_gets_the_gradient() {
        let grid = Grid { images: 1, height: 2, width: 2 };
        let params = Params::new();
        let tape = Tape::new(&params);
        let x = tape.input(Tensor::from_vec(4, 1, vec![1.0, 2.0, 2.0, 0.0]));
        let (y, to) = max_pool2d(&tape, &x, grid, &Window::square(2, 2, 0));
        assert_eq!((y.value().data(), to.rows()), (&[2.0][..], 1));
        let dx = tape.backward_to(&y, Tensor::scalar(5.0), &mut Gradients::new(), &[&x]);
        assert_eq!(dx[0].data(), [0.0, 5.0, 0.0, 0.0]);
    }

    #[test]
    fn padding_never_wins_and_nan_does() {
        let grid = Grid { images: 1, height: 2, width: 2 };
        let params = Params::new();
        let tape = Tape::inference(&params);
        let x = Var::constant(Tensor::from_vec(4, 2, vec![-4.0, f32::NAN, -3.0, 1.0, -2.0, 1.0, -1.0, 1.0]));
        let (y, _) = max_pool2d(&tape, &x, grid, &Window::square(3, 2, 1));
        assert!(y.value().data()[0] == -1.0 && y.value().data()[1].is_nan());
    }

    #[test]
    fn threads_change_nothing() {
        let grid = Grid { images: 2, height: 40, width: 30 };
        assert_same_on_any_threads(&[random(grid.rows(), 24, 1)], |tape, x| {
            max_pool2d(tape, &x[0], grid, &Window::square(3, 2, 1)).0
        });
    }
}
