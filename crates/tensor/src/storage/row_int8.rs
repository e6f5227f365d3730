//! Eight bits an element with one scale a row, as LLM.int8 (arXiv 2208.07339) stores weights: w = q * scale / 127, scale the row's largest magnitude.

use rayon::prelude::*;

use super::blocks::field;
use super::four_bit::elements;
use super::isa::{Isa, per_isa};
use super::{Quantized, Storage, StorageError, check_decode, check_dot};

/// A matrix of one signed byte an element.
pub struct RowInt8 {
    rows: usize,
    cols: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
}

const NAME: &str = "int8";

impl RowInt8 {
    /// Quantises a row-major matrix as bitsandbytes does (ties to even), on all threads.
    ///
    /// # Errors
    /// If the sizes disagree, or an element is not finite.
    pub fn quantize(rows: usize, cols: usize, data: &[f32]) -> Result<RowInt8, StorageError> {
        let want = elements(NAME, rows, cols)?;
        if data.len() != want {
            return Err(StorageError::Elements { rows, cols, want, got: data.len() });
        }
        let (mut values, mut scales) = (vec![0; want], vec![0.0; rows]);
        if want > 0 {
            let rows = values.par_chunks_mut(cols).zip(data.par_chunks(cols)).zip(&mut scales);
            rows.with_min_len((1 << 14) / cols.min(1 << 14)).for_each(|((values, row), scale)| {
                *scale = quantize_row(row, values);
            });
        }
        match scales.iter().position(|s| !s.is_finite()) {
            Some(row) => Err(StorageError::not_finite(cols, row * cols, data)),
            None => Ok(RowInt8 { rows, cols, values, scales }),
        }
    }

    /// A matrix from the parts that a file has.
    ///
    /// # Errors
    /// If a size is wrong, or a scale negative or not finite.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        values: Vec<i8>,
        scales: Vec<f32>,
    ) -> Result<RowInt8, StorageError> {
        let (format, want) = (NAME, elements(NAME, rows, cols)?);
        if values.len() != want {
            return Err(StorageError::Size { format, rows, cols, want, got: values.len() });
        }
        if scales.len() != rows {
            let (what, want, got) = ("scales, one for each row", rows, scales.len());
            return Err(StorageError::Parts { format, what, want, got });
        }
        if let Some(index) = scales.iter().position(|s| !(s.is_finite() && *s >= 0.0)) {
            let (what, value) = ("scale of row", scales[index]);
            return Err(StorageError::Constant { format, what, index, value });
        }
        Ok(RowInt8 { rows, cols, values, scales })
    }

    /// Bytes that a matrix takes.
    pub fn size(rows: usize, cols: usize) -> Result<usize, StorageError> {
        Ok(elements(NAME, rows, cols)?.saturating_add(rows.saturating_mul(4)))
    }

    /// The quantised elements, row-major.
    pub fn values(&self) -> &[i8] {
        &self.values
    }

    /// The largest magnitude of each row.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }
}

/// Quantises a row, and gives its scale: NaN or infinite if an element is.
fn quantize_row(row: &[f32], values: &mut [i8]) -> f32 {
    let scale = row.iter().fold(0.0f32, |most, v| if v.abs() <= most { most } else { v.abs() });
    if row.iter().any(|v| v.is_nan()) {
        return f32::NAN;
    }
    // Two roundings, as torch divides a number by a tensor.
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale * 127.0 };
    for (q, v) in values.iter_mut().zip(row) {
        *q = (v * inverse).round_ties_even() as i8;
    }
    scale
}

impl Storage for RowInt8 {
    fn format(&self) -> &'static str {
        NAME
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn bytes(&self) -> usize {
        self.values.len() + 4 * self.scales.len()
    }
    fn block(&self) -> usize {
        1
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        check_decode(self, row, col0, out.len());
        decode(&self.values[row * self.cols + col0..][..out.len()], self.scales[row], out);
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        check_dot(self, row0, x, y);
        dot_rows(&self.values[row0 * self.cols..], &self.scales[row0..], x, y);
    }
    fn quantized(&self) -> Option<Quantized<'_>> {
        Some(Quantized::RowInt8(self))
    }
}

const GROUP: usize = 32;
const PER_SCALE: f32 = 1.0 / 127.0;

/// A group of elements, or fewer, followed by zeros.
#[inline(always)]
fn padded<T: Copy + Default>(tail: &[T]) -> [T; GROUP] {
    let mut all = [T::default(); GROUP];
    all[..tail.len()].copy_from_slice(tail);
    all
}

#[inline(always)]
fn floats<I: Isa>(isa: I, values: &[i8; GROUP]) -> [I::Floats; 2] {
    let mut bytes = [0; GROUP];
    for (byte, q) in bytes.iter_mut().zip(values) {
        *byte = *q as u8;
    }
    isa.floats(isa.bytes(&bytes))
}

/// Two products, rounded one by one as in the reference.
#[inline(always)]
fn weights<I: Isa>(isa: I, values: &[i8; GROUP], scale: I::Floats, per_scale: I::Floats) -> [I::Floats; 2] {
    let [low, high] = floats(isa, values);
    [isa.mul(isa.mul(low, scale), per_scale), isa.mul(isa.mul(high, scale), per_scale)]
}

#[inline(always)]
fn store<I: Isa>(isa: I, [low, high]: [I::Floats; 2], out: &mut [f32; GROUP]) {
    if let [to_low, to_high] = out.as_chunks_mut::<16>().0 {
        isa.store(low, to_low);
        isa.store(high, to_high);
    }
}

per_isa! {
    fn decode[][](isa; values: &[i8], scale: f32, out: &mut [f32]) {
        let (scale, per_scale) = (isa.splat(scale), isa.splat(PER_SCALE));
        let (groups, tail) = values.as_chunks::<GROUP>();
        let (outs, out_tail) = out.as_chunks_mut::<GROUP>();
        for (values, out) in groups.iter().zip(outs) {
            store(isa, weights(isa, values, scale, per_scale), out);
        }
        if !tail.is_empty() {
            let mut last = [0.0; GROUP];
            store(isa, weights(isa, &padded(tail), scale, per_scale), &mut last);
            out_tail.copy_from_slice(&last[..tail.len()]);
        }
    }
}

/// A group of a dot product.
#[inline(always)]
fn step<I: Isa>(isa: I, values: &[i8; GROUP], x: &[f32; GROUP], sums: [I::Floats; 2]) -> [I::Floats; 2] {
    let [low, high] = floats(isa, values);
    [isa.mul_add(low, isa.load(field(x, 0)), sums[0]), isa.mul_add(high, isa.load(field(x, 16)), sums[1])]
}

per_isa! {
    /// y[i] = the dot product of x and the i-th row of `values`.
    fn dot_rows[][](isa; values: &[i8], scales: &[f32], x: &[f32], y: &mut [f32]) {
        let (xs, x_tail) = x.as_chunks::<GROUP>();
        for (i, y) in y.iter_mut().enumerate() {
            let mut sums = [isa.splat(0.0); 2];
            let (row, tail) = values[i * x.len()..][..x.len()].as_chunks::<GROUP>();
            for (values, x) in row.iter().zip(xs) {
                sums = step(isa, values, x, sums);
            }
            if !tail.is_empty() {
                sums = step(isa, &padded(tail), &padded(x_tail), sums);
            }
            let mut lanes = [0.0; 16];
            isa.store(isa.add(sums[0], sums[1]), &mut lanes);
            *y = lanes.iter().sum::<f32>() * scales[i] * PER_SCALE;
        }
    }
}
