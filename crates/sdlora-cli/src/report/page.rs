//! The frame of every page: one file that loads nothing, with its own style and script inside.

use super::encode::script_hash;
use super::svg::escape;

/// Style sheet of the pages, with both colour modes.
const STYLE: &str = include_str!("report.css");
/// Sorts tables, and zooms the confusion. Without it everything is there, in the order in which it was written.
const SCRIPT: &str = include_str!("report.js");

/// A whole page around `body`, which is markup. The content security policy admits the styles and the one script that
/// stand in the page, pictures inside it, and nothing from elsewhere. With `renews`, the page loads itself again after
/// so many seconds.
pub fn page(title: &str, renews: Option<u32>, body: &str) -> String {
    let renews = renews.map_or_else(String::new, |seconds| {
        format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">\n")
    });
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src '{hash}'">
{renews}<title>{title}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
{body}</main>
<script>{SCRIPT}</script>
</body>
</html>
"#,
        hash = script_hash(SCRIPT),
        title = escape(title),
    )
}

/// A figure with its heading and a sentence on what it shows.
pub fn figure(title: &str, caption: &str, content: &str) -> String {
    format!(
        "<figure><figcaption><h2>{}</h2><p>{}</p></figcaption>{content}</figure>\n",
        escape(title),
        escape(caption)
    )
}

/// A part of a wide page that scrolls by itself, also with the keyboard.
pub fn scrolls(name: &str, content: &str) -> String {
    format!(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">{content}</div>",
        escape(name)
    )
}

/// Facts as name and value.
pub fn fact_list(facts: &[(String, String)]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let items = facts.iter().map(|(name, value)| {
        format!(
            "<div><dt>{}</dt><dd>{}</dd></div>",
            escape(name),
            escape(value)
        )
    });
    format!("<dl class=\"facts\">{}</dl>\n", items.collect::<String>())
}

/// A cell of a table that the reader can sort.
#[derive(Debug, Clone)]
pub enum Cell {
    /// A text, sorted as such.
    Text(String),
    /// A number as it is shown, and by what it is sorted; `None` sorts last.
    Number(String, Option<f64>),
    /// Markup, which is not escaped.
    Markup(String),
}

impl Cell {
    /// A fraction as percentage.
    pub fn percent(fraction: Option<f64>) -> Self {
        Self::Number(percent_or_dash(fraction), fraction)
    }

    /// A whole number.
    pub fn count(n: usize) -> Self {
        Self::Number(super::grouped(n), Some(n as f64))
    }
}

/// A table that a press on the heading of a column sorts; a heading of markup columns does not.
pub fn sortable_table(name: &str, columns: &[(&str, bool)], rows: &[Vec<Cell>]) -> String {
    let heads: String = columns
        .iter()
        .map(|(title, sorts)| match sorts {
            true => format!(
                "<th scope=\"col\" aria-sort=\"none\"><button type=\"button\">{}</button></th>",
                escape(title)
            ),
            false => format!("<th scope=\"col\">{}</th>", escape(title)),
        })
        .collect();
    let mut body = String::new();
    for row in rows {
        body.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let (attribute, content) = match cell {
                Cell::Text(text) => (String::new(), escape(text)),
                Cell::Number(text, by) => {
                    let by = by.filter(|by| by.is_finite());
                    let by = by.map_or_else(String::new, |by| by.to_string());
                    (format!(" data-v=\"{by}\""), escape(text))
                }
                Cell::Markup(markup) => (" class=\"free\"".to_owned(), markup.clone()),
            };
            body.push_str(&match column {
                0 => format!("<th scope=\"row\"{attribute}>{content}</th>"),
                _ => format!("<td{attribute}>{content}</td>"),
            });
        }
        body.push_str("</tr>\n");
    }
    let table = format!(
        "<table class=\"sortable\">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    );
    scrolls(name, &table)
}

/// A fraction as percentage with two decimals; an en dash where there is none.
pub fn percent_or_dash(fraction: Option<f64>) -> String {
    // A true minus sign is as wide as the digits beside it.
    fraction.map_or("–".into(), |value| {
        format!("{:.2} %", 100.0 * value).replace('-', "−")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_admits_its_own_script_and_nothing_else() {
        let page = page("a & b", Some(20), "<p>x</p>\n");
        assert!(page.contains("<title>a &amp; b</title>"));
        assert!(page.contains("http-equiv=\"refresh\" content=\"20\""));
        let (_, rest) = page.split_once("<script>").unwrap();
        let (script, _) = rest.split_once("</script>").unwrap();
        assert!(page.contains(&format!("script-src '{}'", script_hash(script))));
        assert!(!page.contains("unsafe-eval") && !page.contains("script-src 'unsafe"));
    }

    #[test]
    fn a_table_says_by_what_it_is_sorted() {
        let rows = [vec![
            Cell::Text("a<".into()),
            Cell::percent(Some(0.25)),
            Cell::percent(None),
            Cell::Markup("<b>m</b>".into()),
        ]];
        let columns = [("n", true), ("x", true), ("y", true), ("z", false)];
        let table = sortable_table("t", &columns, &rows);
        assert!(table.contains("<th scope=\"row\">a&lt;</th>"), "{table}");
        assert!(table.contains("<td data-v=\"0.25\">25.00 %</td><td data-v=\"\">–</td>"));
        assert!(table.contains("<b>m</b>"));
        assert_eq!(table.matches("<button").count(), 3);
    }
}
