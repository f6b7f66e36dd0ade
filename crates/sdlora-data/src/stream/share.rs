//! Which images each task of a stream has.

use rand::seq::SliceRandom;

use super::config::Repeats;
use super::cut::Cut;
use crate::dataset::{ClassId, Dataset, SampleIdx};
use crate::error::DataError;
use crate::seed::{Purpose, generator};
use crate::split::Split;
use crate::task::LabelledSample;

/// Labelled samples of a half, by task, each in the order of the data set.
///
/// `labels` are those of the classes that are part of the stream.
pub(super) fn share(
    dataset: &dyn Dataset,
    split: Split,
    cuts: &[Cut],
    labels: &[Option<usize>],
    repeats: Repeats,
) -> Result<Vec<Vec<LabelledSample>>, DataError> {
    let mut tasks_of: Vec<Vec<usize>> = vec![Vec::new(); dataset.class_names().len()];
    for (task_idx, cut) in cuts.iter().enumerate() {
        for &class in &cut.classes {
            tasks_of[class].push(task_idx);
        }
    }
    let owners = match (repeats, split) {
        (Repeats::Split { seed }, Split::Train) => Some(parts(dataset, &tasks_of, seed)?),
        _ => None,
    };
    let mut by_task = vec![Vec::new(); cuts.len()];
    for (idx, sample) in dataset.samples(split).iter().enumerate() {
        let Some(label) = labels.get(sample.class_id).copied().flatten() else {
            continue;
        };
        let sample_domain = dataset.domain_of(split, idx);
        for &task_idx in &tasks_of[sample.class_id] {
            let domain = cuts[task_idx].domain;
            let is_owner = owners
                .as_ref()
                .is_none_or(|owners| owners[idx] == Some(task_idx));
            if is_owner && (domain.is_none() || domain == sample_domain) {
                by_task[task_idx].push(LabelledSample { idx, label });
            }
        }
    }
    Ok(by_task)
}

/// The one task that each training image belongs to: the images of a class are shuffled and dealt to its tasks in
/// order, parts of equal size up to one image.
fn parts(
    dataset: &dyn Dataset,
    tasks_of: &[Vec<usize>],
    seed: u64,
) -> Result<Vec<Option<usize>>, DataError> {
    let samples = dataset.samples(Split::Train);
    let mut of_class: Vec<Vec<SampleIdx>> = vec![Vec::new(); tasks_of.len()];
    for (idx, sample) in samples.iter().enumerate() {
        of_class[sample.class_id].push(idx);
    }
    let mut owners = vec![None; samples.len()];
    for (class, tasks) in tasks_of.iter().enumerate() {
        let images = &mut of_class[class];
        if tasks.len() > 1 {
            check_enough(dataset, class, images.len(), tasks.len())?;
            let position = [u32::try_from(class).unwrap_or(u32::MAX), 0, 0];
            images.shuffle(&mut generator(seed, Purpose::Repeat, position));
        }
        for (at, &task_idx) in tasks.iter().enumerate() {
            let part = images.len() * at / tasks.len()..images.len() * (at + 1) / tasks.len();
            for &idx in &images[part] {
                owners[idx] = Some(task_idx);
            }
        }
    }
    Ok(owners)
}

fn check_enough(
    dataset: &dyn Dataset,
    class: ClassId,
    n_images: usize,
    n_tasks: usize,
) -> Result<(), DataError> {
    if n_images >= n_tasks {
        return Ok(());
    }
    Err(DataError::setting(
        "repeats",
        format!(
            "split, with {n_images} training images of class `{}` in {n_tasks} tasks",
            dataset.class_names()[class]
        ),
        "at least one image for every task of a class, or `all`",
    ))
}
