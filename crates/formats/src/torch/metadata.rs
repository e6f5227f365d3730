//! What a file says of its weights besides: the names of classes, the network's description, settings of its training.

use std::path::Path;

use serde_json::{Map, Number, Value as Json};

use super::heap::{Heap, Value, View};
use crate::error::{Error, Result};

/// Attributes of a pickled network, and keys of a checkpoint, that may be of use to its readers.
const KEYS: &[&str] = &[
    "names",
    "nc",
    "yaml",
    "stride",
    "task",
    "args",
    "train_args",
    "arch",
    "classes",
    "class_names",
    "epoch",
    "best_fitness",
    "date",
    "version",
    "license",
];
/// Deepest nesting that is followed.
const DEPTH: usize = 16;
/// Counted for each value, in bytes.
const VALUE_BYTES: usize = 2 * size_of::<Json>() + 64;

/// Turns what is plain in it into JSON: the first place of each key counts, the holder of the weights before the
/// checkpoint. `small` gives the numbers of a small tensor; keys of dictionaries that are numbers become texts.
pub fn collect(
    path: &Path,
    heap: &Heap,
    (holder, top): (Value, Value),
    budget: usize,
    small: &dyn Fn(&View) -> Option<Json>,
) -> Result<Map<String, Json>> {
    let mut reader = Reader { path, heap, budget, small };
    let mut out = Map::new();
    for key in KEYS {
        let value = heap.attribute(holder, key).or_else(|| heap.get(top, key));
        if let Some(value) = value
            && let Some(json) = reader.json(value, 0)?
        {
            out.insert(key.to_string(), json);
        }
    }
    Ok(out)
}

struct Reader<'a> {
    path: &'a Path,
    heap: &'a Heap<'a>,
    budget: usize,
    small: &'a dyn Fn(&View) -> Option<Json>,
}

impl Reader<'_> {
    /// The value, or `None` if it is nothing plain.
    fn json(&mut self, value: Value, depth: usize) -> Result<Option<Json>> {
        let text = self.heap.text(value);
        self.take(VALUE_BYTES + text.map_or(0, str::len))?;
        let heap = self.heap;
        if let Some(items) = heap.sequence(value) {
            return self.list(items, depth);
        }
        if let Some(entries) = heap.entries(value) {
            return self.dict(entries, depth);
        }
        Ok(match value {
            Value::None => Some(Json::Null),
            Value::Bool(b) => Some(b.into()),
            Value::Int(i) => Some(i.into()),
            Value::Float(f) => Number::from_f64(f).map(Json::Number),
            Value::Text(..) => text.map(Json::from),
            Value::Dict(_) => Some(Json::Object(Map::new())),
            Value::Tensor(index) => heap.tensors.get(index as usize).and_then(self.small),
            // A namespace of settings.
            Value::Object(index) => {
                let state = heap.objects.get(index as usize).map(|object| object.state);
                match state.and_then(|state| heap.entries(state)) {
                    Some(entries) => self.dict(entries, depth)?,
                    None => None,
                }
            }
            _ => None,
        })
    }

    fn list(&mut self, items: &[Value], depth: usize) -> Result<Option<Json>> {
        if depth >= DEPTH {
            return Ok(None);
        }
        let mut out = Vec::new();
        for item in items {
            out.push(self.json(*item, depth + 1)?.unwrap_or(Json::Null));
        }
        Ok(Some(Json::Array(out)))
    }

    fn dict(&mut self, entries: &[(Value, Value)], depth: usize) -> Result<Option<Json>> {
        if depth >= DEPTH {
            return Ok(None);
        }
        let mut out = Map::new();
        for (key, value) in entries {
            let key = match key {
                Value::Int(number) => number.to_string(),
                key => self.heap.text(*key).unwrap_or_default().to_string(),
            };
            self.take(VALUE_BYTES + key.len())?;
            if let Some(value) = self.json(*value, depth + 1)? {
                out.insert(key, value);
            }
        }
        Ok(Some(Json::Object(out)))
    }

    fn take(&mut self, bytes: usize) -> Result<()> {
        let left = self.budget.checked_sub(2 * bytes);
        self.budget = left.ok_or_else(|| {
            let what = "what it says of its weights is more than a file of this size may hold";
            Error::invalid(self.path, "PyTorch", what)
        })?;
        Ok(())
    }
}
