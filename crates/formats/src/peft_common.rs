//! What every `adapter_config.json` of PEFT says besides its method.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::fields::Fields;

/// The release of PEFT whose files are written.
pub const PEFT_VERSION: &str = "0.21.2";

/// The keys that all methods share. [`Common::default`] is what PEFT would save.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// `SEQ_CLS`, `TOKEN_CLS`, `CAUSAL_LM`, …
    pub task_type: Option<String>,
    /// Where the base came from; never followed.
    pub base_model_name_or_path: Option<String>,
    pub revision: Option<String>,
    /// Always written as `true`.
    pub inference_mode: bool,
    pub peft_version: Option<String>,
    /// `{base_model_class, parent_library}`; never followed.
    pub auto_mapping: Value,
    /// Keys that PEFT 0.21 does not know, kept as they came; worth a warning.
    pub unknown: BTreeMap<String, Value>,
}

impl Default for Common {
    fn default() -> Common {
        Common {
            task_type: None,
            base_model_name_or_path: None,
            revision: None,
            inference_mode: true,
            peft_version: Some(PEFT_VERSION.into()),
            auto_mapping: Value::Null,
            unknown: BTreeMap::new(),
        }
    }
}

impl Common {
    /// Takes what is left of the fields, after the method has taken its own.
    pub(crate) fn rest(mut f: Fields) -> Result<Common> {
        f.map.remove("peft_type");
        // PEFT drops this one when it loads.
        f.map.remove("runtime_config");
        Ok(Common {
            task_type: f.string("task_type")?,
            base_model_name_or_path: f.string("base_model_name_or_path")?,
            revision: f.string("revision")?,
            inference_mode: f.flag("inference_mode")?,
            peft_version: f.string("peft_version")?,
            auto_mapping: f.map.remove("auto_mapping").unwrap_or_default(),
            unknown: f.map.into_iter().collect(),
        })
    }

    /// The whole object: these keys and the method's own.
    pub(crate) fn object(
        &self,
        peft_type: &str,
        own: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Value {
        let mut map: Map<String, Value> = self.unknown.clone().into_iter().collect();
        let common = [
            ("peft_type", json!(peft_type)),
            ("task_type", json!(self.task_type)),
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("revision", json!(self.revision)),
            ("inference_mode", json!(self.inference_mode)),
            ("peft_version", json!(self.peft_version)),
            ("auto_mapping", self.auto_mapping.clone()),
        ];
        map.extend(common.into_iter().chain(own).map(|(key, value)| (key.to_string(), value)));
        Value::Object(map)
    }

    /// Does PEFT add `classifier` and `score` to the saved modules?
    pub fn classifies(&self) -> bool {
        matches!(self.task_type.as_deref(), Some("SEQ_CLS" | "TOKEN_CLS"))
    }
}
