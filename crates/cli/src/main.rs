//! The `retune` program: glue between the command line and the library.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod embedded;
mod exit;
mod exporting;
mod fetch;
mod loading;
mod previewing;
mod progress;
mod prompting;
mod room;
mod run_flags;
mod sheets;
mod signals;
mod style;
mod sweeping;
mod tasks;
mod training;

use std::process::ExitCode;

use args::{Cli, Command};

fn main() -> ExitCode {
    exit::install_panic_hook();
    exit::survive_file_size_limit();
    retune_tensor::memory::give_back_large_buffers();
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    exit::report(run(&cli), cli.json)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Quickstart(args) => commands::quickstart::run(args, cli.json),
        Command::Train(args) => commands::train::run(args, cli.json),
        Command::Sweep(args) => commands::sweep::run(args, cli.json),
        Command::Generate(args) => commands::generate::run(args, cli.json),
        Command::Predict(args) => commands::predict::run(args, cli.json),
        Command::Transcribe(args) => commands::transcribe::run(args, cli.json),
        Command::Eval(args) => commands::eval::run(args, cli.json),
        Command::Merge(args) => commands::merge::run(args, cli.json),
        Command::Convert(args) => commands::convert::run(args, cli.json),
        Command::Export(args) => commands::export::run(args, cli.json),
        Command::Quantize(args) => commands::quantize::run(args, cli.json),
        Command::Plan(args) => commands::plan::run(args, cli.json),
        Command::Preview(args) => commands::preview::run(args, cli.json),
        Command::Inspect(args) => commands::inspect::run(args, cli.json),
        Command::Logits(args) => commands::logits::run(args, cli.json),
        Command::Fetch(args) => commands::fetch::run(args, cli.json),
        Command::Tile(args) => commands::tile::run(args, cli.json),
        Command::Init(args) => commands::init::run(args, cli.json),
        Command::Methods(args) => commands::methods::run(args, cli.json),
        Command::Models(args) => commands::models::run(args, cli.json),
    }
}
