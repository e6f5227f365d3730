//! Writes GGUF version 3: metadata in the order given, tensors aligned, atomically and durably.

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::{ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, Value};
use crate::source::TensorOut;
use crate::{atomic, limits};

/// Writes a file. `general.alignment` among the metadata is honoured.
pub fn write<'a>(
    path: &Path,
    metadata: &[(&str, Value)],
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
) -> Result<()> {
    let plan = Plan::new(path, metadata, tensors)?;
    atomic::write_file(path, |out| plan.write(path, out))
}

/// [`write`] into memory.
pub fn to_bytes<'a>(
    metadata: &[(&str, Value)],
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
) -> Result<Vec<u8>> {
    let path = Path::new("(memory)");
    let mut out = Vec::new();
    Plan::new(path, metadata, tensors)?.write(path, &mut out)?;
    Ok(out)
}

struct Plan<'a> {
    header: Vec<u8>,
    tensors: Vec<(TensorOut<'a>, u64)>,
    alignment: u64,
}

impl<'a> Plan<'a> {
    fn new(
        path: &Path,
        metadata: &[(&str, Value)],
        tensors: impl IntoIterator<Item = TensorOut<'a>>,
    ) -> Result<Plan<'a>> {
        let bad = |what: String| Error::Write { path: path.to_path_buf(), what };
        let mut sized = Vec::new();
        for tensor in tensors {
            let size = tensor.check(path)?;
            sized.push((tensor, size));
        }
        for (kind, mut names) in [
            ("tensors are named", sized.iter().map(|(t, _)| t.name.as_str()).collect::<Vec<_>>()),
            ("metadata entries have the key", metadata.iter().map(|(k, _)| *k).collect()),
        ] {
            names.sort_unstable();
            if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(bad(format!("two {kind} `{}`", pair[0])));
            }
        }
        let alignment = match metadata.iter().find(|(k, _)| *k == ALIGNMENT_KEY) {
            None => DEFAULT_ALIGNMENT,
            Some((_, Value::U32(n))) if n.is_power_of_two() && *n <= limits::GGUF_ALIGNMENT => *n,
            Some((_, other)) => return Err(bad(format!("{ALIGNMENT_KEY} is {}", other.describe()))),
        };
        let mut plan = Plan { header: Vec::new(), tensors: sized, alignment: alignment.into() };
        plan.header(metadata).map_err(bad)?;
        Ok(plan)
    }

    fn header(&mut self, metadata: &[(&str, Value)]) -> std::result::Result<(), String> {
        let out = &mut self.header;
        out.extend(b"GGUF");
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            if key.is_empty() || key.len() as u64 > limits::NAME_BYTES {
                return Err(format!("the metadata key `{key}` has {} bytes", key.len()));
            }
            put_string(out, key);
            out.extend(value.id().to_le_bytes());
            put_value(out, value);
        }
        let mut offset = 0u64;
        for (tensor, size) in &self.tensors {
            let id = tensor.dtype.gguf_id();
            let id =
                id.ok_or_else(|| format!("tensor `{}`: GGUF has no type {}", tensor.name, tensor.dtype))?;
            // A scalar is a row of one in GGUF.
            let shape = if tensor.shape.is_empty() { &[1][..] } else { &tensor.shape };
            if shape.contains(&0) {
                return Err(format!("tensor `{}` is empty, which GGUF does not allow", tensor.name));
            }
            put_string(out, &tensor.name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
            out.extend(id.to_le_bytes());
            out.extend(offset.to_le_bytes());
            let end = offset.checked_add(*size).and_then(|end| end.checked_next_multiple_of(self.alignment));
            offset = end.ok_or("the tensors take more than 2^64 bytes")?;
        }
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        Ok(())
    }

    fn write(self, path: &Path, out: &mut dyn Write) -> Result<()> {
        out.write_all(&self.header).map_err(Error::io(path, "write"))?;
        for (tensor, size) in self.tensors {
            tensor.write(path, size, out)?;
            let padding = size.next_multiple_of(self.alignment) - size;
            out.write_all(&vec![0; padding as usize]).map_err(Error::io(path, "write"))?;
        }
        Ok(())
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => put_string(out, v),
        Value::Array(v) => {
            let (id, len, _) = v.parts();
            out.extend(id.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
            put_array(out, v);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::Bool(v) => v.iter().for_each(|x| out.push(u8::from(*x))),
        Array::Str(v) => v.iter().for_each(|x| put_string(out, x)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::File;
    use crate::{Dtype, TensorSource};

    fn sample(version: u8) -> Vec<u8> {
        let metadata = [
            ("general.architecture", Value::Str("llama".into())),
            ("llama.block_count", Value::U32(2)),
            ("llama.rope.freq_base", Value::F32(1e4)),
            ("tokenizer.ggml.tokens", Value::Array(Array::Str(vec!["<s>".into(), "é".into(), "".into()]))),
            ("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0, -1.0, 2.5]))),
            ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![3, 1, 1]))),
            ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ];
        let tensors = [
            TensorOut::f32("token_embd.weight", &[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            TensorOut::bytes("blk.0.attn_q.weight", Dtype::Q4_0, &[2, 32], vec![7u8; 36]),
        ];
        let mut bytes = to_bytes(&metadata, tensors).unwrap();
        bytes[4] = version;
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for version in [2, 3] {
            let file = File::from_memory("m.gguf", sample(version)).unwrap();
            assert_eq!((file.version(), file.alignment()), (version.into(), 32));
            let m = file.metadata();
            assert_eq!(m.str("general.architecture").unwrap(), "llama");
            assert_eq!(m.u32("llama.block_count").unwrap(), 2);
            assert_eq!(m.f32("llama.rope.freq_base").unwrap(), 1e4);
            assert_eq!(m.array_str("tokenizer.ggml.tokens").unwrap(), ["<s>", "é", ""]);
            assert_eq!(m.array_f32("tokenizer.ggml.scores").unwrap(), [0.0, -1.0, 2.5]);
            assert_eq!(m.array_i32("tokenizer.ggml.token_type").unwrap(), [3, 1, 1]);
            assert!(m.bool("tokenizer.ggml.add_bos_token").unwrap());
            assert_eq!(m.opt_u32("llama.none").unwrap(), None);
            assert_eq!(file.find("token_embd.weight").unwrap().shape, [2, 3]);
            assert_eq!(file.read_f32("token_embd.weight").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            assert_eq!(file.read("blk.0.attn_q.weight").unwrap(), [7; 36]);
        }
    }

    #[test]
    fn errors_name_key_and_type() {
        let file = File::from_memory("m.gguf", sample(3)).unwrap();
        let message = |e: Error| e.to_string();
        let m = file.metadata();
        assert_eq!(
            message(m.u32("general.architecture").unwrap_err()),
            "m.gguf: `general.architecture` is string `llama`, wanted an integer from 0 to 4294967295"
        );
        let missing = message(m.u32("llama.block_cout").unwrap_err());
        assert_eq!(missing, "m.gguf: key `llama.block_cout` is missing (the nearest is `llama.block_count`)");
        assert!(message(m.opt_f32("llama.block_count").unwrap_err()).contains("u32 2"));
        for (version, word) in [(1, "version 1"), (0, "version 0"), (9, "version 9")] {
            assert!(message(File::from_memory("m", sample(version)).unwrap_err()).contains(word));
        }
    }
}
