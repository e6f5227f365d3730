//! A 3 x 3 convolution that steps by one pixel, by minimal filtering F(2 x 2, 3 x 3) (Winograd, 1980; Lavin and Gray, arXiv:1509.09308).
//!
//! A tile of 2 x 2 output pixels `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A` of the 4 x 4 pixels `d` that it reads: 16 products a channel instead of 36. Summed over
//! channels these are 16 matrix products `M_k [T, N] = V_k [T, C] U_kᵀ`, T tiles. Backward: `dx` is the same with the kernel turned round,
//! `dg = Gᵀ (sum over tiles of (A dY Aᵀ) ⊙ (Bᵀ d B)) G`. The coefficients are 0, 1, -1 and 1/2, so little is lost to rounding.

use std::array;
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::Shape;
use crate::grid::{Grid, Window};
use crate::kernel::parallel::{alone, for_each_of, part};
use crate::kernel::{self, MatRef, PackedLhs, PackedRhs, Rhs};
use crate::memory;
use crate::multiversion;
use crate::storage::Storage;
use crate::tensor::Tensor;

/// Products of a tile.
const PRODUCTS: usize = 16;
/// Fewest channels and outputs: below, changing to and from products costs more than they save.
const CHANNELS_MIN: usize = 16;

/// Tiles that are held at a time.
#[derive(Clone, Copy)]
pub(super) struct Held {
    /// By a thread that works alone: enough for the kernels, and few enough for its cache.
    alone: usize,
    /// Where all threads work on the same.
    together: usize,
    /// Floats of the sums of a weight's gradient, about.
    sums: usize,
}

/// What is held in use: the same for one image and for many, which lets a memory plan know it.
pub(super) const HELD: Held = Held { alone: 96, together: 128, sums: 1 << 20 };
/// Most sums of a weight's gradient that are kept apart.
const SUMS_MAX: usize = 8;

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

    /// Whether an image has enough tiles for threads that work alone.
    fn are_many(&self, held: Held) -> bool {
        self.down() * self.across() >= 2 * held.alone
    }

    /// All images' lines of tiles, cut into pieces of about so many tiles; and the most tiles of a piece.
    fn pieces(&self, tiles: usize) -> (Vec<Range<usize>>, usize) {
        let lines = self.to.images * self.down();
        let step = tiles.div_ceil(self.across()).max(1);
        let pieces = (0..lines).step_by(step).map(|first| first..(first + step).min(lines)).collect();
        (pieces, step * self.across())
    }

    /// The output's rows (`cols` floats each) of each of the pieces, which follow each other from the first line on.
    fn split<'a>(
        &self,
        pieces: impl Iterator<Item = Range<usize>>,
        cols: usize,
        mut y: &'a mut [f32],
    ) -> Vec<&'a mut [f32]> {
        let rows = |lines: Range<usize>| self.rows_before(lines.end) - self.rows_before(lines.start);
        pieces.map(|lines| y.split_off_mut(..rows(lines) * cols).unwrap_or_default()).collect()
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

    /// `rows` rows of each matrix from what `of(stretch, row, out)` makes of a row; each stretch of `each` rows is a task.
    fn fill(
        &mut self,
        rows: usize,
        each: usize,
        of: impl Fn(usize, usize, &mut [&mut [f32]; PRODUCTS]) + Sync,
    ) {
        if memory::is_tracing() {
            return;
        }
        let width = self.width;
        let mut stretches = self.stretches(each);
        stretches.truncate(rows.div_ceil(each));
        for_each_of(stretches, |number, mut stretch| {
            for t in 0..each.min(rows - number * each) {
                let mut out = stretch.each_mut().map(|mat| &mut mat[t * width..(t + 1) * width]);
                of(number, t, &mut out);
            }
        });
    }
}

/// The lanes of a row from channel `c`; where these are the row's last and not all there, zeros behind them.
///
/// # Safety
/// If `FULL`, the row has lanes from `c` on.
#[inline(always)]
unsafe fn load<const FULL: bool>(row: &[f32], c: usize) -> Lane {
    if FULL {
        // SAFETY: the caller's.
        return unsafe { row.as_ptr().add(c).cast::<Lane>().read_unaligned() };
    }
    let mut lanes = [0.0; LANES];
    let len = LANES.min(row.len() - c);
    lanes[..len].copy_from_slice(&row[c..c + len]);
    lanes
}

/// Writes as much of the lanes as there is of the row.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn store<const FULL: bool>(lanes: Lane, row: &mut [f32], c: usize) {
    if FULL {
        // SAFETY: the caller's.
        return unsafe { row.as_mut_ptr().add(c).cast::<Lane>().write_unaligned(lanes) };
    }
    let len = LANES.min(row.len() - c);
    row[c..c + len].copy_from_slice(&lanes[..len]);
}

#[inline(always)]
fn plus(a: Lane, b: Lane) -> Lane {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = a[i] + b[i];
    }
    out
}

#[inline(always)]
fn minus(a: Lane, b: Lane) -> Lane {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = a[i] - b[i];
    }
    out
}

#[inline(always)]
fn half(a: Lane) -> Lane {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = 0.5 * a[i];
    }
    out
}

/// A small matrix with `I` columns and `O` rows, as what it makes of a vector. (A type and not a closure: what it does must be inlined
/// into the loops of each instruction set.)
trait Change<const I: usize, const O: usize> {
    fn of(x: [Lane; I]) -> [Lane; O];
}

/// Bᵀ, of pixels.
struct Pixels;

impl Change<4, 4> for Pixels {
    #[inline(always)]
    fn of([a, b, c, d]: [Lane; 4]) -> [Lane; 4] {
        [minus(a, c), plus(b, c), minus(c, b), minus(b, d)]
    }
}

/// Aᵀ, of products.
struct Products;

impl Change<4, 2> for Products {
    #[inline(always)]
    fn of([a, b, c, d]: [Lane; 4]) -> [Lane; 2] {
        [plus(plus(a, b), c), minus(minus(b, c), d)]
    }
}

/// A, of gradients of outputs.
struct Outputs;

impl Change<2, 4> for Outputs {
    #[inline(always)]
    fn of([p, q]: [Lane; 2]) -> [Lane; 4] {
        [p, plus(p, q), minus(p, q), minus([0.0; LANES], q)]
    }
}

/// G, of a kernel.
struct Kernel;

impl Change<3, 4> for Kernel {
    #[inline(always)]
    fn of([a, b, c]: [Lane; 3]) -> [Lane; 4] {
        let outer = plus(a, c);
        [a, half(plus(outer, b)), half(minus(outer, b)), c]
    }
}

/// Gᵀ, of products' gradients.
struct KernelGradient;

impl Change<4, 3> for KernelGradient {
    #[inline(always)]
    fn of([a, b, c, d]: [Lane; 4]) -> [Lane; 3] {
        let (sum, difference) = (half(plus(b, c)), half(minus(b, c)));
        [plus(a, sum), difference, plus(d, sum)]
    }
}

/// `F X Fᵀ` for each channel of the matrices `X` `[I, I]` whose elements are rows of channels; adds `bias` to all of it, if there is one.
#[inline(always)]
fn change<F: Change<I, O>, const I: usize, const O: usize>(
    channels: usize,
    from: &[&[f32]],
    bias: Option<&[f32]>,
    to: &mut [&mut [f32]],
) {
    assert!(from.len() == I * I && to.len() == O * O);
    assert!(
        from.iter().chain(&bias).all(|row| row.len() >= channels)
            && to.iter().all(|row| row.len() >= channels)
    );
    let whole = channels / LANES * LANES;
    for c in (0..whole).step_by(LANES) {
        // SAFETY: all rows have `channels` of them, asserted, and these are below. Tests compare every size of row with the definition.
        unsafe { change_at::<F, I, O, true>(c, from, bias, to) };
    }
    if whole < channels {
        // SAFETY: nothing is asked where lanes are not full.
        unsafe { change_at::<F, I, O, false>(whole, from, bias, to) };
    }
}

/// [`change`] of the lanes from channel `c`.
///
/// # Safety
/// There are `I I` and `O O` rows; if `FULL`, all have lanes from `c` on.
#[inline(always)]
unsafe fn change_at<F: Change<I, O>, const I: usize, const O: usize, const FULL: bool>(
    c: usize,
    from: &[&[f32]],
    bias: Option<&[f32]>,
    to: &mut [&mut [f32]],
) {
    let mut half = [[[0.0; LANES]; I]; O];
    for column in 0..I {
        let mut x = [[0.0; LANES]; I];
        for line in 0..I {
            // SAFETY: the caller's.
            x[line] = unsafe { load::<FULL>(from.get_unchecked(line * I + column), c) };
        }
        let x = F::of(x);
        for line in 0..O {
            half[line][column] = x[line];
        }
    }
    let bias = match bias {
        // SAFETY: the caller's.
        Some(bias) => unsafe { load::<FULL>(bias, c) },
        None => [0.0; LANES],
    };
    for line in 0..O {
        let x = F::of(half[line]);
        for column in 0..O {
            // SAFETY: the caller's.
            unsafe { store::<FULL>(plus(x[column], bias), to.get_unchecked_mut(line * O + column), c) };
        }
    }
}

multiversion! {
    /// `V = Bᵀ d B` of a tile.
    fn input_tile(channels: usize, from: &[&[f32]; 16], to: &mut [&mut [f32]; 16]) {
        change::<Pixels, 4, 4>(channels, from, None, to);
    }

    /// `Y = Aᵀ M A + bias` of a tile.
    fn output_tile(channels: usize, from: &[&[f32]; 16], bias: Option<&[f32]>, to: &mut [&mut [f32]; 4]) {
        change::<Products, 4, 2>(channels, from, bias, to);
    }

    /// `A dY Aᵀ` of a tile.
    fn gradient_tile(channels: usize, from: &[&[f32]; 4], to: &mut [&mut [f32]; 16]) {
        change::<Outputs, 2, 4>(channels, from, None, to);
    }

    /// `U = G g Gᵀ` of one output's kernel.
    fn kernel_tile(channels: usize, from: &[&[f32]; 9], to: &mut [&mut [f32]; 16]) {
        change::<Kernel, 3, 4>(channels, from, None, to);
    }

    /// `dg = Gᵀ dU G` of one output's kernel.
    fn kernel_gradient_tile(channels: usize, from: &[&[f32]; 16], to: &mut [&mut [f32]; 9]) {
        change::<KernelGradient, 4, 3>(channels, from, None, to);
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
    b: impl Fn(usize) -> Rhs<'a>,
) {
    let sides: Vec<(PackedLhs, Rhs)> = (0..PRODUCTS).map(|k| (PackedLhs::new(a(k)), b(k))).collect();
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

/// Writes the output pixels of the products of some lines of tiles to `y`, the lines' rows of the output.
fn write(m: &Stack, tiles: &Tiles, lines: &Range<usize>, bias: Option<&[f32]>, y: &mut [f32]) {
    let (cols, across, row) = (m.cols, tiles.across(), tiles.to.width * m.cols);
    for_each_of(tiles.split(lines.clone().map(|line| line..line + 1), cols, y), |line, out| {
        let mut beyond = vec![0.0; 3 * cols];
        let (upper, lower) = out.split_at_mut(row);
        let mut lower = lower.chunks_mut(2 * cols);
        for (t, upper) in upper.chunks_mut(2 * cols).enumerate() {
            let from = array::from_fn(|k| m.row(k, line * across + t));
            let (b, c) = beyond.split_at_mut(cols);
            let (c, d) = c.split_at_mut(cols);
            let [a, b] = pair(upper, [&mut [], b]);
            let [c, d] = pair(lower.next().unwrap_or_default(), [c, d]);
            output_tile(cols, &from, bias, &mut [a, b, c, d]);
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

/// The convolution of `x` with the sixteen right sides `[C, N]` of a kernel.
///
/// Where there is enough for all threads, each takes a few lines of tiles at a time, which stay in its cache; else all work on one piece together.
fn convolve(
    x: &Tensor,
    tiles: Tiles,
    u: &[PackedRhs],
    outputs: usize,
    bias: Option<&[f32]>,
    held: Held,
) -> Tensor {
    let mut y = Tensor::scratch(tiles.to.rows(), outputs);
    let many = tiles.are_many(held);
    let (pieces, most) = tiles.pieces(if many { held.alone } else { held.together });
    let workers = if many { rayon::current_num_threads() } else { 1 };
    let spare = Spare::new(workers, || (Stack::new(most, x.cols()), Stack::new(most, outputs)));
    if memory::is_tracing() {
        return y;
    }
    let piece = |i: usize, y: &mut [f32]| {
        let (lines, rows) = (&pieces[i], pieces[i].len() * tiles.across());
        spare.with(|(v, m)| {
            read(v, x, &tiles, lines);
            multiply(m, rows, 0.0, |k| v.mat(k, rows), |k| Rhs::Packed(&u[k]));
            write(m, &tiles, lines, bias, y);
        });
    };
    let outs = tiles.split(pieces.iter().cloned(), outputs, y.data_mut());
    match many {
        true => for_each_of(outs, |i, out| alone(|| piece(i, out))),
        false => outs.into_iter().enumerate().for_each(|(i, out)| piece(i, out)),
    }
    y
}

/// Things that tasks borrow in turn, one for each thread.
struct Spare<T>(Mutex<Vec<T>>);

impl<T> Spare<T> {
    fn new(workers: usize, make: impl Fn() -> T) -> Spare<T> {
        Spare(Mutex::new((0..workers).map(|_| make()).collect()))
    }

    fn with(&self, work: impl FnOnce(&mut T)) {
        let lock = || self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(mut thing) = lock().pop() else { unreachable!("one for each thread") };
        work(&mut thing);
        lock().push(thing);
    }
}

/// The right sides of a convolution with a weight: `U_kᵀ`; turned round, `U_k`.
fn sides(w: &dyn Storage, channels: usize, turned: bool) -> Vec<PackedRhs> {
    let u = kernels(w, channels, turned);
    let side = |k| if turned { u.mat(k, u.rows) } else { u.mat(k, u.rows).t() };
    if memory::is_tracing() {
        return (0..PRODUCTS).map(|k| PackedRhs::new(side(k))).collect();
    }
    (0..PRODUCTS).into_par_iter().map(|k| PackedRhs::new(side(k))).collect()
}

/// `y` `[T', N]`.
pub(super) fn forward(
    x: &Tensor,
    shape: &Shape,
    w: &dyn Storage,
    bias: Option<&[f32]>,
    held: Held,
) -> Tensor {
    let tiles = Tiles { from: shape.from, to: shape.to, pad: shape.window.pad_before };
    convolve(x, tiles, &sides(w, shape.channels, false), shape.outputs, bias, held)
}

/// `dx` `[T, C]`: the gradient convolved with the kernel turned round.
pub(super) fn input_gradient(g: &Tensor, shape: &Shape, w: &dyn Storage, held: Held) -> Tensor {
    let pad = shape.window.pad_before;
    let tiles = Tiles { from: shape.to, to: shape.from, pad: (2 - pad.0, 2 - pad.1) };
    convolve(g, tiles, &sides(w, shape.channels, true), shape.channels, None, held)
}

/// `dw` `[N, 9 C]`. Small kernels have several sums, each over a part of the tiles and the work of one thread; large ones one.
pub(super) fn weight_gradient(g: &Tensor, x: &Tensor, shape: &Shape, held: Held) -> Tensor {
    let Shape { from, to, channels, outputs, window } = *shape;
    let tiles = Tiles { from, to, pad: window.pad_before };
    let sums = (held.sums / (PRODUCTS * outputs * channels)).clamp(1, SUMS_MAX);
    let (pieces, most) = tiles.pieces(if sums > 1 { held.alone } else { held.together });
    let workers = rayon::current_num_threads().min(sums);
    let mut dus: Vec<Stack> = (0..sums).map(|_| Stack::new(outputs, channels)).collect();
    let spare = Spare::new(workers, || (Stack::new(most, channels), Stack::new(most, outputs)));
    let mut dw = Tensor::scratch(outputs, 9 * channels);
    if memory::is_tracing() {
        // The left sides of the products, packed.
        drop(Tensor::scratch(workers * PRODUCTS * most, outputs));
        return dw;
    }
    let zeros = vec![0.0; outputs];
    let add = |du: &mut Stack, part: &[Range<usize>]| {
        spare.with(|(v, dm)| {
            for (number, lines) in part.iter().enumerate() {
                let rows = lines.len() * tiles.across();
                read(v, x, &tiles, lines);
                dm.fill(rows, tiles.across(), |line, t, out| {
                    gradient_tile(outputs, &tiles.output(g, lines.start + line, t, &zeros), out);
                });
                let beta = if number == 0 { 0.0 } else { 1.0 };
                multiply(du, outputs, beta, |k| dm.mat(k, rows).t(), |k| Rhs::Dense(v.mat(k, rows)));
            }
        });
    };
    dus.truncate(pieces.len().max(1));
    let parts = dus.len();
    match &mut dus[..] {
        [du] => add(du, &pieces),
        dus => for_each_of(dus.iter_mut().collect(), |i, du| {
            alone(|| add(du, &pieces[part(pieces.len(), parts, i)]));
        }),
    }
    let (du, others) = dus.split_at_mut(1);
    for other in others {
        du[0].data.add_assign(&other.data);
    }
    dw.data_mut().par_chunks_mut(9 * channels).enumerate().for_each(|(n, row)| {
        let mut taps = row.chunks_mut(channels);
        let mut taps: [&mut [f32]; 9] = array::from_fn(|_| taps.next().unwrap_or_default());
        kernel_gradient_tile(channels, &array::from_fn(|k| du[0].row(k, n)), &mut taps);
    });
    dw
}

#[cfg(test)]
impl Held {
    /// Cuts everything into the smallest pieces.
    pub(super) const LITTLE: Held = Held { alone: 1, together: 1, sums: 0 };
}
