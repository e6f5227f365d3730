//! Finds the weights in what a pickle built: a flat state dict, one inside a checkpoint, or those of pickled modules.
//!
//! A pickled module is an inert object whose attributes are `_parameters`, `_buffers` and `_modules`; the names are those
//! that its `state_dict()` would have: `model.0.conv.weight`, `model.0.bn.running_mean`.

use std::path::Path;

use super::heap::{Heap, Value, View};
use super::pickle::Pickled;
use crate::error::{Error, Result, quote};
use crate::limits;

/// Where checkpoints keep their weights, what is preferred first: averages are what their authors evaluate.
const CONTAINERS: &[&str] =
    &["ema", "state_dict", "model_state_dict", "model", "params_ema", "params", "net", "network", "weights"];
/// What wrappers put in front of every name: `DataParallel`, `torch.compile`.
const WRAPPERS: &[&str] = &["module.", "_orig_mod."];

/// What was found.
pub struct Found {
    /// In the order of the file.
    pub tensors: Vec<(String, View)>,
    /// The dictionary or module that they are of.
    pub holder: Value,
    /// What was taken and what was left, for people.
    pub notes: Vec<String>,
    /// What is left of the memory that it may take.
    pub budget: usize,
}

/// Finds the weights. `path` is for messages.
pub fn find(path: &Path, pickled: &Pickled) -> Result<Found> {
    let (heap, budget) = (&pickled.heap, pickled.budget);
    let mut search = Search { path, heap, budget, steps: 0, tensors: Vec::new(), notes: Vec::new() };
    let holder = search.choose(pickled.top)?;
    search.unwrap_names();
    Ok(Found { tensors: search.tensors, holder, notes: search.notes, budget: search.budget })
}

struct Search<'a> {
    path: &'a Path,
    heap: &'a Heap<'a>,
    budget: usize,
    /// How many entries of modules have been looked at.
    steps: usize,
    tensors: Vec<(String, View)>,
    notes: Vec<String>,
}

impl<'a> Search<'a> {
    fn bad(&self, what: impl Into<String>) -> Error {
        Error::invalid(self.path, "PyTorch", what)
    }

    fn choose(&mut self, top: Value) -> Result<Value> {
        if self.is_module(top) {
            self.module("", top, 0)?;
            self.notes.push(format!("the weights are those of {}", self.heap.describe(top)));
            return Ok(top);
        }
        let Value::Dict(_) = top else {
            let what = format!("it holds {}, no dictionary of tensors", self.heap.describe(top));
            return Err(self.bad(what));
        };
        if !self.has_weights(top) {
            let inner = |name: &&'static str| Some((*name, self.heap.get(top, name)?));
            let mut found: Vec<(&str, Value)> = CONTAINERS.iter().filter_map(inner).collect();
            found.retain(|(_, value)| self.has_weights(*value));
            if let Some(((name, holder), others)) = found.split_first() {
                let what = self.heap.describe(*holder);
                match self.is_module(*holder) {
                    true => self.module("", *holder, 0)?,
                    false => self.flat(name, *holder)?,
                }
                let others: Vec<String> = others.iter().map(|(name, _)| quote(name)).collect();
                let left =
                    if others.is_empty() { String::new() } else { format!(", not {}", others.join(", ")) };
                self.notes.push(format!("the weights are those of {} ({what}) in it{left}", quote(name)));
                return Ok(*holder);
            }
        }
        self.flat("", top)?;
        Ok(top)
    }

    fn has_weights(&self, value: Value) -> bool {
        let is_tensor = |(_, value): &(Value, Value)| matches!(value, Value::Tensor(_));
        let is_dict = matches!(value, Value::Dict(_));
        is_dict && self.heap.entries(value).is_some_and(|entries| entries.iter().any(is_tensor))
            || self.is_module(value)
    }

    fn is_module(&self, value: Value) -> bool {
        ["_parameters", "_modules"].iter().all(|key| self.heap.attribute(value, key).is_some())
    }

    /// A dictionary of names and tensors; `place` is what it is called in the checkpoint.
    fn flat(&mut self, place: &str, dict: Value) -> Result<()> {
        let heap = self.heap;
        for (key, value) in heap.entries(dict).unwrap_or_default() {
            let Some(name) = heap.text(*key) else { return Err(self.bad("a key is no text")) };
            match *value {
                Value::Tensor(tensor) => self.push(name.to_string(), tensor)?,
                // A module's own state, most often None.
                _ if name.ends_with("_extra_state") => {
                    self.notes.push(format!("{} is no tensor and was left out", quote(name)));
                }
                _ => {
                    let dot = if place.is_empty() { "" } else { "." };
                    let shown = quote(&format!("{place}{dot}{name}"));
                    let what = format!("{shown} in it is no tensor but {}", heap.describe(*value));
                    return Err(Error::unsupported(
                        self.path,
                        what,
                        "a flat dictionary of tensors was expected",
                    ));
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, name: String, tensor: u32) -> Result<()> {
        let Some(view) = self.heap.tensors.get(tensor as usize) else {
            return Err(self.bad("no such tensor"));
        };
        let need = 2 * (name.len() + size_of::<(String, View)>() + 2 * view.shape.len() * size_of::<u64>());
        let left = self.budget.checked_sub(need).filter(|_| (self.tensors.len() as u64) < limits::TENSORS);
        self.budget =
            left.ok_or_else(|| self.bad("it names more tensors than a file of this size may hold"))?;
        self.tensors.push((name, view.clone()));
        Ok(())
    }

    /// A module and those in it, in the order of `state_dict()`.
    fn module(&mut self, prefix: &str, module: Value, depth: usize) -> Result<()> {
        if depth > limits::PICKLE_DEPTH {
            let (deepest, place) = (limits::PICKLE_DEPTH, quote(prefix.trim_end_matches('.')));
            return Err(self.bad(format!("its modules are nested deeper than {deepest} at {place}")));
        }
        let not_saved = self.set(module, "_non_persistent_buffers_set");
        for kind in ["_parameters", "_buffers"] {
            for (name, value) in self.children(prefix, module, kind)? {
                match value {
                    Value::Tensor(_) if kind == "_buffers" && not_saved.contains(&name) => {}
                    Value::Tensor(tensor) => self.push(self.name(prefix, name)?, tensor)?,
                    Value::None => {}
                    _ => return Err(self.unlike(prefix, name, value, "a tensor")),
                }
            }
        }
        for (name, value) in self.children(prefix, module, "_modules")? {
            if self.is_module(value) {
                let prefix = self.name(prefix, name)? + ".";
                self.module(&prefix, value, depth + 1)?;
            } else if !matches!(value, Value::None) {
                return Err(self.unlike(prefix, name, value, "a module"));
            }
        }
        Ok(())
    }

    /// The named entries of one of a module's dictionaries.
    fn children(&mut self, prefix: &str, module: Value, kind: &str) -> Result<Vec<(&'a str, Value)>> {
        let heap = self.heap;
        let attributes = heap.object(module).and_then(|o| heap.entries(o.state)).unwrap_or_default();
        let dict = heap.attribute(module, kind);
        let entries = dict.and_then(|dict| heap.entries(dict)).unwrap_or_default();
        // A module may stand in several places, and so may what holds it.
        self.steps += 1 + attributes.len() + entries.len();
        if self.steps > limits::TORCH_MODULE_STEPS {
            let place = quote(prefix.trim_end_matches('.'));
            return Err(self.bad(format!("its modules are too many at {place}: they hold each other")));
        }
        let text = |(key, value): &(Value, Value)| Some((heap.text(*key)?, *value));
        let children = entries.iter().map(text).collect::<Option<Vec<_>>>();
        children.ok_or_else(|| self.bad("a key is no text"))
    }

    /// The texts in a set that is an attribute of a module.
    fn set(&self, module: Value, key: &str) -> Vec<&'a str> {
        let heap = self.heap;
        let Some(value) = heap.attribute(module, key) else { return Vec::new() };
        // Before protocol 4 a set is a call with a list.
        let list = heap.object(value).and_then(|set| heap.sequence(set.args)?.first().copied());
        let items = heap.sequence(list.unwrap_or(value)).unwrap_or_default();
        items.iter().take(limits::TORCH_SET).filter_map(|item| heap.text(*item)).collect()
    }

    fn unlike(&self, prefix: &str, name: &str, value: Value, wanted: &str) -> Error {
        let shown = quote(&format!("{prefix}{name}"));
        self.bad(format!("{shown} in its modules is {}, wanted {wanted}", self.heap.describe(value)))
    }

    fn name(&self, prefix: &str, name: &str) -> Result<String> {
        let len = prefix.len() + name.len();
        if len as u64 > limits::NAME_BYTES {
            return Err(self.bad(format!("a name in its modules has {len} bytes")));
        }
        Ok(format!("{prefix}{name}"))
    }

    /// Takes off what a wrapper put in front of every name.
    fn unwrap_names(&mut self) {
        for wrapper in WRAPPERS {
            let rest = |name: &str| name.strip_prefix(wrapper).is_some_and(|rest| !rest.is_empty());
            if !self.tensors.is_empty() && self.tensors.iter().all(|(name, _)| rest(name)) {
                for (name, _) in &mut self.tensors {
                    name.drain(..wrapper.len());
                }
                self.notes.push(format!("{} was taken off the front of every name", quote(wrapper)));
            }
        }
    }
}
