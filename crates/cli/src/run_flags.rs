//! The flags of a training run, one for each key of the run file: names, help and defaults come from the library's table.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};
use retune::run_file::keys::{KEYS, Key, Kind};
use retune::run_file::{RunFile, RunFileError};

use crate::training::RUN_FILE;

/// A run file, and the flags that beat it.
pub struct RunFlags {
    pub file: Option<PathBuf>,
    pub values: Vec<(&'static Key, String)>,
}

impl RunFlags {
    /// The checked run: flags beat the file, the file beats the defaults.
    pub fn load(&self) -> Result<RunFile, RunFileError> {
        // The folder of an earlier run stands for the run file in it.
        let inside = self.file.as_ref().map(|path| path.join(RUN_FILE)).filter(|path| path.is_file());
        RunFile::load(inside.as_deref().or(self.file.as_deref()), &self.values)
    }
}

impl clap::Args for RunFlags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("RUN.toml")
            .value_parser(clap::value_parser!(PathBuf))
            .help("A run file, or the folder of an earlier run; flags beat it");
        let defaults = toml::Value::try_from(RunFile::default()).ok();
        // The last of a repeated flag wins, so that an alias of the shell can be corrected.
        let command = command.args_override_self(true);
        KEYS.iter().fold(command.arg(file), |command, key| command.arg(flag(key, defaults.as_ref())))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn flag(key: &'static Key, defaults: Option<&toml::Value>) -> Arg {
    let default = match key.table {
        "" => defaults.and_then(|all| all.get(key.name)),
        table => defaults.and_then(|all| all.get(table)?.get(key.name)),
    };
    let default = default.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let mut help = first_upper(key.doc);
    if let Kind::Choice(names) = key.kind {
        help += &format!(": {}", names.join(", "));
    }
    if let Some(default) = default.filter(|text| !text.is_empty()) {
        help += &format!(" [default: {default}]");
    }
    let arg =
        Arg::new(key.flag).long(key.flag).help(help).help_heading(heading(key)).allow_negative_numbers(true);
    match key.kind {
        Kind::Switch => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false")
        }
        kind => arg.value_name(value_name(kind)),
    }
}

fn heading(key: &Key) -> &'static str {
    match (key.table, key.name) {
        ("quantization", _) => "Machine",
        ("augment", _) | (_, "image_size") => "Pictures",
        (_, "language" | "audio_window" | "skip_long" | "wer_rows" | "normalizer") => "Speech",
        ("lora", _) => "Method lora",
        ("full", _) => "Method full",
        ("partial", _) => "Method partial",
        ("bitfit", _) => "Method bitfit",
        ("sparse", _) => "Method sparse",
        ("ia3", _) => "Method ia3",
        ("prompt", _) => "Method prompt",
        ("prefix", _) => "Method prefix",
        ("adapter", _) => "Method adapter",
        (_, "model" | "data" | "eval_data" | "retain_data" | "out" | "method" | "task") => "What",
        (_, "max_length" | "train_on" | "eval_share") => "Data",
        (_, "labels" | "pooling" | "class_weights" | "keep_head") => "Classification",
        (_, "metric" | "early_stopping_patience" | "keep_last" | "eval_every" | "save_every" | "keep") => {
            "Along the way"
        }
        (_, "threads" | "storage" | "weights" | "checkpointing" | "memory_limit" | "auto" | "on_nan") => {
            "Machine"
        }
        _ => "Training",
    }
}

fn value_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Path => "PATH",
        Kind::Text | Kind::Choice(_) => "NAME",
        Kind::Whole(..) => "N",
        Kind::Above(..) | Kind::Real(..) | Kind::Share | Kind::ShareOrWhole | Kind::Scaling => "X",
        Kind::Switch => "true|false",
        Kind::Targets | Kind::Names => "NAMES",
        Kind::Wholes => "N,N",
        Kind::WholeByName(..) | Kind::AboveByName(..) => "NAME=N",
        Kind::Init => "NAME",
        Kind::Size => "SIZE",
    }
}

fn first_upper(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

impl clap::FromArgMatches for RunFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let values =
            KEYS.iter().filter_map(|key| Some((key, matches.get_one::<String>(key.flag)?.clone()))).collect();
        Ok(RunFlags { file: matches.get_one::<PathBuf>("RUN.toml").cloned(), values })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
