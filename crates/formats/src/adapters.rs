//! Which tool's adapter lies at a path.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::peft::{self, Producer, identify};
use crate::{adapter_hub, delta, gguf, gguf_lora, json, limits};

/// The kinds of adapters that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterKind {
    /// [`peft::PeftAdapter`].
    Peft,
    /// [`adapter_hub::HubAdapter`], with or without a head beside it.
    AdapterHub,
    /// [`adapter_hub::HubHead`] alone.
    HubHead,
    /// [`crate::mlx`].
    Mlx,
    /// [`delta::Delta`].
    Delta,
    /// [`gguf_lora`].
    GgufLora,
}

/// Looks at the configuration of a folder, or the metadata of a GGUF file.
///
/// # Errors
/// If there is no adapter, or the folder holds two.
pub fn kind_of(path: &Path) -> Result<AdapterKind> {
    if path.is_file() {
        if gguf::File::is_gguf(path) && gguf_lora::is_adapter(&gguf::File::open(path)?) {
            return Ok(AdapterKind::GgufLora);
        }
        let remedy = "give an adapter's folder, or a LoRA for llama.cpp";
        return Err(Error::unsupported(path, "this file is no adapter", remedy));
    }
    let config = path.join(peft::CONFIG);
    match (delta::is_delta_folder(path), config.is_file()) {
        (true, true) => {
            let what = format!("there are two adapters in it: {} and {}", delta::CONFIG, peft::CONFIG);
            Err(Error::unsupported(path, what, "move one of them into a folder of its own"))
        }
        (true, false) => Ok(AdapterKind::Delta),
        (false, true) => of_config(&config, &json::read(&config, limits::CONFIG_BYTES)?),
        (false, false) if adapter_hub::has_head(path) => Ok(AdapterKind::HubHead),
        (false, false) => Err(peft::no_config(path)),
    }
}

fn of_config(path: &Path, value: &Value) -> Result<AdapterKind> {
    match identify(value) {
        Producer::Peft(_) => Ok(AdapterKind::Peft),
        Producer::AdapterHub(_) => Ok(AdapterKind::AdapterHub),
        Producer::Mlx(_) => Ok(AdapterKind::Mlx),
        Producer::Unknown => {
            let what = "it is none of PEFT's, AdapterHub's and mlx-lm's configurations";
            let remedy =
                "PEFT's has `peft_type`, AdapterHub's `config` and `name`, mlx-lm's `fine_tune_type`";
            Err(Error::unsupported(path, what, remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_told_apart() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/formats");
        for (name, kind) in [
            ("lora_gpt2", AdapterKind::Peft),
            ("ah_bert_lora", AdapterKind::AdapterHub),
            ("ah_head", AdapterKind::HubHead),
        ] {
            assert_eq!(kind_of(&data.join(name)).unwrap(), kind);
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(kind_of(dir.path()).unwrap_err().to_string().contains("adapter_config.json"));
        let config = dir.path().join(peft::CONFIG);
        std::fs::write(&config, "{}").unwrap();
        assert!(kind_of(dir.path()).unwrap_err().to_string().contains("peft_type"));
        assert!(kind_of(&config).unwrap_err().to_string().contains("no adapter"));
        std::fs::write(&config, r#"{"fine_tune_type": "lora"}"#).unwrap();
        assert_eq!(kind_of(dir.path()).unwrap(), AdapterKind::Mlx);
        std::fs::write(dir.path().join(delta::CONFIG), "{}").unwrap();
        assert!(kind_of(dir.path()).unwrap_err().to_string().contains("two adapters"));
        std::fs::remove_file(config).unwrap();
        assert_eq!(kind_of(dir.path()).unwrap(), AdapterKind::Delta);
    }
}
