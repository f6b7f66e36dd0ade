//! Whether tasks change the same entries of the weights.
//!
//! With `ΔW_t` what task t changes, an entry is changed where `|ΔW_t|_ij ≥ τ`, and two tasks collide in an entry
//! that both change (Yang et al. 2025, N-LoRA). Updates that never collide have `⟨ΔW_s, ΔW_t⟩_F = 0`; their
//! inputs and outputs can still be the same.

use super::scale::matrices;
use super::trained::TrainedRun;
use crate::error::TrainError;

/// Share of the entries of an update that are smaller than `threshold`; a fraction, 1 of an empty one.
pub fn sparsity(update: &[f32], threshold: f64) -> f64 {
    let changed = Changed::of(update.iter().map(|v| v.abs()), threshold);
    1.0 - changed.share()
}

/// Share of the entries that both of two updates of the same weights change by at least `threshold`; a fraction,
/// 0 of empty ones.
///
/// # Panics
///
/// If the updates differ in length.
pub fn collision_rate(first: &[f32], second: &[f32], threshold: f64) -> f64 {
    let changed = |update: &[f32]| Changed::of(update.iter().map(|v| v.abs()), threshold);
    changed(first).collisions(&changed(second))
}

/// A bit for every entry of an update: whether it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Changed {
    bits: Vec<u64>,
    n_entries: usize,
}

impl Changed {
    /// From the sizes of the entries.
    fn of(sizes: impl ExactSizeIterator<Item = f32>, threshold: f64) -> Self {
        let n_entries = sizes.len();
        let mut bits = vec![0u64; n_entries.div_ceil(64)];
        for (i, size) in sizes.enumerate() {
            bits[i / 64] |= u64::from(f64::from(size) >= threshold) << (i % 64);
        }
        Self { bits, n_entries }
    }

    fn share(&self) -> f64 {
        let n: u32 = self.bits.iter().map(|word| word.count_ones()).sum();
        f64::from(n) / self.n_entries.max(1) as f64
    }

    fn collisions(&self, other: &Self) -> f64 {
        assert_eq!(self.n_entries, other.n_entries, "updates of other weights");
        let both = self.bits.iter().zip(&other.bits).map(|(a, b)| a & b);
        let n: u32 = both.map(|word| word.count_ones()).sum();
        f64::from(n) / self.n_entries.max(1) as f64
    }
}

/// Which entries the tasks of a run change, over all weight matrices of the blocks that any of them changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Collisions {
    /// Share of the entries that a task changes by less than the threshold, for every task.
    pub sparsity: Vec<f64>,
    /// `rates[s][t]` for `s < t`: share of the entries that both change; symmetric, with `1 − sparsity` on the
    /// diagonal.
    pub rates: Vec<Vec<f64>>,
}

impl Collisions {
    /// Mean rate over pairs of different tasks; `None` with a single task.
    pub fn mean_rate(&self) -> Option<f64> {
        let pairs: Vec<f64> = (0..self.rates.len())
            .flat_map(|t| self.rates[t][..t].iter().copied())
            .collect();
        (!pairs.is_empty()).then(|| pairs.iter().sum::<f64>() / pairs.len() as f64)
    }
}

/// Compares what the rounds of a run changed, `W_t − W_{t−1}` with everything merged, so any method is measured
/// alike. `threshold` is the size from which an entry counts as changed.
///
/// # Errors
///
/// [`TrainError::NotKept`] when the checkpoint of a round up to the last kept one is gone, and those of
/// checkpoints.
pub fn collisions(run: &TrainedRun, threshold: f64) -> Result<Collisions, TrainError> {
    let weights = |model: &crate::model::Model| -> Vec<Vec<f32>> {
        let matrices = matrices(&model.merged_backbone()).into_iter();
        matrices.map(|(.., values)| values).collect()
    };
    let mut before = weights(run.base());
    let mut is_adapted = vec![false; before.len()];
    let mut rounds: Vec<Vec<Changed>> = Vec::new();
    for round in 0..=run.last_round() {
        let now = weights(&run.model_after(round)?.0);
        let of_sites = before.iter().zip(&now).zip(&mut is_adapted);
        let changed = of_sites.map(|((before, now), is_adapted)| {
            *is_adapted |= before != now;
            let sizes = before.iter().zip(now).map(|(a, b)| (b - a).abs());
            Changed::of(sizes, threshold)
        });
        rounds.push(changed.collect());
        before = now;
    }
    let shares = |of: &dyn Fn(usize) -> (f64, usize)| {
        let adapted = (0..is_adapted.len()).filter(|&site| is_adapted[site]);
        let (sum, n) = adapted
            .map(of)
            .fold((0.0, 0), |(sum, n), (share, of_site)| {
                (sum + share * of_site as f64, n + of_site)
            });
        sum / n.max(1) as f64
    };
    let rate = |first: &[Changed], second: &[Changed]| {
        shares(&|site| {
            let rate = first[site].collisions(&second[site]);
            (rate, first[site].n_entries)
        })
    };
    let rates: Vec<Vec<f64>> = rounds
        .iter()
        .map(|first| rounds.iter().map(|second| rate(first, second)).collect())
        .collect();
    Ok(Collisions {
        sparsity: (0..rates.len()).map(|t| 1.0 - rates[t][t]).collect(),
        rates,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_hand() {
        let first = [0.0f32, 0.5, -0.5, 1e-4];
        let second = [0.0f32, -2.0, 1e-4, 1.0];
        assert_eq!(sparsity(&first, 1e-3), 0.5);
        assert_eq!(sparsity(&second, 1e-3), 0.5);
        assert_eq!(collision_rate(&first, &second, 1e-3), 0.25);
        assert_eq!(collision_rate(&first, &first, 1e-3), 0.5);
        // A threshold that is met counts as changed.
        assert_eq!(sparsity(&[0.25], 0.25), 0.0);
        assert_eq!(
            (sparsity(&[], 1.0), collision_rate(&[], &[], 1.0)),
            (1.0, 0.0)
        );
        // More entries than a word has bits.
        let long = vec![1.0f32; 130];
        assert_eq!(collision_rate(&long, &long, 0.5), 1.0);
    }

    #[test]
    fn a_single_task_collides_with_none() {
        let of = |rates: Vec<Vec<f64>>| Collisions {
            sparsity: Vec::new(),
            rates,
        };
        assert_eq!(of(vec![vec![0.3]]).mean_rate(), None);
        let three = of(vec![
            vec![1.0, 0.1, 0.2],
            vec![0.1, 1.0, 0.6],
            vec![0.2, 0.6, 1.0],
        ]);
        assert!((three.mean_rate().unwrap() - 0.3).abs() < 1e-12);
    }
}
