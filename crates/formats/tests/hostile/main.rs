//! Hostile files: every one is refused with a message that names it; nothing panics.

mod attacks;

use std::path::Path;

use retune_formats::peft::{PeftAdapter, PeftConfig};
use retune_formats::{Result, TensorSource, gguf, safetensors};

/// Opens a file in memory by its extension and reads every tensor.
fn read(file: &str, bytes: Vec<u8>) -> Result<()> {
    let source: Box<dyn TensorSource> = match file.ends_with(".gguf") {
        true => Box::new(gguf::File::from_memory(file, bytes)?),
        false => Box::new(safetensors::File::from_memory(file, bytes)?),
    };
    for info in source.tensors() {
        source.read(&info.name)?;
        if info.dtype.is_float() {
            source.read_f32(&info.name)?;
        }
    }
    Ok(())
}

#[test]
fn the_good_files_are_good() {
    read("model.gguf", attacks::gguf(None)).unwrap();
    read("model.safetensors", attacks::safetensors(None)).unwrap();
}

#[test]
fn every_attack_is_refused_by_name() {
    for attack in attacks::all() {
        match read(attack.file, attack.bytes) {
            Ok(()) => panic!("{} was accepted", attack.name),
            Err(e) => {
                let message = e.to_string();
                assert!(message.starts_with(attack.file), "{}: {message}", attack.name);
                assert!(message.contains(attack.says), "{}: {message}", attack.name);
                assert!(message.len() < 500, "{}: {message}", attack.name);
            }
        }
    }
}

#[test]
fn the_table_of_attacks_is_up_to_date() {
    let mut table = String::from("| attack | refused with |\n|---|---|\n");
    for attack in attacks::all() {
        let message = read(attack.file, attack.bytes).unwrap_err().to_string();
        let message = message.trim_start_matches(attack.file).trim_start_matches(": ").replace('|', "\\|");
        table.push_str(&format!("| `{}` | {message} |\n", attack.name));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../attacks/README.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once("<!-- table -->\n").unwrap();
    let (old, after) = rest.split_once("<!-- end -->").unwrap();
    if std::env::var_os("RETUNE_UPDATE").is_some() {
        std::fs::write(path, format!("{before}<!-- table -->\n{table}<!-- end -->{after}")).unwrap();
    } else {
        assert!(old == table, "attacks/README.md is out of date; it says how to bring it up to date");
    }
}

/// Hands over every truncation of `good`, and every change of one byte to any of the 256 values.
fn every_change(good: &[u8], mut each: impl FnMut(Vec<u8>)) {
    for len in 0..good.len() {
        each(good[..len].to_vec());
    }
    for at in 0..good.len() {
        for value in 0..=255 {
            let mut bytes = good.to_vec();
            bytes[at] = value;
            each(bytes);
        }
    }
}

#[test]
fn every_byte_of_a_gguf() {
    let good = attacks::gguf(None);
    assert!(good.len() > 400);
    let mut refused = 0;
    every_change(&good, |bytes| refused += usize::from(read("model.gguf", bytes).is_err()));
    assert!(refused > good.len(), "{refused}");
}

#[test]
fn every_byte_of_a_safetensors() {
    let good = attacks::safetensors(None);
    let mut refused = 0;
    every_change(&good, |bytes| refused += usize::from(read("model.safetensors", bytes).is_err()));
    assert!(refused > good.len(), "{refused}");
}

const CONFIG: &str = r#"{"alpha_pattern": {"q": 4}, "bias": "none", "lora_alpha": 8, "lora_dropout": 0.0, "peft_type": "LORA",
"r": 2, "rank_pattern": {"q|v": 2}, "target_modules": ["q"], "use_dora": false, "init_lora_weights": true}"#;

fn adapter_weights() -> Vec<u8> {
    let header = concat!(
        r#"{"base_model.model.q.lora_A.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
        r#""base_model.model.q.lora_B.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[24,40]}}"#
    );
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 40]].concat()
}

fn adapter(config: &PeftConfig, weights: Vec<u8>) -> Result<PeftAdapter> {
    let file = safetensors::File::from_memory("adapter_model.safetensors", weights)?;
    PeftAdapter::new(Path::new("adapter"), config.clone(), file)
}

#[test]
fn every_byte_of_an_adapter() {
    let path = Path::new("adapter_config.json");
    let config = PeftConfig::parse(path, CONFIG).unwrap();
    adapter(&config, adapter_weights()).unwrap();
    let mut refused = 0;
    every_change(&adapter_weights(), |bytes| refused += usize::from(adapter(&config, bytes).is_err()));
    assert!(refused > 10_000, "{refused}");
    every_change(CONFIG.as_bytes(), |bytes| {
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = PeftConfig::parse(path, &text);
        }
    });
}

/// Bytes that look a little like every format.
fn soup() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::prelude::*;
    let bits: Vec<&'static [u8]> = vec![
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b"\t",
        b":",
        b"\"",
        b"\\",
        b"\n",
        b"\r",
        b"\r\n",
        b"\xef\xbb\xbf",
        b"a",
        b"\xff",
        b"1e9",
        b"null",
        b" ",
        b"\"a\":1",
        b"{\"a\":\"b\"}",
        b"\\u00",
        b"\xc3\xa9",
        b"\0",
    ];
    proptest::collection::vec(proptest::sample::select(bits), 0..40).prop_map(|parts| parts.concat())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_in_a_data_file_are_rows_or_an_error(bytes in soup()) {
        let dir = tempfile::tempdir().unwrap();
        for extension in retune_formats::records::EXTENSIONS {
            let path = dir.path().join("data").with_extension(extension);
            std::fs::write(&path, &bytes).unwrap();
            let lines = bytes.iter().filter(|b| b"\r\n".contains(b)).count() + 1;
            match retune_formats::records::Records::read_all(&path) {
                Ok(rows) => {
                    assert!(rows.iter().all(|row| row.value.is_object() && (1..=lines).contains(&row.line)));
                    assert!(rows.windows(2).all(|pair| pair[0].line <= pair[1].line));
                }
                Err(e) => assert!(e.to_string().starts_with(&path.display().to_string()), "{e}"),
            }
        }
    }

    #[test]
    fn any_text_in_a_configuration_is_a_value_or_an_error(bytes in soup()) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = PeftConfig::parse(Path::new("adapter_config.json"), &text);
        if let Ok(value) = retune_formats::json::parse(Path::new("x"), &text) {
            let written = retune_formats::json::to_python_text(&value);
            assert_eq!(retune_formats::json::parse(Path::new("x"), &written).unwrap(), value);
        }
    }
}
