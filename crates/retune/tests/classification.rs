//! The objective of classifiers against transformers' losses, and its laws: batches, weights, metrics.

mod common;

use std::path::PathBuf;

use common::{close, data, open};
use retune::methods::{self, Source};
use retune::models::{HeadRequest, Model, StorageChoice};
use retune::nn::Problem;
use retune::run_file::RunFile;
use retune::tasks::classification::{
    Classification, DataReport, Example, Examples, Label, Labels, Source as Place, Tokens, logits, predict,
};
use retune::train::{Control, Objective, measure};
use retune_formats::TensorSource;
use retune_tensor::Tape;

fn integers(file: &retune_formats::safetensors::File, name: &str) -> (usize, Vec<i64>) {
    let shape = file.get(name).unwrap().shape.clone();
    let bytes = file.read(name).unwrap();
    let values = bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    (shape.get(1).copied().unwrap_or(1), values)
}

/// A reference's batch as examples, its padding taken away.
fn examples(case: &str, problem: Problem, classes: usize) -> Examples {
    let file = open(&data(&format!("parity/{case}/inputs.safetensors")));
    let (cols, ids) = integers(&file, "input_ids");
    let [mask, types] = ["attention_mask", "token_type_ids"].map(|name| integers(&file, name).1);
    let (wide, labels) = integers(&file, "labels");
    let example = |row: usize| {
        let real: Vec<usize> = (row * cols..(row + 1) * cols).filter(|&i| mask[i] == 1).collect();
        let (words, label) = match problem {
            Problem::Tokens => {
                let tagged: Vec<usize> = (0..real.len()).filter(|&i| labels[real[i]] >= 0).collect();
                let tags = tagged.iter().map(|&i| labels[real[i]] as u32).collect();
                (tagged.into_iter().map(Some).collect(), Label::Tags(tags))
            }
            _ => (vec![], Label::One(labels[row * wide] as u32)),
        };
        let pick = |from: &[i64]| real.iter().map(|&i| from[i] as u32).collect();
        let tokens = Tokens { ids: pick(&ids), token_types: pick(&types), words, truncated: 0 };
        Example { tokens, label, source: Place { file: "case".into(), line: row + 1 }, key: row as u64 }
    };
    Examples {
        examples: (0..ids.len() / cols).map(example).collect(),
        problem,
        labels: Labels { names: (0..classes).map(|i| format!("LABEL_{i}")).collect() },
        report: DataReport::default(),
        tokens: 0,
        truncated: 0,
    }
}

fn loss(task: &Classification, model: &Model, batch: &[usize], denominator: f64) -> f32 {
    let tape = Tape::inference(&model.params);
    task.loss(&tape, batch, 0, denominator).unwrap().value().data()[0]
}

fn task<'a>(model: &'a Model, data: &'a Examples, weights: Option<&'a [f32]>) -> Classification<'a> {
    let net = model.net.as_text().expect("text");
    Classification { net, data, class_weights: weights, dropout_seed: None, checkpoint: false, cache: None }
}

#[test]
fn losses_are_those_of_transformers_and_batching_changes_nothing() {
    let cases = [
        ("bert_full", "bert_base", Problem::SingleLabel, 3),
        ("bert_tokcls_full", "bert_tokcls_full", Problem::Tokens, 5),
    ];
    for (case, base, problem, classes) in cases {
        let model = Model::load(&data(&format!("parity/{base}")), StorageChoice::F32).unwrap();
        let rows = examples(case, problem, classes);
        let task = task(&model, &rows, None);
        task.check().unwrap();
        let all: Vec<usize> = (0..task.len()).collect();
        let sum: f64 = all.iter().map(|&e| task.weight(e)).sum();
        let text = std::fs::read_to_string(data(&format!("parity/{case}/meta.json"))).unwrap();
        let want = serde_json::from_str::<serde_json::Value>(&text).unwrap()["loss"].as_f64().unwrap() as f32;
        let whole = loss(&task, &model, &all, sum);
        close(case, &[whole], &[want], 1e-4);
        let parts: f32 = all.iter().map(|&e| loss(&task, &model, &[e], sum)).sum();
        close("one by one", &[parts], &[whole], 1e-6);
        let found = measure(&model.params, &task, 3, &mut |_| Control::Continue).unwrap().unwrap();
        close("measured", &[found.loss as f32], &[whole], 1e-6);
        assert!(found.metrics.unwrap().accuracy.is_some());
    }
}

#[test]
fn class_weights_weigh_rows_and_the_denominator() {
    let model = Model::load(&data("parity/bert_base"), StorageChoice::F32).unwrap();
    let rows = examples("bert_full", Problem::SingleLabel, 3);
    let plain = task(&model, &rows, None);
    let weights = [2.0, 0.0, 0.5];
    let weighted = task(&model, &rows, Some(&weights));
    let of = |e: usize| match rows.examples[e].label {
        Label::One(class) => f64::from(weights[class as usize]),
        _ => unreachable!(),
    };
    let all: Vec<usize> = (0..plain.len()).collect();
    let sum: f64 = all.iter().map(|&e| of(e)).sum();
    assert_eq!(all.iter().map(|&e| weighted.weight(e)).sum::<f64>(), sum);
    let want: f64 =
        all.iter().map(|&e| of(e) * f64::from(loss(&plain, &model, &[e], 1.0))).sum::<f64>() / sum;
    close("weighted", &[loss(&weighted, &model, &all, sum)], &[want as f32], 1e-5);
}

#[test]
fn sets_and_numbers_have_their_losses() {
    let open = |problem, labels: usize| {
        let labels = (0..labels).map(|i| format!("L{i}")).collect();
        let head = HeadRequest::Classifier {
            problem,
            labels,
            pooling: None,
            keep: false,
            seed: 5,
            image_size: None,
        };
        Model::load_with(&data("parity/bert_base"), StorageChoice::F32, &head).unwrap()
    };
    let mut rows = examples("bert_full", Problem::MultiLabel, 4);
    let model = open(Problem::MultiLabel, 4);
    rows.examples.iter_mut().enumerate().for_each(|(i, e)| e.label = Label::Many(vec![i as u32 % 4]));
    let of_all: Vec<&Tokens> = rows.examples.iter().map(|e| &e.tokens).collect();
    let (z, _) =
        logits(model.net.as_text().expect("text"), &model.params, &of_all, Default::default()).unwrap();
    let bce = |z: f32, t: f32| -> f64 {
        let (z, t) = (f64::from(z), f64::from(t));
        z.max(0.0) - z * t + (-z.abs()).exp().ln_1p()
    };
    let cells = (0..4).flat_map(|i| (0..4).map(move |k| (i, k)));
    let want: f64 = cells.map(|(i, k)| bce(z.row(i)[k], f32::from(u8::from(i == k)))).sum::<f64>() / 16.0;
    let sets = task(&model, &rows, None);
    assert_eq!(sets.weight(0), 4.0);
    close("sets", &[loss(&sets, &model, &[0, 1, 2, 3], 16.0)], &[want as f32], 1e-5);

    let mut rows = examples("bert_full", Problem::Regression, 0);
    let model = open(Problem::Regression, 1);
    rows.examples.iter_mut().enumerate().for_each(|(i, e)| e.label = Label::Value(i as f32 - 1.5));
    let of_all: Vec<&Tokens> = rows.examples.iter().map(|e| &e.tokens).collect();
    let (z, _) =
        logits(model.net.as_text().expect("text"), &model.params, &of_all, Default::default()).unwrap();
    let want: f32 = (0..4).map(|i| (z.row(i)[0] - (i as f32 - 1.5)).powi(2)).sum::<f32>() / 4.0;
    let numbers = task(&model, &rows, None);
    numbers.check().unwrap();
    close("numbers", &[loss(&numbers, &model, &[0, 1, 2, 3], 4.0)], &[want], 1e-5);
}

/// Three texts through two adapters and the base in one batch: each as if alone.
#[test]
fn a_batch_of_several_adapters_answers_as_each_alone() {
    let base = data("parity/bert_base");
    let dir = tempfile::tempdir().unwrap();
    let folders: Vec<PathBuf> = (0..2).map(|i| dir.path().join(format!("adapter-{i}"))).collect();
    for (seed, folder) in folders.iter().enumerate() {
        let mut model = Model::load(&base, StorageChoice::F32).unwrap();
        let run = RunFile { model: base.clone(), seed: seed as u64, ..RunFile::default() };
        let attached = (methods::find("lora").unwrap().attach)(&mut model, &run).unwrap();
        // Not at zero, so that it does something.
        for id in model.params.trainable() {
            let stream = retune_tensor::rng::Stream::named(seed as u64, &model.params.get(id).name);
            let values = model.params.tensor_mut(id).unwrap().data_mut();
            values.iter_mut().zip(0..).for_each(|(x, i)| *x += 0.1 * stream.normal(i));
        }
        attached.write(&model, folder, None).unwrap();
    }
    let mut model = Model::load(&base, StorageChoice::F32).unwrap();
    for (slot, path) in folders.iter().enumerate() {
        methods::load(&mut model, &[Source { path: path.clone(), weight: 1.0 }], slot).unwrap();
    }
    let texts: Vec<Tokens> =
        examples("bert_full", Problem::SingleLabel, 3).examples.into_iter().map(|e| e.tokens).collect();
    let slots = [Some(1), None, Some(0), Some(1)];
    let net = model.net.as_text().expect("text");
    let say = |texts: &[Tokens], slots: &[Option<usize>], batch| {
        predict(net, &model.params, texts, slots, batch, &mut |_| true).unwrap().unwrap()
    };
    let mixed = say(&texts, &slots, 4);
    for i in 0..4 {
        assert_eq!(say(&texts[i..=i], &slots[i..=i], 1)[0], mixed[i]);
    }
    assert_ne!(say(&texts, &[Some(0); 4], 4), say(&texts, &[Some(1); 4], 4));
    assert_ne!(say(&texts, &[Some(0); 4], 4), say(&texts, &[None; 4], 4));
}
