//! Figures that stand alone as SVG files: title, legend and colours inside, nothing loaded.
//!
//! Colours are written out: not every program that shows SVG knows CSS variables.

use super::svg::{Plot, Scale, escape, text};

/// Colours of lines, told apart also by the colour-blind.
pub const COLOURS: [&str; 6] = [
    "#1f6fd0", "#b8500b", "#2a8a4a", "#8a3fb0", "#6d737d", "#c02a5b",
];

/// A named line.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it shows; empty keeps it out of the legend.
    pub name: String,
    /// Its colour, as `#rrggbb`.
    pub colour: String,
    /// Points from left to right; a missing or infinite value breaks the line.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A line over positions 0, 1, 2, … in one of [`COLOURS`].
    pub fn over_tasks(name: &str, colour_idx: usize, values: &[f64]) -> Self {
        let positions: Vec<usize> = (0..values.len()).collect();
        Self::over(name, colour_idx, &positions, values)
    }

    /// A line over the given positions in one of [`COLOURS`].
    pub fn over(name: &str, colour_idx: usize, positions: &[usize], values: &[f64]) -> Self {
        let points = positions.iter().zip(values);
        Self {
            name: name.into(),
            colour: COLOURS[colour_idx % COLOURS.len()].into(),
            points: points.map(|(&i, &v)| (i as f64, v)).collect(),
        }
    }
}

/// The colour of the `i`-th of `n` ordered lines, from light to dark blue.
pub fn shade(i: usize, n: usize) -> String {
    let share = if n > 1 {
        i as f64 / (n - 1) as f64
    } else {
        1.0
    };
    let mix = |a: f64, b: f64| (a + share * (b - a)).round() as u8;
    format!(
        "#{:02x}{:02x}{:02x}",
        mix(127.0, 11.0),
        mix(178.0, 47.0),
        mix(238.0, 96.0)
    )
}

/// An axis: its title and, where it is not from the data, its range.
#[derive(Debug, Clone, Copy)]
pub struct Axis<'a> {
    /// Title.
    pub title: &'a str,
    /// Values that must be in sight, for instance 0.
    pub within: &'a [f64],
}

const LINE: &str = "fill:none;stroke-width:2;stroke-linejoin:round;stroke:";

/// Lines over numbers.
pub fn lines(title: &str, x: Axis<'_>, y: Axis<'_>, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|s| s.points.iter().copied());
    let finite = |values: &mut dyn Iterator<Item = f64>, within: &[f64]| {
        let all = values.chain(within.iter().copied());
        all.filter(|v| v.is_finite())
            .fold(None, |range: Option<(f64, f64)>, v| {
                Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
            })
            .unwrap_or((0.0, 1.0))
    };
    let (left, right) = finite(&mut points().map(|(x, _)| x), x.within);
    let (low, high) = finite(&mut points().map(|(_, y)| y), y.within);
    let x_scale = if left == 0.0 && right.fract() == 0.0 && right < 1000.0 && right > 1.0 {
        Scale::positions(right as usize + 1, 20)
    } else {
        Scale::exact(left, right, 8)
    };
    let mut plot = Plot::new(
        title,
        (x.title, x_scale),
        (y.title, Scale::nice(low, high, 5)),
    );
    for line in series {
        let points: Vec<(f64, Option<f64>)> =
            line.points.iter().map(|&(x, y)| (x, Some(y))).collect();
        plot.line("", &format!("{LINE}{}", line.colour), &points);
    }
    let legend: Vec<(&str, &str)> = series
        .iter()
        .filter(|s| !s.name.is_empty())
        .map(|s| (s.colour.as_str(), s.name.as_str()))
        .collect();
    alone(title, &legend, &plot.finish(), (560.0, 300.0))
}

/// A matrix as coloured cells; `range` are the values of the lightest and of the darkest colour. What
/// is not finite stays empty.
pub fn heat(
    title: &str,
    (row_title, column_title): (&str, &str),
    rows: &[Vec<f64>],
    (low, high): (f64, f64),
) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let side = (480.0 / n_columns.max(rows.len()).max(1) as f64).clamp(1.5, 40.0);
    let (left, top) = (60.0, 8.0);
    let (width, height) = (side * n_columns as f64, side * rows.len() as f64);
    let span = if high > low { high - low } else { 1.0 };
    let mut body = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (j, &value) in row.iter().enumerate().filter(|(_, v)| v.is_finite()) {
            let strength = ((value - low) / span).clamp(0.0, 1.0);
            body.push_str(&format!(
                r##"<g><title>{i}, {j}: {value:.4}</title><rect x="{:.1}" y="{:.1}" width="{side:.2}" height="{side:.2}" fill="#0d366b" fill-opacity="{:.3}"/>"##,
                left + side * j as f64,
                top + side * i as f64,
                0.04 + 0.96 * strength,
            ));
            if side >= 28.0 {
                let class = if strength < 0.6 { "mid" } else { "mid light" };
                let (x, y) = (
                    left + side * (j as f64 + 0.5),
                    top + side * (i as f64 + 0.5),
                );
                body.push_str(&text(class, x, y + 4.0, &format!("{value:.2}")));
            }
            body.push_str("</g>");
        }
    }
    for &tick in &Scale::positions(rows.len(), 20).ticks {
        let y = top + side * (tick + 0.5) + 4.0;
        body.push_str(&text("tick end", left - 6.0, y, &format!("{tick:.0}")));
    }
    for &tick in &Scale::positions(n_columns, 20).ticks {
        let x = left + side * (tick + 0.5);
        body.push_str(&text(
            "tick mid",
            x,
            top + height + 16.0,
            &format!("{tick:.0}"),
        ));
    }
    let x = left + width / 2.0;
    body.push_str(&text("title mid", x, top + height + 36.0, column_title));
    body.push_str(&format!(
        r#"<text class="title mid" transform="translate(16 {:.1}) rotate(-90)">{}</text>"#,
        top + height / 2.0,
        escape(row_title)
    ));
    let size = (left + width + 16.0, top + height + 46.0);
    let range = format!("light {low:.3}, dark {high:.3}");
    let inner = format!(
        r#"<svg viewBox="0 0 {:.1} {:.1}">{body}</svg>"#,
        size.0, size.1
    );
    alone(title, &[("#0d366b", &range)], &inner, size)
}

const STYLE: &str = "text{font:12px sans-serif;fill:#5b616b}.title{fill:#16181c}.mid{text-anchor:middle}.end{text-anchor:end}.light{fill:#ffffff}.grid{stroke:#e3e4e0}.axis,.rule{stroke:#a9adb3}.head{font-weight:600;fill:#16181c}";

/// Wraps a figure into a file of its own.
fn alone(title: &str, legend: &[(&str, &str)], inner: &str, (width, height): (f64, f64)) -> String {
    let total = width.max(560.0);
    let mut top = 26.0;
    let mut keys = String::new();
    let mut x = 12.0;
    if !legend.is_empty() {
        top += 20.0;
    }
    for (colour, name) in legend {
        // About six units a letter.
        let length = 34.0 + 6.2 * name.chars().count() as f64;
        if x > 12.0 && x + length > total {
            (x, top) = (12.0, top + 18.0);
        }
        let y = top - 8.0;
        keys.push_str(&format!(
            r#"<rect x="{x:.1}" y="{:.1}" width="16" height="4" fill="{colour}"/>"#,
            y - 6.0
        ));
        keys.push_str(&text("", x + 21.0, y, name));
        x += length;
    }
    let placed = format!(r#"<svg y="{top}" width="{width}" height="{height}" "#);
    let inner = inner.replacen("<svg ", &placed, 1);
    let all = top + height;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total:.0} {all:.0}" width="{total:.0}" height="{all:.0}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>{}{keys}{inner}</svg>
"##,
        text("head", 12.0, 18.0, title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(title: &str) -> Axis<'_> {
        Axis { title, within: &[] }
    }

    #[test]
    fn a_figure_has_a_namespace_its_colours_and_no_bare_markup() {
        let series = [Series::over_tasks("a < b", 1, &[0.5, f64::NAN, 0.25])];
        let svg = lines("x & y", axis("task"), axis("value"), &series);
        assert!(svg.starts_with("<svg xmlns="));
        assert!(svg.contains("a &lt; b") && svg.contains("x &amp; y"));
        assert!(svg.contains(COLOURS[1]) && !svg.contains("var("));
        assert!(!svg.contains("NaN"));
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    }

    #[test]
    fn nothing_to_draw_is_still_a_figure() {
        for svg in [
            lines("none", axis("x"), axis("y"), &[]),
            heat("none", ("x", "y"), &[], (0.0, 0.0)),
            heat("none", ("x", "y"), &[vec![f64::NAN]], (0.0, 1.0)),
        ] {
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
        }
    }

    #[test]
    fn cells_are_darker_where_values_are_larger() {
        let svg = heat("h", ("row", "column"), &[vec![0.0, 1.0]], (0.0, 1.0));
        assert_eq!(svg.matches("fill-opacity").count(), 2);
        assert!(svg.contains(r#"fill-opacity="0.040""#) && svg.contains(r#"fill-opacity="1.000""#));
    }
}
