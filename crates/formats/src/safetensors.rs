//! Safetensors: an 8-byte length, a JSON header, the data.
//!
//! The reader holds a file to all that the format promises: the tensors' ranges follow one another without hole or
//! overlap, each is exactly as long as its shape and type say, and the last ends where the file ends. The writer puts
//! tensors in the order of the reference implementation (type, widest first, then name), so equal tensors give equal
//! bytes.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::bytes::{Bytes, Reader};
use crate::error::{Error, Result, quote};
use crate::source::{Table, TensorInfo, TensorOut, TensorSource, position};
use crate::{Dtype, atomic, limits};

const FORMAT: &str = "safetensors";

/// An open safetensors file whose header has been checked.
#[derive(Debug)]
pub struct File {
    bytes: Bytes,
    table: Table,
    metadata: Vec<(String, String)>,
}

impl File {
    /// Opens and checks a file; no tensor is read.
    pub fn open(path: impl AsRef<Path>) -> Result<File> {
        File::parse(Bytes::open(path.as_ref())?)
    }

    /// Checks bytes that are in memory.
    pub fn from_memory(name: impl AsRef<Path>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<File> {
        File::parse(Bytes::from_memory(name.as_ref(), bytes))
    }

    fn parse(bytes: Bytes) -> Result<File> {
        bytes.refuse_stand_ins()?;
        let mut reader = Reader::new(&bytes, FORMAT);
        let size = reader.u64("the length of its header")?;
        let size = reader.check("the length of its header", size, 1, limits::SAFETENSORS_HEADER_BYTES)?;
        let mut header = vec![0; size];
        reader.fill(&mut header, "its header")?;
        let start = reader.position();
        let text = std::str::from_utf8(&header)
            .map_err(|e| reader.invalid(format!("its header is not UTF-8 at byte {}", e.valid_up_to())))?;
        if !text.starts_with('{') {
            return Err(reader.invalid("its header does not begin with `{`"));
        }
        let header: Header =
            serde_json::from_str(text).map_err(|e| reader.invalid(format!("its header: {e}")))?;
        let mut tensors = header.tensors;
        check_layout(&bytes, start, &mut tensors)?;
        let twice = |name: String| {
            Error::invalid(bytes.path(), FORMAT, format!("two tensors are named {}", quote(&name)))
        };
        let table = Table::new(tensors).map_err(twice)?;
        Ok(File { bytes, table, metadata: header.metadata })
    }

    /// The entries of `__metadata__`, in the order of the file.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }
}

/// Orders the tensors by their place, checks that they tile the data, and makes offsets absolute.
fn check_layout(bytes: &Bytes, start: u64, tensors: &mut [TensorInfo]) -> Result<()> {
    let bad = |what| Error::invalid(bytes.path(), FORMAT, what);
    tensors.sort_unstable_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
    let mut end = 0;
    for info in tensors.iter_mut() {
        let name = quote(&info.name);
        if info.offset != end {
            let kind =
                if info.offset < end { "overlaps the one before it" } else { "leaves a hole before it" };
            return Err(bad(format!("tensor {name} {kind}: it begins at {}, {end} was due", info.offset)));
        }
        // `bytes` holds the declared end until here.
        let declared = info.bytes.checked_sub(info.offset);
        let needed = info.dtype.byte_len(&info.shape);
        match (declared, needed) {
            (Some(declared), Some(needed)) if declared == needed => {
                end = info.bytes;
                info.bytes = needed;
            }
            _ => {
                let needed = needed.map_or("more than 2^64".into(), |n| n.to_string());
                return Err(bad(format!(
                    "tensor {name} lies at {}..{}, but its shape {:?} of {} takes {needed} bytes",
                    info.offset, info.bytes, info.shape, info.dtype
                )));
            }
        }
        info.offset = match bytes.span(start, end) {
            Some(stop) => stop - info.bytes,
            None => {
                let have = bytes.len() - start;
                return Err(bad(format!(
                    "tensor {name} ends at {end}, but only {have} bytes of data follow the header: it is cut short, get it again"
                )));
            }
        };
    }
    let rest = bytes.len() - start - end;
    if rest > 0 {
        return Err(bad(format!("{rest} bytes after its last tensor belong to nothing")));
    }
    Ok(())
}

impl TensorSource for File {
    fn tensors(&self) -> &[TensorInfo] {
        &self.table.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.table.find(name)
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> Result<()> {
        self.bytes.read_at(position(self.path(), info, byte_offset, out.len())?, out)
    }

    fn check_unchanged(&self, _: &TensorInfo) -> Result<()> {
        self.bytes.check_unchanged()
    }

    fn path(&self) -> &Path {
        self.bytes.path()
    }
}

/// The header as it is parsed; `bytes` of each tensor is its declared end and `offset` its declared begin.
struct Header {
    tensors: Vec<TensorInfo>,
    metadata: Vec<(String, String)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Header, D::Error> {
        de.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut out = Header { tensors: Vec::new(), metadata: Vec::new() };
        let mut metadata_seen = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(de::Error::custom("`__metadata__` occurs twice"));
                }
                out.metadata = map.next_value::<Metadata>()?.0;
                continue;
            }
            if name.is_empty() || name.len() as u64 > limits::NAME_BYTES {
                let max = limits::NAME_BYTES;
                return Err(de::Error::custom(format!(
                    "a tensor's name has {} bytes, 1 to {max} are allowed",
                    name.len()
                )));
            }
            if out.tensors.len() as u64 == limits::TENSORS {
                return Err(de::Error::custom(format!("more than {} tensors", limits::TENSORS)));
            }
            let entry = map.next_value::<Entry>()?;
            // Grown by half at most: a header of nothing but entries must not take four times its length.
            if out.tensors.len() == out.tensors.capacity() {
                out.tensors.reserve_exact(out.tensors.len() / 2 + 16);
            }
            out.tensors.push(TensorInfo {
                name,
                dtype: entry.dtype.0,
                shape: entry.shape.0,
                offset: entry.data_offsets.0,
                bytes: entry.data_offsets.1,
                shard: 0,
            });
        }
        Ok(out)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: DtypeName,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct DtypeName(Dtype);

impl<'de> Deserialize<'de> for DtypeName {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<DtypeName, D::Error> {
        let name = Cow::<str>::deserialize(de)?;
        let dtype = Dtype::from_safetensors(&name);
        dtype
            .map(DtypeName)
            .ok_or_else(|| de::Error::custom(format!("unknown element type {}", quote(&name))))
    }
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Shape, D::Error> {
        de.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a shape")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut dims = [0; limits::DIMS];
        let mut n = 0;
        while let Some(dim) = seq.next_element::<usize>()? {
            let Some(slot) = dims.get_mut(n) else {
                return Err(de::Error::custom(format!("more than {} dimensions", limits::DIMS)));
            };
            *slot = dim;
            n += 1;
        }
        Ok(Shape(dims[..n].to_vec()))
    }
}

struct Metadata(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Metadata, D::Error> {
        de.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
        let mut out: Vec<(String, String)> = Vec::new();
        while let Some(entry) = map.next_entry()? {
            if out.len() == limits::SAFETENSORS_METADATA {
                return Err(de::Error::custom(format!("more than {} metadata entries", out.len())));
            }
            out.push(entry);
        }
        let mut keys: Vec<&str> = out.iter().map(|(k, _)| k.as_str()).collect();
        keys.sort_unstable();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(de::Error::custom(format!("the metadata key {} occurs twice", quote(pair[0]))));
        }
        Ok(Metadata(out))
    }
}

/// Writes a file atomically and durably; the bytes depend only on the tensors and the metadata, not on their order.
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let (header, tensors) = prepare(path, tensors, metadata)?;
    atomic::write_file(path, |out| write_parts(path, &header, tensors, out))
}

/// [`write`] into memory.
pub fn to_bytes<'a>(
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>> {
    let path = Path::new("(memory)");
    let (header, tensors) = prepare(path, tensors, metadata)?;
    let mut out = Vec::new();
    write_parts(path, &header, tensors, &mut out)?;
    Ok(out)
}

type Sized<'a> = Vec<(TensorOut<'a>, u64)>;

fn prepare<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
    metadata: &[(&str, &str)],
) -> Result<(Vec<u8>, Sized<'a>)> {
    let bad = |what: String| Error::Write { path: path.to_path_buf(), what };
    let mut sized = Vec::new();
    for tensor in tensors {
        if tensor.dtype.safetensors_name().is_none() {
            return Err(bad(format!("tensor `{}`: safetensors has no type {}", tensor.name, tensor.dtype)));
        }
        let size = tensor.check(path)?;
        sized.push((tensor, size));
    }
    sized.sort_by(|(a, _), (b, _)| rank(b.dtype).cmp(&rank(a.dtype)).then_with(|| a.name.cmp(&b.name)));
    let mut names: Vec<&str> = sized.iter().map(|(t, _)| t.name.as_str()).chain(["__metadata__"]).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(bad(format!("two tensors are named `{}`", pair[0])));
    }
    let header =
        header_text(&sized, metadata).ok_or_else(|| bad("the tensors take more than 2^64 bytes".into()))?;
    if header.len() as u64 > limits::SAFETENSORS_HEADER_BYTES {
        return Err(bad(format!("the header would take {} bytes", header.len())));
    }
    Ok((header, sized))
}

/// The order of types in the reference implementation's files: those later in its enum come first.
fn rank(dtype: Dtype) -> usize {
    use Dtype::*;
    const ORDER: [Dtype; 15] =
        [Bool, U8, I8, F8E5M2, F8E4M3, I16, U16, F16, BF16, I32, U32, F32, F64, I64, U64];
    ORDER.iter().position(|&d| d == dtype).unwrap_or(0)
}

fn header_text(sized: &[(TensorOut, u64)], metadata: &[(&str, &str)]) -> Option<Vec<u8>> {
    let string = |text: &str| serde_json::Value::from(text).to_string();
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        let mut sorted = metadata.to_vec();
        sorted.sort_unstable();
        let pairs: Vec<_> = sorted.iter().map(|(k, v)| format!("{}:{}", string(k), string(v))).collect();
        entries.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    let mut offset = 0u64;
    for (tensor, size) in sized {
        let end = offset.checked_add(*size)?;
        let dtype = tensor.dtype.safetensors_name()?;
        let shape: Vec<_> = tensor.shape.iter().map(|d| d.to_string()).collect();
        let (name, shape) = (string(&tensor.name), shape.join(","));
        entries.push(format!(
            "{name}:{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{offset},{end}]}}"
        ));
        offset = end;
    }
    let mut text = format!("{{{}}}", entries.join(",")).into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    Some(text)
}

fn write_parts(path: &Path, header: &[u8], tensors: Sized, out: &mut dyn Write) -> Result<()> {
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(path, "write"))?;
    out.write_all(header).map_err(Error::io(path, "write"))?;
    for (tensor, size) in tensors {
        tensor.write(path, size, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let values = [1.5f32, -2.0, 0.25, 8.0];
        let tensors = [
            TensorOut::bytes("b", Dtype::U8, &[3], vec![1u8, 2, 3]),
            TensorOut::f32("a", &[2, 2], &values[..]),
            TensorOut { dtype: Dtype::BF16, ..TensorOut::f32("c", &[4], &values[..]) },
            TensorOut::f32("empty", &[0, 3], vec![]),
        ];
        let file = File::from_memory("m", to_bytes(tensors, &[("format", "pt")]).unwrap()).unwrap();
        assert_eq!(file.metadata(), [("format".to_string(), "pt".to_string())]);
        let names: Vec<_> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "empty", "c", "b"]);
        assert_eq!(file.read_f32("a").unwrap(), values);
        assert_eq!(file.read_f32("c").unwrap(), values);
        assert!(file.read_f32("empty").unwrap().is_empty());
        assert_eq!(file.read("b").unwrap(), [1, 2, 3]);
        assert!(file.read_f32("b").unwrap_err().to_string().contains("U8"));
        assert!(file.read("d").unwrap_err().to_string().contains("no tensor named `d`"));
        let a = file.find("a").unwrap();
        assert!(file.read_at(a, 13, &mut [0; 4]).is_err());
        assert!(file.read_at(a, u64::MAX, &mut [0; 4]).is_err());
    }

    #[test]
    fn a_writer_that_lies_is_refused() {
        let wrong = TensorOut::bytes("a", Dtype::F32, &[2], vec![0u8; 7]);
        assert!(to_bytes([wrong], &[]).unwrap_err().to_string().contains("takes 8 bytes, 7 are given"));
        let twice = || TensorOut::f32("a", &[1], vec![0.0]);
        assert!(
            to_bytes([twice(), twice()], &[]).unwrap_err().to_string().contains("two tensors are named `a`")
        );
        let short = TensorOut { data: crate::Data::Stream(Box::new(|_| Ok(()))), ..twice() };
        assert!(to_bytes([short], &[]).unwrap_err().to_string().contains("0 were produced"));
    }
}
