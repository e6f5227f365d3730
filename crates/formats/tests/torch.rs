//! Files that torch.save wrote, and pickles that no torch ever would: tensors or an error, and nothing is ever run.

#[path = "hostile/archive.rs"]
mod archive;

use std::fs;
use std::path::{Path, PathBuf};

use archive::archive;
use retune_formats::peft::PeftAdapter;
use retune_formats::{Result, TensorSource, safetensors, torch};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/torch").join(path)
}

#[test]
fn tensors_are_those_that_torch_saved() {
    for (pickled, plain) in [("kinds.pt", "kinds.safetensors"), ("state_dict.bin", "state_dict.safetensors")]
    {
        let (ours, theirs) =
            (torch::File::open(data(pickled)).unwrap(), safetensors::File::open(data(plain)).unwrap());
        assert_eq!(ours.tensors().len(), theirs.tensors().len());
        for info in theirs.tensors() {
            let found = ours.get(&info.name).unwrap();
            assert_eq!((found.dtype, &found.shape), (info.dtype, &info.shape), "{}", info.name);
            assert!(ours.read(&info.name).unwrap() == theirs.read(&info.name).unwrap(), "{}", info.name);
        }
    }
    let ours = torch::File::open(data("kinds.pt")).unwrap();
    assert!(ours.read_f32("transposed").is_ok_and(|v| v.len() == 21));
    let mut part = [0; 8];
    ours.read_at(ours.get("transposed").unwrap(), 4, &mut part).unwrap();
    assert_eq!(part, ours.read("transposed").unwrap()[4..12]);
}

#[test]
fn what_is_no_flat_dictionary_of_tensors_is_named() {
    for (file, word) in [
        ("evil.pt", "it wants to run `posix.system`"),
        ("number.pt", "`epoch` in it is no tensor"),
        ("nested.pt", "`inner` in it is no tensor"),
        ("kinds.safetensors", "no zip archive"),
    ] {
        let message = torch::File::open(data(file)).err().unwrap().to_string();
        assert!(message.contains(word) && message.contains(file), "{message}");
    }
    assert!(!Path::new("retune-was-here").exists());
}

#[test]
fn an_adapter_whose_weights_are_pickled_is_read() {
    let pickled = PeftAdapter::open(data("peft_bin")).unwrap();
    let plain = PeftAdapter::open(data("../formats/lora_bert_seqcls")).unwrap();
    assert_eq!(pickled.tensors().len(), plain.tensors().len());
    for tensor in plain.tensors() {
        let found = pickled.find(&tensor.module, &tensor.param).unwrap();
        assert_eq!(pickled.read_f32(found).unwrap(), plain.read_f32(tensor).unwrap());
    }
    assert!(pickled.notes().iter().any(|note| note.contains("adapter_model.bin")));
}

fn text(text: &str) -> Vec<u8> {
    [b"X".to_vec(), (text.len() as u32).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat()
}

/// `{"w": tensor}` over the storage `0` of `numel` f32.
fn tensor(numel: i32, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let numbers =
        |n: &[u8]| [&b"("[..], &n.iter().flat_map(|n| [b'K', *n]).collect::<Vec<_>>(), b"t"].concat();
    [
        b"\x80\x02}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        [b"J".to_vec(), numel.to_le_bytes().to_vec()].concat(),
        b"tQ".to_vec(),
        vec![b'K', offset],
        numbers(shape),
        numbers(strides),
        b"\x89}tRs.".to_vec(),
    ]
    .concat()
}

fn open(pickle: &[u8]) -> Result<torch::File> {
    torch::File::from_memory("m.bin", archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 24])]))
}

#[test]
fn a_pickle_by_hand_is_read() {
    let file = open(&tensor(6, 0, &[2, 3], &[3, 1])).unwrap();
    assert_eq!(file.get("w").unwrap().shape, [2, 3]);
    assert_eq!(file.read_f32("w").unwrap(), [0.0; 6]);
    assert_eq!(open(&tensor(6, 1, &[2], &[2])).unwrap().read_f32("w").unwrap().len(), 2);
    assert_eq!(open(&tensor(6, 0, &[0, 3], &[1, 1])).unwrap().read("w").unwrap().len(), 0);
}

#[test]
fn tensors_stay_within_their_storage() {
    for (numel, offset, shape, strides, word) in [
        (7, 0, &[2, 3][..], &[3, 1][..], "7 elements were due"),
        (-1, 0, &[2], &[1], "reference to what is no storage"),
        (6, 1, &[2, 3], &[3, 1], "element 6 of a storage of 6"),
        (6, 0, &[2, 3], &[4, 1], "element 6 of a storage of 6"),
        (6, 7, &[0], &[1], "of a storage of 6"),
        (6, 0, &[200], &[0], "larger than its storage"),
        (6, 0, &[255; 8], &[255; 8], "larger than its storage"),
        (6, 0, &[1; 9], &[1; 9], "not what it should be"),
        (6, 0, &[2, 3], &[1], "of 2 dimensions"),
    ] {
        let message = open(&tensor(numel, offset, shape, strides)).err().unwrap().to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn bombs_and_programs_are_refused() {
    let nested = [b"\x80\x02)".to_vec(), b"\x85".repeat(1_000_000), b".".to_vec()].concat();
    let doubling: Vec<u8> = (0..40u8).flat_map(|i| [b'h', i, b'h', i, 0x86, b'q', i + 1]).collect();
    let laughs = [b"\x80\x02)q\x00".to_vec(), doubling, b".".to_vec()].concat();
    let many = [b"\x80\x02(".to_vec(), b"N".repeat(1_000_000), b"t.".to_vec()].concat();
    let dictionaries = [b"\x80\x02(".to_vec(), b"}".repeat(1_000_000), b"t.".to_vec()].concat();
    let global = |module: &str, name: &str| format!("\u{2}c{module}\n{name}\n.").into_bytes();
    let proto = |body: &[u8]| [b"\x80\x02", body].concat();
    for (pickle, word) in [
        (nested, "nested deeper than 64"),
        (laughs, "no dictionary of tensors"),
        (many, "more values than a file of this size may hold"),
        (dictionaries, "more values than a file of this size may hold"),
        (proto(b"\x80\x09."), "protocol 9"),
        (global("x", "y"), "instruction 0x02"),
        (proto(b"cos\nsystem\n."), "it wants to run `os.system`"),
        (proto(b"c__builtin__\neval\n."), "it wants to run `__builtin__.eval`"),
        (proto(b"ctorch._utils\n_rebuild_tensor_v3\n."), "`torch._utils._rebuild_tensor_v3`"),
        (proto(b"cos"), "a name has no end"),
        (proto(b"\x8c\x02os\x8c\x06system\x93."), "it wants to run `os.system`"),
        (proto(b"i"), "instruction 0x69"),
        (proto(b"ccollections\nOrderedDict\nNR."), "a call without arguments"),
        (proto(b"))R."), "a call of what is no function"),
        (proto(b"}"), "cut short"),
        (proto(b"X\xff\xff\xff\x7f"), "cut short"),
        (proto(b"h\x05."), "memo 5 is empty"),
        (proto(b"Nr\xff\xff\xff\x7f."), "is filled before"),
        (proto(b"t."), "no mark"),
        (proto(b"}N."), "no dictionary"),
        (proto(b"}.."), "1 bytes follow"),
        (proto(b"\x8a\x09123456789."), "an integer of 9 bytes"),
        (proto(b"X\x01\0\0\0\xff."), "not UTF-8"),
        (proto(b"NNu."), "no mark"),
        (proto(b"N(NNu."), "what is no dictionary"),
        (proto(b"}(Nu."), "a key has no value"),
        (proto(b"}NNs."), "a key is no text"),
    ] {
        let message = open(&pickle).err().unwrap().to_string();
        assert!(message.starts_with("m.bin: ") && message.contains(word), "{word}: {message}");
    }
}

#[test]
fn archives_that_are_not_torchs_are_refused() {
    let good = tensor(6, 0, &[2, 3], &[3, 1]);
    let make = |files: &[(&str, &[u8])]| torch::File::from_memory("m.bin", archive(files));
    let both: &[(&str, &[u8])] = &[("a/data.pkl", &good), ("b/data.pkl", &good)];
    let twice: &[(&str, &[u8])] = &[("data.pkl", &good), ("data/0", &[0; 24]), ("data/0", &[0; 24])];
    for (files, word) in [
        (both, "two pickles"),
        (twice, "two files in it are named `data/0`"),
        (&[("data.pkl", &good)], "its storage `data/0` is missing"),
        (&[("x", &good)], "without a data.pkl"),
        (&[("data.pkl", &good), ("byteorder", b"big"), ("data/0", &[0; 24])], "big-endian"),
    ] {
        let message = make(files).err().unwrap().to_string();
        assert!(message.contains(word), "{message}");
    }
    let mut packed = archive(&[("data.pkl", &good), ("data/0", &[0; 24])]);
    let at = packed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    packed[at + 10] = 8;
    let message = torch::File::from_memory("m.bin", packed).err().unwrap().to_string();
    assert!(message.contains("compressed"), "{message}");
}

#[test]
fn views_of_one_storage_cannot_make_a_small_file_large() {
    let one = tensor(6, 0, &[2, 3], &[3, 1]);
    let body = &one[3..one.len() - 2];
    let entries: Vec<u8> = (0..300)
        .flat_map(|i| [text(&format!("w{i:03}")), body[text("w").len()..].to_vec()].concat())
        .collect();
    let pickle = [b"\x80\x02}(".to_vec(), entries, b"u.".to_vec()].concat();
    let big = vec![0; 24];
    let message = torch::File::from_memory("m.bin", archive(&[("data.pkl", &pickle), ("data/0", &big)]));
    // 300 small views are fewer bytes than their own pickle; the same with a large storage is refused.
    assert_eq!(message.unwrap().tensors().len(), 300);
    let wide = tensor(0x10000, 0, &[128, 255], &[255, 1]);
    let body = &wide[3..wide.len() - 2];
    let entries: Vec<u8> = (0..300)
        .flat_map(|i| [text(&format!("w{i:03}")), body[text("w").len()..].to_vec()].concat())
        .collect();
    let pickle = [b"\x80\x02}(".to_vec(), entries, b"u.".to_vec()].concat();
    let storage = vec![0; 4 * 0x10000];
    let result = torch::File::from_memory("m.bin", archive(&[("data.pkl", &pickle), ("data/0", &storage)]));
    assert!(result.err().unwrap().to_string().contains("share their storages"));
}

#[test]
fn every_byte_of_a_file() {
    let good = fs::read(data("state_dict.bin")).unwrap();
    let mut refused = 0;
    let mut check = |bytes: Vec<u8>| match torch::File::from_memory("m.bin", bytes) {
        Ok(file) => file.tensors().iter().for_each(|t| drop(file.read(&t.name).unwrap())),
        Err(_) => refused += 1,
    };
    for len in 0..good.len() {
        check(good[..len].to_vec());
    }
    for at in 0..good.len() {
        for value in [0, 1, 0x28, 0x52, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at].wrapping_add(1)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            check(bytes);
        }
    }
    assert!(refused > 2 * good.len(), "{refused}");
}
