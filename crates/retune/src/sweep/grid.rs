//! Every combination of the axes' values, or a seeded sample of them.
//!
//! A setting of one method is varied in the runs of that method alone: `rank` x `last_blocks` are the ranks of LoRA and the
//! depths of partial fine-tuning, one after the other, since no run has both.

use retune_tensor::rng::{Stream, fnv1a};
use toml::Value;

use super::Axis;
use crate::run_file::keys::Key;
use crate::run_file::{RunFile, RunFileError};

/// More combinations are a mistake, and more runs than this never end.
const COMBINATIONS_MAX: usize = 1_000_000;
const RUNS_MAX: usize = 10_000;
/// Longest name of a run's folder.
const NAME_MAX: usize = 100;

/// The combinations of a sweep.
#[derive(Clone, Debug)]
pub struct Grid {
    base: RunFile,
    axes: Vec<Axis>,
    /// The methods, and how many combinations each has.
    methods: Vec<(String, usize)>,
}

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// From its settings; names its folder.
    pub name: String,
    /// What distinguishes it, as name and text; the method first if there are several.
    pub settings: Vec<(String, String)>,
    pub run: RunFile,
}

impl Grid {
    /// The combinations of these axes over a run.
    ///
    /// # Errors
    /// If a setting belongs to a method that is not among the swept, or there are too many combinations.
    pub fn new(base: &RunFile, axes: Vec<Axis>) -> Result<Grid, RunFileError> {
        let methods = methods_of(base, &axes)?;
        let count = |method: &String| {
            let sizes = axes.iter().filter(|axis| counts(axis, method)).map(|axis| axis.values.len());
            sizes.fold(1usize, usize::saturating_mul)
        };
        let methods: Vec<(String, usize)> = methods.iter().map(|m| (m.clone(), count(m))).collect();
        let grid = Grid { base: base.clone(), axes, methods };
        match grid.len() {
            0..=COMBINATIONS_MAX => Ok(grid),
            n => {
                Err(RunFileError::one("--over", format!("{n} combinations are more than {COMBINATIONS_MAX}")))
            }
        }
    }

    /// Number of combinations.
    pub fn len(&self) -> usize {
        self.methods.iter().fold(0usize, |sum, (_, n)| sum.saturating_add(*n))
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All combinations in order, the last axis fastest; or `sample` of them, drawn by the seed without repetition. A larger
    /// sample begins with the smaller one.
    ///
    /// # Errors
    /// What the settings of any run contradict; if there are too many runs.
    pub fn trials(&self, sample: Option<usize>, seed: u64) -> Result<Vec<Trial>, RunFileError> {
        let mut chosen: Vec<usize> = (0..self.len()).collect();
        if let Some(count) = sample {
            let stream = Stream::named(seed, "sample of a sweep");
            let key =
                |index: &usize| (stream.bits(2 * *index as u64), stream.bits(2 * *index as u64 + 1), *index);
            chosen.sort_by_cached_key(key);
            chosen.truncate(count);
        }
        if chosen.len() > RUNS_MAX {
            let what = format!("{} runs are more than {RUNS_MAX}; draw some with --sample", chosen.len());
            return Err(RunFileError::one("--over", what));
        }
        let mut wrong = RunFileError { problems: Vec::new() };
        let mut trials = Vec::new();
        for index in chosen {
            match self.trial(index) {
                Ok(trial) => trials.push(trial),
                Err(error) => wrong.problems.extend(error.problems),
            }
        }
        if wrong.problems.is_empty() { Ok(trials) } else { Err(wrong) }
    }

    fn trial(&self, mut index: usize) -> Result<Trial, RunFileError> {
        let mut method = self.base.method.as_str();
        for (name, count) in &self.methods {
            method = name;
            if index < *count {
                break;
            }
            index -= count;
        }
        let mut picked: Vec<(&'static Key, &str, &Value)> = Vec::new();
        for axis in self.axes.iter().rev().filter(|axis| counts(axis, method)) {
            let (text, value) = &axis.values[index % axis.values.len()];
            index /= axis.values.len();
            picked.push((axis.key, text, value));
        }
        picked.reverse();
        let mut settings: Vec<(String, String)> = Vec::new();
        if self.methods.len() > 1 {
            settings.push(("method".into(), method.into()));
        }
        settings.extend(picked.iter().map(|(key, text, _)| (key.name.to_owned(), text.to_string())));
        let place = settings.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(", ");
        let of_method = Value::String(method.into());
        let mut values: Vec<(&Key, &Value)> =
            Key::find("", "method").map(|key| (key, &of_method)).into_iter().collect();
        values.extend(picked.iter().map(|(key, _, value)| (*key, *value)));
        let mut run = self.base.with(&place, &values)?;
        let name = name_of(&settings);
        run.out = self.base.out.join(&name);
        Ok(Trial { name, settings, run })
    }
}

/// Whether a setting is one of this method's runs; the method itself is no setting of a run.
fn counts(axis: &Axis, method: &str) -> bool {
    match axis.key.is_of_method() {
        false => axis.key.path() != "method",
        true => axis.key.table == method,
    }
}

/// The methods of a sweep: those swept over, else those whose settings are, else the run's own.
fn methods_of(base: &RunFile, axes: &[Axis]) -> Result<Vec<String>, RunFileError> {
    let mut tables: Vec<String> = Vec::new();
    for axis in axes.iter().filter(|axis| axis.key.is_of_method()) {
        if !tables.iter().any(|table| table == axis.key.table) {
            tables.push(axis.key.table.into());
        }
    }
    let swept = axes.iter().find(|axis| axis.key.table.is_empty() && axis.key.name == "method");
    let Some(swept) = swept else {
        return Ok(if tables.is_empty() { vec![base.method.clone()] } else { tables });
    };
    let names: Vec<String> = swept.values.iter().map(|(name, _)| name.clone()).collect();
    match axes.iter().find(|axis| axis.key.is_of_method() && !names.iter().any(|n| n == axis.key.table)) {
        Some(axis) => {
            let (key, table) = (axis.key.path(), axis.key.table);
            let what = format!(
                "{key} is a setting of method {table}, which is not swept: method={}",
                names.join(",")
            );
            Err(RunFileError::one("--over", what))
        }
        None => Ok(names),
    }
}

/// `lora_rank-8_lr-1e-3`: letters that every file system takes. What had to be left out is told apart by a hash.
fn name_of(settings: &[(String, String)]) -> String {
    let parts: Vec<String> = settings
        .iter()
        .map(|(key, text)| if key == "method" { text.clone() } else { format!("{key}-{text}") })
        .collect();
    let whole = if parts.is_empty() { "run".into() } else { parts.join("_") };
    let clean: String = whole
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.+".contains(c) { c } else { '-' })
        .collect();
    if clean == whole && clean.len() <= NAME_MAX {
        return clean;
    }
    let short: String = clean.chars().take(NAME_MAX - 9).collect();
    format!("{short}-{:08x}", fnv1a(whole.as_bytes()) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> RunFile {
        RunFile { model: "m".into(), data: "d".into(), out: "sweeps".into(), ..RunFile::default() }
    }

    fn grid(texts: &[&str]) -> Grid {
        let texts: Vec<String> = texts.iter().map(|s| s.to_string()).collect();
        Grid::new(&base(), Axis::parse_all(&texts, &base().method).unwrap()).unwrap()
    }

    fn names(trials: &[Trial]) -> Vec<&str> {
        trials.iter().map(|trial| trial.name.as_str()).collect()
    }

    #[test]
    fn the_grid_is_every_combination() {
        let trials = grid(&["rank=4,8", "lr=1e-3,1e-2"]).trials(None, 0).unwrap();
        assert_eq!(names(&trials), ["rank-4_lr-1e-3", "rank-4_lr-1e-2", "rank-8_lr-1e-3", "rank-8_lr-1e-2"]);
        let last = &trials[3].run;
        assert_eq!((last.lora.rank, last.lr, last.seed), (8, Some(1e-2), base().seed));
        assert_eq!(last.out, std::path::Path::new("sweeps/rank-8_lr-1e-2"));
    }

    #[test]
    fn settings_of_a_method_are_varied_in_its_runs_alone() {
        let trials = grid(&["rank=4,8", "last_blocks=1,2", "lr=1e-3"]).trials(None, 0).unwrap();
        assert_eq!(
            names(&trials),
            [
                "lora_rank-4_lr-1e-3",
                "lora_rank-8_lr-1e-3",
                "partial_last_blocks-1_lr-1e-3",
                "partial_last_blocks-2_lr-1e-3"
            ]
        );
        assert_eq!((trials[3].run.method.as_str(), trials[3].run.partial.last_blocks), ("partial", 2));
        let trials = grid(&["method=bitfit,lora", "rank=4,8"]).trials(None, 0).unwrap();
        assert_eq!(names(&trials), ["bitfit", "lora_rank-4", "lora_rank-8"]);
        let texts = ["method=bitfit,full".to_owned(), "rank=4".to_owned()];
        let error = Grid::new(&base(), Axis::parse_all(&texts, "lora").unwrap()).unwrap_err();
        assert!(
            error.to_string().contains("lora.rank is a setting of method lora, which is not swept"),
            "{error}"
        );
    }

    #[test]
    fn a_sample_is_seeded_and_grows() {
        let grid = grid(&["rank=1,2,3,4,5,6,7,8,9", "epochs=1,2,3,4,5,6,7,8,9,10"]);
        let of = |count, seed| grid.trials(Some(count), seed).unwrap();
        let (five, nine) = (of(5, 3), of(9, 3));
        assert_eq!(names(&five), names(&nine)[..5]);
        assert_ne!(names(&five), names(&of(5, 4)));
        let mut all = of(1000, 3);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.dedup_by(|a, b| a.name == b.name);
        assert_eq!(all.len(), 90);
    }

    #[test]
    fn names_are_file_names_and_distinct() {
        let trials =
            grid(&["target_modules=q_proj,v_proj;q_proj.v_proj;.*(q|v)_proj"]).trials(None, 0).unwrap();
        let found = names(&trials);
        assert_eq!(found[1], "target_modules-q_proj.v_proj");
        assert!(
            found[0].starts_with("target_modules-q_proj-v_proj-") && !found[2].contains('('),
            "{found:?}"
        );
        let long = name_of(&[("train".into(), "x".repeat(5000))]);
        assert_eq!(long.len(), NAME_MAX);
    }

    #[test]
    fn contradictions_and_floods_are_refused() {
        let texts: Vec<String> = vec!["warmup=2,9".into(), "steps=5,20".into()];
        let grid = Grid::new(&base(), Axis::parse_all(&texts, "lora").unwrap()).unwrap();
        let error = grid.trials(None, 0).unwrap_err().to_string();
        assert_eq!(error, "warmup=9, steps=5: warm-up of 9 steps, but the whole run has 5");
        let many =
            |key: &str| format!("{key}={}", (1..=1100).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
        let axes = Axis::parse_all(&[many("rank"), many("epochs")], "lora").unwrap();
        assert!(Grid::new(&base(), axes).unwrap_err().to_string().contains("more than 1000000"));
    }
}
