//! Four bits an element: a code of sixteen values times the largest magnitude of the element's block (QLoRA's NF4, bitsandbytes' FP4, Int4).
//!
//! w[e] = map[q[e]] * constant[e / blocksize], e the place in the flattened row-major matrix: blocks may straddle rows, as bitsandbytes has it.
//! Two elements a byte, the first in the HIGH nibble; if their number is odd, the last byte's low nibble is the code of zero.
//! 4.5 bits an element with blocks of 64, 4.127 with double quantisation.

use rayon::prelude::*;

use super::code4::Nearest;
use super::constants::check_blocksize;
use super::isa::{Isa, per_isa};
use super::{Code4, Constants, Quantized, Storage, StorageError, check_decode, check_dot};
use crate::multiversion;

/// A matrix of four bits an element.
pub struct FourBit {
    code: Code4,
    blocksize: usize,
    rows: usize,
    cols: usize,
    packed: Vec<u8>,
    map: [f32; 16],
    constants: Constants,
}

impl FourBit {
    /// Quantises a row-major matrix as bitsandbytes does, on all threads; `double` quantises the constants as well.
    ///
    /// # Errors
    /// If the sizes disagree, `blocksize` is no power of two, or an element is not finite.
    pub fn quantize(
        code: Code4,
        blocksize: usize,
        double: bool,
        rows: usize,
        cols: usize,
        data: &[f32],
    ) -> Result<FourBit, StorageError> {
        let elements = elements(code.name(), rows, cols)?;
        check_blocksize(blocksize)?;
        if data.len() != elements {
            return Err(StorageError::Elements { rows, cols, want: elements, got: data.len() });
        }
        let mut packed = vec![0; elements.div_ceil(2)];
        let mut absmax = vec![0.0; elements.div_ceil(blocksize)];
        // Tasks are whole blocks and whole bytes.
        let task = blocksize.max(1 << 14);
        let nearest = code.nearest();
        let tasks = packed.par_chunks_mut(task / 2).zip(absmax.par_chunks_mut(task / blocksize));
        tasks.zip(data.par_chunks(task)).for_each(|((packed, absmax), data)| {
            quantize(&nearest, blocksize, data, packed, absmax);
        });
        if let Some(block) = absmax.iter().position(|c| !c.is_finite()) {
            return Err(StorageError::not_finite(cols, block * blocksize, data));
        }
        let constants = if double { Constants::double(&absmax) } else { Constants::Single(absmax) };
        Ok(FourBit { code, blocksize, rows, cols, packed, map: *code.table(), constants })
    }

    /// A matrix from the parts that a file has: `rows * cols` codes, two a byte, and a constant for each block.
    ///
    /// # Errors
    /// If a size is wrong, `blocksize` is no power of two, a value of the map is not within [-1, 1], or a constant is negative or not finite.
    pub fn from_parts(
        code: Code4,
        blocksize: usize,
        rows: usize,
        cols: usize,
        packed: Vec<u8>,
        map: [f32; 16],
        constants: Constants,
    ) -> Result<FourBit, StorageError> {
        let format = code.storage_name(constants.is_double());
        let elements = elements(format, rows, cols)?;
        check_blocksize(blocksize)?;
        if packed.len() != elements.div_ceil(2) {
            let (want, got) = (elements.div_ceil(2), packed.len());
            return Err(StorageError::Size { format, rows, cols, want, got });
        }
        if let Some(index) = map.iter().position(|v| v.is_nan() || v.abs() > 1.0) {
            let what = "entry of the map";
            return Err(StorageError::Constant { format, what, index, value: map[index] });
        }
        constants.check(format, elements.div_ceil(blocksize))?;
        Ok(FourBit { code, blocksize, rows, cols, packed, map, constants })
    }

    /// Bytes that a matrix takes: what [`Storage::bytes`] says of a quantised one.
    pub fn size(blocksize: usize, double: bool, rows: usize, cols: usize) -> Result<usize, StorageError> {
        check_blocksize(blocksize)?;
        let elements = elements("four bits", rows, cols)?;
        Ok(elements.div_ceil(2) + Constants::size(elements.div_ceil(blocksize), double))
    }

    pub fn code(&self) -> Code4 {
        self.code
    }

    /// Elements that share a constant.
    pub fn blocksize(&self) -> usize {
        self.blocksize
    }

    /// The codes, two a byte, the first in the high nibble.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The value of each code.
    pub fn map(&self) -> &[f32; 16] {
        &self.map
    }

    pub fn constants(&self) -> &Constants {
        &self.constants
    }
}

/// rows * cols, if a matrix of f32 of that size can be.
pub(super) fn elements(format: &'static str, rows: usize, cols: usize) -> Result<usize, StorageError> {
    rows.checked_mul(cols).filter(|&all| all <= isize::MAX as usize / 4).ok_or(StorageError::Huge {
        format,
        rows,
        cols,
    })
}

/// Values scaled and looked up at a time.
const STEP: usize = 16;

multiversion! {
    /// Quantises whole blocks, of which the last may be cut short: the constants are NaN or infinite where an element is.
    fn quantize(nearest: &Nearest, blocksize: usize, data: &[f32], packed: &mut [u8], absmax: &mut [f32]) {
        for (i, (block, absmax)) in data.chunks(blocksize).zip(absmax).enumerate() {
            let most = largest(block);
            let floor = most.max(SMALLEST);
            let whole = block.len() == blocksize;
            *absmax = if whole { most } else { floor };
            if most.is_nan() {
                *absmax = most;
            }
            let inverse = 1.0 / floor;
            for (j, values) in block.chunks(STEP).enumerate() {
                let mut scaled = [0.0f32; STEP];
                for (s, v) in scaled.iter_mut().zip(values) {
                    // bitsandbytes multiplies in whole blocks, and divides in the last one if it is short.
                    *s = (if whole { v * inverse } else { v / floor }).clamp(-1.0, 1.0);
                }
                let codes = nearest.codes(&scaled);
                pack(&codes, values.len(), i * blocksize + j * STEP, packed);
            }
        }
    }
}

/// Smaller constants are not divided by.
const SMALLEST: f32 = 1e-38;

/// The largest magnitude; NaN or infinite if an element is.
#[inline(always)]
fn largest(block: &[f32]) -> f32 {
    let mut most = [0.0f32; STEP];
    let (chunks, tail) = block.as_chunks::<STEP>();
    let larger = |most: f32, v: f32| if v.abs() <= most { most } else { v.abs() };
    for chunk in chunks {
        for (most, v) in most.iter_mut().zip(chunk) {
            *most = larger(*most, *v);
        }
    }
    most.iter_mut().zip(tail).for_each(|(most, v)| *most = larger(*most, *v));
    // A NaN replaces what was there, and is replaced itself by what comes after: it must be looked for by itself.
    let nan = block.iter().fold(false, |nan, v| nan | v.is_nan());
    if nan { f32::NAN } else { most.into_iter().fold(0.0, f32::max) }
}

/// Puts `n` codes to the nibbles from `at` on. Behind an odd number of all stands the code that follows in `codes`: that of zero.
#[inline(always)]
fn pack(codes: &[u8; STEP], n: usize, at: usize, packed: &mut [u8]) {
    if at.is_multiple_of(2) {
        let bytes = &mut packed[at / 2..][..n.div_ceil(2)];
        for (byte, pair) in bytes.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = pair[0] << 4 | pair[1];
        }
    } else {
        // Only blocks of one element start here.
        packed[at / 2] = packed[at / 2] & 0xf0 | codes[0];
    }
}

impl Storage for FourBit {
    fn format(&self) -> &'static str {
        self.code.storage_name(self.constants.is_double())
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        self.packed.len() + self.constants.bytes()
    }
    fn block(&self) -> usize {
        1
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        check_decode(self, row, col0, out.len());
        let start = row * self.cols + col0;
        match &self.constants {
            Constants::Single(absmax) => decode(self, |block| absmax[block], start, out),
            double => decode(self, |block| double.at(block), start, out),
        }
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        check_dot(self, row0, x, y);
        match &self.constants {
            Constants::Single(absmax) => dot_rows(self, |block| absmax[block], row0, x, y),
            double => dot_rows(self, |block| double.at(block), row0, x, y),
        }
    }
    fn quantized(&self) -> Option<Quantized<'_>> {
        Some(Quantized::FourBit(self))
    }
}

/// Elements looked up at a time.
const GROUP: usize = 16;

/// Eight bytes with the `n` nibbles from `at` on, the first in the high half of the first; what follows them is unspecified.
#[inline(always)]
fn window(packed: &[u8], at: usize, n: usize) -> [u8; 8] {
    let bytes = &packed[at / 2..(at + n).div_ceil(2)];
    let mut all = [0; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    let aligned = u128::from_be_bytes(all) << (at % 2 * 4);
    ((aligned >> 64) as u64).to_be_bytes()
}

/// Calls `group(weights, index of the first, how many)` for the elements `start .. start + n`, sixteen at a time where a block has them.
#[inline(always)]
fn for_groups<I: Isa>(
    isa: I,
    w: &FourBit,
    constant: &impl Fn(usize) -> f32,
    start: usize,
    n: usize,
    mut group: impl FnMut(I::Floats, usize, usize),
) {
    let shift = w.blocksize.trailing_zeros();
    let mut done = 0;
    while done < n {
        let at = start + done;
        let block = at >> shift;
        let piece = (n - done).min(((block + 1) << shift) - at);
        let table = isa.table(&w.map, constant(block));
        let groups = piece / GROUP;
        if at.is_multiple_of(2) {
            let bytes = &w.packed[at / 2..][..groups * GROUP / 2];
            for (i, bytes) in bytes.as_chunks::<8>().0.iter().enumerate() {
                group(isa.look_up(table, bytes), done + i * GROUP, GROUP);
            }
        } else {
            for i in 0..groups {
                let bytes = window(&w.packed, at + i * GROUP, GROUP);
                group(isa.look_up(table, &bytes), done + i * GROUP, GROUP);
            }
        }
        let (rest, first) = (piece % GROUP, groups * GROUP);
        if rest > 0 {
            group(isa.look_up(table, &window(&w.packed, at + first, rest)), done + first, rest);
        }
        done += piece;
    }
}

per_isa! {
    fn decode[C: Fn(usize) -> f32][C](isa; w: &FourBit, constant: C, start: usize, out: &mut [f32]) {
        for_groups(isa, w, &constant, start, out.len(), |weights, at, n| {
            let out = &mut out[at..at + n];
            match out.first_chunk_mut::<GROUP>() {
                Some(out) => isa.store(weights, out),
                None => {
                    let mut all = [0.0; GROUP];
                    isa.store(weights, &mut all);
                    out.copy_from_slice(&all[..n]);
                }
            }
        });
    }
}

per_isa! {
    /// y[i] = the dot product of x and row `row0 + i`.
    fn dot_rows[C: Fn(usize) -> f32][C](isa; w: &FourBit, constant: C, row0: usize, x: &[f32], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            let mut sums = [isa.splat(0.0); 2];
            for_groups(isa, w, &constant, (row0 + i) * x.len(), x.len(), |weights, at, n| {
                let x = &x[at..at + n];
                let x = match x.first_chunk::<GROUP>() {
                    Some(x) => isa.load(x),
                    None => {
                        let mut all = [0.0; GROUP];
                        all[..n].copy_from_slice(x);
                        isa.load(&all)
                    }
                };
                // Two chains of additions, taken in turn.
                sums = [sums[1], isa.mul_add(weights, x, sums[0])];
            });
            let mut lanes = [0.0; GROUP];
            isa.store(isa.add(sums[0], sums[1]), &mut lanes);
            *y = lanes.iter().sum();
        }
    }
}
