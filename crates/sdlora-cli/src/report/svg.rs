//! What the figures are drawn with: escaped text, nice ticks, a frame with two axes, lines.
//!
//! Colours are CSS classes of the page, so a figure follows its light or dark mode. The figures are part of an HTML
//! document and so need no XML namespace.

use std::fmt::Write;

/// Text made safe for element content and quoted attributes.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // HTML allows no control character but white space.
            control if control.is_control() && !matches!(control, '\n' | '\t') => {
                safe.push('\u{fffd}')
            }
            other => safe.push(other),
        }
    }
    safe
}

/// A closed range of one axis with the values to label in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// Value at the start of the axis.
    pub min: f64,
    /// Value at its end, greater than `min`.
    pub max: f64,
    /// Labelled values, ascending, inside the range.
    pub ticks: Vec<f64>,
    n_decimals: usize,
}

impl Scale {
    /// The range from `min` to `max` widened to multiples of 1, 2 or 5 times a power of ten, with about `n_ticks`
    /// ticks. What is not finite or empty becomes a range of 1 around its start.
    pub fn nice(min: f64, max: f64, n_ticks: usize) -> Self {
        let min = if min.is_finite() { min } else { 0.0 };
        let max = if max.is_finite() && max > min {
            max
        } else {
            min + 1.0
        };
        // Beyond the precision or the range of a float there is nothing to label.
        let span = max - min;
        let (min, max) = if span.is_finite() && span > min.abs() * 1e-12 {
            (min, max)
        } else {
            (0.0, 1.0)
        };
        let (step, n_decimals) = nice_step((max - min) / n_ticks.max(1) as f64);
        let first = (min / step + 1e-9).floor();
        let last = (max / step - 1e-9).ceil();
        Self {
            min: first * step,
            max: last * step,
            ticks: (0..=(last - first) as usize)
                .map(|tick| (first + tick as f64) * step)
                .collect(),
            n_decimals,
        }
    }

    /// Positions 0 to `n` − 1, at most `n_ticks` of them labelled, with half a place free at both ends.
    pub fn positions(n: usize, n_ticks: usize) -> Self {
        let stride = n.div_ceil(n_ticks.max(1)).max(1);
        Self {
            min: -0.5,
            max: n.max(1) as f64 - 0.5,
            ticks: (0..n).step_by(stride).map(|tick| tick as f64).collect(),
            n_decimals: 0,
        }
    }

    /// The range from `min` to `max` as it is, with ticks at round values inside it.
    pub fn exact(min: f64, max: f64, n_ticks: usize) -> Self {
        let nice = Self::nice(min, max, n_ticks);
        let max = if max > min { max } else { min + 1.0 };
        Self {
            min,
            max,
            ticks: nice
                .ticks
                .into_iter()
                .filter(|tick| (min..=max).contains(tick))
                .collect(),
            ..nice
        }
    }

    /// Position of a value, 0 at the start of the axis and 1 at its end.
    pub fn fraction(&self, value: f64) -> f64 {
        (value - self.min) / (self.max - self.min)
    }

    /// Text of a tick.
    pub fn label(&self, tick: f64) -> String {
        let text = format!("{tick:.*}", self.n_decimals);
        if text
            .trim_start_matches('-')
            .chars()
            .all(|digit| matches!(digit, '0' | '.'))
        {
            return text.trim_start_matches('-').into();
        }
        text
    }
}

/// Smallest of 1, 2 or 5 times a power of ten that is not below `rough`, with the decimals it needs.
fn nice_step(rough: f64) -> (f64, usize) {
    let power = rough.log10().floor();
    let unit = 10f64.powf(power);
    let (factor, power) = match rough / unit {
        ratio if ratio <= 1.0 + 1e-9 => (1.0, power),
        ratio if ratio <= 2.0 + 1e-9 => (2.0, power),
        ratio if ratio <= 5.0 + 1e-9 => (5.0, power),
        _ => (1.0, power + 1.0),
    };
    // Twelve decimals: more would not fit beside an axis.
    (
        factor * 10f64.powf(power),
        (-power).clamp(0.0, 12.0) as usize,
    )
}

/// Size of all line figures in user units; the page scales them to its width.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
/// Room for the labels of the axes.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// A figure with two axes, filled by drawing into it.
#[derive(Debug)]
pub struct Plot {
    x: Scale,
    y: Scale,
    body: String,
    name: String,
}

impl Plot {
    /// Draws grid, ticks and axis titles; `name` is what a screen reader says.
    pub fn new(name: &str, (x_title, x): (&str, Scale), (y_title, y): (&str, Scale)) -> Self {
        let mut plot = Self {
            x,
            y,
            body: String::new(),
            name: name.into(),
        };
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for &tick in &plot.y.ticks {
            let (at, label) = (plot.at_y(tick), plot.y.label(tick));
            plot.body.push_str(&format!(
                r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/>"#
            ));
            plot.body
                .push_str(&text("tick end", LEFT - 8.0, at + 4.0, &label));
        }
        for &tick in &plot.x.ticks {
            let label = plot.x.label(tick);
            plot.body
                .push_str(&text("tick mid", plot.at_x(tick), bottom + 18.0, &label));
        }
        plot.body.push_str(&format!(
            r#"<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>"#
        ));
        plot.body.push_str(&text(
            "title mid",
            (LEFT + right) / 2.0,
            HEIGHT - 8.0,
            x_title,
        ));
        plot.body.push_str(&format!(
            r#"<text class="title mid" transform="translate(13 {:.1}) rotate(-90)">{}</text>"#,
            (TOP + bottom) / 2.0,
            escape(y_title)
        ));
        plot
    }

    /// A line through the points in order, broken where a value is absent or not finite. `style` is put into the
    /// `style` attribute.
    pub fn line(&mut self, class: &str, style: &str, points: &[(f64, Option<f64>)]) {
        let mut path = String::new();
        let mut is_down = false;
        for &(x, y) in points {
            match y.filter(|y| y.is_finite()) {
                Some(y) => {
                    let command = if is_down { 'L' } else { 'M' };
                    // Writing to a string cannot fail.
                    let _ = write!(path, "{command}{:.1} {:.1}", self.at_x(x), self.at_y(y));
                    is_down = true;
                }
                None => is_down = false,
            }
        }
        if !path.is_empty() {
            self.body.push_str(&format!(
                r#"<path class="line {class}" style="{}" d="{path}"/>"#,
                escape(style)
            ));
        }
    }

    /// A dot with a text shown when pointed at; nothing if the value is not finite.
    pub fn dot(&mut self, class: &str, style: &str, (x, y): (f64, f64), tip: &str) {
        if !y.is_finite() {
            return;
        }
        // An eighth of the distance between two positions: dots of a long stream must not hide its lines.
        let radius = ((self.at_x(1.0) - self.at_x(0.0)) / 8.0).clamp(1.5, 4.0);
        self.body.push_str(&format!(
            r#"<circle class="dot {class}" style="{}" cx="{:.1}" cy="{:.1}" r="{:.1}"><title>{}</title></circle>"#,
            escape(style),
            self.at_x(x),
            self.at_y(y),
            radius,
            escape(tip)
        ));
    }

    /// A dot of fixed size with a text shown when pointed at; nothing if it has no place.
    pub fn mark(&mut self, class: &str, style: &str, (x, y): (f64, f64), tip: &str) {
        if !(x.is_finite() && y.is_finite()) {
            return;
        }
        self.body.push_str(&format!(
            r#"<circle class="dot {class}" style="{}" cx="{:.1}" cy="{:.1}" r="4"><title>{}</title></circle>"#,
            escape(style),
            self.at_x(x),
            self.at_y(y),
            escape(tip)
        ));
    }

    /// The area between a lower and an upper value at each x; all must be finite.
    pub fn band(&mut self, class: &str, points: &[(f64, f64, f64)]) {
        let upper = points.iter().map(|&(x, _, upper)| (x, upper));
        let lower = points.iter().rev().map(|&(x, lower, _)| (x, lower));
        let corners: Vec<String> = upper
            .chain(lower)
            .map(|(x, y)| format!("{:.1},{:.1}", self.at_x(x), self.at_y(y)))
            .collect();
        self.body.push_str(&format!(
            r#"<polygon class="band {class}" points="{}"/>"#,
            corners.join(" ")
        ));
    }

    /// A vertical rule with a label at its top.
    pub fn rule(&mut self, x: f64, label: &str) {
        let (at, bottom) = (self.at_x(x), HEIGHT - BOTTOM);
        self.body.push_str(&format!(
            r#"<line class="rule" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom}"/>"#
        ));
        self.body
            .push_str(&text("tick", at + 3.0, TOP + 8.0, label));
    }

    /// The finished figure.
    pub fn finish(self) -> String {
        format!(
            r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">{}</svg>"#,
            escape(&self.name),
            self.body
        )
    }

    fn at_x(&self, x: f64) -> f64 {
        LEFT + self.x.fraction(x) * (WIDTH - LEFT - RIGHT)
    }

    fn at_y(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.fraction(y) * (HEIGHT - TOP - BOTTOM)
    }
}

/// A text element; `content` is escaped.
pub fn text(class: &str, x: f64, y: f64, content: &str) -> String {
    format!(
        r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#,
        escape(content)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_text_is_harmless() {
        assert_eq!(
            escape("<b a=\"1\" c='2'>&\u{0}</b>\n"),
            "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;\u{fffd}&lt;/b&gt;\n"
        );
    }

    #[test]
    fn ticks_are_round_and_cover_the_data() {
        let scale = Scale::nice(0.13, 0.87, 5);
        assert_eq!((scale.min, scale.max), (0.0, 1.0));
        let labels: Vec<String> = scale.ticks.iter().map(|&tick| scale.label(tick)).collect();
        assert_eq!(labels, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(Scale::nice(-30.0, 70.0, 4).ticks, [-50.0, 0.0, 50.0, 100.0]);
        assert_eq!(Scale::nice(0.0, 1e-4, 2).label(5e-5), "0.00005");
        assert_eq!(Scale::exact(3.0, 98.0, 4).ticks, [50.0]);
        assert_eq!(Scale::positions(20, 10).ticks.len(), 10);
    }

    #[test]
    fn no_range_breaks_a_scale() {
        for (min, max) in [
            (1.0, 1.0),
            (f64::NAN, 2.0),
            (2.0, f64::INFINITY),
            (3.0, 1.0),
            (0.0, 1e-300),
            (1e17, 1e17),
            (1.0, 1.0 + 1e-15),
            (-1e308, 1e308),
        ] {
            for scale in [Scale::nice(min, max, 5), Scale::nice(min, max, 0)] {
                assert!(
                    scale.max > scale.min && scale.ticks.len() >= 2,
                    "{min}..{max}: {scale:?}"
                );
                assert!(scale.ticks.len() < 30);
            }
        }
    }

    #[test]
    fn a_line_breaks_where_a_value_is_absent() {
        let scale = || Scale::nice(0.0, 1.0, 2);
        let mut plot = Plot::new("a < b", ("x", scale()), ("y", scale()));
        plot.line(
            "c1",
            "",
            &[
                (0.0, Some(0.0)),
                (0.5, None),
                (0.6, Some(f64::NAN)),
                (1.0, Some(1.0)),
            ],
        );
        let svg = plot.finish();
        assert!(svg.contains(r#"d="M52.0 254.0M544.0 14.0""#), "{svg}");
        assert!(svg.contains(r#"aria-label="a &lt; b""#));
        assert!(!svg.contains("NaN"));
    }
}
