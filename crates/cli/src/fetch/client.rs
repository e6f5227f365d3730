//! Runs pip, npm or apt-get to download one package into a folder. None of them runs the package's code: npm packs without
//! scripts, apt-get only downloads, and `pip download` takes wheels only. A source package it would build, which runs its
//! setup.py; there pip only finds the file and its own session loads it ([`SOURCE_PACKAGE`]).

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::OnProgress;
use super::archives::{Client, Package};

/// Downloads a package below `work` and returns its file. `on_progress` is told how many bytes have come.
///
/// # Errors
/// No such client on PATH, no network, no such package: one sentence each.
pub fn download(package: &Package, work: &Path, on_progress: OnProgress) -> Result<PathBuf> {
    let target = work.join("download");
    let scratch = work.join("scratch");
    std::fs::create_dir_all(&target)?;
    std::fs::create_dir_all(&scratch)?;
    let log = work.join("client.log");
    let mut child = start(package, &target, &scratch, &log)?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        on_progress(bytes_below(work).min(package.bytes));
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        bail!(
            "cannot download {} {} with {}: {}; is this machine online?",
            package.name,
            package.version,
            package.client.name(),
            last_error(&log)
        );
    }
    on_progress(package.bytes);
    the_only_file(&target)
        .with_context(|| format!("{} ended without leaving {}", package.client.name(), package.name))
}

/// Starts the first client of this kind that there is.
fn start(package: &Package, target: &Path, scratch: &Path, log: &Path) -> Result<Child> {
    let programs: &[&[&str]] = match package.client {
        Client::Pip => &[&["pip"], &["pip3"], &["python3", "-m", "pip"]],
        Client::PipSource => &[&["python3"], &["python"]],
        Client::Npm => &[&["npm"]],
        Client::Apt => &[&["apt-get"]],
    };
    for program in programs {
        let log = std::fs::File::create(log)?;
        let mut command = Command::new(program[0]);
        command
            .args(&program[1..])
            .args(arguments(package, target))
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
        package.name,
        package.client.name(),
        programs.iter().map(|program| program.join(" ")).collect::<Vec<_>>().join(" or ")
    )
}

/// Has pip find a source package with the user's own settings, and loads the file with pip's session, without building it.
/// These functions of pip are not public; if they change, the download fails with a message, and no hash is ever skipped.
const SOURCE_PACKAGE: &str = r#"
import os, sys
package, version, folder = sys.argv[1:]
try:
    from pip._internal.commands import create_command
    from pip._vendor.packaging.specifiers import SpecifierSet
    command = create_command("download")
    options = "--no-deps --no-binary :all: --retries 1 --timeout 20 --no-cache-dir".split()
    options, _ = command.parse_args([*options, "--dest", folder, package])
    session = command._build_session(options)
    finder = command._build_package_finder(options, session)
    found = finder.find_best_candidate(package, SpecifierSet("==" + version)).best_candidate
    if found is None:
        sys.exit("ERROR: pip finds no source package of " + package + " " + version)
    answer = session.get(found.link.url_without_fragment, stream=True, headers={"Accept-Encoding": "identity"})
    answer.raise_for_status()
    with open(os.path.join(folder, os.path.basename(found.link.filename)), "wb") as file:
        for piece in answer.iter_content(1 << 18):
            file.write(piece)
except (ImportError, AttributeError, AssertionError, TypeError) as error:
    sys.exit("ERROR: this version of pip cannot load a source package without building it: " + str(error))
except Exception as error:
    sys.exit("ERROR: " + str(error))
"#;

fn arguments(package: &Package, target: &Path) -> Vec<String> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let Package { client, name, version, .. } = package;
    match client {
        Client::Pip => {
            let mut all = words(
                "download --no-deps --only-binary :all: --no-input --no-cache-dir --retries 1 --timeout 20",
            );
            all.extend(words("--disable-pip-version-check --progress-bar off --dest"));
            all.extend([target.display().to_string(), format!("{name}=={version}")]);
            all
        }
        Client::PipSource => {
            let script = ["-c", SOURCE_PACKAGE, name, version].map(str::to_owned);
            [script.to_vec(), vec![target.display().to_string()]].concat()
        }
        Client::Npm => {
            let mut all = words(
                "pack --ignore-scripts --silent --fetch-retries 1 --fetch-timeout 20000 --pack-destination",
            );
            all.extend([target.display().to_string(), format!("{name}@{version}")]);
            all
        }
        Client::Apt => {
            let mut all = words("-o Acquire::Retries=1 -o APT::Sandbox::User=root download");
            all.push(format!("{name}={version}"));
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
