//! Builds a darknet network out of its plan, or a fresh one.

use std::collections::BTreeSet;

use retune_formats::darknet;
use retune_media::pictures::prepare::Fit;
use retune_media::pictures::{Prepare, Resample};
use retune_tensor::Params;
use retune_tensor::ops::Activation;
use serde_json::{Value, json};

use super::plan::{Kind, Layer, Plan};
use crate::error::Result;
use crate::models::config::Config;
use crate::models::detection_head::{DetectionHead, Part, PartRows, labels_for};
use crate::models::fresh::Draw;
use crate::models::graph::{Builder, Description, ImageModel, Step, resized};
use crate::models::loader::Loader;
use crate::models::{HeadRequest, LoadOptions, Model, ModelFiles, Net, image_head};
use crate::nn::Sliding;
use crate::nn::detector::Generation;

/// Darknet's.
const NORM_EPS: f32 = 1e-5;
/// Layers that read what is no further back than this are one unit, which is not cut in two.
const UNIT: usize = 8;

/// A darknet network as `config.json` has it.
struct DarknetConfig {
    cfg: darknet::Config,
    plan: Plan,
    labels: Vec<String>,
    input: Prepare,
}

impl DarknetConfig {
    fn from_json(c: &Config) -> Result<DarknetConfig> {
        let text = c.text("cfg").ok_or_else(|| c.fail("\"cfg\" (the text of a darknet .cfg) is missing"))?;
        let cfg = darknet::Config::parse(&c.path, text)?;
        let plan = Plan::new(&cfg)?;
        let labels = match c.get("id2label") {
            Some(_) => image_head::labels(c)?,
            None => (0..plan.classes).map(|i| format!("LABEL_{i}")).collect(),
        };
        if labels.len() != plan.classes {
            let what = format!(
                "there are {} names of classes, the [yolo] layers have {}",
                labels.len(),
                plan.classes
            );
            return Err(c.fail(what));
        }
        let input = match c.get("image_input") {
            Some(value) => image_head::input_of(c, value)?,
            None => prepare(&plan, cfg.net().flag("letter_box")?),
        };
        Ok(DarknetConfig { cfg, plan, labels, input })
    }

    /// `config.json` for so many classes and this input.
    fn to_json(&self, classes: usize, input: Prepare) -> Value {
        let mut cfg = self.cfg.clone();
        if let Some(net) = cfg.sections.first_mut() {
            net.set("width", input.width);
            net.set("height", input.height);
        }
        let layers = cfg.layers_mut();
        for (number, scale) in self.plan.heads() {
            layers[number].set("filters", scale.anchors.len() * (5 + classes));
            layers[number + 1].set("classes", classes);
        }
        json!({ "model_type": "darknet", "cfg": cfg.to_text() })
    }
}

/// How pictures become the input: stretched, as darknet's successor does it, or whole on grey where `letter_box` is set.
fn prepare(plan: &Plan, letter_box: bool) -> Prepare {
    let whole = Prepare::darknet(plan.width, plan.height);
    match letter_box {
        true => whole,
        false => Prepare { fit: Fit::Stretch, resample: Resample::Bicubic, ..whole },
    }
}

/// Loads the model; every tensor of the files must have a place, and every place its tensor.
pub fn load(files: &ModelFiles, options: &LoadOptions, head: &HeadRequest) -> Result<Model> {
    let config = DarknetConfig::from_json(&files.config()?)?;
    let mut loader = Loader::new(files, options, str::to_string)?;
    let net = network(&mut loader, &config, head)?;
    let pager = loader.pager();
    let params = loader.finish()?;
    Ok(Model { params, net: Net::Image(Box::new(net)), files: files.clone(), adapters: Vec::new(), pager })
}

/// The parameters of a new network of this configuration.
pub fn fresh(config: &Config, draw: Draw) -> Result<Params> {
    let darknet = DarknetConfig::from_json(config)?;
    let mut loader = Loader::fresh(draw);
    network(&mut loader, &darknet, &HeadRequest::AsFile)?;
    loader.finish()
}

fn network(loader: &mut Loader, config: &DarknetConfig, request: &HeadRequest) -> Result<ImageModel> {
    let input = image_head::size(request).map_or(config.input, |size| resized(config.input, size));
    let classes = labels_for(request, &config.labels)?.len();
    let mut graph = Graph { builder: Builder::new(loader), plan: &config.plan, at: Vec::new() };
    let heads: Vec<_> = config.plan.heads().collect();
    let (mut outputs, mut scales, mut anchors, mut width) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let units = Units::of(&config.plan);
    for (number, layer) in config.plan.layers.iter().enumerate() {
        let head = heads.iter().find(|(at, _)| *at == number);
        if let Some((_, scale)) = head {
            let rows = PartRows::Anchors(scale.anchors.len());
            let path = format!("layers.{number}.conv");
            scales.push(vec![Part { path, output: outputs.len(), channels: layer.channels_in, rows }]);
            outputs.push(graph.before(number));
            anchors.push((*scale).clone());
            width = layer.channels_in;
            // Nothing reads the place of a head: the plan says so.
            graph.at.push(graph.before(number));
            continue;
        }
        if units.may_begin(number) && matches!(layer.kind, Kind::Convolution { .. }) {
            graph.builder.block();
        }
        graph.layer(number, layer)?;
    }
    let generation = Generation::Anchors { scales: anchors };
    let head = DetectionHead { scales, generation, labels: config.labels.clone() };
    let Graph { builder, .. } = graph;
    let head = head.build(builder.loader, request)?;
    let config = config.to_json(classes, input);
    let description = Description { model_type: "darknet".into(), class: "Darknet", input, config };
    builder.finish(description, outputs, width, head)
}

/// Where a block may begin: not between a layer and one that adds to it, or takes part of it, a little later.
struct Units(BTreeSet<usize>);

impl Units {
    fn of(plan: &Plan) -> Units {
        let mut inside = BTreeSet::new();
        for (at, layer) in plan.layers.iter().enumerate() {
            let from: &[usize] = match &layer.kind {
                Kind::Shortcut { from, .. } => std::slice::from_ref(from),
                Kind::Route { from, .. } => from,
                _ => &[],
            };
            for &from in from.iter().filter(|&&from| at - from <= UNIT) {
                inside.extend(from + 2..=at);
            }
        }
        Units(inside)
    }

    fn may_begin(&self, layer: usize) -> bool {
        !self.0.contains(&layer)
    }
}

/// The network so far.
struct Graph<'p, 'l, 'f> {
    builder: Builder<'l, 'f>,
    plan: &'p Plan,
    /// What stands for each layer of the file.
    at: Vec<usize>,
}

impl Graph<'_, '_, '_> {
    /// What a layer reads that names nothing.
    fn before(&self, number: usize) -> usize {
        number.checked_sub(1).map_or(Builder::INPUT, |before| self.at[before])
    }

    fn layer(&mut self, number: usize, layer: &Layer) -> Result<()> {
        if number > 0 && layer.kind.shrinks() && self.at[number - 1] != Builder::INPUT {
            self.at[number - 1] =
                self.builder.stage(self.at[number - 1], self.plan.layers[number - 1].channels);
        }
        let from = self.before(number);
        let at = match &layer.kind {
            Kind::Convolution { .. } => self.convolution(number, layer, from)?,
            Kind::MaxPool(window) => self.builder.add(Step::MaxPool(Sliding::Fixed(*window)), &[from]),
            Kind::Upsample(factor) => self.builder.add(Step::Upsample(*factor), &[from]),
            Kind::Route { from, groups, group } => self.route(from, *groups, *group),
            Kind::Shortcut { from: other, activation } => {
                let sum = self.builder.add(Step::Add, &[from, self.at[*other]]);
                self.activation(*activation, sum)
            }
            Kind::Yolo(_) | Kind::Dropout => from,
        };
        self.at.push(at);
        Ok(())
    }

    fn convolution(&mut self, number: usize, layer: &Layer, from: usize) -> Result<usize> {
        let (&Kind::Convolution { depthwise, norm, activation, .. }, Some(window)) =
            (&layer.kind, layer.kind.window())
        else {
            return Ok(from);
        };
        let shape = (layer.channels, layer.channels_in);
        let sliding = Sliding::Fixed(window);
        let path = format!("layers.{number}.conv");
        let mut at = match depthwise {
            true => self.builder.depthwise(&path, from, layer.channels, sliding, !norm)?,
            false => self.builder.conv(&path, from, shape, sliding, !norm)?,
        };
        if norm {
            at = self.builder.norm(&format!("layers.{number}.bn"), at, layer.channels, NORM_EPS)?;
        }
        Ok(self.activation(activation, at))
    }

    fn activation(&mut self, kind: Activation, from: usize) -> usize {
        match kind {
            Activation::Identity => from,
            kind => self.builder.add(Step::Activation(kind), &[from]),
        }
    }

    fn route(&mut self, from: &[usize], groups: usize, group: usize) -> usize {
        let mut parts = Vec::with_capacity(from.len());
        for &layer in from {
            let width = self.plan.layers[layer].channels / groups;
            let at = self.at[layer];
            parts.push(match groups {
                1 => at,
                _ => self.builder.add(Step::Columns(group * width..(group + 1) * width), &[at]),
            });
        }
        match parts.as_slice() {
            [one] => *one,
            many => self.builder.add(Step::Concat, many),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

impl Kind {
    fn shrinks(&self) -> bool {
        self.window().is_some_and(|window| window.stride != (1, 1))
    }
}
