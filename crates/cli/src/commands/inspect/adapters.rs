//! What an adapter is, whichever tool wrote it: its method, its base, its task, its tensors.

use std::path::Path;

use anyhow::Result;
use retune::base::BaseIdentity;
use retune::tasks::TaskRecord;
use retune_formats::adapter_hub::{self, HubAdapter, HubHead, HubMethod};
use retune_formats::adapters::{AdapterKind, kind_of};
use retune_formats::delta::{self, Delta};
use retune_formats::peft::{self, PeftAdapter};
use retune_formats::{TensorSource, gguf, gguf_lora, json, limits, mlx, safetensors};
use serde_json::{Value, json};

use super::models::classes;
use super::{Facts, Found, Listed, facts_of};
use crate::style::count;

pub fn is_folder(path: &Path) -> bool {
    peft::is_adapter_folder(path) || delta::is_delta_folder(path) || adapter_hub::has_head(path)
}

/// Looks at a folder, or a LoRA of llama.cpp. Opening checks keys, shapes, ranks and that every value is finite.
pub fn look_at(path: &Path) -> Result<Found> {
    let (kind, mut facts, tensors) = match kind_of(path)? {
        AdapterKind::Peft => {
            let adapter = PeftAdapter::open(path)?;
            let facts = [of_peft(path)?, notes(adapter.notes())].concat();
            ("PEFT adapter", facts, tensors(adapter.source()))
        }
        AdapterKind::AdapterHub => {
            let adapter = HubAdapter::open(path)?;
            let facts = [of_hub(&adapter), notes(adapter.notes())].concat();
            ("AdapterHub adapter", facts, tensors(adapter.source()))
        }
        AdapterKind::HubHead => {
            let head = HubHead::open(path)?;
            ("AdapterHub head", vec![("method", "head".into())], tensors(head.source()))
        }
        AdapterKind::Mlx => {
            mlx::read(path)?;
            ("mlx-lm adapter", of_mlx(path)?, tensors(&safetensors::File::open(path.join(mlx::WEIGHTS))?))
        }
        AdapterKind::Delta => {
            let delta = Delta::open(path)?;
            ("Retune delta: the weights that changed", of_delta(&delta), tensors(delta.source()))
        }
        AdapterKind::GgufLora => {
            let file = gguf::File::open(path)?;
            let lora = gguf_lora::read(&file)?;
            let facts = vec![("method", "LoRA".into()), ("architecture", lora.architecture)];
            ("LoRA for llama.cpp", [facts, notes(&lora.notes)].concat(), tensors(&file))
        }
    };
    facts.extend(beside(path)?);
    Ok(Found { kind, is_model: false, layers_differ: false, path: path.into(), facts, tensors })
}

fn tensors(source: &dyn TensorSource) -> Vec<Listed> {
    source.tensors().iter().map(Listed::from).collect()
}

fn notes(notes: &[String]) -> Facts {
    notes.iter().map(|note| ("note", note.clone())).collect()
}

fn config(folder: &Path) -> Result<Value> {
    Ok(json::read(&folder.join(peft::CONFIG), limits::CONFIG_BYTES)?)
}

fn of_peft(folder: &Path) -> Result<Facts> {
    let keys = [
        ("method", "peft_type"),
        ("base model", "base_model_name_or_path"),
        ("task", "task_type"),
        ("rank", "r"),
        ("lora_alpha", "lora_alpha"),
        ("lora_dropout", "lora_dropout"),
        ("rslora", "use_rslora"),
        ("dora", "use_dora"),
        ("virtual tokens", "num_virtual_tokens"),
        ("targets", "target_modules"),
    ];
    Ok(facts_of(&config(folder)?, &keys))
}

fn of_hub(adapter: &HubAdapter) -> Facts {
    let config = adapter.config();
    let method = match &config.method {
        HubMethod::Bottleneck(_) => "bottleneck adapters",
        HubMethod::Lora(lora) if lora.scales => "IA3",
        HubMethod::Lora(_) => "LoRA",
        HubMethod::Prompt(_) => "prompt tuning",
        HubMethod::Prefix(_) => "prefix tuning",
    };
    let mut facts: Facts = vec![
        ("name", config.name.clone()),
        ("method", method.into()),
        ("architecture", config.model_type.clone()),
    ];
    facts.extend(config.model_name.clone().filter(|name| !name.is_empty()).map(|name| ("base model", name)));
    facts
}

fn of_mlx(folder: &Path) -> Result<Facts> {
    let config = config(folder)?;
    let mut facts = facts_of(&config, &[("method", "fine_tune_type"), ("base model", "model")]);
    facts.extend(facts_of(
        &config["lora_parameters"],
        &[("rank", "rank"), ("scale", "scale"), ("targets", "keys")],
    ));
    Ok(facts)
}

fn of_delta(delta: &Delta) -> Facts {
    let config = delta.config();
    let settings = config.settings.iter().filter(|(_, value)| !value.is_null());
    let settings: Vec<String> = settings.map(|(key, value)| format!("{key} = {value}")).collect();
    let mut facts = vec![("method", config.method.clone())];
    if !settings.is_empty() {
        facts.push(("settings", settings.join(", ")));
    }
    facts.push(("changed", format!("{} parameters of the model", count(config.tensors.len() as u64))));
    facts
}

/// What Retune wrote beside the adapter: which base, which task, which classes.
fn beside(path: &Path) -> Result<Facts> {
    if !path.is_dir() {
        return Ok(Facts::new());
    }
    let mut facts = Facts::new();
    if let Some(base) = BaseIdentity::read(path)? {
        let values = count(base.parameters);
        facts.push(("trained on", format!("{} ({}, {values} parameters)", base.path, base.model_type)));
    }
    if let Some(record) = TaskRecord::read(path)? {
        facts.extend(facts_of(&json!(record), &[("trained for", "task")]));
        facts.extend((!record.labels.is_empty()).then(|| ("classes", classes(&record.labels))));
    }
    Ok(facts)
}
