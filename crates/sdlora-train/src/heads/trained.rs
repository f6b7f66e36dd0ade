//! The columns that the steps of a task train; they grow by the classes of every task, and old ones
//! stay.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Parameters of a classifier; what they mean is up to its [`Head`](super::Head).
#[derive(Module, Debug)]
pub struct TrainedHead {
    /// `[d_model, n_classes]`, one column per class: the transpose of PyTorch's rows.
    pub weight: Param<Tensor<2>>,
    /// `[n_classes]`, for a head that has one.
    pub bias: Option<Param<Tensor<1>>>,
    /// `[1]`, a number common to all classes, for a head that has one.
    pub scale: Option<Param<Tensor<1>>>,
    /// Columns that the last task trained; `None` before the first one.
    #[module(skip)]
    pub n_in_task: Option<usize>,
}

/// What a [`TrainedHead`] is made of, to load a record into one of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrainedShape {
    n_classes: usize,
    has_bias: bool,
    has_scale: bool,
    /// Absent where all columns took part in every step, as in earlier versions.
    #[serde(default)]
    n_in_task: Option<usize>,
}

impl TrainedShape {
    /// Columns that take part in the steps of the running task; `None` where nobody said.
    pub(crate) fn n_in_task(&self) -> Option<usize> {
        self.n_in_task
    }

    /// Number of columns.
    pub(crate) fn n_classes(&self) -> usize {
        self.n_classes
    }
}

impl TrainedHead {
    /// A head with the given columns and a bias each.
    pub fn from_data(weight: TensorData, bias: TensorData, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::from_data(weight, device)),
            bias: Some(Param::from_tensor(Tensor::from_data(bias, device))),
            scale: None,
            n_in_task: None,
        }
    }

    /// Columns of `n_classes` new classes: weights from U(±√(3 / d_model)) (Kaiming uniform of a
    /// linear gain, as the published code draws them), bias 0: [`ColumnStart::Kaiming`].
    ///
    /// [`ColumnStart::Kaiming`]: super::ColumnStart::Kaiming
    pub fn draw(d_model: usize, n_classes: usize, rng: &mut impl Rng, device: &Device) -> Self {
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

    /// Zeros of a shape.
    pub(crate) fn zeros(shape: TrainedShape, d_model: usize, device: &Device) -> Self {
        let vector = |n: usize| Param::from_tensor(Tensor::zeros([n], device));
        Self {
            weight: Param::from_tensor(Tensor::zeros([d_model, shape.n_classes], device)),
            bias: shape.has_bias.then(|| vector(shape.n_classes)),
            scale: shape.has_scale.then(|| vector(1)),
            n_in_task: shape.n_in_task,
        }
    }

    /// What it is made of.
    pub(crate) fn shape(&self) -> TrainedShape {
        TrainedShape {
            n_classes: self.n_classes(),
            has_bias: self.bias.is_some(),
            has_scale: self.scale.is_some(),
            n_in_task: self.n_in_task,
        }
    }

    /// Number of classes.
    pub fn n_classes(&self) -> usize {
        let [_, n_classes] = self.weight.lazy_shape().dims();
        n_classes
    }

    /// This head with the columns of `new` after its own, all trainable; its scale stays.
    pub fn grown(self, new: Self) -> Self {
        // Detached after the concatenation: a detached parameter is still one that is trained, and
        // what is computed from one cannot become another.
        let weight = Tensor::cat(vec![self.weight.val(), new.weight.val()], 1).detach();
        let bias = match (self.bias, new.bias) {
            (Some(old), Some(new)) => Some(Tensor::cat(vec![old.val(), new.val()], 0).detach()),
            _ => None,
        };
        Self {
            weight: Param::from_tensor(weight),
            bias: bias.map(Param::from_tensor),
            scale: self.scale.or(new.scale),
            n_in_task: None,
        }
    }

    /// `features · weight + bias`, `[batch, n_classes]` of `features: [batch, d_model]`.
    pub fn linear(&self, features: Tensor<2>) -> Tensor<2> {
        let products = features.matmul(self.weight.val());
        match &self.bias {
            Some(bias) => products + bias.val().unsqueeze(),
            None => products,
        }
    }

    /// The columns as rows `[n_classes, d_model]` on the host, and `d_model`.
    pub fn rows(&self) -> (Vec<f32>, usize) {
        let weight = self.weight.val();
        let [d_model, _] = weight.dims();
        let rows = weight.transpose().into_data().iter::<f32>().collect();
        (rows, d_model)
    }

    /// The biases on the host.
    pub fn bias_host(&self) -> Option<Vec<f32>> {
        let bias = self.bias.as_ref()?.val();
        Some(bias.into_data().iter::<f32>().collect())
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

/// As [`cross_entropy`], where every row counts `weights: [batch]` times; the mean still divides by the rows.
pub(crate) fn weighted_cross_entropy(
    logits: Tensor<2>,
    targets: Tensor<1, burn::tensor::Int>,
    weights: Tensor<1>,
) -> Tensor<1> {
    let [batch, _] = logits.dims();
    let log_probabilities = burn::tensor::activation::log_softmax(logits, 1);
    let own = log_probabilities.gather(1, targets.reshape([batch, 1]));
    (own * weights.reshape([batch, 1])).mean().neg()
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
        let old = TrainedHead::draw(6, 3, &mut rng, &device);
        let new = TrainedHead::draw(6, 2, &mut rng, &device);
        let features = TrainedHead::draw(6, 4, &mut rng, &device)
            .weight
            .val()
            .transpose();
        let before: Vec<f32> = old.linear(features.clone()).into_data().iter().collect();
        let grown = old.grown(new);
        assert_eq!(grown.n_classes(), 5);
        let after = grown.linear(features).slice([0..4, 0..3]);
        assert_close(after, before.as_slice(), Tolerance::Abs(0.0), "old logits");
    }

    #[test]
    fn a_grown_head_is_trained_as_a_whole() {
        let device = test_device_autodiff();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut draw = |n| TrainedHead::draw(6, n, &mut rng, &device);
        let head = draw(3).grown(draw(2)).grown(draw(1));
        assert!(
            head.weight.is_require_grad()
                && head.bias.as_ref().is_some_and(|b| b.is_require_grad())
        );
        let features = Tensor::<2>::ones([1, 6], &device);
        let grads = head.linear(features).sum().backward();
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
    fn a_row_that_counts_three_times_is_three_rows() {
        let device = test_device();
        let logits = || Tensor::<2>::from_data([[0.5f32, -1.0], [1.0, 3.0]], &device);
        let targets = |values: &[i32]| {
            Tensor::<1, burn::tensor::Int>::from_data(
                TensorData::new(values.to_vec(), [values.len()]),
                &device,
            )
        };
        let weights = Tensor::<1>::from_data([0.5f32, 1.5], &device);
        let weighted: f32 =
            weighted_cross_entropy(logits(), targets(&[0, 0]), weights).into_scalar();
        let second = || logits().slice([1..2, 0..2]);
        let rows = Tensor::cat(vec![logits(), second(), second()], 0);
        let plain: f32 = cross_entropy(rows, targets(&[0, 0, 0, 0])).into_scalar();
        assert!((weighted - plain).abs() < 1e-6, "{weighted} {plain}");
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
}
