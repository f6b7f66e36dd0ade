//! Absorbing a direction that the earlier ones already span (paper, section 4.3, SD-LoRA-KD).
//!
//! After task t the trained product `A_t B_t` is fitted by least squares on the earlier directions,
//! on every site for itself: `min_c ‖A_t B_t − Σ_k c_k D_k‖_F`. Where the residual is small on every
//! site, the direction is dropped and its coefficients are added to the weights of the earlier
//! ones. All products are formed through `rank × rank` matrices, in double precision.
//!
//! Deviates from the paper: equation 8 fits the unit direction and adds its coefficients `Δα_k` to the
//! earlier magnitudes as they are. Here they are added as `α_t · c_k`, which is what the dropped
//! direction contributed along the k-th one: so the function stays what training made it, up to the
//! residual. The two agree for `α_t = 1`; with `Δα` the update would jump by `(1 − α_t) Σ_k c_k D_k`
//! in the moment of absorbing.
//!
//! A magnitude is shared by sites whose coefficients differ. Their mean goes into the magnitude and
//! the rest into the frozen offsets of the site, so the function changes by the residual only. Where
//! magnitudes are reset at the start of a task, everything goes into the offsets.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::config::{CurrentForm, MagnitudeStart};
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

/// What was found when a direction was fitted on the earlier ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Absorption {
    /// Residual on every site, in the order of the sites.
    pub residuals: Vec<f64>,
    /// Whether all were under the threshold and the direction was dropped.
    pub is_absorbed: bool,
}

impl Adapter {
    /// Fits the running direction on the earlier ones and drops it when its residual is at most
    /// `threshold` on every site. `None` when no direction runs or there is no earlier one.
    pub fn absorb_current(
        mut self,
        norm: ResidualNorm,
        threshold: f64,
        device: &Device,
    ) -> (Self, Option<Absorption>) {
        let mut fits = Vec::with_capacity(self.sites.len());
        for bank in &self.sites {
            let (Some(past), Some(current)) = (&bank.past, &bank.current) else {
                return (self, None);
            };
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
            let coefficients = least_squares(gram, &target);
            let explained: f64 = coefficients.iter().zip(&target).map(|(c, t)| c * t).sum();
            let squared = if length > 0.0 {
                ((length - explained) / length).max(0.0)
            } else {
                0.0
            };
            let site = bank.site();
            let residual = norm.of(squared, (site.d_input * site.d_output) as f64);
            fits.push((residual, coefficients, length));
        }
        let residuals: Vec<f64> = fits.iter().map(|(residual, ..)| *residual).collect();
        let is_absorbed = residuals.iter().all(|&residual| residual <= threshold);
        let found = Absorption {
            residuals,
            is_absorbed,
        };
        if fits.is_empty() || !is_absorbed {
            return (self, (!fits.is_empty()).then_some(found));
        }

        let mut rows = self.magnitude_rows();
        let last: Vec<f64> = rows
            .iter_mut()
            .map(|row| row.pop().unwrap_or(0.0))
            .collect();
        // What the running direction contributed: its magnitude times its form.
        let added: Vec<Vec<f64>> = self
            .sites
            .iter()
            .zip(&fits)
            .map(|(bank, (_, coefficients, length))| {
                let form = match self.config().current {
                    CurrentForm::Raw => 1.0,
                    CurrentForm::Normalised { eps } => 1.0 / length.sqrt().hypot(eps),
                };
                let scale = last[self.group(bank.site())] * form;
                coefficients.iter().map(|c| scale * c).collect()
            })
            .collect();
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
