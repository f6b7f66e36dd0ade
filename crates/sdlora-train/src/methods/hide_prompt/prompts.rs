//! A prefix for each task, found by which class an image looks like without it (HiDe-Prompt: Wang et
//! al., "Hierarchical Decomposition of Prompt-Based Continual Learning", NeurIPS 2023).
//!
//! The task of an image is that of its likeliest class, see `task_identity.rs`. While task t is trained its
//! images get its own prefix, and added to the loss is `contrast` times the mean over images `h` of
//! `−log [exp(1/τ) / (exp(1/τ) + Σ_c exp(cos(h, μ_c)/τ))]` over earlier classes `c`, `μ_c` the mean of
//! the features of c with its own prefix: the cross-entropy of an image as its own class. It drives new
//! features away from old classes, most from the nearest.
//!
//! Deviates: the published loss has the other images of a batch and the means among its classes too,
//! inner products for cosines, and the images of the first task; here an image's loss is its own,
//! however a batch is cut in pieces, and does not depend on the scale of features. Its paper writes the
//! mean over c of `log [exp(cos(h, μ_c)/τ) / …]`, which pulls a feature to its nearest class as soon as that
//! takes more than an equal share; its code does not.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};
use rand::Rng;
use sdlora_core::Updates;
use sdlora_vit::{Prompting, Vit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use std::sync::Arc;

use super::task_identity::{Review, TaskIdentity};
use crate::second_pass::rows::{all, drawn, frozen, unit};
use crate::second_pass::{
    PrefixStart, SecondPass, SecondPassEntry, check_layout, query, with_prefixes,
};
use crate::state::{MethodState, Role, room};

/// Everything about these prompts but their numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HierarchicalLayout {
    /// Blocks with a prefix, from 0.
    pub blocks: Vec<usize>,
    /// Keys of a prefix in a block, and as many values.
    pub length: usize,
    /// Weight of the contrast with earlier classes; 0 for none.
    pub contrast: f64,
    /// Temperature `τ` of the contrast.
    pub temperature: f64,
    /// Tasks so far, from 1.
    pub n_tasks: usize,
    /// Task of every class that was reviewed, by label.
    pub class_tasks: Vec<usize>,
    /// Images that the covariance comes from.
    pub n_images: usize,
}

impl HierarchicalLayout {
    /// The prompts in a state.
    fn view(&self, state: &MethodState) -> HierarchicalPrompts {
        let per_width = self.n_expert(1).max(1);
        let d_model = state.n_columns("expert") / per_width;
        state.view(HierarchicalPrompts::room(self, d_model, &Device::default()))
    }

    fn n_expert(&self, d_model: usize) -> usize {
        self.blocks.len() * 2 * self.length * d_model
    }
}

pub(super) const SECOND_PASS: SecondPassEntry =
    SecondPassEntry::of::<HierarchicalLayout>("hierarchical");

/// What a matrix of these prompts is counted as: prefixes are parameters, the classes are kept.
fn role(name: &str) -> Role {
    match name.strip_prefix("identity.") {
        None => Role::Parameter,
        Some("scatter") => Role::Shared,
        Some(_) => Role::PerClass,
    }
}

impl SecondPass for HierarchicalLayout {
    fn kind(&self) -> &'static str {
        SECOND_PASS.kind()
    }

    fn layout(&self) -> Value {
        json!(self)
    }

    fn check(&self, depth: usize) -> Result<(), String> {
        if let Some(task) = self.class_tasks.iter().find(|&&t| t >= self.n_tasks) {
            return Err(format!("a class of task {task} of {} tasks", self.n_tasks));
        }
        check_layout(depth, &self.blocks, &[self.n_tasks, self.length], &[])
    }

    fn room(&self, d_model: usize, device: &Device) -> MethodState {
        HierarchicalPrompts::room(self, d_model, device).into_state()
    }

    fn prompting(&self, state: &MethodState, query: Tensor<2>) -> Prompting {
        self.view(state).prompting(query)
    }

    /// The task is known, so there is no query.
    fn training_prompting(
        &self,
        state: &MethodState,
        _query: &dyn Fn() -> Tensor<2>,
    ) -> (Prompting, Option<Tensor<1>>) {
        (self.view(state).training_prompting(), None)
    }

    fn feature_loss(&self, state: &MethodState, features: Tensor<2>) -> Option<Tensor<1>> {
        self.view(state).contrast(features)
    }
}

/// Prefixes of tasks, and the classes by which they are found.
///
/// A prefix is a flat row of `n_blocks · 2 · length · d_model` numbers, keys before values.
#[derive(Module, Debug)]
pub struct HierarchicalPrompts {
    /// Prefixes of earlier tasks, one a row, frozen.
    pub past_experts: Option<Param<Tensor<2>>>,
    /// That of the last task, `[1, n_blocks · 2 · length · d_model]`.
    pub expert: Param<Tensor<2>>,
    /// Absent until the first task was reviewed.
    pub identity: Option<TaskIdentity>,
    #[module(skip)]
    layout: HierarchicalLayout,
}

impl HierarchicalPrompts {
    /// Prompts of the first task, from U(-spread, spread); of `layout` what counts tasks, classes and
    /// images is taken to be at its start.
    pub fn init(
        layout: &HierarchicalLayout,
        d_model: usize,
        spread: f32,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        Self {
            past_experts: None,
            expert: drawn([1, layout.n_expert(d_model)], spread, rng, device),
            identity: None,
            layout: HierarchicalLayout {
                n_tasks: 1,
                class_tasks: Vec::new(),
                n_images: 0,
                ..layout.clone()
            },
        }
    }

    fn room(layout: &HierarchicalLayout, d_model: usize, device: &Device) -> Self {
        let (n_past, n_classes) = (layout.n_tasks.saturating_sub(1), layout.class_tasks.len());
        let width = layout.n_expert(d_model);
        Self {
            past_experts: (n_past > 0).then(|| room([n_past, width], device)),
            expert: room([1, width], device),
            identity: (n_classes > 0).then(|| TaskIdentity::room(n_classes, d_model, device)),
            layout: layout.clone(),
        }
    }

    /// The state that keeps these prompts.
    pub(super) fn into_state(self) -> MethodState {
        let layout = self.layout.clone();
        MethodState::of(&self, role).with_second_pass(Arc::new(layout))
    }

    /// The prompts in a state; `None` before the first task.
    pub(super) fn of(state: &MethodState) -> Option<Self> {
        let layout: &HierarchicalLayout = state.layout()?;
        Some(layout.view(state))
    }

    /// With a prefix for one more task; the earlier ones are frozen.
    #[must_use]
    pub fn grown(
        mut self,
        start: PrefixStart,
        spread: f32,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let expert = start.next(&self.expert, spread, rng, device);
        self.past_experts = Some(frozen(self.past_experts.take(), self.expert));
        self.expert = expert;
        self.layout.n_tasks += 1;
        self
    }

    /// With the prefix of the last task moved towards the mean of the earlier ones by this share.
    #[must_use]
    pub fn blended(mut self, share: f64) -> Self {
        if let Some(past) = &self.past_experts {
            let mean = past.val().mean_dim(0);
            self.expert = self.expert.map(|expert| {
                let blended = expert.detach() * (1.0 - share) + mean * share;
                blended.detach().require_grad()
            });
        }
        self
    }

    /// Adds what a batch of the task that was just trained looks like; `vit` and `images` without
    /// autodiff.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the backbone.
    pub fn review(&self, vit: &Vit, images: Tensor<4>, labels: &[usize], review: &mut Review) {
        let inner = self.valid();
        let none = Updates::default();
        let plain = query(vit, images.clone(), &none);
        let prompting = inner.with_expert(inner.expert.val());
        let prompted = vit.forward_prompted(images, &none, &prompting);
        for (table, features) in [(&mut review.plain, plain), (&mut review.prompted, prompted)] {
            table.d_model = vit.config().d_model;
            table.features.extend(features.into_data().iter::<f32>());
            table.labels.extend_from_slice(labels);
        }
    }

    /// With the classes of the last task. One that comes again belongs to the last task from now on,
    /// whose prefix its newest images were trained with.
    #[must_use]
    pub fn reviewed(mut self, review: &Review, device: &Device) -> Self {
        let (labels, task) = (&review.plain.labels, self.layout.n_tasks - 1);
        let tasks = &mut self.layout.class_tasks;
        let n_classes = labels
            .iter()
            .fold(tasks.len(), |n, &label| n.max(label + 1));
        tasks.resize(n_classes, task);
        for &label in labels {
            tasks[label] = task;
        }
        self.layout.n_images += labels.len();
        let (old, n_images) = (self.identity.take(), self.layout.n_images);
        self.identity = Some(TaskIdentity::reviewed(
            old, review, n_classes, n_images, device,
        ));
        self
    }

    /// The task that each row of `query: [batch, d_model]` belongs to; the last one before the first
    /// was reviewed.
    #[cfg(test)]
    fn chosen(&self, query: Tensor<2>) -> Vec<usize> {
        let chosen = self.task_of(query).into_data();
        chosen.iter::<i64>().map(|task| task as usize).collect()
    }

    fn task_of(&self, query: Tensor<2>) -> Tensor<1, Int> {
        let ([batch, _], device) = (query.dims(), query.device());
        let Some(identity) = &self.identity else {
            return Tensor::zeros([batch], &device) + (self.layout.n_tasks as i32 - 1);
        };
        let tasks: Vec<i32> = self.layout.class_tasks.iter().map(|&t| t as i32).collect();
        let n_classes = tasks.len();
        let tasks = TensorData::new(tasks, [n_classes]);
        Tensor::<1, Int>::from_data(tasks, &device).select(0, identity.class_of(query))
    }

    /// For every image the prefix of the task it seems to be of.
    fn prompting(&self, query: Tensor<2>) -> Prompting {
        let chosen = self.task_of(query);
        let experts = all(self.past_experts.as_ref(), &self.expert);
        self.with_expert(experts.select(0, chosen))
    }

    /// The prefix of the last task for all images.
    fn training_prompting(&self) -> Prompting {
        self.with_expert(self.expert.val())
    }

    /// What features `[batch, d_model]` of the task that is trained add to the loss; nothing in the
    /// first task.
    fn contrast(&self, features: Tensor<2>) -> Option<Tensor<1>> {
        let (weight, temperature) = (self.layout.contrast, self.layout.temperature);
        let identity = self.identity.as_ref().filter(|_| weight > 0.0)?;
        let old = unit(identity.prompted_means.val());
        let closeness = unit(features).matmul(old.transpose());
        let [batch, _] = closeness.dims();
        let itself = Tensor::ones([batch, 1], &closeness.device());
        let logits = Tensor::cat(vec![itself, closeness], 1) / temperature;
        let of_itself = log_softmax(logits, 1).narrow(1, 0, 1);
        Some(of_itself.mean().mul_scalar(-weight))
    }

    fn with_expert(&self, expert: Tensor<2>) -> Prompting {
        let (blocks, length) = (&self.layout.blocks, self.layout.length);
        with_prefixes(Prompting::default(), expert, blocks, length)
    }
}

#[cfg(test)]
mod tests {
    use super::super::task_identity::read_out;
    use super::*;
    use crate::features::FeatureTable;
    use crate::linalg::Symmetric;
    use crate::second_pass::rows::trained;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use sdlora_testkit::test_device_autodiff;

    fn layout() -> HierarchicalLayout {
        HierarchicalLayout {
            blocks: vec![0],
            length: 2,
            contrast: 0.5,
            temperature: 0.8,
            n_tasks: 1,
            class_tasks: Vec::new(),
            n_images: 0,
        }
    }

    /// Twenty images about each of two means, much wider along the second axis.
    fn images(first_label: usize, means: [[f32; 2]; 2], rng: &mut ChaCha8Rng) -> FeatureTable {
        use rand::RngExt;
        let mut table = FeatureTable {
            d_model: 2,
            ..FeatureTable::default()
        };
        for (i, mean) in means.iter().enumerate() {
            for _ in 0..20 {
                let mut around = |mean: f32, width: f32| mean + width * rng.random_range(-1.0..1.0);
                table.features.push(around(mean[0], 0.3));
                table.features.push(around(mean[1], 2.0));
                table.labels.push(first_label + i);
            }
        }
        table
    }

    fn review(table: &FeatureTable) -> Review {
        Review {
            plain: table.clone(),
            prompted: table.clone(),
        }
    }

    /// Two tasks, whose classes lie at 0 and 2 and at 1 and 3 along the first axis.
    fn two_tasks(rng: &mut ChaCha8Rng) -> HierarchicalPrompts {
        let device = test_device_autodiff();
        let first = images(0, [[0.0, 0.0], [2.0, 1.0]], rng);
        let second = images(2, [[1.0, 0.0], [3.0, 1.0]], rng);
        HierarchicalPrompts::init(&layout(), 2, 0.5, rng, &device)
            .reviewed(&review(&first), &device)
            .grown(PrefixStart::Previous, 0.5, rng, &device)
            .reviewed(&review(&second), &device)
    }

    fn share_of(prompts: &HierarchicalPrompts, table: &FeatureTable, task: usize) -> f64 {
        let data = TensorData::new(table.features.clone(), [table.len(), 2]);
        let chosen = prompts.chosen(Tensor::from_data(data, &test_device_autodiff()));
        let n_right = chosen.iter().filter(|&&c| c == task).count();
        n_right as f64 / table.len() as f64
    }

    #[test]
    fn tasks_that_differ_are_told_apart_and_those_that_do_not_are_not() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let prompts = two_tasks(&mut rng);
        let first = images(0, [[0.0, 0.0], [2.0, 1.0]], &mut rng);
        let second = images(2, [[1.0, 0.0], [3.0, 1.0]], &mut rng);
        assert!(share_of(&prompts, &first, 0) > 0.95);
        assert!(share_of(&prompts, &second, 1) > 0.95);
        // By the nearest mean the wide axis drowns what tells them apart.
        let mut by_distance = prompts.clone();
        if let Some(identity) = &mut by_distance.identity {
            let means: Vec<f32> = identity.means.val().into_data().iter().collect();
            let plain = read_out(&means, Symmetric::zeros(2), 1, 2);
            let device = test_device_autodiff();
            identity.read_out = trained(plain, [4, 3], &device);
        }
        assert!(share_of(&by_distance, &first, 0) < 0.9);
        // The same classes in both tasks: nothing tells the task.
        let device = test_device_autodiff();
        let again = images(2, [[0.0, 0.0], [2.0, 1.0]], &mut rng);
        let same = HierarchicalPrompts::init(&layout(), 2, 0.5, &mut rng, &device)
            .reviewed(&review(&first), &device)
            .grown(PrefixStart::Previous, 0.5, &mut rng, &device)
            .reviewed(&review(&again), &device);
        let share = share_of(&same, &first, 0);
        assert!((0.2..0.8).contains(&share), "{share}");
    }

    #[test]
    fn a_class_that_comes_again_belongs_to_the_last_task() {
        let (mut rng, device) = (ChaCha8Rng::seed_from_u64(1), test_device_autodiff());
        let prompts = two_tasks(&mut rng);
        assert_eq!(prompts.layout.class_tasks, [0, 0, 1, 1]);
        assert_eq!(prompts.layout.n_images, 80);
        assert_eq!(
            prompts.clone().into_state().floats_stored().total,
            4 * 7 + 3
        );
        let again = images(1, [[2.0, 1.0], [1.0, 0.0]], &mut rng);
        let prompts = prompts
            .grown(PrefixStart::Fresh, 0.5, &mut rng, &device)
            .reviewed(&review(&again), &device);
        assert_eq!(prompts.layout.class_tasks, [0, 2, 2, 1]);
        assert_eq!(prompts.past_experts.unwrap().val().dims()[0], 2);
    }

    #[test]
    fn contrast_drives_features_away_from_old_classes() {
        let (mut rng, device) = (ChaCha8Rng::seed_from_u64(1), test_device_autodiff());
        let first = HierarchicalPrompts::init(&layout(), 2, 0.5, &mut rng, &device);
        let feature = |x: f32, y: f32| Tensor::<2>::from_data([[x, y]], &device);
        assert!(first.contrast(feature(1.0, 0.0)).is_none());
        let mut table = images(0, [[4.0, 0.0], [4.0, 0.0]], &mut rng);
        table
            .features
            .iter_mut()
            .skip(1)
            .step_by(2)
            .for_each(|y| *y = 0.0);
        let prompts = first.reviewed(&review(&table), &device);
        let at = |x: f32, y: f32| -> f64 {
            let value = prompts.contrast(feature(x, y)).unwrap();
            value.into_data().iter::<f64>().next().unwrap()
        };
        // Two old classes in one direction: −log(e / 3e) beside them, log(1 + 2e^((cos − 1)/τ)) elsewhere,
        // whatever the length.
        assert!((at(3.0, 0.0) - 0.5 * 3f64.ln()).abs() < 1e-5);
        let across = (1.0 + 2.0 * (-1.25f64).exp()).ln();
        assert!((at(0.0, 2.0) - 0.5 * across).abs() < 1e-5);
        let opposite = (1.0 + 2.0 * (-2.5f64).exp()).ln();
        assert!((at(-1.0, 0.0) - 0.5 * opposite).abs() < 1e-5);
        // The loss falls all the way from the old classes to the other side, on both sides.
        for side in [1.0, -1.0f32] {
            let turn = |i: usize| {
                let (sine, cosine) = (side * i as f32 * 0.3).sin_cos();
                at(cosine, sine)
            };
            let losses: Vec<f64> = (0..11).map(turn).collect();
            assert!(losses.windows(2).all(|w| w[1] < w[0]), "{losses:?}");
        }
    }

    #[test]
    fn contrast_repels_most_from_the_nearest_old_class() {
        // A feature along the first axis; one old mean at a cosine of 0.9, nineteen at 0.3, each on its
        // own side.
        const D: usize = 21;
        let device = test_device_autodiff();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let cosines: Vec<f32> = (0..20).map(|c| if c == 0 { 0.9 } else { 0.3 }).collect();
        let mut table = FeatureTable {
            d_model: D,
            ..FeatureTable::default()
        };
        for (class, cosine) in cosines.iter().enumerate() {
            let mut mean = [0.0f32; D];
            mean[0] = *cosine;
            mean[class + 1] = (1.0 - cosine * cosine).sqrt();
            table.features.extend(mean);
            table.labels.push(class);
        }
        let prompts = HierarchicalPrompts::init(&layout(), D, 0.5, &mut rng, &device)
            .reviewed(&review(&table), &device);
        let mut axis = [[0.0f32; D]];
        axis[0][0] = 1.0;
        let feature = Tensor::<2>::from_data(axis, &device).require_grad();
        let gradients = prompts.contrast(feature.clone()).unwrap().backward();
        let gradient: Vec<f32> = feature
            .grad(&gradients)
            .unwrap()
            .into_data()
            .iter()
            .collect();
        // The slope of the loss with the cosine of each class: the part of the gradient along its side,
        // over how far the cosine turns there. All repel, and the near one exp(0.6 / 0.8) times as much.
        let slopes = gradient[1..].iter().zip(&cosines);
        let slopes: Vec<f32> = slopes
            .map(|(along, cosine)| along / (1.0 - cosine * cosine).sqrt())
            .collect();
        for slope in &slopes[1..] {
            assert!(*slope > 0.0, "{slopes:?}");
            let ratio = slopes[0] / slope;
            assert!((ratio - 0.75f32.exp()).abs() < 1e-3, "{slopes:?}");
        }
    }

    #[test]
    fn a_blend_moves_the_last_prefix_alone_and_keeps_it_trainable() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let device = test_device_autodiff();
        let host = |rows: &Param<Tensor<2>>| rows.val().into_data().iter().collect::<Vec<f32>>();
        let prompts = HierarchicalPrompts::init(&layout(), 2, 0.5, &mut rng, &device);
        let alone = prompts.clone().blended(0.5);
        assert_eq!(host(&alone.expert), host(&prompts.expert), "none before it");
        let prompts = prompts.grown(PrefixStart::Fresh, 0.5, &mut rng, &device);
        let past = prompts.past_experts.clone().unwrap();
        let blended = prompts.clone().blended(0.25);
        let rows = host(&blended.expert).into_iter().zip(host(&prompts.expert));
        for ((found, own), past) in rows.zip(host(&past)) {
            assert!((found - (0.75 * own + 0.25 * past)).abs() < 1e-6);
        }
        assert!(blended.expert.is_require_grad());
        assert_eq!(host(&blended.past_experts.unwrap()), host(&past));
    }
}
