//! Colours (only on a terminal, never with NO_COLOR) and numbers as people read them.

use std::io::IsTerminal;
use std::sync::OnceLock;

fn colours(is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn on_stdout() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| colours(std::io::stdout().is_terminal()))
}

fn on_stderr() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| colours(std::io::stderr().is_terminal()))
}

fn painted(code: &str, text: &str, on: bool) -> String {
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

/// Bold, on stdout.
pub fn bold(text: &str) -> String {
    painted("1", text, on_stdout())
}

/// Grey, on stdout.
pub fn dim(text: &str) -> String {
    painted("2", text, on_stdout())
}

/// Red and bold, on stderr.
pub fn error(text: &str) -> String {
    painted("1;31", text, on_stderr())
}

/// `92.9 MB`: what registries and disks say, powers of 1000.
pub fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Digits in groups of three.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

/// What carries loss: green on a terminal, between «» elsewhere.
pub fn target(text: &str) -> String {
    if on_stdout() { painted("32", text, true) } else { format!("«{text}»") }
}

/// Text from a file made fit for a terminal: no control characters but line breaks and tabs.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// `93.8 MiB`: memory, powers of 1024.
pub fn mebibytes(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{:.0} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.0} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// `48 s`, `3 min 20 s`, `2 h 5 min`.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 1e12).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}
