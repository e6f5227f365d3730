//! Named tensors in a file, however they are stored: what the readers offer and the writers take.
//!
//! Shapes are row-major with the outermost dimension first, for GGUF too (whose own order is the reverse): a linear
//! layer's weight is `[out, in]` everywhere.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::{Dtype, limits};

/// One tensor of a file: what it is called, what it holds and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape, outermost dimension first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Position of the first byte in its file.
    pub(crate) offset: u64,
    /// Size in bytes, checked against shape, type and file.
    pub(crate) bytes: u64,
    /// Which file of a set of shards.
    pub(crate) shard: u32,
}

impl TensorInfo {
    /// Size in bytes as stored.
    pub fn byte_len(&self) -> u64 {
        self.bytes
    }

    /// Number of elements.
    pub fn numel(&self) -> u64 {
        // Cannot overflow: the size in bytes was checked when the file was opened.
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d as u64))
    }

    /// One of `parts` equal parts of its rows as a tensor of its own, called `name`: the projections that some writers lay one below the
    /// other. `None` if the rows are no multiple of that, or elements come in blocks.
    pub fn part(&self, name: &str, part: usize, parts: usize) -> Option<TensorInfo> {
        let mut shape = self.shape.clone();
        let divides = |n: u64| parts > 0 && n.is_multiple_of(parts as u64);
        if parts != 1 {
            let rows = shape.first_mut().filter(|rows| divides(**rows as u64) && self.dtype.is_float())?;
            *rows /= parts;
        }
        let bytes = self.bytes.checked_div(parts as u64).filter(|_| part < parts && divides(self.bytes))?;
        let offset = self.offset + bytes * part as u64;
        Some(TensorInfo { name: name.into(), shape, offset, bytes, ..self.clone() })
    }
}

/// Anything that holds named tensors: a safetensors file, a GGUF file, a folder of shards.
pub trait TensorSource: Send + Sync {
    /// All tensors, in the order of the file.
    fn tensors(&self) -> &[TensorInfo];

    /// The tensor of this name.
    fn find(&self, name: &str) -> Option<&TensorInfo>;

    /// Fills `out` with the stored bytes of a tensor from `byte_offset` on (0 is its first byte).
    ///
    /// Reads by position: any number of threads may read at once.
    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> Result<()>;

    /// Is the file of this tensor still what it was when it was opened? Sources in memory always are.
    fn check_unchanged(&self, info: &TensorInfo) -> Result<()> {
        let _ = info;
        Ok(())
    }

    /// The file or folder that messages name.
    fn path(&self) -> &Path;

    /// The tensor of this name, or an error that names the nearest one.
    fn get(&self, name: &str) -> Result<&TensorInfo> {
        self.find(name).ok_or_else(|| Error::NoTensor {
            path: self.path().to_path_buf(),
            name: name.to_string(),
            nearest: nearest(name, self.tensors().iter().map(|t| t.name.as_str())),
        })
    }

    /// All stored bytes of a tensor.
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.get(name)?;
        let mut out = vec![0; info.bytes as usize];
        self.read_at(info, 0, &mut out)?;
        Ok(out)
    }

    /// A floating-point tensor (F32, F16, BF16, F64) as f32, row-major.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.get(name)?;
        let mut out = Vec::new();
        for_each_chunk(self, info, |dtype, bytes| {
            if out.capacity() == 0 {
                out.reserve_exact(info.numel() as usize);
            }
            append_f32(dtype, bytes, &mut out);
            Ok(())
        })?;
        Ok(out)
    }
}

impl<T: TensorSource + ?Sized> TensorSource for Box<T> {
    fn tensors(&self) -> &[TensorInfo] {
        (**self).tensors()
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        (**self).find(name)
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> Result<()> {
        (**self).read_at(info, byte_offset, out)
    }

    fn check_unchanged(&self, info: &TensorInfo) -> Result<()> {
        (**self).check_unchanged(info)
    }

    fn path(&self) -> &Path {
        (**self).path()
    }
}

/// Bytes handled at a time when a tensor is streamed.
const CHUNK: u64 = 256 << 10;

/// Hands the bytes of a floating-point tensor over in whole elements.
pub(crate) fn for_each_chunk<S: TensorSource + ?Sized>(
    source: &S,
    info: &TensorInfo,
    mut each: impl FnMut(Dtype, &[u8]) -> Result<()>,
) -> Result<()> {
    if !info.dtype.is_float() {
        let wanted = "a floating-point type (F32, F16, BF16 or F64)";
        let (path, name) = (source.path().to_path_buf(), info.name.clone());
        return Err(Error::TensorType { path, name, found: info.dtype, wanted });
    }
    let mut buf = vec![0; CHUNK.min(info.bytes) as usize];
    let mut done = 0;
    while done < info.bytes {
        let n = (info.bytes - done).min(CHUNK) as usize;
        source.read_at(info, done, &mut buf[..n])?;
        each(info.dtype, &buf[..n])?;
        done += n as u64;
    }
    Ok(())
}

/// Appends the elements in `bytes` (little-endian, a floating-point type) as f32.
pub(crate) fn append_f32(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b))),
        Dtype::F16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => out.extend(bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
        _ => {}
    }
}

/// The tensors of a file and an index of their names.
#[derive(Debug)]
pub(crate) struct Table {
    pub tensors: Vec<TensorInfo>,
    by_name: Vec<u32>,
}

impl Table {
    /// Builds the index; the error is a name that occurs twice.
    pub fn new(tensors: Vec<TensorInfo>) -> std::result::Result<Table, String> {
        let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
        by_name.sort_unstable_by(|&a, &b| tensors[a as usize].name.cmp(&tensors[b as usize].name));
        for pair in by_name.windows(2) {
            if tensors[pair[0] as usize].name == tensors[pair[1] as usize].name {
                return Err(tensors[pair[0] as usize].name.clone());
            }
        }
        Ok(Table { tensors, by_name })
    }

    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.by_name.binary_search_by(|&i| self.tensors[i as usize].name.as_str().cmp(name)).ok()?;
        self.tensors.get(self.by_name[at] as usize)
    }
}

/// Are `len` bytes from `offset` within the tensor? Returns the position in the file.
pub(crate) fn position(path: &Path, info: &TensorInfo, offset: u64, len: usize) -> Result<u64> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= info.bytes => Ok(info.offset + offset),
        end => Err(Error::TensorRange {
            path: path.to_path_buf(),
            name: info.name.clone(),
            have: info.bytes,
            need: end.unwrap_or(u64::MAX),
        }),
    }
}

/// The name nearest to `wanted`, if one is near enough to be a slip.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    // Names longer than the limit cannot be a slip, and the distance costs the product of the lengths.
    const TRIED: usize = 2_000;
    let near = |name: &&str| name.len() < 128 && name.len().abs_diff(wanted.len()) < 8;
    let best = names.filter(near).take(TRIED).map(|name| (distance(wanted, name), name)).min()?;
    (best.0 <= 1 + wanted.len() / 5).then(|| best.1.to_string())
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A tensor to be written.
pub struct TensorOut<'a> {
    pub name: String,
    pub dtype: Dtype,
    /// Row-major, outermost dimension first.
    pub shape: Vec<usize>,
    pub data: Data<'a>,
}

/// Where the bytes of a tensor to be written come from.
pub enum Data<'a> {
    /// The stored bytes (little-endian).
    Bytes(Cow<'a, [u8]>),
    /// f32 values, written as [`Dtype::F32`], [`Dtype::F16`], [`Dtype::BF16`] or [`Dtype::F64`], rounded to nearest even.
    F32(Cow<'a, [f32]>),
    /// Called once when its turn comes; writes exactly the stored bytes.
    Stream(Box<dyn FnOnce(&mut dyn Write) -> Result<()> + 'a>),
}

impl<'a> TensorOut<'a> {
    /// An F32 tensor.
    pub fn f32(name: impl Into<String>, shape: &[usize], values: impl Into<Cow<'a, [f32]>>) -> TensorOut<'a> {
        TensorOut {
            name: name.into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            data: Data::F32(values.into()),
        }
    }

    /// A tensor given as its stored bytes.
    pub fn bytes(
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> TensorOut<'a> {
        TensorOut { name: name.into(), dtype, shape: shape.to_vec(), data: Data::Bytes(bytes.into()) }
    }

    /// A copy of a tensor of another file, streamed.
    pub fn copy(source: &'a dyn TensorSource, info: &'a TensorInfo) -> TensorOut<'a> {
        let stream = move |out: &mut dyn Write| {
            let mut buf = vec![0; CHUNK.min(info.bytes) as usize];
            let mut done = 0;
            while done < info.bytes {
                let n = (info.bytes - done).min(CHUNK) as usize;
                source.read_at(info, done, &mut buf[..n])?;
                out.write_all(&buf[..n]).map_err(Error::io(source.path(), "copy"))?;
                done += n as u64;
            }
            Ok(())
        };
        TensorOut {
            name: info.name.clone(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            data: Data::Stream(Box::new(stream)),
        }
    }

    /// What it will be in the file, but for its place.
    pub(crate) fn info(&self) -> TensorInfo {
        let (name, shape) = (self.name.clone(), self.shape.clone());
        TensorInfo { name, dtype: self.dtype, shape, offset: 0, bytes: 0, shard: 0 }
    }

    /// Size of the stored bytes; checks name, shape, type and data against each other.
    pub(crate) fn check(&self, path: &Path) -> Result<u64> {
        let bad = |what: String| {
            Err(Error::Write { path: path.to_path_buf(), what: format!("tensor `{}`: {what}", self.name) })
        };
        if self.name.is_empty() || self.name.len() as u64 > limits::NAME_BYTES {
            return bad(format!(
                "its name has {} bytes, 1 to {} are allowed",
                self.name.len(),
                limits::NAME_BYTES
            ));
        }
        if self.shape.len() > limits::DIMS {
            return bad(format!("it has {} dimensions, the limit is {}", self.shape.len(), limits::DIMS));
        }
        let Some(size) = self.dtype.byte_len(&self.shape) else {
            return bad(format!("shape {:?} does not fit {}", self.shape, self.dtype));
        };
        let have = match &self.data {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::F32(_) if !self.dtype.is_float() => {
                return bad(format!("f32 values cannot be written as {}", self.dtype));
            }
            Data::F32(values) => values.len() as u64 * self.dtype.block_bytes() as u64,
            Data::Stream(_) => size,
        };
        if have != size {
            return bad(format!(
                "shape {:?} of {} takes {size} bytes, {have} are given",
                self.shape, self.dtype
            ));
        }
        Ok(size)
    }

    /// Writes the stored bytes, exactly `size` of them.
    pub(crate) fn write(self, path: &Path, size: u64, out: &mut dyn Write) -> Result<()> {
        let name = self.name;
        match self.data {
            Data::Bytes(bytes) => out.write_all(&bytes).map_err(Error::io(path, "write")),
            Data::F32(values) => write_f32(self.dtype, &values, out).map_err(Error::io(path, "write")),
            Data::Stream(stream) => {
                let mut counted = Counted { out, written: 0 };
                stream(&mut counted)?;
                if counted.written != size {
                    let what =
                        format!("tensor `{name}` takes {size} bytes, {} were produced", counted.written);
                    return Err(Error::Write { path: path.to_path_buf(), what });
                }
                Ok(())
            }
        }
    }
}

fn write_f32(dtype: Dtype, values: &[f32], out: &mut dyn Write) -> io::Result<()> {
    let mut buf = Vec::with_capacity(CHUNK as usize);
    for part in values.chunks(CHUNK as usize / 8) {
        buf.clear();
        match dtype {
            Dtype::F16 => part.iter().for_each(|&v| buf.extend(f16::from_f32(v).to_le_bytes())),
            Dtype::BF16 => part.iter().for_each(|&v| buf.extend(bf16::from_f32(v).to_le_bytes())),
            Dtype::F64 => part.iter().for_each(|&v| buf.extend(f64::from(v).to_le_bytes())),
            _ => part.iter().for_each(|&v| buf.extend(v.to_le_bytes())),
        }
        out.write_all(&buf)?;
    }
    Ok(())
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    written: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_a_slip_not_a_stranger() {
        let names = ["model.norm.weight", "lm_head.weight", "a"];
        assert_eq!(nearest("model.norm.weigth", names.into_iter()).as_deref(), Some("model.norm.weight"));
        assert_eq!(nearest("zzzzzzzzzzzzzz", names.into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
