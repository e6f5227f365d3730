//! The format of `torch.save` before PyTorch 1.6, which has no archive: five pickles and the storages, one after the other.
//!
//! ```text
//! pickle  the magic number 0x1950a86a20f9469cfc6c
//! pickle  the version of the protocol, 1001
//! pickle  {"protocol_version": 1001, "little_endian": True, "type_sizes": ...}
//! pickle  what was saved; tensors refer to storages by name
//! pickle  [names of the storages]
//! for each of them: i64 number of elements, the elements
//! ```

use std::collections::HashMap;

use super::heap::Value;
use super::pickle::{self, Failure, Pickled};
use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};
use crate::limits;

const FORMAT: &str = "PyTorch";
/// The magic number as a pickle has it: an integer of ten bytes.
const MAGIC: [u8; 12] = [0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;
/// How much of a file is read at first; eight times as much whenever the pickles turn out to be longer.
const WINDOW: u64 = 1 << 20;

/// Position after the first pickle, if it is the magic number's.
fn after_magic(start: &[u8]) -> Option<usize> {
    let rest = start.strip_prefix(&[0x80])?.get(1..)?;
    // Protocol 4 and later put a frame around it.
    let rest = if rest.first() == Some(&0x95) { rest.get(9..)? } else { rest };
    let rest = rest.strip_prefix(&MAGIC)?.strip_prefix(b".")?;
    Some(start.len() - rest.len())
}

/// Does the file begin with the magic number?
pub fn is_legacy(bytes: &Bytes) -> Result<bool> {
    let mut start = [0; 32];
    let n = bytes.len().min(start.len() as u64) as usize;
    bytes.read_at(0, &mut start[..n])?;
    Ok(after_magic(&start[..n]).is_some())
}

/// Position and size of each storage, by its name.
pub type Places = HashMap<Vec<u8>, (u64, u64)>;

/// Reads the pickles and finds the storages, and hands them to `then`: what was saved points into the bytes that were
/// read. `budget` is the memory that the values may take.
pub fn read<T>(bytes: &Bytes, budget: usize, then: impl FnOnce(&Pickled, &Places) -> Result<T>) -> Result<T> {
    let mut window = WINDOW;
    loop {
        let size = bytes.len().min(window).min(limits::PICKLE_BYTES);
        let mut text = vec![0; size as usize];
        bytes.read_at(0, &mut text)?;
        match pickles(bytes, &text, budget) {
            Ok((saved, names, end)) => return then(&saved, &storages(bytes, &saved, &names, end)?),
            Err(Failure::CutShort(_)) if size < bytes.len() && size < limits::PICKLE_BYTES => {
                window = window.saturating_mul(8);
            }
            Err(Failure::CutShort(_)) if size < bytes.len() => {
                let what = "the size of its pickles";
                return Err(Error::limit(bytes.path(), what, bytes.len(), limits::PICKLE_BYTES));
            }
            Err(failure) => return Err(failure.into()),
        }
    }
}

/// What was saved, the names of the storages in their order, and the position of the first.
fn pickles<'a>(
    bytes: &'a Bytes,
    text: &'a [u8],
    budget: usize,
) -> std::result::Result<(Pickled<'a>, Vec<&'a [u8]>, usize), Failure> {
    let path = bytes.path();
    let invalid = |what: &str| Failure::Other(Error::invalid(path, FORMAT, what));
    let at = after_magic(text).ok_or_else(|| invalid("it does not begin with the magic number"))?;
    let version = pickle::read(path, text, at, budget)?;
    if !matches!(version.top, Value::Int(PROTOCOL)) {
        return Err(invalid("its second pickle is not the version of the protocol, 1001"));
    }
    let system = pickle::read(path, text, version.end, version.budget)?;
    if let Some(Value::Bool(false)) = system.heap.get(system.top, "little_endian") {
        let what = "its numbers are big-endian";
        return Err(Failure::Other(Error::unsupported(path, what, "save it again on another machine")));
    }
    let saved = pickle::read(path, text, system.end, system.budget)?;
    let names = pickle::read(path, text, saved.end, saved.budget)?;
    let list = names.heap.sequence(names.top);
    let list = list.and_then(|list| {
        list.iter().map(|name| names.heap.text(*name).map(str::as_bytes)).collect::<Option<Vec<_>>>()
    });
    let list = list.ok_or_else(|| invalid("its last pickle is not a list of the storages' names"))?;
    Ok((saved, list, names.end))
}

/// Walks over the storages.
fn storages(bytes: &Bytes, saved: &Pickled, names: &[&[u8]], end: usize) -> Result<Places> {
    let invalid = |what: String| Error::invalid(bytes.path(), FORMAT, what);
    let known: HashMap<&[u8], usize> =
        saved.heap.storages.iter().map(|s| (saved.heap.bytes(s.key), s.dtype.block_bytes())).collect();
    let mut places = Places::with_capacity(names.len());
    let mut at = end as u64;
    for name in names {
        let shown = || quote(&String::from_utf8_lossy(name));
        let element = known.get(name).copied();
        let element = element.ok_or_else(|| invalid(format!("nothing uses its storage {}", shown())))?;
        let short = |need: u64| {
            let left = bytes.len().saturating_sub(at);
            invalid(format!(
                "its storage {} needs {need} bytes at {at}, {left} follow: it is cut short",
                shown()
            ))
        };
        let mut numel = [0; 8];
        bytes.span(at, 8).ok_or_else(|| short(8))?;
        bytes.read_at(at, &mut numel)?;
        let numel = i64::from_le_bytes(numel);
        let size = u64::try_from(numel).ok().and_then(|numel| numel.checked_mul(element as u64));
        let size = size.ok_or_else(|| invalid(format!("its storage {} has {numel} elements", shown())))?;
        let start = at + 8;
        at = bytes.span(start, size).ok_or_else(|| short(size))?;
        if places.insert(name.to_vec(), (start, size)).is_some() {
            return Err(invalid(format!("it has two storages named {}", shown())));
        }
    }
    if at != bytes.len() {
        let rest = bytes.len() - at;
        return Err(invalid(format!("{rest} bytes follow its last storage")));
    }
    Ok(places)
}
