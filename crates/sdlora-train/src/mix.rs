//! MixUp and CutMix: every image of a batch is mixed with the one before it, and so are their labels.
//!
//! MixUp (Zhang et al. 2018) blends two images, CutMix (Yun et al. 2019) pastes a box of one into the
//! other. The first keeps the share λ ~ Beta(α, α) of its label, the other gets the rest. Pairs,
//! boxes and shares are those of torchvision's `transforms.v2`. What is drawn depends on the seed, the
//! task and the step alone, so a resumed run mixes as an unbroken one.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};
use rand::{Rng, RngExt};
use rand_distr::{Beta, Distribution};
use serde::{Deserialize, Serialize};

use crate::draws::{Draw, generator};
use crate::error::TrainError;

/// Which mixing, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixConfig {
    /// α of MixUp, greater than 0; no MixUp when left out. timm's recipes take 0.1 to 0.8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup: Option<f64>,
    /// α of CutMix, greater than 0; no CutMix when left out. Published with 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<f64>,
    /// Share of the steps that are mixed, above 0 and at most 1; all when left out.
    #[serde(default = "one")]
    pub probability: f64,
    /// Where both are given: share of the mixed steps that take CutMix, 0 to 1; half when left out.
    #[serde(default = "half")]
    pub cutmix_share: f64,
}

fn one() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

impl MixConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for the first value outside its range.
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        for (name, alpha) in [("mix.mixup", self.mixup), ("mix.cutmix", self.cutmix)] {
            if let Some(alpha) = alpha
                && Beta::new(alpha, alpha).is_err()
            {
                return Err(TrainError::setting(
                    name,
                    alpha,
                    "a finite number greater than 0, or leave it out",
                ));
            }
        }
        if self.mixup.is_none() && self.cutmix.is_none() {
            return Err(TrainError::setting(
                "mix",
                "empty",
                "`mixup`, `cutmix` or both, or leave the section out",
            ));
        }
        if !(self.probability > 0.0 && self.probability <= 1.0) {
            return Err(TrainError::setting(
                "mix.probability",
                self.probability,
                "a share above 0 and at most 1",
            ));
        }
        if !(0.0..=1.0).contains(&self.cutmix_share) {
            return Err(TrainError::setting(
                "mix.cutmix_share",
                self.cutmix_share,
                "a share from 0 to 1",
            ));
        }
        Ok(())
    }

    /// How the batch of a step is mixed; `size` is height and width of its images.
    pub fn draw(&self, seed: u64, task_idx: usize, step: usize, size: [usize; 2]) -> Mix {
        // Far more words than a step can draw lie between two steps.
        let mut rng = generator(seed, Draw::Mix, task_idx);
        rng.set_word_pos((step as u128) << 16);
        if rng.random::<f64>() >= self.probability {
            return Mix::None;
        }
        let share = |alpha: f64, rng: &mut dyn Rng| {
            // Checked with the settings: a wrong α leaves the batch as it is.
            Beta::new(alpha, alpha).map_or(1.0, |beta| beta.sample(rng))
        };
        let is_cut = match (self.mixup, self.cutmix) {
            (Some(_), Some(_)) => rng.random::<f64>() < self.cutmix_share,
            (_, cutmix) => cutmix.is_some(),
        };
        let Some(alpha) = (if is_cut { self.cutmix } else { self.mixup }) else {
            return Mix::None;
        };
        let share = share(alpha, &mut rng);
        if is_cut {
            Mix::paste(share, size, size.map(|n| rng.random_range(0..n.max(1))))
        } else {
            Mix::Blend { share }
        }
    }
}

/// How one batch is mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix {
    /// Not at all.
    None,
    /// MixUp.
    Blend {
        /// Share of an image's own pixels and label, 0 to 1.
        share: f64,
    },
    /// CutMix.
    Paste {
        /// First row and first column of the box.
        from: [usize; 2],
        /// The row and the column after its last.
        to: [usize; 2],
        /// Share of an image's own pixels, and so of its label, 0 to 1.
        share: f64,
    },
}

impl Mix {
    /// A box around `centre` that covers `1 − share` of an image of this height and width; less where
    /// it leaves the image, and the share is then what remains.
    pub fn paste(share: f64, size: [usize; 2], centre: [usize; 2]) -> Self {
        let reach = size.map(|n| (0.5 * (1.0 - share).max(0.0).sqrt() * n as f64) as usize);
        let from = [0, 1].map(|i| centre[i].saturating_sub(reach[i]));
        let to = [0, 1].map(|i| (centre[i] + reach[i]).min(size[i]));
        let pasted = (to[0] - from[0]) * (to[1] - from[1]);
        Self::Paste {
            from,
            to,
            share: 1.0 - pasted as f64 / (size[0] * size[1]) as f64,
        }
    }

    /// Share of an image's own label.
    pub fn share(&self) -> f64 {
        match *self {
            Self::None => 1.0,
            Self::Blend { share } | Self::Paste { share, .. } => share,
        }
    }

    /// The mixed images, `[batch, channels, height, width]`; the partner of the first is the last.
    pub fn apply(&self, images: Tensor<4>) -> Tensor<4> {
        let [batch, channels, ..] = images.dims();
        match *self {
            Self::None => images,
            Self::Blend { share } => {
                let partners = images.clone().roll_dim(1, 0);
                images.mul_scalar(share) + partners.mul_scalar(1.0 - share)
            }
            // An empty box.
            Self::Paste { share, .. } if share >= 1.0 => images,
            Self::Paste { from, to, .. } => {
                let place = [0..batch, 0..channels, from[0]..to[0], from[1]..to[1]];
                let pasted = images.clone().slice(place.clone()).roll_dim(1, 0);
                images.slice_assign(place, pasted)
            }
        }
    }

    /// Mean cross-entropy `[1]` of `logits: [batch, n_classes]` against the mixed labels of a whole
    /// batch: `share · CE(own) + (1 − share) · CE(partner)`.
    pub fn cross_entropy(&self, logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
        let partners = labels.clone().roll_dim(1, 0);
        self.cross_entropy_of(logits, labels, partners)
    }

    /// As [`cross_entropy`](Self::cross_entropy) where the labels of the partners are not those of
    /// the same rows, because the rows are a part of a batch.
    pub fn cross_entropy_of(
        &self,
        logits: Tensor<2>,
        labels: Tensor<1, Int>,
        partners: Tensor<1, Int>,
    ) -> Tensor<1> {
        let [batch, _] = logits.dims();
        let log_probabilities = log_softmax(logits, 1);
        let of = |labels: Tensor<1, Int>| {
            let labels = labels.reshape([batch, 1]);
            log_probabilities.clone().gather(1, labels).mean().neg()
        };
        of(labels).mul_scalar(self.share()) + of(partners).mul_scalar(1.0 - self.share())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> MixConfig {
        MixConfig {
            mixup: Some(0.4),
            cutmix: Some(1.0),
            probability: 0.75,
            cutmix_share: 0.5,
        }
    }

    #[test]
    fn draws_depend_on_seed_task_and_step_and_have_the_asked_shares() {
        let draw = |seed, task, step| both().draw(seed, task, step, [24, 24]);
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        let n = 4000;
        let drawn: Vec<Mix> = (0..n).map(|step| draw(7, 1, step)).collect();
        assert_ne!(
            drawn,
            (0..n).map(|step| draw(8, 1, step)).collect::<Vec<_>>()
        );
        assert_ne!(
            drawn,
            (0..n).map(|step| draw(7, 2, step)).collect::<Vec<_>>()
        );
        let share = |is: fn(&Mix) -> bool| drawn.iter().filter(|m| is(m)).count() as f64 / n as f64;
        // Standard error of a share near 0.375: 0.008.
        assert!((share(|m| matches!(m, Mix::None)) - 0.25).abs() < 0.03);
        assert!((share(|m| matches!(m, Mix::Blend { .. })) - 0.375).abs() < 0.03);
        let blends: Vec<f64> = drawn
            .iter()
            .filter(|m| matches!(m, Mix::Blend { .. }))
            .map(Mix::share)
            .collect();
        let mean = blends.iter().sum::<f64>() / blends.len() as f64;
        let variance = blends.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / blends.len() as f64;
        // Beta(α, α): mean 1/2, variance 1 / (4 (2 α + 1)).
        assert!((mean - 0.5).abs() < 0.04, "{mean}");
        assert!((variance - 1.0 / (4.0 * 1.8)).abs() < 0.015, "{variance}");
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        both().check().unwrap();
        let wrong = |change: fn(&mut MixConfig)| {
            let mut config = both();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(wrong(|c| c.mixup = Some(0.0)).contains("mix.mixup"));
        assert!(wrong(|c| c.cutmix = Some(f64::NAN)).contains("mix.cutmix"));
        assert!(wrong(|c| (c.mixup, c.cutmix) = (None, None)).contains("`cutmix`"));
        assert!(wrong(|c| c.probability = 0.0).contains("mix.probability"));
        assert!(wrong(|c| c.cutmix_share = 1.5).contains("mix.cutmix_share"));
    }
}
