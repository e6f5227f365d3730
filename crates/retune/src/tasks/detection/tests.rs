//! Against the numbers of pycocotools, torch and Ultralytics in tests/data/detection.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::*;
use retune_tensor::{Grid, Tensor};

fn cases<T: DeserializeOwned>(file: &str) -> Vec<T> {
    let path = format!("{}/../../tests/data/detection/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

type Row = (u32, f32, f32, f32, f32);

fn labelled(rows: &[Row]) -> Vec<LabelledBox> {
    rows.iter().map(|&(class, x, y, w, h)| LabelledBox { class, bounds: BoxF { x, y, w, h } }).collect()
}

fn labels(classes: usize) -> Vec<String> {
    (0..classes).map(|class| format!("class {class}")).collect()
}

#[derive(Deserialize)]
struct MapScene {
    size: (usize, usize),
    truths: Vec<Row>,
    crowds: Vec<Row>,
    detections: Vec<(u32, f32, f32, f32, f32, f32)>,
}

#[derive(Deserialize)]
struct MapCase {
    name: String,
    classes: usize,
    scenes: Vec<MapScene>,
    expected: Expected,
}

#[derive(Deserialize)]
struct Expected {
    map: f64,
    map50: f64,
    map75: f64,
    small: Option<f64>,
    medium: Option<f64>,
    large: Option<f64>,
    recall: f64,
    ap: Vec<Option<f64>>,
    ap50: Vec<Option<f64>>,
}

/// A picture's truths, crowds and detections.
type Boxes = ((usize, usize), Vec<LabelledBox>, Vec<LabelledBox>, Vec<Detection>);

fn boxes(scene: &MapScene) -> Boxes {
    let detection = |&(class, x, y, w, h, score): &(u32, f32, f32, f32, f32, f32)| Detection {
        class,
        score,
        bounds: BoxF { x, y, w, h },
    };
    let detections = scene.detections.iter().map(detection).collect();
    (scene.size, labelled(&scene.truths), labelled(&scene.crowds), detections)
}

fn precisions(classes: usize, scenes: &[Boxes]) -> crate::error::Result<Precisions> {
    let scenes: Vec<Scene> = scenes
        .iter()
        .map(|(size, truths, crowds, detections)| Scene { size: *size, truths, crowds, detections })
        .collect();
    mean_average_precision(&labels(classes), &scenes)
}

#[test]
fn precisions_as_pycocotools() {
    for case in cases::<MapCase>("map.json") {
        let boxes: Vec<Boxes> = case.scenes.iter().map(boxes).collect();
        let found = precisions(case.classes, &boxes).unwrap();
        let want = case.expected;
        let equal = |what: &str, got: Option<f64>, want: Option<f64>| {
            let close = match (got, want) {
                (Some(got), Some(want)) => (got - want).abs() < 1e-9,
                (got, want) => got == want,
            };
            assert!(close, "{}: {what} is {got:?}, not {want:?}", case.name);
        };
        let ap =
            |pick: fn(&ClassPrecision) -> Option<f64>| found.classes.iter().map(pick).collect::<Vec<_>>();
        for (k, (got, want)) in ap(|c| c.ap).into_iter().zip(want.ap).enumerate() {
            equal(&format!("AP of class {k}"), got, want);
        }
        for (k, (got, want)) in ap(|c| c.ap50).into_iter().zip(want.ap50).enumerate() {
            equal(&format!("AP@50 of class {k}"), got, want);
        }
        equal("mAP@50", Some(found.map50), Some(want.map50));
        equal("mAP@75", Some(found.map75), Some(want.map75));
        equal("mAP", Some(found.map), Some(want.map));
        equal("small", found.small, want.small);
        equal("medium", found.medium, want.medium);
        equal("large", found.large, want.large);
        equal("recall", Some(found.recall), Some(want.recall));
    }
}

#[test]
fn the_best_confidence() {
    let at = |x: f32| BoxF { x, y: 0.5, w: 0.1, h: 0.1 };
    let truths: Vec<LabelledBox> =
        [0.1, 0.3, 0.5, 0.7].map(|x| LabelledBox { class: 0, bounds: at(x) }).into();
    let found = [(0.1, 0.9), (0.3, 0.8), (0.9, 0.7), (0.5, 0.6), (0.8, 0.5), (0.95, 0.4)];
    let found: Vec<Detection> =
        found.iter().map(|&(x, score)| Detection { class: 0, score, bounds: at(x) }).collect();
    let result = precisions(2, &[((100, 100), truths.clone(), vec![], found)]).unwrap();
    let best = result.best.unwrap();
    // 3 of 4 detections are right, 3 of 4 truths found: 6 / 8.
    assert_eq!(
        (best.confidence, best.scores.precision, best.scores.recall, best.scores.f1),
        (0.6, 0.75, 0.75, 0.75)
    );
    assert_eq!((result.classes[0].class.predicted, result.classes[0].class.scores), (4, best.scores));
    assert_eq!((result.classes[1].ap, result.classes[1].class.support), (None, 0));

    let nothing = precisions(1, &[((100, 100), truths.clone(), vec![], vec![])]).unwrap();
    assert_eq!((nothing.map, nothing.best), (0.0, None));
    assert!(precisions(1, &[((100, 100), vec![], truths.clone(), vec![])]).is_err(), "crowds alone");
    let text = precisions(0, &[((100, 100), truths, vec![], vec![])]).unwrap_err().to_string();
    assert!(text.contains("picture 1 has a box of class 0"), "{text}");
}

#[derive(Deserialize)]
struct ScaleCase {
    anchors: Vec<(f32, f32)>,
    stride: usize,
    scale_x_y: f32,
    ignore_thresh: f32,
    truth_thresh: f32,
    iou_thresh: f32,
    box_loss: String,
    iou_normalizer: f32,
    cls_normalizer: f32,
    obj_normalizer: f32,
    label_smoothing: f32,
}

impl ScaleCase {
    fn settings(&self) -> AnchorScale {
        AnchorScale {
            anchors: self.anchors.clone(),
            scale_x_y: self.scale_x_y,
            ignore_thresh: self.ignore_thresh,
            truth_thresh: self.truth_thresh,
            iou_thresh: self.iou_thresh,
            box_loss: match self.box_loss.as_str() {
                "mse" => BoxLoss::Mse,
                "giou" => BoxLoss::Giou,
                "ciou" => BoxLoss::Ciou,
                other => panic!("{other}"),
            },
            iou_normalizer: self.iou_normalizer,
            cls_normalizer: self.cls_normalizer,
            obj_normalizer: self.obj_normalizer,
            label_smoothing: self.label_smoothing,
        }
    }
}

#[derive(Deserialize)]
struct LossCase {
    name: String,
    input: (usize, usize),
    classes: usize,
    #[serde(default)]
    scales: Vec<ScaleCase>,
    #[serde(default)]
    reg_max: usize,
    #[serde(default)]
    strides: Vec<usize>,
    truths: Vec<Vec<Row>>,
    outputs: Vec<Vec<f32>>,
    parts: std::collections::BTreeMap<String, f64>,
    gradients: Vec<Vec<f32>>,
}

/// What a case's loss is computed of.
struct Setting {
    detector: Detector,
    truths: Vec<Vec<LabelledBox>>,
    strides: Vec<usize>,
    values: Vec<Tensor>,
}

impl Setting {
    fn of(case: &LossCase) -> Setting {
        let generation = match case.reg_max {
            0 => Generation::Anchors { scales: case.scales.iter().map(ScaleCase::settings).collect() },
            reg_max => Generation::Free { reg_max },
        };
        let strides = match case.reg_max {
            0 => case.scales.iter().map(|scale| scale.stride).collect(),
            _ => case.strides.clone(),
        };
        let detector = Detector { labels: labels(case.classes), generation, input: case.input };
        let tensor = |(i, values): (usize, &Vec<f32>)| {
            let columns = detector.columns(i);
            Tensor::from_slice(values.len() / columns, columns, values)
        };
        let values = case.outputs.iter().enumerate().map(tensor).collect();
        Setting { truths: case.truths.iter().map(|rows| labelled(rows)).collect(), values, strides, detector }
    }

    /// The loss of some pictures.
    fn loss_of(&self, images: std::ops::Range<usize>, values: &[Tensor], denominator: f64) -> LossParts {
        let (height, width) = self.detector.input;
        let mut cut = Vec::new();
        let mut grids = Vec::new();
        for (values, stride) in values.iter().zip(&self.strides) {
            let grid = Grid { images: images.len(), height: height / stride, width: width / stride };
            let rows = grid.pixels() * images.start..grid.pixels() * images.end;
            let part = &values.data()[rows.start * values.cols()..rows.end * values.cols()];
            cut.push(Tensor::from_slice(grid.rows(), values.cols(), part));
            grids.push(grid);
        }
        let output = |((values, grid), stride)| Output { values, grid, stride };
        let outputs: Vec<Output> =
            cut.iter().zip(grids).zip(self.strides.iter().copied()).map(output).collect();
        loss(&self.detector, &outputs, &self.truths[images], denominator).unwrap()
    }

    fn loss(&self) -> LossParts {
        self.loss_of(0..self.truths.len(), &self.values, 1.0)
    }
}

fn check_against_reference(file: &str) {
    for case in cases::<LossCase>(file) {
        let found = Setting::of(&case).loss();
        assert_eq!(found.parts.len(), case.parts.len());
        for (name, part) in &found.parts {
            let want = case.parts[*name];
            let off = (part - want).abs() / want.abs().max(1.0);
            assert!(off < 1e-5, "{}: {name} is {part}, not {want}", case.name);
        }
        let total: f64 = case.parts.values().sum();
        assert!((found.total - total).abs() < 1e-5 * total.max(1.0));
        for (i, (got, want)) in found.gradients.iter().zip(&case.gradients).enumerate() {
            assert_eq!(got.len(), want.len());
            let largest = want.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            for (at, (g, w)) in got.data().iter().zip(want).enumerate() {
                let (row, column) = (at / got.cols(), at % got.cols());
                assert!(
                    (g - w).abs() < 1e-5 * largest,
                    "{}: output {i}, row {row}, column {column}: {g}, not {w}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn the_loss_with_anchors_as_torch() {
    check_against_reference("anchor_loss.json");
}

#[test]
fn the_loss_without_anchors_as_ultralytics() {
    check_against_reference("free_loss.json");
}

/// CIoU's alpha is held constant, so that its derivative is no derivative of the value; `overlap` tests it.
#[test]
fn finite_differences_with_anchors() {
    for case in cases::<LossCase>("anchor_loss.json").iter().filter(|case| !case.name.starts_with("v4")) {
        let setting = Setting::of(case);
        let gradients = setting.loss().gradients;
        let h = 1e-3f32;
        for (i, gradient) in gradients.iter().enumerate() {
            let largest = gradient.data().iter().fold(0.0f32, |m, g| m.max(g.abs()));
            for at in (0..gradient.len()).step_by(7) {
                let moved = |by: f32| {
                    let mut values = setting.values.clone();
                    values[i].data_mut()[at] += by;
                    setting.loss_of(0..setting.truths.len(), &values, 1.0).total
                };
                let numeric = ((moved(h) - moved(-h)) / f64::from(2.0 * h)) as f32;
                let off = (numeric - gradient.data()[at]).abs();
                assert!(off < 1e-3 * largest, "{}: output {i}, {at}: off by {off}", case.name);
            }
        }
    }
}

#[test]
fn pictures_one_by_one_are_the_batch() {
    for case in cases::<LossCase>("anchor_loss.json") {
        let setting = Setting::of(&case);
        let n = setting.truths.len();
        let whole = setting.loss_of(0..n, &setting.values, 4.0);
        let single: f64 = (0..n).map(|i| setting.loss_of(i..i + 1, &setting.values, 4.0).total).sum();
        assert!((whole.total - single).abs() < 1e-12 * single);
        assert!((whole.total - setting.loss().total / 4.0).abs() < 1e-12 * single);
        let last = setting.loss_of(n - 1..n, &setting.values, 4.0);
        for (whole, last) in whole.gradients.iter().zip(&last.gradients) {
            assert_eq!(&whole.data()[whole.len() - last.len()..], last.data());
        }
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let all = cases::<LossCase>("anchor_loss.json").into_iter().chain(cases("free_loss.json"));
    for setting in all.map(|case| Setting::of(&case)) {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| setting.loss());
            (found.total.to_bits(), found.gradients.iter().map(|g| g.data().to_vec()).collect::<Vec<_>>())
        };
        assert_eq!(on(1), on(3));
    }
}

#[test]
fn wrong_truths_are_refused() {
    let case = cases::<LossCase>("free_loss.json").remove(0);
    let mut setting = Setting::of(&case);
    let grid = Grid { images: 2, height: 1, width: 1 };
    let values = Tensor::zeros(2, setting.detector.columns(0));
    let outputs = [Output { values: &values, grid, stride: 64 }];
    let mut refused = |truths: Vec<Vec<LabelledBox>>| {
        setting.truths = truths;
        loss(&setting.detector, &outputs, &setting.truths, 1.0).unwrap_err().to_string()
    };
    let one =
        |class, w| vec![vec![], vec![LabelledBox { class, bounds: BoxF { x: 0.5, y: 0.5, w, h: 0.5 } }]];
    assert!(refused(vec![vec![]]).contains("2 pictures, but boxes for 1"));
    assert!(refused(one(3, 0.5)).contains("box 1 of picture 2 of the batch has class 3; there are 3"));
    assert!(refused(one(0, 0.0)).contains("has no area"));
    assert!(refused(one(0, f32::NAN)).contains("has no area"));
}

/// What a network gives that has diverged: no panic, and nobody may take the loss for one.
#[test]
fn outputs_that_are_not_finite() {
    for case in cases::<LossCase>("anchor_loss.json").into_iter().chain(cases("free_loss.json")) {
        let setting = Setting::of(&case);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let all: Vec<Tensor> =
                setting.values.iter().map(|v| Tensor::from_fn(v.rows(), v.cols(), |_, _| bad)).collect();
            let found = setting.loss_of(0..setting.truths.len(), &all, 1.0);
            assert!(!found.total.is_finite(), "{}: {bad} gives {}", case.name, found.total);
        }
    }
}
