//! Which classes each task of a stream has.

use std::collections::HashMap;

use super::config::{ClassRef, GroupOrder, Repeats, StreamConfig, TaskSplit};
use crate::class_order::{ClassOrder, numpy_permutation};
use crate::dataset::{ClassId, Dataset};
use crate::error::DataError;
use crate::split::Split;

/// The classes of one task, and the domain its images come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Each at most once.
    pub(super) classes: Vec<ClassId>,
    /// Position in [`Dataset::domains`]; images of all domains when absent.
    pub(super) domain: Option<usize>,
}

impl Cut {
    fn of_all_domains(classes: Vec<ClassId>) -> Self {
        Self {
            classes,
            domain: None,
        }
    }
}

/// All tasks of a stream, before `n_tasks`.
pub(super) fn cut(dataset: &dyn Dataset, config: &StreamConfig) -> Result<Vec<Cut>, DataError> {
    if let TaskSplit::Groups(groups) = &config.split {
        if config.class_order != ClassOrder::Natural {
            return Err(DataError::setting(
                "class_order",
                "set for a stream of `groups`",
                "`natural`, as the groups give the order",
            ));
        }
        return named_groups(dataset, groups, config.repeats);
    }
    if !config.repeats.is_refused() {
        return Err(DataError::setting(
            "repeats",
            "set for a split that names no class twice",
            "`split.groups`, the only split with classes that come again",
        ));
    }
    let order = config.class_order.resolve(dataset.class_names())?;
    match &config.split {
        TaskSplit::PerDomain { order: domains } => per_domain(dataset, &order, domains),
        split => Ok(cut_order(dataset, order, split)?
            .into_iter()
            .map(Cut::of_all_domains)
            .collect()),
    }
}

/// An order cut in pieces.
fn cut_order(
    dataset: &dyn Dataset,
    order: Vec<ClassId>,
    split: &TaskSplit,
) -> Result<Vec<Vec<ClassId>>, DataError> {
    match split {
        TaskSplit::Increment {
            init_cls,
            increment,
        } => {
            let at_most = order.len();
            for (name, value) in [("init_cls", *init_cls), ("increment", *increment)] {
                if value == 0 || value > at_most {
                    return Err(DataError::setting(
                        format!("split.increment.{name}"),
                        value,
                        format!("from 1 to the {at_most} classes of the class order"),
                    ));
                }
            }
            let (first, rest) = order.split_at(*init_cls);
            let mut lists = vec![first.to_vec()];
            lists.extend(rest.chunks(*increment).map(<[ClassId]>::to_vec));
            Ok(lists)
        }
        TaskSplit::Sizes(sizes) => {
            let total = sizes.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n));
            let in_range = total.is_some_and(|total| total <= order.len());
            if sizes.is_empty() || sizes.contains(&0) || !in_range {
                return Err(DataError::setting(
                    "split.sizes",
                    format!("{sizes:?}"),
                    format!("positive sizes with a sum of at most {}", order.len()),
                ));
            }
            let mut rest = order.as_slice();
            Ok(sizes
                .iter()
                .map(|&size| {
                    let (task, later) = rest.split_at(size);
                    rest = later;
                    task.to_vec()
                })
                .collect())
        }
        TaskSplit::PerGroup { order: group_order } => per_group(dataset, &order, group_order),
        TaskSplit::Joint | TaskSplit::PerDomain { .. } | TaskSplit::Groups(_) => Ok(vec![order]),
    }
}

fn per_group(
    dataset: &dyn Dataset,
    order: &[ClassId],
    group_order: &GroupOrder,
) -> Result<Vec<Vec<ClassId>>, DataError> {
    let groups = dataset.groups();
    if groups.is_empty() {
        return Err(DataError::setting(
            "split",
            format!("per_group for data set `{}`", dataset.name()),
            "another split, as this data set has no groups",
        ));
    }
    let mut group_of = vec![None; dataset.class_names().len()];
    for (group_idx, group) in groups.iter().enumerate() {
        for &class in &group.classes {
            group_of[class] = Some(group_idx);
        }
    }
    let mut lists = vec![Vec::new(); groups.len()];
    for &class in order {
        if let Some(group_idx) = group_of[class] {
            lists[group_idx].push(class);
        }
    }
    let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    Ok(positions(group_order, &names, "per_group")?
        .into_iter()
        .map(|group_idx| std::mem::take(&mut lists[group_idx]))
        .filter(|classes| !classes.is_empty())
        .collect())
}

/// A task for each domain, of the classes that have training images in it.
fn per_domain(
    dataset: &dyn Dataset,
    order: &[ClassId],
    domain_order: &GroupOrder,
) -> Result<Vec<Cut>, DataError> {
    let domains = dataset.domains();
    if domains.is_empty() {
        return Err(DataError::setting(
            "split",
            format!("per_domain for data set `{}`", dataset.name()),
            "another split, as this data set has no domains",
        ));
    }
    let n_classes = dataset.class_names().len();
    let mut has_images = vec![vec![false; n_classes]; domains.len()];
    for (idx, sample) in dataset.samples(Split::Train).iter().enumerate() {
        if let Some(domain) = dataset.domain_of(Split::Train, idx) {
            has_images[domain][sample.class_id] = true;
        }
    }
    for (domain, has_images) in has_images.iter_mut().enumerate() {
        for &class in dataset.absent_classes(domain) {
            has_images[class] = true;
        }
    }
    let names: Vec<&str> = domains.iter().map(String::as_str).collect();
    positions(domain_order, &names, "per_domain")?
        .into_iter()
        .map(|domain| {
            let has_images = &has_images[domain];
            let classes: Vec<ClassId> = order
                .iter()
                .copied()
                .filter(|&class| has_images[class])
                .collect();
            if classes.is_empty() {
                return Err(DataError::setting(
                    "split.per_domain",
                    format!("domain `{}`", domains[domain]),
                    "domains with training images of the classes of the class order",
                ));
            }
            Ok(Cut {
                classes,
                domain: Some(domain),
            })
        })
        .collect()
}

/// Positions of the groups or domains called `names`, in the order asked for.
fn positions(order: &GroupOrder, names: &[&str], split: &str) -> Result<Vec<usize>, DataError> {
    match order {
        GroupOrder::Natural => Ok((0..names.len()).collect()),
        GroupOrder::Numpy { seed } => Ok(numpy_permutation(*seed, names.len())),
        GroupOrder::Named(listed) => {
            let mut seen = vec![false; names.len()];
            let refuse = |found: String| {
                let expected = format!("some of {}, each once", names.join(", "));
                DataError::setting(format!("split.{split}.order.named"), found, expected)
            };
            if listed.is_empty() {
                return Err(refuse("empty".to_owned()));
            }
            listed
                .iter()
                .map(|name| {
                    let at = names.iter().position(|known| known == name);
                    let at = at.ok_or_else(|| refuse(format!("`{name}`")))?;
                    if std::mem::replace(&mut seen[at], true) {
                        return Err(refuse(format!("`{name}` twice")));
                    }
                    Ok(at)
                })
                .collect()
        }
    }
}

/// Tasks as they are listed.
fn named_groups(
    dataset: &dyn Dataset,
    groups: &[Vec<ClassRef>],
    repeats: Repeats,
) -> Result<Vec<Cut>, DataError> {
    let names = dataset.class_names();
    let setting = |at: usize, found: String, expected: String| {
        DataError::setting(format!("split.groups[{at}]"), found, expected)
    };
    let mut by_name: HashMap<&str, Vec<ClassId>> = HashMap::with_capacity(names.len());
    for (id, name) in names.iter().enumerate() {
        by_name.entry(name).or_default().push(id);
    }
    let mut first_task: HashMap<ClassId, usize> = HashMap::new();
    let mut cuts = Vec::with_capacity(groups.len());
    for (at, group) in groups.iter().enumerate() {
        let mut classes = Vec::with_capacity(group.len());
        for class in group {
            let id = match class {
                ClassRef::Id(id) if *id < names.len() => *id,
                ClassRef::Id(id) => {
                    let expected = format!("class ids below {}", names.len());
                    return Err(setting(at, id.to_string(), expected));
                }
                ClassRef::Name(name) => match by_name.get(name.as_str()).map(Vec::as_slice) {
                    Some([id]) => *id,
                    Some(several) => {
                        let expected = format!("an id, as classes {several:?} have this name");
                        return Err(setting(at, format!("`{name}`"), expected));
                    }
                    None => {
                        let expected = format!(
                            "a class of data set `{}`, such as `{}`",
                            dataset.name(),
                            names.first().map_or("", String::as_str)
                        );
                        return Err(setting(at, format!("`{name}`"), expected));
                    }
                },
            };
            if classes.contains(&id) {
                let found = format!("`{}` twice", names[id]);
                return Err(setting(at, found, "every class once in a task".to_owned()));
            }
            let first = *first_task.entry(id).or_insert(at);
            if first != at && repeats.is_refused() {
                return Err(DataError::setting(
                    "repeats",
                    format!(
                        "not set, but class `{}` is in tasks {first} and {at}",
                        names[id]
                    ),
                    "`all` or `{ split = { seed = ... } }` for classes that come again",
                ));
            }
            classes.push(id);
        }
        if classes.is_empty() {
            return Err(setting(
                at,
                "empty".to_owned(),
                "at least one class".to_owned(),
            ));
        }
        cuts.push(Cut::of_all_domains(classes));
    }
    if cuts.is_empty() {
        return Err(DataError::setting(
            "split.groups",
            "empty",
            "at least one task",
        ));
    }
    Ok(cuts)
}
