//! Encoders, GPT-2 and classifiers on decoders: files as others write them, GGUF, generation, limits, export.
//!
//! With `RETUNE_TEST_EXPORTS=/folder` the exported models stay there, with inputs and our numbers, for
//! `scripts/reference/check_export.py`.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::batch::*;
use common::gguf::write_gguf;
use common::*;
use retune::export::{ExportDtype, ExportOptions, write_folder};
use retune::generate::next_logits;
use retune::methods::full;
use retune::models::{HeadRequest, Model, StorageChoice, TextInput, check_ids};
use retune::nn::{Active, Head, Hidden, Pass, Pooling, Problem, Prompt, PromptRows, Site};
use retune_formats::{Dtype, TensorOut, TensorSource, safetensors};
use retune_tensor::{Segments, Tape, Tensor, Var};

fn parity(name: &str) -> std::path::PathBuf {
    data("parity").join(name)
}

fn classifier(labels: &[&str], pooling: Option<Pooling>, keep: bool) -> HeadRequest {
    let labels = labels.iter().map(|label| label.to_string()).collect();
    HeadRequest::Classifier {
        problem: Problem::SingleLabel,
        labels,
        pooling,
        keep,
        seed: 3,
        image_size: None,
    }
}

fn load_with(path: &Path, head: &HeadRequest) -> Model {
    Model::load_with(path, StorageChoice::F32, head).unwrap_or_else(|e| panic!("{e}"))
}

/// A copy of a model folder with its tensors under other names (`None`: left out) and further ones.
fn renamed(from: &Path, to: &Path, name: impl Fn(&str) -> Option<String>, more: &[(&str, &[usize])]) {
    fs::create_dir_all(to).expect("folder");
    fs::copy(from.join("config.json"), to.join("config.json")).expect("copy");
    let file = open(&from.join("model.safetensors"));
    let kept = file.tensors().iter().filter_map(|info| Some((info, name(&info.name)?)));
    let mut tensors: Vec<TensorOut> = kept
        .map(|(info, name)| TensorOut::f32(name, &info.shape, file.read_f32(&info.name).expect("read")))
        .collect();
    let more =
        more.iter().map(|(name, shape)| TensorOut::f32(*name, shape, vec![0.5; shape.iter().product()]));
    tensors.extend(more);
    safetensors::write(&to.join("model.safetensors"), tensors, &[("format", "pt")]).expect("write");
}

fn edit_config(folder: &Path, edit: impl Fn(&mut serde_json::Value)) {
    let path = folder.join("config.json");
    let mut value = serde_json::from_str(&fs::read_to_string(&path).expect("config")).expect("json");
    edit(&mut value);
    fs::write(path, value.to_string()).expect("config");
}

fn config(folder: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(folder.join("config.json")).expect("config")).expect("json")
}

/// Keeps an exported model for transformers, if asked: the folder, `inputs.safetensors` and `expected.safetensors`.
fn keep(name: &str, dir: &Path, model: &Model, case: &str) {
    let Some(out) = std::env::var_os("RETUNE_TEST_EXPORTS").map(|out| Path::new(&out).join(name)) else {
        return;
    };
    fs::create_dir_all(&out).expect("folder");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(dir.join(file), out.join(file)).expect("copy");
    }
    let inputs = parity(case).join("inputs.safetensors");
    fs::copy(&inputs, out.join("inputs.safetensors")).expect("copy");
    let batch = batch(case, false);
    let (what, values) = match model.net.head() {
        Head::Detector(_) | Head::None => ("hidden", rows_of(model, &batch)),
        _ => ("logits", logits_of(model, &batch)),
    };
    let padded = open(&inputs).get("input_ids").expect("ids").shape.clone();
    let tensor = if values.rows() == padded[0] {
        TensorOut::f32(what, &[values.rows(), values.cols()], values.data().to_vec())
    } else {
        let mut all = vec![0.0; padded[0] * padded[1] * values.cols()];
        for (row, place) in batch.places.iter().enumerate() {
            all[place * values.cols()..(place + 1) * values.cols()].copy_from_slice(values.row(row));
        }
        TensorOut::f32(what, &[padded[0], padded[1], values.cols()], all)
    };
    safetensors::write(&out.join("expected.safetensors"), [tensor], &[]).expect("write");
}

/// The last rows of the trunk.
fn rows_of(model: &Model, batch: &Batch) -> Tensor {
    let tape = Tape::inference(&model.params);
    model.net.as_text().expect("text").hidden(&tape, &batch.input(), &Pass::default()).x.value().clone()
}

fn batch(case: &str, decoder: bool) -> Batch {
    Batch::read(&parity(case).join("inputs.safetensors"), decoder)
}

/// Old and bare files: no prefix, `gamma` and `beta`, buffers, heads of pre-training that no one asked for.
#[test]
fn files_as_others_write_them() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("bert");
    let bare = |name: &str| {
        let name = name.strip_prefix("bert.").unwrap_or(name);
        let name =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        (!name.starts_with("classifier")).then_some(name)
    };
    renamed(
        &parity("bert_base"),
        &dir,
        bare,
        &[("embeddings.position_ids", &[1, 64]), ("cls.seq_relationship.bias", &[2])],
    );
    edit_config(&dir, |c| c["architectures"] = serde_json::json!(["BertModel"]));
    let batch = batch("bert_full", false);
    let want = rows_of(&load(&parity("bert_base"), StorageChoice::F32), &batch);
    let model = load(&dir, StorageChoice::F32);
    assert!(matches!(model.net.head(), Head::None));
    assert!(model.params.find("bert.encoder.layer.0.attention.output.LayerNorm.weight").is_some());
    assert!(model.params.find("bert.pooler.dense.weight").is_some(), "the pooler goes along");
    assert_eq!(rows_of(&model, &batch).data(), want.data());
    // Asked for a classifier, the pooler is the file's and the last layer new; the trunk alone has neither.
    let labelled = load_with(&dir, &classifier(&["no", "yes"], None, true));
    let Head::Classifier(head) = labelled.net.head() else { panic!("a classifier") };
    assert_eq!((head.labels.len(), head.out.out_features, head.dense.is_some()), (2, 2, true));
    let pooler = |model: &Model| {
        model.params.get(model.params.find("bert.pooler.dense.weight").expect("pooler")).weight.to_tensor()
    };
    assert_eq!(pooler(&labelled).data(), pooler(&model).data());
    let out = folder.path().join("out");
    write_folder(&model, &out, &ExportOptions::default()).expect("export");
    keep("bert-trunk", &out, &model, "bert_full");
    assert!(load_with(&dir, &HeadRequest::None).params.find("bert.pooler.dense.weight").is_none());
    let mean = load_with(&dir, &classifier(&["no", "yes"], Some(Pooling::Mean), true));
    let Head::Classifier(head) = mean.net.head() else { panic!("a classifier") };
    assert!(head.dense.is_none(), "a pooler of the first row is not for a mean");
    let refused =
        Model::load_with(&dir, StorageChoice::F32, &HeadRequest::LanguageModel).err().expect("no such head");
    assert!(refused.to_string().contains("language-model head"), "{refused}");

    let dir = folder.path().join("gpt2");
    let bare = |name: &str| Some(name.strip_prefix("transformer.").unwrap_or(name).to_string());
    let buffers: &[(&str, &[usize])] =
        &[("h.0.attn.bias", &[1, 1, 128, 128]), ("h.1.attn.masked_bias", &[1])];
    renamed(&parity("gpt2_base"), &dir, bare, buffers);
    let batch = self::batch("gpt2_full", true);
    let want = logits_of(&load(&parity("gpt2_base"), StorageChoice::F32), &batch);
    assert_eq!(logits_of(&load(&dir, StorageChoice::F32), &batch).data(), want.data());
}

#[test]
fn a_tensor_too_many_or_too_few_is_told() {
    let folder = tempfile::tempdir().expect("folder");
    let all = |name: &str| Some(name.to_string());
    let error = |dir: &Path| Model::load(dir, StorageChoice::F32).err().expect("refused").to_string();
    for (base, lost) in [
        ("bert_base", "bert.encoder.layer.1.output.dense.bias"),
        ("gpt2_base", "transformer.h.1.ln_2.weight"),
    ] {
        let dir = folder.path().join(format!("{base}-more"));
        renamed(&parity(base), &dir, all, &[("strange.weight", &[2, 2])]);
        assert!(error(&dir).contains("strange.weight"));
        let dir = folder.path().join(format!("{base}-less"));
        renamed(&parity(base), &dir, |name| (name != lost).then(|| name.to_string()), &[]);
        assert!(error(&dir).contains(lost), "{}", error(&dir));
        edit_config(&dir, |c| c["vocab_size"] = 255.into());
        assert!(error(&dir).contains("[256, 64]"), "{}", error(&dir));
    }
}

#[test]
fn gguf_files() {
    let folder = tempfile::tempdir().expect("folder");
    for (base, case, decoder) in [("gpt2_base", "gpt2_full", true), ("bert_base", "bert_full", false)] {
        let batch = batch(case, decoder);
        let want = rows_of(&load(&parity(base), StorageChoice::F32), &batch);
        for (kind, tolerance) in [("f32", 0.0), ("q8_0", 0.05)] {
            let path = folder.path().join(format!("{base}.{kind}.gguf"));
            write_gguf(&parity(base), kind, &path);
            let model = load(&path, StorageChoice::AsIs);
            close(&format!("{base} in {kind}"), rows_of(&model, &batch).data(), want.data(), tolerance);
            if kind == "q8_0" {
                let quantised =
                    model.params.iter().filter(|(_, p)| p.weight.storage().format() == "q8_0").count();
                assert_eq!(quantised, if decoder { 2 + 2 * 4 } else { 3 + 2 * 6 });
            }
            // As a folder it is the same model, the weights turned back.
            let dir = folder.path().join(format!("{base}.{kind}"));
            write_folder(&model, &dir, &ExportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(rows_of(&load(&dir, StorageChoice::F32), &batch).data(), {
                let expanded = load(&path, StorageChoice::F32);
                rows_of(&expanded, &batch).data().to_vec()
            });
            let name = if decoder { "GPT2LMHeadModel" } else { "BertModel" };
            assert_eq!(config(&dir)["architectures"], serde_json::json!([name]));
            keep(&format!("{base}-from-{kind}"), &dir, &model, case);
        }
    }
}

/// A model written by us is the model that was read: names, shapes, types, bytes.
#[test]
fn exported_as_it_was() {
    let folder = tempfile::tempdir().expect("folder");
    for base in
        ["gpt2_base", "bert_base", "bert_tokcls_full", "bert_mlm_full", "roberta_full", "distilbert_full"]
    {
        let dir = folder.path().join(base);
        write_folder(&load(&parity(base), StorageChoice::F32), &dir, &ExportOptions::default())
            .expect("export");
        let (was, is) = (open(&parity(base).join("model.safetensors")), open(&dir.join("model.safetensors")));
        let names = |file: &safetensors::File| {
            let mut all: Vec<_> =
                file.tensors().iter().map(|i| (i.name.clone(), i.shape.clone(), i.dtype)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(names(&was), names(&is), "{base}");
        for info in was.tensors() {
            assert_eq!(
                was.read(&info.name).expect("read"),
                is.read(&info.name).expect("read"),
                "{}",
                info.name
            );
        }
        let case = base.replace("_base", "_full");
        keep(base, &dir, &load(&dir, StorageChoice::F32), &case);
        let (was, is) = (config(&parity(base)), config(&dir));
        assert_eq!((&was["architectures"], &was["id2label"]), (&is["architectures"], &is["id2label"]));
    }
}

/// A classifier on another model's trunk: the folder names its class and labels, and loads as what it is.
#[test]
fn exported_classifiers_say_what_they_are() {
    let folder = tempfile::tempdir().expect("folder");
    for (base, case, class) in [
        ("bert_mlm_full", "bert_mlm_full", "BertForSequenceClassification"),
        ("roberta_full", "roberta_full", "RobertaForSequenceClassification"),
        ("distilbert_full", "distilbert_full", "DistilBertForSequenceClassification"),
        ("gpt2_base", "gpt2_full", "GPT2ForSequenceClassification"),
        ("llama_base_full", "llama_base_full", "LlamaForSequenceClassification"),
    ] {
        let model = load_with(&parity(base), &classifier(&["good", "bad"], None, false));
        let dir = folder.path().join(base);
        let options = ExportOptions { dtype: ExportDtype::F32, ..ExportOptions::default() };
        write_folder(&model, &dir, &options).unwrap_or_else(|e| panic!("{e}"));
        let config = config(&dir);
        assert_eq!(config["architectures"], serde_json::json!([class]));
        assert_eq!(config["id2label"], serde_json::json!({"0": "good", "1": "bad"}));
        assert_eq!(config["label2id"], serde_json::json!({"good": 0, "bad": 1}));
        assert_eq!(config["problem_type"], "single_label_classification");
        let again = load(&dir, StorageChoice::F32);
        let batch = batch(case, false);
        assert_eq!(logits_of(&again, &batch).data(), logits_of(&model, &batch).data(), "{class}");
        // transformers finds the last row of a decoder's text by its padding.
        edit_config(&dir, |c| c["pad_token_id"] = if class.starts_with("Rob") { 1 } else { 0 }.into());
        keep(class, &dir, &model, case);
    }
}

/// A mean-pooled classifier stays one; a pooler that a classifier needs must be in its files; other labels, another head.
#[test]
fn what_a_classifier_needs_is_kept_or_missed() {
    let folder = tempfile::tempdir().expect("folder");
    let batch = batch("bert_full", false);
    let mean = load_with(&parity("bert_base"), &classifier(&["good", "bad"], Some(Pooling::Mean), false));
    let dir = folder.path().join("mean");
    let report = write_folder(&mean, &dir, &ExportOptions::default()).expect("export");
    assert!(report.notes.iter().any(|note| note.contains("classifier_pooling")), "{:?}", report.notes);
    for again in [load(&dir, StorageChoice::F32), load_with(&dir, &classifier(&["good", "bad"], None, true))]
    {
        assert_eq!(logits_of(&again, &batch).data(), logits_of(&mean, &batch).data());
    }
    edit_config(&dir, |c| drop(c.as_object_mut().map(|c| c.remove("classifier_pooling"))));
    let error = Model::load(&dir, StorageChoice::F32).err().expect("no pooler").to_string();
    assert!(error.contains("bert.pooler.dense.weight"), "{error}");

    let kept = |labels: &[&str]| load_with(&parity("bert_base"), &classifier(labels, None, true));
    let weight = |model: &Model| {
        let id = model.params.find("classifier.weight").expect("classifier");
        model.params.get(id).weight.to_tensor()
    };
    let base = load(&parity("bert_base"), StorageChoice::F32);
    assert_eq!(weight(&kept(&["a", "b", "c"])).data(), weight(&base).data());
    assert_eq!(weight(&kept(&["a", "b"])).rows(), 2);
}

/// GPT-2's score reads the last row: PEFT's case with its branches added to the weights by hand.
#[test]
fn gpt2_classifies_by_its_last_row() {
    let folder = parity("gpt2_seqcls_lora");
    let mut model = load_with(&parity("gpt2_base"), &classifier(&["a", "b", "c"], None, false));
    let adapter = open(&folder.join("adapter_model.safetensors"));
    let read = |name: &str| {
        let info = adapter.get(name).unwrap_or_else(|e| panic!("{e}"));
        Tensor::from_vec(info.shape[0], info.shape[1], adapter.read_f32(name).expect("read"))
    };
    let score = model.params.find("score.weight").expect("score");
    *model.params.tensor_mut(score).expect("f32") = read("base_model.model.score.weight");
    for layer in 0..2 {
        let path = format!("transformer.h.{layer}.attn.c_attn");
        let [a, b] = ["A", "B"].map(|x| read(&format!("base_model.model.{path}.lora_{x}.weight")));
        let id = model.params.find(&format!("{path}.weight")).expect("weight");
        let weight = model.params.tensor_mut(id).expect("f32");
        let sums = |r: usize, c: usize| (0..a.rows()).map(|k| b.row(r)[k] * a.row(k)[c]).sum::<f32>();
        *weight = Tensor::from_fn(weight.rows(), weight.cols(), |r, c| weight.row(r)[c] + 2.0 * sums(r, c));
    }
    full::attach(&mut model).expect("attach");
    let batch = batch("gpt2_seqcls_lora", true);
    let want = open(&folder.join("logits.safetensors"));
    close("logits", logits_of(&model, &batch).data(), &want.read_f32("logits").expect("logits"), 1e-4);
    let (loss, gradients) = loss_and_grads(&model, &batch, &Pass::default());
    close("loss", &[loss], &want.read_f32("loss").expect("loss"), 1e-4);
    let grads = open(&folder.join("grads.safetensors"));
    let want = grads.read_f32("base_model.model.score.modules_to_save.default.weight").expect("gradient");
    close("gradient", gradients.get(score).expect("score").data(), &want, 1e-4);
}

#[test]
fn llama_classifies_by_its_last_row() {
    let base = parity("llama_base_full");
    let mut model = load_with(&base, &classifier(&["a", "b", "c"], None, false));
    let score = model.params.find("score.weight").expect("score");
    *model.params.tensor_mut(score).expect("f32") =
        Tensor::from_fn(3, 64, |r, c| (0.2 * ((1 + 64 * r + c) as f64).sin()) as f32);
    full::attach(&mut model).expect("attach");
    let mut batch = Batch::read(&base.join("inputs.safetensors"), true);
    batch.labels.rows = vec![0, 1, 2];
    batch.labels.targets = vec![2, 0, 1];
    batch.labels.weights = vec![1.0; 3];
    batch.labels.denominator = 3.0;
    let want = open(&parity("llama_seqcls/logits.safetensors"));
    close("logits", logits_of(&model, &batch).data(), &want.read_f32("logits").expect("logits"), 1e-4);
    let (loss, gradients) = loss_and_grads(&model, &batch, &Pass::default());
    close("loss", &[loss], &want.read_f32("loss").expect("loss"), 1e-4);
    let grads = open(&parity("llama_seqcls/grads.safetensors"));
    for info in grads.tensors() {
        let id = model.params.find(&info.name).expect("parameter");
        let want = grads.read_f32(&info.name).expect("gradient");
        close(&info.name, gradients.get(id).expect("gradient").data(), &want, 1e-4);
    }
}

/// Virtual tokens of one value.
struct Constant(usize);

impl PromptRows for Constant {
    fn rows(&self) -> usize {
        self.0
    }
    fn forward(&self, _tape: &Tape) -> Var {
        Var::constant(Tensor::from_fn(self.0, 64, |r, c| ((r * 64 + c) as f32).sin()))
    }
}

fn put_prompt(model: &mut Model, rows: usize) {
    model.net.visit_sites(&mut |site| {
        if let Site::Prompt(Prompt { rows: slots }) = site {
            slots.put(0, Box::new(Constant(rows)));
        }
    });
}

/// GPT-2 with its keys and values kept gives what it gives without, with virtual tokens in front and without.
#[test]
fn generation_with_a_cache_is_generation_without() {
    let ids: Vec<u32> = (0..23).map(|i| (i * 37 + 5) % 250).collect();
    for prompt in [0, 4] {
        let mut model = load(&parity("gpt2_base"), StorageChoice::F32);
        if prompt > 0 {
            put_prompt(&mut model, prompt);
        }
        let head = lm_head(&model);
        let mut cache = model.net.as_text().expect("text").new_cache(ids.len(), Active::Slot(0));
        let mut done = 0;
        for n in [7, 1, 1, 12, 1, 1] {
            let got = next_logits(&model, &ids[done..done + n], &mut cache).expect("logits");
            done += n;
            let segments = Segments::from_lengths(&[done]);
            let tape = Tape::inference(&model.params);
            let input = TextInput::new(&ids[..done], &segments);
            let Hidden { x, rows } =
                model.net.as_text().expect("text").hidden(&tape, &input, &Pass::default());
            let all = head.forward(&tape, &rows, &x);
            close("logits", got.data(), all.value().row(all.rows() - 1), 1e-5);
        }
        assert_eq!(cache.len, ids.len() + prompt);
    }
}

/// A table of positions has an end: texts and caches beyond it are refused, with virtual tokens counted.
#[test]
fn positions_have_an_end() {
    for (base, context) in [("gpt2_base", 128), ("bert_base", 64), ("roberta_full", 40)] {
        let mut model = load(&parity(base), StorageChoice::F32);
        assert_eq!(model.net.as_text().expect("text").info().context_length, context);
        check_ids(model.net.as_text().expect("text"), &vec![3; context]).expect("fits");
        let segments = Segments::from_lengths(&[context]);
        let ids = vec![3; context];
        model.net.as_text().expect("text").lower(
            &model.params,
            &TextInput::new(&ids, &segments),
            0,
            &Pass::default(),
        );
        let error = check_ids(model.net.as_text().expect("text"), &vec![3; context + 1])
            .expect_err("too long")
            .to_string();
        assert!(error.contains(&format!("the {context} positions")), "{error}");
        put_prompt(&mut model, 3);
        let error = check_ids(model.net.as_text().expect("text"), &vec![3; context])
            .expect_err("too long")
            .to_string();
        assert!(error.contains(&format!("max_length to {} or less", context - 3)), "{error}");
        let cache = model.net.as_text().expect("text").new_cache(10 * context, Active::Slot(0));
        assert_eq!(cache.capacity, context);
    }
}

/// Each text of a batch is what it is alone, and a mixed batch what its adapters give.
#[test]
fn encoders_keep_examples_apart() {
    let mut model = load(&parity("bert_base"), StorageChoice::F32);
    put_prompt(&mut model, 4);
    let batch = batch("bert_full", false);
    let n = batch.segments.len();
    let logits = |batch: &Batch, active: Active| {
        let pass = Pass { active, ..Pass::default() };
        logits_on(&model, &Tape::inference(&model.params), batch, &pass).value().clone()
    };
    let slots: Arc<[Option<usize>]> = (0..n).map(|i| (i % 2 == 0).then_some(0)).collect();
    let mixed = logits(&batch, Active::PerExample(slots.clone()));
    for (example, range) in batch.segments.ranges().enumerate() {
        let alone = Batch {
            ids: batch.ids[range.clone()].to_vec(),
            token_types: batch.token_types[range.clone()].to_vec(),
            segments: Segments::from_lengths(&[range.len()]),
            places: Vec::new(),
            labels: Default::default(),
            of_texts: true,
        };
        let active = slots[example].map_or(Active::Base, Active::Slot);
        close("logits", mixed.row(example), logits(&alone, active).data(), 1e-5);
    }
}

/// Halves are held and written as halves, the names of the files notwithstanding.
#[test]
fn bf16_files_without_a_prefix() {
    let folder = tempfile::tempdir().expect("folder");
    let (half, bare) = (folder.path().join("half"), folder.path().join("bare"));
    let options = ExportOptions { dtype: ExportDtype::BF16, ..ExportOptions::default() };
    write_folder(&load(&parity("bert_base"), StorageChoice::F32), &half, &options).expect("export");
    fs::create_dir_all(&bare).expect("folder");
    fs::copy(half.join("config.json"), bare.join("config.json")).expect("copy");
    let file = open(&half.join("model.safetensors"));
    let tensors = file.tensors().iter().map(|info| TensorOut {
        name: info.name.strip_prefix("bert.").unwrap_or(&info.name).to_string(),
        dtype: info.dtype,
        shape: info.shape.clone(),
        data: retune_formats::source::Data::Bytes(file.read(&info.name).expect("read").into()),
    });
    safetensors::write(&bare.join("model.safetensors"), tensors, &[("format", "pt")]).expect("write");
    let model = load(&bare, StorageChoice::AsIs);
    let out = folder.path().join("out");
    let report = write_folder(&model, &out, &ExportOptions::default()).expect("export");
    assert!(report.same_base && report.dtype == Dtype::BF16, "{report:?}");
    let held = open(&out.join("model.safetensors"));
    assert!(held.tensors().iter().all(|info| info.dtype == Dtype::BF16));
}
