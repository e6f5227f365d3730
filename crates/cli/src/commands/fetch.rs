//! `retune fetch`: downloads one of the known archives into the cache and prints where it lies.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stdout};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::embedded;
use crate::exit::UsageError;
use crate::fetch::archives::{ARCHIVES, Archive, Group, find};
use crate::fetch::{Fetched, fetch};
use crate::style;

#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// What to fetch; without it, the list is printed
    name: Option<String>,

    /// Print where it lies in the cache, without fetching or checking; an error if it isn't there
    #[arg(long, requires = "name")]
    print_path: bool,
}

/// Examples, and what there is to fetch.
fn after_help() -> String {
    let mut out = String::from(
        "\
Examples:
  retune fetch                 list what can be fetched
  retune fetch smollm2         the model of the quickstart
  retune fetch tiny            the model inside the program; rows to train it on lie in its data/
  retune train --model $(retune fetch smollm2) --data rows.jsonl

What can be fetched:
",
    );
    for group in Group::ALL {
        let _ = writeln!(out, "  {}", group.title());
        let embedded = (group == Group::TextModel).then_some((embedded::NAME, embedded::WHAT));
        let archives = ARCHIVES.iter().filter(|archive| archive.group == group);
        for (name, what) in embedded.into_iter().chain(archives.map(|archive| (archive.name, archive.what))) {
            let _ = writeln!(out, "    {name:<20} {what}");
        }
    }
    out + "\nThe files go to $RETUNE_CACHE, else $XDG_CACHE_HOME/retune, else ~/.cache/retune."
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let Some(name) = &args.name else { return list(json) };
    let archive = match name == embedded::NAME {
        true => None,
        false => Some(find(name).ok_or_else(|| unknown(name))?),
    };
    if args.print_path {
        let path = archive
            .map_or_else(embedded::cached, crate::fetch::cached)
            .with_context(|| format!("{name} was not fetched yet: retune fetch {name}"))?;
        writeln!(stdout(), "{}", path.display())?;
        return Ok(());
    }
    let fetched = match archive {
        Some(archive) => fetch_with_bar(archive)?,
        None => embedded::unpack().map(|tiny| Fetched { path: tiny.model, was_cached: tiny.was_cached })?,
    };
    let mut out = stdout().lock();
    if json {
        let path = fetched.path.display().to_string();
        let line = serde_json::json!({"name": name, "path": path, "cached": fetched.was_cached});
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{}", fetched.path.display())?;
    }
    Ok(())
}

/// Fetches with a progress bar on stderr (plain lines if that isn't a terminal).
pub fn fetch_with_bar(archive: &Archive) -> Result<Fetched> {
    let bar = ProgressBar::new(archive.bytes());
    bar.set_style(ProgressStyle::with_template(
        "{msg} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}",
    )?);
    bar.set_message(archive.name);
    let from = archive.clients();
    let size = style::megabytes(archive.bytes());
    let announced = std::cell::Cell::new(false);
    let fetched = fetch(archive, &|bytes| {
        if !announced.replace(true) && !std::io::stderr().is_terminal() {
            eprintln!("fetching {} ({size}) with {from}", archive.name);
        }
        bar.set_position(bytes);
    });
    bar.finish_and_clear();
    let fetched = fetched?;
    match fetched.was_cached {
        true => eprintln!("{} is in the cache, and whole", archive.name),
        false => eprintln!("{}: {size} with {from}, sha256 as expected, {}", archive.name, archive.licence),
    }
    Ok(fetched)
}

fn unknown(name: &str) -> UsageError {
    let closeness = |archive: &Archive| strsim::jaro_winkler(archive.name, name);
    let nearest = ARCHIVES.iter().max_by(|a, b| closeness(a).total_cmp(&closeness(b)));
    UsageError(match nearest.filter(|archive| closeness(archive) >= 0.7) {
        Some(archive) => format!("unknown archive {name:?}, did you mean {:?}?", archive.name),
        None => format!("unknown archive {name:?}; `retune fetch` lists them"),
    })
}

fn list(json: bool) -> Result<()> {
    let mut out = stdout().lock();
    let embedded = (embedded::NAME, embedded::WHAT, embedded::LICENCE, embedded::bytes(), embedded::cached());
    for group in Group::ALL {
        if !json {
            writeln!(out, "{}", style::bold(group.title()))?;
        }
        let archives = ARCHIVES.iter().filter(|archive| archive.group == group).map(|archive| {
            let Archive { name, what, licence, .. } = archive;
            (*name, *what, *licence, archive.bytes(), crate::fetch::cached(archive))
        });
        let embedded = (group == Group::TextModel).then(|| embedded.clone());
        for (name, what, licence, bytes, cached) in embedded.into_iter().chain(archives) {
            if json {
                let path = cached.map(|path| path.display().to_string());
                let line = serde_json::json!({"name": name, "group": group.title(), "what": what, "licence": licence,
                    "bytes": bytes, "cached": path});
                writeln!(out, "{line}")?;
            } else {
                let mark = if cached.is_some() { "cached" } else { "" };
                let size = style::megabytes(bytes);
                let name = style::bold(&format!("{name:<18}"));
                writeln!(out, "  {name}  {size:>8}  {mark:6}  {what}; {}", style::dim(licence))?;
            }
        }
    }
    Ok(())
}
