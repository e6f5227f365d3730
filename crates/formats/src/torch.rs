//! A file of tensors that `torch.save` wrote (`.bin`, `.pt`, `.pth`), read as data.
//!
//! It is a zip archive of a pickle (names, shapes, types) and one stored file for each storage, or, before PyTorch 1.6, a
//! row of pickles and storages ([`legacy`]). A pickle is a program; here it is never run: a small machine that knows
//! tensors, texts and numbers and nothing else reads it ([`pickle`]). Objects of any class are inert, so that the weights
//! of pickled networks can be read too ([`weights`]), as those that Ultralytics saves.

mod heap;
mod legacy;
mod metadata;
mod pickle;
mod weights;
mod zip;

use std::path::Path;
use std::sync::Mutex;

use serde_json::{Map, Value as Json};

use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};
use crate::limits;
use crate::source::{Table, TensorInfo, TensorSource, append_f32, position};
use heap::View;
use pickle::Pickled;
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
    notes: Vec<String>,
    metadata: Map<String, Json>,
}

/// Where storages lie.
enum Storages<'a> {
    /// In `data/` of an archive, behind what stands before `data.pkl` in its names.
    Archive(&'a Zip<'a>, &'a [u8]),
    Legacy(&'a legacy::Places),
}

impl Storages<'_> {
    /// The name of a storage as messages have it; its position and size, if there is one.
    fn find(&self, key: &[u8]) -> (Vec<u8>, Option<Result<(u64, u64)>>) {
        match self {
            Storages::Archive(zip, prefix) => {
                let name = [prefix, &b"data/"[..], key].concat();
                let place = zip.find(&name);
                (name, place)
            }
            Storages::Legacy(places) => (key.to_vec(), places.get(key).map(|place| Ok(*place))),
        }
    }
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
        let budget = usize::try_from(bytes.len()).unwrap_or(usize::MAX).saturating_mul(3);
        let budget = budget.saturating_add(limits::PICKLE_MEMORY_BYTES);
        let parts = match legacy::is_legacy(&bytes)? {
            true => legacy::read(&bytes, budget, |pickled, places| {
                Parts::read(&bytes, pickled, &Storages::Legacy(places))
            })?,
            false => read_archive(&bytes, budget)?,
        };
        let Parts { tensors, strides, notes, metadata } = parts;
        let table = Table::new(tensors).map_err(|name| {
            Error::invalid(bytes.path(), FORMAT, format!("two tensors are named {}", quote(&name)))
        })?;
        Ok(File { bytes, table, strides, ordered: Mutex::new(None), notes, metadata })
    }

    /// Which part of a checkpoint the tensors are, and what was done to their names; for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What the file says of its weights besides, where it is plain: of a network that Ultralytics saved `names`
    /// (`{"0": "person", ...}`), `yaml` (its description), `stride`, `task`, `args`; of a checkpoint `epoch`, `arch` and so
    /// on. Nothing of it is checked.
    pub fn metadata(&self) -> &Map<String, Json> {
        &self.metadata
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

/// What is kept of a pickle.
struct Parts {
    tensors: Vec<TensorInfo>,
    strides: Vec<Option<Vec<u64>>>,
    notes: Vec<String>,
    metadata: Map<String, Json>,
}

impl Parts {
    fn read(bytes: &Bytes, pickled: &Pickled, storages: &Storages) -> Result<Parts> {
        let found = weights::find(bytes.path(), pickled)?;
        let small = |view: &View| small_tensor(bytes, pickled, storages, view);
        let places = (found.holder, pickled.top);
        let metadata = metadata::collect(bytes.path(), &pickled.heap, places, found.budget, &small)?;
        let (mut tensors, mut strides) =
            (Vec::with_capacity(found.tensors.len()), Vec::with_capacity(found.tensors.len()));
        let mut total = 0u64;
        for (name, view) in found.tensors {
            let (info, stride) = place(
                bytes,
                storages,
                name,
                pickled.heap.bytes(view.storage.key),
                view,
                tensors.len() as u32,
            )?;
            total = total.saturating_add(info.bytes);
            // Tied tensors share a storage; a thousand views of one are an attack.
            if total > bytes.len().saturating_mul(limits::TORCH_SHARING) {
                let what = "its tensors share their storages so often that they are far larger than the file";
                return Err(Error::invalid(bytes.path(), FORMAT, what));
            }
            tensors.push(info);
            strides.push(stride);
        }
        Ok(Parts { tensors, strides, notes: found.notes, metadata })
    }
}

/// The numbers of a tensor that describes a network, such as its strides.
fn small_tensor(bytes: &Bytes, pickled: &Pickled, storages: &Storages, view: &View) -> Option<Json> {
    const MOST: u64 = 64;
    let key = pickled.heap.bytes(view.storage.key);
    let (info, strides) = place(bytes, storages, "stride".into(), key, view.clone(), 0).ok()?;
    if info.numel() > MOST || strides.is_some() || !info.dtype.is_float() {
        return None;
    }
    let mut stored = vec![0; info.bytes as usize];
    bytes.read_at(info.offset, &mut stored).ok()?;
    let mut values = Vec::new();
    append_f32(info.dtype, &stored, &mut values);
    Some(values.into())
}

/// Reads a file that is an archive.
fn read_archive(bytes: &Bytes, budget: usize) -> Result<Parts> {
    refuse_others(bytes)?;
    let zip = Zip::open(bytes)?;
    let (prefix, start, size) = find_pickle(bytes, &zip)?;
    if size > limits::PICKLE_BYTES {
        return Err(Error::limit(bytes.path(), "the size of its pickle", size, limits::PICKLE_BYTES));
    }
    let mut text = vec![0; size as usize];
    bytes.read_at(start, &mut text)?;
    let pickled = pickle::read(bytes.path(), &text, 0, budget)?;
    let rest = text.len() - pickled.end;
    if rest != 0 {
        return Err(Error::invalid(bytes.path(), FORMAT, format!("its pickle: {rest} bytes follow its end")));
    }
    Parts::read(bytes, &pickled, &Storages::Archive(&zip, &prefix))
}

/// What has no archive and no magic number.
fn refuse_others(bytes: &Bytes) -> Result<()> {
    let mut start = [0; 4];
    let n = bytes.len().min(4) as usize;
    bytes.read_at(0, &mut start[..n])?;
    if start.starts_with(b"PK") {
        return Ok(());
    }
    let what = match start {
        [0x80, 2..=5, ..] => "this is a bare pickle, not a file that torch.save wrote",
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
    storages: &Storages,
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
    let (full, found) = storages.find(key);
    let shown = || quote(&String::from_utf8_lossy(&full));
    let (start, size) = found.ok_or_else(|| bad(format!("its storage {} is missing", shown())))??;
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
