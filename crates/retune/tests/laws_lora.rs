//! The laws that every combination keeps (ARCHITECTURE.md), for every kind of LoRA and for IA³, on every architecture.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::texts::*;
use common::*;
use retune::export::{ExportDtype, ExportOptions, write_folder};
use retune::methods::{self, Attached, Source, ia3, lora};
use retune::models::{Model, StorageChoice};
use retune::nn::{Active, Dropouts, Head, Pass};
use retune_formats::ia3_config::Ia3Config;
use retune_formats::lora_config::{Bias, Init, LoraConfig, Modules};
use retune_tensor::{Gradients, Tensor};

struct Base {
    name: &'static str,
    path: PathBuf,
    storage: StorageChoice,
}

impl Base {
    fn load(&self) -> Model {
        load(&self.path, self.storage)
    }
}

fn bases() -> Vec<Base> {
    let base = |name, path: &str, storage| Base { name, path: data(path), storage };
    vec![
        base("llama", "parity/llama_base_full", StorageChoice::F32),
        base("llama with biases, bf16", "llama_variants/llama_bias", StorageChoice::Bf16),
        base("gguf", "gguf/tiny_mixed.gguf", StorageChoice::AsIs),
        base("bert", "parity/bert_base", StorageChoice::F32),
        base("gpt2", "parity/gpt2_base", StorageChoice::F32),
    ]
}

type Attach = Box<dyn Fn(&mut Model) -> retune::error::Result<Attached>>;

struct Variant {
    name: &'static str,
    attach: Attach,
    /// A part of the base is moved into it: the start is the base's output but for rounding.
    moves: bool,
}

fn all_linear() -> LoraConfig {
    LoraConfig { r: 4, lora_alpha: 8.0, target_modules: Some(Modules::AllLinear), ..LoraConfig::default() }
}

/// The names of the first table, and of the head if its weight is a table's or its own.
fn table_of(model: &Model) -> String {
    let path = &model.net.embeddings()[0].path;
    path.rsplit('.').next().expect("name").to_string()
}

/// Those variants that a base can have.
fn variants(base: &Base) -> Vec<Variant> {
    let model = base.load();
    let biased = model.net.linears().iter().any(|l| l.bias.is_some());
    let all_biased = model.net.trunk_linears().iter().all(|l| l.bias.is_some());
    let (table, is_lm) = (table_of(&model), matches!(model.net.head(), Head::LanguageModel(_)));
    let tied =
        model.net.language_model().is_some_and(|h| h.linear.weight == model.net.embeddings()[0].weight);
    let mut all = Vec::new();
    let mut lora = |name, config: LoraConfig| {
        let moves = config.init_lora_weights.changes_base();
        all.push(Variant { name, moves, attach: Box::new(move |model| lora::attach(model, &config, 1)) });
    };
    let short = all_linear();
    let on = |names: &[&str]| Some(Modules::List(names.iter().map(|n| n.to_string()).collect()));
    lora("plain", short.clone());
    lora("dora", LoraConfig { use_dora: true, lora_dropout: 0.3, ..short.clone() });
    lora(
        "gaussian, rslora",
        LoraConfig {
            init_lora_weights: Init::Named("gaussian".into()),
            use_rslora: true,
            lora_dropout: 0.3,
            ..short.clone()
        },
    );
    lora(
        "pissa",
        LoraConfig { init_lora_weights: Init::Named("pissa".into()), use_rslora: true, ..short.clone() },
    );
    lora(
        "pissa, nearly",
        LoraConfig { init_lora_weights: Init::Named("pissa_niter_4".into()), ..short.clone() },
    );
    lora("olora", LoraConfig { init_lora_weights: Init::Named("olora".into()), ..short.clone() });
    lora("table", LoraConfig { target_modules: on(&[&table]), ..short.clone() });
    lora("table, dora", LoraConfig { target_modules: on(&[&table]), use_dora: true, ..short.clone() });
    lora("table held whole", LoraConfig { modules_to_save: Some(vec![table.clone()]), ..short.clone() });
    if is_lm && base.name != "gpt2" {
        let both = Some(vec![table.clone(), "lm_head".into(), "norm".into()]);
        lora("table and head held whole", LoraConfig { modules_to_save: both.clone(), ..short.clone() });
        lora(
            "both held whole, tied",
            LoraConfig { modules_to_save: both, ensure_weight_tying: true, ..short.clone() },
        );
    }
    if tied {
        lora(
            "table, tied",
            LoraConfig { target_modules: on(&[&table]), ensure_weight_tying: true, ..short.clone() },
        );
    }
    if biased {
        lora("biases of targets", LoraConfig { bias: Bias::LoraOnly, ..short.clone() });
        lora("all biases, dora", LoraConfig { bias: Bias::All, use_dora: true, ..short.clone() });
    }
    if all_biased {
        lora("bias of B", LoraConfig { lora_bias: true, ..short });
    }
    all.push(Variant {
        name: "ia3",
        moves: false,
        attach: Box::new(|model| ia3::attach(model, &Ia3Config::default(), 1)),
    });
    all
}

/// Runs over every base and variant.
fn each(run: impl Fn(&str, &Base, &Variant)) {
    for base in bases() {
        for variant in variants(&base) {
            run(&format!("{}, {}", base.name, variant.name), &base, &variant);
        }
    }
}

fn attached(what: &str, base: &Base, variant: &Variant) -> (Model, Attached) {
    let mut model = base.load();
    let attached = (variant.attach)(&mut model).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(attached.trainable > 0 && !attached.modules.is_empty(), "{what}");
    (model, attached)
}

const LENGTHS: [usize; 4] = [9, 1, 13, 4];

/// Moves every trainable value, so that all of them matter.
fn stir(model: &mut Model) {
    for id in model.params.trainable() {
        let name = model.params.get(id).name.clone();
        let stream = retune_tensor::rng::Stream::named(5, &name);
        let tensor = model.params.tensor_mut(id).expect("trainable parameters are f32");
        for (i, x) in tensor.data_mut().iter_mut().enumerate() {
            *x += 0.05 * stream.normal(i as u64);
        }
    }
}

fn frozen_bits(model: &Model) -> BTreeMap<String, Vec<u32>> {
    let values = |p: &retune_tensor::Param| p.weight.to_tensor().data().iter().map(|x| x.to_bits()).collect();
    model.params.iter().filter(|(_, p)| !p.trainable).map(|(_, p)| (p.name.clone(), values(p))).collect()
}

#[test]
fn nothing_changes_at_the_start() {
    each(|what, base, variant| {
        let model = base.load();
        let texts = Texts::made(&model, &LENGTHS);
        let before = outputs(&model, &texts);
        let (model, _) = attached(what, base, variant);
        let after = outputs(&model, &texts);
        match variant.moves {
            true => close(what, after.data(), before.data(), 2e-5),
            false => assert!(after.data() == before.data(), "{what}"),
        }
    });
}

#[test]
fn only_what_is_declared_changes() {
    each(|what, base, variant| {
        let (mut model, attached) = attached(what, base, variant);
        let frozen = frozen_bits(&model);
        let texts = Texts::made(&model, &LENGTHS);
        let base_before = {
            let pass = Pass { active: Active::Base, ..Pass::default() };
            outputs_by(&model, &texts, &pass)
        };
        let mut trainer = Trainer::new();
        let mut losses = Vec::new();
        for _ in 0..4 {
            let (loss, gradients) = loss_and_grads(&model, &texts, &Pass::default());
            losses.push(loss);
            trainer.update(&mut model, &gradients);
        }
        assert!(losses[3] < losses[0] - 1e-3, "{what}: the loss must fall, {losses:?}");
        assert!(frozen == frozen_bits(&model), "{what}: a frozen value changed");
        let trained: Vec<_> = trainer.moments.keys().copied().collect();
        assert_eq!(
            trained,
            model.params.trainable(),
            "{what}: a gradient for each trainable parameter, no other"
        );
        let in_place = model.params.iter().any(|(_, p)| p.trainable && !p.adapter);
        if !in_place {
            let pass = Pass { active: Active::Base, ..Pass::default() };
            assert!(
                outputs_by(&model, &texts, &pass).data() == base_before.data(),
                "{what}: the base changed"
            );
        }
        assert_eq!(
            attached.trainable,
            trained.iter().map(|id| model.params.get(*id).elements()).sum::<usize>()
        );
    });
}

#[test]
fn saved_loaded_and_merged_is_the_same() {
    each(|what, base, variant| {
        let (mut model, attached) = attached(what, base, variant);
        stir(&mut model);
        let texts = Texts::made(&model, &LENGTHS);
        let want = outputs(&model, &texts);
        let out = tempfile::tempdir().expect("folder");
        attached.write(&model, out.path(), None).unwrap_or_else(|e| panic!("{what}: {e}"));
        let source = Source { path: out.path().to_path_buf(), weight: 1.0 };
        let mut again = base.load();
        let loaded = methods::load(&mut again, &[source], 0).unwrap_or_else(|e| panic!("{what}: {e}"));
        let got = outputs(&again, &texts);
        match variant.moves {
            true => close(what, got.data(), want.data(), 2e-5),
            false => assert!(got.data() == want.data(), "{what}: loaded is not saved"),
        }
        // Training may go on from what was loaded, and it is written as it came.
        assert!(loaded.trainable > 0);
        let twice = tempfile::tempdir().expect("folder");
        loaded.write(&again, twice.path(), None).unwrap_or_else(|e| panic!("{what}: {e}"));
        let bytes = |dir: &tempfile::TempDir, name: &str| std::fs::read(dir.path().join(name)).expect("file");
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            assert!(bytes(&out, name) == bytes(&twice, name), "{what}: {name}");
        }

        if base.name == "gguf" {
            return;
        }
        let merged = out.path().join("merged");
        let options = ExportOptions { dtype: ExportDtype::F32, ..ExportOptions::default() };
        write_folder(&model, &merged, &options).unwrap_or_else(|e| panic!("{what}: {e}"));
        close(what, outputs(&load(&merged, StorageChoice::F32), &texts).data(), want.data(), 3e-5);
    });
}

#[test]
fn packed_is_one_by_one() {
    each(|what, base, variant| {
        let (mut model, _) = attached(what, base, variant);
        stir(&mut model);
        let together = outputs(&model, &Texts::made(&model, &LENGTHS));
        let texts = Texts::made(&model, &LENGTHS);
        let per_row = together.rows() == texts.ids.len();
        let mut row = 0;
        for range in texts.segments().ranges() {
            let one = Texts {
                ids: texts.ids[range.clone()].to_vec(),
                lengths: vec![range.len()],
                ..Texts::default()
            };
            let alone = outputs(&model, &one);
            let rows = if per_row { range.len() } else { 1 };
            let part = &together.data()[row * together.cols()..(row + rows) * together.cols()];
            close(what, alone.data(), part, 1e-5);
            row += rows;
        }
    });
}

/// Gradients of passes over parts of the texts, with the denominator of all, sum to those of one pass: also with
/// dropout, whose masks follow the examples, and with blocks that are run twice.
#[test]
fn accumulation_is_one_batch() {
    each(|what, base, variant| {
        let (mut model, _) = attached(what, base, variant);
        stir(&mut model);
        let whole = Texts::made(&model, &LENGTHS);
        let gradients = |cuts: &[usize]| {
            let mut sum = Gradients::new();
            for cut in cuts.windows(2) {
                let texts = part(&model, &whole, cut[0]..cut[1]);
                let examples = (cut[0]..cut[1]).map(|i| i as u64).collect();
                let dropout = Some(Dropouts { seed: 3, epoch: 1, examples });
                let pass = Pass { dropout, checkpoint: cut[0] == 0, ..Pass::default() };
                for (id, g) in loss_and_grads(&model, &texts, &pass).1.iter() {
                    sum.add(id, g.clone());
                }
            }
            sum
        };
        let (one, parts) = (gradients(&[0, 4]), gradients(&[0, 2, 3, 4]));
        for (id, g) in one.iter() {
            // A key's bias cannot change a softmax: what arrives there is rounding noise.
            let name = &model.params.get(id).name;
            if name.contains("key.") && name.ends_with("bias") {
                continue;
            }
            let zero = Tensor::zeros(g.rows(), g.cols());
            let other = parts.get(id).unwrap_or(&zero);
            close(&format!("{what}: {}", model.params.get(id).name), other.data(), g.data(), 5e-5);
        }
    });
}

/// Some of the texts, with the denominator of all.
fn part(model: &Model, whole: &Texts, examples: std::ops::Range<usize>) -> Texts {
    let segments = whole.segments();
    let (first, last) = (segments.range(examples.start).start, segments.range(examples.end - 1).end);
    let of_texts = matches!(model.net.head(), Head::Classifier(_));
    let (from, to) = if of_texts { (examples.start, examples.end) } else { (first, last) };
    let mut texts = Texts {
        ids: whole.ids[first..last].to_vec(),
        lengths: whole.lengths[examples].to_vec(),
        ..Texts::default()
    };
    for i in (0..whole.labels.rows.len()).filter(|&i| (from..to).contains(&whole.labels.rows[i])) {
        texts.labels.rows.push(whole.labels.rows[i] - from);
        texts.labels.targets.push(whole.labels.targets[i]);
        texts.labels.weights.push(1.0);
    }
    texts.labels.denominator = whole.labels.denominator;
    texts
}

/// Attaching twice draws the same: a run that is stopped before its first checkpoint begins again as it was.
#[test]
fn the_seed_decides() {
    each(|what, base, variant| {
        let start = || {
            let (model, _) = attached(what, base, variant);
            let bits =
                |id| model.params.get(id).weight.to_tensor().data().iter().map(|x| x.to_bits()).collect();
            model.params.trainable().into_iter().map(bits).collect::<Vec<Vec<u32>>>()
        };
        assert!(start() == start(), "{what}");
    });
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let base = &bases()[0];
    let mut model = base.load();
    let mut refused = |config: LoraConfig, words: &str| {
        let message = lora::attach(&mut model, &config, 1).err().expect("an error").to_string();
        assert!(message.contains(words), "{message}");
        assert!(model.adapters.is_empty() && model.params.iter().all(|(_, p)| !p.adapter));
    };
    let named = |name: &str| Init::Named(name.into());
    refused(LoraConfig { lora_bias: true, ..all_linear() }, "has none");
    refused(LoraConfig { lora_bias: true, use_dora: true, ..all_linear() }, "use_dora");
    refused(LoraConfig { init_lora_weights: named("eva"), ..all_linear() }, "\"eva\" is not supported");
    refused(LoraConfig { init_lora_weights: named("pissa"), use_dora: true, ..all_linear() }, "pissa");
    refused(LoraConfig { init_lora_weights: named("olora"), r: 65, ..all_linear() }, "at most 64");
    refused(LoraConfig { r: 5000, ..all_linear() }, "out of range");
    refused(LoraConfig { modules_to_save: Some(vec!["lm_haed".into()]), ..all_linear() }, "lm_haed");

    // What holds modules whole, or is a DoRA, is no sum.
    let source = |name: &str, weight| Source { path: data("parity").join(name), weight };
    let mut load = |sources: &[Source], words: &str| {
        let message = methods::load(&mut model, sources, 0).err().expect("an error").to_string();
        assert!(message.contains(words), "{message}");
    };
    load(&[source("llama_lora_dora", 0.5)], "it is a DoRA");
    load(&[source("llama_lora", 1.0), source("llama_lora_dora", 1.0)], "it is a DoRA");
    load(&[source("llama_ia3", 0.5)], "not linear");
    load(&[source("llama_lora", 1.0), source("llama_ia3", 1.0)], "cannot be added");
}

/// PEFT over a bare trunk leaves the trunk's name out of its keys.
#[test]
fn files_of_a_bare_trunk() {
    let path = data("parity/bert_base");
    let open = |head| Model::load_with(&path, StorageChoice::F32, &head).unwrap_or_else(|e| panic!("{e}"));
    let mut bare = open(retune::models::HeadRequest::None);
    let config = LoraConfig { target_modules: None, ..all_linear() };
    let attached = lora::attach(&mut bare, &config, 1).unwrap_or_else(|e| panic!("{e}"));
    stir(&mut bare);
    let out = tempfile::tempdir().expect("folder");
    attached.write(&bare, out.path(), None).expect("write");
    let file = common::open(&out.path().join("adapter_model.safetensors"));
    let name = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight";
    assert!(retune_formats::TensorSource::find(&file, name).is_some());
    let text = std::fs::read_to_string(out.path().join("adapter_config.json")).expect("config");
    assert!(text.contains("FEATURE_EXTRACTION") && text.contains("\"query\""), "{text}");

    // It fits the trunk of a model with a head, too.
    let mut model = open(retune::models::HeadRequest::AsFile);
    let texts = Texts::made(&model, &LENGTHS);
    let before = outputs(&model, &texts);
    let source = Source { path: out.path().to_path_buf(), weight: 1.0 };
    methods::load(&mut model, &[source], 0).unwrap_or_else(|e| panic!("{e}"));
    assert!(outputs(&model, &texts).data() != before.data());
}

/// An adapter that was saved for a base from which PiSSA took a part: an approximate start is read as the exact one, and said.
#[test]
fn an_approximate_pissa_is_read_as_pissa() {
    let base = &bases()[0];
    let folder = tempfile::tempdir().expect("folder");
    let mut model = base.load();
    let saved = lora::attach(&mut model, &all_linear(), 1).expect("attach");
    stir(&mut model);
    saved.write(&model, folder.path(), None).expect("write");
    let config = folder.path().join("adapter_config.json");
    let plain = std::fs::read_to_string(&config).expect("config");
    let loaded = |init: &str| {
        let text = plain.replace("\"init_lora_weights\": true", &format!("\"init_lora_weights\": {init}"));
        std::fs::write(&config, text).expect("config");
        let mut model = base.load();
        let source = Source { path: folder.path().into(), weight: 1.0 };
        let attached = methods::load(&mut model, &[source], 0).expect("load");
        let texts = Texts::made(&model, &LENGTHS);
        (outputs(&model, &texts), attached.notes)
    };
    let (without, none) = loaded("true");
    let (exact, still_none) = loaded("\"pissa\"");
    let (nearly, notes) = loaded("\"pissa_niter_4\"");
    assert!(exact.data() == nearly.data() && exact.data() != without.data());
    assert!(none.is_empty() && still_none.is_empty());
    assert!(notes.len() == 1 && notes[0].contains("pissa_niter_4"), "{notes:?}");
}
