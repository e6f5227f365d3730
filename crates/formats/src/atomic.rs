//! Files and folders that are either whole or absent, whatever happens in between, and that stay after a power cut.
//!
//! A file: write a sibling, fsync it, rename it over the old one, fsync the folder. A folder: fsync every file in it,
//! rename it, fsync its parent. After a failed fsync nothing is retried on the same file: the kernel may have dropped
//! the data and would then report success.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// The few calls that durable writing needs; tests put a disk in their place that loses what was not synced.
pub trait Disk {
    /// Creates a file that must not exist yet.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Moves a file or folder to a new name on the same disk, over what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a file that was written before durable.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Bytes free for us on the disk of this folder, if that can be asked.
    fn free(&self, folder: &Path) -> Option<u64>;
}

/// A file being written.
pub trait DiskFile: Write {
    /// Makes the contents durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// The disk of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Real;

impl DiskFile for fs::File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Disk for Real {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(fs::OpenOptions::new().write(true).create_new(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // Only Unix lets a folder be opened and synced; elsewhere the rename itself is all there is.
        if cfg!(unix) { fs::File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    #[cfg(unix)]
    fn free(&self, folder: &Path) -> Option<u64> {
        let stat = rustix::fs::statvfs(folder).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }

    #[cfg(not(unix))]
    fn free(&self, _folder: &Path) -> Option<u64> {
        None
    }
}

/// Writes `path` through `write`, atomically and durably. On an error the old file (if any) is untouched and
/// nothing is left behind.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    write_file_on(&Real, path, write)
}

/// [`write_file`] for bytes in memory.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, |out| out.write_all(bytes).map_err(Error::io(path, "write")))
}

/// [`write_file`] on a given disk.
pub fn write_file_on(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let temporary = sibling(path)?;
    let file = disk.create(&temporary).map_err(Error::io(path, "create a file beside it to write"))?;
    let done = fill(file, path, write)
        .and_then(|()| keep_mode(path, &temporary).map_err(Error::io(path, "set the mode of")))
        .and_then(|()| disk.rename(&temporary, path).map_err(Error::io(path, "rename the new file to")));
    if let Err(e) = done {
        // The first error is the one to report; the file may not even be there any more.
        let _ = disk.remove(&temporary);
        return Err(e);
    }
    disk.sync_dir(folder_of(path)).map_err(Error::io(path, "sync the folder of"))
}

fn fill(
    mut file: Box<dyn DiskFile>,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut out = BufWriter::with_capacity(256 << 10, &mut file);
    // A failed write is not tried again when the buffer is dropped: what is there is thrown away anyhow.
    let written = write(&mut out).and_then(|()| out.flush().map_err(Error::io(path, "write")));
    let _ = out.into_parts();
    written?;
    file.sync().map_err(Error::io(path, "sync"))
}

/// A new file gets the mode that the umask gives; one that replaces another keeps that one's.
fn keep_mode(old: &Path, new: &Path) -> io::Result<()> {
    match fs::metadata(old) {
        Ok(meta) if meta.is_file() => match fs::set_permissions(new, meta.permissions()) {
            // The file of a test disk is not there.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        },
        _ => Ok(()),
    }
}

/// Makes a finished folder appear under its final name: every file in it and the folder are synced, then it is
/// renamed, then the parent is synced. `done` must not exist or be an empty folder.
pub fn publish_dir(temporary: &Path, done: &Path) -> Result<()> {
    publish_dir_on(&Real, temporary, done)
}

/// [`publish_dir`] on a given disk (whose files are listed by the real one).
pub fn publish_dir_on(disk: &dyn Disk, temporary: &Path, done: &Path) -> Result<()> {
    sync_tree(disk, temporary, 0)?;
    disk.rename(temporary, done).map_err(Error::io(done, "rename the finished folder to"))?;
    disk.sync_dir(folder_of(done)).map_err(Error::io(done, "sync the folder of"))
}

fn sync_tree(disk: &dyn Disk, folder: &Path, depth: usize) -> Result<()> {
    const DEPTH: usize = 8;
    if depth > DEPTH {
        return Err(Error::limit(folder, "the depth of folders", depth as u64, DEPTH as u64));
    }
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io(folder, "list"))?);
        if kind.is_dir() {
            sync_tree(disk, &path, depth + 1)?;
        } else if kind.is_file() {
            disk.sync_file(&path).map_err(Error::io(&path, "sync"))?;
        }
    }
    disk.sync_dir(folder).map_err(Error::io(folder, "sync"))
}

/// An error if fewer than `need` bytes are free on the disk of `folder`; no answer from the system counts as enough.
pub fn check_space(folder: &Path, need: u64) -> Result<()> {
    check_space_on(&Real, folder, need)
}

/// [`check_space`] on a given disk.
pub fn check_space_on(disk: &dyn Disk, folder: &Path, need: u64) -> Result<()> {
    match disk.free(folder) {
        Some(free) if free < need => Err(Error::NoSpace { path: folder.to_path_buf(), need, free }),
        _ => Ok(()),
    }
}

/// Bytes free on the disk of `folder`, if the system says.
pub fn free_space(folder: &Path) -> Option<u64> {
    Real.free(folder)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name beside `path` that nobody else uses.
fn sibling(path: &Path) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(Error::unsupported(path, "this is not the name of a file", "give a file name to write"));
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_bytes(&path, b"old").unwrap();
        let error = write_file(&path, |out| {
            out.write_all(b"new").unwrap();
            Err(Error::Write { path: path.clone(), what: "no".into() })
        });
        assert!(error.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.json"]);
        write_bytes(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[cfg(unix)]
    #[test]
    fn the_mode_is_the_users_not_the_temporary_files() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (plain, path) = (dir.path().join("plain"), dir.path().join("a"));
        fs::write(&plain, b"").unwrap();
        write_bytes(&path, b"1").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write_bytes(&path, b"2").unwrap();
        assert_eq!(mode(&path) & 0o777, 0o640);
    }

    #[test]
    fn folders_are_published_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (tmp, done) = (dir.path().join("step.tmp"), dir.path().join("step"));
        fs::create_dir_all(tmp.join("in")).unwrap();
        fs::write(tmp.join("in/a"), b"1").unwrap();
        publish_dir(&tmp, &done).unwrap();
        assert_eq!(fs::read(done.join("in/a")).unwrap(), b"1");
        assert_eq!(names(dir.path()), ["step"]);
    }

    #[test]
    fn space_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        check_space(dir.path(), 1).unwrap();
        if free_space(dir.path()).is_some() {
            let message = check_space(dir.path(), u64::MAX).unwrap_err().to_string();
            assert!(message.contains("free some space"), "{message}");
        }
    }
}
