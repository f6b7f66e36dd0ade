//! A table of images: `path,label[,split]`, with or without a line of headings.

use crate::dataset::Split;
use crate::error::DataError;
use crate::files::Files;

/// One row of a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Its line, from 1.
    pub(super) line: usize,
    /// Path of the image.
    pub(super) path: String,
    /// Name of the class.
    pub(super) label: String,
    /// The half, where there is a third column.
    pub(super) split: Option<Split>,
}

/// Reads the table in a file.
pub(super) fn read(files: &Files, file_idx: usize) -> Result<Vec<Row>, DataError> {
    let text = files.read_text(file_idx)?;
    let mut rows = Vec::new();
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = at + 1;
        let problem = |text: &str| {
            files.error(
                file_idx,
                format!("has a line {number} that {text}"),
                "write `path,label` or `path,label,split` with split train or test",
            )
        };
        if line.trim().is_empty() {
            continue;
        }
        let fields = fields(line).ok_or_else(|| problem("has a quote without its end"))?;
        if at == 0 && fields[0].eq_ignore_ascii_case("path") {
            continue;
        }
        let (path, label, split) = match fields.as_slice() {
            [path, label] => (path, label, None),
            [path, label, split] => (path, label, Some(split.as_str())),
            _ => return Err(problem("has not two or three fields")),
        };
        if path.is_empty() || label.is_empty() {
            return Err(problem("has an empty field"));
        }
        let split = match split {
            None => None,
            Some("train" | "training") => Some(Split::Train),
            Some("test" | "val" | "valid" | "validation") => Some(Split::Test),
            Some(_) => return Err(problem("names another split")),
        };
        rows.push(Row {
            line: number,
            path: path.clone(),
            label: label.clone(),
            split,
        });
    }
    Ok(rows)
}

/// The fields of a line (RFC 4180 without line breaks in fields), trimmed; nothing when a quote does not end.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut in_quotes = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if in_quotes && chars.peek() == Some(&'"') => {
                chars.next();
                fields.last_mut()?.push('"');
            }
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => fields.push(String::new()),
            _ => fields.last_mut()?.push(c),
        }
    }
    (!in_quotes).then(|| fields.iter().map(|field| field.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_commas() {
        assert_eq!(
            fields(r#"a.png, "cat, ""big""" ,train"#).unwrap(),
            ["a.png", r#"cat, "big""#, "train"]
        );
        assert_eq!(fields(r#"a,"b"#), None);
    }
}
