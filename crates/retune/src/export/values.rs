//! The values of one tensor to write, a strip of rows at a time, with or without the adapters' part.
//!
//! Nothing is held in f32 but a strip, unless an adapter changes the tensor or it is written turned: then the tensor itself.

use std::collections::BTreeMap;

use rayon::prelude::*;
use retune_tensor::params::Param;
use retune_tensor::storage::pin;
use retune_tensor::{Layout, ParamId, Params, Tensor};

use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Embedding, EmbeddingDelta, Linear, LinearDelta};

/// Elements of a strip: what is decoded and encoded at a time.
const STRIP: usize = 1 << 18;

/// Where a parameter gets its change from. What is written is with slot 0.
#[derive(Clone, Copy)]
pub enum Merged<'a> {
    Weight(&'a Linear, &'a dyn LinearDelta),
    Bias(&'a Linear, ParamId, &'a dyn LinearDelta),
    Table(&'a Embedding, &'a dyn EmbeddingDelta),
}

impl<'a> Merged<'a> {
    /// Everything that a method in slot 0 changes, by the names of the tensors.
    pub fn of(model: &'a Model) -> BTreeMap<String, (ParamId, Merged<'a>)> {
        let mut all = BTreeMap::new();
        for layer in model.net.linears() {
            let Some(delta) = layer.deltas.get(Some(0)) else { continue };
            all.insert(format!("{}.weight", layer.path), (layer.weight, Merged::Weight(layer, delta)));
            if let Some(bias) = layer.bias {
                all.insert(format!("{}.bias", layer.path), (bias, Merged::Bias(layer, bias, delta)));
            }
        }
        for table in model.net.embeddings() {
            if let Some(delta) = table.deltas.get(Some(0)) {
                all.insert(format!("{}.weight", table.path), (table.weight, Merged::Table(table, delta)));
            }
        }
        all
    }

    /// The module's path, once for each module.
    pub fn module(&self) -> Option<&'a str> {
        match self {
            Merged::Weight(layer, _) => Some(&layer.path),
            Merged::Bias(..) => None,
            Merged::Table(table, _) => Some(&table.path),
        }
    }

    /// The parameter's value with the method's part.
    fn value(&self, params: &Params) -> Result<Tensor> {
        let of = |id: ParamId| params.get(id).weight.to_tensor();
        match self {
            Merged::Weight(layer, delta) => {
                let (mut weight, mut bias) = (of(layer.weight), layer.bias.map(of));
                delta.merge(params, layer, &mut weight, bias.as_mut())?;
                Ok(weight)
            }
            Merged::Bias(layer, id, delta) => {
                let mut weight = of(layer.weight);
                let mut bias = of(*id);
                delta.merge(params, layer, &mut weight, Some(&mut bias))?;
                Ok(bias)
            }
            Merged::Table(table, delta) => {
                let mut weight = of(table.weight);
                delta.merge(params, table, &mut weight)?;
                Ok(weight)
            }
        }
    }
}

/// How the rows of a matrix are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    AsIs,
    /// Columns as rows: transformers' `Conv1D` in a folder.
    Turned,
    /// Each row channel by channel, each of them so many lines and columns: a convolution's kernel.
    Kernel(usize, usize),
    /// The rows of each head of this size with its two halves interleaved: llama.cpp's queries and keys.
    Interleaved(usize),
}

/// One tensor to write.
#[derive(Clone)]
pub struct Values<'a> {
    /// Its Hugging Face name.
    pub name: String,
    pub param: &'a Param,
    /// The site whose method is merged into it.
    pub merged: Option<Merged<'a>>,
}

impl Values<'_> {
    /// Rows and columns in an order. A vector is one row.
    pub fn size(&self, order: Order) -> (usize, usize) {
        let (rows, cols) = (self.param.weight.rows(), self.param.weight.cols());
        if order == Order::Turned { (cols, rows) } else { (rows, cols) }
    }

    /// The values other than those of the model's files?
    pub fn is_changed(&self) -> bool {
        self.merged.is_some() || self.param.trainable
    }

    /// Hands all values out, whole rows, a strip at a time. Returns the largest |change| by merging.
    pub fn strips(
        &self,
        params: &Params,
        order: Order,
        each: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<f32> {
        let storage = pin(self.param.weight.storage());
        let merged = self.merged.map(|merged| merged.value(params)).transpose()?;
        let whole = match order {
            // A column needs every row.
            Order::Turned if merged.is_none() => Some(self.param.weight.to_tensor()),
            _ => merged,
        };
        let max_change = match (&whole, self.merged) {
            (Some(whole), Some(_)) => largest_change(whole, self.param),
            _ => 0.0,
        };
        if let (Order::Interleaved(head_dim), [len]) = (order, self.param.shape.as_slice()) {
            let was = whole.unwrap_or_else(|| self.param.weight.to_tensor());
            let values: Vec<f32> = (0..*len).map(|i| was.data()[of_halves(i, head_dim)]).collect();
            self.check(&values)?;
            each(&values)?;
            return Ok(max_change);
        }
        let (rows, cols) = self.size(order);
        let strip_rows = (STRIP / cols.max(1)).clamp(1, rows.max(1));
        let mut strip = Tensor::scratch(strip_rows, cols);
        for row0 in (0..rows).step_by(strip_rows) {
            let n = strip_rows.min(rows - row0);
            let out = &mut strip.data_mut()[..n * cols];
            out.par_chunks_mut(cols.max(1)).enumerate().for_each(|(i, out)| {
                let row = match order {
                    Order::Interleaved(head_dim) => of_halves(row0 + i, head_dim),
                    _ => row0 + i,
                };
                match (&whole, order) {
                    (_, Order::Kernel(h, w)) => {
                        let mut own = vec![0.0; cols];
                        match &whole {
                            Some(whole) => own.copy_from_slice(whole.row(row)),
                            None => storage.decode(row, 0, &mut own),
                        }
                        let layout = Layout::Kernel(h, w);
                        for (c, value) in own.iter().enumerate() {
                            out[layout.to_file((0, c), (1, cols))] = *value;
                        }
                    }
                    (Some(whole), Order::Turned) => {
                        out.iter_mut().enumerate().for_each(|(r, x)| *x = whole.row(r)[row]);
                    }
                    (Some(whole), _) => out.copy_from_slice(whole.row(row)),
                    (None, _) => storage.decode(row, 0, out),
                }
            });
            self.check(out)?;
            each(out)?;
        }
        Ok(max_change)
    }

    /// An error if a value is not finite.
    pub fn check(&self, values: &[f32]) -> Result<()> {
        values.iter().find(|value| !value.is_finite()).map_or(Ok(()), |value| Err(self.unfit(*value)))
    }

    /// A value that cannot be written.
    pub fn unfit(&self, value: f32) -> Error {
        if let Some(why) = self.param.weight.storage().fault() {
            return Error::Export { path: self.name.clone().into(), what: why };
        }
        let what = if value.is_finite() {
            format!("it holds {value}, beyond the range of f16; write bf16 or f32")
        } else {
            format!("it holds {value}: the training run diverged, or the files are damaged")
        };
        Error::Export { path: self.name.clone().into(), what }
    }
}

fn largest_change(merged: &Tensor, param: &Param) -> f32 {
    let storage = pin(param.weight.storage());
    let rows = 0..storage.rows();
    let change = |row: usize| {
        let mut was = vec![0.0; storage.cols()];
        storage.decode(row, 0, &mut was);
        merged.row(row).iter().zip(&was).map(|(new, old)| (new - old).abs()).fold(0.0, f32::max)
    };
    rows.into_par_iter().map(change).reduce(|| 0.0, f32::max)
}

/// Row `row` of a head with its halves interleaved is this row of the head as Hugging Face has it.
fn of_halves(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    head * head_dim + i % 2 * (head_dim / 2) + i / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_interleaved() {
        let rows: Vec<usize> = (0..8).map(|row| of_halves(row, 4)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
