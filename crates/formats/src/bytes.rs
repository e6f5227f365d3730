//! The bytes of one file, read by position, and a sequential reader over them.
//!
//! All arithmetic on offsets and sizes that a file declares is done here ([`Bytes::span`], [`Reader::check`]), so
//! that no parser adds two numbers from a file by itself. Nothing is mapped into memory: a file that is cut
//! short while it is open gives an error, not a signal.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result, quote};

/// An open file (or bytes in memory) of known length.
#[derive(Debug)]
pub struct Bytes {
    path: PathBuf,
    len: u64,
    /// When the file was last written to, as it was when it was opened.
    modified: Option<SystemTime>,
    inner: Inner,
}

/// From this size on a file is told to the system as one that is read in passing.
#[cfg(target_os = "linux")]
const LARGE: u64 = 256 << 20;

#[derive(Debug)]
enum Inner {
    File(fs::File),
    Memory(Cow<'static, [u8]>),
}

impl Bytes {
    /// Opens a regular file. Folders, pipes and devices are refused.
    pub fn open(path: &Path) -> Result<Bytes> {
        // Asked before opening, because opening a pipe waits for a writer.
        let meta = fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !meta.is_file() {
            let what = if meta.is_dir() { "this is a folder" } else { "this is not a regular file" };
            return Err(Error::unsupported(path, what, "a file was expected"));
        }
        let file = fs::File::open(path).map_err(Error::io(path, "open"))?;
        let meta = file.metadata().map_err(Error::io(path, "open"))?;
        let len = meta.len();
        #[cfg(target_os = "linux")]
        if len >= LARGE {
            // Weights larger than the page cache must not push out of it what other programs use again. A hint: no matter if it fails.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::NoReuse);
        }
        Ok(Bytes { path: path.to_path_buf(), len, modified: meta.modified().ok(), inner: Inner::File(file) })
    }

    /// Bytes that are already in memory (embedded in the program); `name` stands for the path in messages.
    pub fn from_memory(name: impl Into<PathBuf>, bytes: impl Into<Cow<'static, [u8]>>) -> Bytes {
        let bytes = bytes.into();
        Bytes { path: name.into(), len: bytes.len() as u64, modified: None, inner: Inner::Memory(bytes) }
    }

    /// The path that messages name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes, as it was when the file was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for an empty file.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Refuses what people get instead of the file that they asked for.
    pub(crate) fn refuse_stand_ins(&self) -> Result<()> {
        let mut start = [0; 24];
        let n = self.len.min(start.len() as u64) as usize;
        self.read_at(0, &mut start[..n])?;
        if start.starts_with(b"version https://git-lfs") {
            let remedy = "run `git lfs pull` in its folder, or download the file itself";
            return Err(Error::unsupported(
                &self.path,
                "this is a Git LFS pointer, not the file itself",
                remedy,
            ));
        }
        if [&b"<!doctype"[..], b"<html"].iter().any(|tag| start.to_ascii_lowercase().starts_with(tag)) {
            let remedy = "download it again, from an address that gives the file itself";
            return Err(Error::unsupported(&self.path, "this is a web page, not the file itself", remedy));
        }
        Ok(())
    }

    /// The end of `size` bytes at `start`, if they lie in the file.
    pub fn span(&self, start: u64, size: u64) -> Option<u64> {
        start.checked_add(size).filter(|&end| end <= self.len)
    }

    /// Fills `buf` from `offset`. Any number of threads may read at once.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = self.span(offset, buf.len() as u64).ok_or_else(|| {
            let what = format!("{} bytes wanted at {offset}, the file ends at {}", buf.len(), self.len);
            Error::io(&self.path, "read")(io::Error::new(io::ErrorKind::UnexpectedEof, what))
        })?;
        match &self.inner {
            Inner::File(file) => read_exact_at(file, buf, offset).map_err(|e| self.shrunk(e)),
            Inner::Memory(bytes) => {
                let all: &[u8] = bytes;
                let part = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
                let part = part.and_then(|(a, b)| all.get(a..b));
                buf.copy_from_slice(part.ok_or_else(|| self.shrunk(io::ErrorKind::UnexpectedEof.into()))?);
                Ok(())
            }
        }
    }

    fn shrunk(&self, e: io::Error) -> Error {
        if e.kind() == io::ErrorKind::UnexpectedEof {
            let what = format!("it was {} bytes when it was opened and has become shorter since", self.len);
            return Error::io(&self.path, "read")(io::Error::new(e.kind(), what));
        }
        Error::io(&self.path, "read")(e)
    }

    /// Is the file still what it was when it was opened? Its length and the time of its last change are compared. Another
    /// file put in its place does not matter: this one stays open.
    ///
    /// # Errors
    /// [`Error::Changed`] says what is different.
    pub fn check_unchanged(&self) -> Result<()> {
        let Inner::File(file) = &self.inner else { return Ok(()) };
        let meta = file.metadata().map_err(Error::io(&self.path, "look at"))?;
        let what = match (meta.len(), meta.modified().ok()) {
            (len, _) if len < self.len => format!("it was cut from {} to {len} bytes", self.len),
            (len, _) if len > self.len => format!("it grew from {} to {len} bytes", self.len),
            (_, modified) if modified != self.modified => {
                let at = |time: Option<SystemTime>| time.map_or("an unknown time".into(), seconds);
                format!("it was written to (last changed at {}, now at {})", at(self.modified), at(modified))
            }
            _ => return Ok(()),
        };
        Err(Error::Changed { path: self.path.clone(), what })
    }

    /// The whole file, if it has at most `limit` bytes.
    pub fn read_all(&self, what: &str, limit: u64) -> Result<Vec<u8>> {
        if self.len > limit {
            return Err(Error::limit(&self.path, format!("the size of {what}"), self.len, limit));
        }
        let mut all = vec![0; self.len as usize];
        self.read_at(0, &mut all)?;
        Ok(all)
    }

    /// The whole file as text, if it has at most `limit` bytes.
    pub fn read_text(&self, what: &'static str, limit: u64) -> Result<String> {
        let all = self.read_all(what, limit)?;
        String::from_utf8(all).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            Error::invalid(&self.path, what, format!("the text is not UTF-8 at byte {at}"))
        })
    }
}

/// A time for messages: seconds since 1970, to the millisecond.
fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03} s", since.as_secs(), since.subsec_millis())
}

#[cfg(unix)]
pub(crate) fn read_exact_at(file: &fs::File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
pub(crate) fn read_exact_at(file: &fs::File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Bytes read at a time by a [`Reader`].
const CHUNK: usize = 64 << 10;

/// Reads little-endian values one after the other and knows how many bytes remain.
pub(crate) struct Reader<'a> {
    bytes: &'a Bytes,
    format: &'static str,
    /// Position in the file of the byte after `buf`.
    next: u64,
    buf: Vec<u8>,
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a Bytes, format: &'static str) -> Reader<'a> {
        Reader { bytes, format, next: 0, buf: Vec::new(), at: 0 }
    }

    /// Position in the file.
    pub fn position(&self) -> u64 {
        self.next - (self.buf.len() - self.at) as u64
    }

    /// Bytes between the position and the end of the file.
    pub fn remaining(&self) -> u64 {
        self.bytes.len() - self.position()
    }

    pub fn invalid(&self, what: impl Into<String>) -> Error {
        Error::invalid(self.bytes.path(), self.format, what)
    }

    pub fn path(&self) -> &'a Path {
        self.bytes.path()
    }

    /// `count` things of at least `min_bytes` each must still fit, and be no more than `limit`; asked before
    /// anything is allocated for them.
    pub fn check(&self, what: &str, count: u64, min_bytes: u64, limit: u64) -> Result<usize> {
        if count > limit {
            return Err(Error::limit(self.path(), what, count, limit));
        }
        let remaining = self.remaining();
        match count.checked_mul(min_bytes) {
            Some(need) if need <= remaining => usize::try_from(count).map_err(|_| self.invalid(what)),
            _ => Err(self.invalid(format!(
                "{what} is {count} at byte {}, but only {remaining} bytes follow",
                self.position()
            ))),
        }
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8], what: &str) -> Result<()> {
        let remaining = self.remaining();
        if out.len() as u64 > remaining {
            let at = self.position();
            return Err(
                self.invalid(format!("it ends at byte {} inside {what} (byte {at})", self.bytes.len()))
            );
        }
        let mut done = 0;
        while done < out.len() {
            if self.at == self.buf.len() {
                let size = (CHUNK as u64).min(self.bytes.len() - self.next) as usize;
                self.buf.resize(size, 0);
                self.at = 0;
                self.bytes.read_at(self.next, &mut self.buf)?;
                self.next += size as u64;
            }
            let n = (out.len() - done).min(self.buf.len() - self.at);
            out[done..done + n].copy_from_slice(&self.buf[self.at..self.at + n]);
            self.at += n;
            done += n;
        }
        Ok(())
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out, what)?;
        Ok(out)
    }

    /// Passes over `size` bytes.
    pub fn skip(&mut self, size: u64, what: &str) -> Result<()> {
        let at = self.position();
        let to = self.bytes.span(at, size).ok_or_else(|| {
            self.invalid(format!("it ends at byte {} inside {what} (byte {at})", self.bytes.len()))
        })?;
        if to <= self.next {
            self.at = self.buf.len() - (self.next - to) as usize;
        } else {
            self.buf.clear();
            (self.next, self.at) = (to, 0);
        }
        Ok(())
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A string with a 64-bit length in front, of at most `limit` bytes.
    pub fn string(&mut self, what: &str, limit: u64) -> Result<String> {
        let at = self.position();
        let len = self.u64(what)?;
        if len > self.remaining() || len > limit {
            // Built only when it fails: this runs once for every token of a vocabulary.
            self.check(&format!("the length of {what}"), len, 1, limit)?;
        }
        let mut text = vec![0; len as usize];
        self.fill(&mut text, what)?;
        String::from_utf8(text).map_err(|e| {
            let shown = quote(&String::from_utf8_lossy(e.as_bytes()));
            self.invalid(format!("{what} at byte {at} is not UTF-8: {shown}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_by_position_and_refuses_to_pass_the_end() {
        let bytes = Bytes::from_memory("here", &b"0123456789"[..]);
        let mut buf = [0; 4];
        bytes.read_at(6, &mut buf).unwrap();
        assert_eq!(&buf, b"6789");
        assert!(bytes.read_at(7, &mut buf).is_err());
        assert!(bytes.read_at(u64::MAX, &mut buf).is_err());
        assert_eq!(bytes.span(u64::MAX, 2), None);
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, [1u8; 100]).unwrap();
        let bytes = Bytes::open(&path).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        let message = bytes.read_at(0, &mut [0; 100]).unwrap_err().to_string();
        assert!(message.contains("shorter") && message.contains("100"), "{message}");
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let write =
            |f: &dyn Fn(&mut fs::File)| f(&mut fs::OpenOptions::new().write(true).open(&path).unwrap());
        let changed = |bytes: &Bytes| bytes.check_unchanged().unwrap_err().to_string();
        fs::write(&path, [1u8; 100]).unwrap();
        let bytes = Bytes::open(&path).unwrap();
        bytes.check_unchanged().unwrap();
        write(&|f| f.set_len(120).unwrap());
        assert!(changed(&bytes).contains("grew from 100 to 120"), "{}", changed(&bytes));
        write(&|f| f.set_len(7).unwrap());
        assert!(changed(&bytes).contains("cut from 100 to 7"), "{}", changed(&bytes));
        write(&|f| {
            f.set_len(100).unwrap();
            f.set_modified(UNIX_EPOCH + std::time::Duration::from_millis(1500)).unwrap();
        });
        assert!(
            changed(&bytes).contains("written to") && changed(&bytes).contains("1.500 s"),
            "{}",
            changed(&bytes)
        );
        // Another file of this name is no matter.
        let bytes = Bytes::open(&path).unwrap();
        fs::write(dir.path().join("g"), [2u8; 5]).unwrap();
        fs::rename(dir.path().join("g"), &path).unwrap();
        bytes.check_unchanged().unwrap();
        Bytes::from_memory("m", &b"1"[..]).check_unchanged().unwrap();
    }

    #[test]
    fn pointers_and_web_pages_are_named() {
        for (text, word) in [
            ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            ("<!DOCTYPE html>", "web page"),
        ] {
            let error = Bytes::from_memory("m", text.as_bytes()).refuse_stand_ins().unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        Bytes::from_memory("m", &b"GGUF"[..]).refuse_stand_ins().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        if made.is_ok_and(|status| status.success()) {
            assert!(Bytes::open(&path).unwrap_err().to_string().contains("not a regular file"));
        }
    }

    #[test]
    fn folders_are_not_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Bytes::open(dir.path()).unwrap_err().to_string().contains("folder"));
    }
}
