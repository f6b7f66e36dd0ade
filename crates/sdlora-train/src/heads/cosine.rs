//! The cosine classifier: `logits = scale · cos(features, column)`, trained by the steps of a task.
//!
//! The length of a column decides nothing, so columns of new classes cannot outweigh old ones by
//! length alone (Hou et al. 2019, "Learning a Unified Classifier Incrementally via Rebalancing",
//! section 3.2). It is linear once columns have unit length: the length of the feature is common to
//! all classes.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Classifier, ColumnStart, Head, HeadEntry, HeadState, TrainedHead};
use crate::error::TrainError;
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "cosine",
    summary: "a cosine classifier, trained by the steps of a task (options: scale, scale_is)",
    build: |options| {
        let head: Cosine = parse("head (cosine)", options)?;
        if head.scale.is_finite() && head.scale > 0.0 {
            return Ok(Arc::new(head));
        }
        Err(TrainError::setting(
            "head.scale",
            head.scale,
            "a finite number above 0",
        ))
    },
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cosine {
    /// Inverse temperature at the start.
    #[serde(default = "default_scale")]
    scale: f32,
    /// Whether steps change it.
    #[serde(default)]
    scale_is: ScaleIs,
}

/// What becomes of the scale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ScaleIs {
    /// Trained with the columns, one for all tasks (Hou et al. 2019, equation 4).
    #[default]
    Trained,
    /// Stays what it was.
    Fixed,
}

/// That of the shipped backbone's pre-training.
fn default_scale() -> f32 {
    16.0
}

impl Head for Cosine {
    fn needs_steps(&self) -> bool {
        true
    }

    /// A column of length 0 has no direction, and the gradient of its cosine no bound; so where a
    /// method starts at zeros, this head starts as the paper's code does.
    fn start(&self, of_method: ColumnStart) -> ColumnStart {
        match of_method {
            ColumnStart::Zeros => ColumnStart::Torch,
            other => other,
        }
    }

    fn columns(
        &self,
        start: ColumnStart,
        d_model: usize,
        n_new: usize,
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> TrainedHead {
        let linear = start.draw(d_model, n_new, rng, device);
        let scale = Param::from_tensor(Tensor::from_data([self.scale], device));
        TrainedHead {
            bias: None,
            scale: Some(scale.set_require_grad(self.scale_is == ScaleIs::Trained)),
            ..linear
        }
    }

    fn logits(&self, trained: &TrainedHead, features: Tensor<2>) -> Tensor<2> {
        let cosines = cosines(features, trained.weight.val());
        match &trained.scale {
            Some(scale) => cosines * scale.val().unsqueeze(),
            None => cosines,
        }
    }

    fn classifier(&self, state: &HeadState) -> Option<Classifier> {
        let (mut rows, d_model) = state.trained.as_ref()?.rows();
        for row in rows.chunks_exact_mut(d_model.max(1)) {
            let squares: f64 = row.iter().map(|&w| f64::from(w).powi(2)).sum();
            let length = (squares + NORM_EPS).sqrt() as f32;
            row.iter_mut().for_each(|w| *w /= length);
        }
        Some(Classifier::linear(rows, d_model, None))
    }
}

/// The classifier of pre-training: `logits = scale · cos(features, prototypes)`.
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
    /// Prototypes drawn as in [`TrainedHead::draw`].
    pub fn init(
        d_model: usize,
        n_classes: usize,
        scale: f32,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        Self {
            weight: TrainedHead::draw(d_model, n_classes, rng, device).weight,
            scale: Param::from_tensor(Tensor::from_data([scale], device)),
        }
    }

    /// Logits `[batch, n_classes]` of `features: [batch, d_model]`.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        cosines(features, self.weight.val()) * self.scale.val().unsqueeze()
    }
}

/// Cosines `[batch, n_classes]` of `features: [batch, d_model]` and `columns: [d_model, n_classes]`.
fn cosines(features: Tensor<2>, columns: Tensor<2>) -> Tensor<2> {
    let unit = |x: Tensor<2>, dim: usize| {
        let squares = x.clone() * x.clone();
        x / squares.sum_dim(dim).add_scalar(NORM_EPS).sqrt()
    };
    unit(features, 1).matmul(unit(columns, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::FeatureTable;
    use rand::SeedableRng;
    use sdlora_testkit::{Tolerance, assert_close, test_device, test_device_autodiff};

    fn head(options: &str) -> Arc<dyn Head> {
        (ENTRY.build)(&options.parse().unwrap()).unwrap()
    }

    /// Columns (3, 4) and (0, 2).
    fn trained(device: &Device) -> TrainedHead {
        let weight = Tensor::from_data([[3.0f32, 0.0], [4.0, 2.0]], device);
        TrainedHead {
            weight: Param::from_tensor(weight),
            bias: None,
            scale: Some(Param::from_tensor(Tensor::from_data([10.0f32], device))),
            n_in_task: None,
        }
    }

    #[test]
    fn cosines_by_hand_in_training_and_in_use() {
        let device = test_device();
        let head = head("scale = 10.0");
        let features = Tensor::<2>::from_data([[2.0f32, 0.0], [0.0, -0.5], [30.0, 40.0]], &device);
        let logits = head.logits(&trained(&device), features);
        let expected = [6.0f32, 0.0, -8.0, -10.0, 10.0, 8.0];
        assert_close(logits, &expected[..], Tolerance::Abs(1e-5), "logits");

        let state = HeadState {
            trained: Some(trained(&device)),
            ..HeadState::default()
        };
        let classifier = head.classifier(&state).unwrap();
        let (rows, bias) = classifier.as_linear().unwrap();
        assert_close(
            rows,
            &[0.6f32, 0.8, 0.0, 1.0][..],
            Tolerance::Abs(1e-6),
            "rows",
        );
        assert_eq!(bias, [0.0; 2]);
        // The longer column, 19 against 8, would win (1, 4) by its length; its cosine is smaller.
        let table = FeatureTable {
            features: vec![1.0, 2.0, 1.0, 4.0],
            d_model: 2,
            labels: vec![0, 1],
            ..FeatureTable::default()
        };
        assert_eq!(classifier.predict(&table), [0, 1]);
    }

    #[test]
    fn the_length_of_a_feature_decides_nothing() {
        let device = test_device();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let head = CosineHead::init(4, 3, 10.0, &mut rng, &device);
        let x = Tensor::<2>::from_data([[1.0f32, -2.0, 0.5, 0.1]], &device);
        let expected: Vec<f32> = head.forward(x.clone()).into_data().iter().collect();
        let scaled = head.forward(x * 7.0);
        assert_close(scaled, expected.as_slice(), Tolerance::Abs(1e-5), "scaled");
        assert!(expected.iter().all(|v| v.abs() <= 10.0));
    }

    #[test]
    fn one_scale_for_all_tasks_is_trained_or_fixed() {
        let device = test_device_autodiff();
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for (options, is_trained) in [("", true), ("scale_is = \"fixed\"", false)] {
            let head = head(options);
            let mut draw = |n| head.columns(ColumnStart::Kaiming, 4, n, &mut rng, &device);
            let grown = draw(2).grown(draw(3));
            assert_eq!(grown.n_classes(), 5);
            assert!(grown.weight.is_require_grad() && grown.bias.is_none());
            let scale = grown.scale.unwrap();
            assert_eq!(scale.is_require_grad(), is_trained);
            assert_eq!(scale.val().into_scalar::<f32>(), 16.0);
        }
        let error = (ENTRY.build)(&"scale = 0.0".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("above 0"), "{error}");
    }
}
