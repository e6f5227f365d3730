//! Power cuts: the calls of an atomic write are logged, then every prefix of the log is replayed on a disk that forgets
//! what was not synced. The file must be the old one or the new one, whole.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use retune_formats::Error;
use retune_formats::atomic::{Disk, DiskFile, check_space_on, write_file_on};

#[derive(Clone, Debug)]
enum Op {
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    SyncDir,
    Remove(PathBuf),
}

/// Logs the calls; the call of number `fails` returns an error.
#[derive(Default)]
struct Log {
    ops: Rc<RefCell<Vec<Op>>>,
    fails: Option<usize>,
}

impl Log {
    fn call(&self, op: Op) -> io::Result<()> {
        let mut ops = self.ops.borrow_mut();
        ops.push(op);
        if self.fails == Some(ops.len() - 1) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

struct Open {
    log: Log,
    path: PathBuf,
}

impl Write for Open {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.log.call(Op::Write(self.path.clone(), buf.to_vec()))?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for Open {
    fn sync(&mut self) -> io::Result<()> {
        self.log.call(Op::Sync(self.path.clone()))
    }
}

impl Disk for Log {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.call(Op::Create(path.into()))?;
        let log = Log { ops: self.ops.clone(), fails: self.fails };
        Ok(Box::new(Open { log, path: path.into() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Op::Rename(from.into(), to.into()))
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        self.call(Op::SyncDir)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.call(Op::Sync(path.into()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(Op::Remove(path.into()))
    }

    fn free(&self, _folder: &Path) -> Option<u64> {
        Some(1000)
    }
}

/// What is on the disk after a cut: of each name the content that was synced, with the names that had changed since
/// the last sync of the folder either changed or not.
fn after_cut(ops: &[Op], old: &[(PathBuf, Vec<u8>)], names_survive: bool) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut contents: Vec<(Vec<u8>, Vec<u8>)> = old.iter().map(|(_, c)| (c.clone(), c.clone())).collect();
    let mut names: BTreeMap<PathBuf, usize> =
        old.iter().enumerate().map(|(i, (p, _))| (p.clone(), i)).collect();
    let mut durable = names.clone();
    for op in ops {
        match op {
            Op::Create(path) => {
                names.insert(path.clone(), contents.len());
                contents.push(Default::default());
            }
            Op::Write(path, bytes) => contents[names[path]].0.extend(bytes),
            Op::Sync(path) => {
                let content = &mut contents[names[path]];
                content.1 = content.0.clone();
            }
            Op::Rename(from, to) => {
                let file = names.remove(from).unwrap();
                names.insert(to.clone(), file);
            }
            Op::SyncDir => durable = names.clone(),
            Op::Remove(path) => drop(names.remove(path)),
        }
    }
    let names = if names_survive { names } else { durable };
    names.into_iter().map(|(path, i)| (path, contents[i].1.clone())).collect()
}

const PATH: &str = "/nowhere/file";
const OLD: &[u8] = b"old content";

fn write(disk: &Log) -> retune_formats::Result<()> {
    write_file_on(disk, Path::new(PATH), |out| {
        // More than the writer's buffer, so that there are several writes.
        for i in 0..3u8 {
            out.write_all(&vec![i; 200_000]).map_err(Error::io(Path::new(PATH), "write"))?;
        }
        Ok(())
    })
}

fn new() -> Vec<u8> {
    (0..3u8).flat_map(|i| vec![i; 200_000]).collect()
}

#[test]
fn after_any_cut_the_file_is_old_or_new() {
    let disk = Log::default();
    write(&disk).unwrap();
    let ops = disk.ops.borrow().clone();
    assert!(ops.len() >= 6, "{}", ops.len());
    let old = [(PathBuf::from(PATH), OLD.to_vec())];
    for cut in 0..=ops.len() {
        for names_survive in [false, true] {
            let content = after_cut(&ops[..cut], &old, names_survive).remove(Path::new(PATH)).unwrap();
            assert!(content == OLD || content == new(), "cut after {cut} of {} calls", ops.len());
            if cut == ops.len() {
                assert!(content == new(), "a finished write must survive");
            }
        }
    }
}

#[test]
fn a_writer_without_fsync_would_be_caught() {
    let disk = Log::default();
    write(&disk).unwrap();
    let ops: Vec<_> = disk.ops.borrow().iter().filter(|op| !matches!(op, Op::Sync(_))).cloned().collect();
    let old = [(PathBuf::from(PATH), OLD.to_vec())];
    let broken = (0..=ops.len()).any(|cut| {
        let content = after_cut(&ops[..cut], &old, true).remove(Path::new(PATH)).unwrap();
        content != OLD && content != new()
    });
    assert!(broken);
}

#[test]
fn an_error_of_any_call_is_reported_and_leaves_old_or_new() {
    let calls = {
        let disk = Log::default();
        write(&disk).unwrap();
        disk.ops.borrow().len()
    };
    for fails in 0..calls {
        let disk = Log { fails: Some(fails), ..Log::default() };
        let error = write(&disk).unwrap_err();
        assert!(error.is_io() && error.to_string().starts_with(PATH), "{error}");
        let ops = disk.ops.borrow().clone();
        // The failed call did nothing.
        let done: Vec<_> =
            ops.iter().enumerate().filter(|(i, _)| *i != fails).map(|(_, op)| op.clone()).collect();
        let old = [(PathBuf::from(PATH), OLD.to_vec())];
        let mut left = after_cut(&done, &old, true);
        let content = left.remove(Path::new(PATH)).unwrap();
        assert!(content == OLD || content == new(), "call {fails} fails");
        assert!(left.is_empty(), "call {fails} fails: {:?} is left", left.keys());
        let syncs = ops.iter().filter(|op| matches!(op, Op::Sync(_))).count();
        assert!(syncs <= 1, "a failed sync is not tried again");
    }
}

#[test]
fn too_little_space_is_said_before_writing() {
    let error = check_space_on(&Log::default(), Path::new("/nowhere"), 1001).unwrap_err().to_string();
    assert!(error.contains("1001 bytes") && error.contains("1000 are free"), "{error}");
    check_space_on(&Log::default(), Path::new("/nowhere"), 1000).unwrap();
}
