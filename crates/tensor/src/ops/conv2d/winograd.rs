//! A 3 x 3 convolution that steps by one pixel, by minimal filtering F(2 x 2, 3 x 3) (Winograd, 1980; Lavin and Gray, arXiv:1509.09308).
//!
//! A tile of 2 x 2 output pixels `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A` of the 4 x 4 pixels `d` that it reads: 16 products a channel instead of 36. Summed over
//! channels these are 16 matrix products `M_k [T, N] = V_k [T, C] U_kᵀ`, T tiles. Backward: `dx` is the same with the kernel turned round,
//! `dg = Gᵀ (sum over tiles of (A dY Aᵀ) ⊙ (Bᵀ d B)) G`. The coefficients are 0, 1, -1 and 1/2, so little is lost to rounding.

use std::array;
use std::ops::Range;

use rayon::prelude::*;

use super::Shape;
use crate::grid::{Grid, Window};
use crate::kernel::{self, MatRef, PackedLhs};
use crate::memory;
use crate::multiversion;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Products of a tile.
const PRODUCTS: usize = 16;
/// Fewest channels and outputs: below, changing to and from products costs more than they save.
const CHANNELS_MIN: usize = 16;
/// Floats of the tiles that are held at a time, about.
pub(super) const HELD: usize = 4 << 20;

/// Channels that are changed side by side.
const LANES: usize = 16;
type Lane = [f32; LANES];

/// Whether this way serves a convolution: by its shape for one image, so that a batch changes no result.
pub(super) fn serves(shape: &Shape) -> bool {
    let Window { kernel, stride, dilation, pad_before, pad_after } = shape.window;
    let pads = [pad_before.0, pad_before.1, pad_after.0, pad_after.1];
    let plain = kernel == (3, 3) && stride == (1, 1) && dilation == (1, 1) && pads.iter().all(|&p| p <= 2);
    plain && shape.channels.min(shape.outputs) >= CHANNELS_MIN && shape.to.height.min(shape.to.width) >= 4
}

/// Where the tiles of a convolution's output lie.
#[derive(Clone, Copy)]
struct Tiles {
    from: Grid,
    to: Grid,
    pad: (usize, usize),
}

impl Tiles {
    /// Tiles of a line.
    fn across(&self) -> usize {
        self.to.width.div_ceil(2)
    }

    /// Lines of tiles of an image.
    fn down(&self) -> usize {
        self.to.height.div_ceil(2)
    }

    /// Pieces of all images' lines of tiles for which `per_tile` floats a tile are about `held`. A plan's dry run sees the first alone.
    fn pieces(&self, per_tile: usize, held: usize) -> Vec<Range<usize>> {
        let lines = self.to.images * self.down();
        let step = (held / (per_tile * self.across()).max(1)).clamp(1, lines.max(1));
        let seen = if memory::is_tracing() { 1 } else { usize::MAX };
        (0..lines).step_by(step).map(|first| first..(first + step).min(lines)).take(seen).collect()
    }

    /// The 4 x 4 pixels under tile `t` of a line; zeros in the padding.
    fn input<'a>(&self, x: &'a Tensor, line: usize, t: usize, zeros: &'a [f32]) -> [&'a [f32]; PRODUCTS] {
        let (image, top, left) = (line / self.down(), 2 * (line % self.down()), 2 * t);
        pixels(x, self.from, image, zeros, |i| {
            ((top + i / 4).checked_sub(self.pad.0), (left + i % 4).checked_sub(self.pad.1))
        })
    }

    /// The 2 x 2 output pixels of tile `t` of a line; zeros beyond the edge.
    fn output<'a>(&self, g: &'a Tensor, line: usize, t: usize, zeros: &'a [f32]) -> [&'a [f32]; 4] {
        let (image, top, left) = (line / self.down(), 2 * (line % self.down()), 2 * t);
        pixels(g, self.to, image, zeros, |i| (Some(top + i / 2), Some(left + i % 2)))
    }

    /// Output lines of a line of tiles: two, at an odd edge one.
    fn lines_of(&self, line: usize) -> usize {
        (self.to.height - 2 * (line % self.down())).min(2)
    }

    /// Output rows (pixels) in front of a line of tiles.
    fn rows_before(&self, line: usize) -> usize {
        (line / self.down() * self.to.height + 2 * (line % self.down())) * self.to.width
    }
}

/// Pixels of an image by line and column; zeros where there is none.
fn pixels<'a, const N: usize>(
    x: &'a Tensor,
    grid: Grid,
    image: usize,
    zeros: &'a [f32],
    place: impl Fn(usize) -> (Option<usize>, Option<usize>),
) -> [&'a [f32]; N] {
    array::from_fn(|i| match place(i) {
        (Some(y), Some(x_)) if y < grid.height && x_ < grid.width => {
            x.row((image * grid.height + y) * grid.width + x_)
        }
        _ => zeros,
    })
}

/// Sixteen matrices `[T, C]`; a row has room for whole lanes, and rows lie an odd number of cache lines apart (so that they do not share sets).
struct Stack {
    data: Tensor,
    cols: usize,
    width: usize,
    rows: usize,
}

impl Stack {
    fn width_for(cols: usize) -> usize {
        (cols.div_ceil(LANES) | 1) * LANES
    }

    fn new(rows: usize, cols: usize) -> Stack {
        let width = Stack::width_for(cols);
        Stack { data: Tensor::scratch(PRODUCTS * rows, width), cols, width, rows }
    }

    /// Floats of one matrix.
    fn each(&self) -> usize {
        self.rows * self.width
    }

    /// The first `rows` of matrix `k`.
    fn mat(&self, k: usize, rows: usize) -> MatRef<'_> {
        MatRef::with_strides(&self.data.data()[k * self.each()..], rows, self.cols, self.width, 1)
    }

    fn row(&self, k: usize, row: usize) -> &[f32] {
        &self.data.data()[k * self.each() + row * self.width..][..self.cols]
    }

    /// For each stretch of `rows` rows, that stretch of every matrix.
    fn stretches(&mut self, rows: usize) -> Vec<[&mut [f32]; PRODUCTS]> {
        let (each, len, count) = (self.each(), rows * self.width, self.rows.div_ceil(rows));
        let mut stretches: Vec<Vec<&mut [f32]>> = (0..count).map(|_| Vec::with_capacity(PRODUCTS)).collect();
        for mat in self.data.data_mut().chunks_mut(each.max(1)) {
            for (list, stretch) in stretches.iter_mut().zip(mat.chunks_mut(len)) {
                list.push(stretch);
            }
        }
        stretches.into_iter().filter_map(|list| list.try_into().ok()).collect()
    }

    /// `rows` rows of each matrix from what `of(stretch, row, out)` makes of a row; stretches of `each` rows in parallel.
    fn fill(&mut self, rows: usize, each: usize, of: impl Fn(usize, usize, &mut [&mut [f32]; PRODUCTS]) + Sync) {
        if memory::is_tracing() {
            return;
        }
        let width = self.width;
        let stretches = self.stretches(each);
        stretches.into_par_iter().take(rows.div_ceil(each)).enumerate().for_each(|(number, mut stretch)| {
            for t in 0..each.min(rows - number * each) {
                let mut out = stretch.each_mut().map(|mat| &mut mat[t * width..(t + 1) * width]);
                of(number, t, &mut out);
            }
        });
    }
}

/// The lanes of a row from channel `c`, zeros behind its end.
#[inline(always)]
fn load(row: &[f32], c: usize) -> Lane {
    match row.get(c..c + LANES) {
        Some(lanes) => lanes.try_into().unwrap_or([0.0; LANES]),
        None => {
            let mut lanes = [0.0; LANES];
            let rest = &row[c..];
            lanes[..rest.len()].copy_from_slice(rest);
            lanes
        }
    }
}

#[inline(always)]
fn store(lanes: Lane, row: &mut [f32], c: usize) {
    match row.get_mut(c..c + LANES) {
        Some(out) => out.copy_from_slice(&lanes),
        None => {
            let rest = &mut row[c..];
            let len = rest.len();
            rest.copy_from_slice(&lanes[..len]);
        }
    }
}

#[inline(always)]
fn zip(a: Lane, b: Lane, f: impl Fn(f32, f32) -> f32) -> Lane {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn plus(a: Lane, b: Lane) -> Lane {
    zip(a, b, |a, b| a + b)
}

#[inline(always)]
fn minus(a: Lane, b: Lane) -> Lane {
    zip(a, b, |a, b| a - b)
}

#[inline(always)]
fn half(a: Lane) -> Lane {
    zip(a, a, |a, _| 0.5 * a)
}

/// `f` of the rows' channels, lanes at a time.
#[inline(always)]
fn over_lanes<const I: usize, const O: usize>(
    channels: usize,
    from: &[&[f32]; I],
    to: &mut [&mut [f32]; O],
    f: impl Fn([Lane; I]) -> [Lane; O],
) {
    for c in (0..channels).step_by(LANES) {
        let out = f(array::from_fn(|i| load(from[i], c)));
        for (lanes, row) in out.into_iter().zip(to.iter_mut()) {
            store(lanes, row, c);
        }
    }
}

/// `f` down the columns of a `[I, W]` grid of lanes: `[O, W]`.
#[inline(always)]
fn down<const IW: usize, const OW: usize, const I: usize, const O: usize>(
    d: [Lane; IW],
    f: impl Fn([Lane; I]) -> [Lane; O],
) -> [Lane; OW] {
    let width = IW / I;
    let mut out = [[0.0; LANES]; OW];
    for column in 0..width {
        let sums = f(array::from_fn(|i| d[i * width + column]));
        for (i, sum) in sums.into_iter().enumerate() {
            out[i * width + column] = sum;
        }
    }
    out
}

/// `f` along the lines of a `[H, I]` grid of lanes: `[H, O]`.
#[inline(always)]
fn along<const HI: usize, const HO: usize, const I: usize, const O: usize>(
    d: [Lane; HI],
    f: impl Fn([Lane; I]) -> [Lane; O],
) -> [Lane; HO] {
    let mut out = [[0.0; LANES]; HO];
    for line in 0..HI / I {
        let sums = f(array::from_fn(|i| d[line * I + i]));
        for (i, sum) in sums.into_iter().enumerate() {
            out[line * O + i] = sum;
        }
    }
    out
}

/// Bᵀ d.
#[inline(always)]
fn bt([a, b, c, d]: [Lane; 4]) -> [Lane; 4] {
    [minus(a, c), plus(b, c), minus(c, b), minus(b, d)]
}

/// Aᵀ m.
#[inline(always)]
fn at([a, b, c, d]: [Lane; 4]) -> [Lane; 2] {
    [plus(plus(a, b), c), minus(minus(b, c), d)]
}

/// A y.
#[inline(always)]
fn a([p, q]: [Lane; 2]) -> [Lane; 4] {
    [p, plus(p, q), minus(p, q), minus([0.0; LANES], q)]
}

/// G g.
#[inline(always)]
fn g([a, b, c]: [Lane; 3]) -> [Lane; 4] {
    let outer = plus(a, c);
    [a, half(plus(outer, b)), half(minus(outer, b)), c]
}

/// Gᵀ u.
#[inline(always)]
fn gt([a, b, c, d]: [Lane; 4]) -> [Lane; 3] {
    let (sum, difference) = (half(plus(b, c)), half(minus(b, c)));
    [plus(a, sum), difference, plus(d, sum)]
}

multiversion! {
    /// `V = Bᵀ d B` of a tile.
    fn input_tile(channels: usize, from: &[&[f32]; 16], to: &mut [&mut [f32]; 16]) {
        over_lanes(channels, from, to, |d| along::<16, 16, 4, 4>(down::<16, 16, 4, 4>(d, bt), bt));
    }

    /// `Y = Aᵀ M A + bias` of a tile; the bias is the last of the rows.
    fn output_tile(channels: usize, from: &[&[f32]; 17], to: &mut [&mut [f32]; 4]) {
        over_lanes(channels, from, to, |rows| {
            let m: [Lane; 16] = array::from_fn(|i| rows[i]);
            along::<8, 4, 4, 2>(down::<16, 8, 4, 2>(m, at), at).map(|y| plus(y, rows[16]))
        });
    }

    /// `A dY Aᵀ` of a tile.
    fn gradient_tile(channels: usize, from: &[&[f32]; 4], to: &mut [&mut [f32]; 16]) {
        over_lanes(channels, from, to, |y| along::<8, 16, 2, 4>(down::<4, 8, 2, 4>(y, a), a));
    }

    /// `U = G g Gᵀ` of one output's kernel.
    fn kernel_tile(channels: usize, from: &[&[f32]; 9], to: &mut [&mut [f32]; 16]) {
        over_lanes(channels, from, to, |w| along::<12, 16, 3, 4>(down::<9, 12, 3, 4>(w, g), g));
    }

    /// `dg = Gᵀ dU G` of one output's kernel.
    fn kernel_gradient_tile(channels: usize, from: &[&[f32]; 16], to: &mut [&mut [f32]; 9]) {
        over_lanes(channels, from, to, |u| along::<12, 9, 4, 3>(down::<16, 12, 4, 3>(u, gt), gt));
    }
}

/// `U_k` `[N, C]` of a weight `[N, 9 C]`, the kernel turned round if wanted.
fn kernels(w: &dyn Storage, channels: usize, turned: bool) -> Stack {
    let mut u = Stack::new(w.rows(), channels);
    u.fill(w.rows(), 1, |n, _, out| {
        let mut row = vec![0.0; w.cols()];
        w.decode(n, 0, &mut row);
        let taps: [&[f32]; 9] = array::from_fn(|tap| {
            let tap = if turned { 8 - tap } else { tap };
            &row[tap * channels..(tap + 1) * channels]
        });
        kernel_tile(channels, &taps, out);
    });
    u
}

/// The sixteen products `M_k (+)= a_k b_k`, `rows` rows of them.
fn multiply<'a>(
    m: &mut Stack,
    rows: usize,
    beta: f32,
    a: impl Fn(usize) -> MatRef<'a>,
    b: impl Fn(usize) -> MatRef<'a>,
) {
    let sides: Vec<(PackedLhs, MatRef)> = (0..PRODUCTS).map(|k| (PackedLhs::new(a(k)), b(k))).collect();
    let (each, width, cols) = (m.each(), m.width, m.cols);
    kernel::gemm_batch(m.data.data_mut(), each, width, rows, cols, beta, &sides);
}

/// The rows of `V = Bᵀ d B` for some lines of tiles.
fn read(v: &mut Stack, x: &Tensor, tiles: &Tiles, lines: &Range<usize>) {
    let zeros = vec![0.0; x.cols()];
    let across = tiles.across();
    v.fill(lines.len() * across, across, |line, t, out| {
        input_tile(x.cols(), &tiles.input(x, lines.start + line, t, &zeros), out);
    });
}

/// Output pixels `[T', N]` of the products of some lines of tiles.
fn write(m: &Stack, tiles: &Tiles, lines: &Range<usize>, bias: Option<&[f32]>, y: &mut Tensor) {
    if memory::is_tracing() {
        return;
    }
    let (cols, across, row) = (y.cols(), tiles.across(), tiles.to.width * y.cols());
    let zeros = vec![0.0; cols];
    let bias = bias.unwrap_or(&zeros);
    let mut rest = &mut y.data_mut()[tiles.rows_before(lines.start) * cols..];
    let mut outs = Vec::with_capacity(lines.len());
    for line in lines.clone() {
        let (out, tail) = std::mem::take(&mut rest).split_at_mut(tiles.lines_of(line) * row);
        outs.push(out);
        rest = tail;
    }
    outs.into_par_iter().enumerate().for_each(|(line, out)| {
        let mut beyond = vec![0.0; 3 * cols];
        let (upper, lower) = out.split_at_mut(row);
        let mut lower = lower.chunks_mut(2 * cols);
        for (t, upper) in upper.chunks_mut(2 * cols).enumerate() {
            let from: [&[f32]; 17] = array::from_fn(|k| match k {
                PRODUCTS => bias,
                k => m.row(k, line * across + t),
            });
            let (b, c) = beyond.split_at_mut(cols);
            let (c, d) = c.split_at_mut(cols);
            let [a, b] = pair(upper, [&mut [], b]);
            let [c, d] = pair(lower.next().unwrap_or_default(), [c, d]);
            output_tile(cols, &from, &mut [a, b, c, d]);
        }
    });
}

/// The two pixels of half a tile; a place to lose the numbers where there are fewer.
fn pair<'a>(pixels: &'a mut [f32], beyond: [&'a mut [f32]; 2]) -> [&'a mut [f32]; 2] {
    let cols = beyond[1].len();
    match (pixels.len() / cols, beyond) {
        (0, beyond) => beyond,
        (1, [_, second]) => [pixels, second],
        _ => pixels.split_at_mut(cols).into(),
    }
}

/// The convolution of `x` with the sixteen matrices of a kernel, `U_kᵀ` or (turned) `U_k`.
fn convolve(x: &Tensor, tiles: Tiles, u: &Stack, turned: bool, bias: Option<&[f32]>, held: usize) -> Tensor {
    let outputs = if turned { u.cols } else { u.rows };
    let per_tile = PRODUCTS * (Stack::width_for(x.cols()) + Stack::width_for(outputs));
    let pieces = tiles.pieces(per_tile, held);
    let most = pieces.first().map_or(0, Range::len) * tiles.across();
    let (mut v, mut m) = (Stack::new(most, x.cols()), Stack::new(most, outputs));
    let mut y = Tensor::scratch(tiles.to.rows(), outputs);
    for lines in pieces {
        let rows = lines.len() * tiles.across();
        read(&mut v, x, &tiles, &lines);
        let side = |k| if turned { u.mat(k, u.rows) } else { u.mat(k, u.rows).t() };
        multiply(&mut m, rows, 0.0, |k| v.mat(k, rows), side);
        write(&m, &tiles, &lines, bias, &mut y);
    }
    y
}

/// `y` `[T', N]`.
pub(super) fn forward(x: &Tensor, shape: &Shape, w: &dyn Storage, bias: Option<&[f32]>, held: usize) -> Tensor {
    let tiles = Tiles { from: shape.from, to: shape.to, pad: shape.window.pad_before };
    convolve(x, tiles, &kernels(w, shape.channels, false), false, bias, held)
}

/// `dx` `[T, C]`: the gradient convolved with the kernel turned round.
pub(super) fn input_gradient(g: &Tensor, shape: &Shape, w: &dyn Storage, held: usize) -> Tensor {
    let pad = shape.window.pad_before;
    let tiles = Tiles { from: shape.to, to: shape.from, pad: (2 - pad.0, 2 - pad.1) };
    convolve(g, tiles, &kernels(w, shape.channels, true), true, None, held)
}

/// `dw` `[N, 9 C]`.
pub(super) fn weight_gradient(g: &Tensor, x: &Tensor, shape: &Shape, held: usize) -> Tensor {
    let Shape { from, to, channels, outputs, window } = *shape;
    let tiles = Tiles { from, to, pad: window.pad_before };
    let per_tile = PRODUCTS * (Stack::width_for(channels) + Stack::width_for(outputs));
    let (pieces, across) = (tiles.pieces(per_tile, held), tiles.across());
    let most = pieces.first().map_or(0, Range::len) * across;
    let (mut v, mut dm) = (Stack::new(most, channels), Stack::new(most, outputs));
    let mut du = Stack::new(outputs, channels);
    let zeros = vec![0.0; outputs];
    for (number, lines) in pieces.iter().enumerate() {
        let rows = lines.len() * across;
        read(&mut v, x, &tiles, lines);
        dm.fill(rows, across, |line, t, out| {
            gradient_tile(outputs, &tiles.output(g, lines.start + line, t, &zeros), out);
        });
        let beta = if number == 0 { 0.0 } else { 1.0 };
        multiply(&mut du, outputs, beta, |k| dm.mat(k, rows).t(), |k| v.mat(k, rows));
    }
    let mut dw = Tensor::scratch(outputs, 9 * channels);
    if memory::is_tracing() {
        return dw;
    }
    dw.data_mut().par_chunks_mut(9 * channels).enumerate().for_each(|(n, row)| {
        let mut taps = row.chunks_mut(channels);
        let mut taps: [&mut [f32]; 9] = array::from_fn(|_| taps.next().unwrap_or_default());
        kernel_gradient_tile(channels, &array::from_fn(|k| du.row(k, n)), &mut taps);
    });
    dw
}
