//! How the program ends: exit codes, the panic hook, signals that would kill it midway.
//!
//! 0 done, 2 usage or run file, 3 diverged, 65 bad input file, 74 input/output, 75 refused for memory, 130/143 interrupted.

use std::io;
use std::process::ExitCode;

use retune::run_file::RunFileError;
use retune::train;

use crate::style;

pub const USAGE: u8 = 2;
pub const BAD_INPUT: u8 = 65;
pub const INPUT_OUTPUT: u8 = 74;
pub const NO_MEMORY: u8 = 75;
pub const DIVERGED: u8 = 3;

/// Prints what went wrong, if anything, and gives the exit code.
pub fn report(result: anyhow::Result<()>, json: bool) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if is_broken_pipe(&error) {
        // `retune ... | head` is no failure: the reader has had enough.
        return ExitCode::SUCCESS;
    }
    let code = code_of(&error);
    if json {
        println!("{}", serde_json::json!({"event": "error", "code": code, "message": message(&error)}));
    } else {
        let is_error = error.downcast_ref::<Ended>().is_none();
        for line in message(&error).lines() {
            match is_error {
                true => eprintln!("{}: {line}", style::error("error")),
                false => eprintln!("{line}"),
            }
        }
    }
    ExitCode::from(code)
}

/// The error with its causes; a cause that the message before it tells already isn't told again.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        match text.is_empty() {
            true => text = cause,
            false if text.contains(&cause) => {}
            false => text = format!("{text}: {cause}"),
        }
    }
    text
}

pub fn code_of(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<RunFileError>() || cause.is::<UsageError>() {
            return USAGE;
        }
        if let Some(ended) = cause.downcast_ref::<Ended>() {
            return ended.code;
        }
        if let Some(code) = cause.downcast_ref().and_then(code_of_training) {
            return code;
        }
        if matches!(cause.downcast_ref(), Some(retune::Error::Method(_))) {
            return USAGE;
        }
        if matches!(cause.downcast_ref(), Some(retune::Error::Weights(_))) {
            return INPUT_OUTPUT;
        }
        if let Some(error) = cause.downcast_ref::<retune_formats::Error>() {
            return if error.is_io() { INPUT_OUTPUT } else { BAD_INPUT };
        }
        if cause.is::<io::Error>() {
            return INPUT_OUTPUT;
        }
    }
    BAD_INPUT
}

/// The codes of training's own errors; `None` for those whose source decides.
fn code_of_training(error: &train::Error) -> Option<u8> {
    match error {
        train::Error::DoesNotFit(_) => Some(NO_MEMORY),
        train::Error::File(_) => None,
        train::Error::Weights(_) => Some(INPUT_OUTPUT),
        train::Error::Checkpoint { .. } | train::Error::NoWholeCheckpoint { .. } => Some(BAD_INPUT),
        _ => Some(USAGE),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.into_iter().any(|kind| kind == io::ErrorKind::BrokenPipe)
}

/// Flags that are each right but make no sense together, or a name that isn't in a table.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// A run that ended before its time, with its exit code: nothing went wrong in the program.
#[derive(Debug)]
pub struct Ended {
    pub code: u8,
    pub message: String,
}

impl Ended {
    pub fn new(code: u8, message: impl Into<String>) -> Ended {
        Ended { code, message: message.into() }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Ended {}

/// A panic is never the user's fault; say so, with what we need to find it.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message =
            payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let message = message.unwrap_or("no message");
        // println! panics when its reader is gone; that's the same as a broken pipe anywhere else.
        if message.starts_with("failed printing to std") {
            std::process::exit(0);
        }
        let place = info.location().map(|at| format!(" at {at}")).unwrap_or_default();
        let words: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        eprintln!("retune: this is a bug, not your mistake. Please report it with the lines below.");
        eprintln!("  version  {}", env!("CARGO_PKG_VERSION"));
        eprintln!("  command  {}", words.join(" "));
        eprintln!("  panicked {message}{place}");
    }));
}

/// `ulimit -f` sends SIGXFSZ, which would kill us and leave a torso; handled, the write fails with an error instead.
pub fn survive_file_size_limit() {
    #[cfg(unix)]
    {
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let _ = signal_hook::flag::register(rustix::process::Signal::XFSZ.as_raw(), seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let cause = || io::Error::other("the disk is full");
        let plain = anyhow::Error::new(cause()).context("cannot write a");
        assert_eq!(message(&plain), "cannot write a: the disk is full");
        let told = anyhow::Error::new(cause()).context("cannot write a: the disk is full");
        assert_eq!(message(&told), "cannot write a: the disk is full");
    }
}
