//! The memory plan against what tensors really hold, on models of random weights. One test: the count is the process's.

use std::path::Path;

use retune::methods::{Cost, full, lora};
use retune::models::{Model, StorageChoice, TextInput, TextModel};
use retune::nn::{Dropouts, Head, Pass};
use retune::train::plan::plan;
use retune::train::{
    ActivationProfile, Checkpointing, Control, Error, Event, MemoryLimit, Objective, ObjectiveError,
    PlanRequest, TrainSettings, train,
};
use retune_formats::lora_config::{LoraConfig, Modules};
use retune_formats::{TensorOut, safetensors};
use retune_tensor::ops::{self, LossRows};
use retune_tensor::rng::Stream;
use retune_tensor::{Segments, Tape, Var, memory};

const VOCAB: usize = 3000;

/// Writes a model folder; widths are odd enough to meet the size classes.
fn write_model(folder: &Path, hidden: usize, ff: usize, layers: usize, heads: (usize, usize)) {
    let head_dim = hidden / heads.0;
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": ff,
        "num_hidden_layers": layers, "num_attention_heads": heads.0, "num_key_value_heads": heads.1,
        "head_dim": head_dim, "vocab_size": VOCAB, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu",
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    let mut add = |name: String, rows: usize, cols: usize| {
        let (stream, n) = (Stream::named(1, &name), rows * cols);
        let values: Vec<f32> = (0..n)
            .map(|i| if rows == 1 { 1.0 } else { stream.normal(i as u64) / (cols as f32).sqrt() })
            .collect();
        let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        tensors.push(TensorOut::f32(name, &shape, values));
    };
    add("model.embed_tokens.weight".into(), VOCAB, hidden);
    add("model.norm.weight".into(), 1, hidden);
    for layer in 0..layers {
        let mut at = |name: &str, rows, cols| add(format!("model.layers.{layer}.{name}.weight"), rows, cols);
        at("input_layernorm", 1, hidden);
        at("post_attention_layernorm", 1, hidden);
        at("self_attn.q_proj", hidden, hidden);
        at("self_attn.k_proj", heads.1 * head_dim, hidden);
        at("self_attn.v_proj", heads.1 * head_dim, hidden);
        at("self_attn.o_proj", hidden, hidden);
        at("mlp.gate_proj", ff, hidden);
        at("mlp.up_proj", ff, hidden);
        at("mlp.down_proj", hidden, ff);
    }
    safetensors::write(&folder.join("model.safetensors"), tensors, &[("format", "pt")]).unwrap();
}

/// Writes a new BERT with a classifier, or a GPT-2.
fn write_fresh(folder: &Path, arch: &str, (hidden, ff, layers, heads): Shape) {
    let config = match arch {
        "bert" => serde_json::json!({
            "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": hidden,
            "intermediate_size": ff, "num_hidden_layers": layers, "num_attention_heads": heads.0, "vocab_size": VOCAB,
        }),
        _ => serde_json::json!({
            "model_type": "gpt2", "n_embd": hidden, "n_inner": ff, "n_layer": layers, "n_head": heads.0,
            "vocab_size": VOCAB,
        }),
    };
    retune::models::fresh::write_folder(Path::new("config.json"), &config, 1, &[], folder).unwrap();
}

/// Hidden size, inner size, layers, heads and key/value heads.
type Shape = (usize, usize, usize, (usize, usize));

struct Texts<'a> {
    net: &'a dyn TextModel,
    lengths: &'a [usize],
    checkpoint: bool,
}

impl Objective for Texts<'_> {
    fn len(&self) -> usize {
        self.lengths.len()
    }

    fn rows(&self, example: usize) -> usize {
        self.lengths[example]
    }

    fn targets(&self, example: usize) -> usize {
        if self.net.info().decoder { self.lengths[example] - 1 } else { 1 }
    }

    fn weight(&self, example: usize) -> f64 {
        self.targets(example) as f64
    }

    fn describe(&self, example: usize) -> String {
        format!("text {example}")
    }

    fn loss<'p>(
        &'p self,
        tape: &Tape<'p>,
        batch: &[usize],
        epoch: u64,
        denominator: f64,
    ) -> Result<Var, ObjectiveError> {
        let lengths: Vec<usize> = batch.iter().map(|&e| self.lengths[e]).collect();
        let segments = Segments::from_lengths(&lengths);
        let ids: Vec<u32> =
            (0..segments.rows()).map(|i| Stream::new(3, 4).below(i as u64, VOCAB) as u32).collect();
        let rows: Vec<usize> = segments.ranges().flat_map(|r| r.start..r.end - 1).collect();
        let labels = LossRows {
            targets: rows.iter().map(|r| ids[r + 1]).collect(),
            weights: vec![1.0; rows.len()],
            rows,
            denominator: denominator as f32,
        };
        let examples = batch.iter().map(|&e| e as u64).collect();
        let dropout = tape.is_recording().then_some(Dropouts { seed: 1, epoch, examples });
        let pass = Pass { dropout, checkpoint: self.checkpoint, ..Pass::default() };
        let hidden = self.net.hidden(tape, &TextInput::new(&ids, &segments), &pass);
        if let Head::Classifier(head) = self.net.head() {
            let rows: Vec<usize> = (0..batch.len()).collect();
            let (targets, weights) = (vec![1; batch.len()], vec![1.0; batch.len()]);
            let labels = LossRows { rows, targets, weights, denominator: labels.denominator };
            return Ok(ops::cross_entropy(tape, &head.forward(tape, &hidden), &labels));
        }
        let head = &self.net.language_model().expect("a language model").linear;
        Ok(ops::linear_cross_entropy(tape, &hidden.x, &tape.weight(head.weight), &labels))
    }
}

struct Case {
    arch: &'static str,
    shape: Shape,
    /// 0: everything is trained.
    rank: usize,
    dropout: f64,
    batch: usize,
    passes: usize,
    lengths: &'static [usize],
    checkpointing: Checkpointing,
}

/// `(predicted, measured)` bytes of two steps of a case.
fn predicted_and_measured(case: &Case) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let (hidden, ff, layers, heads) = case.shape;
    match case.arch {
        "llama" => write_model(dir.path(), hidden, ff, layers, heads),
        arch => write_fresh(dir.path(), arch, case.shape),
    }
    let mut model = Model::load(dir.path(), StorageChoice::F32).unwrap();
    let config = LoraConfig {
        r: case.rank,
        lora_dropout: case.dropout,
        target_modules: Some(Modules::AllLinear),
        ..LoraConfig::default()
    };
    let attached = match case.rank {
        0 => full::attach(&mut model).unwrap(),
        _ => lora::attach(&mut model, &config, 1).unwrap(),
    };
    let settings = TrainSettings {
        steps: Some(2),
        batch_size: case.batch,
        gradient_accumulation: case.passes,
        ..TrainSettings::default()
    };
    let (base_bytes, trainable_bytes) = PlanRequest::weights(&model.params);
    let profile = ActivationProfile::of(&model, attached.cost);
    let texts = |checkpoint| Texts { net: model.net.as_ref(), lengths: case.lengths, checkpoint };
    let objective = texts(case.checkpointing == Checkpointing::On);
    let request = PlanRequest {
        base_bytes,
        trainable_bytes,
        profile,
        objective: &objective,
        eval: Some(&objective),
        settings: &settings,
        checkpointing: case.checkpointing,
        limit: None,
    };
    let plan = plan(&request).unwrap();
    memory::trim();
    memory::reset_peak();
    let mut peak = 0;
    let mut note = |event| {
        if let Event::Finished { peak_bytes, .. } = event {
            peak = peak_bytes;
        }
        Control::Continue
    };
    train(&mut model.params, &objective, Some(&objective), &settings, None, &mut note).unwrap();
    (plan.total_bytes, peak)
}

#[test]
fn the_plan_is_right_to_a_fifth_and_never_too_low() {
    use Checkpointing::{Off, On};
    let small = (192, 512, 6, (3, 1));
    let wide = (256, 700, 3, (4, 4));
    let long: &[usize] = &[300, 200, 250, 300, 120, 90, 310, 280];
    let short: &[usize] = &[40, 60, 20, 33, 47, 12, 70, 80];
    let case = |shape, rank, dropout, batch, passes, lengths, checkpointing| Case {
        arch: "llama",
        shape,
        rank,
        dropout,
        batch,
        passes,
        lengths,
        checkpointing,
    };
    let cases = [
        case(small, 8, 0.0, 4, 1, long, Off),
        case(small, 8, 0.0, 4, 1, long, On),
        case(small, 16, 0.1, 2, 2, long, Off),
        case(small, 16, 0.1, 8, 1, long, On),
        case(wide, 4, 0.0, 8, 1, long, Off),
        case(wide, 64, 0.0, 1, 4, long, On),
        case(wide, 16, 0.0, 4, 2, short, Off),
        case(small, 16, 0.0, 8, 1, short, On),
        case(small, 0, 0.0, 4, 2, short, Off),
        Case { arch: "bert", ..case(wide, 8, 0.0, 4, 1, long, Off) },
        Case { arch: "bert", ..case(small, 8, 0.1, 8, 1, long, On) },
        Case { arch: "bert", ..case(small, 0, 0.0, 4, 2, short, Off) },
        Case { arch: "bert", ..case(wide, 0, 0.0, 2, 2, long, Off) },
        Case { arch: "gpt2", ..case(wide, 8, 0.0, 4, 1, long, Off) },
        Case { arch: "gpt2", ..case(small, 8, 0.1, 8, 1, long, On) },
        Case { arch: "gpt2", ..case(small, 0, 0.0, 8, 1, short, Off) },
    ];
    let mut wrong = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let (predicted, measured) = predicted_and_measured(case);
        let share = measured as f64 / predicted as f64;
        eprintln!("case {i}: predicted {predicted}, measured {measured}: {share:.3}");
        if !(0.8..=1.0).contains(&share) {
            wrong.push((i, share));
        }
    }
    assert!(wrong.is_empty(), "measured / predicted: {wrong:?}");
    refusals_name_the_nearest_setting(&cases[0]);
}

fn refusals_name_the_nearest_setting(case: &Case) {
    let dir = tempfile::tempdir().unwrap();
    let (hidden, ff, layers, heads) = case.shape;
    write_model(dir.path(), hidden, ff, layers, heads);
    let model = Model::load(dir.path(), StorageChoice::F32).unwrap();
    let objective = Texts { net: model.net.as_ref(), lengths: case.lengths, checkpoint: false };
    let settings = TrainSettings { batch_size: 8, ..TrainSettings::default() };
    let of = |checkpointing, bytes| {
        let limit = MemoryLimit { bytes, source: "`memory_limit`".into() };
        let (base_bytes, trainable_bytes) = PlanRequest::weights(&model.params);
        plan(&PlanRequest {
            base_bytes,
            trainable_bytes,
            profile: ActivationProfile::of(&model, Cost::default()),
            objective: &objective,
            eval: None,
            settings: &settings,
            checkpointing,
            limit: Some(&limit),
        })
    };
    let free = of(Checkpointing::Auto, u64::MAX).unwrap();
    assert!(!free.checkpointing);
    let tight = of(Checkpointing::Auto, free.total_bytes - 1).unwrap();
    assert!(tight.checkpointing && tight.total_bytes < free.total_bytes);
    let message = |result: Result<_, Error>| match result {
        Err(Error::DoesNotFit(e)) => e.to_string(),
        other => panic!("{other:?}"),
    };
    let off = message(of(Checkpointing::Off, free.total_bytes - 1));
    assert!(off.contains("`checkpointing = \"on\"`") && off.contains("`memory_limit`"), "{off}");
    let smaller = message(of(Checkpointing::Auto, tight.total_bytes - 1));
    assert!(smaller.contains("`batch_size = 4` with `gradient_accumulation = 2`"), "{smaller}");
    let never = message(of(Checkpointing::Auto, 1000));
    assert!(never.contains("even `batch_size = 1`") && never.contains("weights"), "{never}");
}
