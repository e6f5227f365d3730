//! Rotary frequencies and their scalings, as transformers computes them.
//!
//! `inv_freq[i] = theta^(-2i / D)`; `linear` divides by the factor; `llama3` (Llama 3.1) leaves short waves, divides long
//! ones and blends between.

use serde_json::{Value, json};

/// How positions beyond the original context are reached.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    Linear {
        factor: f32,
    },
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_max_position_embeddings: usize,
    },
    /// Divisors for each frequency, as GGUF stores them (`rope_freqs.weight`).
    Divisors(Vec<f32>),
}

/// The `D/2` frequencies of a head.
pub fn inv_freq(theta: f64, head_dim: usize, scaling: &RopeScaling) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|i| (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)) as f32);
    match scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Divisors(divisors) => plain.zip(divisors).map(|(f, d)| f / d).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f32;
            let (low_wave, high_wave) = (original / low_freq_factor, original / high_freq_factor);
            plain
                .map(|f| {
                    let wave = std::f32::consts::TAU / f;
                    if wave < high_wave {
                        return f;
                    }
                    if wave > low_wave {
                        return f / factor;
                    }
                    let smooth = (original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                })
                .collect()
        }
    }
}

impl RopeScaling {
    /// From `rope_scaling` (transformers 4) or `rope_parameters` (5).
    pub fn from_json(value: &Value) -> Result<RopeScaling, String> {
        let kind =
            value.get("rope_type").or_else(|| value.get("type")).and_then(Value::as_str).unwrap_or("default");
        let number = |key: &str| {
            let found = value.get(key).and_then(Value::as_f64).filter(|x| x.is_finite() && *x > 0.0);
            found.ok_or_else(|| format!("rope scaling \"{kind}\" needs a positive \"{key}\""))
        };
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: number("factor")? as f32 }),
            "llama3" => {
                let (low, high) = (number("low_freq_factor")? as f32, number("high_freq_factor")? as f32);
                if high <= low {
                    return Err(format!(
                        "rope scaling \"llama3\": high_freq_factor {high} must exceed low_freq_factor {low}"
                    ));
                }
                Ok(RopeScaling::Llama3 {
                    factor: number("factor")? as f32,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: number("original_max_position_embeddings")? as usize,
                })
            }
            other => {
                Err(format!("rope scaling \"{other}\" is not supported; default, linear and llama3 are"))
            }
        }
    }

    /// As `rope_scaling` of a `config.json`; null if there is none.
    pub fn to_json(&self) -> Value {
        match self {
            RopeScaling::None | RopeScaling::Divisors(_) => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies_fall_geometrically() {
        let f = inv_freq(10_000.0, 8, &RopeScaling::None);
        for (got, want) in f.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((got - want).abs() < 1e-7, "{got} {want}");
        }
    }

    #[test]
    fn unknown_scalings_are_refused_by_name() {
        let error = RopeScaling::from_json(&json!({"rope_type": "yarn", "factor": 4.0})).expect_err("yarn");
        assert!(error.contains("yarn"));
        assert!(RopeScaling::from_json(&json!({"rope_type": "linear", "factor": 0.0})).is_err());
    }
}
