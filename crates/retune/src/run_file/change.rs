//! Settings by the names that people type, and runs that differ from another in some of them.

use toml::Value;

use super::keys::{KEYS, Key, Kind};
use super::read::{nearest_key, value_in_flag};
use super::{RunFile, RunFileError};

impl Key {
    /// The setting that somebody names: by its path (`lora.rank`), its name or its flag (`rank`). A name of several
    /// settings is that of one of `methods`, if of one only.
    ///
    /// # Errors
    /// A sentence: the name is nobody's (with the nearest), or several settings'.
    pub fn named(text: &str, methods: &[&str]) -> Result<&'static Key, String> {
        let name = text.trim().trim_start_matches("--");
        if let Some(key) = KEYS.iter().find(|key| key.path() == name) {
            return Ok(key);
        }
        let short = name.to_ascii_lowercase().replace('-', "_");
        let is_it = |key: &&Key| key.name == short || key.flag.replace('-', "_") == short;
        let all: Vec<&'static Key> = KEYS.iter().filter(is_it).collect();
        let here: Vec<&'static Key> =
            all.iter().copied().filter(|key| methods.contains(&key.table)).collect();
        match (all.as_slice(), here.as_slice()) {
            (&[key], _) | (_, &[key]) => Ok(key),
            ([], _) => Err(match nearest_key(name.rsplit('.').next().unwrap_or(name)) {
                Some(near) => format!("no setting is called {name:?}, did you mean {:?}?", near.path()),
                None => format!("no setting is called {name:?}; `retune train --help` lists them"),
            }),
            (several, _) => {
                let paths: Vec<String> = several.iter().map(|key| key.path()).collect();
                Err(format!("{name:?} may be {}: write which", paths.join(" or ")))
            }
        }
    }

    /// A value of this setting from the text that would stand after its flag.
    ///
    /// # Errors
    /// A sentence saying what was expected.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        value_in_flag(self, text)
    }

    /// Whether a value's text may hold commas, so that several are told apart by something else.
    pub fn holds_commas(&self) -> bool {
        let by_name = matches!(self.kind, Kind::WholeByName(..) | Kind::AboveByName(..));
        by_name || matches!(self.kind, Kind::Names | Kind::Targets | Kind::Wholes)
    }
}

impl RunFile {
    /// This run with other values of some settings.
    ///
    /// # Errors
    /// What the settings contradict then; `name` stands in messages.
    pub fn with(&self, name: &str, values: &[(&Key, &Value)]) -> Result<RunFile, RunFileError> {
        let whole = |what: String| RunFileError::one(name, what);
        let mut tree = toml::Table::try_from(self).map_err(|e| whole(e.to_string()))?;
        for (key, value) in values {
            let table = match key.table {
                "" => &mut tree,
                table => match tree.get_mut(table) {
                    Some(Value::Table(table)) => table,
                    _ => return Err(whole(format!("there are no settings of {table}"))),
                },
            };
            table.insert(key.name.into(), (*value).clone());
        }
        let run: RunFile = tree.try_into().map_err(|e: toml::de::Error| whole(e.message().into()))?;
        // Written and read again: settings are checked together, and those of other methods are left behind.
        RunFile::from_toml(name, &run.to_toml()).map_err(|error| error.without_lines(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> RunFile {
        RunFile { model: "m".into(), data: "d.jsonl".into(), ..RunFile::default() }
    }

    #[test]
    fn settings_are_found_by_path_name_and_flag() {
        let path = |text, methods: &[&str]| Key::named(text, methods).map(Key::path);
        assert_eq!(path("rank", &[]).unwrap(), "lora.rank");
        assert_eq!(path("lora.rank", &[]).unwrap(), "lora.rank");
        assert_eq!(path("batch", &[]).unwrap(), "batch_size");
        assert_eq!(path("last-blocks", &[]).unwrap(), "partial.last_blocks");
        assert_eq!(path("target_modules", &["sparse"]).unwrap(), "sparse.target_modules");
        let several = path("target_modules", &["partial"]).unwrap_err();
        assert!(
            several.contains("lora.target_modules") && several.contains("sparse.target_modules"),
            "{several}"
        );
        assert!(path("rnak", &[]).unwrap_err().contains("did you mean \"lora.rank\"?"));
        assert!(path("learning_rate", &[]).unwrap_err().contains("did you mean \"lr\"?"));
        assert!(path("qqqqqqqq", &[]).unwrap_err().contains("--help"));
    }

    #[test]
    fn a_run_is_changed_and_checked_again() {
        let key = |name| Key::named(name, &["lora"]).unwrap();
        let value = |name, text: &str| (key(name), key(name).parse(text).unwrap());
        let with = |values: &[(&'static Key, Value)]| {
            let values: Vec<(&Key, &Value)> = values.iter().map(|(key, value)| (*key, value)).collect();
            base().with("rank=4", &values)
        };
        let run =
            with(&[value("rank", "4"), value("lr", "1e-3"), value("targets", "q_proj,v_proj")]).unwrap();
        assert_eq!((run.lora.rank, run.lr), (4, Some(1e-3)));
        assert_eq!(
            run.lora.target_modules,
            super::super::TargetModules::Names(vec!["q_proj".into(), "v_proj".into()])
        );
        // What is not of the method goes back to its default.
        let run = with(&[value("method", "bitfit"), value("rank", "4")]).unwrap();
        assert_eq!((run.method.as_str(), run.lora.rank), ("bitfit", 16));
        let problems = with(&[value("steps", "5"), value("warmup", "9")]).unwrap_err();
        assert_eq!(problems.to_string(), "rank=4: warm-up of 9 steps, but the whole run has 5");
        assert!(key("rank").parse("0").unwrap_err().contains("from 1 to 4096"));
    }
}
