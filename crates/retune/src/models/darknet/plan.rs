//! What a `.cfg` says, checked: each layer's kind, what it reads and how many channels it has. Every mistake is an error with its line.

use std::ops::RangeInclusive;

use retune_formats::darknet::{Config, Section};
use retune_tensor::ops::Activation;
use retune_tensor::{Grid, Window};

use crate::error::{Error, Result};
use crate::nn::detector::{AnchorScale, BoxLoss};

/// Most channels of a layer, largest kernel and side of a picture.
const CHANNELS_MAX: usize = 1 << 16;
const KERNEL_MAX: usize = 64;
const SIDE_MAX: usize = 1 << 14;
/// Largest window of a pooling.
const POOL_MAX: usize = 16;
/// Most values that a layer may have, as weights, and behind it for one picture: 4 GiB.
const VALUES_MAX: usize = 1 << 30;
/// Most classes, as of any other model.
const CLASSES_MAX: usize = 1 << 16;
/// Rows of an anchor before those of its classes.
const BOX_ROWS: usize = 5;

/// A whole network.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Of the pictures, in pixels.
    pub width: usize,
    pub height: usize,
    pub layers: Vec<Layer>,
    pub classes: usize,
}

/// One section.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub kind: Kind,
    /// Channels that it reads, of a convolution.
    pub channels_in: usize,
    pub channels: usize,
    /// Behind it, for one picture.
    pub grid: Grid,
    pub line: usize,
}

/// What a section does. Numbers of layers count from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Convolution {
        size: usize,
        stride: usize,
        padding: usize,
        /// Each channel by itself (`groups` is the number of channels).
        depthwise: bool,
        norm: bool,
        activation: Activation,
    },
    MaxPool(Window),
    Upsample(usize),
    /// The channels of several side by side, or one of so many groups of them.
    Route {
        from: Vec<usize>,
        groups: usize,
        group: usize,
    },
    /// The sum of the layer before and another.
    Shortcut {
        from: usize,
        activation: Activation,
    },
    /// What the convolution before means.
    Yolo(Box<AnchorScale>),
    /// Nothing, when it runs.
    Dropout,
}

impl Plan {
    /// # Errors
    /// Sections that are not known here, settings that are not, layers that read what is not there yet, absurd sizes: each with its line.
    pub fn new(config: &Config) -> Result<Plan> {
        let net = config.net();
        let (width, height) =
            (net.size("width", None, 1..=SIDE_MAX)?, net.size("height", None, 1..=SIDE_MAX)?);
        let mut plan = Plan { width, height, layers: Vec::new(), classes: 0 };
        net.size("channels", Some(3), 3..=3)?;
        for section in config.layers() {
            let input = Grid { images: 1, height, width };
            let layer = Reader { section, layers: &plan.layers, input }.layer()?;
            if let Kind::Yolo(_) = layer.kind {
                let classes = section.size("classes", Some(20), 1..=CLASSES_MAX)?;
                if plan.classes != 0 && plan.classes != classes {
                    let what = format!("it has {classes} classes, the one before has {}", plan.classes);
                    return Err(section.error(Some("classes"), what).into());
                }
                plan.classes = classes;
            }
            plan.layers.push(layer);
        }
        if plan.classes == 0 {
            let what =
                "it has no [yolo] layer: of darknet's networks, detectors with [yolo] layers can be used";
            return Err(Error::Model { path: config.path().to_path_buf(), what: what.into() });
        }
        Ok(plan)
    }

    /// The convolutions in front of `[yolo]` layers.
    pub fn heads(&self) -> impl Iterator<Item = (usize, &AnchorScale)> {
        self.layers.iter().enumerate().filter_map(|(i, layer)| match &layer.kind {
            Kind::Yolo(scale) => Some((i.checked_sub(1)?, scale.as_ref())),
            _ => None,
        })
    }

    /// The tensors of layer `number` in the order of `.weights`: name and shape; nothing if it has none.
    pub fn tensors(&self, number: usize) -> Vec<(String, Vec<usize>)> {
        let Some(layer) = self.layers.get(number) else { return Vec::new() };
        let Kind::Convolution { size, norm, depthwise, .. } = layer.kind else { return Vec::new() };
        let out = layer.channels;
        let inp = if depthwise { 1 } else { layer.channels_in };
        let vector = |name: &str| (format!("layers.{number}.{name}"), vec![out]);
        let mut tensors = match norm {
            true => ["bn.bias", "bn.weight", "bn.running_mean", "bn.running_var"].map(vector).to_vec(),
            false => vec![vector("conv.bias")],
        };
        tensors.push((format!("layers.{number}.conv.weight"), vec![out, inp, size, size]));
        tensors
    }
}

impl Kind {
    /// How it goes over the pixels, where it has a window.
    pub fn window(&self) -> Option<Window> {
        match self {
            Kind::Convolution { size, stride, padding, .. } => Some(Window::square(*size, *stride, *padding)),
            Kind::MaxPool(window) => Some(*window),
            _ => None,
        }
    }
}

/// `13 x 7`: width and height.
fn pixels(grid: Grid) -> String {
    format!("{} x {}", grid.width, grid.height)
}

/// Reads one section.
struct Reader<'a> {
    section: &'a Section,
    /// Those before it.
    layers: &'a [Layer],
    /// One picture.
    input: Grid,
}

impl Reader<'_> {
    fn fail(&self, key: Option<&str>, what: impl Into<String>) -> Error {
        self.section.error(key, what).into()
    }

    fn size(&self, key: &str, usual: usize, range: RangeInclusive<usize>) -> Result<usize> {
        Ok(self.section.size(key, Some(usual), range)?)
    }

    fn number(&self, key: &str, usual: f32, range: RangeInclusive<f32>) -> Result<f32> {
        Ok(self.section.number(key, Some(usual), range)?)
    }

    fn layer(&self) -> Result<Layer> {
        let (kind, channels) = match self.section.name.as_str() {
            "convolutional" | "conv" => self.convolution()?,
            "maxpool" | "max" => self.max_pool()?,
            "upsample" => self.upsample()?,
            "route" => self.route()?,
            "shortcut" => self.shortcut()?,
            "yolo" => self.yolo()?,
            "dropout" => (Kind::Dropout, self.before()?),
            _ => {
                let what = "such layers are not supported; these are: convolutional, maxpool, upsample, route, shortcut, yolo, dropout";
                return Err(self.fail(None, what));
            }
        };
        let channels_in = if let Kind::Convolution { .. } = kind { self.before()? } else { 0 };
        let grid = self.grid(&kind)?;
        let layer = Layer { kind, channels_in, channels, grid, line: self.section.line };
        self.check_size(&layer)?;
        Ok(layer)
    }

    /// The grid behind a layer.
    fn grid(&self, kind: &Kind) -> Result<Grid> {
        let before = self.layers.last().map_or(self.input, |layer| layer.grid);
        let same = |key: &str, numbers: &[usize], grid: Grid| match numbers
            .iter()
            .find(|at| self.layers[**at].grid != grid)
        {
            None => Ok(grid),
            Some(at) => {
                let (other, grid) = (pixels(self.layers[*at].grid), pixels(grid));
                Err(self.fail(Some(key), format!("layer {at} has {other} pixels, and what it meets {grid}")))
            }
        };
        match kind {
            Kind::Convolution { .. } | Kind::MaxPool(_) => {
                let window = kind.window().unwrap_or(Window::square(1, 1, 0));
                window.output(before).ok_or_else(|| {
                    let (h, w) = window.kernel;
                    self.fail(
                        Some("size"),
                        format!("{w} x {h} is larger than the {} pixels before it", pixels(before)),
                    )
                })
            }
            Kind::Upsample(by) => {
                let sides = before.height.checked_mul(*by).zip(before.width.checked_mul(*by));
                let (height, width) = sides.ok_or_else(|| self.fail(Some("stride"), "it is absurd"))?;
                Ok(Grid { height, width, ..before })
            }
            Kind::Route { from, .. } => {
                same("layers", from, from.first().map_or(before, |at| self.layers[*at].grid))
            }
            Kind::Shortcut { from, .. } => same("from", std::slice::from_ref(from), before),
            Kind::Yolo(_) | Kind::Dropout => Ok(before),
        }
    }

    /// Refuses what no memory holds.
    fn check_size(&self, layer: &Layer) -> Result<()> {
        let product = |factors: &[usize]| factors.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
        let fits = |factors: &[usize]| product(factors).is_some_and(|n| n <= VALUES_MAX);
        let (channels, grid) = (layer.channels, layer.grid);
        if !fits(&[grid.height, grid.width, channels]) {
            let what = format!(
                "{} pixels of {channels} channels are more than {VALUES_MAX} values for one picture",
                pixels(grid)
            );
            return Err(self.fail(None, what));
        }
        let Kind::Convolution { size, depthwise: false, .. } = layer.kind else { return Ok(()) };
        if !fits(&[channels, layer.channels_in, size, size]) {
            let what = format!(
                "{channels} kernels of {size} x {size} over {} channels are more than {VALUES_MAX} weights",
                layer.channels_in
            );
            return Err(self.fail(Some("filters"), what));
        }
        Ok(())
    }

    /// Channels of the layer before; the pictures have three.
    fn before(&self) -> Result<usize> {
        match self.layers.last() {
            None => Ok(3),
            Some(Layer { kind: Kind::Yolo(_), .. }) => {
                Err(self
                    .fail(None, "it would read a [yolo] layer, which is an end; put a [route] in between"))
            }
            Some(layer) => Ok(layer.channels),
        }
    }

    /// Settings with which the layer would do something else.
    fn refuse(&self, keys: &[(&str, &str)]) -> Result<()> {
        for (key, usual) in keys {
            if let Some(value) = self.section.text(key)
                && value != *usual
            {
                return Err(
                    self.fail(Some(key), format!("{key} = {value} is not supported, {key} = {usual} is"))
                );
            }
        }
        Ok(())
    }

    fn activation(&self, usual: &str) -> Result<Activation> {
        let name = self.section.text("activation").unwrap_or(usual);
        Ok(match name {
            "leaky" => Activation::LeakyRelu(0.1),
            "linear" => Activation::Identity,
            "relu" => Activation::Relu,
            "relu6" => Activation::Relu6,
            "logistic" => Activation::Sigmoid,
            "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "mish" => Activation::Mish,
            _ => {
                let what = format!(
                    "activation = {name} is not supported; these are: leaky, linear, relu, relu6, logistic, swish, tanh, mish"
                );
                return Err(self.fail(Some("activation"), what));
            }
        })
    }

    fn convolution(&self) -> Result<(Kind, usize)> {
        let (one, off) = ("1", "0");
        self.refuse(&[
            ("dilation", one),
            ("flipped", off),
            ("xnor", off),
            ("binary", off),
            ("antialiasing", off),
            ("share_index", off),
            ("deform", off),
        ])?;
        let size = self.size("size", 1, 1..=KERNEL_MAX)?;
        let stride = self.size("stride", 1, 1..=KERNEL_MAX)?;
        let stride_text = stride.to_string();
        self.refuse(&[("stride_x", &stride_text), ("stride_y", &stride_text)])?;
        let padding = match self.section.flag("pad")? {
            true => size / 2,
            false => self.size("padding", 0, 0..=KERNEL_MAX)?,
        };
        let norm = self.section.flag("batch_normalize")?;
        let (groups, before) = (self.size("groups", 1, 1..=CHANNELS_MAX)?, self.before()?);
        let filters = self.size("filters", 1, 1..=CHANNELS_MAX)?;
        let depthwise = groups > 1;
        if depthwise && (groups, groups) != (before, filters) {
            let what = format!(
                "groups = {groups} of {before} channels to {filters} is not supported; 1 is, and as many as there are channels before \
                 and behind"
            );
            return Err(self.fail(Some("groups"), what));
        }
        let activation = self.activation("logistic")?;
        Ok((Kind::Convolution { size, stride, padding, depthwise, norm, activation }, filters))
    }

    fn max_pool(&self) -> Result<(Kind, usize)> {
        self.refuse(&[("maxpool_depth", "0"), ("antialiasing", "0")])?;
        let stride = self.size("stride", 1, 1..=KERNEL_MAX)?;
        let stride_text = stride.to_string();
        self.refuse(&[("stride_x", &stride_text), ("stride_y", &stride_text)])?;
        let size = self.size("size", stride, 1..=POOL_MAX)?;
        // In all, the smaller half before; a window that lies in the padding alone has no largest.
        let padding = self.size("padding", size - 1, 0..=2 * (size - 1))?;
        let (before, after) = (padding / 2, padding - padding / 2);
        let window = Window {
            pad_before: (before, before),
            pad_after: (after, after),
            ..Window::square(size, stride, 0)
        };
        Ok((Kind::MaxPool(window), self.before()?))
    }

    fn upsample(&self) -> Result<(Kind, usize)> {
        self.refuse(&[("scale", "1")])?;
        Ok((Kind::Upsample(self.size("stride", 2, 1..=KERNEL_MAX)?), self.before()?))
    }

    /// The layer of a number as it is written: one below zero counts back from here.
    fn refer(&self, key: &str, number: i64) -> Result<usize> {
        let here = self.layers.len();
        let at = if number < 0 { number.saturating_add(here as i64) } else { number };
        let found = usize::try_from(at).ok().filter(|&at| at < here);
        let found = found.ok_or_else(|| {
            let what = format!("this is layer {here}, and {number} is none of the {here} before it: a layer reads earlier ones alone");
            self.fail(Some(key), what)
        })?;
        let yolo = |at: usize| matches!(self.layers.get(at), Some(Layer { kind: Kind::Yolo(_), .. }));
        match found {
            _ if yolo(found) => {
                Err(self.fail(Some(key), format!("{number} is a [yolo] layer, which is an end")))
            }
            _ if yolo(found + 1) => {
                let what =
                    format!("{number} is the layer in front of a [yolo] layer, which alone may read it");
                Err(self.fail(Some(key), what))
            }
            _ => Ok(found),
        }
    }

    fn references(&self, key: &str) -> Result<Vec<usize>> {
        let numbers = self.section.integers(key, -(1 << 20)..=1 << 20)?;
        if numbers.is_empty() {
            return Err(self.fail(Some(key), format!("{key} names no layer")));
        }
        numbers.into_iter().map(|number| self.refer(key, number)).collect()
    }

    fn route(&self) -> Result<(Kind, usize)> {
        let from = self.references("layers")?;
        let groups = self.size("groups", 1, 1..=CHANNELS_MAX)?;
        let group = self.size("group_id", 0, 0..=CHANNELS_MAX)?;
        let mut channels = 0usize;
        for &at in &from {
            let has = self.layers[at].channels;
            if !has.is_multiple_of(groups) || group >= groups {
                let what = format!("the {has} channels of layer {at} have no group {group} of {groups}");
                return Err(self.fail(Some("groups"), what));
            }
            channels += has / groups;
        }
        if channels > CHANNELS_MAX {
            return Err(
                self.fail(Some("layers"), format!("{channels} channels are more than {CHANNELS_MAX}"))
            );
        }
        Ok((Kind::Route { from, groups, group }, channels))
    }

    fn shortcut(&self) -> Result<(Kind, usize)> {
        self.refuse(&[("weights_type", "none")])?;
        let [from] = self.references("from")?[..] else {
            return Err(self.fail(Some("from"), "sums of more than two layers are not supported"));
        };
        let (here, other) = (self.before()?, self.layers[from].channels);
        if here != other {
            let what = format!(
                "layer {from} has {other} channels, the layer before has {here}: they cannot be added"
            );
            return Err(self.fail(Some("from"), what));
        }
        Ok((Kind::Shortcut { from, activation: self.activation("linear")? }, here))
    }

    fn yolo(&self) -> Result<(Kind, usize)> {
        self.refuse(&[("new_coords", "0"), ("counters_per_class", "")])?;
        let scale = AnchorScale {
            anchors: self.anchors()?,
            scale_x_y: self.number("scale_x_y", 1.0, 1e-3..=1e3)?,
            ignore_thresh: self.number("ignore_thresh", 0.5, 0.0..=1.0)?,
            truth_thresh: self.number("truth_thresh", 1.0, 0.0..=1.0)?,
            iou_thresh: self.number("iou_thresh", 1.0, 0.0..=1.0)?,
            box_loss: self.box_loss()?,
            iou_normalizer: self.number("iou_normalizer", 1.0, 0.0..=1e6)?,
            cls_normalizer: self.number("cls_normalizer", 1.0, 0.0..=1e6)?,
            obj_normalizer: self.number("obj_normalizer", 1.0, 0.0..=1e6)?,
            label_smoothing: self.number("label_smooth_eps", 0.0, 0.0..=1.0)?,
        };
        let classes = self.size("classes", 20, 1..=CLASSES_MAX)?;
        let needed = scale.anchors.len() * (BOX_ROWS + classes);
        match self.layers.last() {
            Some(Layer {
                kind:
                    Kind::Convolution {
                        size: 1,
                        stride: 1,
                        depthwise: false,
                        norm: false,
                        activation: Activation::Identity,
                        ..
                    },
                channels,
                ..
            }) if *channels == needed => Ok((Kind::Yolo(Box::new(scale)), needed)),
            Some(Layer { kind: Kind::Convolution { .. }, channels, .. }) if *channels != needed => {
                let what = format!(
                    "the convolution before it has filters = {channels}; {} anchors of {classes} classes need {needed}",
                    scale.anchors.len()
                );
                Err(self.fail(None, what))
            }
            _ => {
                let what = "the layer before it has to be a convolution of size 1 and stride 1, without batch_normalize, activation = linear";
                Err(self.fail(None, what))
            }
        }
    }

    fn anchors(&self) -> Result<Vec<(f32, f32)>> {
        let numbers = self.section.numbers("anchors", 1e-3..=1e6)?;
        let (pairs, rest) = numbers.as_chunks::<2>();
        let n = self.size("num", 1, 1..=CHANNELS_MAX)?;
        if !rest.is_empty() || pairs.len() != n {
            let what = format!("num = {n} anchors are {} numbers, there are {}", 2 * n, numbers.len());
            return Err(self.fail(Some("anchors"), what));
        }
        let mask = self.section.integers("mask", 0..=n as i64 - 1)?;
        if self.section.text("mask").is_none() {
            return Ok(pairs.iter().map(|p| (p[0], p[1])).collect());
        }
        if mask.is_empty() {
            return Err(self.fail(Some("mask"), "mask names no anchor"));
        }
        // Within 0..n, so it is no less than 0.
        Ok(mask.into_iter().filter_map(|i| pairs.get(i as usize)).map(|p| (p[0], p[1])).collect())
    }

    fn box_loss(&self) -> Result<BoxLoss> {
        Ok(match self.section.text("iou_loss").unwrap_or("mse") {
            "mse" => BoxLoss::Mse,
            "iou" => BoxLoss::Iou,
            "giou" => BoxLoss::Giou,
            "diou" => BoxLoss::Diou,
            "ciou" => BoxLoss::Ciou,
            other => {
                let what = format!("iou_loss = {other} is none of mse, iou, giou, diou, ciou");
                return Err(self.fail(Some("iou_loss"), what));
            }
        })
    }
}
