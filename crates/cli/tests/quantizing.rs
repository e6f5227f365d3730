//! `retune quantize`, and `merge` and `export` into GGUF files and bitsandbytes' types, as a user runs them.

mod common;

use common::*;

#[test]
fn a_model_becomes_a_gguf_and_says_what_it_cost() {
    let shop = Workshop::new();
    let ran = shop.retune("quantize model --to q8_0 --out model.gguf --data heldout.jsonl --json").ok();
    let line = &ran.json_lines()[0];
    assert_eq!(line["dtype"], "Q8_0", "{line}");
    let weights = line["weights"].as_array().unwrap();
    let lossy = weights.iter().filter(|w| w["rmse"].as_f64().unwrap() > 0.0).count();
    assert_eq!(lossy, weights.iter().filter(|w| w["type"] == "q8_0").count());
    assert!(line["error"]["model"]["rmse"].as_f64().unwrap() > 0.0);
    let perplexity = |at: &str| line[at]["perplexity"].as_f64().unwrap();
    let (before, after) = (perplexity("before"), perplexity("after"));
    assert!((before - after).abs() < 0.02 * before && before != after, "{before} {after}");

    // The file is a model like any other.
    let measured = |model: &str| {
        let ran = shop.retune(&format!("eval --model {model} --data heldout.jsonl --json")).ok();
        ran.json_lines()[0]["perplexity"].as_f64().unwrap()
    };
    assert_eq!(measured("model.gguf"), after);
    shop.retune("quantize model --to q8_0 --out model.gguf").failed(65, &["exists", "--overwrite"]);
    let ran = shop.retune("quantize model.gguf --to f32 --out back").ok();
    assert!(ran.stderr.contains("q8_0"), "{}", ran.stderr);
    assert!((measured("back") - after).abs() < 1e-4 * after);
}

#[test]
fn the_table_for_people_names_every_weight() {
    let shop = Workshop::new();
    let ran = shop.retune("quantize model --to q4_0 --out q.gguf --keep layers.1.mlp.down_proj").ok();
    for part in
        ["RMSE", "model.layers.0.self_attn.q_proj.weight", "of weights before", "over the whole model"]
    {
        assert!(ran.stdout.contains(part), "no {part:?} in\n{}", ran.stdout);
    }
    assert!(!ran.stdout.contains("layers.1.mlp.down_proj"), "{}", ran.stdout);
}

#[test]
fn a_merge_is_compared_with_what_it_was_made_of() {
    let shop = Workshop::new();
    let adapter = data("parity/llama_lora").display().to_string();
    let verified = |flags: &str| {
        let command = format!(
            "merge --model model --adapter {adapter} --any-base --verify heldout.jsonl --json {flags}"
        );
        let line = shop.retune(&command).ok().json_lines()[0].clone();
        let of = |key: &str| line["verified"]["logits"][key].as_f64().unwrap();
        let loss = |at: &str| line["verified"][at]["loss"].as_f64().unwrap();
        assert!(of("mean_difference") <= of("max_difference"), "{line}");
        assert!(of("compared") > 0.0 && line["max_change"].as_f64().unwrap() > 0.0);
        (of("relative"), of("same_first_choice"), loss("before"), loss("after"))
    };
    let (relative, same, before, after) = verified("--out merged");
    assert!(
        relative < 1e-5 && same == 1.0 && (before - after).abs() < 1e-4,
        "{relative} {same} {before} {after}"
    );
    let (relative, _, _, after) = verified("--out merged.gguf --dtype q8_0");
    assert!((1e-4..0.1).contains(&relative) && (before - after).abs() < 0.1, "{relative} {before} {after}");
    let (rough, _, _, _) = verified("--out rough.gguf --dtype q4_0");
    assert!(rough > 2.0 * relative, "{rough} {relative}");

    let words =
        format!("merge --model model --adapter {adapter} --any-base --verify heldout.jsonl --out again");
    let ran = shop.retune(&words).ok();
    for part in ["logits differ by", "first choice", "base and adapter:", "as written:"] {
        assert!(ran.stdout.contains(part), "no {part:?} in\n{}", ran.stdout);
    }
    shop.retune(&format!("merge --combine linear --adapter {adapter} --verify heldout.jsonl --out x"))
        .failed(2, &["--model"]);
}

#[test]
fn mistakes_are_told_before_anything_is_read() {
    let shop = Workshop::new();
    shop.retune("quantize model --out out").failed(2, &["--to nf4"]);
    shop.retune("quantize model --to nf5 --out out").failed(2, &["nf5", "nf4"]);
    shop.retune("quantize model --to f16 --no-double-quant --out out").failed(2, &["--no-double-quant"]);
    shop.retune("export --model model --keep lm_head --out out").failed(2, &["--keep"]);
    shop.retune("quantize model --to q4_0 --out out").failed(65, &["q4_0", ".gguf"]);
    shop.retune("quantize model --to nf4 --out out.gguf").failed(65, &["folder"]);
    assert!(!shop.path("out").exists() && !shop.path("out.gguf").exists());
}
