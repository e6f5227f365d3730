//! The parameters of a model: named weights, frozen in any storage or trainable in f32.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::layout::Layout;
use crate::storage::{Storage, pin};
use crate::tensor::Tensor;

/// Names one parameter of one [`Params`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ParamId(usize);

/// A weight matrix `[rows, cols]` (out features x in features): f32, or encoded and then frozen.
#[derive(Clone)]
pub enum Weight {
    F32(Tensor),
    Stored(Arc<dyn Storage>),
}

impl Weight {
    pub fn storage(&self) -> &dyn Storage {
        match self {
            Weight::F32(tensor) => tensor,
            Weight::Stored(storage) => storage.as_ref(),
        }
    }

    pub fn rows(&self) -> usize {
        self.storage().rows()
    }

    pub fn cols(&self) -> usize {
        self.storage().cols()
    }

    pub fn bytes(&self) -> usize {
        self.storage().bytes()
    }

    /// Bytes that it holds in memory.
    pub fn held_bytes(&self) -> usize {
        match self {
            Weight::F32(tensor) => tensor.held_bytes(),
            Weight::Stored(storage) => storage.bytes(),
        }
    }

    /// The values in f32: shared if they are, else decoded.
    pub fn to_tensor(&self) -> Tensor {
        match self {
            Weight::F32(tensor) => tensor.clone(),
            Weight::Stored(storage) => decode_all(storage.as_ref()),
        }
    }
}

/// Decodes a whole storage into a `[rows, cols]` matrix.
pub fn decode_all(storage: &dyn Storage) -> Tensor {
    let (rows, cols) = (storage.rows(), storage.cols());
    let storage = pin(storage);
    // Weights stay for long: not a byte more than they need.
    let mut tensor = Tensor::from_vec(rows, cols, vec![0.0; rows * cols]);
    for (row, out) in tensor.data_mut().chunks_exact_mut(cols.max(1)).enumerate() {
        storage.decode(row, 0, out);
    }
    tensor
}

/// One named parameter. `shape` is the shape in files (turned, where [`Layout::Turned`]); the weight sees it as `[shape[0], product of the
/// rest]`.
#[derive(Clone)]
pub struct Param {
    pub name: String,
    pub shape: Vec<usize>,
    pub weight: Weight,
    pub trainable: bool,
    /// The order of its values in files.
    pub layout: Layout,
    /// A running statistic or the like: no method trains it.
    pub buffer: bool,
    /// It belongs to an adapter, not to the base.
    pub adapter: bool,
}

impl Param {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its shape in files.
    pub fn file_shape(&self) -> Vec<usize> {
        match self.layout {
            Layout::Turned => self.shape.iter().rev().copied().collect(),
            _ => self.shape.clone(),
        }
    }
}

/// All parameters of a model and its adapters, by id and by name.
#[derive(Clone, Default)]
pub struct Params {
    list: Vec<Param>,
    by_name: BTreeMap<String, ParamId>,
}

impl Params {
    pub fn new() -> Params {
        Params::default()
    }

    /// # Panics
    /// If the name is taken or the weight's size is not the shape's: both are errors of the caller, not of input.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        weight: Weight,
        trainable: bool,
    ) -> ParamId {
        let name = name.into();
        let id = ParamId(self.list.len());
        assert_eq!(
            shape.iter().product::<usize>(),
            weight.rows() * weight.cols(),
            "parameter {name}: shape {shape:?} against weight {} x {}",
            weight.rows(),
            weight.cols()
        );
        let previous = self.by_name.insert(name.clone(), id);
        assert!(previous.is_none(), "parameter {name} was added twice");
        let shape = shape.to_vec();
        self.list.push(Param {
            name,
            shape,
            weight,
            trainable,
            layout: Layout::Rows,
            buffer: false,
            adapter: false,
        });
        id
    }

    /// Adds a trainable parameter of an adapter; its name is that of the adapter's files.
    pub fn add_adapter(&mut self, name: impl Into<String>, shape: &[usize], values: Tensor) -> ParamId {
        let id = self.add(name, shape, Weight::F32(values), true);
        self.get_mut(id).adapter = true;
        id
    }

    pub fn get(&self, id: ParamId) -> &Param {
        &self.list[id.0]
    }

    pub fn get_mut(&mut self, id: ParamId) -> &mut Param {
        &mut self.list[id.0]
    }

    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.list.len()).map(ParamId)
    }

    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(i, p)| (ParamId(i), p))
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The ids of the trainable parameters, in order of addition.
    pub fn trainable(&self) -> Vec<ParamId> {
        self.iter().filter(|(_, p)| p.trainable).map(|(id, _)| id).collect()
    }

    /// Makes every parameter frozen.
    pub fn freeze_all(&mut self) {
        for param in &mut self.list {
            param.trainable = false;
        }
    }

    /// The f32 values of a trainable parameter, for the optimiser; `None` if it is not held in f32.
    pub fn tensor_mut(&mut self, id: ParamId) -> Option<&mut Tensor> {
        match &mut self.list[id.0].weight {
            Weight::F32(tensor) => Some(tensor),
            Weight::Stored(_) => None,
        }
    }

    /// Why the values of a weight cannot be had any more; what was computed since is NaN. Asked after a pass, before its result is used.
    pub fn fault(&self) -> Option<String> {
        self.list.iter().find_map(|param| param.weight.storage().fault())
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        self.list.iter().map(|p| p.weight.bytes()).sum()
    }
}
