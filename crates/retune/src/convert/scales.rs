//! IA³'s scales apart from any tool's files: `y = (W x + b) * l`, or for feed-forward modules `y = W (x * l) + b`.

use std::collections::BTreeMap;

use retune_formats::TensorOut;
use retune_formats::adapter_hub::{HubAdapter, HubLora, HubParam};
use retune_formats::ia3_config::Ia3Config;
use retune_formats::lora_tensors::{fused_parts, is_fused};
use retune_formats::peft::{Param, PeftAdapter, key};

use super::refused;
use crate::error::Result;

/// One module's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    pub values: Vec<f32>,
    /// The input is scaled, not the output.
    pub feedforward: bool,
}

/// All of an adapter, by the path of the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scales {
    pub modules: BTreeMap<String, Scale>,
}

impl Scales {
    /// Those of a PEFT adapter; `beside` knows modules that are held whole and are not looked at.
    ///
    /// # Errors
    /// If it holds what is not the scale of a linear.
    pub fn of_peft(
        adapter: &PeftAdapter,
        config: &Ia3Config,
        beside: impl Fn(&str) -> bool,
    ) -> Result<Scales> {
        let matcher = config.matcher(adapter.path())?;
        let mut modules = BTreeMap::new();
        for tensor in adapter.tensors() {
            let name = &tensor.info.name;
            let [rows, cols] = match (&tensor.param, tensor.info.shape.as_slice()) {
                (Param::Ia3, &[rows, cols]) => [rows, cols],
                (Param::Plain(_), _) if beside(&tensor.module) => continue,
                _ => {
                    let what =
                        format!("it holds \"{name}\": only scales of linear layers can be carried over");
                    return Err(refused(adapter.path(), what));
                }
            };
            let feedforward = matcher.is_feedforward(&tensor.module).unwrap_or(rows < cols);
            let values = adapter.read_f32(tensor)?;
            modules.insert(tensor.module.clone(), Scale { values, feedforward });
        }
        Ok(Scales { modules })
    }

    /// Those of an AdapterHub LoRA that scales. Of a fused query, key and value the parts that are not adapted stay as they
    /// are.
    ///
    /// # Errors
    /// If a tensor does not fit the configuration.
    pub fn of_hub(adapter: &HubAdapter, config: &HubLora) -> Result<Scales> {
        let mut modules = BTreeMap::new();
        for tensor in adapter.tensors().iter().filter(|t| t.param == HubParam::LoraB) {
            let alpha = config.alpha as f32;
            let mut values: Vec<f32> = adapter.read_f32(tensor)?.into_iter().map(|l| l * alpha).collect();
            if is_fused(&tensor.site) {
                let parts = fused_parts(&config.attn_matrices);
                if parts.is_empty() || !values.len().is_multiple_of(parts.len()) {
                    let what = format!("tensor \"{}\" does not fit attn_matrices", tensor.info.name);
                    return Err(refused(adapter.path(), what));
                }
                let rows = values.len() / parts.len();
                let mut all = vec![alpha; 3 * rows];
                for (part, own) in parts.iter().zip(values.chunks_exact(rows.max(1))) {
                    all[part * rows..(part + 1) * rows].copy_from_slice(own);
                }
                values = all;
            }
            modules.insert(tensor.site.clone(), Scale { values, feedforward: false });
        }
        Ok(Scales { modules })
    }

    /// As PEFT's files have them.
    pub fn peft_tensors(&self) -> Vec<TensorOut<'static>> {
        let tensor = |(module, scale): (&String, &Scale)| {
            let n = scale.values.len();
            let shape = if scale.feedforward { [1, n] } else { [n, 1] };
            TensorOut::f32(key(module, &Param::Ia3), &shape, scale.values.clone())
        };
        self.modules.iter().map(tensor).collect()
    }
}
