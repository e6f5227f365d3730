//! One weight in bitsandbytes' codes: quantised as a whole, or taken over where it lies in them already.

use rayon::prelude::*;
use retune_formats::Dtype;
use retune_formats::bitsandbytes::{Absmax, Code, FourBit, Int8, Layer, Original};
use retune_tensor::storage::{self, Code4, Constants, Quantized, RowInt8, Storage};
use retune_tensor::{Params, Tensor};

use super::encode::{Encoding, Loss};
use super::values::{Order, Values};
use crate::error::{Error, Result};

/// Values that share a constant, as bitsandbytes has it where nothing else is said.
pub const BLOCKSIZE: usize = 64;

/// Bytes of the parts of a weight beside its codes and constants: the maps and the state.
const BESIDE: u64 = 16 * 4 + 256 * 4 + 256;

/// Bytes that a weight will take, at most.
pub fn bytes(encoding: Encoding, rows: usize, cols: usize) -> u64 {
    let size = match encoding {
        Encoding::FourBit { double, .. } => storage::FourBit::size(BLOCKSIZE, double, rows, cols),
        _ => RowInt8::size(rows, cols),
    };
    size.map_or(u64::MAX, |size| size as u64 + BESIDE)
}

/// The weight `[out, in]` as its file has it, what is lost, and the largest |change| by merging. `original` is the type
/// that its values had.
pub fn layer(
    values: &Values,
    params: &Params,
    encoding: Encoding,
    original: Dtype,
) -> Result<(Layer, Loss, f32)> {
    let elements = values.param.elements() as u64;
    let stored = values.param.weight.storage();
    if !values.is_changed()
        && let Some(layer) = stored.quantized().and_then(|found| as_it_is(found, encoding, original))
    {
        return Ok((layer, Loss { elements, ..Loss::default() }, 0.0));
    }
    let (rows, cols) = values.size(Order::AsIs);
    let mut whole = Tensor::scratch(rows, cols);
    let mut at = 0;
    let change = values.strips(params, Order::AsIs, &mut |strip| {
        whole.data_mut()[at..at + strip.len()].copy_from_slice(strip);
        at += strip.len();
        Ok(())
    })?;
    let fail =
        |e: storage::StorageError| Error::Export { path: values.name.clone().into(), what: e.to_string() };
    match encoding {
        Encoding::FourBit { code, double } => {
            let quantised = storage::FourBit::quantize(code, BLOCKSIZE, double, rows, cols, whole.data())
                .map_err(fail)?;
            let loss = loss_of(&whole, &quantised);
            drop(whole);
            Ok((Layer::FourBit(four_bit(&quantised, original)), loss, change))
        }
        _ => {
            let quantised = RowInt8::quantize(rows, cols, whole.data()).map_err(fail)?;
            let loss = loss_of(&whole, &quantised);
            drop(whole);
            Ok((Layer::Int8(int8(&quantised)), loss, change))
        }
    }
}

/// A weight that lies in these codes already.
fn as_it_is(found: Quantized, encoding: Encoding, original: Dtype) -> Option<Layer> {
    match (found, encoding) {
        (Quantized::FourBit(found), Encoding::FourBit { code, double })
            if found.code() == code && found.constants().is_double() == double =>
        {
            Some(Layer::FourBit(four_bit(found, original)))
        }
        (Quantized::RowInt8(found), Encoding::Int8) => Some(Layer::Int8(int8(found))),
        _ => None,
    }
}

/// The file's word for a code.
pub fn code(code: Code4) -> Code {
    match code {
        Code4::Nf4 => Code::Nf4,
        Code4::Fp4 => Code::Fp4,
        Code4::Int4 => Code::Int4,
    }
}

fn four_bit(quantised: &storage::FourBit, original: Dtype) -> FourBit {
    FourBit {
        code: code(quantised.code()),
        blocksize: quantised.blocksize(),
        original: match original {
            Dtype::F16 => Original::F16,
            Dtype::BF16 => Original::Bf16,
            _ => Original::F32,
        },
        shape: [quantised.rows(), quantised.cols()],
        packed: quantised.packed().to_vec(),
        map: *quantised.map(),
        absmax: match quantised.constants().clone() {
            Constants::Single(absmax) => Absmax::Single(absmax),
            Constants::Double { codes, map, absmax, blocksize, offset } => {
                Absmax::Double { codes, map, nested: absmax, blocksize, offset }
            }
        },
    }
}

fn int8(quantised: &RowInt8) -> Int8 {
    Int8 {
        shape: [quantised.rows(), quantised.cols()],
        values: quantised.values().to_vec(),
        scales: quantised.scales().to_vec(),
    }
}

/// Rows compared at a time, about 64 K elements.
fn loss_of(values: &Tensor, quantised: &dyn Storage) -> Loss {
    let cols = values.cols().max(1);
    let rows = ((1 << 16) / cols).max(1);
    let pieces: Vec<Loss> = values
        .data()
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
