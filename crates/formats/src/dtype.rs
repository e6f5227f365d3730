//! How the elements of a tensor are stored: plain numbers, or blocks of quantised ones (GGUF).
//!
//! A block type stores `block_len` consecutive elements of a row in `block_bytes` bytes; plain types are blocks of
//! one. Layouts of the blocks: ggml's `ggml-common.h`.

use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
pub enum Dtype {
    F32,
    F16,
    BF16,
    F64,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    Bool,
    F8E4M3,
    F8E5M2,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
}

/// One row of the table below: type, name, elements and bytes per block, GGUF number, safetensors name.
struct Row(Dtype, &'static str, usize, usize, Option<u32>, Option<&'static str>);

const TABLE: &[Row] = &[
    Row(Dtype::F32, "F32", 1, 4, Some(0), Some("F32")),
    Row(Dtype::F16, "F16", 1, 2, Some(1), Some("F16")),
    Row(Dtype::BF16, "BF16", 1, 2, Some(30), Some("BF16")),
    Row(Dtype::F64, "F64", 1, 8, Some(28), Some("F64")),
    Row(Dtype::I8, "I8", 1, 1, Some(24), Some("I8")),
    Row(Dtype::U8, "U8", 1, 1, None, Some("U8")),
    Row(Dtype::I16, "I16", 1, 2, Some(25), Some("I16")),
    Row(Dtype::U16, "U16", 1, 2, None, Some("U16")),
    Row(Dtype::I32, "I32", 1, 4, Some(26), Some("I32")),
    Row(Dtype::U32, "U32", 1, 4, None, Some("U32")),
    Row(Dtype::I64, "I64", 1, 8, Some(27), Some("I64")),
    Row(Dtype::U64, "U64", 1, 8, None, Some("U64")),
    Row(Dtype::Bool, "BOOL", 1, 1, None, Some("BOOL")),
    Row(Dtype::F8E4M3, "F8_E4M3", 1, 1, None, Some("F8_E4M3")),
    Row(Dtype::F8E5M2, "F8_E5M2", 1, 1, None, Some("F8_E5M2")),
    Row(Dtype::Q4_0, "Q4_0", 32, 18, Some(2), None),
    Row(Dtype::Q4_1, "Q4_1", 32, 20, Some(3), None),
    Row(Dtype::Q5_0, "Q5_0", 32, 22, Some(6), None),
    Row(Dtype::Q5_1, "Q5_1", 32, 24, Some(7), None),
    Row(Dtype::Q8_0, "Q8_0", 32, 34, Some(8), None),
    Row(Dtype::Q8_1, "Q8_1", 32, 36, Some(9), None),
    Row(Dtype::Q2_K, "Q2_K", 256, 84, Some(10), None),
    Row(Dtype::Q3_K, "Q3_K", 256, 110, Some(11), None),
    Row(Dtype::Q4_K, "Q4_K", 256, 144, Some(12), None),
    Row(Dtype::Q5_K, "Q5_K", 256, 176, Some(13), None),
    Row(Dtype::Q6_K, "Q6_K", 256, 210, Some(14), None),
    Row(Dtype::Q8_K, "Q8_K", 256, 292, Some(15), None),
];

/// GGUF types that exist and are refused: they are named in the message, so that people know what they hold.
const GGUF_OTHERS: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl Dtype {
    /// All types, in the order of the enum.
    pub fn all() -> impl Iterator<Item = Dtype> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        // The table lists the types in the order of the enum (tested).
        &TABLE[self as usize]
    }

    /// The name that people know: `F32`, `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements in a block (1 for plain types).
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Is this a type of quantised blocks?
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Is this a floating-point type that [`crate::TensorSource::read_f32`] converts?
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
    }

    /// Bytes that `shape` takes. `None` if the last dimension is not whole blocks or the size overflows.
    pub fn byte_len(self, shape: &[usize]) -> Option<u64> {
        let numel = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))?;
        let row = shape.last().copied().unwrap_or(1);
        if row % self.block_len() != 0 {
            return None;
        }
        (numel / self.block_len() as u64).checked_mul(self.block_bytes() as u64)
    }

    /// The number of this type in a GGUF file.
    pub fn gguf_id(self) -> Option<u32> {
        self.row().4
    }

    /// The type of this number in a GGUF file; the error is the name of a type that is not handled.
    pub fn from_gguf(id: u32) -> std::result::Result<Dtype, String> {
        if let Some(row) = TABLE.iter().find(|row| row.4 == Some(id)) {
            return Ok(row.0);
        }
        let other = GGUF_OTHERS.iter().find(|(n, _)| *n == id);
        Err(other.map_or_else(|| format!("number {id}"), |(_, name)| name.to_string()))
    }

    /// The name of this type in a safetensors header.
    pub fn safetensors_name(self) -> Option<&'static str> {
        self.row().5
    }

    /// The type of this name in a safetensors header.
    pub fn from_safetensors(name: &str) -> Option<Dtype> {
        TABLE.iter().find(|row| row.5 == Some(name)).map(|row| row.0)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, dtype) in Dtype::all().enumerate() {
            assert_eq!(dtype as usize, i, "{dtype}");
        }
    }

    #[test]
    fn numbers_and_names_lead_back() {
        for dtype in Dtype::all() {
            if let Some(id) = dtype.gguf_id() {
                assert_eq!(Dtype::from_gguf(id), Ok(dtype));
            }
            if let Some(name) = dtype.safetensors_name() {
                assert_eq!(Dtype::from_safetensors(name), Some(dtype));
            }
        }
        assert_eq!(Dtype::from_gguf(16), Err("IQ2_XXS".into()));
        assert_eq!(Dtype::from_gguf(4711), Err("number 4711".into()));
    }

    #[test]
    fn sizes_neither_wrap_nor_round() {
        assert_eq!(Dtype::F32.byte_len(&[2, 3]), Some(24));
        assert_eq!(Dtype::F32.byte_len(&[]), Some(4));
        assert_eq!(Dtype::Q4_K.byte_len(&[3, 512]), Some(3 * 2 * 144));
        assert_eq!(Dtype::Q4_K.byte_len(&[512, 3]), None);
        assert_eq!(Dtype::U8.byte_len(&[1 << 32, 1 << 32]), None);
        assert_eq!(Dtype::F64.byte_len(&[1 << 62]), None);
    }
}
