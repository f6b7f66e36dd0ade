//! S-GRPO: a LoRA per task, trained by rewards that are compared inside a group of drawn label paths, with a gradient
//! for some of their tokens (Lee and Tong, "Token-Efficient RL for LLM Reasoning", 2025).
//!
//! `n_paths` paths with rewards `R_i` are drawn for an image, see [`label_paths`](super::label_paths):
//!
//! ```text
//! J = 1/n_paths Σ_i 1/|T_i| Σ_{t ∈ T_i} ρ_it Â_i      Â_i = (R_i − mean) / (std + ε)
//! ```
//!
//! with `ρ = π / stop-gradient(π)`, whose value is 1 and whose gradient is `∇ log π`. The tokens `T_i` are the first
//! `alpha`, and each later one with `probability` while there are fewer than `limit`. With a probability of 1 and no
//! limit it is GRPO without a critic and without a reference policy (β = 0, as it is run in practice).
//!
//! The loss is −J, mean over the images. A path has two tokens, so little memory is saved: it is the objective that is
//! carried over. What saves memory in a ViT is a gradient from some of its patches, [`Patches`], by `patches`.
//!
//! A reconstruction: the paper trains a language model on chains of thought, and no code of it was found.

use burn::tensor::Tensor;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::label_paths::{Credit, LabelPaths, N_TOKENS, PathOptions, Weighs};
use super::{AdapterSpec, LossBatch, Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::model::Model;
use crate::slot::Patches;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sgrpo",
    summary: "a LoRA per task, trained by rewards of drawn label paths against their mean, on some tokens",
    build: |options| {
        let method: SGrpo = parse("sgrpo", options)?;
        method.check()?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

// No `deny_unknown_fields`: serde cannot combine it with `flatten`; `parse` refuses unknown options.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SGrpo {
    /// Paths that are drawn for an image in every step.
    #[serde(default = "default_n_paths")]
    n_paths: usize,
    /// Tokens of a path, from its first, that always get a gradient.
    #[serde(default = "default_alpha")]
    alpha: usize,
    /// Probability with which each other token does.
    #[serde(default = "default_probability")]
    probability: f64,
    /// Most tokens of a path that do; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
    /// Probability with which a patch of an image passes a gradient to the adapters; all do when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patches: Option<f64>,
    #[serde(flatten)]
    paths: PathOptions,
}

/// About what the paper has.
fn default_n_paths() -> usize {
    8
}

/// The first token, as the paper keeps the first of an answer.
fn default_alpha() -> usize {
    1
}

/// Between a third and a half of the tokens of the paper get a gradient.
fn default_probability() -> f64 {
    0.5
}

/// Beside a deviation; that of rewards of 0 and 1 is 0 or far larger.
const EPS: f64 = 1e-4;

impl SGrpo {
    fn check(&self) -> Result<(), TrainError> {
        self.paths.check(self.n_paths)?;
        if let Some(patches) = self.patches() {
            patches.check("method.patches")?;
        }
        if !(0.0..=1.0).contains(&self.probability) {
            let expected = "a probability from 0 to 1";
            return Err(TrainError::setting(
                "method.probability",
                self.probability,
                expected,
            ));
        }
        let most = self.limit.unwrap_or(N_TOKENS).min(N_TOKENS);
        if self.limit == Some(0) || self.alpha > most {
            let (name, found) = match self.limit {
                Some(0) => ("method.limit", 0),
                _ => ("method.alpha", self.alpha),
            };
            return Err(TrainError::setting(
                name,
                found,
                format!(
                    "`alpha` from 0 to {N_TOKENS}, the tokens of a path, and a `limit` of at least 1 and `alpha`"
                ),
            ));
        }
        if self.alpha == 0 && self.probability == 0.0 {
            return Err(TrainError::setting(
                "method.probability",
                0,
                "above 0 with `alpha = 0`: no token would get a gradient",
            ));
        }
        Ok(())
    }

    fn patches(&self) -> Option<Patches> {
        self.patches.map(|probability| Patches { probability })
    }

    /// Which tokens of a path get a gradient.
    fn tokens(&self, rng: &mut ChaCha8Rng) -> [bool; N_TOKENS] {
        let limit = self.limit.unwrap_or(N_TOKENS);
        let mut n_in = 0;
        std::array::from_fn(|t| {
            // Drawn whether it counts or not, so that the next path has the same numbers.
            let is_drawn = rng.random::<f64>() < self.probability;
            let is_in = t < self.alpha || is_drawn && n_in < limit;
            n_in += usize::from(is_in);
            is_in
        })
    }

    /// What the tokens of the paths of an image are worth.
    pub(super) fn credit(
        &self,
        paths: &LabelPaths,
        leaves: &[usize],
        target: usize,
        rng: &mut ChaCha8Rng,
    ) -> Credit {
        let tokens: Vec<_> = leaves.iter().map(|_| self.tokens(rng)).collect();
        Self::credit_of(paths, leaves, target, |path, token| tokens[path][token])
    }

    /// The same, of tokens that are given.
    pub(super) fn credit_of(
        paths: &LabelPaths,
        leaves: &[usize],
        target: usize,
        is_in: impl Fn(usize, usize) -> bool,
    ) -> Credit {
        let n = leaves.len() as f64;
        let rewards = leaves
            .iter()
            .map(|&leaf| f64::from(u8::from(leaf == target)));
        let mean = rewards.clone().sum::<f64>() / n;
        let variance = rewards.clone().map(|r| (r - mean).powi(2)).sum::<f64>() / n;
        let mut credit = Credit::none(paths);
        for (path, (&leaf, reward)) in leaves.iter().zip(rewards).enumerate() {
            let n_in = (0..N_TOKENS).filter(|&token| is_in(path, token)).count();
            let advantage = (reward - mean) / (variance.sqrt() + EPS);
            if n_in == 0 || advantage == 0.0 {
                continue;
            }
            let share = advantage / (n_in as f64 * n);
            if is_in(path, 0) {
                credit.groups[paths.group_of(leaf)] += share;
            }
            if is_in(path, 1) {
                credit.leaves[leaf] += share;
            }
            credit.n_tokens += n_in;
        }
        credit
    }

    #[cfg(test)]
    pub(super) fn with_tokens(alpha: usize, probability: f64, limit: Option<usize>) -> Self {
        let mut method: Self = parse("sgrpo", &toml::Table::new()).unwrap();
        (method.alpha, method.probability, method.limit) = (alpha, probability, limit);
        method
    }
}

impl Method for SGrpo {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        self.paths.before_task(model, task)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        let mut adapter = self.paths.adapter();
        adapter.slot.patches = self.patches();
        Some(adapter)
    }

    fn replaces_loss(&self) -> bool {
        true
    }

    fn loss(&self, model: &Model, batch: &LossBatch<'_>) -> Option<Tensor<1>> {
        let credit = |paths: &LabelPaths, leaves: &[usize], target: usize, rng: &mut _| {
            self.credit(paths, leaves, target, rng)
        };
        let weighs = Weighs::Logarithms;
        self.paths.loss(model, batch, self.n_paths, weighs, credit)
    }
}

#[cfg(test)]
mod tests {
    use super::super::label_paths::tests::{drawn, gradient};
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn the_first_tokens_are_in_no_path_has_too_many_and_others_are_in_as_often_as_the_settings_say()
    {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (alpha, probability, limit, mean) in [
            (0, 0.3, None, 0.6),
            (1, 0.5, None, 1.5),
            (1, 0.5, Some(1), 1.0),
            (2, 0.0, None, 2.0),
            // Both in: 0.25; of those one is over the limit.
            (0, 0.5, Some(1), 0.75),
        ] {
            let method = SGrpo::with_tokens(alpha, probability, limit);
            let n = 20_000;
            let mut sum = 0;
            for _ in 0..n {
                let tokens = method.tokens(&mut rng);
                let n_in = tokens.iter().filter(|is_in| **is_in).count();
                assert!(tokens[..alpha].iter().all(|is_in| *is_in));
                assert!(n_in <= limit.unwrap_or(N_TOKENS));
                sum += n_in;
            }
            let found = sum as f64 / f64::from(n);
            assert!((found - mean).abs() < 0.015, "{found} for {mean}");
        }
    }

    #[test]
    fn with_every_token_the_gradient_is_that_of_grpo() {
        let paths = LabelPaths::of_blocks(7, 3);
        let logits = [0.5f32, -0.5, 1.0, 0.0, 0.2, 0.1, -0.3];
        let sum: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        let shares: Vec<f64> = logits.iter().map(|z| f64::from(*z).exp() / sum).collect();
        let (leaves, target) = (drawn(8, &shares, 16), 2);
        let method = SGrpo::with_tokens(0, 1.0, None);
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let credit = method.credit(&paths, &leaves, target, &mut rng);
        let found = gradient(&paths, &logits, &[credit], Weighs::Logarithms);
        // Both tokens together are the class: −1/(2 G) Σ_i Â_i (e_i − π).
        let n = leaves.len() as f64;
        let mean = leaves.iter().filter(|&&leaf| leaf == target).count() as f64 / n;
        let deviation = (mean * (1.0 - mean)).sqrt() + EPS;
        assert!(mean > 0.0 && mean < 1.0, "{mean}");
        for (c, found) in found.iter().enumerate() {
            let terms = leaves.iter().map(|&leaf| {
                let advantage = (f64::from(u8::from(leaf == target)) - mean) / deviation;
                advantage * (f64::from(u8::from(leaf == c)) - shares[c])
            });
            let expected = -terms.sum::<f64>() / (2.0 * n);
            assert!(
                (f64::from(*found) - expected).abs() < 1e-6,
                "{c}: {found} for {expected}"
            );
        }
        // Half of the tokens give another gradient.
        let half = SGrpo::with_tokens(0, 0.5, None).credit(&paths, &leaves, target, &mut rng);
        assert_ne!(
            gradient(&paths, &logits, &[half], Weighs::Logarithms),
            found
        );
    }

    #[test]
    fn equal_rewards_teach_nothing() {
        let paths = LabelPaths::of_blocks(6, 2);
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let method = SGrpo::with_tokens(1, 0.5, None);
        for leaves in [[3, 3, 3, 3], [0, 1, 2, 5]] {
            let credit = method.credit(&paths, &leaves, 3, &mut rng);
            assert_eq!(credit, Credit::none(&paths));
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_with_their_range() {
        for (options, expected) in [
            ("n_paths = 1", "from 2 to"),
            ("alpha = 3", "from 0 to 2"),
            ("alpha = 2\nlimit = 1", "method.alpha"),
            ("limit = 0", "method.limit"),
            ("patches = 0.0", "method.patches"),
            ("patches = 1.5", "above 0, to 1"),
            ("probability = 1.5", "from 0 to 1"),
            ("probability = nan", "from 0 to 1"),
            ("alpha = 0\nprobability = 0.0", "no token"),
            ("lambda = 1.0", "`lambda`"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{options}: {error}");
        }
    }
}
