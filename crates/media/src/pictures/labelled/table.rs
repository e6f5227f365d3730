//! A table of paths and labels: `.csv`, `.tsv`, `.json`, `.jsonl`; paths are relative to the table's folder.

use std::path::Path;

use retune_formats::Error;
use retune_formats::records::Records;
use serde_json::Value;

use super::super::limits;
use super::super::problems::Problems;
use super::{Labelled, Named, Source};

/// Names of the column of paths, in the order in which they are looked for ...
pub const PATHS: &[&str] = &["path", "image", "file", "image_path", "file_name", "filename", "img"];
/// ... and of the column of labels.
pub const LABELS: &[&str] = &["label", "class", "category", "target", "class_name", "label_name"];

pub fn open(path: &Path) -> Result<Labelled, Problems> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut named, mut problems) = (Vec::new(), Problems::default());
    for record in Records::open(path)? {
        let record = record?;
        if named.len() >= limits::PICTURES {
            return Err(Error::limit(
                path,
                "the number of rows",
                named.len() as u64 + 1,
                limits::PICTURES as u64,
            )
            .into());
        }
        match row(&record.value) {
            Ok((file, label)) => {
                let file = folder.join(file);
                if !file.is_file() {
                    problems.line(path, record.line, format!("there is no file {}", file.display()));
                }
                let origin = format!("{}:{}", path.display(), record.line);
                named.push(Named { source: Source::File(file), label, origin });
            }
            Err(what) => problems.line(path, record.line, what),
        }
    }
    if named.is_empty() && problems.list.is_empty() {
        return Err(
            Error::missing(path, "there are no rows", "a row for each picture, with path and label").into()
        );
    }
    Ok(Labelled::new(problems.or(named)?, &[], Vec::new())?)
}

/// The path and the label of a row.
fn row(value: &Value) -> Result<(String, String), String> {
    let file = column(value, PATHS, "the picture's file")?;
    let label = column(value, LABELS, "the label")?;
    if file.is_empty() || label.is_empty() {
        return Err(format!("the {} is empty", if file.is_empty() { "path" } else { "label" }));
    }
    Ok((file, label))
}

/// The first of these columns that a row has, as text; case does not matter.
pub fn column(value: &Value, names: &[&str], what: &str) -> Result<String, String> {
    let Value::Object(row) = value else { return Err("a row must be an object".into()) };
    let found = names.iter().find_map(|name| row.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    match found {
        Some((_, Value::String(text))) => Ok(text.trim().to_string()),
        Some((_, Value::Number(number))) => Ok(number.to_string()),
        Some((_, Value::Bool(flag))) => Ok(flag.to_string()),
        Some((key, _)) => Err(format!("`{key}` must be a text or a number")),
        None => {
            let keys: Vec<String> = row.keys().take(12).map(|key| format!("`{key}`")).collect();
            Err(format!("no column of {what} ({}); the columns are {}", names.join(", "), keys.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::png;
    use super::*;
    use std::fs;

    #[test]
    fn rows_of_every_kind_of_table() {
        let dir = tempfile::tempdir().unwrap();
        png(&dir.path().join("p/a.png"), 1);
        png(&dir.path().join("p/b.png"), 2);
        for (name, text) in [
            ("t.csv", "label,Path\ncat,p/a.png\ndog,p/b.png\n"),
            ("t.tsv", "image\tclass\n./p/a.png\tcat\np/b.png\tdog\n"),
            (
                "t.jsonl",
                "{\"file\":\"p/a.png\",\"category\":\"cat\"}\n\n{\"file\":\"p/b.png\",\"label\":\"dog\"}\n",
            ),
        ] {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            let set = Labelled::open(&path).unwrap().train;
            assert_eq!((set.classes.join(" "), set.counts()), ("cat dog".into(), vec![1, 1]));
            assert_eq!(set.read(1).unwrap().pixel(0, 0), [2; 3]);
            assert!(
                set.examples[0]
                    .origin
                    .ends_with(&format!("{name}:{}", if name.ends_with('l') { 1 } else { 2 }))
            );
        }
    }

    #[test]
    fn a_folder_of_pictures_with_a_table_for_each_part() {
        let dir = tempfile::tempdir().unwrap();
        png(&dir.path().join("a.png"), 1);
        fs::write(dir.path().join("train.csv"), "path,label\na.png,x\n").unwrap();
        fs::write(dir.path().join("val.csv"), "path,label\na.png,x\n").unwrap();
        let parts = Labelled::open(dir.path()).unwrap();
        assert_eq!((parts.train.len(), parts.val.unwrap().len()), (1, 1));
    }

    #[test]
    fn all_problems_at_once_with_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        png(&dir.path().join("a.png"), 1);
        let path = dir.path().join("t.csv");
        fs::write(&path, "path,label\na.png,x\nmissing.png,x\na.png,\nalso.png,y\n").unwrap();
        let message = Labelled::open(&path).unwrap_err().to_string();
        for part in ["t.csv:3: there is no file", "t.csv:4: the label is empty", "t.csv:5:", "also.png"] {
            assert!(message.contains(part), "{message}");
        }
        fs::write(&path, "pth,label\na.png,x\n").unwrap();
        let message = Labelled::open(&path).unwrap_err().to_string();
        assert!(message.contains("t.csv:2") && message.contains("`pth`"), "{message}");
        fs::write(&path, "path,label\n").unwrap();
        assert!(Labelled::open(&path).unwrap_err().to_string().contains("no rows"));
        let many = "path,label\n".to_string() + &"no.png,x\n".repeat(50);
        fs::write(&path, many).unwrap();
        let message = Labelled::open(&path).unwrap_err().to_string();
        assert!(message.ends_with("and 30 problems more"), "{message}");
    }
}
