//! The fields of a JSON configuration, taken out one by one with their types and ranges checked.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};
use crate::folder::kind;
use crate::limits;
use crate::modules::Modules;

/// Takes fields out of an object; null counts as absent.
pub(crate) struct Fields<'a> {
    pub path: &'a Path,
    pub map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn new(path: &'a Path, object: &Map<String, Value>) -> Fields<'a> {
        Fields { path, map: object.clone() }
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    pub fn bad<T>(&self, key: &str, value: &Value, wanted: &str) -> Result<T> {
        Err(Error::key(self.path, key, kind(value), wanted))
    }

    fn few(&self, key: &str, count: usize) -> Result<()> {
        let limit = limits::MODULE_NAMES as u64;
        let what = || format!("the number of entries of `{key}`");
        if count as u64 > limit { Err(Error::limit(self.path, what(), count as u64, limit)) } else { Ok(()) }
    }

    pub fn to_rank(&self, key: &str, value: &Value) -> Result<usize> {
        match value.as_u64() {
            Some(rank) if (1..=limits::RANK).contains(&rank) => Ok(rank as usize),
            _ => self.bad(key, value, &format!("an integer from 1 to {}", limits::RANK)),
        }
    }

    pub fn to_number(&self, key: &str, value: &Value) -> Result<f64> {
        match value.as_f64().filter(|v| v.is_finite() && (*v as f32).is_finite()) {
            Some(v) => Ok(v),
            None => self.bad(key, value, "a finite number"),
        }
    }

    pub fn rank(&mut self, key: &str) -> Result<Option<usize>> {
        self.take(key).map(|value| self.to_rank(key, &value)).transpose()
    }

    pub fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.take(key).map(|value| self.to_number(key, &value)).transpose()
    }

    /// A truth value that is false if it is absent.
    pub fn flag(&mut self, key: &str) -> Result<bool> {
        self.flag_or(key, false)
    }

    pub fn flag_or(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.take(key) {
            None => Ok(default),
            Some(Value::Bool(v)) => Ok(v),
            Some(other) => self.bad(key, &other, "true or false"),
        }
    }

    pub fn string(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(other) => self.bad(key, &other, "a text"),
        }
    }

    /// A list of texts, or one.
    pub fn strings(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(vec![v])),
            Some(Value::Array(list)) => {
                self.few(key, list.len())?;
                let text =
                    |v: &Value| v.as_str().map(str::to_string).map_or_else(|| self.bad(key, v, "a name"), Ok);
                list.iter().map(text).collect::<Result<_>>().map(Some)
            }
            Some(other) => self.bad(key, &other, "a list of names"),
        }
    }

    /// A list of layer numbers, or one.
    pub fn indices(&mut self, key: &str) -> Result<Option<Vec<usize>>> {
        let list = match self.take(key) {
            None => return Ok(None),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        let index =
            |v: &Value| v.as_u64().map(|n| n as usize).map_or_else(|| self.bad(key, v, "a layer number"), Ok);
        list.iter().map(index).collect::<Result<_>>().map(Some)
    }

    pub fn modules(&mut self, key: &str) -> Result<Option<Modules>> {
        match self.map.get(key) {
            Some(Value::String(v)) if v.eq_ignore_ascii_case("all-linear") => {
                self.map.remove(key);
                Ok(Some(Modules::AllLinear))
            }
            Some(Value::String(_)) => Ok(self.string(key)?.map(Modules::Pattern)),
            _ => Ok(self.strings(key)?.map(Modules::List)),
        }
    }

    pub fn patterns<T>(
        &mut self,
        key: &str,
        each: impl Fn(&Self, &str, &Value) -> Result<T>,
    ) -> Result<BTreeMap<String, T>> {
        match self.take(key) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => {
                self.few(key, map.len())?;
                let each = |(p, v)| Ok((String::clone(&p), each(self, &format!("{key}.{p}"), &v)?));
                map.into_iter().map(each).collect()
            }
            Some(other) => self.bad(key, &other, "an object of patterns and numbers"),
        }
    }

    /// An integer of a range.
    pub fn integer(&mut self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64().filter(|v| range.contains(v)) {
            Some(v) => Ok(Some(v)),
            None => self.bad(key, &value, &format!("an integer from {} to {}", range.start(), range.end())),
        }
    }

    /// A count of things that lie in memory.
    pub fn count(&mut self, key: &str, most: usize) -> Result<Option<usize>> {
        Ok(self.integer(key, 1..=most as u64)?.map(|v| v as usize))
    }

    /// A probability.
    pub fn share(&mut self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_f64().filter(|v| (0.0..=1.0).contains(v)) {
            Some(v) => Ok(Some(v)),
            None => self.bad(key, &value, "a number from 0 to 1"),
        }
    }

    /// One of some names.
    pub fn choice<T: Copy>(&mut self, key: &str, names: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match names.iter().find(|(name, _)| value.as_str() == Some(name)) {
            Some((_, v)) => Ok(Some(*v)),
            None => {
                let all: Vec<String> = names.iter().map(|(name, _)| format!("`{name}`")).collect();
                self.bad(key, &value, &all.join(" or "))
            }
        }
    }
}

/// A whole number is written without a point, as Python writes an int.
pub(crate) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Value::from(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}
