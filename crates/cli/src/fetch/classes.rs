//! Writes the names of classes that packages keep elsewhere, one a line, class 0 first, where readers look for them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use retune_formats::labels;

/// As the data set's own description lists them.
const FASHION: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// `classes.txt` beside the IDX files.
pub fn write_fashion_mnist(folder: &Path) -> Result<()> {
    Ok(labels::write(&folder.join("classes.txt"), &FASHION)?)
}

/// `classes.txt` out of `class_indices.json`, `{"name": index}`.
pub fn write_indices(folder: &Path) -> Result<()> {
    let path = folder.join("class_indices.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let indices: BTreeMap<String, usize> =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let mut names: Vec<(usize, String)> = indices.into_iter().map(|(name, index)| (index, name)).collect();
    names.sort();
    if names.iter().enumerate().any(|(i, (index, _))| i != *index) {
        bail!("{}: the classes are not numbered from 0 without gaps", path.display());
    }
    let names: Vec<String> = names.into_iter().map(|(_, name)| name).collect();
    Ok(labels::write(&folder.join("classes.txt"), &names)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("class_indices.json");
        fs::write(&path, r#"{"b": 0, "a": 1}"#).unwrap();
        write_indices(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("classes.txt")).unwrap(), "b\na\n");
        fs::write(&path, r#"{"b": 0, "a": 2}"#).unwrap();
        assert!(write_indices(dir.path()).unwrap_err().to_string().contains("without gaps"));
        write_fashion_mnist(dir.path()).unwrap();
        assert_eq!(labels::read(&dir.path().join("classes.txt")).unwrap().len(), 10);
    }
}
