//! BeamLoRA: ranks compete through a softmax gate, and weak ones give way to copies of strong ones (Gu et al. 2025,
//! ACL, arXiv 2502.13604).
//!
//! In every period the ranks of all sites are ordered by importance, which is the gate. The strongest stay, as many
//! as hold no more than the share p of all importance; the others are pruned. On each site the strongest
//! ranks take the places of the pruned ones, with the factors that they had half a period ago, so that both differ
//! and grow apart; both get the mean of their gates. p rises from its start to 1 over the task, so pruning fades out.
//!
//! Differs from the released code:
//! - It also copies the moments of the optimiser half a period old, which burn does not give out. A place keeps the
//!   moments of the rank that was pruned, and the gates of a site start theirs anew.
//! - It puts the copies of a site in a random order. Here the strongest one comes first.
//! - Where a site loses more than half of its ranks, it copies pruned ones as well. Here strong ones come again.

use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::{Adapter, Gate, GateForm};
use serde::{Deserialize, Serialize};

use super::kept::{SlotState, with_values};
use crate::error::TrainError;
use crate::model::Model;
use crate::options::check_number;
use crate::step_context::StepContext;

/// Settings of the gate and of the pruning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beam {
    /// Temperature of the softmax, above 0.
    #[serde(default = "published_temperature")]
    pub temperature: f64,
    /// Share of the steps of a task between two times, above 0 and at most 1.
    #[serde(default = "quarter")]
    pub period: f64,
    /// Share of the importance that stays at the start of a task, above 0 and at most 1; 1 at its end.
    #[serde(default = "published_share")]
    pub share: f64,
}

impl Default for Beam {
    fn default() -> Self {
        Self {
            temperature: published_temperature(),
            period: quarter(),
            share: published_share(),
        }
    }
}

fn published_temperature() -> f64 {
    0.05
}

fn quarter() -> f64 {
    0.25
}

/// p starts at 0.95 in the released code.
fn published_share() -> f64 {
    0.95
}

impl Beam {
    pub(super) fn form(&self) -> GateForm {
        GateForm::Softmax {
            temperature: self.temperature,
        }
    }

    pub(super) fn check(&self) -> Result<(), TrainError> {
        let setting = |name: &str| format!("method.slot.beam.{name}");
        check_number(&setting("temperature"), self.temperature, false)?;
        for (name, value) in [("period", self.period), ("share", self.share)] {
            if !(value > 0.0 && value <= 1.0) {
                let expected = "a share above 0 and at most 1";
                return Err(TrainError::setting(setting(name), value, expected));
            }
        }
        Ok(())
    }

    /// Steps between two times; at least 2, so that there is a half of it.
    fn n_period(&self, n_steps: usize) -> usize {
        ((self.period * n_steps as f64).round() as usize).max(2)
    }

    /// p after so many of the steps of a task.
    fn share_at(&self, n_done: usize, n_steps: usize) -> f64 {
        let along = n_done as f64 / n_steps.max(1) as f64;
        let falling = (1.0 + (std::f64::consts::PI * along).cos()) / 2.0;
        1.0 - (1.0 - self.share) * falling
    }

    pub(super) fn after_step(&self, mut model: Model, step: &StepContext) -> Model {
        let (n_done, period) = (step.step + 1, self.n_period(step.n_steps));
        // A pruning that no period follows would leave copies no time to grow apart.
        let is_last = n_done + period > step.n_steps;
        if n_done % period == period / 2 && n_done + period - period / 2 + period <= step.n_steps {
            let mut kept = SlotState::of(&model);
            kept.snapshot(&model.adapter);
            model.state = kept.into_state();
        } else if n_done.is_multiple_of(period) && !is_last {
            let mut kept = SlotState::of(&model);
            if let Some(snapshot) = kept.take_snapshot(&model.adapter) {
                let share = self.share_at(n_done, step.n_steps);
                exchange(&mut model.adapter, &snapshot, share, &step.device);
                model.state = kept.into_state();
            }
        }
        model
    }
}

/// Of the importance of the ranks of all sites: which ranks stay, in the same order. The first rank that brings the
/// sum above the share is pruned too, as in the released code.
fn staying(importance: &[Vec<f32>], share: f64) -> Vec<Vec<bool>> {
    let mut all: Vec<(f32, usize, usize)> = Vec::new();
    for (site, values) in importance.iter().enumerate() {
        all.extend(values.iter().enumerate().map(|(k, &v)| (v, site, k)));
    }
    // Strongest first; of equal ones the first.
    all.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2).cmp(&(y.1, y.2))));
    let total: f64 = all.iter().map(|(v, ..)| f64::from(*v)).sum();
    let mut stays: Vec<Vec<bool>> = importance.iter().map(|v| vec![false; v.len()]).collect();
    let mut sum = 0.0;
    for (value, site, k) in all {
        sum += f64::from(value);
        // Rounding must not prune the last one where all are to stay.
        if sum > share * total && share < 1.0 {
            break;
        }
        stays[site][k] = true;
    }
    stays
}

/// For every pruned rank of a site the rank whose copy takes its place: the strongest ones, in turn where they are
/// fewer than the pruned.
fn replacements(importance: &[f32], stays: &[bool]) -> Vec<(usize, usize)> {
    let mut strong: Vec<usize> = (0..stays.len()).filter(|&k| stays[k]).collect();
    if strong.is_empty() {
        return Vec::new();
    }
    strong.sort_by(|&i, &j| importance[j].total_cmp(&importance[i]).then(i.cmp(&j)));
    let pruned = (0..stays.len()).filter(|&k| !stays[k]);
    pruned.zip(strong.iter().cycle().copied()).collect()
}

/// Puts copies of strong ranks, half a period old, in the places of weak ones.
fn exchange(adapter: &mut Adapter, snapshot: &[[Tensor<2>; 2]], share: f64, device: &Device) {
    let running = || {
        adapter
            .sites
            .iter()
            .filter_map(|bank| bank.current.as_ref())
    };
    let importance: Vec<Vec<f32>> = running()
        .filter_map(|current| Some(current.gate.as_ref()?.factors_host()))
        .collect();
    let stays = staying(&importance, share);
    let banks = adapter
        .sites
        .iter_mut()
        .filter(|bank| bank.current.is_some());
    for (i, bank) in banks.enumerate() {
        let pairs = replacements(&importance[i], &stays[i]);
        let Some(mut current) = bank.current.take() else {
            continue;
        };
        if !pairs.is_empty()
            && let Some(gate) = current.gate.take()
        {
            let rank = importance[i].len();
            let host =
                |x: &Tensor<2>| -> Vec<f32> { x.clone().into_data().iter::<f32>().collect() };
            let (mut a, mut b) = (host(&current.a.val()), host(&current.b.val()));
            let (old_a, old_b) = (host(&snapshot[i][0]), host(&snapshot[i][1]));
            let mut values = host(&gate.values.val());
            let n_columns = b.len() / rank;
            for (to, from) in pairs {
                for (row, old) in a.chunks_exact_mut(rank).zip(old_a.chunks_exact(rank)) {
                    row[to] = old[from];
                }
                let copied = &old_b[from * n_columns..(from + 1) * n_columns];
                b[to * n_columns..(to + 1) * n_columns].copy_from_slice(copied);
                let mean = (values[to] + values[from]) / 2.0;
                (values[to], values[from]) = (mean, mean);
            }
            let n_rows = a.len() / rank;
            let matrix = |values, shape| Tensor::from_data(TensorData::new(values, shape), device);
            current.a = with_values(current.a, matrix(a, [n_rows, rank]));
            current.b = with_values(current.b, matrix(b, [rank, n_columns]));
            current.gate = Some(Gate::new(values, gate.form(), device));
        }
        bank.current = Some(current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weakest_of_all_sites_go_and_the_strongest_of_the_site_take_their_places() {
        let importance = [vec![2.0f32, 0.5, 1.4, 0.1], vec![1.0, 1.0, 1.0, 1.0]];
        // 2 + 1.4 + 1 + 1 + 1 = 6.4 of 8 is the last sum of at most 0.9 · 8.
        let stays = staying(&importance, 0.9);
        assert_eq!(stays[0], [true, false, true, false]);
        assert_eq!(stays[1], [true, true, true, false]);
        // 7.4 of 8 is no more than 0.93 · 8.
        assert_eq!(staying(&importance, 0.93)[1], [true; 4]);
        assert_eq!(replacements(&importance[0], &stays[0]), [(1, 0), (3, 2)]);
        // Fewer strong ones than places: they come again.
        let few = replacements(&[3.0, 0.1, 0.2], &[true, false, false]);
        assert_eq!(few, [(1, 0), (2, 0)]);
        assert!(replacements(&[0.1, 0.2], &[false, false]).is_empty());
        assert_eq!(staying(&importance, 1.0), [[true; 4], [true; 4]]);
    }

    #[test]
    fn the_share_rises_to_all() {
        let beam = Beam::default();
        assert!((beam.share_at(0, 100) - 0.95).abs() < 1e-12);
        assert!((beam.share_at(50, 100) - 0.975).abs() < 1e-12);
        assert!((beam.share_at(100, 100) - 1.0).abs() < 1e-12);
    }
}
