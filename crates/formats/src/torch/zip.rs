//! The table of a zip archive whose entries are stored as they are: what `torch.save` writes.
//!
//! Nothing is inflated: a compressed entry is refused, so an archive can't hold more than its own bytes.

use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};
use crate::limits;

const FORMAT: &str = "PyTorch";
const END: &[u8; 4] = b"PK\x05\x06";
const END_LEN: u64 = 22;
const END64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR64: &[u8; 4] = b"PK\x06\x07";
const LOCATOR64_LEN: u64 = 20;
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const CENTRAL_LEN: usize = 46;
const LOCAL: &[u8; 4] = b"PK\x03\x04";
const LOCAL_LEN: u64 = 30;

/// One stored file of the archive.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    name: (u32, u16),
    /// Position of the local header.
    header: u64,
    size: u64,
}

/// The names of an archive and where their bytes lie, sorted by name.
pub struct Zip<'a> {
    bytes: &'a Bytes,
    directory: Vec<u8>,
    entries: Vec<Entry>,
}

impl<'a> Zip<'a> {
    /// Reads the central directory.
    pub fn open(bytes: &'a Bytes) -> Result<Zip<'a>> {
        let (count, size, at) = find_directory(bytes)?;
        let invalid = |what: String| Error::invalid(bytes.path(), FORMAT, what);
        if count > limits::TENSORS {
            return Err(Error::limit(bytes.path(), "the number of files in it", count, limits::TENSORS));
        }
        let fits = count.checked_mul(CENTRAL_LEN as u64).is_some_and(|least| least <= size);
        if !fits || bytes.span(at, size).is_none() || u32::try_from(size).is_err() {
            return Err(invalid(format!("its table of {count} files does not fit {size} bytes at {at}")));
        }
        let mut directory = vec![0; size as usize];
        bytes.read_at(at, &mut directory)?;
        let mut entries = Vec::with_capacity(count as usize);
        let mut rest = 0;
        for _ in 0..count {
            let (entry, next) = parse_entry(bytes, &directory, rest)?;
            entries.push(entry);
            rest = next;
        }
        let mut zip = Zip { bytes, directory, entries };
        let mut entries = std::mem::take(&mut zip.entries);
        entries.sort_unstable_by(|a, b| zip.name(a).cmp(zip.name(b)));
        if let Some(pair) = entries.windows(2).find(|pair| zip.name(&pair[0]) == zip.name(&pair[1])) {
            let name = quote(&String::from_utf8_lossy(zip.name(&pair[0])));
            return Err(invalid(format!("two files in it are named {name}")));
        }
        zip.entries = entries;
        Ok(zip)
    }

    /// The name of an entry, as its bytes.
    pub fn name(&self, entry: &Entry) -> &[u8] {
        let start = entry.name.0 as usize;
        self.directory.get(start..start + usize::from(entry.name.1)).unwrap_or_default()
    }

    /// All entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Position and size of the bytes of the file of this name.
    pub fn find(&self, name: &[u8]) -> Option<Result<(u64, u64)>> {
        let at = self.entries.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        self.entries.get(at).map(|entry| self.place(entry))
    }

    /// Position and size of the bytes of an entry.
    pub fn place(&self, entry: &Entry) -> Result<(u64, u64)> {
        let bad = || {
            let name = quote(&String::from_utf8_lossy(self.name(entry)));
            Error::invalid(self.bytes.path(), FORMAT, format!("the bytes of {name} do not lie in it"))
        };
        let mut head = [0; LOCAL_LEN as usize];
        self.bytes.span(entry.header, LOCAL_LEN).ok_or_else(bad)?;
        self.bytes.read_at(entry.header, &mut head)?;
        if !head.starts_with(LOCAL) {
            return Err(bad());
        }
        let skip = LOCAL_LEN + u64::from(u16_at(&head, 26)) + u64::from(u16_at(&head, 28));
        let start = entry.header.checked_add(skip).ok_or_else(bad)?;
        self.bytes.span(start, entry.size).ok_or_else(bad)?;
        Ok((start, entry.size))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

/// Number of entries, size and position of the central directory.
fn find_directory(bytes: &Bytes) -> Result<(u64, u64, u64)> {
    // A comment may follow; torch writes none.
    let tail_len = bytes.len().min(END_LEN + u64::from(u16::MAX));
    let tail_at = bytes.len() - tail_len;
    let mut tail = vec![0; tail_len as usize];
    bytes.read_at(tail_at, &mut tail)?;
    let is_end = |at: &usize| {
        tail[*at..].starts_with(END)
            && usize::from(u16_at(&tail, at + 20)) == tail.len() - at - END_LEN as usize
    };
    let last = tail.len().checked_sub(END_LEN as usize);
    let end = last.and_then(|last| (0..=last).rev().find(is_end)).ok_or_else(|| {
        Error::invalid(
            bytes.path(),
            FORMAT,
            "its end, the table of a zip archive, is missing: it is cut short",
        )
    })?;
    let short =
        (u64::from(u16_at(&tail, end + 10)), u32_at(&tail, end + 12).into(), u32_at(&tail, end + 16).into());
    let Some(locator_at) = (tail_at + end as u64).checked_sub(LOCATOR64_LEN) else { return Ok(short) };
    let mut locator = [0; LOCATOR64_LEN as usize];
    bytes.read_at(locator_at, &mut locator)?;
    if !locator.starts_with(LOCATOR64) {
        return Ok(short);
    }
    let mut end64 = [0; 56];
    let at = u64_at(&locator, 8);
    let fits = bytes.span(at, end64.len() as u64).is_some();
    if fits {
        bytes.read_at(at, &mut end64)?;
    }
    if !fits || !end64.starts_with(END64) {
        return Err(Error::invalid(bytes.path(), FORMAT, format!("there is no zip64 record at {at}")));
    }
    Ok((u64_at(&end64, 32), u64_at(&end64, 40), u64_at(&end64, 48)))
}

/// The entry at a position of the directory, and the position of the next.
fn parse_entry(bytes: &Bytes, directory: &[u8], at: usize) -> Result<(Entry, usize)> {
    let invalid = |what: &str| Error::invalid(bytes.path(), FORMAT, format!("its table of files {what}"));
    let head = directory.get(at..at + CENTRAL_LEN).filter(|head| head.starts_with(CENTRAL));
    let head = head.ok_or_else(|| invalid("is damaged"))?;
    let (name_len, extra_len) = (u16_at(head, 28), u16_at(head, 30));
    let name_at = at + CENTRAL_LEN;
    let extra_at = name_at + usize::from(name_len);
    let extra_end = extra_at + usize::from(extra_len);
    let next = extra_end + usize::from(u16_at(head, 32));
    let extra = directory.get(extra_at..extra_end).ok_or_else(|| invalid("is cut short"))?;
    if next > directory.len() {
        return Err(invalid("is cut short"));
    }
    if u16_at(head, 10) != 0 || u16_at(head, 8) & 1 != 0 {
        let what = "a file in it is compressed or encrypted, which torch.save never does";
        let remedy = "unpack it, or save it again with torch.save";
        return Err(Error::unsupported(bytes.path(), what, remedy));
    }
    let (packed, size, header) = (u32_at(head, 20).into(), u32_at(head, 24).into(), u32_at(head, 42).into());
    let [size, packed, header] = widen(extra, [size, packed, header]).ok_or_else(|| invalid("is damaged"))?;
    if size != packed {
        return Err(invalid("names two sizes for a file that is not compressed"));
    }
    // Fits: the directory is shorter than 4 GiB.
    Ok((Entry { name: (name_at as u32, name_len), header, size }, next))
}

/// Values of 2^32 - 1 stand in the zip64 field, in this order.
fn widen(mut extra: &[u8], values: [u64; 3]) -> Option<[u64; 3]> {
    let missing = u64::from(u32::MAX);
    if !values.contains(&missing) {
        return Some(values);
    }
    while extra.len() >= 4 {
        let (kind, len) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let mut field = extra.get(4..4 + len)?;
        if kind == 1 {
            let mut wide = values;
            for value in wide.iter_mut().filter(|v| **v == missing) {
                *value = u64::from_le_bytes(*field.first_chunk()?);
                field = &field[8..];
            }
            return Some(wide);
        }
        extra = &extra[4 + len..];
    }
    None
}
