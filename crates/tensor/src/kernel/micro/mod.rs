//! The register tile: C[h, w] (+)= alpha * A[h, kc] B[kc, w], h <= MR rows, w columns of one strip of B, one file per instruction set.
//!
//! Every element of C is one chain over k, from zero upwards, whatever the tile's height or width and wherever A lies: a row's result
//! doesn't depend on the rows around it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Level;

/// Arguments of a register tile; h, the width and which stride A uses are the chosen function's own.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub kc: usize,
    pub a: *const f32,
    /// Distance between A's rows if it is read in place (k contiguous), between its columns if it lies column by column.
    pub a_stride: usize,
    pub b: *const f32,
    /// Distance between B's rows: the strip's width where B is packed.
    pub b_stride: usize,
    pub c: *mut f32,
    pub c_stride: usize,
    pub alpha: f32,
    /// Rows of A that are needed next, fetched into the cache while this tile is computed; any addresses, readable or not.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub next: [*const f32; 3],
    /// Adds to C; otherwise C is overwritten and never read.
    pub accumulate: bool,
}

/// # Safety
/// A, B and C must be valid for the tile's reads and writes (h rows, kc steps, the function's width), C overlaps neither,
/// and the machine has the instruction set.
pub(crate) type Micro = unsafe fn(&Tile);

/// Writes src[r * stride + k] for r < rows, k < kc to dst[k * dst_stride + r]; dst's other columns are left alone.
///
/// # Safety
/// All those elements must be in bounds, and the machine has the instruction set.
pub(crate) type Transpose =
    unsafe fn(src: *const f32, stride: usize, rows: usize, kc: usize, dst: *mut f32, dst_stride: usize);

/// Steps over k between two prefetches of a row: one cache line of A.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const LINE: usize = 16;

/// The kernels of one instruction set.
pub(crate) struct Kernels {
    /// Rows of the largest tile.
    pub mr: usize,
    /// Columns of a strip.
    pub nr: usize,
    /// Width of one register: a last strip may be narrower by multiples of it.
    pub lanes: usize,
    /// `[h - 1][w / lanes - 1]`, A read in place, k contiguous.
    pub by_rows: &'static [&'static [Micro]],
    /// The same, A column by column: packed, or a transposed view.
    pub by_columns: &'static [&'static [Micro]],
    pub transpose: Transpose,
    /// Bytes of packed B that a thread should keep in its second-level cache.
    pub panel_bytes: usize,
}

impl Kernels {
    /// The kernels in use.
    pub fn get() -> &'static Kernels {
        Kernels::of(super::level())
    }

    /// Those of a level; the portable ones where this architecture has none.
    pub fn of(level: Level) -> &'static Kernels {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => &avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &avx2::KERNELS,
            _ => &portable::KERNELS,
        }
    }

    /// Columns that a strip of `n` wanted columns takes in the packed panel.
    pub fn strip_width(&self, n: usize) -> usize {
        n.min(self.nr).next_multiple_of(self.lanes)
    }
}

/// Rows of a table of tiles: `table!(tile, DIRECT; 1 2 3 ...)` lists `tile::<h, 1, DIRECT>` and `tile::<h, 2, DIRECT>`.
macro_rules! table {
    ($tile:ident, $by_rows:literal; $($h:literal)+) => {
        &[$(&[$tile::<$h, 1, $by_rows> as $crate::kernel::micro::Micro, $tile::<$h, 2, $by_rows>]),+]
    };
}
use table;
