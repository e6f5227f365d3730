//! One matrix of a model's files, read into the storage that was chosen: while the model is loaded, or each time that it is
//! needed ([`super::streamed`]).

use rayon::prelude::*;
use retune_formats::bitsandbytes::{Entry, Kind};
use retune_formats::{TensorInfo, TensorSource};
use retune_tensor::memory::held_bytes;
use retune_tensor::params::decode_all;
use retune_tensor::storage::{self, Format, FourBit, StorageError};
use retune_tensor::{Layout, Tensor, Weight};

use crate::error::{Error, Result};
use crate::models::ModelFiles;
use crate::models::loader::stored;
use crate::models::quantised::{Quantisation, memory_code, storage_of};
use crate::models::streamed::{Pager, Place};

/// Elements that are read and decoded at a time.
const STRIP: usize = 1 << 18;

/// A matrix `[rows, cols]` in a file, and how it is held.
pub struct Matrix {
    pub source: Lies,
    pub shape: (usize, usize),
    pub hold: Hold,
}

/// Where a matrix lies.
pub enum Lies {
    Tensor {
        info: TensorInfo,
        format: Format,
        order: Order,
    },
    /// A layer of bitsandbytes, `[out, in]`, whatever the weight was before.
    Layer(Entry),
}

/// How a file holds the rows of a matrix.
pub enum Order {
    AsIs,
    /// Row `i` at row `order[i]`.
    Rows(Vec<usize>),
    /// Columns as rows.
    Turned,
    /// Each row channel by channel, each of them so many lines and columns ([`Layout::Kernel`]).
    Kernel(usize, usize),
}

/// How a matrix is held in memory.
#[derive(Clone, Copy, PartialEq)]
pub enum Hold {
    F32,
    Bf16,
    /// As the file has it.
    AsIs,
    Quantised(Quantisation),
}

/// What a matrix is in memory.
struct Outlook {
    format: &'static str,
    block: usize,
    bytes: u64,
    /// Bytes that reading takes beside.
    reading: u64,
}

impl Matrix {
    /// Reads it.
    ///
    /// # Errors
    /// If the file cannot be read, or its values not be held so.
    pub fn read(&self, source: &dyn TensorSource) -> Result<Weight> {
        let failed = |e: StorageError| self.fail(source, e.to_string());
        match &self.source {
            Lies::Layer(entry) => {
                let layer = storage_of(entry.read(source)?).map_err(failed)?;
                match self.hold {
                    Hold::F32 => Ok(Weight::F32(decode_all(layer.as_ref()))),
                    Hold::Bf16 => as_bf16(&decode_all(layer.as_ref())).map_err(failed),
                    Hold::AsIs | Hold::Quantised(_) => Ok(stored(layer)),
                }
            }
            Lies::Tensor { info, format, order } => {
                let values = || self.values(source, info, *format, order);
                match self.hold {
                    Hold::Quantised(how) => {
                        let values = values()?;
                        Ok(stored(how.quantise(self.shape.0, self.shape.1, values.data()).map_err(failed)?))
                    }
                    Hold::Bf16 if *format != Format::BF16 => as_bf16(&values()?).map_err(failed),
                    _ if self.hold == Hold::F32 || *format == Format::F32 => Ok(Weight::F32(values()?)),
                    _ => {
                        let bytes = self.bytes(source, info, order)?;
                        Ok(stored(
                            storage::from_bytes(*format, self.shape.0, self.shape.1, bytes)
                                .map_err(failed)?,
                        ))
                    }
                }
            }
        }
    }

    /// Leaves it in its file, to be read when it is needed.
    ///
    /// # Errors
    /// If it would have to be quantised each time.
    pub fn streamed(self, files: ModelFiles, layer: usize, pager: &Pager) -> Result<Weight> {
        if let Hold::Quantised(how) = self.hold {
            let what = format!(
                "weights that stay in their file cannot be quantised, as it would be done again each time that they are read; \
                 write them as {name} once, with `retune quantize --to {name}`, and stream that, or use --weights memory",
                name = how.name()
            );
            return Err(self.fail(files.source(), what));
        }
        let outlook = self.outlook();
        Ok(Weight::Stored(pager.add(Place {
            name: self.name().to_string(),
            format: outlook.format,
            shape: self.shape,
            block: outlook.block,
            bytes: outlook.bytes,
            reading: outlook.reading,
            layer,
            read: Box::new(move || {
                let read = self.read(files.source());
                // Damage that comes from a change is told as one.
                self.check_unchanged(files.source())?;
                read
            }),
        })))
    }

    fn name(&self) -> &str {
        match &self.source {
            Lies::Tensor { info, .. } => &info.name,
            Lies::Layer(entry) => entry.weight(),
        }
    }

    fn fail(&self, source: &dyn TensorSource, what: String) -> Error {
        Error::Model {
            path: source.path().to_path_buf(),
            what: format!("tensor \"{}\": {what}", self.name()),
        }
    }

    /// An error if the file is not what it was.
    pub fn check_unchanged(&self, source: &dyn TensorSource) -> Result<()> {
        match &self.source {
            Lies::Tensor { info, .. } => source.check_unchanged(info)?,
            Lies::Layer(entry) => {
                for name in entry.tensors() {
                    source.check_unchanged(source.get(name)?)?;
                }
            }
        }
        Ok(())
    }

    /// The format that it will have, and its columns per block; nothing is read for that.
    pub fn format(&self) -> (&'static str, usize) {
        let outlook = self.outlook();
        (outlook.format, outlook.block)
    }

    /// What it will be in memory; nothing is read for that.
    fn outlook(&self) -> Outlook {
        let (rows, cols) = self.shape;
        let f32_bytes = held_bytes(rows.saturating_mul(cols)) as u64;
        let half_bytes = 2 * (rows as u64).saturating_mul(cols as u64);
        let strip = (STRIP.max(cols).min(rows.saturating_mul(cols)) * 8) as u64;
        let own = |outlook: Outlook| match self.hold {
            Hold::F32 => {
                Outlook { format: "f32", block: 1, bytes: f32_bytes, reading: outlook.bytes.min(strip) }
            }
            Hold::Bf16 if outlook.format != "bf16" => {
                Outlook { format: "bf16", block: 1, bytes: half_bytes, reading: f32_bytes + half_bytes }
            }
            _ => outlook,
        };
        match &self.source {
            Lies::Tensor { info, format, .. } => {
                let (name, block, bytes) = (format.name(), format.block(), info.byte_len());
                own(match format {
                    Format::F32 => Outlook { format: name, block, bytes: f32_bytes, reading: strip },
                    // Words are made from the bytes.
                    Format::F16 | Format::BF16 => Outlook { format: name, block, bytes, reading: bytes },
                    _ => Outlook { format: name, block, bytes, reading: 0 },
                })
            }
            Lies::Layer(entry) => {
                let (format, bytes) = match entry.kind() {
                    Kind::FourBit { code, blocksize, double } => {
                        let size = FourBit::size(blocksize, double, rows, cols).unwrap_or(usize::MAX);
                        (memory_code(code).storage_name(double), size)
                    }
                    Kind::Int8 => ("int8", rows * cols + 4 * rows),
                };
                let layer = Outlook { format, block: 1, bytes: bytes as u64, reading: 0 };
                let reading = layer.bytes;
                match self.hold {
                    Hold::AsIs | Hold::Quantised(_) => layer,
                    _ => Outlook { reading: reading + own(Outlook { ..layer }).reading, ..own(layer) },
                }
            }
        }
    }

    /// The bytes of a file's matrix as those of a matrix `[rows, cols]`.
    fn bytes(&self, source: &dyn TensorSource, info: &TensorInfo, order: &Order) -> Result<Vec<u8>> {
        let (rows, cols) = self.shape;
        match order {
            Order::AsIs => Ok(source.read(&info.name)?),
            Order::Turned => Ok(transpose(&source.read(&info.name)?, cols, rows)),
            Order::Kernel(..) => Err(self.fail(source, "kernels are held in f32, bf16 or quantised".into())),
            Order::Rows(order) => {
                let mut bytes = vec![0; info.byte_len() as usize];
                let width = bytes.len() / rows.max(1);
                // Each row goes from the file to its place: in memory there is but one of them.
                for (row, &from) in bytes.chunks_exact_mut(width.max(1)).zip(order) {
                    source.read_at(info, (from * width) as u64, row)?;
                }
                Ok(bytes)
            }
        }
    }

    /// The values of a matrix `[rows, cols]`, read and decoded in strips.
    fn values(
        &self,
        source: &dyn TensorSource,
        info: &TensorInfo,
        format: Format,
        order: &Order,
    ) -> Result<Tensor> {
        let (rows, cols) = self.shape;
        let mut out = Tensor::scratch(rows, cols);
        let (file_rows, file_cols) = if let Order::Turned = order { (cols, rows) } else { (rows, cols) };
        let place = inverse(order);
        let step = (STRIP / file_cols.max(1)).max(1);
        let mut own = match order {
            Order::AsIs => Vec::new(),
            _ => vec![0.0; step.min(file_rows) * file_cols],
        };
        for first in (0..file_rows).step_by(step) {
            let n = step.min(file_rows - first);
            let at = (first, n, file_cols);
            let out = out.data_mut();
            let strip = match order {
                Order::AsIs => &mut out[first * cols..][..n * cols],
                _ => &mut own[..n * file_cols],
            };
            self.strip(source, info, format, at, strip)?;
            match order {
                Order::AsIs => {}
                Order::Turned => {
                    for (r, row) in own[..n * file_cols].chunks_exact(file_cols.max(1)).enumerate() {
                        row.iter().enumerate().for_each(|(c, v)| out[c * cols + first + r] = *v);
                    }
                }
                Order::Kernel(h, w) => {
                    let layout = Layout::Kernel(*h, *w);
                    for (r, row) in own[..n * cols].chunks_exact(cols.max(1)).enumerate() {
                        let to = &mut out[(first + r) * cols..][..cols];
                        to.iter_mut()
                            .enumerate()
                            .for_each(|(c, v)| *v = row[layout.to_file((0, c), (1, cols))]);
                    }
                }
                Order::Rows(_) => {
                    for (row, to) in own[..n * cols].chunks_exact(cols.max(1)).zip(&place[first..]) {
                        out[to * cols..][..cols].copy_from_slice(row);
                    }
                }
            }
        }
        Ok(out)
    }

    /// Rows `first .. first + n` of a tensor of the file.
    fn strip(
        &self,
        source: &dyn TensorSource,
        info: &TensorInfo,
        format: Format,
        (first, n, cols): (usize, usize, usize),
        out: &mut [f32],
    ) -> Result<()> {
        let failed = |e: StorageError| self.fail(source, e.to_string());
        let row_bytes = format.size(1, cols).map_err(failed)?;
        let mut bytes = vec![0; n * row_bytes];
        source.read_at(info, (first * row_bytes) as u64, &mut bytes)?;
        if format == Format::F32 {
            let values = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value);
            return Ok(());
        }
        let rows = storage::from_bytes(format, n, cols, bytes).map_err(failed)?;
        let each = |(row, out): (usize, &mut [f32])| rows.decode(row, 0, out);
        // A thread outside the pool does not ask it for help: all of the pool may be waiting for this matrix.
        if rayon::current_thread_index().is_none() {
            out.chunks_exact_mut(cols.max(1)).enumerate().for_each(each);
        } else {
            let out = out.par_chunks_exact_mut(cols.max(1)).enumerate();
            out.with_min_len((1 << 14) / cols.clamp(1, 1 << 14)).for_each(each);
        }
        Ok(())
    }
}

/// Where each of the file's rows belongs, if they are not in order.
fn inverse(order: &Order) -> Vec<usize> {
    let Order::Rows(order) = order else { return Vec::new() };
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(row, &from)| place[from] = row);
    place
}

fn as_bf16(values: &Tensor) -> std::result::Result<Weight, StorageError> {
    let (rows, cols) = (values.rows(), values.cols());
    let bytes = storage::encode(Format::BF16, rows, cols, values.data())?;
    Ok(stored(storage::from_bytes(Format::BF16, rows, cols, bytes)?))
}

/// `[rows, cols]` values of any width in bytes as `[cols, rows]`.
fn transpose(bytes: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let width = bytes.len() / (rows * cols).max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for c in 0..cols {
        for r in 0..rows {
            let at = (r * cols + c) * width;
            out.extend_from_slice(&bytes[at..at + width]);
        }
    }
    out
}
