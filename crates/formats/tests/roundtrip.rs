//! Any valid file that is written is read back the same.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use retune_formats::gguf::{Array, Value};
use retune_formats::{Dtype, TensorOut, TensorSource, gguf, gguf_write, safetensors};

#[derive(Clone, Debug)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A tensor of any of these types whose rows are whole blocks.
fn tensor(dtypes: Vec<Dtype>, smallest: usize) -> impl Strategy<Value = Tensor> {
    (proptest::sample::select(dtypes), vec(smallest..4usize, 0..5), any::<u8>()).prop_map(
        |(dtype, mut shape, fill)| {
            match shape.last_mut() {
                Some(row) => *row *= dtype.block_len(),
                None if dtype.is_quantized() => shape.push(dtype.block_len()),
                None => {}
            }
            let size = dtype.byte_len(&shape).unwrap() as usize;
            let bytes = (0..size).map(|i| fill.wrapping_add(i as u8)).collect();
            Tensor { dtype, shape, bytes }
        },
    )
}

fn out(tensors: &std::collections::BTreeMap<String, Tensor>) -> Vec<TensorOut<'_>> {
    tensors.iter().map(|(name, t)| TensorOut::bytes(name, t.dtype, &t.shape, &t.bytes[..])).collect()
}

fn value() -> impl Strategy<Value = Value> {
    let text = "[a-z<>é\\PC]{0,12}";
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e9f32..1e9).prop_map(Value::F32),
        (-1e9f64..1e9).prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        text.prop_map(Value::Str),
        vec(text, 0..6).prop_map(|v| Value::Array(Array::Str(v))),
        vec(any::<bool>(), 0..6).prop_map(|v| Value::Array(Array::Bool(v))),
        vec(any::<i32>(), 0..3000).prop_map(|v| Value::Array(Array::I32(v))),
        vec(any::<u64>(), 0..6).prop_map(|v| Value::Array(Array::U64(v))),
        vec(-1e9f32..1e9, 0..6).prop_map(|v| Value::Array(Array::F32(v))),
        vec(any::<i8>(), 0..6).prop_map(|v| Value::Array(Array::I8(v))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn safetensors_files(
        tensors in btree_map("[a-z.\"\\\\é]{1,12}", tensor(Dtype::all().filter(|d| d.safetensors_name().is_some()).collect(), 0), 0..8),
        metadata in btree_map("[a-z\"\\n]{0,8}", "\\PC{0,20}", 0..4),
    ) {
        let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let bytes = safetensors::to_bytes(out(&tensors), &metadata).unwrap();
        let reversed = safetensors::to_bytes(out(&tensors).into_iter().rev(), &metadata).unwrap();
        prop_assert_eq!(&bytes, &reversed);
        let file = safetensors::File::from_memory("x", bytes).unwrap();
        let read: Vec<_> = file.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        prop_assert_eq!(read, metadata);
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (name, t) in &tensors {
            let info = file.find(name).unwrap();
            prop_assert_eq!((info.dtype, &info.shape), (t.dtype, &t.shape));
            prop_assert_eq!(&file.read(name).unwrap(), &t.bytes);
        }
    }

    #[test]
    fn gguf_files(
        tensors in btree_map("[a-z.é]{1,12}", tensor(Dtype::all().filter(|d| d.gguf_id().is_some()).collect(), 1), 0..8),
        metadata in btree_map("[a-z.]{1,12}", value(), 0..12),
        alignment in proptest::option::of(0u32..9),
    ) {
        let mut metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        metadata.extend(alignment.map(|a| ("general.alignment", Value::U32(1 << a))));
        let file = gguf::File::from_memory("x", gguf_write::to_bytes(&metadata, out(&tensors)).unwrap()).unwrap();
        prop_assert_eq!(file.metadata().len(), metadata.len());
        for (key, value) in &metadata {
            prop_assert_eq!(file.metadata().get(key), Some(value));
        }
        for (name, t) in &tensors {
            let info = file.find(name).unwrap();
            let shape = if t.shape.is_empty() { vec![1] } else { t.shape.clone() };
            prop_assert_eq!((info.dtype, &info.shape), (t.dtype, &shape));
            prop_assert_eq!(&file.read(name).unwrap(), &t.bytes);
        }
    }
}
