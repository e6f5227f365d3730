//! The tensors of an ONNX file (`TensorProto`): where they lie, or their decoded bytes.

use std::ops::Range;

use super::wire::{Field, Wire};
use crate::error::{Error, Result, quote};
use crate::source::TensorInfo;
use crate::{Dtype, limits};

/// [`TensorInfo::shard`] of a tensor that lies in the file as it is; any other is the number of decoded bytes.
pub const IN_FILE: u32 = u32::MAX;

/// `TensorProto.DataType`.
const TYPES: &[(u64, Dtype)] = &[
    (1, Dtype::F32),
    (2, Dtype::U8),
    (3, Dtype::I8),
    (4, Dtype::U16),
    (5, Dtype::I16),
    (6, Dtype::I32),
    (7, Dtype::I64),
    (9, Dtype::Bool),
    (10, Dtype::F16),
    (11, Dtype::F64),
    (12, Dtype::U32),
    (13, Dtype::U64),
    (16, Dtype::BF16),
    (17, Dtype::F8E4M3),
    (19, Dtype::F8E5M2),
];

/// The type of this number.
pub fn dtype(number: u64) -> Option<Dtype> {
    TYPES.iter().find(|(n, _)| *n == number).map(|found| found.1)
}

/// Where a tensor's numbers lie.
enum Place {
    /// As they would lie in memory.
    Plain(Range<u64>),
    /// Whole numbers, one for each element.
    Whole(Vec<i64>),
}

/// Reads a tensor. Its decoded bytes, if it has any, go to `decoded`.
pub fn read(wire: &mut Wire, range: Range<u64>, decoded: &mut Vec<Vec<u8>>) -> Result<TensorInfo> {
    let (mut name, mut shape, mut kind) = (String::new(), Vec::new(), 0);
    let mut places: Vec<Place> = Vec::new();
    let mut is_external = false;
    wire.message("a tensor", range, &mut |wire, number, field| {
        match (number, field) {
            (1, field) => wire.varints("a tensor's dimensions", field, &mut shape)?,
            (2, Field::Varint(n)) => kind = n,
            // float_data, double_data, raw_data: packed little-endian numbers are what lies in memory.
            (4 | 10 | 9, Field::Bytes(range)) => push(wire, &mut places, Place::Plain(range))?,
            (4, field @ Field::Fixed32(_)) => {
                return Err(wire.bad(format!("a tensor's numbers are not packed ({field:?})")));
            }
            // int32_data, int64_data, uint64_data
            (5 | 7 | 11, field) => {
                let mut values = match places.pop() {
                    Some(Place::Whole(values)) => values,
                    Some(other) => {
                        places.push(other);
                        Vec::new()
                    }
                    None => Vec::new(),
                };
                wire.varints("a tensor's numbers", field, &mut values)?;
                push(wire, &mut places, Place::Whole(values))?;
            }
            (8, field) => name = wire.text("the name of a tensor", field, limits::NAME_BYTES)?,
            (14, Field::Varint(1)) => is_external = true,
            _ => {}
        }
        Ok(())
    })?;
    let shown = quote(&name);
    if is_external {
        let what = format!("the numbers of tensor {shown} lie in another file");
        let remedy = "save it as one file (in Python: onnx.save(model, path, save_as_external_data=False))";
        return Err(Error::unsupported(wire.path(), what, remedy));
    }
    let bad = |what: String| Error::invalid(wire.path(), "ONNX", format!("tensor {shown}: {what}"));
    let Some(dtype) = dtype(kind) else {
        let what = format!("tensor {shown} is of type number {kind}");
        return Err(Error::unsupported(wire.path(), what, "numbers of 8 to 64 bits were expected"));
    };
    if shape.len() > limits::DIMS {
        return Err(bad(format!("it has {} dimensions, the limit is {}", shape.len(), limits::DIMS)));
    }
    let dims: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    let size = dims.as_ref().and_then(|dims| dtype.byte_len(dims));
    let (Some(dims), Some(size)) = (dims, size) else { return Err(bad(format!("its shape is {shape:?}"))) };
    let place = match places.len() {
        0 => Place::Plain(0..0),
        1 => places.remove(0),
        n => return Err(bad(format!("its numbers lie in {n} pieces, one was expected"))),
    };
    let info = |offset, shard| TensorInfo {
        name: name.clone(),
        dtype,
        shape: dims.clone(),
        offset,
        bytes: size,
        shard,
    };
    match place {
        Place::Plain(range) if range.end - range.start == size => Ok(info(range.start, IN_FILE)),
        Place::Plain(range) => Err(bad(format!(
            "shape {dims:?} of {dtype} takes {size} bytes, {} are there",
            range.end - range.start
        ))),
        Place::Whole(values) => {
            let bytes =
                narrow(dtype, &values).ok_or_else(|| bad(format!("a number in it does not fit {dtype}")))?;
            if bytes.len() as u64 != size {
                let n = values.len();
                return Err(bad(format!(
                    "shape {dims:?} of {dtype} takes {size} bytes, {n} numbers are there"
                )));
            }
            wire.take(bytes.len())?;
            decoded.push(bytes);
            Ok(info(0, decoded.len() as u32 - 1))
        }
    }
}

fn push(wire: &mut Wire, places: &mut Vec<Place>, place: Place) -> Result<()> {
    wire.take(size_of::<Place>())?;
    places.push(place);
    Ok(())
}

/// Whole numbers as their type lies in memory; types of 16 bits that are no whole numbers come as their bits.
fn narrow(dtype: Dtype, values: &[i64]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(values.len().checked_mul(dtype.block_bytes())?);
    for &value in values {
        match dtype {
            Dtype::U8 | Dtype::Bool | Dtype::F8E4M3 | Dtype::F8E5M2 => out.push(u8::try_from(value).ok()?),
            Dtype::I8 => out.extend(i8::try_from(value).ok()?.to_le_bytes()),
            Dtype::U16 | Dtype::F16 | Dtype::BF16 => out.extend(u16::try_from(value).ok()?.to_le_bytes()),
            Dtype::I16 => out.extend(i16::try_from(value).ok()?.to_le_bytes()),
            Dtype::I32 => out.extend(i32::try_from(value).ok()?.to_le_bytes()),
            Dtype::U32 => out.extend(u32::try_from(value).ok()?.to_le_bytes()),
            Dtype::I64 | Dtype::U64 => out.extend(value.to_le_bytes()),
            _ => return None,
        }
    }
    Some(out)
}
