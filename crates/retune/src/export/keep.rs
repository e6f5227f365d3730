//! Which weights are quantised where a type is asked for that bitsandbytes has.

use std::collections::BTreeSet;

use crate::models::Model;

/// The names of the weights that are quantised: those of the trunk's linear layers, without what a pattern keeps. Heads,
/// tables, norms and biases never are, as in bitsandbytes.
pub fn quantisable(model: &Model, keep: &[String]) -> BTreeSet<String> {
    let layers = model.net.trunk_linears().into_iter().map(|layer| format!("{}.weight", layer.path));
    layers.filter(|name| !is_kept(name, keep)).collect()
}

/// Is the tensor of this name kept by one of the patterns? A pattern is the beginning or the end of a module's path.
pub fn is_kept(tensor: &str, patterns: &[String]) -> bool {
    let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
    patterns.iter().any(|pattern| module.starts_with(pattern.as_str()) || module.ends_with(pattern.as_str()))
}
