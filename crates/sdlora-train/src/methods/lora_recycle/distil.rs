//! One LoRA that tells classes of synthetic images apart by prototypes as the teachers do by their columns.
//!
//! An episode has up to `n_ways` classes of one task; `n_shots` images of each make a prototype, the others are
//! classified. Their logits are `−‖z − p_c‖² / √d`, and the loss is the Kullback-Leibler divergence of their softmax
//! from the teacher's over the same classes. The paper does not divide by √d; without it the softmax of features of
//! this length is all or nothing. Adam with a warm-up over a tenth of the episodes, then a cosine.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use rand::seq::SliceRandom;
use sdlora_core::{Adapter, Updates};
use sdlora_vit::Vit;

use crate::error::TrainError;
use crate::heads::TrainedHead;
use crate::optimizer::{OptimizerConfig, Rule};

/// Synthetic images of the classes of one teacher, and what it says of them.
#[derive(Debug)]
pub(super) struct Synthetic {
    /// `[n_classes · n_images, n_channels, side, side]`, class by class.
    pub images: Tensor<4>,
    /// Labels of its classes.
    pub labels: Vec<usize>,
    /// Images of a class.
    pub n_images: usize,
    /// Of the teacher, `[n_classes · n_images, n_classes]`, row-major.
    pub logits: Vec<f32>,
}

/// Settings of the meta-training.
#[derive(Debug, Clone, Copy)]
pub(super) struct Distillation {
    pub n_episodes: usize,
    pub n_ways: usize,
    pub n_shots: usize,
    pub lr: f64,
}

/// Rows of an episode: prototypes of these images, and images to classify by class of the episode.
struct Episode {
    /// Places of the classes among those of the teacher.
    classes: Vec<usize>,
    /// `n_shots` images of every class, class by class.
    support: Vec<usize>,
    /// The other images of every class.
    query: Vec<usize>,
}

impl Distillation {
    /// The adapter after all episodes.
    pub(super) fn distil(
        self,
        backbone: &Vit,
        mut adapter: Adapter,
        synthetic: &[Synthetic],
        rng: &mut impl Rng,
    ) -> Result<Adapter, TrainError> {
        let with_choice: Vec<_> = synthetic.iter().filter(|s| s.labels.len() > 1).collect();
        if with_choice.is_empty() && self.n_episodes > 0 {
            return Err(TrainError::setting(
                "stream",
                "tasks of one class",
                "a task of at least two classes, which an episode tells apart; or `method.n_episodes = 0`",
            ));
        }
        let config = OptimizerConfig {
            rule: Rule::Adam {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
            },
            ..OptimizerConfig::sgd(self.lr)
        };
        let mut adam = config.init();
        for episode in 0..self.n_episodes {
            let of_task = with_choice[rng.next_u32() as usize % with_choice.len()];
            let drawn = self.episode(of_task, rng);
            let loss = self.loss(backbone, &adapter.updates(), of_task, &drawn);
            let lr = self.lr_at(episode);
            adapter = config.step(&mut adam, adapter, &loss, lr);
        }
        Ok(adapter)
    }

    fn lr_at(self, episode: usize) -> f64 {
        let (at, n) = (episode as f64 + 1.0, self.n_episodes as f64);
        let warm = (n / 10.0).max(1.0);
        match at < warm {
            true => self.lr * at / warm,
            false => {
                let along = (at - warm) / (n - warm).max(1.0);
                self.lr * 0.5 * (1.0 + (std::f64::consts::PI * along).cos())
            }
        }
    }

    fn episode(self, of_task: &Synthetic, rng: &mut impl Rng) -> Episode {
        let mut classes: Vec<usize> = (0..of_task.labels.len()).collect();
        classes.shuffle(rng);
        classes.truncate(self.n_ways);
        let (mut support, mut query) = (Vec::new(), Vec::new());
        for class in &classes {
            let first = class * of_task.n_images;
            let mut images: Vec<usize> = (first..first + of_task.n_images).collect();
            images.shuffle(rng);
            support.extend_from_slice(&images[..self.n_shots]);
            query.extend_from_slice(&images[self.n_shots..]);
        }
        Episode {
            classes,
            support,
            query,
        }
    }

    /// `[1]`.
    fn loss(
        self,
        backbone: &Vit,
        updates: &Updates,
        of_task: &Synthetic,
        drawn: &Episode,
    ) -> Tensor<1> {
        let device = of_task.images.device();
        let rows = [&drawn.support[..], &drawn.query].concat();
        let images = of_task.images.clone().select(0, indices(&rows, &device));
        let features = backbone.forward(images, updates);
        let ([_, d_model], n_ways) = (features.dims(), drawn.classes.len());
        let n_support = drawn.support.len();
        let prototypes: Tensor<2> = features
            .clone()
            .narrow(0, 0, n_support)
            .reshape([n_ways, self.n_shots, d_model])
            .mean_dim(1)
            .reshape([n_ways, d_model]);
        let query = features.narrow(0, n_support, drawn.query.len());
        let n_classes = of_task.labels.len();
        let teacher = drawn.query.iter().flat_map(|&row| {
            let logits = &of_task.logits[row * n_classes..(row + 1) * n_classes];
            drawn.classes.iter().map(|&class| logits[class])
        });
        let teacher: Vec<f32> = teacher.collect();
        let teacher = TensorData::new(teacher, [drawn.query.len(), n_ways]);
        let teacher = Tensor::<2>::from_data(teacher, &device);
        let expected = softmax(teacher.clone(), 1);
        let difference = log_softmax(teacher, 1) - log_softmax(closeness(query, prototypes), 1);
        (expected * difference).sum_dim(1).mean()
    }
}

fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let n = rows.len();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}

/// `−‖z − p_c‖² / √d`, `[n, n_classes]`.
fn closeness(features: Tensor<2>, prototypes: Tensor<2>) -> Tensor<2> {
    let [n, d_model] = features.dims();
    let [n_classes, _] = prototypes.dims();
    let difference =
        features.reshape([n, 1, d_model]) - prototypes.reshape([1, n_classes, d_model]);
    let squares: Tensor<2> = difference.square().sum_dim(2).reshape([n, n_classes]);
    squares.div_scalar(-(d_model as f64).sqrt())
}

/// Mean feature of the synthetic images of every class, with its label, by a backbone with all updates in its weights.
pub(super) fn prototypes(vit: &Vit, synthetic: &[Synthetic]) -> Vec<(usize, Vec<f32>)> {
    let mut all = Vec::new();
    for of_task in synthetic {
        for (i, &label) in of_task.labels.iter().enumerate() {
            let (first, n) = (i * of_task.n_images, of_task.n_images);
            let images = of_task.images.clone().narrow(0, first, n).inner();
            let features = vit.forward(images, &Updates::default());
            let mean = features.mean_dim(0).into_data();
            all.push((label, mean.iter::<f32>().collect()));
        }
    }
    all
}

/// A linear head whose logits are those of [`closeness`], up to a number that all classes share. A class without a
/// prototype keeps its column.
pub(super) fn prototype_head(
    head: &TrainedHead,
    prototypes: &[(usize, Vec<f32>)],
    d_model: usize,
    device: &Device,
) -> TrainedHead {
    let (mut rows, _) = head.rows();
    let n_classes = head.n_classes();
    let mut bias = head.bias_host().unwrap_or_else(|| vec![0.0; n_classes]);
    let scale = 1.0 / (d_model as f32).sqrt();
    for (label, prototype) in prototypes {
        let row = &mut rows[label * d_model..(label + 1) * d_model];
        row.iter_mut()
            .zip(prototype)
            .for_each(|(row, p)| *row = 2.0 * scale * p);
        bias[*label] = -scale * prototype.iter().map(|p| p * p).sum::<f32>();
    }
    let weight = Tensor::<2>::from_data(TensorData::new(rows, [n_classes, d_model]), device);
    TrainedHead::from_data(
        weight.transpose().into_data(),
        TensorData::new(bias, [n_classes]),
        device,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use sdlora_core::{Site, Variant};
    use sdlora_testkit::test_device_autodiff;
    use sdlora_vit::{Projection, VitConfig};

    /// Four classes whose teacher tells them apart by one pixel pattern each, under much noise.
    fn synthetic(seed: u64, device: &Device) -> Synthetic {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (n_classes, n_images, n_pixels) = (4, 6, 3 * 64);
        let mut patterns = ChaCha8Rng::seed_from_u64(1);
        let patterns: Vec<Vec<f32>> = (0..n_classes)
            .map(|_| {
                (0..n_pixels)
                    .map(|_| patterns.random_range(-1.0f32..1.0))
                    .collect()
            })
            .collect();
        let (mut pixels, mut logits) = (Vec::new(), Vec::new());
        for (class, pattern) in patterns.iter().enumerate() {
            for _ in 0..n_images {
                pixels.extend(
                    pattern
                        .iter()
                        .map(|p| 0.6 * p + rng.random_range(-1.5f32..1.5)),
                );
                logits.extend((0..n_classes).map(|c| if c == class { 4.0f32 } else { 0.0 }));
            }
        }
        let data = TensorData::new(pixels, [n_classes * n_images, 3, 8, 8]);
        Synthetic {
            images: Tensor::from_data(data, device),
            labels: (0..n_classes).collect(),
            n_images,
            logits,
        }
    }

    fn backbone(device: &Device) -> (Vit, Vec<Site>) {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let config = VitConfig::standard(8, 4, 16, 2, 2);
        let vit = Vit::init(&config, &mut rng, device).unwrap();
        let sites = config.sites(&[Projection::Query, Projection::Value]);
        (vit.no_grad(), sites)
    }

    const DISTILLATION: Distillation = Distillation {
        n_episodes: 150,
        n_ways: 4,
        n_shots: 1,
        lr: 5e-3,
    };

    /// Mean loss of fifty episodes.
    fn loss(vit: &Vit, adapter: &Adapter, images: &Synthetic) -> f32 {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let losses = (0..50).map(|_| {
            let drawn = DISTILLATION.episode(images, &mut rng);
            let loss = DISTILLATION.loss(vit, &adapter.updates(), images, &drawn);
            loss.into_scalar::<f32>()
        });
        losses.sum::<f32>() / 50.0
    }

    #[test]
    fn a_meta_lora_is_closer_to_its_teachers_on_images_it_was_not_trained_on_than_the_backbone() {
        let device = test_device_autodiff();
        let (vit, sites) = backbone(&device);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let fresh = Adapter::new(Variant::Reference.config(), &sites)
            .unwrap()
            .begin_task(4, &mut rng, &device)
            .unwrap()
            .with_current_magnitude_trainable(false);
        let (seen, unseen) = (synthetic(11, &device), synthetic(12, &device));
        let before = loss(&vit, &fresh, &unseen);
        let trained = DISTILLATION
            .distil(&vit, fresh.clone(), &[seen], &mut rng)
            .unwrap();
        let after = loss(&vit, &trained, &unseen);
        assert!(after < 0.9 * before, "{after} after {before}");
        // No episode, no change.
        let none = Distillation {
            n_episodes: 0,
            ..DISTILLATION
        };
        let same = none.distil(&vit, fresh, &[], &mut rng).unwrap();
        assert_eq!(loss(&vit, &same, &unseen), before);
    }

    #[test]
    fn tasks_of_one_class_are_refused_with_what_to_do() {
        let device = test_device_autodiff();
        let (vit, sites) = backbone(&device);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let adapter = Adapter::new(Variant::Reference.config(), &sites).unwrap();
        let one = Synthetic {
            labels: vec![0],
            ..synthetic(1, &device)
        };
        let error = DISTILLATION.distil(&vit, adapter, &[one], &mut rng);
        assert!(error.unwrap_err().to_string().contains("n_episodes = 0"));
    }

    #[test]
    fn the_rates_rise_to_the_one_that_is_set_and_fall_to_0() {
        let rates: Vec<f64> = (0..150).map(|e| DISTILLATION.lr_at(e)).collect();
        let largest = rates.iter().copied().fold(0.0, f64::max);
        assert!((largest - 5e-3).abs() < 1e-9 && rates[0] < 1e-3 && rates[149] < 1e-5);
    }

    #[test]
    fn the_columns_of_prototypes_give_the_nearest_one() {
        let device = test_device_autodiff();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut draw =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let (d, n_classes) = (6, 5);
        let prototypes: Vec<(usize, Vec<f32>)> = (0..n_classes).map(|c| (c, draw(d))).collect();
        let features: Tensor<2> = Tensor::from_data(TensorData::new(draw(8 * d), [8, d]), &device);
        let old = TrainedHead::from_data(
            TensorData::new(draw(d * n_classes), [d, n_classes]),
            TensorData::new(draw(n_classes), [n_classes]),
            &device,
        );
        let head = prototype_head(&old, &prototypes, d, &device);
        let all: Vec<f32> = prototypes.iter().flat_map(|(_, p)| p.clone()).collect();
        let all = Tensor::from_data(TensorData::new(all, [n_classes, d]), &device);
        let far = head.linear(features.clone()) - closeness(features, all);
        // A number common to all classes of an image is left.
        let spread = far.clone() - far.mean_dim(1);
        let largest: f32 = spread.abs().max().into_scalar();
        assert!(largest < 1e-5, "{largest}");
        // A class without a prototype keeps its column.
        let some = prototype_head(&old, &prototypes[1..], d, &device);
        let column = |head: &TrainedHead| head.rows().0[..d].to_vec();
        assert_eq!(column(&some), column(&old));
    }
}
