//! A network's numbers as darknet writes them: a short header, then f32 after f32, with no names and no sizes.
//!
//! ```text
//! i32 major, i32 minor, i32 revision
//! u64 seen        how many pictures it was trained on (u32 before version 0.2)
//! f32 ...
//! ```
//!
//! What the numbers are is known only to the network: it asks for runs of them in its own order.

use std::borrow::Cow;
use std::path::Path;

use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};
use crate::source::{Table, TensorInfo, TensorSource, position};
use crate::{Dtype, atomic};

const FORMAT: &str = "darknet .weights";

/// What stands in front of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub major: i32,
    pub minor: i32,
    pub revision: i32,
    /// How many pictures the network was trained on.
    pub seen: u64,
}

impl Default for Header {
    /// What today's darknet writes.
    fn default() -> Header {
        Header { major: 0, minor: 2, revision: 5, seen: 0 }
    }
}

impl Header {
    /// Is `seen` of eight bytes?
    fn is_wide(self) -> bool {
        let version = i64::from(self.major) * 10 + i64::from(self.minor);
        version >= 2 && self.major < 1000 && self.minor < 1000
    }

    /// Do the matrices of `[connected]` layers lie the other way round, `[in, out]`?
    pub fn is_transposed(self) -> bool {
        self.major > 1000 || self.minor > 1000
    }
}

/// An open file, read from its first number to its last.
pub struct Weights {
    bytes: Bytes,
    header: Header,
    at: u64,
    header_bytes: u64,
}

impl Weights {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// A file that is shorter than a header, of a version that there is none, or that doesn't hold whole numbers.
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        Weights::parse(Bytes::open(path.as_ref())?)
    }

    /// [`Weights::open`] for bytes in memory; `name` is for messages.
    pub fn from_memory(name: impl AsRef<Path>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Weights> {
        Weights::parse(Bytes::from_memory(name.as_ref(), bytes))
    }

    fn parse(bytes: Bytes) -> Result<Weights> {
        bytes.refuse_stand_ins()?;
        let invalid = |what: String| Error::invalid(bytes.path(), FORMAT, what);
        let mut head = [0; 20];
        let have = bytes.len().min(20) as usize;
        bytes.read_at(0, &mut head[..have])?;
        let [a, b, c, d, e] = head.as_chunks::<4>().0 else { return Err(invalid("it has no header".into())) };
        let [major, minor, revision] = [a, b, c].map(|part| i32::from_le_bytes(*part));
        let mut header = Header { major, minor, revision, seen: u32::from_le_bytes(*d).into() };
        let header_bytes = if header.is_wide() { 20 } else { 16 };
        if header.is_wide() {
            header.seen |= u64::from(u32::from_le_bytes(*e)) << 32;
        }
        if bytes.len() < header_bytes {
            return Err(invalid(format!(
                "it has {} bytes, its header alone has {header_bytes}",
                bytes.len()
            )));
        }
        if major < 0 || minor < 0 || revision < 0 {
            return Err(invalid(format!("its version is {major}.{minor}.{revision}")));
        }
        let odd = (bytes.len() - header_bytes) % 4;
        if odd != 0 {
            return Err(invalid(format!(
                "{odd} bytes are left behind its last whole number: it is cut short"
            )));
        }
        Ok(Weights { bytes, header, at: header_bytes, header_bytes })
    }

    /// What stands in front of the numbers.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The file that messages name.
    pub fn path(&self) -> &Path {
        self.bytes.path()
    }

    /// How many numbers have been handed out.
    pub fn position(&self) -> u64 {
        (self.at - self.header_bytes) / 4
    }

    /// How many numbers are left. 0 between two layers means a file that holds the first layers only.
    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) / 4
    }

    /// The next `count` numbers; `what` says what they are, for messages: `layer 3 [convolutional] of line 41, biases`.
    ///
    /// # Errors
    /// Fewer numbers than that are left, or one is not finite.
    pub fn take(&mut self, what: &str, count: usize) -> Result<Vec<f32>> {
        if count as u64 > self.remaining() {
            return Err(self.cut_short(what, count as u64));
        }
        // Cannot overflow: they lie in the file.
        let mut stored = vec![0; count * 4];
        self.bytes.read_at(self.at, &mut stored)?;
        let values: Vec<f32> = stored.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let (path, name) = (self.path().to_path_buf(), what.to_string());
            return Err(Error::NotFinite { path, name, index: index as u64, value: values[index].into() });
        }
        self.at += stored.len() as u64;
        Ok(values)
    }

    /// Names all numbers, in their order: tensors that are read when they are asked for. Each has a name, a shape, and what it is for
    /// messages, as of [`Weights::take`].
    ///
    /// # Errors
    /// Fewer numbers than the tensors have, or more; a name that occurs twice.
    pub fn named(mut self, tensors: impl IntoIterator<Item = (String, Vec<usize>, String)>) -> Result<Named> {
        let mut infos = Vec::new();
        for (name, shape, what) in tensors {
            let bytes = Dtype::F32.byte_len(&shape).unwrap_or(u64::MAX);
            if bytes / 4 > self.remaining() {
                return Err(self.cut_short(&what, bytes / 4));
            }
            infos.push(TensorInfo { name, dtype: Dtype::F32, shape, offset: self.at, bytes, shard: 0 });
            self.at += bytes;
        }
        self.finish()?;
        let twice = |name: String| {
            Error::invalid(self.path(), FORMAT, format!("two tensors are called {}", quote(&name)))
        };
        let table = Table::new(infos).map_err(twice)?;
        Ok(Named { bytes: self.bytes, table })
    }

    fn cut_short(&self, what: &str, count: u64) -> Error {
        let (at, left) = (self.position(), self.remaining());
        let what = format!(
            "{what}: {count} numbers wanted at number {at}, {left} are left; it is cut short, or of another network"
        );
        Error::invalid(self.path(), FORMAT, what)
    }

    /// Every number has been taken?
    ///
    /// # Errors
    /// Says how many are left over.
    pub fn finish(&self) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            left => {
                let what = format!(
                    "{left} numbers are left over after the last layer took number {}: it is of another network than the .cfg",
                    self.position()
                );
                Err(Error::invalid(self.path(), FORMAT, what))
            }
        }
    }
}

/// A file's numbers as tensors ([`Weights::named`]).
#[derive(Debug)]
pub struct Named {
    bytes: Bytes,
    table: Table,
}

impl TensorSource for Named {
    fn tensors(&self) -> &[TensorInfo] {
        &self.table.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.table.find(name)
    }

    fn read_at(&self, info: &TensorInfo, byte_offset: u64, out: &mut [u8]) -> Result<()> {
        let at = position(self.path(), info, byte_offset, out.len())?;
        self.bytes.read_at(at, out)
    }

    fn check_unchanged(&self, _: &TensorInfo) -> Result<()> {
        self.bytes.check_unchanged()
    }

    fn path(&self) -> &Path {
        self.bytes.path()
    }
}

/// Writes a file: the header and the runs of numbers in their order, atomically and durably.
///
/// # Errors
/// A number that is not finite; a disk that is full.
pub fn write_weights<'a>(
    path: &Path,
    header: Header,
    runs: impl IntoIterator<Item = Cow<'a, [f32]>>,
) -> Result<()> {
    atomic::write_file(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path, "write"));
        for part in [header.major, header.minor, header.revision] {
            put(&part.to_le_bytes())?;
        }
        match header.is_wide() {
            true => put(&header.seen.to_le_bytes())?,
            false => put(&u32::try_from(header.seen).unwrap_or(u32::MAX).to_le_bytes())?,
        }
        for (i, run) in runs.into_iter().enumerate() {
            if let Some(index) = run.iter().position(|value| !value.is_finite()) {
                let what = format!("number {index} of run {i} is {}", run[index]);
                return Err(Error::Write { path: path.to_path_buf(), what });
            }
            for value in run.iter() {
                put(&value.to_le_bytes())?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: [i32; 3], seen: &[u8], values: &[f32]) -> Vec<u8> {
        let mut out: Vec<u8> = version.iter().flat_map(|part| part.to_le_bytes()).collect();
        out.extend(seen);
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        out
    }

    #[test]
    fn both_headers_are_read() {
        for (version, seen) in [([0, 2, 0], &[7, 0, 0, 0, 1, 0, 0, 0][..]), ([0, 1, 0], &[7, 0, 0, 0])] {
            let mut weights = Weights::from_memory("a", file(version, seen, &[1.0, 2.0, 3.0])).unwrap();
            let wide = if version[1] == 2 { 1 << 32 } else { 0 };
            assert_eq!(weights.header().seen, 7 + wide);
            assert_eq!(weights.take("first", 2).unwrap(), [1.0, 2.0]);
            assert_eq!((weights.position(), weights.remaining()), (2, 1));
            let message = weights.finish().unwrap_err().to_string();
            assert!(message.contains("1 numbers are left over") && message.contains("number 2"), "{message}");
            let message = weights.take("layer 3, biases", 2).unwrap_err().to_string();
            assert!(
                message.contains("layer 3, biases: 2 numbers wanted at number 2, 1 are left"),
                "{message}"
            );
            assert_eq!(weights.take("last", 1).unwrap(), [3.0]);
            weights.finish().unwrap();
        }
    }

    #[test]
    fn numbers_get_names() {
        let weights = || Weights::from_memory("a", file([0, 2, 5], &[0; 8], &[1.0, 2.0, 3.0])).unwrap();
        let tensor =
            |name: &str, shape: &[usize]| (name.to_string(), shape.to_vec(), format!("layer 0, {name}"));
        let named = weights().named([tensor("bias", &[1]), tensor("kernel", &[1, 2])]).unwrap();
        assert_eq!(named.read_f32("kernel").unwrap(), [2.0, 3.0]);
        assert_eq!(named.read_f32("bias").unwrap(), [1.0]);
        for (tensors, words) in [
            (vec![tensor("bias", &[1])], "2 numbers are left over"),
            (
                vec![tensor("bias", &[1]), tensor("kernel", &[3])],
                "layer 0, kernel: 3 numbers wanted at number 1",
            ),
            (vec![tensor("huge", &[usize::MAX, usize::MAX])], "layer 0, huge"),
            (vec![tensor("bias", &[1]), tensor("bias", &[2])], "two tensors are called"),
        ] {
            let message = weights().named(tensors).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let good = file([0, 2, 5], &[0; 8], &[1.0, 2.0]);
        for len in 0..good.len() {
            let fits = len >= 20 && len % 4 == 0;
            assert_eq!(Weights::from_memory("a", good[..len].to_vec()).is_ok(), fits, "{len}");
        }
        let message = Weights::from_memory("a", file([0, -2, 0], &[0; 4], &[])).err().unwrap().to_string();
        assert!(message.contains("version is 0.-2.0"), "{message}");
        let mut weights = Weights::from_memory("a", file([0, 2, 0], &[0; 8], &[0.0, f32::NAN])).unwrap();
        let message = weights.take("layer 0, means", 2).unwrap_err().to_string();
        assert!(message.contains("layer 0, means") && message.contains("element 1"), "{message}");
        assert!(weights.take("all", usize::MAX).is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.weights");
        let runs = || [vec![1.0, -2.5], vec![], vec![3.0]].map(Cow::Owned);
        for header in
            [Header { seen: 1 << 40, ..Header::default() }, Header { minor: 1, seen: 9, ..Header::default() }]
        {
            write_weights(&path, header, runs()).unwrap();
            let mut weights = Weights::open(&path).unwrap();
            assert_eq!(weights.header(), header);
            assert_eq!(weights.take("all", 3).unwrap(), [1.0, -2.5, 3.0]);
            weights.finish().unwrap();
        }
        let error = write_weights(&path, Header::default(), [Cow::Owned(vec![f32::INFINITY])]).unwrap_err();
        assert!(error.to_string().contains("number 0 of run 0"), "{error}");
        assert_eq!(Weights::open(&path).unwrap().remaining(), 3, "the old file is untouched");
    }
}
