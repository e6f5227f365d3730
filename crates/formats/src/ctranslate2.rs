//! CTranslate2's `model.bin` (versions 4 to 6): named variables one after the other, and aliases of them.
//!
//! `u32 version; str spec; u32 revision; u32 n; n x {str name; u8 rank; u32 dims[rank]; u8 type; u32 bytes; data}; u32 m; m x {str alias; str name}`,
//! where `str` is a u16 length, NUL included, and the text. Quantised weights (I8, I16) have a `NAME_scale` beside them, one for
//! each row or one for all: value = stored / scale. [`TensorSource::read_f32`] gives the values.

use std::borrow::Cow;
use std::path::Path;

use crate::bytes::{Bytes, Reader};
use crate::error::{Error, Result, quote};
use crate::source::{Table, TensorInfo, TensorSource, append_f32, nearest, position};
use crate::{Dtype, limits};

const FORMAT: &str = "CTranslate2";
/// Types by their numbers in the file.
const TYPES: [Dtype; 6] = [Dtype::F32, Dtype::I8, Dtype::I16, Dtype::I32, Dtype::F16, Dtype::BF16];
const VERSIONS: std::ops::RangeInclusive<u32> = 4..=6;
/// What follows the name of a quantised weight in the name of its scales.
const SCALE: &str = "_scale";
/// Most aliases: real models have a few.
const ALIASES_MAX: u64 = 1_024;
/// Bytes that are converted at a time: whole numbers of every type.
const CHUNK: usize = 256 << 10;

/// An open file whose variables have been listed and checked.
#[derive(Debug)]
pub struct File {
    bytes: Bytes,
    spec: String,
    revision: u32,
    table: Table,
    /// (alias, name of the variable), sorted.
    aliases: Vec<(String, String)>,
}

impl File {
    /// Opens and checks a file; no variable is read.
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
        let version = reader.u32("its version")?;
        if !VERSIONS.contains(&version) {
            let what = format!("this is no CTranslate2 model of version 4 to 6 (it begins with {version})");
            return Err(Error::unsupported(bytes.path(), what, "convert the original model again"));
        }
        let spec = text(&mut reader, "the name of its specification")?;
        let revision = reader.u32("its revision")?;
        let count = reader.u32("the number of its variables")?;
        // What is kept of a variable takes some 150 bytes of memory; the files of real models have far more for each.
        let most = (4_096 + bytes.len() / 40).min(limits::TENSORS);
        let count = reader.check("the number of its variables", u64::from(count), 9, most)?;
        let mut tensors = Vec::with_capacity(count);
        for _ in 0..count {
            tensors.push(variable(&mut reader)?);
        }
        let table = Table::new(tensors)
            .map_err(|name| reader.invalid(format!("two variables are named {}", quote(&name))))?;
        let aliases = aliases(&mut reader, &table)?;
        match reader.remaining() {
            0 => Ok(File { spec, revision, table, aliases, bytes }),
            rest => Err(reader.invalid(format!("{rest} bytes after its last alias belong to nothing"))),
        }
    }

    /// The kind of model: `WhisperSpec`.
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// The revision of that kind.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// The aliases, sorted, each with the variable that it stands for; [`TensorSource::find`] follows them.
    pub fn aliases(&self) -> &[(String, String)] {
        &self.aliases
    }

    /// A setting: a variable of one integer (`decoder/num_heads`). `None` if there is none of this name.
    ///
    /// # Errors
    /// If the variable is not one integer.
    pub fn integer(&self, name: &str) -> Result<Option<i64>> {
        let Some(info) = self.find(name) else { return Ok(None) };
        let bytes = if info.numel() == 1 { self.read(name)? } else { Vec::new() };
        let value = match (info.dtype, &bytes[..]) {
            (Dtype::I8, &[b]) => i64::from(b as i8),
            (Dtype::I16, &[a, b]) => i64::from(i16::from_le_bytes([a, b])),
            (Dtype::I32, &[a, b, c, d]) => i64::from(i32::from_le_bytes([a, b, c, d])),
            _ => {
                let found = format!("{} of shape {:?}", info.dtype, info.shape);
                return Err(Error::key(self.path(), name, found, "one integer"));
            }
        };
        Ok(Some(value))
    }

    /// Appends stored numbers as they are, not scaled yet.
    fn append(&self, info: &TensorInfo, stored: &[u8], out: &mut Vec<f32>) -> Result<()> {
        match info.dtype {
            Dtype::I8 => out.extend(stored.iter().map(|&b| f32::from(b as i8))),
            Dtype::I16 => {
                out.extend(stored.as_chunks::<2>().0.iter().map(|&b| f32::from(i16::from_le_bytes(b))));
            }
            dtype if dtype.is_float() => append_f32(dtype, stored, out),
            found => {
                let wanted = "floating-point numbers or a quantised weight (I8, I16)";
                let (path, name) = (self.path().to_path_buf(), info.name.clone());
                return Err(Error::TensorType { path, name, found, wanted });
            }
        }
        Ok(())
    }

    /// The scales of a quantised variable: `[rows]`, or one for all.
    fn scales(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        let name = format!("{}{SCALE}", info.name);
        let found = self.find(&name).ok_or_else(|| Error::NoTensor {
            path: self.path().to_path_buf(),
            nearest: nearest(&name, self.table.tensors.iter().map(|t| t.name.as_str())),
            name: name.clone(),
        })?;
        let rows = info.shape.first().copied().unwrap_or(1) as u64;
        if !found.dtype.is_float() || ![1, rows].contains(&found.numel()) {
            let found = format!("{} of shape {:?}", found.dtype, found.shape);
            return Err(Error::key(
                self.path(),
                name,
                found,
                format!("one number for each of the {rows} rows, or one"),
            ));
        }
        let scales = self.read_f32(&name)?;
        match scales.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
            Some(at) => {
                let (path, value) = (self.path().to_path_buf(), f64::from(scales[at]));
                Err(Error::NotFinite { path, name, index: at as u64, value })
            }
            None => Ok(scales),
        }
    }
}

impl TensorSource for File {
    /// All variables; aliases are not among them.
    fn tensors(&self) -> &[TensorInfo] {
        &self.table.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.table.find(name).or_else(|| {
            let at = self.aliases.binary_search_by(|(alias, _)| alias.as_str().cmp(name)).ok()?;
            self.table.find(&self.aliases[at].1)
        })
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

    /// Values, also of quantised weights.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.get(name)?;
        let size = info.dtype.block_bytes();
        let mut out = Vec::with_capacity(info.numel() as usize);
        let mut buf = vec![0; CHUNK.min(info.bytes as usize)];
        while out.len() * size < info.bytes as usize {
            let done = out.len() * size;
            let part = (info.bytes as usize - done).min(CHUNK);
            self.read_at(info, done as u64, &mut buf[..part])?;
            self.append(info, &buf[..part], &mut out)?;
        }
        if !info.dtype.is_float() {
            let scales = self.scales(info)?;
            let columns = out.len().div_ceil(scales.len().max(1)).max(1);
            for (row, scale) in out.chunks_mut(columns).zip(&scales) {
                row.iter_mut().for_each(|value| *value /= scale);
            }
        }
        Ok(out)
    }
}

/// A text with its length, the NUL at its end included, in front.
fn text(reader: &mut Reader, what: &str) -> Result<String> {
    let at = reader.position();
    let size = u16::from_le_bytes(reader.array(what)?);
    let size = reader.check(&format!("the length of {what}"), u64::from(size), 1, limits::NAME_BYTES + 1)?;
    let mut bytes = vec![0; size];
    reader.fill(&mut bytes, what)?;
    let ended = bytes.pop() == Some(0) && !bytes.contains(&0);
    let text = String::from_utf8(bytes).ok().filter(|text| ended && !text.is_empty());
    text.ok_or_else(|| reader.invalid(format!("{what} at byte {at} is no text with a NUL at its end")))
}

/// One variable; its data is passed over.
fn variable(reader: &mut Reader) -> Result<TensorInfo> {
    let name = text(reader, "the name of a variable")?;
    let [rank] = reader.array("the rank of a variable")?;
    if usize::from(rank) > limits::DIMS {
        let what = format!("the number of dimensions of {}", quote(&name));
        return Err(Error::limit(reader.path(), what, rank.into(), limits::DIMS as u64));
    }
    let mut shape = Vec::with_capacity(rank.into());
    for _ in 0..rank {
        shape.push(reader.u32("a dimension")? as usize);
    }
    let [number] = reader.array("the type of a variable")?;
    let Some(&dtype) = TYPES.get(usize::from(number)) else {
        return Err(
            reader.invalid(format!("variable {} has the type {number}, 0 to 5 are known", quote(&name)))
        );
    };
    let bytes = u64::from(reader.u32("the size of a variable")?);
    if dtype.byte_len(&shape) != Some(bytes) {
        return Err(reader.invalid(format!(
            "variable {} has {bytes} bytes, its shape {shape:?} of {dtype} takes {}",
            quote(&name),
            dtype.byte_len(&shape).map_or("more than 2^64".into(), |n| n.to_string())
        )));
    }
    let offset = reader.position();
    reader.skip(bytes, &format!("variable {}", quote(&name)))?;
    Ok(TensorInfo { name, dtype, shape, offset, bytes, shard: 0 })
}

/// The aliases, and those of the scales of what they stand for.
fn aliases(reader: &mut Reader, table: &Table) -> Result<Vec<(String, String)>> {
    let count = reader.u32("the number of its aliases")?;
    let count = reader.check("the number of its aliases", u64::from(count), 6, ALIASES_MAX)?;
    let mut aliases = Vec::new();
    for _ in 0..count {
        let alias = text(reader, "an alias")?;
        let name = text(reader, "the name of an alias")?;
        if table.find(&name).is_none() {
            let what = format!("alias {} stands for {}, which is not there", quote(&alias), quote(&name));
            return Err(reader.invalid(what));
        }
        let scales = format!("{name}{SCALE}");
        if table.find(&scales).is_some() {
            aliases.push((format!("{alias}{SCALE}"), scales));
        }
        aliases.push((alias, name));
    }
    aliases.sort_unstable();
    let twice = aliases.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| &pair[0].0);
    match twice.or_else(|| aliases.iter().map(|(alias, _)| alias).find(|alias| table.find(alias).is_some())) {
        Some(alias) => Err(reader.invalid(format!("two variables or aliases are named {}", quote(alias)))),
        None => Ok(aliases),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u16 + 1).to_le_bytes()[..], text.as_bytes(), b"\0"].concat()
    }

    fn var(name: &str, shape: &[u32], dtype: u8, data: &[u8]) -> Vec<u8> {
        let dims: Vec<u8> = shape.iter().flat_map(|d| d.to_le_bytes()).collect();
        let head = [string(name), vec![shape.len() as u8], dims, vec![dtype]].concat();
        [&head, &(data.len() as u32).to_le_bytes()[..], data].concat()
    }

    fn model(variables: &[Vec<u8>], aliases: &[(&str, &str)]) -> Vec<u8> {
        let number = |n: usize| (n as u32).to_le_bytes().to_vec();
        let mut out = [number(6), string("WhisperSpec"), number(3), number(variables.len())].concat();
        out.extend(variables.concat());
        out.extend(number(aliases.len()));
        aliases.iter().for_each(|(a, b)| out.extend([string(a), string(b)].concat()));
        out
    }

    fn sample() -> Vec<u8> {
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let halves = |values: &[f32]| {
            values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>()
        };
        let heads = var("decoder/num_heads", &[], 2, &6i16.to_le_bytes());
        let half = var("e/weight", &[2, 3], 4, &halves(&[1.0, -2.0, 0.5, 0.0, 3.0, 4.0]));
        let quantised = var("q/weight", &[2, 2], 1, &[127, 0x81, 64, 0]);
        let scales = var("q/weight_scale", &[2], 0, &floats(&[127.0, 2.0]));
        model(&[heads, half, quantised, scales], &[("p/weight", "q/weight")])
    }

    fn open(bytes: Vec<u8>) -> Result<File> {
        File::from_memory("model.bin", bytes)
    }

    #[test]
    fn variables_aliases_and_settings() {
        let file = open(sample()).unwrap();
        assert_eq!((file.spec(), file.revision(), file.tensors().len()), ("WhisperSpec", 3, 4));
        assert_eq!(file.integer("decoder/num_heads").unwrap(), Some(6));
        assert_eq!(file.integer("decoder/alibi").unwrap(), None);
        assert!(file.integer("e/weight").unwrap_err().to_string().contains("one integer"));
        assert_eq!(file.read_f32("e/weight").unwrap(), [1.0, -2.0, 0.5, 0.0, 3.0, 4.0]);
        assert_eq!(file.get("e/weight").unwrap().shape, [2, 3]);
        for name in ["q/weight", "p/weight"] {
            assert_eq!(file.read_f32(name).unwrap(), [1.0, -1.0, 32.0, 0.0], "{name}");
        }
        assert_eq!(file.read_f32("p/weight_scale").unwrap(), [127.0, 2.0]);
        assert!(file.read_f32("e/weigth").unwrap_err().to_string().contains("`e/weight`"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |bytes| open(bytes).unwrap_err().to_string();
        assert!(message(b"GGUF\x03\0\0\0".to_vec()).contains("no CTranslate2 model of version 4 to 6"));
        let short = var("a", &[2], 0, &[0; 4]);
        assert!(message(model(&[short], &[])).contains("`a` has 4 bytes, its shape [2] of F32 takes 8"));
        let one = || var("a", &[1], 1, &[7]);
        assert!(message(model(&[one(), one()], &[])).contains("two variables are named `a`"));
        assert!(message(model(&[one()], &[("b", "c")])).contains("stands for `c`, which is not there"));
        assert!(message(model(&[one()], &[("a", "a")])).contains("are named `a`"));
        assert!(message(model(&[var("a", &[1], 9, &[7])], &[])).contains("the type 9"));
        assert!(message([sample(), vec![0]].concat()).contains("1 bytes after"));
        assert!(
            open(model(&[one()], &[])).unwrap().read_f32("a").unwrap_err().to_string().contains("a_scale")
        );
        let zero = var("a_scale", &[1], 0, &[0; 4]);
        let file = open(model(&[one(), zero], &[])).unwrap();
        assert!(file.read_f32("a").unwrap_err().to_string().contains("`a_scale` holds 0"));
    }

    #[test]
    fn every_prefix_and_every_byte_is_read_or_refused() {
        let good = sample();
        for end in 0..good.len() {
            assert!(open(good[..end].to_vec()).is_err(), "cut at {end}");
        }
        for at in 0..good.len() {
            for change in [0x01, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= change;
                if let Ok(file) = open(bad) {
                    for info in file.tensors() {
                        let _ = file.read_f32(&info.name);
                    }
                }
            }
        }
    }

    /// The real tiny.en, if its file is named.
    #[test]
    fn the_real_file() {
        let Ok(path) = std::env::var("RETUNE_WHISPER_CT2") else {
            eprintln!("skipped: RETUNE_WHISPER_CT2 names no model.bin of Whisper tiny.en");
            return;
        };
        let file = File::open(path).unwrap();
        assert_eq!((file.spec(), file.tensors().len()), ("WhisperSpec", 148));
        assert_eq!(file.integer("encoder/num_heads").unwrap(), Some(6));
        let embedding = file.get("decoder/projection/weight").unwrap();
        assert_eq!((embedding.shape.as_slice(), embedding.dtype), (&[51_864, 384][..], Dtype::F16));
        let values = file.read_f32("encoder/conv1/weight").unwrap();
        assert!(values.len() == 384 * 80 * 3 && values.iter().all(|v| v.is_finite()));
    }
}
