//! Every limit that a file is held to: one constant each, the table that SECURITY.md prints.

/// Largest JSON header of a safetensors file, in bytes.
pub const SAFETENSORS_HEADER_BYTES: u64 = 100_000_000;
/// Most entries of a safetensors file's `__metadata__`.
pub const SAFETENSORS_METADATA: usize = 4_096;
/// Most tensors in one file.
pub const TENSORS: u64 = 1 << 20;
/// Most dimensions of one tensor.
pub const DIMS: usize = 8;
/// Longest name of a tensor or a metadata key, in bytes.
pub const NAME_BYTES: u64 = 1 << 10;
/// Most metadata entries of a GGUF file.
pub const GGUF_KV: u64 = 1 << 16;
/// Longest ordinary string in a GGUF file, in bytes.
pub const GGUF_STRING_BYTES: u64 = 64 << 10;
/// Longest template, merge list or embedded tokenizer in a GGUF file, in bytes.
pub const GGUF_LONG_STRING_BYTES: u64 = 16 << 20;
/// Most elements of a GGUF array.
pub const GGUF_ARRAY: u64 = 64 << 20;
/// Largest alignment of GGUF tensor data, in bytes (a power of two).
pub const GGUF_ALIGNMENT: u32 = 64 << 10;
/// Largest configuration file (`config.json`, `adapter_config.json`), in bytes.
pub const CONFIG_BYTES: u64 = 16 << 20;
/// Largest index of shards (`model.safetensors.index.json`), in bytes.
pub const INDEX_BYTES: u64 = 100 << 20;
/// Largest tokenizer file, in bytes.
pub const TOKENIZER_BYTES: u64 = 256 << 20;
/// Largest chat template, in bytes.
pub const TEMPLATE_BYTES: u64 = 64 << 10;
/// Most chat templates of one model.
pub const TEMPLATES: usize = 64;
/// Memory that the values of any JSON file may take, in bytes ...
pub const JSON_MEMORY_BYTES: usize = 800 << 10;
/// ... and more for each byte of its text.
pub const JSON_MEMORY_PER_BYTE: usize = 3;
/// Most shards of one model.
pub const SHARDS: usize = 10_000;
/// Largest rank of a low-rank adapter.
pub const RANK: u64 = 4_096;
/// Longest pattern for module names, in bytes.
pub const PATTERN_BYTES: usize = 4 << 10;
/// Most module names or patterns in one field of an adapter configuration.
pub const MODULE_NAMES: usize = 10_000;
/// Most tensors of an adapter.
pub const ADAPTER_TENSORS: usize = 1 << 16;
/// Most regular expressions in one adapter configuration.
pub const PATTERNS: usize = 64;
/// Largest compiled pattern for module names, in bytes of memory.
pub const PATTERN_COMPILED_BYTES: usize = 256 << 10;
/// Longest line (or record) of a data file, in bytes.
pub const RECORD_BYTES: usize = 16 << 20;
/// Memory that the values of one record of a data file may take, in bytes, and [`JSON_MEMORY_PER_BYTE`] more for each
/// byte of its text.
pub const RECORD_MEMORY_BYTES: usize = 32 << 20;
/// Most virtual tokens of a prompt or a prefix.
pub const VIRTUAL_TOKENS: usize = 1 << 16;
/// Widest embedding, and most heads, that an adapter's configuration may name.
pub const WIDTH: usize = 1 << 20;
/// Most layers that an adapter's configuration may name.
pub const LAYERS: usize = 1 << 10;
/// Longest pickle in a file of PyTorch, in bytes.
pub const PICKLE_BYTES: u64 = 256 << 20;
/// Deepest nesting of tuples in a pickle.
pub const PICKLE_DEPTH: usize = 64;
/// Memory that the values of a pickle may take, in bytes, and three times the size of the file more.
pub const PICKLE_MEMORY_BYTES: usize = 896 << 10;
/// How often larger than their file the tensors of a PyTorch file may be, because they share storages (AdapterHub names
/// a prefix once for every layer).
pub const TORCH_SHARING: u64 = 128;
/// Most entries of a pickled network's modules that are looked at (a module may stand in several places).
pub const TORCH_MODULE_STEPS: usize = 1 << 24;
/// Most names in a pickled module's set of buffers that are not saved.
pub const TORCH_SET: usize = 1 << 10;
/// Largest `.cfg` of darknet, in bytes.
pub const DARKNET_CFG_BYTES: u64 = 1 << 20;
/// Most sections of a `.cfg` of darknet.
pub const DARKNET_SECTIONS: usize = 1 << 12;
/// Largest file of labels, in bytes.
pub const LABELS_BYTES: u64 = 4 << 20;
/// Most labels of one file.
pub const LABELS: usize = 1 << 16;
/// Memory that the description of an ONNX graph may take, in bytes, and twice the size of the file more.
pub const ONNX_MEMORY_BYTES: usize = 512 << 10;
/// Longest text in an attribute of an ONNX node, in bytes.
pub const ONNX_TEXT_BYTES: u64 = 1 << 20;
/// Largest description of a quantised tensor (bitsandbytes' `quant_state`), in bytes.
pub const QUANT_STATE_BYTES: u64 = 4 << 10;
/// Most files of a data set that is a folder.
pub const DATA_FILES: usize = 10_000_000;
