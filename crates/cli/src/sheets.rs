//! Pictures that the program writes for people.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use retune_media::pictures::Picture;

/// Writes a picture into a folder under a name that is free: none replaces another, nor what was there before.
pub fn write_beside(picture: &Picture, folder: &Path, stem: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let free = |n: usize| {
        let name = if n == 0 { format!("{stem}.png") } else { format!("{stem}-{n}.png") };
        folder.join(name)
    };
    let to = (0..).map(free).find(|path| !path.exists()).context("no free name")?;
    picture.write(&to)?;
    Ok(to)
}
