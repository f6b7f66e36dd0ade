//! A step in parts: a batch that does not fit into memory is computed piece by piece (gradient
//! accumulation), and several devices compute their shares at the same time (data parallelism).
//!
//! Either way the loss and the gradients are those of the whole batch up to rounding: the mean over a
//! part counts with the share of the batch that the part is.

use std::any::Any;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};

use crate::activation_checkpointing::Recompute;
use crate::error::TrainError;
use crate::model::Model;

/// How the work of a step is divided; not at all by default.
#[derive(Debug, Clone, Default)]
pub struct BatchSplit {
    /// Images that are computed at once on a device; all of its share when left out.
    pub micro_batch: Option<NonZeroUsize>,
    /// Devices beside the one that the model is on.
    pub more_devices: Vec<Device>,
}

impl BatchSplit {
    /// What the first device computes first of a batch.
    pub(crate) fn first_piece(&self, n_images: usize) -> Range<usize> {
        let pieces = self.pieces(n_images);
        let first = pieces.first().and_then(|own| own.first());
        first.cloned().unwrap_or(0..n_images)
    }

    /// The images of every device, in the pieces it computes one after another; a device may have
    /// none. Shares differ by one image at most.
    fn pieces(&self, n_images: usize) -> Vec<Vec<Range<usize>>> {
        let n_devices = 1 + self.more_devices.len();
        let at_once = self.micro_batch.map_or(n_images, NonZeroUsize::get).max(1);
        let begin =
            |device: usize| device * (n_images / n_devices) + device.min(n_images % n_devices);
        (0..n_devices)
            .map(|device| {
                let (from, to) = (begin(device), begin(device + 1));
                (from..to)
                    .step_by(at_once)
                    .map(|first| first..(first + at_once).min(to))
                    .collect()
            })
            .collect()
    }
}

/// The model of a task on every device.
pub(crate) struct Replicas {
    split: BatchSplit,
    /// With autodiff; that of the model first.
    devices: Vec<Device>,
    /// On the further devices; frozen parameters stay what they are for a whole task.
    models: Vec<Model>,
}

impl Replicas {
    /// Copies the model, which is on `device`, to the further devices, once a task.
    pub fn of(model: &Model, device: &Device, split: &BatchSplit) -> Self {
        let devices: Vec<Device> = std::iter::once(device)
            .chain(&split.more_devices)
            .map(|device| device.clone().inner().autodiff())
            .collect();
        Self {
            split: split.clone(),
            models: devices[1..]
                .iter()
                .map(|device| model.clone().fork(device))
                .collect(),
            devices,
        }
    }

    /// Loss and gradients of a batch of `n_images`: `loss` gives the mean loss `[1]` of some of its
    /// images under a model on a device, and `once` what is added to that of the whole batch. The
    /// loss is multiplied by `loss_scale` before the backward pass and the gradients are divided by
    /// it after.
    ///
    /// Gradients lie on the device of `model`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Device`] when a device gives up.
    pub fn gradients(
        &mut self,
        model: &Model,
        n_images: usize,
        loss: impl Fn(&Model, &Device, Range<usize>) -> (Tensor<1>, Option<Recompute>) + Sync,
        once: Option<Tensor<1>>,
        loss_scale: f64,
    ) -> Result<(f64, GradientsParams), TrainError> {
        let pieces = self.split.pieces(n_images);
        let devices = &self.devices;
        let on = |model: &Model, idx: usize, mut once: Option<Tensor<1>>| {
            let mut sum = 0.0;
            let mut gradients = GradientsAccumulator::new();
            for piece in &pieces[idx] {
                let share = piece.len() as f64 / n_images as f64;
                let (mut part, recompute) = loss(model, &devices[idx], piece.clone());
                if share < 1.0 {
                    part = part.mul_scalar(share);
                }
                if let Some(once) = once.take() {
                    part = part + once;
                }
                sum += f64::from(part.clone().into_scalar::<f32>());
                if loss_scale != 1.0 {
                    part = part.mul_scalar(loss_scale);
                }
                let mut found = part.backward();
                gradients.accumulate(model, GradientsParams::from_module(&mut found, model));
                if let Some(recompute) = recompute {
                    recompute.backward(model, &mut found, |new| gradients.accumulate(model, new));
                }
            }
            (sum, divided(gradients.grads(), model, loss_scale))
        };
        if self.models.is_empty() {
            return Ok(on(model, 0, once));
        }

        follow(&mut self.models, model);
        let (own, others) = std::thread::scope(|scope| {
            let on = &on;
            let working: Vec<_> = (1..)
                .zip(&self.models)
                .map(|(idx, replica)| scope.spawn(move || on(replica, idx, None)))
                .collect();
            let own = on(model, 0, once);
            let others: Vec<_> = working.into_iter().map(|thread| thread.join()).collect();
            (own, others)
        });
        let (mut sum, gradients) = own;
        let device = devices[0].clone().inner();
        let mut all = GradientsAccumulator::new();
        all.accumulate(model, gradients);
        for (idx, other) in others.into_iter().enumerate() {
            let (part, gradients) = other.map_err(|panic| TrainError::Device {
                device: format!("{:?}", self.split.more_devices[idx]),
                problem: message_of(panic.as_ref()),
            })?;
            sum += part;
            all.accumulate(model, gradients.to_device(&device, model));
        }
        Ok((sum, all.grads()))
    }
}

/// Gradients by a number.
fn divided<M: Module>(mut gradients: GradientsParams, module: &M, by: f64) -> GradientsParams {
    struct Divide<'a>(&'a mut GradientsParams, f64);
    impl ModuleVisitor for Divide<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.0.remove::<D>(param.id) {
                self.0.register(param.id, gradient.div_scalar(self.1));
            }
        }
    }
    if by != 1.0 {
        module.visit(&mut Divide(&mut gradients, by));
    }
    gradients
}

/// Gives the replicas the trained parameters as they are now; the others have not changed.
fn follow(replicas: &mut Vec<Model>, model: &Model) {
    *replicas = std::mem::take(replicas)
        .into_iter()
        .map(|replica| with_trained(replica, model))
        .collect();
}

/// A module with the parameters that `trained` trains, on its own device; the others are its own.
pub(crate) fn with_trained<M: Module>(module: M, trained: &M) -> M {
    struct Trained(HashMap<ParamId, Box<dyn Any>>);
    impl ModuleVisitor for Trained {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let value: Tensor<D> = param.val().inner();
                self.0.insert(param.id, Box::new(value));
            }
        }
    }
    struct Renew<'a>(&'a Trained);
    impl ModuleMapper for Renew<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = self.0.0.get(&param.id);
            match value.and_then(|value| value.downcast_ref::<Tensor<D>>()) {
                Some(value) => {
                    let device = param.val().device().inner();
                    let value = Tensor::from_inner(value.clone().to_device(&device));
                    Param::initialized(param.id, value.require_grad())
                }
                None => param,
            }
        }
    }
    let mut values = Trained(HashMap::new());
    trained.visit(&mut values);
    module.map(&mut Renew(&values))
}

/// What a thread that gave up said.
fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it stopped without a message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;

    fn split(micro_batch: usize, n_more: usize) -> BatchSplit {
        BatchSplit {
            micro_batch: NonZeroUsize::new(micro_batch),
            more_devices: vec![test_device(); n_more],
        }
    }

    #[test]
    fn every_image_is_in_one_piece() {
        assert_eq!(split(0, 0).pieces(5), [vec![0..5]]);
        assert_eq!(split(2, 0).pieces(5), [vec![0..2, 2..4, 4..5]]);
        assert_eq!(split(8, 0).pieces(5), [vec![0..5]]);
        assert_eq!(split(0, 1).pieces(5), [vec![0..3], vec![3..5]]);
        assert_eq!(split(2, 1).pieces(5), [vec![0..2, 2..3], vec![3..5]]);
        assert_eq!(
            split(0, 2).pieces(2),
            [vec![0..1], vec![1..2], Vec::new()],
            "a device without a share"
        );
    }
}
