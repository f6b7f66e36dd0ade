//! The forms of the answer: a line for every image, whatever its name holds.

use std::path::Path;

use sdlora_data::NamedImage;
use serde::Serialize;

use crate::shown::{json_shown, shown, shown_path};

/// A form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Path, tab, class; with `--top` class and probability alternate
    Text,
    /// One array of objects
    Json,
    /// One object a line
    Jsonl,
    /// A header and one record a line
    Csv,
}

/// What is said of an image of a list.
#[derive(Debug, Clone, PartialEq)]
pub enum Said<'a> {
    /// It belongs to a class, or to none of them.
    Found(Found<'a>),
    /// It could not be read.
    Problem(String),
}

/// What a model says of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<'a> {
    /// Classes and their probabilities, the most likely first; at least one.
    pub top: Vec<(&'a str, f64)>,
    /// Distance from the nearest class mean, where it was asked for.
    pub distance: Option<f64>,
    /// Whether it is too far from every class; absent where that was not asked.
    pub is_refused: Option<bool>,
}

/// What stands in a text for an image that belongs to no class.
pub const NONE: &str = "none of these";

/// How answers are written.
#[derive(Debug, Clone)]
pub struct Lines {
    pub form: Form,
    /// Classes of an image that are wanted with their probabilities.
    pub n_top: Option<usize>,
    /// Whether probabilities were calibrated.
    pub is_calibrated: bool,
    /// Largest distance of an image that belongs to a class, where images are refused.
    pub threshold: Option<f64>,
    /// What the threshold is, for the reason of a refusal.
    pub meaning: String,
}

#[derive(Serialize)]
struct Record<'a> {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<&'a [u8]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<&'a str>,
    #[serde(flatten)]
    said: Fields<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Fields<'a> {
    Problem {
        error: &'a str,
    },
    Found {
        class: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        probability: Option<f64>,
        calibrated: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        top: Option<Vec<Share<'a>>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        refused: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        distance: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        threshold: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

#[derive(Serialize)]
struct Share<'a> {
    class: &'a str,
    probability: f64,
}

impl Lines {
    /// What stands before the first line.
    pub fn head(&self) -> Option<String> {
        match self.form {
            Form::Text | Form::Jsonl => None,
            Form::Json => Some("[".into()),
            Form::Csv => {
                let columns = [
                    "path",
                    "class",
                    "probability",
                    "refused",
                    "distance",
                    "error",
                ];
                let mut columns = columns.map(str::to_owned).to_vec();
                for i in 1..=self.n_top.unwrap_or(0) {
                    columns.extend([format!("class_{i}"), format!("probability_{i}")]);
                }
                Some(columns.join(","))
            }
        }
    }

    /// What stands behind the last line.
    pub fn foot(&self) -> Option<&'static str> {
        (self.form == Form::Json).then_some("]")
    }

    /// The line of an image, without its end; `is_last` ends the array of JSON.
    pub fn line(&self, image: &NamedImage, said: &Said<'_>, is_last: bool) -> String {
        let path = image.full_path();
        match self.form {
            Form::Text => self.text(&path, said),
            Form::Csv => self.csv(&path, said),
            Form::Jsonl => self.json(image, &path, said),
            Form::Json => {
                let comma = if is_last { "" } else { "," };
                format!("  {}{comma}", self.json(image, &path, said))
            }
        }
    }

    fn text(&self, path: &Path, said: &Said<'_>) -> String {
        let mut line = shown_path(path);
        let mut add = |text: &str| {
            line.push('\t');
            line.push_str(&shown(text));
        };
        match said {
            Said::Problem(problem) => add(&format!("error: {problem}")),
            Said::Found(found) => {
                if found.is_refused == Some(true) {
                    add(NONE);
                }
                match self.n_top {
                    Some(_) => found.top.iter().for_each(|(class, probability)| {
                        add(class);
                        add(&format!("{probability:.4}"));
                    }),
                    None if found.is_refused == Some(true) => {}
                    None => found.top.iter().take(1).for_each(|(class, _)| add(class)),
                }
            }
        }
        line
    }

    fn csv(&self, path: &Path, said: &Said<'_>) -> String {
        let mut fields = vec![quoted(&shown_path(path))];
        let n_top = self.n_top.unwrap_or(0);
        match said {
            Said::Problem(problem) => {
                fields.extend([const { String::new() }; 4]);
                fields.push(quoted(&shown(problem)));
                fields.extend(std::iter::repeat_n(String::new(), 2 * n_top));
            }
            Said::Found(found) => {
                let answer = found.answer();
                let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
                fields.push(answer.map_or(String::new(), |(class, _)| quoted(&shown(class))));
                fields.push(number(answer.map(|(_, probability)| probability)));
                fields.push(found.is_refused.map_or(String::new(), |is| is.to_string()));
                fields.push(number(found.distance));
                fields.push(String::new());
                for i in 0..n_top {
                    let share = found.top.get(i);
                    fields.push(share.map_or(String::new(), |(class, _)| quoted(&shown(class))));
                    fields.push(number(share.map(|(_, probability)| *probability)));
                }
            }
        }
        fields.join(",")
    }

    fn json(&self, image: &NamedImage, path: &Path, said: &Said<'_>) -> String {
        let said = match said {
            Said::Problem(error) => Fields::Problem { error },
            Said::Found(found) => {
                let answer = found.answer();
                let is_refused = found.is_refused == Some(true);
                let shares = || {
                    let top = found.top.iter();
                    let share = |&(class, probability)| Share { class, probability };
                    top.map(share).collect()
                };
                Fields::Found {
                    class: answer.map(|(class, _)| class),
                    probability: answer.map(|(_, probability)| probability),
                    calibrated: self.is_calibrated,
                    top: self.n_top.map(|_| shares()),
                    refused: found.is_refused,
                    distance: found.distance,
                    threshold: self.threshold,
                    reason: is_refused.then(|| self.reason(found)),
                }
            }
        };
        let record = Record {
            path: path.to_string_lossy().into_owned(),
            path_bytes: match path.to_str() {
                Some(_) => None,
                None => Some(path.as_os_str().as_encoded_bytes()),
            },
            archive: image
                .member
                .as_ref()
                .map(|_| image.path.to_string_lossy().into_owned()),
            member: image.member.as_deref(),
            said,
        };
        match serde_json::to_string(&record) {
            Ok(text) => json_shown(&text),
            // Serialising texts and numbers cannot fail; NaN and infinities become `null`.
            Err(error) => format!("{{\"error\":\"{error}\"}}"),
        }
    }

    fn reason(&self, found: &Found<'_>) -> String {
        let number = |value: Option<f64>| value.map_or("unknown".into(), |v| format!("{v:.4}"));
        format!(
            "its distance from the nearest class is {}, above {}, {}",
            number(found.distance),
            number(self.threshold),
            self.meaning
        )
    }
}

impl<'a> Found<'a> {
    /// The class it belongs to with its probability; none where it is refused.
    pub fn answer(&self) -> Option<(&'a str, f64)> {
        match self.is_refused {
            Some(true) => None,
            _ => self.top.first().copied(),
        }
    }
}

/// A field of a CSV record (RFC 4180): in quotes where it holds a comma, a quote or a space at an end.
fn quoted(text: &str) -> String {
    let is_plain = !text.contains([',', '"']) && text.trim() == text;
    match is_plain {
        true => text.to_owned(),
        false => format!("\"{}\"", text.replace('"', "\"\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(form: Form, n_top: Option<usize>, threshold: Option<f64>) -> Lines {
        Lines {
            form,
            n_top,
            is_calibrated: true,
            threshold,
            meaning: "which 95 % of the held-out images do not exceed".into(),
        }
    }

    fn image(name: &str) -> NamedImage {
        NamedImage {
            path: name.into(),
            member: None,
        }
    }

    fn found(is_refused: Option<bool>) -> Said<'static> {
        Said::Found(Found {
            top: vec![("a, \"b\"", 0.75), ("c", 0.125)],
            distance: is_refused.map(|_| 2.5),
            is_refused,
        })
    }

    /// A name that would break a line, act on a terminal, and turn the text around.
    const EVIL: &str = "x\n\ty\u{1b}[2J\u{9b}\u{202e},\".png";

    #[test]
    fn text_has_tabs_between_fields_and_nowhere_else() {
        let plain = lines(Form::Text, None, None);
        assert_eq!(plain.line(&image("p"), &found(None), true), "p\ta, \"b\"");
        let top = lines(Form::Text, Some(2), None);
        let expected = "p\ta, \"b\"\t0.7500\tc\t0.1250";
        assert_eq!(top.line(&image("p"), &found(None), true), expected);
        let reject = lines(Form::Text, None, Some(1.0));
        let line = reject.line(&image("p"), &found(Some(true)), true);
        assert_eq!(line, "p\tnone of these");
        let line = plain.line(&image(EVIL), &Said::Problem("z\nz".into()), true);
        assert_eq!(
            line,
            r#"x\n\ty\u{1b}[2J\u{9b}\u{202e},".png"#.to_owned() + "\terror: z\\nz"
        );
    }

    #[test]
    fn csv_quotes_what_would_break_a_record() {
        let csv = lines(Form::Csv, Some(2), Some(1.0));
        let columns = "path,class,probability,refused,distance,error,class_1,probability_1,class_2,probability_2";
        assert_eq!(csv.head().unwrap(), columns);
        let kept = csv.line(&image("p q"), &found(Some(false)), true);
        let class = "\"a, \"\"b\"\"\"";
        assert_eq!(
            kept,
            format!("p q,{class},0.75,false,2.5,,{class},0.75,c,0.125")
        );
        let refused = csv.line(&image("p"), &found(Some(true)), true);
        assert_eq!(refused, format!("p,,,true,2.5,,{class},0.75,c,0.125"));
        let problem = csv.line(&image(EVIL), &Said::Problem("a,b".into()), true);
        let path = r#""x\n\ty\u{1b}[2J\u{9b}\u{202e},"".png""#;
        assert_eq!(problem, format!("{path},,,,,\"a,b\",,,,"));
        // As many fields in every record.
        let plain = lines(Form::Csv, None, None);
        let commas = |line: &str| line.matches(',').count();
        let problem = plain.line(&image("p"), &Said::Problem("x".into()), true);
        assert_eq!(commas(&problem), commas(&plain.head().unwrap()));
    }

    #[test]
    fn json_is_exact_harmless_and_says_the_reason() {
        let json = lines(Form::Jsonl, Some(2), Some(1.0));
        let line = json.line(&image(EVIL), &found(Some(true)), true);
        let is_harmless = |c: char| !c.is_control() && !('\u{200e}'..='\u{202e}').contains(&c);
        assert!(line.chars().all(is_harmless), "{line:?}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["path"], EVIL);
        assert_eq!(value["class"], serde_json::Value::Null);
        assert_eq!(value["top"][0]["class"], "a, \"b\"");
        assert_eq!(value["top"][1]["probability"], 0.125);
        let reason = "its distance from the nearest class is 2.5000, above 1.0000, which 95 % of the held-out images \
                      do not exceed";
        assert_eq!(value["reason"], reason);
        assert!(value.get("probability").is_none());
        let kept = json.line(&image("p"), &found(Some(false)), true);
        let value: serde_json::Value = serde_json::from_str(&kept).unwrap();
        assert_eq!(value["class"], "a, \"b\"");
        assert_eq!(
            (&value["refused"], &value["calibrated"]),
            (&false.into(), &true.into())
        );
        assert!(value.get("reason").is_none());
        let plain = lines(Form::Jsonl, None, None);
        let expected = r#"{"path":"p","class":"a, \"b\"","probability":0.75,"calibrated":true}"#;
        assert_eq!(plain.line(&image("p"), &found(None), true), expected);
        let problem = plain.line(&image("p"), &Said::Problem("z".into()), true);
        assert_eq!(problem, r#"{"path":"p","error":"z"}"#);
    }

    #[test]
    fn an_array_and_a_member_of_an_archive() {
        let json = lines(Form::Json, None, None);
        let member = NamedImage {
            path: "a.zip".into(),
            member: Some("b/c.png".into()),
        };
        let problem = Said::Problem("z".into());
        let text = [
            json.head().unwrap(),
            json.line(&image("p"), &problem, false),
            json.line(&member, &problem, true),
            json.foot().unwrap().to_owned(),
        ]
        .join("\n");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value[1]["path"], "a.zip/b/c.png");
        assert_eq!(value[1]["archive"], "a.zip");
        assert_eq!(value[1]["member"], "b/c.png");
        assert!(value[0].get("archive").is_none());
    }

    #[cfg(unix)]
    #[test]
    fn a_name_outside_utf_8_keeps_its_bytes() {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
        let image = NamedImage {
            path: name.into(),
            member: None,
        };
        let line = lines(Form::Jsonl, None, None).line(&image, &found(None), true);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["path"], "caf\u{fffd}.png");
        assert_eq!(value["path_bytes"][3], 0xe9);
    }
}
