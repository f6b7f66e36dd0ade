//! The heads: what classifies features, how it is learned and what it keeps of old classes.
//!
//! A head is one file and one line in [`HEADS`]. Help text, configuration check and contract tests
//! read the same slice. Any head combines with any method: the method says what becomes of the
//! features, the head says what becomes of the classes.
//!
//! A head learns in two ways, and may use both: by the steps of a task, which train the columns of a
//! [`TrainedHead`], and by [`Head::fit`] from the features of the task's images once they are over.

mod align;
mod classifier;
mod cosine;
mod drift;
mod gaussian;
mod linear;
mod ncm;
mod normal;
mod projection;
mod qda;
mod resting;
mod ridge;
mod softmax;
mod start;
mod state;
mod trained;

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use classifier::Classifier;
pub(crate) use classifier::argmax;
pub use cosine::CosineHead;
pub use drift::Drift;
pub(crate) use resting::RestingColumns;
pub use start::ColumnStart;
pub(crate) use state::SHARED;
pub use state::{Arrays, FloatsStored, HeadState};
pub(crate) use trained::TrainedShape;
pub(crate) use trained::weighted_cross_entropy;
pub use trained::{TrainedHead, cross_entropy};

use crate::error::TrainError;
use crate::features::FeatureTable;

/// A task as a head sees it: features of its training images, and where its new classes begin.
#[derive(Debug, Clone)]
pub struct HeadTask<'a> {
    /// Features of the training images, prepared as for evaluation, always in the same order.
    pub table: &'a FeatureTable,
    /// Number of classes seen before: labels from here on are new, smaller ones come again.
    pub first_label: usize,
    /// Task, from 0.
    pub task_idx: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Device with autodiff.
    pub device: &'a Device,
}

/// A way to classify features. It knows of features and labels, and of no image or backbone.
pub trait Head: Debug + Send + Sync {
    /// Whether the steps of a method are all it learns by: then a method without steps cannot have
    /// it.
    fn needs_steps(&self) -> bool {
        false
    }

    /// Where new columns start under a method that starts them at `of_method`; the option `start`
    /// overrules both.
    fn start(&self, of_method: ColumnStart) -> ColumnStart {
        of_method
    }

    /// Columns of `n_new` classes for the steps of a task to train.
    fn columns(
        &self,
        start: ColumnStart,
        d_model: usize,
        n_new: usize,
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> TrainedHead {
        start.draw(d_model, n_new, rng, device)
    }

    /// Logits `[batch, n_classes]` that the loss of a step compares, of `features: [batch, d_model]`;
    /// `trained` has the columns of the classes that are compared, and no others.
    fn logits(&self, trained: &TrainedHead, features: Tensor<2>) -> Tensor<2> {
        trained.linear(features)
    }

    /// What becomes of the statistics of old classes when the features change.
    fn drift(&self) -> Drift {
        Drift::Ignored
    }

    /// Whether [`before_task`](Self::before_task) wants the features of the task's images as they
    /// are before its first step; they cost one forward pass over the images.
    fn wants_features_before(&self) -> bool {
        self.drift() != Drift::Ignored
    }

    /// Sees the features of a task before its first step, and keeps them until [`fit`](Self::fit).
    ///
    /// # Errors
    ///
    /// When the features do not fit what the head keeps.
    fn before_task(
        &self,
        mut state: HeadState,
        task: &HeadTask<'_>,
    ) -> Result<HeadState, TrainError> {
        drift::keep_before(&mut state, task);
        Ok(state)
    }

    /// Whether [`fit`](Self::fit) is to be called after the last step of a task; it costs one forward
    /// pass over the images.
    fn is_fitted(&self) -> bool {
        false
    }

    /// Learns from the features of a task after its last step.
    ///
    /// # Errors
    ///
    /// When the features do not fit what the head keeps.
    fn fit(&self, state: HeadState, _task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        Ok(state)
    }

    /// Whether more images of a class that is known change what is kept of it.
    fn extends_classes(&self) -> bool {
        true
    }

    /// What predicts, over all classes seen; `None` before the first task.
    fn classifier(&self, state: &HeadState) -> Option<Classifier>;
}

/// A registered head.
#[derive(Debug)]
pub struct HeadEntry {
    /// Name in configuration files.
    pub name: &'static str,
    /// One line for the help text.
    pub summary: &'static str,
    /// Reads the options of the head.
    pub build: fn(&toml::Table) -> Result<Arc<dyn Head>, TrainError>,
}

/// Every head there is.
pub const HEADS: &[HeadEntry] = &[
    linear::ENTRY,
    cosine::ENTRY,
    ncm::ENTRY,
    ridge::ENTRY,
    qda::ENTRY,
    gaussian::ENTRY,
];

/// Purposes of the generators of heads; those of methods are below 16.
const ALIGNMENT_DRAW: u64 = 16;
const PROJECTION_DRAW: u64 = 17;

/// Builds the head of that name with its options.
///
/// # Errors
///
/// [`TrainError::Setting`] for an unknown name or option.
pub fn build(name: &str, options: &toml::Table) -> Result<Arc<dyn Head>, TrainError> {
    let entry = HEADS.iter().find(|h| h.name == name).ok_or_else(|| {
        let known: Vec<_> = HEADS.iter().map(|h| h.name).collect();
        TrainError::setting("head", name, format!("one of {}", known.join(", ")))
    })?;
    (entry.build)(options)
}

/// Names of the heads that a method without steps can have.
pub(crate) fn without_steps() -> Vec<&'static str> {
    let is_free = |entry: &&HeadEntry| {
        let built = (entry.build)(&toml::Table::new());
        built.is_ok_and(|head| !head.needs_steps())
    };
    HEADS
        .iter()
        .filter(is_free)
        .map(|entry| entry.name)
        .collect()
}

/// A head and its own options: `head = "ridge"`, or a table with `name` and the options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct HeadConfig {
    /// Name in [`HEADS`].
    pub name: String,
    /// Where the columns of new classes start; as the method says where it is left out.
    pub start: Option<ColumnStart>,
    /// Options, known to the head alone.
    pub options: toml::Table,
}

#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name of a head, or a table with `name` and its options"
)]
enum Form {
    Name(String),
    Full {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start: Option<toml::Value>,
        #[serde(flatten)]
        options: toml::Table,
    },
}

impl TryFrom<Form> for HeadConfig {
    type Error = String;

    fn try_from(form: Form) -> Result<Self, String> {
        Ok(match form {
            Form::Name(name) => Self::named(name),
            Form::Full {
                name,
                start,
                options,
            } => Self {
                name,
                start: start.as_ref().map(ColumnStart::parse).transpose()?,
                options,
            },
        })
    }
}

impl From<HeadConfig> for Form {
    fn from(config: HeadConfig) -> Self {
        match config.options.is_empty() && config.start.is_none() {
            true => Self::Name(config.name),
            false => Self::Full {
                name: config.name,
                start: config.start.map(|start| start.name().into()),
                options: config.options,
            },
        }
    }
}

impl HeadConfig {
    /// The head of that name with its default options.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            start: None,
            options: toml::Table::new(),
        }
    }

    /// This head with another start of new columns.
    pub fn starting(mut self, start: ColumnStart) -> Self {
        self.start = Some(start);
        self
    }

    /// This head with one more option.
    pub fn with(mut self, option: &str, value: impl Into<toml::Value>) -> Self {
        self.options.insert(option.into(), value.into());
        self
    }

    /// Builds the head.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for an unknown name or option.
    pub fn build(&self) -> Result<Arc<dyn Head>, TrainError> {
        build(&self.name, &self.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device_autodiff;
    use sdlora_testkit::toy::SplitMix64;

    const D: usize = 6;

    /// Twelve noisy features of each of the labels; a class lies around its own axis.
    fn table(labels: std::ops::Range<usize>, seed: u64) -> FeatureTable {
        let mut noise = SplitMix64::new(seed);
        let mut table = FeatureTable {
            d_model: D,
            ..FeatureTable::default()
        };
        for label in labels {
            for _ in 0..12 {
                let mut row = noise.fill(D, 0.2);
                row[label] += 1.0;
                table.features.extend(row);
                table.labels.push(label);
            }
        }
        table
    }

    /// Every entry with its defaults, and settings that keep or compute something else.
    fn every_head() -> Vec<(String, Arc<dyn Head>)> {
        let others = [
            ("ncm", "drift = \"compensated\""),
            ("ncm", "drift = \"linear\""),
            ("ridge", "projection = 40"),
            ("ridge", "projection = 40\ndrift = \"linear\""),
            ("qda", "rank = 0"),
            ("qda", "shrinkage = 0.5\nprior = 3.0\ndrift = \"linear\""),
            ("qda", "drift = \"compensated\""),
            ("gaussian", "covariance = \"diagonal\""),
            (
                "gaussian",
                "covariance = \"low-rank\"\nrank = 2\ndrift = \"linear\"",
            ),
            (
                "gaussian",
                "n_epochs = 20\nmax_steps = 60\nrobust_weight = 0.1",
            ),
            ("gaussian", "covariance = \"diagonal\"\ndrift = \"linear\""),
            ("gaussian", "drift = \"linear\""),
            (
                "gaussian",
                "covariance = \"shared\"\ndrift = \"compensated\"",
            ),
        ];
        let defaults = HEADS.iter().map(|entry| (entry.name, ""));
        let built = |(name, options): (&str, &str)| {
            let head = build(name, &options.parse().unwrap()).unwrap();
            (format!("{name} {options}"), head)
        };
        defaults.chain(others).map(built).collect()
    }

    /// The state after two tasks of two classes whose columns are drawn and not trained.
    fn learned(head: &dyn Head) -> HeadState {
        let device = test_device_autodiff();
        let mut state = HeadState::default();
        for (task_idx, labels) in [(0, 0..2), (1, 2..4)] {
            let table = table(labels.clone(), 7 + task_idx as u64);
            let task = HeadTask {
                table: &table,
                first_label: labels.start,
                task_idx,
                seed: 3,
                device: &device,
            };
            let mut rng = crate::model::generator(3, 1, task_idx);
            if head.wants_features_before() {
                state = head.before_task(state, &task).unwrap();
            }
            state = state.grown(head, ColumnStart::Torch, D, 2, &mut rng, &device);
            state = head.fit(state, &task).unwrap();
        }
        state
    }

    #[test]
    fn names_are_unique_and_described_and_unknown_options_are_refused_by_name() {
        for (i, entry) in HEADS.iter().enumerate() {
            let others = &HEADS[..i];
            assert!(others.iter().all(|other| other.name != entry.name));
            assert!(!entry.summary.is_empty(), "{}", entry.name);
            (entry.build)(&Default::default()).unwrap();
            let options = toml::Table::from_iter([("surprise".to_owned(), 1.into())]);
            let error = (entry.build)(&options).unwrap_err().to_string();
            let names = error.contains("`surprise`") && error.contains(entry.name);
            assert!(names, "{error}");
        }
        let error = build("svm", &Default::default()).unwrap_err().to_string();
        assert!(HEADS.iter().all(|e| error.contains(e.name)), "{error}");
    }

    #[test]
    fn a_head_is_a_name_or_a_table() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Plan {
            head: HeadConfig,
            after: usize,
        }
        for (text, options, start) in [
            ("\"ridge\"", 0, None),
            ("{ name = \"ridge\", projection = 300 }", 1, None),
            (
                "{ name = \"ridge\", start = \"normal\" }",
                0,
                Some(ColumnStart::Normal),
            ),
        ] {
            let plan: Plan = toml::from_str(&format!("head = {text}\nafter = 1")).unwrap();
            assert_eq!(plan.head.name, "ridge");
            assert_eq!(plan.head.options.len(), options);
            assert_eq!(plan.head.start, start);
            let written = toml::to_string(&plan).unwrap();
            assert_eq!(toml::from_str::<Plan>(&written).unwrap(), plan, "{written}");
        }
        for (head, expected) in [
            ("3", "the name of a head"),
            (
                "{ name = \"ridge\", start = \"xavier\" }",
                "`start` is \"xavier\"",
            ),
            (
                "{ name = \"ridge\", start = 0.02 }",
                "kaiming, torch, normal or zeros",
            ),
        ] {
            let error = toml::from_str::<Plan>(&format!("head = {head}\nafter = 1")).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_head_that_is_fitted_classifies_what_it_saw() {
        for (name, head) in every_head() {
            assert!(head.classifier(&HeadState::default()).is_none());
            let state = learned(head.as_ref());
            let classifier = head.classifier(&state).unwrap();
            assert_eq!(classifier.n_classes(), 4, "{}", name);
            if head.is_fitted() {
                let test = table(0..4, 99);
                let found = crate::accuracy(&classifier.predict(&test), &test.labels);
                assert!(found > 0.9, "{}: {found}", name);
            }
        }
    }

    #[test]
    fn a_task_of_known_classes_adds_no_columns() {
        let device = test_device_autodiff();
        for entry in HEADS {
            let head = (entry.build)(&Default::default()).unwrap();
            let mut state = learned(head.as_ref());
            let before = head.classifier(&state).unwrap().logits(&table(0..4, 5));
            let mut rng = crate::model::generator(3, 1, 2);
            state = state.grown(head.as_ref(), ColumnStart::Torch, D, 0, &mut rng, &device);
            let table = table(1..3, 12);
            let task = HeadTask {
                table: &table,
                first_label: 4,
                task_idx: 2,
                seed: 3,
                device: &device,
            };
            state = head.fit(state, &task).unwrap();
            let classifier = head.classifier(&state).unwrap();
            assert_eq!(classifier.n_classes(), 4, "{}", entry.name);
            if head.is_fitted() {
                let test = self::tests::table(0..4, 99);
                let found = crate::accuracy(&classifier.predict(&test), &test.labels);
                assert!(found > 0.9, "{}: {found}", entry.name);
            } else {
                let after = classifier.logits(&self::tests::table(0..4, 5));
                assert_eq!(after, before, "{}", entry.name);
            }
        }
    }

    #[test]
    fn every_head_predicts_the_same_after_its_state_and_its_classifier_went_through_files() {
        let folder = tempfile::tempdir().unwrap();
        for (name, head) in every_head() {
            let state = learned(head.as_ref());
            let classifier = head.classifier(&state).unwrap();
            let expected = classifier.logits(&table(0..4, 5));

            let mut back = HeadState::from_file(&state.to_file()).unwrap();
            back.trained = state.trained.clone();
            let again = head.classifier(&back).unwrap();
            assert_eq!(again.logits(&table(0..4, 5)), expected, "{}", name);

            let path = folder.path().join("head.safetensors");
            classifier.write(&path, &name).unwrap();
            let read = Classifier::read(&path, D).unwrap();
            assert_eq!(read.logits(&table(0..4, 5)), expected, "{}", name);
        }
    }

    #[test]
    fn the_floats_stored_are_those_of_the_arrays_and_grow_by_the_class() {
        for (name, head) in every_head() {
            let stored = learned(head.as_ref()).floats_stored();
            assert!(stored.per_class >= D, "{}: {stored:?}", name);
            let total = 4 * stored.per_class + stored.shared;
            assert_eq!(stored.total, total, "{}: {stored:?}", name);
        }
    }
}
