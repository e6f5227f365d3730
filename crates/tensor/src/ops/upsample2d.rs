//! Nearest-neighbour enlargement by a whole factor: output pixel (y, x) is input pixel (y / f, x / f); backward sums each square's gradients.

use rayon::prelude::*;

use super::parallel::for_rows;
use crate::grid::Grid;
use crate::kernel::simd;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x` `[T, C]`, the pixels of `grid`, `factor` times as high and wide: the output and its grid.
pub fn upsample2d(tape: &Tape, x: &Var, grid: Grid, factor: usize) -> (Var, Grid) {
    assert!(factor > 0 && x.rows() == grid.rows(), "upsample2d: pixels");
    let to = Grid { images: grid.images, height: grid.height * factor, width: grid.width * factor };
    let (cols, node, values) = (x.cols(), x.node(), x.value());
    let mut y = Tensor::scratch(to.rows(), cols);
    for_rows(y.data_mut(), cols, |first, chunk| {
        for (i, out) in chunk.chunks_exact_mut(cols).enumerate() {
            let (image, line, column) = to.place(first + i);
            out.copy_from_slice(
                values.row((image * grid.height + line / factor) * grid.width + column / factor),
            );
        }
    });
    let y = tape.record(y, node.is_some(), move |g, sink| {
        let mut dx = Tensor::zeros(grid.rows(), cols);
        dx.data_mut().par_chunks_mut(grid.width * cols).enumerate().for_each(|(line, out)| {
            for from in line * factor..(line + 1) * factor {
                for x in 0..to.width {
                    simd::add(g.row(from * to.width + x), &mut out[x / factor * cols..][..cols]);
                }
            }
        });
        sink.add(node, dx);
    });
    (y, to)
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{check, random};
    use super::*;

    #[test]
    fn gradient() {
        let grid = Grid { images: 2, height: 3, width: 2 };
        for factor in [1, 2, 3] {
            check(&[random(grid.rows(), 3, 1)], |tape, x| upsample2d(tape, &x[0], grid, factor).0);
        }
    }

    #[test]
    fn every_pixel_becomes_a_square() {
        let grid = Grid { images: 1, height: 1, width: 2 };
        let params = crate::Params::new();
        let x = Var::constant(Tensor::from_vec(2, 1, vec![1.0, 2.0]));
        let (y, to) = upsample2d(&Tape::inference(&params), &x, grid, 2);
        assert_eq!((to.height, to.width), (2, 4));
        assert_eq!(y.value().data(), [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
    }
}
