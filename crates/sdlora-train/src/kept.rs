//! What a run keeps of images so that it can be measured and calibrated once they are gone: their features.
//!
//! Only a method that never changes features can use them later. They are of test images and of held-out ones, which
//! no step and no head sees.

use std::path::Path;

use crate::error::TrainError;
use crate::export::TensorFile;
use crate::features::FeatureTable;

/// Name of the file in the folder of a run.
const FILE: &str = "kept.safetensors";

/// Features of images of every task.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Of test images, one table for every task.
    pub(crate) tests: Vec<FeatureTable>,
    /// Of the images that are held out to calibrate, one table for every task.
    pub(crate) calibration: Vec<FeatureTable>,
}

const TESTS: &str = "test";
const CALIBRATION: &str = "calibration";

impl Kept {
    /// Writes them into the folder of a run.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn write(&self, folder: &Path) -> Result<(), TrainError> {
        let mut file = TensorFile::default();
        for (name, tables) in [(TESTS, &self.tests), (CALIBRATION, &self.calibration)] {
            for (task, table) in tables.iter().enumerate() {
                let labels = table.labels.iter().map(|&label| label as f32).collect();
                file.insert(format!("{name}.{task}.labels"), vec![table.len()], labels);
                let shape = vec![table.len(), table.d_model];
                file.insert(
                    format!("{name}.{task}.features"),
                    shape,
                    table.features.clone(),
                );
            }
        }
        file.write(&folder.join(FILE))
    }

    /// Reads those in the folder of a run; `None` where it kept none.
    ///
    /// # Errors
    ///
    /// [`TrainError::Damaged`] for a file that is no such thing, [`TrainError::Io`] for one that cannot be read.
    pub(crate) fn read(
        folder: &Path,
        n_tasks: usize,
        d_model: usize,
    ) -> Result<Option<Self>, TrainError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let damaged = |problem: String| TrainError::Damaged {
            path: path.clone(),
            problem,
        };
        let file = TensorFile::read(&path).map_err(|e| damaged(e.to_string()))?;
        let table = |name: &str, task: usize| -> Result<FeatureTable, TrainError> {
            let part = |what: &str| {
                let name = format!("{name}.{task}.{what}");
                let found = file.tensors.get(&name);
                found.ok_or_else(|| damaged(format!("it has no `{name}`")))
            };
            let (labels, features) = (part("labels")?, part("features")?);
            if features.shape != [labels.values.len(), d_model] {
                let shape = &features.shape;
                return Err(damaged(format!(
                    "features of shape {shape:?} in task {task}"
                )));
            }
            Ok(FeatureTable {
                features: features.values.clone(),
                d_model,
                labels: labels.values.iter().map(|&label| label as usize).collect(),
                ..FeatureTable::default()
            })
        };
        let tables = |name: &str| -> Result<Vec<FeatureTable>, TrainError> {
            (0..n_tasks).map(|task| table(name, task)).collect()
        };
        Ok(Some(Self {
            tests: tables(TESTS)?,
            calibration: tables(CALIBRATION)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_come_back_and_what_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Kept::read(folder.path(), 1, 2).unwrap().is_none());
        let table = FeatureTable {
            features: vec![1.0, -2.5, 0.25, 4.0],
            d_model: 2,
            labels: vec![7, 0],
            ..FeatureTable::default()
        };
        let empty = FeatureTable {
            d_model: 2,
            ..FeatureTable::default()
        };
        let kept = Kept {
            tests: vec![table.clone(), empty.clone()],
            calibration: vec![empty, table],
        };
        kept.write(folder.path()).unwrap();
        let back = Kept::read(folder.path(), 2, 2).unwrap().unwrap();
        for (a, b) in [
            (&kept.tests, &back.tests),
            (&kept.calibration, &back.calibration),
        ] {
            for (a, b) in a.iter().zip(b) {
                assert_eq!((&a.features, &a.labels), (&b.features, &b.labels));
            }
        }
        for (n_tasks, d_model) in [(3, 2), (2, 4)] {
            let error = Kept::read(folder.path(), n_tasks, d_model).unwrap_err();
            assert!(matches!(error, TrainError::Damaged { .. }), "{error}");
        }
    }
}
