//! The figures of the page.

use sdlora_metrics::AccuracyMatrix;

use super::ReportInput;
use super::classes::level_paths;
use super::page::percent_or_dash;
use super::svg::{Plot, Scale, escape, text};
use super::table::percent;

/// Largest number of points of the loss curve: more would not be seen at its width.
const MAX_LOSS_POINTS: usize = 240;

/// Largest number of dots with a text in a figure of lines: those of longer streams would take more room than all else.
const MAX_DOTS: usize = 400;
/// Tasks from which on the cells of the matrix have no text of their own.
const MANY_TASKS: usize = 40;

/// Name of a task: its own, or its number.
pub fn task_name(task_names: &[String], task_idx: usize) -> String {
    match task_names.get(task_idx).filter(|name| !name.is_empty()) {
        Some(name) => format!("task {task_idx} ({name})"),
        None => format!("task {task_idx}"),
    }
}

/// Accuracy after every task: mean over the seen tasks, over their images, and on the newest task.
pub fn accuracy_curve(input: &ReportInput) -> String {
    let matrix = input.matrix;
    let newest = (0..matrix.n_rows())
        .map(|after| matrix.get(after, after))
        .collect();
    let series = [
        ("s3", "newest task", newest),
        (
            "s2",
            "mean over images",
            input.summary.weighted_accuracy_curve.clone(),
        ),
        (
            "s1",
            "mean over tasks",
            input.summary.accuracy_curve.clone(),
        ),
    ];
    let values = series.iter().flat_map(|(_, _, curve)| curve).flatten();
    let lowest = values.fold(1.0, |lowest: f64, value| lowest.min(*value));
    let y = Scale::nice((100.0 * lowest - 2.0).max(0.0), 100.0, 5);
    let x = Scale::positions(matrix.n_tasks(), 20);
    let mean = &input.summary.accuracy_curve;
    let says = match (mean.iter().flatten().next(), mean.iter().flatten().last()) {
        (Some(&first), Some(&last)) => format!(
            "Accuracy after every task: the mean over tasks starts at {} and is {} after task {}",
            percent_or_dash(Some(first)),
            percent_or_dash(Some(last)),
            matrix.n_rows() - 1
        ),
        _ => "Accuracy after every task".to_owned(),
    };
    let has_dots = 3 * matrix.n_rows() <= MAX_DOTS;
    let mut plot = Plot::new(&says, ("after task", x), ("accuracy in %", y));

    let mut legend = String::new();
    for (class, name, curve) in &series {
        let points: Vec<(f64, Option<f64>)> = curve
            .iter()
            .enumerate()
            .map(|(after, value)| (after as f64, value.map(|value| 100.0 * value)))
            .collect();
        plot.line(class, "", &points);
        let dots = points.iter().filter(|_| has_dots);
        for (after, value) in dots.filter_map(|&(after, value)| Some((after, value?))) {
            let tip = format!(
                "after {}: {name} {value:.2} %",
                task_name(input.task_names, after as usize)
            );
            plot.dot(class, "", (after, value), &tip);
        }
        if curve.iter().any(Option::is_some) {
            legend.insert_str(0, &format!(r#"<span class="key {class}">{name}</span>"#));
        }
    }
    format!(r#"<div class="legend">{legend}</div>{}"#, plot.finish())
}

/// The matrix as coloured cells with their numbers: row = after task, column = on task.
pub fn heat_map(matrix: &AccuracyMatrix, task_names: &[String]) -> String {
    let n_tasks = matrix.n_tasks();
    // Cells of 40 units hold a number; from 13 tasks on they shrink to keep the figure's size.
    let side = (520.0 / n_tasks.max(1) as f64).clamp(6.0, 40.0);
    let (left, top) = (52.0, 14.0);
    let (width, height) = (
        left + side * n_tasks as f64 + 4.0,
        top + side * n_tasks as f64 + 46.0,
    );
    let cells =
        || (0..matrix.n_rows()).flat_map(move |after| (0..n_tasks).map(move |on| (after, on)));
    let values = cells().filter_map(|(after, on)| matrix.get(after, on));
    let lowest = values.fold(1.0, f64::min);
    // The scale starts at the ten below the lowest value, so that differences at the top are seen.
    let floor = ((lowest * 10.0).floor() / 10.0).min(0.9);

    let mut body = String::new();
    if n_tasks > MANY_TASKS {
        let strengths = cells().filter_map(|(after, on)| {
            let value = matrix.get(after, on)?;
            Some((after, on, (value - floor) / (1.0 - floor)))
        });
        body.push_str(&format!(
            r#"<g transform="translate({left} {top}) scale({side:.3})">{}</g>"#,
            level_paths("cell", strengths)
        ));
    }
    for (after, on) in cells().filter(|_| n_tasks <= MANY_TASKS) {
        let Some(value) = matrix.get(after, on) else {
            continue;
        };
        let (x, y) = (left + side * on as f64, top + side * after as f64);
        let strength = (value - floor) / (1.0 - floor);
        body.push_str(&format!(
            r#"<g><title>after {}, on {}: {:.2} %</title><rect class="cell" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="2" fill-opacity="{:.3}"/>"#,
            escape(&task_name(task_names, after)),
            escape(&task_name(task_names, on)),
            100.0 * value,
            x + 1.0,
            y + 1.0,
            side - 2.0,
            side - 2.0,
            0.06 + 0.94 * strength
        ));
        if side >= 25.0 {
            let label = if side >= 34.0 {
                percent(value)
            } else {
                format!("{:.0}", 100.0 * value)
            };
            let class = if strength < 0.63 {
                "cell-text mid"
            } else {
                "cell-text mid strong"
            };
            body.push_str(&text(class, x + side / 2.0, y + side / 2.0 + 4.0, &label));
        }
        body.push_str("</g>");
    }
    for &tick in &Scale::positions(n_tasks, 26).ticks {
        let centre = side * (tick + 0.5);
        let label = format!("{tick:.0}");
        body.push_str(&text("tick end", left - 8.0, top + centre + 4.0, &label));
        body.push_str(&text(
            "tick mid",
            left + centre,
            top + side * n_tasks as f64 + 18.0,
            &label,
        ));
    }
    let middle = side * n_tasks as f64 / 2.0;
    body.push_str(&text("title mid", left + middle, height - 8.0, "on task"));
    body.push_str(&format!(
        r#"<text class="title mid" transform="translate(13 {:.1}) rotate(-90)">after task</text>"#,
        top + middle
    ));
    let says = match matrix.last_seen() {
        Some(row) if !row.is_empty() => {
            let worst = row.iter().copied().fold(f64::INFINITY, f64::min);
            format!(
                "Accuracy matrix of {n_tasks} tasks; after task {}, the accuracy on the tasks seen lies between {} and {}",
                matrix.n_rows() - 1,
                percent_or_dash(Some(worst)),
                percent_or_dash(row.iter().copied().reduce(f64::max))
            )
        }
        _ => "Accuracy matrix in percent".to_owned(),
    };
    format!(
        r#"<div class="legend">{:.0} %<span class="heat-scale"></span>100 %</div><svg class="heat" viewBox="0 0 {width:.1} {height:.1}" style="max-width:{:.0}px" role="img" aria-label="{}">{body}</svg>"#,
        100.0 * floor,
        1.3 * width,
        escape(&says)
    )
}

/// Magnitude of every direction after every task, one line per direction; `None` without a finite value.
pub fn magnitudes(input: &ReportInput) -> Option<String> {
    let rows = input.magnitudes;
    let n_directions = rows.iter().map(Vec::len).max().unwrap_or(0);
    let (min, max) = range(rows.iter().flatten().copied())?;
    // Zero is a direction that does nothing: keep it in sight.
    let y = Scale::nice(min.min(0.0), max.max(0.0), 5);
    let x = Scale::positions(rows.len(), 20);
    let says = format!(
        "Magnitude of {n_directions} directions after every task, between {min:.3} and {max:.3}"
    );
    let has_dots = rows.iter().map(Vec::len).sum::<usize>() <= MAX_DOTS;
    let mut plot = Plot::new(&says, ("after task", x), ("magnitude", y));
    for direction in 0..n_directions {
        let style = ramp(direction, n_directions);
        let points: Vec<(f64, Option<f64>)> = rows
            .iter()
            .enumerate()
            .map(|(after, row)| (after as f64, row.get(direction).copied()))
            .collect();
        plot.line("ramp", &style, &points);
        let dots = points.iter().filter(|_| has_dots);
        for (after, value) in dots.filter_map(|&(after, value)| Some((after, value?))) {
            let tip = format!(
                "direction of {} after task {after:.0}: {value:.4}",
                task_name(input.task_names, direction)
            );
            plot.dot("ramp", &style, (after, value), &tip);
        }
    }
    let legend = match n_directions {
        1 => r#"<span class="key ramp">direction of task 0</span>"#.to_string(),
        _ => format!(
            r#"direction of task 0<span class="ramp-scale"></span>of task {}"#,
            n_directions - 1
        ),
    };
    Some(format!(
        r#"<div class="legend">{legend}</div>{}"#,
        plot.finish()
    ))
}

/// Training loss over steps: mean of neighbouring steps as a line, their range as a band; `None` without a finite
/// loss.
pub fn loss_curve(input: &ReportInput) -> Option<String> {
    let finite: Vec<(f64, f64)> = input
        .losses
        .iter()
        .filter(|(_, loss)| loss.is_finite())
        .map(|&(step, loss)| (step as f64, loss))
        .collect();
    let (min, max) = range(finite.iter().map(|&(_, loss)| loss))?;
    let (first, last) = range(finite.iter().map(|&(step, _)| step))?;
    let y = Scale::nice(min.min(0.0), max, 5);
    let x = Scale::exact(first, last, 6);
    let says = format!(
        "Training loss of {} steps, between {min:.3} and {max:.3}",
        finite.len()
    );
    let mut plot = Plot::new(&says, ("step", x), ("loss", y));
    // Labels need about 36 units of the width each.
    let label_stride = input.task_starts.len().div_ceil(12).max(1);
    for (task_idx, &start) in input.task_starts.iter().enumerate() {
        let label = if task_idx % label_stride == 0 {
            task_idx.to_string()
        } else {
            String::new()
        };
        if (first..=last).contains(&(start as f64)) {
            plot.rule(start as f64, &label);
        }
    }

    // Points are joined inside a task only: the loss of a new task starts anew.
    let task_of = |step: f64| {
        input
            .task_starts
            .partition_point(|&start| start as f64 <= step)
    };
    let bucket = finite.len().div_ceil(MAX_LOSS_POINTS).max(1);
    for task in finite.chunk_by(|left, right| task_of(left.0) == task_of(right.0)) {
        let mut line = Vec::new();
        let mut band = Vec::new();
        for steps in task.chunks(bucket) {
            let n = steps.len() as f64;
            let step = steps.iter().map(|&(step, _)| step).sum::<f64>() / n;
            let mean = steps.iter().map(|&(_, loss)| loss).sum::<f64>() / n;
            line.push((step, Some(mean)));
            if let Some((low, high)) = range(steps.iter().map(|&(_, loss)| loss)) {
                band.push((step, low, high));
            }
        }
        if bucket > 1 {
            plot.band("s1", &band);
        }
        plot.line("s1", "", &line);
    }
    let n_left_out = input.losses.len() - finite.len();
    let mut legend = match bucket {
        1 => r#"<span class="key s1">loss of each step</span>"#.to_string(),
        _ => format!(r#"<span class="key s1">mean of {bucket} steps, band: their range</span>"#),
    };
    if !input.task_starts.is_empty() {
        legend.push_str("<span>dotted: first step of a task</span>");
    }
    if n_left_out > 0 {
        legend.push_str(&format!(
            "<span>steps without a finite loss, left out: {n_left_out}</span>"
        ));
    }
    Some(format!(
        r#"<div class="legend">{legend}</div>{}"#,
        plot.finish()
    ))
}

/// Smallest and largest finite value, `None` if there is none.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .filter(|value| value.is_finite())
        .fold(None, |range, value| match range {
            None => Some((value, value)),
            Some((min, max)) => Some((value.min(min), value.max(max))),
        })
}

/// Share of the end colour of the ramp for one of `n` ordered lines.
pub(super) fn ramp(line: usize, n: usize) -> String {
    let share = if n > 1 {
        100.0 * line as f64 / (n - 1) as f64
    } else {
        100.0
    };
    format!("--share:{share:.0}%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;
    use sdlora_metrics::Summary;

    fn two_tasks() -> (AccuracyMatrix, Summary) {
        let matrix = AccuracyMatrix::from_rows(vec![vec![0.9], vec![0.8, 0.88]]).unwrap();
        let summary = Summary::of(&matrix);
        (matrix, summary)
    }

    fn input<'a>(matrix: &'a AccuracyMatrix, summary: &'a Summary) -> ReportInput<'a> {
        ReportInput {
            title: "",
            facts: &[],
            plan_toml: "",
            matrix,
            summary,
            magnitudes: &[],
            losses: &[],
            task_starts: &[],
            task_names: &[],
            timings: &[],
            state: State::Done,
            classes: None,
        }
    }

    #[test]
    fn every_measured_cell_is_in_the_heat_map() {
        let svg = heat_map(&two_tasks().0, &["cats & dogs".into()]);
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains("after task 1, on task 0 (cats &amp; dogs): 80.00 %"));
        assert!(svg.contains("80 %<span class=\"heat-scale\">"));
    }

    #[test]
    fn the_matrix_of_many_tasks_takes_little_room_and_says_what_it_shows() {
        let mut matrix = AccuracyMatrix::new(100);
        while !matrix.is_complete() {
            matrix.push_row(vec![0.75; matrix.n_rows() + 1]).unwrap();
        }
        let svg = heat_map(&matrix, &[]);
        assert!(svg.len() < 150_000, "{} bytes", svg.len());
        assert!(
            svg.contains("aria-label=\"Accuracy matrix of 100 tasks; after task 99"),
            "{svg:.600}"
        );
    }

    #[test]
    fn a_curve_without_counts_has_no_key_for_images() {
        let (matrix, summary) = two_tasks();
        let svg = accuracy_curve(&input(&matrix, &summary));
        assert!(svg.contains("mean over tasks") && !svg.contains("mean over images"));
        assert_eq!(svg.matches("<circle").count(), 4);
    }

    #[test]
    fn directions_begin_with_their_task() {
        let (matrix, summary) = two_tasks();
        let draw = |rows: &[Vec<f64>]| {
            magnitudes(&ReportInput {
                magnitudes: rows,
                ..input(&matrix, &summary)
            })
        };
        let svg = draw(&[vec![0.8], vec![0.9, 0.8], vec![1.0, f64::NAN, 0.7]]).unwrap();
        assert_eq!(svg.matches("<path").count(), 3);
        assert_eq!(svg.matches("<circle").count(), 5);
        assert!(!svg.contains("NaN"));
        assert!(draw(&[vec![]]).is_none());
    }

    #[test]
    fn a_long_loss_curve_is_thinned_and_broken_at_tasks() {
        let (matrix, summary) = two_tasks();
        let losses: Vec<(usize, f64)> = (0..5000)
            .map(|step| (step, 1.0 / (1.0 + step as f64)))
            .collect();
        let svg = loss_curve(&ReportInput {
            losses: &losses,
            task_starts: &[0, 2500],
            ..input(&matrix, &summary)
        })
        .unwrap();
        assert_eq!(svg.matches("<path").count(), 2);
        assert!(svg.len() < 20_000, "{} bytes", svg.len());
        assert!(svg.contains("mean of 21 steps"));
    }

    #[test]
    fn losses_that_are_not_finite_are_counted() {
        let (matrix, summary) = two_tasks();
        let draw = |losses: &[(usize, f64)]| {
            loss_curve(&ReportInput {
                losses,
                ..input(&matrix, &summary)
            })
        };
        let svg = draw(&[(0, f64::NAN), (1, 0.5)]).unwrap();
        assert!(svg.contains("steps without a finite loss, left out: 1") && !svg.contains("NaN"));
        assert!(draw(&[(0, f64::INFINITY)]).is_none());
    }
}
