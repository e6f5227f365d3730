//! An adapter apart from any tool's files: LoRA's factors or IA³'s scales by module path, and a classifier beside them.
//!
//! Everything that several tools have comes through here, for [`super::convert`] and for loading what is not PEFT's.

use std::collections::BTreeMap;
use std::path::Path;

use retune_formats::adapter_hub::{HubAdapter, HubMethod};
use retune_formats::adapters::AdapterKind;
use retune_formats::ia3_config::Ia3Config;
use retune_formats::lora_config::Modules;
use retune_formats::lora_tensors::{LoraModule, LoraTensors};
use retune_formats::memory::Memory;
use retune_formats::peft::{Param, PeftAdapter, PeftConfig, key};
use retune_formats::peft_common::Common;
use retune_formats::{Data, TensorOut, gguf, gguf_lora, mlx};

use super::base::Base;
use super::heads::{self, Whole};
use super::scales::Scales;
use super::{needs_base, refused, renamed};
use crate::error::{Error, Result};

/// What is done at the modules.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Lora(LoraTensors),
    Ia3(Scales),
}

/// An adapter without a format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Form {
    pub what: What,
    /// The classifier that was trained beside.
    pub head: Option<Whole>,
    /// What people should know, in sentences.
    pub notes: Vec<String>,
}

impl Form {
    /// Reads any tool's files.
    ///
    /// # Errors
    /// If they are damaged, hold what only their own tool has, or cannot be understood without the base.
    pub fn read(from: &Path, kind: AdapterKind, base: Option<&Base>) -> Result<Form> {
        match kind {
            AdapterKind::Peft => Form::of_peft(from, &PeftAdapter::open(from)?, base),
            AdapterKind::AdapterHub => Form::of_hub(from, &HubAdapter::open(from)?, base),
            AdapterKind::Mlx => {
                Ok(Form { what: What::Lora(mlx::read(from)?), head: None, notes: Vec::new() })
            }
            AdapterKind::GgufLora => {
                let read = gguf_lora::read(&gguf::File::open(from)?)?;
                let lora = of_gguf(from, &read, base)?;
                Ok(Form { what: What::Lora(lora), head: None, notes: read.notes })
            }
            AdapterKind::HubHead => {
                Err(refused(from, "it is a head alone: no other tool has files for that".into()))
            }
            AdapterKind::Delta => {
                let what = "it is a delta, which holds new values of the base's own weights: no other tool has files for \
                            that; `retune merge` writes it as a whole model";
                Err(refused(from, what.into()))
            }
        }
    }

    fn of_peft(from: &Path, adapter: &PeftAdapter, base: Option<&Base>) -> Result<Form> {
        let head = base.map(|base| Whole::of_peft(adapter, base)).transpose()?.flatten();
        let is_head = |module: &str| head.as_ref().is_some_and(|head| head.holds(module));
        let what = match adapter.config() {
            PeftConfig::Lora(_) => What::Lora(LoraTensors::from_peft_beside(adapter, is_head)?),
            PeftConfig::Ia3(config) => What::Ia3(Scales::of_peft(adapter, config, is_head)?),
            other => {
                let what = format!("its peft_type is {}", other.peft_type());
                return Err(refused(from, format!("{what}: only PEFT has files for that")));
            }
        };
        Ok(Form { what, head, notes: adapter.notes().to_vec() })
    }

    fn of_hub(from: &Path, adapter: &HubAdapter, base: Option<&Base>) -> Result<Form> {
        let only = |what: &str| {
            Err(refused(from, format!("{what}; give the folder to --adapter to use it as it is")))
        };
        let what = match &adapter.config().method {
            HubMethod::Lora(lora) if lora.scales => What::Ia3(Scales::of_hub(adapter, lora)?),
            HubMethod::Lora(_) => What::Lora(LoraTensors::from_hub(adapter)?),
            HubMethod::Bottleneck(_) => {
                return only("it is a bottleneck adapter: no tool but AdapterHub has files for that");
            }
            HubMethod::Prompt(_) => {
                return only(
                    "it is AdapterHub's prompt, whose rows take no position and no norm: PEFT's take both, and none \
                     of its prompts does the same",
                );
            }
            HubMethod::Prefix(_) => {
                return only(
                    "it is AdapterHub's prefix, which takes no positions: PEFT moves the text behind its prefixes, and without \
                     rotary positions none of them does the same",
                );
            }
        };
        let model_type = base.map_or(adapter.config().model_type.as_str(), |base| &base.model_type);
        let mut notes = adapter.notes().to_vec();
        let head = heads::of_hub(from, model_type, &mut notes)?;
        Ok(Form { what, head, notes })
    }

    /// How many modules it acts on.
    pub fn modules(&self) -> usize {
        match &self.what {
            What::Lora(lora) => lora.modules.len(),
            What::Ia3(scales) => scales.modules.len(),
        }
    }

    /// As PEFT has it. `transposed`: the base's linears are stored `(in, out)`, as GPT-2's.
    ///
    /// # Errors
    /// If PEFT's patterns cannot tell the modules' settings apart.
    pub fn to_peft(
        &self,
        mut common: Common,
        transposed: bool,
    ) -> Result<(PeftConfig, Vec<TensorOut<'static>>)> {
        let modules_to_save = self.head.as_ref().map(|head| {
            common.task_type = Some(head.task_type().into());
            crate::methods::saved::CLASSIFIERS.map(String::from).to_vec()
        });
        let (config, mut tensors) = match &self.what {
            What::Lora(lora) => {
                let (config, tensors) = lora.to_peft(common)?;
                let config = PeftConfig::Lora(retune_formats::lora_config::LoraConfig {
                    modules_to_save,
                    fan_in_fan_out: transposed,
                    ..config
                });
                (config, tensors.into_iter().map(owned).collect())
            }
            What::Ia3(scales) => {
                let names = |of: &dyn Fn(bool) -> bool| {
                    let all = scales.modules.iter().filter(|(_, scale)| of(scale.feedforward));
                    Some(Modules::List(all.map(|(name, _)| name.clone()).collect()))
                };
                let config = Ia3Config {
                    target_modules: names(&|_| true),
                    feedforward_modules: names(&|feedforward| feedforward),
                    modules_to_save,
                    fan_in_fan_out: transposed,
                    common,
                    ..Ia3Config::default()
                };
                (PeftConfig::Ia3(config), scales.peft_tensors())
            }
        };
        for (name, (shape, values)) in self.head.iter().flat_map(|head| &head.parameters) {
            let (module, part) = name.rsplit_once('.').unwrap_or((name, ""));
            tensors.push(TensorOut::f32(key(module, &Param::Plain(part.into())), shape, values.clone()));
        }
        Ok((config, tensors))
    }

    /// As an adapter of PEFT that was read from files.
    ///
    /// # Errors
    /// As [`Form::to_peft`].
    pub fn as_peft(&self, from: &Path, transposed: bool) -> Result<PeftAdapter> {
        let (config, tensors) = self.to_peft(Common::default(), transposed)?;
        Ok(PeftAdapter::new(from, config, Memory::new(from, tensors)?)?)
    }

    /// The LoRA alone, for tools that have nothing else.
    ///
    /// # Errors
    /// If it is something else, or holds a head.
    pub fn lora(&self, from: &Path, tool: &str) -> Result<&LoraTensors> {
        match (&self.what, &self.head) {
            (What::Ia3(_), _) => Err(refused(from, format!("it is an IA3, which {tool} does not have"))),
            (_, Some(_)) => {
                let what = format!(
                    "it holds a classifier, which {tool} does not have: only A and B can be carried over"
                );
                Err(refused(from, what))
            }
            (What::Lora(lora), None) => Ok(lora),
        }
    }
}

fn owned(tensor: TensorOut) -> TensorOut<'static> {
    let data = match tensor.data {
        Data::F32(values) => Data::F32(values.into_owned().into()),
        Data::Bytes(bytes) => Data::Bytes(bytes.into_owned().into()),
        // Factors are held in memory.
        Data::Stream(_) => Data::Bytes(Vec::new().into()),
    };
    TensorOut { name: tensor.name, dtype: tensor.dtype, shape: tensor.shape, data }
}

fn of_gguf(from: &Path, read: &gguf_lora::GgufLora, base: Option<&Base>) -> Result<LoraTensors> {
    let why = "the order of rows in a GGUF file depends on the base";
    let base = needs_base(from, base, why)?;
    if base.gguf_architecture() != Some(read.architecture.as_str()) {
        let what =
            format!("it is for the architecture {}, the model is {}", read.architecture, base.model_type);
        return Err(refused(from, what));
    }
    let rename = |name: &str, module: &LoraModule| {
        let new = gguf_lora::llama_from_gguf(name)?;
        let module = match base.interleaves(&new) {
            true => gguf_lora::from_interleaved(module, base.head_dim)?,
            false => module.clone(),
        };
        Some((new, module))
    };
    renamed(from, &read.lora, rename, "a model of this architecture")
}

/// The tensors of a PEFT adapter under the names that PEFT gives them today.
pub(super) fn rewritten<'a>(adapter: &'a PeftAdapter) -> BTreeMap<String, TensorOut<'a>> {
    let renamed = |tensor: &'a retune_formats::peft::AdapterTensor| {
        let name = adapter.config().key(&tensor.module, &tensor.param);
        let copy = TensorOut::copy(adapter.source(), &tensor.info);
        (name.clone(), TensorOut { name, ..copy })
    };
    adapter.tensors().iter().map(renamed).collect()
}

/// The error of a folder that lacks what its configuration asks for.
pub(crate) fn lacks(from: &Path, module: &str, file: &str) -> Error {
    refused(from, format!("there is nothing for module {module}: {file} asks for it in this model"))
}
