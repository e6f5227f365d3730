//! Folders in bitsandbytes' types: what is in them, and that they are models with the values that the codes stand for.

mod common;

use std::path::Path;

use common::*;
use retune::export::{ExportDtype, ExportOptions, ExportReport, write};
use retune::models::quantised::QuantCode;
use retune::models::{Model, Quantisation, StorageChoice};
use retune_formats::bitsandbytes::{self, Absmax, Layer};
use retune_formats::{Dtype, TensorSource};
use retune_tensor::storage::{Code4, Storage};

fn export(model: &Model, out: &Path, options: &ExportOptions) -> ExportReport {
    write(model, out, options, &mut |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

fn four_bit(code: Code4, double: bool) -> ExportOptions {
    let how = Quantisation { code: QuantCode::FourBit(code), double };
    ExportOptions { dtype: ExportDtype::Quantised(how), ..ExportOptions::default() }
}

fn config(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).expect("config")).expect("json")
}

/// What a quantised weight of a folder stands for.
fn values(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    let entry = bitsandbytes::find(source, name)
        .expect("readable")
        .unwrap_or_else(|| panic!("{name} is not quantised"));
    let [rows, cols] = *entry.shape();
    match entry.read(source).expect("layer") {
        Layer::FourBit(layer) => {
            let constant = |block: usize| match &layer.absmax {
                Absmax::Single(absmax) => absmax[block],
                Absmax::Double { codes, map, nested, blocksize, offset } => {
                    map[usize::from(codes[block])] * nested[block / blocksize] + offset
                }
            };
            let code = |i: usize| layer.packed[i / 2] >> (4 * (1 - i % 2)) & 15;
            (0..rows * cols)
                .map(|i| layer.map[usize::from(code(i))] * constant(i / layer.blocksize))
                .collect()
        }
        Layer::Int8(layer) => {
            let each = layer.values.iter().enumerate();
            each.map(|(i, v)| f32::from(*v) * layer.scales[i / cols] / 127.0).collect()
        }
    }
}

fn decoded(storage: &dyn Storage) -> Vec<f32> {
    let mut all = vec![0.0; storage.rows() * storage.cols()];
    all.chunks_exact_mut(storage.cols()).enumerate().for_each(|(row, out)| storage.decode(row, 0, out));
    all
}

#[test]
fn linear_layers_of_the_trunk_are_quantised_alone() {
    let dir = tempfile::tempdir().expect("folder");
    for (name, head) in
        [("llama_base_full", "lm_head"), ("gpt2_base", "lm_head"), ("bert_base", "classifier")]
    {
        let model = load(&data("parity").join(name), StorageChoice::F32);
        for (i, options) in [
            four_bit(Code4::Nf4, true),
            four_bit(Code4::Fp4, false),
            four_bit(Code4::Int4, true),
            ExportOptions {
                dtype: ExportDtype::parse("int8", true).expect("a type"),
                ..ExportOptions::default()
            },
        ]
        .into_iter()
        .enumerate()
        {
            let out = dir.path().join(format!("{name}-{i}"));
            let report = export(&model, &out, &options);
            let folder = retune_formats::folder::ModelFolder::open(&out).expect("folder");
            let source = folder.weights();
            let trunk: Vec<String> =
                model.net.trunk_linears().iter().map(|l| format!("{}.weight", l.path)).collect();
            for (_, param) in model.params.iter() {
                let told = report.losses.iter().find(|l| l.name == param.name).expect("told");
                if !trunk.contains(&param.name) {
                    assert!(told.loss.is_exact() && told.encoding == "f32", "{name}: {told:?}");
                    continue;
                }
                let whole = param.weight.to_tensor();
                let (rows, cols) = (whole.rows(), whole.cols());
                let ExportDtype::Quantised(how) = options.dtype else { panic!("a code") };
                let want = decoded(how.quantise(rows, cols, whole.data()).expect("quantise").as_ref());
                close(&param.name, &values(source, &param.name), &want, 1e-6);
                let squares: f64 =
                    whole.data().iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let rmse = (squares / want.len() as f64).sqrt();
                assert!((told.loss.rmse() - rmse).abs() < 1e-5 * rmse, "{}: {:?} {rmse}", param.name, told);
            }
            let quantization = &config(&out)["quantization_config"];
            let skipped = quantization["llm_int8_skip_modules"].as_array().expect("a list");
            assert!(skipped.iter().any(|m| m == head), "{name}: {quantization}");
            let own = matches!(options.dtype, ExportDtype::Quantised(how) if how.name() == "int4");
            assert_eq!(quantization["quant_method"], if own { "retune" } else { "bitsandbytes" });
            assert_eq!(
                report.notes.iter().any(|n| n.contains("int4 is Retune's own")),
                own,
                "{:?}",
                report.notes
            );
            assert!(!report.same_base && report.dtype == Dtype::F32);
        }
    }
}

#[test]
fn a_pattern_keeps_modules() {
    let model = load(&data("parity/llama_base_full"), StorageChoice::F32);
    let dir = tempfile::tempdir().expect("folder");
    let out = dir.path().join("out");
    let keep = vec!["down_proj".to_string(), "model.layers.1.self_attn".to_string()];
    let report = export(&model, &out, &ExportOptions { keep, ..four_bit(Code4::Nf4, true) });
    let quantised: Vec<&str> =
        report.losses.iter().filter(|l| l.encoding == "nf4+dq").map(|l| l.name.as_str()).collect();
    assert_eq!(quantised.len(), 4 + 2 + 2, "{quantised:?}");
    let skipped = config(&out)["quantization_config"]["llm_int8_skip_modules"].clone();
    let skipped: Vec<&str> = skipped.as_array().expect("list").iter().filter_map(|m| m.as_str()).collect();
    assert!(skipped.contains(&"model.layers.0.mlp.down_proj") && skipped.contains(&"lm_head"), "{skipped:?}");
    assert!(!skipped.contains(&"model.layers.0.mlp.up_proj"), "{skipped:?}");
}

#[test]
fn shards_hold_whole_layers() {
    let model = load(&data("parity/llama_base_full"), StorageChoice::F32);
    let dir = tempfile::tempdir().expect("folder");
    let (one, many) = (dir.path().join("one"), dir.path().join("many"));
    export(&model, &one, &four_bit(Code4::Nf4, true));
    let report =
        export(&model, &many, &ExportOptions { max_shard_bytes: 30_000, ..four_bit(Code4::Nf4, true) });
    assert!(report.files.iter().filter(|n| n.contains("-of-")).count() > 2, "{:?}", report.files);
    let open = |path: &Path| retune_formats::folder::ModelFolder::open(path).expect("folder");
    let (one, many) = (open(&one), open(&many));
    assert_eq!(one.weights().tensors().len(), many.weights().tensors().len());
    for info in one.weights().tensors() {
        assert_eq!(
            many.weights().read(&info.name).ok(),
            one.weights().read(&info.name).ok(),
            "{}",
            info.name
        );
    }
    assert!(many.weights().unlisted().is_empty());
}

#[test]
fn what_is_written_is_a_model() {
    let dir = tempfile::tempdir().expect("folder");
    for (name, inputs) in [("llama_base_full", "llama_base_full"), ("gpt2_base", "gpt2_lora")] {
        let inputs = Inputs::read(&data("parity").join(inputs).join("inputs.safetensors"));
        for (code, double) in [("nf4", true), ("fp4", false), ("int4", true), ("int8", false)] {
            let how = Quantisation::from_name(code, double).expect("a code");
            let loaded = load(&data("parity").join(name), StorageChoice::Quantised(how));
            let plain = load(&data("parity").join(name), StorageChoice::F32);
            let (out, again) =
                (dir.path().join(format!("{name}-{code}")), dir.path().join(format!("{name}-{code}-again")));
            let options = ExportOptions { dtype: ExportDtype::Quantised(how), ..ExportOptions::default() };
            export(&plain, &out, &options);
            let written = load(&out, StorageChoice::AsIs);
            assert_eq!(
                logits(&written, &inputs).data(),
                logits(&loaded, &inputs).data(),
                "{name} {code}: the same bits"
            );
            // What is quantised so already is taken over as it is, bit for bit.
            let report = export(&written, &again, &options);
            assert!(report.losses.iter().all(|told| told.loss.is_exact()), "{name} {code}");
            let (was, is) = (written.files.source(), load(&again, StorageChoice::AsIs).files);
            for info in was.tensors() {
                assert_eq!(
                    is.source().read(&info.name).ok(),
                    was.read(&info.name).ok(),
                    "{name} {code}: {}",
                    info.name
                );
            }
            // Back to plain numbers: the values that the codes stand for, and no trace of a quantisation.
            let back = dir.path().join(format!("{name}-{code}-back"));
            let f32s = ExportOptions { dtype: ExportDtype::F32, ..ExportOptions::default() };
            let report = export(&written, &back, &f32s);
            assert!(report.notes.iter().any(|n| n.contains(code)), "{:?}", report.notes);
            assert!(config(&back).get("quantization_config").is_none());
            let plain = load(&back, StorageChoice::AsIs);
            close(code, logits(&plain, &inputs).data(), logits(&written, &inputs).data(), 1e-5);
        }
    }
}
