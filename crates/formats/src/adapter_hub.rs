//! An adapter folder of AdapterHub's `adapters`: `adapter_config.json` with `adapter.safetensors` or
//! `pytorch_adapter.bin`, and a head beside it.
//!
//! Keys keep the adapter's name and the model's own path: `bert.encoder.layer.0.output.adapters.NAME.adapter_up.weight`.
//! A *site* is what stands before `.adapters.NAME` (or `.loras.NAME`, …).

mod check;
mod config;
mod head;
mod keys;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, quote};
use crate::peft::{self, Producer, identify};
use crate::source::{TensorInfo, TensorOut, TensorSource};
use crate::{atomic, json, limits, safetensors};
use check::Part;

pub use config::{
    ADAPTERS_VERSION, BnConfig, HubConfig, HubLora, HubMethod, HubPrefix, HubPrompt, Reduction, Residual,
    Scaling,
};
pub use head::{HEAD_CONFIG, HeadConfig, HeadParam, HubHead, has_head, write_head};
pub use keys::HubParam;

const FORMAT: &str = "AdapterHub";
/// The name of the configuration in a folder.
pub const CONFIG: &str = peft::CONFIG;
/// The name of the weights in a folder.
pub const WEIGHTS: &str = "adapter.safetensors";
/// The same as a file of PyTorch, which the library writes unless it is asked for safetensors.
pub const WEIGHTS_BIN: &str = "pytorch_adapter.bin";

/// One tensor of an adapter.
#[derive(Clone, Debug)]
pub struct HubTensor {
    /// Where in the model it sits; for a prefix with its kind at the end (`bert.prefix_tuning.self_prefix`).
    pub site: String,
    pub param: HubParam,
    /// The tensor in the file (its name is the key).
    pub info: TensorInfo,
}

/// An open folder, all checked: keys, shapes, layers, finite values.
pub struct HubAdapter {
    folder: PathBuf,
    config: HubConfig,
    source: Box<dyn TensorSource>,
    tensors: Vec<HubTensor>,
    notes: Vec<String>,
}

impl fmt::Debug for HubAdapter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("HubAdapter").field("folder", &self.folder).field("config", &self.config).finish()
    }
}

impl HubAdapter {
    /// Opens a folder and checks all that can be checked without the base model.
    pub fn open(folder: impl AsRef<Path>) -> Result<HubAdapter> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        if !path.is_file() {
            let remedy = "give the folder that save_adapter wrote";
            return Err(Error::missing(folder, format!("there is no {CONFIG} in it"), remedy));
        }
        let (config, notes) = read_config(&path)?;
        let mut adapter = HubAdapter::new(folder, config, peft::open_weights(folder, WEIGHTS, WEIGHTS_BIN)?)?;
        adapter.notes.splice(0..0, notes);
        Ok(adapter)
    }

    /// Checks a configuration and weights that are already open; `folder` is for messages.
    pub fn new(folder: &Path, config: HubConfig, source: impl TensorSource + 'static) -> Result<HubAdapter> {
        let (mut tensors, mut copies) = (Vec::new(), Vec::new());
        let mut legacy = 0;
        for info in source.tensors() {
            let parsed = config.parse_key(source.path(), &info.name)?;
            legacy += usize::from(parsed.legacy);
            let tensor = HubTensor { site: parsed.site, param: parsed.param, info: info.clone() };
            if parsed.copy { copies.push(tensor) } else { tensors.push(tensor) }
        }
        settle_copies(&source, &mut tensors, copies)?;
        let parts = tensors.iter().map(|t| Part {
            site: &t.site,
            param: t.param,
            dtype: t.info.dtype,
            shape: &t.info.shape,
        });
        check::check(source.path(), &config, parts)?;
        for tensor in &tensors {
            peft::check_finite(&source, &tensor.info)?;
        }
        let notes = (legacy > 0)
            .then(|| format!("{legacy} tensors have names of the library's first versions"))
            .into_iter()
            .collect();
        Ok(HubAdapter { folder: folder.to_path_buf(), config, source: Box::new(source), tensors, notes })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The configuration.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// All tensors with what they are for, each once.
    pub fn tensors(&self) -> &[HubTensor] {
        &self.tensors
    }

    /// The tensor for a parameter at a site.
    pub fn find(&self, site: &str, param: HubParam) -> Option<&HubTensor> {
        self.tensors.iter().find(|t| t.site == site && t.param == param)
    }

    /// The values of a tensor, row-major.
    pub fn read_f32(&self, tensor: &HubTensor) -> Result<Vec<f32>> {
        self.source.read_f32(&tensor.info.name)
    }

    /// The weights as a file of named tensors.
    pub fn source(&self) -> &dyn TensorSource {
        &*self.source
    }

    /// What is odd about the files but no error; worth showing.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Reads a configuration and says by name if it is of another tool.
fn read_config(path: &Path) -> Result<(HubConfig, Vec<String>)> {
    let value = json::read(path, limits::CONFIG_BYTES)?;
    match identify(&value) {
        Producer::AdapterHub(_) => {
            HubConfig::from_json(path, value.as_object().unwrap_or(&Default::default()))
        }
        Producer::Peft(kind) => {
            let what = format!("this is a PEFT adapter ({})", quote(&kind));
            Err(Error::unsupported(path, what, "an AdapterHub adapter was expected"))
        }
        Producer::Mlx(kind) => {
            let what = format!("this is an mlx-lm adapter (fine_tune_type {})", quote(&kind));
            Err(Error::unsupported(path, what, "an AdapterHub adapter was expected"))
        }
        Producer::Unknown => {
            let what = "there is no `config` and `name` in it, so it is not an AdapterHub adapter";
            Err(Error::unsupported(path, what, "give the folder that save_adapter wrote"))
        }
    }
}

/// Second names of tensors must hold the same values, and stand in where the first name is missing.
fn settle_copies(
    source: &dyn TensorSource,
    tensors: &mut Vec<HubTensor>,
    copies: Vec<HubTensor>,
) -> Result<()> {
    for copy in copies {
        // Every layer points to the one pool of prefixes at the top of the model.
        let same = |t: &&HubTensor| {
            let pool =
                t.site.rsplit_once(".prefix_tuning.").zip(copy.site.rsplit_once(".prefix_tuning.pool."));
            t.param == copy.param
                && match pool {
                    Some(((top, one), (inner, other))) => one == other && inner.starts_with(top),
                    None => t.site == copy.site,
                }
        };
        match tensors.iter().find(same) {
            None => tensors.push(copy),
            Some(first) => {
                if source.read(&first.info.name)? != source.read(&copy.info.name)? {
                    let (one, other) = (quote(&first.info.name), quote(&copy.info.name));
                    let what = format!("{one} and {other} should be one tensor, and differ");
                    return Err(Error::invalid(source.path(), FORMAT, what));
                }
            }
        }
    }
    Ok(())
}

/// Writes a folder as `save_adapter(use_safetensors=True)` does: weights, then the configuration (its presence says that
/// the rest is there). Each file is replaced atomically. Keys come from [`HubConfig::key`].
///
/// # Errors
/// If the tensors do not fit the configuration, the configuration is one that would not be read again, or the folder
/// cannot be written.
pub fn write<'a>(
    folder: &Path,
    config: &HubConfig,
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
) -> Result<()> {
    let weights = folder.join(WEIGHTS);
    let path = folder.join(CONFIG);
    let tensors: Vec<TensorOut> = tensors.into_iter().collect();
    let value = config.to_json();
    HubConfig::from_json(&path, value.as_object().unwrap_or(&Default::default()))?;
    let mut parsed = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let key = config.parse_key(&weights, &tensor.name)?;
        if key.copy || key.legacy {
            let what = format!("tensor {} is not named as it is written today", quote(&tensor.name));
            return Err(Error::Write { path: weights, what });
        }
        parsed.push((key.site, key.param, tensor.dtype, tensor.shape.clone()));
    }
    let parts =
        parsed.iter().map(|(site, param, dtype, shape)| Part { site, param: *param, dtype: *dtype, shape });
    check::check(&weights, config, parts)?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    safetensors::write(&weights, tensors, &[])?;
    atomic::write_bytes(&path, json::to_python_text(&value).as_bytes())
}
