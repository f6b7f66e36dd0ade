//! Residual LoRAs, the bases they live in, and the similarity by which they count for an image.
//!
//! The query of an image is, for every task τ, the share of the energy of its inputs that lies in the bases of τ,
//! `s_τ(x) = mean over blocks of Σ_tokens ‖Ψ_τᵀ x‖² / Σ_tokens ‖x‖²`. With mean `m_τ`
//! and deviation `σ_τ` over the images of τ,
//!
//! ```text
//! ω_τ(x) = exp(−½ (sharpness · max(0, m_τ − s_τ(x)) / σ_τ)²)        z_c += calibration · log(ω_τ(c)(x) / Σ_τ ω_τ(x))
//! ```
//!
//! `ω_τ` depends on no other task, so a new task changes no weight of an old one. The branch of the running task counts
//! 1, whatever the image.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use sdlora_core::{Direction, GatedFactors, ScaledFactors, Updates};
use sdlora_vit::{Projection, Prompting, Vit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::model::Model;
use crate::second_pass::{SecondPass, SecondPassEntry, check_layout};
use crate::state::{MethodState, Role, room};

/// Everything about the branches but their numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BranchLayout {
    /// Projections with a branch in every block.
    pub projections: Vec<Projection>,
    /// Rank of a branch; 0 is none.
    pub rank: usize,
    /// Vectors that a task added to the bases of every block, `[n_tasks][depth]`.
    pub n_bases: Vec<Vec<usize>>,
    /// Tasks that are over, whose similarity is known.
    pub n_reviewed: usize,
    /// Task of every class of those, by label.
    pub class_tasks: Vec<usize>,
    /// Of the similarity.
    pub sharpness: f64,
    /// Of the logits.
    pub calibration: f64,
}

pub(super) const SECOND_PASS: SecondPassEntry = SecondPassEntry::of::<BranchLayout>("branches");

impl BranchLayout {
    fn n_tasks(&self) -> usize {
        self.n_bases.len()
    }

    fn depth(&self) -> usize {
        self.n_bases.first().map_or(0, Vec::len)
    }

    /// Vectors that the first `n_tasks` tasks added to a block.
    fn n_rows(&self, block_idx: usize, n_tasks: usize) -> usize {
        let tasks = self.n_bases.iter().take(n_tasks);
        tasks.map(|blocks| blocks[block_idx]).sum()
    }

    /// Block and name of every site, in the order of the matrices.
    fn sites(&self) -> impl Iterator<Item = (usize, String)> + '_ {
        let blocks = 0..if self.rank == 0 { 0 } else { self.depth() };
        blocks.flat_map(|block_idx| {
            let sites = self.projections.iter();
            sites.map(move |projection| (block_idx, projection.site(block_idx)))
        })
    }

    fn view(&self, state: &MethodState) -> Branches {
        let d_model = state.n_columns("bases.0");
        state.view(Branches::room(self, d_model, &Device::default()))
    }

    /// `[n_rows, n_tasks]`: sums the rows of the bases of a block by task, mean over the blocks that a task
    /// has some in.
    fn members(&self, block_idx: usize, device: &Device) -> Tensor<2> {
        let (n_tasks, n_rows) = (self.n_tasks(), self.n_rows(block_idx, self.n_tasks()));
        let mut values = Vec::with_capacity(n_rows * n_tasks);
        for (task, blocks) in self.n_bases.iter().enumerate() {
            let n_blocks = blocks.iter().filter(|&&n| n > 0).count();
            for _ in 0..blocks[block_idx] {
                let of_row = (0..n_tasks).map(|t| f32::from(u8::from(t == task)));
                values.extend(of_row.map(|v| v / n_blocks.max(1) as f32));
            }
        }
        Tensor::from_data(TensorData::new(values, [n_rows, n_tasks]), device)
    }
}

impl SecondPass for BranchLayout {
    fn kind(&self) -> &'static str {
        SECOND_PASS.kind()
    }

    fn layout(&self) -> Value {
        json!(self)
    }

    fn does(&self) -> &'static str {
        "weighs branches for every image"
    }

    fn check(&self, depth: usize) -> Result<(), String> {
        if self.n_bases.iter().any(|blocks| blocks.len() != depth)
            || self.n_reviewed > self.n_tasks()
        {
            return Err(format!(
                "its branches are of another number of blocks than {depth}, or of fewer tasks than are over"
            ));
        }
        if let Some(task) = self.class_tasks.iter().find(|&&t| t >= self.n_reviewed) {
            return Err(format!("a class of task {task} of {}", self.n_reviewed));
        }
        let seen = [Projection::Query, Projection::Key, Projection::Value];
        if self.projections.iter().any(|p| !seen.contains(p)) {
            return Err(
                "its branches are beside projections that do not see the normed tokens".into(),
            );
        }
        let n_rows = (0..depth).map(|block_idx| self.n_rows(block_idx, self.n_tasks()));
        let n_rows: Vec<usize> = n_rows.collect();
        let counts = [&n_rows[..], &[self.n_tasks()]].concat();
        check_layout(depth, &[], &counts, &[self.rank, self.class_tasks.len()])
    }

    fn room(&self, d_model: usize, device: &Device) -> MethodState {
        Branches::room(self, d_model, device).into_state()
    }

    /// The shares `[batch, n_tasks]`.
    fn query(
        &self,
        state: &MethodState,
        vit: &Vit,
        images: Tensor<4>,
        updates: &Updates,
    ) -> Tensor<2> {
        self.view(state).shares(vit, images, updates)
    }

    fn shifts(&self, state: &MethodState, query: &Tensor<2>) -> Option<Tensor<2>> {
        self.view(state).shifts(query)
    }

    fn prompting(&self, state: &MethodState, query: Tensor<2>) -> Prompting {
        let branches = self.view(state);
        let weights = branches.weights(query);
        branches.prompting(weights)
    }

    /// Of the first task there is nothing to weigh, so no query.
    fn training_prompting(
        &self,
        state: &MethodState,
        query: &dyn Fn() -> Tensor<2>,
    ) -> (Prompting, Option<Tensor<1>>) {
        let branches = self.view(state);
        let weights = match self.n_reviewed {
            0 => {
                let device = branches.bases[0].val().device();
                Tensor::ones([1, self.n_tasks()], &device)
            }
            _ => branches.weights(query()),
        };
        (branches.prompting(weights), None)
    }
}

/// Residual LoRAs with their bases.
#[derive(Module, Debug)]
pub(super) struct Branches {
    /// Orthonormal bases of all tasks of every block, one vector a row, task after task, frozen.
    bases: Vec<Param<Tensor<2>>>,
    /// Down-projections of earlier tasks side by side `[d_model, n_past · rank]`, by site; frozen.
    past_a: Vec<Param<Tensor<2>>>,
    /// Up-projections of earlier tasks `[n_past · rank, d_model]`.
    past_b: Vec<Param<Tensor<2>>>,
    /// Down-projection of the last task `[d_model, rank]`, by site.
    a: Vec<Param<Tensor<2>>>,
    /// Up-projection of the last task `[rank, d_model]`.
    b: Vec<Param<Tensor<2>>>,
    /// Mean and deviation of the shares of a task's own images `[2, n_reviewed]`; none before the first is over.
    similarity: Vec<Param<Tensor<2>>>,
    #[module(skip)]
    layout: BranchLayout,
}

/// Shares of the images of a task in its own bases, and its classes.
#[derive(Debug, Default)]
pub(super) struct Seen {
    shares: Vec<f64>,
    labels: Vec<usize>,
}

impl Seen {
    /// Adds a batch: shares `[batch, n_tasks]`, of which the last column counts.
    pub(super) fn add(&mut self, shares: Tensor<2>, labels: &[usize]) {
        let [_, n_tasks] = shares.dims();
        let values = shares.into_data();
        let own = values.iter::<f32>().skip(n_tasks - 1).step_by(n_tasks);
        self.shares.extend(own.map(f64::from));
        self.labels.extend_from_slice(labels);
    }

    /// Mean and deviation of the shares. A deviation is at least a hundredth of its mean, so that rounding decides
    /// nothing.
    fn similarity(&self) -> [f32; 2] {
        let n = self.shares.len().max(1) as f64;
        let mean = self.shares.iter().sum::<f64>() / n;
        let variance = self.shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        let least = (LEAST_DEVIATION * mean).max(f64::from(f32::MIN_POSITIVE));
        [mean as f32, variance.sqrt().max(least) as f32]
    }
}

const LEAST_DEVIATION: f64 = 0.01;

/// The shares `[batch, n_tasks]` of images in the bases of a state, by a backbone with all updates in its weights.
pub(super) fn shares(state: &MethodState, vit: &Vit, images: Tensor<4>) -> Tensor<2> {
    match state.second_pass() {
        Some(second_pass) => second_pass.query(state, vit, images, &Updates::default()),
        None => Tensor::zeros([images.dims()[0], 1], &images.device()),
    }
}

/// The branches of a state as updates for these images; none before the first task.
pub(super) fn updates(state: &MethodState, vit: &Vit, images: &Tensor<4>) -> Updates {
    let none = Updates::default();
    let Some(second_pass) = state.second_pass() else {
        return none;
    };
    let query = second_pass.query(state, vit, images.clone(), &none);
    let prompting = second_pass.prompting(state, query);
    prompting.with_branches(&none).unwrap_or_default()
}

fn frozen(values: Tensor<2>) -> Param<Tensor<2>> {
    Param::from_tensor(values.detach()).set_require_grad(false)
}

/// A trained parameter with other values; it keeps its id, and so its moments.
fn with_values(param: Param<Tensor<2>>, values: Tensor<2>) -> Param<Tensor<2>> {
    param.map(|_| values.detach().require_grad())
}

/// Rows `[n, width]` under those of a matrix.
fn with_rows(
    above: Option<&Param<Tensor<2>>>,
    rows: &[f64],
    width: usize,
    device: &Device,
) -> Param<Tensor<2>> {
    let n = rows.len() / width.max(1);
    if let (Some(above), 0) = (above, n) {
        return above.clone();
    }
    let rows: Vec<f32> = rows.iter().map(|&v| v as f32).collect();
    let rows = Tensor::from_data(TensorData::new(rows, [n, width]), device);
    frozen(match above {
        None => rows,
        Some(above) => Tensor::cat(vec![above.val().detach(), rows], 0),
    })
}

impl Branches {
    /// None yet.
    pub(super) fn none(layout: BranchLayout) -> Self {
        Self {
            bases: Vec::new(),
            past_a: Vec::new(),
            past_b: Vec::new(),
            a: Vec::new(),
            b: Vec::new(),
            similarity: Vec::new(),
            layout,
        }
    }

    fn room(layout: &BranchLayout, d_model: usize, device: &Device) -> Self {
        let (rank, n_sites) = (layout.rank, layout.sites().count());
        let n_past = layout.n_tasks().saturating_sub(1);
        let rooms = |n: usize, shape: [usize; 2]| (0..n).map(|_| room(shape, device)).collect();
        let n_past_sites = if n_past > 0 { n_sites } else { 0 };
        let n_reviewed = layout.n_reviewed;
        Self {
            bases: (0..layout.depth())
                .map(|block_idx| {
                    room(
                        [layout.n_rows(block_idx, layout.n_tasks()), d_model],
                        device,
                    )
                })
                .collect(),
            past_a: rooms(n_past_sites, [d_model, n_past * rank]),
            past_b: rooms(n_past_sites, [n_past * rank, d_model]),
            a: rooms(n_sites, [d_model, rank]),
            b: rooms(n_sites, [rank, d_model]),
            similarity: rooms(usize::from(n_reviewed > 0), [2, n_reviewed]),
            layout: layout.clone(),
        }
    }

    /// The branches in a state; `None` before the first task.
    pub(super) fn of(state: &MethodState) -> Option<Self> {
        let layout: &BranchLayout = state.layout()?;
        Some(layout.view(state))
    }

    /// The state that keeps them.
    pub(super) fn into_state(self) -> MethodState {
        let layout = self.layout.clone();
        let role = |name: &str| match name.split('.').next() {
            Some("bases" | "similarity") => Role::Shared,
            _ => Role::Parameter,
        };
        MethodState::of(&self, role).with_second_pass(Arc::new(layout))
    }

    /// The bases of a block, row-major.
    pub(super) fn basis_host(&self, block_idx: usize) -> Vec<f64> {
        let basis = self.bases.get(block_idx);
        basis.map_or(Vec::new(), |basis| {
            let values = basis.val().into_data();
            values.iter::<f32>().map(f64::from).collect()
        })
    }

    /// With a branch for one more task, whose inputs add these rows to the bases of every block; the earlier branches
    /// are frozen. The new branch adds nothing before it is trained.
    pub(super) fn grown(
        mut self,
        more: &[Vec<f64>],
        d_model: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        if !self.a.is_empty() {
            let joined = |past: &[Param<Tensor<2>>], last: &[Param<Tensor<2>>], dim: usize| {
                let of_site = last.iter().enumerate().map(|(i, last)| {
                    let all = past.get(i).into_iter().chain([last]);
                    frozen(Tensor::cat(all.map(Param::val).collect(), dim))
                });
                of_site.collect::<Vec<_>>()
            };
            self.past_a = joined(&self.past_a, &self.a, 1);
            self.past_b = joined(&self.past_b, &self.b, 0);
        }
        self.layout.n_bases.push(vec![0; more.len()]);
        let mut grown = self.extended(more, d_model, device);
        let rank = grown.layout.rank;
        let n_sites = grown.layout.sites().count();
        let drawn = (0..n_sites).map(|_| Direction::init(d_model, d_model, rank, rng, device));
        (grown.a, grown.b) = drawn.map(|direction| (direction.a, direction.b)).unzip();
        grown
    }

    /// With more rows in the bases of the last task.
    pub(super) fn extended(mut self, more: &[Vec<f64>], d_model: usize, device: &Device) -> Self {
        let rows = more.iter().enumerate();
        self.bases = rows
            .map(|(i, rows)| with_rows(self.bases.get(i), rows, d_model, device))
            .collect();
        if let Some(last) = self.layout.n_bases.last_mut() {
            for (n, rows) in last.iter_mut().zip(more) {
                *n += rows.len() / d_model.max(1);
            }
        }
        self
    }

    /// A model with these branches, the down-projections of the running task where they belong: of the orthogonal LoRA
    /// outside the bases of earlier tasks, of the residual one inside those of its own.
    pub(super) fn projected(mut self, mut model: Model) -> Model {
        let n_past = self.layout.n_tasks().saturating_sub(1);
        // `Ψᵀ Ψ A` for the rows Ψ of some tasks.
        let inside = |block_idx: usize, first: usize, n: usize, a: Tensor<2>| {
            let rows = self.bases[block_idx].val().detach().narrow(0, first, n);
            rows.clone().transpose().matmul(rows.matmul(a))
        };
        let counts = |block_idx: usize| {
            let n_old = self.layout.n_rows(block_idx, n_past);
            let n_all = self.layout.n_rows(block_idx, n_past + 1);
            (n_old, n_all - n_old)
        };
        for bank in &mut model.adapter.sites {
            let (n_old, _) = counts(bank.site().group);
            if let Some(mut current) = bank.current.take() {
                if n_old > 0 {
                    let a = current.a.val().detach();
                    let off = a.clone() - inside(bank.site().group, 0, n_old, a);
                    current.a = with_values(current.a, off);
                }
                bank.current = Some(current);
            }
        }
        let sites: Vec<_> = self.layout.sites().collect();
        let a = self.a.iter().zip(&sites).map(|(param, (block_idx, _))| {
            let (n_old, n_own) = counts(*block_idx);
            let a = param.val().detach();
            let own = match n_own {
                0 => a.zeros_like(),
                _ => inside(*block_idx, n_old, n_own, a),
            };
            with_values(param.clone(), own)
        });
        self.a = a.collect();
        model.state = self.into_state();
        model
    }

    /// With the similarity and the classes of the last task. A class that comes again belongs to it from now on.
    pub(super) fn reviewed(mut self, seen: &Seen, device: &Device) -> Self {
        let task = self.layout.n_tasks() - 1;
        let [mean, deviation] = seen.similarity();
        let column = Tensor::<2>::from_data([[mean], [deviation]], device);
        let known = self.similarity.pop();
        self.similarity = vec![frozen(match known {
            None => column,
            Some(known) => Tensor::cat(vec![known.val().detach(), column], 1),
        })];
        self.layout.n_reviewed = task + 1;
        let tasks = &mut self.layout.class_tasks;
        let labels = seen.labels.iter();
        let n_classes = labels.fold(tasks.len(), |n, &label| n.max(label + 1));
        tasks.resize(n_classes, task);
        for &label in &seen.labels {
            tasks[label] = task;
        }
        self
    }

    fn shares(&self, vit: &Vit, images: Tensor<4>, updates: &Updates) -> Tensor<2> {
        let mut sum: Option<Tensor<2>> = None;
        vit.attention_inputs(images, updates, |block_idx, inputs| {
            let [batch, n_tokens, d_model] = inputs.dims();
            let basis = self.bases[block_idx].val().detach();
            let n_rows = basis.dims()[0];
            let rows: Tensor<2> = inputs.detach().reshape([batch * n_tokens, d_model]);
            let along = rows.clone().matmul(basis.transpose()).square();
            let along = along.reshape([batch, n_tokens, n_rows]).sum_dim(1);
            let all = rows
                .square()
                .sum_dim(1)
                .reshape([batch, n_tokens])
                .sum_dim(1);
            let shares = along.reshape([batch, n_rows]) / all.add_scalar(EPS);
            let members = self.layout.members(block_idx, &shares.device());
            let of_block = shares.matmul(members);
            sum = Some(match sum.take() {
                None => of_block,
                Some(sum) => sum + of_block,
            });
        });
        sum.expect("a backbone has a block")
    }

    /// `log ω`, `[batch, n_reviewed]`; `None` before the first task is over.
    fn log_weights(&self, shares: &Tensor<2>) -> Option<Tensor<2>> {
        let similarity = self.similarity.first()?.val().detach();
        let n = self.layout.n_reviewed;
        let (mean, deviation) = (
            similarity.clone().narrow(0, 0, 1),
            similarity.narrow(0, 1, 1),
        );
        let lacks = (mean - shares.clone().narrow(1, 0, n)).clamp_min(0.0) / deviation;
        let scaled = lacks.mul_scalar(self.layout.sharpness);
        Some(scaled.square().mul_scalar(-0.5))
    }

    /// What every branch counts, `[batch, n_tasks]`; 1 for a task that is not over.
    fn weights(&self, shares: Tensor<2>) -> Tensor<2> {
        let ([batch, n_tasks], device) = (shares.dims(), shares.device());
        let Some(known) = self.log_weights(&shares) else {
            return Tensor::ones([batch, n_tasks], &device);
        };
        let n_running = n_tasks - self.layout.n_reviewed;
        match n_running {
            0 => known.exp(),
            _ => Tensor::cat(
                vec![known.exp(), Tensor::ones([batch, n_running], &device)],
                1,
            ),
        }
    }

    /// What the inferred task adds to the logits of the classes.
    fn shifts(&self, shares: &Tensor<2>) -> Option<Tensor<2>> {
        if self.layout.calibration == 0.0 || self.layout.class_tasks.is_empty() {
            return None;
        }
        let confidence = log_softmax(self.log_weights(shares)?, 1);
        let tasks: Vec<i32> = self.layout.class_tasks.iter().map(|&t| t as i32).collect();
        let n_classes = tasks.len();
        let device = confidence.device();
        let tasks = Tensor::<1, Int>::from_data(TensorData::new(tasks, [n_classes]), &device);
        let shifts = confidence.select(1, tasks);
        Some(shifts.mul_scalar(self.layout.calibration))
    }

    /// All branches at these weights `[batch, n_tasks]`; a batch of 1 serves every image.
    fn prompting(&self, weights: Tensor<2>) -> Prompting {
        let [batch, n_tasks] = weights.dims();
        let rank = self.layout.rank;
        let mut prompting = Prompting::default();
        if rank == 0 {
            return prompting;
        }
        let gate = weights.reshape([batch, n_tasks, 1]).repeat_dim(2, rank);
        let gate: Tensor<2> = gate.reshape([batch, n_tasks * rank]);
        let all = |past: Option<&Param<Tensor<2>>>, last: &Param<Tensor<2>>, dim: usize| {
            let parts = past.into_iter().chain([last]).map(Param::val);
            Tensor::cat(parts.collect(), dim)
        };
        for (i, (_, site)) in self.layout.sites().enumerate() {
            let branch = GatedFactors {
                factors: ScaledFactors {
                    a: all(self.past_a.get(i), &self.a[i], 1),
                    b: all(self.past_b.get(i), &self.b[i], 0),
                },
                gate: gate.clone(),
            };
            prompting = prompting.with_branch(site, branch);
        }
        prompting
    }
}

/// Keeps the energy of an input of zeros away from 0.
const EPS: f64 = 1e-12;
