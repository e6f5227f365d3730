//! Files of every shape into labelled texts, and what is said of wrong ones.

use super::*;
use std::collections::BTreeSet;
use std::path::PathBuf;

struct File(tempfile::TempDir, PathBuf);

fn file(name: &str, text: &str) -> File {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    File(dir, path)
}

fn load(name: &str, text: &str) -> Dataset {
    Dataset::load(&file(name, text).1, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// The message without the folder.
fn message(name: &str, text: &str, options: &Options) -> String {
    let file = file(name, text);
    let folder = format!("{}/", file.0.path().display());
    Dataset::load(&file.1, options).unwrap_err().to_string().replace(&folder, "")
}

fn names(dataset: &Dataset) -> Vec<&str> {
    dataset.labels.names.iter().map(String::as_str).collect()
}

fn labels(dataset: &Dataset) -> Vec<Label> {
    dataset.examples.iter().map(|e| e.label.clone()).collect()
}

fn named(names: &[&str]) -> Labels {
    Labels { names: names.iter().map(|name| (*name).to_string()).collect() }
}

#[test]
fn texts_and_pairs_of_every_usual_name() {
    let rows = [
        (r#"{"text": "t", "label": "a"}"#, None),
        (r#"{"Sentence": "t", "LABEL": "b", "idx": 3}"#, None),
        (r#"{"text_a": "t", "text_b": "p", "label": "a"}"#, Some("p")),
        (r#"{"sentence1": "t", "sentence2": "p", "label": "a"}"#, Some("p")),
        (r#"{"premise": "t", "hypothesis": "p", "label": "a"}"#, Some("p")),
        (r#"{"question": "t", "sentence": "p", "label": "a"}"#, Some("p")),
        (r#"{"text": "t", "text_pair": null, "label": "a"}"#, None),
    ];
    let text: Vec<&str> = rows.iter().map(|row| row.0).collect();
    let dataset = load("d.jsonl", &text.join("\n"));
    assert_eq!((dataset.problem, names(&dataset)), (Problem::SingleLabel, vec!["a", "b"]));
    for (example, (_, pair)) in dataset.examples.iter().zip(rows) {
        assert_eq!((example.text.as_str(), example.pair.as_deref()), ("t", pair), "{}", example.source);
    }
    assert_eq!(dataset.report.counts, [6, 1]);
    assert_eq!(dataset.report.pairs, 4);
}

#[test]
fn the_labels_tell_the_problem() {
    let ints = load("d.csv", "text,label\nx,10\ny,9\nz,10\n");
    assert_eq!((ints.problem, names(&ints)), (Problem::SingleLabel, vec!["9", "10"]));
    assert_eq!(labels(&ints), [Label::One(1), Label::One(0), Label::One(1)]);

    let bools = load("d.jsonl", "{\"text\": \"x\", \"label\": true}\n{\"text\": \"y\", \"label\": false}");
    assert_eq!(names(&bools), ["false", "true"]);

    let whole = load("d.jsonl", "{\"text\": \"x\", \"label\": 1.0}\n{\"text\": \"y\", \"label\": 0}");
    assert_eq!((whole.problem, names(&whole)), (Problem::SingleLabel, vec!["0", "1"]));

    let values = load("d.csv", "sentence1,sentence2,score\nx,y,5\nx,z,2.5\n");
    assert_eq!((values.problem, values.labels.outputs()), (Problem::Regression, 1));
    assert_eq!(labels(&values), [Label::Value(5.0), Label::Value(2.5)]);
    assert_eq!(values.report.range, Some((2.5, 5.0)));

    let sets = load(
        "d.json",
        r#"[{"text": "x", "labels": ["b", "a", "b"]}, {"text": "y", "labels": []}, {"text": "z", "labels": "a"}]"#,
    );
    assert_eq!((sets.problem, names(&sets)), (Problem::MultiLabel, vec!["a", "b"]));
    assert_eq!(labels(&sets), [Label::Many(vec![0, 1]), Label::Many(vec![]), Label::Many(vec![0])]);

    let hot =
        load("d.jsonl", "{\"text\": \"x\", \"labels\": [0, 1, 1]}\n{\"text\": \"y\", \"labels\": [0, 0, 0]}");
    assert_eq!(names(&hot), ["0", "1", "2"]);
    assert_eq!(labels(&hot), [Label::Many(vec![1, 2]), Label::Many(vec![])]);
    let indices =
        load("d.jsonl", "{\"text\": \"x\", \"labels\": [0, 1]}\n{\"text\": \"y\", \"labels\": [1, 0]}");
    assert_eq!(labels(&indices), [Label::Many(vec![0, 1]), Label::Many(vec![0, 1])]);

    let options = Options { problem: Some(Problem::MultiLabel), ..Options::default() };
    let table = file("d.csv", "text,label\nx,\"a, b\"\ny,\nz,a|c\n");
    let table = Dataset::load(&table.1, &options).unwrap();
    assert_eq!(labels(&table), [Label::Many(vec![0, 1]), Label::Many(vec![]), Label::Many(vec![0, 2])]);
}

#[test]
fn tagged_words_from_json_and_conll() {
    let json = load("d.jsonl", r#"{"tokens": ["Ada", "ran"], "ner_tags": ["B-PER", "O"]}"#);
    let conll = load("d.conll", "-DOCSTART- -X- O\n\nAda\tNNP\tB-PER\nran\tVBD\tO\n\n");
    let text = load("d.txt", "\nAda B-PER\nran O\n");
    for dataset in [json, conll, text] {
        assert_eq!((dataset.problem, names(&dataset)), (Problem::Tokens, vec!["B-PER", "O"]));
        let example = &dataset.examples[0];
        assert_eq!((example.text.as_str(), example.words.len()), ("Ada ran", 2));
        assert_eq!(example.label, Label::Tags(vec![0, 1]));
    }
    let numbers = r#"{"words": ["a", "b"], "tags": [0, 3]}"#;
    let model = named(&["O", "X", "Y", "Z"]);
    let dataset =
        Dataset::load(&file("d.jsonl", numbers).1, &Options { labels: Some(model), ..Options::default() });
    assert_eq!(dataset.unwrap().examples[0].label, Label::Tags(vec![0, 3]));
}

#[test]
fn wrong_rows_are_named_together() {
    let text = "{\"text\": \"x\", \"labl\": \"a\"}\n\n{\"text\": \" \", \"label\": \"a\"}\n{\"text\": 3, \"label\": 1}\n\
                {\"text\": \"x\", \"label\": null}\n{\"text\": \"x\", \"label\": {}}\n{\"txt\": \"x\"}\n[1]";
    let got = message("d.jsonl", &text[..text.len() - 4], &Options::default());
    let lines: Vec<&str> = got.lines().collect();
    assert!(
        lines[0].starts_with("d.jsonl:1: there is no label among the keys \"labl\", \"text\"; a row needs"),
        "{got}"
    );
    assert!(lines[0].ends_with("Did you mean \"label\" for \"labl\"?"), "{got}");
    assert_eq!(lines[1], "d.jsonl:3: \"text\" is empty");
    assert_eq!(lines[2], "d.jsonl:4: \"text\" is the number 3, not a text");
    assert_eq!(lines[3], "d.jsonl:5: the label is null");
    assert_eq!(lines[4], "d.jsonl:6: \"label\" is an object, not a label");
    assert_eq!(lines[5], "and 1 more rows like these");

    let default = Options::default();
    assert_eq!(message("d.csv", "text,label\nx,\ny,a\n", &default), "d.csv:2: the label is empty");
    assert_eq!(message("d.jsonl", "", &default), "d.jsonl: the file has no rows");
    assert_eq!(
        message("d.csv", "text,label\nx,a\ny,a\n", &default),
        "d.csv: all rows have the label \"a\": there is nothing to tell apart"
    );
    assert_eq!(
        message("d.conll", "a O\nb\n", &default),
        "d.conll:2: one column, \"b\"; a word and its tag were due"
    );
    assert_eq!(
        message("d.jsonl", r#"{"tokens": ["a"], "tags": ["O", "O"]}"#, &default),
        "d.jsonl:1: 1 words and 2 tags"
    );
    let long = format!("{{\"text\": \"x\", \"label\": \"{}\"}}", "y".repeat(300));
    assert!(message("d.jsonl", &long, &default).contains("the label has 300 characters"));
    let regression = Options { problem: Some(Problem::Regression), ..Options::default() };
    assert_eq!(
        message("d.csv", "text,label\nx,1\ny,good\n", &regression),
        "d.csv:3: the label \"good\" is not a number"
    );
    assert!(message("d.csv", "text,label\nx,nan\n", &regression).contains("\"nan\" is not a number"));
    let tokens = Options { problem: Some(Problem::Tokens), ..Options::default() };
    assert!(message("d.csv", "text,label\nx,1\n", &tokens).starts_with("d.csv:2: this row has no words"));
}

#[test]
fn an_unknown_label_is_named_with_the_nearest() {
    let known = Options { labels: Some(named(&["negative", "positive"])), ..Options::default() };
    assert_eq!(
        message("e.csv", "text,label\nx,positive\ny,postive\n", &known),
        "e.csv:3: label \"postive\" is not among the known ones (negative, positive); did you mean \"positive\"?"
    );
    // One class alone is fine where the labels are known.
    let one = Dataset::load(&file("e.csv", "text,label\nx,positive\ny,1\n").1, &known).unwrap();
    assert_eq!(labels(&one), [Label::One(1), Label::One(1)]);
    assert_eq!(one.report.counts, [0, 2]);
}

#[test]
fn the_models_labels_stay_where_the_sets_agree() {
    let found = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|n| (*n).to_string()).collect() };
    let model = named(&["positive", "negative"]);
    assert_eq!(Labels::settle(found(&["negative", "positive"]), Some(&model)), model);
    assert_eq!(Labels::settle(found(&["0", "1"]), Some(&model)), model);
    let other = Labels::settle(found(&["bad", "good"]), Some(&model));
    assert_eq!(other, named(&["bad", "good"]));
    let placeholder = named(&["LABEL_0", "LABEL_1"]);
    assert!(placeholder.is_placeholder() && !model.is_placeholder());
    assert_eq!(Labels::settle(found(&["0", "1"]), Some(&placeholder)), named(&["0", "1"]));
    assert_eq!(Labels::settle(found(&["-1", "10", "2"]), None), named(&["-1", "2", "10"]));
    let map = [("1", "b"), ("0", "a")].map(|(id, name)| (id.to_string(), name.to_string()));
    assert_eq!(Labels::from_id2label(&map.into()), Some(named(&["a", "b"])));
    assert_eq!(Labels::from_id2label(&[("1".to_string(), "b".to_string())].into()), None);
}

#[test]
fn class_weights() {
    assert_eq!(balanced(&[30, 10, 0]), [40.0 / 60.0, 2.0, 1.0]);
    let labels = named(&["a", "b"]);
    let of = |text: &str| ClassWeights::parse(text).and_then(|weights| weights.of(&labels, &[3, 1]));
    assert_eq!(of("even").unwrap(), None);
    assert_eq!(of("balanced").unwrap(), Some(vec![4.0 / 6.0, 2.0]));
    assert_eq!(of("b=2.5").unwrap(), Some(vec![1.0, 2.5]));
    for (text, part) in [
        ("b=x", "\"b=x\" is not name=number"),
        ("b=-1", "from 0 up"),
        ("c=1", "did you mean"),
        ("a=0,b=0", "all of them are 0"),
    ] {
        let got = of(text).unwrap_err().to_string();
        assert!(got.starts_with("class weights: ") && got.contains(part), "{got}");
    }
}

/// 300 rows of three classes (200, 80, 20), every tenth twice.
fn uneven() -> Dataset {
    let mut text = String::from("text,label\n");
    for i in 0..300 {
        let class = if i < 200 {
            "a"
        } else if i < 280 {
            "b"
        } else {
            "c"
        };
        text += &format!("row {i},{class}\n");
        if i % 10 == 0 {
            text += &format!("ROW  {i},{class}\n");
        }
    }
    load("d.csv", &text)
}

#[test]
fn the_split_is_stratified_and_keeps_twins_together() {
    let dataset = uneven();
    let (train, held) = dataset.clone().split_stratified(HELD_OUT, 7).unwrap();
    assert_eq!(train.examples.len() + held.examples.len(), 330);
    for (count, all) in held.report.counts.iter().zip([220.0, 88.0, 22.0]) {
        assert!((*count as f64 - all * 0.1).abs() <= 2.0, "{:?}", held.report.counts);
    }
    let texts = |dataset: &Dataset| -> BTreeSet<u64> { dataset.examples.iter().map(|e| e.content).collect() };
    assert!(texts(&train).is_disjoint(&texts(&held)));

    // The file's order changes nothing; the seed does.
    let mut backwards = dataset.clone();
    backwards.examples.reverse();
    assert_eq!(texts(&backwards.split_stratified(HELD_OUT, 7).unwrap().1), texts(&held));
    assert_ne!(texts(&dataset.clone().split_stratified(HELD_OUT, 8).unwrap().1), texts(&held));

    assert!(dataset.clone().split_stratified(1.0, 0).is_err());
    assert!(dataset.split_stratified(0.0, 0).unwrap().1.examples.is_empty());
    let tiny = load("d.csv", "text,label\nx,a\ny,a\nz,b\n").split_stratified(0.01, 0).unwrap();
    assert_eq!((tiny.0.examples.len(), tiny.1.examples.len()), (2, 1));
    assert_eq!(tiny.1.labels.names.len(), 2, "both sides know all labels");
}

#[test]
fn folds_cover_every_row_once() {
    let dataset = uneven();
    let mut seen = 0;
    for fold in 0..5 {
        let (train, held) = dataset.fold(fold, 5, 1).unwrap();
        assert_eq!(train.examples.len() + held.examples.len(), 330);
        assert!(held.report.counts.iter().zip([44, 17, 4]).all(|(n, about)| n.abs_diff(about) <= 6));
        seen += held.examples.len();
    }
    assert_eq!(seen, 330);
    assert!(dataset.folds(1, 0).is_err() && dataset.folds(301, 0).is_err());
}

#[test]
fn twins_are_counted_and_have_keys_of_their_own() {
    let dataset = load("d.csv", "text,label\nx,a\nx,a\nX,b\ny,b\n");
    let keys: BTreeSet<u64> = dataset.keys().into_iter().collect();
    assert_eq!((keys.len(), dataset.report.duplicates, dataset.report.conflicts), (4, 1, 1));
    let told = dataset.to_string();
    assert!(
        told.starts_with(
            "4 rows, single_label: a 2, b 2\n1 row repeated exactly\n1 text occurs with different labels"
        ),
        "{told}"
    );
}

#[test]
fn texts_alone_are_read_for_prediction() {
    let rows = read_texts(&file("d.txt", "One.\nStill one.\n\nTwo.\n").1).unwrap();
    assert_eq!((rows.len(), rows[0].text.as_str(), rows[1].source.line), (2, "One.\nStill one.", 4));
    let rows = read_texts(&file("d.jsonl", "{\"text\": \"x\"}\n{\"tokens\": [\"a\", \"b\"]}").1).unwrap();
    assert_eq!((&rows[0].label, rows[1].words.len()), (&None, 2));
}

#[test]
fn problems_have_names() {
    for (problem, name) in Problem::NAMES {
        assert_eq!(
            (name.parse::<Problem>().unwrap(), serde_json::to_value(problem).unwrap()),
            (problem, name.into())
        );
    }
    assert_eq!("token-classification".parse::<Problem>().unwrap(), Problem::Tokens);
    assert_eq!("multi_label_classification".parse::<Problem>().unwrap(), Problem::MultiLabel);
    assert!("regresion".parse::<Problem>().unwrap_err().to_string().contains("did you mean \"regression\"?"));
}

/// Bytes overwritten, cut or doubled anywhere: an error or a data set that holds together, never a panic.
#[test]
fn damaged_files_are_refused_or_make_sense() {
    let samples = [
        ("d.jsonl", "{\"text\": \"x\", \"label\": [0, 1.0]}\n{\"text\": \"y\", \"labels\": [1, 0]}\n"),
        ("d.json", r#"[{"premise": "x", "hypothesis": "y", "label": 1e3}, {"text": "z", "label": -0.5}]"#),
        ("d.csv", "text,label\nx,\"a\"\ny,b\nz,a\n"),
        ("d.conll", "Ada\tB-PER\nran\tO\n\nShe O\n"),
        ("d.jsonl", r#"{"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}"#),
    ];
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below.max(1)
    };
    let problems = [None, Some(Problem::MultiLabel), Some(Problem::Regression), Some(Problem::Tokens)];
    let dir = tempfile::tempdir().unwrap();
    let mut read = 0;
    for round in 0..500 {
        let (name, text) = samples[random(samples.len())];
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at..),
                2 if !bytes.is_empty() => bytes[at] = b"\"[]{},:\n\t019.-eO \xff"[random(18)],
                _ => {}
            }
        }
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let options = Options { problem: problems[random(4)], ..Options::default() };
        let Ok(dataset) = Dataset::load(&path, &options) else { continue };
        read += 1;
        for example in &dataset.examples {
            assert!(!example.text.trim().is_empty(), "round {round}");
            let classes = example.label.classes();
            assert!(
                classes.iter().all(|class| (*class as usize) < dataset.labels.names.len()),
                "round {round}"
            );
            if let Label::Tags(tags) = &example.label {
                assert_eq!(tags.len(), example.words.len(), "round {round}");
            }
        }
        let rows = dataset.examples.len();
        let (train, held) = dataset.split_stratified(0.5, round).unwrap();
        assert_eq!(train.examples.len() + held.examples.len(), rows);
    }
    assert!(read > 50, "{read} of 500 could be read");
}
