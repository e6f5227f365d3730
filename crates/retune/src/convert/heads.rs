//! Classifiers of transformers that AdapterHub has as heads, too: the same linears under other names.

use std::collections::BTreeMap;
use std::path::Path;

use retune_formats::adapter_hub::{HEAD_CONFIG, HeadConfig, HeadParam, HubConfig, HubHead, has_head};
use retune_formats::peft::{Param, PeftAdapter};
use retune_formats::{TensorOut, TensorSource, json, limits, safetensors, torch};

use super::base::Base;
use super::refused;
use crate::error::Result;

/// How transformers builds a classifier, in AdapterHub's words.
struct Known {
    model_types: &'static [&'static str],
    /// A label for each token.
    tokens: bool,
    /// Its linears, the outermost last.
    linears: &'static [&'static str],
    activation: Option<&'static str>,
    use_pooler: bool,
    bias: bool,
}

const KNOWN: &[Known] = &[
    Known {
        model_types: &["bert"],
        tokens: false,
        linears: &["classifier"],
        activation: None,
        use_pooler: true,
        bias: true,
    },
    Known {
        model_types: &["roberta", "xlm-roberta"],
        tokens: false,
        linears: &["classifier.dense", "classifier.out_proj"],
        activation: Some("tanh"),
        use_pooler: false,
        bias: true,
    },
    Known {
        model_types: &["distilbert"],
        tokens: false,
        linears: &["pre_classifier", "classifier"],
        activation: Some("relu"),
        use_pooler: false,
        bias: true,
    },
    Known {
        model_types: &["gpt2", "llama", "mistral"],
        tokens: false,
        linears: &["score"],
        activation: None,
        use_pooler: false,
        bias: false,
    },
    Known {
        model_types: &["bert", "roberta", "xlm-roberta", "distilbert"],
        tokens: true,
        linears: &["classifier"],
        activation: None,
        use_pooler: false,
        bias: true,
    },
];

impl Known {
    fn is(&self, config: &HeadConfig) -> bool {
        let inner = self.linears.len() == 1 || config.activation_function.as_deref() == self.activation;
        // A key of ours: the rows' mean is classified, for which AdapterHub has no head.
        !config.unknown.contains_key("pooling")
            && inner
            && (config.head_type == "tagging") == self.tokens
            && config.layers == self.linears.len()
            && config.use_pooler.unwrap_or(false) == self.use_pooler
            && config.bias.unwrap_or(true) == self.bias
    }
}

/// A classifier by the names that transformers gives its parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Whole {
    pub tokens: bool,
    /// Shape and values by name: `classifier.weight`.
    pub parameters: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Whole {
    /// What a PEFT adapter holds besides, if it is the classifier that AdapterHub has for this base.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn of_peft(adapter: &PeftAdapter, base: &Base) -> Result<Option<Whole>> {
        let tokens = adapter.config().common().task_type.as_deref() == Some("TOKEN_CLS");
        let Some(known) = of_type(&base.model_type, tokens) else { return Ok(None) };
        let mut parameters = BTreeMap::new();
        for tensor in adapter.tensors() {
            let Param::Plain(part) = &tensor.param else { continue };
            if known.linears.contains(&tensor.module.as_str()) {
                let name = format!("{}.{part}", tensor.module);
                parameters.insert(name, (tensor.info.shape.clone(), adapter.read_f32(tensor)?));
            }
        }
        Ok((!parameters.is_empty()).then_some(Whole { tokens, parameters }))
    }

    /// Is this module among them?
    pub fn holds(&self, module: &str) -> bool {
        self.parameters.keys().any(|name| name.rsplit_once('.').is_some_and(|(path, _)| path == module))
    }

    /// PEFT's name of the task.
    pub fn task_type(&self) -> &'static str {
        if self.tokens { "TOKEN_CLS" } else { "SEQ_CLS" }
    }

    /// Writes it as AdapterHub's head of this adapter.
    ///
    /// # Errors
    /// If a linear is missing, or the folder cannot be written.
    pub fn write_hub(&self, from: &Path, folder: &Path, model: &HubConfig) -> Result<()> {
        let missing = |name: &str| refused(from, format!("its classifier lacks {name}"));
        let known = of_type(&model.model_type, self.tokens).ok_or_else(|| {
            refused(from, format!("AdapterHub has no such classifier of {}", model.model_type))
        })?;
        let last = known.linears.last().copied().unwrap_or_default();
        let get = |name: &str| self.parameters.get(name).ok_or_else(|| missing(name));
        let num_labels = get(&format!("{last}.weight"))?.0.first().copied().unwrap_or(0);
        let config = HeadConfig {
            model: model.clone(),
            head_type: if self.tokens { "tagging" } else { "classification" }.into(),
            num_labels,
            layers: known.linears.len(),
            activation_function: known.activation.map(String::from),
            label2id: None,
            use_pooler: (!self.tokens).then_some(known.use_pooler),
            bias: (!self.tokens).then_some(known.bias),
            dropout_prob: None,
            unknown: BTreeMap::new(),
        };
        let mut tensors = Vec::new();
        for (layer, linear) in known.linears.iter().enumerate() {
            for (param, part) in [(HeadParam::Weight, "weight"), (HeadParam::Bias, "bias")] {
                if part == "bias" && !known.bias {
                    continue;
                }
                let (shape, values) = get(&format!("{linear}.{part}"))?;
                tensors.push(TensorOut::f32(config.key(layer, param), shape, &values[..]));
            }
        }
        Ok(retune_formats::adapter_hub::write_head(folder, &config, tensors)?)
    }
}

fn of_type(model_type: &str, tokens: bool) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.tokens == tokens && known.model_types.contains(&model_type))
}

/// The head beside an AdapterHub adapter. A language model's own head, which is saved with every adapter, is left out with a
/// note.
///
/// # Errors
/// If it is damaged, or no classifier of transformers is the same.
pub(super) fn of_hub(folder: &Path, model_type: &str, notes: &mut Vec<String>) -> Result<Option<Whole>> {
    if !has_head(folder) {
        return Ok(None);
    }
    let value = json::read(&folder.join(HEAD_CONFIG), limits::CONFIG_BYTES)?;
    if value.get("config").is_some_and(serde_json::Value::is_null) {
        return of_class(folder, model_type, notes);
    }
    let head = HubHead::open(folder)?;
    notes.extend(head.notes().iter().cloned());
    let config = head.config();
    let same = |known: &&Known| known.model_types.contains(&model_type) && known.is(config);
    let Some(known) = KNOWN.iter().find(same) else {
        let what = format!(
            "its head ({}, {} layers) is none of the classifiers that transformers has for {model_type}; remove \
             {HEAD_CONFIG} to go on without it",
            config.head_type, config.layers
        );
        return Err(refused(folder, what));
    };
    let mut parameters = BTreeMap::new();
    for (layer, linear) in known.linears.iter().enumerate() {
        let weight = head.read_f32(layer, HeadParam::Weight)?;
        let rows = if layer + 1 == known.linears.len() { config.num_labels } else { 0 };
        let cols = match rows {
            // The inner ones are square.
            0 => weight.len().isqrt(),
            rows => weight.len() / rows,
        };
        let rows = if rows == 0 { cols } else { rows };
        parameters.insert(format!("{linear}.weight"), (vec![rows, cols], weight));
        if known.bias {
            let bias = head.read_f32(layer, HeadParam::Bias)?;
            parameters.insert(format!("{linear}.bias"), (vec![bias.len()], bias));
        }
    }
    Ok(Some(Whole { tokens: known.tokens, parameters }))
}

/// A head with the names of the model's class.
fn of_class(folder: &Path, model_type: &str, notes: &mut Vec<String>) -> Result<Option<Whole>> {
    let file = own_tensors(folder)?;
    let classifier = KNOWN.iter().filter(|known| known.model_types.contains(&model_type)).find(|known| {
        file.tensors()
            .iter()
            .all(|info| info.name.rsplit_once('.').is_some_and(|(module, _)| known.linears.contains(&module)))
    });
    let Some(known) = classifier else {
        notes.push("the language model's own head beside it is the base's, and was left out".into());
        return Ok(None);
    };
    let mut parameters = BTreeMap::new();
    for info in file.tensors() {
        parameters.insert(info.name.clone(), (info.shape.clone(), file.read_f32(&info.name)?));
    }
    Ok(Some(Whole { tokens: known.tokens, parameters }))
}

/// The weights of a head that has the names of the model's class.
pub(crate) fn own_tensors(folder: &Path) -> Result<Box<dyn TensorSource>> {
    let path = folder.join("model_head.safetensors");
    Ok(match path.is_file() {
        true => Box::new(safetensors::File::open(path)?),
        false => Box::new(torch::File::open(folder.join("pytorch_model_head.bin"))?),
    })
}
