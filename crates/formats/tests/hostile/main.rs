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
