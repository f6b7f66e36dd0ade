//! The report of a run, from its log and its newest answers on test images.

use std::path::Path;

use sdlora_image::Image;
use sdlora_metrics::{Confusion, Summary};
use sdlora_train::learned::shown_name;
use sdlora_train::{Plan, RunLog, Tested};

use crate::report::{
    Classes, Mistake, PICTURE_SIDE, ReportInput, State, TaskTiming, grouped, published_numbers,
    report_html, stored,
};

/// Name of the page in the folder of a run.
pub const REPORT_FILE: &str = "report.html";
/// Mistakes of a class that are shown.
const MISTAKES_PER_CLASS: usize = 3;
/// Pictures of a page, and their bytes: with them a page stays below 4 MB.
const MOST_PICTURES: usize = 150;
const MOST_BYTES: usize = 700_000;

/// What a report shows.
pub struct Shown<'a> {
    /// Folder of the run, whose name is the heading.
    pub folder: &'a Path,
    /// Its plan.
    pub plan: &'a Plan,
    /// Its log so far.
    pub log: &'a RunLog,
    /// Its newest answers on test images, where there are any.
    pub tested: Option<&'a Tested>,
    /// Names of its devices.
    pub device: &'a str,
    /// Whether it goes on.
    pub state: State,
}

impl Shown<'_> {
    /// The whole page.
    ///
    /// # Errors
    ///
    /// When the plan has no TOML form, and when a classifier knows classes that no task brought.
    pub fn html(&self) -> anyhow::Result<String> {
        let (plan, log) = (self.plan, self.log);
        let config = plan.config();
        let summary = Summary::of(&log.matrix);
        let mut losses = Vec::new();
        let mut task_starts = Vec::new();
        for task in &log.tasks {
            let first = losses.len();
            task_starts.push(first);
            let of_task = task.losses.iter().enumerate();
            losses.extend(of_task.map(|(i, &loss)| (first + i, loss)));
        }
        let magnitudes: Vec<Vec<f64>> = log
            .magnitudes
            .iter()
            .filter_map(|groups| groups.first().cloned())
            .collect();
        let timings: Vec<TaskTiming> = log
            .tasks
            .iter()
            .zip(&log.eval_seconds)
            .map(|(task, &eval_seconds)| TaskTiming {
                train_seconds: task.total_seconds(),
                eval_seconds,
            })
            .collect();
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let mut facts = vec![
            fact("method", config.method.name.clone()),
            fact("head", head(plan, log)),
            fact("data set", config.dataset.clone()),
            fact("backbone", config.backbone.weights.display().to_string()),
            fact("device", self.device.to_owned()),
            fact("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        for number in published_numbers(&config.expected, &summary) {
            let name = format!("published {}", number.label);
            facts.push((name, format!("{} ({})", number.published, number.source)));
        }
        let found = self.tested.map(Found::of).transpose()?;
        if let Some(accuracy) = found
            .as_ref()
            .and_then(|f| f.confusion.mean_class_accuracy())
        {
            facts.push(fact(
                "accuracy over classes",
                format!("{:.2} %", 100.0 * accuracy),
            ));
        }
        let classes = self.tested.zip(found.as_ref());
        Ok(report_html(&ReportInput {
            title: &shown_name(self.folder),
            facts: &facts,
            plan_toml: &plan.to_toml()?,
            matrix: &log.matrix,
            summary: &summary,
            magnitudes: &magnitudes,
            losses: &losses,
            task_starts: &task_starts,
            task_names: &[],
            timings: &timings,
            state: self.state,
            classes: classes.map(|(tested, found)| Classes {
                names: &tested.class_names,
                new_labels: &tested.new_labels,
                confusion: &found.confusion,
                means: &tested.class_means,
                mistakes: &found.mistakes,
            }),
        }))
    }
}

/// What the answers on test images come to.
struct Found {
    confusion: Confusion,
    mistakes: Vec<Vec<Mistake>>,
}

impl Found {
    fn of(tested: &Tested) -> anyhow::Result<Self> {
        Ok(Self {
            confusion: tested.confusion()?,
            mistakes: mistakes(tested),
        })
    }
}

/// The mistakes of every class of which the model was most sure, with their pictures. All classes have their first one
/// before any has its second.
fn mistakes(tested: &Tested) -> Vec<Vec<Mistake>> {
    let mut shown: Vec<Vec<Mistake>> = vec![Vec::new(); tested.class_names.len()];
    let mut left = (MOST_PICTURES, MOST_BYTES);
    for place in surest(tested) {
        let image = &tested.images[place];
        // A picture that cannot be read is only a picture.
        let Ok(Some(picture)) = tested.picture(place) else {
            continue;
        };
        let Ok(picture) = thumbnail(&picture) else {
            continue;
        };
        match (left.0.checked_sub(1), left.1.checked_sub(picture.len())) {
            (Some(n), Some(n_bytes)) => left = (n, n_bytes),
            _ => break,
        }
        shown[image.label].push(Mistake {
            prediction: image.prediction,
            probability: image.probability,
            picture,
        });
    }
    shown
}

/// Places of the surest mistakes: the first of every class, then the second of every class, and so on.
fn surest(tested: &Tested) -> Vec<usize> {
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); tested.class_names.len()];
    for (place, image) in tested.images.iter().enumerate() {
        if image.label != image.prediction
            && let Some(places) = of_class.get_mut(image.label)
        {
            places.push(place);
        }
    }
    let sure = |place: usize| tested.images[place].probability;
    for places in &mut of_class {
        places.sort_by(|&a, &b| sure(b).total_cmp(&sure(a)).then(a.cmp(&b)));
    }
    let mut all = Vec::new();
    for rank in 0..MISTAKES_PER_CLASS {
        let mut of_rank: Vec<usize> = of_class
            .iter()
            .filter_map(|p| p.get(rank).copied())
            .collect();
        of_rank.sort_by(|&a, &b| sure(b).total_cmp(&sure(a)).then(a.cmp(&b)));
        all.extend(of_rank);
    }
    all.truncate(MOST_PICTURES);
    all
}

/// An image as a small PNG: each pixel is the mean of those that it covers.
fn thumbnail(image: &Image) -> anyhow::Result<Vec<u8>> {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let shrink = (width.max(height) as f64 / PICTURE_SIDE as f64).max(1.0);
    let side = |side: usize| ((side as f64 / shrink).round() as usize).clamp(1, PICTURE_SIDE);
    let (w, h) = (side(width), side(height));
    let mut pixels = Vec::with_capacity(w * h * 3);
    for y in 0..h {
        let rows = y * height / h..((y + 1) * height / h).max(y * height / h + 1);
        for x in 0..w {
            let columns = x * width / w..((x + 1) * width / w).max(x * width / w + 1);
            for channel in 0..3 {
                let channel = channel.min(channels - 1);
                let values = rows.clone().flat_map(|row| {
                    columns
                        .clone()
                        .map(move |column| (row * width + column) * channels + channel)
                });
                let sum: u64 = values.map(|at| u64::from(image.data()[at])).sum();
                let n = (rows.len() * columns.len()) as u64;
                pixels.push(((sum + n / 2) / n) as u8);
            }
        }
    }
    Ok(sdlora_image::encode_png(w, h, &pixels)?)
}

/// The head and what it keeps of old classes.
fn head(plan: &Plan, log: &RunLog) -> String {
    let kept = log.floats_stored.last().copied().unwrap_or_default();
    format!(
        "{}; keeps {} floats, {} in all",
        plan.head_name(),
        stored(kept),
        grouped(kept.total)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_train::TestedImage;

    #[test]
    fn a_picture_is_the_mean_of_what_it_covers_and_keeps_its_shape() {
        let image = Image::new(80, 40, 1, [10u8, 20].repeat(80 * 20)).unwrap();
        let png = thumbnail(&image).unwrap();
        let small = Image::decode(&png, "small").unwrap();
        assert_eq!((small.width(), small.height()), (40, 20));
        assert!(small.into_gray().data().iter().all(|&level| level == 15));
        let tiny = Image::new(2, 1, 3, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let same = Image::decode(&thumbnail(&tiny).unwrap(), "tiny").unwrap();
        assert_eq!(same.into_rgb().data(), [1, 2, 3, 4, 5, 6]);
        // As long as nothing else has ever been, and one pixel high.
        let line = Image::new(1000, 1, 1, vec![7; 1000]).unwrap();
        let line = Image::decode(&thumbnail(&line).unwrap(), "line").unwrap();
        assert_eq!((line.width(), line.height()), (40, 1));
    }

    #[test]
    fn every_class_has_its_surest_mistake_before_any_has_its_second() {
        let image = |label, prediction, probability| TestedImage {
            label,
            prediction,
            probability,
        };
        let mut tested = Tested::default();
        tested.class_names = vec!["a".into(), "b".into()];
        tested.images = vec![
            image(0, 0, 1.0),
            image(0, 1, 0.5),
            image(0, 1, 0.9),
            image(1, 0, 0.3),
            image(0, 1, 0.8),
            image(0, 1, 0.1),
        ];
        assert_eq!(surest(&tested), [2, 3, 4, 1]);
    }
}
