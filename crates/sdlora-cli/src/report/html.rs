//! The page `report.html`: one file that needs nothing beside it.

use super::charts::{accuracy_curve, heat_map, loss_curve, magnitudes, task_name};
use super::svg::escape;
use super::table::grouped;
use super::{ReportInput, duration};

/// Style sheet of the page, with both colour modes.
const STYLE: &str = include_str!("report.css");

/// The whole page. All text of the input is escaped, and nothing is loaded from elsewhere: the page says so in its
/// content security policy.
pub fn report_html(input: &ReportInput) -> String {
    let title = escape(input.title);
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
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
{facts}</header>
{tiles}<div class="columns">
<div>{charts}</div>
<div>{matrix}{metrics}</div>
</div>
{tasks}{plan}</main>
</body>
</html>
"#,
        facts = facts(input),
        tiles = tiles(input),
        tasks = task_table(input),
        metrics = metric_table(input),
        plan = plan(input),
    )
}

fn figure(title: &str, caption: &str, content: &str) -> String {
    format!(
        "<figure><figcaption><h2>{}</h2><p>{}</p></figcaption>{content}</figure>\n",
        escape(title),
        escape(caption)
    )
}

fn facts(input: &ReportInput) -> String {
    if input.facts.is_empty() {
        return String::new();
    }
    let items = input.facts.iter().map(|(name, value)| {
        format!(
            "<div><dt>{}</dt><dd>{}</dd></div>",
            escape(name),
            escape(value)
        )
    });
    format!("<dl class=\"facts\">{}</dl>\n", items.collect::<String>())
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
        "<section class=\"panel\"><h2>Tasks</h2><div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Task</th>\
         <th scope=\"col\">Test images</th><th scope=\"col\">Just trained</th><th scope=\"col\">Final</th>\
         <th scope=\"col\">Forgetting</th><th scope=\"col\">Training</th><th scope=\"col\">Testing</th></tr></thead>\n\
         <tbody>\n{rows}</tbody></table></div></section>\n"
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
         <div class=\"scroll\"><table><tbody>\n{rows}</tbody></table></div></section>\n",
        input.matrix.n_rows(),
        input.matrix.n_tasks()
    )
}

fn plan(input: &ReportInput) -> String {
    if input.plan_toml.trim().is_empty() {
        return String::new();
    }
    format!(
        "<section class=\"panel\"><details open><summary><h2>Plan</h2></summary><pre>{}</pre></details></section>\n",
        escape(input.plan_toml.trim_end())
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

fn percent_or_dash(fraction: Option<f64>) -> String {
    // A true minus sign is as wide as the digits beside it.
    fraction.map_or("–".into(), |value| {
        format!("{:.2} %", 100.0 * value).replace('-', "−")
    })
}

#[cfg(test)]
mod tests {
    use super::super::TaskTiming;
    use super::*;
    use sdlora_metrics::{AccuracyMatrix, Summary};

    /// A page in which every text field holds `hostile`.
    fn page(matrix: &AccuracyMatrix, hostile: &str) -> String {
        let names = vec![hostile.to_string(); matrix.n_tasks()];
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
            "http://", "https://", "src=", "href=", "url(", "@import", "<script", "<link",
        ] {
            assert!(!page.contains(reference), "the page contains {reference}");
        }
    }

    #[test]
    fn every_text_of_the_input_is_escaped() {
        let page = page(&two_tasks(), "<img onerror=\"x\">&'");
        assert!(!page.contains("<img"));
        assert!(!page.contains("\"x\""));
        // Title twice, both sides of the fact, the plan, two rows of the task table, and the tips of the figures.
        assert!(
            page.matches("&lt;img onerror=&quot;x&quot;&gt;&amp;&#39;")
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
