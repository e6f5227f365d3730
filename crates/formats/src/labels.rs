//! A file of labels (`.names`, `labels.txt`): the name of a class on each line, class 0 on the first.

use std::path::Path;

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::{atomic, limits};

/// Reads the names. Blank lines at the end are no classes; two classes may have one name.
///
/// # Errors
/// A blank line between names, a name that is too long, no name at all.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let text = Bytes::open(path)?.read_text("file of labels", limits::LABELS_BYTES)?;
    parse(path, &text)
}

/// [`read`] for a text; `path` is for messages.
///
/// # Errors
/// Those of [`read`].
pub fn parse(path: &Path, text: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (i, line) in text.trim_start_matches('\u{feff}').trim_end().lines().enumerate() {
        let bad = |what: String| Error::Record { path: path.to_path_buf(), line: i + 1, what };
        let name = line.trim();
        if name.is_empty() {
            return Err(bad(format!("the line is empty: class {i} has no name")));
        }
        if name.len() as u64 > limits::NAME_BYTES {
            return Err(bad(format!(
                "the name has {} bytes, the limit is {}",
                name.len(),
                limits::NAME_BYTES
            )));
        }
        if i >= limits::LABELS {
            return Err(bad(format!("more than {} names", limits::LABELS)));
        }
        names.push(name.to_string());
    }
    if names.is_empty() {
        return Err(Error::invalid(path, "file of labels", "there is no name in it"));
    }
    Ok(names)
}

/// Writes names, one a line.
///
/// # Errors
/// A name that would not be read back as it is; a disk that is full.
pub fn write(path: &Path, names: &[impl AsRef<str>]) -> Result<()> {
    let text: String = names.iter().map(|name| format!("{}\n", name.as_ref())).collect();
    let again = parse(path, &text)?;
    if !again.iter().map(String::as_str).eq(names.iter().map(AsRef::as_ref)) {
        let what = "a name is blank at its ends or has a line break".to_string();
        return Err(Error::Write { path: path.to_path_buf(), what });
    }
    atomic::write_bytes(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lines() {
        let path = Path::new("coco.names");
        assert_eq!(
            parse(path, "\u{feff}person\r\n traffic light \n\n\n").unwrap(),
            ["person", "traffic light"]
        );
        for (text, word) in
            [("a\n\nb\n", "coco.names:2: the line is empty: class 1"), ("\n \n", "no name in it")]
        {
            let message = parse(path, text).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        assert!(parse(path, &"x".repeat(2000)).unwrap_err().to_string().contains("2000 bytes"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.names");
        write(&path, &["cat", "big dog"]).unwrap();
        assert_eq!(read(&path).unwrap(), ["cat", "big dog"]);
        assert!(write(&path, &["cat", " dog"]).is_err());
        assert!(write(&path, &["cat\ndog"]).is_err());
    }
}
