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

/// Today in UTC as `2026-11-22` (Howard Hinnant's days-to-civil).
pub fn today() -> String {
    let seconds =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    date_of_day((seconds / 86_400) as i64)
}

fn date_of_day(days_since_1970: i64) -> String {
    let z = days_since_1970 + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date_of_day(0), "1970-01-01");
        assert_eq!(date_of_day(11_016), "2000-02-29");
        assert_eq!(date_of_day(20_779), "2026-11-22");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            (count(1_234_567), megabytes(92_871_040), mebibytes(98 << 20)),
            ("1,234,567".into(), "92.9 MB".into(), "98 MiB".into())
        );
        assert_eq!(
            (seconds(59.4), seconds(200.0), seconds(7500.0)),
            ("59 s".into(), "3 min 20 s".into(), "2 h 5 min".into())
        );
        assert_eq!(printable("a\u{1b}[31m\n"), "a\u{fffd}[31m\n");
    }
}
