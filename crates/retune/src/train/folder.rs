//! The folder of a run: one process at a time, and the checkpoints in it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

/// Name of the folder of checkpoints within a run's folder.
pub const CHECKPOINTS: &str = "checkpoints";
const LOCK: &str = ".lock";
const PREFIX: &str = "step-";

/// Whether a run begins or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From the first step; refused if the folder holds checkpoints.
    New,
    /// From the newest whole checkpoint; from the first step if there is none yet.
    Resume,
}

/// A run's folder, locked for this process until dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    start: Start,
    /// What the numbers depend on besides the loop's settings (model, data, method), as key and value: a run that is
    /// resumed must have the same.
    pub identity: BTreeMap<String, String>,
    /// The complete run file; a copy goes into every checkpoint.
    pub run_file: String,
    _lock: File,
}

impl RunFolder {
    /// Makes the folder if need be, and locks it.
    ///
    /// # Errors
    /// If another process holds it, if a new run would mix with an earlier run's checkpoints, or if the disk refuses.
    pub fn open(
        path: &Path,
        start: Start,
        identity: BTreeMap<String, String>,
        run_file: String,
    ) -> Result<RunFolder> {
        let checkpoints = path.join(CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints, "create"))?;
        let lock = lock(path, &checkpoints.join(LOCK))?;
        let folder = RunFolder { path: path.to_path_buf(), start, identity, run_file, _lock: lock };
        let found = folder.checkpoints()?;
        if let (Start::New, Some((_, newest))) = (start, found.last()) {
            let newest = newest.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(Error::HasCheckpoints { path: path.to_path_buf(), newest });
        }
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn start(&self) -> Start {
        self.start
    }

    /// Where the checkpoints lie.
    pub fn checkpoint_folder(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The folder of the checkpoint after `step` steps.
    pub fn checkpoint_path(&self, step: u64) -> PathBuf {
        self.checkpoint_folder().join(format!("{PREFIX}{step:08}"))
    }

    /// All checkpoints (whole or not) by their step, oldest first. Unfinished ones (`.tmp`) are none.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        list(&self.checkpoint_folder())
    }
}

/// All checkpoints in a `checkpoints` folder, oldest first.
pub(crate) fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).unwrap_or("");
        let is_step = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit());
        if let (true, Ok(step)) = (is_step, digits.parse()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// An advisory lock of the operating system: it goes with the process, however that ends, so it is never stale.
fn lock(folder: &Path, path: &Path) -> Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::io(path, "open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The message is good enough without the number.
            let _ = (&mut file).take(20).read_to_string(&mut pid);
            let pid = pid.trim();
            let known = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
            let holder = if known { format!("process {pid}") } else { "another process".into() };
            return Err(Error::Busy { path: folder.to_path_buf(), holder });
        }
        // Some network disks know no locks: better to train unlocked than not at all.
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
        Err(TryLockError::Error(e)) => return Err(Error::io(path, "lock")(e)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(Error::io(path, "write"))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, start: Start) -> Result<RunFolder> {
        RunFolder::open(path, start, BTreeMap::new(), String::new())
    }

    #[test]
    fn a_second_run_in_the_same_folder_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), Start::New).unwrap();
        let message = open(dir.path(), Start::New).unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        drop(first);
        open(dir.path(), Start::New).unwrap();
    }

    #[test]
    fn a_new_run_does_not_mix_with_old_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("checkpoints/step-00000012")).unwrap();
        fs::create_dir_all(dir.path().join("checkpoints/step-00000014.tmp")).unwrap();
        let message = open(dir.path(), Start::New).unwrap_err().to_string();
        assert!(message.contains("step-00000012"), "{message}");
        assert_eq!(open(dir.path(), Start::Resume).unwrap().checkpoints().unwrap().len(), 1);
    }
}
