//! Builds a VGG from torchvision's names, or a fresh one from its configuration.

use retune_formats::TensorSource;
use retune_media::pictures::Prepare;
use retune_tensor::Params;
use retune_tensor::ops::Activation;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::models::config::{Config, MAX_WIDTH};
use crate::models::fresh::Draw;
use crate::models::graph::{Builder, Description, ImageModel, Step, resized, square};
use crate::models::image_head::{self, ImageHead};
use crate::models::loader::Loader;
use crate::models::{HeadRequest, LoadOptions, Model, ModelFiles, Net};
use crate::nn::Pooling;

/// torchvision's.
const NORM_EPS: f32 = 1e-5;
/// Most convolutions, and most dense layers.
const DEPTH_MAX: usize = 256;

/// What a VGG is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct VggConfig {
    /// Channels of each convolution; `None` is a pooling. torchvision's `cfgs`.
    pub cfg: Vec<Option<usize>>,
    pub batch_norm: bool,
    /// Widths of the dense layers below the last.
    pub dense: Vec<usize>,
    /// Lines and columns that are flattened for them.
    pub grid: usize,
    /// Whether the classifier reads flattened pixels (through the dense layers), or the mean of the last ones; `None`: as the dense layers say.
    pub flatten: Option<bool>,
    pub num_labels: usize,
    pub input: Prepare,
    /// The channels of a pixel lie side by side when pixels are flattened (TensorFlow), not the pixels of a channel (PyTorch).
    pub channels_last: bool,
    /// The dense layers after which a batch norm stands.
    pub dense_norm: Vec<bool>,
    /// Of the batch norms.
    pub eps: f32,
}

impl VggConfig {
    /// Of `config.json`.
    ///
    /// # Errors
    /// If a key is missing or makes no sense.
    pub fn from_json(c: &Config) -> Result<VggConfig> {
        let list = |key: &str| -> Result<Vec<Value>> {
            let value = c.get(key).and_then(Value::as_array).cloned();
            let value = value.filter(|list| list.len() <= DEPTH_MAX);
            value.ok_or_else(|| c.fail(format!("\"{key}\" must be a list of at most {DEPTH_MAX}")))
        };
        let width = |key: &str, v: &Value| -> Result<usize> {
            let width =
                v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_WIDTH).contains(n));
            width.ok_or_else(|| c.fail(format!("\"{key}\" has {v}; widths are 1 to {MAX_WIDTH}")))
        };
        let step = |v: &Value| if v.as_str() == Some("M") { Ok(None) } else { width("cfg", v).map(Some) };
        let cfg = list("cfg")?.iter().map(step).collect::<Result<Vec<_>>>()?;
        if cfg.iter().flatten().count() == 0 {
            return Err(c.fail("\"cfg\" has no convolution"));
        }
        let dense: Vec<usize> = match c.get("dense") {
            Some(_) => list("dense")?.iter().map(|v| width("dense", v)).collect::<Result<_>>()?,
            None => Vec::new(),
        };
        let dense_norm = match c.get("dense_norm") {
            Some(_) => list("dense_norm")?.iter().map(|v| v.as_bool().unwrap_or(false)).collect(),
            None => vec![false; dense.len()],
        };
        let input = match c.get("image_input") {
            Some(value) => image_head::input_of(c, value)?,
            None => Prepare::torchvision(256, 224),
        };
        Ok(VggConfig {
            cfg,
            batch_norm: c.flag("batch_norm", false)?,
            dense,
            grid: c.opt_size("grid", 64)?.unwrap_or(7),
            num_labels: image_head::labels(c)?.len(),
            input,
            flatten: c.get("flatten").map(|_| c.flag("flatten", false)).transpose()?,
            channels_last: c.flag("channels_last", false)?,
            dense_norm,
            eps: c.positive("norm_eps")?.map_or(NORM_EPS, |eps| eps as f32),
        })
    }

    /// As `config.json`, without what the head adds.
    pub fn to_json(&self) -> Value {
        let cfg: Vec<Value> = self.cfg.iter().map(|step| step.map_or(json!("M"), |n| json!(n))).collect();
        json!({
            "model_type": "vgg", "cfg": cfg, "batch_norm": self.batch_norm, "dense": self.dense,
            "dense_norm": self.dense_norm, "grid": self.grid, "channels_last": self.channels_last,
            "norm_eps": crate::models::config::shortest(self.eps), "image_input": self.input,
        })
    }

    /// Channels of the last convolution.
    fn width(&self) -> usize {
        self.cfg.iter().flatten().last().copied().unwrap_or(3)
    }
}

/// The configuration of weights with torchvision's names, as `config.json`; `None` if they are no VGG.
///
/// Convolutions and poolings are told by the numbers that torchvision's `Sequential` gives its steps: a pooling takes one more.
pub fn recognise(source: &dyn TensorSource) -> Option<Value> {
    let shape = |name: &str| source.find(name).map(|info| info.shape.clone());
    let batch_norm = shape("features.1.running_mean").is_some();
    // As a u16, so that no sum below overflows.
    let number = |name: &str| name.strip_prefix("features.")?.strip_suffix(".weight")?.parse::<u16>().ok();
    let convs = source.tensors().iter().filter(|info| info.shape.len() == 4);
    let mut convs: Vec<(usize, usize)> =
        convs.filter_map(|info| Some((number(&info.name)?.into(), info.shape[0]))).collect();
    convs.sort_unstable();
    if convs.first()?.0 != 0 || convs.len() > DEPTH_MAX {
        return None;
    }
    let steps = if batch_norm { 3 } else { 2 };
    let mut cfg = Vec::new();
    for (i, &(at, width)) in convs.iter().enumerate() {
        cfg.push(json!(width));
        let next = convs.get(i + 1).map_or(at + steps + 1, |next| next.0);
        match next.checked_sub(at + steps)? {
            0 => {}
            1 => cfg.push(json!("M")),
            _ => return None,
        }
    }
    let mut dense = Vec::new();
    let (mut at, mut labels, mut grid) = (0, 0, 7);
    while let Some([out, inp]) = shape(&format!("classifier.{at}.weight")).as_deref() {
        if at == 0 {
            let width = convs.last()?.1;
            grid = ((inp / width.max(1)) as f64).sqrt().round() as usize;
        }
        dense.push(*out);
        labels = *out;
        // Linear, rectifier, dropout.
        at += 3;
    }
    dense.pop();
    Some(json!({
        "model_type": "vgg", "cfg": cfg, "batch_norm": batch_norm, "dense": dense, "grid": grid.max(1), "flatten": at > 0,
        "num_labels": labels.max(1),
    }))
}

/// Loads the model; every tensor of the files must have a place, and every place its tensor.
pub fn load(files: &ModelFiles, options: &LoadOptions, head: &HeadRequest) -> Result<Model> {
    let config = VggConfig::from_json(&files.config()?)?;
    let mut loader = Loader::new(files, options, str::to_string)?;
    let net = network(&mut loader, &config, Some(files), head)?;
    let pager = loader.pager();
    let params = loader.finish()?;
    Ok(Model { params, net: Net::Image(Box::new(net)), files: files.clone(), adapters: Vec::new(), pager })
}

/// The parameters of a new network of this configuration, with a classifier.
pub fn fresh(config: &Config, draw: Draw) -> Result<Params> {
    let head = HeadRequest::AsFile;
    let vgg = VggConfig::from_json(config)?;
    let mut loader = Loader::fresh(draw);
    network(&mut loader, &vgg, None, &head)?;
    loader.finish()
}

fn network(
    loader: &mut Loader,
    config: &VggConfig,
    files: Option<&ModelFiles>,
    request: &HeadRequest,
) -> Result<ImageModel> {
    let mut builder = Builder::new(loader);
    let mut at = features(&mut builder, config)?;
    let input = match image_head::size(request) {
        Some(size) => resized(config.input, size),
        None => config.input,
    };
    let poolings = config.cfg.iter().filter(|step| step.is_none()).count() as u32;
    let fits = [input.height, input.width].iter().all(|size| size.checked_shr(poolings) == Some(config.grid));
    let wanted = image_head::pooling(request);
    let flattens = match wanted {
        Some(Pooling::Mean) => false,
        Some(Pooling::First) => true,
        Some(other) => {
            return Err(image_head::no_pooling("a VGG", other, "mean, or first (through its dense layers)"));
        }
        None => match (request, config.flatten) {
            (HeadRequest::AsFile, Some(flattens)) => flattens,
            (HeadRequest::AsFile, None) => !config.dense.is_empty(),
            (_, Some(false)) => false,
            (_, _) => fits && !config.dense.is_empty(),
        },
    };
    if flattens && config.dense.is_empty() && config.grid > 1 {
        let what = format!(
            "the classifier reads {0} x {0} flattened pixels without a dense layer in between, which is not supported; a new one on              their mean is: --pooling mean",
            config.grid
        );
        return Err(Error::Input(what));
    }
    let last = 3 * config.dense.len();
    let mut width = config.width();
    let mut pooling = Pooling::Mean;
    if flattens {
        (at, width) = dense(&mut builder, config, at)?;
        pooling = Pooling::First;
    }
    let mut described = config.to_json();
    described["flatten"] = flattens.into();
    // It is written as torch has it.
    described["channels_last"] = false.into();
    let description = Description { model_type: "vgg".into(), class: "VGG", input, config: described };
    let path = format!("classifier.{last}");
    let head = ImageHead { path: &path, width, pooling, prefixes: &["classifier."] };
    let head = head.build(builder.loader, files, request)?;
    builder.finish(description, vec![at], width, head)
}

/// The convolutions; the last layer.
fn features(builder: &mut Builder, config: &VggConfig) -> Result<usize> {
    let (mut at, mut channels, mut step) = (Builder::INPUT, 3, 0);
    for width in &config.cfg {
        let Some(width) = *width else {
            at = builder.stage(at, channels);
            at = builder.add(Step::MaxPool(square(2, 2, 0)), &[at]);
            step += 1;
            continue;
        };
        builder.block();
        at = builder.conv(&format!("features.{step}"), at, (width, channels), square(3, 1, 1), true)?;
        step += 1;
        if config.batch_norm {
            at = builder.norm(&format!("features.{step}"), at, width, config.eps)?;
            step += 1;
        }
        at = builder.add(Step::Activation(Activation::Relu), &[at]);
        step += 1;
        channels = width;
    }
    Ok(at)
}

/// The dense layers below the last; the last layer and its width.
fn dense(builder: &mut Builder, config: &VggConfig, from: usize) -> Result<(usize, usize)> {
    let (grid, mut width) = (config.grid, config.grid * config.grid * config.width());
    let mut at = builder.add(Step::MeanPool(grid, grid), &[from]);
    at = builder.add(Step::Flatten, &[at]);
    for (i, &out) in config.dense.iter().enumerate() {
        builder.block();
        let kernel = if i == 0 { (grid, grid) } else { (1, 1) };
        let read = if config.channels_last { (1, 1) } else { kernel };
        at = builder.linear(&format!("classifier.{}", 3 * i), at, (out, width), (kernel, read))?;
        at = builder.add(Step::Activation(Activation::Relu), &[at]);
        if config.dense_norm.get(i) == Some(&true) {
            at = builder.norm(&format!("classifier.{}", 3 * i + 2), at, out, config.eps)?;
        }
        width = out;
    }
    Ok((at, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use retune_formats::{TensorOut, safetensors};

    #[test]
    fn absurd_networks_are_refused() {
        let halved = |n: usize| {
            let cfg: Vec<Value> = [json!(4)].into_iter().chain(vec![json!("M"); n]).collect();
            let json =
                json!({ "model_type": "vgg", "cfg": cfg, "image_input": Prepare::torchvision(32, 32) });
            let config = Config { path: "config.json".into(), value: &json };
            fresh(&config, Draw::new(&config, 1).unwrap()).map(drop)
        };
        halved(5).unwrap();
        for n in [6, 64, 200] {
            let message = halved(n).unwrap_err().to_string();
            assert!(message.contains("does not fit") && message.contains("image_size"), "{message}");
        }
        assert!(halved(300).unwrap_err().to_string().contains("at most 256"));
    }

    #[test]
    fn weights_with_absurd_numbers_are_no_vgg() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let kernel =
            |number: u64| TensorOut::f32(format!("features.{number}.weight"), &[1, 1, 1, 1], vec![0.0]);
        safetensors::write(&path, vec![kernel(0), kernel(u64::MAX)], &[]).unwrap();
        assert_eq!(recognise(&safetensors::File::open(&path).unwrap()).unwrap()["cfg"], json!([1, "M"]));
        safetensors::write(&path, vec![kernel(0), kernel(u16::MAX.into())], &[]).unwrap();
        assert!(recognise(&safetensors::File::open(&path).unwrap()).is_none());
    }
}
