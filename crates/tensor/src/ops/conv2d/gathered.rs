//! Any convolution as plain products: the pixels under the kernel are gathered into rows (im2col), a chunk of output pixels at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::super::linear::mat;
use super::super::parallel::for_rows;
use super::Shape;
use crate::grid::Window;
use crate::kernel::{self, PackedLhs, Rhs, simd};
use crate::memory;
use crate::ops::add_bias::add_to_rows;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Floats that are gathered at a time, about.
const CHUNK: usize = 1 << 20;

/// The chunks of output rows. A plan's dry run sees the first alone: the others take the same memory after it.
fn chunks(shape: &Shape) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, width) = (shape.to.rows(), shape.window.taps() * shape.channels);
    let step = (CHUNK / width.max(1)).max(64);
    let seen = if memory::is_tracing() { 1 } else { usize::MAX };
    (0..rows).step_by(step).map(move |first| first..(first + step).min(rows)).take(seen)
}

/// The rows `[places C]` under the kernel at some output pixels; zeros where it reads padding.
fn gather(x: &Tensor, shape: &Shape, rows: Range<usize>) -> Tensor {
    let (channels, width) = (shape.channels, shape.window.taps() * shape.channels);
    let mut out = Tensor::scratch(rows.len(), width);
    if memory::is_tracing() {
        return out;
    }
    let line = shape.window.kernel.1 * channels;
    for_rows(out.data_mut(), width, |first, chunk| {
        for (i, out) in chunk.chunks_exact_mut(width).enumerate() {
            let (image, y, x_) = shape.to.place(rows.start + first + i);
            for (a, out) in out.chunks_exact_mut(line).enumerate() {
                match run(shape, image, (y, x_), a) {
                    Some(pixel) => out.copy_from_slice(&x.data()[pixel * channels..][..line]),
                    None => gather_line(x, shape, image, (y, x_), a, out),
                }
            }
        }
    });
    out
}

/// The first of the pixels under line `a` of the kernel, where all of them are there, one behind the other.
fn run(shape: &Shape, image: usize, at: (usize, usize), a: usize) -> Option<usize> {
    let Window { kernel, dilation, .. } = shape.window;
    let (y, first) = shape.window.source(shape.from, at, (a, 0))?;
    let inside = dilation.1 == 1 && first + kernel.1 <= shape.from.width;
    inside.then(|| (image * shape.from.height + y) * shape.from.width + first)
}

/// The pixels under line `a` of the kernel one by one, zeros where there is none.
fn gather_line(x: &Tensor, shape: &Shape, image: usize, at: (usize, usize), a: usize, out: &mut [f32]) {
    for (b, out) in out.chunks_exact_mut(shape.channels).enumerate() {
        match shape.window.source(shape.from, at, (a, b)) {
            Some((y, x_)) => {
                out.copy_from_slice(x.row((image * shape.from.height + y) * shape.from.width + x_));
            }
            None => out.fill(0.0),
        }
    }
}

/// `y` `[T', N]`.
pub(super) fn forward(x: &Tensor, shape: &Shape, w: &dyn Storage, bias: Option<&[f32]>) -> Tensor {
    let n = shape.outputs;
    let mut y = Tensor::scratch(shape.to.rows(), n);
    for rows in chunks(shape) {
        let columns = gather(x, shape, rows.clone());
        let out = &mut y.data_mut()[rows.start * n..rows.end * n];
        kernel::gemm(out, n, rows.len(), n, 0.0, &[(&PackedLhs::new(mat(&columns)), Rhs::WeightT(w))]);
    }
    if let Some(bias) = bias {
        add_to_rows(&mut y, bias);
    }
    y
}

/// `dx` `[T, C]`: `g w` for the pixels of an image, then each input pixel sums what its readers have for it, in the order of the places.
pub(super) fn input_gradient(g: &Tensor, shape: &Shape, w: &dyn Storage) -> Tensor {
    let Shape { from, to, window, channels, outputs } = *shape;
    let width = window.taps() * channels;
    let mut dx = Tensor::zeros(from.rows(), channels);
    let seen = if memory::is_tracing() { 1 } else { usize::MAX };
    for image in (0..from.images).take(seen) {
        // A band of lines at a time; lines that two bands reach are summed band after band.
        let band = (CHUNK / (width * to.width).max(1)).max(1);
        for first in (0..to.height).step_by(band).take(seen) {
            let lines = first..(first + band).min(to.height);
            let rows =
                (image * to.height + lines.start) * to.width..(image * to.height + lines.end) * to.width;
            let g = PackedLhs::new(kernel::MatRef::new(
                &g.data()[rows.start * outputs..rows.end * outputs],
                rows.len(),
                outputs,
            ));
            let mut columns = Tensor::scratch(rows.len(), width);
            kernel::gemm(columns.data_mut(), width, rows.len(), width, 0.0, &[(&g, Rhs::Weight(w))]);
            if memory::is_tracing() {
                continue;
            }
            let pixels = &mut dx.data_mut()[image * from.pixels() * channels..][..from.pixels() * channels];
            pixels.par_chunks_mut(from.width * channels).enumerate().for_each(|(y, out)| {
                scatter_line(shape, &columns, lines.clone(), y, out);
            });
        }
    }
    dx
}

/// Adds to input line `y` what the output lines `lines` have for it in `columns`.
fn scatter_line(shape: &Shape, columns: &Tensor, lines: Range<usize>, y: usize, out: &mut [f32]) {
    let channels = shape.channels;
    let readers = shape.window.readers(y, shape.to.height);
    for reader in readers.start.max(lines.start)..readers.end.min(lines.end) {
        for x in 0..shape.to.width {
            let row = columns.row((reader - lines.start) * shape.to.width + x);
            for (place, part) in shape.window.places().zip(row.chunks_exact(channels)) {
                if let Some((to_y, to_x)) = shape.window.source(shape.from, (reader, x), place)
                    && to_y == y
                {
                    simd::add(part, &mut out[to_x * channels..][..channels]);
                }
            }
        }
    }
}

/// `dw` `[N, places C]` `= gᵀ columns`.
pub(super) fn weight_gradient(g: &Tensor, x: &Tensor, shape: &Shape) -> Tensor {
    let n = shape.outputs;
    let mut dw = Tensor::zeros(n, shape.window.taps() * shape.channels);
    let width = dw.cols();
    for rows in chunks(shape) {
        let columns = gather(x, shape, rows.clone());
        let part = kernel::MatRef::new(&g.data()[rows.start * n..rows.end * n], rows.len(), n);
        kernel::gemm(
            dw.data_mut(),
            width,
            n,
            width,
            1.0,
            &[(&PackedLhs::new(part.t()), Rhs::Dense(mat(&columns)))],
        );
    }
    dw
}
