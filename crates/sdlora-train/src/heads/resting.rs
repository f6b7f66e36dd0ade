//! The columns that a task leaves alone, taken out of the head while its steps are made.
//!
//! A step trains a [`TrainedHead`] as a whole, and an optimiser with weight decay moves a parameter
//! even where its gradient is 0. So the columns of classes outside the task are no parameters while
//! it is trained: they are kept here, without a gradient, without decay and without moments, and
//! neither a step nor the state of the optimiser grows with their number.

use burn::module::Param;
use burn::tensor::{Int, Tensor, TensorData};

use super::TrainedHead;

/// The columns outside a task, and where all columns belong.
#[derive(Debug, Clone)]
pub(crate) struct RestingColumns {
    /// `[d_model, n_resting]`.
    weight: Tensor<2>,
    /// `[n_resting]`.
    bias: Option<Tensor<1>>,
    /// For every class of the joined head the place of its column in `[resting, of the task]`.
    order: Vec<i32>,
}

impl TrainedHead {
    /// Numbers in the columns outside `labels`, which are ascending.
    pub(crate) fn n_outside(&self, labels: &[usize]) -> usize {
        let [d_model, n_classes] = self.weight.lazy_shape().dims();
        let n_resting = n_classes - of_head(labels, n_classes).count();
        n_resting * (d_model + usize::from(self.bias.is_some()))
    }

    /// The columns of `labels`, ascending, as a head of their own, and those that rest meanwhile;
    /// `None` where the task has them all. Parameters keep their ids, so the state of an optimiser
    /// finds them again.
    pub(crate) fn of_task(self, labels: &[usize]) -> (Self, Option<RestingColumns>) {
        let n_classes = self.n_classes();
        let of_task: Vec<usize> = of_head(labels, n_classes).collect();
        if of_task.len() == n_classes {
            let head = Self {
                n_in_task: Some(n_classes),
                ..self
            };
            return (head, None);
        }
        let is_resting = |class: &usize| of_task.binary_search(class).is_err();
        let resting: Vec<usize> = (0..n_classes).filter(is_resting).collect();
        let mut order = vec![0; n_classes];
        for (place, &class) in resting.iter().chain(&of_task).enumerate() {
            order[class] = place as i32;
        }
        let picked = |classes: &[usize]| classes.iter().map(|&class| class as i32).collect();
        let (task_idx, resting_idx): (Vec<i32>, Vec<i32>) = (picked(&of_task), picked(&resting));
        let bias = self.bias.as_ref();
        let columns = RestingColumns {
            weight: select(self.weight.val(), 1, &resting_idx),
            bias: bias.map(|bias| select(bias.val(), 0, &resting_idx)),
            order,
        };
        let head = Self {
            weight: replaced(&self.weight, select(self.weight.val(), 1, &task_idx)),
            bias: bias.map(|bias| replaced(bias, select(bias.val(), 0, &task_idx))),
            scale: self.scale,
            n_in_task: Some(of_task.len()),
        };
        (head, Some(columns))
    }

    /// Undoes [`of_task`](Self::of_task), with the columns of the task as they are now.
    pub(crate) fn with_resting(self, resting: &RestingColumns) -> Self {
        let joined = Tensor::cat(vec![resting.weight.clone(), self.weight.val()], 1);
        let bias = match (&resting.bias, &self.bias) {
            (Some(old), Some(bias)) => {
                let joined = Tensor::cat(vec![old.clone(), bias.val()], 0);
                Some(replaced(bias, select(joined, 0, &resting.order)))
            }
            _ => None,
        };
        Self {
            weight: replaced(&self.weight, select(joined, 1, &resting.order)),
            bias,
            ..self
        }
    }
}

/// Those of the labels that a head has columns for.
fn of_head(labels: &[usize], n_classes: usize) -> impl Iterator<Item = usize> {
    labels
        .iter()
        .copied()
        .filter(move |&label| label < n_classes)
}

/// A copy of some entries along an axis, outside the graph.
fn select<const D: usize>(tensor: Tensor<D>, dim: usize, idx: &[i32]) -> Tensor<D> {
    let data = TensorData::new(idx.to_vec(), [idx.len()]);
    let idx = Tensor::<1, Int>::from_data(data, &tensor.device());
    tensor.detach().select(dim, idx).detach()
}

/// The parameter of this id with another value, trained where it was.
fn replaced<const D: usize>(param: &Param<Tensor<D>>, value: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(param.id, value).set_require_grad(param.is_require_grad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use sdlora_testkit::test_device_autodiff;

    use crate::heads::ColumnStart;

    const D: usize = 3;

    fn head(n_classes: usize, device: &Device) -> TrainedHead {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        ColumnStart::Torch.draw(D, n_classes, &mut rng, device)
    }

    fn host(head: &TrainedHead) -> (Vec<f32>, Vec<f32>) {
        (head.rows().0, head.bias_host().unwrap())
    }

    /// Rows and biases of some classes.
    fn picked(head: &TrainedHead, classes: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (rows, bias) = host(head);
        let row = |&class: &usize| rows[class * D..][..D].to_vec();
        (
            classes.iter().flat_map(row).collect(),
            classes.iter().map(|&class| bias[class]).collect(),
        )
    }

    #[test]
    fn a_head_is_split_by_the_classes_of_a_task_and_joined_as_it_was() {
        let device = test_device_autodiff();
        for (labels, resting) in [
            (&[3, 4][..], &[0, 1, 2][..]),
            (&[0, 1], &[2, 3, 4]),
            (&[1, 2], &[0, 3, 4]),
            (&[0, 2, 4], &[1, 3]),
            (&[2], &[0, 1, 3, 4]),
        ] {
            let whole = head(5, &device);
            let ids = (whole.weight.id, whole.bias.as_ref().unwrap().id);
            assert_eq!(whole.n_outside(labels), resting.len() * (D + 1));
            let (task, rest) = whole.clone().of_task(labels);
            assert_eq!(host(&task), picked(&whole, labels), "{labels:?}");
            assert!(task.weight.is_require_grad());
            let rest = rest.unwrap();
            assert!(!rest.weight.is_require_grad());
            assert_eq!(rest.weight.dims(), [D, resting.len()]);
            let joined = task.with_resting(&rest);
            assert_eq!(host(&joined), host(&whole), "{labels:?}");
            assert_eq!((joined.weight.id, joined.bias.as_ref().unwrap().id), ids);
            assert!(joined.weight.is_require_grad());
            assert_eq!(joined.n_in_task, Some(labels.len()));
        }
    }

    #[test]
    fn a_task_of_all_classes_leaves_nothing_to_rest() {
        let device = test_device_autodiff();
        let whole = head(3, &device);
        let (task, rest) = whole.clone().of_task(&[0, 1, 2]);
        assert!(rest.is_none());
        assert_eq!(host(&task), host(&whole));
        assert_eq!(whole.n_outside(&[0, 1, 2]), 0);
    }

    #[test]
    fn a_scale_that_is_common_to_all_classes_goes_with_the_task_and_comes_back() {
        let device = test_device_autodiff();
        let scale = Param::from_tensor(Tensor::from_data([7.0f32], &device));
        let (id, whole) = (
            scale.id,
            TrainedHead {
                bias: None,
                scale: Some(scale.set_require_grad(false)),
                ..head(4, &device)
            },
        );
        let (task, rest) = whole.of_task(&[1, 3]);
        assert!(task.scale.is_some() && task.bias.is_none());
        let joined = task.with_resting(&rest.unwrap());
        let scale = joined.scale.unwrap();
        assert_eq!((scale.id, scale.is_require_grad()), (id, false));
        assert_eq!(scale.val().into_scalar::<f32>(), 7.0);
        assert_eq!(joined.weight.lazy_shape().dims::<2>(), [D, 4]);
    }
}
