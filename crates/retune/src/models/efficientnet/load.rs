//! Builds an EfficientNet-Lite from EfficientNet-PyTorch's names, or a fresh one from its configuration.

use retune_tensor::Params;
use retune_tensor::ops::Activation;

use super::config::{EfficientNetConfig, Stage};
use crate::error::Result;
use crate::models::config::Config;
use crate::models::fresh::Draw;
use crate::models::graph::{Builder, Description, ImageModel, Step, resized, square};
use crate::models::image_head::{self, ImageHead};
use crate::models::loader::Loader;
use crate::models::{HeadRequest, LoadOptions, Model, ModelFiles, Net};
use crate::nn::{Pooling, Sliding};

/// Loads the model; every tensor of the files must have a place, and every place its tensor.
pub fn load(files: &ModelFiles, options: &LoadOptions, head: &HeadRequest) -> Result<Model> {
    let config = EfficientNetConfig::from_json(&files.config()?)?;
    let mut loader = Loader::new(files, options, str::to_string)?;
    let net = network(&mut loader, config, Some(files), head)?;
    let pager = loader.pager();
    let params = loader.finish()?;
    Ok(Model { params, net: Net::Image(Box::new(net)), files: files.clone(), adapters: Vec::new(), pager })
}

/// The parameters of a new network of this configuration, with a classifier.
pub fn fresh(config: &Config, draw: Draw) -> Result<Params> {
    let efficientnet = EfficientNetConfig::from_json(config)?;
    let mut loader = Loader::fresh(draw);
    network(&mut loader, efficientnet, None, &HeadRequest::AsFile)?;
    loader.finish()
}

fn network(
    loader: &mut Loader,
    config: EfficientNetConfig,
    files: Option<&ModelFiles>,
    request: &HeadRequest,
) -> Result<ImageModel> {
    if let Some(other) = image_head::pooling(request).filter(|pooling| *pooling != Pooling::Mean) {
        return Err(image_head::no_pooling("EfficientNet-Lite", other, "mean"));
    }
    let mut builder = Builder::new(loader);
    let eps = config.eps;
    builder.block();
    let stem = Sliding::Same { kernel: 3, stride: 2 };
    let mut at = conv(&mut builder, ("_conv_stem", "_bn0"), Builder::INPUT, (config.stem, 3), stem, eps)?;
    at = relu6(&mut builder, at);
    let (mut channels, mut number) = (config.stem, 0);
    for stage in &config.stages {
        for repeat in 0..stage.repeats {
            let stride = if repeat == 0 { stage.stride } else { 1 };
            builder.block();
            at = block(&mut builder, number, at, channels, &Stage { stride, ..*stage }, eps)?;
            channels = stage.width;
            number += 1;
        }
        at = builder.stage(at, channels);
    }
    builder.block();
    at = conv(&mut builder, ("_conv_head", "_bn1"), at, (config.head, channels), square(1, 1, 0), eps)?;
    at = relu6(&mut builder, at);

    let head = ImageHead { path: "_fc", width: config.head, pooling: Pooling::Mean, prefixes: &["_fc."] };
    let head = head.build(builder.loader, files, request)?;
    let input = image_head::size(request).map_or(config.input, |size| resized(config.input, size));
    let description = Description {
        model_type: "efficientnet_lite".into(),
        class: "EfficientNetLite",
        input,
        config: config.to_json(),
    };
    builder.finish(description, vec![at], config.head, head)
}

/// `[x +] project(depthwise(expand(x)))`; the first stage expands by 1, which is no convolution.
fn block(
    builder: &mut Builder,
    number: usize,
    from: usize,
    channels: usize,
    stage: &Stage,
    eps: f32,
) -> Result<usize> {
    let path = |name: &str| format!("_blocks.{number}.{name}");
    let hidden = channels * stage.expand;
    let mut at = from;
    if stage.expand > 1 {
        at = conv(
            builder,
            (&path("_expand_conv"), &path("_bn0")),
            at,
            (hidden, channels),
            square(1, 1, 0),
            eps,
        )?;
        at = relu6(builder, at);
    }
    let sliding = Sliding::Same { kernel: stage.kernel, stride: stage.stride };
    at = builder.depthwise(&path("_depthwise_conv"), at, hidden, sliding, false)?;
    at = builder.norm(&path("_bn1"), at, hidden, eps)?;
    at = relu6(builder, at);
    at = conv(
        builder,
        (&path("_project_conv"), &path("_bn2")),
        at,
        (stage.width, hidden),
        square(1, 1, 0),
        eps,
    )?;
    let same = stage.stride == 1 && channels == stage.width;
    Ok(if same { builder.add(Step::Add, &[at, from]) } else { at })
}

/// A convolution without a bias, and its batch norm.
fn conv(
    builder: &mut Builder,
    (path, norm): (&str, &str),
    from: usize,
    shape: (usize, usize),
    sliding: Sliding,
    eps: f32,
) -> Result<usize> {
    let at = builder.conv(path, from, shape, sliding, false)?;
    builder.norm(norm, at, shape.0, eps)
}

fn relu6(builder: &mut Builder, from: usize) -> usize {
    builder.add(Step::Activation(Activation::Relu6), &[from])
}
