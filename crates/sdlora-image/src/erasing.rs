//! A rectangle of the finished numbers is overwritten (torchvision's `RandomErasing`).

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::chance::{check_probability, happens};
use crate::check::{MAX_RATIO, check_pair};
use crate::error::ImageError;

/// Overwrites a random rectangle; runs after normalisation, so that a `value` of 0 is the mean of the levels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomErasing {
    /// Probability of doing so, 0 to 1; 0.5 when absent.
    #[serde(default = "default_probability")]
    pub probability: f64,
    /// Smallest and largest area as a fraction of the image, in (0, 1]; drawn uniformly. 0.02 to 0.33 when absent.
    #[serde(default = "default_area")]
    pub area: (f64, f64),
    /// Smallest and largest height over width, positive; drawn uniformly in its logarithm. 0.3 to 3.3 when absent.
    #[serde(default = "default_ratio")]
    pub ratio: (f64, f64),
    /// What is written, in normalised numbers; 0 when absent.
    #[serde(default)]
    pub value: f32,
}

fn default_probability() -> f64 {
    0.5
}

fn default_area() -> (f64, f64) {
    (0.02, 0.33)
}

fn default_ratio() -> (f64, f64) {
    (0.3, 3.3)
}

impl Default for RandomErasing {
    fn default() -> Self {
        Self {
            probability: default_probability(),
            area: default_area(),
            ratio: default_ratio(),
            value: 0.0,
        }
    }
}

impl RandomErasing {
    pub(crate) fn check(&self, setting: &str) -> Result<(), ImageError> {
        check_probability(&format!("{setting}.probability"), self.probability)?;
        check_pair(format!("{setting}.area"), self.area, 1.0)?;
        check_pair(format!("{setting}.ratio"), self.ratio, MAX_RATIO)?;
        if !self.value.is_finite() {
            let setting = format!("{setting}.value");
            return Err(ImageError::setting(setting, self.value, "a finite number"));
        }
        Ok(())
    }

    /// Overwrites a rectangle of the planes of `side` x `side` in `values`; nothing when ten draws do not fit.
    pub(crate) fn apply(&self, values: &mut [f32], side: usize, rng: &mut ChaCha8Rng) {
        if !happens(self.probability, rng) {
            return;
        }
        let whole = (side * side) as f64;
        let (low, high) = (self.ratio.0.ln(), self.ratio.1.ln());
        for _ in 0..10 {
            let area = whole * rng.random_range(self.area.0..=self.area.1);
            let ratio = rng.random_range(low..=high).exp();
            let height = (area * ratio).sqrt().round_ties_even() as usize;
            let width = (area / ratio).sqrt().round_ties_even() as usize;
            if height >= side || width >= side {
                continue;
            }
            let top = rng.random_range(0..=side - height);
            let left = rng.random_range(0..=side - width);
            for plane in values.chunks_exact_mut(side * side) {
                for row in plane.chunks_exact_mut(side).skip(top).take(height) {
                    row[left..left + width].fill(self.value);
                }
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::generator;

    #[test]
    fn one_rectangle_of_the_asked_area_in_all_planes() {
        let erasing = RandomErasing {
            value: -2.0,
            ..Default::default()
        };
        let (side, n) = (100, 4000);
        let (mut n_erased, mut area) = (0, 0.0);
        for i in 0..n {
            let mut values = vec![1.0; 2 * side * side];
            let mut rng = generator(0, [0, 0, i]);
            erasing.apply(&mut values, side, &mut rng);
            let (first, second) = values.split_at(side * side);
            assert_eq!(first, second);
            let erased = |i: &usize| first[*i] == -2.0;
            let count = (0..side * side).filter(erased).count();
            assert!((0..side * side).all(|i| first[i] == 1.0 || erased(&i)));
            if count == 0 {
                continue;
            }
            let rows = (0..side * side).filter(erased).map(|i| i / side);
            let columns = (0..side * side).filter(erased).map(|i| i % side);
            let height = rows.clone().max().unwrap() - rows.min().unwrap() + 1;
            let width = columns.clone().max().unwrap() - columns.min().unwrap() + 1;
            assert_eq!(height * width, count);
            n_erased += 1;
            area += count as f64 / (side * side) as f64;
        }
        // Binomial: mean 2000, standard deviation 32. The mean area of a uniform draw is 0.175, its standard error
        // 0.002; a ratio of 3.3 does not fit areas above 0.30, which takes 0.002 away.
        assert!((1850..2150).contains(&n_erased), "{n_erased}");
        let mean = area / f64::from(n_erased);
        assert!((mean - 0.174).abs() < 0.01, "{mean}");
    }

    #[test]
    fn ranges_are_checked() {
        for wrong in [
            RandomErasing {
                probability: 1.1,
                ..Default::default()
            },
            RandomErasing {
                area: (0.0, 0.3),
                ..Default::default()
            },
            RandomErasing {
                ratio: (2.0, 1.0),
                ..Default::default()
            },
            RandomErasing {
                value: f32::NAN,
                ..Default::default()
            },
        ] {
            assert!(wrong.check("x").is_err(), "{wrong:?}");
        }
    }
}
