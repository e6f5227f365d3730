//! Which modules of a base model an adapter acts on: PEFT's rules for `target_modules` and its relatives.
//!
//! A module is its path in the base model (`model.layers.0.self_attn.q_proj`). Patterns are linear-time regular
//! expressions of bounded size; what they cannot express is refused by name.

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};

use crate::error::{Error, Result, quote};
use crate::limits;

/// Which modules of a model are meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Modules {
    /// Modules of these names, or whose path ends in `.name`.
    List(Vec<String>),
    /// Modules whose whole path matches this regular expression.
    Pattern(String),
    /// Every linear layer but the output layer.
    AllLinear,
}

impl Modules {
    /// As PEFT writes it: a list, a pattern, or `all-linear`; null if there is none.
    pub fn to_json(modules: &Option<Modules>) -> Value {
        match modules {
            None => Value::Null,
            Some(Modules::List(names)) => json!(names),
            Some(Modules::Pattern(pattern)) => json!(pattern),
            Some(Modules::AllLinear) => json!("all-linear"),
        }
    }
}

/// What a configuration says about the modules that it is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection<'a> {
    pub target_modules: Option<&'a Modules>,
    pub exclude_modules: Option<&'a Modules>,
    pub modules_to_save: Option<&'a [String]>,
    pub layers_to_transform: Option<&'a [usize]>,
    pub layers_pattern: Option<&'a [String]>,
}

/// [`Modules`] with its pattern compiled.
enum Names {
    Unknown,
    All,
    List(Vec<String>),
    Pattern(Regex),
}

impl Names {
    fn new(path: &Path, key: &str, modules: Option<&Modules>) -> Result<Names> {
        Ok(match modules {
            None => Names::Unknown,
            Some(Modules::AllLinear) => Names::All,
            Some(Modules::List(names)) => Names::List(names.clone()),
            Some(Modules::Pattern(p)) => Names::Pattern(compile(path, key, p, &format!("^(?:{p})$"))?),
        })
    }
}

/// The compiled [`Selection`]: which modules an adapter changes, and which it holds whole.
pub struct ModuleMatcher {
    targets: Names,
    excluded: Names,
    saved: Vec<String>,
    layers: Option<Vec<usize>>,
    layer_index: Vec<Regex>,
}

impl ModuleMatcher {
    /// Compiles the patterns; `path` is for messages.
    pub fn new(path: &Path, selection: &Selection) -> Result<ModuleMatcher> {
        let layers = selection.layers_to_transform.filter(|v| !v.is_empty());
        let layer_index = match (layers, selection.layers_pattern) {
            (None, _) => Vec::new(),
            (Some(_), None) => vec![compile(path, "layers_pattern", "", r"^.*?\.[^.]*\.([0-9]+)\.")?],
            (Some(_), Some(names)) => {
                let whole = |p: &String| {
                    compile(path, "layers_pattern", p, &format!(r"^(?:.*?\.)?(?:{p})\.([0-9]+)\."))
                };
                names.iter().take(limits::PATTERNS).map(whole).collect::<Result<_>>()?
            }
        };
        Ok(ModuleMatcher {
            targets: Names::new(path, "target_modules", selection.target_modules)?,
            excluded: Names::new(path, "exclude_modules", selection.exclude_modules)?,
            saved: selection.modules_to_save.unwrap_or_default().to_vec(),
            layers: layers.map(<[usize]>::to_vec),
            layer_index,
        })
    }

    /// Does PEFT adapt this module? `None` if the configuration leaves that to the model (no `target_modules`, or
    /// `all-linear`).
    pub fn is_target(&self, module: &str) -> Option<bool> {
        let excluded = match &self.excluded {
            Names::Unknown | Names::All => false,
            Names::List(names) => ends_in(module, names),
            Names::Pattern(regex) => regex.is_match(module),
        };
        if excluded || self.is_saved(module) {
            return Some(false);
        }
        match &self.targets {
            Names::Unknown | Names::All => None,
            Names::Pattern(regex) => Some(regex.is_match(module)),
            Names::List(names) if names.iter().any(|n| n == module) => Some(true),
            Names::List(names) => Some(ends_in(module, names) && self.is_chosen_layer(module)),
        }
    }

    /// Is this module, or one around it, in `modules_to_save`?
    pub fn is_saved(&self, module: &str) -> bool {
        let dotted = format!(".{module}.");
        self.saved.iter().any(|name| !name.is_empty() && dotted.contains(&format!(".{name}.")))
    }

    /// Does PEFT hold this module whole? Unlike above, a name of `modules_to_save` need not begin at a dot: `norm` is
    /// every `input_layernorm` too, and `classifier` a `pre_classifier`.
    pub fn is_whole(&self, module: &str) -> bool {
        let ends = module.match_indices('.').map(|(dot, _)| dot).chain([module.len()]);
        let mut around = ends.filter_map(|end| module.get(..end));
        around.any(|path| self.saved.iter().any(|name| !name.is_empty() && path.ends_with(name.as_str())))
    }

    fn is_chosen_layer(&self, module: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        let found = self.layer_index.iter().find_map(|regex| regex.captures(module));
        let index = found.and_then(|c| c.get(1)?.as_str().parse::<usize>().ok());
        index.is_some_and(|index| layers.contains(&index))
    }
}

/// IA³'s `feedforward_modules`: unlike targets, a name need not begin at a dot.
pub(crate) struct Ends(Names);

impl Ends {
    pub fn new(path: &Path, key: &str, modules: Option<&Modules>) -> Result<Ends> {
        Names::new(path, key, modules).map(Ends)
    }

    /// `None` if the configuration leaves it to the model.
    pub fn matches(&self, module: &str) -> Option<bool> {
        match &self.0 {
            Names::Unknown | Names::All => None,
            Names::List(names) => Some(names.iter().any(|name| module.ends_with(name.as_str()))),
            Names::Pattern(regex) => Some(regex.is_match(module)),
        }
    }
}

/// Is a module one of these, or does its path end in `.name`?
fn ends_in(module: &str, names: &[String]) -> bool {
    let ends = |name: &String| {
        let front = module.strip_suffix(name.as_str());
        front.is_some_and(|front| front.is_empty() || front.ends_with('.'))
    };
    names.iter().any(ends)
}

/// A key of `rank_pattern` or `alpha_pattern`: PEFT's `(.*\.)?(pattern)$`.
pub(crate) enum Suffix {
    /// Letters, digits, `_`, `-` and dots, as nearly all are. A dot stands for any character, being a pattern still.
    Plain(String),
    Regex(Regex),
}

impl Suffix {
    pub fn new(path: &Path, key: &str, pattern: &str, left: &mut usize) -> Result<Suffix> {
        if pattern.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
            return Ok(Suffix::Plain(pattern.to_string()));
        }
        *left = left.checked_sub(1).ok_or_else(|| {
            let what = format!("the number of regular expressions in {key}");
            Error::limit(path, what, limits::PATTERNS as u64 + 1, limits::PATTERNS as u64)
        })?;
        Ok(Suffix::Regex(compile(path, key, pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"))?))
    }

    pub fn matches(&self, module: &str) -> bool {
        match self {
            Suffix::Regex(regex) => regex.is_match(module),
            Suffix::Plain(pattern) => {
                let mut rest = module.chars().rev();
                pattern.chars().rev().all(|p| rest.next().is_some_and(|c| c == p || p == '.'))
                    && rest.next().is_none_or(|c| c == '.')
            }
        }
    }
}

/// Compiles `whole`, a regular expression around the `pattern` of the file.
fn compile(path: &Path, key: &str, pattern: &str, whole: &str) -> Result<Regex> {
    if pattern.len() > limits::PATTERN_BYTES {
        let what = format!("the length of a pattern in {key}");
        return Err(Error::limit(path, what, pattern.len() as u64, limits::PATTERN_BYTES as u64));
    }
    let mut builder = RegexBuilder::new(whole);
    builder.size_limit(limits::PATTERN_COMPILED_BYTES).dfa_size_limit(limits::PATTERN_COMPILED_BYTES);
    builder.build().map_err(|e| {
        let reason = e.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let what = format!("the pattern {} in `{key}` cannot be used: {reason}", quote(pattern));
        Error::unsupported(path, what, "list the module names instead")
    })
}
