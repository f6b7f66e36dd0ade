//! Toy images: one simple pattern per class plus noise, learnable in seconds by a tiny model.

/// Labelled images in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ToyImages {
    /// Pixels, `[n_images, 3, side, side]` row-major, each in 0..=1.
    pub pixels: Vec<f32>,
    /// Class of every image, in 0..n_classes, in class order.
    pub labels: Vec<usize>,
    /// Height and width in pixels.
    pub side: usize,
}

impl ToyImages {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Shape of [`ToyImages::pixels`]: `[n_images, 3, side, side]`.
    pub fn shape(&self) -> [usize; 4] {
        [self.len(), 3, self.side, self.side]
    }

    /// The pixels rounded to bytes 0..=255, as a data set stores them.
    pub fn bytes(&self) -> Vec<u8> {
        self.pixels
            .iter()
            .map(|value| (value * 255.0).round() as u8)
            .collect()
    }

    /// Pixels of one image, `[3, side, side]` row-major.
    ///
    /// # Panics
    ///
    /// If `image_idx` is not less than [`ToyImages::len`].
    pub fn image(&self, image_idx: usize) -> &[f32] {
        let n_pixels = 3 * self.side * self.side;
        &self.pixels[image_idx * n_pixels..(image_idx + 1) * n_pixels]
    }
}

/// `per_class` images of `side` × `side` pixels for each of `n_classes`, ordered by class.
///
/// A class is a stripe pattern with its own direction, width and colour; an image adds a random phase and noise.
/// The class patterns depend on `n_classes` only, the noise on `seed`: two seeds give two disjoint draws (training
/// and test images) of the same classes. The generator is private, so parallel tests do not disturb each other.
pub fn images(n_classes: usize, per_class: usize, side: usize, seed: u64) -> ToyImages {
    use std::f32::consts::{PI, TAU};

    let mut noise = SplitMix64::new(seed);
    let mut pixels = Vec::with_capacity(n_classes * per_class * 3 * side * side);
    let mut labels = Vec::with_capacity(n_classes * per_class);
    for class in 0..n_classes {
        let part = class as f32 / n_classes as f32;
        let (sin, cos) = (PI * part).sin_cos();
        let n_waves = 2.0 + (class % 3) as f32;
        for _ in 0..per_class {
            let phase = 0.15 * TAU * noise.uniform();
            for channel in 0..3 {
                let colour = 0.5 + 0.25 * (TAU * (part + channel as f32 / 3.0)).cos();
                for y in 0..side {
                    for x in 0..side {
                        let along = (x as f32 * cos + y as f32 * sin) / side as f32;
                        let stripe = 0.2 * (TAU * n_waves * along + phase).sin();
                        let value = colour + stripe + 0.1 * (noise.uniform() - 0.5);
                        pixels.push(value.clamp(0.0, 1.0));
                    }
                }
            }
            labels.push(class);
        }
    }
    ToyImages {
        pixels,
        labels,
        side,
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"): small, seeded, and
/// independent of the process-wide seed of the device.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// A generator whose whole sequence is determined by `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Uniform in 0..1, exact multiples of 2⁻²⁴.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// `n` values uniform in `-bound..bound`: random weights and inputs for tests.
    pub fn fill(&mut self, n: usize, bound: f32) -> Vec<f32> {
        (0..n)
            .map(|_| bound * (2.0 * self.uniform() - 1.0))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // First values for seed 1234567 of the reference implementation (Vigna, splitmix64.c).
        let mut generator = SplitMix64::new(1_234_567);
        assert_eq!(generator.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(generator.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn same_seed_same_images_and_other_seed_other_images() {
        let first = images(4, 3, 8, 1);
        assert_eq!(first, images(4, 3, 8, 1));
        assert_ne!(first.pixels, images(4, 3, 8, 2).pixels);
        assert_eq!(first.shape(), [12, 3, 8, 8]);
        assert_eq!(first.pixels.len(), 12 * 3 * 8 * 8);
        assert_eq!(first.labels, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
        assert!(first.pixels.iter().all(|value| (0.0..=1.0).contains(value)));
        assert!(images(0, 3, 8, 1).is_empty());
    }

    #[test]
    fn the_nearest_class_mean_of_other_images_names_the_class() {
        let (train, test) = (images(10, 8, 16, 1), images(10, 8, 16, 2));
        let n_pixels = 3 * 16 * 16;
        let mut means = vec![vec![0.0f32; n_pixels]; 10];
        for (image_idx, &label) in train.labels.iter().enumerate() {
            for (mean, value) in means[label].iter_mut().zip(train.image(image_idx)) {
                *mean += value / 8.0;
            }
        }
        let distance = |mean: &[f32], image: &[f32]| -> f32 {
            mean.iter().zip(image).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        let n_right = (0..test.len())
            .filter(|&image_idx| {
                let image = test.image(image_idx);
                let nearest = (0..10).min_by(|&a, &b| {
                    distance(&means[a], image).total_cmp(&distance(&means[b], image))
                });
                nearest == Some(test.labels[image_idx])
            })
            .count();
        assert!(
            n_right >= 76,
            "only {n_right} of 80 toy images are nearest to their class mean"
        );
    }
}
