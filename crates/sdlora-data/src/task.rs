//! One step of a stream: its classes and its two halves, labelled.

use sdlora_image::Appearance;
use std::sync::Arc;

use crate::dataset::{ClassId, SampleIdx};
use crate::error::DataError;
use crate::seed::{Purpose, generator};
use crate::split::Split;
use rand::seq::SliceRandom;

/// A sample and what the head should predict for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelledSample {
    /// Position in [`Dataset::samples`](crate::Dataset::samples) of the set's split.
    pub idx: SampleIdx,
    /// Position of its class in the class order of the stream.
    pub label: usize,
}

/// Labelled samples of one split; what a loader reads.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSet {
    pub(crate) task_idx: usize,
    pub(crate) split: Split,
    pub(crate) samples: Vec<LabelledSample>,
    pub(crate) appearance: Vec<Appearance>,
    /// The task in which each label of the stream is learned first.
    pub(crate) first_tasks: Arc<[usize]>,
    /// Where the samples of each task begin, of a set that was joined from several; empty otherwise.
    pub(crate) parts: Arc<[Part]>,
}

/// The samples of one task in a set that was joined from several.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    first: usize,
    task_idx: usize,
    appearance: Vec<Appearance>,
}

impl SampleSet {
    /// The task the samples belong to, the first one of a set that was [joined](TrainSet::joined).
    pub fn task_idx(&self) -> usize {
        self.task_idx
    }

    /// The split that [`LabelledSample::idx`] refers to.
    pub fn split(&self) -> Split {
        self.split
    }

    /// The samples in the order of the data set.
    pub fn samples(&self) -> &[LabelledSample] {
        &self.samples
    }

    /// Changes of appearance that apply to every image of the set; empty for images as they are. Of a set
    /// that was [joined](TrainSet::joined), those of its first task.
    pub fn appearance(&self) -> &[Appearance] {
        &self.appearance
    }

    /// The task that the sample at a position comes from, and how its images look there.
    pub(crate) fn origin(&self, position: usize) -> (usize, &[Appearance]) {
        let n_begun = self.parts.partition_point(|part| part.first <= position);
        match n_begun.checked_sub(1).and_then(|last| self.parts.get(last)) {
            Some(part) => (part.task_idx, &part.appearance),
            None => (self.task_idx, &self.appearance),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

impl AsRef<SampleSet> for SampleSet {
    fn as_ref(&self) -> &SampleSet {
        self
    }
}

/// What a trainer may read of a task: samples of its training half.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSet(pub(crate) SampleSet);

/// What an evaluator may read of a task: its test half, or samples held out of the training half.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalSet(pub(crate) SampleSet);

impl AsRef<SampleSet> for TrainSet {
    fn as_ref(&self) -> &SampleSet {
        &self.0
    }
}

impl AsRef<SampleSet> for EvalSet {
    fn as_ref(&self) -> &SampleSet {
        &self.0
    }
}

impl TrainSet {
    /// The samples of several tasks as one set, task after task. Every image keeps the appearance of its
    /// task and is augmented as there; an image of two tasks is in it twice. `None` of no set.
    pub fn joined(sets: &[TrainSet]) -> Option<TrainSet> {
        let (first, later) = sets.split_first()?;
        if later.is_empty() {
            return Some(first.clone());
        }
        let mut all = SampleSet {
            samples: Vec::new(),
            ..first.0.clone()
        };
        let mut parts = Vec::with_capacity(sets.len());
        for TrainSet(set) in sets {
            let n_before = all.samples.len();
            let own = Part {
                first: 0,
                task_idx: set.task_idx,
                appearance: set.appearance.clone(),
            };
            let of_set = if set.parts.is_empty() {
                &[own]
            } else {
                &set.parts[..]
            };
            parts.extend(of_set.iter().map(|part| Part {
                first: n_before + part.first,
                ..part.clone()
            }));
            all.samples.extend(&set.samples);
        }
        all.parts = parts.into();
        Some(TrainSet(all))
    }

    /// Splits off `n_per_class` random samples of every class for validation; the rest stays for training.
    ///
    /// Both parts keep the order of the data set. The same seed gives the same parts.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] when a class has no more than `n_per_class` samples.
    pub fn hold_out(
        &self,
        n_per_class: usize,
        seed: u64,
    ) -> Result<(TrainSet, EvalSet), DataError> {
        let set = &self.0;
        let mut by_label: std::collections::BTreeMap<usize, Vec<usize>> = Default::default();
        for (position, sample) in set.samples.iter().enumerate() {
            by_label.entry(sample.label).or_default().push(position);
        }
        let mut is_held_out = vec![false; set.samples.len()];
        for (&label, positions) in &mut by_label {
            if positions.len() <= n_per_class {
                return Err(DataError::setting(
                    "hold_out",
                    format!("{n_per_class} samples a class"),
                    format!("fewer than the {} of label {label}", positions.len()),
                ));
            }
            // Of a class that comes again the same images are held out in each of its tasks.
            let first_task = set.first_tasks.get(label).copied().unwrap_or(set.task_idx);
            let mut rng = generator(seed, Purpose::HoldOut, [first_task as u32, label as u32, 0]);
            positions.shuffle(&mut rng);
            for &position in &positions[..n_per_class] {
                is_held_out[position] = true;
            }
        }
        let part = |held_out: bool| SampleSet {
            samples: set
                .samples
                .iter()
                .zip(&is_held_out)
                .filter_map(|(sample, &held)| (held == held_out).then_some(*sample))
                .collect(),
            appearance: set.appearance.clone(),
            first_tasks: set.first_tasks.clone(),
            parts: set
                .parts
                .iter()
                .map(|part| Part {
                    first: is_held_out[..part.first]
                        .iter()
                        .filter(|&&held| held == held_out)
                        .count(),
                    ..part.clone()
                })
                .collect(),
            ..*set
        };
        Ok((TrainSet(part(false)), EvalSet(part(true))))
    }
}

/// One task of a stream.
///
/// The halves are separate values so that each goes to its own room: `train` to the trainer, `test` to the evaluator.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Position in the stream, from 0.
    pub idx: usize,
    /// Its classes, new ones and those that come again, in the order in which the split names them.
    pub classes: Vec<ClassId>,
    /// Label of its first new class, which is the number of classes seen before.
    pub first_label: usize,
    /// Number of its classes that no earlier task has; 0 when only known classes come again.
    pub n_new_classes: usize,
    /// Position in [`Dataset::domains`](crate::Dataset::domains) of the only domain its images come from, if there is
    /// one.
    pub domain: Option<usize>,
    pub(crate) labels: Vec<usize>,
    /// Training half.
    pub train: TrainSet,
    /// Test half; empty when the data set has no test images.
    pub test: EvalSet,
}

impl Task {
    /// Label of each of its classes, `classes[i]` has `labels()[i]`: what its images are labelled with.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// Labels of its new classes, `first_label..first_label + n_new_classes`: what the head grows by.
    pub fn new_labels(&self) -> std::ops::Range<usize> {
        self.first_label..self.first_label + self.n_new_classes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train_set(n_classes: usize, n_per_class: usize) -> TrainSet {
        TrainSet(SampleSet {
            task_idx: 0,
            split: Split::Train,
            samples: (0..n_classes * n_per_class)
                .map(|idx| LabelledSample {
                    idx,
                    label: idx / n_per_class,
                })
                .collect(),
            appearance: Vec::new(),
            first_tasks: vec![0; n_classes].into(),
            parts: Arc::new([]),
        })
    }

    #[test]
    fn joined_samples_keep_the_task_they_come_from() {
        let mut sets = [train_set(2, 3), train_set(1, 2), train_set(2, 4)];
        for (task_idx, set) in sets.iter_mut().enumerate() {
            set.0.task_idx = task_idx;
            set.0.appearance = vec![Appearance::Invert; task_idx];
        }
        let whole = TrainSet::joined(&sets).unwrap();
        let origins = |set: &SampleSet| -> Vec<usize> {
            let origin = |position| {
                let (task_idx, appearance) = set.origin(position);
                assert_eq!(appearance.len(), task_idx);
                task_idx
            };
            (0..set.len()).map(origin).collect()
        };
        assert_eq!(
            origins(&whole.0),
            [[0; 6].as_slice(), &[1; 2], &[2; 8]].concat()
        );
        assert_eq!(origins(&sets[1].0), [1, 1]);
        // Labels are those of the stream, which count over tasks: here 0 and 1 come again.
        let (train, test) = whole.hold_out(2, 1).unwrap();
        assert_eq!(test.0.len(), 4);
        let mut back = [origins(&train.0), origins(&test.0)].concat();
        back.sort_unstable();
        assert_eq!(back, origins(&whole.0));
        assert!(TrainSet::joined(&[]).is_none());
        assert_eq!(TrainSet::joined(&sets[..1]).unwrap(), sets[0]);
    }

    #[test]
    fn held_out_samples_and_the_rest_are_the_whole() {
        let whole = train_set(3, 7);
        let (train, held) = whole.hold_out(2, 1).unwrap();
        for label in 0..3 {
            let count = |set: &SampleSet| set.samples.iter().filter(|s| s.label == label).count();
            assert_eq!((count(&train.0), count(&held.0)), (5, 2));
        }
        let mut all = [train.0.samples.clone(), held.0.samples.clone()].concat();
        all.sort_by_key(|sample| sample.idx);
        assert_eq!(all, whole.0.samples);
        assert_eq!((train, held.clone()), whole.hold_out(2, 1).unwrap());
        assert_ne!(held, whole.hold_out(2, 2).unwrap().1);
    }

    #[test]
    fn a_class_is_never_emptied() {
        assert!(train_set(2, 3).hold_out(2, 0).is_ok());
        let message = train_set(2, 3).hold_out(3, 0).unwrap_err().to_string();
        assert!(message.contains("label 0"), "{message}");
    }
}
