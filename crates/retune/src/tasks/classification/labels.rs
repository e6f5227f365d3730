//! The names of the classes: collected from data, or given by the model; and their weights.
//!
//! weight_k = n / (K n_k) when balanced, with n rows, n_k of them of class k, and K classes that occur.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::methods::targets::nearest;
use crate::tasks::wording::shorten;

/// More classes than this are taken for a wrong column.
pub const CLASSES_MAX: usize = 10_000;
/// Characters of a class's name.
pub const NAME_MAX: usize = 256;
/// Names shown in a message.
const SHOWN: usize = 12;

/// The classes' names; a class is its index here. Empty for regression.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels {
    pub names: Vec<String>,
}

impl Labels {
    /// How many numbers a head gives for them: one for each class, one for regression.
    pub fn outputs(&self) -> usize {
        self.names.len().max(1)
    }

    /// The name of a class.
    pub fn name(&self, class: u32) -> &str {
        self.names.get(class as usize).map_or("?", String::as_str)
    }

    /// The class of that name; an integer is taken as the class's index unless names are integers themselves.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.index().get(name).copied()
    }

    /// Class by name, for many of [`Labels::find`].
    pub fn index(&self) -> HashMap<String, u32> {
        let pairs =
            |names: &mut dyn Iterator<Item = String>| names.zip(0..).collect::<HashMap<String, u32>>();
        let mut index = pairs(&mut self.names.iter().cloned());
        if !self.names.iter().any(|known| integer(known).is_some()) {
            index.extend(pairs(&mut (0..self.names.len()).map(|i| i.to_string())));
        }
        index
    }

    /// What an unknown name is told.
    pub fn unknown(&self, name: &str) -> String {
        let near = nearest(name, self.names.iter().map(String::as_str));
        let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
        format!("label {:?} is not among the known ones ({}){hint}", shorten(name), self.listed())
    }

    /// The names in one line, the first few of many.
    pub fn listed(&self) -> String {
        let shown: Vec<String> = self.names.iter().take(SHOWN).map(|name| shorten(name)).collect();
        let more = self.names.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(", … {more} more") } else { String::new() };
        shown.join(", ") + &more
    }

    /// `id2label` of a model's config.json; `None` if the indices aren't 0..n.
    pub fn from_id2label(map: &BTreeMap<String, String>) -> Option<Labels> {
        let mut pairs: Vec<(usize, &String)> =
            map.iter().map(|(id, name)| Some((id.parse().ok()?, name))).collect::<Option<_>>()?;
        pairs.sort_unstable();
        let in_order = pairs.iter().enumerate().all(|(i, (id, _))| i == *id);
        in_order.then(|| Labels { names: pairs.into_iter().map(|(_, name)| name.clone()).collect() })
    }

    /// Whether these are the placeholders `LABEL_0`, `LABEL_1` … of an untrained head.
    pub fn is_placeholder(&self) -> bool {
        self.names.iter().enumerate().all(|(i, name)| *name == format!("LABEL_{i}"))
    }

    /// The names found in data, in order: integers by value, else by letters. Where a model's names are the same set, or the
    /// data has just its indices, the model's order and names stay.
    pub fn settle(found: BTreeSet<String>, model: Option<&Labels>) -> Labels {
        let mut names: Vec<String> = found.into_iter().collect();
        let are_integers = names.iter().all(|name| integer(name).is_some());
        if are_integers {
            names.sort_by_key(|name| integer(name));
        }
        let Some(model) = model else { return Labels { names } };
        let own: BTreeSet<&String> = model.names.iter().collect();
        let same = own.len() == model.names.len() && own == names.iter().collect();
        let indices = names.len() == model.names.len()
            && names.iter().enumerate().all(|(i, name)| *name == i.to_string());
        if same || (indices && !model.is_placeholder()) { model.clone() } else { Labels { names } }
    }
}

/// An integer as it is usually written.
pub(super) fn integer(name: &str) -> Option<i64> {
    name.parse().ok().filter(|i: &i64| i.to_string() == name)
}

/// How much a row of each class counts in the loss.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ClassWeights {
    /// All the same.
    #[default]
    Even,
    /// Rare classes count more, so that all classes count the same together.
    Balanced,
    /// By name; classes not named count 1.
    Given(Vec<(String, f32)>),
}

impl ClassWeights {
    /// Reads `even`, `balanced`, or `positive=2,negative=0.5`.
    ///
    /// # Errors
    /// What cannot be read, and how it is written.
    pub fn parse(text: &str) -> Result<ClassWeights> {
        match text.trim() {
            "" | "even" | "none" => return Ok(ClassWeights::Even),
            "balanced" => return Ok(ClassWeights::Balanced),
            _ => {}
        }
        let wrong = |part: &str| {
            let part = shorten(part);
            Error::Input(format!(
                "class weights: {part:?} is not name=number; write balanced, or positive=2,negative=0.5"
            ))
        };
        let pair = |part: &str| {
            let (name, weight) = part.rsplit_once('=').ok_or_else(|| wrong(part))?;
            let weight: f32 = weight.trim().parse().map_err(|_| wrong(part))?;
            let usable = weight.is_finite() && weight >= 0.0;
            if !usable {
                return Err(Error::Input(format!("class weights: {part:?}: a weight is a number from 0 up")));
            }
            Ok((name.trim().to_string(), weight))
        };
        text.split(',').map(pair).collect::<Result<_>>().map(ClassWeights::Given)
    }

    /// One weight for each class, given how many rows of each there are; `None` if all are 1.
    ///
    /// # Errors
    /// A name that is no class's, or weights that are all 0.
    pub fn of(&self, labels: &Labels, counts: &[u64]) -> Result<Option<Vec<f32>>> {
        match self {
            ClassWeights::Even => Ok(None),
            ClassWeights::Balanced => Ok(Some(balanced(counts))),
            ClassWeights::Given(pairs) => {
                let mut weights = vec![1.0; labels.names.len()];
                for (name, weight) in pairs {
                    let class = labels.find(name);
                    let place = class.and_then(|class| weights.get_mut(class as usize));
                    *place
                        .ok_or_else(|| Error::Input(format!("class weights: {}", labels.unknown(name))))? =
                        *weight;
                }
                if weights.iter().all(|w| *w == 0.0) {
                    return Err(Error::Input(
                        "class weights: all of them are 0; nothing would be learned".into(),
                    ));
                }
                Ok(Some(weights))
            }
        }
    }
}

/// n / (K n_k); 1 for a class that does not occur.
pub fn balanced(counts: &[u64]) -> Vec<f32> {
    let rows: u64 = counts.iter().sum();
    let classes = counts.iter().filter(|n| **n > 0).count();
    let weight = |&n: &u64| if n == 0 { 1.0 } else { (rows as f64 / (classes as f64 * n as f64)) as f32 };
    counts.iter().map(weight).collect()
}
