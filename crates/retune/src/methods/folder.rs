//! Changed parameters between a model and the folder of a delta ([`retune_formats::delta`]).

use std::path::Path;

use retune_formats::TensorOut;
use retune_formats::delta::{self, Base, DeltaConfig, DeltaOut, Kind};
use serde_json::Value;

use crate::base::BaseIdentity;
use crate::error::{Error, Result};
use crate::models::Model;

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

/// A delta that was read.
pub(super) struct Delta {
    pub method: String,
    pub changes: Vec<Change>,
}

/// Writes changes of a model's base as a folder.
///
/// # Errors
/// If a value is not finite, nothing changed, or the folder cannot be written.
pub(super) fn write(
    model: &Model,
    folder: &Path,
    method: &str,
    settings: &Value,
    changes: Vec<Change>,
    readme: Option<&str>,
) -> Result<()> {
    let identity = BaseIdentity::of(model)?;
    let config = DeltaConfig {
        method: method.into(),
        settings: settings.as_object().cloned().unwrap_or_default(),
        base: Base { blake3: identity.blake3, shapes: identity.shapes },
        ..DeltaConfig::default()
    };
    let mut tensors = Vec::new();
    for Change { name, shape, values } in changes {
        let (Values::Dense(data) | Values::Sparse { values: data, .. }) = &values;
        if data.iter().any(|x| !x.is_finite()) {
            let what = format!("{name} is not finite and is not written");
            return Err(Error::Adapter { path: folder.to_path_buf(), what });
        }
        tensors.push(match values {
            Values::Dense(values) => DeltaOut::Dense(TensorOut::f32(name, &shape, values)),
            Values::Sparse { indices, values } => DeltaOut::Sparse { name, shape, indices, values },
        });
    }
    Ok(delta::write(folder, &config, tensors, readme)?)
}

/// Reads a folder.
///
/// # Errors
/// If it is damaged.
pub(super) fn read(folder: &Path) -> Result<Delta> {
    let delta = delta::Delta::open(folder)?;
    let mut changes = Vec::new();
    for (name, changed) in &delta.config().tensors {
        let values = match changed.kind {
            Kind::Dense => Values::Dense(delta.read_dense(name)?),
            Kind::Sparse => {
                let (indices, values) = delta.read_sparse(name)?;
                Values::Sparse { indices, values }
            }
        };
        changes.push(Change { name: name.clone(), shape: changed.shape.clone(), values });
    }
    Ok(Delta { method: delta.config().method.clone(), changes })
}
