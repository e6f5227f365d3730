//! A tiny random Whisper against transformers and PEFT (scripts/reference/make_whisper_cases.py): the encoder's rows, logits, loss, gradients,
//! one AdamW step and five losses; text written with caches against the whole pass; PEFT's file names.

mod common;

use std::path::Path;

use common::{Trainer, close, data, load, open};
use retune::methods::{self, full};
use retune::models::{Model, StorageChoice};
use retune::nn::{Active, LanguageModelHead, Pass};
use retune_formats::{TensorSource, safetensors};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::{Gradients, ParamId, Segments, Tape, Tensor, Var};

const TOLERANCE: f32 = 1e-4;

/// Features as rows, and transcripts without their padding.
struct Clips {
    features: Tensor,
    ids: Vec<u32>,
    segments: Segments,
    /// Rows of the padded matrix.
    places: Vec<usize>,
    labels: LossRows,
}

fn i64s(file: &safetensors::File, name: &str) -> Vec<i64> {
    let bytes = file.read(name).expect(name);
    bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
}

impl Clips {
    fn read(folder: &Path) -> Clips {
        let file = open(&folder.join("inputs.safetensors"));
        let shape = file.get("input_features").expect("features").shape.clone();
        let (clips, bands, frames) = (shape[0], shape[1], shape[2]);
        let values = file.read_f32("input_features").expect("features");
        let at = |row: usize, band: usize| values[(row / frames * bands + band) * frames + row % frames];
        let (ids, mask, labels) =
            (i64s(&file, "decoder_input_ids"), i64s(&file, "attention_mask"), i64s(&file, "labels"));
        let padded = ids.len() / clips;
        let places: Vec<usize> = (0..ids.len()).filter(|&i| mask[i] != 0).collect();
        let lengths: Vec<usize> =
            (0..clips).map(|c| places.iter().filter(|&&i| i / padded == c).count()).collect();
        let mut loss = LossRows::default();
        for (row, &place) in places.iter().enumerate().filter(|(_, place)| labels[**place] >= 0) {
            loss.rows.push(row);
            loss.targets.push(labels[place] as u32);
            loss.weights.push(1.0);
        }
        loss.denominator = loss.rows.len() as f32;
        Clips {
            features: Tensor::from_fn(clips * frames, bands, at),
            ids: places.iter().map(|&i| ids[i] as u32).collect(),
            segments: Segments::from_lengths(&lengths),
            places,
            labels: loss,
        }
    }

    /// All of one length.
    fn windows(&self) -> Segments {
        let clips = self.segments.len();
        Segments::from_lengths(&vec![self.features.rows() / clips; clips])
    }

    fn logits_on<'p>(&self, model: &'p Model, tape: &Tape<'p>, pass: &Pass) -> Var {
        let net = model.speech().expect("speech");
        let sound = net.encode(tape, &Var::constant(self.features.clone()), &self.windows(), pass);
        let hidden = net.decode(tape, &sound, &self.ids, &self.segments, pass);
        head(model).forward(tape, &hidden.rows, &hidden.x)
    }

    fn loss_and_gradients(&self, model: &Model, pass: &Pass) -> (f32, Gradients) {
        let tape = Tape::new(&model.params);
        let loss = ops::cross_entropy(&tape, &self.logits_on(model, &tape, pass), &self.labels);
        let value = loss.value().data()[0];
        let mut gradients = Gradients::new();
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        (value, gradients)
    }

    fn check_logits(&self, model: &Model, folder: &Path) {
        let got = model.speech().expect("speech");
        let got = got.logits(&model.params, &self.features, &self.ids, &self.segments).expect("logits");
        let want = open(&folder.join("logits.safetensors")).read_f32("logits").expect("logits");
        let cols = got.cols();
        let want: Vec<f32> =
            self.places.iter().flat_map(|p| want[p * cols..(p + 1) * cols].to_vec()).collect();
        close("logits", got.data(), &want, TOLERANCE);
    }
}

fn head(model: &Model) -> &LanguageModelHead {
    model.net.language_model().expect("a head")
}

fn case(name: &str) -> std::path::PathBuf {
    data("parity").join(name)
}

/// A tensor of a reference's file in the order of our parameter.
fn reference(file: &safetensors::File, model: &Model, id: ParamId, name: &str) -> Vec<f32> {
    let (values, param) = (file.read_f32(name).expect(name), model.params.get(id));
    let size = (param.weight.rows(), param.weight.cols());
    let mut out = vec![0.0; values.len()];
    for (i, value) in values.iter().enumerate() {
        let (row, col) = param.layout.from_file(i, size);
        out[row * size.1 + col] = *value;
    }
    out
}

/// Loss, gradients, a step and five losses. `find` knows the reference's names.
fn check(model: &mut Model, folder: &Path, find: fn(&Model, &str) -> ParamId) {
    let clips = Clips::read(folder);
    clips.check_logits(model, folder);
    let text = std::fs::read_to_string(folder.join("meta.json")).expect("meta");
    let meta: serde_json::Value = serde_json::from_str(&text).expect("json");
    let grads = open(&folder.join("grads.safetensors"));
    for checkpoint in [false, true] {
        let (loss, gradients) = clips.loss_and_gradients(model, &Pass { checkpoint, ..Pass::default() });
        close("loss", &[loss], &[meta["loss"].as_f64().expect("loss") as f32], TOLERANCE);
        for info in grads.tensors() {
            let id = find(model, &info.name);
            let got = gradients.get(id).unwrap_or_else(|| panic!("no gradient for {}", info.name));
            let want = reference(&grads, model, id, &info.name);
            close(&format!("gradient of {}", info.name), got.data(), &want, TOLERANCE);
        }
        let ours: usize = gradients.iter().map(|(_, g)| g.len()).sum();
        assert_eq!(ours as u64, meta["trainable"].as_u64().expect("trainable"), "values with a gradient");
        let norm = meta["grad_global_norm"].as_f64().expect("norm") as f32;
        close("gradient's norm", &[gradients.global_norm() as f32], &[norm], TOLERANCE);
    }
    let mut trainer = Trainer::new();
    for (step, want) in meta["adamw_losses"].as_array().expect("losses").iter().enumerate() {
        let (loss, gradients) = clips.loss_and_gradients(model, &Pass::default());
        close(&format!("loss {step}"), &[loss], &[want.as_f64().expect("loss") as f32], 10.0 * TOLERANCE);
        trainer.update(model, &gradients);
    }
}

/// The encoder's last rows.
fn encoded(model: &Model, clips: &Clips) -> Tensor {
    let tape = Tape::inference(&model.params);
    let x = Var::constant(clips.features.clone());
    let rows = model.speech().expect("speech").encode(&tape, &x, &clips.windows(), &Pass::default());
    rows.x.value().clone()
}

fn base() -> Model {
    load(&case("whisper_base"), StorageChoice::F32)
}

#[test]
fn everything_trained() {
    let (mut model, folder) = (base(), case("whisper_full"));
    let clips = Clips::read(&folder);
    let want = open(&folder.join("encoder.safetensors")).read_f32("rows").expect("rows");
    close("encoder", encoded(&model, &clips).data(), &want, TOLERANCE);
    full::attach(&mut model).expect("full");
    check(&mut model, &folder, |model, name| model.params.find(name).unwrap_or_else(|| panic!("no {name}")));
}

#[test]
fn lora_in_pefts_names() {
    let (mut model, folder) = (base(), case("whisper_lora"));
    let source = methods::Source { path: folder.clone(), weight: 1.0 };
    let attached = methods::load(&mut model, &[source], 0).expect("load");
    let out = tempfile::tempdir().expect("folder");
    attached.write(&model, out.path(), None).expect("write");
    let [ours, theirs] = [out.path(), &folder].map(|dir| open(&dir.join("adapter_model.safetensors")));
    let names = |file: &safetensors::File| {
        file.tensors()
            .iter()
            .map(|t| (t.name.clone(), t.shape.clone()))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&ours), names(&theirs));
    for info in theirs.tensors() {
        assert_eq!(
            ours.read(&info.name).expect("ours"),
            theirs.read(&info.name).expect("theirs"),
            "{}",
            info.name
        );
    }
    check(&mut model, &folder, |model, name| {
        let saved = name.replace(".default.", ".");
        model.params.find(&saved).unwrap_or_else(|| panic!("no {saved}"))
    });
}

/// Written in steps, several texts at once, the logits are those of the whole pass.
#[test]
fn text_is_written_step_by_step() {
    let (model, folder) = (base(), case("whisper_full"));
    let clips = Clips::read(&folder);
    let net = model.speech().expect("speech");
    let (frames, ids) = (clips.features.rows() / 3, &clips.ids[..clips.segments.length(0)]);
    let first = Tensor::from_slice(frames, 80, &clips.features.data()[..frames * 80]);
    let one = Segments::from_lengths(&[ids.len()]);
    let whole = net.logits(&model.params, &first, ids, &one).expect("logits");
    let heard = net.hear(&model.params, first, Active::default());
    let mut text = net.begin(&model.params, &heard, ids.len());
    let logits = net.step(&model.params, &heard, &mut [&mut text], &ids[..3]);
    close("prompt", logits.data(), whole.row(2), 1e-5);
    let mut other = text.fork();
    for (i, id) in ids.iter().enumerate().skip(3) {
        let logits = net.step(&model.params, &heard, &mut [&mut text, &mut other], &[*id, *id]);
        close("one", logits.row(0), whole.row(i), 1e-5);
        close("the fork", logits.row(1), whole.row(i), 1e-5);
    }
    assert!(net.check_ids(&[1; 25]).is_err() && net.check_ids(&[160]).is_err());
}

/// Windows of different lengths in one batch, one of them whole: rows, loss and gradients are those that each has alone.
#[test]
fn windows_of_different_lengths_do_not_see_each_other() {
    let mut model = base();
    full::attach(&mut model).expect("full");
    let clips = Clips::read(&case("whisper_full"));
    let whole = clips.features.rows() / 3;
    let lengths = [whole, 2, 30];
    let features = |clip: usize| {
        let from = clip * whole * 80;
        Tensor::from_slice(lengths[clip], 80, &clips.features.data()[from..from + lengths[clip] * 80])
    };
    let run = |chosen: &[usize]| {
        let parts: Vec<Tensor> = chosen.iter().map(|&clip| features(clip)).collect();
        let data: Vec<f32> = parts.iter().flat_map(|part| part.data().to_vec()).collect();
        let windows: Vec<usize> = chosen.iter().map(|&clip| lengths[clip]).collect();
        let windows = Segments::from_lengths(&windows);
        let tape = Tape::new(&model.params);
        let net = model.speech().expect("speech");
        let x = Var::constant(Tensor::from_vec(windows.rows(), 80, data));
        let sound = net.encode(&tape, &x, &windows, &Pass::default());
        let rows = sound.x.value().clone();
        let texts: Vec<usize> = chosen.iter().map(|&clip| clips.segments.length(clip)).collect();
        let ids: Vec<u32> =
            chosen.iter().flat_map(|&c| clips.ids[clips.segments.range(c)].to_vec()).collect();
        let segments = Segments::from_lengths(&texts);
        let hidden = net.decode(&tape, &sound, &ids, &segments, &Pass::default());
        let labels = LossRows {
            rows: (0..ids.len()).collect(),
            targets: ids.clone(),
            weights: vec![1.0; ids.len()],
            denominator: 10.0,
        };
        let logits = head(&model).forward(&tape, &hidden.rows, &hidden.x);
        let loss = ops::cross_entropy(&tape, &logits, &labels);
        let value = loss.value().data()[0];
        let mut gradients = Gradients::new();
        tape.backward(&loss, Tensor::scalar(1.0), &mut gradients);
        (rows, value, gradients)
    };
    let (rows, loss, gradients) = run(&[0, 1, 2]);
    let alone = [0, 1, 2].map(|clip| run(&[clip]));
    let joined: Vec<f32> = alone.iter().flat_map(|(rows, ..)| rows.data().to_vec()).collect();
    close("rows", rows.data(), &joined, 1e-6);
    // The whole window is that of a batch of whole windows.
    close("whole", &rows.data()[..whole / 2 * 32], &encoded(&model, &clips).data()[..whole / 2 * 32], 1e-6);
    close("loss", &[loss], &[alone.iter().map(|(_, loss, _)| loss).sum()], 1e-5);
    let mut count = 0;
    for (id, gradient) in gradients.iter() {
        let mut sum = Tensor::zeros(gradient.rows(), gradient.cols());
        alone.iter().filter_map(|(.., g)| g.get(id)).for_each(|g| sum.add_assign(g));
        close(&model.params.get(id).name, gradient.data(), sum.data(), 1e-5);
        count += 1;
    }
    assert!(count > 40, "{count} gradients");
}

/// Every method with its defaults (lora: all linears): a step lowers the loss, and at the start nothing is changed but by prefixes.
#[test]
fn every_method_goes_on() {
    let clips = Clips::read(&case("whisper_full"));
    // A prefix takes positions, and these texts fill the table of them.
    for spec in methods::METHODS.iter().filter(|spec| spec.name != "prefix") {
        let mut model = base();
        let plain = clips.loss_and_gradients(&model, &Pass::default()).0;
        let settings = "[lora]\nrank = 4\nlora_dropout = 0\n";
        let text = format!("model = 'm'\ndata = 'd'\nmethod = '{}'\n{settings}", spec.name);
        let text = if spec.name == "lora" { text } else { text.replace(settings, "") };
        let run = retune::run_file::RunFile::from_toml("here", &text)
            .unwrap_or_else(|e| panic!("{}: {e}", spec.name));
        let attached = match (spec.attach)(&mut model, &run) {
            Ok(attached) => attached,
            Err(error) => {
                assert!(["prompt", "head"].contains(&spec.name), "{}: {error}", spec.name);
                continue;
            }
        };
        if spec.name == "lora" {
            let chosen: Vec<&String> = attached.modules.iter().collect();
            assert_eq!(chosen.len(), 34, "every linear but the head: {chosen:?}");
        }
        let (before, gradients) = clips.loss_and_gradients(&model, &Pass::default());
        if spec.name != "prefix" {
            close(spec.name, &[before], &[plain], 1e-5);
        }
        for (id, g) in gradients.iter() {
            let mut step = g.clone();
            step.scale_assign(-0.02);
            model.params.tensor_mut(id).expect("f32").add_assign(&step);
        }
        let after = clips.loss_and_gradients(&model, &Pass::default()).0;
        assert!(after < before, "{}: {before} -> {after}", spec.name);
    }
}

/// PEFT's shapes at a convolution over frames.
#[test]
fn a_convolution_over_frames_has_three_dimensions() {
    let mut model = base();
    let text =
        "model = 'm'\ndata = 'd'\nmethod = 'lora'\n[lora]\nrank = 4\ntarget_modules = ['conv1', 'conv2']\n";
    let run = retune::run_file::RunFile::from_toml("here", text).unwrap_or_else(|e| panic!("{e}"));
    let attached = (methods::find("lora").expect("lora").attach)(&mut model, &run).expect("attach");
    let out = tempfile::tempdir().expect("folder");
    attached.write(&model, out.path(), None).expect("write");
    let file = open(&out.path().join("adapter_model.safetensors"));
    let shape = |name: &str| {
        file.get(&format!("base_model.model.model.encoder.{name}.weight")).expect("tensor").shape.clone()
    };
    assert_eq!([shape("conv1.lora_A"), shape("conv1.lora_B")], [vec![4, 80, 3], vec![32, 4, 1]]);
    assert_eq!(shape("conv2.lora_A"), [4, 32, 3]);
}
