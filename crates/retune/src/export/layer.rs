//! One weight in bitsandbytes' codes: quantised as a whole, or taken over where it lies in them already.

use rayon::prelude::*;
use retune_formats::Dtype;
use retune_formats::bitsandbytes::{Layer, Original};
use retune_tensor::storage::{self, Quantized, Storage, pin};
use retune_tensor::{Params, Tensor};

use super::encode::Loss;
use super::values::{Order, Values};
use crate::error::{Error, Result};
use crate::models::Quantisation;
use crate::models::quantised::{QuantCode, layer_of};

/// Bytes of the parts of a weight beside its codes and constants: the maps and the state.
const BESIDE: u64 = 16 * 4 + 256 * 4 + 256;

/// Bytes that a weight will take, at most.
pub fn bytes(how: Quantisation, rows: usize, cols: usize) -> u64 {
    (how.bytes(rows, cols) as u64).saturating_add(BESIDE)
}

/// The weight `[out, in]` as its file has it, what is lost, and the largest |change| by merging. `original` is the type
/// that its values had.
pub fn layer(
    values: &Values,
    params: &Params,
    how: Quantisation,
    original: Dtype,
) -> Result<(Layer, Loss, f32)> {
    let original = match original {
        Dtype::F16 => Original::F16,
        Dtype::BF16 => Original::Bf16,
        _ => Original::F32,
    };
    let elements = values.param.elements() as u64;
    let stored = pin(values.param.weight.storage());
    if !values.is_changed()
        && let Some(found) = stored.quantized().filter(|found| lies_so(found, how))
    {
        return Ok((layer_of(found, original), Loss { elements, ..Loss::default() }, 0.0));
    }
    let (rows, cols) = values.size(Order::AsIs);
    let quantise = |data: &[f32]| -> Result<(Layer, Loss)> {
        let failed = |e: storage::StorageError| Error::Export {
            path: values.name.clone().into(),
            what: e.to_string(),
        };
        let quantised = how.quantise(rows, cols, data).map_err(failed)?;
        let loss = loss_of(cols, data, quantised.as_ref());
        let layer = quantised.quantized().map(|found| layer_of(found, original));
        // Every storage that a quantisation makes has parts.
        let layer = layer.ok_or_else(|| values.unfit(f32::NAN))?;
        Ok((layer, loss))
    };
    if let Some(data) = stored.as_f32().filter(|_| values.merged.is_none()) {
        values.check(data)?;
        return quantise(data).map(|(layer, loss)| (layer, loss, 0.0));
    }
    drop(stored);
    let mut whole = Tensor::scratch(rows, cols);
    let mut at = 0;
    let change = values.strips(params, Order::AsIs, &mut |strip| {
        whole.data_mut()[at..at + strip.len()].copy_from_slice(strip);
        at += strip.len();
        Ok(())
    })?;
    quantise(whole.data()).map(|(layer, loss)| (layer, loss, change))
}

/// Does a weight lie in these codes already?
fn lies_so(found: &Quantized, how: Quantisation) -> bool {
    match (found, how.code) {
        (Quantized::FourBit(found), QuantCode::FourBit(code)) => {
            found.code() == code && found.constants().is_double() == how.double
        }
        (Quantized::RowInt8(_), QuantCode::Int8) => true,
        _ => false,
    }
}

/// Rows compared at a time, about 64 K elements.
fn loss_of(cols: usize, values: &[f32], quantised: &dyn Storage) -> Loss {
    let cols = cols.max(1);
    let rows = ((1 << 16) / cols).max(1);
    let pieces: Vec<Loss> = values
        .par_chunks(rows * cols)
        .enumerate()
        .map(|(i, values)| {
            let mut back = vec![0.0; values.len()];
            let each = back.chunks_exact_mut(cols).enumerate();
            each.for_each(|(row, out)| quantised.decode(i * rows + row, 0, out));
            Loss::of(values, &back)
        })
        .collect();
    pieces.into_iter().fold(Loss::default(), Loss::plus)
}
