//! A network over pixels: layers in order, each reading what earlier ones gave. Architectures build it ([`Builder`]); what it does is the same for
//! all of them.
//!
//! A value is a matrix `[T, C]`, a row for each pixel of every picture of a batch (NHWC), beside its [`Grid`]. **Blocks** are runs of layers: the
//! cut between two is where a trunk that is frozen below can be computed once and kept ([`State`]).
//!
//! Batch norms use their running statistics, in training too, and never move them: a picture's numbers then depend on nothing but itself, whatever
//! it is batched with, and what is frozen stays as it is to the byte.

use std::ops::Range;

use retune_media::pictures::Prepare;
use retune_media::pictures::prepare::Fit;
use retune_tensor::ops::{self, Activation, Statistics};
use retune_tensor::{Grid, ParamId, Params, Segments, Tape, Tensor, Var, Window};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::models::Network;
use crate::models::loader::Loader;
use crate::nn::{Head, Hidden, Linear, Meeting, Pass, Rows, Site, Sliding, SubLayer, SubLayerKind};

/// Most values of one picture behind a layer: 4 GiB.
const VALUES_MAX: usize = 1 << 30;
/// Most places of a pooling's window.
const PLACES_MAX: usize = 256;

/// A batch norm of fixed statistics.
pub struct Norm {
    pub weight: ParamId,
    pub bias: ParamId,
    pub mean: ParamId,
    pub var: ParamId,
    pub eps: f32,
}

/// What a layer does.
pub enum Step {
    /// The pictures themselves.
    Input,
    /// A convolution, or a linear on what was flattened.
    Linear(Box<Linear>),
    /// Each channel by itself, with its own kernel `[C, places]`.
    Depthwise {
        weight: ParamId,
        bias: Option<ParamId>,
        sliding: Sliding,
    },
    Norm(Norm),
    Activation(Activation),
    MaxPool(Sliding),
    /// Each pixel becomes a square of so many.
    Upsample(usize),
    /// The channels of several, side by side.
    Concat,
    Add,
    /// Some of the channels.
    Columns(Range<usize>),
    /// The mean of each cell of a grid of so many lines and columns (`AdaptiveAvgPool2d`).
    MeanPool(usize, usize),
    /// All pixels of a picture side by side, as one row.
    Flatten,
    /// The end of a stage, where bottleneck adapters stand.
    Stage(Box<SubLayer>),
}

/// A layer, and the layers that it reads.
pub struct Layer {
    pub step: Step,
    pub inputs: Vec<usize>,
}

/// What lies at a cut between blocks: what later layers still read.
#[derive(Clone)]
pub struct State {
    /// Layer, its value and grid.
    pub values: Vec<(usize, Var, Grid)>,
    pub images: usize,
}

/// What an architecture says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    pub model_type: String,
    /// transformers' way of naming a class, `Vgg`.
    pub class: &'static str,
    /// How pictures become its input.
    pub input: Prepare,
    /// `config.json` without what the head adds.
    pub config: Value,
}

/// A network over pixels.
pub struct ImageModel {
    description: Description,
    layers: Vec<Layer>,
    /// The last layer that reads each one.
    last_use: Vec<usize>,
    /// The first layer of each block; blocks reach up to the next.
    blocks: Vec<usize>,
    /// Module paths and their blocks, for parameters.
    modules: Vec<(String, usize)>,
    /// What the head reads: one value for a classifier, one for each scale of a detector.
    outputs: Vec<usize>,
    hidden_size: usize,
    head: Head,
}

impl ImageModel {
    /// How pictures become its input.
    pub fn input(&self) -> Prepare {
        self.description.input
    }

    /// The grid of every layer for one picture of a size; it tells whether the network can read it at all.
    ///
    /// # Errors
    /// If a window does not fit, sizes that must be equal differ, or a layer has more values than any memory.
    pub fn grids(&self, height: usize, width: usize) -> Result<Vec<Grid>> {
        let mut grids: Vec<Grid> = Vec::with_capacity(self.layers.len());
        let mut channels: Vec<usize> = Vec::with_capacity(self.layers.len());
        for (at, layer) in self.layers.iter().enumerate() {
            let fail = |what: String| {
                let what = format!("pictures of {width} x {height}: {what} (layer {at})");
                Error::Input(format!("{what}; choose another image_size"))
            };
            let inputs: Vec<Grid> = layer.inputs.iter().map(|&from| grids[from]).collect();
            let grid = layer.step.grid(&inputs, Grid { images: 1, height, width }).map_err(fail)?;
            let widths: Vec<usize> = layer.inputs.iter().map(|&from| channels[from]).collect();
            let width = layer.step.channels(&widths, inputs.first().copied().unwrap_or(grid));
            let pixels = grid.height.checked_mul(grid.width);
            if pixels.and_then(|n| n.checked_mul(width)).is_none_or(|n| n > VALUES_MAX) {
                let Grid { height: h, width: w, .. } = grid;
                return Err(fail(format!(
                    "{w} x {h} pixels of {width} channels are more than {VALUES_MAX} values"
                )));
            }
            grids.push(grid);
            channels.push(width);
        }
        Ok(grids)
    }

    /// Rows and channels that each picture has at the cut in front of a block, in elements.
    pub fn cut_elements(&self, params: &Params, block: usize) -> usize {
        let input = self.input();
        let tape = Tape::inference(params);
        let grid = Grid { images: 1, height: input.height, width: input.width };
        let x = Var::constant(Tensor::zeros(grid.rows(), 3));
        let state = self.run(&tape, self.start(x, grid), 0..block, &Pass::default());
        state.values.iter().map(|(_, x, _)| x.value().len()).sum()
    }

    /// Pictures `[images * height * width, 3]` as what the first block reads.
    pub fn start(&self, x: Var, grid: Grid) -> State {
        State { values: vec![(0, x, grid)], images: grid.images }
    }

    /// Runs some blocks on what lies in front of them.
    pub fn run<'p>(&'p self, tape: &Tape<'p>, state: State, blocks: Range<usize>, pass: &Pass) -> State {
        let mut state = state;
        for block in blocks {
            let layers = self.layers_of(block);
            let [(from, x, grid)] = state.values.as_slice() else {
                state = self.run_layers(tape, state, layers, pass);
                continue;
            };
            let live = self.live(layers.end);
            state = match live.as_slice() {
                &[last] if pass.checkpoint => {
                    let (from, images, grid) = (*from, state.images, *grid);
                    let pass = Pass { checkpoint: false, ..pass.clone() };
                    let to = self.grid_behind(layers.clone(), from, grid, last);
                    let x = tape.checkpoint(x, move |tape, x| {
                        let state = State { values: vec![(from, x.clone(), grid)], images };
                        let mut state = self.run_layers(tape, state, layers.clone(), &pass);
                        state.values.swap_remove(0).1
                    });
                    State { values: vec![(last, x, to)], images }
                }
                _ => self.run_layers(tape, state, layers, pass),
            };
        }
        state
    }

    /// Pictures `[images * height * width, 3]` through all blocks.
    pub fn trunk<'p>(&'p self, tape: &Tape<'p>, x: Tensor, grid: Grid, pass: &Pass) -> State {
        self.run(tape, self.start(Var::constant(x), grid), 0..self.blocks.len(), pass)
    }

    /// What the head reads, behind the last block.
    pub fn outputs<'s>(&self, state: &'s State) -> Vec<(&'s Var, Grid)> {
        let find = |layer: &usize| state.values.iter().find(|(at, ..)| at == layer);
        self.outputs.iter().filter_map(find).map(|(_, x, grid)| (x, *grid)).collect()
    }

    /// What a classifier reads, behind the last block.
    pub fn hidden(&self, state: &State, pass: &Pass) -> Option<Hidden> {
        let (x, grid) = self.outputs(state).first().copied()?;
        Some(Hidden { x: x.clone(), rows: rows_of(state.images, pass).on_grid(grid) })
    }

    /// What a detector says behind the last block: of each scale `[images * h * w, columns]`, its grid and its stride. Nothing without such a
    /// head.
    pub fn detect(&self, tape: &Tape, state: &State, pass: &Pass) -> Vec<(Var, Grid, usize)> {
        let Head::Detector(head) = &self.head else { return Vec::new() };
        let base = rows_of(state.images, pass);
        let outputs = self.outputs(state);
        let outputs: Vec<(&Var, Rows)> =
            outputs.into_iter().map(|(x, grid)| (x, base.on_grid(grid))).collect();
        head.forward(tape, &outputs)
    }

    fn layers_of(&self, block: usize) -> Range<usize> {
        self.blocks[block]..self.blocks.get(block + 1).copied().unwrap_or(self.layers.len())
    }

    /// The layers whose values are read from layer `at` on.
    fn live(&self, at: usize) -> Vec<usize> {
        (0..at).filter(|&layer| self.last_use[layer] >= at).collect()
    }

    fn grid_behind(&self, layers: Range<usize>, from: usize, grid: Grid, last: usize) -> Grid {
        let mut grids = vec![grid; layers.end];
        grids[from] = grid;
        for at in layers {
            let inputs: Vec<Grid> = self.layers[at].inputs.iter().map(|&from| grids[from]).collect();
            if let Ok(to) = self.layers[at].step.grid(&inputs, grid) {
                grids[at] = to;
            }
        }
        grids[last]
    }

    fn run_layers(&self, tape: &Tape, state: State, layers: Range<usize>, pass: &Pass) -> State {
        let images = state.images;
        let base = rows_of(images, pass);
        let mut values: Vec<Option<(Var, Grid)>> = Vec::new();
        values.resize_with(layers.end, || None);
        for (at, x, grid) in state.values {
            values[at] = Some((x, grid));
        }
        let mut rows: Option<Rows> = None;
        for at in layers.clone() {
            let layer = &self.layers[at];
            let Some(inputs) =
                layer.inputs.iter().map(|&from| values[from].clone()).collect::<Option<Vec<_>>>()
            else {
                continue;
            };
            for &from in layer.inputs.iter().filter(|&&from| self.last_use[from] == at) {
                values[from] = None;
            }
            if inputs.is_empty() {
                continue;
            }
            let grid = inputs[0].1;
            let on = match rows.take().filter(|rows| rows.grid == Some(grid)) {
                Some(rows) => rows,
                None => base.on_grid(grid),
            };
            values[at] = Some(layer.step.forward(tape, &on, &inputs));
            rows = Some(on);
        }
        let live = values.into_iter().enumerate().filter(|(at, _)| self.last_use[*at] >= layers.end);
        State {
            values: live.filter_map(|(at, value)| value.map(|(x, grid)| (at, x, grid))).collect(),
            images,
        }
    }
}

/// How pictures of another size become a network's input: what is cut away stays the same share.
pub fn resized(input: Prepare, (height, width): (usize, usize)) -> Prepare {
    let fit = match input.fit {
        Fit::Crop { shorter } => {
            let scale = height.min(width) as f64 / input.height.min(input.width).max(1) as f64;
            Fit::Crop { shorter: ((shorter as f64 * scale).round() as usize).max(height.max(width)) }
        }
        other => other,
    };
    Prepare { height, width, fit, ..input }
}

/// A batch of pictures before it is known how large they are.
fn rows_of(images: usize, pass: &Pass) -> Rows {
    Rows::new(Segments::from_lengths(&vec![1; images]), pass)
}

impl Step {
    /// The grid behind it; `input` is that of the pictures.
    fn grid(&self, inputs: &[Grid], input: Grid) -> std::result::Result<Grid, String> {
        let Some(&first) = inputs.first() else { return Ok(input) };
        let slide = |sliding: &Sliding| {
            let small = || {
                format!(
                    "a window of {:?} does not fit into {} x {}",
                    sliding.kernel(),
                    first.width,
                    first.height
                )
            };
            sliding.output(first).ok_or_else(small)
        };
        match self {
            Step::Input => Ok(input),
            Step::Linear(layer) => layer.sliding.as_ref().map_or(Ok(first), slide),
            Step::Depthwise { sliding, .. } => slide(sliding),
            Step::MaxPool(sliding) => {
                let (window, (h, w)) = (sliding.window(first), sliding.kernel());
                let pads = [window.pad_before, window.pad_after];
                if h.saturating_mul(w) > PLACES_MAX || pads.iter().any(|pad| pad.0 >= h || pad.1 >= w) {
                    return Err(format!(
                        "a pooling of {w} x {h} has more than {PLACES_MAX} places, or lies in its padding"
                    ));
                }
                slide(sliding)
            }
            Step::Upsample(n) => {
                let sides = first.height.checked_mul(*n).zip(first.width.checked_mul(*n));
                let (height, width) = sides.ok_or_else(|| format!("an enlargement by {n} is absurd"))?;
                Ok(Grid { height, width, ..first })
            }
            Step::Concat | Step::Add => match inputs.iter().find(|other| **other != first) {
                None => Ok(first),
                Some(other) => Err(format!(
                    "{} x {} and {} x {} meet, which are not the same",
                    first.width, first.height, other.width, other.height
                )),
            },
            Step::MeanPool(h, w) if first.height < *h || first.width < *w => {
                Err(format!("{} x {} cannot become {w} x {h} means", first.width, first.height))
            }
            Step::MeanPool(h, w) => Ok(Grid { height: *h, width: *w, ..first }),
            Step::Flatten => Ok(Grid { height: 1, width: 1, ..first }),
            Step::Norm(_) | Step::Activation(_) | Step::Columns(_) | Step::Stage(_) => Ok(first),
        }
    }

    /// Channels behind it, of inputs of so many and the grid of the first.
    fn channels(&self, inputs: &[usize], grid: Grid) -> usize {
        let first = inputs.first().copied().unwrap_or(3);
        match self {
            Step::Linear(layer) => layer.out_features,
            Step::Concat => inputs.iter().fold(0, |sum, n| sum.saturating_add(*n)),
            Step::Columns(range) => range.len(),
            Step::Flatten => grid.pixels().saturating_mul(first),
            _ => first,
        }
    }

    fn forward(&self, tape: &Tape, rows: &Rows, inputs: &[(Var, Grid)]) -> (Var, Grid) {
        let (x, grid) = (&inputs[0].0, inputs[0].1);
        match self {
            Step::Input => (x.clone(), grid),
            Step::Linear(layer) => {
                let to = layer.sliding.as_ref().and_then(|s| s.output(grid)).unwrap_or(grid);
                (layer.forward(tape, rows, x), to)
            }
            Step::Depthwise { weight, bias, sliding } => {
                let bias = bias.map(|id| tape.param(id));
                ops::depthwise_conv2d(
                    tape,
                    x,
                    grid,
                    &tape.param(*weight),
                    bias.as_ref(),
                    &sliding.window(grid),
                )
            }
            Step::Norm(norm) => (norm.forward(tape, x), grid),
            Step::Activation(kind) => (ops::activation(tape, x, *kind), grid),
            Step::MaxPool(sliding) => ops::max_pool2d(tape, x, grid, &sliding.window(grid)),
            Step::Upsample(factor) => ops::upsample2d(tape, x, grid, *factor),
            Step::Concat => {
                let xs: Vec<&Var> = inputs.iter().map(|(x, _)| x).collect();
                (ops::concat_columns(tape, &xs), grid)
            }
            Step::Add => {
                let add = |sum: Var, (x, _): &(Var, Grid)| ops::add(tape, &sum, x);
                (inputs[1..].iter().fold(x.clone(), add), grid)
            }
            Step::Columns(range) => (ops::slice_columns(tape, x, range.start, range.len()), grid),
            Step::MeanPool(h, w) => mean_pool(tape, x, grid, (*h, *w)),
            Step::Flatten => {
                let y = ops::reshape(tape, x, grid.images, grid.pixels() * x.cols());
                (y, Grid { height: 1, width: 1, ..grid })
            }
            Step::Stage(end) => {
                let meeting = Meeting { input: x, output: x, residual: None, norm: None };
                (end.forward(tape, rows, meeting), grid)
            }
        }
    }
}

/// The mean of each cell: cell `i` of `n` reaches over lines `i size / n` to `(i + 1) size / n`, rounded down and up.
fn mean_pool(tape: &Tape, x: &Var, grid: Grid, (h, w): (usize, usize)) -> (Var, Grid) {
    let to = Grid { height: h, width: w, ..grid };
    if (h, w) == (grid.height, grid.width) {
        return (x.clone(), to);
    }
    if (h, w) == (1, 1) {
        let segments = Segments::from_lengths(&vec![grid.pixels(); grid.images]);
        return (ops::segment_mean(tape, x, &segments), to);
    }
    let cell = |i: usize, n: usize, size: usize| i * size / n..((i + 1) * size).div_ceil(n);
    let (mut picked, mut lengths) = (Vec::new(), Vec::new());
    for image in 0..grid.images {
        for (i, j) in (0..h).flat_map(|i| (0..w).map(move |j| (i, j))) {
            let (ys, xs) = (cell(i, h, grid.height), cell(j, w, grid.width));
            lengths.push(ys.len() * xs.len());
            let row = |y: usize, x: usize| (image * grid.height + y) * grid.width + x;
            picked.extend(ys.flat_map(|y| xs.clone().map(move |x| (y, x))).map(|(y, x)| row(y, x)));
        }
    }
    let rows = ops::select_rows(tape, x, &picked);
    (ops::segment_mean(tape, &rows, &Segments::from_lengths(&lengths)), to)
}

impl Norm {
    fn forward(&self, tape: &Tape, x: &Var) -> Var {
        let value = |id: ParamId| tape.weight(id).weight.to_tensor();
        let stats = Statistics { mean: value(self.mean), var: value(self.var) };
        ops::batch_norm_frozen(tape, x, &tape.param(self.weight), &tape.param(self.bias), &stats, self.eps)
    }
}

/// The list that a parameter or module stands in, and its number there: of `model.4.cv1`, `model` and 4.
fn numbered(path: &str) -> Option<(&str, usize)> {
    path.match_indices('.').find_map(|(at, _)| {
        let number = path[at + 1..].split('.').next()?.parse().ok()?;
        Some((&path[..at], number))
    })
}

impl Network for ImageModel {
    fn model_type(&self) -> String {
        self.description.model_type.clone()
    }

    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block_of(&self, parameter: &str) -> Option<usize> {
        let inside = |path: &str| parameter.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        self.modules.iter().find(|(path, _)| inside(path)).map(|(_, block)| *block)
    }

    /// The number of the list that the trunk is in its files: `model.4.cv1.conv.weight` is of layer 4.
    fn layer_of(&self, parameter: &str) -> Option<usize> {
        self.block_of(parameter)?;
        let (list, _) = self.modules.iter().find_map(|(path, _)| numbered(path))?;
        numbered(parameter).filter(|(its, _)| *its == list).map(|(_, number)| number)
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn trunk_linears(&self) -> Vec<&Linear> {
        let layers = self.layers.iter();
        layers
            .filter_map(|l| if let Step::Linear(linear) = &l.step { Some(linear.as_ref()) } else { None })
            .collect()
    }

    fn visit_sites(&mut self, visit: &mut dyn FnMut(Site<'_>)) {
        for layer in &mut self.layers {
            match &mut layer.step {
                Step::Linear(linear) => visit(Site::Linear(linear)),
                Step::Stage(end) => visit(Site::SubLayer(end)),
                _ => {}
            }
        }
        self.head.visit_sites(visit);
    }

    fn config_json(&self) -> Value {
        let mut config = self.description.config.clone();
        config["image_input"] = json!(self.description.input);
        let (labels, ending) = match &self.head {
            Head::Classifier(head) => (&head.labels, "ForImageClassification"),
            Head::Detector(head) => (&head.detector.labels, "ForObjectDetection"),
            _ => return config,
        };
        config["architectures"] = json!([format!("{}{ending}", self.description.class)]);
        let names = || labels.iter().enumerate();
        let id2label: Map<String, Value> = names().map(|(i, n)| (i.to_string(), json!(n))).collect();
        let label2id: Map<String, Value> = names().map(|(i, n)| (n.clone(), json!(i))).collect();
        (config["id2label"], config["label2id"]) = (Value::Object(id2label), Value::Object(label2id));
        config
    }
}

/// Puts a network together, layer by layer, taking each one's tensors.
pub struct Builder<'l, 'f> {
    pub loader: &'l mut Loader<'f>,
    layers: Vec<Layer>,
    blocks: Vec<usize>,
    modules: Vec<(String, usize)>,
    stages: usize,
}

impl<'l, 'f> Builder<'l, 'f> {
    pub fn new(loader: &'l mut Loader<'f>) -> Builder<'l, 'f> {
        let layers = vec![Layer { step: Step::Input, inputs: Vec::new() }];
        Builder { loader, layers, blocks: Vec::new(), modules: Vec::new(), stages: 0 }
    }

    /// The pictures.
    pub const INPUT: usize = 0;

    /// A new block begins with the next layer.
    pub fn block(&mut self) {
        if self.blocks.last() != Some(&self.layers.len()) {
            self.blocks.push(self.layers.len());
        }
    }

    /// Adds a layer that reads others; its number.
    pub fn add(&mut self, step: Step, inputs: &[usize]) -> usize {
        if self.blocks.is_empty() {
            self.block();
        }
        self.layers.push(Layer { step, inputs: inputs.to_vec() });
        self.layers.len() - 1
    }

    fn remember(&mut self, path: &str) {
        let block = self.blocks.len().saturating_sub(1);
        self.modules.push((path.to_string(), block));
    }

    /// A convolution `[out, in, h, w]` at a module path.
    ///
    /// # Errors
    /// If its tensors are not in the files.
    pub fn conv(
        &mut self,
        path: &str,
        from: usize,
        (out, channels): (usize, usize),
        sliding: Sliding,
        bias: bool,
    ) -> Result<usize> {
        let (h, w) = sliding.kernel();
        let weight = self.loader.kernel(&format!("{path}.weight"), &[out, channels, h, w], (h, w))?;
        let bias = bias.then(|| self.loader.vector(&format!("{path}.bias"), out, None)).transpose()?;
        let layer = Linear {
            sliding: Some(sliding),
            layout: retune_tensor::Layout::Kernel(h, w),
            ..Linear::new(path, weight, bias, (out, h * w * channels))
        };
        let at = self.add(Step::Linear(Box::new(layer)), &[from]);
        self.remember(path);
        Ok(at)
    }

    /// A convolution `[channels, 1, h, w]` of each channel by itself.
    ///
    /// # Errors
    /// If its tensors are not in the files.
    pub fn depthwise(
        &mut self,
        path: &str,
        from: usize,
        channels: usize,
        sliding: Sliding,
        bias: bool,
    ) -> Result<usize> {
        let (h, w) = sliding.kernel();
        let weight = self.loader.depthwise(&format!("{path}.weight"), &[channels, 1, h, w])?;
        let bias = bias.then(|| self.loader.vector(&format!("{path}.bias"), channels, None)).transpose()?;
        let at = self.add(Step::Depthwise { weight, bias, sliding }, &[from]);
        self.remember(path);
        Ok(at)
    }

    /// A linear `[out, in]` on flattened pixels, `kernel` lines of so many: torch's files have its columns channel by channel, and so it is written;
    /// `read` is how it lies in the files at hand, (1, 1) for pixel by pixel.
    ///
    /// # Errors
    /// If its tensors are not in the files.
    pub fn linear(
        &mut self,
        path: &str,
        from: usize,
        (out, inp): (usize, usize),
        (kernel, read): ((usize, usize), (usize, usize)),
    ) -> Result<usize> {
        let weight = self.loader.kernel(&format!("{path}.weight"), &[out, inp], read)?;
        let bias = self.loader.vector(&format!("{path}.bias"), out, None)?;
        let layout = retune_tensor::Layout::Kernel(kernel.0, kernel.1);
        self.loader.params.get_mut(weight).layout = layout;
        let layer = Linear { layout, ..Linear::new(path, weight, Some(bias), (out, inp)) };
        let at = self.add(Step::Linear(Box::new(layer)), &[from]);
        self.remember(path);
        Ok(at)
    }

    /// A batch norm of so many channels.
    ///
    /// # Errors
    /// If its tensors are not in the files.
    pub fn norm(&mut self, path: &str, from: usize, channels: usize, eps: f32) -> Result<usize> {
        let at = |name: &str| format!("{path}.{name}");
        self.loader.ignore(&at("num_batches_tracked"));
        let norm = Norm {
            weight: self.loader.vector(&at("weight"), channels, None)?,
            bias: self.loader.vector(&at("bias"), channels, None)?,
            mean: self.loader.buffer(&at("running_mean"), channels)?,
            var: self.loader.buffer(&at("running_var"), channels)?,
            eps,
        };
        let layer = self.add(Step::Norm(norm), &[from]);
        self.remember(path);
        Ok(layer)
    }

    /// The end of a stage of so many channels.
    pub fn stage(&mut self, from: usize, channels: usize) -> usize {
        let number = self.stages;
        self.stages += 1;
        let end =
            SubLayer::new(format!("stage.{number}.output"), SubLayerKind::FeedForward, number, channels);
        self.add(Step::Stage(Box::new(end)), &[from])
    }

    /// The network, whose head reads `outputs`.
    pub fn finish(
        self,
        description: Description,
        outputs: Vec<usize>,
        hidden_size: usize,
        head: Head,
    ) -> Result<ImageModel> {
        let mut last_use: Vec<usize> = (0..self.layers.len()).collect();
        for (at, layer) in self.layers.iter().enumerate() {
            layer.inputs.iter().for_each(|&from| last_use[from] = at);
        }
        for &output in &outputs {
            last_use[output] = usize::MAX;
        }
        let Builder { layers, blocks, modules, .. } = self;
        let mut model =
            ImageModel { description, layers, last_use, blocks, modules, outputs, hidden_size, head };
        let Prepare { height, width, .. } = model.input();
        let grids = model.grids(height, width)?;
        if let Head::Detector(head) = &mut model.head {
            let grids: Vec<Grid> = model.outputs.iter().map(|&output| grids[output]).collect();
            head.set_strides(&grids, (height, width)).map_err(Error::Input)?;
        }
        Ok(model)
    }
}

/// A square window, padded alike on all sides.
pub fn square(kernel: usize, stride: usize, padding: usize) -> Sliding {
    Sliding::Fixed(Window::square(kernel, stride, padding))
}
