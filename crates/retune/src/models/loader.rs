//! Takes a model's tensors, by their Hugging Face names, into parameters: out of its files in the chosen storage, or
//! freshly drawn. An architecture names its tensors once, for both.

use std::collections::BTreeSet;
use std::sync::Arc;

use retune_formats::{Dtype, TensorInfo, TensorSource};
use retune_tensor::memory::Counted;
use retune_tensor::rng::Stream;
use retune_tensor::storage::{self, Format};
use retune_tensor::{ParamId, Params, Tensor, Weight};

use crate::error::{Error, Result};
use crate::models::ModelFiles;
use crate::models::fresh::Draw;
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
    /// As the file has them: a GGUF's quantised blocks stay as they lie.
    #[default]
    AsIs,
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
    source: &'a dyn TensorSource,
    storage: StorageChoice,
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
    pub fn new(
        files: &'a ModelFiles,
        storage: StorageChoice,
        rename: impl Fn(&str) -> String + 'a,
    ) -> Loader<'a> {
        let files =
            Files { source: files.source(), storage, rename: Box::new(rename), used: BTreeSet::new() };
        Loader { origin: Origin::Files(files), params: Params::new() }
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
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.origin {
            Origin::Files(files) => files.source.find(&(files.rename)(name)).map(|info| &info.shape[..]),
            Origin::Fresh(_) => None,
        }
    }

    /// Whether tensors are made, not read.
    pub fn is_fresh(&self) -> bool {
        matches!(self.origin, Origin::Fresh(_))
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
        let id = self.matrix(name, rows, cols, None)?;
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

    /// A matrix `[rows, cols]` in the chosen storage. `order` takes row `i` from the file's row `order(i)`.
    pub fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        order: Option<&dyn Fn(usize) -> usize>,
    ) -> Result<ParamId> {
        let weight = match &mut self.origin {
            Origin::Files(files) => files.matrix(name, rows, cols, order)?,
            Origin::Fresh(draw) => Weight::F32(draw.matrix(name, rows, cols)?),
        };
        Ok(self.params.add(name, &[rows, cols], weight, false))
    }

    /// As [`Loader::matrix`] for a weight that the files hold as `[cols, rows]` (transformers' `Conv1D`). It is written
    /// as it was read: [`retune_tensor::Param::transposed`].
    pub fn matrix_transposed(&mut self, name: &str, rows: usize, cols: usize) -> Result<ParamId> {
        let weight = match &mut self.origin {
            Origin::Files(files) => files.matrix_transposed(name, rows, cols)?,
            Origin::Fresh(draw) => Weight::F32(draw.matrix(name, rows, cols)?),
        };
        let id = self.params.add(name, &[rows, cols], weight, false);
        self.params.get_mut(id).transposed = true;
        Ok(id)
    }

    /// A linear layer `[out, in]` at a module path.
    pub fn linear(&mut self, path: &str, (out, inp): (usize, usize), bias: bool) -> Result<Linear> {
        let weight = self.matrix(&format!("{path}.weight"), out, inp, None)?;
        let bias = bias.then(|| self.vector(&format!("{path}.bias"), out, None)).transpose()?;
        Ok(Linear::new(path, weight, bias, (out, inp)))
    }

    /// transformers' `Conv1D` at a module path, with its bias: folders hold the weight as `[in, out]`, GGUF files as
    /// `[out, in]`.
    pub fn conv1d(&mut self, path: &str, (out, inp): (usize, usize), gguf: bool) -> Result<Linear> {
        let name = format!("{path}.weight");
        let weight = match gguf {
            true => self.matrix(&name, out, inp, None)?,
            false => self.matrix_transposed(&name, out, inp)?,
        };
        self.params.get_mut(weight).transposed = true;
        let bias = self.vector(&format!("{path}.bias"), out, None)?;
        Ok(Linear { fan_in_fan_out: true, ..Linear::new(path, weight, Some(bias), (out, inp)) })
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
        }
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
        rows: usize,
        cols: usize,
        order: Option<&dyn Fn(usize) -> usize>,
    ) -> Result<Weight> {
        let info = self.info(name, &[rows, cols])?;
        let format = self.format(&info)?;
        let mut bytes = self.source.read(&info.name)?;
        if let Some(order) = order {
            bytes = reorder(&bytes, rows, order);
        }
        self.choose(format, rows, cols, bytes).map_err(|e| self.fail(&info.name, e.to_string()))
    }

    fn matrix_transposed(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        let info = self.info(name, &[cols, rows])?;
        let format = self.format(&info)?;
        if !matches!(format.name(), "f32" | "f16" | "bf16") {
            let what = format!("weights of type {} cannot be transposed", info.dtype.name());
            return Err(self.fail(&info.name, what));
        }
        let bytes = transpose(&self.source.read(&info.name)?, cols, rows);
        self.choose(format, rows, cols, bytes).map_err(|e| self.fail(&info.name, e.to_string()))
    }

    fn format(&self, info: &TensorInfo) -> Result<Format> {
        format_of(info.dtype).ok_or_else(|| {
            self.fail(&info.name, format!("weights of type {} cannot be used", info.dtype.name()))
        })
    }

    fn choose(
        &self,
        format: Format,
        rows: usize,
        cols: usize,
        bytes: Vec<u8>,
    ) -> std::result::Result<Weight, storage::StorageError> {
        let as_is = storage::from_bytes(format, rows, cols, bytes)?;
        match self.storage {
            StorageChoice::Bf16 if format != Format::BF16 => {
                let values = retune_tensor::params::decode_all(as_is.as_ref());
                let bytes = storage::encode(Format::BF16, rows, cols, values.data())?;
                Ok(stored(storage::from_bytes(Format::BF16, rows, cols, bytes)?))
            }
            StorageChoice::Bf16 => Ok(stored(as_is)),
            StorageChoice::F32 => Ok(Weight::F32(retune_tensor::params::decode_all(as_is.as_ref()))),
            StorageChoice::AsIs if format == Format::F32 => {
                Ok(Weight::F32(retune_tensor::params::decode_all(as_is.as_ref())))
            }
            StorageChoice::AsIs => Ok(stored(as_is)),
        }
    }

    fn check_all_used(&self) -> Result<()> {
        let buffer = |name: &str| BUFFERS.iter().any(|end| name.ends_with(end));
        let unused: Vec<&str> = self
            .source
            .tensors()
            .iter()
            .map(|t| t.name.as_str())
            .filter(|name| !self.used.contains(*name) && !buffer(name))
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

/// `[rows, cols]` values of any width in bytes as `[cols, rows]`.
fn transpose(bytes: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let width = bytes.len() / (rows * cols).max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for c in 0..cols {
        for r in 0..rows {
            let at = (r * cols + c) * width;
            out.extend_from_slice(&bytes[at..at + width]);
        }
    }
    out
}

/// Rows in another order, whole rows of bytes at a time.
fn reorder(bytes: &[u8], rows: usize, order: &dyn Fn(usize) -> usize) -> Vec<u8> {
    let width = bytes.len() / rows.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let from = order(row) * width;
        out.extend_from_slice(&bytes[from..from + width]);
    }
    out
}
