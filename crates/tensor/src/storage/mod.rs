//! How a weight matrix lies in memory, one file per encoding: bytes as they are in the model's file, decoded to f32 where they are used.
//!
//! Weights are row-major, rows = out_features, cols = in_features. A format decodes a piece of a row, and multiplies rows with one vector; the packed
//! kernel and everything above knows no more of it. Add a format: one file, and two adjacent lines here.

mod blocks;
#[cfg(test)]
mod bnb_fixtures;
mod code4;
mod columns;
mod constants;
mod dense;
mod dynamic_map;
#[cfg(test)]
mod fixtures;
mod four_bit;
mod isa;
mod k_quants;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod row_int8;

use std::ops::Deref;
use std::sync::Arc;

use rayon::prelude::*;
use thiserror::Error;

pub use code4::Code4;
pub use columns::Columns;
pub use constants::{Constants, NESTED_BLOCKSIZE};
pub use dynamic_map::dynamic_map;
pub use four_bit::FourBit;
pub use row_int8::RowInt8;

/// A weight matrix in whatever encoding.
pub trait Storage: Send + Sync {
    /// The encoding's usual name: "f32", "bf16", "q4_1", ...
    fn format(&self) -> &'static str;
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    /// Resident bytes of the weights themselves.
    fn bytes(&self) -> usize;
    /// Columns per block: `decode` starts at a multiple of it, and ends at one or at the row's end.
    fn block(&self) -> usize;
    /// Decodes row `row`, columns `col0 .. col0 + out.len()`. Panics if these lie outside the matrix or split a block.
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]);
    /// The elements themselves, row-major, if they are f32.
    fn as_f32(&self) -> Option<&[f32]> {
        None
    }
    /// The storage to work on during one product, if this one lies in a file: [`pin`] asks for it. `decode` and `dot_rows` work without,
    /// but ask for it each time.
    fn pinned(&self) -> Option<Arc<dyn Storage>> {
        None
    }
    /// Why the values cannot be had any more (a file that changed while it was in use). From then on they are NaN.
    fn fault(&self) -> Option<String> {
        None
    }
    /// y[i] = the dot product of row `row0 + i` with x[cols]. Serial; the same bytes for a row whatever rows are asked for with it.
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]);
    /// Its parts, for writers of model files, if it is one of the storages that are several tensors of a file.
    fn quantized(&self) -> Option<Quantized<'_>> {
        None
    }
}

/// The storages that are several tensors of a model's file.
#[derive(Clone, Copy)]
pub enum Quantized<'a> {
    FourBit(&'a FourBit),
    RowInt8(&'a RowInt8),
}

/// A storage that stays in memory as long as this lives.
pub struct Pinned<'a> {
    own: Option<Arc<dyn Storage>>,
    storage: &'a dyn Storage,
}

/// Brings a storage into memory for one product, or for one pass over its rows.
pub fn pin(storage: &dyn Storage) -> Pinned<'_> {
    Pinned { own: storage.pinned(), storage }
}

impl<'a> Deref for Pinned<'a> {
    type Target = dyn Storage + 'a;

    fn deref(&self) -> &(dyn Storage + 'a) {
        self.own.as_deref().unwrap_or(self.storage)
    }
}

/// The encodings of model files.
#[allow(non_camel_case_types)] // as the world spells them
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// One encoding: what `from_bytes` and `encode` need to know of it.
pub(crate) struct Spec {
    pub format: Format,
    pub name: &'static str,
    /// Columns per block, bytes per block.
    pub block: (usize, usize),
    pub open: fn(usize, usize, Vec<u8>) -> Box<dyn Storage>,
    /// Appends a row, whole blocks, to the bytes.
    pub encode: fn(&[f32], &mut Vec<u8>),
}

const SPECS: &[&Spec] = &[
    &dense::F32, //
    &dense::F16,
    &dense::BF16,
    &q4_0::Q4_0,
    &q4_1::Q4_1,
    &q5_0::Q5_0,
    &q5_1::Q5_1,
    &q8_0::Q8_0,
    &q2_k::Q2_K,
    &q3_k::Q3_K,
    &q4_k::Q4_K,
    &q5_k::Q5_K,
    &q6_k::Q6_K,
];

/// Why bytes are not a matrix of the wanted shape.
#[derive(Debug, Error)]
pub enum StorageError {
    #[error(
        "a {rows} x {cols} matrix in {format} takes {want} bytes, not {got}; the file is damaged or its header wrong"
    )]
    Size { format: &'static str, rows: usize, cols: usize, want: usize, got: usize },
    #[error(
        "rows of {cols} elements cannot be stored in {format}, whose blocks hold {block}; use f32, f16 or bf16"
    )]
    Block { format: &'static str, cols: usize, block: usize },
    #[error("a {rows} x {cols} matrix in {format} is larger than memory can be; the header is damaged")]
    Huge { format: &'static str, rows: usize, cols: usize },
    #[error("a {rows} x {cols} matrix needs {want} elements, not {got}")]
    Elements { rows: usize, cols: usize, want: usize, got: usize },
    #[error(
        "{format} needs {want} {what}, not {got}; the file is damaged or its parts don't belong together"
    )]
    Parts { format: &'static str, what: &'static str, want: usize, got: usize },
    #[error(
        "blocks of {got} elements are not supported: a block size is a power of two up to 65536, usually 64"
    )]
    Blocksize { got: usize },
    #[error("{what} {index} of {format} is {value}, which no quantised matrix has; the file is damaged")]
    Constant { format: &'static str, what: &'static str, index: usize, value: f32 },
    #[error(
        "the element in row {row}, column {col} is {value}: it cannot be quantised; check where the model comes from"
    )]
    NotFinite { row: usize, col: usize, value: f32 },
}

impl StorageError {
    /// Names the first element from `from` on that is not finite.
    fn not_finite(cols: usize, from: usize, data: &[f32]) -> StorageError {
        let at = from + data[from..].iter().position(|v| !v.is_finite()).unwrap_or(0);
        StorageError::NotFinite { row: at / cols.max(1), col: at % cols.max(1), value: data[at] }
    }
}

impl Format {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Format> {
        SPECS.iter().map(|spec| spec.format)
    }

    /// The usual name, lower case: "f32", "q4_1", ...
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Columns per block.
    pub fn block(self) -> usize {
        self.spec().block.0
    }

    /// Bytes that a matrix takes: an error if its rows are no whole blocks, or if the size overflows.
    pub fn size(self, rows: usize, cols: usize) -> Result<usize, StorageError> {
        let Spec { name: format, block: (block, bytes), .. } = *self.spec();
        if !cols.is_multiple_of(block) {
            return Err(StorageError::Block { format, cols, block });
        }
        (cols / block)
            .checked_mul(bytes)
            .and_then(|row| row.checked_mul(rows))
            .filter(|&all| all <= isize::MAX as usize)
            .ok_or(StorageError::Huge { format, rows, cols })
    }

    fn spec(self) -> &'static Spec {
        SPECS.iter().find(|spec| spec.format == self).expect("every format is in SPECS: a test says so")
    }
}

/// A matrix from the bytes of a model's file (little-endian, row after row), which are kept as they are.
pub fn from_bytes(
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
) -> Result<Box<dyn Storage>, StorageError> {
    let want = format.size(rows, cols)?;
    if bytes.len() != want {
        return Err(StorageError::Size { format: format.name(), rows, cols, want, got: bytes.len() });
    }
    Ok((format.spec().open)(rows, cols, bytes))
}

/// Elements that a task encodes at least: some milliseconds where the scales are searched for.
const TASK_ELEMENTS: usize = 1 << 15;

/// The bytes of a matrix in `format`, as a model's file has them; the quantised ones exactly as ggml's `quantize_row_*_ref`. On all threads.
///
/// # Errors
/// If the sizes disagree, rows are no whole blocks, or an element that shares its scale with others is not finite.
pub fn encode(format: Format, rows: usize, cols: usize, data: &[f32]) -> Result<Vec<u8>, StorageError> {
    let want = rows.saturating_mul(cols);
    if data.len() != want {
        return Err(StorageError::Elements { rows, cols, want, got: data.len() });
    }
    let mut bytes = vec![0; format.size(rows, cols)?];
    if bytes.is_empty() {
        return Ok(bytes);
    }
    let spec = format.spec();
    let rows_a_task = (TASK_ELEMENTS / cols).max(1);
    let tasks = bytes.par_chunks_mut(rows_a_task * cols / spec.block.0 * spec.block.1);
    let wrong =
        tasks.zip(data.par_chunks(rows_a_task * cols)).enumerate().filter_map(|(task, (bytes, data))| {
            if spec.block.0 > 1 && !data.iter().all(|v| v.is_finite()) {
                return Some(task);
            }
            let mut encoded = Vec::with_capacity(bytes.len());
            data.chunks_exact(cols).for_each(|row| (spec.encode)(row, &mut encoded));
            bytes.copy_from_slice(&encoded);
            None
        });
    match wrong.min() {
        Some(task) => Err(StorageError::not_finite(cols, task * rows_a_task * cols, data)),
        None => Ok(bytes),
    }
}

/// Checks the arguments of `decode`.
#[inline]
#[track_caller]
pub(crate) fn check_decode(storage: &dyn Storage, row: usize, col0: usize, len: usize) {
    let (cols, block) = (storage.cols(), storage.block());
    let inside = row < storage.rows() && col0 <= cols && len <= cols - col0;
    let aligned = col0.is_multiple_of(block) && ((col0 + len).is_multiple_of(block) || col0 + len == cols);
    assert!(inside && aligned, "columns {col0} + {len} of row {row} of a {} x {cols} matrix", storage.rows());
}

/// Checks the arguments of `dot_rows`.
#[inline]
#[track_caller]
pub(crate) fn check_dot(storage: &dyn Storage, row0: usize, x: &[f32], y: &[f32]) {
    assert_eq!(x.len(), storage.cols(), "the vector's length must be the weight's columns");
    assert!(row0 <= storage.rows() && y.len() <= storage.rows() - row0, "rows outside the weight");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_listed_once() {
        for (i, spec) in SPECS.iter().enumerate() {
            assert_eq!(spec.format.spec().name, spec.name);
            assert!(SPECS[..i].iter().all(|other| other.name != spec.name && other.format != spec.format));
        }
    }

    #[test]
    fn wrong_sizes_are_errors() {
        for format in Format::all() {
            let cols = format.block() * 2;
            let size = format.size(3, cols).unwrap();
            assert!(from_bytes(format, 3, cols, vec![0; size]).is_ok());
            assert!(from_bytes(format, 3, cols, vec![0; size - 1]).is_err());
            assert!(from_bytes(format, 3, cols, vec![0; size + 1]).is_err());
            assert!(from_bytes(format, usize::MAX / 2, cols, vec![0; 8]).is_err());
            assert!(from_bytes(format, 0, cols, vec![]).is_ok());
            if format.block() > 1 {
                assert!(from_bytes(format, 3, cols - 1, vec![0; size]).is_err());
            }
        }
    }

    #[test]
    fn a_block_with_an_element_that_is_not_finite_is_not_encoded() {
        let mut data = vec![0.5; 40 * 2048];
        data[33 * 2048 + 7] = f32::NAN;
        for format in Format::all() {
            let got = encode(format, 40, 2048, &data);
            if format.block() == 1 {
                assert!(got.is_ok());
            } else {
                let error = got.unwrap_err().to_string();
                assert!(error.contains("row 33, column 7 is NaN"), "{error}");
            }
        }
        assert!(matches!(encode(Format::Q4_K, 1, 255, &[0.0; 255]), Err(StorageError::Block { .. })));
        assert_eq!(encode(Format::Q4_K, 0, 256, &[]).unwrap(), []);
    }
}
