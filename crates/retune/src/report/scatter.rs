//! Scatter charts as SVG: one dot a run, numbered, with a tooltip. Colours come from the CSS.

use super::chart::{Frame, grid_lines, range, tick_label, tick_step, ticks};
use super::escape;

/// How the x axis grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// By powers of ten; what is not above 0 is left out.
    Log,
}

/// What a dot stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Best,
    Plain,
    /// A run that did not come to its end.
    Hollow,
}

/// One dot.
pub(crate) struct Dot {
    pub x: f64,
    pub y: f64,
    /// Its number in the table below.
    pub number: usize,
    pub title: String,
    pub mark: Mark,
}

/// Dots over an x axis.
pub(crate) struct Scatter {
    pub scale: Scale,
    /// What an x is in words.
    pub label: fn(f64) -> String,
    pub dots: Vec<Dot>,
}

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 270.0;
/// Of more dots than this only the best has its number.
const NUMBERED_MAX: usize = 40;

impl Scatter {
    pub fn svg(&self) -> String {
        let at = |dot: &Dot| if self.scale == Scale::Log { dot.x.log10() } else { dot.x };
        let dots: Vec<(f64, &Dot)> = self.dots.iter().map(|dot| (at(dot), dot)).collect();
        let dots: Vec<(f64, &Dot)> =
            dots.into_iter().filter(|(x, dot)| x.is_finite() && dot.y.is_finite()).collect();
        let ys = padded(range(dots.iter().map(|(_, dot)| dot.y)), 0.08);
        let step = tick_step(ys, 5);
        let y_ticks = ticks(ys, step);
        let y_labels = y_ticks.iter().map(|y| (*y, tick_label(*y, &y_ticks))).collect::<Vec<_>>();
        let xs = padded(range(dots.iter().map(|(x, _)| *x)), 0.07);
        let x_labels: Vec<(f64, String)> = match self.scale {
            Scale::Linear => ticks(xs, tick_step(xs, 4))
                .into_iter()
                .filter(|x| *x >= 0.0)
                .map(|x| (x, (self.label)(x)))
                .collect(),
            Scale::Log => log_ticks(xs).into_iter().map(|x| (x.log10(), (self.label)(x))).collect(),
        };
        let frame = Frame {
            width: WIDTH,
            height: HEIGHT,
            left: 46.0,
            right: 14.0,
            top: 10.0,
            bottom: 26.0,
            x: xs,
            y: ys,
        };
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
        svg += &grid_lines(&frame, &y_labels, &x_labels);
        // The best lies on top.
        let numbered = dots.len() <= NUMBERED_MAX;
        for (x, dot) in dots.iter().filter(|(_, dot)| dot.mark != Mark::Best) {
            svg += &draw(&frame, *x, dot, numbered);
        }
        for (x, dot) in dots.iter().filter(|(_, dot)| dot.mark == Mark::Best) {
            svg += &draw(&frame, *x, dot, true);
        }
        svg + "</svg>\n"
    }
}

fn draw(frame: &Frame, x: f64, dot: &Dot, numbered: bool) -> String {
    let (cx, cy) = (frame.x_at(x), frame.y_at(dot.y));
    let (class, r) = match dot.mark {
        Mark::Best => ("second", 7.5),
        Mark::Plain => ("main", 5.5),
        Mark::Hollow => ("hollow", 5.0),
    };
    let title = escape(&dot.title);
    let mut svg = format!(
        "<circle class=\"{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{r}\"><title>{title}</title></circle>\n"
    );
    // Those that were ended early lie close together, and nobody looks for them.
    if numbered && dot.mark != Mark::Hollow {
        let weight = if dot.mark == Mark::Best { "label second" } else { "tick" };
        let (left, anchor) =
            if cx > frame.width - 40.0 { (cx - r - 3.0, "end") } else { (cx + r + 3.0, "start") };
        svg += &format!(
            "<text class=\"{weight}\" x=\"{left:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>\n",
            cy - r + 1.0,
            dot.number
        );
    }
    svg
}

fn padded((low, high): (f64, f64), share: f64) -> (f64, f64) {
    let room = (high - low) * share;
    (low - room, high + room)
}

/// Round values within powers of ten: 1, 2 and 5 of each in a short range, else 1 alone.
fn log_ticks((low, high): (f64, f64)) -> Vec<f64> {
    let parts: &[f64] = if high - low > 2.5 {
        &[1.0]
    } else if high - low > 1.2 {
        &[1.0, 3.0]
    } else {
        &[1.0, 2.0, 5.0]
    };
    let powers = (low.floor() as i32)..=(high.ceil() as i32);
    let all = powers.flat_map(|power| parts.iter().map(move |part| part * 10f64.powi(power)));
    let within: Vec<f64> = all.filter(|x| (low..=high).contains(&x.log10())).take(20).collect();
    // A range between two round values still needs a value to be read at.
    if within.is_empty() { vec![10f64.powf(0.5 * (low + high))] } else { within }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithmic_ticks_are_round() {
        let near = |got: Vec<f64>, want: &[f64]| {
            assert!(
                got.len() == want.len() && got.iter().zip(want).all(|(a, b)| (a / b - 1.0).abs() < 1e-9),
                "{got:?}"
            );
        };
        near(log_ticks((3.0, 4.0)), &[1000.0, 2000.0, 5000.0, 10_000.0]);
        near(log_ticks((2.5, 5.6)), &[1e3, 1e4, 1e5]);
        near(log_ticks((3.05, 3.1)), &[10f64.powf(3.075)]);
    }

    #[test]
    fn odd_dots_are_drawn_or_left_out() {
        let dot = |x, y, mark| Dot { x, y, number: 7, title: "<b>".into(), mark };
        let draw = |dots| Scatter { scale: Scale::Log, label: |x| format!("{x:.0}"), dots }.svg();
        assert!(!draw(vec![]).contains("NaN"));
        let one = draw(vec![
            dot(1000.0, 2.0, Mark::Best),
            dot(0.0, 1.0, Mark::Plain),
            dot(10.0, f64::NAN, Mark::Hollow),
        ]);
        assert!(!one.contains("NaN") && !one.contains("inf") && !one.contains("<b>"), "{one}");
        assert_eq!(one.matches("<circle").count(), 1);
    }
}
