//! Takes a model's tensors, by their Hugging Face names, into parameters: out of its files in the chosen storage, or
//! freshly drawn. An architecture names its tensors once, for both.

use std::collections::BTreeSet;
use std::sync::Arc;

use retune_formats::bitsandbytes::{self, Entry};
use retune_formats::{Dtype, TensorInfo, TensorSource};
use retune_tensor::memory::{self, Counted};
use retune_tensor::rng::Stream;
use retune_tensor::storage::{self, Format};
use retune_tensor::{ParamId, Params, Tensor, Weight};

use crate::error::{Error, Result};
use crate::models::ModelFiles;
use crate::models::config::Config;
use crate::models::fresh::Draw;
use crate::models::in_file;
use crate::models::matrix::{Hold, Lies, Matrix, Order};
use crate::models::quantised::{Quantisation, Quantised, layer_of_name};
use crate::models::streamed::Pager;
use crate::nn::{LayerNorm, Linear};

/// Standard deviation of a new head's weights.
const HEAD_STD: f32 = 0.02;

/// Ends of the names of tables that some writers save though they follow from the configuration.
const BUFFERS: &[&str] = &[
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
];

/// How the frozen weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StorageChoice {
    F32,
    Bf16,
    /// As the file has them: a GGUF's quantised blocks stay as they lie, and so do layers of bitsandbytes.
    #[default]
    AsIs,
    /// The linears of the blocks quantised while they are loaded ([`Quantised`]), all others as the file has them.
    Quantised(Quantisation),
}

/// How a model's weights are taken into memory.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadOptions {
    pub storage: StorageChoice,
    /// The weights of the blocks' linears stay in their files and are read when they are needed.
    pub streamed: bool,
    /// All matrices stay in their files, and one is read whole each time that it is asked for: to go through the model once,
    /// tensor by tensor.
    pub in_file: bool,
    /// Modules that are not quantised, beside those that never are ([`Quantised`]).
    pub keep_modules: Vec<String>,
}

impl From<StorageChoice> for LoadOptions {
    fn from(storage: StorageChoice) -> LoadOptions {
        LoadOptions { storage, ..LoadOptions::default() }
    }
}

/// Reads tensors by name and remembers which were asked for, or makes them.
pub struct Loader<'a> {
    origin: Origin<'a>,
    pub params: Params,
}

enum Origin<'a> {
    Files(Files<'a>),
    Fresh(Draw<'a>),
}

struct Files<'a> {
    files: &'a ModelFiles,
    source: &'a dyn TensorSource,
    storage: StorageChoice,
    /// Of weights that stay in their files.
    pager: Option<Pager>,
    in_file: bool,
    /// What `storage` quantises.
    quantised: Quantised,
    /// Some linears of the files are quantised already, by bitsandbytes.
    has_layers: bool,
    /// From Hugging Face names to the file's.
    rename: Box<dyn Fn(&str) -> String + 'a>,
    used: BTreeSet<String>,
}

/// A storage whose bytes are counted with the tensors'.
struct CountedStorage {
    inner: Box<dyn storage::Storage>,
    _bytes: Counted,
}

impl storage::Storage for CountedStorage {
    fn format(&self) -> &'static str {
        self.inner.format()
    }
    fn rows(&self) -> usize {
        self.inner.rows()
    }
    fn cols(&self) -> usize {
        self.inner.cols()
    }
    fn bytes(&self) -> usize {
        self.inner.bytes()
    }
    fn block(&self) -> usize {
        self.inner.block()
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        self.inner.decode(row, col0, out)
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        self.inner.dot_rows(row0, x, y)
    }
    fn as_f32(&self) -> Option<&[f32]> {
        self.inner.as_f32()
    }
    fn pinned(&self) -> Option<Arc<dyn storage::Storage>> {
        self.inner.pinned()
    }
    fn fault(&self) -> Option<String> {
        self.inner.fault()
    }
    fn quantized(&self) -> Option<storage::Quantized<'_>> {
        self.inner.quantized()
    }
}

/// Wraps a storage as a weight.
pub fn stored(storage: Box<dyn storage::Storage>) -> Weight {
    let bytes = Counted::new(storage.bytes());
    Weight::Stored(Arc::new(CountedStorage { inner: storage, _bytes: bytes }))
}

fn format_of(dtype: Dtype) -> Option<Format> {
    let name = dtype.name().to_ascii_lowercase();
    Format::all().find(|format| format.name() == name)
}

impl<'a> Loader<'a> {
    /// # Errors
    /// If a pattern of the modules to keep is wrong, or nothing is left to be quantised.
    pub fn new(
        files: &'a ModelFiles,
        options: &LoadOptions,
        rename: impl Fn(&str) -> String + 'a,
    ) -> Result<Loader<'a>> {
        let source = files.source();
        let has_layers = source.tensors().iter().any(|info| bitsandbytes::owner(&info.name).is_some());
        if has_layers && !options.keep_modules.is_empty() {
            let what = "its linears are quantised already: keep_modules is for models that are quantised while loading";
            return Err(Error::Method(format!("{}: {what}", files.path().display())));
        }
        let files = Files {
            files,
            source,
            storage: options.storage,
            pager: options.streamed.then(Pager::new),
            in_file: options.in_file,
            quantised: Quantised::new(&options.keep_modules)?,
            has_layers,
            rename: Box::new(rename),
            used: BTreeSet::new(),
        };
        Ok(Loader { origin: Origin::Files(files), params: Params::new() })
    }

    /// Makes every tensor that is asked for.
    pub fn fresh(draw: Draw<'a>) -> Loader<'a> {
        Loader { origin: Origin::Fresh(draw), params: Params::new() }
    }

    /// Whether the files have a tensor of this Hugging Face name.
    pub fn has(&self, name: &str) -> bool {
        match &self.origin {
            Origin::Files(files) => files.source.find(&(files.rename)(name)).is_some(),
            Origin::Fresh(_) => false,
        }
    }

    /// The shape of a tensor of this Hugging Face name in the files.
    ///
    /// # Errors
    /// If it is quantised and its parts do not fit each other.
    pub fn shape(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let Origin::Files(files) = &self.origin else { return Ok(None) };
        let name = (files.rename)(name);
        let layer = files.layer(&name)?.map(|entry| entry.shape().to_vec());
        Ok(layer.or_else(|| Some(files.source.find(&name)?.shape.clone())))
    }

    /// The configuration of what is freshly drawn.
    pub fn fresh_config(&self) -> Option<&Config<'a>> {
        match &self.origin {
            Origin::Files(_) => None,
            Origin::Fresh(draw) => Some(draw.config()),
        }
    }

    /// The kernels `[C, places]` of a convolution of each channel by itself, in f32: files have `[C, 1, h, w]`.
    ///
    /// # Errors
    /// As of any other tensor.
    pub fn depthwise(&mut self, name: &str, shape: &[usize]) -> Result<ParamId> {
        let places = shape.iter().skip(1).product();
        let size = (shape.first().copied().unwrap_or(1), places);
        let weight = match &mut self.origin {
            Origin::Files(files) => {
                let info = files.info(name, shape)?;
                Weight::F32(Tensor::from_vec(size.0, size.1, files.source.read_f32(&info.name)?))
            }
            Origin::Fresh(draw) => draw.kernel(name, size.0, size.1)?,
        };
        Ok(self.params.add(name, shape, weight, false))
    }

    /// The values of a tensor of the files in the order in which they lie there; `None` where tensors are made.
    ///
    /// # Errors
    /// As of any other tensor.
    pub fn values(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        let Origin::Files(files) = &mut self.origin else { return Ok(None) };
        let info = files.info(name, shape)?;
        Ok(Some(files.source.read_f32(&info.name)?))
    }

    /// A tensor of the caller's making.
    ///
    /// # Panics
    /// If the values are not as many as the shape says.
    pub fn given(&mut self, name: &str, shape: &[usize], values: Tensor) -> ParamId {
        self.params.add(name, shape, Weight::F32(values), false)
    }

    /// Whether tensors are made, not read.
    pub fn is_fresh(&self) -> bool {
        matches!(self.origin, Origin::Fresh(_))
    }

    /// What reads the weights that stay in their files.
    pub fn pager(&self) -> Option<Pager> {
        match &self.origin {
            Origin::Files(files) => files.pager.clone(),
            Origin::Fresh(_) => None,
        }
    }

    /// Marks a tensor as known though it is not used (a tied head that was saved all the same).
    pub fn ignore(&mut self, name: &str) {
        if let Origin::Files(files) = &mut self.origin {
            let stored = (files.rename)(name);
            files.used.insert(stored);
        }
    }

    /// Marks all tensors whose Hugging Face names start so as known though not used.
    pub fn ignore_under(&mut self, prefix: &str) {
        if let Origin::Files(files) = &mut self.origin {
            let source = files.source;
            let stored = (files.rename)(prefix);
            let under = source.tensors().iter().map(|t| &t.name).filter(|name| name.starts_with(&stored));
            files.used.extend(under.cloned());
        }
    }

    /// A matrix `[rows, cols]` in f32 whatever the storage of the others: heads, which are trained.
    pub fn matrix_f32(&mut self, name: &str, rows: usize, cols: usize) -> Result<ParamId> {
        let id = self.matrix(name, rows, cols)?;
        if self.is_fresh() {
            return Ok(id);
        }
        let values = self.params.get(id).weight.to_tensor();
        self.params.get_mut(id).weight = Weight::F32(values);
        Ok(id)
    }

    /// A new matrix `[rows, cols]`, `N(0, 0.02)`: transformers' initialisation of heads.
    pub fn drawn(&mut self, name: &str, rows: usize, cols: usize, seed: u64) -> ParamId {
        let stream = Stream::named(seed, name);
        let values = Tensor::from_fn(rows, cols, |r, c| HEAD_STD * stream.normal((r * cols + c) as u64));
        self.params.add(name, &[rows, cols], Weight::F32(values), false)
    }

    /// A new vector of zeros.
    pub fn zeros(&mut self, name: &str, len: usize) -> ParamId {
        self.params.add(name, &[len], Weight::F32(Tensor::zeros(1, len)), false)
    }

    /// A vector `[len]` in f32: norms and biases. `order` takes row `i` from the file's row `order(i)`.
    pub fn vector(
        &mut self,
        name: &str,
        len: usize,
        order: Option<&dyn Fn(usize) -> usize>,
    ) -> Result<ParamId> {
        let values = match &mut self.origin {
            Origin::Files(files) => files.vector(name, len, order)?,
            Origin::Fresh(draw) => draw.vector(name, len)?,
        };
        Ok(self.params.add(name, &[len], Weight::F32(Tensor::from_vec(1, len, values)), false))
    }

    /// The weight `[rows, h w channels]` of a convolution: files have it as `shape`, channel by channel.
    ///
    /// # Errors
    /// As of any other tensor.
    pub fn kernel(&mut self, name: &str, shape: &[usize], (h, w): (usize, usize)) -> Result<ParamId> {
        let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let weight = match &mut self.origin {
            Origin::Files(files) => files.kernel(name, shape, (rows, cols), (h, w))?,
            Origin::Fresh(draw) => draw.kernel(name, rows, cols)?,
        };
        let id = self.params.add(name, shape, weight, false);
        self.params.get_mut(id).layout = retune_tensor::Layout::Kernel(h, w);
        Ok(id)
    }

    /// A running statistic `[len]`, which no method trains.
    ///
    /// # Errors
    /// As of any other tensor.
    pub fn buffer(&mut self, name: &str, len: usize) -> Result<ParamId> {
        let id = self.vector(name, len, None)?;
        self.params.get_mut(id).buffer = true;
        Ok(id)
    }

    /// A matrix `[rows, cols]` that is not quantised while it is loaded: tables and heads.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<ParamId> {
        self.weight(name, (rows, cols), Layout::Rows(None), false)
    }

    /// The weight `[out, in]` of a linear in the chosen storage. `order` takes row `i` from the file's row `order(i)`.
    pub fn linear_weight(
        &mut self,
        name: &str,
        shape: (usize, usize),
        order: Option<&dyn Fn(usize) -> usize>,
    ) -> Result<ParamId> {
        self.weight(name, shape, Layout::Rows(order), true)
    }

    fn weight(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        layout: Layout,
        linear: bool,
    ) -> Result<ParamId> {
        let weight = match &mut self.origin {
            Origin::Files(files) => files.matrix(name, (rows, cols), layout, linear)?,
            Origin::Fresh(draw) => draw.matrix(name, rows, cols)?,
        };
        Ok(self.params.add(name, &[rows, cols], weight, false))
    }

    /// A linear layer `[out, in]` of a block at a module path.
    pub fn linear(&mut self, path: &str, shape: (usize, usize), bias: bool) -> Result<Linear> {
        let weight = self.linear_weight(&format!("{path}.weight"), shape, None)?;
        self.with_bias(path, weight, shape, bias)
    }

    /// A linear layer `[out, in]` of a head: it is not quantised while it is loaded.
    pub fn head_linear(&mut self, path: &str, shape: (usize, usize), bias: bool) -> Result<Linear> {
        let weight = self.matrix(&format!("{path}.weight"), shape.0, shape.1)?;
        self.with_bias(path, weight, shape, bias)
    }

    fn with_bias(
        &mut self,
        path: &str,
        weight: ParamId,
        shape: (usize, usize),
        bias: bool,
    ) -> Result<Linear> {
        let bias = bias.then(|| self.vector(&format!("{path}.bias"), shape.0, None)).transpose()?;
        Ok(Linear::new(path, weight, bias, shape))
    }

    /// transformers' `Conv1D` at a module path, with its bias: folders hold the weight as `[in, out]` (but not where
    /// bitsandbytes quantised it), GGUF files as `[out, in]`. It is written as `[in, out]`
    /// ([`retune_tensor::Layout::Turned`]).
    pub fn conv1d(&mut self, path: &str, shape: (usize, usize), gguf: bool) -> Result<Linear> {
        let layout = if gguf { Layout::Rows(None) } else { Layout::Turned };
        let weight = self.weight(&format!("{path}.weight"), shape, layout, true)?;
        self.params.get_mut(weight).layout = retune_tensor::Layout::Turned;
        let linear = self.with_bias(path, weight, shape, true)?;
        Ok(Linear { fan_in_fan_out: true, ..linear })
    }

    /// A layer norm over `dim` channels.
    pub fn layer_norm(&mut self, path: &str, dim: usize, eps: f32) -> Result<LayerNorm> {
        let weight = self.vector(&format!("{path}.weight"), dim, None)?;
        let bias = self.vector(&format!("{path}.bias"), dim, None)?;
        Ok(LayerNorm { path: path.into(), weight, bias, eps })
    }

    /// The parameters, if every tensor of the files was used; buffers that some writers add are let pass.
    pub fn finish(self) -> Result<Params> {
        if let Origin::Files(files) = &self.origin {
            files.check_all_used()?;
            if matches!(files.storage, StorageChoice::Quantised(_)) {
                let names = self.params.iter().map(|(_, param)| param.name.as_str());
                files.quantised.check_all_used(names)?;
            }
        }
        // Strips and whole tensors that were only needed to quantise others.
        memory::trim();
        Ok(self.params)
    }
}

impl Files<'_> {
    fn fail(&self, name: &str, what: String) -> Error {
        Error::Model { path: self.source.path().to_path_buf(), what: format!("tensor \"{name}\": {what}") }
    }

    fn info(&mut self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        let stored = (self.rename)(name);
        let info = self.source.get(&stored)?.clone();
        if info.shape != shape {
            let what = format!("its shape is {:?}, the configuration asks for {shape:?}", info.shape);
            return Err(self.fail(&stored, what));
        }
        self.used.insert(stored);
        Ok(info)
    }

    fn vector(&mut self, name: &str, len: usize, order: Option<&dyn Fn(usize) -> usize>) -> Result<Vec<f32>> {
        let info = self.info(name, &[len])?;
        let values = self.source.read_f32(&info.name)?;
        Ok(match order {
            Some(order) => (0..len).map(|i| values[order(i)]).collect(),
            None => values,
        })
    }

    fn matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        layout: Layout,
        linear: bool,
    ) -> Result<Weight> {
        let stored_name = (self.rename)(name);
        if let Some(entry) = self.layer(&stored_name)? {
            return self.layer_weight(name, entry, (rows, cols), linear);
        }
        let in_file = if layout.is_turned() { [cols, rows] } else { [rows, cols] };
        let info = self.info(name, &in_file)?;
        let format = self.format(&info)?;
        if layout.is_turned() && format.block() > 1 {
            let what = format!("weights of type {} cannot be transposed", info.dtype.name());
            return Err(self.fail(&info.name, what));
        }
        let hold = match self.storage {
            StorageChoice::F32 => Hold::F32,
            StorageChoice::Bf16 => Hold::Bf16,
            // What bitsandbytes left out of a folder stays as it is.
            StorageChoice::Quantised(how) if linear && !self.has_layers && self.quantised.includes(name) => {
                Hold::Quantised(how)
            }
            StorageChoice::AsIs | StorageChoice::Quantised(_) => Hold::AsIs,
        };
        let order = match layout {
            Layout::Turned => Order::Turned,
            Layout::Rows(None) => Order::AsIs,
            Layout::Rows(Some(order)) => Order::Rows((0..rows).map(order).collect()),
        };
        let source = Lies::Tensor { info, format, order };
        self.place(name, Matrix { source, shape: (rows, cols), hold }, linear)
    }

    fn kernel(
        &mut self,
        name: &str,
        in_file: &[usize],
        shape: (usize, usize),
        (h, w): (usize, usize),
    ) -> Result<Weight> {
        let info = self.info(name, in_file)?;
        let format = self.format(&info)?;
        let hold = match self.storage {
            StorageChoice::Bf16 => Hold::Bf16,
            StorageChoice::Quantised(how) if self.quantised.includes(name) => Hold::Quantised(how),
            // A pixel's channels lie side by side in memory, not in files: values are moved, whatever their type.
            _ => Hold::F32,
        };
        self.place(
            name,
            Matrix { source: Lies::Tensor { info, format, order: Order::Kernel(h, w) }, shape, hold },
            true,
        )
    }

    /// Reads a matrix, or leaves it where it is.
    fn place(&self, name: &str, matrix: Matrix, linear: bool) -> Result<Weight> {
        if self.in_file {
            return Ok(in_file::weight(matrix, self.files.clone()));
        }
        match (&self.pager, layer_of_name(name).filter(|_| linear)) {
            (Some(pager), Some(layer)) => matrix.streamed(self.files.clone(), layer, pager),
            _ => matrix.read(self.files.source()),
        }
    }

    /// The layer of bitsandbytes whose weight has this name in the files.
    fn layer(&self, stored: &str) -> Result<Option<Entry>> {
        if !self.has_layers {
            return Ok(None);
        }
        Ok(bitsandbytes::find(self.source, stored)?)
    }

    /// A layer of bitsandbytes in the chosen storage. It lies as `[out, in]`, whatever the weight was before.
    fn layer_weight(
        &mut self,
        name: &str,
        entry: Entry,
        (rows, cols): (usize, usize),
        linear: bool,
    ) -> Result<Weight> {
        if entry.shape() != &[rows, cols] {
            let what =
                format!("its shape is {:?}, the configuration asks for {:?}", entry.shape(), [rows, cols]);
            return Err(self.fail(entry.weight(), what));
        }
        if let StorageChoice::Quantised(how) = self.storage
            && !how.is(entry.kind())
        {
            let (kind, wanted) = (entry.kind().describe(), how.name());
            let what = format!(
                "it is quantised as {kind} already, and quantising it again as {wanted} would lose more; use --storage \
                 as-is, or f32 to work on what its codes stand for"
            );
            let (path, name) = (self.source.path().display(), entry.weight());
            return Err(Error::Method(format!("{path}: tensor \"{name}\": {what}")));
        }
        self.used.extend(entry.tensors().map(str::to_string));
        let hold = match self.storage {
            StorageChoice::F32 => Hold::F32,
            StorageChoice::Bf16 => Hold::Bf16,
            StorageChoice::AsIs | StorageChoice::Quantised(_) => Hold::AsIs,
        };
        self.place(name, Matrix { source: Lies::Layer(entry), shape: (rows, cols), hold }, linear)
    }

    fn format(&self, info: &TensorInfo) -> Result<Format> {
        format_of(info.dtype).ok_or_else(|| {
            self.fail(&info.name, format!("weights of type {} cannot be used", info.dtype.name()))
        })
    }

    fn check_all_used(&self) -> Result<()> {
        let buffer = |name: &str| BUFFERS.iter().any(|end| name.ends_with(end));
        let unused: Vec<&str> = self
            .source
            .tensors()
            .iter()
            .map(|t| t.name.as_str())
            .filter(|name| !self.used.contains(*name) && !buffer(name))
            // A weight that is known but not used may be quantised.
            .filter(|name| !bitsandbytes::owner(name).is_some_and(|weight| self.used.contains(&weight)))
            .collect();
        if let Some(first) = unused.first() {
            let what = format!(
                "{} tensors have no place in this architecture, the first is \"{first}\"; \
                 the model is not what its configuration says",
                unused.len()
            );
            return Err(Error::Model { path: self.source.path().to_path_buf(), what });
        }
        Ok(())
    }
}

/// The rows of a matrix as a file has them.
enum Layout<'a> {
    /// Row `i` at row `order(i)`.
    Rows(Option<&'a dyn Fn(usize) -> usize>),
    /// Columns as rows.
    Turned,
}

impl Layout<'_> {
    fn is_turned(&self) -> bool {
        matches!(self, Layout::Turned)
    }
}
