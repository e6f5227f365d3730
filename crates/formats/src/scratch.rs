//! A file for what a process cannot hold in memory: read and written at offsets, and gone with the process.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::atomic;
use crate::bytes::read_exact_at;
use crate::error::{Error, Result};

/// An open file that nobody else sees. Where a system lets an open file go from its folder (Unix), it has no name any
/// more, so nothing stays behind whatever ends the process; elsewhere it is removed when this is dropped.
#[derive(Debug)]
pub struct ScratchFile {
    file: File,
    path: PathBuf,
}

impl ScratchFile {
    /// Makes an empty file `NAME-PROCESS-NUMBER.tmp` in a folder.
    ///
    /// # Errors
    /// If the folder is not there, cannot be written, or its disk refuses.
    pub fn create(folder: &Path, name: &str) -> Result<ScratchFile> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{name}-{}-{number}.tmp", std::process::id()));
            match File::options().read(true).write(true).create_new(true).open(&path) {
                // An earlier process of the same number may have left one.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(&path, "create")(e)),
                Ok(file) => {
                    // A disk that keeps the name of an open file: it is removed at the end.
                    let _ = cfg!(unix).then(|| std::fs::remove_file(&path));
                    return Ok(ScratchFile { file, path });
                }
            }
        }
    }

    /// The name that it was made under, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it `bytes` long, all zeros, and has the disk set them aside where the system can do that: what is
    /// written within later cannot fail for want of space.
    ///
    /// # Errors
    /// If so much is not free.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        atomic::check_space(self.path.parent().unwrap_or(Path::new(".")), bytes)?;
        self.file.set_len(bytes).map_err(Error::io(&self.path, "make room for"))?;
        set_aside(&self.file, bytes).map_err(Error::io(&self.path, "make room for"))
    }

    /// Fills `out` from an offset.
    ///
    /// # Errors
    /// If the disk refuses, or the file ends before.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + out.len() as u64;
        let cut = |e: io::Error| match e.kind() {
            kind @ io::ErrorKind::UnexpectedEof => io::Error::new(
                kind,
                format!("it ends before byte {end}: something cut it while it was in use"),
            ),
            _ => e,
        };
        let read = read_exact_at(&self.file, out, offset);
        read.map_err(cut).map_err(Error::io(&self.path, "read back what was put aside in"))
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// If the disk is full or refuses.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        write_all_at(&self.file, bytes, offset).map_err(Error::io(&self.path, "write"))
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        // On Unix it has no name any more, and another's file may bear it.
        if !cfg!(unix) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Systems and disks that cannot set space aside find out when they are full.
#[cfg(target_os = "linux")]
fn set_aside(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    if bytes == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn set_aside(_file: &File, _bytes: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = ScratchFile::create(dir.path(), "pages").unwrap();
        file.reserve(1000).unwrap();
        file.write_at(b"abc", 500).unwrap();
        let mut out = [9; 5];
        file.read_at(&mut out, 499).unwrap();
        assert_eq!(&out, b"\0abc\0");
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_cut_and_a_disk_that_is_too_small_are_told_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = ScratchFile::create(dir.path(), "pages").unwrap();
        file.reserve(1000).unwrap();
        file.file.set_len(100).unwrap();
        let message = file.read_at(&mut [0; 64], 64).unwrap_err().to_string();
        assert!(message.contains("pages-") && message.contains("ends before byte 128"), "{message}");
        if let Some(free) = atomic::free_space(dir.path()) {
            let error = file.reserve(free.saturating_mul(2)).unwrap_err();
            assert!(error.is_io(), "{error}");
        }
        let nowhere = ScratchFile::create(&dir.path().join("none"), "pages").unwrap_err().to_string();
        assert!(nowhere.contains("none"), "{nowhere}");
    }
}
