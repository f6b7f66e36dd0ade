//! The labelled images that a model is measured on.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use sdlora_data::{
    Cache, DataError, Dataset, ImageList, ImageSource, Loader, LoaderConfig, SampleSet,
    StreamConfig, TaskStream, datasets,
};
use sdlora_train::{PLAN_FILE, read_plan};

use crate::UsageError;
use crate::commands::Common;
use crate::commands::predict::{BATCH, Model};

/// What an image shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// The class of that label.
    Class(usize),
    /// A class that the model does not know, by its place among the [strangers](Subject::strangers).
    Stranger(usize),
}

/// Images with what they show.
pub struct Subject {
    /// What they are, for the report.
    pub title: String,
    /// Names of classes or folders that the model does not know.
    pub strangers: Vec<String>,
    truths: Vec<Truth>,
    loader: Loader,
    /// Of images that are read from files; a data set ends at the first that cannot be.
    list: Option<Arc<ImageList>>,
}

impl Subject {
    /// The images of a folder or archive.
    ///
    /// # Errors
    ///
    /// A usage error when no folder is called as a class of the model.
    pub fn of_folder(folder: &Path, model: &Model) -> anyhow::Result<Self> {
        if !folder.exists() {
            return Err(UsageError(format!(
                "there is no {}: give a folder, zip or tar with a folder for every class",
                folder.display()
            ))
            .into());
        }
        let list = Arc::new(ImageList::new([folder.to_owned()], model.reading));
        let images = list.images().iter();
        let below: Vec<Vec<String>> = images
            .map(|image| {
                parts(
                    image
                        .full_path()
                        .strip_prefix(folder)
                        .unwrap_or(Path::new("")),
                )
            })
            .collect();
        let classes = model.predictor.class_names();
        let labels: HashMap<&str, usize> = classes
            .iter()
            .enumerate()
            .map(|(label, name)| (name.as_str(), label))
            .collect();
        let skipped = shared_folders(&below);
        let mut strangers = BTreeMap::new();
        let found: Vec<Option<usize>> = below
            .iter()
            .map(|parts| {
                let found = (0..=skipped).find_map(|skip| label_of(&parts[skip..], &labels));
                if found.is_none() {
                    let folder = parts.get(skipped).cloned().unwrap_or_default();
                    strangers.entry(folder).or_insert(0);
                }
                found
            })
            .collect();
        if found.iter().all(Option::is_none) {
            let mut known: Vec<String> = classes.iter().take(5).map(|c| format!("`{c}`")).collect();
            if classes.len() > known.len() {
                known.push("...".into());
            }
            return Err(UsageError(format!(
                "no folder with images in {} is called as a class of the model ({}): name the folders so",
                folder.display(),
                known.join(", ")
            ))
            .into());
        }
        for (place, idx) in strangers.values_mut().enumerate() {
            *idx = place;
        }
        let truths = found.iter().zip(&below).map(|(found, parts)| match found {
            Some(label) => Truth::Class(*label),
            None => {
                let folder = parts.get(skipped).cloned().unwrap_or_default();
                Truth::Stranger(strangers.get(&folder).copied().unwrap_or(0))
            }
        });
        Ok(Self {
            title: folder.display().to_string(),
            truths: truths.collect(),
            strangers: strangers.into_keys().collect(),
            loader: list.loader(model.transform.clone(), BATCH)?,
            list: Some(list),
        })
    }

    /// The test images of the data set of a run, as they are: without the appearances of its stream.
    ///
    /// # Errors
    ///
    /// A usage error for a model without its run, and those of the data set.
    pub fn of_run(run: &Path, common: &Common, model: &Model) -> anyhow::Result<Self> {
        if !run.join(PLAN_FILE).is_file() {
            return Err(UsageError(format!(
                "{} has no {PLAN_FILE} that names a data set: give the folder of a run, or a folder of images",
                run.display()
            ))
            .into());
        }
        let plan = read_plan(run)?;
        let dataset: Arc<dyn Dataset> =
            datasets::open(&plan.dataset, &common.data_dir, &plan.dataset_options)?.into();
        let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::joint())?;
        let [task] = stream.tasks() else {
            anyhow::bail!("data set {} has no classes", plan.dataset);
        };
        let is_gone = |domain| !dataset.absent_classes(domain).is_empty();
        if task.test.as_ref().is_empty() && (0..dataset.domains().len()).any(is_gone) {
            return Err(UsageError(format!(
                "the images that {} learned from are gone or changed: give a folder of labelled images",
                run.display()
            ))
            .into());
        }
        let classes = model.predictor.class_names();
        let labels: HashMap<&str, usize> = classes
            .iter()
            .enumerate()
            .map(|(label, name)| (name.as_str(), label))
            .collect();
        let names = dataset.class_names();
        let mut strangers = Vec::new();
        let of_class: Vec<Truth> = stream
            .class_order()
            .iter()
            .map(|&class_id| match labels.get(names[class_id].as_str()) {
                Some(&label) => Truth::Class(label),
                None => {
                    strangers.push(names[class_id].clone());
                    Truth::Stranger(strangers.len() - 1)
                }
            })
            .collect();
        let set: &SampleSet = task.test.as_ref();
        let truths = set.samples().iter().map(|sample| of_class[sample.label]);
        let truths = truths.collect();
        let transform = model.transform.clone();
        let source = ImageSource::new(dataset.clone(), &task.test, transform, Cache::None);
        Ok(Self {
            title: format!("test images of {}", plan.dataset),
            strangers,
            truths,
            loader: LoaderConfig::evaluation(BATCH).init(Arc::new(source), 0)?,
            list: None,
        })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.truths.len()
    }

    /// What an image shows.
    pub fn truth(&self, position: usize) -> Truth {
        self.truths[position]
    }

    /// Prepares the images.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Why an image could not be read.
    pub fn take_problem(&self, position: usize) -> Option<DataError> {
        self.list.as_ref()?.take_problem(position)
    }

    /// The image as messages name it.
    pub fn name(&self, position: usize) -> String {
        let image = self.list.as_ref().map(|list| &list.images()[position]);
        image.map_or_else(String::new, |image| image.full_path().display().to_string())
    }
}

/// Folders of a path below the root, from outside in.
fn parts(below: &Path) -> Vec<String> {
    let folder = below.parent().unwrap_or(Path::new(""));
    let parts = folder.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
        _ => None,
    });
    parts.collect()
}

/// Folders that all images lie in, one in the other.
fn shared_folders(below: &[Vec<String>]) -> usize {
    let Some((first, others)) = below.split_first() else {
        return 0;
    };
    let is_shared = |depth: &usize| {
        let part = first.get(*depth);
        part.is_some() && others.iter().all(|parts| parts.get(*depth) == part)
    };
    (0..).take_while(is_shared).count()
}

/// The class that is called as the outermost of `folders`, or as several from there on with `/` between them; the
/// longest such name.
fn label_of(folders: &[String], labels: &HashMap<&str, usize>) -> Option<usize> {
    let mut found = None;
    let mut name = String::new();
    for folder in folders {
        if !name.is_empty() {
            name.push('/');
        }
        name.push_str(folder);
        found = labels.get(name.as_str()).copied().or(found);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_may_lie_in_several_folders_and_below_shared_ones() {
        let labels = HashMap::from([("cat", 0), ("wild/cat", 1), ("wild", 2)]);
        let of = |path: &str| label_of(&parts(Path::new(path)), &labels);
        assert_eq!(of("cat/1.png"), Some(0));
        assert_eq!(of("cat/young/1.png"), Some(0));
        assert_eq!(of("wild/cat/1.png"), Some(1));
        assert_eq!(of("wild/dog/1.png"), Some(2));
        assert_eq!((of("dog/cat/1.png"), of("1.png")), (None, None));
        let below = |paths: &[&str]| {
            let all: Vec<_> = paths.iter().map(|path| parts(Path::new(path))).collect();
            shared_folders(&all)
        };
        assert_eq!(below(&["top/cat/1.png", "top/wild/1.png"]), 1);
        assert_eq!(below(&["cat/1.png", "wild/1.png", "2.png"]), 0);
        assert_eq!(below(&["cat/1.png", "cat/2.png"]), 1);
        assert_eq!(below(&[]), 0);
    }
}
