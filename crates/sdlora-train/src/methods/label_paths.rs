//! A label as a path of two tokens, first a group of classes, then the class: what T-SPMO and S-GRPO draw, and the
//! loss that they have in common.
//!
//! The logits are those of the run's head. The logit of a group is the logsumexp of those of its classes, and a
//! class has its softmax inside the group:
//!
//! ```text
//! π(g) = softmax(logsumexp_{c ∈ g} z_c)      π(c | g) = softmax_{c ∈ g}(z_c)      π(g) π(c | g) = softmax(z)_c
//! ```
//!
//! So the likeliest path ends at the class that the head predicts, nothing is trained besides, and evaluation is that
//! of every other method. A path is right where its class is: its reward is 1, that of any other 0.
//!
//! The value of the loss is the share of drawn paths that are wrong; its gradient is that of the objective, negative.

use std::ops::Range;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::lora::plain_lora;
use super::lora_per_task::new_slot;
use super::{
    AdapterSpec, LossBatch, TaskContext, check_counts, check_projections, default_rank,
    query_and_value,
};
use crate::draws::{Draw, generator};
use crate::error::TrainError;
use crate::model::Model;

/// Tokens of a path.
pub(super) const N_TOKENS: usize = 2;

/// Bits of the position in that stream that belong to an image, and to a step: far more words than either draws.
const IMAGE_BITS: u32 = 22;
const STEP_BITS: u32 = 42;

/// What both methods let choose.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PathOptions {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Which classes share their first token.
    #[serde(default)]
    groups: Groups,
    /// Classes of a block; left out, the root of their number, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block: Option<usize>,
}

/// Which classes share their first token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Groups {
    /// Neighbours in the order of labels, as many as `block` says.
    #[default]
    Blocks,
    /// Those of a task. With a loss over the new classes alone there is one group, and the first token says nothing.
    Tasks,
}

/// The fact that has the task of every class, in the order of labels.
const CLASS_TASKS: &str = "class_tasks";

/// Most paths of an image: they would draw into the numbers of the next one.
const MOST_PATHS: usize = 100_000;

impl PathOptions {
    pub(super) fn check(&self, n_paths: usize) -> Result<(), TrainError> {
        check_counts(&[("rank", self.rank), ("block", self.block.unwrap_or(1))])?;
        check_projections(&self.projections, &Projection::ALL)?;
        if !(2..=MOST_PATHS).contains(&n_paths) {
            return Err(TrainError::setting(
                "method.n_paths",
                n_paths,
                format!("from 2 to {MOST_PATHS}: a path is credited against the mean of several"),
            ));
        }
        match (self.groups, self.block) {
            (Groups::Tasks, Some(block)) => Err(TrainError::setting(
                "method.block",
                block,
                "left out with `groups = \"tasks\"`",
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn adapter(&self) -> AdapterSpec {
        plain_lora(&self.projections, self.rank)
    }

    /// A new LoRA and new columns, and the task of the new classes where groups are tasks.
    pub(super) fn before_task(
        &self,
        model: Model,
        task: &TaskContext,
    ) -> Result<Model, TrainError> {
        let mut model = new_slot(model, task, self.rank)?;
        if self.groups == Groups::Tasks {
            let mut tasks = class_tasks(&model);
            tasks.resize(tasks.len() + task.n_new_classes, task.task_idx);
            model.state = model.state.with_fact(CLASS_TASKS, json!(tasks));
        }
        Ok(model)
    }

    /// The paths to the classes whose labels the columns of a loss have.
    fn paths(&self, model: &Model, labels: &[usize]) -> LabelPaths {
        let n = labels.len();
        match self.groups {
            Groups::Blocks => {
                let root = (1..=n).find(|side| side * side >= n).unwrap_or(1);
                LabelPaths::of_blocks(n, self.block.unwrap_or(root))
            }
            Groups::Tasks => {
                let tasks = class_tasks(model);
                let task_of = |label: &usize| tasks.get(*label).copied().unwrap_or_default();
                LabelPaths::of_groups(labels.iter().map(task_of))
            }
        }
    }

    /// The loss `[1]` of a batch by a credit for what was drawn; `None` without trained columns.
    pub(super) fn loss(
        &self,
        model: &Model,
        batch: &LossBatch<'_>,
        n_paths: usize,
        weighs: Weighs,
        credit: impl Fn(&LabelPaths, &[usize], usize, &mut ChaCha8Rng) -> Credit,
    ) -> Option<Tensor<1>> {
        let trained = model.head.trained.as_ref()?;
        let logits = batch.head.logits(trained, batch.features.clone());
        let [_, n_columns] = logits.dims();
        // Columns are those of the task, or those of all classes seen.
        let all: Vec<usize> = (0..n_columns).collect();
        let labels = match n_columns == batch.task_labels.len() {
            true => batch.task_labels,
            false => &all,
        };
        let paths = self.paths(model, labels);
        let probabilities = probabilities(&logits);
        let credits = batch.labels.iter().enumerate().map(|(row, label)| {
            let mut rng = generator(batch.seed, Draw::LabelPaths, batch.task_idx);
            let image = (batch.first_row + row) as u128;
            let position = ((batch.step as u128) << STEP_BITS) | (image << IMAGE_BITS);
            rng.set_word_pos(position);
            let target = labels.binary_search(label).unwrap_or_default();
            let of_image = &probabilities[row * n_columns..(row + 1) * n_columns];
            let drawn = draw(of_image, n_paths, &mut rng);
            let is_wrong = drawn.iter().filter(|&&leaf| leaf != target).count();
            let credit = credit(&paths, &drawn, target, &mut rng);
            (credit, is_wrong as f64 / n_paths as f64)
        });
        let (credits, wrong): (Vec<Credit>, Vec<f64>) = credits.unzip();
        let value = wrong.iter().sum::<f64>() / wrong.len().max(1) as f64;
        Some(paths.loss(logits, &credits, weighs, value))
    }
}

fn class_tasks(model: &Model) -> Vec<usize> {
    let fact = model.state.fact(CLASS_TASKS).cloned();
    fact.and_then(|fact| serde_json::from_value(fact).ok())
        .unwrap_or_default()
}

/// The probability of every class for every row, in double precision.
fn probabilities(logits: &Tensor<2>) -> Vec<f64> {
    let [_, n_columns] = logits.dims();
    let host: Vec<f32> = logits.clone().detach().into_data().iter().collect();
    let rows = host.chunks_exact(n_columns.max(1));
    rows.flat_map(|row| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = row.iter().map(|z| f64::from(z - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(move |power| power / sum)
    })
    .collect()
}

/// Classes at the ends of paths that are drawn from the policy.
fn draw(probabilities: &[f64], n_paths: usize, rng: &mut impl Rng) -> Vec<usize> {
    let path = |at: f64| {
        let mut sum = 0.0;
        let reached = probabilities.iter().position(|p| {
            sum += p;
            at < sum
        });
        // The sum may miss 1 by a rounding, and a probability may be 0.
        let last = probabilities.iter().rposition(|&p| p > 0.0);
        reached.or(last).unwrap_or_default()
    };
    (0..n_paths).map(|_| path(rng.random())).collect()
}

/// The tree of paths: groups of neighbouring leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LabelPaths {
    /// The leaves of every group.
    groups: Vec<Range<usize>>,
    /// The group of every leaf.
    group_of: Vec<usize>,
}

impl LabelPaths {
    /// Groups of `size` leaves; the last may have fewer.
    pub(super) fn of_blocks(n_leaves: usize, size: usize) -> Self {
        Self::of_groups((0..n_leaves).map(|leaf| leaf / size.max(1)))
    }

    /// A group where neighbours have the same number.
    fn of_groups(numbers: impl Iterator<Item = usize>) -> Self {
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut group_of = Vec::new();
        let mut before = None;
        for (leaf, number) in numbers.enumerate() {
            match groups.last_mut() {
                Some(group) if before == Some(number) => group.end = leaf + 1,
                _ => groups.push(leaf..leaf + 1),
            }
            before = Some(number);
            group_of.push(groups.len() - 1);
        }
        Self { groups, group_of }
    }

    pub(super) fn n_groups(&self) -> usize {
        self.groups.len()
    }

    pub(super) fn n_leaves(&self) -> usize {
        self.group_of.len()
    }

    pub(super) fn group_of(&self, leaf: usize) -> usize {
        self.group_of[leaf]
    }

    /// `log π(g)` `[batch, n_groups]` and `log π(c | g)` `[batch, n_leaves]` of logits `[batch, n_leaves]`.
    fn policy(&self, logits: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let (groups, leaves): (Vec<_>, Vec<_>) = self
            .groups
            .iter()
            .map(|group| {
                let inside = logits.clone().narrow(1, group.start, group.len());
                let leaves = log_softmax(inside.clone(), 1);
                // Any class of the group gives its logsumexp: that by which its logit is above `log π(c | g)`.
                let of_group = inside.narrow(1, 0, 1) - leaves.clone().narrow(1, 0, 1);
                (of_group, leaves)
            })
            .unzip();
        let groups = log_softmax(Tensor::cat(groups, 1), 1);
        (groups, Tensor::cat(leaves, 1))
    }

    /// The loss `[1]` of logits `[batch, n_leaves]` with a credit for each row, whose value is `value`.
    pub(super) fn loss(
        &self,
        logits: Tensor<2>,
        credits: &[Credit],
        weighs: Weighs,
        value: f64,
    ) -> Tensor<1> {
        let device = logits.device();
        let (groups, leaves) = self.policy(&logits);
        let n = credits.len();
        let tensor = |width: usize, of: fn(&Credit) -> &[f64]| {
            let values = credits.iter().flat_map(|credit| of(credit).iter());
            let values: Vec<f32> = values.map(|&v| (v / n as f64) as f32).collect();
            Tensor::<2>::from_data(TensorData::new(values, [n, width]), &device)
        };
        let of_groups = tensor(self.n_groups(), |credit| &credit.groups);
        let of_leaves = tensor(self.n_leaves(), |credit| &credit.leaves);
        let objective = match weighs {
            Weighs::Logarithms => (groups * of_groups).sum() + (leaves * of_leaves).sum(),
            Weighs::Probabilities => {
                (groups.exp() * of_groups).sum() + (leaves.exp() * of_leaves).sum()
            }
        };
        (objective.clone().detach() - objective).add_scalar(value)
    }
}

/// What the credits of an objective weigh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weighs {
    /// `log π` of a token.
    Logarithms,
    /// `π` of a token.
    Probabilities,
}

/// What the tokens of the paths of one image are worth.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Credit {
    /// `[n_groups]`.
    pub(super) groups: Vec<f64>,
    /// `[n_leaves]`.
    pub(super) leaves: Vec<f64>,
    /// Tokens whose probability gets a gradient.
    pub(super) n_tokens: usize,
}

impl Credit {
    pub(super) fn none(paths: &LabelPaths) -> Self {
        Self {
            groups: vec![0.0; paths.n_groups()],
            leaves: vec![0.0; paths.n_leaves()],
            n_tokens: 0,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use burn::module::{Module, Param};
    use rand::SeedableRng;
    use sdlora_testkit::{
        Compared, Tolerance, assert_close, golden_json_with, test_device_autodiff,
    };

    use crate::methods::sgrpo::SGrpo;
    use crate::methods::tspmo::prefix_credit;
    use crate::optimizer::OptimizerConfig;

    /// Logits that stand for themselves.
    #[derive(Module, Debug)]
    struct Table {
        logits: Param<Tensor<2>>,
    }

    fn table(values: Vec<f32>, n_columns: usize) -> Table {
        let data = TensorData::new(values.clone(), [values.len() / n_columns, n_columns]);
        Table {
            logits: Param::from_tensor(Tensor::from_data(data, &test_device_autodiff())),
        }
    }

    /// The gradient of a loss with respect to the logits.
    pub(in crate::methods) fn gradient(
        paths: &LabelPaths,
        logits: &[f32],
        credits: &[Credit],
        weighs: Weighs,
    ) -> Vec<f32> {
        let table = table(logits.to_vec(), paths.n_leaves());
        let loss = paths.loss(table.logits.val(), credits, weighs, 0.0);
        let grads = loss.backward();
        let grad = table.logits.val().grad(&grads).unwrap();
        grad.into_data().iter().collect()
    }

    pub(in crate::methods) fn drawn(seed: u64, probabilities: &[f64], n: usize) -> Vec<usize> {
        draw(probabilities, n, &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn groups_are_neighbours_and_the_policy_is_the_softmax() {
        let blocks = LabelPaths::of_blocks(7, 3);
        assert_eq!(blocks.groups, [0..3, 3..6, 6..7]);
        assert_eq!((blocks.n_groups(), blocks.group_of(5)), (3, 1));
        let tasks = LabelPaths::of_groups([0, 0, 4, 4, 4].into_iter());
        assert_eq!(tasks.groups, [0..2, 2..5]);
        // exp of 1, 2, 3 and 4, and of a logit far above.
        let logits = vec![1.0f32, 2.0, 3.0, 4.0, 81.0, 0.0, 1.0, 80.0];
        let paths = LabelPaths::of_blocks(4, 2);
        let table = table(logits.clone(), 4);
        let (groups, leaves) = paths.policy(&table.logits.val());
        let [groups, leaves] =
            [groups, leaves].map(|log| log.exp().into_data().iter::<f32>().collect::<Vec<f32>>());
        let expected = probabilities(&table.logits.val());
        for row in 0..2 {
            for leaf in 0..4 {
                let path = groups[2 * row + leaf / 2] * leaves[4 * row + leaf];
                let expected = expected[4 * row + leaf] as f32;
                assert!((path - expected).abs() < 1e-6, "{path} for {expected}");
            }
        }
        let of_first = (1f32.exp() + 2f32.exp()) / (1..=4).map(|z| (z as f32).exp()).sum::<f32>();
        assert!((groups[0] - of_first).abs() < 1e-6);
    }

    #[test]
    fn paths_are_drawn_as_often_as_they_are_likely_and_never_where_they_cannot_be() {
        let shares = [0.5, 0.0, 0.2, 0.3, 0.0];
        let found = drawn(3, &shares, 20_000);
        for (leaf, share) in shares.iter().enumerate() {
            let n = found.iter().filter(|&&other| other == leaf).count();
            let found = n as f64 / 20_000.0;
            assert!((found - share).abs() < 0.012, "{leaf}: {found}");
            assert!(*share > 0.0 || n == 0);
        }
        // A sum that misses 1.
        assert!(drawn(3, &[0.1, 0.0], 200).iter().all(|&leaf| leaf == 0));
    }

    #[test]
    fn the_value_of_the_loss_is_what_it_is_told_and_one_group_teaches_no_first_token() {
        let paths = LabelPaths::of_blocks(3, 3);
        let mut credit = Credit::none(&paths);
        credit.groups[0] = 5.0;
        let logits = vec![0.3f32, -1.0, 2.0];
        let weighs = Weighs::Logarithms;
        let grad = gradient(&paths, &logits, std::slice::from_ref(&credit), weighs);
        assert!(grad.iter().all(|g| g.abs() < 1e-6), "{grad:?}");
        let value = paths.loss(table(logits, 3).logits.val(), &[credit], weighs, 0.25);
        assert_eq!(value.into_scalar::<f32>(), 0.25);
    }

    #[test]
    fn losses_gradients_and_a_step_agree_with_numpy() {
        let numbers = |value: &serde_json::Value| -> Vec<f32> {
            let values = value.as_array().unwrap().iter();
            values.map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let mut compared = Compared::new("objectives on label paths");
        for (_, golden) in golden_json_with(&["paths", "objectives"]) {
            let count = |key: &str| golden[key].as_u64().unwrap() as usize;
            let (n_leaves, lr) = (count("n_leaves"), golden["lr"].as_f64().unwrap() as f32);
            let paths = LabelPaths::of_blocks(n_leaves, count("block"));
            let logits = numbers(&golden["logits"]);
            let images: Vec<(Vec<usize>, usize, Vec<Vec<bool>>)> = golden["paths"]
                .as_array()
                .unwrap()
                .iter()
                .map(|image| serde_json::from_value(image.clone()).unwrap())
                .collect();
            for objective in golden["objectives"].as_array().unwrap() {
                let name = objective["name"].as_str().unwrap();
                let credits = images.iter().map(|(leaves, target, tokens)| match name {
                    "tspmo" => prefix_credit(&paths, leaves, *target),
                    "sgrpo" => SGrpo::credit_of(&paths, leaves, *target, |i, t| tokens[i][t]),
                    "grpo" => SGrpo::credit_of(&paths, leaves, *target, |_, _| true),
                    other => panic!("{other}"),
                });
                let credits: Vec<Credit> = credits.collect();
                let weighs = match name {
                    "tspmo" => Weighs::Probabilities,
                    _ => Weighs::Logarithms,
                };
                let grad = gradient(&paths, &logits, &credits, weighs);
                let tolerance = Tolerance::RelMax(1e-5);
                let expected = numbers(&objective["gradient"]);
                assert_close(grad.as_slice(), expected.as_slice(), tolerance, name);
                let after = logits.iter().zip(&grad).map(|(z, g)| z - lr * g);
                let after: Vec<f32> = after.collect();
                let expected = numbers(&objective["after"]);
                assert_close(after.as_slice(), expected.as_slice(), tolerance, name);
                // The objective itself, and the tokens that it moves.
                let value = objective_of(&paths, &logits, &credits, weighs);
                let expected = objective["objective"].as_f64().unwrap();
                assert!(
                    (value - expected).abs() < 1e-5,
                    "{name}: {value} for {expected}"
                );
                let n_tokens: usize = credits.iter().map(|credit| credit.n_tokens).sum();
                assert_eq!(
                    n_tokens as u64,
                    objective["n_tokens"].as_u64().unwrap(),
                    "{name}"
                );
                compared.add(name);
            }
        }
    }

    /// Mean over the images of what the credits add up to.
    fn objective_of(paths: &LabelPaths, logits: &[f32], credits: &[Credit], weighs: Weighs) -> f64 {
        let (groups, leaves) = paths.policy(&table(logits.to_vec(), paths.n_leaves()).logits.val());
        let sum = |log: Tensor<2>, of: fn(&Credit) -> &[f64]| -> f64 {
            let log: Vec<f32> = log.into_data().iter().collect();
            let all = credits.iter().flat_map(|credit| of(credit).iter());
            log.iter()
                .zip(all)
                .map(|(&log, credit)| {
                    let value = match weighs {
                        Weighs::Probabilities => f64::from(log).exp(),
                        // The ratio of the policy to itself.
                        Weighs::Logarithms => 1.0,
                    };
                    credit * value
                })
                .sum()
        };
        let total = sum(groups, |credit| &credit.groups) + sum(leaves, |credit| &credit.leaves);
        total / credits.len() as f64
    }

    /// Probability of the right leaf of 3 × 3 after 400 steps on 16 paths each, and how many tokens were moved.
    fn bandit(seed: u64, lr: f64, weighs: Weighs, credit: &BanditCredit<'_>) -> (f64, usize) {
        let paths = LabelPaths::of_blocks(9, 3);
        let (target, mut rng) = ((seed % 9) as usize, ChaCha8Rng::seed_from_u64(seed));
        let mut table = table(vec![0.0; 9], 9);
        let config: OptimizerConfig =
            toml::from_str(&format!("rule = \"sgd\"\nlr = {lr:?}\nmomentum = 0.0")).unwrap();
        let mut optimizer = config.init();
        let mut n_tokens = 0;
        for _ in 0..400 {
            let logits = table.logits.val();
            let leaves = draw(&probabilities(&logits), 16, &mut rng);
            let credit = credit(&paths, &leaves, target, &mut rng);
            n_tokens += credit.n_tokens;
            let loss = paths.loss(logits, &[credit], weighs, 0.0);
            table = config.step(&mut optimizer, table, &loss, lr);
        }
        (probabilities(&table.logits.val())[target], n_tokens)
    }

    type BanditCredit<'a> = dyn Fn(&LabelPaths, &[usize], usize, &mut ChaCha8Rng) -> Credit + 'a;

    #[test]
    fn every_objective_finds_the_right_path_and_the_prefix_tree_moves_the_fewest_tokens() {
        let sgrpo = |probability: f64| SGrpo::with_tokens(0, probability, None);
        let (half, full) = (sgrpo(0.5), sgrpo(1.0));
        let of = |weighs: Weighs, lr: f64, credit: &BanditCredit<'_>| {
            let runs: Vec<(f64, usize)> = (0..5)
                .map(|seed| bandit(seed, lr, weighs, credit))
                .collect();
            let least = runs.iter().map(|run| run.0).fold(1.0, f64::min);
            let n_tokens: usize = runs.iter().map(|run| run.1).sum();
            (least, n_tokens)
        };
        let prefix = of(Weighs::Probabilities, 4.0, &|paths, leaves, target, _| {
            prefix_credit(paths, leaves, target)
        });
        let [half, full] = [half, full].map(|method| {
            of(Weighs::Logarithms, 0.5, &|paths, leaves, target, rng| {
                method.credit(paths, leaves, target, rng)
            })
        });
        for (least, _) in [prefix, half, full] {
            assert!(least >= 0.95, "{prefix:?} {half:?} {full:?}");
        }
        assert!(
            prefix.1 < half.1 && half.1 < full.1,
            "{prefix:?} {half:?} {full:?}"
        );
    }
}
