//! What a run says of its classes: a table, and which class is taken for which.

use std::fmt::Write as _;
use std::ops::Range;

use sdlora_metrics::Confusion;
use serde_json::json;

use super::encode::{json_block, png_address};
use super::page::{Cell, figure, sortable_table};
use super::svg::escape;

/// Rows of the table; of more classes, the worst.
const MOST_ROWS: usize = 1000;
/// Classes that the confusion shows one by one; of more, it shows the tasks.
const MOST_CLASSES: usize = 200;
/// Classes from which on a mistake is too small to be seen without a border.
const FINE: usize = 60;
/// Levels of colour in which the shares of the confusion are drawn: one path of the picture each.
const N_LEVELS: usize = 8;
/// Mistakes listed below the confusion; the script lists as many.
const N_LISTED: usize = 10;

/// Answers on test images, class by class.
#[derive(Debug, Clone, Copy)]
pub struct Classes<'a> {
    /// Names by label.
    pub names: &'a [String],
    /// Labels of the classes that each task brought.
    pub new_labels: &'a [Range<usize>],
    /// Which class is taken for which.
    pub confusion: &'a Confusion,
    /// Mean feature of every class, `[n_classes, d_model]`; zeros for a class without images.
    pub means: &'a [f32],
    /// Mistakes that are shown, by label and the most confident first.
    pub mistakes: &'a [Vec<Mistake>],
}

/// A test image that was named wrongly.
#[derive(Debug, Clone, PartialEq)]
pub struct Mistake {
    /// What it was taken for.
    pub prediction: usize,
    /// How sure the model was, 0 to 1.
    pub probability: f32,
    /// The image, small, as PNG.
    pub picture: Vec<u8>,
}

/// Side of a picture on the page, in pixels.
pub const PICTURE_SIDE: usize = 40;

/// The task that brought a class.
pub fn task_of(new_labels: &[Range<usize>], label: usize) -> Option<usize> {
    new_labels.iter().position(|labels| labels.contains(&label))
}

/// The table of classes.
pub fn class_table(classes: &Classes<'_>) -> String {
    let confusion = classes.confusion;
    let accuracies = confusion.per_class_accuracy();
    let mut shown: Vec<usize> = (0..classes.names.len()).collect();
    let mut note =
        "A press on a heading sorts. Pictures are the mistakes of which the model was most sure."
            .to_owned();
    if shown.len() > MOST_ROWS {
        let of = |label: &usize| accuracies[*label].unwrap_or(f64::INFINITY);
        shown.sort_by(|a, b| of(a).total_cmp(&of(b)));
        shown.truncate(MOST_ROWS);
        let _ = write!(
            note,
            " The {MOST_ROWS} classes of lowest accuracy, of {}.",
            classes.names.len()
        );
    }
    let rows: Vec<Vec<Cell>> = shown
        .into_iter()
        .map(|label| {
            let taken_for = most_taken_for(confusion, label);
            let task = task_of(classes.new_labels, label);
            vec![
                Cell::Text(clipped(&classes.names[label])),
                Cell::Number(
                    task.map_or("–".into(), |task| task.to_string()),
                    task.map(|task| task as f64),
                ),
                Cell::count(confusion.total(label)),
                Cell::percent(accuracies[label]),
                match taken_for {
                    None => Cell::Text("–".into()),
                    Some((other, n)) => {
                        Cell::Text(format!("{} ({n})", clipped(&classes.names[other])))
                    }
                },
                Cell::Markup(pictures(classes, label)),
            ]
        })
        .collect();
    let columns = [
        ("Class", true),
        ("Task", true),
        ("Test images", true),
        ("Accuracy", true),
        ("Most taken for", true),
        ("Surest mistakes", false),
    ];
    format!(
        "<section class=\"panel\" id=\"classes\"><h2>Classes</h2><p>{}</p>{}</section>\n",
        escape(&note),
        sortable_table("Classes", &columns, &rows)
    )
}

/// The class that a class is most often taken for, the first of equals, with the number of images.
fn most_taken_for(confusion: &Confusion, label: usize) -> Option<(usize, usize)> {
    let others = (0..confusion.n()).filter(|&other| other != label);
    others
        .map(|other| (other, confusion.count(label, other)))
        .filter(|&(_, n)| n > 0)
        .max_by_key(|&(other, n)| (n, std::cmp::Reverse(other)))
}

fn pictures(classes: &Classes<'_>, label: usize) -> String {
    let mistakes = classes.mistakes.get(label).into_iter().flatten();
    mistakes
        .map(|mistake| {
            let other = classes.names.get(mistake.prediction);
            let text = format!(
                "{} taken for {}, {:.0} % sure",
                clipped(&classes.names[label]),
                other.map_or("another class".to_owned(), |name| clipped(name)),
                100.0 * mistake.probability
            );
            format!(
                "<img class=\"mistake\" height=\"{PICTURE_SIDE}\" alt=\"{0}\" title=\"{0}\" src=\"{1}\">",
                escape(&text),
                png_address(&mistake.picture)
            )
        })
        .collect()
}

/// Longest name of a class on a page, in characters.
const LONGEST_NAME: usize = 60;

/// A name of bounded length.
pub(super) fn clipped(name: &str) -> String {
    match name.char_indices().nth(LONGEST_NAME) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

/// The confusion: every class against every class, in one picture that zooms to the classes of a task.
pub fn confusion_figure(classes: &Classes<'_>) -> String {
    let n_classes = classes.confusion.n();
    let tasks: Vec<Range<usize>> = classes.new_labels.to_vec();
    if n_classes <= MOST_CLASSES {
        let names: Vec<String> = classes.names.iter().map(|name| clipped(name)).collect();
        let caption = "Row: what an image shows, column: what it was taken for; the diagonal is right. \
                       Point at a cell, or move with the arrow keys.";
        let content = confusion_content(classes.confusion, &names, &tasks, "class");
        return figure("Confusion", caption, &content);
    }
    let grouped = classes.confusion.grouped(&tasks);
    let names: Vec<String> = (0..tasks.len())
        .map(|task| format!("task {task}"))
        .collect();
    let caption = format!(
        "Row: the task whose class an image shows, column: the task whose class it was taken for. A picture of all \
         {n_classes} classes would be too fine; the table has what each is most taken for."
    );
    let content = confusion_content(&grouped, &names, &[], "task");
    figure("Confusion", &caption, &content)
}

fn confusion_content(
    confusion: &Confusion,
    names: &[String],
    tasks: &[Range<usize>],
    what: &str,
) -> String {
    let n = confusion.n();
    let pairs = || {
        (0..n)
            .flat_map(move |i| (0..n).map(move |j| (i, j)))
            .filter(|&(i, j)| confusion.count(i, j) > 0)
    };
    let mut wrong: Vec<(usize, usize, usize)> = pairs()
        .filter(|(i, j)| i != j)
        .map(|(i, j)| (confusion.count(i, j), i, j))
        .collect();
    wrong.sort_by_key(|&(count, i, j)| (std::cmp::Reverse(count), i, j));
    let sentence = |&(count, i, j): &(usize, usize, usize)| {
        format!(
            "{} taken for {}: {count} of {}",
            names[i],
            names[j],
            confusion.total(i)
        )
    };
    let listed: String = wrong
        .iter()
        .take(N_LISTED)
        .map(|pair| format!("<li>{}</li>", escape(&sentence(pair))))
        .collect();
    let mut label = format!(
        "Confusion of {n} {what}{}, {} of the images right",
        if what == "class" { "es" } else { "s" },
        super::page::percent_or_dash(confusion.accuracy())
    );
    if let Some(first) = wrong.first() {
        let _ = write!(label, "; most often {}", sentence(first));
    }
    let cells: Vec<usize> = pairs()
        .flat_map(|(i, j)| [i, j, confusion.count(i, j)])
        .collect();
    let totals: Vec<usize> = (0..n).map(|i| confusion.total(i)).collect();
    let data = json!({"names": names, "cells": cells, "totals": totals});
    let wide = n.max(1);
    let mut picture = format!(
        "<svg id=\"confusion\" class=\"confusion{}\" viewBox=\"0 0 {wide} {wide}\" preserveAspectRatio=\"none\" role=\"img\" \
         tabindex=\"0\" aria-label=\"{}\">",
        if n > FINE { " fine" } else { "" },
        escape(&label)
    );
    for right in [true, false] {
        let cells = pairs().filter(|&(i, j)| (i == j) == right);
        let cells = cells.map(|(i, j)| (i, j, confusion.share(i, j).unwrap_or(0.0)));
        picture.push_str(&level_paths(if right { "right" } else { "wrong" }, cells));
    }
    for labels in tasks.iter().skip(1).filter(|labels| labels.start > 0) {
        let at = labels.start;
        let _ = write!(
            picture,
            "<path class=\"border\" d=\"M{at} 0V{n}M0 {at}H{n}\"/>"
        );
    }
    picture.push_str(
        "<rect id=\"confusion-cursor\" class=\"cursor\" width=\"1\" height=\"1\" hidden/></svg>",
    );
    let select = |id: &str, name: &str| {
        let mut options = format!("<option value=\"0 {wide}\">all</option>");
        let own = tasks
            .iter()
            .enumerate()
            .filter(|(_, labels)| !labels.is_empty());
        for (task, labels) in own {
            let _ = write!(
                options,
                "<option value=\"{} {}\">task {task}</option>",
                labels.start,
                labels.len()
            );
        }
        format!("<label>{name} <select id=\"confusion-{id}\">{options}</select></label>")
    };
    format!(
        "<div class=\"legend\">{}{}<span class=\"key right\">right</span><span class=\"key wrong\">wrong</span></div>\
         {picture}<output id=\"confusion-says\"></output><h3>Most frequent mistakes</h3>\
         <ol id=\"confusion-list\">{listed}</ol>{}",
        select("rows", "Shown"),
        select("columns", "taken for"),
        json_block("confusion-data", &data)
    )
}

/// Cells of side 1 at (row, column), one path for each level of their share: thousands of cells in little text.
pub fn level_paths(class: &str, cells: impl Iterator<Item = (usize, usize, f64)>) -> String {
    let mut levels = vec![String::new(); N_LEVELS];
    for (row, column, share) in cells {
        let level = ((share.clamp(0.0, 1.0) * N_LEVELS as f64).ceil() as usize).clamp(1, N_LEVELS);
        let _ = write!(levels[level - 1], "M{column} {row}h1v1h-1z");
    }
    let paths = levels
        .iter()
        .enumerate()
        .filter(|(_, path)| !path.is_empty());
    paths
        .map(|(level, path)| {
            let opacity = (level + 1) as f64 / N_LEVELS as f64;
            format!("<path class=\"{class}\" fill-opacity=\"{opacity:.3}\" d=\"{path}\"/>")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("c{i} <&>")).collect()
    }

    fn classes<'a>(
        names: &'a [String],
        confusion: &'a Confusion,
        mistakes: &'a [Vec<Mistake>],
    ) -> Classes<'a> {
        Classes {
            names,
            new_labels: &[],
            confusion,
            means: &[],
            mistakes,
        }
    }

    #[test]
    fn the_table_names_what_a_class_is_taken_for_and_shows_its_mistakes() {
        let confusion = Confusion::of(&[0, 0, 0, 0, 1], &[0, 2, 2, 1, 1], 3).unwrap();
        let names = names(3);
        let mistakes = [
            vec![Mistake {
                prediction: 2,
                probability: 0.984,
                picture: vec![1, 2, 3],
            }],
            vec![],
            vec![],
        ];
        let found = Classes {
            new_labels: &[0..2, 2..3],
            ..classes(&names, &confusion, &mistakes)
        };
        let table = class_table(&found);
        assert!(
            table.contains("<td data-v=\"0.25\">25.00 %</td><td>c2 &lt;&amp;&gt; (2)</td>"),
            "{table}"
        );
        assert!(table.contains("alt=\"c0 &lt;&amp;&gt; taken for c2 &lt;&amp;&gt;, 98 % sure\""));
        assert!(table.contains("src=\"data:image/png;base64,AQID\""));
        // Of the class without images, nothing is known.
        assert!(table.contains("<th scope=\"row\">c2 &lt;&amp;&gt;</th><td data-v=\"1\">1</td><td data-v=\"0\">0</td><td data-v=\"\">–</td><td>–</td>"), "{table}");
    }

    #[test]
    fn the_confusion_zooms_to_tasks_and_lists_its_mistakes() {
        let confusion = Confusion::of(&[0, 0, 0, 0, 1], &[0, 2, 2, 1, 1], 3).unwrap();
        let names = names(3);
        let found = Classes {
            new_labels: &[0..2, 2..3],
            ..classes(&names, &confusion, &[])
        };
        let markup = confusion_figure(&found);
        for part in [
            "<option value=\"2 1\">task 1</option>",
            "viewBox=\"0 0 3 3\"",
            "M2 0h1v1h-1z",
            "<li>c0 &lt;&amp;&gt; taken for c2 &lt;&amp;&gt;: 2 of 4</li>",
            "40.00 % of the images right",
            "\"cells\":[0,0,1,0,1,1,0,2,2,1,1,1]",
        ] {
            assert!(markup.contains(part), "no {part} in {markup}");
        }
        assert_eq!(markup.matches("<li>").count(), 2);
    }

    #[test]
    fn more_classes_than_a_picture_shows_are_shown_as_tasks() {
        let n = MOST_CLASSES + 2;
        let labels: Vec<usize> = (0..n).collect();
        let confusion = Confusion::of(&labels, &labels, n).unwrap();
        let names = names(n);
        let found = Classes {
            new_labels: &[0..100, 100..n],
            ..classes(&names, &confusion, &[])
        };
        let markup = confusion_figure(&found);
        assert!(
            markup.contains("viewBox=\"0 0 2 2\"") && markup.contains("task 1"),
            "{markup}"
        );
        let table = class_table(&found);
        assert_eq!(table.matches("<tr>").count(), n + 1);
    }

    #[test]
    fn a_share_has_its_level_and_a_small_one_is_seen() {
        let paths = level_paths("x", [(0, 1, 1.0), (2, 3, 0.001), (4, 5, 0.5)].into_iter());
        assert!(
            paths.contains("fill-opacity=\"1.000\" d=\"M1 0h1v1h-1z\""),
            "{paths}"
        );
        assert!(paths.contains("fill-opacity=\"0.125\" d=\"M3 2h1v1h-1z\""));
        assert!(paths.contains("fill-opacity=\"0.500\" d=\"M5 4h1v1h-1z\""));
    }
}
