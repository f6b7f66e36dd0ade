//! Magnitudes: the learned scalars α that weigh the directions.
//!
//! One scalar per task, shared by every site of a group; a group is the whole model or one block
//! ([`MagnitudeSharing`]). All α_1..α_t stay trainable in task t.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use crate::config::MagnitudeSharing;

/// The magnitudes of all tasks so far, the running one last.
#[derive(Module, Debug)]
pub struct Magnitudes {
    /// Of the finished tasks `[n_groups, n_past]`; absent in the first task.
    pub past: Option<Param<Tensor<2>>>,
    /// Of the running task `[n_groups, 1]`.
    pub current: Param<Tensor<2>>,
}

impl Magnitudes {
    /// Magnitudes with the given rows, one row per group, one column per task.
    ///
    /// # Panics
    ///
    /// If there is no group, no task, or the rows differ in length.
    pub fn from_rows(rows: &[Vec<f64>], device: &Device) -> Self {
        let n_tasks = rows.first().map_or(0, Vec::len);
        assert!(
            n_tasks > 0 && rows.iter().all(|row| row.len() == n_tasks),
            "magnitudes need at least one group and one task, and rows of equal length"
        );
        let param = |first: usize, last: usize| {
            let values: Vec<f32> = rows
                .iter()
                .flat_map(|row| row[first..last].iter().map(|&v| v as f32))
                .collect();
            let data = TensorData::new(values, [rows.len(), last - first]);
            Param::from_tensor(Tensor::from_data(data, device))
        };
        Self {
            past: (n_tasks > 1).then(|| param(0, n_tasks - 1)),
            current: param(n_tasks - 1, n_tasks),
        }
    }

    /// Number of magnitudes of a group, the running one included.
    pub fn n_tasks(&self) -> usize {
        let past = self.past.as_ref();
        1 + past.map_or(0, |past| past.lazy_shape().dims::<2>()[1])
    }

    /// The values, one row per group, one column per task.
    pub fn to_rows(&self) -> Vec<Vec<f64>> {
        let read = |tensor: Tensor<2>| -> Vec<Vec<f64>> {
            let [_, width] = tensor.dims();
            let values: Vec<f64> = tensor.into_data().iter::<f32>().map(f64::from).collect();
            values.chunks_exact(width).map(<[f64]>::to_vec).collect()
        };
        let current = read(self.current.val());
        match &self.past {
            None => current,
            Some(past) => {
                let mut rows = read(past.val());
                for (row, last) in rows.iter_mut().zip(current) {
                    row.extend(last);
                }
                rows
            }
        }
    }

    /// Magnitudes of the finished tasks in the given group, `[1, n_past]`.
    pub fn past_of(&self, group: usize) -> Option<Tensor<2>> {
        self.past.as_ref().map(|past| row(past.val(), group))
    }

    /// Magnitude of the running task in the given group, `[1, 1]`.
    pub fn current_of(&self, group: usize) -> Tensor<2> {
        row(self.current.val(), group)
    }

    /// Stops or resumes the training of the finished tasks' magnitudes.
    pub fn with_past_trainable(mut self, trainable: bool) -> Self {
        self.past = self.past.map(|past| past.set_require_grad(trainable));
        self
    }

    /// Stops or resumes the training of the running task's magnitude.
    pub fn with_current_trainable(mut self, trainable: bool) -> Self {
        self.current = self.current.set_require_grad(trainable);
        self
    }
}

/// The row of the magnitudes of a group of sites.
pub fn group_of(sharing: MagnitudeSharing, group: usize) -> usize {
    match sharing {
        MagnitudeSharing::Shared => 0,
        MagnitudeSharing::PerGroup => group,
    }
}

fn row(values: Tensor<2>, group: usize) -> Tensor<2> {
    let [n_groups, width] = values.dims();
    if n_groups == 1 {
        // No slice: its backward would allocate for nothing.
        return values;
    }
    values.slice([group..group + 1, 0..width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;

    #[test]
    fn rows_round_trip_with_and_without_a_past() {
        for rows in [
            vec![vec![0.5]],
            vec![vec![0.5, -1.0, 2.0], vec![1.5, 0.25, 0.0]],
        ] {
            let magnitudes = Magnitudes::from_rows(&rows, &test_device());
            assert_eq!(magnitudes.to_rows(), rows);
        }
    }

    #[test]
    fn a_group_reads_its_own_row() {
        let rows = vec![vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]];
        let magnitudes = Magnitudes::from_rows(&rows, &test_device());
        let past: Vec<f32> = magnitudes.past_of(1).unwrap().into_data().iter().collect();
        assert_eq!(past, [4.0, 5.0]);
        let current: f32 = magnitudes.current_of(1).into_scalar();
        assert_eq!(current, 6.0);
    }
}
