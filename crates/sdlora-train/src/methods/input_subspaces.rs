//! Which directions of the inputs of a layer old tasks used, and so no later task may touch.
//!
//! The gradient of a linear map lies in the span of its inputs. For every block this memory keeps a
//! subspace `M` that holds a share of at least ε of the energy of the inputs of every task so far;
//! an update `A B` with `Mᵀ A = 0` leaves the outputs on that share as they were (Liang and Li 2024,
//! "InfLoRA", section 3.3; Liang and Li 2023, "Adaptive Plasticity Improvement", DualGPM).
//!
//! `M` grows with the tasks. Up to half of the width its basis is kept, beyond that the basis of its
//! complement, which shrinks: never more than `d_model² / 2` numbers a block.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::Updates;
use sdlora_vit::Vit;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::TaskImages;
use crate::eigen::Eigen;
use crate::error::TrainError;
use crate::model::Model;
use crate::state::{MethodState, Role};

/// What is measured of the inputs `x` of a layer, whose covariance is `C = mean x xᵀ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Energy {
    /// The squares of the singular values of `C`, as the published code has it: large directions
    /// count for more, so the memory stays smaller. As there, the first task keeps one direction less than
    /// hold the share ε, but at least one.
    #[default]
    Covariance,
    /// The singular values of `C`, which are the squares of those of the inputs, as the paper has
    /// it: what is left out is a share of at most 1 − ε of the mean square of the inputs of every task.
    Inputs,
}

impl Energy {
    /// The matrix whose eigenvalues are the energies, from a covariance `[n, n]`.
    fn matrix(self, covariance: &[f64], n: usize) -> Vec<f64> {
        match self {
            Self::Covariance => product(covariance, covariance, n, n, n),
            Self::Inputs => covariance.to_vec(),
        }
    }

    /// How many directions the first task keeps where `n` are the fewest that hold the share.
    fn n_first(self, n: usize) -> usize {
        match self {
            Self::Covariance => n.saturating_sub(1).max(1),
            Self::Inputs => n,
        }
    }
}

/// Which of two complementary subspaces a basis spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Keeps {
    /// The directions in use.
    Used,
    /// The directions that are left.
    Free,
}

/// One subspace per block as a state keeps it, frozen.
#[derive(Module, Debug)]
struct Bases {
    /// Orthonormal bases `[n_vectors, d_model]`, one vector per row.
    bases: Vec<Param<Tensor<2>>>,
}

/// The fact that says what every basis spans.
const KEEPS: &str = "keeps";

/// Of every block the mean of `x xᵀ` over all tokens that its attention sees, `[d_model, d_model]`.
pub(super) fn covariances(vit: &Vit, images: &dyn TaskImages) -> Result<Vec<Vec<f64>>, TrainError> {
    covariances_with(vit, images, |_| Updates::default())
}

/// The same with updates that are found for every batch.
pub(super) fn covariances_with(
    vit: &Vit,
    images: &dyn TaskImages,
    updates: impl Fn(&Tensor<4>) -> Updates,
) -> Result<Vec<Vec<f64>>, TrainError> {
    let (depth, d_model) = (vit.config().depth, vit.config().d_model);
    let mut sums: Vec<Vec<f64>> = vec![vec![0.0; d_model * d_model]; depth];
    let mut n_rows = 0usize;
    images.each_batch(&mut |images, _labels| {
        let updates = updates(&images);
        vit.attention_inputs(images, &updates, |block_idx, inputs| {
            let [batch, n_tokens, d_model] = inputs.dims();
            let rows = inputs.reshape([batch * n_tokens, d_model]);
            let products: Tensor<2> = rows.clone().transpose().matmul(rows);
            // Sums over batches in double precision: a task may have a million tokens.
            for (sum, v) in sums[block_idx]
                .iter_mut()
                .zip(products.into_data().iter::<f32>())
            {
                *sum += f64::from(v);
            }
            if block_idx == 0 {
                n_rows += batch * n_tokens;
            }
        });
    })?;
    let scale = 1.0 / n_rows.max(1) as f64;
    sums.iter_mut().flatten().for_each(|v| *v *= scale);
    Ok(sums)
}

/// The input subspaces of a model, or empty ones.
pub(super) fn spaces(model: &Model) -> Result<Vec<Space>, TrainError> {
    let vit = model.backbone.config();
    match model.state.is_empty() {
        true => Ok(vec![Space::new(vit.d_model); vit.depth]),
        false => of_state(&model.state, [vit.depth, vit.d_model]),
    }
}

/// The state that keeps the subspaces of all blocks.
pub(super) fn into_state(spaces: &[Space], device: &Device) -> MethodState {
    let bases = spaces.iter().map(|space| {
        let shape = [space.n_vectors(), space.width];
        let values: Vec<f32> = space.basis.iter().map(|&v| v as f32).collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
            .set_require_grad(false)
    });
    let bases = Bases {
        bases: bases.collect(),
    };
    let keeps: Vec<Keeps> = spaces.iter().map(|space| space.keeps).collect();
    MethodState::of(&bases, |_| Role::Shared).with_fact(KEEPS, json!(keeps))
}

/// The subspaces of a state, one for each of `depth` blocks of width `d_model`.
///
/// # Errors
///
/// [`TrainError::Setting`] for a state that another method keeps, or of another backbone.
pub(super) fn of_state(
    state: &MethodState,
    [depth, d_model]: [usize; 2],
) -> Result<Vec<Space>, TrainError> {
    let keeps = state.fact(KEEPS).cloned().unwrap_or_else(|| json!([]));
    let keeps: Vec<Keeps> = serde_json::from_value(keeps).map_err(|e| {
        TrainError::setting("state", KEEPS, format!("bases or what they span: {e}"))
    })?;
    let bases = state.names().filter_map(|name| state.get(name));
    let spaces = bases.zip(keeps).map(|(basis, keeps)| {
        let [_, width] = basis.lazy_shape().dims();
        let values = basis.val().into_data();
        Space {
            keeps,
            basis: values.iter::<f32>().map(f64::from).collect(),
            width,
        }
    });
    let spaces: Vec<Space> = spaces.collect();
    match spaces.len() == depth && spaces.iter().all(|space| space.width == d_model) {
        true => Ok(spaces),
        false => Err(TrainError::setting(
            "state",
            format!("{} subspaces", spaces.len()),
            format!("one of width {d_model} for each of {depth} blocks"),
        )),
    }
}

/// The basis of the subspace of a block in a state, and what it spans; `None` where nothing is kept yet.
pub(super) fn basis_of(state: &MethodState, block_idx: usize) -> Option<(Keeps, Tensor<2>)> {
    let basis = state.get(&format!("bases.{block_idx}"))?;
    let keeps = state.fact(KEEPS)?.get(block_idx)?;
    let keeps = serde_json::from_value(keeps.clone()).ok()?;
    Some((keeps, basis.val()))
}

/// The subspace of one block, on the host.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Space {
    keeps: Keeps,
    /// `[n_vectors, width]`, orthonormal rows.
    basis: Vec<f64>,
    width: usize,
}

impl Space {
    /// No direction is in use.
    pub(super) fn new(width: usize) -> Self {
        Self {
            keeps: Keeps::Used,
            basis: Vec::new(),
            width,
        }
    }

    /// The directions in use are the orthonormal rows `[n, width]`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Numbers`] for rows that hold no numbers.
    pub(super) fn of_used(rows: Vec<f64>, width: usize) -> Result<Self, TrainError> {
        let used = Self {
            keeps: Keeps::Used,
            basis: rows,
            width,
        };
        used.smaller()
    }

    fn n_vectors(&self) -> usize {
        self.basis.len() / self.width.max(1)
    }

    /// Number of directions in use.
    #[cfg(test)]
    fn n_used(&self) -> usize {
        match self.keeps {
            Keeps::Used => self.n_vectors(),
            Keeps::Free => self.width - self.n_vectors(),
        }
    }

    /// At most `rank` orthonormal directions `[n, width]` that are free and have the most energy
    /// there, strongest first. Fewer, when fewer are left.
    ///
    /// # Errors
    ///
    /// [`TrainError::Numbers`] for a covariance that holds no numbers.
    pub(super) fn strongest_free(
        &self,
        covariance: &[f64],
        energy: Energy,
        rank: usize,
    ) -> Result<Vec<f64>, TrainError> {
        let mut rows = self.free_eigen(covariance, energy)?.vectors;
        rows.truncate(rank * self.width);
        Ok(rows)
    }

    /// The subspace that holds a share of at least `threshold` of the energy of a task too, by the
    /// fewest more directions; of a first task the number that [`Energy`] says.
    ///
    /// # Errors
    ///
    /// [`TrainError::Numbers`] for a covariance that holds no numbers.
    pub(super) fn extended(
        self,
        covariance: &[f64],
        energy: Energy,
        threshold: f64,
    ) -> Result<Self, TrainError> {
        let (more, rest) = self.split(covariance, energy, threshold)?;
        let extended = match self.keeps {
            Keeps::Free => Self {
                basis: rest,
                ..self
            },
            Keeps::Used => Self {
                basis: [self.basis, more].concat(),
                ..self
            },
        };
        extended.smaller()
    }

    /// The directions `[n, width]` by which [`extended`](Self::extended) extends the subspace, and those that are
    /// free then.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn split(
        &self,
        covariance: &[f64],
        energy: Energy,
        threshold: f64,
    ) -> Result<(Vec<f64>, Vec<f64>), TrainError> {
        let matrix = energy.matrix(covariance, self.width);
        let total: f64 = (0..self.width).map(|i| matrix[i * self.width + i]).sum();
        let eigen = self.free_eigen(covariance, energy)?;
        let mut missing: f64 = eigen.values.iter().sum();
        let mut n_more = 0;
        // The sum of the eigenvalues may miss the trace by a rounding, on either side.
        while n_more < eigen.values.len() && (total - missing).max(0.0) < threshold * total {
            missing -= eigen.values[n_more];
            n_more += 1;
        }
        if self.keeps == Keeps::Used && self.basis.is_empty() {
            n_more = energy.n_first(n_more).min(eigen.values.len());
        }
        let mut more = eigen.vectors;
        let rest = more.split_off(n_more * self.width);
        Ok((more, rest))
    }

    /// Energies and directions inside the free subspace, as many as it has dimensions.
    fn free_eigen(&self, covariance: &[f64], energy: Energy) -> Result<Eigen, TrainError> {
        let n = self.width;
        let matrix = energy.matrix(covariance, n);
        let free = self.free_basis()?;
        let Some(free) = free else {
            return Eigen::of(matrix, n);
        };
        // F G Fᵀ is small where little is free, and its eigenvectors cannot leave the subspace.
        let n_free = free.len() / n;
        let inside = product(
            &product(&free, &matrix, n_free, n, n),
            &transposed(&free, n),
            n_free,
            n,
            n_free,
        );
        let eigen = Eigen::of(inside, n_free)?;
        Ok(Eigen {
            vectors: product(&eigen.vectors, &free, n_free, n_free, n),
            values: eigen.values,
        })
    }

    /// A basis of the free subspace `[n_free, width]`; `None` when that is everything.
    fn free_basis(&self) -> Result<Option<Vec<f64>>, TrainError> {
        match self.keeps {
            Keeps::Free => Ok(Some(self.basis.clone())),
            Keeps::Used if self.basis.is_empty() => Ok(None),
            Keeps::Used => Ok(Some(complement(&self.basis, self.width)?)),
        }
    }

    /// The same subspace by the smaller of the two bases.
    fn smaller(self) -> Result<Self, TrainError> {
        if self.keeps == Keeps::Used && 2 * self.n_vectors() > self.width {
            return Ok(Self {
                keeps: Keeps::Free,
                basis: complement(&self.basis, self.width)?,
                width: self.width,
            });
        }
        Ok(self)
    }
}

/// Orthonormal rows that span what the orthonormal rows of `basis: [n, width]` do not.
fn complement(basis: &[f64], width: usize) -> Result<Vec<f64>, TrainError> {
    let n = basis.len() / width.max(1);
    // I − M Mᵀ has the eigenvalue 1 on the complement and 0 on M.
    let mut projector = product(&transposed(basis, width), basis, width, n, width);
    projector.iter_mut().for_each(|v| *v = -*v);
    (0..width).for_each(|i| projector[i * width + i] += 1.0);
    let mut rows = Eigen::of(projector, width)?.vectors;
    rows.truncate(width.saturating_sub(n) * width);
    Ok(rows)
}

/// `a [n, k] · b [k, m]`, row-major.
fn product(a: &[f64], b: &[f64], n: usize, k: usize, m: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * m];
    if k == 0 || m == 0 {
        return out;
    }
    for (out, a) in out.chunks_exact_mut(m).zip(a.chunks_exact(k)) {
        for (&x, b) in a.iter().zip(b.chunks_exact(m)) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += x * b);
        }
    }
    out
}

/// Rows `[n, width]` to `[width, n]`.
fn transposed(rows: &[f64], width: usize) -> Vec<f64> {
    let column = |j: usize| rows.iter().skip(j).step_by(width);
    (0..width).flat_map(column).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;
    use sdlora_testkit::toy::SplitMix64;

    /// A diagonal covariance.
    fn diagonal(values: &[f64]) -> Vec<f64> {
        let n = values.len();
        let mut matrix = vec![0.0; n * n];
        (0..n).for_each(|i| matrix[i * n + i] = values[i]);
        matrix
    }

    /// Squared lengths of the axes inside the used subspace.
    fn used(space: &Space) -> Vec<f64> {
        let inside = |i: usize| -> f64 {
            let rows = space.basis.chunks_exact(space.width);
            rows.map(|row| row[i] * row[i]).sum()
        };
        let lengths = (0..space.width).map(inside);
        match space.keeps {
            Keeps::Used => lengths.collect(),
            Keeps::Free => lengths.map(|v| 1.0 - v).collect(),
        }
    }

    fn assert_used(space: &Space, expected: &[f64]) {
        let found = used(space);
        let near = found
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near, "{found:?} instead of {expected:?}");
    }

    #[test]
    fn directions_are_added_by_their_energy_until_the_share_is_held() {
        // Energies 8, 1, 0.5, 0.5: 80 % need the first axis, 85 % the second too.
        let task = diagonal(&[1.0, 8.0, 0.5, 0.5]);
        let after = |threshold| {
            let space = Space::new(4);
            space.extended(&task, Energy::Inputs, threshold).unwrap()
        };
        assert_used(&after(0.0), &[0.0; 4]);
        assert_used(&after(0.79), &[0.0, 1.0, 0.0, 0.0]);
        assert_used(&after(0.85), &[1.0, 1.0, 0.0, 0.0]);
        assert_used(&after(1.0), &[1.0; 4]);
    }

    #[test]
    fn the_first_task_keeps_one_direction_less_by_the_energy_of_the_published_code() {
        // Squared 64, 1, 0.25 and 0.25 of 65.5: 97.7 %, 99.2 %, 99.6 %. The published code counts the sums
        // below the threshold.
        let task = diagonal(&[1.0, 8.0, 0.5, 0.5]);
        let energy = Energy::Covariance;
        for (threshold, expected) in [
            (0.0, [0.0, 1.0, 0.0, 0.0]),
            (0.97, [0.0, 1.0, 0.0, 0.0]),
            (0.98, [0.0, 1.0, 0.0, 0.0]),
            (0.995, [1.0, 1.0, 0.0, 0.0]),
        ] {
            let space = Space::new(4).extended(&task, energy, threshold).unwrap();
            assert_used(&space, &expected);
        }
        // A later task holds the share as a whole, also where the first kept less of it.
        let space = Space::new(4).extended(&task, energy, 0.98).unwrap();
        let space = space.extended(&task, energy, 0.98).unwrap();
        assert_used(&space, &[1.0, 1.0, 0.0, 0.0]);
        assert_eq!(
            Space::new(0).extended(&[], energy, 0.9).unwrap().n_used(),
            0
        );
    }

    #[test]
    fn a_second_task_adds_only_what_is_new_and_the_smaller_basis_is_kept() {
        let space = Space::new(4)
            .extended(&diagonal(&[0.0, 1.0, 0.0, 0.0]), Energy::Inputs, 0.99)
            .unwrap();
        assert_eq!((space.keeps, space.n_used()), (Keeps::Used, 1));
        // 90 % of this task are held already, the third axis brings it to 98 %.
        let second = diagonal(&[0.1, 4.5, 0.4, 0.0]);
        let same = space
            .clone()
            .extended(&second, Energy::Inputs, 0.9)
            .unwrap();
        assert_eq!(same.n_used(), 1);
        let space = space.extended(&second, Energy::Inputs, 0.97).unwrap();
        assert_used(&space, &[0.0, 1.0, 1.0, 0.0]);
        assert_eq!(space.keeps, Keeps::Used);
        // Beyond half of the width what is left is kept, and shrinks.
        let space = space
            .extended(&diagonal(&[1.0, 0.0, 0.0, 0.0]), Energy::Inputs, 0.97)
            .unwrap();
        assert_eq!((space.keeps, space.n_vectors()), (Keeps::Free, 1));
        assert_used(&space, &[1.0, 1.0, 1.0, 0.0]);
        let space = space
            .extended(&diagonal(&[0.0, 0.0, 0.0, 1.0]), Energy::Inputs, 0.97)
            .unwrap();
        assert_eq!(space.n_used(), 4);
        let free = space.strongest_free(&diagonal(&[1.0; 4]), Energy::Inputs, 2);
        assert!(free.unwrap().is_empty());
    }

    #[test]
    fn free_directions_are_orthogonal_to_what_is_used_and_strongest_first() {
        let width = 7;
        let mut noise = SplitMix64::new(3);
        let mut covariance = || {
            let x: Vec<f64> = noise
                .fill(width * 3, 1.0)
                .into_iter()
                .map(f64::from)
                .collect();
            product(&transposed(&x, width), &x, width, 3, width)
        };
        for energy in [Energy::Inputs, Energy::Covariance] {
            // One task is held by the used basis, two by the free one.
            for n_tasks in [1, 2] {
                let mut space = Space::new(width);
                for _ in 0..n_tasks {
                    space = space.extended(&covariance(), energy, 1.0 - 1e-9).unwrap();
                }
                // Of the first task the published code keeps one direction less.
                let n_used = match energy {
                    Energy::Inputs => 3 * n_tasks,
                    Energy::Covariance => 3 * n_tasks - 1,
                };
                assert_eq!(space.n_used(), n_used);
                let new = covariance();
                let free = space.strongest_free(&new, energy, 10).unwrap();
                assert_eq!(free.len() / width, width - n_used);
                let basis = match space.keeps {
                    Keeps::Used => space.basis.clone(),
                    Keeps::Free => complement(&space.basis, width).unwrap(),
                };
                let overlap = product(
                    &free,
                    &transposed(&basis, width),
                    free.len() / width,
                    width,
                    n_used,
                );
                assert!(overlap.iter().all(|v| v.abs() < 1e-12), "{overlap:?}");
                let matrix = energy.matrix(&new, width);
                let energies: Vec<f64> = free
                    .chunks_exact(width)
                    .map(|row| {
                        product(&product(row, &matrix, 1, width, width), row, 1, width, 1)[0]
                    })
                    .collect();
                assert!(
                    energies.windows(2).all(|w| w[0] >= w[1] - 1e-12),
                    "{energies:?}"
                );
            }
        }
    }

    /// The projector onto rows `[n, width]`.
    fn projector(rows: &[f64], width: usize) -> Vec<f64> {
        let n = rows.len() / width;
        product(&transposed(rows, width), rows, width, n, width)
    }

    #[test]
    fn designs_and_bases_agree_with_the_published_procedure_in_numpy() {
        let mut compared = sdlora_testkit::Compared::new("memories of gradient spaces");
        let files = sdlora_testkit::golden_json_with(&["width", "rank", "tasks"]);
        for (path, golden) in files {
            agrees_with_numpy(&golden);
            compared.add(path.display().to_string());
        }
    }

    fn agrees_with_numpy(golden: &serde_json::Value) {
        let numbers = |value: &serde_json::Value| -> Vec<f64> {
            let values = value.as_array().unwrap().iter();
            values.map(|v| v.as_f64().unwrap()).collect()
        };
        let count = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        let (width, rank) = (count(&golden["width"]), count(&golden["rank"]));
        let assert_near = |found: Vec<f64>, expected: Vec<f64>, what: &str| {
            let distances = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let largest = distances.fold(0.0f64, f64::max);
            assert!(largest < 1e-9, "{what}: {largest}");
        };
        let mut space = Space::new(width);
        for (t, task) in golden["tasks"].as_array().unwrap().iter().enumerate() {
            let covariance = numbers(&task["covariance"]);
            let energy = Energy::Covariance;
            let design = space.strongest_free(&covariance, energy, rank).unwrap();
            let what = format!("design of task {t}");
            assert_near(projector(&design, width), numbers(&task["design"]), &what);
            let threshold = task["threshold"].as_f64().unwrap();
            space = space.extended(&covariance, energy, threshold).unwrap();
            let keeps: Keeps = serde_json::from_value(task["keeps"].clone()).unwrap();
            let expected = (keeps, count(&task["n_vectors"]));
            assert_eq!((space.keeps, space.n_vectors()), expected, "task {t}");
            let what = format!("basis of task {t}");
            assert_near(
                projector(&space.basis, width),
                numbers(&task["projector"]),
                &what,
            );
        }
    }

    #[test]
    fn subspaces_come_back_from_a_state_that_says_what_it_stores() {
        let device = test_device();
        let used = Space::new(4)
            .extended(&diagonal(&[0.0, 1.0, 0.0, 0.0]), Energy::Inputs, 0.9)
            .unwrap();
        let free = Space::new(4)
            .extended(&diagonal(&[1.0; 4]), Energy::Inputs, 0.7)
            .unwrap();
        let spaces = [used, free];
        let state = into_state(&spaces, &device);
        assert_eq!(state.fact(KEEPS), Some(&json!(["used", "free"])));
        assert_eq!(state.names().collect::<Vec<_>>(), ["bases.0", "bases.1"]);
        assert_eq!(state.floats_stored().shared, 8);
        assert_eq!(of_state(&state, [2, 4]).unwrap(), spaces);
        for shape in [[3, 4], [2, 5]] {
            assert!(of_state(&state, shape).is_err(), "{shape:?}");
        }
        let other = MethodState::default().with_fact(KEEPS, json!("everything"));
        assert!(of_state(&other, [0, 4]).is_err());
    }
}
