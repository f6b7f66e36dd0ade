//! The page of several runs, or of several methods with several runs each: `sdlora report` and `compare --plot`.

use sdlora_metrics::{Spread, Summary};

use super::duration;
use super::page::{Cell, figure, page, percent_or_dash, sortable_table};
use super::svg::{Plot, Scale, escape, text};

/// Entries that have a line or a bar of their own; of more, the best.
const MOST_DRAWN: usize = 36;
/// Entries whose accuracies take little height.
const FEW: usize = 12;
/// Colours of lines; beyond, the same ones dashed and dotted.
const N_COLOURS: usize = 6;
const DASHES: [&str; 3] = ["", " dashed", " dotted"];

/// A row of the page.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is called.
    pub name: String,
    /// Metrics of each of its runs.
    pub summaries: Vec<Summary>,
    /// Seconds of a task of each run, without evaluation.
    pub seconds_per_task: Vec<f64>,
    /// Most parameters trained in one task, if known.
    pub n_parameters: Option<usize>,
    /// More columns, as name and text; those of the first entry head the table.
    pub facts: Vec<(String, String)>,
}

impl Entry {
    /// Mean and standard error of a metric over the runs; `None` where it is undefined in one of them.
    fn spread(&self, of: fn(&Summary) -> Option<f64>) -> Option<Spread> {
        let values: Option<Vec<f64>> = self.summaries.iter().map(of).collect();
        Spread::of(&values?).ok()
    }

    fn final_accuracy(&self) -> Option<f64> {
        self.spread(|run| run.final_average_accuracy)
            .map(|s| s.mean)
    }

    /// Mean accuracy after every task, over the runs that have as many tasks as the first.
    fn curve(&self) -> Vec<Option<f64>> {
        let n = self
            .summaries
            .first()
            .map_or(0, |run| run.accuracy_curve.len());
        let runs = || {
            self.summaries
                .iter()
                .filter(|run| run.accuracy_curve.len() == n)
        };
        (0..n)
            .map(|after| {
                let values: Vec<f64> = runs().filter_map(|run| run.accuracy_curve[after]).collect();
                sdlora_metrics::mean(&values)
            })
            .collect()
    }
}

/// The whole page: the final accuracies, the curves, what is forgotten, and all numbers as a table that sorts.
pub fn side_by_side(title: &str, entries: &[Entry]) -> String {
    let mut drawn: Vec<&Entry> = entries
        .iter()
        .filter(|e| e.final_accuracy().is_some())
        .collect();
    // Of equals, the first stays first.
    let accuracy = |entry: &Entry| entry.final_accuracy().unwrap_or(0.0);
    let mut order: Vec<&Entry> = drawn.clone();
    order.sort_by(|a, b| accuracy(b).total_cmp(&accuracy(a)));
    order.truncate(MOST_DRAWN);
    drawn.retain(|entry| order.iter().any(|kept| std::ptr::eq(*kept, *entry)));
    let mut note = String::new();
    if order.len() < entries.len() {
        note = format!(
            "<p class=\"note\">The figures show {} of {} entries, those of highest final accuracy.</p>",
            order.len(),
            entries.len()
        );
    }
    let mut left = String::new();
    let mut right = String::new();
    if !order.is_empty() {
        left.push_str(&figure(
            "Final accuracy",
            "After the last task, mean over tasks; with several runs, mean and standard error.",
            &accuracies(&order),
        ));
        if let Some(curves) = curves(&drawn) {
            right.push_str(&figure(
                "Accuracy after every task",
                "Mean over the tasks seen so far.",
                &curves,
            ));
        }
        if let Some(chart) = forgetting(&drawn) {
            // Beside a long list of accuracies there is room on the right.
            let side = if order.len() > FEW {
                &mut right
            } else {
                &mut left
            };
            side.push_str(&figure(
                "Accuracy and forgetting",
                "Right: higher final accuracy. Low: less forgotten.",
                &chart,
            ));
        }
    }
    let body = format!(
        "<header>\n<h1>{}</h1>\n{note}</header>\n<div class=\"columns beside\">\n<div>{left}</div>\n<div>{right}</div>\n\
         </div>\n{}",
        escape(title),
        table(entries)
    );
    page(title, None, &body)
}

/// All numbers.
fn table(entries: &[Entry]) -> String {
    let facts: Vec<&str> = entries.first().map_or(Vec::new(), |entry| {
        entry.facts.iter().map(|(name, _)| name.as_str()).collect()
    });
    let mut columns = vec![("Name", true)];
    columns.extend(facts.iter().map(|name| (*name, true)));
    columns.extend(
        [
            "Runs",
            "Final accuracy",
            "Anytime accuracy",
            "Over images",
            "Forgetting",
            "Backward transfer",
            "Parameters",
            "Time a task",
        ]
        .map(|name| (name, true)),
    );
    let rows: Vec<Vec<Cell>> = entries
        .iter()
        .map(|entry| {
            let metric = |of: fn(&Summary) -> Option<f64>| {
                let Some(spread) = entry.spread(of) else {
                    return Cell::percent(None);
                };
                let mean = percent_or_dash(Some(spread.mean));
                let text = match spread.standard_error {
                    Some(error) => {
                        format!("{} ± {:.2} %", mean.trim_end_matches(" %"), 100.0 * error)
                    }
                    None => mean,
                };
                Cell::Number(text, Some(spread.mean))
            };
            let seconds = sdlora_metrics::mean(&entry.seconds_per_task);
            let mut row = vec![Cell::Text(entry.name.clone())];
            row.extend((0..facts.len()).map(|i| {
                let fact = entry.facts.get(i);
                Cell::Text(fact.map_or("–".into(), |(_, value)| value.clone()))
            }));
            row.extend([
                Cell::count(entry.summaries.len()),
                metric(|run| run.final_average_accuracy),
                metric(|run| run.average_anytime_accuracy),
                metric(|run| run.weighted_final_accuracy),
                metric(|run| run.forgetting),
                metric(|run| run.backward_transfer),
                match entry.n_parameters {
                    Some(n) => Cell::count(n),
                    None => Cell::Number("–".into(), None),
                },
                Cell::Number(seconds.map_or("–".into(), duration), seconds),
            ]);
            row
        })
        .collect();
    format!(
        "<section class=\"panel\"><h2>All numbers</h2><p>A press on a heading sorts.</p>{}</section>\n",
        sortable_table("All numbers", &columns, &rows)
    )
}

/// One row an entry: a dot at the mean, a line over the standard error.
fn accuracies(entries: &[&Entry]) -> String {
    let (width, row, top) = (560.0, 22.0, 6.0);
    let longest = entries.iter().map(|entry| entry.name.chars().count()).max();
    // About six and a half units a letter; a name takes less than half of the width.
    let left = (6.5 * longest.unwrap_or(0) as f64 + 16.0).clamp(60.0, 250.0);
    let right = width - 60.0;
    let height = top + row * entries.len() as f64 + 30.0;
    let spreads: Vec<Spread> = entries
        .iter()
        .filter_map(|entry| entry.spread(|run| run.final_average_accuracy))
        .collect();
    let error = |spread: &Spread| spread.standard_error.unwrap_or(0.0);
    let low = spreads
        .iter()
        .map(|s| s.mean - error(s))
        .fold(1.0, f64::min);
    let high = spreads
        .iter()
        .map(|s| s.mean + error(s))
        .fold(0.0, f64::max);
    let scale = Scale::nice(100.0 * low.max(0.0), 100.0 * high.min(1.0), 4);
    let at = |percent: f64| left + scale.fraction(percent).clamp(0.0, 1.0) * (right - left);
    let bottom = top + row * entries.len() as f64;
    let mut body = String::new();
    for &tick in &scale.ticks {
        let x = at(tick);
        body.push_str(&format!(
            r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="{top}" y2="{bottom}"/>"#
        ));
        body.push_str(&text("tick mid", x, bottom + 16.0, &scale.label(tick)));
    }
    for (i, (entry, spread)) in entries.iter().zip(&spreads).enumerate() {
        let y = top + row * (i as f64 + 0.5);
        let mean = 100.0 * spread.mean;
        let error = 100.0 * error(spread);
        let (from, to, x) = (at(mean - error), at(mean + error), at(mean));
        let name = shortened(&entry.name, left);
        body.push_str(&format!(
            r#"<g><title>{}</title><line class="line s1" x1="{from:.1}" x2="{to:.1}" y1="{y:.1}" y2="{y:.1}"/><circle class="dot s1" cx="{x:.1}" cy="{y:.1}" r="4"/></g>"#,
            escape(&format!("{}: {mean:.2} ± {error:.2} %", entry.name))
        ));
        body.push_str(&text("title end", left - 10.0, y + 4.0, &name));
        body.push_str(&text("tick", right + 10.0, y + 4.0, &format!("{mean:.2}")));
    }
    let says = match (entries.first(), entries.last()) {
        (Some(best), Some(worst)) if entries.len() > 1 => format!(
            "Final accuracy in percent of {} entries: best {} with {}, lowest {} with {}",
            entries.len(),
            best.name,
            percent_or_dash(best.final_accuracy()),
            worst.name,
            percent_or_dash(worst.final_accuracy())
        ),
        (Some(only), _) => format!(
            "Final accuracy of {}: {}",
            only.name,
            percent_or_dash(only.final_accuracy())
        ),
        _ => "Final accuracy".to_owned(),
    };
    format!(
        r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{}">{body}</svg>"#,
        escape(&says)
    )
}

/// A name that fits into so much room.
fn shortened(name: &str, room: f64) -> String {
    let most = ((room - 14.0) / 6.5) as usize;
    match name.char_indices().nth(most) {
        None => name.to_owned(),
        Some(_) => {
            let kept: String = name.chars().take(most.saturating_sub(1)).collect();
            format!("{kept}…")
        }
    }
}

/// Class of the line of the `i`-th entry: six colours, then the same dashed and dotted.
fn class_of(i: usize) -> String {
    format!(
        "s{}{}",
        i % N_COLOURS + 1,
        DASHES[(i / N_COLOURS) % DASHES.len()]
    )
}

fn legend(entries: &[&Entry]) -> String {
    let keys: String = entries
        .iter()
        .enumerate()
        .map(|(i, entry)| {
            format!(
                r#"<span class="key {}">{}</span>"#,
                class_of(i),
                escape(&entry.name)
            )
        })
        .collect();
    format!(r#"<div class="legend">{keys}</div>"#)
}

/// Curves of all entries; `None` where no run has more than one task with an accuracy.
fn curves(entries: &[&Entry]) -> Option<String> {
    let all: Vec<Vec<Option<f64>>> = entries.iter().map(|entry| entry.curve()).collect();
    let n_tasks = all.iter().map(Vec::len).max().filter(|&n| n > 1)?;
    let values = || all.iter().flatten().flatten().map(|value| 100.0 * value);
    let low = values().fold(100.0, f64::min);
    let says = format!(
        "Accuracy after each of {n_tasks} tasks, a line for each of {} entries",
        entries.len()
    );
    let mut plot = Plot::new(
        &says,
        ("after task", Scale::positions(n_tasks, 20)),
        ("accuracy in %", Scale::nice((low - 2.0).max(0.0), 100.0, 5)),
    );
    for (i, curve) in all.iter().enumerate() {
        let points: Vec<(f64, Option<f64>)> = curve
            .iter()
            .enumerate()
            .map(|(after, value)| (after as f64, value.map(|value| 100.0 * value)))
            .collect();
        plot.line(&class_of(i), "", &points);
    }
    Some(legend(entries) + &plot.finish())
}

/// Forgetting over final accuracy; `None` with fewer than two entries that have both.
fn forgetting(entries: &[&Entry]) -> Option<String> {
    let point = |entry: &&Entry| {
        let accuracy = entry.final_accuracy()?;
        let forgetting = entry.spread(|run| run.forgetting)?.mean;
        Some((100.0 * accuracy, 100.0 * forgetting))
    };
    let points: Vec<Option<(f64, f64)>> = entries.iter().map(point).collect();
    let known = || points.iter().flatten();
    if known().count() < 2 {
        return None;
    }
    let range = |of: fn(&(f64, f64)) -> f64| {
        let values = known().map(of);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        Scale::nice(low, values.fold(f64::NEG_INFINITY, f64::max), 5)
    };
    let says = format!(
        "Forgetting over final accuracy of {} entries, in percent",
        known().count()
    );
    let mut plot = Plot::new(
        &says,
        ("final accuracy in %", range(|p| p.0)),
        ("forgetting in %", range(|p| p.1)),
    );
    for (i, (entry, point)) in entries.iter().zip(&points).enumerate() {
        if let Some((accuracy, forgotten)) = *point {
            let tip = format!(
                "{}: accuracy {accuracy:.2} %, forgetting {forgotten:.2} %",
                entry.name
            );
            plot.mark(&class_of(i), "", (accuracy, forgotten), &tip);
        }
    }
    Some(legend(entries) + &plot.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_metrics::AccuracyMatrix;

    fn entry(name: &str, rows: &[&[&[f64]]]) -> Entry {
        let summary = |rows: &&[&[f64]]| {
            let rows = rows.iter().map(|row| row.to_vec()).collect();
            Summary::of(&AccuracyMatrix::from_rows(rows).unwrap())
        };
        Entry {
            name: name.into(),
            summaries: rows.iter().map(summary).collect(),
            seconds_per_task: vec![2.0],
            n_parameters: Some(1234),
            facts: vec![("method".into(), name.into())],
        }
    }

    #[test]
    fn entries_stand_side_by_side_with_their_spread() {
        let entries = [
            entry(
                "a <&>",
                &[&[&[0.9], &[0.8, 0.9]], &[&[0.92], &[0.86, 0.92]]],
            ),
            entry("b", &[&[&[0.5], &[0.4, 0.5]]]),
        ];
        let page = side_by_side("two", &entries);
        // (85 + 89) / 2, and half their difference.
        assert!(page.contains(">87.00 ± 2.00 %</td>"), "{page}");
        assert!(page.contains("best a &lt;&amp;&gt; with 87.00 %, lowest b with 45.00 %"));
        assert!(page.contains("Accuracy after each of 2 tasks, a line for each of 2 entries"));
        assert!(page.contains("Accuracy and forgetting"));
        assert_eq!(page.matches("<svg").count(), 3);
        assert_eq!(page.matches("role=\"img\"").count(), 3);
        assert!(!page.contains("<&>") && !page.contains("NaN"));
    }

    #[test]
    fn one_run_none_and_one_without_numbers_have_a_page() {
        let one = entry("one", &[&[&[0.5]]]);
        let nothing = Entry {
            summaries: vec![Summary::default()],
            ..entry("nothing", &[])
        };
        for entries in [
            vec![],
            vec![nothing.clone()],
            vec![one.clone()],
            vec![one, nothing],
        ] {
            let page = side_by_side("t", &entries);
            assert!(page.contains("All numbers") && !page.contains("NaN") && !page.contains("inf"));
        }
    }

    #[test]
    fn of_many_entries_the_best_are_drawn_and_all_are_listed() {
        let entries: Vec<Entry> = (0..MOST_DRAWN + 4)
            .map(|i| entry(&format!("e{i}"), &[&[&[0.5 + 0.01 * i as f64]]]))
            .collect();
        let page = side_by_side("t", &entries);
        assert!(page.contains("show 36 of 40 entries"), "{page}");
        assert_eq!(page.matches("<tr><th scope=\"row\"").count(), 40);
        assert!(!page.contains("<title>e3:") && page.contains("<title>e4: 54.00 ± 0.00 %</title>"));
    }
}
