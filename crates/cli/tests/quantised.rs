//! Quantised bases as a user meets them: quantised while loading, quantised by bitsandbytes, refused.

mod common;

use common::{Workshop, data};
use serde_json::Value;

const TRAIN: &str = "train --model model --data train.jsonl --eval-data heldout.jsonl --epochs 3 --lr 1e-2";

fn loss(shop: &Workshop, words: &str) -> (f64, String) {
    let ran = shop.retune(&format!("eval --data heldout.jsonl --json {words}")).ok();
    (ran.json_lines()[0]["loss"].as_f64().unwrap(), ran.stderr)
}

/// Puts a folder that bitsandbytes quantised into the workshop, with the workshop's tokenizer.
fn put(shop: &Workshop, name: &str) {
    std::fs::create_dir(shop.path(name)).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(data("parity").join(name).join(file), shop.path(name).join(file)).unwrap();
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(shop.path("model").join(file), shop.path(name).join(file)).unwrap();
    }
}

#[test]
fn a_base_is_quantised_while_it_is_loaded() {
    let shop = Workshop::new();
    shop.retune(&format!("{TRAIN} --storage nf4 --keep-modules down_proj --out out")).ok();
    let run = String::from_utf8(shop.read("out/run.toml")).unwrap();
    for line in
        ["storage = \"nf4\"", "[quantization]", "double_quant = true", "keep_modules = [\"down_proj\"]"]
    {
        assert!(run.contains(line), "{line}:\n{run}");
    }
    shop.retune("train out/run.toml --out again --threads 1").ok();
    assert_eq!(shop.read("out/adapter_model.safetensors"), shop.read("again/adapter_model.safetensors"));
    let base: Value = serde_json::from_slice(&shop.read("out/base.json")).unwrap();
    assert_eq!(base["quantised"], "nf4+dq");
    // The same words give the same base; another storage works, and says so.
    let nf4 = "--model model --storage nf4 --keep-modules down_proj";
    let (trained, said) = loss(&shop, &format!("{nf4} --adapter out"));
    let (before, _) = loss(&shop, nf4);
    assert!(trained < before - 1.0 && !said.contains("note"), "{trained} {before} {said}");
    let (plain, said) = loss(&shop, "--model model --storage f32 --adapter out");
    assert!(said.contains("nf4+dq") && said.contains("as its files have it"), "{said}");
    assert!(plain != trained && (plain - trained).abs() < 0.5, "{plain} {trained}");
    for storage in ["fp4", "int4 --double-quant=false", "int8"] {
        loss(&shop, &format!("--model model --storage {storage} --adapter out"));
    }
}

#[test]
fn a_folder_of_bitsandbytes_is_a_base() {
    let shop = Workshop::new();
    put(&shop, "llama_nf4");
    let words = TRAIN.replace("--model model", "--model llama_nf4");
    shop.retune(&format!("{words} --out out")).ok();
    let config: Value = serde_json::from_slice(&shop.read("out/adapter_config.json")).unwrap();
    assert!(config["peft_type"] == "LORA" && !config.to_string().contains("quant_method"), "{config}");
    let (as_is, said) = loss(&shop, "--model llama_nf4 --adapter out");
    assert!(!said.contains("note"), "{said}");
    for storage in ["f32", "nf4"] {
        let (other, said) = loss(&shop, &format!("--model llama_nf4 --adapter out --storage {storage}"));
        assert!((other - as_is).abs() < 1e-5 && !said.contains("note"), "{storage}: {other} {as_is} {said}");
    }
    let said = shop.retune("inspect llama_nf4").ok().stdout;
    assert!(said.contains("nf4 with double quantisation") && said.contains("14 x nf4+dq"), "{said}");
}

#[test]
fn what_cannot_be_is_refused_with_the_remedy() {
    let shop = Workshop::new();
    put(&shop, "llama_nf4");
    let train = |words: &str| shop.retune(&format!("{TRAIN} --out x {words}"));
    train("--storage nf4 --method full").failed(2, &["--storage f32"]);
    train("--storage nf5").failed(2, &["did you mean \"nf4\""]);
    train("--storage f32 --double-quant").failed(2, &["nf4, fp4, int4 and int8", "f32"]);
    train("--storage nf4 --keep-modules down_porj").failed(2, &["down_porj", "\"down_proj\"?"]);
    train("--model llama_nf4 --storage fp4").failed(2, &["--storage as-is", "fp4"]);
    let eval = |words: &str| shop.retune(&format!("eval --model model --data heldout.jsonl {words}"));
    eval("--storage nf5").failed(2, &["nf5"]);
    eval("--keep-modules q_proj").failed(2, &["--keep-modules", "as-is"]);
    let config = String::from_utf8(shop.read("llama_nf4/config.json")).unwrap();
    shop.write("llama_nf4/config.json", &config.replace("\"bitsandbytes\"", "\"gptq\""));
    shop.retune("eval --model llama_nf4 --data heldout.jsonl").failed(65, &["gptq", "--storage nf4"]);
    let said = shop.retune("inspect llama_nf4").ok().stdout;
    assert!(said.contains("by gptq, which Retune cannot read"), "{said}");
}
