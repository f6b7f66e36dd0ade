//! T-SPMO: a LoRA per task, trained by credit for every token of a label path after its prefix (Lee and Tong,
//! "Token-Efficient RL for LLM Reasoning", 2025, section on token-specific prefix matching).
//!
//! `n_paths` paths are drawn for an image, see [`label_paths`](super::label_paths). For every different pair of a
//! prefix p and a next token v in them:
//!
//! ```text
//! A(v | p) = mean reward of the paths that start with p, v  −  mean reward of those that start with p
//! J = 1/|U| Σ_{(p, v) ∈ U} π(v | p) · A(v | p)
//! ```
//!
//! and the loss is −J, mean over the images. Weight decay of the paper's objective is that of the optimiser; paths
//! are not drawn again from a stored prefix.
//!
//! A reconstruction: the paper trains a language model on chains of thought, and no code of it was found.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::label_paths::{Credit, LabelPaths, PathOptions, Weighs};
use super::{AdapterSpec, LossBatch, Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "tspmo",
    summary: "a LoRA per task, trained by rewards of drawn label paths, with credit for every prefix",
    build: |options| {
        let method: Tspmo = parse("tspmo", options)?;
        method.paths.check(method.n_paths)?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

// No `deny_unknown_fields`: serde cannot combine it with `flatten`; `parse` refuses unknown options.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tspmo {
    /// Paths that are drawn for an image in every step.
    #[serde(default = "default_n_paths")]
    n_paths: usize,
    #[serde(flatten)]
    paths: PathOptions,
}

/// About what the paper has.
fn default_n_paths() -> usize {
    50
}

/// The advantage of every token after its prefix, by the number of different ones.
pub(super) fn prefix_credit(paths: &LabelPaths, leaves: &[usize], target: usize) -> Credit {
    let mut credit = Credit::none(paths);
    let (mut of_groups, mut of_leaves) = (
        vec![[0.0f64; 2]; paths.n_groups()],
        vec![[0.0f64; 2]; paths.n_leaves()],
    );
    let mut of_all = [0.0f64; 2];
    for &leaf in leaves {
        let reward = f64::from(u8::from(leaf == target));
        let counts = [
            &mut of_all,
            &mut of_groups[paths.group_of(leaf)],
            &mut of_leaves[leaf],
        ];
        for [n, sum] in counts {
            *n += 1.0;
            *sum += reward;
        }
    }
    let mean = |[n, sum]: [f64; 2]| sum / n;
    let is_visited = |counts: &&[f64; 2]| counts[0] > 0.0;
    let n_pairs = of_groups
        .iter()
        .chain(&of_leaves)
        .filter(is_visited)
        .count();
    for (group, counts) in of_groups.iter().enumerate() {
        if counts[0] > 0.0 {
            credit.groups[group] = (mean(*counts) - mean(of_all)) / n_pairs as f64;
        }
    }
    for (leaf, counts) in of_leaves.iter().enumerate() {
        if counts[0] > 0.0 {
            let before = mean(of_groups[paths.group_of(leaf)]);
            credit.leaves[leaf] = (mean(*counts) - before) / n_pairs as f64;
        }
    }
    let tokens = credit.groups.iter().chain(&credit.leaves);
    credit.n_tokens = tokens.filter(|&&advantage| advantage != 0.0).count();
    credit
}

impl Method for Tspmo {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        self.paths.before_task(model, task)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(self.paths.adapter())
    }

    fn replaces_loss(&self) -> bool {
        true
    }

    fn loss(&self, model: &Model, batch: &LossBatch<'_>) -> Option<Tensor<1>> {
        let credit = |paths: &LabelPaths, leaves: &[usize], target: usize, _: &mut _| {
            prefix_credit(paths, leaves, target)
        };
        let weighs = Weighs::Probabilities;
        self.paths.loss(model, batch, self.n_paths, weighs, credit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::label_paths::tests::{drawn, gradient};
    use super::*;

    /// Shares of 64 paths of 3 × 4 classes, and their credit with the advantages undivided.
    fn case(seed: u64) -> (LabelPaths, Vec<usize>, Credit, f64) {
        let paths = LabelPaths::of_blocks(12, 4);
        let shares = [
            0.2, 0.05, 0.0, 0.1, 0.15, 0.1, 0.05, 0.05, 0.1, 0.1, 0.1, 0.0,
        ];
        let leaves = drawn(seed, &shares, 64);
        let credit = prefix_credit(&paths, &leaves, 4);
        let mut visited = leaves.clone();
        visited.sort_unstable();
        visited.dedup();
        let mut groups: Vec<usize> = visited.iter().map(|&leaf| paths.group_of(leaf)).collect();
        groups.dedup();
        let n_pairs = visited.len() + groups.len();
        assert!(credit.n_tokens <= n_pairs && n_pairs <= 15, "{n_pairs}");
        (paths, leaves, credit, n_pairs as f64)
    }

    #[test]
    fn advantages_after_a_prefix_have_the_mean_zero_and_add_up_along_a_path() {
        for seed in 0..5 {
            let (paths, leaves, credit, n_pairs) = case(seed);
            let share = |is: &dyn Fn(usize) -> bool| {
                leaves.iter().filter(|&&leaf| is(leaf)).count() as f64 / leaves.len() as f64
            };
            let of_group = |group: usize| share(&|leaf| paths.group_of(leaf) == group);
            let of_leaf = |leaf: usize| share(&|other| other == leaf);
            // Σ_v p̂(v | p) A(v | p) = 0, of the empty prefix and of every group.
            let first: f64 = (0..3).map(|g| of_group(g) * credit.groups[g]).sum();
            assert!(first.abs() < 1e-12, "{first}");
            for group in 0..3 {
                let inside = (0..12).filter(|&leaf| paths.group_of(leaf) == group);
                let sum: f64 = inside.map(|leaf| of_leaf(leaf) * credit.leaves[leaf]).sum();
                assert!(sum.abs() < 1e-12, "group {group}: {sum}");
            }
            // A(g) + A(c | g) = mean reward of the path − mean reward of all.
            let mean = of_leaf(4);
            for &leaf in &leaves {
                let along = credit.groups[paths.group_of(leaf)] + credit.leaves[leaf];
                let expected = f64::from(u8::from(leaf == 4)) - mean;
                assert!((n_pairs * along - expected).abs() < 1e-12, "{leaf}");
            }
        }
    }

    #[test]
    fn equal_rewards_teach_nothing_and_others_do() {
        let paths = LabelPaths::of_blocks(6, 2);
        let logits = [0.5f32, -0.5, 1.0, 0.0, 0.2, 0.1];
        let grad = |leaves: &[usize]| {
            let credit = prefix_credit(&paths, leaves, 3);
            gradient(&paths, &logits, &[credit], Weighs::Probabilities)
        };
        assert_eq!(grad(&[3, 3, 3, 3]), [0.0; 6]);
        assert_eq!(grad(&[0, 1, 2, 5]), [0.0; 6]);
        assert!(grad(&[0, 1, 2, 3])[3] < 0.0, "the right leaf gains");
    }

    #[test]
    fn settings_out_of_range_are_refused_with_their_range() {
        for (options, expected) in [
            ("n_paths = 1", "from 2 to"),
            ("n_paths = 100001", "from 2 to"),
            ("block = 0", "method.block"),
            ("groups = \"tasks\"\nblock = 3", "method.block"),
            ("groups = \"superclasses\"", "tasks"),
            ("alpha = 1", "`alpha`"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{options}: {error}");
        }
    }
}
