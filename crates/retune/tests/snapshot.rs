//! A model that is reset after a run gives the base's bits, whatever method was on it; so does one whose adapter is off.

mod common;

use std::path::Path;

use common::*;
use retune::methods::{self, METHODS};
use retune::models::{HeadRequest, Model, StorageChoice, TextInput, TextModel, WithoutAdapter};
use retune::nn::{Head, Pass, Problem};
use retune::run_file::RunFile;
use retune_tensor::{Segments, Tape};

const BASES: &[(&str, bool)] =
    &[("parity/llama_base_full", false), ("parity/gpt2_base", false), ("parity/bert_base", true)];

fn open(path: &Path, classifier: bool) -> Model {
    let labels = vec!["no".to_owned(), "yes".to_owned()];
    let problem = Problem::SingleLabel;
    let request = match classifier {
        true => {
            HeadRequest::Classifier { problem, labels, pooling: None, keep: false, seed: 3, image_size: None }
        }
        false => HeadRequest::AsFile,
    };
    Model::load_with(path, StorageChoice::F32, &request).unwrap_or_else(|e| panic!("{e}"))
}

/// The head's output, to the bit.
fn bits(model: &Model, net: &dyn TextModel) -> Vec<u32> {
    let ids: Vec<u32> = (0..9).map(|i| 3 + 5 * i % 40).collect();
    let segments = Segments::from_lengths(&[4, 5]);
    let tape = Tape::inference(&model.params);
    let hidden = net.hidden(&tape, &TextInput::new(&ids, &segments), &Pass::default());
    let out = match net.head() {
        Head::LanguageModel(head) => head.forward(&tape, &hidden.rows, &hidden.x),
        Head::Classifier(head) => head.forward(&tape, &hidden),
        Head::Detector(_) | Head::None => hidden.x,
    };
    out.value().data().iter().map(|x| x.to_bits()).collect()
}

/// Changes every trainable value, as a run would.
fn shake(model: &mut Model) {
    for id in model.params.trainable() {
        let values = model.params.tensor_mut(id).expect("what is trained is f32");
        values.data_mut().iter_mut().enumerate().for_each(|(i, x)| *x += 0.05 + 0.01 * (i % 7) as f32);
    }
}

#[test]
fn a_reset_model_is_the_base_after_every_method() {
    for &(base, classifier) in BASES {
        let path = data(base);
        let mut model = open(&path, classifier);
        let (before, parameters) = (bits(&model, model.net.as_text().expect("text")), model.params.len());
        let snapshot = model.snapshot();
        let mut attached = 0;
        for spec in METHODS {
            let mut run = RunFile { method: spec.name.into(), model: path.clone(), ..RunFile::default() };
            run.bitfit.add_biases = true;
            run.partial.last_blocks = 1;
            let on = (spec.attach)(&mut model, &run);
            if let Ok(on) = &on {
                attached += 1;
                assert!(on.trainable > 0);
                // What only data make ready is not ready here, and then nothing depends on it.
                shake(&mut model);
                let after = bits(&model, model.net.as_text().expect("text"));
                assert!(after != before || on.prepare.is_some(), "{} on {base} changes nothing", spec.name);
                if !model.params.iter().any(|(_, p)| p.trainable && !p.adapter) {
                    let off = bits(&model, &WithoutAdapter(model.net.as_text().expect("text")));
                    assert_eq!(off, before, "{} on {base}, switched off", spec.name);
                }
            }
            model.reset(&snapshot);
            let what = format!("{} on {base}: {:?}", spec.name, on.err());
            assert_eq!(model.params.len(), parameters, "{what}");
            assert!(
                model.adapters.is_empty() && model.net.as_text().expect("text").virtual_rows(Some(0)) == 0,
                "{what}"
            );
            assert_eq!(model.params.trainable().len(), snapshot_trainable(&path, classifier), "{what}");
            assert!(bits(&model, model.net.as_text().expect("text")) == before, "{what}");
        }
        assert!(attached + 1 >= METHODS.len(), "only {attached} of {} methods on {base}", METHODS.len());
    }
}

fn snapshot_trainable(path: &Path, classifier: bool) -> usize {
    open(path, classifier).params.trainable().len()
}

#[test]
fn an_adapter_that_was_there_stays() {
    let mut model = open(&data("parity/llama_base_full"), false);
    let run = RunFile { method: "lora".into(), ..RunFile::default() };
    (methods::find("lora").unwrap().attach)(&mut model, &run).unwrap();
    shake(&mut model);
    let (before, snapshot) = (bits(&model, model.net.as_text().expect("text")), model.snapshot());
    shake(&mut model);
    assert_ne!(bits(&model, model.net.as_text().expect("text")), before);
    model.reset(&snapshot);
    assert!(bits(&model, model.net.as_text().expect("text")) == before);
    assert_eq!(model.adapters.len(), 1);
}
