//! Random changes of geometry that training applies to an image, new in every epoch.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::resize::Affine;

/// Random changes of geometry, applied in the order crop, flip, affine; none by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentConfig {
    /// Random resized crop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<RandomResizedCrop>,
    /// Probability of a horizontal flip, from 0 to 1.
    #[serde(default)]
    pub flip: f32,
    /// Random affine map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affine: Option<RandomAffine>,
}

/// A window of random area and shape, stretched to the output, as torchvision's transform of that name.
///
/// It is a part of the affine map and not a step on bytes, which is [`crate::RandomResizedCrop`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// Smallest and largest area as a fraction of the image, in (0, 1]; drawn uniformly.
    pub area: (f32, f32),
    /// Smallest and largest width over height; drawn uniformly in its logarithm.
    pub ratio: (f32, f32),
}

impl Default for RandomResizedCrop {
    /// The published runs' setting: area 0.05 to 1, ratio 3/4 to 4/3.
    fn default() -> Self {
        Self {
            area: (0.05, 1.0),
            ratio: (0.75, 4.0 / 3.0),
        }
    }
}

/// A random affine map around the centre: scale, then shear, then rotation, then translation, each drawn uniformly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomAffine {
    /// Largest rotation in degrees, either way.
    pub degrees: f32,
    /// Smallest and largest scale, positive; above 1 the content grows.
    pub scale: (f32, f32),
    /// Largest shear in degrees along each axis, either way, below 45.
    pub shear_degrees: f32,
    /// Largest translation along each axis as a fraction of the side, either way, from 0 to 1.
    pub translate: f32,
}

impl Default for RandomAffine {
    /// Small changes that keep a character what it is.
    fn default() -> Self {
        Self {
            degrees: 10.0,
            scale: (0.85, 1.15),
            shear_degrees: 8.0,
            translate: 0.08,
        }
    }
}

impl AugmentConfig {
    /// Whether every image is left as it is.
    pub fn is_none(&self) -> bool {
        self.crop.is_none() && self.flip == 0.0 && self.affine.is_none()
    }

    pub(crate) fn check(&self) -> Result<(), ImageError> {
        let refuse = |name: &str, found: String, expected: &str| {
            Err(ImageError::setting(
                format!("augment.{name}"),
                found,
                expected,
            ))
        };
        if !(0.0..=1.0).contains(&self.flip) {
            return refuse("flip", self.flip.to_string(), "0 to 1");
        }
        if let Some(RandomResizedCrop { area, ratio }) = &self.crop {
            if !(area.0 > 0.0 && area.0 <= area.1 && area.1 <= 1.0) {
                return refuse(
                    "crop.area",
                    format!("{area:?}"),
                    "an ascending pair in (0, 1]",
                );
            }
            if !(ratio.0 > 0.0 && ratio.0 <= ratio.1 && ratio.1.is_finite()) {
                return refuse(
                    "crop.ratio",
                    format!("{ratio:?}"),
                    "an ascending positive pair",
                );
            }
        }
        if let Some(affine) = &self.affine {
            if !(affine.degrees >= 0.0 && affine.degrees <= 180.0) {
                return refuse("affine.degrees", affine.degrees.to_string(), "0 to 180");
            }
            let (low, high) = affine.scale;
            if !(low >= 0.01 && low <= high && high <= 100.0) {
                let found = format!("{:?}", affine.scale);
                return refuse("affine.scale", found, "an ascending pair from 0.01 to 100");
            }
            if !(affine.shear_degrees >= 0.0 && affine.shear_degrees < 45.0) {
                let found = affine.shear_degrees.to_string();
                return refuse("affine.shear_degrees", found, "0 to below 45");
            }
            if !(0.0..=1.0).contains(&affine.translate) {
                return refuse("affine.translate", affine.translate.to_string(), "0 to 1");
            }
        }
        Ok(())
    }

    /// One random map from the output to the source.
    ///
    /// The settings have been checked.
    pub(crate) fn draw(&self, rng: &mut ChaCha8Rng) -> Affine {
        let mut map = Affine::IDENTITY;
        if let Some(crop) = &self.crop {
            map = crop.draw(rng);
        }
        if self.flip > 0.0 && rng.random::<f32>() < self.flip {
            map = map.after(Affine::scale(-1.0, 1.0));
        }
        if let Some(affine) = &self.affine {
            map = map.after(affine.draw(rng));
        }
        map
    }
}

impl RandomResizedCrop {
    /// Up to ten tries for a window that fits, then the whole image, as torchvision does for square images.
    fn draw(&self, rng: &mut ChaCha8Rng) -> Affine {
        let (low, high) = (self.ratio.0.ln(), self.ratio.1.ln());
        for _ in 0..10 {
            let area = rng.random_range(self.area.0..=self.area.1);
            let ratio = rng.random_range(low..=high).exp();
            let (width, height) = ((area * ratio).sqrt(), (area / ratio).sqrt());
            if width <= 1.0 && height <= 1.0 {
                let x = rng.random_range(-0.5..=0.5_f32) * (1.0 - width);
                let y = rng.random_range(-0.5..=0.5_f32) * (1.0 - height);
                return Affine::translation(x, y).after(Affine::scale(width, height));
            }
        }
        Affine::IDENTITY
    }
}

impl RandomAffine {
    fn draw(&self, rng: &mut ChaCha8Rng) -> Affine {
        let mut either_way = |limit: f32| limit * rng.random_range(-1.0..=1.0_f32);
        let rotation = Affine::rotation(either_way(self.degrees));
        let shear = Affine::shear(
            either_way(self.shear_degrees),
            either_way(self.shear_degrees),
        );
        let translation =
            Affine::translation(either_way(self.translate), either_way(self.translate));
        let scale = rng.random_range(self.scale.0..=self.scale.1);
        let forward = translation
            .after(rotation)
            .after(shear)
            .after(Affine::scale(scale, scale));
        // The checked ranges leave a determinant above 0, so there is an inverse.
        forward.inverse().unwrap_or(Affine::IDENTITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::generator;

    fn maps(config: &AugmentConfig, n: u32) -> Vec<Affine> {
        config.check().unwrap();
        (0..n)
            .map(|i| config.draw(&mut generator(0, [0, 0, i])))
            .collect()
    }

    #[test]
    fn nothing_is_the_identity() {
        assert!(AugmentConfig::default().is_none());
        assert_eq!(maps(&AugmentConfig::default(), 1), [Affine::IDENTITY]);
    }

    #[test]
    fn flips_come_as_often_as_asked() {
        let config = AugmentConfig {
            flip: 0.25,
            ..Default::default()
        };
        let n_flips = maps(&config, 2000)
            .iter()
            .filter(|map| map.a == -1.0)
            .count();
        // Binomial: mean 500, standard deviation 19.4.
        assert!((400..600).contains(&n_flips), "{n_flips}");
    }

    #[test]
    fn affine_stays_within_its_limits() {
        let affine = RandomAffine {
            degrees: 10.0,
            scale: (0.5, 2.0),
            shear_degrees: 0.0,
            translate: 0.1,
        };
        let config = AugmentConfig {
            affine: Some(affine),
            ..Default::default()
        };
        let forwards: Vec<Affine> = maps(&config, 500)
            .iter()
            .map(|map| map.inverse().unwrap())
            .collect();
        let mut largest_angle = 0.0_f32;
        for map in &forwards {
            let scale = map.a.hypot(map.c);
            let angle = (-map.c).atan2(map.a).to_degrees();
            assert!((0.499..2.001).contains(&scale), "{scale}");
            assert!(angle.abs() < 10.01, "{angle}");
            assert!(map.tx.abs() < 0.1001 && map.ty.abs() < 0.1001, "{map:?}");
            largest_angle = largest_angle.max(angle.abs());
        }
        assert!(largest_angle > 9.0, "{largest_angle}");
    }

    #[test]
    fn crops_lie_inside_the_image() {
        let crop = RandomResizedCrop::default();
        let config = AugmentConfig {
            crop: Some(crop),
            ..Default::default()
        };
        for map in maps(&config, 500) {
            let area = map.a * map.d;
            let ratio = map.a / map.d;
            assert!((0.0499..=1.0).contains(&area), "{map:?}");
            assert!((0.749..1.334).contains(&ratio), "{map:?}");
            assert!(map.tx.abs() + map.a / 2.0 <= 0.5001, "{map:?}");
            assert!(map.ty.abs() + map.d / 2.0 <= 0.5001, "{map:?}");
        }
    }

    #[test]
    fn ranges_are_checked() {
        let affine = RandomAffine::default();
        let wrong = [
            AugmentConfig {
                flip: 1.5,
                ..Default::default()
            },
            AugmentConfig {
                affine: Some(RandomAffine {
                    scale: (0.0, 1.0),
                    ..affine.clone()
                }),
                ..Default::default()
            },
            AugmentConfig {
                affine: Some(RandomAffine {
                    degrees: f32::NAN,
                    ..affine.clone()
                }),
                ..Default::default()
            },
            AugmentConfig {
                affine: Some(RandomAffine {
                    shear_degrees: 45.0,
                    ..affine
                }),
                ..Default::default()
            },
            AugmentConfig {
                crop: Some(RandomResizedCrop {
                    area: (0.5, 0.1),
                    ..Default::default()
                }),
                ..Default::default()
            },
        ];
        for config in wrong {
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
