//! Images that a frozen model takes for those of a class, found by gradients of their pixels.
//!
//! ```text
//! loss = CE(teacher(x), y) + prior · (TV(x) + ½ mean x²) + matching · mean_c ‖mean_c h(x) − μ_c‖² / d
//! ```
//!
//! with features h and the stored mean feature μ_c of a class, by Adam, under random shifts of at most an eighth of
//! the side. Differs from the paper, whose prior are the statistics of the batch norms of another network, a
//! ResNet-50 trained on ImageNet: a ViT has none. It also drops tokens of low attention, which makes an inversion
//! cheaper; here all tokens stay. Nothing is mirrored, because a character is not its mirror image.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, RngExt};
use sdlora_core::Updates;
use sdlora_vit::Vit;

use super::distil::Synthetic;
use crate::heads::cross_entropy;
use crate::optimizer::{OptimizerConfig, Rule};

/// A frozen model of the classes of a task.
#[derive(Debug)]
pub(super) struct Teacher {
    vit: Vit,
    /// `[d_model, n_classes]`.
    weight: Tensor<2>,
    /// `[1, n_classes]`.
    bias: Tensor<2>,
    /// `[n_classes, d_model]`, where they are stored.
    means: Option<Tensor<2>>,
}

impl Teacher {
    /// Of rows and biases of a head, and of mean features, those of the given labels.
    pub(super) fn new(
        vit: Vit,
        (rows, biases): &(Vec<f32>, Vec<f32>),
        means: Option<&[f32]>,
        labels: &[usize],
        device: &Device,
    ) -> Self {
        let (d, n) = (vit.config().d_model, labels.len());
        let of_labels = |rows: &[f32]| -> Tensor<2> {
            let rows = labels
                .iter()
                .flat_map(|l| rows[l * d..(l + 1) * d].iter().copied());
            Tensor::from_data(TensorData::new(rows.collect::<Vec<_>>(), [n, d]), device)
        };
        let bias: Vec<f32> = labels.iter().map(|&label| biases[label]).collect();
        Self {
            weight: of_labels(rows).transpose(),
            bias: Tensor::from_data(TensorData::new(bias, [1, n]), device),
            means: means.map(of_labels),
            vit,
        }
    }

    fn features(&self, images: Tensor<4>) -> Tensor<2> {
        self.vit.forward(images, &Updates::default())
    }

    fn logits(&self, features: Tensor<2>) -> Tensor<2> {
        features.matmul(self.weight.clone()) + self.bias.clone()
    }
}

/// Settings of an inversion.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inversion {
    pub n_images: usize,
    pub n_steps: usize,
    pub prior: f64,
    pub matching: f64,
}

/// Images under optimisation.
#[derive(Module, Debug)]
struct Pixels {
    images: Param<Tensor<4>>,
}

/// Most images that are optimised at once.
const AT_ONCE: usize = 64;

/// As in the published code of the paper.
fn optimizer() -> OptimizerConfig {
    OptimizerConfig {
        rule: Rule::Adam {
            beta1: 0.5,
            beta2: 0.99,
            eps: 1e-8,
        },
        ..OptimizerConfig::sgd(PIXEL_LR)
    }
}

/// Step of a pixel, where prepared images have a deviation of about 1.
const PIXEL_LR: f64 = 0.1;

impl Inversion {
    /// Images of all classes of a teacher, which have these labels in the run.
    pub(super) fn invert(
        self,
        teacher: &Teacher,
        labels: Vec<usize>,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Synthetic {
        let classes: Vec<usize> = (0..labels.len()).collect();
        let n_at_once = (AT_ONCE / self.n_images).max(1);
        let chunks = classes.chunks(n_at_once);
        let images: Vec<_> = chunks
            .map(|classes| self.images_of(teacher, classes, rng, device))
            .collect();
        let images = Tensor::cat(images, 0);
        let logits = teacher.logits(teacher.features(images.clone())).detach();
        Synthetic {
            images,
            labels,
            n_images: self.n_images,
            logits: logits.into_data().iter::<f32>().collect(),
        }
    }

    /// `[n_classes · n_images, n_channels, side, side]`, class by class.
    fn images_of(
        self,
        teacher: &Teacher,
        classes: &[usize],
        rng: &mut impl Rng,
        device: &Device,
    ) -> Tensor<4> {
        let vit = teacher.vit.config();
        let (side, n_channels, d_model) = (vit.image_size, vit.n_channels, vit.d_model);
        let n = classes.len() * self.n_images;
        let noise: Vec<f32> = (0..n * n_channels * side * side)
            .map(|_| rng.random_range(-1.0f32..1.0))
            .collect();
        let noise = TensorData::new(noise, [n, n_channels, side, side]);
        let mut pixels = Pixels {
            images: Param::from_tensor(Tensor::from_data(noise, device)),
        };
        let of_class = |class: &usize| std::iter::repeat_n(*class as i32, self.n_images);
        let targets: Vec<i32> = classes.iter().flat_map(of_class).collect();
        let targets = Tensor::<1, Int>::from_data(TensorData::new(targets, [n]), device);
        let wanted = Tensor::<1, Int>::from_data(
            TensorData::new(
                classes.iter().map(|&c| c as i32).collect::<Vec<_>>(),
                [classes.len()],
            ),
            device,
        );
        let wanted = teacher.means.as_ref().map(|m| m.clone().select(0, wanted));
        let config = optimizer();
        let mut adam = config.init();
        let most = (side / JITTER) as i64;
        for _ in 0..self.n_steps {
            let own = pixels.images.val();
            let shifted = [2usize, 3].into_iter().fold(own.clone(), |x, dim| {
                x.roll_dim(rng.random_range(-most..=most), dim)
            });
            let features = teacher.features(shifted);
            let mut loss = cross_entropy(teacher.logits(features.clone()), targets.clone());
            if self.prior > 0.0 {
                loss = loss + prior(own).mul_scalar(self.prior);
            }
            if let Some(wanted) = wanted.clone().filter(|_| self.matching > 0.0) {
                let shape = [classes.len(), self.n_images, d_model];
                let means: Tensor<2> = features
                    .reshape(shape)
                    .mean_dim(1)
                    .reshape([classes.len(), d_model]);
                let far = (means - wanted).square().mean();
                loss = loss + far.mul_scalar(self.matching);
            }
            pixels = config.step(&mut adam, pixels, &loss, config.lr);
        }
        // Detached, a trained parameter would still be one, and every episode part of its graph.
        Tensor::from_inner(pixels.images.val().inner())
    }
}

/// Share of the side that a shift has at most, as its inverse.
const JITTER: usize = 8;

/// Mean square of the differences of neighbours, and half of that of the pixels.
fn prior(images: Tensor<4>) -> Tensor<1> {
    let [_, _, height, width] = images.dims();
    let along = |dim: usize, n: usize| {
        let (from, to) = (
            images.clone().narrow(dim, 0, n - 1),
            images.clone().narrow(dim, 1, n - 1),
        );
        (to - from).square().mean()
    };
    along(2, height) + along(3, width) + images.square().mean().mul_scalar(0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use sdlora_testkit::test_device_autodiff;
    use sdlora_vit::VitConfig;

    /// A teacher of four classes with drawn weights, whose columns are long enough to be sure.
    fn teacher(device: &Device) -> Teacher {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let config = VitConfig::standard(8, 4, 16, 2, 2);
        let vit = Vit::init(&config, &mut rng, device).unwrap();
        let vit = burn::module::Module::no_grad(vit);
        let rows = (0..4 * 16)
            .map(|_| rng.random_range(-2.0f32..2.0))
            .collect();
        let labels = [0, 1, 2, 3];
        Teacher::new(vit, &(rows, vec![0.0; 4]), None, &labels, device)
    }

    fn inverted(n_steps: usize, prior: f64) -> Synthetic {
        let device = test_device_autodiff();
        let inversion = Inversion {
            n_images: 5,
            n_steps,
            prior,
            matching: 0.0,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        inversion.invert(&teacher(&device), vec![7, 8, 9, 10], &mut rng, &device)
    }

    /// Cross-entropy of the teacher, and the share of images whose class it names.
    fn seen(synthetic: &Synthetic) -> (f64, f64) {
        let n = synthetic.labels.len();
        let (mut loss, mut n_right) = (0.0, 0);
        let rows = synthetic.logits.chunks(n);
        let n_rows = rows.len();
        for (i, row) in rows.enumerate() {
            let own = i / synthetic.n_images;
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|z| f64::from(z - largest).exp()).sum();
            loss += sum.ln() - f64::from(row[own] - largest);
            n_right += usize::from(row[own] == largest);
        }
        (loss / n_rows as f64, n_right as f64 / n_rows as f64)
    }

    #[test]
    fn the_teacher_sees_in_an_inverted_image_what_it_is_to_show_and_in_noise_it_does_not() {
        let (loss, right) = seen(&inverted(100, 0.01));
        assert!(loss < 0.1 && right >= 0.95, "{loss}, {right}");
        // One step from the noise.
        let (loss, right) = seen(&inverted(1, 0.01));
        assert!(loss > 0.5 && right < 0.8, "{loss}, {right}");
    }

    #[test]
    fn the_prior_makes_images_smooth_and_small() {
        let rough =
            |synthetic: &Synthetic| -> f32 { prior(synthetic.images.clone()).into_scalar() };
        let (without, with) = (rough(&inverted(60, 0.0)), rough(&inverted(60, 1.0)));
        assert!(with < 0.5 * without, "{with} and {without}");
    }
}
