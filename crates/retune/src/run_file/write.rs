//! Writes the complete run file: every setting with its value, its meaning above it.

use std::fmt::Write;

use super::RunFile;
use super::keys::{KEYS, Key, Kind};

impl RunFile {
    /// The whole run as commented TOML. Settings without a value stand there as comments, so that reading the text back
    /// gives the same run.
    pub fn to_toml(&self) -> String {
        // A RunFile holds nothing that TOML can't say (numbers in range, UTF-8 text), but paths may be odd: fall back to loss.
        let values =
            toml::Value::try_from(self.utf8_paths()).unwrap_or(toml::Value::Table(Default::default()));
        let mut text = String::new();
        let mut table = "";
        for key in KEYS.iter().filter(|key| key.applies_to(self)) {
            if key.table != table {
                table = key.table;
                let _ = write!(text, "\n[{table}]\n");
            }
            write_key(&mut text, key, &values);
        }
        text
    }

    /// TOML is UTF-8: other bytes in a path are replaced rather than losing the file.
    fn utf8_paths(&self) -> RunFile {
        let mut run = self.clone();
        let given = run.eval_data.as_mut().into_iter().chain(run.retain_data.as_mut());
        for path in [&mut run.model, &mut run.data, &mut run.out].into_iter().chain(given) {
            *path = path.to_string_lossy().into_owned().into();
        }
        run
    }
}

fn write_key(text: &mut String, key: &Key, values: &toml::Value) {
    let value = match key.table {
        "" => values.get(key.name),
        table => values.get(table).and_then(|table| table.get(key.name)),
    };
    let choices = match key.kind {
        Kind::Choice(names) => format!(": {}", names.join(" | ")),
        _ => String::new(),
    };
    let _ = writeln!(text, "# {}{choices}", key.doc);
    let _ = match value {
        Some(value) => writeln!(text, "{} = {value}", key.name),
        None => writeln!(text, "# {} =", key.name),
    };
}

#[cfg(test)]
mod tests {
    use super::super::{
        Adapter, Augment, AugmentPreset, Ia3, Lora, Partial, Prefix, Prompt, Quantization, ScalingSetting,
        Sparse, Storage, TargetModules,
    };
    use super::*;

    fn every_augmentation() -> Augment {
        Augment {
            preset: AugmentPreset::Standard,
            flip: Some(0.5),
            flip_vertical: Some(0.1),
            crop: Some(0.4),
            rotate: Some(10.0),
            brightness: Some(0.1),
            contrast: Some(0.2),
            saturation: Some(0.3),
            hue: Some(0.05),
            erase: Some(0.25),
            mixup: Some(0.8),
            cutmix: Some(1.0),
            mosaic: Some(0.75),
            zoom: Some(0.5),
            translate: Some(0.15),
        }
    }

    #[test]
    fn written_run_reads_back_the_same() {
        let run = RunFile {
            model: "a \"quoted\" path\nwith a line break".into(),
            data: "d.jsonl".into(),
            eval_data: Some("e.jsonl".into()),
            lr: Some(2e-4),
            memory_limit: Some(3 << 29),
            steps: Some(12),
            lora: Lora { target_modules: TargetModules::Names(vec!["q_proj".into()]), ..Lora::default() },
            storage: Storage::Nf4,
            weights: super::super::Weights::Streamed,
            image_size: Some(96),
            language: Some("fr".into()),
            audio_window: super::super::AudioWindow::Clip,
            skip_long: true,
            wer_rows: 7,
            normalizer: super::super::NormalizerChoice::Basic,
            quantization: Quantization { double_quant: false, keep_modules: vec!["down_proj".into()] },
            augment: every_augmentation(),
            ..RunFile::default()
        };
        assert_eq!(RunFile::from_toml("run.toml", &run.to_toml()).unwrap(), run);
        let plain = RunFile { model: "m".into(), data: "d".into(), ..RunFile::default() };
        assert_eq!(RunFile::from_toml("run.toml", &plain.to_toml()).unwrap(), plain);
    }

    #[test]
    fn the_table_of_keys_and_the_struct_name_the_same_settings() {
        let full = RunFile {
            eval_data: Some("e".into()),
            retain_data: Some("o".into()),
            lr: Some(1.0),
            steps: Some(1),
            eval_every: Some(1),
            save_every: Some(1),
            threads: Some(1),
            memory_limit: Some(1),
            eval_share: Some(0.5),
            labels: Some(vec!["a".into()]),
            metric: Some(crate::metrics::Metric::F1),
            early_stopping_patience: Some(1),
            image_size: Some(96),
            language: Some("fr".into()),
            audio_window: super::super::AudioWindow::Clip,
            skip_long: true,
            wer_rows: 7,
            normalizer: super::super::NormalizerChoice::Basic,
            augment: every_augmentation(),
            partial: Partial { freeze: Some(1), train: Some(vec!["a".into()]), ..Partial::default() },
            sparse: Sparse { r: Some(1), ..Sparse::default() },
            lora: Lora {
                exclude_modules: Some(Vec::new()),
                layers_to_transform: Some(Vec::new()),
                modules_to_save: Some(Vec::new()),
                ..Lora::default()
            },
            ia3: Ia3 {
                target_modules: Some(TargetModules::default()),
                feedforward_modules: Some(Vec::new()),
                exclude_modules: Some(Vec::new()),
                modules_to_save: Some(Vec::new()),
            },
            prompt: Prompt {
                prompt_tuning_init_text: Some("t".into()),
                encoder_hidden_size: Some(1),
                ..Prompt::default()
            },
            prefix: Prefix { encoder_hidden_size: Some(1), ..Prefix::default() },
            adapter: Adapter {
                reduction_factor: Some(1.0),
                non_linearity: Some("relu".into()),
                original_ln_before: Some(true),
                original_ln_after: Some(true),
                scaling: Some(ScalingSetting::Factor(1.0)),
                ..Adapter::default()
            },
            ..RunFile::default()
        };
        let mut fields = Vec::new();
        for (name, value) in toml::Table::try_from(full).unwrap() {
            match value {
                toml::Value::Table(inner) => fields.extend(inner.keys().map(|key| format!("{name}.{key}"))),
                _ => fields.push(name),
            }
        }
        let mut keys: Vec<_> = KEYS.iter().map(Key::path).collect();
        keys.sort();
        fields.sort();
        assert_eq!(keys, fields);
    }
}
