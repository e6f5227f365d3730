//! Which weights are quantised in a folder.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::models::Model;
use crate::models::quantised::Quantised;

/// The names of the weights that are quantised: the linears of the blocks, without what a pattern keeps ([`Quantised`]).
///
/// # Errors
/// If a pattern cannot be read, or fits nothing.
pub fn quantisable(model: &Model, keep: &[String]) -> Result<BTreeSet<String>> {
    let rule = Quantised::new(keep)?;
    let layers = model.net.trunk_linears().into_iter().map(|layer| format!("{}.weight", layer.path));
    let all: BTreeSet<String> = layers.collect();
    let quantised = all.iter().filter(|name| rule.includes(name)).cloned().collect();
    rule.check_all_used(all.iter().map(String::as_str))?;
    Ok(quantised)
}

/// The names of the weights that patterns keep out of a GGUF file's block types.
///
/// # Errors
/// As [`quantisable`].
pub fn kept(model: &Model, keep: &[String]) -> Result<BTreeSet<String>> {
    let all = quantisable(model, &[])?;
    let rest = quantisable(model, keep)?;
    Ok(all.difference(&rest).cloned().collect())
}
