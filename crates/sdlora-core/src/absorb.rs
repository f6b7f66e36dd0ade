//! Absorbing a direction that the earlier ones already span (paper, section 4.3, SD-LoRA-KD).
//!
//! After task t the trained product `A_t B_t` is fitted by least squares on the earlier directions:
//! `min_c ‖A_t B_t − Σ_k c_k D_k‖_F`. Where the residual is small on every site, the direction is
//! dropped and the weights of the earlier ones take its coefficients. All products are formed through
//! `rank × rank` matrices, in double precision. [`Coefficients`] says on which sites together a fit is
//! made and by what its result is multiplied.
//!
//! A magnitude is shared by sites whose coefficients differ. Their mean goes into the magnitude and
//! the rest into the frozen offsets of the site, so nothing is lost by sharing. Where magnitudes are
//! reset at the start of a task, everything goes into the offsets, which no reset touches.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::config::{CurrentForm, MagnitudeStart};
use crate::direction::{Direction, PastDirections};
use crate::magnitude::Magnitudes;

/// How the residual of a unit direction on a site of `d_input × d_output` is measured.
///
/// The paper gives a threshold and no norm; with `D = A B / ‖A B‖_F`, and `e` what the earlier
/// directions leave of it:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResidualNorm {
    /// `‖e‖_F`, from 0 to 1.
    Fro,
    /// `‖e‖_F²`, from 0 to 1.
    Fro2,
    /// `‖e‖_F / ‖D‖_F`; for a unit direction the same as `Fro`, and independent of any norm.
    Relative,
    /// `‖e‖_F / √(d_input · d_output)`: the paper's 9e-4 reads naturally as this one.
    #[default]
    Rms,
}

impl ResidualNorm {
    fn of(self, squared: f64, n_entries: f64) -> f64 {
        match self {
            Self::Fro | Self::Relative => squared.sqrt(),
            Self::Fro2 => squared,
            Self::Rms => (squared / n_entries).sqrt(),
        }
    }
}

/// What the earlier directions take over of one that is absorbed. With `D_t = A_t B_t / norm_t`, where `norm_t` is
/// what the settings divide a finished direction by:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coefficients {
    /// On every site its own, times what the direction contributed when it was trained: the function
    /// stays as it was up to the residual.
    ///
    /// Deviates from the paper, whose equation 8 is [`Paper`](Self::Paper).
    #[default]
    Trained,
    /// On every site its own, times what the direction would contribute from the next task on if it were
    /// kept. It differs from `Trained` where a kept direction jumps when its task is over: where it is
    /// divided by a norm that no magnitude takes up, or its magnitude is reset.
    Kept,
    /// Equation 8 as it stands: one `Δα_k` for all sites that share a magnitude, the least squares of
    /// `D_t` on all of them together, added to `α_k` whatever `α_t` was.
    ///
    /// The function jumps in that moment, by `(1 − α_t) Σ_k Δα_k D_k` and more where the direction ran
    /// undivided.
    Paper,
}

/// What was found when a direction was fitted on the earlier ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Absorption {
    /// Residual on every site, in the order of the sites.
    pub residuals: Vec<f64>,
    /// Whether all were under the threshold and the direction was dropped.
    pub is_absorbed: bool,
}

/// The least squares of the running direction on a site.
struct Fit {
    /// `⟨D_i, D_j⟩_F` of the earlier directions.
    gram: Vec<f64>,
    /// `⟨D_i, A_t B_t⟩_F`.
    target: Vec<f64>,
    /// `‖A_t B_t‖_F²`.
    length: f64,
}

impl Fit {
    fn of(past: &PastDirections, current: &Direction) -> Self {
        let inverse = past.inverse_norms();
        let directions = past.to_host();
        let current = current.to_host();
        let n = directions.len();
        let mut gram = vec![0.0; n * n];
        let mut target = vec![0.0; n];
        for i in 0..n {
            for j in 0..=i {
                let inner = inverse[i] * inverse[j] * directions[i].inner(&directions[j]);
                gram[i * n + j] = inner;
                gram[j * n + i] = inner;
            }
            target[i] = inverse[i] * directions[i].inner(&current);
        }
        let length = current.inner(&current).max(0.0);
        Self {
            gram,
            target,
            length,
        }
    }

    /// `‖A_t B_t − Σ_k c_k D_k‖_F² / ‖A_t B_t‖_F²` of the coefficients that fit best; 0 without a length.
    fn residual_of_best(&self, c: &[f64]) -> f64 {
        let explained: f64 = c.iter().zip(&self.target).map(|(c, t)| c * t).sum();
        match self.length > 0.0 {
            true => ((self.length - explained) / self.length).max(0.0),
            false => 0.0,
        }
    }

    /// That of any coefficients.
    fn residual_of(&self, c: &[f64]) -> f64 {
        let n = c.len();
        let along: f64 = c.iter().zip(&self.target).map(|(c, t)| c * t).sum();
        let row = |i: usize| -> f64 {
            let row = self.gram[i * n..(i + 1) * n].iter();
            row.zip(c).map(|(g, c)| g * c).sum()
        };
        let square: f64 = (0..n).map(|i| c[i] * row(i)).sum();
        match self.length > 0.0 {
            true => ((self.length - 2.0 * along + square) / self.length).max(0.0),
            false => 0.0,
        }
    }
}

impl Adapter {
    /// Fits the running direction on the earlier ones and drops it when its residual is at most
    /// `threshold` on every site. `None` when no direction runs or there is no earlier one.
    pub fn absorb_current(
        mut self,
        norm: ResidualNorm,
        threshold: f64,
        coefficients: Coefficients,
        device: &Device,
    ) -> (Self, Option<Absorption>) {
        let mut fits = Vec::with_capacity(self.sites.len());
        for bank in &self.sites {
            let (Some(past), Some(current)) = (&bank.past, &bank.current) else {
                return (self, None);
            };
            fits.push(Fit::of(past, current));
        }
        let (found, added) = self.added(&fits, coefficients, device);
        let residuals: Vec<f64> = self
            .sites
            .iter()
            .zip(found)
            .map(|(bank, squared)| {
                let site = bank.site();
                norm.of(squared, (site.d_input * site.d_output) as f64)
            })
            .collect();
        let is_absorbed = residuals.iter().all(|&residual| residual <= threshold);
        let found = Absorption {
            residuals,
            is_absorbed,
        };
        if fits.is_empty() || !is_absorbed {
            return (self, (!fits.is_empty()).then_some(found));
        }

        let mut rows = self.magnitude_rows();
        rows.iter_mut().for_each(|row| {
            row.pop();
        });
        let mut shared = vec![vec![0.0; rows.first().map_or(0, Vec::len)]; rows.len()];
        if !matches!(self.config().start, MagnitudeStart::Reset { .. }) {
            let mut n_sites = vec![0.0f64; rows.len()];
            for (bank, added) in self.sites.iter().zip(&added) {
                let group = self.group(bank.site());
                n_sites[group] += 1.0;
                for (sum, value) in shared[group].iter_mut().zip(added) {
                    *sum += value;
                }
            }
            for (row, n) in shared.iter_mut().zip(n_sites) {
                row.iter_mut().for_each(|sum| *sum /= n.max(1.0));
            }
        }
        for (row, shared) in rows.iter_mut().zip(&shared) {
            for (magnitude, shared) in row.iter_mut().zip(shared) {
                *magnitude += shared;
            }
        }
        let groups: Vec<usize> = self.sites.iter().map(|s| self.group(s.site())).collect();
        for ((bank, added), group) in self.sites.iter_mut().zip(added).zip(groups) {
            bank.current = None;
            bank.past = bank.past.take().map(|past| {
                let offsets: Vec<f64> = past
                    .offsets_host()
                    .into_iter()
                    .zip(added.iter().zip(&shared[group]))
                    .map(|(offset, (added, shared))| offset + added - shared)
                    .collect();
                past.with_offsets(&offsets, device)
            });
        }
        self.magnitudes = Some(Magnitudes::from_rows(&rows, device));
        (self, Some(found))
    }

    /// The square of the relative residual on every site, and what the weight of every earlier direction there
    /// would gain.
    fn added(
        &self,
        fits: &[Fit],
        coefficients: Coefficients,
        device: &Device,
    ) -> (Vec<f64>, Vec<Vec<f64>>) {
        let groups = || self.sites.iter().map(|bank| self.group(bank.site()));
        let best = || {
            fits.iter()
                .map(|fit| least_squares(fit.gram.clone(), &fit.target))
        };
        let scaled = |scales: Vec<f64>| {
            let best: Vec<Vec<f64>> = best().collect();
            let residuals = fits.iter().zip(&best);
            let residuals = residuals.map(|(fit, c)| fit.residual_of_best(c)).collect();
            let added = best.iter().zip(scales);
            let added = added.map(|(c, scale)| c.iter().map(|c| scale * c).collect());
            (residuals, added.collect())
        };
        match coefficients {
            Coefficients::Trained => {
                let rows = self.magnitude_rows();
                let last = |group: usize| rows[group].last().copied().unwrap_or(0.0);
                // What the running direction contributed: its magnitude times its form.
                let scales = fits.iter().zip(groups()).map(|(fit, group)| {
                    let form = match self.config().current {
                        CurrentForm::Raw => 1.0,
                        CurrentForm::Normalised { eps } => 1.0 / fit.length.sqrt().hypot(eps),
                    };
                    last(group) * form
                });
                scaled(scales.collect())
            }
            Coefficients::Kept => {
                let (inverse, rows) = self.finished(device);
                let magnitude = |group: usize| match self.config().start {
                    MagnitudeStart::Reset { value } => value,
                    MagnitudeStart::Keep { .. } | MagnitudeStart::Carry { .. } => {
                        rows[group].last().copied().unwrap_or(0.0)
                    }
                };
                let scales = groups()
                    .zip(&inverse)
                    .map(|(group, inverse)| magnitude(group) * inverse);
                scaled(scales.collect())
            }
            Coefficients::Paper => {
                let (inverse, _) = self.finished(device);
                let of_group = |group: usize| {
                    let n = fits.first().map_or(0, |fit| fit.target.len());
                    let (mut gram, mut target) = (vec![0.0; n * n], vec![0.0; n]);
                    for ((fit, inverse), own) in fits.iter().zip(&inverse).zip(groups()) {
                        if own == group {
                            gram.iter_mut()
                                .zip(&fit.gram)
                                .for_each(|(sum, g)| *sum += g);
                            let terms = target.iter_mut().zip(&fit.target);
                            terms.for_each(|(sum, t)| *sum += inverse * t);
                        }
                    }
                    least_squares(gram, &target)
                };
                let of_groups: Vec<Vec<f64>> = (0..self.n_groups()).map(of_group).collect();
                let added: Vec<Vec<f64>> = groups().map(|group| of_groups[group].clone()).collect();
                let residuals = fits.iter().zip(&inverse).zip(&added);
                let residuals = residuals.map(|((fit, inverse), added)| {
                    // In the units of A B, where D is A B times `inverse`.
                    let unit = if *inverse > 0.0 { 1.0 / inverse } else { 0.0 };
                    let c: Vec<f64> = added.iter().map(|c| c * unit).collect();
                    fit.residual_of(&c)
                });
                (residuals.collect(), added)
            }
        }
    }

    /// What divides the running direction on every site once its task is over, inverted, and the magnitudes then.
    fn finished(&self, device: &Device) -> (Vec<f64>, Vec<Vec<f64>>) {
        let finished = self.clone().finish_task(device);
        let inverse = finished.sites.iter().map(|bank| {
            let past = bank.past.as_ref();
            past.and_then(|past| past.inverse_norms().last().copied())
                .unwrap_or(0.0)
        });
        (inverse.collect(), finished.magnitude_rows())
    }
}

/// Pivots below this share of the largest diagonal entry belong to directions the others span.
const PIVOT: f64 = 1e-12;

/// `c` with `G c = target` for a positive semi-definite `G`, by an `L D Lᵀ` factorisation; directions
/// that earlier ones span, or that are 0, get the coefficient 0.
fn least_squares(gram: Vec<f64>, target: &[f64]) -> Vec<f64> {
    let n = target.len();
    let largest = (0..n).map(|i| gram[i * n + i]).fold(0.0, f64::max);
    let mut l = vec![0.0; n * n];
    let mut d = vec![0.0; n];
    for j in 0..n {
        let inner: f64 = (0..j).map(|k| l[j * n + k] * l[j * n + k] * d[k]).sum();
        let pivot = gram[j * n + j] - inner;
        if pivot <= PIVOT * largest {
            continue;
        }
        d[j] = pivot;
        l[j * n + j] = 1.0;
        for i in j + 1..n {
            let inner: f64 = (0..j).map(|k| l[i * n + k] * l[j * n + k] * d[k]).sum();
            l[i * n + j] = (gram[i * n + j] - inner) / pivot;
        }
    }
    let mut c = vec![0.0; n];
    for i in 0..n {
        if d[i] > 0.0 {
            let inner: f64 = (0..i).map(|k| l[i * n + k] * c[k]).sum();
            c[i] = target[i] - inner;
        }
    }
    for i in (0..n).rev() {
        if d[i] > 0.0 {
            let inner: f64 = (i + 1..n).map(|k| l[k * n + i] * c[k]).sum();
            c[i] = c[i] / d[i] - inner;
        }
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_squares_by_hand_and_with_a_direction_twice() {
        // [[2, 1], [1, 2]] c = [4, 5] has c = [1, 2].
        let c = least_squares(vec![2.0, 1.0, 1.0, 2.0], &[4.0, 5.0]);
        assert!(
            (c[0] - 1.0).abs() < 1e-12 && (c[1] - 2.0).abs() < 1e-12,
            "{c:?}"
        );
        // The second direction is the first again, the third is 0.
        let gram = vec![1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(least_squares(gram, &[3.0, 3.0, 0.0]), [3.0, 0.0, 0.0]);
    }

    #[test]
    fn the_named_norms_of_one_residual() {
        // A hundredth of the square is left on a site of 20 x 5.
        let norm = |kind: ResidualNorm| kind.of(0.01, 100.0);
        assert!((norm(ResidualNorm::Fro) - 0.1).abs() < 1e-12);
        assert!((norm(ResidualNorm::Fro2) - 0.01).abs() < 1e-12);
        assert!((norm(ResidualNorm::Relative) - 0.1).abs() < 1e-12);
        assert!((norm(ResidualNorm::Rms) - 0.01).abs() < 1e-12);
    }
}
