//! `retune quickstart`: a real fine-tuning run from nothing: fetches a model and data, trains, shows before and after.

use std::path::PathBuf;

use anyhow::{Context, Result};
use retune::run_file::RunFile;
use retune::train::Start;

use super::fetch::fetch_with_bar;
use super::train::print_summary;
use crate::embedded;
use crate::fetch::archives::{self, Archive};
use crate::progress::Progress;
use crate::signals::Signals;
use crate::training::{Prepared, command_line};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  retune quickstart
  retune quickstart --out my-first-adapter
  retune quickstart --offline          the same in seconds, on a tiny model inside the program

It fetches SmolLM2-135M-Instruct (93 MB, once) and a set of questions and answers in which a chat robot speaks of
itself, trains a LoRA on it for one epoch, and shows the held-out loss and some answers before and after. The questions
held out are never trained on. What cannot be fetched is replaced by the tiny model and its data. The same as a run file lies in the output folder afterwards: run.toml.")]
pub struct Args {
    /// The folder to write; without it, quickstart, quickstart-2 and so on
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Fetch nothing: train the tiny model inside the program
    #[arg(long)]
    offline: bool,

    /// Worker threads; without it, one for each core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
}

pub fn run(args: &Args, json: bool) -> Result<()> {
    let signals = Signals::catch()?;
    let mut progress = Progress::new(json);
    let run = match args.offline {
        true => tiny()?,
        false => fetched().or_else(|error| {
            progress.warn(&format!("{error:#}; going on with the tiny model inside the program"))?;
            tiny()
        })?,
    };
    let out = args.out.clone().unwrap_or_else(free_folder);
    let run = RunFile { out, threads: args.threads, ..run };
    let prepared = Prepared::new(run)?;
    progress.note(&format!("training a LoRA on questions and answers: {}", prepared.data.summary()))?;
    let trained = prepared.train(Start::New, &command_line(), &mut progress, &signals)?;
    if json { Ok(()) } else { print_summary(&trained) }
}

/// What four minutes on two cores are best spent on.
fn fetched() -> Result<RunFile> {
    let model = fetch_with_bar(archive("smollm2")?)?;
    let data = fetch_with_bar(archive("chatterbot")?)?;
    let heldout = data.path.with_file_name("heldout.jsonl");
    Ok(RunFile {
        model: model.path,
        data: data.path,
        eval_data: Some(heldout),
        epochs: 1,
        eval_every: Some(14),
        batch_size: 8,
        lr: Some(1e-3),
        max_length: 256,
        ..RunFile::default()
    })
}

/// A model that needs no network, and is small enough to want a higher rate and several epochs.
fn tiny() -> Result<RunFile> {
    let tiny = embedded::unpack()?;
    Ok(RunFile {
        model: tiny.model,
        data: tiny.train,
        eval_data: Some(tiny.heldout),
        epochs: 8,
        batch_size: 8,
        lr: Some(3e-3),
        max_length: 256,
        ..RunFile::default()
    })
}

/// The first of quickstart, quickstart-2, ... that isn't there yet: trying it again must just work.
fn free_folder() -> PathBuf {
    let names = std::iter::once("quickstart".to_owned()).chain((2..1000).map(|n| format!("quickstart-{n}")));
    names.map(PathBuf::from).find(|path| !path.exists()).unwrap_or_else(|| "quickstart".into())
}

fn archive(name: &str) -> Result<&'static Archive> {
    archives::find(name).with_context(|| format!("no archive is called {name}"))
}
