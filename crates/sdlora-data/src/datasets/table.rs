//! A table of images: a path and a label a line, and a split where there is one.
//!
//! With a line of headings the columns may stand in any order, and those of other names are passed over, as the index
//! that pandas writes. Without one they are `path,label[,split]`.

use std::collections::HashMap;

use sdlora_image::{is_image, other_ending, with_endings};

use super::csv::{DELIMITERS, fields, named_delimiter, text};
use super::halves::Part;
use super::listed::Listed;
use crate::error::DataError;
use crate::files::Files;
use crate::split::Split;

/// Headings of the column of paths; the first that is there counts.
const PATHS: [&str; 10] = [
    "path",
    "filepath",
    "file_path",
    "image_path",
    "filename",
    "file_name",
    "file",
    "image",
    "img",
    "image_id",
];
/// Headings of the column of labels.
const LABELS: [&str; 6] = [
    "label",
    "class",
    "category",
    "class_name",
    "label_name",
    "target",
];
/// Headings of the column of splits.
const SPLITS: [&str; 4] = ["split", "set", "subset", "partition"];

/// One row of a table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    /// Its line, from 1.
    line: usize,
    /// Path of the image.
    path: String,
    /// Name of the class.
    label: String,
    /// The part, where there is a column of it.
    part: Option<Part>,
}

/// Positions of the columns.
#[derive(Clone, Copy, Debug)]
struct Columns {
    delimiter: char,
    /// Fields of every line, where a line of headings says so.
    n_fields: Option<usize>,
    path: usize,
    label: usize,
    split: Option<usize>,
}

/// Images of a table.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// The images; without a column of splits all are for training as yet.
    pub(super) images: Vec<Listed>,
    /// Whether the table says which half an image is of.
    pub(super) has_splits: bool,
    /// What was left out, for the user.
    pub(super) notes: Vec<String>,
}

impl Table {
    /// Reads the table `csv` below the folder of `files`, and finds its images.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] when it is not there, [`DataError::Content`] with the line when it cannot be
    /// read, when an image is not there or is named twice, and when some rows name a split and some do not.
    pub(super) fn read(files: &Files, csv: &str) -> Result<Self, DataError> {
        let root = files.common_folder(|_| true);
        let Some(table_idx) = files
            .find(&format!("{root}{csv}"))
            .or_else(|| files.find(csv))
        else {
            return Err(DataError::setting(
                "csv",
                csv,
                format!("a table below `{}`", files.path().display()),
            ));
        };
        let rows = rows(files, table_idx)?;
        let n_split = rows.iter().filter(|row| row.part.is_some()).count();
        if n_split != 0 && n_split != rows.len() {
            return Err(files.error(
                table_idx,
                format!("names a split in {n_split} of {} rows", rows.len()),
                "name it in all or in none",
            ));
        }
        let has_test = rows.iter().any(|row| row.part == Some(Part::Test));
        let folder = match files.name(table_idx).rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/"),
            None => String::new(),
        };
        let mut table = Self {
            has_splits: n_split != 0,
            ..Self::default()
        };
        let mut line_of = HashMap::new();
        let mut n_held_out = 0;
        for row in rows {
            let line = row.line;
            let Some(file_idx) = find(files, &folder, &row.path) else {
                return Err(files.error(
                    table_idx,
                    format!("names `{}` in line {line}, which is not there", row.path),
                    "correct the path, which starts at the folder of the table",
                ));
            };
            if let Some(first) = line_of.insert(file_idx, line) {
                return Err(files.error(
                    table_idx,
                    format!("names `{}` in lines {first} and {line}", row.path),
                    "remove one",
                ));
            }
            match row
                .part
                .map_or(Some(Split::Train), |part| part.split(has_test))
            {
                Some(split) => table.images.push(Listed {
                    file_idx,
                    class: row.label,
                    split,
                }),
                None => n_held_out += 1,
            }
        }
        if n_held_out > 0 {
            table.notes.push(format!(
                "the validation rows of `{csv}` ({n_held_out} images) are held out: beside a test half they are neither \
                 trained nor tested on"
            ));
        }
        Ok(table)
    }
}

/// The file that a path of a table names, which starts at the folder of the table or at the root.
///
/// Paths of Windows are read. An absolute path was written on another machine, so what stands before its longest end
/// that is there does not count. A path without an ending is that of the image with one.
fn find(files: &Files, folder: &str, path: &str) -> Option<usize> {
    let path = path.replace('\\', "/");
    let is_absolute = path.starts_with('/') || path.get(1..3) == Some(":/");
    let exact = |path: &str| {
        let from = |folder: &str| files.find(&plain(folder, path)?);
        from(folder).or_else(|| from(""))
    };
    let with_ending = |path: &str| {
        exact(path).or_else(|| {
            let has_ending = is_image(path) || other_ending(path).is_some();
            let mut found = with_endings(path)
                .filter(|_| !has_ending)
                .filter_map(|p| exact(&p));
            found.next().filter(|_| found.next().is_none())
        })
    };
    if !is_absolute {
        return with_ending(&path);
    }
    let slashes = path.match_indices('/').map(|(at, _)| &path[at + 1..]);
    slashes.filter(|end| !end.is_empty()).find_map(with_ending)
}

/// The path from the root on, without `.` and `..`; nothing when it leads out of the root.
fn plain(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Reads the rows of the table in a file.
fn rows(files: &Files, file_idx: usize) -> Result<Vec<Row>, DataError> {
    let refuse = |problem: String| {
        files.error(
            file_idx,
            problem,
            "write it as UTF-8, with a line of headings `path,label` or `path,label,split` and split train or test",
        )
    };
    let text = text(files.read_text_bytes(file_idx)?).map_err(|e| refuse(e.to_string()))?;
    let mut columns: Option<Columns> = None;
    let mut delimiters = DELIMITERS.to_vec();
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        let problem = |text: String| refuse(format!("has a line {number} that {text}"));
        if line.trim().is_empty() {
            continue;
        }
        if let Some(delimiter) = named_delimiter(line).filter(|_| at == 0) {
            delimiters = vec![delimiter];
            continue;
        }
        let columns = match columns {
            Some(columns) => columns,
            None => {
                let (found, is_heading) = Columns::of(line, &delimiters).map_err(&refuse)?;
                columns = Some(found);
                if is_heading {
                    continue;
                }
                found
            }
        };
        let fields = fields(line, columns.delimiter)
            .ok_or_else(|| problem("has a quote without its end".to_owned()))?;
        if let Some(n) = columns.n_fields.filter(|&n| n != fields.len()) {
            return Err(problem(format!(
                "has {} fields, the headings {n}",
                fields.len()
            )));
        }
        if columns.n_fields.is_none() && !(2..=3).contains(&fields.len()) {
            return Err(problem("has not two or three fields".to_owned()));
        }
        let (path, label) = (&fields[columns.path], &fields[columns.label]);
        if path.is_empty() || label.is_empty() {
            return Err(problem("has an empty field".to_owned()));
        }
        let split = match columns.n_fields {
            Some(_) => columns.split.map(|column| &fields[column]),
            None => fields.get(2),
        };
        let part = match split {
            None => None,
            Some(word) => Some(Part::of(word).ok_or_else(|| {
                problem(format!(
                    "names the split `{word}`, expected train, val or test"
                ))
            })?),
        };
        rows.push(Row {
            line: number,
            path: path.clone(),
            label: label.clone(),
            part,
        });
    }
    Ok(rows)
}

impl Columns {
    /// The columns by the first line, and whether that is one of headings.
    ///
    /// Errors are the end of a sentence about the table.
    fn of(line: &str, delimiters: &[char]) -> Result<(Self, bool), String> {
        let mut seen = Vec::new();
        for &delimiter in delimiters {
            let Some(fields) = fields(line, delimiter) else {
                continue;
            };
            let column = |names: &[&str]| {
                names.iter().find_map(|name| {
                    let is_it = |field: &String| field.eq_ignore_ascii_case(name);
                    fields.iter().position(is_it)
                })
            };
            let (path, label) = (column(&PATHS), column(&LABELS));
            if let (Some(path), Some(label)) = (path, label) {
                let columns = Self {
                    delimiter,
                    n_fields: Some(fields.len()),
                    path,
                    label,
                    split: column(&SPLITS),
                };
                return Ok((columns, true));
            }
            seen.push((delimiter, fields, path.is_some() || label.is_some()));
        }
        // Without headings: the delimiter that makes two or three fields, the first of which is an image.
        let plain = seen.iter().find(|(_, fields, _)| {
            let first = fields.first().map_or("", String::as_str);
            (2..=3).contains(&fields.len()) && (is_image(first) || other_ending(first).is_some())
        });
        if let Some(&(delimiter, ..)) = plain {
            let columns = Self {
                delimiter,
                n_fields: None,
                path: 0,
                label: 1,
                split: None,
            };
            return Ok((columns, false));
        }
        let best = seen
            .into_iter()
            .max_by_key(|(delimiter, fields, is_known)| {
                let rank = DELIMITERS.iter().position(|d| d == delimiter);
                (*is_known, fields.len(), std::cmp::Reverse(rank))
            });
        match best {
            None => Err("has a first line with a quote without its end".to_owned()),
            Some((_, fields, _)) => Err(format!(
                "starts with the fields {fields:?}: neither the path of an image before its label, nor headings with one \
                 of {} and one of {}",
                PATHS.join(", "),
                LABELS.join(", ")
            )),
        }
    }
}
