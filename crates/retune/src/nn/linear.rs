//! A linear layer `y = x Wᵀ + b` with one site: a method may add to its product or scale it. A convolution is one, too: its
//! product is that of the pixels under its window.

use retune_tensor::ops;
use retune_tensor::{Grid, Layout, ParamId, Params, Tape, Tensor, Var, WeightVar, Window, kernel};

use crate::error::Result;
use crate::nn::{Active, Rows, Slots};

/// What a method puts into [`Linear::deltas`].
pub trait LinearDelta: Send + Sync {
    /// The layer's output `[T, N]` with the method's part.
    fn forward(&self, tape: &Tape, rows: &Rows, layer: &Linear, x: &Var) -> Var;

    /// Changes the layer's weight `[N, K]`, and its bias `[1, N]` if it has one, so that the plain layer gives what
    /// [`LinearDelta::forward`] does.
    ///
    /// # Errors
    /// Where the mathematics does not allow it.
    fn merge(
        &self,
        params: &Params,
        layer: &Linear,
        weight: &mut Tensor,
        bias: Option<&mut Tensor>,
    ) -> Result<()>;

    /// The weight `[N, K]` that stands in for the layer's own, where that is all that the method does.
    fn weight(&self) -> Option<ParamId> {
        None
    }
}

/// How a convolution's window goes over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sliding {
    Fixed(Window),
    /// TensorFlow's "same": the padding depends on the image's size.
    Same {
        kernel: usize,
        stride: usize,
    },
}

impl Sliding {
    /// The window for images of a size.
    pub fn window(&self, grid: Grid) -> Window {
        match *self {
            Sliding::Fixed(window) => window,
            Sliding::Same { kernel, stride } => Window::same(kernel, stride, grid.height, grid.width),
        }
    }

    /// Lines and columns of the kernel.
    pub fn kernel(&self) -> (usize, usize) {
        match *self {
            Sliding::Fixed(window) => window.kernel,
            Sliding::Same { kernel, .. } => (kernel, kernel),
        }
    }

    /// The images behind it; `None` if the window does not fit into them.
    pub fn output(&self, grid: Grid) -> Option<Grid> {
        self.window(grid).output(grid)
    }
}

/// A linear layer at a module path.
pub struct Linear {
    /// The Hugging Face module path, `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// `[N, K]`: out features x in features.
    pub weight: ParamId,
    /// `[N]`.
    pub bias: Option<ParamId>,
    pub in_features: usize,
    pub out_features: usize,
    /// transformers' `Conv1D` (GPT-2): its files hold the weight as `[K, N]`; PEFT calls it `fan_in_fan_out`.
    pub fan_in_fan_out: bool,
    /// Of a convolution; `in_features` are the channels of all pixels under it.
    pub sliding: Option<Sliding>,
    /// The order of a row of the weight in files.
    pub layout: Layout,
    pub deltas: Slots<dyn LinearDelta>,
}

impl Linear {
    /// A layer without a method on it.
    pub fn new(
        path: impl Into<String>,
        weight: ParamId,
        bias: Option<ParamId>,
        (out_features, in_features): (usize, usize),
    ) -> Linear {
        Linear {
            path: path.into(),
            weight,
            bias,
            in_features,
            out_features,
            fan_in_fan_out: false,
            sliding: None,
            layout: Layout::Rows,
            deltas: Slots::default(),
        }
    }

    /// `x` `[T, K]` to `[T, N]`.
    pub fn forward(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        if self.deltas.is_empty() {
            return self.plain(tape, rows, x);
        }
        rows.by_adapter(tape, [x], |slot, rows, [x]| match self.deltas.get(slot) {
            Some(delta) => delta.forward(tape, rows, self, x),
            None => self.plain(tape, rows, x),
        })
    }

    /// The weight whose product is all that the layer does in a pass; `None` if there is a bias or a method does more.
    pub fn only_weight(&self, active: &Active) -> Option<ParamId> {
        match active {
            _ if self.bias.is_some() || self.sliding.is_some() => None,
            _ if self.deltas.is_empty() => Some(self.weight),
            Active::PerExample(_) => None,
            one => self.deltas.get(one.of(0)).map_or(Some(self.weight), |delta| delta.weight()),
        }
    }

    /// The layer without any method.
    pub fn plain(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        self.product(tape, rows, x, &tape.weight(self.weight), self.bias_var(tape).as_ref())
    }

    /// What the layer does with a weight `[_, K]` in the place of its own, plus a bias.
    ///
    /// # Panics
    /// If the layer is a convolution and the rows are no pixels, or too few for its window.
    pub fn product(&self, tape: &Tape, rows: &Rows, x: &Var, weight: &WeightVar, bias: Option<&Var>) -> Var {
        let Some(sliding) = &self.sliding else { return ops::linear(tape, x, weight, bias, &[]) };
        let grid = rows.grid.expect("a convolution works on pixels");
        ops::conv2d(tape, x, grid, weight, bias, &sliding.window(grid)).0
    }

    /// Whether its product is a matrix's alone: no convolution, or one of single pixels.
    pub fn is_pointwise(&self) -> bool {
        self.sliding.is_none_or(|s| s == Sliding::Fixed(Window::square(1, 1, 0)))
    }

    /// Channels of its input.
    pub fn channels(&self) -> usize {
        let (h, w) = self.sliding.map_or((1, 1), |s| s.kernel());
        self.in_features / (h * w).max(1)
    }

    /// Dimensions of its kernel in files: none of a dense layer, one over frames (which are pixels of a single line), else two.
    pub fn kernel_dims(&self) -> usize {
        match self.sliding.map(|sliding| sliding.kernel()) {
            None => 0,
            Some((1, width)) if width > 1 => 1,
            Some(_) => 2,
        }
    }

    /// The shape in files of a weight like its own with `rows` rows: a convolution's has four dimensions, over frames three.
    pub fn file_shape(&self, rows: usize) -> Vec<usize> {
        match self.sliding {
            Some(sliding) if self.kernel_dims() == 1 => vec![rows, self.channels(), sliding.kernel().1],
            Some(sliding) => vec![rows, self.channels(), sliding.kernel().0, sliding.kernel().1],
            None => vec![rows, self.in_features],
        }
    }

    pub fn bias_var(&self, tape: &Tape) -> Option<Var> {
        self.bias.map(|id| tape.param(id))
    }
}

/// Several layers of the same input. A single row through layers without deltas goes through one parallel region,
/// whose cost would otherwise count in generation.
pub fn linear_many<const N: usize>(tape: &Tape, rows: &Rows, layers: [&Linear; N], x: &Var) -> [Var; N] {
    let plain = layers.iter().all(|l| l.deltas.is_empty() && l.bias.is_none() && l.sliding.is_none());
    if tape.is_recording() || !plain || x.rows() > 1 {
        return layers.map(|layer| layer.forward(tape, rows, x));
    }
    let weights = layers.map(|l| tape.weight(l.weight).weight);
    let mut outs = layers.map(|l| Tensor::scratch(1, l.out_features));
    {
        let storages: Vec<_> = weights.iter().map(|w| w.storage()).collect();
        let mut slices: Vec<&mut [f32]> = outs.iter_mut().map(Tensor::data_mut).collect();
        kernel::matvec_many(&storages, x.value().data(), 1, &mut slices);
    }
    outs.map(Var::constant)
}
