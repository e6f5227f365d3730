//! Builds a YOLOv8 from Ultralytics' names, or a fresh one from its configuration.

use retune_tensor::ops::Activation;
use retune_tensor::{Params, Tensor};

use super::config::{BACKBONE, DETECT, NECK, Yolov8Config};
use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::detection_head::{DetectionHead, Part, PartRows};
use crate::models::fresh::Draw;
use crate::models::graph::{Builder, Description, ImageModel, Step, resized, square};
use crate::models::loader::Loader;
use crate::models::{HeadRequest, LoadOptions, Model, ModelFiles, Net, image_head};
use crate::nn::detector::Generation;

/// Ultralytics'.
const NORM_EPS: f32 = 1e-3;
/// Scales of the neck, as blocks of it: 8, 16 and 32 pixels a cell.
const SCALES: usize = 3;

/// Loads the model; every tensor of the files must have a place, and every place its tensor.
pub fn load(files: &ModelFiles, options: &LoadOptions, head: &HeadRequest) -> Result<Model> {
    let config = Yolov8Config::from_json(&files.config()?)?;
    let mut loader = Loader::new(files, options, str::to_string)?;
    distances(&mut loader, config.reg_max, Some(files))?;
    let net = network(&mut loader, &config, head)?;
    let pager = loader.pager();
    let params = loader.finish()?;
    Ok(Model { params, net: Net::Image(Box::new(net)), files: files.clone(), adapters: Vec::new(), pager })
}

/// The parameters of a new network of this configuration.
pub fn fresh(config: &Config, draw: Draw) -> Result<Params> {
    let yolo = Yolov8Config::from_json(config)?;
    let mut loader = Loader::fresh(draw);
    distances(&mut loader, yolo.reg_max, None)?;
    network(&mut loader, &yolo, &HeadRequest::AsFile)?;
    loader.finish()
}

/// The distances 0, 1, 2, ... that distributions are the mean of: Ultralytics' files hold them, and what is written does, too.
fn distances(loader: &mut Loader, reg_max: usize, files: Option<&ModelFiles>) -> Result<()> {
    let (name, shape) = (format!("model.{DETECT}.dfl.conv.weight"), [1, reg_max, 1, 1]);
    if let Some(files) = files.filter(|_| loader.has(&name)) {
        let values = loader.values(&name, &shape)?.unwrap_or_default();
        if let Some((i, value)) = values.iter().enumerate().find(|(i, value)| **value != *i as f32) {
            let what = format!("tensor \"{name}\": value {i} is {value}; {i} is a YOLOv8's");
            return Err(Error::Model { path: files.path().to_path_buf(), what });
        }
    }
    let id = loader.given(&name, &shape, Tensor::from_fn(1, reg_max, |_, i| i as f32));
    loader.params.get_mut(id).buffer = true;
    Ok(())
}

fn network(loader: &mut Loader, config: &Yolov8Config, request: &HeadRequest) -> Result<ImageModel> {
    let mut graph = Graph { builder: Builder::new(loader), fused: config.fused };
    let backbone = graph.backbone(config)?;
    let scales = graph.neck(config, backbone)?;
    let (mut outputs, mut parts) = (Vec::new(), Vec::new());
    for (i, (at, width)) in scales.into_iter().enumerate() {
        let rows = [PartRows::Bounds(4 * config.reg_max), PartRows::Classes];
        let mut scale = Vec::new();
        for ((tower, rows), channels) in ["cv2", "cv3"].into_iter().zip(rows).zip(config.towers) {
            let path = format!("model.{DETECT}.{tower}.{i}");
            graph.builder.block();
            let separable = config.separable && rows == PartRows::Classes;
            let at = graph.tower_conv(&format!("{path}.0"), at, (channels, width), separable)?;
            let at = graph.tower_conv(&format!("{path}.1"), at, (channels, channels), separable)?;
            scale.push(Part { path: format!("{path}.2"), output: outputs.len(), channels, rows });
            outputs.push(at);
        }
        parts.push(scale);
    }
    let generation = Generation::Free { reg_max: config.reg_max };
    let head = DetectionHead { scales: parts, generation, labels: config.labels.clone() };
    let Graph { builder, .. } = graph;
    let head = head.build(builder.loader, request)?;
    let input = image_head::size(request).map_or(config.input, |size| resized(config.input, size));
    let description =
        Description { model_type: "yolov8".into(), class: "Yolov8", input, config: config.to_json() };
    builder.finish(description, outputs, config.towers[0], head)
}

/// A layer and its channels.
type Place = (usize, usize);

/// The network so far.
struct Graph<'l, 'f> {
    builder: Builder<'l, 'f>,
    fused: bool,
}

impl Graph<'_, '_> {
    /// Convolutions by 2 and blocks; what the blocks of 8, 16 and 32 pixels a cell give, the last pooled.
    fn backbone(&mut self, config: &Yolov8Config) -> Result<[Place; SCALES]> {
        self.builder.block();
        let mut at = self.conv("model.0", Builder::INPUT, (config.widths[0], 3), 3, 2)?;
        let mut places = Vec::new();
        for (i, block) in BACKBONE.into_iter().enumerate() {
            let (from, to) = (config.widths[i], config.widths[i + 1]);
            self.builder.block();
            at = self.conv(&format!("model.{}", block - 1), at, (to, from), 3, 2)?;
            at = self.c2f(block, (at, to), to, config.repeats[i], true)?;
            if i + 1 < BACKBONE.len() {
                at = self.builder.stage(at, to);
            }
            places.push((at, to));
        }
        let width = config.widths[4];
        at = self.sppf("model.9", at, width)?;
        at = self.builder.stage(at, width);
        Ok([places[1], places[2], (at, width)])
    }

    /// Up and down again; what the heads read.
    fn neck(&mut self, config: &Yolov8Config, [p3, p4, p5]: [Place; SCALES]) -> Result<[Place; SCALES]> {
        let [w12, w15, w18, w21] = config.neck_widths;
        let repeats = config.neck_repeats;
        let up = |graph: &mut Self, from: Place| (graph.builder.add(Step::Upsample(2), &[from.0]), from.1);
        let larger = up(self, p5);
        let n4 = self.meet(NECK[0], [larger, p4], w12, repeats[0])?;
        let larger = up(self, n4);
        let n3 = self.meet(NECK[1], [larger, p3], w15, repeats[1])?;
        self.builder.block();
        let smaller = (self.conv("model.16", n3.0, (w15, w15), 3, 2)?, w15);
        let o4 = self.meet(NECK[2], [smaller, n4], w18, repeats[2])?;
        self.builder.block();
        let smaller = (self.conv("model.19", o4.0, (w18, w18), 3, 2)?, w18);
        let o5 = self.meet(NECK[3], [smaller, p5], w21, repeats[3])?;
        Ok([n3, o4, o5])
    }

    /// A block on two layers side by side.
    fn meet(&mut self, block: usize, parts: [Place; 2], width: usize, repeats: usize) -> Result<Place> {
        let both = self.builder.add(Step::Concat, &parts.map(|part| part.0));
        let from = (both, parts[0].1 + parts[1].1);
        let at = self.c2f(block, from, width, repeats, false)?;
        Ok((self.builder.stage(at, width), width))
    }

    fn c2f(&mut self, block: usize, from: Place, width: usize, repeats: usize, sum: bool) -> Result<usize> {
        let (path, half) = (format!("model.{block}"), width / 2);
        let both = self.conv(&format!("{path}.cv1"), from.0, (2 * half, from.1), 1, 1)?;
        let mut parts = vec![both];
        let mut at = self.builder.add(Step::Columns(half..2 * half), &[both]);
        for i in 0..repeats {
            let inner = self.conv(&format!("{path}.m.{i}.cv1"), at, (half, half), 3, 1)?;
            let inner = self.conv(&format!("{path}.m.{i}.cv2"), inner, (half, half), 3, 1)?;
            at = if sum { self.builder.add(Step::Add, &[at, inner]) } else { inner };
            parts.push(at);
        }
        let all = if repeats == 0 { both } else { self.builder.add(Step::Concat, &parts) };
        self.conv(&format!("{path}.cv2"), all, (width, (2 + repeats) * half), 1, 1)
    }

    /// The largest of 5 x 5, 9 x 9 and 13 x 13 pixels beside each pixel itself.
    fn sppf(&mut self, path: &str, from: usize, width: usize) -> Result<usize> {
        let half = width / 2;
        let mut parts = vec![self.conv(&format!("{path}.cv1"), from, (half, width), 1, 1)?];
        for i in 0..3 {
            parts.push(self.builder.add(Step::MaxPool(square(5, 1, 2)), &[parts[i]]));
        }
        let all = self.builder.add(Step::Concat, &parts);
        self.conv(&format!("{path}.cv2"), all, (width, 4 * half), 1, 1)
    }

    /// 3 x 3 pixels of a tower of the heads; separable: of each channel by itself, then the channels of single pixels.
    fn tower_conv(
        &mut self,
        path: &str,
        from: usize,
        shape: (usize, usize),
        separable: bool,
    ) -> Result<usize> {
        if !separable {
            return self.conv(path, from, shape, 3, 1);
        }
        let each = format!("{path}.0");
        let at =
            self.builder.depthwise(&format!("{each}.conv"), from, shape.1, square(3, 1, 1), self.fused)?;
        let at = self.behind(&each, at, shape.1)?;
        self.conv(&format!("{path}.1"), at, shape, 1, 1)
    }

    /// A convolution, its batch norm, SiLU.
    fn conv(
        &mut self,
        path: &str,
        from: usize,
        shape: (usize, usize),
        size: usize,
        stride: usize,
    ) -> Result<usize> {
        let sliding = square(size, stride, size / 2);
        let at = self.builder.conv(&format!("{path}.conv"), from, shape, sliding, self.fused)?;
        self.behind(path, at, shape.0)
    }

    /// The batch norm of a convolution without a bias, unless it is in the convolution, and SiLU.
    fn behind(&mut self, path: &str, from: usize, width: usize) -> Result<usize> {
        let at = match self.fused {
            true => from,
            false => self.builder.norm(&format!("{path}.bn"), from, width, NORM_EPS)?,
        };
        Ok(self.builder.add(Step::Activation(Activation::Silu), &[at]))
    }
}
