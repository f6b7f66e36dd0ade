//! What came out of an evaluation, as numbers, tables and figures.

use std::fmt::Write as _;

use sdlora_metrics::{Calibration, Confusion, auroc, false_alarms};
use sdlora_train::Answer;
use serde::Serialize;

use super::subject::{Subject, Truth};
use crate::commands::analyse::finding::{csv, number, percent};
use crate::commands::predict::Model;
use crate::report::figure::{Axis, COLOURS, Series, heat, lines};
use crate::shown::{json_shown, shown};

/// Share of strangers that a threshold is to find, in the comparison of scores.
const FOUND: f64 = 0.95;
/// Classes in the table; beyond, the worst of them.
const MOST_CLASSES: usize = 30;

/// Answers, sorted by what their images show.
#[derive(Debug, Default)]
pub struct Tally {
    /// Label, prediction and its probability, of images of known classes.
    known: Vec<(usize, usize, f64)>,
    known_scores: Scores,
    /// Images of every class that the model does not know, by its place.
    n_strangers: Vec<usize>,
    stranger_scores: Scores,
    /// Names of images that could not be read, with the reasons.
    pub unreadable: Vec<(String, String)>,
}

/// Scores of images, higher for stranger ones.
#[derive(Debug, Default)]
struct Scores {
    distances: Vec<f64>,
    energies: Vec<f64>,
    doubts: Vec<f64>,
}

impl Scores {
    fn add(&mut self, answer: &Answer, probability: f64) {
        self.distances.extend(answer.distance);
        self.energies.push(answer.energy);
        self.doubts.push(1.0 - probability);
    }
}

impl Tally {
    /// Counts an answer.
    pub fn add(&mut self, truth: Truth, answer: &Answer) {
        let Some(&(prediction, probability)) = answer.top.first() else {
            return;
        };
        match truth {
            Truth::Class(label) => {
                self.known.push((label, prediction, probability));
                self.known_scores.add(answer, probability);
            }
            Truth::Stranger(place) => {
                if self.n_strangers.len() <= place {
                    self.n_strangers.resize(place + 1, 0);
                }
                self.n_strangers[place] += 1;
                self.stranger_scores.add(answer, probability);
            }
        }
    }
}

/// How good a model is on labelled images; fractions.
#[derive(Debug, Serialize)]
pub struct Evaluation {
    /// Folder of the model.
    model: String,
    /// What it was measured on.
    subject: String,
    /// Images of known classes.
    n_images: usize,
    /// Share of them that are right.
    accuracy: Option<f64>,
    /// Mean over the classes that have images.
    class_accuracy: Option<f64>,
    /// Whether probabilities were fitted on held-out images.
    calibrated: bool,
    calibration: Option<Reliability>,
    classes: Vec<Class>,
    rejection: Option<Rejection>,
    /// Classes that the model does not know.
    strangers: Vec<Count>,
    unreadable: Vec<Unreadable>,
    #[serde(skip)]
    confusion: Confusion,
}

#[derive(Debug, Serialize)]
struct Reliability {
    /// Expected calibration error.
    expected_error: f64,
    largest_error: f64,
    /// Mean confidence minus accuracy.
    overconfidence: f64,
    bins: Vec<Bin>,
}

#[derive(Debug, Serialize)]
struct Bin {
    lower: f64,
    upper: f64,
    n_images: usize,
    confidence: f64,
    accuracy: f64,
}

#[derive(Debug, Serialize)]
struct Class {
    class: String,
    n_images: usize,
    accuracy: Option<f64>,
    /// What its images were taken for instead, most often first.
    taken_for: Vec<Count>,
}

#[derive(Debug, Clone, Serialize)]
struct Count {
    class: String,
    n_images: usize,
}

#[derive(Debug, Serialize)]
struct Rejection {
    /// Largest distance of an image that belongs to a class.
    threshold: Option<f64>,
    /// Images of known classes that are refused.
    refused_known: Option<f64>,
    /// Strangers that are refused.
    refused_strangers: Option<f64>,
    scores: Vec<Score>,
}

#[derive(Debug, Serialize)]
struct Score {
    score: &'static str,
    auroc: Option<f64>,
    /// Images of known classes that are refused where 95 % of the strangers are.
    false_alarms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Unreadable {
    path: String,
    error: String,
}

impl Evaluation {
    /// Of what was counted.
    ///
    /// # Errors
    ///
    /// When no image of a known class could be read, and for probabilities that are no numbers.
    pub fn of(
        model: &Model,
        subject: &Subject,
        tally: Tally,
        n_bins: usize,
    ) -> anyhow::Result<Self> {
        if tally.known.is_empty() {
            anyhow::bail!("no image of a known class in {} can be read", subject.title);
        }
        let names = model.predictor.class_names();
        let labels: Vec<usize> = tally.known.iter().map(|known| known.0).collect();
        let predictions: Vec<usize> = tally.known.iter().map(|known| known.1).collect();
        let confusion = Confusion::of(&labels, &predictions, names.len())?;
        let pairs: Vec<(f64, bool)> = tally
            .known
            .iter()
            .map(|&(label, prediction, p)| (p.clamp(0.0, 1.0), label == prediction))
            .collect();
        let calibration = Calibration::of(&pairs, n_bins)?;
        let classes: Vec<Class> = names
            .iter()
            .enumerate()
            .map(|(label, name)| Class::of(label, name, names, &confusion))
            .collect();
        let strangers = subject
            .strangers
            .iter()
            .enumerate()
            .map(|(place, name)| Count {
                class: name.clone(),
                n_images: tally.n_strangers.get(place).copied().unwrap_or(0),
            });
        let threshold = model
            .calibrated
            .as_ref()
            .map(|calibrated| calibrated.threshold);
        let unreadable = tally.unreadable.iter();
        Ok(Self {
            model: model.folder.display().to_string(),
            subject: subject.title.clone(),
            n_images: tally.known.len(),
            accuracy: confusion.accuracy(),
            class_accuracy: confusion.mean_class_accuracy(),
            calibrated: model.calibrated.is_some(),
            calibration: Some(Reliability::of(&calibration)),
            classes,
            rejection: Rejection::of(threshold, &tally.known_scores, &tally.stranger_scores),
            strangers: strangers.filter(|count| count.n_images > 0).collect(),
            unreadable: unreadable
                .map(|(path, error)| Unreadable {
                    path: path.clone(),
                    error: error.clone(),
                })
                .collect(),
            confusion,
        })
    }

    /// Images that could not be read.
    pub fn n_unreadable(&self) -> usize {
        self.unreadable.len()
    }

    /// Names and texts of the files.
    ///
    /// # Errors
    ///
    /// When a number has no JSON form.
    pub fn files(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let accuracy = |class: &Class| number(class.accuracy.unwrap_or(f64::NAN));
        let of_class = self.classes.iter().map(|class| {
            let taken_for = class.taken_for.first();
            vec![
                shown(&class.class),
                class.n_images.to_string(),
                accuracy(class),
                taken_for.map_or_else(String::new, |count| shown(&count.class)),
            ]
        });
        let n = self.confusion.n();
        let pairs = (0..n).flat_map(|i| (0..n).map(move |j| (i, j)));
        let pairs = pairs.filter(|&(i, j)| self.confusion.count(i, j) > 0);
        let of_pair = pairs.map(|(i, j)| {
            vec![
                shown(&self.classes[i].class),
                shown(&self.classes[j].class),
                self.confusion.count(i, j).to_string(),
            ]
        });
        let shares: Vec<Vec<f64>> = (0..n)
            .map(|i| {
                let share = |j| self.confusion.share(i, j).unwrap_or(f64::NAN);
                (0..n).map(share).collect()
            })
            .collect();
        let title = "Share of a class's images that go to each class";
        let mut files = vec![
            (
                "evaluation.json",
                json_shown_lines(&serde_json::to_string_pretty(self)?),
            ),
            (
                "classes.csv",
                csv(&["class", "images", "accuracy", "most_taken_for"], of_class),
            ),
            (
                "confusion.csv",
                csv(&["class", "predicted_class", "images"], of_pair),
            ),
            (
                "confusion.svg",
                heat(title, ("class", "predicted class"), &shares, (0.0, 1.0)),
            ),
        ];
        files.extend(
            self.calibration
                .as_ref()
                .map(|reliability| ("calibration.svg", reliability.figure())),
        );
        Ok(files)
    }

    /// The table for a terminal.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<34} {value}");
        };
        row("measured on", shown(&self.subject));
        row("images of known classes", self.n_images.to_string());
        let share = |value: Option<f64>| value.map_or("–".to_owned(), percent);
        row("accuracy, over images", share(self.accuracy));
        row("accuracy, over classes", share(self.class_accuracy));
        if let Some(found) = &self.calibration {
            let how = match self.calibrated {
                true => "calibrated",
                false => "not calibrated",
            };
            let error = percent(found.expected_error);
            row("expected calibration error", format!("{error}, {how}"));
        }
        if let Some(rejection) = &self.rejection {
            if rejection.threshold.is_some() {
                row("refused of known classes", share(rejection.refused_known));
            }
            let n: usize = self.strangers.iter().map(|count| count.n_images).sum();
            if n > 0 {
                let (m, s) = (
                    self.strangers.len(),
                    if self.strangers.len() == 1 { "" } else { "es" },
                );
                row("strangers", format!("{n} images of {m} class{s}"));
                if rejection.threshold.is_some() {
                    row("refused of strangers", share(rejection.refused_strangers));
                }
                for score in &rejection.scores {
                    let auroc = score.auroc.map_or("–".to_owned(), |v| format!("{v:.4}"));
                    let alarms = share(score.false_alarms);
                    row(
                        &format!("AUROC by {}", score.score),
                        format!("{auroc}, false alarms at 95 %: {alarms}"),
                    );
                }
            }
        }
        self.class_table(&mut text);
        text
    }

    /// Classes with images, the worst of them where there are many.
    fn class_table(&self, text: &mut String) {
        let mut classes: Vec<&Class> = self.classes.iter().filter(|c| c.n_images > 0).collect();
        let n = classes.len();
        if n > MOST_CLASSES {
            let accuracy = |class: &Class| class.accuracy.unwrap_or(1.0);
            classes.sort_by(|a, b| accuracy(a).total_cmp(&accuracy(b)));
            classes.truncate(MOST_CLASSES);
        }
        let names: Vec<String> = classes.iter().map(|class| shown(&class.class)).collect();
        let width = names
            .iter()
            .map(|name| name.chars().count())
            .max()
            .unwrap_or(0)
            .max(5);
        let _ = writeln!(
            text,
            "\n{:<width$}  images  accuracy  most often taken for",
            "class"
        );
        for (class, name) in classes.iter().zip(&names) {
            let accuracy = class.accuracy.map_or("–".to_owned(), percent);
            let taken_for = class.taken_for.first().map_or_else(String::new, |count| {
                format!("{} ({})", shown(&count.class), count.n_images)
            });
            let n_images = class.n_images;
            let line = format!("{name:<width$}  {n_images:>6}  {accuracy:>8}  {taken_for}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        if n > MOST_CLASSES {
            let more = n - MOST_CLASSES;
            let _ = writeln!(text, "and {more} better ones: `--out DIR` writes all");
        }
    }
}

impl Class {
    fn of(label: usize, name: &str, names: &[String], confusion: &Confusion) -> Self {
        let others = (0..names.len()).filter(|&other| other != label);
        let mut taken_for: Vec<Count> = others
            .map(|other| Count {
                class: names[other].clone(),
                n_images: confusion.count(label, other),
            })
            .filter(|count| count.n_images > 0)
            .collect();
        // Of equals, the smaller label stays first.
        taken_for.sort_by_key(|count| std::cmp::Reverse(count.n_images));
        Self {
            class: name.to_owned(),
            n_images: confusion.total(label),
            accuracy: confusion.share(label, label),
            taken_for,
        }
    }
}

impl Reliability {
    fn of(found: &Calibration) -> Self {
        Self {
            expected_error: found.expected_error(),
            largest_error: found.largest_error(),
            overconfidence: found.overconfidence(),
            bins: found
                .bins
                .iter()
                .map(|bin| Bin {
                    lower: bin.lower,
                    upper: bin.upper,
                    n_images: bin.n,
                    confidence: bin.confidence,
                    accuracy: bin.accuracy,
                })
                .collect(),
        }
    }

    fn figure(&self) -> String {
        let used = self.bins.iter().filter(|bin| bin.n_images > 0);
        let reliability = used.map(|bin| (bin.confidence, bin.accuracy)).collect();
        let series = |name: &str, colour: usize, points| Series {
            name: name.into(),
            colour: COLOURS[colour].into(),
            points,
        };
        lines(
            "Reliability",
            Axis {
                title: "mean confidence of a bin",
                within: &[0.0, 1.0],
            },
            Axis {
                title: "accuracy",
                within: &[0.0, 1.0],
            },
            &[
                series("predictions", 0, reliability),
                series("right as often as claimed", 4, vec![(0.0, 0.0), (1.0, 1.0)]),
            ],
        )
    }
}

impl Rejection {
    /// Of the scores of known images and of strangers; `None` where there is neither a threshold nor a stranger.
    fn of(threshold: Option<f64>, known: &Scores, strangers: &Scores) -> Option<Self> {
        if threshold.is_none() && strangers.energies.is_empty() {
            return None;
        }
        let refused = |distances: &[f64]| -> Option<f64> {
            let threshold = threshold?;
            let n = distances
                .iter()
                .filter(|&&d| d.is_nan() || d > threshold)
                .count();
            (!distances.is_empty()).then(|| n as f64 / distances.len() as f64)
        };
        let score = |score, known: &[f64], strangers: &[f64]| Score {
            score,
            auroc: auroc(known, strangers),
            false_alarms: false_alarms(known, strangers, FOUND),
        };
        let mut scores = Vec::new();
        if !strangers.energies.is_empty() {
            if !strangers.distances.is_empty() {
                scores.push(score("distance", &known.distances, &strangers.distances));
            }
            scores.push(score("energy", &known.energies, &strangers.energies));
            scores.push(score("probability", &known.doubts, &strangers.doubts));
        }
        Some(Self {
            threshold,
            refused_known: refused(&known.distances),
            refused_strangers: refused(&strangers.distances),
            scores,
        })
    }
}

/// JSON in several lines; line breaks stand between its strings only.
fn json_shown_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(json_shown).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(label: usize, probability: f64, distance: f64) -> Answer {
        Answer {
            top: vec![(label, probability)],
            distance: Some(distance),
            energy: -distance,
        }
    }

    #[test]
    fn refusals_and_scores_by_hand() {
        let mut tally = Tally::default();
        for (distance, truth) in [
            (1.0, Truth::Class(0)),
            (3.0, Truth::Class(0)),
            (2.5, Truth::Stranger(1)),
            (4.0, Truth::Stranger(1)),
        ] {
            tally.add(truth, &answer(0, 0.5, distance));
        }
        assert_eq!(tally.n_strangers, [0, 2]);
        let found = Rejection::of(Some(2.0), &tally.known_scores, &tally.stranger_scores).unwrap();
        assert_eq!(found.refused_known, Some(0.5));
        assert_eq!(found.refused_strangers, Some(1.0));
        // Of four pairs the strangers win three by distance, and one by energy, which is its opposite here.
        let aurocs: Vec<_> = found.scores.iter().map(|s| (s.score, s.auroc)).collect();
        let expected = [("distance", 0.75), ("energy", 0.25), ("probability", 0.5)];
        assert_eq!(aurocs, expected.map(|(name, value)| (name, Some(value))));
        assert_eq!(found.scores[0].false_alarms, Some(0.5));
        // Without strangers there is nothing to compare, without either nothing to say.
        let none = Scores::default();
        let alone = Rejection::of(Some(2.0), &tally.known_scores, &none).unwrap();
        assert!(alone.scores.is_empty() && alone.refused_strangers.is_none());
        assert!(Rejection::of(None, &tally.known_scores, &none).is_none());
    }

    #[test]
    fn a_class_is_listed_with_what_it_is_taken_for() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let confusion = Confusion::of(&[0, 0, 0, 0, 1], &[0, 2, 2, 1, 1], 3).unwrap();
        let class = Class::of(0, "a", &names, &confusion);
        assert_eq!((class.n_images, class.accuracy), (4, Some(0.25)));
        let taken: Vec<_> = class
            .taken_for
            .iter()
            .map(|c| (&c.class[..], c.n_images))
            .collect();
        assert_eq!(taken, [("c", 2), ("b", 1)]);
        let none = Class::of(2, "c", &names, &confusion);
        assert_eq!((none.n_images, none.accuracy), (0, None));
    }
}
