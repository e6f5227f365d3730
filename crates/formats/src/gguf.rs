//! GGUF (versions 2 and 3, little-endian): typed metadata, then tensors.
//!
//! Every count and length is checked against the bytes that remain before anything is allocated; tensors must lie one
//! after the other, aligned, in the order of the header, as ggml demands; arrays of arrays do not exist in real
//! files and are refused, so nothing recurses.

use std::borrow::Cow;
use std::path::Path;

use crate::bytes::{Bytes, Reader};
use crate::error::{Error, Result, quote};
use crate::source::{Table, TensorInfo, TensorSource, nearest, position};
use crate::{Dtype, limits};

const FORMAT: &str = "GGUF";
/// The alignment of tensor data if the file does not name one.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// The key that names another.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Array(Array),
}

/// A metadata array.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Str(Vec<String>),
}

impl Value {
    /// The number of this type in a file.
    pub(crate) fn id(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::Str(_) => 8,
            Value::Array(_) => 9,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// An integer of any width and sign.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// A short text for messages and listings.
    pub fn describe(&self) -> String {
        match self {
            Value::U8(v) => format!("u8 {v}"),
            Value::I8(v) => format!("i8 {v}"),
            Value::U16(v) => format!("u16 {v}"),
            Value::I16(v) => format!("i16 {v}"),
            Value::U32(v) => format!("u32 {v}"),
            Value::I32(v) => format!("i32 {v}"),
            Value::U64(v) => format!("u64 {v}"),
            Value::I64(v) => format!("i64 {v}"),
            Value::F32(v) => format!("f32 {v}"),
            Value::F64(v) => format!("f64 {v}"),
            Value::Bool(v) => format!("bool {v}"),
            Value::Str(v) => format!("string {}", quote(v)),
            Value::Array(v) => format!("array of {} {}", v.len(), v.element()),
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.parts().1
    }

    /// No elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of the element type.
    pub fn element(&self) -> &'static str {
        self.parts().2
    }

    /// Number of the element type in a file, length, name.
    pub(crate) fn parts(&self) -> (u32, usize, &'static str) {
        match self {
            Array::U8(v) => (0, v.len(), "u8"),
            Array::I8(v) => (1, v.len(), "i8"),
            Array::U16(v) => (2, v.len(), "u16"),
            Array::I16(v) => (3, v.len(), "i16"),
            Array::U32(v) => (4, v.len(), "u32"),
            Array::I32(v) => (5, v.len(), "i32"),
            Array::F32(v) => (6, v.len(), "f32"),
            Array::Bool(v) => (7, v.len(), "bool"),
            Array::Str(v) => (8, v.len(), "strings"),
            Array::U64(v) => (10, v.len(), "u64"),
            Array::I64(v) => (11, v.len(), "i64"),
            Array::F64(v) => (12, v.len(), "f64"),
        }
    }
}

/// The metadata of a file, with getters whose errors name file, key and type.
#[derive(Debug)]
pub struct Metadata {
    path: std::path::PathBuf,
    /// Sorted by key.
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let at = self.entries.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok()?;
        self.entries.get(at).map(|(_, value)| value)
    }

    /// All entries, sorted by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No entries?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A key that may be absent; one of the wrong type is an error.
    fn opt<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        f: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        f(value).map(Some).ok_or_else(|| Error::key(&self.path, key, value.describe(), wanted))
    }

    fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::MissingKey {
            path: self.path.clone(),
            key: key.to_string(),
            nearest: nearest(key, self.iter().map(|(k, _)| k)),
        })
    }

    /// An integer of any stored width that fits u64, if the key is there.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>> {
        self.opt(key, "an integer, 0 or more", Value::as_u64)
    }

    /// An integer of any stored width that fits u32, if the key is there.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        self.opt(key, "an integer from 0 to 4294967295", |v| v.as_u64()?.try_into().ok())
    }

    /// A finite floating-point number, if the key is there.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.opt(key, "a finite floating-point number", |v| match *v {
            Value::F32(v) => Some(v).filter(|v| v.is_finite()),
            Value::F64(v) => Some(v as f32).filter(|v| v.is_finite()),
            _ => None,
        })
    }

    /// A truth value, if the key is there.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.opt(key, "true or false", |v| if let Value::Bool(v) = *v { Some(v) } else { None })
    }

    /// A string, if the key is there.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        self.opt(key, "a string", |v| if let Value::Str(v) = v { Some(v.as_str()) } else { None })
    }

    /// An array of strings, if the key is there.
    pub fn opt_array_str(&self, key: &str) -> Result<Option<&[String]>> {
        self.opt(key, "an array of strings", |v| match v {
            Value::Array(Array::Str(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of f32, if the key is there.
    pub fn opt_array_f32(&self, key: &str) -> Result<Option<&[f32]>> {
        self.opt(key, "an array of f32", |v| match v {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of i32, if the key is there.
    pub fn opt_array_i32(&self, key: &str) -> Result<Option<&[i32]>> {
        self.opt(key, "an array of i32", |v| match v {
            Value::Array(Array::I32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An integer of any stored width that fits u64.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.need(key, self.opt_u64(key)?)
    }

    /// An integer of any stored width that fits u32.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.need(key, self.opt_u32(key)?)
    }

    /// A finite floating-point number.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.need(key, self.opt_f32(key)?)
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.need(key, self.opt_bool(key)?)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.need(key, self.opt_str(key)?)
    }

    /// An array of strings.
    pub fn array_str(&self, key: &str) -> Result<&[String]> {
        self.need(key, self.opt_array_str(key)?)
    }

    /// An array of f32.
    pub fn array_f32(&self, key: &str) -> Result<&[f32]> {
        self.need(key, self.opt_array_f32(key)?)
    }

    /// An array of i32.
    pub fn array_i32(&self, key: &str) -> Result<&[i32]> {
        self.need(key, self.opt_array_i32(key)?)
    }
}

/// An open GGUF file whose header has been checked.
#[derive(Debug)]
pub struct File {
    bytes: Bytes,
    metadata: Metadata,
    table: Table,
    version: u32,
    alignment: u32,
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

    /// Does a file begin like a GGUF file? (`false` also if it cannot be read.)
    pub fn is_gguf(path: impl AsRef<Path>) -> bool {
        let mut magic = [0; 4];
        Bytes::open(path.as_ref()).is_ok_and(|b| b.read_at(0, &mut magic).is_ok()) && &magic == b"GGUF"
    }

    fn parse(bytes: Bytes) -> Result<File> {
        bytes.refuse_stand_ins()?;
        let mut r = Reader::new(&bytes, FORMAT);
        let version = read_version(&mut r)?;
        let tensor_count = r.u64("the number of tensors")?;
        let kv_count = r.u64("the number of metadata entries")?;
        let metadata = read_metadata(&mut r, kv_count)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = read_tensor_infos(&mut r, tensor_count)?;
        check_layout(&mut r, alignment, &mut tensors)?;
        let twice = |name: String| {
            Error::invalid(bytes.path(), FORMAT, format!("two tensors are named {}", quote(&name)))
        };
        let table = Table::new(tensors).map_err(twice)?;
        Ok(File { bytes, metadata, table, version, alignment })
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of the tensors in the file, in bytes.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }
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

fn read_version(r: &mut Reader) -> Result<u32> {
    let magic: [u8; 4] = r.array("its first four bytes")?;
    if &magic != b"GGUF" {
        return Err(r.invalid(format!(
            "it begins with {}, not with `GGUF`",
            quote(&String::from_utf8_lossy(&magic))
        )));
    }
    let remedy = "convert the model again with a current llama.cpp";
    match r.u32("its version")? {
        version @ 2..=3 => Ok(version),
        1 => Err(Error::unsupported(r.path(), "GGUF version 1 is not read (2 and 3 are)", remedy)),
        v if matches!(v.swap_bytes(), 1..=3) => {
            Err(Error::unsupported(r.path(), "a big-endian GGUF file is not read", remedy))
        }
        v => {
            Err(Error::unsupported(r.path(), format!("GGUF version {v} is not known (2 and 3 are)"), remedy))
        }
    }
}

/// Key length, type and one byte of value.
const MIN_KV_BYTES: u64 = 8 + 1 + 4 + 1;

fn read_metadata(r: &mut Reader, count: u64) -> Result<Metadata> {
    let count = r.check("the number of metadata entries", count, MIN_KV_BYTES, limits::GGUF_KV)?;
    let mut entries: Vec<(String, Value)> = Vec::with_capacity(count);
    for _ in 0..count {
        let key = r.string("a metadata key", limits::NAME_BYTES)?;
        if key.is_empty() {
            return Err(r.invalid(format!("a metadata key before byte {} is empty", r.position())));
        }
        let value = read_value(r, &key)?;
        entries.push((key, value));
    }
    entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(r.invalid(format!("the metadata key {} occurs twice", quote(&pair[0].0))));
    }
    Ok(Metadata { path: r.path().to_path_buf(), entries })
}

fn read_value(r: &mut Reader, key: &str) -> Result<Value> {
    let what = "a metadata value";
    Ok(match r.u32("the type of a metadata value")? {
        0 => Value::U8(r.array::<1>(what)?[0]),
        1 => Value::I8(i8::from_le_bytes(r.array(what)?)),
        2 => Value::U16(u16::from_le_bytes(r.array(what)?)),
        3 => Value::I16(i16::from_le_bytes(r.array(what)?)),
        4 => Value::U32(r.u32(what)?),
        5 => Value::I32(i32::from_le_bytes(r.array(what)?)),
        6 => Value::F32(f32::from_le_bytes(r.array(what)?)),
        7 => {
            let byte = r.array::<1>(what)?[0];
            Value::Bool(truth(r, key, byte)?)
        }
        8 => Value::Str(r.string(what, string_limit(key))?),
        9 => Value::Array(read_array(r, key)?),
        10 => Value::U64(r.u64(what)?),
        11 => Value::I64(i64::from_le_bytes(r.array(what)?)),
        12 => Value::F64(f64::from_le_bytes(r.array(what)?)),
        other => return Err(r.invalid(format!("the value of {} has the unknown type {other}", quote(key)))),
    })
}

fn truth(r: &Reader, key: &str, byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(r.invalid(format!("a truth value of {} is {other}, neither 0 nor 1", quote(key)))),
    }
}

/// Templates, merges and whole tokenizers are long; anything else is not.
fn string_limit(key: &str) -> u64 {
    if key.starts_with("tokenizer.") { limits::GGUF_LONG_STRING_BYTES } else { limits::GGUF_STRING_BYTES }
}

fn read_array(r: &mut Reader, key: &str) -> Result<Array> {
    let element = r.u32("the element type of an array")?;
    let count = r.u64("the length of an array")?;
    Ok(match element {
        0 => Array::U8(numbers(r, key, count, u8::from_le_bytes)?),
        1 => Array::I8(numbers(r, key, count, i8::from_le_bytes)?),
        2 => Array::U16(numbers(r, key, count, u16::from_le_bytes)?),
        3 => Array::I16(numbers(r, key, count, i16::from_le_bytes)?),
        4 => Array::U32(numbers(r, key, count, u32::from_le_bytes)?),
        5 => Array::I32(numbers(r, key, count, i32::from_le_bytes)?),
        6 => Array::F32(numbers(r, key, count, f32::from_le_bytes)?),
        7 => {
            let bytes = numbers(r, key, count, u8::from_le_bytes)?;
            Array::Bool(bytes.into_iter().map(|b| truth(r, key, b)).collect::<Result<_>>()?)
        }
        8 => {
            let count = r.check(&length_of(key), count, 8, limits::GGUF_ARRAY)?;
            let mut out = Vec::with_capacity(count);
            for _ in 0..count {
                out.push(r.string("an element of an array of strings", limits::GGUF_STRING_BYTES)?);
            }
            Array::Str(out)
        }
        9 => return Err(r.invalid(format!("the value of {} is an array of arrays", quote(key)))),
        10 => Array::U64(numbers(r, key, count, u64::from_le_bytes)?),
        11 => Array::I64(numbers(r, key, count, i64::from_le_bytes)?),
        12 => Array::F64(numbers(r, key, count, f64::from_le_bytes)?),
        other => {
            return Err(r.invalid(format!("the array {} has the unknown element type {other}", quote(key))));
        }
    })
}

fn length_of(key: &str) -> String {
    format!("the length of the array {}", quote(key))
}

fn numbers<T, const N: usize>(
    r: &mut Reader,
    key: &str,
    count: u64,
    from: fn([u8; N]) -> T,
) -> Result<Vec<T>> {
    let count = r.check(&length_of(key), count, N as u64, limits::GGUF_ARRAY)?;
    let mut out = Vec::with_capacity(count);
    let mut buf = [0u8; 4096];
    while out.len() < count {
        let n = (count - out.len()).min(buf.len() / N);
        let part = &mut buf[..n * N];
        r.fill(part, "an array")?;
        out.extend(part.as_chunks::<N>().0.iter().map(|&bytes| from(bytes)));
    }
    Ok(out)
}

fn alignment(metadata: &Metadata) -> Result<u32> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(n)) if n.is_power_of_two() && n <= limits::GGUF_ALIGNMENT => Ok(n),
        Some(other) => {
            let wanted = format!("a u32 that is a power of two and at most {}", limits::GGUF_ALIGNMENT);
            Err(Error::key(&metadata.path, ALIGNMENT_KEY, other.describe(), wanted))
        }
    }
}

/// Name length and a byte of name, one dimension and their number, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// `offset` is relative to the data here, `bytes` the exact size.
fn read_tensor_infos(r: &mut Reader, count: u64) -> Result<Vec<TensorInfo>> {
    let count = r.check("the number of tensors", count, MIN_TENSOR_BYTES, limits::TENSORS)?;
    let mut tensors = Vec::with_capacity(count);
    for _ in 0..count {
        tensors.push(read_tensor_info(r)?);
    }
    Ok(tensors)
}

fn read_tensor_info(r: &mut Reader) -> Result<TensorInfo> {
    let name = r.string("the name of a tensor", limits::NAME_BYTES)?;
    let shown = quote(&name);
    if name.is_empty() {
        return Err(r.invalid(format!("the name of a tensor before byte {} is empty", r.position())));
    }
    let n_dims = r.u32("the number of dimensions of a tensor")? as usize;
    if n_dims == 0 || n_dims > limits::DIMS {
        return Err(
            r.invalid(format!("tensor {shown} has {n_dims} dimensions, 1 to {} are allowed", limits::DIMS))
        );
    }
    let mut shape = Vec::with_capacity(n_dims);
    for _ in 0..n_dims {
        let dim = r.u64("a dimension of a tensor")?;
        match usize::try_from(dim) {
            Ok(dim) if dim > 0 => shape.push(dim),
            _ => return Err(r.invalid(format!("tensor {shown} has a dimension of {dim}"))),
        }
    }
    shape.reverse();
    let id = r.u32("the type of a tensor")?;
    let dtype = Dtype::from_gguf(id).map_err(|kind| {
        let what = format!("tensor {shown} is stored as {kind}, which is not read");
        let remedy = "convert the model to one of F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K";
        Error::unsupported(r.path(), what, remedy)
    })?;
    let bytes = dtype.byte_len(&shape).ok_or_else(|| {
        let len = dtype.block_len();
        let reason = match shape.last() {
            Some(row) if row % len != 0 => format!("a row is not whole {dtype} blocks of {len}"),
            _ => "the size overflows".into(),
        };
        r.invalid(format!("tensor {shown} of shape {shape:?}: {reason}"))
    })?;
    let offset = r.u64("the offset of a tensor")?;
    Ok(TensorInfo { name, dtype, shape, offset, bytes, shard: 0 })
}

/// Tensors must follow one another, each at the next aligned byte, and end with the file (or its padding).
fn check_layout(r: &mut Reader, alignment: u32, tensors: &mut [TensorInfo]) -> Result<()> {
    let alignment = u64::from(alignment);
    let len = r.position() + r.remaining();
    let start = r.position().next_multiple_of(alignment);
    if tensors.is_empty() {
        let rest = r.remaining();
        return if rest < alignment {
            Ok(())
        } else {
            Err(r.invalid(format!("{rest} bytes at its end belong to nothing")))
        };
    }
    // Both stay at most `len` plus one alignment: nothing here can overflow.
    let mut due = start;
    let mut end = start;
    for info in tensors {
        let shown = quote(&info.name);
        if info.offset.checked_add(start) != Some(due) {
            let wanted = due - start;
            return Err(r.invalid(format!("tensor {shown} lies at {}, {wanted} was due", info.offset)));
        }
        end = match due.checked_add(info.bytes) {
            Some(end) if end <= len => end,
            _ => {
                let have = len.saturating_sub(due);
                return Err(r.invalid(format!(
                    "tensor {shown} takes {} bytes, {have} remain: it is cut short, get it again",
                    info.bytes
                )));
            }
        };
        info.offset = due;
        due = end.next_multiple_of(alignment);
    }
    if len > due {
        return Err(r.invalid(format!("{} bytes after its last tensor belong to nothing", len - end)));
    }
    Ok(())
}
