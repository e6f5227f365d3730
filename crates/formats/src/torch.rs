//! A file of tensors that `torch.save` wrote (`.bin`, `.pt`, `.pth`), read as data.
//!
//! It is a zip archive of a pickle (names, shapes, types) and one stored file for each storage. A pickle is a program;
//! here it is never run: a small machine that knows tensors and nothing else reads it ([`pickle`]). The format before
//! PyTorch 1.6, which has no archive, is refused by name.

mod pickle;
mod zip;

use std::path::Path;
use std::sync::Mutex;

use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};
use crate::limits;
use crate::source::{Table, TensorInfo, TensorSource, position};
use pickle::View;
use zip::Zip;

const FORMAT: &str = "PyTorch";

/// An open file whose pickle has been read and checked.
pub struct File {
    bytes: Bytes,
    table: Table,
    /// Of each tensor that is not laid out row by row: its strides in elements.
    strides: Vec<Option<Vec<u64>>>,
    /// The last such tensor that was read, brought into order.
    ordered: Mutex<Option<(u32, Vec<u8>)>>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "torch::File({})", self.bytes.path().display())
    }
}

impl File {
    /// Opens and checks a file; no tensor is read, nothing is run.
    pub fn open(path: impl AsRef<Path>) -> Result<File> {
        File::parse(Bytes::open(path.as_ref())?)
    }

    /// Checks bytes that are in memory.
    pub fn from_memory(
        name: impl AsRef<Path>,
        bytes: impl Into<std::borrow::Cow<'static, [u8]>>,
    ) -> Result<File> {
        File::parse(Bytes::from_memory(name.as_ref(), bytes))
    }

    fn parse(bytes: Bytes) -> Result<File> {
        bytes.refuse_stand_ins()?;
        refuse_old(&bytes)?;
        let zip = Zip::open(&bytes)?;
        let (prefix, start, size) = find_pickle(&bytes, &zip)?;
        if size > limits::PICKLE_BYTES {
            return Err(Error::limit(bytes.path(), "the size of its pickle", size, limits::PICKLE_BYTES));
        }
        let mut text = vec![0; size as usize];
        bytes.read_at(start, &mut text)?;
        let budget = usize::try_from(bytes.len()).unwrap_or(usize::MAX).saturating_mul(2);
        let named =
            pickle::state_dict(bytes.path(), &text, budget.saturating_add(limits::PICKLE_MEMORY_BYTES))?;
        let (mut tensors, mut strides) = (Vec::with_capacity(named.len()), Vec::with_capacity(named.len()));
        let mut total = 0u64;
        for (name, view) in named {
            let key =
                text.get(view.storage.key.0 as usize..).and_then(|t| t.get(..view.storage.key.1 as usize));
            let key = [&prefix[..], b"data/", key.unwrap_or_default()].concat();
            let (info, stride) = place(&bytes, &zip, name, &key, view, tensors.len() as u32)?;
            total = total.saturating_add(info.bytes);
            // Tied tensors share a storage; a thousand views of one are an attack.
            if total > bytes.len().saturating_mul(limits::TORCH_SHARING) {
                let what = "its tensors share their storages so often that they are far larger than the file";
                return Err(Error::invalid(bytes.path(), FORMAT, what));
            }
            tensors.push(info);
            strides.push(stride);
        }
        drop(zip);
        let table = Table::new(tensors).map_err(|name| {
            Error::invalid(bytes.path(), FORMAT, format!("two tensors are named {}", quote(&name)))
        })?;
        Ok(File { bytes, table, strides, ordered: Mutex::new(None) })
    }

    /// All bytes of a tensor that is not laid out row by row.
    fn gather(&self, info: &TensorInfo, strides: &[u64]) -> Result<Vec<u8>> {
        let size = info.dtype.block_bytes();
        // Within the storage: checked when the file was opened.
        let span: u64 = info.shape.iter().zip(strides).map(|(&d, &s)| (d as u64 - 1) * s).sum::<u64>() + 1;
        let mut storage = vec![0; span as usize * size];
        self.bytes.read_at(info.offset, &mut storage)?;
        let mut out = vec![0; info.bytes as usize];
        for (i, element) in out.chunks_exact_mut(size).enumerate() {
            let (mut rest, mut at) = (i as u64, 0);
            for (&d, &stride) in info.shape.iter().zip(strides).rev() {
                at += rest % d as u64 * stride;
                rest /= d as u64;
            }
            let at = at as usize * size;
            element.copy_from_slice(&storage[at..at + size]);
        }
        Ok(out)
    }
}

impl TensorSource for File {
    fn tensors(&self) -> &[TensorInfo] {
        &self.table.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.table.find(name)
    }

    fn path(&self) -> &Path {
        self.bytes.path()
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> Result<()> {
        let at = position(self.path(), info, byte_offset, out.len())?;
        // `shard` holds the tensor's number here: there is only one file.
        let Some(Some(strides)) = self.strides.get(info.shard as usize) else {
            return self.bytes.read_at(at, out);
        };
        let mut ordered = self.ordered.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = match &*ordered {
            Some((number, bytes)) if *number == info.shard => bytes,
            _ => {
                *ordered = None;
                let bytes = self.gather(info, strides)?;
                &ordered.insert((info.shard, bytes)).1
            }
        };
        let from = byte_offset as usize;
        out.copy_from_slice(&found[from..from + out.len()]);
        Ok(())
    }
}

/// Files without an archive begin with a pickle of a magic number.
fn refuse_old(bytes: &Bytes) -> Result<()> {
    let mut start = [0; 4];
    let n = bytes.len().min(4) as usize;
    bytes.read_at(0, &mut start[..n])?;
    if start.starts_with(b"PK") {
        return Ok(());
    }
    let what = match start {
        [0x80, 2..=5, ..] => "this is a file of PyTorch before 1.6, or a bare pickle",
        _ => "this is not a file that torch.save wrote (no zip archive)",
    };
    Err(Error::unsupported(bytes.path(), what, "load it in Python and save it again, best as safetensors"))
}

/// What stands before `data.pkl` in the names of the archive, and where the pickle lies.
fn find_pickle(bytes: &Bytes, zip: &Zip) -> Result<(Vec<u8>, u64, u64)> {
    let mut found = None;
    for entry in zip.entries() {
        let name = zip.name(entry);
        let Some(prefix) = name.strip_suffix(b"data.pkl") else { continue };
        if !(prefix.is_empty() || prefix.ends_with(b"/")) {
            continue;
        }
        if found.is_some() {
            return Err(Error::invalid(bytes.path(), FORMAT, "there are two pickles named data.pkl in it"));
        }
        let (start, size) = zip.place(entry)?;
        found = Some((prefix.to_vec(), start, size));
    }
    let found = found.ok_or_else(|| {
        let what = "this is a zip archive without a data.pkl: not a file that torch.save wrote";
        Error::unsupported(bytes.path(), what, "give the file of tensors itself")
    })?;
    if let Some(place) = zip.find(&[&found.0[..], b"byteorder"].concat()) {
        let (start, size) = place?;
        let mut order = vec![0; size.min(8) as usize];
        bytes.read_at(start, &mut order)?;
        if order != b"little" {
            let what = "its numbers are big-endian";
            return Err(Error::unsupported(bytes.path(), what, "save it again on another machine"));
        }
    }
    Ok(found)
}

/// Where a tensor lies in the file; its strides if it isn't laid out row by row.
fn place(
    bytes: &Bytes,
    zip: &Zip,
    name: String,
    key: &[u8],
    view: View,
    number: u32,
) -> Result<(TensorInfo, Option<Vec<u64>>)> {
    let bad = |what: String| Error::invalid(bytes.path(), FORMAT, format!("tensor {}: {what}", quote(&name)));
    if name.is_empty() || name.len() as u64 > limits::NAME_BYTES {
        return Err(bad(format!("its name has {} bytes", name.len())));
    }
    let storage = view.storage;
    let shown = || quote(&String::from_utf8_lossy(key));
    let (start, size) = zip.find(key).ok_or_else(|| bad(format!("its storage {} is missing", shown())))??;
    let element = storage.dtype.block_bytes() as u64;
    if storage.numel.checked_mul(element) != Some(size) {
        return Err(bad(format!(
            "its storage {} has {size} bytes, {} elements were due",
            shown(),
            storage.numel
        )));
    }
    let numel = view.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let numel = numel.filter(|n| *n <= storage.numel);
    let last = view.shape.iter().zip(&view.strides).try_fold(view.offset, |last, (&d, &stride)| {
        last.checked_add((d as u64).saturating_sub(1).checked_mul(stride)?)
    });
    let (Some(numel), Some(last)) = (numel, last) else {
        return Err(bad(format!("shape {:?} is larger than its storage of {}", view.shape, storage.numel)));
    };
    if numel > 0 && last >= storage.numel || view.offset > storage.numel {
        return Err(bad(format!("element {last} of a storage of {}", storage.numel)));
    }
    let mut due = 1;
    let rows = view.shape.iter().zip(&view.strides).rev().all(|(&d, &stride)| {
        let fits = d == 1 || stride == due;
        due = due.wrapping_mul(d as u64);
        fits
    });
    // Cannot overflow: all of it lies in the file.
    let (offset, length) = (start + view.offset * element, numel * element);
    let info =
        TensorInfo { name, dtype: storage.dtype, shape: view.shape, offset, bytes: length, shard: number };
    Ok((info, (!rows && numel > 0).then_some(view.strides)))
}
