//! Line charts as SVG: quiet axes, round ticks, lines named at their ends, values as tooltips. Colours come from the CSS.

use super::{escape, number};

/// One chart over a shared x axis.
pub struct Chart {
    pub height: f64,
    /// Whether the y axis starts at 0.
    pub from_zero: bool,
    pub lines: Vec<Line>,
}

/// One series; points that aren't finite are left out.
pub struct Line {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
    pub style: Style,
}

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Main,
    Faint,
    /// A line with a dot and a tooltip at each point, in the second colour.
    Dots,
}

/// More points than pixels help nobody.
const POINTS_MAX: usize = 800;

/// The drawing area inside the picture, and the values at its edges.
pub(super) struct Frame {
    pub width: f64,
    pub height: f64,
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
    pub x: (f64, f64),
    pub y: (f64, f64),
}

impl Frame {
    pub fn x_at(&self, x: f64) -> f64 {
        let share = (x - self.x.0) / (self.x.1 - self.x.0);
        self.left + share * (self.width - self.left - self.right)
    }

    pub fn y_at(&self, y: f64) -> f64 {
        let share = (y - self.y.0) / (self.y.1 - self.y.0);
        self.height - self.bottom - share * (self.height - self.top - self.bottom)
    }
}

impl Chart {
    /// Over the full width of the page.
    pub fn svg(&self) -> String {
        self.draw(820.0, 76.0, 8)
    }

    /// A third of the page.
    pub fn svg_small(&self) -> String {
        self.draw(300.0, 10.0, 4)
    }

    fn draw(&self, width: f64, right: f64, x_ticks: usize) -> String {
        let lines: Vec<Line> = self.lines.iter().map(thinned).collect();
        let xs = range(lines.iter().flat_map(|line| line.points.iter().map(|p| p.0)));
        let mut ys = range(lines.iter().flat_map(|line| line.points.iter().map(|p| p.1)));
        if self.from_zero {
            ys.0 = ys.0.min(0.0);
        }
        // Grow the axis to whole ticks, so that the grid frames the curve.
        let step = tick_step(ys, if self.height < 200.0 { 3 } else { 5 });
        ys = ((ys.0 / step + 1e-9).floor() * step, (ys.1 / step - 1e-9).ceil() * step);
        let frame =
            Frame { width, height: self.height, left: 52.0, right, top: 10.0, bottom: 26.0, x: xs, y: ys };
        let mut svg = format!("<svg viewBox=\"0 0 {width} {}\" role=\"img\">\n", self.height);
        svg += &grid(&frame, &ticks(ys, step), &ticks(xs, tick_step(xs, x_ticks)));
        let mut taken = Vec::new();
        for line in &lines {
            svg += &draw_line(&frame, line, &mut taken);
        }
        svg + "</svg>\n"
    }
}

fn grid(frame: &Frame, y_ticks: &[f64], x_ticks: &[f64]) -> String {
    let labelled = |all: &[f64]| all.iter().map(|x| (*x, tick_label(*x, all))).collect::<Vec<_>>();
    grid_lines(frame, &labelled(y_ticks), &labelled(x_ticks))
}

/// A line at each y, and the labels of both axes.
pub(super) fn grid_lines(frame: &Frame, y_ticks: &[(f64, String)], x_ticks: &[(f64, String)]) -> String {
    let mut svg = String::new();
    for (y, label) in y_ticks {
        let at = frame.y_at(*y);
        svg += &format!(
            "<line class=\"grid\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
            frame.left,
            frame.width - frame.right,
            frame.left - 8.0,
            at + 4.0
        );
    }
    for (x, label) in x_ticks {
        svg += &format!(
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
            frame.x_at(*x),
            frame.height - 6.0
        );
    }
    svg
}

/// `taken` holds the heights of labels so far, so that two lines that end close together stay readable.
fn draw_line(frame: &Frame, line: &Line, taken: &mut Vec<f64>) -> String {
    let Some(&(last_x, last_y)) = line.points.last() else { return String::new() };
    let class = match line.style {
        Style::Main => "main",
        Style::Faint => "faint",
        Style::Dots => "second",
    };
    let at = |&(x, y): &(f64, f64)| format!("{:.1},{:.1}", frame.x_at(x), frame.y_at(y));
    let path: Vec<String> = line.points.iter().map(at).collect();
    let mut svg = format!("<polyline class=\"{class}\" points=\"{}\"/>\n", path.join(" "));
    if line.style == Style::Dots || line.points.len() == 1 {
        for &(x, y) in &line.points {
            svg += &format!(
                "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>step {x}: {}</title></circle>\n",
                frame.x_at(x),
                frame.y_at(y),
                number(y)
            );
        }
    }
    if !line.name.is_empty() {
        let y = free_height(taken, frame.y_at(last_y) + 4.0);
        taken.push(y);
        svg += &format!(
            "<text class=\"label {class}\" x=\"{0:.1}\" y=\"{1:.1}\">{2}</text><text class=\"label {class}\" x=\"{0:.1}\" y=\"{3:.1}\">{4}</text>\n",
            frame.x_at(last_x) + 10.0,
            y - 6.0,
            escape(line.name),
            y + 7.0,
            number(last_y)
        );
    }
    svg
}

/// The first height from `y` downwards that is a label away from those in `taken`.
fn free_height(taken: &[f64], mut y: f64) -> f64 {
    const LABEL: f64 = 28.0;
    // A hair less than the distance that it moves by: rounding must not find the same one again.
    while let Some(other) = taken.iter().find(|other| (*other - y).abs() < LABEL - 0.01) {
        y = other + LABEL;
    }
    y
}

/// Leaves out what isn't finite, and averages neighbours where there are more points than [`POINTS_MAX`].
fn thinned(line: &Line) -> Line {
    let finite: Vec<(f64, f64)> =
        line.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let group = finite.len().div_ceil(POINTS_MAX).max(1);
    let mean = |points: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| {
        points.iter().map(pick).sum::<f64>() / points.len() as f64
    };
    let points = finite.chunks(group).map(|points| (mean(points, |p| p.0), mean(points, |p| p.1))).collect();
    Line { name: line.name, points, style: line.style }
}

/// Lowest and highest value, never equal; (0, 1) of nothing.
pub(super) fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    match (low.is_finite() && high.is_finite(), low < high) {
        (false, _) => (0.0, 1.0),
        (true, true) => (low, high),
        (true, false) => (low - low.abs().max(1e-9) * 0.5, high + high.abs().max(1e-9) * 0.5),
    }
}

/// The distance of about `wanted` round ticks (1, 2 or 5 times a power of ten) within a range.
pub(super) fn tick_step((low, high): (f64, f64), wanted: usize) -> f64 {
    let rough = (high - low) / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|step| *step >= rough * 0.999).unwrap_or(rough)
}

/// The multiples of `step` within a range.
pub(super) fn ticks((low, high): (f64, f64), step: f64) -> Vec<f64> {
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).take(50).map(|i| i as f64 * step).collect()
}

/// A tick with as many decimals as its axis needs, the same on all of them.
pub(super) fn tick_label(value: f64, all: &[f64]) -> String {
    let largest = all.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let step = all.get(1).zip(all.first()).map_or(largest, |(b, a)| b - a);
    if value == 0.0 {
        return "0".into();
    }
    if !(0.001..1e6).contains(&largest) {
        return format!("{value:.0e}").replace("e", "e\u{200a}");
    }
    let decimals = (-(step.abs().max(1e-12)).log10() + 0.001).ceil().clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let ticks = |range, wanted| ticks(range, tick_step(range, wanted));
        assert_eq!(ticks((0.0, 210.0), 8), [0.0, 50.0, 100.0, 150.0, 200.0]);
        assert_eq!(ticks((1.4, 3.6), 5), [1.5, 2.0, 2.5, 3.0, 3.5]);
        assert_eq!(ticks((0.0, 2e-4), 3).len(), 3);
        assert_eq!(tick_label(1.5, &[1.0, 1.5]), "1.5");
        assert_eq!(tick_label(2.0, &[1.0, 1.5]), "2.0");
        assert_eq!(tick_label(150.0, &[100.0, 150.0]), "150");
    }

    /// `x + 28 - x` is less than 28 for some x.
    #[test]
    fn labels_that_end_together_find_their_places() {
        let mut rounds_down = 0;
        for i in 0..20_000 {
            let x = 40.0 + f64::from(i) * 0.013_7;
            rounds_down += usize::from(x + 28.0 - x < 28.0);
            let y = free_height(&[x, x + 28.0], x);
            assert!(y - x > 55.9);
        }
        assert!(rounds_down > 0, "the case is among them");
    }

    #[test]
    fn long_and_flat_series_are_drawn() {
        let line =
            Line { name: "x", points: (0..10_000).map(|i| (i as f64, 3.0)).collect(), style: Style::Main };
        let svg = Chart { height: 200.0, from_zero: false, lines: vec![line] }.svg();
        assert!(svg.len() < 40_000 && !svg.contains("NaN"));
        let empty = Line { name: "x", points: vec![(1.0, f64::NAN)], style: Style::Dots };
        assert!(!Chart { height: 200.0, from_zero: true, lines: vec![empty] }.svg().contains("NaN"));
    }
}
