//! How much of an old task is forgotten: its loss or metric before and after training, with the adapter on and off.

use serde::{Deserialize, Serialize};

use super::{ReportData, count, escape, quality};
use crate::metrics::Metric;

/// A number with the adapter on, and off where there is one to switch off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OnOff {
    #[serde(deserialize_with = "crate::train::null_is_nan")]
    pub on: f64,
    pub off: Option<f64>,
}

/// What was measured on rows of an old task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Retained {
    /// The file's name, and its rows that count.
    pub file: String,
    pub rows: u64,
    pub metric: Metric,
    pub before: OnOff,
    pub after: OnOff,
    /// Why there is nothing to switch off.
    pub no_off: Option<String>,
}

impl Retained {
    /// Of the base model, before anything was trained.
    pub fn base(&self) -> f64 {
        self.before.off.unwrap_or(self.before.on)
    }

    /// Whether the base model, its adapter off, gives the very bits that it gave before.
    pub fn is_untouched(&self) -> Option<bool> {
        let (before, after) = self.before.off.zip(self.after.off)?;
        Some(before.to_bits() == after.to_bits())
    }

    /// In one sentence.
    pub fn sentence(&self) -> String {
        let (from, to) = (self.shown(self.base()), self.shown(self.after.on));
        let what = quality::label(self.metric);
        let went =
            if from == to { format!("is {to} as before") } else { format!("went from {from} to {to}") };
        let off = match (self.after.off, self.is_untouched()) {
            (Some(off), Some(true)) => format!("without it it is {} still, bit for bit", self.shown(off)),
            (Some(off), _) => format!("without it it is {}", self.shown(off)),
            (None, _) => {
                let why = self.no_off.as_deref().unwrap_or("there is no adapter");
                return format!("the old task's {what} {went}; {why}");
            }
        };
        format!("the old task's {what} {went} with the adapter; {off}")
    }

    /// As people read it, with the digits in which small changes are seen.
    pub fn shown(&self, value: f64) -> String {
        match self.metric {
            _ if !value.is_finite() => "not finite".into(),
            Metric::Loss | Metric::Mse | Metric::Mae => format!("{value:.4}"),
            metric => quality::shown(metric, value),
        }
    }

    fn bars(&self) -> Vec<(&'static str, &'static str, f64)> {
        let mut bars = vec![("before training", "faint", self.base())];
        match self.after.off {
            Some(off) => {
                bars.push(("after, adapter on", "second", self.after.on));
                bars.push(("after, adapter off", "main", off));
            }
            None => bars.push(("after training", "second", self.after.on)),
        }
        bars
    }
}

/// The report's section; empty if nothing was measured.
pub fn section(data: &ReportData) -> String {
    let Some(retained) = &data.retained else { return String::new() };
    let mut sentence = retained.sentence();
    sentence.replace_range(..1, "T");
    let (rows, file) = (count(retained.rows), escape(&retained.file));
    format!(
        "<section>\n<h2>What was kept of the old task</h2>\n<p class=\"note\">On {rows} rows of {file}, which were not trained \
         on. {}.</p>\n{}</section>\n",
        escape(&sentence),
        picture(retained)
    )
}

/// Bars from 0, with their values.
fn picture(retained: &Retained) -> String {
    let bars = retained.bars();
    let finite = bars.iter().map(|(.., value)| value.abs()).filter(|value| value.is_finite());
    let largest = finite.fold(0.0f64, f64::max).max(1e-300);
    let (left, width, step) = (150.0, 520.0, 34.0);
    let mut svg = format!("<svg viewBox=\"0 0 820 {:.0}\" role=\"img\">\n", step * bars.len() as f64 + 4.0);
    for (i, (name, class, value)) in bars.iter().enumerate() {
        let y = step * i as f64 + 4.0;
        let length = if value.is_finite() { (value.abs() / largest * width).max(1.0) } else { 0.0 };
        svg += &format!(
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text><rect class=\"{class}\" x=\"{left}\" \
             y=\"{y:.1}\" width=\"{length:.1}\" height=\"22\" rx=\"3\"/><text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            left - 10.0,
            y + 15.5,
            left + length + 10.0,
            y + 15.5,
            escape(&retained.shown(*value))
        );
    }
    svg + "</svg>\n"
}

/// Rows for the model card: name, before, after.
pub fn rows(data: &ReportData) -> Vec<(String, String, String)> {
    let Some(retained) = &data.retained else { return Vec::new() };
    let name = format!("old task's {} ({})", quality::label(retained.metric), retained.file);
    let mut rows = vec![(name.clone(), retained.shown(retained.base()), retained.shown(retained.after.on))];
    if let (Some(before), Some(after)) = (retained.before.off, retained.after.off) {
        rows.push((format!("{name}, adapter off"), retained.shown(before), retained.shown(after)));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retained() -> Retained {
        Retained {
            file: "old.jsonl".into(),
            rows: 30,
            metric: Metric::Loss,
            before: OnOff { on: 1.23, off: Some(1.23) },
            after: OnOff { on: 1.31, off: Some(1.23) },
            no_off: None,
        }
    }

    #[test]
    fn the_sentence_says_what_was_forgotten() {
        assert_eq!(
            retained().sentence(),
            "the old task's loss went from 1.2300 to 1.3100 with the adapter; without it it is 1.2300 still, bit for bit"
        );
        let touched = Retained { after: OnOff { on: 1.31, off: Some(1.2300001) }, ..retained() };
        assert!(touched.sentence().ends_with("without it it is 1.2300"), "{}", touched.sentence());
        let whole = Retained {
            metric: Metric::Accuracy,
            before: OnOff { on: 0.91, off: None },
            after: OnOff { on: 0.52, off: None },
            no_off: Some("the base itself was trained: there is no adapter to switch off".into()),
            ..retained()
        };
        assert_eq!(
            whole.sentence(),
            "the old task's accuracy went from 91.0 % to 52.0 %; the base itself was trained: there is no adapter to switch off"
        );
    }

    #[test]
    fn the_section_is_drawn_and_escaped() {
        let data = ReportData {
            retained: Some(Retained { file: "<i>.jsonl".into(), ..retained() }),
            ..ReportData::default()
        };
        let html = section(&data);
        assert_eq!(html.matches("<rect").count(), 3);
        assert!(!html.contains("<i>") && html.contains("task&#39;s loss went from 1.2300"), "{html}");
        assert!(section(&ReportData::default()).is_empty());
        assert_eq!(rows(&data).len(), 2);
        let odd = Retained { after: OnOff { on: f64::NAN, off: Some(f64::INFINITY) }, ..retained() };
        let html = section(&ReportData { retained: Some(odd), ..ReportData::default() });
        assert!(!html.contains("NaN") && html.contains("not finite"), "{html}");
    }
}
