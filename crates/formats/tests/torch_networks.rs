//! Checkpoints of vision networks: the format before PyTorch 1.6, dictionaries in dictionaries, and pickled modules as
//! Ultralytics saves them. Tensors with the names of their state dict, or an error; nothing is ever run.

#[path = "hostile/archive.rs"]
mod archive;

use std::fs;
use std::path::{Path, PathBuf};

use archive::archive;
use retune_formats::{Result, TensorSource, safetensors, torch};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/torch").join(path)
}

fn open(name: &str) -> torch::File {
    torch::File::open(data(&format!("networks/{name}"))).unwrap()
}

/// The same names, types, shapes and bytes.
fn assert_same(name: &str, plain: &str) -> torch::File {
    let ours = open(name);
    let theirs = safetensors::File::open(data(&format!("networks/{plain}"))).unwrap();
    let names = |source: &dyn TensorSource| {
        let mut names: Vec<String> = source.tensors().iter().map(|t| t.name.clone()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&ours), names(&theirs), "{name}");
    for info in theirs.tensors() {
        let found = ours.get(&info.name).unwrap();
        assert_eq!((found.dtype, &found.shape), (info.dtype, &info.shape), "{name}: {}", info.name);
        assert!(ours.read(&info.name).unwrap() == theirs.read(&info.name).unwrap(), "{name}: {}", info.name);
    }
    ours
}

#[test]
fn files_from_before_archives_are_read() {
    for name in ["legacy.pth", "legacy_protocol4.pth"] {
        assert_eq!(assert_same(name, "net.safetensors").notes(), [] as [&str; 0]);
    }
    assert_same("kinds_legacy.pth", "kinds_legacy.safetensors");
    let old = torch::File::open(data("old.pt")).unwrap();
    assert_eq!(old.read_f32("a").unwrap(), [1.0, 1.0]);
}

#[test]
fn what_wraps_a_state_dict_is_taken_off() {
    for (name, words) in [
        ("checkpoint.pth", "of `state_dict` (a dictionary)"),
        ("module.pth", "of an object of `torch.nn.modules.container.Sequential`"),
        ("parallel.pth", "`module.` was taken off"),
    ] {
        let file = assert_same(name, "net.safetensors");
        assert!(file.notes().iter().any(|note| note.contains(words)), "{name}: {:?}", file.notes());
    }
    let metadata = open("checkpoint.pth").metadata().clone();
    assert_eq!((metadata["arch"].as_str(), metadata["epoch"].as_i64()), (Some("tiny"), Some(3)));
}

#[test]
fn networks_of_ultralytics_are_read() {
    for (name, words) in [
        ("ultralytics.pt", "of `model` (an object of `ultralytics.nn.tasks.DetectionModel`) in it"),
        (
            "ultralytics_ema.pt",
            "of `ema` (an object of `ultralytics.nn.tasks.DetectionModel`) in it, not `model`",
        ),
    ] {
        let file = assert_same(name, "ultralytics.safetensors");
        assert!(file.notes().iter().any(|note| note.contains(words)), "{:?}", file.notes());
        assert_eq!(file.get("model.0.conv.weight").unwrap().dtype, retune_formats::Dtype::F16);
        let metadata = file.metadata();
        assert_eq!(metadata["names"], serde_json::json!({"0": "cat", "1": "dog"}));
        assert_eq!(metadata["stride"], serde_json::json!([8.0, 16.0]));
        assert_eq!(metadata["yaml"]["nc"], 2);
        assert_eq!(metadata["yaml"]["backbone"][0], serde_json::json!([-1, 1, "Conv", [4, 3]]));
        assert_eq!(metadata["args"], serde_json::json!({"imgsz": 640, "box": 7.5, "data": null}));
        assert_eq!(
            (metadata["task"].as_str(), metadata["version"].as_str()),
            (Some("detect"), Some("8.2.0"))
        );
    }
}

fn text(text: &str) -> Vec<u8> {
    [b"X".to_vec(), (text.len() as u32).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat()
}

/// `module` is put into memo 0 before its attributes are set, so that `modules` can name it.
fn module(modules: &[u8]) -> Vec<u8> {
    [
        b"\x80\x02cmy.nets\nNet\n)\x81q\0}(".to_vec(),
        text("_parameters"),
        b"}".to_vec(),
        text("_modules"),
        b"}(".to_vec(),
        modules.to_vec(),
        b"uub.".to_vec(),
    ]
    .concat()
}

fn from_pickle(pickle: &[u8]) -> Result<torch::File> {
    torch::File::from_memory("m.pt", archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 24])]))
}

#[test]
fn modules_that_hold_each_other_end() {
    assert_eq!(from_pickle(&module(&[])).unwrap().tensors().len(), 0);
    let itself = module(&[text("a"), b"h\0".to_vec()].concat());
    let message = from_pickle(&itself).err().unwrap().to_string();
    assert!(message.contains("nested deeper than 64 at `a.a.a."), "{message}");
    // Each holds the one before it twice: 2^60 modules in all.
    let mut pickle = b"\x80\x02".to_vec();
    let head = [text("_parameters"), b"}".to_vec(), text("_modules"), b"}(".to_vec()].concat();
    for i in 0..60u8 {
        pickle.extend(b"cmy.nets\nNet\n)\x81}(");
        pickle.extend(&head);
        if i > 0 {
            pickle.extend([text("a"), vec![b'h', i - 1], text("b"), vec![b'h', i - 1]].concat());
        }
        pickle.extend([&b"uub"[..], &[b'q', i]].concat());
    }
    pickle.push(b'.');
    let message = from_pickle(&pickle).err().unwrap().to_string();
    assert!(message.contains("they hold each other"), "{message}");
}

#[test]
fn modules_of_a_wrong_make_are_named() {
    for (body, word) in [
        (module(&[text("a"), b"K\x01".to_vec()].concat()), "`a` in its modules is a number, wanted a module"),
        (module(b"K\x01K\x01"), "a key is no text"),
        (module(&text("a")), "a key has no value"),
        (b"\x80\x02cmy.nets\nNet\n)\x81.".to_vec(), "it holds an object of `my.nets.Net`, no dictionary"),
        (b"\x80\x02cmy.nets\nNet\n.".to_vec(), "it holds `my.nets.Net`, no dictionary"),
        (b"\x80\x02cos\nsystem\n)\x81.".to_vec(), "it wants to run `os.system`"),
        (b"\x80\x02csubprocess\nPopen\n)R.".to_vec(), "it wants to run `subprocess.Popen`"),
        (b"\x80\x02cbuiltins\nexec\n)R.".to_vec(), "it wants to run `builtins.exec`"),
        (b"\x80\x02ctorch.hub\nload\n)R.".to_vec(), "it wants to run `torch.hub.load`"),
    ] {
        let message = from_pickle(&body).err().unwrap().to_string();
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[test]
fn what_python_2_saved_is_read() {
    let tensor = b"ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06tQK\0K\x06\x85K\x01\x85tR";
    let pair = [&b"]q\x02(U\x01w"[..], tensor, b"e"].concat();
    let pickle = [&b"\x80\x02ccollections\nOrderedDict\nq\x01]("[..], &pair, b"e\x85R."].concat();
    assert_eq!(from_pickle(&pickle).unwrap().read_f32("w").unwrap(), [0.0; 6]);
}

#[test]
fn damaged_old_files_are_named() {
    let good = fs::read(data("networks/legacy.pth")).unwrap();
    let fails = |bytes: Vec<u8>| torch::File::from_memory("m.pth", bytes).err().unwrap().to_string();
    let cut = fails(good[..good.len() - 1].to_vec());
    assert!(cut.contains("its storage `") && cut.contains("cut short"), "{cut}");
    assert!(fails([&good[..], b"x"].concat()).contains("1 bytes follow its last storage"));
    let at = good.windows(13).position(|w| w == b"little_endian").unwrap();
    let mut big = good.clone();
    let switch = big[at..].iter().position(|b| *b == 0x88).unwrap() + at;
    big[switch] = 0x89;
    assert!(fails(big).contains("big-endian"));
    assert!(fails(b"\x80\x02}.".to_vec()).contains("bare pickle"));
}

#[test]
fn every_byte_of_a_file() {
    for name in ["networks/legacy.pth", "networks/ultralytics.pt"] {
        let good = fs::read(data(name)).unwrap();
        let check = |bytes: Vec<u8>| match torch::File::from_memory("m.pt", bytes) {
            Ok(file) => {
                file.tensors().iter().all(|t| file.read(&t.name).unwrap().len() as u64 == t.byte_len())
            }
            Err(_) => false,
        };
        for len in 0..good.len() {
            assert!(!check(good[..len].to_vec()), "{name} cut to {len} bytes");
        }
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] = [0x28, 0x80, 0xff, good[at] ^ 1][at % 4];
            check(bytes);
        }
    }
}
