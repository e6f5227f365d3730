//! The constants of a blockwise storage, one for each block: f32, or themselves quantised to eight bits ("double quantisation", QLoRA).
//!
//! Double: constant[b] = map[codes[b]] * absmax[b / blocksize] + offset, with offset the mean of all constants.

use super::StorageError;
use super::dynamic_map::dynamic_map;

/// Constants in a block of double quantisation.
pub const NESTED_BLOCKSIZE: usize = 256;

/// The largest magnitude of each block.
#[derive(Clone, Debug, PartialEq)]
pub enum Constants {
    Single(Vec<f32>),
    Double {
        codes: Vec<u8>,
        map: Box<[f32; 256]>,
        absmax: Vec<f32>,
        /// Codes that share one `absmax`, a power of two: 256 unless a file says otherwise.
        blocksize: usize,
        offset: f32,
    },
}

impl Constants {
    /// Quantises constants as bitsandbytes does.
    pub(super) fn double(constants: &[f32]) -> Constants {
        let sum: f64 = constants.iter().map(|c| f64::from(*c)).sum();
        let offset = (sum / constants.len().max(1) as f64) as f32;
        let map = dynamic_map(true);
        let mut codes = Vec::with_capacity(constants.len());
        let mut absmax = Vec::with_capacity(constants.len().div_ceil(NESTED_BLOCKSIZE));
        for block in constants.chunks(NESTED_BLOCKSIZE) {
            let most = block.iter().fold(0.0f32, |most, c| most.max((c - offset).abs()));
            let inverse = 1.0 / most;
            // Where all are the mean, any code will do: zero times it.
            let code = |c: &f32| if most == 0.0 { 0 } else { nearest(map, (c - offset) * inverse) };
            codes.extend(block.iter().map(code));
            absmax.push(most);
        }
        Constants::Double { codes, map: Box::new(*map), absmax, blocksize: NESTED_BLOCKSIZE, offset }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Constants::Single(absmax) => absmax.len(),
            Constants::Double { codes, .. } => codes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they are themselves quantised.
    pub fn is_double(&self) -> bool {
        matches!(self, Constants::Double { .. })
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        match self {
            Constants::Single(absmax) => 4 * absmax.len(),
            Constants::Double { codes, absmax, .. } => double_bytes(codes.len(), absmax.len()),
        }
    }

    /// Bytes that the constants of `blocks` blocks take when they are quantised here.
    pub fn size(blocks: usize, double: bool) -> usize {
        if double {
            double_bytes(blocks, blocks.div_ceil(NESTED_BLOCKSIZE))
        } else {
            blocks.saturating_mul(4)
        }
    }

    /// The constant of block `i`.
    #[inline]
    pub fn at(&self, i: usize) -> f32 {
        match self {
            Constants::Single(absmax) => absmax[i],
            Constants::Double { codes, map, absmax, blocksize, offset } => {
                // A shift: a division would take as long as decoding the block.
                map[usize::from(codes[i])] * absmax[i >> blocksize.trailing_zeros()] + offset
            }
        }
    }

    /// Whether these can be the constants of `blocks` blocks.
    pub(super) fn check(&self, format: &'static str, blocks: usize) -> Result<(), StorageError> {
        let parts = |what, want, got| match want == got {
            true => Ok(()),
            false => Err(StorageError::Parts { format, what, want, got }),
        };
        let number = |what, index, value: f32, fine: bool| match fine {
            true => Ok(()),
            false => Err(StorageError::Constant { format, what, index, value }),
        };
        let magnitudes = |what, all: &[f32]| {
            let wrong = all.iter().position(|v| !(v.is_finite() && *v >= 0.0));
            wrong.map_or(Ok(()), |i| number(what, i, all[i], false))
        };
        match self {
            Constants::Single(absmax) => {
                parts("absmax constants", blocks, absmax.len())?;
                magnitudes("absmax constant", absmax)
            }
            Constants::Double { codes, map, absmax, blocksize, offset } => {
                check_blocksize(*blocksize)?;
                parts("quantised absmax constants", blocks, codes.len())?;
                parts("nested absmax constants", blocks.div_ceil(*blocksize), absmax.len())?;
                magnitudes("nested absmax constant", absmax)?;
                let wrong = map.iter().position(|v| v.is_nan() || v.abs() > 1.0);
                wrong.map_or(Ok(()), |i| number("entry of the nested map", i, map[i], false))?;
                let most = absmax.iter().fold(0.0f32, |most, v| most.max(*v));
                number("nested offset", 0, *offset, (offset.abs() + most).is_finite())
            }
        }
    }
}

/// The index in `map` of the value nearest to `v`; midway between two, the lower one.
#[inline]
fn nearest(map: &[f32; 256], v: f32) -> u8 {
    // The first index whose midpoint to the next value is not below v.
    let (mut low, mut high) = (0, 255);
    while low < high {
        let middle = (low + high) / 2;
        if (map[middle] + map[middle + 1]) / 2.0 < v {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low as u8
}

fn double_bytes(codes: usize, nested: usize) -> usize {
    codes.saturating_add(nested.saturating_mul(4)).saturating_add(size_of::<[f32; 256]>() + size_of::<f32>())
}

/// A block size that a file may name.
pub(super) fn check_blocksize(blocksize: usize) -> Result<(), StorageError> {
    match blocksize.is_power_of_two() && blocksize <= 1 << 16 {
        true => Ok(()),
        false => Err(StorageError::Blocksize { got: blocksize }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_its_own_nearest_and_midpoints_go_down() {
        let map = dynamic_map(true);
        for (i, v) in map.iter().enumerate() {
            assert_eq!(usize::from(nearest(map, *v)), i);
        }
        for i in 0..255 {
            let middle = (map[i] + map[i + 1]) / 2.0;
            assert_eq!(usize::from(nearest(map, middle)), i);
            assert_eq!(usize::from(nearest(map, middle.next_up())), i + 1);
        }
        assert_eq!((nearest(map, -7.0), nearest(map, 7.0)), (0, 255));
    }
}
