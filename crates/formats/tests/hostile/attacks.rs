//! The attack files: one good file of each kind, and an enum of ways to spoil it. `attacks/README.md` lists them with
//! what refuses each; the bytes are made here and not with the crate's own writers, so that the two cannot agree
//! on a mistake.

/// A spoilt file: it must be refused with a message that contains `says`.
pub struct Attack {
    pub name: String,
    pub file: &'static str,
    pub bytes: Vec<u8>,
    #[allow(dead_code)] // Not read where only memory is measured.
    pub says: &'static str,
}

/// All spoilt files.
pub fn all() -> Vec<Attack> {
    let gguf = GGUF.iter().map(|(spoil, says)| Attack {
        name: format!("gguf/{spoil:?}"),
        file: "model.gguf",
        bytes: gguf(Some(*spoil)),
        says,
    });
    let safetensors = SAFETENSORS.iter().map(|(spoil, says)| Attack {
        name: format!("safetensors/{spoil:?}"),
        file: "model.safetensors",
        bytes: safetensors(Some(*spoil)),
        says,
    });
    gguf.chain(safetensors).collect()
}

/// Ways to spoil a GGUF file: those of llama.cpp's `test-gguf.cpp`, and the published holes of other readers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SpoilGguf {
    Empty,
    MagicOnly,
    BadMagic,
    Version0,
    Version1,
    Version4,
    BigEndian,
    TensorCountMax,
    TensorCountOneMore,
    TensorCountOverLimit,
    KvCountMax,
    KvCountOneMore,
    KvCountOverLimit,
    KeyLengthMax,
    KeyLength2To63,
    KeyEmpty,
    KeyTooLong,
    KeyNotUtf8,
    KeyTwice,
    ValueTypeUnknown,
    StringLengthMax,
    StringLengthOneMore,
    StringTooLong,
    StringNotUtf8,
    BoolIsTwo,
    BoolInArrayIsTwo,
    ArrayLengthMax,
    ArrayLengthWraps,
    ArrayOfStringsLengthMax,
    ArrayTypeUnknown,
    ArrayOfArrays,
    AlignmentZero,
    Alignment13,
    Alignment2To30,
    AlignmentWrongType,
    TensorNameEmpty,
    TensorNameTooLong,
    TensorNameTwice,
    NoDimensions,
    DimensionsMax,
    DimensionsNine,
    DimensionZero,
    DimensionsWrapToZero,
    DimensionsWrapToSmall,
    DimensionMax,
    SizeWraps,
    TypeUnknown,
    TypeIq2,
    TypeRemoved,
    BlockNotWhole,
    OffsetUnaligned,
    OffsetWraps,
    OffsetOverlaps,
    OffsetLeavesHole,
    DataOneShort,
    DataMissing,
    DataTooLong,
}

const GGUF: &[(SpoilGguf, &str)] = {
    use SpoilGguf::*;
    &[
        (Empty, "it ends at byte 0"),
        (MagicOnly, "inside its version"),
        (BadMagic, "not with `GGUF`"),
        (Version0, "version 0"),
        (Version1, "version 1"),
        (Version4, "version 4"),
        (BigEndian, "big-endian"),
        (TensorCountMax, "number of tensors is 18446744073709551615"),
        (TensorCountOneMore, ""),
        (TensorCountOverLimit, "number of tensors"),
        (KvCountMax, "number of metadata entries is 18446744073709551615"),
        (KvCountOneMore, ""),
        (KvCountOverLimit, "number of metadata entries is 65537, the limit is 65536"),
        (KeyLengthMax, "length of a metadata key is 18446744073709551615"),
        (KeyLength2To63, "length of a metadata key is 9223372036854775808"),
        (KeyEmpty, "is empty"),
        (KeyTooLong, "the limit is 1024"),
        (KeyNotUtf8, "not UTF-8"),
        (KeyTwice, "`general.architecture` occurs twice"),
        (ValueTypeUnknown, "unknown type 13"),
        (StringLengthMax, "length of a metadata value"),
        (StringLengthOneMore, ""),
        (StringTooLong, "the limit is 65536"),
        (StringNotUtf8, "not UTF-8"),
        (BoolIsTwo, "neither 0 nor 1"),
        (BoolInArrayIsTwo, "neither 0 nor 1"),
        (ArrayLengthMax, "length of the array"),
        (ArrayLengthWraps, "length of the array"),
        (ArrayOfStringsLengthMax, "length of the array"),
        (ArrayTypeUnknown, "unknown element type 99"),
        (ArrayOfArrays, "array of arrays"),
        (AlignmentZero, "`general.alignment` is u32 0"),
        (Alignment13, "`general.alignment` is u32 13"),
        (Alignment2To30, "`general.alignment` is u32 1073741824"),
        (AlignmentWrongType, "`general.alignment` is string"),
        (TensorNameEmpty, "is empty"),
        (TensorNameTooLong, "the limit is 1024"),
        (TensorNameTwice, "two tensors are named `a`"),
        (NoDimensions, "has 0 dimensions"),
        (DimensionsMax, "has 4294967295 dimensions"),
        (DimensionsNine, "has 9 dimensions"),
        (DimensionZero, "a dimension of 0"),
        (DimensionsWrapToZero, "overflows"),
        (DimensionsWrapToSmall, "overflows"),
        (DimensionMax, "overflows"),
        (SizeWraps, "overflows"),
        (TypeUnknown, "stored as number 77"),
        (TypeIq2, "stored as IQ2_XXS"),
        (TypeRemoved, "stored as Q4_0_4_4"),
        (BlockNotWhole, "not whole Q4_0 blocks"),
        (OffsetUnaligned, "was due"),
        (OffsetWraps, "was due"),
        (OffsetOverlaps, "was due"),
        (OffsetLeavesHole, "was due"),
        (DataOneShort, "remain"),
        (DataMissing, "remain"),
        (DataTooLong, "belong to nothing"),
    ]
};

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A metadata entry: key, type, bytes of the value.
fn kv(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [string(key.as_bytes()), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
}

fn array(kind: u32, len: u64, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), bytes].concat()
}

struct TensorEntry {
    name: Vec<u8>,
    n_dims: u32,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

/// A good file of some 500 bytes (`None`), or a spoilt one.
pub fn gguf(spoil: Option<SpoilGguf>) -> Vec<u8> {
    use SpoilGguf::*;
    let is = |s| spoil == Some(s);
    let mut magic = *b"GGUF";
    let mut version = 3u32;
    let mut kvs = vec![
        kv("general.architecture", 8, &string(b"llama")),
        kv("llama.block_count", 4, &2u32.to_le_bytes()),
        kv("tokenizer.ggml.tokens", 9, &array(8, 2, &[string(b"a"), string("é".as_bytes())].concat())),
        kv("tokenizer.ggml.scores", 9, &array(6, 2, &[0; 8])),
        kv("tokenizer.ggml.add_bos_token", 7, &[1]),
    ];
    let mut tensors = vec![
        TensorEntry { name: string(b"a"), n_dims: 2, dims: vec![3, 2], kind: 0, offset: 0 },
        TensorEntry { name: string(b"b"), n_dims: 1, dims: vec![32], kind: 2, offset: 32 },
    ];
    let mut data = vec![0u8; 32 + 18];
    let mut tensor_count = None;
    let mut kv_count = None;
    match spoil {
        Some(BadMagic) => magic = *b"GGML",
        Some(Version0) => version = 0,
        Some(Version1) => version = 1,
        Some(Version4) => version = 4,
        Some(BigEndian) => version = 3u32.swap_bytes(),
        Some(TensorCountMax) => tensor_count = Some(u64::MAX),
        Some(TensorCountOneMore) => tensor_count = Some(3),
        Some(TensorCountOverLimit) => tensor_count = Some((1 << 20) + 1),
        Some(KvCountMax) => kv_count = Some(u64::MAX),
        Some(KvCountOneMore) => kv_count = Some(6),
        Some(KvCountOverLimit) => kv_count = Some(65_537),
        Some(KeyLengthMax) => kvs[0][..8].fill(0xff),
        Some(KeyLength2To63) => kvs[0][..8].copy_from_slice(&(1u64 << 63).to_le_bytes()),
        Some(KeyEmpty) => kvs[0] = kv("", 0, &[0]),
        Some(KeyTooLong) => kvs[0] = kv(&"k".repeat(1025), 0, &[0]),
        Some(KeyNotUtf8) => kvs[0][8] = 0xff,
        Some(KeyTwice) => kvs.push(kv("general.architecture", 0, &[0])),
        Some(ValueTypeUnknown) => kvs[0] = kv("k", 13, &[0; 8]),
        Some(StringLengthMax) => kvs[0] = kv("k", 8, &[0xff; 8]),
        Some(StringLengthOneMore) => kvs[0] = kv("k", 8, &[&6u64.to_le_bytes()[..], b"llama"].concat()),
        Some(StringTooLong) => kvs[0] = kv("k", 8, &string(&[b'x'; 65_537])),
        Some(StringNotUtf8) => kvs[0] = kv("k", 8, &string(b"\xc3\x28")),
        Some(BoolIsTwo) => kvs[4] = kv("k", 7, &[2]),
        Some(BoolInArrayIsTwo) => kvs[4] = kv("k", 9, &array(7, 3, &[0, 1, 2])),
        Some(ArrayLengthMax) => kvs[3] = kv("k", 9, &array(6, u64::MAX, &[0; 8])),
        Some(ArrayLengthWraps) => kvs[3] = kv("k", 9, &array(12, 1 << 61, &[0; 8])),
        Some(ArrayOfStringsLengthMax) => kvs[2] = kv("k", 9, &array(8, u64::MAX, &[0; 8])),
        Some(ArrayTypeUnknown) => kvs[3] = kv("k", 9, &array(99, 1, &[0; 8])),
        Some(ArrayOfArrays) => kvs[3] = kv("k", 9, &array(9, 1, &array(9, 1, &[]).repeat(10_000))),
        Some(AlignmentZero) => kvs.push(kv("general.alignment", 4, &0u32.to_le_bytes())),
        Some(Alignment13) => kvs.push(kv("general.alignment", 4, &13u32.to_le_bytes())),
        Some(Alignment2To30) => kvs.push(kv("general.alignment", 4, &(1u32 << 30).to_le_bytes())),
        Some(AlignmentWrongType) => kvs.push(kv("general.alignment", 8, &string(b"32"))),
        Some(TensorNameEmpty) => tensors[0].name = string(b""),
        Some(TensorNameTooLong) => tensors[0].name = string(&[b'n'; 1025]),
        Some(TensorNameTwice) => tensors[1].name = string(b"a"),
        Some(NoDimensions) => (tensors[0].n_dims, tensors[0].dims) = (0, vec![]),
        Some(DimensionsMax) => tensors[0].n_dims = u32::MAX,
        Some(DimensionsNine) => (tensors[0].n_dims, tensors[0].dims) = (9, vec![1; 9]),
        Some(DimensionZero) => tensors[0].dims = vec![3, 0],
        Some(DimensionsWrapToZero) => tensors[0].dims = vec![1 << 32, 1 << 32],
        Some(DimensionsWrapToSmall) => tensors[0].dims = vec![(1 << 63) + 3, 2],
        Some(DimensionMax) => tensors[0].dims = vec![u64::MAX, 2],
        Some(SizeWraps) => tensors[0].dims = vec![1 << 62, 1],
        Some(TypeUnknown) => tensors[0].kind = 77,
        Some(TypeIq2) => tensors[0].kind = 16,
        Some(TypeRemoved) => tensors[0].kind = 31,
        Some(BlockNotWhole) => tensors[1].dims = vec![33],
        Some(OffsetUnaligned) => tensors[1].offset = 33,
        Some(OffsetWraps) => tensors[1].offset = u64::MAX - 3,
        Some(OffsetOverlaps) => tensors[1].offset = 0,
        Some(OffsetLeavesHole) => tensors[1].offset = 64,
        Some(DataOneShort) => drop(data.pop()),
        Some(DataMissing) => data.clear(),
        Some(DataTooLong) => data.resize(32 + 18 + 4096, 0),
        None | Some(Empty | MagicOnly) => {}
    }
    let mut out = magic.to_vec();
    out.extend(version.to_le_bytes());
    out.extend(tensor_count.unwrap_or(tensors.len() as u64).to_le_bytes());
    out.extend(kv_count.unwrap_or(kvs.len() as u64).to_le_bytes());
    out.extend(kvs.concat());
    for t in tensors {
        out.extend(t.name);
        out.extend(t.n_dims.to_le_bytes());
        t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(t.kind.to_le_bytes());
        out.extend(t.offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    match spoil {
        _ if is(Empty) => Vec::new(),
        _ if is(MagicOnly) => out[..4].to_vec(),
        _ => out,
    }
}

/// Ways to spoil a safetensors file: those of the reference implementation's tests, and more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SpoilSafetensors {
    Empty,
    SevenBytes,
    HeaderLengthMax,
    HeaderLengthOneMore,
    HeaderOverLimit,
    HeaderEmpty,
    NotUtf8,
    NotJson,
    LeadingSpace,
    AList,
    DeepNesting,
    ManyOpenLists,
    MetadataTwice,
    MetadataKeyTwice,
    MetadataNotText,
    MetadataTooMany,
    TypeUnknown,
    TypeOfQuarterBytes,
    KeyUnknown,
    KeyMissing,
    ShapeNegative,
    ShapeFraction,
    ShapeNineDimensions,
    ShapeManyDimensions,
    ShapeOverflows,
    ShapeWrapsToZero,
    OffsetsReversed,
    OffsetsMax,
    OffsetsOverlap,
    OffsetsSame,
    OffsetsHole,
    OffsetsFirstNotZero,
    SizeWrong,
    NameEmpty,
    NameTooLong,
    NameTwice,
    DataOneShort,
    DataMissing,
    DataOneLong,
}

const SAFETENSORS: &[(SpoilSafetensors, &str)] = {
    use SpoilSafetensors::*;
    &[
        (Empty, "it ends at byte 0"),
        (SevenBytes, "it ends at byte 7"),
        (HeaderLengthMax, "length of its header is 18446744073709551615"),
        (HeaderLengthOneMore, "length of its header"),
        (HeaderOverLimit, "the limit is 100000000"),
        (HeaderEmpty, "does not begin with `{`"),
        (NotUtf8, "not UTF-8"),
        (NotJson, "its header"),
        (LeadingSpace, "does not begin with `{`"),
        (AList, "does not begin with `{`"),
        (DeepNesting, "its header"),
        (ManyOpenLists, "does not begin with `{`"),
        (MetadataTwice, "`__metadata__` occurs twice"),
        (MetadataKeyTwice, "metadata key `format` occurs twice"),
        (MetadataNotText, "expected a string"),
        (MetadataTooMany, "more than 4096 metadata entries"),
        (TypeUnknown, "unknown element type `F31`"),
        (TypeOfQuarterBytes, "unknown element type `F4`"),
        (KeyUnknown, "unknown field `extra`"),
        (KeyMissing, "missing field"),
        (ShapeNegative, "invalid value"),
        (ShapeFraction, "invalid type"),
        (ShapeNineDimensions, "more than 8 dimensions"),
        (ShapeManyDimensions, "more than 8 dimensions"),
        (ShapeOverflows, "more than 2^64 bytes"),
        (ShapeWrapsToZero, "more than 2^64 bytes"),
        (OffsetsReversed, ""),
        (OffsetsMax, ""),
        (OffsetsOverlap, "overlaps"),
        (OffsetsSame, "overlaps"),
        (OffsetsHole, "leaves a hole"),
        (OffsetsFirstNotZero, "leaves a hole"),
        (SizeWrong, "takes 24 bytes"),
        (NameEmpty, "has 0 bytes"),
        (NameTooLong, "has 1025 bytes"),
        (NameTwice, "two tensors are named `a`"),
        (DataOneShort, "bytes of data follow"),
        (DataMissing, "bytes of data follow"),
        (DataOneLong, "belong to nothing"),
    ]
};

fn entry(name: &str, dtype: &str, shape: &str, begin: &str, end: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// A good file of some 200 bytes (`None`), or a spoilt one.
pub fn safetensors(spoil: Option<SpoilSafetensors>) -> Vec<u8> {
    use SpoilSafetensors::*;
    let meta = r#""__metadata__":{"format":"pt"}"#.to_string();
    let a = entry("a", "F32", "[2,3]", "0", "24");
    let b = entry("b", "BF16", "[4]", "24", "32");
    let max = u64::MAX.to_string();
    let mut data = vec![0u8; 32];
    let parts: Vec<String> = match spoil {
        Some(MetadataTwice) => vec![meta.clone(), meta, a, b],
        Some(MetadataKeyTwice) => vec![r#""__metadata__":{"format":"pt","format":"np"}"#.into(), a, b],
        Some(MetadataNotText) => vec![r#""__metadata__":{"format":1}"#.into(), a, b],
        Some(MetadataTooMany) => {
            let many: Vec<String> = (0..5000).map(|i| format!(r#""{i}":"""#)).collect();
            vec![format!(r#""__metadata__":{{{}}}"#, many.join(",")), a, b]
        }
        Some(TypeUnknown) => vec![meta, entry("a", "F31", "[2,3]", "0", "24"), b],
        Some(TypeOfQuarterBytes) => vec![meta, entry("a", "F4", "[48]", "0", "24"), b],
        Some(KeyUnknown) => vec![r#""a":{"dtype":"U8","shape":[32],"data_offsets":[0,32],"extra":0}"#.into()],
        Some(KeyMissing) => vec![r#""a":{"dtype":"U8","data_offsets":[0,32]}"#.into()],
        Some(ShapeNegative) => vec![meta, entry("a", "F32", "[-2,-3]", "0", "24"), b],
        Some(ShapeFraction) => vec![meta, entry("a", "F32", "[2.5]", "0", "24"), b],
        Some(ShapeNineDimensions) => vec![meta, entry("a", "F32", "[1,1,1,1,1,1,1,2,3]", "0", "24"), b],
        Some(ShapeManyDimensions) => {
            vec![meta, entry("a", "F32", &format!("[6{}]", ",1".repeat(200_000)), "0", "24"), b]
        }
        Some(ShapeOverflows) => vec![meta, entry("a", "F32", "[4611686018427387904,4]", "0", "24"), b],
        Some(ShapeWrapsToZero) => vec![meta, entry("a", "F32", "[4294967296,4294967296]", "0", "0"), b],
        Some(OffsetsReversed) => vec![meta, entry("a", "F32", "[2,3]", "24", "0"), b],
        Some(OffsetsMax) => vec![meta, a, entry("b", "BF16", "[4]", "24", &max)],
        Some(OffsetsOverlap) => vec![meta, a, entry("b", "BF16", "[8]", "16", "32")],
        Some(OffsetsSame) => {
            vec![meta, entry("a", "U8", "[32]", "0", "32"), entry("b", "I8", "[32]", "0", "32")]
        }
        Some(OffsetsHole) => vec![meta, a, entry("b", "U8", "[4]", "28", "32")],
        Some(OffsetsFirstNotZero) => vec![meta, entry("b", "BF16", "[4]", "24", "32")],
        Some(SizeWrong) => {
            vec![meta, entry("a", "F32", "[2,3]", "0", "23"), entry("b", "U8", "[9]", "23", "32")]
        }
        Some(NameEmpty) => vec![meta, entry("", "F32", "[2,3]", "0", "24"), b],
        Some(NameTooLong) => vec![meta, entry(&"n".repeat(1025), "F32", "[2,3]", "0", "24"), b],
        Some(NameTwice) => vec![meta, a, entry("a", "BF16", "[4]", "24", "32")],
        _ => vec![meta, a, b],
    };
    let mut header = format!("{{{}}}", parts.join(",")).into_bytes();
    match spoil {
        Some(NotUtf8) => header[3] = 0xff,
        Some(NotJson) => header[1] = b'x',
        Some(LeadingSpace) => header.insert(0, b' '),
        Some(AList) => header = b"[]".to_vec(),
        Some(HeaderEmpty) => header.clear(),
        Some(DeepNesting) => header = [b"{\"a\":".to_vec(), b"[".repeat(100_000)].concat(),
        Some(ManyOpenLists) => header = b"[[],".repeat(100_000),
        Some(DataOneShort) => drop(data.pop()),
        Some(DataMissing) => data.clear(),
        Some(DataOneLong) => data.push(0),
        _ => {}
    }
    let length = match spoil {
        Some(HeaderLengthMax) => u64::MAX,
        Some(HeaderLengthOneMore) => header.len() as u64 + data.len() as u64 + 1,
        Some(HeaderOverLimit) => 100_000_001,
        _ => header.len() as u64,
    };
    match spoil {
        Some(Empty) => Vec::new(),
        Some(SevenBytes) => vec![0; 7],
        _ => [&length.to_le_bytes()[..], &header, &data].concat(),
    }
}
