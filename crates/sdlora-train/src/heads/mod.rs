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
mod head;
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
mod stored;
mod task;
mod trained;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use classifier::Classifier;
pub(crate) use classifier::argmax;
pub use cosine::CosineHead;
pub use drift::Drift;
pub use head::{Head, HeadEntry};
pub(crate) use resting::RestingColumns;
pub use start::ColumnStart;
pub(crate) use state::SHARED;
pub use state::{Arrays, HeadState};
pub use stored::FloatsStored;
pub use task::HeadTask;
pub(crate) use trained::TrainedShape;
pub(crate) use trained::weighted_cross_entropy;
pub use trained::{TrainedHead, cross_entropy};

use crate::error::TrainError;

/// Every head there is.
pub const HEADS: &[HeadEntry] = &[
    linear::ENTRY,
    cosine::ENTRY,
    ncm::ENTRY,
    ridge::ENTRY,
    qda::ENTRY,
    gaussian::ENTRY,
];

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
    use crate::draws::{Draw, generator};
    use crate::features::FeatureTable;
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
            let mut rng = generator(3, Draw::HeadColumns, task_idx);
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
            let mut rng = generator(3, Draw::HeadColumns, 2);
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
