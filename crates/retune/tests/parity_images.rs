//! LoRA, DoRA and IA³ at convolutions: the folders that PEFT wrote for a small network of convolutions, read and written again.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::images::{self, Pictures};
use common::{close, data, open};
use retune::export::{ExportOptions, write_folder};
use retune::methods::{self, Attached, Source};
use retune::models::{Model, StorageChoice};
use retune::nn::Pass;
use retune::run_file::RunFile;
use retune_formats::{Dtype, TensorOut, TensorSource, safetensors};
use retune_media::pictures::Prepare;
use serde_json::{Value, json};

/// What `scripts/reference` calls VGGish, in our words: `features.0`, `features.2`, then dense layers on 2 x 2 pixels. Its last layer is `classifier.2`, where
/// torchvision's would be `classifier.3`.
fn vggish(folder: &Path) -> Model {
    let config = json!({
        "model_type": "vgg", "cfg": [8, 8, "M"], "batch_norm": false, "dense": [16], "grid": 2, "num_labels": 4,
        "image_input": Prepare::torchvision(4, 4),
    });
    let path = folder.join("base");
    images::write(&config, &path);
    images::load(&path, StorageChoice::F32)
}

/// A copy of a folder of PEFT's with the last layer's name as torchvision has it: as long as the other, so that nothing moves.
fn renamed(name: &str, to: &Path) -> PathBuf {
    let out = to.join(name);
    fs::create_dir_all(&out).expect("folder");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let mut bytes = fs::read(data("formats").join(name).join(file)).expect("file");
        let (old, new) = (b"classifier.2", b"classifier.3");
        let places: Vec<usize> =
            (0..bytes.len().saturating_sub(old.len())).filter(|&i| bytes[i..].starts_with(old)).collect();
        places.into_iter().for_each(|at| bytes[at..at + new.len()].copy_from_slice(new));
        fs::write(out.join(file), bytes).expect("file");
    }
    out
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<f32>)>;

fn tensors(folder: &Path) -> Tensors {
    let file = open(&folder.join("adapter_model.safetensors"));
    let read = |name: &str| file.read_f32(name).expect("read");
    file.tensors().iter().map(|t| (t.name.clone(), (t.dtype, t.shape.clone(), read(&t.name)))).collect()
}

/// The configuration; what is a set to PEFT in one order.
fn config(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("adapter_config.json")).expect("config");
    let mut value: Value = serde_json::from_str(&text).expect("json");
    for key in ["target_modules", "feedforward_modules"] {
        if let Some(names) = value[key].as_array_mut() {
            names.sort_by_key(Value::to_string);
        }
    }
    value
}

fn attach(model: &mut Model, folder: &Path) -> Attached {
    methods::load(model, &[Source { path: folder.into(), weight: 1.0 }], 0).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn folders_of_peft_are_read_and_written_again() {
    let kept = tempfile::tempdir().expect("folder");
    for name in ["vgg_lora", "vgg_dora", "vgg_ia3"] {
        let folder = renamed(name, kept.path());
        let path = kept.path().join(format!("{name} base"));
        let mut model = vggish(&path);
        let logits = |model: &Model| Pictures::of(model, 3).logits(model, &Pass::default());
        let before = logits(&model);
        let attached = attach(&mut model, &folder);
        let differs = logits(&model).data() != before.data();
        // IA³'s scales are ones; a last layer, and the lengths of other kernels, are not this base's.
        assert_eq!(differs, name != "vgg_ia3", "{name}");
        let out = kept.path().join(format!("{name} again"));
        attached.write(&model, &out, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(config(&out), config(&folder), "{name}");
        let (ours, theirs) = (tensors(&out), tensors(&folder));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        for (key, tensor) in &theirs {
            assert_eq!(&ours[key], tensor, "{name}: {key}");
        }
    }
}

/// A kernel of another size is named, with both shapes.
#[test]
fn an_adapter_for_another_network_is_refused() {
    let kept = tempfile::tempdir().expect("folder");
    let path = kept.path().join("base");
    images::write(&images::vgg(false, 32), &path);
    let mut model = images::load(&path, StorageChoice::F32);
    let source = Source { path: data("formats/vgg_dora"), weight: 1.0 };
    let message = methods::load(&mut model, &[source], 0).err().expect("another network").to_string();
    assert!(message.contains("features.0") && message.contains("[8, 2, 1, 1]"), "{message}");
    let before = Pictures::of(&model, 2).logits(&model, &Pass::default());
    close("unchanged", before.data(), Pictures::of(&model, 2).logits(&model, &Pass::default()).data(), 0.0);
}

/// Without targets of one's own: every convolution and dense layer, the head held whole. PEFT has to find the same modules by these names.
#[test]
fn the_usual_modules_are_all_but_the_head() {
    let kept = tempfile::tempdir().expect("folder");
    let base = kept.path().join("base");
    images::write(&images::vgg(true, 32), &base);
    let body = json!(["classifier.0", "features.0", "features.4", "features.8"]);
    for (method, feedforward) in [("lora", Value::Null), ("ia3", json!(["classifier.0"]))] {
        let mut model = images::load(&base, StorageChoice::F32);
        let run = RunFile::from_toml("run", &format!("model = 'm'\ndata = 'd'\nmethod = '{method}'\n"))
            .expect("run");
        let spec = methods::find(method).expect("registered");
        let attached = (spec.attach)(&mut model, &run).unwrap_or_else(|e| panic!("{e}"));
        let out = kept.path().join(method);
        attached.write(&model, &out, None).unwrap_or_else(|e| panic!("{e}"));
        let written = config(&out);
        assert_eq!(
            (&written["target_modules"], &written["feedforward_modules"]),
            (&body, &feedforward),
            "{method}"
        );
        assert_eq!(
            (&written["modules_to_save"], &written["task_type"]),
            (&json!(["classifier.3"]), &Value::Null)
        );
        let names: Vec<String> = tensors(&out).into_keys().collect();
        let has = |name: &str| names.iter().any(|n| n == &format!("base_model.model.{name}"));
        assert!(has("classifier.3.weight") && !has("classifier.0.weight"), "{names:?}");
        assert!(has("classifier.0.lora_A.weight") || has("classifier.0.ia3_l"), "{names:?}");
    }
}

/// What scales the inputs of a dense layer on flattened pixels counts them as files do: pixels of the first channel, then of the second.
#[test]
fn scales_of_flattened_pixels_have_the_order_of_files() {
    let kept = tempfile::tempdir().expect("folder");
    let folder = renamed("vgg_ia3", kept.path());
    let weights = folder.join("adapter_model.safetensors");
    let scale = |i: usize| 1.0 + i as f32 / 32.0;
    let changed = tensors(&folder).into_iter().map(|(name, (_, shape, values))| {
        let values = match name.contains("classifier.0") {
            true => (0..values.len()).map(scale).collect(),
            false => values,
        };
        TensorOut::f32(name, &shape, values)
    });
    let changed: Vec<TensorOut> = changed.collect();
    fs::remove_file(&weights).expect("old file");
    safetensors::write(&weights, changed, &[]).expect("new file");
    let mut model = vggish(kept.path());
    attach(&mut model, &folder);
    let (base, merged) = (kept.path().join("base"), kept.path().join("merged"));
    write_folder(&model, &merged, &ExportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let dense = |folder: &Path| {
        open(&folder.join("model.safetensors")).read_f32("classifier.0.weight").expect("weight")
    };
    let want: Vec<f32> = dense(&base).iter().enumerate().map(|(i, w)| w * scale(i % 32)).collect();
    assert_eq!(dense(&merged), want);
}
