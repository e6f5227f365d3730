//! The `adapter_config.json` of IA³ (Liu et al., 2022) in PEFT 0.21.
//!
//! One vector l for each module: `(W x + b) * l` with l `(out, 1)`, or `W (x * l) + b` with l `(1, in)` for the
//! modules among `feedforward_modules`.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::fields::Fields;
use crate::modules::{Ends, ModuleMatcher, Modules, Selection};
use crate::peft_common::Common;

/// All that an IA³'s `adapter_config.json` says. [`Ia3Config::default`] is PEFT's default.
#[derive(Clone, Debug, PartialEq)]
pub struct Ia3Config {
    /// `None`: PEFT's own choice for the architecture.
    pub target_modules: Option<Modules>,
    pub exclude_modules: Option<Modules>,
    /// The targets whose input is scaled. `None`: PEFT's own choice for the architecture.
    pub feedforward_modules: Option<Modules>,
    /// The base weight is stored (in, out), as GPT-2's.
    pub fan_in_fan_out: bool,
    pub modules_to_save: Option<Vec<String>>,
    /// All ones at the start.
    pub init_ia3_weights: bool,
    pub common: Common,
}

impl Default for Ia3Config {
    fn default() -> Ia3Config {
        Ia3Config {
            target_modules: None,
            exclude_modules: None,
            feedforward_modules: None,
            fan_in_fan_out: false,
            modules_to_save: None,
            init_ia3_weights: true,
            common: Common::default(),
        }
    }
}

impl Ia3Config {
    /// Reads the object of an `adapter_config.json`; `path` is for messages.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<Ia3Config> {
        let mut f = Fields::new(path, object);
        let config = Ia3Config {
            target_modules: f.modules("target_modules")?,
            exclude_modules: f.modules("exclude_modules")?,
            feedforward_modules: f.modules("feedforward_modules")?,
            fan_in_fan_out: f.flag("fan_in_fan_out")?,
            modules_to_save: f.strings("modules_to_save")?,
            init_ia3_weights: f.flag_or("init_ia3_weights", true)?,
            common: Common::rest(f)?,
        };
        config.check(path)?;
        Ok(config)
    }

    /// What PEFT itself refuses to load.
    fn check(&self, path: &Path) -> Result<()> {
        if let (Some(Modules::List(targets)), Some(Modules::List(inner))) =
            (&self.target_modules, &self.feedforward_modules)
            && let Some(odd) = inner.iter().find(|name| !targets.contains(name))
        {
            let wanted = "names that are among target_modules too";
            return Err(crate::Error::key(path, "feedforward_modules", crate::error::quote(odd), wanted));
        }
        self.matcher(path).map(drop)
    }

    /// The object that PEFT would write, every field with its default.
    pub fn to_json(&self) -> Value {
        self.common.object(
            "IA3",
            [
                ("target_modules", Modules::to_json(&self.target_modules)),
                ("exclude_modules", Modules::to_json(&self.exclude_modules)),
                ("feedforward_modules", Modules::to_json(&self.feedforward_modules)),
                ("fan_in_fan_out", json!(self.fan_in_fan_out)),
                ("modules_to_save", json!(self.modules_to_save)),
                ("init_ia3_weights", json!(self.init_ia3_weights)),
            ],
        )
    }

    /// Compiles the patterns; `path` is for messages.
    pub fn matcher(&self, path: &Path) -> Result<Ia3Matcher> {
        let selection = Selection {
            target_modules: self.target_modules.as_ref(),
            exclude_modules: self.exclude_modules.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            ..Selection::default()
        };
        Ok(Ia3Matcher {
            modules: ModuleMatcher::new(path, &selection)?,
            feedforward: Ends::new(path, "feedforward_modules", self.feedforward_modules.as_ref())?,
        })
    }
}

/// The compiled patterns of an [`Ia3Config`].
pub struct Ia3Matcher {
    modules: ModuleMatcher,
    feedforward: Ends,
}

impl Ia3Matcher {
    /// Which modules are meant.
    pub fn modules(&self) -> &ModuleMatcher {
        &self.modules
    }

    /// Is the input scaled (and not the output)? `None` if the configuration leaves that to the model.
    pub fn is_feedforward(&self, module: &str) -> Option<bool> {
        self.feedforward.matches(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> Result<Ia3Config> {
        Ia3Config::from_json(Path::new("adapter_config.json"), value.as_object().unwrap())
    }

    #[test]
    fn feedforward_modules_match_as_in_peft() {
        let c = config(
            json!({"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]}),
        );
        let m = c.unwrap().matcher(Path::new("c")).unwrap();
        assert_eq!(m.is_feedforward("layer.0.attention.output.dense"), Some(true));
        assert_eq!(m.is_feedforward("layer.0.attention.xoutput.dense"), Some(true));
        assert_eq!(m.modules().is_target("layer.0.attention.xoutput.dense"), Some(false));
        assert_eq!(m.is_feedforward("layer.0.key"), Some(false));
        let c = config(json!({"target_modules": ".*k", "feedforward_modules": r".*\.k"})).unwrap();
        assert_eq!(c.matcher(Path::new("c")).unwrap().is_feedforward("a.k"), Some(true));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (key, value) in [
            ("feedforward_modules", json!(["down"])),
            ("feedforward_modules", json!("(")),
            ("init_ia3_weights", json!(1)),
            ("target_modules", json!({})),
        ] {
            let mut whole = json!({"target_modules": ["up"]});
            whole[key] = value;
            let message = config(whole).unwrap_err().to_string();
            assert!(message.starts_with("adapter_config.json: ") && message.contains(key), "{message}");
        }
    }
}
