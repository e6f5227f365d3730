//! The `adapter_config.json` of SHiRA (Bhardwaj et al., 2024) in PEFT 0.21: `W + S`, S sparse at fixed places.
//!
//! For a weight (m, n): `shira_weight` (nnz) and `shira_indices` (2, nnz) of rows and columns, nnz = r (m + n).

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::fields::Fields;
use crate::limits;
use crate::modules::{ModuleMatcher, Modules, Selection};
use crate::peft_common::Common;

/// All that a SHiRA's `adapter_config.json` says. [`ShiraConfig::default`] is PEFT's default.
#[derive(Clone, Debug, PartialEq)]
pub struct ShiraConfig {
    /// r (m + n) entries of a weight (m, n) are trained.
    pub r: usize,
    /// How the places were chosen: `random`, or a name of the user's; they are in the file.
    pub mask_type: String,
    pub random_seed: Option<u64>,
    pub target_modules: Option<Modules>,
    /// The base weight is stored (in, out), as GPT-2's.
    pub fan_in_fan_out: bool,
    /// All zeros at the start.
    pub init_weights: bool,
    pub modules_to_save: Option<Vec<String>>,
    pub common: Common,
}

impl Default for ShiraConfig {
    fn default() -> ShiraConfig {
        ShiraConfig {
            r: 32,
            mask_type: "random".into(),
            random_seed: None,
            target_modules: None,
            fan_in_fan_out: false,
            init_weights: true,
            modules_to_save: None,
            common: Common::default(),
        }
    }
}

impl ShiraConfig {
    /// Reads the object of an `adapter_config.json`; `path` is for messages.
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<ShiraConfig> {
        let mut f = Fields::new(path, object);
        let d = ShiraConfig::default();
        let config = ShiraConfig {
            r: f.count("r", limits::RANK as usize)?.unwrap_or(d.r),
            mask_type: f.string("mask_type")?.unwrap_or(d.mask_type),
            random_seed: f.integer("random_seed", 0..=u64::MAX)?,
            target_modules: f.modules("target_modules")?,
            fan_in_fan_out: f.flag("fan_in_fan_out")?,
            init_weights: f.flag_or("init_weights", true)?,
            modules_to_save: f.strings("modules_to_save")?,
            common: Common::rest(f)?,
        };
        config.matcher(path)?;
        Ok(config)
    }

    /// The object that PEFT would write, every field with its default.
    pub fn to_json(&self) -> Value {
        self.common.object(
            "SHIRA",
            [
                ("r", json!(self.r)),
                ("mask_type", json!(self.mask_type)),
                ("random_seed", json!(self.random_seed)),
                ("target_modules", Modules::to_json(&self.target_modules)),
                ("fan_in_fan_out", json!(self.fan_in_fan_out)),
                ("init_weights", json!(self.init_weights)),
                ("modules_to_save", json!(self.modules_to_save)),
            ],
        )
    }

    /// Compiles the patterns; `path` is for messages.
    pub fn matcher(&self, path: &Path) -> Result<ModuleMatcher> {
        let selection = Selection {
            target_modules: self.target_modules.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            ..Selection::default()
        };
        ModuleMatcher::new(path, &selection)
    }
}
