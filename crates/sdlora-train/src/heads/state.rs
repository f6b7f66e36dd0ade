//! What a head has learned and keeps from task to task.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Head, TrainedHead};
use crate::export::{HostTensor, TensorFile};

/// Arrays on the host by name; shared, because statistics can be large and models are cloned.
pub type Arrays = BTreeMap<String, Arc<HostTensor>>;

/// The columns that steps train, and the arrays that are computed from features.
#[derive(Module, Debug, Default)]
pub struct HeadState {
    /// The classifier that steps train; absent before the first task and where no step is made.
    pub trained: Option<TrainedHead>,
    /// Arrays with one entry per class along their first axis.
    #[module(skip)]
    pub per_class: Arrays,
    /// Arrays whose size does not depend on the number of classes.
    #[module(skip)]
    pub shared: Arrays,
}

/// Numbers that are kept of classes and tasks whose images are gone, each a 32-bit float.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatsStored {
    /// For every class.
    pub per_class: usize,
    /// Once.
    pub shared: usize,
    /// For all classes seen.
    pub total: usize,
}

/// Starts the name of an array of [`HeadState::per_class`] in a file.
const PER_CLASS: &str = "per_class.";
/// Starts the name of an array of [`HeadState::shared`] in a file.
const SHARED: &str = "shared.";

impl HeadState {
    /// This state with columns for `n_new` more classes, all trainable; as it is where none is new.
    pub fn grown(
        mut self,
        head: &dyn Head,
        d_model: usize,
        n_new: usize,
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Self {
        if n_new == 0 {
            return self;
        }
        let new = head.columns(d_model, n_new, rng, device);
        self.trained = Some(match self.trained.take() {
            Some(old) => old.grown(new),
            None => new,
        });
        self
    }

    /// An array of [`per_class`](Self::per_class): its values, row by row, empty where there is none.
    pub(crate) fn rows(&self, name: &str) -> Vec<f32> {
        let found = self.per_class.get(name);
        found.map_or_else(Vec::new, |array| array.values.clone())
    }

    /// Replaces an array of [`per_class`](Self::per_class).
    pub(crate) fn set_rows(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>) {
        let array = HostTensor { shape, values };
        self.per_class.insert(name.into(), Arc::new(array));
    }

    /// Replaces an array of [`shared`](Self::shared).
    pub(crate) fn set_shared(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>) {
        let array = HostTensor { shape, values };
        self.shared.insert(name.into(), Arc::new(array));
    }

    /// Everything that is kept, trained columns of old classes with it.
    pub fn floats_stored(&self) -> FloatsStored {
        let numbers = |array: &Arc<HostTensor>| array.values.len();
        let (mut per_class, mut shared) = (0, self.shared.values().map(numbers).sum());
        if let Some(trained) = &self.trained {
            let [d_model, _] = trained.weight.lazy_shape().dims();
            per_class += d_model + usize::from(trained.bias.is_some());
            shared += usize::from(trained.scale.is_some());
        }
        let mut n_classes = self.trained.as_ref().map_or(0, TrainedHead::n_classes);
        for array in self.per_class.values() {
            let n = array.shape.first().copied().unwrap_or(0);
            n_classes = n_classes.max(n);
            per_class += numbers(array) / n.max(1);
        }
        FloatsStored {
            per_class,
            shared,
            total: per_class * n_classes + shared,
        }
    }

    /// The arrays as a file; trained columns go with the parameters of the model.
    pub(crate) fn to_file(&self) -> TensorFile {
        let mut file = TensorFile::default();
        for (prefix, arrays) in [(PER_CLASS, &self.per_class), (SHARED, &self.shared)] {
            for (name, array) in arrays {
                let HostTensor { shape, values } = array.as_ref().clone();
                file.insert(format!("{prefix}{name}"), shape, values);
            }
        }
        file
    }

    /// Undoes [`to_file`](Self::to_file); the error is the name of a tensor of another kind.
    pub(crate) fn from_file(file: &TensorFile) -> Result<Self, String> {
        let mut state = Self::default();
        for (name, tensor) in &file.tensors {
            let array = Arc::new(tensor.clone());
            match (name.strip_prefix(PER_CLASS), name.strip_prefix(SHARED)) {
                (Some(name), _) => state.per_class.insert(name.into(), array),
                (None, Some(name)) => state.shared.insert(name.into(), array),
                (None, None) => return Err(name.clone()),
            };
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_counted_by_the_class_and_once() {
        let mut state = HeadState::default();
        assert_eq!(state.floats_stored(), FloatsStored::default());
        state.set_rows("sums", vec![3, 2, 5], vec![0.0; 30]);
        state.set_rows("weight", vec![3, 5], vec![0.0; 15]);
        state.set_shared("gram", vec![5, 5], vec![0.0; 25]);
        let expected = FloatsStored {
            per_class: 15,
            shared: 25,
            total: 70,
        };
        assert_eq!(state.floats_stored(), expected);
        let back = HeadState::from_file(&state.to_file()).unwrap();
        assert_eq!(
            (back.per_class, back.shared),
            (state.per_class, state.shared)
        );
        let mut other = TensorFile::default();
        other.insert("weight", vec![1], vec![0.0]);
        assert_eq!(HeadState::from_file(&other).unwrap_err(), "weight");
    }
}
