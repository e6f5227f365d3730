//! Runs pip, npm or apt-get to download one archive into a folder. None of them runs the package's code: pip takes wheels
//! only (building a source package would run its setup.py), npm packs without scripts, apt-get only downloads.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::OnProgress;
use super::archives::{Archive, Client};

/// Downloads the archive below `work` and returns its file.
///
/// # Errors
/// No such client on PATH, no network, no such package: one sentence each.
pub fn download(archive: &Archive, work: &Path, on_progress: OnProgress) -> Result<PathBuf> {
    let target = work.join("download");
    let scratch = work.join("scratch");
    std::fs::create_dir_all(&target)?;
    std::fs::create_dir_all(&scratch)?;
    let log = work.join("client.log");
    let mut child = start(archive, &target, &scratch, &log)?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        on_progress(bytes_below(work).min(archive.bytes));
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        bail!(
            "cannot download {} {} with {}: {}; is this machine online?",
            archive.package,
            archive.version,
            archive.client.name(),
            last_error(&log)
        );
    }
    on_progress(archive.bytes);
    the_only_file(&target)
        .with_context(|| format!("{} ended without leaving {}", archive.client.name(), archive.package))
}

/// Starts the first client of this kind that there is.
fn start(archive: &Archive, target: &Path, scratch: &Path, log: &Path) -> Result<Child> {
    let programs: &[&[&str]] = match archive.client {
        Client::Pip => &[&["pip"], &["pip3"], &["python3", "-m", "pip"]],
        Client::Npm => &[&["npm"]],
        Client::Apt => &[&["apt-get"]],
    };
    for program in programs {
        let log = std::fs::File::create(log)?;
        let mut command = Command::new(program[0]);
        command
            .args(&program[1..])
            .args(arguments(archive, target))
            .current_dir(target)
            // Here the clients put their half-downloaded files, where we see them grow and they go away with us.
            .env("TMPDIR", scratch)
            .env("npm_config_cache", scratch)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot start {}", program.join(" "))),
        }
    }
    bail!(
        "{} comes from {}, but there is no {} on this machine: install it and try again",
        archive.name,
        archive.client.name(),
        programs.iter().map(|program| program.join(" ")).collect::<Vec<_>>().join(" or ")
    )
}

fn arguments(archive: &Archive, target: &Path) -> Vec<String> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let Archive { package, version, .. } = archive;
    match archive.client {
        Client::Pip => {
            let mut all = words(
                "download --no-deps --only-binary :all: --no-input --no-cache-dir --retries 1 --timeout 20",
            );
            all.extend(words("--disable-pip-version-check --progress-bar off --dest"));
            all.extend([target.display().to_string(), format!("{package}=={version}")]);
            all
        }
        Client::Npm => {
            let mut all = words(
                "pack --ignore-scripts --silent --fetch-retries 1 --fetch-timeout 20000 --pack-destination",
            );
            all.extend([target.display().to_string(), format!("{package}@{version}")]);
            all
        }
        Client::Apt => {
            let mut all = words("-o Acquire::Retries=1 -o APT::Sandbox::User=root download");
            all.push(format!("{package}={version}"));
            all
        }
    }
}

/// What the client complained about, in one line.
fn last_error(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines()
        .find(|line| line.starts_with("ERROR:") || line.starts_with("E:") || line.contains("npm error"));
    let line = line.or_else(|| lines().next_back()).unwrap_or("it gave no reason");
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn the_only_file(folder: &Path) -> Result<PathBuf> {
    let files = super::files_below(folder)?;
    match files.as_slice() {
        [file] => Ok(file.clone()),
        _ => bail!("{} files where one was expected", files.len()),
    }
}

/// Bytes on disk below a folder that others are writing to.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => bytes_below(&entry.path()),
            Ok(data) if data.is_file() => data.len(),
            _ => 0,
        })
        .sum()
}
