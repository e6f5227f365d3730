//! The allocation law: whatever a file says of itself, opening and reading it takes at most 4 x its size + 1 MiB.

#[path = "hostile/archive.rs"]
mod archive;
#[path = "hostile/attacks.rs"]
mod attacks;

use std::path::Path;

use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc, PeakMemAllocTrait};
use retune_formats::peft::PeftAdapter;
use retune_formats::records::Records;
use retune_formats::{ctranslate2, folder, gguf, json, onnx, safetensors, torch};

#[global_allocator]
static ALLOCATOR: &PeakMemAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Checks the law for one file on disk; returns whether it was accepted.
fn law<T, E>(name: &str, size: usize, open: impl FnOnce() -> Result<T, E>) -> bool {
    ALLOCATOR.reset_peak_memory();
    let accepted = open().is_ok();
    let peak = ALLOCATOR.get_peak_memory();
    let allowed = 4 * size + (1 << 20);
    assert!(peak <= allowed, "{name}: {size} bytes of file, {peak} of memory, {allowed} allowed");
    accepted
}

fn open(path: &Path) -> retune_formats::Result<()> {
    match path.extension().is_some_and(|e| e == "gguf") {
        true => gguf::File::open(path).map(drop),
        false => safetensors::File::open(path).map(drop),
    }
}

// One test, so that no other one allocates meanwhile.
#[test]
fn memory_is_bounded_by_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for attack in attacks::all() {
        let path = dir.path().join(attack.file);
        std::fs::write(&path, &attack.bytes).unwrap();
        assert!(!law(&attack.name, attack.bytes.len(), || open(&path)), "{}", attack.name);
    }
    for (name, bytes) in dense() {
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let accepted = law(name, bytes.len(), || open(&path));
        assert!(accepted, "{name}: {:?}", open(&path));
    }
    let config = dir.path().join("adapter_config.json");
    for bytes in [
        b"[[],".repeat(250_000),
        b"{\"\":[0,0],".repeat(100_000),
        format!("[{}0]", "0,".repeat(1 << 20)).into(),
    ] {
        std::fs::write(&config, &bytes).unwrap();
        assert!(!law("json", bytes.len(), || json::read(&config, 16 << 20)));
        assert!(!law("adapter", bytes.len(), || PeftAdapter::open(dir.path())));
        let index = dir.path().join("model.safetensors.index.json");
        std::fs::write(&index, &bytes).unwrap();
        std::fs::remove_file(dir.path().join("model.safetensors")).ok();
        assert!(!law("index", bytes.len(), || folder::Weights::open(dir.path())));
    }
    for code in
        [&b"N"[..], b"(", b"}", b")", b"]", b"Nq\0", b"h\0", b"(t", b"ccollections\nOrderedDict\n", b"}Ns"]
    {
        let pickle = [&b"\x80\x02Nq\0"[..], &code.repeat((1 << 20) / code.len()), b"t."].concat();
        let path = dir.path().join("m.bin");
        let bytes = archive::archive(&[("a/data.pkl", &pickle)]);
        std::fs::write(&path, &bytes).unwrap();
        assert!(!law("m.bin", bytes.len(), || torch::File::open(&path)));
    }
    let old_pth = dir.path().join("m.pth");
    for body in [storages(20_000), b"]".repeat(1 << 20), b"cx\ny\n)\x81".repeat(100_000)] {
        let bytes = [LEGACY_START, &body, b"t.]."].concat();
        std::fs::write(&old_pth, &bytes).unwrap();
        assert!(!law("m.pth", bytes.len(), || torch::File::open(&old_pth)));
    }
    let net = dir.path().join("m.onnx");
    for (field, inner) in
        [(1, &b""[..]), (5, b""), (11, b""), (1, b"\x0a\0"), (1, b"\x2a\0"), (5, b"\x3a\x02\x01\x01")]
    {
        let field = [&[(field << 3) | 2, inner.len() as u8][..], inner].concat();
        let graph = field.repeat((1 << 20) / field.len());
        let size = graph.len();
        let size: Vec<u8> =
            (0..4).map(|i| ((size >> (7 * i)) & 0x7f) as u8 | if i < 3 { 0x80 } else { 0 }).collect();
        let bytes = [&b"\x3a"[..], &size, &graph].concat();
        std::fs::write(&net, &bytes).unwrap();
        assert!(!law("m.onnx", bytes.len(), || onnx::File::open(&net)));
    }
    let variables = dir.path().join("model.bin");
    for (count, name_bytes) in [(4_096, 4), (100_000, 32)] {
        let bytes = many_variables(count, name_bytes);
        std::fs::write(&variables, &bytes).unwrap();
        assert!(law("model.bin", bytes.len(), || ctranslate2::File::open(&variables)), "{count}");
    }
    for (name, text) in [
        ("d.jsonl", "[".repeat(1 << 20)),
        ("d.json", "{".repeat(1 << 20)),
        ("d.csv", format!("a,b\n\"{}", "x".repeat(1 << 20))),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, &text).unwrap();
        assert!(!law(name, text.len(), || Records::open(&path)?.try_for_each(|row| row.map(drop))), "{name}");
    }
}

/// A file of CTranslate2 with variables of no elements, and as many aliases as there may be.
fn many_variables(count: u32, name_bytes: usize) -> Vec<u8> {
    let string = |text: String| [&(text.len() as u16 + 1).to_le_bytes()[..], text.as_bytes(), b"\0"].concat();
    let name = |i: u32| string(format!("{i:0name_bytes$x}"));
    let mut out =
        [&6u32.to_le_bytes()[..], &string("x".into()), &1u32.to_le_bytes(), &count.to_le_bytes()].concat();
    (0..count).for_each(|i| out.extend([&name(i)[..], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat()));
    out.extend(1_024u32.to_le_bytes());
    (0..1_024).for_each(|i| out.extend([string(format!("a{i}")), name(i)].concat()));
    out
}

/// What a file of PyTorch before 1.6 begins with, up to what was saved.
const LEGACY_START: &[u8] =
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02(";

/// References to as many storages.
fn storages(count: u32) -> Vec<u8> {
    let one = |i: u32| {
        [&b"(U\x07storagectorch\nByteStorage\nU\x06"[..], format!("{i:06}").as_bytes(), b"U\0K\0tQ"].concat()
    };
    (0..count).flat_map(one).collect()
}

/// Valid files that are as dense as the format allows: nothing but the smallest entries.
fn dense() -> Vec<(&'static str, Vec<u8>)> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let head = |tensors: u64, kvs: u64| {
        [b"GGUF\x03\0\0\0".to_vec(), tensors.to_le_bytes().into(), kvs.to_le_bytes().into()].concat()
    };
    let padded = |mut bytes: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes
    };
    let kvs: Vec<u8> =
        (0..65_536).flat_map(|i| [string(&format!("{i:x}")), vec![0, 0, 0, 0, 1]].concat()).collect();
    let empty_strings =
        [string("k"), vec![9, 0, 0, 0, 8, 0, 0, 0], (1u64 << 18).to_le_bytes().into(), vec![0; 8 << 18]]
            .concat();
    let tensors: Vec<u8> = (0..100_000u64)
        .flat_map(|i| {
            let rest =
                [&1u32.to_le_bytes()[..], &1u64.to_le_bytes(), &24u32.to_le_bytes(), &(i * 32).to_le_bytes()];
            [string(&format!("{i:x}")), rest.concat()].concat()
        })
        .collect();
    let mut many = padded([head(100_000, 0), tensors].concat());
    many.resize(many.len() + 100_000 * 32, 0);
    let entries: Vec<String> = (0..100_000)
        .map(|i| format!(r#""{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    vec![
        ("kvs.gguf", padded([head(0, 65_536), kvs].concat())),
        ("strings.gguf", padded([head(0, 1), empty_strings].concat())),
        ("tensors.gguf", many),
        ("tensors.safetensors", [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()),
    ]
}
