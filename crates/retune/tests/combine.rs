//! Combined adapters change a weight as PEFT's `add_weighted_adapter` says (`tests/data/combine`).

mod common;

use std::path::{Path, PathBuf};

use common::*;
use retune::combine::{Combination, Majority, Options, combine};
use retune::methods::Source;
use retune_formats::peft::{Param, PeftAdapter, PeftConfig};
use retune_formats::{TensorSource, json};
use retune_tensor::Tensor;

fn sources(weights: [f32; 2]) -> Vec<Source> {
    let path = |name: &str| data("combine").join(name);
    vec![Source { path: path("a"), weight: weights[0] }, Source { path: path("b"), weight: weights[1] }]
}

fn options(how: &str) -> Options {
    Options {
        how: Combination::parse(how).expect("a name"),
        density: None,
        majority: Majority::Total,
        svd_rank: None,
        seed: 7,
        any_base: false,
    }
}

/// `scale B A` at a module.
fn change(folder: &Path, module: &str) -> Vec<f32> {
    let adapter = PeftAdapter::open(folder).unwrap_or_else(|e| panic!("{e}"));
    let PeftConfig::Lora(config) = adapter.config().clone() else { panic!("a LoRA") };
    let read = |param| {
        let tensor = adapter.find(module, &param).expect("the module");
        let [rows, cols] = tensor.info.shape[..] else { panic!("a matrix") };
        Tensor::from_vec(rows, cols, adapter.read_f32(tensor).expect("values"))
    };
    let (a, b) = (read(Param::A), read(Param::B));
    let scale = config.matcher(folder).expect("patterns").scale(module) as f32;
    let at = |r: usize, c: usize| (0..a.rows()).map(|k| b.row(r)[k] * a.row(k)[c]).sum::<f32>() * scale;
    Tensor::from_fn(b.rows(), a.cols(), at).data().to_vec()
}

fn combined(weights: [f32; 2], options: &Options) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out");
    combine(&sources(weights), options, &out).unwrap_or_else(|e| panic!("{e}"));
    (folder, out)
}

#[test]
fn as_peft_combines() {
    let cases = json::read(&data("combine/cases.json"), 1 << 20).expect("cases");
    let deltas = open(&data("combine/deltas.safetensors"));
    for (name, case) in cases.as_object().expect("cases") {
        let how = case["combination_type"].as_str().unwrap_or(name);
        let weights = [0, 1].map(|i| case["weights"][i].as_f64().expect("weight") as f32);
        let options = Options {
            density: case["density"].as_f64(),
            svd_rank: case["svd_rank"].as_u64().map(|r| r as usize),
            majority: match case["majority_sign_method"].as_str() {
                Some("frequency") => Majority::Frequency,
                _ => Majority::Total,
            },
            ..options(how)
        };
        let (_folder, out) = combined(weights, &options);
        for module in ["up", "down"] {
            let want = deltas.read_f32(&format!("{name}.{module}")).expect("reference");
            close(&format!("{name} at {module}"), &change(&out, module), &want, 1e-4);
        }
    }
}

#[test]
fn side_by_side_is_exactly_the_sum() {
    let (_folder, out) = combined([2.0, -0.5], &options("cat"));
    let [a, b] = ["a", "b"].map(|name| change(&data("combine").join(name), "down"));
    let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 2.0 * a - 0.5 * b).collect();
    close("cat", &change(&out, "down"), &want, 1e-6);
}

/// DARE drops at random: over many seeds the mean is the plain sum; a seed gives the same bytes again.
#[test]
fn dare_keeps_the_mean_and_the_seed() {
    let of = |seed| {
        let options = Options { density: Some(0.5), seed, svd_rank: Some(9), ..options("dare_linear_svd") };
        let (_folder, out) = combined([1.0, 1.0], &options);
        change(&out, "down")
    };
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
    let [a, b] = ["a", "b"].map(|name| change(&data("combine").join(name), "down"));
    let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let seeds = 80;
    let mut mean = vec![0.0; want.len()];
    for seed in 0..seeds {
        mean.iter_mut().zip(of(seed)).for_each(|(m, x)| *m += x / seeds as f32);
    }
    close("the mean over seeds", &mean, &want, 0.5);
}

#[test]
fn what_cannot_be_combined_is_refused() {
    let out = tempfile::tempdir().expect("folder");
    let refused = |sources: &[Source], options: &Options| {
        combine(sources, options, out.path()).expect_err("refused").to_string()
    };
    let two = sources([1.0, 1.0]);
    assert!(refused(&two, &options("ties")).contains("density"));
    assert!(refused(&two, &Options { density: Some(1.5), ..options("ties") }).contains("1.5"));
    assert!(Combination::parse("tiez").expect_err("typo").to_string().contains("\"ties\""));
    assert!(refused(&[], &options("cat")).contains("no adapter"));
    let dora = Source { path: data("formats/lora_dora"), weight: 1.0 };
    assert!(refused(&[dora], &options("cat")).contains("use_dora"));
    let mts = Source { path: data("formats/lora_mts_llama"), weight: 1.0 };
    assert!(refused(&[mts.clone(), mts], &options("cat")).contains("held whole"));
    let (_folder, wide) = combined([1.0, 1.0], &options("cat"));
    let wide = Source { path: wide, weight: 1.0 };
    assert!(refused(&[two[0].clone(), wide], &options("linear")).contains("one rank"));
    assert!(std::fs::read_dir(out.path()).expect("folder").next().is_none(), "something was written");
}
