//! The classifier on the features; it grows by the classes of every task and keeps its old rows.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};

/// `logits = features · weight + bias`.
#[derive(Module, Debug)]
pub struct LinearHead {
    /// `[d_model, n_classes]`, one column per class: the transpose of PyTorch's rows.
    pub weight: Param<Tensor<2>>,
    /// `[n_classes]`.
    pub bias: Param<Tensor<1>>,
}

impl LinearHead {
    /// A head with the given columns.
    pub fn from_data(weight: TensorData, bias: TensorData, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::from_data(weight, device)),
            bias: Param::from_tensor(Tensor::from_data(bias, device)),
        }
    }

    /// Columns of `n_classes` new classes: weights from U(±√(3 / d_model)) (Kaiming uniform of a
    /// linear gain, as the published code draws them), bias 0.
    pub fn init(d_model: usize, n_classes: usize, rng: &mut impl Rng, device: &Device) -> Self {
        let bound = (3.0 / d_model as f32).sqrt();
        let weight: Vec<f32> = (0..d_model * n_classes)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        Self::from_data(
            TensorData::new(weight, [d_model, n_classes]),
            TensorData::zeros::<f32, _>([n_classes]),
            device,
        )
    }

    /// Number of classes.
    pub fn n_classes(&self) -> usize {
        let [_, n_classes] = self.weight.lazy_shape().dims();
        n_classes
    }

    /// This head with the columns of `new` after its own, all trainable.
    pub fn grown(self, new: Self) -> Self {
        // Detached after the concatenation: a detached parameter is still one that is trained, and
        // what is computed from one cannot become another.
        let weight = Tensor::cat(vec![self.weight.val(), new.weight.val()], 1).detach();
        let bias = Tensor::cat(vec![self.bias.val(), new.bias.val()], 0).detach();
        Self {
            weight: Param::from_tensor(weight),
            bias: Param::from_tensor(bias),
        }
    }

    /// Logits `[batch, n_classes]` of `features: [batch, d_model]`.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        features.matmul(self.weight.val()) + self.bias.val().unsqueeze()
    }
}

/// `logits = scale · cos(features, prototypes)`.
#[derive(Module, Debug)]
pub struct CosineHead {
    /// One prototype per class `[d_model, n_classes]`, of any length.
    pub weight: Param<Tensor<2>>,
    /// Inverse temperature `[1]`.
    pub scale: Param<Tensor<1>>,
}

/// Keeps the length of a zero vector away from 0.
const NORM_EPS: f64 = 1e-12;

impl CosineHead {
    /// Prototypes drawn as in [`LinearHead::init`].
    pub fn init(
        d_model: usize,
        n_classes: usize,
        scale: f32,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        Self {
            weight: LinearHead::init(d_model, n_classes, rng, device).weight,
            scale: Param::from_tensor(Tensor::from_data([scale], device)),
        }
    }

    /// Logits `[batch, n_classes]` of `features: [batch, d_model]`.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let unit = |x: Tensor<2>, dim: usize| {
            let squares = x.clone() * x.clone();
            x / squares.sum_dim(dim).add_scalar(NORM_EPS).sqrt()
        };
        let cosine = unit(features, 1).matmul(unit(self.weight.val(), 0));
        cosine * self.scale.val().unsqueeze()
    }
}

/// Mean cross-entropy `[1]` of `logits: [batch, n_classes]` for `targets` from 0 to `n_classes`.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, burn::tensor::Int>) -> Tensor<1> {
    let [batch, _] = logits.dims();
    let log_probabilities = burn::tensor::activation::log_softmax(logits, 1);
    log_probabilities
        .gather(1, targets.reshape([batch, 1]))
        .mean()
        .neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use sdlora_testkit::{Tolerance, assert_close, test_device, test_device_autodiff};

    #[test]
    fn a_grown_head_keeps_the_logits_of_old_classes() {
        let device = test_device();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let old = LinearHead::init(6, 3, &mut rng, &device);
        let new = LinearHead::init(6, 2, &mut rng, &device);
        let features = LinearHead::init(6, 4, &mut rng, &device)
            .weight
            .val()
            .transpose();
        let before: Vec<f32> = old.forward(features.clone()).into_data().iter().collect();
        let grown = old.grown(new);
        assert_eq!(grown.n_classes(), 5);
        let after = grown.forward(features).slice([0..4, 0..3]);
        assert_close(after, before.as_slice(), Tolerance::Abs(0.0), "old logits");
    }

    #[test]
    fn a_grown_head_is_trained_as_a_whole() {
        let device = test_device_autodiff();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut draw = |n| LinearHead::init(6, n, &mut rng, &device);
        let head = draw(3).grown(draw(2)).grown(draw(1));
        assert!(head.weight.is_require_grad() && head.bias.is_require_grad());
        let features = Tensor::<2>::ones([1, 6], &device);
        let grads = head.forward(features).sum().backward();
        let grad: Vec<f32> = head
            .weight
            .val()
            .grad(&grads)
            .unwrap()
            .into_data()
            .iter()
            .collect();
        assert_eq!(grad, [1.0; 36]);
    }

    #[test]
    fn cross_entropy_by_hand() {
        let device = test_device();
        let logits = Tensor::<2>::from_data([[0.0f32, 0.0], [1.0, 3.0]], &device);
        let targets = Tensor::<1, burn::tensor::Int>::from_data([0, 1], &device);
        let expected = (2f64.ln() + (1.0 + (-2f64).exp()).ln()) / 2.0;
        let loss: f32 = cross_entropy(logits, targets).into_scalar();
        assert!((f64::from(loss) - expected).abs() < 1e-6);
    }

    #[test]
    fn cosine_logits_ignore_the_length_of_a_feature() {
        let device = test_device();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let head = CosineHead::init(4, 3, 10.0, &mut rng, &device);
        let x = Tensor::<2>::from_data([[1.0f32, -2.0, 0.5, 0.1]], &device);
        let expected: Vec<f32> = head.forward(x.clone()).into_data().iter().collect();
        assert_close(
            head.forward(x * 7.0),
            expected.as_slice(),
            Tolerance::Abs(1e-5),
            "scaled",
        );
        assert!(expected.iter().all(|v| v.abs() <= 10.0));
    }
}
