//! A network as darknet writes it down: sections in order, each of them `key = value` lines.
//!
//! ```text
//! [net]
//! width=416
//!
//! [convolutional]     # a layer
//! filters=16
//! ```
//!
//! Keys that nobody knows are kept; one that is nearly a known one is an error. Of a key that is set twice the first value
//! counts, as it does for darknet, with a note. Numbers are read when they are asked for, within the range that the asker
//! gives.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::keys::{KEYS, SECTIONS};
use crate::bytes::Bytes;
use crate::error::{Error, Result, quote};
use crate::source::nearest;
use crate::{atomic, limits};

/// A whole `.cfg` file.
#[derive(Clone, Debug)]
pub struct Config {
    path: Arc<Path>,
    /// The first is `[net]`, the others are the layers.
    pub sections: Vec<Section>,
    notes: Vec<String>,
}

/// One `[section]`.
#[derive(Clone, Debug)]
pub struct Section {
    path: Arc<Path>,
    /// Without the brackets, as written.
    pub name: String,
    /// Its line in the file; the first is 1. 0 if it was never in a file.
    pub line: usize,
    /// In the order of the file.
    pub entries: Vec<Entry>,
}

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: String,
    /// Its line in the file; the first is 1. 0 if it was never in a file.
    pub line: usize,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Lines that are neither a section nor `key = value`, sections that darknet doesn't have, keys that are nearly one
    /// that it has: each with its line and the nearest right name.
    pub fn open(path: impl AsRef<Path>) -> Result<Config> {
        let bytes = Bytes::open(path.as_ref())?;
        bytes.refuse_stand_ins()?;
        Config::parse(path, &bytes.read_text("darknet .cfg", limits::DARKNET_CFG_BYTES)?)
    }

    /// Reads a text; `path` is for messages.
    ///
    /// # Errors
    /// Those of [`Config::open`].
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Config> {
        let path: Arc<Path> = path.as_ref().into();
        let (mut sections, mut notes): (Vec<Section>, Vec<String>) = (Vec::new(), Vec::new());
        for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let bad = |what: String| Error::Record { path: path.to_path_buf(), line: i + 1, what };
            let line = line.split(['#', ';']).next().unwrap_or_default().trim();
            if let Some(name) = line.strip_prefix('[') {
                let name = name.strip_suffix(']').map(str::trim);
                let name = name.ok_or_else(|| bad(format!("{} has no closing bracket", quote(line))))?;
                check_section(name).map_err(bad)?;
                if sections.len() >= limits::DARKNET_SECTIONS {
                    return Err(bad(format!("more than {} sections", limits::DARKNET_SECTIONS)));
                }
                let (path, name) = (path.clone(), name.to_string());
                sections.push(Section { path, name, line: i + 1, entries: Vec::new() });
            } else if !line.is_empty() {
                let section = sections.last_mut();
                let section =
                    section.ok_or_else(|| bad(format!("{} stands before any [section]", quote(line))))?;
                let (key, value) = line
                    .split_once('=')
                    .ok_or_else(|| bad(format!("{} is neither [section] nor key = value", quote(line))))?;
                notes.extend(section.add(key.trim(), value.trim(), i + 1).map_err(bad)?);
            }
        }
        match sections.first() {
            Some(first) if matches!(first.name.as_str(), "net" | "network") => {
                Ok(Config { path, sections, notes })
            }
            Some(first) => {
                let what = format!("the first section is [{}], a network begins with [net]", first.name);
                Err(Error::Record { path: path.to_path_buf(), line: first.line, what })
            }
            None => Err(Error::invalid(&path, "darknet .cfg", "it has no [section]")),
        }
    }

    /// The file that messages name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is odd about the file and no error, for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The settings of the whole network.
    pub fn net(&self) -> &Section {
        &self.sections[0]
    }

    /// The layers: all sections but the first. Darknet's own layer numbers (`route`, `shortcut`) count from 0 here.
    pub fn layers(&self) -> &[Section] {
        &self.sections[1..]
    }

    /// [`Config::layers`], to be changed.
    pub fn layers_mut(&mut self) -> &mut [Section] {
        &mut self.sections[1..]
    }

    /// The text of a file with these sections, without comments.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for (i, section) in self.sections.iter().enumerate() {
            let blank = if i == 0 { "" } else { "\n" };
            let _ = writeln!(out, "{blank}[{}]", section.name);
            for Entry { key, value, .. } in &section.entries {
                let _ = writeln!(out, "{key}={value}");
            }
        }
        out
    }

    /// Writes a file.
    ///
    /// # Errors
    /// A name or value that would not be read back as it is; a disk that is full.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.to_text();
        let again = Config::parse(path, &text)?;
        let same = |(a, b): (&Section, &Section)| {
            let pairs =
                |s: &Section| s.entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect::<Vec<_>>();
            a.name == b.name && pairs(a) == pairs(b)
        };
        if again.sections.len() != self.sections.len() || !self.sections.iter().zip(&again.sections).all(same)
        {
            let what = "a name or value in it has a character that the format has no place for".to_string();
            return Err(Error::Write { path: path.to_path_buf(), what });
        }
        atomic::write_bytes(path, text.as_bytes())
    }
}

fn check_section(name: &str) -> Result<(), String> {
    if SECTIONS.contains(&name) {
        return Ok(());
    }
    let near = nearest(name, SECTIONS.iter().copied());
    let near = near.map_or(String::new(), |near| format!("; the nearest is [{near}]"));
    Err(format!("darknet has no section {}{near}", quote(&format!("[{name}]"))))
}

impl Section {
    /// A section that is in no file yet; `path` is for messages.
    pub fn new(path: &Path, name: &str) -> Section {
        Section { path: path.into(), name: name.to_string(), line: 0, entries: Vec::new() }
    }

    /// Adds an entry; returns a note if it counts for nothing.
    fn add(&mut self, key: &str, value: &str, line: usize) -> Result<Option<String>, String> {
        if key.is_empty() {
            return Err(format!("{} has no key in front of the =", quote(value)));
        }
        if !KEYS.contains(&key)
            && let Some(near) = nearest(key, KEYS.iter().copied())
        {
            return Err(format!("darknet has no key {}; the nearest is {}", quote(key), quote(&near)));
        }
        match self.entries.iter().find(|entry| entry.key == key) {
            Some(entry) if entry.value == value => Ok(None),
            Some(entry) => {
                let (key, value, before) = (quote(key), quote(value), quote(&entry.value));
                Ok(Some(format!(
                    "line {line}: {key} is {value}, but line {} set it to {before}, which counts",
                    entry.line
                )))
            }
            None => {
                self.entries.push(Entry { key: key.to_string(), value: value.to_string(), line });
                Ok(None)
            }
        }
    }

    /// Gives a key another value, or adds it.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        let value = value.to_string();
        match self.entries.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => entry.value = value,
            None => self.entries.push(Entry { key: key.to_string(), value, line: 0 }),
        }
    }

    /// The entry of a key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The value of a key, as it is written.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|entry| entry.value.as_str())
    }

    /// An error about a key of this section, or the section itself: file and line, then `what`.
    pub fn error(&self, key: Option<&str>, what: impl Into<String>) -> Error {
        let line = key.and_then(|key| self.entry(key)).map_or(self.line, |entry| entry.line);
        Error::Record {
            path: PathBuf::from(&*self.path),
            line,
            what: format!("[{}]: {}", self.name, what.into()),
        }
    }

    fn wrong(&self, key: &str, value: &str, wanted: &str) -> Error {
        self.error(Some(key), format!("{} is {}, wanted {wanted}", quote(key), quote(value)))
    }

    fn number_or<T>(&self, key: &str, default: Option<T>, read: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        match (self.text(key), default) {
            (Some(value), _) => read(value),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(None, format!("{} is missing", quote(key)))),
        }
    }

    /// A whole number within `range`; `default` if the key isn't there (an error without one).
    pub fn integer(&self, key: &str, default: Option<i64>, range: RangeInclusive<i64>) -> Result<i64> {
        self.number_or(key, default, |value| self.one_integer(key, value, &range))
    }

    /// A count or size within `range`; `default` if the key isn't there (an error without one).
    pub fn size(&self, key: &str, default: Option<usize>, range: RangeInclusive<usize>) -> Result<usize> {
        let end = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let range = end(*range.start())..=end(*range.end());
        // Within the range, so it is no less than 0.
        self.number_or(key, default, |value| self.one_integer(key, value, &range).map(|n| n as usize))
    }

    /// A switch, 0 or 1; off if the key isn't there.
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.integer(key, Some(0), 0..=1).map(|n| n == 1)
    }

    /// A finite number within `range`; `default` if the key isn't there (an error without one).
    pub fn number(&self, key: &str, default: Option<f32>, range: RangeInclusive<f32>) -> Result<f32> {
        self.number_or(key, default, |value| self.one_number(key, value, &range))
    }

    /// Whole numbers with commas between them, each within `range`; none if the key isn't there.
    pub fn integers(&self, key: &str, range: RangeInclusive<i64>) -> Result<Vec<i64>> {
        self.items(key).map(|value| self.one_integer(key, value, &range)).collect()
    }

    /// Finite numbers with commas between them, each within `range`; none if the key isn't there.
    pub fn numbers(&self, key: &str, range: RangeInclusive<f32>) -> Result<Vec<f32>> {
        self.items(key).map(|value| self.one_number(key, value, &range)).collect()
    }

    fn items(&self, key: &str) -> impl Iterator<Item = &str> {
        let value = self.text(key).unwrap_or_default();
        // A comma at the end is common.
        let value = value.strip_suffix(',').unwrap_or(value);
        value.split(',').map(str::trim).filter(move |_| !value.is_empty())
    }

    fn one_integer(&self, key: &str, value: &str, range: &RangeInclusive<i64>) -> Result<i64> {
        let number = value.parse().ok().filter(|number| range.contains(number));
        let wanted = || format!("a whole number from {} to {}", range.start(), range.end());
        number.ok_or_else(|| self.wrong(key, value, &wanted()))
    }

    fn one_number(&self, key: &str, value: &str, range: &RangeInclusive<f32>) -> Result<f32> {
        let number = value.parse().ok().filter(|number| range.contains(number));
        let wanted = || format!("a number from {} to {}", range.start(), range.end());
        number.ok_or_else(|| self.wrong(key, value, &wanted()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = "\u{feff}[net]\r\n# a comment\nwidth = 416\nheight=416 # beside\nsteps=10,20,\n\n[convolutional]\nfilters=16\nactivation=leaky\nmy_own_word=7\n[yolo]\nmask=0,1,2\nanchors = 10,14,  23,27\n";

    fn parse(text: &str) -> Result<Config> {
        Config::parse("a.cfg", text)
    }

    #[test]
    fn sections_keep_their_order_and_lines() {
        let config = parse(TINY).unwrap();
        let lines: Vec<_> = config.sections.iter().map(|s| (s.name.as_str(), s.line)).collect();
        assert_eq!(lines, [("net", 1), ("convolutional", 7), ("yolo", 11)]);
        let (net, layers) = (config.net(), config.layers());
        assert_eq!(net.size("height", None, 1..=4096).unwrap(), 416);
        assert_eq!(net.integers("steps", 0..=1000).unwrap(), [10, 20]);
        assert_eq!(layers[0].text("my_own_word"), Some("7"));
        assert!(!layers[0].flag("batch_normalize").unwrap());
        assert_eq!(layers[1].numbers("anchors", 0.0..=1e4).unwrap(), [10.0, 14.0, 23.0, 27.0]);
        assert!(layers[1].integers("nothing", 0..=1).unwrap().is_empty());
    }

    #[test]
    fn typos_and_absurd_values_are_errors_with_their_line() {
        for (text, words) in [
            ("[net]\n[convolutionel]\n", &["a.cfg:2:", "the nearest is [convolutional]"][..]),
            ("[net]\n[xyz]\n", &["a.cfg:2:", "no section `[xyz]`"]),
            ("[net]\n[conv]\nfilterz=3\n", &["a.cfg:3:", "`filterz`", "`filters`"]),
            ("[net]\nwidth 416\n", &["a.cfg:2:", "neither"]),
            ("[net]\n=416\n", &["a.cfg:2:", "no key"]),
            ("[net\n", &["a.cfg:1:", "closing bracket"]),
            ("width=416\n", &["a.cfg:1:", "before any [section]"]),
            ("[conv]\nfilters=1\n", &["a.cfg:1:", "begins with [net]"]),
            ("", &["no [section]"]),
        ] {
            let message = parse(text).err().unwrap().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{text:?}: {message}");
        }
        let twice = parse("[net]\nwidth=1\nwidth=2\nwidth=1\n").unwrap();
        assert_eq!(twice.net().text("width"), Some("1"));
        assert_eq!(twice.notes(), ["line 3: `width` is `2`, but line 2 set it to `1`, which counts"]);
        let config =
            parse("[net]\nwidth=99999999999999999999\nheight=-1\nbatch=x\nmomentum=nan\nsteps=1,,2\n")
                .unwrap();
        let net = config.net();
        for (result, words) in [
            (net.size("width", None, 1..=8192).map(drop), ["a.cfg:2: [net]: ", "from 1 to 8192"]),
            (net.size("height", None, 0..=8192).map(drop), ["a.cfg:3: ", "`-1`"]),
            (net.integer("batch", Some(1), 1..=64).map(drop), ["a.cfg:4: ", "`x`"]),
            (net.number("momentum", None, 0.0..=1.0).map(drop), ["a.cfg:5: ", "a number from 0 to 1"]),
            (net.integers("steps", 0..=9).map(drop), ["a.cfg:6: ", "``"]),
            (net.size("channels", None, 1..=4).map(drop), ["a.cfg:1: ", "`channels` is missing"]),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut config = parse(TINY).unwrap();
        config.layers_mut()[1].set("classes", 3);
        config.layers_mut()[1].set("mask", "3,4,5");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.cfg");
        config.write(&path).unwrap();
        let again = Config::open(&path).unwrap();
        assert_eq!(again.to_text(), config.to_text());
        assert_eq!(again.layers()[1].text("classes"), Some("3"));
        config.layers_mut()[0].set("activation", "two\nlines");
        assert!(config.write(&path).is_err());
        config.layers_mut()[0].set("activation", "not # this");
        assert!(config.write(&path).unwrap_err().to_string().contains("no place for"));
    }
}
