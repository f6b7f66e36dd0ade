//! What a head has learned and keeps from task to task.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::Module;

use super::stored::FloatsStored;
use super::{RestingColumns, TrainedHead};
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

/// Starts the name of an array of [`HeadState::per_class`] in a file.
const PER_CLASS: &str = "per_class.";
/// Starts the name of an array of [`HeadState::shared`] in a file.
pub(crate) const SHARED: &str = "shared.";

impl HeadState {
    /// This state with the columns of `labels` alone, and those that rest meanwhile; see
    /// [`TrainedHead::of_task`].
    pub(crate) fn of_task(mut self, labels: &[usize]) -> (Self, Option<RestingColumns>) {
        let Some(trained) = self.trained.take() else {
            return (self, None);
        };
        let (trained, resting) = trained.of_task(labels);
        self.trained = Some(trained);
        (self, resting)
    }

    /// Undoes [`of_task`](Self::of_task).
    pub(crate) fn with_resting(mut self, resting: Option<&RestingColumns>) -> Self {
        self.trained = match (self.trained.take(), resting) {
            (Some(trained), Some(resting)) => Some(trained.with_resting(resting)),
            (trained, _) => trained,
        };
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

    /// Replaces an array of [`per_class`](Self::per_class) by one whose numbers keep 48 bits.
    pub(crate) fn set_wide_rows(&mut self, name: &str, shape: Vec<usize>, values: &[f64]) {
        let (near, rest) = pairs(values.iter().copied());
        self.set_rows(&rest_of(name), shape.clone(), rest);
        self.set_rows(name, shape, near);
    }

    /// An array of [`set_wide_rows`](Self::set_wide_rows), empty where there is none.
    pub(crate) fn wide_rows(&self, name: &str) -> Vec<f64> {
        wide(&self.per_class, name).collect()
    }

    /// Replaces an array of [`shared`](Self::shared) by one whose numbers keep 48 bits.
    pub(crate) fn set_wide_shared(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        values: impl Iterator<Item = f64>,
    ) {
        let (near, rest) = pairs(values);
        self.set_shared(&rest_of(name), shape.clone(), rest);
        self.set_shared(name, shape, near);
    }

    /// An array of [`set_wide_shared`](Self::set_wide_shared), empty where there is none.
    pub(crate) fn wide_shared(&self, name: &str) -> impl Iterator<Item = f64> + '_ {
        wide(&self.shared, name)
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

/// The name of the array with what is left of the numbers of another.
fn rest_of(name: &str) -> String {
    format!("{name}_rest")
}

/// Numbers as the nearest of 32 bits, and what is left of each.
fn pairs(values: impl Iterator<Item = f64>) -> (Vec<f32>, Vec<f32>) {
    let pair = |value: f64| {
        let near = value as f32;
        (near, (value - f64::from(near)) as f32)
    };
    values.map(pair).unzip()
}

/// The numbers of an array with what is left of them; files of earlier versions have no rest.
fn wide<'a>(arrays: &'a Arrays, name: &str) -> impl Iterator<Item = f64> + use<'a> {
    let values = |name: &str| arrays.get(name).map_or(&[][..], |array| &array.values[..]);
    let rest = values(&rest_of(name)).iter().chain(std::iter::repeat(&0.0));
    let near = values(name).iter();
    near.zip(rest)
        .map(|(&near, &rest)| f64::from(near) + f64::from(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_numbers_keep_what_32_bits_lose_and_read_what_has_no_rest() {
        let values = [1.0 / 3.0, -1e9 - 1.0 / 7.0, 2.5e-9, 0.0];
        let mut state = HeadState::default();
        state.set_wide_rows("sums", vec![2, 2], &values);
        state.set_wide_shared("gram", vec![4], values.into_iter());
        let mut back = HeadState::from_file(&state.to_file()).unwrap();
        let shared: Vec<f64> = back.wide_shared("gram").collect();
        assert_eq!(back.wide_rows("sums"), shared);
        for (found, value) in shared.iter().zip(values) {
            let error = (found - value).abs();
            assert!(error <= 2f64.powi(-47) * value.abs(), "{found}, {value}");
        }
        back.per_class.remove("sums_rest");
        let near: Vec<f64> = values.iter().map(|&v| f64::from(v as f32)).collect();
        assert_eq!(back.wide_rows("sums"), near);
        assert!(back.wide_rows("others").is_empty());
    }

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
