//! The configuration of an exported model: the original's with what changed, or the GGUF's in transformers' words.

use retune_formats::{Dtype, TensorSource};
use serde_json::Value;

use super::weights::Plan;
use crate::error::{Error, Result};
use crate::models::rope::{RopeScaling, inv_freq};
use crate::models::{Model, ModelFiles};
use crate::text::Language;

/// `config.json`.
pub fn model(model: &Model, plan: &Plan, language: Option<&Language>) -> Result<Value> {
    let mut config = match &model.files {
        _ if model.net.as_image().is_some() => model.net.config_json(),
        ModelFiles::Image(_) | ModelFiles::Speech(_) => model.net.config_json(),
        // Nothing that the original says is lost, known to us or not.
        ModelFiles::Folder(folder) => {
            let mut config = folder.config().clone();
            name_head(&model.net.config_json(), &mut config);
            config
        }
        ModelFiles::Gguf(file) => {
            let mut config = model.net.config_json();
            if let Some(info) = file.find("rope_freqs.weight") {
                let divisors = file.read_f32(&info.name)?;
                config["rope_scaling"] = llama3(&config, &divisors).ok_or_else(|| Error::Export {
                    path: file.path().to_path_buf(),
                    what: "its rotary divisors (\"rope_freqs.weight\") are not Llama 3's, and a config.json \
                           cannot say others"
                        .into(),
                })?;
            }
            config
        }
    };
    if let Some(Language { tokenizer, .. }) = language {
        config["bos_token_id"] = tokenizer.bos().into();
        config["eos_token_id"] = tokenizer.eos().into();
        config["pad_token_id"] = tokenizer.pad().into();
    }
    if let Value::Object(fields) = &mut config {
        fields.remove("quantization_config");
        let known: Vec<&str> =
            ["dtype", "torch_dtype"].into_iter().filter(|k| fields.contains_key(*k)).collect();
        // transformers 4 reads the older word alone, 5 both.
        for key in if known.is_empty() { vec!["torch_dtype"] } else { known } {
            fields.insert(key.into(), torch_name(plan.dtype()).into());
        }
        if let Some(quantization) = plan.quantization() {
            fields.insert("quantization_config".into(), quantization.to_json());
        }
        if plan.selection.unties {
            fields.insert("tie_word_embeddings".into(), false.into());
        }
    }
    Ok(config)
}

/// What the head is may differ from the original: a classifier on a bare trunk, other labels.
fn name_head(own: &Value, config: &mut Value) {
    let Some(fields) = config.as_object_mut() else { return };
    let classifies = own.get("id2label").is_some();
    for key in ["architectures", "id2label", "label2id", "problem_type", "num_labels", "classifier_pooling"] {
        match own.get(key) {
            Some(value) => {
                fields.insert(key.into(), value.clone());
            }
            None if classifies => {
                fields.remove(key);
            }
            None => {}
        }
    }
}

/// torch's name of a plain type.
pub fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// GGUF keeps Llama 3's scaling as one divisor for each frequency: the settings that give them.
fn llama3(config: &Value, divisors: &[f32]) -> Option<Value> {
    let theta = config["rope_theta"].as_f64()?;
    let head_dim = usize::try_from(config["head_dim"].as_u64()?).ok()?;
    let factor = divisors.iter().copied().fold(1.0, f32::max);
    if factor == 1.0 && divisors.iter().all(|d| *d == 1.0) {
        return Some(Value::Null);
    }
    let want = inv_freq(theta, head_dim, &RopeScaling::Divisors(divisors.to_vec()));
    let settings = (10..=18).map(|power| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 1 << power,
    });
    let same = |scaling: &RopeScaling| {
        let got = inv_freq(theta, head_dim, scaling);
        got.len() == want.len() && got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs())
    };
    settings.into_iter().find(same).map(|scaling| scaling.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn divisors_lead_back_to_llama_3() {
        let (theta, head_dim) = (500_000.0, 64);
        for (factor, original) in [(8.0, 8192), (32.0, 8192)] {
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: original,
            };
            let plain = inv_freq(theta, head_dim, &RopeScaling::None);
            let scaled = inv_freq(theta, head_dim, &scaling);
            let mut divisors: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
            let config = json!({"rope_theta": theta, "head_dim": head_dim});
            assert_eq!(llama3(&config, &divisors), Some(scaling.to_json()));
            divisors[3] = 2.5;
            assert_eq!(llama3(&config, &divisors), None);
        }
        assert_eq!(llama3(&json!({"rope_theta": theta, "head_dim": 4}), &[1.0, 1.0]), Some(Value::Null));
    }
}
