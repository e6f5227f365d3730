//! Whether another tool's LoRA has all that its configuration asks for in a model: what is missing is told by name.

use std::path::Path;

use retune_formats::adapter_hub::{HEAD_CONFIG, HubAdapter, HubLora, has_head};
use retune_formats::{json, limits, mlx};
use serde_json::Value;

use crate::convert::form::lacks;
use crate::convert::hub_places;
use crate::error::Result;
use crate::models::Model;

/// Every place that the configuration names must be in the files; a language model's own head beside them must be the base's.
///
/// # Errors
/// If one is not.
pub(super) fn check_hub_lora(model: &Model, adapter: &HubAdapter, config: &HubLora) -> Result<()> {
    let (linears, _) = model.linear_paths();
    let has = |path: &str| adapter.tensors().iter().any(|tensor| tensor.site == path);
    if let Some(missing) = hub_places(config, linears.iter().map(String::as_str)).find(|path| !has(path)) {
        return Err(lacks(adapter.path(), missing, "its configuration"));
    }
    let own = has_head(adapter.path())
        && json::read(&adapter.path().join(HEAD_CONFIG), limits::CONFIG_BYTES)?
            .get("config")
            .is_some_and(Value::is_null);
    match own && model.net.language_model().is_some() {
        true => super::adapter::check_language_head(model, adapter.path()),
        false => Ok(()),
    }
}

/// Every key in every one of the last `num_layers` layers must be in the files.
///
/// # Errors
/// If one is not, or the configuration is damaged.
pub(super) fn check_mlx(model: &Model, folder: &Path) -> Result<()> {
    let value = json::read(&folder.join(mlx::CONFIG), limits::CONFIG_BYTES)?;
    let lora = mlx::read(folder)?;
    let Some(keys) = value.pointer("/lora_parameters/keys").and_then(Value::as_array) else { return Ok(()) };
    let blocks = model.net.blocks();
    // mlx-lm: -1 is all of them.
    let layers = value.get("num_layers").and_then(Value::as_u64).map_or(blocks, |n| blocks.min(n as usize));
    let (linears, _) = model.linear_paths();
    for key in keys.iter().filter_map(Value::as_str) {
        let of_key = |path: &&String| path.strip_suffix(key).is_some_and(|front| front.ends_with('.'));
        for path in linears.iter().filter(of_key) {
            let layer = path.split('.').find_map(|part| part.parse::<usize>().ok());
            if layer.is_some_and(|layer| layer + layers >= blocks) && !lora.modules.contains_key(path) {
                return Err(lacks(folder, path, mlx::CONFIG));
            }
        }
    }
    Ok(())
}
