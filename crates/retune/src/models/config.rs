//! Reads numbers out of a model's configuration, with ranges: a hostile file must not decide how much is allocated.

use std::path::PathBuf;

use retune_formats::gguf::Metadata;
use retune_tensor::ops::Activation;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::methods::targets::nearest;

pub const MAX_LAYERS: usize = 1024;
pub const MAX_VOCAB: usize = 4 << 20;
pub const MAX_WIDTH: usize = 1 << 20;

/// A `config.json` object and its path, for messages.
pub struct Config<'a> {
    pub path: PathBuf,
    pub value: &'a Value,
}

impl Config<'_> {
    pub fn fail(&self, what: impl Into<String>) -> Error {
        Error::Model { path: self.path.clone(), what: what.into() }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    /// A whole number in `1..=max`.
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        let value = self.get(key).ok_or_else(|| self.fail(format!("\"{key}\" is missing")))?;
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        number.ok_or_else(|| {
            self.fail(format!("\"{key}\" is {value}; a whole number from 1 to {max} is needed"))
        })
    }

    pub fn opt_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        self.get(key).map(|_| self.size(key, max)).transpose()
    }

    /// A finite number above zero.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.map(Some).ok_or_else(|| self.fail(format!("\"{key}\" is {value}; a number above 0 is needed")))
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.fail(format!("\"{key}\" is {value}; true or false is needed")))
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

/// A size from GGUF metadata in `1..=max`.
pub fn gguf_size(metadata: &Metadata, path: &std::path::Path, key: &str, max: usize) -> Result<usize> {
    let value = metadata.u64(key)?;
    usize::try_from(value).ok().filter(|n| (1..=max).contains(n)).ok_or_else(|| Error::Model {
        path: path.to_path_buf(),
        what: format!("\"{key}\" is {value}; a whole number from 1 to {max} is needed"),
    })
}

/// The activation that `key` names, as it is written and as it is computed; `usual` where there is none.
///
/// # Errors
/// If there is no such activation; the message names the nearest.
pub fn activation(c: &Config, key: &str, usual: &str) -> Result<(String, Activation)> {
    let name = match c.get(key) {
        None => usual,
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(c.fail(format!("\"{key}\" is {other}; the name of an activation is needed")));
        }
    };
    let found = Activation::parse(name).map(|activation| (name.to_string(), activation));
    found.ok_or_else(|| {
        let near = nearest(name, Activation::NAMES.iter().copied()).unwrap_or_default();
        let all = Activation::NAMES.join(", ");
        c.fail(format!("\"{key}\" is \"{name}\"; did you mean \"{near}\"? There are {all}"))
    })
}

/// An f32 as the shortest decimal that reads back as it, so that 1e-5 is not written as 9.99999974e-6.
pub fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
