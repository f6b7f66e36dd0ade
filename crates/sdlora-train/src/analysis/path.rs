//! Accuracy along the straight line between two checkpoints (paper, section 3).

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use sdlora_vit::Vit;

use super::trained::TrainedRun;
use crate::error::TrainError;
use crate::features::accuracy;
use crate::heads::Classifier;
use crate::model::Model;

/// A point of the line.
#[derive(Debug, Clone, PartialEq)]
pub struct PathPoint {
    /// 0 at the earlier checkpoint, 1 at the later one.
    pub lambda: f64,
    /// Share of right predictions on the test images of every task asked for.
    pub accuracy: Vec<f64>,
}

/// Walks from the end of round `from` to the end of round `to` in `n_steps` equal steps: backbone
/// with directions merged, `(1 − λ) W_from + λ W_to`, and classifier alike. Tested are the first
/// `n_tasks` tasks, of those seen after `from`.
///
/// Predictions are among the classes seen after `from`, so nothing but weights changes on the way;
/// at λ = 0 the accuracy is that of the run. `None` where logits are not linear in the features, or prompts stand
/// beside the weights: then there is no line between two models.
///
/// # Errors
///
/// Those of checkpoints and images.
pub fn straight_path(
    run: &TrainedRun,
    from: usize,
    to: usize,
    n_tasks: usize,
    n_steps: usize,
) -> Result<Option<Vec<PathPoint>>, TrainError> {
    let n_seen = run.n_seen_tasks(from);
    let n_classes = run.labels_of(n_seen - 1).end;
    let (from, _) = run.model_after(from)?;
    let (to, _) = run.model_after(to)?;
    // A mean of prompts that were chosen for an image is no prompt.
    let has_second_pass = |model: &Model| model.state.second_pass().is_some();
    if has_second_pass(&from) || has_second_pass(&to) {
        return Ok(None);
    }
    let ends = [run.classifier(&from)?, run.classifier(&to)?];
    let [Some(a), Some(b)] = ends.each_ref().map(|end| first_classes(end, n_classes)) else {
        return Ok(None);
    };
    let backbones = [&from, &to].map(|model| model.merged_backbone());
    // Directions lie inside the weights of the line: what walks along it has none beside them.
    let mut walker = Model {
        adapter: run.base().adapter.clone(),
        ..from
    };
    let loaders = run.test_loaders()?;
    let device = run.device().clone();
    let values = backbones.each_ref().map(values_of);
    let points = (0..=n_steps)
        .map(|step| {
            let lambda = step as f64 / n_steps.max(1) as f64;
            walker.backbone = between(&walker.backbone, &values, lambda, &device);
            let (mut rows, mut bias) = a.clone();
            mix(&mut rows, &b.0, lambda);
            mix(&mut bias, &b.1, lambda);
            let head = Classifier::linear(rows, walker.backbone.config().d_model, Some(bias));
            let tables = run.test_features(&walker, &loaders[..n_seen.min(n_tasks)])?;
            let tested = tables.iter();
            Ok(PathPoint {
                lambda,
                accuracy: tested
                    .map(|table| accuracy(&head.predict(table), &table.labels))
                    .collect(),
            })
        })
        .collect::<Result<_, TrainError>>()?;
    Ok(Some(points))
}

/// Rows and biases of the first `n` classes.
fn first_classes(classifier: &Classifier, n: usize) -> Option<(Vec<f32>, Vec<f32>)> {
    let (rows, bias) = classifier.as_linear()?;
    let d_model = rows.len() / bias.len().max(1);
    let n = n.min(bias.len());
    Some((rows[..n * d_model].to_vec(), bias[..n].to_vec()))
}

/// Sets `a` to `(1 − λ) a + λ b`; the ends are exact.
fn mix(a: &mut [f32], b: &[f32], lambda: f64) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a = ((1.0 - lambda) * f64::from(*a) + lambda * f64::from(b)) as f32;
    }
}

/// Every parameter in the order of the module.
fn values_of(vit: &Vit) -> Vec<Vec<f32>> {
    struct Read(Vec<Vec<f32>>);
    impl ModuleVisitor for Read {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().into_data().iter::<f32>().collect());
        }
    }
    let mut read = Read(Vec::new());
    vit.visit(&mut read);
    read.0
}

/// The backbone between two others of the same shape, whose parameters are given.
fn between(shape: &Vit, [a, b]: &[Vec<Vec<f32>>; 2], lambda: f64, device: &Device) -> Vit {
    struct Write<'a> {
        values: std::vec::IntoIter<Vec<f32>>,
        device: &'a Device,
    }
    impl ModuleMapper for Write<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(values) = self.values.next() else {
                return param;
            };
            let data = TensorData::new(values, param.lazy_shape());
            Param::from_tensor(Tensor::from_data(data, self.device)).set_require_grad(false)
        }
    }
    let mut values = a.clone();
    for (a, b) in values.iter_mut().zip(b) {
        mix(a, b, lambda);
    }
    shape.clone().map(&mut Write {
        values: values.into_iter(),
        device,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_line_are_exact_and_its_middle_is_the_mean() {
        let (a, b) = ([0.1f32, -3.0], [0.3f32, 5.0]);
        for (lambda, expected) in [(0.0, a), (1.0, b), (0.5, [0.2, 1.0])] {
            let mut at = a;
            mix(&mut at, &b, lambda);
            assert_eq!(at, expected);
        }
    }
}
