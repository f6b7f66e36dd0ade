//! Settings of a stream: order of the classes, how they are cut into tasks, and what happens to a class that comes
//! again.

use sdlora_image::Appearance;
use serde::{Deserialize, Serialize};

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

    /// Checks what can be told without the data set: counts, and lists that are empty or name something twice.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] naming the first setting that no data set could have.
    pub fn check(&self) -> Result<(), DataError> {
        let refuse = |name: &str, found: String, expected: &str| {
            Err(DataError::setting(name, found, expected))
        };
        match &self.class_order {
            ClassOrder::Listed(ids) => check_list("class_order.listed", ids, "class id")?,
            ClassOrder::Named(names) => check_list("class_order.named", names, "class name")?,
            ClassOrder::Natural | ClassOrder::Numpy { .. } | ClassOrder::File(_) => {}
        }
        match &self.split {
            TaskSplit::Increment {
                init_cls,
                increment,
            } => {
                for (name, value) in [("init_cls", init_cls), ("increment", increment)] {
                    if *value == 0 {
                        let name = format!("split.increment.{name}");
                        return refuse(&name, "0".to_owned(), "at least 1 class");
                    }
                }
            }
            TaskSplit::Sizes(sizes) => {
                if sizes.is_empty() || sizes.contains(&0) {
                    let found = format!("{sizes:?}");
                    return refuse("split.sizes", found, "one size or more, each at least 1");
                }
            }
            TaskSplit::PerGroup { order } | TaskSplit::PerDomain { order } => {
                if let GroupOrder::Named(names) = order {
                    check_list("split.order.named", names, "name")?;
                }
            }
            TaskSplit::Groups(groups) => {
                if groups.is_empty() {
                    return refuse("split.groups", "[]".to_owned(), "one task or more");
                }
                for (i, group) in groups.iter().enumerate() {
                    check_list(&format!("split.groups[{i}]"), group, "class")?;
                }
            }
            TaskSplit::Joint => {}
        }
        if self.n_tasks == Some(0) {
            return refuse("n_tasks", "0".to_owned(), "at least 1 task");
        }
        for (i, changes) in self.appearances.iter().enumerate() {
            for (j, appearance) in changes.iter().enumerate() {
                appearance.check(&format!("appearances[{i}][{j}]"))?;
            }
        }
        Ok(())
    }
}

/// Refuses an empty list and one that has an entry twice.
fn check_list<T: PartialEq + std::fmt::Debug>(
    setting: &str,
    list: &[T],
    entry: &str,
) -> Result<(), DataError> {
    let twice = (1..list.len()).find(|&i| list[..i].contains(&list[i]));
    let found = match twice {
        None if !list.is_empty() => return Ok(()),
        None => "[]".to_owned(),
        Some(i) => format!("{:?} twice", list[i]),
    };
    let expected = format!("one {entry} or more, each once");
    Err(DataError::setting(setting, found, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_are_empty_or_name_something_twice_and_counts_of_0_are_refused_without_data() {
        for (text, setting, part) in [
            (
                "split = { increment = { init_cls = 0, increment = 2 } }",
                "init_cls",
                "at least 1",
            ),
            (
                "split = { increment = { init_cls = 2, increment = 0 } }",
                "increment.increment",
                "at least 1",
            ),
            ("split = { sizes = [] }", "split.sizes", "one size or more"),
            ("split = { sizes = [2, 0] }", "split.sizes", "[2, 0]"),
            ("split = { groups = [] }", "split.groups", "one task"),
            ("split = { groups = [[0], []] }", "split.groups[1]", "[]"),
            (
                "split = { groups = [['a', 1, 'a']] }",
                "split.groups[0]",
                "\"a\") twice",
            ),
            (
                "split = 'joint'\nclass_order = { listed = [] }",
                "class_order.listed",
                "[]",
            ),
            (
                "split = 'joint'\nclass_order = { listed = [1, 1] }",
                "class_order.listed",
                "1 twice",
            ),
            (
                "split = 'joint'\nclass_order = { named = ['b', 'b'] }",
                "class_order.named",
                "twice",
            ),
            (
                "split = { per_group = { order = { named = [] } } }",
                "order.named",
                "[]",
            ),
            (
                "split = { per_domain = { order = { named = ['x', 'x'] } } }",
                "order.named",
                "twice",
            ),
            ("split = 'joint'\nn_tasks = 0", "n_tasks", "at least 1"),
            (
                "split = 'joint'\nappearances = [[], ['invert', { stroke = { radius = 1.0 } }]]",
                "appearances[1][1].stroke.radius",
                "-0.25 to 0.25",
            ),
        ] {
            let config: StreamConfig = toml::from_str(text).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(
                error.contains(setting) && error.contains(part),
                "{text}: {error}"
            );
        }
        for text in [
            "split = 'joint'",
            "split = { groups = [[0, 'a'], [0]] }\nrepeats = 'all'",
            "split = { sizes = [2, 2] }\nappearances = [[], ['invert', 'invert']]",
        ] {
            toml::from_str::<StreamConfig>(text)
                .unwrap()
                .check()
                .unwrap();
        }
    }

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
