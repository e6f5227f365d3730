//! A LoRA apart from any file format: for each module A (r, in), B (out, r) and what `B A` is multiplied with.
//!
//! The formats say the scale in different ways. Where a target has one number for all modules, [`LoraModule::b_for`]
//! puts the rest into B: `s B = t (s / t) B`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::adapter_hub::{HubAdapter, HubMethod, HubParam};
use crate::error::{Error, Result, quote};
use crate::lora_config::{Bias, LoraConfig, Modules};
use crate::peft::{Param, PeftAdapter, PeftConfig, key};
use crate::peft_common::Common;
use crate::source::TensorOut;

/// The factors of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    pub r: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// (r, inputs), row-major.
    pub a: Vec<f32>,
    /// (outputs, r), row-major.
    pub b: Vec<f32>,
    /// What `B A` is multiplied with.
    pub scale: f64,
    /// DoRA's (outputs).
    pub magnitude: Option<Vec<f32>>,
}

impl LoraModule {
    /// B as it must be for a file in which everything is multiplied with `scale`: bit for bit the same where that is
    /// this module's own scale.
    pub fn b_for(&self, scale: f64) -> Vec<f32> {
        let factor = self.scale / scale;
        if factor == 1.0 {
            return self.b.clone();
        }
        self.b.iter().map(|v| (f64::from(*v) * factor) as f32).collect()
    }

    /// The same product with a larger r: rows of zeros below A, columns of zeros beside B. The scale stays.
    pub fn padded(&self, r: usize) -> LoraModule {
        let mut out = self.clone();
        if r <= self.r {
            return out;
        }
        out.r = r;
        out.a.resize(r * self.inputs, 0.0);
        out.b = vec![0.0; self.outputs * r];
        for (wide, row) in out.b.chunks_exact_mut(r).zip(self.b.chunks_exact(self.r)) {
            wide[..self.r].copy_from_slice(row);
        }
        out
    }

    /// One pair of factors of a fused query, key and value, from AdapterHub's pairs of some of the three: their A `(r, in)`
    /// one above the other, their B `(out / 3, r)` too. Each B gets columns of its own; the rows of the others stay zero.
    fn of_fused(self, parts: &[usize]) -> Option<LoraModule> {
        let n = parts.len();
        if n == 0 || !self.r.is_multiple_of(n) || !self.outputs.is_multiple_of(n) {
            return None;
        }
        let (r, rows) = (self.r / n, self.outputs / n);
        if self.b.len() != self.outputs * r {
            return None;
        }
        let mut b = vec![0.0; 3 * rows * self.r];
        for (group, (part, own)) in parts.iter().zip(self.b.chunks_exact((rows * r).max(1))).enumerate() {
            let wide = b.chunks_exact_mut(self.r).skip(part * rows);
            for (to, from) in wide.zip(own.chunks_exact(r)) {
                to[group * r..(group + 1) * r].copy_from_slice(from);
            }
        }
        Some(LoraModule { outputs: 3 * rows, b, ..self })
    }

    /// A fused query, key and value as AdapterHub has it with all three adapted: A three times, B as it is.
    pub fn fused(&self) -> LoraModule {
        LoraModule { a: self.a.repeat(3), ..self.clone() }
    }

    pub(crate) fn is_whole(&self) -> bool {
        let sizes = [(self.r, self.inputs, self.a.len()), (self.outputs, self.r, self.b.len())];
        let fits = sizes.iter().all(|&(rows, cols, len)| rows > 0 && rows.checked_mul(cols) == Some(len));
        fits && self.magnitude.as_ref().is_none_or(|m| m.len() == self.outputs)
    }
}

/// A whole LoRA.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraTensors {
    /// Where it came from, for messages.
    pub path: PathBuf,
    /// By the path of the module in the base model.
    pub modules: BTreeMap<String, LoraModule>,
}

/// The fused query, key and value of GPT-2, of which AdapterHub adapts some.
const FUSED: &str = "attn.c_attn";

/// The parts of a fused query, key and value that AdapterHub's `attn_matrices` name, in the order of their rows.
pub fn fused_parts(attn_matrices: &[String]) -> Vec<usize> {
    (0..3).filter(|&part| attn_matrices.iter().any(|name| name == ["q", "k", "v"][part])).collect()
}

/// Is this module query, key and value in one matrix, in AdapterHub's eyes?
pub fn is_fused(module: &str) -> bool {
    module == FUSED || module.strip_suffix(FUSED).is_some_and(|front| front.ends_with('.'))
}

impl LoraTensors {
    /// The factors of a PEFT adapter, with its own scale for each module.
    ///
    /// # Errors
    /// If it is no LoRA, or holds what is not A and B of linear layers: embeddings, convolutions, biases, whole modules,
    /// an initialisation that changed the base.
    pub fn from_peft(adapter: &PeftAdapter) -> Result<LoraTensors> {
        LoraTensors::from_peft_beside(adapter, |_| false)
    }

    /// The same, where modules that `beside` knows may be held whole: they are not looked at.
    ///
    /// # Errors
    /// As [`LoraTensors::from_peft`].
    pub fn from_peft_beside(adapter: &PeftAdapter, beside: impl Fn(&str) -> bool) -> Result<LoraTensors> {
        let path = adapter.path();
        let PeftConfig::Lora(config) = adapter.config() else {
            let what = format!("its peft_type is {}", adapter.config().peft_type());
            return Err(Error::unsupported(path, what, "only a LoRA has the factors that are wanted here"));
        };
        let odd = |what: String| {
            Err(Error::unsupported(path, what, "only A and B of linear layers can be carried over"))
        };
        if config.init_lora_weights.changes_base() {
            return odd("its init_lora_weights changed the base model's own weights".into());
        }
        if config.bias != Bias::None {
            return odd(format!("it trains biases (`bias` is {})", config.bias.name()));
        }
        let matcher = config.matcher(path)?;
        let mut modules = BTreeMap::new();
        for tensor in adapter.tensors() {
            match tensor.param {
                Param::A | Param::B | Param::Magnitude if tensor.info.shape.len() <= 2 => {}
                Param::Plain(_) if beside(&tensor.module) => continue,
                _ => return odd(format!("it holds {}", quote(&tensor.info.name))),
            }
            if tensor.param != Param::A {
                continue;
            }
            let find = |param: &Param| adapter.find(&tensor.module, param);
            let Some(b) = find(&Param::B) else {
                return odd(format!("module {} has no B", quote(&tensor.module)));
            };
            let (&[r, inputs], &[outputs, _]) = (tensor.info.shape.as_slice(), b.info.shape.as_slice())
            else {
                return odd(format!("module {} is no linear layer", quote(&tensor.module)));
            };
            let magnitude = find(&Param::Magnitude).map(|m| adapter.read_f32(m)).transpose()?;
            let (a, b) = (adapter.read_f32(tensor)?, adapter.read_f32(b)?);
            let scale = matcher.scale(&tensor.module);
            modules.insert(tensor.module.clone(), LoraModule { r, inputs, outputs, a, b, scale, magnitude });
        }
        Ok(LoraTensors { path: path.to_path_buf(), modules })
    }

    /// The factors of an AdapterHub LoRA. Its sites are the paths of the modules.
    ///
    /// # Errors
    /// If it is no LoRA, or is a DoRA or an IA³.
    pub fn from_hub(adapter: &HubAdapter) -> Result<LoraTensors> {
        let path = adapter.path();
        let odd = |what: String| {
            Err(Error::unsupported(path, what, "only A and B of linear layers can be carried over"))
        };
        let HubMethod::Lora(config) = &adapter.config().method else {
            return odd("it is no LoRA".into());
        };
        if config.scales {
            return odd("it is an IA3".into());
        }
        if config.use_dora {
            return odd("it is a DoRA of AdapterHub, which scales biases too, as no other tool does".into());
        }
        let mut modules = BTreeMap::new();
        for tensor in adapter.tensors().iter().filter(|t| t.param == HubParam::LoraA) {
            let b = adapter.find(&tensor.site, HubParam::LoraB);
            let (Some(b), &[r, inputs]) = (b, tensor.info.shape.as_slice()) else { continue };
            let module = LoraModule {
                r,
                inputs,
                outputs: b.info.shape.first().copied().unwrap_or(0),
                a: adapter.read_f32(tensor)?,
                b: adapter.read_f32(b)?,
                scale: config.alpha / config.r as f64,
                magnitude: None,
            };
            let module = match is_fused(&tensor.site) {
                true => module.of_fused(&fused_parts(&config.attn_matrices)),
                false => Some(module).filter(|m| m.r == config.r),
            };
            let Some(module) = module else {
                return odd(format!("{} is several matrices in one", quote(&tensor.site)));
            };
            modules.insert(tensor.site.clone(), module);
        }
        Ok(LoraTensors { path: path.to_path_buf(), modules })
    }

    /// As PEFT writes it: ranks and scales that are not the most common ones become patterns, nothing is folded.
    ///
    /// # Errors
    /// If only some modules have DoRA's magnitudes, or one module's path is the end of another's so that no pattern can
    /// tell them apart.
    pub fn to_peft(&self, common: Common) -> Result<(LoraConfig, Vec<TensorOut<'_>>)> {
        let use_dora = self.all_or_no_magnitudes()?;
        let r = most_common(self.modules.values().map(|m| m.r)).unwrap_or(8);
        let alpha = |m: &LoraModule| m.scale * m.r as f64;
        let lora_alpha = most_common_number(self.modules.values().map(alpha)).unwrap_or(8.0);
        let mut config = LoraConfig {
            r,
            lora_alpha,
            use_dora,
            target_modules: Some(Modules::List(self.modules.keys().cloned().collect())),
            common,
            ..LoraConfig::default()
        };
        let mut tensors = Vec::new();
        for (path, m) in &self.modules {
            if m.r != r {
                config.rank_pattern.insert(path.clone(), m.r);
            }
            if alpha(m) != lora_alpha {
                config.alpha_pattern.insert(path.clone(), alpha(m));
            }
            tensors.push(TensorOut::f32(key(path, &Param::A), &[m.r, m.inputs], &m.a[..]));
            tensors.push(TensorOut::f32(key(path, &Param::B), &[m.outputs, m.r], &m.b[..]));
            if let Some(magnitude) = &m.magnitude {
                tensors.push(TensorOut::f32(key(path, &Param::Magnitude), &[m.outputs], &magnitude[..]));
            }
        }
        let matcher = config.matcher(&self.path)?;
        let told_apart =
            |(path, m): &(&String, &LoraModule)| matcher.rank(path) == m.r && matcher.alpha(path) == alpha(m);
        if let Some((path, _)) = self.modules.iter().find(|module| !told_apart(module)) {
            let what = format!("module {} ends in the path of another with other settings", quote(path));
            return Err(Error::unsupported(&self.path, what, "PEFT's patterns cannot tell the two apart"));
        }
        Ok((config, tensors))
    }

    /// Has every module a magnitude, or none?
    pub(crate) fn all_or_no_magnitudes(&self) -> Result<bool> {
        let with = self.modules.values().filter(|m| m.magnitude.is_some()).count();
        if with != 0 && with != self.modules.len() {
            let what = format!("{with} of {} modules have DoRA's magnitudes", self.modules.len());
            return Err(Error::unsupported(&self.path, what, "all of them or none can be written"));
        }
        Ok(with > 0)
    }

    /// Every module's factors must have the sizes that they claim.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        if self.modules.is_empty() {
            return Err(Error::Write {
                path: path.to_path_buf(),
                what: "there is no module to write".into(),
            });
        }
        match self.modules.iter().find(|(_, m)| !m.is_whole()) {
            Some((name, _)) => {
                let what = format!("the factors of {} have not the sizes that they claim", quote(name));
                Err(Error::Write { path: path.to_path_buf(), what })
            }
            None => Ok(()),
        }
    }
}

/// The most frequent; of several the smallest.
pub(crate) fn most_common<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    values.for_each(|v| *counts.entry(v).or_default() += 1);
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// [`most_common`] of finite numbers.
pub(crate) fn most_common_number(values: impl Iterator<Item = f64>) -> Option<f64> {
    // The bits of numbers of one sign order as the numbers do; any order would do.
    most_common(values.map(f64::to_bits)).map(f64::from_bits)
}

/// (rows, columns) to (columns, rows).
pub(crate) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).filter_map(|row| values.get(row * columns + column)));
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two modules of different rank and scale.
    pub(crate) fn example() -> LoraTensors {
        let module = |r: usize, scale| LoraModule {
            r,
            inputs: 3,
            outputs: 2,
            a: (0..3 * r).map(|i| i as f32 - 1.5).collect(),
            b: (0..2 * r).map(|i| 0.25 * i as f32 + 1.0).collect(),
            scale,
            magnitude: None,
        };
        let paths = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.mlp.up_proj",
            "model.layers.1.self_attn.q_proj",
        ];
        let modules =
            paths.map(String::from).into_iter().zip([module(2, 4.0), module(3, 1.5), module(2, 4.0)]);
        LoraTensors { path: "here".into(), modules: modules.collect() }
    }

    /// s B A.
    pub(crate) fn product(m: &LoraModule) -> Vec<f64> {
        let entry = |o: usize, i: usize| -> f64 {
            (0..m.r).map(|k| f64::from(m.b[o * m.r + k]) * f64::from(m.a[k * m.inputs + i])).sum::<f64>()
                * m.scale
        };
        (0..m.outputs).flat_map(|o| (0..m.inputs).map(move |i| entry(o, i))).collect()
    }

    #[test]
    fn folding_and_padding_keep_the_product() {
        for m in example().modules.values() {
            let folded = LoraModule { b: m.b_for(20.0), scale: 20.0, ..m.clone() };
            for (x, y) in product(m).iter().zip(product(&folded)) {
                assert!((x - y).abs() < 1e-6 * (1.0 + x.abs()));
            }
            assert_eq!(m.b_for(m.scale), m.b);
            assert_eq!(product(&m.padded(7)), product(m));
            assert!(m.padded(7).is_whole());
        }
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn peft_takes_every_rank_and_scale_as_it_is() {
        let lora = example();
        let dir = tempfile::tempdir().unwrap();
        let (config, tensors) = lora.to_peft(Common::default()).unwrap();
        assert_eq!((config.r, config.lora_alpha), (2, 8.0));
        assert_eq!(config.rank_pattern["model.layers.1.mlp.up_proj"], 3);
        crate::peft::write(dir.path(), &PeftConfig::Lora(config), tensors, None).unwrap();
        let again = LoraTensors::from_peft(&PeftAdapter::open(dir.path()).unwrap()).unwrap();
        assert_eq!(again.modules, lora.modules);
    }

    #[test]
    fn half_a_dora_is_refused() {
        let mut lora = example();
        lora.modules.values_mut().next().unwrap().magnitude = Some(vec![1.0; 2]);
        assert!(lora.to_peft(Common::default()).err().unwrap().to_string().contains("1 of 3 modules"));
    }
}
