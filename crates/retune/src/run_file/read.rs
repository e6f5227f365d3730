//! Reads run files and flags into a checked [`RunFile`], or reports every problem at once.

use std::fmt;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::keys::{KEYS, Key, Kind, VALUES_ELSEWHERE};
use super::{RunFile, TaskChoice, parse_bytes};

/// A run file is a page of text; anything larger is another file given by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One thing wrong with a run file or a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `run.toml:12`, `--rank`, or empty for what is wrong with the whole.
    pub place: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.place, self.message)
        }
    }
}

/// Everything wrong with a run file and its flags, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RunFileError {
    pub problems: Vec<Problem>,
}

impl RunFileError {
    /// One problem.
    pub fn one(place: impl Into<String>, message: impl Into<String>) -> RunFileError {
        RunFileError { problems: vec![Problem { place: place.into(), message: message.into() }] }
    }

    /// The same problems of something whose lines nobody has seen.
    pub(super) fn without_lines(mut self, place: &str) -> RunFileError {
        self.problems.iter_mut().for_each(|problem| problem.place = place.into());
        self
    }
}

impl fmt::Display for RunFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl RunFile {
    /// Reads the run of a file (if any) and flags: flags beat the file, the file beats the defaults.
    ///
    /// `flags` are pairs of a [`Key`] and the text after the flag. The file's name stands in messages as it was given.
    ///
    /// # Errors
    /// Every problem of the file and of the flags: unreadable, not TOML, unknown or misplaced keys (with the nearest right
    /// name), wrong types, values out of range, settings that contradict each other, `model` or `data` missing.
    pub fn load(file: Option<&Path>, flags: &[(&'static Key, String)]) -> Result<RunFile, RunFileError> {
        let mut reader = Reader::default();
        if let Some(path) = file {
            match read_text(path) {
                Ok(text) => reader.read_file(&path.display().to_string(), &text),
                Err(problem) => reader.problem(problem.place, problem.message),
            }
        }
        reader.read_flags(flags);
        reader.finish()
    }

    /// Reads a run file from its text; `name` stands in messages.
    ///
    /// # Errors
    /// As [`RunFile::load`].
    pub fn from_toml(name: &str, text: &str) -> Result<RunFile, RunFileError> {
        let mut reader = Reader::default();
        reader.read_file(name, text);
        reader.finish()
    }
}

fn read_text(path: &Path) -> Result<String, Problem> {
    let problem = |message: String| Problem { place: path.display().to_string(), message };
    let size = std::fs::metadata(path).map_err(|e| problem(format!("cannot read the run file: {e}")))?;
    if size.is_dir() {
        return Err(problem(
            "this is a folder; the run file inside an output folder is named run.toml".into(),
        ));
    }
    if size.len() > FILE_BYTES_MAX {
        return Err(problem(format!("{} bytes is too large for a run file; is this the data?", size.len())));
    }
    std::fs::read_to_string(path).map_err(|e| problem(format!("cannot read the run file: {e}")))
}

/// Collects values over the defaults, and problems beside them.
#[derive(Default)]
struct Reader {
    values: Table,
    /// Where each setting in `values` came from, for messages about contradictions.
    places: Vec<(&'static Key, String)>,
    /// With the line in the file, to sort by; problems of flags and of the whole come last.
    problems: Vec<(usize, Problem)>,
}

impl Reader {
    fn problem(&mut self, place: String, message: String) {
        let line = place.rsplit_once(':').and_then(|(_, line)| line.parse().ok()).unwrap_or(usize::MAX);
        self.problems.push((line, Problem { place, message }));
    }

    fn set(&mut self, key: &'static Key, value: Value, place: String) {
        let table = match key.table {
            "" => &mut self.values,
            name => match self.values.entry(name).or_insert_with(|| Value::Table(Table::new())) {
                Value::Table(table) => table,
                _ => return,
            },
        };
        table.insert(key.name.into(), value);
        self.places.retain(|(other, _)| !std::ptr::eq(*other, key));
        self.places.push((key, place));
    }

    fn place_of(&self, name: &str) -> Option<&str> {
        self.places.iter().find(|(key, _)| key.path() == name).map(|(_, place)| place.as_str())
    }

    fn read_file(&mut self, name: &str, text: &str) {
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            self.problem(format!("{name}:{line}"), error.message().into());
        }
        if errors.is_empty() {
            let place = |at: usize| format!("{name}:{}", line_of(text, at));
            self.read_table("", document.get_ref(), &place);
        }
    }

    fn read_table(&mut self, table: &str, values: &DeTable, place: &dyn Fn(usize) -> String) {
        for (name, value) in values.iter() {
            let at = place(name.span().start);
            match (Key::find(table, name.get_ref()), value.get_ref()) {
                (Some(key), _) => match value_in_file(key, value) {
                    Ok(value) => self.set(key, value, at),
                    Err(message) => self.problem(at, message),
                },
                (None, DeValue::Table(inner)) if table.is_empty() && is_table(name.get_ref()) => {
                    self.read_table(name.get_ref(), inner, place);
                }
                _ => self.problem(at, unknown_key(table, name.get_ref())),
            }
        }
    }

    fn read_flags(&mut self, flags: &[(&'static Key, String)]) {
        for (key, text) in flags {
            let place = format!("--{}", key.flag);
            match value_in_flag(key, text) {
                Ok(value) => self.set(key, value, place),
                Err(message) => self.problem(place, message),
            }
        }
    }

    fn finish(mut self) -> Result<RunFile, RunFileError> {
        if self.problems.is_empty() {
            match Value::Table(self.values.clone()).try_into::<RunFile>() {
                Ok(run) => {
                    self.check_together(&run);
                    if self.problems.is_empty() {
                        return Ok(run);
                    }
                }
                Err(error) => self.problem(String::new(), error.message().into()),
            }
        }
        self.problems.sort_by_key(|(line, _)| *line);
        Err(RunFileError { problems: self.problems.into_iter().map(|(_, problem)| problem).collect() })
    }

    /// What each setting cannot see alone.
    fn check_together(&mut self, run: &RunFile) {
        for (name, path, what) in [
            (
                "model",
                &run.model,
                "a Hugging Face folder, a GGUF file, or an image network's weights (.pth, .pt, .safetensors, .onnx, .cfg)",
            ),
            (
                "data",
                &run.data,
                "rows (.jsonl, .csv, .tsv, .txt, ...), or a folder of pictures or of sounds with their texts",
            ),
        ] {
            if path.as_os_str().is_empty() {
                self.problem(
                    String::new(),
                    format!("no {name}: give --{name} PATH ({what}) or `{name} = \"PATH\"`"),
                );
            }
        }
        let no_eval = run.eval_data.is_none() && run.eval_share.unwrap_or_default() == 0.0;
        // Labelled rows are split if nobody says otherwise; whether rows are labelled is seen when they are read.
        if no_eval && matches!(run.task, TaskChoice::TextGeneration | TaskChoice::MaskedLm) {
            for name in ["eval_every", "metric", "early_stopping_patience"] {
                if let Some(place) = self.place_of(name).map(str::to_owned) {
                    self.problem(
                        place,
                        format!("{name} is given, but no eval_data (or eval_share) to evaluate on"),
                    );
                }
            }
        }
        if let (Some(steps), Some(place)) = (run.steps, self.place_of("warmup"))
            && run.warmup >= 1.0
            && run.warmup >= steps as f64
        {
            let place = place.to_owned();
            self.problem(place, format!("warm-up of {} steps, but the whole run has {steps}", run.warmup));
        }
        if let (Some(_), Some(_), Some(place)) =
            (run.partial.freeze, &run.partial.train, self.place_of("partial.freeze"))
        {
            let place = place.to_owned();
            self.problem(place, "freeze and train both say what is trained: give one of them".into());
        }
        let strangers: Vec<_> = self.places.iter().filter(|(key, _)| !key.applies_to(run)).cloned().collect();
        for (key, place) in strangers {
            let message = match key.is_of_method() {
                true => format!(
                    "{} is a setting of method {table}, but the method is {}; give --method {table}, or leave it out",
                    key.name,
                    run.method,
                    table = key.table
                ),
                false => format!(
                    "{} is a setting of the storages nf4, fp4, int4 and int8, but the storage is {}",
                    key.name,
                    run.storage.name()
                ),
            };
            self.problem(place, message);
        }
    }
}

fn is_table(name: &str) -> bool {
    KEYS.iter().any(|key| !key.table.is_empty() && key.table == name)
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count()
}

/// The message for a name that isn't in the table of keys.
fn unknown_key(table: &str, name: &str) -> String {
    let whole = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
    let Some(key) = nearest_key(name) else { return format!("unknown key {whole:?}") };
    match (key.table, key.name == name) {
        (place, _) if place == table => format!("unknown key {whole:?}, did you mean {:?}?", key.name),
        ("", _) => format!("unknown key {whole:?}, did you mean {:?} at the top of the file?", key.name),
        (place, true) => format!("{name:?} belongs into the table [{place}]"),
        (place, false) => {
            format!("unknown key {whole:?}, did you mean {:?} in the table [{place}]?", key.name)
        }
    }
}

/// The setting whose name, or whose name in other programs, is closest to `name`.
pub(super) fn nearest_key(name: &str) -> Option<&'static Key> {
    let wanted = name.to_ascii_lowercase().replace('-', "_");
    let names = KEYS.iter().flat_map(|key| {
        let flag = key.flag.replace('-', "_");
        std::iter::once(key.name.to_owned())
            .chain([flag])
            .chain(key.known_elsewhere_as.iter().map(|&s| s.to_owned()))
            .map(move |s| (key, s))
    });
    names
        .map(|(key, known)| (key, closeness(&wanted, &known)))
        .filter(|(_, closeness)| *closeness >= 0.6)
        .fold(None, |best: Option<(&Key, f64)>, next| match best {
            Some(best) if best.1 >= next.1 => Some(best),
            _ => Some(next),
        })
        .map(|(key, _)| key)
}

/// 1 for equal names, 0 for nothing in common.
pub(crate) fn closeness(a: &str, b: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(a, b)
}

fn value_in_file(key: &Key, value: &Spanned<DeValue>) -> Result<Value, String> {
    let wrong = || format!("{} must be {}, not {}", key.name, key.kind.expects(), shown(value.get_ref()));
    let plain = plain_value(value.get_ref()).ok_or_else(wrong)?;
    checked(key, plain).map_err(|why| why.unwrap_or_else(wrong))
}

/// A value of the file without its places; `None` for what no setting is.
fn plain_value(value: &DeValue) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(on) => Value::Boolean(*on),
        DeValue::Integer(number) => {
            Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()?)
        }
        DeValue::Float(number) => Value::Float(number.as_str().parse().ok()?),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|i| plain_value(i.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Table(items) => {
            let item = |(name, value): (&Spanned<_>, &Spanned<DeValue>)| {
                let name: &std::borrow::Cow<str> = name.get_ref();
                Some((name.to_string(), plain_value(value.get_ref())?))
            };
            Value::Table(items.iter().map(item).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn shown(value: &DeValue) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(on) => on.to_string(),
        other => format!("a {}", other.type_str()),
    }
}

pub(super) fn value_in_flag(key: &Key, text: &str) -> Result<Value, String> {
    let wrong = || format!("must be {}, not {text:?}", key.kind.expects().replace(" in quotes", ""));
    let value = match key.kind {
        Kind::Path | Kind::Text | Kind::Choice(_) | Kind::Size => Value::String(text.into()),
        Kind::Whole(..) => Value::Integer(text.parse().map_err(|_| wrong())?),
        Kind::Above(..) | Kind::Real(..) | Kind::Share | Kind::ShareOrWhole => {
            Value::Float(text.parse().map_err(|_| wrong())?)
        }
        Kind::Switch => Value::Boolean(text.parse().map_err(|_| wrong())?),
        Kind::Scaling => text.parse().map_or_else(|_| Value::String(text.into()), Value::Float),
        Kind::Names => {
            Value::Array(text.split(',').map(|name| Value::String(name.trim().to_owned())).collect())
        }
        Kind::Targets => targets_in_flag(text),
        Kind::Wholes => {
            let numbers = text.split(',').map(|n| n.trim().parse().map(Value::Integer));
            Value::Array(numbers.collect::<Result<_, _>>().map_err(|_| wrong())?)
        }
        Kind::WholeByName(..) | Kind::AboveByName(..) => by_name_in_flag(text).ok_or_else(wrong)?,
        Kind::Init => match text.parse() {
            Ok(on) => Value::Boolean(on),
            Err(_) => Value::String(text.into()),
        },
    };
    checked(key, value).map_err(|why| why.unwrap_or_else(wrong))
}

/// `q_proj=4,v_proj=8`
fn by_name_in_flag(text: &str) -> Option<Value> {
    let pair = |pair: &str| {
        let (name, number) = pair.split_once('=')?;
        let number = number.trim();
        let value = number.parse().map(Value::Integer).or_else(|_| number.parse().map(Value::Float)).ok()?;
        Some((name.trim().to_owned(), value))
    };
    Some(Value::Table(text.split(',').map(pair).collect::<Option<_>>()?))
}

/// `q_proj,v_proj` and `q_proj` are names; `all-linear` and what has regular-expression signs is a pattern.
fn targets_in_flag(text: &str) -> Value {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_.".contains(c));
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    if names.iter().all(|name| is_name(name)) {
        Value::Array(names.into_iter().map(|name| Value::String(name.into())).collect())
    } else {
        Value::String(text.into())
    }
}

/// Checks type and range. `Err(None)`: the plain "must be ..." says it all.
fn checked(key: &Key, value: Value) -> Result<Value, Option<String>> {
    let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64)).filter(|n| n.is_finite());
    let ok = match key.kind {
        Kind::Path | Kind::Text => value.as_str().is_some_and(|text| !text.is_empty()),
        Kind::Whole(from, to) => {
            value.as_integer().and_then(|n| u64::try_from(n).ok()).is_some_and(|n| (from..=to).contains(&n))
        }
        Kind::Above(from, to) => number.is_some_and(|n| n > from && n <= to),
        Kind::Real(from, to) => number.is_some_and(|n| (from..=to).contains(&n)),
        Kind::Share => number.is_some_and(|n| (0.0..1.0).contains(&n)),
        Kind::ShareOrWhole => number.is_some_and(|n| n >= 0.0 && (n < 1.0 || n.fract() == 0.0) && n <= 1e12),
        Kind::Switch => value.is_bool(),
        Kind::Choice(names) => return choice(key, names, value),
        Kind::Names => value.as_array().is_some_and(|names| {
            !names.is_empty() && names.iter().all(|n| n.as_str().is_some_and(|n| !n.is_empty()))
        }),
        Kind::Targets => match &value {
            Value::Array(names) => {
                !names.is_empty() && names.iter().all(|n| n.as_str().is_some_and(|n| !n.is_empty()))
            }
            Value::String(pattern) => {
                return pattern_of_targets(pattern).map(|()| value.clone()).map_err(Some);
            }
            _ => false,
        },
        Kind::Wholes => value.as_array().is_some_and(|numbers| {
            numbers.iter().all(|n| n.as_integer().is_some_and(|n| u32::try_from(n).is_ok()))
        }),
        Kind::WholeByName(from, to) => value.as_table().is_some_and(|table| {
            let whole = |v: &Value| v.as_integer().and_then(|n| u64::try_from(n).ok());
            table.values().all(|v| whole(v).is_some_and(|n| (from..=to).contains(&n)))
        }),
        Kind::AboveByName(from, to) => return above_by_name(value, from, to).map(Value::Table).ok_or(None),
        Kind::Init => return init(&value).map(Value::String).ok_or(None),
        Kind::Scaling => match (number, value.as_str()) {
            (Some(number), _) if number.abs() <= 1e6 => return Ok(Value::Float(number)),
            (None, Some("learned" | "channel")) => true,
            _ => false,
        },
        Kind::Size => return size(value),
    };
    if !ok {
        return Err(None);
    }
    // serde wants a float where the field is one; people write `warmup = 20`.
    let is_float = matches!(key.kind, Kind::Above(..) | Kind::Real(..) | Kind::Share | Kind::ShareOrWhole);
    Ok(if is_float { Value::Float(number.unwrap_or_default()) } else { value })
}

fn above_by_name(value: Value, from: f64, to: f64) -> Option<Table> {
    let Value::Table(table) = value else { return None };
    let number = |v: Value| v.as_float().or_else(|| v.as_integer().map(|n| n as f64));
    let item = |(name, v)| Some((name, Value::Float(number(v).filter(|n| *n > from && *n <= to)?)));
    table.into_iter().map(item).collect()
}

/// How a LoRA starts: a truth value or one of the names.
fn init(value: &Value) -> Option<String> {
    let text = match value {
        Value::Boolean(on) => on.to_string(),
        other => other.as_str()?.to_owned(),
    };
    let rounds = text.strip_prefix("pissa_niter_").map(str::parse::<u16>);
    let known = ["true", "false", "gaussian", "pissa", "olora"].contains(&text.as_str());
    (known || matches!(rounds, Some(Ok(_)))).then_some(text)
}

fn choice(key: &Key, names: &[&str], value: Value) -> Result<Value, Option<String>> {
    let Some(text) = value.as_str() else { return Err(None) };
    if names.contains(&text) {
        return Ok(value);
    }
    let wanted = text.to_ascii_lowercase();
    let elsewhere =
        VALUES_ELSEWHERE.iter().find(|(name, theirs, _)| *name == key.name && theirs.contains(&&*wanted));
    let nearest = names.iter().max_by(|a, b| closeness(a, text).total_cmp(&closeness(b, text)));
    let nearest = nearest.filter(|name| closeness(name, text) >= 0.5);
    match elsewhere.map(|(.., ours)| ours).or(nearest) {
        Some(name) => Err(Some(format!(
            "{} must be {}; did you mean {name:?} by {text:?}?",
            key.name,
            key.kind.expects()
        ))),
        None => Err(None),
    }
}

fn size(value: Value) -> Result<Value, Option<String>> {
    match &value {
        Value::String(text) => parse_bytes(text).map(|_| value.clone()).map_err(Some),
        // Plain bytes are also fine.
        Value::Integer(bytes) => {
            parse_bytes(&bytes.to_string()).map(|_| Value::String(bytes.to_string())).map_err(Some)
        }
        _ => Err(None),
    }
}

/// Patterns come from files of others: only the linear-time engine, and no more than 4 KiB.
fn pattern_of_targets(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() || pattern.len() > 4096 {
        return Err("target_modules: a pattern has 1 to 4096 bytes".into());
    }
    match regex::Regex::new(pattern) {
        Ok(_) => Ok(()),
        Err(error) => {
            let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
            Err(format!("target_modules: {pattern:?} is not a regular expression: {last}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Lora, Schedule, TargetModules};
    use super::*;

    const GOOD: &str = "model = \"m\"\ndata = \"d.jsonl\"\n";

    fn messages(text: &str) -> Vec<String> {
        RunFile::from_toml("run.toml", text).unwrap_err().problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn all_problems_at_once_with_lines_and_nearest_names() {
        let found = messages(
            "model = \"m\"\ndata = 3\nlearing_rate = 1e-4\nepochs = 0\nschedule = \"cosin\"\nzzzzqqq = 1\nrank = 8\n[lora]\nrank = 9999\nlora_dropout = 1.0\nuse_dorra = true\n",
        );
        assert_eq!(
            found,
            [
                "run.toml:2: data must be a path in quotes, not 3",
                "run.toml:3: unknown key \"learing_rate\", did you mean \"lr\"?",
                "run.toml:4: epochs must be a whole number from 1 to 100000, not 0",
                "run.toml:5: schedule must be one of constant, linear, cosine; did you mean \"cosine\" by \"cosin\"?",
                "run.toml:6: unknown key \"zzzzqqq\"",
                "run.toml:7: \"rank\" belongs into the table [lora]",
                "run.toml:9: rank must be a whole number from 1 to 4096, not 9999",
                "run.toml:10: lora_dropout must be a number from 0 up to, but not, 1, not 1.0",
                "run.toml:11: unknown key \"lora.use_dorra\", did you mean \"use_dora\"?",
            ]
        );
    }

    #[test]
    fn values_of_other_programs_are_recognised() {
        for (theirs, ours) in [
            ("adamw_torch_fused", "adamw"),
            ("adamw_bnb_8bit", "adamw_8bit"),
            ("paged_adamw_32bit", "paged_adamw"),
            ("paged_adamw_8bits", "paged_adamw_8bit"),
        ] {
            let found = messages(&format!("{GOOD}optim = {theirs:?}\n"));
            assert!(found[0].contains(&format!("did you mean {ours:?}")), "{found:?}");
        }
        assert!(messages(&format!("{GOOD}optimizer = \"adamw\"\n"))[0].contains("did you mean \"optim\"?"));
    }

    #[test]
    fn flags_beat_file_beats_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, format!("{GOOD}epochs = 5\nlr = 1e-3\nwarmup = 20\n[lora]\nrank = 4\n"))
            .unwrap();
        let flag = |table, name, text: &str| (Key::find(table, name).unwrap(), text.to_owned());
        let flags = [
            flag("", "epochs", "7"),
            flag("lora", "target_modules", "q_proj, v_proj"),
            flag("", "schedule", "linear"),
        ];
        let run = RunFile::load(Some(&path), &flags).unwrap();
        let expected = RunFile {
            model: "m".into(),
            data: "d.jsonl".into(),
            epochs: 7,
            lr: Some(1e-3),
            warmup: 20.0,
            schedule: Schedule::Linear,
            lora: Lora {
                rank: 4,
                target_modules: TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]),
                ..Lora::default()
            },
            ..RunFile::default()
        };
        assert_eq!(run, expected);
    }

    #[test]
    fn flags_are_checked_like_the_file() {
        let flag = |table, name, text: &str| (Key::find(table, name).unwrap(), text.to_owned());
        let flags = [
            flag("", "model", "m"),
            flag("lora", "rank", "0"),
            flag("", "lr", "nan"),
            flag("", "storage", "bf-16"),
        ];
        let found: Vec<_> =
            RunFile::load(None, &flags).unwrap_err().problems.iter().map(Problem::to_string).collect();
        assert_eq!(
            found,
            [
                "--rank: must be a whole number from 1 to 4096, not \"0\"",
                "--lr: must be a number above 0, at most 10000, not \"nan\"",
                "--storage: storage must be one of f32, bf16, as-is, nf4, fp4, int4, int8; did you mean \"bf16\" by \"bf-16\"?",
            ]
        );
    }

    #[test]
    fn lists_and_tables_by_name() {
        let text = format!(
            "{GOOD}[lora]\nrank_pattern = {{ q_proj = 4 }}\nalpha_pattern = {{ \"layers.0.v_proj\" = 3 }}\n\
             layers_to_transform = [0, 2]\nmodules_to_save = [\"norm\"]\ninit_lora_weights = false\n"
        );
        let run = RunFile::from_toml("run.toml", &text).unwrap();
        assert_eq!(run.lora.rank_pattern["q_proj"], 4);
        assert_eq!(run.lora.alpha_pattern["layers.0.v_proj"], 3.0);
        assert_eq!(run.lora.layers_to_transform, Some(vec![0, 2]));
        assert_eq!(run.lora.init_lora_weights, "false");
        assert_eq!(RunFile::from_toml("run.toml", &run.to_toml()).unwrap(), run);
        let flag = |name, text: &str| (Key::find("lora", name).unwrap(), text.to_owned());
        let mut flags = vec![flag("rank_pattern", "q_proj=4"), flag("alpha_pattern", "layers.0.v_proj=3")];
        flags.extend([flag("layers_to_transform", "0, 2"), flag("modules_to_save", "norm")]);
        flags.extend([flag("init_lora_weights", "false")]);
        let more =
            [("model", "m"), ("data", "d.jsonl")].map(|(k, v)| (Key::find("", k).unwrap(), v.to_owned()));
        assert_eq!(RunFile::load(None, &[more.to_vec(), flags].concat()).unwrap(), run);
        for (bad, what) in [
            ("rank_pattern = { q_proj = 0 }", "rank_pattern must be a table"),
            ("rank_pattern = 4", "rank_pattern must be a table"),
            ("alpha_pattern = { q_proj = -1 }", "alpha_pattern must be a table"),
            ("layers_to_transform = [-1]", "must be a list of whole numbers"),
            ("init_lora_weights = \"pissa_niter_x\"", "init_lora_weights must be true, false"),
        ] {
            let found = messages(&format!("{GOOD}[lora]\n{bad}\n"));
            assert!(found[0].contains(what), "{found:?}");
        }
    }

    #[test]
    fn contradictions_and_missing_settings() {
        assert_eq!(messages("").len(), 2);
        assert!(
            messages(&format!("{GOOD}task = \"text-generation\"\neval_every = 3"))[0]
                .starts_with("run.toml:4: eval_every is given, but no eval_data")
        );
        assert!(
            messages(&format!("{GOOD}steps = 5\nwarmup = 9"))[0]
                .contains("warm-up of 9 steps, but the whole run has 5")
        );
        assert!(
            messages(&format!("{GOOD}method = \"full\"\n[lora]\nrank = 4"))[0]
                .contains("setting of method lora")
        );
        let both = format!("{GOOD}method = \"partial\"\n[partial]\nfreeze = 4\ntrain = [\"head\"]");
        assert!(messages(&both)[0].contains("freeze and train both say"));
        assert!(messages(&format!("{GOOD}[partial]\nfreeze = 4"))[0].contains("give --method partial"));
    }

    #[test]
    fn syntax_errors_name_the_line() {
        let found = messages("model = \"m\"\ndata = \nepochs = = 3\n");
        assert!(found[0].starts_with("run.toml:2: "), "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("run.toml:3: ")), "{found:?}");
    }

    #[test]
    fn hostile_patterns_are_refused() {
        assert!(
            messages(&format!("{GOOD}[lora]\ntarget_modules = \"(q_proj\""))[0]
                .contains("not a regular expression")
        );
        assert!(messages(&format!("{GOOD}[lora]\ntarget_modules = []"))[0].contains("must be"));
        assert!(messages(&format!("{GOOD}[lora]\ntarget_modules = [1]"))[0].contains("must be"));
    }
}
