//! The table of settings: name, flag, kind, range and one line of description each.

use super::{AudioWindow, AugmentPreset, NormalizerChoice, Optim, RunFile, Storage, TaskChoice, Weights};

/// The table of what quantised storages are set by.
pub(super) const QUANTIZATION: &str = "quantization";
/// The table of how pictures are changed.
pub(super) const AUGMENT: &str = "augment";

/// One setting of the run file.
#[derive(Debug)]
pub struct Key {
    /// Its table in the file: "" for the top level, else a method, `quantization` or `augment`.
    pub table: &'static str,
    pub name: &'static str,
    /// Its flag on the command line, without the dashes.
    pub flag: &'static str,
    pub kind: Kind,
    /// One line, lower case, without a full stop.
    pub doc: &'static str,
    /// What other programs call it: only for "did you mean".
    pub known_elsewhere_as: &'static [&'static str],
}

/// What values a setting takes. Ranges are inclusive unless the name says otherwise.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A file or folder.
    Path,
    /// Any text.
    Text,
    /// A whole number from..=to.
    Whole(u64, u64),
    /// A finite number, above..=to.
    Above(f64, f64),
    /// A finite number, from..=to.
    Real(f64, f64),
    /// A number in 0..1, 1 excluded.
    Share,
    /// A share in 0..1, or a whole number from 1.
    ShareOrWhole,
    Switch,
    /// A list of names.
    Names,
    /// A finite number, `learned` or `channel`.
    Scaling,
    Choice(&'static [&'static str]),
    /// `all-linear`, a list of names or a regular expression.
    Targets,
    /// A list of whole numbers.
    Wholes,
    /// Whole numbers by name, each from..=to.
    WholeByName(u64, u64),
    /// Numbers by name, each above..=to.
    AboveByName(f64, f64),
    /// `true`, `false` or a name of PEFT's for how a LoRA starts.
    Init,
    /// Bytes with a unit.
    Size,
}

impl Kind {
    /// What is expected, as in "must be ...".
    pub fn expects(&self) -> String {
        match self {
            Kind::Path => "a path in quotes".into(),
            Kind::Text => "a text in quotes".into(),
            Kind::Whole(from, to) => match *to {
                u64::MAX => format!("a whole number from {from}"),
                to => format!("a whole number from {from} to {to}"),
            },
            Kind::Above(from, to) => format!("a number above {from}, at most {to}"),
            Kind::Real(from, to) => format!("a number from {from} to {to}"),
            Kind::Share => "a number from 0 up to, but not, 1".into(),
            Kind::ShareOrWhole => "a share below 1, or a whole number of steps".into(),
            Kind::Switch => "true or false".into(),
            Kind::Choice(names) => format!("one of {}", names.join(", ")),
            Kind::Names => "a list of names".into(),
            Kind::Scaling => "a number, \"learned\" or \"channel\"".into(),
            Kind::Targets => "\"all-linear\", a list of module names, or a regular expression".into(),
            Kind::Wholes => "a list of whole numbers".into(),
            Kind::WholeByName(from, to) => {
                format!(
                    "a table of names and whole numbers from {from} to {to}, such as {{ q_proj = {from} }}"
                )
            }
            Kind::AboveByName(from, to) => {
                format!("a table of names and numbers above {from}, at most {to}, such as {{ q_proj = 8.0 }}")
            }
            Kind::Init => "true, false, \"gaussian\", \"pissa\", \"pissa_niter_4\" or \"olora\"".into(),
            Kind::Size => "a size such as \"2GiB\"".into(),
        }
    }
}

impl Key {
    /// `rank` of table `lora` is `lora.rank`; top-level names stand alone.
    pub fn path(&self) -> String {
        if self.table.is_empty() { self.name.into() } else { format!("{}.{}", self.table, self.name) }
    }

    /// Is it a setting of a method?
    pub fn is_of_method(&self) -> bool {
        !matches!(self.table, "" | QUANTIZATION | AUGMENT)
    }

    /// Does it mean anything in this run?
    pub fn applies_to(&self, run: &RunFile) -> bool {
        match self.table {
            "" | AUGMENT => true,
            QUANTIZATION => run.storage.is_quantised(),
            method => method == run.method,
        }
    }

    /// Finds a setting by its table and name.
    pub fn find(table: &str, name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.table == table && key.name == name)
    }
}

const fn key(
    table: &'static str,
    name: &'static str,
    flag: &'static str,
    kind: Kind,
    doc: &'static str,
    known_elsewhere_as: &'static [&'static str],
) -> Key {
    Key { table, name, flag, kind, doc, known_elsewhere_as }
}

/// Values of settings as other programs call them, by the setting's name, and ours: only for "did you mean".
pub const VALUES_ELSEWHERE: &[(&str, &[&str], &str)] = &[
    ("optim", &["adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_32bit", "adam"], "adamw"),
    ("optim", &["adamw_bnb_8bit", "adamw_torch_8bit", "adamw8bit", "adam8bit"], "adamw_8bit"),
    ("optim", &["paged_adamw_32bit", "paged_adamw32bit"], "paged_adamw"),
    ("optim", &["paged_adamw8bit"], "paged_adamw_8bit"),
];

/// The metrics by which a checkpoint may be the best.
const METRICS: &[&str] = &[
    "loss",
    "accuracy",
    "f1",
    "precision",
    "recall",
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "matthews",
    "pearson",
    "spearman",
    "mse",
    "mae",
    "r2",
    "map",
    "map50",
    "wer",
    "cer",
];

/// Largest count of steps, epochs and the like: what a TOML integer holds.
const MANY: u64 = i64::MAX as u64;

/// All settings, in the order in which the commented file and the help print them.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("", "model", "model", Kind::Path, "a Hugging Face folder, a GGUF file, or an image network's weights (.pth, .pt, .safetensors, .onnx, .cfg)", &["model_name_or_path", "base_model", "model_path"]),
    key("", "data", "data", Kind::Path, "what is learned: rows (.jsonl, .csv, .tsv, .txt, ...), or a folder of pictures or of sounds with their texts", &["dataset", "train_file", "train_data", "dataset_path", "data_path"]),
    key("", "eval_data", "eval-data", Kind::Path, "held-out rows, never trained on", &["eval_dataset", "validation_file", "val_data", "valid_data", "eval_file"]),
    key("", "retain_data", "retain-data", Kind::Path, "rows of an old task, measured before and after: how much is forgotten", &["retain_set", "replay_data", "forget_data"]),
    key("", "out", "out", Kind::Path, "the folder to write", &["output_dir", "output", "adapter_path", "out_dir"]),
    key("", "method", "method", Kind::Text, "how to fine-tune; `retune methods` lists them", &["peft_type", "fine_tune_type", "adapter"]),

    key("", "task", "task", Kind::Choice(TaskChoice::NAMES), "what the model learns to do; auto: as the rows say", &["task_type", "problem_type", "pipeline_tag"]),

    key("", "epochs", "epochs", Kind::Whole(1, 100_000), "how often to go through the data", &["num_train_epochs", "num_epochs", "n_epochs"]),
    key("", "steps", "steps", Kind::Whole(1, MANY), "optimiser steps; wins over epochs", &["max_steps", "iters", "num_steps", "max_steps_per_epoch"]),
    key("", "batch_size", "batch", Kind::Whole(1, 65_536), "rows in one pass", &["per_device_train_batch_size", "train_batch_size", "micro_batch_size", "batch"]),
    key("", "gradient_accumulation", "accumulate", Kind::Whole(1, 65_536), "passes summed into one optimiser step", &["gradient_accumulation_steps", "grad_accumulation_steps", "grad_accum"]),
    key("", "lr", "lr", Kind::Above(0.0, 1e4), "peak learning rate; without it, the method's own", &["learning_rate"]),
    key("", "schedule", "schedule", Kind::Choice(&["constant", "linear", "cosine"]), "how the learning rate goes after warm-up", &["lr_scheduler_type", "lr_scheduler", "lr_schedule"]),
    key("", "warmup", "warmup", Kind::ShareOrWhole, "warm-up: a share of all steps, or a number of steps", &["warmup_ratio", "warmup_steps", "num_warmup_steps"]),
    key("", "weight_decay", "weight-decay", Kind::Real(0.0, 10.0), "AdamW's decoupled weight decay", &[]),
    key("", "max_grad_norm", "max-grad-norm", Kind::Real(0.0, 1e9), "clip gradients to this norm; 0 for no clipping", &["clip_grad_norm", "gradient_clipping", "grad_clip", "max_norm"]),
    key("", "optim", "optim", Kind::Choice(Optim::NAMES), "AdamW with moments of 32 or 8 bits; paged: they stay in a file beside the run", &["optimizer", "optimizer_name", "optimizer_type"]),
    key("", "seed", "seed", Kind::Whole(0, MANY), "order of the rows, initial values, dropout", &["random_seed"]),

    key("", "max_length", "max-length", Kind::Whole(2, 1 << 20), "tokens of one row; longer rows are cut", &["max_seq_length", "max_seq_len", "cutoff_len", "sequence_len", "block_size"]),
    key("", "train_on", "train-on", Kind::Choice(&["answers", "all"]), "which tokens carry loss", &["train_on_input", "mask_prompt", "train_on_inputs", "completion_only_loss"]),
    key("", "eval_share", "eval-share", Kind::Share, "share of the rows held out where there is no eval_data; without it, 0.1 of labelled rows", &["val_split", "validation_split", "test_size", "val_set_size", "validation_split_percentage"]),

    key("", "image_size", "image-size", Kind::Whole(8, 4096), "side of the pictures that are read, in pixels; without it, the model's own", &["imgsz", "img_size", "input_size", "resolution"]),

    key("", "language", "language", Kind::Text, "the language that is spoken, where rows name none: fr, French", &["lang", "source_language"]),
    key("", "audio_window", "audio-window", Kind::Choice(AudioWindow::NAMES), "what Whisper's encoder sees: windows of 30 s, as it was trained, or the clip alone, which is faster and not exact", &["audio_ctx", "chunk_length"]),
    key("", "skip_long", "skip-long", Kind::Switch, "leave out clips longer than 30 s instead of refusing the data", &["max_duration_in_seconds", "filter_long"]),
    key("", "wer_rows", "wer-rows", Kind::Whole(0, MANY), "most held-out clips that an evaluation transcribes for word and character error rates; 0 for none", &["predict_with_generate", "max_eval_samples"]),
    key("", "normalizer", "normalizer", Kind::Choice(NormalizerChoice::NAMES), "how texts are made alike before words are compared; auto: as Whisper's authors do for the language", &["do_normalize_eval", "text_normalizer"]),

    key("", "labels", "labels", Kind::Names, "names of the classes, in order; without it, those of the data", &["label_list", "label_names", "id2label"]),
    key("", "pooling", "pooling", Kind::Choice(&["auto", "first", "last", "mean"]), "which rows of a text its class is read from", &["pooling_mode", "pooling_strategy", "pooler"]),
    key("", "class_weights", "class-weights", Kind::Text, "what each class counts: even, balanced, or positive=2,negative=0.5", &["class_weight", "label_weights"]),
    key("", "keep_head", "keep-head", Kind::Switch, "go on with the model's own classifier where it has these labels", &["ignore_mismatched_sizes"]),

    key("", "metric", "metric", Kind::Choice(METRICS), "what the best checkpoint is chosen by; without it, the task's own", &["metric_for_best_model", "eval_metric"]),
    key("", "early_stopping_patience", "patience", Kind::Whole(1, 100_000), "evaluations without an improvement that end the run", &["early_stopping", "early_stopping_rounds", "patience"]),
    key("", "keep_last", "keep-last", Kind::Switch, "write the last weights, not the best ones", &["load_best_model_at_end"]),
    key("", "eval_every", "eval-every", Kind::Whole(1, MANY), "steps between evaluations; without it, once an epoch", &["eval_steps", "steps_per_eval"]),
    key("", "save_every", "save-every", Kind::Whole(1, MANY), "steps between checkpoints; without it, once an epoch", &["save_steps", "save_every_n_steps", "checkpoint_every"]),
    key("", "keep", "keep", Kind::Whole(2, 10_000), "checkpoints kept on disk", &["save_total_limit"]),

    key("", "threads", "threads", Kind::Whole(1, 1024), "worker threads; without it, one for each core", &["num_threads", "n_threads"]),
    key("", "storage", "storage", Kind::Choice(Storage::NAMES), "how the frozen weights lie in memory; nf4 to int8 quantise the blocks' linears", &["dtype", "torch_dtype", "precision", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "quantization_bit"]),
    key("", "weights", "weights", Kind::Choice(Weights::NAMES), "where the frozen weights of the blocks lie: streamed reads them from their file when they are needed", &["offload", "offload_weights", "offload_params", "stream_weights", "low_cpu_mem_usage", "mmap"]),
    key("", "checkpointing", "checkpointing", Kind::Choice(&["auto", "on", "off"]), "compute blocks twice to save memory", &["gradient_checkpointing", "grad_checkpoint", "activation_checkpointing"]),
    key("", "memory_limit", "memory-limit", Kind::Size, "refuse a run that would need more; without it, what is free", &["max_memory"]),
    key("", "auto", "auto", Kind::Switch, "take the nearest settings that fit, instead of refusing the run", &["auto_find_batch_size"]),
    key("", "on_nan", "on-nan", Kind::Choice(&["stop", "skip"]), "a step whose loss or gradient isn't finite: stop, or skip at most three in a row", &[]),

    key(QUANTIZATION, "double_quant", "double-quant", Kind::Switch, "of storage nf4, fp4 and int4: quantise the blocks' constants as well", &["bnb_4bit_use_double_quant", "double_quantization", "compress_statistics"]),
    key(QUANTIZATION, "keep_modules", "keep-modules", Kind::Names, "modules that are not quantised, beside tables and heads: paths, their ends, or patterns", &["llm_int8_skip_modules", "modules_to_not_convert"]),

    key(AUGMENT, "preset", "augment", Kind::Choice(AugmentPreset::NAMES), "how pictures are changed in every epoch; auto: the standard way, unless a frozen part's values can be kept", &["augmentation", "auto_augment"]),
    key(AUGMENT, "flip", "augment-flip", Kind::Real(0.0, 1.0), "probability that left and right change places", &["fliplr", "hflip"]),
    key(AUGMENT, "flip_vertical", "augment-flip-vertical", Kind::Real(0.0, 1.0), "probability that top and bottom change places", &["flipud", "vflip"]),
    key(AUGMENT, "crop", "augment-crop", Kind::Real(0.01, 1.0), "least share of a picture's area that is cut out", &["crop_scale", "random_resized_crop"]),
    key(AUGMENT, "rotate", "augment-rotate", Kind::Real(0.0, 45.0), "turned by up to so many degrees", &["degrees", "rotation"]),
    key(AUGMENT, "brightness", "augment-brightness", Kind::Real(0.0, 1.0), "how much the brightness changes", &["hsv_v"]),
    key(AUGMENT, "contrast", "augment-contrast", Kind::Real(0.0, 1.0), "how much the contrast changes", &[]),
    key(AUGMENT, "saturation", "augment-saturation", Kind::Real(0.0, 1.0), "how much the saturation changes", &["hsv_s"]),
    key(AUGMENT, "hue", "augment-hue", Kind::Real(0.0, 0.5), "how far the hue turns", &["hsv_h"]),
    key(AUGMENT, "erase", "augment-erase", Kind::Real(0.0, 1.0), "probability that a rectangle is erased", &["random_erasing"]),
    key(AUGMENT, "mixup", "augment-mixup", Kind::Real(0.0, 10.0), "alpha of mixup; 0 is off", &[]),
    key(AUGMENT, "cutmix", "augment-cutmix", Kind::Real(0.0, 10.0), "alpha of CutMix; 0 is off", &[]),
    key(AUGMENT, "mosaic", "augment-mosaic", Kind::Real(0.0, 1.0), "detection: probability that four pictures become one", &[]),
    key(AUGMENT, "zoom", "augment-zoom", Kind::Real(0.0, 0.9), "detection: how much larger or smaller", &["scale"]),
    key(AUGMENT, "translate", "augment-translate", Kind::Real(0.0, 0.5), "detection: moved by up to this share of a side", &[]),

    key("lora", "rank", "rank", Kind::Whole(1, 4096), "rank of the update, R in W + B A", &["r", "lora_r", "lora_rank"]),
    key("lora", "lora_alpha", "alpha", Kind::Above(0.0, 1e6), "the update is scaled by alpha / rank", &["alpha"]),
    key("lora", "lora_dropout", "dropout", Kind::Share, "dropout on the adapter's input", &["dropout"]),
    key("lora", "target_modules", "targets", Kind::Targets, "which linears: all-linear, names, or a regular expression", &["targets", "lora_target_modules", "lora_target", "lora_modules"]),
    key("lora", "use_rslora", "rslora", Kind::Switch, "scale by alpha / sqrt(rank) instead", &["rslora"]),
    key("lora", "use_dora", "dora", Kind::Switch, "learn the length of each row of the adapted weight, too", &["dora"]),
    key("lora", "init_lora_weights", "init", Kind::Init, "how it starts; pissa and olora start from the weight's strongest part", &["init_weights"]),
    key("lora", "bias", "lora-train-bias", Kind::Choice(&["none", "all", "lora_only"]), "which of the model's biases are trained", &[]),
    key("lora", "lora_bias", "lora-bias", Kind::Switch, "give B a bias", &[]),
    key("lora", "rank_pattern", "rank-pattern", Kind::WholeByName(1, 4096), "ranks of modules by the end of their names: { q_proj = 4 }", &[]),
    key("lora", "alpha_pattern", "alpha-pattern", Kind::AboveByName(0.0, 1e6), "the same for lora_alpha", &[]),
    key("lora", "exclude_modules", "exclude", Kind::Names, "modules that are no targets though they match", &[]),
    key("lora", "layers_to_transform", "layers", Kind::Wholes, "the numbers of the layers; without it, all", &["lora_layers"]),
    key("lora", "modules_to_save", "modules-to-save", Kind::Names, "modules that are trained whole and saved with the adapter", &["lora_modules_to_save"]),
    key("lora", "ensure_weight_tying", "tie", Kind::Switch, "what is done to a tied token table is done to the head, too", &[]),

    key("ia3", "target_modules", "ia3-targets", Kind::Targets, "which linears; without it, those that are usual for the architecture", &[]),
    key("ia3", "feedforward_modules", "ia3-feedforward", Kind::Names, "the targets whose input is scaled; without it, the usual ones", &[]),
    key("ia3", "exclude_modules", "ia3-exclude", Kind::Names, "modules that are no targets though they match", &[]),
    key("ia3", "modules_to_save", "ia3-modules-to-save", Kind::Names, "modules that are trained whole and saved with the adapter", &[]),

    key("full", "only_changed", "only-changed", Kind::Switch, "write the tensors that changed instead of the whole model", &[]),

    key("partial", "last_blocks", "last-blocks", Kind::Whole(0, 100_000), "train this many blocks from the end, the last norm and the head", &["num_layers", "unfrozen_layers", "num_layers_unfrozen"]),
    key("partial", "freeze", "freeze", Kind::Whole(0, 100_000), "leave this many layers from the front as they are, as the model's files number them, and train all behind them; wins over last_blocks", &["freeze_layers", "frozen_layers", "num_frozen_layers", "freeze_n"]),
    key("partial", "train", "train-params", Kind::Names, "train these parameters instead: names, parts of names, or patterns with *", &["trainable", "trainable_parameters", "unfrozen_parameters"]),

    key("bitfit", "add_biases", "add-biases", Kind::Switch, "give linears without a bias one of zeros", &[]),

    key("sparse", "selection", "selection", Kind::Choice(&["random", "magnitude", "fisher"]), "which entries of the weights are trained", &["mask_type"]),
    key("sparse", "share", "share", Kind::Above(0.0, 0.5), "share of each weight's entries", &["sparsity", "density"]),
    key("sparse", "r", "sparse-r", Kind::Whole(1, 4096), "r (in + out) entries of each weight instead of a share, as PEFT counts", &[]),
    key("sparse", "target_modules", "sparse-targets", Kind::Targets, "which linears: all-linear, names, or a regular expression", &[]),
    key("sparse", "fisher_examples", "fisher-examples", Kind::Whole(1, 1 << 30), "examples whose gradients choose the entries", &[]),
    key("prompt", "num_virtual_tokens", "prompt-tokens", Kind::Whole(1, 65_536), "virtual tokens in front of each text", &["prompt_length", "n_tokens", "num_tokens"]),
    key("prompt", "prompt_tuning_init", "prompt-init", Kind::Choice(&["random", "text", "sample-vocab"]), "what they are at the start: random numbers, a text's embeddings, random tokens' embeddings", &["init"]),
    key("prompt", "prompt_tuning_init_text", "prompt-text", Kind::Text, "the text to start from, repeated or cut to fit", &["init_text", "prompt_init_text"]),
    key("prompt", "encoder", "prompt-encoder", Kind::Choice(&["none", "mlp", "lstm"]), "train them through a network (P-tuning), which is not saved", &["encoder_reparameterization_type", "reparameterization"]),
    key("prompt", "encoder_hidden_size", "prompt-hidden-size", Kind::Whole(1, 65_536), "width of that network; without it, the model's", &[]),

    key("prefix", "num_virtual_tokens", "prefix-tokens", Kind::Whole(1, 65_536), "keys and values in front of each text, in every layer", &["prefix_length", "prefix_len"]),
    key("prefix", "prefix_projection", "prefix-projection", Kind::Switch, "train them through a network, which is not saved", &["projection"]),
    key("prefix", "encoder_hidden_size", "prefix-hidden-size", Kind::Whole(1, 65_536), "width of that network; without it, that of a layer's keys", &["bottleneck_size"]),
    key("prefix", "init_weights", "prefix-init", Kind::Choice(&["random", "zero"]), "what they are at the start", &[]),

    key("adapter", "architecture", "adapter-architecture", Kind::Choice(&["houlsby", "pfeiffer", "parallel"]), "behind attention and feed-forward, behind feed-forward, or beside it", &["adapter_type", "double_seq_bn", "seq_bn", "par_bn"]),
    key("adapter", "reduction_factor", "reduction-factor", Kind::Above(0.0, 1e6), "hidden size / width of the bottleneck; without it, 16, or 2 of the parallel ones", &["adapter_size", "bottleneck_size", "adapter_reduction_factor"]),
    key("adapter", "non_linearity", "non-linearity", Kind::Choice(&["relu", "gelu", "gelu_new", "quick_gelu", "swish", "silu", "tanh", "sigmoid", "leakyrelu", "linear"]), "the bottleneck's activation; without it, the architecture's own", &["adapter_act", "activation", "hidden_act"]),
    key("adapter", "ln_before", "ln-before", Kind::Switch, "a norm of its own in front of the bottleneck", &[]),
    key("adapter", "ln_after", "ln-after", Kind::Switch, "a norm of its own behind the bottleneck", &[]),
    key("adapter", "original_ln_before", "original-ln-before", Kind::Switch, "the model's residual and norm come before the bottleneck", &[]),
    key("adapter", "original_ln_after", "original-ln-after", Kind::Switch, "the model's residual and norm come after the bottleneck", &[]),
    key("adapter", "residual_before_ln", "residual-before-ln", Kind::Switch, "the bottleneck's residual begins before the model's norm", &[]),
    key("adapter", "adapter_residual_before_ln", "adapter-residual-before-ln", Kind::Switch, "the bottleneck's residual is added before its norm", &[]),
    key("adapter", "scaling", "adapter-scaling", Kind::Scaling, "what its output is multiplied with; without it, 1, or 4 of the parallel ones", &["adapter_scalar"]),
    key("adapter", "dropout", "adapter-dropout", Kind::Share, "dropout on the bottleneck's output", &["adapter_dropout"]),
    key("adapter", "leave_out", "leave-out", Kind::Wholes, "layers without adapters, counted from 0", &["adapter_layers"]),
];
