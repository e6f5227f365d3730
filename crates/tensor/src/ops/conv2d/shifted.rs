//! A convolution that steps by one pixel, as a sum of products over shifted views of one padded copy of the images.
//!
//! In a copy with gaps of zeros between lines and images, the pixel that place (a, b) of the kernel reads for output pixel `p` lies
//! `a dilation pitch + b dilation` rows behind `p`: a view of the same memory. The product also fills the gaps, with numbers that nobody reads.

use std::ops::Range;

use rayon::prelude::*;

use super::super::linear::mat;
use super::Shape;
use crate::grid::{Grid, Window};
use crate::kernel::{self, MatRef, PackedLhs, Rhs, simd};
use crate::memory;
use crate::storage::{Columns, Storage};
use crate::tensor::Tensor;

/// Rows of one product, about: enough for the kernels, and few enough that copies stay small.
pub(super) const ROWS: usize = 1 << 14;

/// What one product computes: all lines of some images, or some lines of one.
struct Piece {
    images: Range<usize>,
    lines: Range<usize>,
}

/// Cuts the images of `to` into pieces of about `rows` rows. A plan's dry run sees the first alone: the others take the same memory after it, and how
/// many there are depends on the images.
fn pieces(to: Grid, rows: usize) -> Vec<Piece> {
    let mut pieces = all_pieces(to, rows);
    if memory::is_tracing() {
        pieces.truncate(1);
    }
    pieces
}

fn all_pieces(to: Grid, rows: usize) -> Vec<Piece> {
    let pixels = to.pixels().max(1);
    if pixels <= rows {
        let each = rows / pixels;
        let starts = (0..to.images).step_by(each);
        return starts.map(|i| Piece { images: i..(i + each).min(to.images), lines: 0..to.height }).collect();
    }
    let bands = pixels.div_ceil(rows).min(to.height);
    let band = |i: usize| to.height * i / bands..to.height * (i + 1) / bands;
    let image = |i: usize| (0..bands).map(move |b| Piece { images: i..i + 1, lines: band(b) });
    (0..to.images).flat_map(image).collect()
}

/// Where the pixels of a piece lie in a copy with gaps.
struct Layout<'a> {
    piece: &'a Piece,
    from: Grid,
    to: Grid,
    window: Window,
    /// Rows of the copy from line to line.
    pitch: usize,
    /// Lines of the copy from image to image.
    lines: usize,
}

impl<'a> Layout<'a> {
    fn new(piece: &'a Piece, from: Grid, to: Grid, window: Window) -> Layout<'a> {
        let (before, after) = (window.pad_before, window.pad_after);
        let pitch = (from.width + before.1.max(after.1)).max(to.width);
        let lines = (from.height + before.0.max(after.0)).max(to.height);
        Layout { piece, from, to, window, pitch, lines }
    }

    /// Rows of the product: up to the last pixel of the last image.
    fn rows(&self) -> usize {
        let lines = (self.piece.images.len() - 1) * self.lines + self.piece.lines.len() - 1;
        lines * self.pitch + self.to.width
    }

    /// How far behind an output pixel each place of the kernel reads.
    fn shifts(&self) -> Vec<usize> {
        let (down, right) = self.window.dilation;
        self.window.places().map(|(a, b)| a * down * self.pitch + b * right).collect()
    }

    /// The padded copy of the input that the piece's products read.
    fn padded(&self, x: &Tensor) -> Tensor {
        let (cols, (top, left)) = (x.cols(), self.window.pad_before);
        let rows = self.rows() + self.shifts().last().copied().unwrap_or(0);
        let mut copy = Tensor::scratch(rows, cols);
        if memory::is_tracing() {
            return copy;
        }
        copy.data_mut().par_chunks_mut(self.pitch * cols).enumerate().for_each(|(line, out)| {
            let (image, line) = (self.piece.images.start + line / self.lines, line % self.lines);
            let line = (self.piece.lines.start + line).checked_sub(top).filter(|&y| y < self.from.height);
            let Some(y) = line.filter(|_| image < self.piece.images.end) else { return out.fill(0.0) };
            let first = (image * self.from.height + y) * self.from.width;
            let pixels = &x.data()[first * cols..(first + self.from.width) * cols];
            spread(pixels, left * cols, out);
        });
        copy
    }

    /// The output's pixels in the product's layout, zeros between them.
    fn spread_output(&self, g: &Tensor) -> Tensor {
        let cols = g.cols();
        let mut copy = Tensor::scratch(self.rows(), cols);
        if memory::is_tracing() {
            return copy;
        }
        copy.data_mut().par_chunks_mut(self.pitch * cols).enumerate().for_each(|(line, out)| {
            let (image, line) = (line / self.lines, line % self.lines);
            match line < self.piece.lines.len() {
                true => {
                    spread(&g.data()[self.output_line(image, line) * cols..][..self.to.width * cols], 0, out)
                }
                false => out.fill(0.0),
            }
        });
        copy
    }

    /// The first output row of a line of the piece.
    fn output_line(&self, image: usize, line: usize) -> usize {
        ((self.piece.images.start + image) * self.to.height + self.piece.lines.start + line) * self.to.width
    }

    /// Takes the output's pixels out of the product; adds the bias.
    fn take_output(&self, product: &Tensor, bias: Option<&[f32]>, y: &mut Tensor) {
        if memory::is_tracing() {
            return;
        }
        let cols = y.cols();
        let (first, count) = (self.output_line(0, 0), self.piece.images.len() * self.piece.lines.len());
        let out = &mut y.data_mut()[first * cols..][..count * self.to.width * cols];
        out.par_chunks_mut(self.to.width * cols).enumerate().for_each(|(line, out)| {
            let (image, line) = (line / self.piece.lines.len(), line % self.piece.lines.len());
            let row = (image * self.lines + line) * self.pitch;
            out.copy_from_slice(&product.data()[row * cols..][..out.len()]);
            for pixel in out.chunks_exact_mut(cols).filter(|_| bias.is_some()) {
                simd::add(bias.unwrap_or_default(), pixel);
            }
        });
    }
}

/// Writes a line with zeros around it; what `out` has no room for is not needed.
fn spread(line: &[f32], left: usize, out: &mut [f32]) {
    let end = (left + line.len()).min(out.len());
    out[..left.min(end)].fill(0.0);
    if end > left {
        out[left..end].copy_from_slice(&line[..end - left]);
    }
    out[end..].fill(0.0);
}

/// The columns of a place of the kernel, as the right side of a product: `[C, N]`, or turned `[N, C]`.
fn side<'a>(w: &'a dyn Storage, columns: &'a Columns<'a>, first: usize, turned: bool) -> Rhs<'a> {
    match (w.as_f32(), turned) {
        (Some(data), _) => {
            let view = MatRef::with_strides(&data[first..], w.rows(), columns.cols(), w.cols(), 1);
            Rhs::Dense(if turned { view } else { view.t() })
        }
        (None, true) => Rhs::Weight(columns),
        (None, false) => Rhs::WeightT(columns),
    }
}

/// The sum over places of the shifted views of `x` times their columns of `w`; `order` names the columns of each place.
fn products(layout: &Layout, x: &Tensor, w: &dyn Storage, order: &[usize], turned: bool) -> Tensor {
    let (cols, shifts) = (x.cols(), layout.shifts());
    let channels = w.cols() / order.len();
    let (rows, outputs) = (layout.rows(), if turned { channels } else { w.rows() });
    let copy = layout.padded(x);
    let view =
        |shift: &usize| PackedLhs::new(MatRef::new(&copy.data()[shift * cols..][..rows * cols], rows, cols));
    let views: Vec<PackedLhs> = shifts.iter().map(view).collect();
    let columns: Vec<Columns> = order.iter().map(|tap| Columns::new(w, tap * channels, channels)).collect();
    let sides = columns.iter().zip(order).map(|(columns, tap)| side(w, columns, tap * channels, turned));
    let terms: Vec<(&PackedLhs, Rhs)> = views.iter().zip(sides).collect();
    let mut y = Tensor::scratch(rows, outputs);
    kernel::gemm(y.data_mut(), outputs, rows, outputs, 0.0, &terms);
    y
}

/// `y` `[T', N]`.
pub(super) fn forward(
    x: &Tensor,
    shape: &Shape,
    w: &dyn Storage,
    bias: Option<&[f32]>,
    rows: usize,
) -> Tensor {
    let order: Vec<usize> = (0..shape.window.taps()).collect();
    let mut y = Tensor::scratch(shape.to.rows(), shape.outputs);
    for piece in pieces(shape.to, rows) {
        let layout = Layout::new(&piece, shape.from, shape.to, shape.window);
        layout.take_output(&products(&layout, x, w, &order, false), bias, &mut y);
    }
    y
}

/// `dx` `[T, C]`: the gradient convolved with the kernel turned round.
pub(super) fn input_gradient(g: &Tensor, shape: &Shape, w: &dyn Storage, rows: usize) -> Tensor {
    let Window { kernel, dilation, pad_before, pad_after, .. } = shape.window;
    let reach = ((kernel.0 - 1) * dilation.0, (kernel.1 - 1) * dilation.1);
    let rest = |pad: (usize, usize)| (reach.0 - pad.0, reach.1 - pad.1);
    let window = Window { pad_before: rest(pad_before), pad_after: rest(pad_after), ..shape.window };
    let order: Vec<usize> = (0..window.taps()).rev().collect();
    let mut dx = Tensor::scratch(shape.from.rows(), shape.channels);
    for piece in pieces(shape.from, rows) {
        let layout = Layout::new(&piece, shape.to, shape.from, window);
        layout.take_output(&products(&layout, g, w, &order, true), None, &mut dx);
    }
    dx
}

/// `dw` `[N, places C]`: for each place `gᵀ x`, over the shifted view.
pub(super) fn weight_gradient(g: &Tensor, x: &Tensor, shape: &Shape, rows: usize) -> Tensor {
    let Shape { channels, outputs, window, .. } = *shape;
    let mut dw = Tensor::scratch(outputs, window.taps() * channels);
    let stride = dw.cols();
    for (number, piece) in pieces(shape.to, rows).iter().enumerate() {
        let layout = Layout::new(piece, shape.from, shape.to, window);
        let (spread, copy, rows) = (layout.spread_output(g), layout.padded(x), layout.rows());
        let gt = PackedLhs::new(mat(&spread).t());
        let beta = if number == 0 { 0.0 } else { 1.0 };
        for (tap, shift) in layout.shifts().into_iter().enumerate() {
            let view = MatRef::new(&copy.data()[shift * channels..][..rows * channels], rows, channels);
            let out = &mut dw.data_mut()[tap * channels..];
            kernel::gemm(out, stride, outputs, channels, beta, &[(&gt, Rhs::Dense(view))]);
        }
    }
    dw
}
