//! Settings of a stream: order of the classes, how they are cut into tasks, and what happens to a class that comes
//! again.

use serde::{Deserialize, Serialize};

use crate::appearance::Appearance;
use crate::class_order::ClassOrder;
use crate::dataset::ClassId;
use crate::error::DataError;

/// How a stream is made of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// Order in which classes are learned.
    #[serde(default)]
    pub class_order: ClassOrder,
    /// How the ordered classes are cut into tasks.
    pub split: TaskSplit,
    /// What happens to a class that several of the [`TaskSplit::Groups`] name.
    #[serde(default, skip_serializing_if = "Repeats::is_refused")]
    pub repeats: Repeats,
    /// Number of tasks to keep; later tasks and their classes are left out. All when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_tasks: Option<usize>,
    /// Changes of appearance: task `t` gets entry `t` modulo their number, training and test half alike.
    /// No entry leaves all images as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub appearances: Vec<Vec<Appearance>>,
}

/// How the ordered classes are cut into tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskSplit {
    /// One task of all classes: pre-training, or joint training as an upper bound.
    Joint,
    /// `init_cls` classes, then `increment` a task; classes left over make a last, smaller task (names as in PILOT).
    Increment {
        /// Number of classes of the first task, at least 1.
        init_cls: usize,
        /// Number of classes of every later task, at least 1.
        increment: usize,
    },
    /// Tasks of exactly these sizes, each at least 1; classes beyond their sum are left out.
    Sizes(Vec<usize>),
    /// One task for each group of the data set (alphabet, superclass); inside a group the class order holds.
    PerGroup {
        /// Order of the groups.
        order: GroupOrder,
    },
    /// One task for each domain of the data set (photographs, sketches), all with the same classes: only the images of
    /// the domain are learned and tested. A class without training images in a domain is no part of that task.
    PerDomain {
        /// Order of the domains.
        order: GroupOrder,
    },
    /// The classes of each task, by name or id, in this order; a class may come again, see [`Repeats`].
    Groups(Vec<Vec<ClassRef>>),
}

/// A class as a configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassRef {
    /// By its id.
    Id(ClassId),
    /// By its name in the data set.
    Name(String),
}

/// What happens to a class that several tasks name. Its label stays that of its first task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Repeats {
    /// It is an error.
    #[default]
    Refuse,
    /// Each of the tasks trains on all images of the class.
    All,
    /// Each of the tasks trains on a part of its own, of equal size up to one image; all are tested on all test images.
    Split {
        /// Seed of the draw.
        seed: u64,
    },
}

impl Repeats {
    pub(super) fn is_refused(&self) -> bool {
        *self == Self::Refuse
    }
}

/// Order of the groups of a [`TaskSplit::PerGroup`] stream, or of the domains of a [`TaskSplit::PerDomain`] stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GroupOrder {
    /// As the data set lists them.
    #[default]
    Natural,
    /// NumPy's legacy permutation of the groups.
    Numpy {
        /// Argument of `numpy.random.seed`.
        seed: u32,
    },
    /// By name, in this order; those that are not named are left out.
    Named(Vec<String>),
}

impl StreamConfig {
    /// A stream with the classes in natural order.
    pub fn new(split: TaskSplit) -> Self {
        Self {
            class_order: ClassOrder::Natural,
            split,
            repeats: Repeats::Refuse,
            n_tasks: None,
            appearances: Vec::new(),
        }
    }

    /// One task of all classes, in natural order, images as they are.
    pub fn joint() -> Self {
        Self::new(TaskSplit::Joint)
    }

    /// Classes in the given order.
    #[must_use]
    pub fn with_class_order(mut self, class_order: ClassOrder) -> Self {
        self.class_order = class_order;
        self
    }

    /// What happens to classes that come again.
    #[must_use]
    pub fn with_repeats(mut self, repeats: Repeats) -> Self {
        self.repeats = repeats;
        self
    }

    /// At most `n_tasks` tasks.
    #[must_use]
    pub fn with_n_tasks(mut self, n_tasks: usize) -> Self {
        self.n_tasks = Some(n_tasks);
        self
    }

    /// Changes of appearance, by task.
    #[must_use]
    pub fn with_appearances(mut self, appearances: Vec<Vec<Appearance>>) -> Self {
        self.appearances = appearances;
        self
    }

    /// The same stream with the file of a class order read, so that it no longer depends on it.
    ///
    /// # Errors
    ///
    /// Those of [`ClassOrder::inlined`].
    pub fn inlined(mut self) -> Result<Self, DataError> {
        self.class_order = self.class_order.inlined()?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_reads_back_what_it_writes() {
        for text in [
            r#"
            class_order = { numpy = { seed = 1993 } }
            split = { increment = { init_cls = 2, increment = 4 } }
            n_tasks = 3
            appearances = [[], [{ rotate = { degrees = 90.0 } }, "invert"]]
            "#,
            r#"
            split = { groups = [["cat", 3], ["cat"]] }
            repeats = { split = { seed = 7 } }
            "#,
            r#"
            class_order = { named = ["cat", "dog"] }
            split = { per_domain = { order = { named = ["real", "sketch"] } } }
            repeats = "all"
            "#,
        ] {
            let config: StreamConfig = toml::from_str(text).unwrap();
            let again: StreamConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
            assert_eq!(config, again);
        }
        let plain = toml::to_string(&StreamConfig::joint()).unwrap();
        assert!(!plain.contains("repeats"), "{plain}");
        for wrong in [
            "split = 'joint'\nsplits = 1",
            "split = { increment = { init_cls = 2, increment = 4, x = 1 } }",
            "split = { groups = [[1.5]] }",
            "split = 'joint'\nrepeats = { split = { seed = 1, x = 1 } }",
        ] {
            assert!(toml::from_str::<StreamConfig>(wrong).is_err(), "{wrong}");
        }
    }
}
