//! The folder of a delta: `delta.json` and `delta.safetensors`.

use std::path::Path;

use retune_formats::{Dtype, TensorOut, TensorSource, atomic, json, safetensors};
use serde_json::json;

use crate::error::{Error, Result};

const CONFIG: &str = "delta.json";
const WEIGHTS: &str = "delta.safetensors";
const FORMAT: &str = "retune-delta-1";

/// One tensor of the base, changed.
pub(super) struct Change {
    /// Its Hugging Face name.
    pub name: String,
    /// As the base's files have it.
    pub shape: Vec<usize>,
    pub values: Values,
}

pub(super) enum Values {
    /// All new values, row-major.
    Dense(Vec<f32>),
    /// What is added to the entries at these places, row-major and ascending.
    Sparse { indices: Vec<u64>, values: Vec<f32> },
}

pub(super) struct Delta {
    pub method: String,
    pub changes: Vec<Change>,
}

pub(super) fn is_delta(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

pub(super) fn write(
    folder: &Path,
    method: &str,
    settings: &serde_json::Value,
    changes: Vec<Change>,
    readme: Option<&str>,
) -> Result<()> {
    let fail = |what: String| Error::Adapter { path: folder.to_path_buf(), what };
    let mut tensors = Vec::new();
    let mut listed = serde_json::Map::new();
    for Change { name, shape, values } in changes {
        let data = match &values {
            Values::Dense(values) | Values::Sparse { values, .. } => values,
        };
        if data.iter().any(|x| !x.is_finite()) {
            return Err(fail(format!("{name} is not finite and is not written")));
        }
        listed.insert(name.clone(), json!({ "shape": shape }));
        match values {
            Values::Dense(values) => tensors.push(TensorOut::f32(name, &shape, values)),
            Values::Sparse { indices, values } => {
                let bytes: Vec<u8> = indices.iter().flat_map(|i| (*i as i64).to_le_bytes()).collect();
                let n = [values.len()];
                tensors.push(TensorOut::bytes(format!("{name}.indices"), Dtype::I64, &n, bytes));
                tensors.push(TensorOut::f32(format!("{name}.values"), &n, values));
            }
        }
    }
    std::fs::create_dir_all(folder).map_err(|e| fail(e.to_string()))?;
    safetensors::write(&folder.join(WEIGHTS), tensors, &[("format", "pt")])?;
    if let Some(text) = readme {
        atomic::write_bytes(&folder.join("README.md"), text.as_bytes())?;
    }
    let config = json!({ "format": FORMAT, "method": method, "settings": settings, "tensors": listed });
    atomic::write_bytes(&folder.join(CONFIG), json::to_python_text(&config).as_bytes())?;
    Ok(())
}

pub(super) fn read(folder: &Path) -> Result<Delta> {
    let fail = |what: String| Error::Adapter { path: folder.to_path_buf(), what };
    let config = json::read(&folder.join(CONFIG), 4 << 20)?;
    let method = config["method"].as_str().unwrap_or_default().to_string();
    let file = safetensors::File::open(folder.join(WEIGHTS))?;
    let listed = config["tensors"].as_object().ok_or_else(|| fail("no tensors".into()))?;
    let mut changes = Vec::new();
    for (name, about) in listed {
        let shape: Vec<usize> = about["shape"]
            .as_array()
            .map(|s| s.iter().filter_map(|n| n.as_u64().map(|n| n as usize)).collect())
            .unwrap_or_default();
        let values = match file.find(name) {
            Some(_) => Values::Dense(file.read_f32(name)?),
            None => {
                let bytes = file.read(&format!("{name}.indices"))?;
                let indices = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
                Values::Sparse { indices, values: file.read_f32(&format!("{name}.values"))? }
            }
        };
        changes.push(Change { name: name.clone(), shape, values });
    }
    Ok(Delta { method, changes })
}
