//! The page `report.html`: one file that needs nothing beside it.

use super::charts::{accuracy_curve, heat_map, loss_curve, magnitudes, task_name};
use super::class_map::class_map;
use super::classes::{class_table, confusion_figure};
use super::page::{fact_list, figure, page, percent_or_dash, scrolls};
use super::svg::escape;
use super::table::grouped;
use super::{ReportInput, State, duration};

/// Seconds after which the page of a run that goes on loads itself again.
const RENEWS_AFTER: u32 = 20;
/// Bytes of the plan that the page shows.
const LONGEST_PLAN: usize = 64 << 10;

/// The whole page. All text of the input is escaped, and nothing is loaded from elsewhere.
///
/// Its size is bounded, whatever the run: curves are thinned, the table has 1,000 classes, the confusion 200, and who
/// calls bounds the pictures of mistakes. A page without pictures stays below 3 MB.
pub fn report_html(input: &ReportInput) -> String {
    let mut charts = String::new();
    let mut matrix = String::new();
    if input.matrix.n_rows() > 0 {
        charts.push_str(&figure(
            "Accuracy after every task",
            "On the tasks seen so far.",
            &accuracy_curve(input),
        ));
        matrix = figure(
            "Accuracy matrix",
            "Accuracy in % on each task (column) after each task (row).",
            &heat_map(input.matrix, input.task_names),
        );
    }
    if let Some(chart) = magnitudes(input) {
        charts.push_str(&figure(
            "Magnitudes",
            "Learned weight of every direction, after every task.",
            &chart,
        ));
    }
    if let Some(chart) = loss_curve(input) {
        charts.push_str(&figure(
            "Training loss",
            "Over all steps of the run.",
            &chart,
        ));
    }
    let classes = input.classes.as_ref();
    let body = format!(
        r#"<header>
<h1>{title}</h1>
{state}{facts}</header>
{tiles}<div class="columns">
<div>{charts}{map}</div>
<div>{matrix}{metrics}{confusion}</div>
</div>
{tasks}{classes}{plan}"#,
        title = escape(input.title),
        state = state(input),
        facts = fact_list(input.facts),
        tiles = tiles(input),
        tasks = task_table(input),
        metrics = metric_table(input),
        map = classes.and_then(class_map).unwrap_or_default(),
        confusion = classes.map(confusion_figure).unwrap_or_default(),
        classes = classes.map(class_table).unwrap_or_default(),
        plan = plan(input),
    );
    let renews = (input.state == State::Running).then_some(RENEWS_AFTER);
    page(input.title, renews, &body)
}

/// A sentence on a run that is not complete.
fn state(input: &ReportInput) -> String {
    let (n_done, n_tasks) = (input.matrix.n_rows(), input.matrix.n_tasks());
    let text = match input.state {
        State::Done => return String::new(),
        State::Running => format!(
            "Running: {n_done} of {n_tasks} tasks are done. This page is written again after every task, and renews \
             itself."
        ),
        State::Stopped => {
            format!(
                "Stopped after {n_done} of {n_tasks} tasks; `sdlora train --resume` goes on from there."
            )
        }
    };
    format!(
        "<p id=\"state\" class=\"state\" role=\"status\">{}</p>\n",
        escape(&text)
    )
}

/// The four numbers a reader looks for first.
fn tiles(input: &ReportInput) -> String {
    let summary = input.summary;
    let tiles = [
        (
            "Final accuracy",
            summary.final_average_accuracy,
            "after the last task, over tasks",
        ),
        (
            "Average anytime accuracy",
            summary.average_anytime_accuracy,
            "mean of the curve, over tasks",
        ),
        (
            "Forgetting",
            summary.forgetting,
            "best earlier − final, over tasks",
        ),
        (
            "Backward transfer",
            summary.backward_transfer,
            "final − just trained, over tasks",
        ),
    ];
    let tiles = tiles.iter().map(|(name, value, note)| {
        format!(
            r#"<div class="tile"><h2>{name}</h2><p class="value">{}</p><p class="note">{note}</p></div>"#,
            percent_or_dash(*value)
        )
    });
    format!(
        "<section class=\"tiles\">{}</section>\n",
        tiles.collect::<String>()
    )
}

fn task_table(input: &ReportInput) -> String {
    let (matrix, n_rows) = (input.matrix, input.matrix.n_rows());
    if n_rows == 0 {
        return String::new();
    }
    let forgotten = input
        .summary
        .forgetting_per_task
        .as_deref()
        .unwrap_or_default();
    let row = |task_idx: usize| {
        let timing = input.timings.get(task_idx);
        [
            task_name(input.task_names, task_idx),
            matrix
                .test_counts()
                .and_then(|counts| counts.get(task_idx))
                .map_or("–".into(), |&count| grouped(count)),
            percent_or_dash(matrix.get(task_idx, task_idx)),
            percent_or_dash(matrix.get(n_rows - 1, task_idx)),
            percent_or_dash(forgotten.get(task_idx).copied()),
            timing.map_or("–".into(), |timing| duration(timing.train_seconds)),
            timing.map_or("–".into(), |timing| duration(timing.eval_seconds)),
        ]
    };
    let mut rows: String = (0..n_rows)
        .map(|task_idx| table_row(&row(task_idx)))
        .collect();
    if !input.timings.is_empty() {
        let total = |seconds: fn(&super::TaskTiming) -> f64| {
            duration(input.timings.iter().map(seconds).sum())
        };
        rows.push_str(&format!(
            "<tr class=\"total\"><th scope=\"row\">all tasks</th><td colspan=\"4\"></td><td>{}</td><td>{}</td></tr>\n",
            total(|timing| timing.train_seconds),
            total(|timing| timing.eval_seconds),
        ));
    }
    format!(
        "<section class=\"panel\"><h2>Tasks</h2>{}</section>\n",
        scrolls(
            "Tasks",
            &format!(
                "<table>\n<thead><tr><th scope=\"col\">Task</th>\
                 <th scope=\"col\">Test images</th><th scope=\"col\">Just trained</th><th scope=\"col\">Final</th>\
                 <th scope=\"col\">Forgetting</th><th scope=\"col\">Training</th><th scope=\"col\">Testing</th></tr></thead>\n\
                 <tbody>\n{rows}</tbody></table>"
            )
        )
    )
}

fn metric_table(input: &ReportInput) -> String {
    let rows: String = input
        .summary
        .metrics()
        .iter()
        .map(|metric| table_row(&[metric.label.to_string(), percent_or_dash(metric.value)]))
        .collect();
    format!(
        "<section class=\"panel\"><h2>All metrics</h2><p>After {} of {} tasks.</p>\
         {}</section>\n",
        input.matrix.n_rows(),
        input.matrix.n_tasks(),
        scrolls(
            "All metrics",
            &format!("<table><tbody>\n{rows}</tbody></table>")
        )
    )
}

fn plan(input: &ReportInput) -> String {
    if input.plan_toml.trim().is_empty() {
        return String::new();
    }
    let text = input.plan_toml.trim_end();
    // What follows is in the file beside the page.
    let shown = match text.char_indices().find(|&(at, _)| at >= LONGEST_PLAN) {
        Some((end, _)) => &text[..end],
        None => text,
    };
    format!(
        "<section class=\"panel\"><details open><summary><h2>Plan</h2></summary><pre tabindex=\"0\">{}</pre></details></section>\n",
        escape(shown)
    )
}

/// A table row whose first cell is its heading.
fn table_row(cells: &[String]) -> String {
    let cells = cells.iter().enumerate().map(|(column, cell)| match column {
        0 => format!("<th scope=\"row\">{}</th>", escape(cell)),
        _ => format!("<td>{}</td>", escape(cell)),
    });
    format!("<tr>{}</tr>\n", cells.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::{Classes, Mistake, TaskTiming};
    use super::*;
    use sdlora_metrics::{AccuracyMatrix, Confusion, Summary};

    /// A page in which every text field holds `hostile`.
    fn page(matrix: &AccuracyMatrix, hostile: &str) -> String {
        page_of(matrix, hostile, State::Done)
    }

    fn page_of(matrix: &AccuracyMatrix, hostile: &str, state: State) -> String {
        let names = vec![hostile.to_string(); matrix.n_tasks()];
        let confusion = Confusion::of(&[0, 0, 1, 2], &[0, 1, 1, 2], 3).unwrap();
        let mistake = Mistake {
            prediction: 1,
            probability: 0.9,
            picture: vec![1],
        };
        report_html(&ReportInput {
            title: hostile,
            facts: &[(hostile.into(), hostile.into())],
            plan_toml: hostile,
            matrix,
            summary: &Summary::of(matrix),
            magnitudes: &[vec![0.8], vec![0.9, 0.7]],
            losses: &[(0, 2.0), (1, 1.0), (2, 1.5)],
            task_starts: &[0, 2],
            task_names: &names,
            timings: &[TaskTiming {
                train_seconds: 1.5,
                eval_seconds: 0.25,
            }; 2],
            state,
            classes: Some(Classes {
                names: &[hostile.into(), hostile.into(), hostile.into()],
                new_labels: &[0..2, 2..3],
                confusion: &confusion,
                means: &[0.0, 1.0, 1.0, 0.0, 2.0, 2.0],
                mistakes: &[vec![mistake], vec![], vec![]],
            }),
        })
    }

    fn two_tasks() -> AccuracyMatrix {
        AccuracyMatrix::from_rows(vec![vec![0.9], vec![0.8, 0.88]])
            .unwrap()
            .with_test_counts(vec![1000, 50])
            .unwrap()
    }

    #[test]
    fn the_page_loads_nothing() {
        let page = page(&two_tasks(), "run");
        for reference in [
            "http://",
            "https://",
            "href=",
            "url(",
            "@import",
            "import(",
            "fetch(",
            "<link",
            "<script src",
        ] {
            assert!(!page.contains(reference), "the page contains {reference}");
        }
        // Pictures lie in the page.
        let addresses = page.matches("src=\"").count();
        assert_eq!(
            addresses,
            page.matches("src=\"data:image/png;base64,").count()
        );
        assert_eq!(addresses, 1);
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn every_text_of_the_input_is_escaped() {
        let page = page(&two_tasks(), "<img onerror=\"evil()\">&'");
        assert!(!page.contains("<img onerror"));
        assert!(!page.contains("\"evil()\""));
        // Title twice, both sides of the fact, the plan, two rows of the task table, and the tips of the figures.
        assert!(
            page.matches("&lt;img onerror=&quot;evil()&quot;&gt;&amp;&#39;")
                .count()
                >= 10
        );
    }

    #[test]
    fn all_sections_are_there_and_elements_are_closed() {
        let page = page(&two_tasks(), "run");
        for text in [
            "Accuracy matrix",
            "Magnitudes",
            "Training loss",
            "Plan",
            "Confusion",
            "Map of the classes",
            "Surest mistakes",
            "<td>1,000</td>",
            "<td>3.00 s</td>",
        ] {
            assert!(page.contains(text), "the page lacks {text}");
        }
        assert!(page.contains("<p class=\"value\">−10.00 %</p>"));
        for element in [
            "div",
            "section",
            "figure",
            "svg",
            "table",
            "tr",
            "td",
            "th",
            "text",
            "title",
            "g",
            "p",
            "h2",
            "figcaption",
            "dl",
            "dt",
            "dd",
            "thead",
            "tbody",
            "details",
            "summary",
            "pre",
            "span",
            "script",
            "button",
            "select",
            "option",
            "label",
            "output",
            "ol",
            "li",
        ] {
            let opened = page.matches(&format!("<{element}>")).count()
                + page.matches(&format!("<{element} ")).count();
            assert_eq!(
                opened,
                page.matches(&format!("</{element}>")).count(),
                "{element}"
            );
        }
        assert!(!page.contains("NaN") && !page.contains("inf\""));
    }

    #[test]
    fn only_the_page_of_a_run_that_goes_on_renews_itself() {
        let of = |state| page_of(&two_tasks(), "run", state);
        let running = of(State::Running);
        assert!(running.contains("http-equiv=\"refresh\" content=\"20\""));
        assert!(running.contains("Running: 2 of 2 tasks are done"));
        let stopped = of(State::Stopped);
        assert!(
            stopped.contains("Stopped after 2 of 2 tasks")
                && !stopped.contains("http-equiv=\"refresh\"")
        );
        let done = of(State::Done);
        assert!(!done.contains("id=\"state\"") && !done.contains("http-equiv=\"refresh\""));
    }

    #[test]
    fn every_figure_has_a_text_in_its_place() {
        let page = page(&two_tasks(), "run");
        let n_figures = page.matches("<svg").count();
        assert!(n_figures >= 6, "{n_figures}");
        assert_eq!(n_figures, page.matches("role=\"img\"").count());
        assert!(!page.contains("aria-label=\"\"") && !page.contains("alt=\"\""));
        assert_eq!(
            page.matches("<img").count(),
            page.matches(" alt=\"").count()
        );
    }

    #[test]
    fn the_largest_page_stays_within_its_bound() {
        let n_tasks = 100;
        let mut matrix = AccuracyMatrix::new(n_tasks);
        while !matrix.is_complete() {
            matrix.push_row(vec![0.5; matrix.n_rows() + 1]).unwrap();
        }
        let magnitudes: Vec<Vec<f64>> = (1..=n_tasks).map(|n| vec![0.8; n]).collect();
        let losses: Vec<(usize, f64)> = (0..200_000).map(|step| (step, 1.0)).collect();
        let plan = "x".repeat(1 << 20);
        let bound = |n_classes: usize| {
            // Every class is taken for every other one.
            let pairs = n_classes.min(200);
            let labels: Vec<usize> = (0..n_classes).flat_map(|i| vec![i; pairs]).collect();
            let others: Vec<usize> = (0..n_classes)
                .flat_map(|i| (0..pairs).map(move |j| (i + j) % n_classes))
                .collect();
            let confusion = Confusion::of(&labels, &others, n_classes).unwrap();
            let names: Vec<String> = (0..n_classes)
                .map(|i| format!("{i}{}", "n".repeat(500)))
                .collect();
            let means: Vec<f32> = (0..n_classes * 4).map(|i| (i as f32).sin()).collect();
            let new_labels: Vec<_> = (0..n_tasks)
                .map(|t| t * n_classes / n_tasks..(t + 1) * n_classes / n_tasks)
                .collect();
            let starts: Vec<usize> = (0..n_tasks).map(|t| t * 2000).collect();
            report_html(&ReportInput {
                title: "large",
                facts: &[],
                plan_toml: &plan,
                matrix: &matrix,
                summary: &Summary::of(&matrix),
                magnitudes: &magnitudes,
                losses: &losses,
                task_starts: &starts,
                task_names: &[],
                timings: &[],
                state: State::Done,
                classes: Some(Classes {
                    names: &names,
                    new_labels: &new_labels,
                    confusion: &confusion,
                    means: &means,
                    mistakes: &[],
                }),
            })
            .len()
        };
        for n_classes in [200, 2000] {
            let n_bytes = bound(n_classes);
            assert!(n_bytes < 3_000_000, "{n_classes} classes: {n_bytes} bytes");
        }
    }

    #[test]
    fn a_run_without_rows_or_tasks_has_a_page() {
        for matrix in [AccuracyMatrix::new(0), AccuracyMatrix::new(3)] {
            let page = report_html(&ReportInput {
                title: "empty",
                facts: &[],
                plan_toml: "",
                matrix: &matrix,
                summary: &Summary::of(&matrix),
                magnitudes: &[],
                losses: &[],
                task_starts: &[],
                task_names: &[],
                timings: &[],
                state: State::Running,
                classes: None,
            });
            assert!(
                page.contains("<h1>empty</h1>") && !page.contains("<svg") && !page.contains("NaN")
            );
        }
        assert!(
            page(
                &AccuracyMatrix::from_last_row(vec![0.5, 0.6]).unwrap(),
                "joint"
            )
            .contains("<svg")
        );
    }
}
