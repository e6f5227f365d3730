//! `rank=4,8,16`: a setting and the values that it takes in a sweep.

use toml::Value;

use crate::run_file::RunFileError;
use crate::run_file::keys::{Key, Kind};

/// Settings that cannot differ between the runs of a sweep, and why.
const FIXED: &[(&[&str], &str)] = &[
    (&["out"], "each run has a folder of its own within --out"),
    (
        &["task", "eval_data", "eval_share", "labels", "train_on", "metric", "retain_data"],
        "it decides what is measured: runs could not be compared",
    ),
    (&["threads", "memory_limit"], "it is the machine's and the same for all runs"),
];

/// One setting with its values, in the order in which they were given.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    pub key: &'static Key,
    /// As typed, and as the run file has it.
    pub values: Vec<(String, Value)>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Axis {
    /// Reads `KEY=VALUE,...` of all axes; `method` is the run file's. Values that hold commas are told apart by `;`.
    ///
    /// # Errors
    /// Every problem: unknown or ambiguous settings (with the nearest name), values out of range or twice, settings that
    /// cannot be swept, a setting given twice.
    pub fn parse_all(texts: &[String], method: &str) -> Result<Vec<Axis>, RunFileError> {
        let swept =
            texts.iter().filter_map(|text| text.split_once('=')).find(|(key, _)| key.trim() == "method");
        let methods: Vec<&str> = match swept {
            Some((_, names)) => names.split([',', ';']).map(str::trim).collect(),
            None => vec![method],
        };
        let mut axes: Vec<Axis> = Vec::new();
        let mut wrong = RunFileError { problems: Vec::new() };
        for text in texts {
            let place = format!("--over {}", shortened(text));
            let axis = Axis::parse(text, &methods).and_then(|axis| {
                let twice = axes.iter().any(|other| other.key == axis.key);
                if twice { Err(format!("{} is swept already", axis.key.path())) } else { Ok(axis) }
            });
            match axis {
                Ok(axis) => axes.push(axis),
                Err(what) => wrong.problems.extend(RunFileError::one(place, what).problems),
            }
        }
        if wrong.problems.is_empty() { Ok(axes) } else { Err(wrong) }
    }

    fn parse(text: &str, methods: &[&str]) -> Result<Axis, String> {
        let Some((name, rest)) = text.split_once('=') else {
            return Err("write a setting and its values, such as rank=4,8,16".into());
        };
        let key = Key::named(name, methods)?;
        if let Some((_, why)) =
            FIXED.iter().find(|(names, _)| key.table.is_empty() && names.contains(&key.name))
        {
            return Err(format!("{} cannot be swept: {why}", key.path()));
        }
        let separator = if key.holds_commas() || rest.contains(';') { ';' } else { ',' };
        let mut values: Vec<(String, Value)> = Vec::new();
        for text in rest.split(separator).map(str::trim) {
            let value = value(key, text)?;
            if let Some((other, _)) = values.iter().find(|(_, other)| *other == value) {
                return Err(format!("{} = {text} stands twice (as {other})", key.path()));
            }
            values.push((text.into(), value));
        }
        Ok(Axis { key, values })
    }
}

fn value(key: &Key, text: &str) -> Result<Value, String> {
    if let (Kind::Text, "method") = (key.kind, key.name) {
        crate::methods::find(text).map_err(|e| e.to_string())?;
    }
    key.parse(text).map_err(|what| match what.starts_with(key.name) {
        true => what,
        false => format!("{} {what}", key.path()),
    })
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str], method: &str) -> Result<Vec<Axis>, RunFileError> {
        Axis::parse_all(&texts.iter().map(|s| s.to_string()).collect::<Vec<_>>(), method)
    }

    #[test]
    fn values_are_typed_by_their_setting() {
        let axes = parse(&["rank=4, 8", "lr=1e-3,0.01", "rslora=true,false"], "lora").unwrap();
        assert_eq!(axes[0].values, [("4".into(), Value::Integer(4)), ("8".into(), Value::Integer(8))]);
        assert_eq!(axes[1].values[0], ("1e-3".into(), Value::Float(1e-3)));
        assert_eq!(axes[2].key.path(), "lora.use_rslora");
        let targets = parse(&["target_modules=q_proj,v_proj;all-linear"], "lora").unwrap();
        let names: Vec<&str> = targets[0].values.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(names, ["q_proj,v_proj", "all-linear"]);
        let weights = parse(&["class_weights=even;a=2,b=1"], "lora").unwrap();
        assert_eq!(weights[0].values.len(), 2);
    }

    #[test]
    fn all_problems_at_once() {
        let texts = [
            "rnak=4",
            "rank",
            "rank=0",
            "lr=0.1,1e-1",
            "out=a,b",
            "metric=loss,f1",
            "method=lroa",
            "seed=1",
            "seed=2",
        ];
        let error = parse(&texts, "lora").unwrap_err();
        let told: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 8, "{told:#?}");
        assert_eq!(told[0], "--over rnak=4: no setting is called \"rnak\", did you mean \"lora.rank\"?");
        assert!(told[1].contains("such as rank=4,8,16"));
        assert!(told[2].contains("rank must be a whole number from 1 to 4096"), "{}", told[2]);
        assert!(told[3].contains("stands twice (as 0.1)"), "{}", told[3]);
        assert!(told[4].contains("a folder of its own"));
        assert!(told[5].contains("could not be compared"));
        assert!(told[6].contains("did you mean \"lora\""), "{}", told[6]);
        assert!(told[7].contains("swept already"));
    }
}
