//! What tells one data set from another: a file by its bytes; a folder by the names and sizes of its files, and the bytes of those that hold labels.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::hash;
use crate::limits;

/// Endings of the files whose bytes count: labels, lists, tables. Pictures and sound count by name and size: there may be many gigabytes of them.
const READ: &[&str] = &["txt", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "names"];
/// How deep folders lie in each other.
const DEPTH: usize = 16;

/// The BLAKE3 hash of a file's bytes, or of a folder's files: 64 hexadecimal digits. Hidden names are passed over, and the order in which a disk lists
/// names does not matter.
///
/// # Errors
/// If something cannot be read, or there are too many files or folders.
pub fn data(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return hash::file(path);
    }
    let mut lines = Vec::new();
    list(path, "", DEPTH, &mut lines)?;
    lines.sort_unstable();
    Ok(hash::bytes(lines.concat().as_bytes()))
}

/// One line for each file: name within the data set, size, hash of labels.
fn list(folder: &Path, front: &str, depth: usize, lines: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        // Two names that differ in what is no text would be one: the escapes keep them apart.
        let name = format!("{:?}", path.file_name().unwrap_or_default());
        if name.starts_with("\".") {
            continue;
        }
        let about = fs::metadata(&path).map_err(Error::io(&path, "look at"))?;
        if about.is_dir() {
            if depth == 0 {
                return Err(Error::unsupported(
                    &path,
                    format!("folders lie more than {DEPTH} deep"),
                    "is there a link to a folder above?",
                ));
            }
            list(&path, &format!("{front}{name}/"), depth - 1, lines)?;
            continue;
        }
        let read = path.extension().is_some_and(|e| READ.iter().any(|r| e.eq_ignore_ascii_case(r)));
        let labels = if read { hash::file(&path)? } else { String::new() };
        lines.push(format!("{front}{name} {} {labels}\n", about.len()));
        if lines.len() > limits::DATA_FILES {
            return Err(Error::limit(
                folder,
                "the number of files of a data set",
                lines.len() as u64,
                limits::DATA_FILES as u64,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sizes_and_labels_tell_folders_apart() {
        let kept = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, &str)]| {
            let folder = kept.path().join(name);
            for (file, text) in files {
                let path = folder.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            data(&folder).unwrap()
        };
        let (a, b) = (("cats/1.jpg", "abcd"), ("labels/1.txt", "0 0.5 0.5 1 1"));
        let first = make("first", &[a, b]);
        assert_eq!(first, make("other order, and a hidden file", &[b, a, (".DS_Store", "x")]));
        assert_eq!(first, make("pixels are not read", &[("cats/1.jpg", "abce"), b]));
        let others = [
            make("a size", &[("cats/1.jpg", "abc"), b]),
            make("a label", &[a, ("labels/1.txt", "1 0.5 0.5 1 1")]),
            make("a name", &[("cats/2.jpg", "abcd"), b]),
            make("a folder", &[("dogs/1.jpg", "abcd"), b]),
            make("one more", &[a, b, ("cats/2.jpg", "abcd")]),
        ];
        assert!(others.iter().all(|other| *other != first));
        let file = kept.path().join("first/cats/1.jpg");
        assert_eq!(data(&file).unwrap(), hash::file(&file).unwrap());
        let missing = data(&kept.path().join("missing")).unwrap_err().to_string();
        assert!(missing.contains("missing"), "{missing}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_above_ends() {
        let kept = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(kept.path(), kept.path().join("again")).unwrap();
        assert!(data(kept.path()).unwrap_err().to_string().contains("deep"));
    }
}
