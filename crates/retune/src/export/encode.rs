//! How a tensor lies in a file that is written, and what is lost by it.

use half::{bf16, f16};
use rayon::prelude::*;
use retune_formats::Dtype;
use retune_tensor::storage::{self, Format};

use super::layer;
use crate::models::Quantisation;
use crate::models::quantised::QuantCode;

/// The encoding of one tensor of rows of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// F32, F16 or BF16.
    Dense(Dtype),
    /// ggml's blocks, each within a row.
    Blocks(Format),
    /// bitsandbytes' codes of four or eight bits: several tensors.
    Quantised(Quantisation),
}

impl Encoding {
    /// The usual name: "f16", "q4_k", "nf4+dq".
    pub fn name(self) -> String {
        match self {
            Encoding::Dense(dtype) => dtype.name().to_ascii_lowercase(),
            Encoding::Blocks(format) => format.name().into(),
            Encoding::Quantised(Quantisation { code: QuantCode::FourBit(code), double: true }) => {
                format!("{}+dq", code.name())
            }
            Encoding::Quantised(how) => how.name().into(),
        }
    }

    /// Its type in a file, if one tensor holds all of it.
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Encoding::Dense(dtype) => Some(dtype),
            Encoding::Blocks(format) => {
                Dtype::all().find(|dtype| dtype.name().eq_ignore_ascii_case(format.name()))
            }
            Encoding::Quantised(_) => None,
        }
    }

    /// Bytes of `rows` rows.
    pub fn bytes(self, rows: usize, cols: usize) -> u64 {
        match self {
            Encoding::Quantised(how) => layer::bytes(how, rows, cols),
            _ => self.dtype().and_then(|dtype| dtype.byte_len(&[rows, cols])).unwrap_or(u64::MAX),
        }
    }

    /// Are the values others than numbers rounded one by one?
    pub fn is_quantised(self) -> bool {
        !matches!(self, Encoding::Dense(_))
    }
}

/// Sums of the differences between values and what a file says of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Values.
    pub elements: u64,
    /// Sum of the squares of the differences.
    pub squares: f64,
    /// Sum of the squares of the values.
    pub energy: f64,
    /// The largest |difference|.
    pub max: f32,
}

impl Loss {
    /// Of a run of values.
    pub fn of(values: &[f32], written: &[f32]) -> Loss {
        // Pieces of a fixed size: the same sums for any number of threads.
        const PIECE: usize = 1 << 14;
        let pieces: Vec<Loss> = values
            .par_chunks(PIECE)
            .zip(written.par_chunks(PIECE))
            .map(|(values, written)| {
                let mut loss = Loss { elements: values.len() as u64, ..Loss::default() };
                for (&value, &written) in values.iter().zip(written) {
                    let difference = f64::from(value) - f64::from(written);
                    loss.squares += difference * difference;
                    loss.energy += f64::from(value) * f64::from(value);
                    loss.max = loss.max.max((value - written).abs());
                }
                loss
            })
            .collect();
        pieces.into_iter().fold(Loss::default(), Loss::plus)
    }

    /// Of both.
    pub fn plus(self, other: Loss) -> Loss {
        Loss {
            elements: self.elements + other.elements,
            squares: self.squares + other.squares,
            energy: self.energy + other.energy,
            max: self.max.max(other.max),
        }
    }

    /// Root of the mean square of the differences.
    pub fn rmse(&self) -> f64 {
        (self.squares / self.elements.max(1) as f64).sqrt()
    }

    /// The RMSE over the root of the mean square of the values.
    pub fn relative(&self) -> f64 {
        if self.energy > 0.0 { (self.squares / self.energy).sqrt() } else { 0.0 }
    }

    /// Every value was written as it is.
    pub fn is_exact(&self) -> bool {
        self.squares == 0.0 && self.max == 0.0
    }
}

/// Appends the bytes of whole rows of finite values, and tells what is lost. The error is a value that cannot be written.
pub fn encode(
    encoding: Encoding,
    cols: usize,
    values: &[f32],
    out: &mut Vec<u8>,
) -> std::result::Result<Loss, f32> {
    match encoding {
        Encoding::Dense(dtype) => dense(dtype, values, out),
        Encoding::Blocks(format) => blocks(format, cols, values, out),
        // Of several tensors: `layer` makes them.
        Encoding::Quantised(_) => Err(values.first().copied().unwrap_or(0.0)),
    }
}

fn dense(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> std::result::Result<Loss, f32> {
    let mut back = Vec::new();
    match dtype {
        Dtype::F16 => {
            out.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()));
            back.extend(values.iter().map(|value| f16::from_f32(*value).to_f32()));
        }
        Dtype::BF16 => {
            out.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()));
            back.extend(values.iter().map(|value| bf16::from_f32(*value).to_f32()));
        }
        _ => {
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            return Ok(Loss::of(values, values));
        }
    }
    match values.iter().zip(&back).find(|(_, back)| !back.is_finite()) {
        Some((value, _)) => Err(*value),
        None => Ok(Loss::of(values, &back)),
    }
}

/// Rows in parallel, in whole rows of about 16 K elements.
fn blocks(format: Format, cols: usize, values: &[f32], out: &mut Vec<u8>) -> std::result::Result<Loss, f32> {
    let cols = cols.max(1);
    let rows = ((1 << 14) / cols).max(1);
    let pieces: Vec<std::result::Result<(Vec<u8>, Vec<f32>), f32>> = values
        .par_chunks(rows * cols)
        .map(|values| {
            let rows = values.len() / cols;
            let first = values.first().copied().unwrap_or(0.0);
            let bytes = storage::encode(format, rows, cols, values).map_err(|_| first)?;
            let stored = storage::from_bytes(format, rows, cols, bytes.clone()).map_err(|_| first)?;
            let mut back = vec![0.0; values.len()];
            back.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| stored.decode(row, 0, out));
            match values.iter().zip(&back).find(|(_, back)| !back.is_finite()) {
                // The constants of blocks are halves: a value may be beyond them.
                Some((value, _)) => Err(*value),
                None => Ok((bytes, back)),
            }
        })
        .collect();
    let mut loss = Loss::default();
    for (piece, values) in pieces.into_iter().zip(values.chunks(rows * cols)) {
        let (bytes, back) = piece?;
        out.extend(bytes);
        loss = loss.plus(Loss::of(values, &back));
    }
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_measured() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 - 30.0) * 0.37).collect();
        let mut bytes = Vec::new();
        let loss = encode(Encoding::Dense(Dtype::F32), 32, &values, &mut bytes).unwrap();
        assert!(loss.is_exact() && loss.rmse() == 0.0 && bytes.len() == 256);
        bytes.clear();
        let loss = encode(Encoding::Blocks(Format::Q8_0), 32, &values, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 68);
        // A step of q8_0 is max / 127; the error is at most half of it.
        assert!(!loss.is_exact() && loss.max <= 0.5 * 33.0 * 0.37 / 127.0 * 1.01 && loss.rmse() > 0.0);
        assert!(loss.relative() < 0.01 && loss.elements == 64);
        assert_eq!(encode(Encoding::Dense(Dtype::F16), 1, &[7e4], &mut bytes), Err(7e4));
    }
}
