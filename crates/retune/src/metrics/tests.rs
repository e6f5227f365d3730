//! Against the numbers of scikit-learn, SciPy and seqeval in tests/data/metrics.json.

use super::*;
use serde_json::Value;

const CLOSE: f64 = 1e-12;

fn cases(kind: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/metrics.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all[kind].as_array().unwrap().clone()
}

fn read<T: serde::de::DeserializeOwned>(case: &Value, key: &str) -> T {
    serde_json::from_value(case[key].clone()).unwrap_or_else(|e| panic!("{key} of {case}: {e}"))
}

fn close(case: &Value, what: &str, got: f64, want: f64) {
    assert!((got - want).abs() <= CLOSE, "{}: {what} is {got}, not {want}", case["name"]);
}

fn check(case: &Value, key: &str, got: Option<f64>) {
    match (case[key].as_f64(), got) {
        (None, None) => {}
        (Some(want), Some(got)) => close(case, key, got, want),
        (want, got) => panic!("{}: {key} is {got:?}, not {want:?}", case["name"]),
    }
}

fn check_scores(case: &Value, want: &Value, got: Scores) {
    for (key, got) in [("precision", got.precision), ("recall", got.recall), ("f1", got.f1)] {
        close(case, key, got, want[key].as_f64().unwrap());
    }
}

fn check_averages(case: &Value, metrics: &Metrics) {
    let averages = metrics.averages.unwrap();
    check_scores(case, &case["micro"], averages.micro);
    check_scores(case, &case["macro"], averages.macro_);
    check_scores(case, &case["weighted"], averages.weighted);
}

fn names(case: &Value) -> Vec<String> {
    (0..case["classes"].as_u64().unwrap()).map(|i| format!("class {i}")).collect()
}

fn check_per_class(case: &Value, metrics: &Metrics) {
    let want = case["per_class"].as_array().unwrap();
    assert_eq!(want.len(), metrics.classes.len());
    for (want, got) in want.iter().zip(&metrics.classes) {
        check_scores(case, want, got.scores);
        assert_eq!(want["support"], got.support);
    }
}

#[test]
fn classes_as_scikit_learn() {
    for case in cases("classes") {
        let (truth, predicted): (Vec<u32>, Vec<u32>) = (read(&case, "truth"), read(&case, "predicted"));
        let metrics = Metrics::of_classes(&names(&case), &truth, &predicted).unwrap();
        check(&case, "accuracy", metrics.accuracy);
        check(&case, "matthews", metrics.matthews);
        assert_eq!(metrics.confusion, read::<Vec<Vec<u64>>>(&case, "confusion"));
        check_per_class(&case, &metrics);
        check_averages(&case, &metrics);
    }
}

#[test]
fn label_sets_as_scikit_learn() {
    for case in cases("label_sets") {
        let (truth, predicted): (Vec<Vec<u32>>, Vec<Vec<u32>>) =
            (read(&case, "truth"), read(&case, "predicted"));
        let metrics = Metrics::of_label_sets(&names(&case), &truth, &predicted).unwrap();
        check(&case, "accuracy", metrics.accuracy);
        check_per_class(&case, &metrics);
        check_averages(&case, &metrics);
        assert_eq!(metrics.get(Metric::F1), Some(metrics.averages.unwrap().micro.f1));
    }
}

#[test]
fn numbers_as_scipy() {
    for case in cases("numbers") {
        let (truth, predicted): (Vec<f32>, Vec<f32>) = (read(&case, "truth"), read(&case, "predicted"));
        let metrics = Metrics::of_numbers(&truth, &predicted).unwrap();
        for (key, got) in [("mse", metrics.mse), ("mae", metrics.mae), ("r2", metrics.r2)] {
            check(&case, key, got);
        }
        check(&case, "pearson", metrics.pearson);
        check(&case, "spearman", metrics.spearman);
    }
    assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
}

#[test]
fn tags_as_seqeval() {
    for case in cases("tags") {
        let (truth, predicted): (Vec<Vec<String>>, Vec<Vec<String>>) =
            (read(&case, "truth"), read(&case, "predicted"));
        let mut names: Vec<String> = truth.concat();
        names.extend(predicted.concat());
        names.sort();
        names.dedup();
        let ids = |rows: &[Vec<String>]| -> Vec<Vec<u32>> {
            let id = |tag: &String| names.binary_search(tag).unwrap() as u32;
            rows.iter().map(|row| row.iter().map(id).collect()).collect()
        };
        let metrics = Metrics::of_tags(&names, &ids(&truth), &ids(&predicted)).unwrap();
        check(&case, "accuracy", metrics.accuracy);
        check_averages(&case, &metrics);
        assert_eq!(case["kinds"].as_object().unwrap().len(), metrics.classes.len());
        for class in &metrics.classes {
            let want = &case["kinds"][&class.name];
            check_scores(&case, want, class.scores);
            assert_eq!(want["support"], class.support);
        }
    }
    let tags = ["NOUN", "VERB"].map(String::from);
    assert!(!is_span_scheme(&tags), "parts of speech are no spans");
    let metrics = Metrics::of_tags(&tags, &[vec![0, 1]], &[vec![0, 0]]).unwrap();
    assert_eq!((metrics.classes[1].name.as_str(), metrics.classes[1].support), ("VERB", 1));
}

#[test]
fn intervals_as_scipy() {
    for case in cases("wilson") {
        let interval = wilson(case["hits"].as_u64().unwrap(), case["n"].as_u64().unwrap());
        check(&case, "low", Some(interval.low));
        check(&case, "high", Some(interval.high));
    }
    for case in cases("folds") {
        let (mean, interval) = t_interval(&read::<Vec<f64>>(&case, "values")).unwrap();
        check(&case, "mean", Some(mean));
        for (key, got) in [("low", interval.low), ("high", interval.high)] {
            let want = case[key].as_f64().unwrap();
            assert!((got - want).abs() < 1e-8, "{key} is {got}, not {want}");
        }
    }
    assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    assert_eq!(t_interval(&[0.9]), None);
}

#[test]
fn metrics_have_names() {
    for metric in [Metric::MacroF1, Metric::Loss, Metric::R2] {
        assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
        assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
    }
    assert_eq!("Macro-F1".parse::<Metric>().unwrap(), Metric::MacroF1);
    let typo = "acuracy".parse::<Metric>().unwrap_err().to_string();
    assert!(
        typo.starts_with("there is no metric \"acuracy\"; did you mean \"accuracy\"? There are loss,"),
        "{typo}"
    );
    assert!(Metric::F1.better(0.9, 0.8) && Metric::Loss.better(0.1, 0.2));
    assert!(!Metric::F1.better(f64::NAN, 0.8) && Metric::F1.better(0.1, f64::NAN));
    let wrong = Metric::Spearman.check(Problem::SingleLabel).unwrap_err().to_string();
    assert_eq!(
        wrong,
        "spearman is no metric of single_label; it has accuracy, f1, precision, recall, macro_f1, micro_f1, weighted_f1, matthews, loss"
    );
}

/// One box of the second class, found among others.
fn of_a_box(names: &[String]) -> Metrics {
    use crate::tasks::detection::{BoxF, Detection, LabelledBox, Scene, mean_average_precision};
    let bounds = BoxF { x: 0.5, y: 0.5, w: 0.5, h: 0.5 };
    let (truths, elsewhere) = ([LabelledBox { class: 1, bounds }], BoxF { x: 0.1, ..bounds });
    let detections = [(1, 0.9, bounds), (0, 0.8, elsewhere)].map(|(class, score, bounds)| Detection {
        class,
        score,
        bounds,
    });
    let scene = Scene { size: (64, 64), truths: &truths, crowds: &[], detections: &detections };
    Metrics::of_detections(mean_average_precision(names, &[scene]).unwrap(), 1)
}

#[test]
fn boxes_have_their_own_metrics() {
    let metrics = of_a_box(&["a", "b"].map(String::from));
    for metric in [Metric::Map50, Metric::Map] {
        assert!((metrics.get(metric).unwrap() - 1.0).abs() < CLOSE);
    }
    assert_eq!(metrics.get(Metric::F1), Some(1.0), "at the best confidence, .9");
    assert_eq!(metrics.get(Metric::Accuracy), None);
    assert_eq!(metrics.known()[0], Metric::Map50);
    assert_eq!((metrics.classes[1].support, metrics.classes[0].predicted), (1, 0));
    assert_eq!("mAP@50-95".parse::<Metric>().unwrap(), Metric::Map);
    assert_eq!("mAP50".parse::<Metric>().unwrap(), Metric::Map50);
    assert!(Metric::Map.higher_is_better());
}

#[test]
fn every_metric_of_a_problem_has_a_value() {
    let names = ["a", "b"].map(String::from);
    let all = [
        Metrics::of_classes(&names, &[0, 1], &[0, 1]).unwrap(),
        Metrics::of_label_sets(&names, &[vec![0]], &[vec![0, 1]]).unwrap(),
        Metrics::of_numbers(&[1.0, 2.0], &[1.0, 3.0]).unwrap(),
        Metrics::of_tags(&names, &[vec![0, 1]], &[vec![0, 1]]).unwrap(),
        of_a_box(&names),
    ];
    for metrics in all.map(|m| m.with_loss(0.5)) {
        for metric in metrics.known() {
            assert!(metrics.get(*metric).is_some(), "{metric} of {}", metrics.problem);
        }
        let text = serde_json::to_string(&metrics).unwrap();
        assert_eq!(serde_json::from_str::<Metrics>(&text).unwrap(), metrics);
    }
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let names = ["a", "b"].map(String::from);
    let message = |result: Result<Metrics>| result.unwrap_err().to_string();
    assert_eq!(message(Metrics::of_classes(&names, &[], &[])), "there are no examples to score");
    assert_eq!(message(Metrics::of_classes(&names, &[0], &[0, 1])), "1 examples and 2 predictions");
    assert_eq!(
        message(Metrics::of_classes(&names, &[0, 1], &[0, 2])),
        "the prediction of row 2 is class 2, there are 2"
    );
    assert!(message(Metrics::of_label_sets(&names, &[vec![9]], &[vec![]])).contains("class 9"));
    assert!(message(Metrics::of_numbers(&[0.0, 1.0], &[0.0, f32::NAN])).contains("row 2 is NaN"));
    assert!(
        message(Metrics::of_tags(&names, &[vec![0]], &[vec![0, 1]])).contains("1 tags and 2 predictions")
    );
}

#[test]
fn many_classes_have_no_matrix() {
    let names: Vec<String> = (0..500).map(|i| i.to_string()).collect();
    let metrics = Metrics::of_classes(&names, &[499, 0], &[499, 1]).unwrap();
    assert!(metrics.confusion.is_empty() && metrics.accuracy == Some(0.5));
}
