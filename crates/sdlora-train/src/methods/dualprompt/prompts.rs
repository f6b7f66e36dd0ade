//! Prefixes for all tasks and prefixes for one (DualPrompt: Wang et al., "DualPrompt: Complementary
//! Prompting for Rehearsal-free Continual Learning", ECCV 2022, section 4).
//!
//! The general prefix `g` stands in the first blocks and is trained in every task; the expert prefix
//! `e_t` stands in later ones and is trained in task t alone, with a key `k_t`. Added to the loss is
//! `pull · (1 - cos(q(x), k_t))`, mean over the batch. After training, an image gets the expert
//! whose key is nearest to its query: no task is told.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;
use sdlora_vit::Prompting;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use std::sync::Arc;

use crate::second_pass::rows::{all, cosine, drawn, frozen};
use crate::second_pass::{PrefixStart, SecondPass, SecondPassEntry, check_layout, with_prefixes};
use crate::state::{MethodState, Role, room};

/// Everything about prompts per task but their numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskPromptLayout {
    /// Blocks with the general prefix, from 0; may be none.
    pub general_blocks: Vec<usize>,
    /// Keys of the general prefix in a block, and as many values.
    pub general_length: usize,
    /// Blocks with the expert prefix, from 0.
    pub expert_blocks: Vec<usize>,
    /// Keys of an expert prefix in a block, and as many values.
    pub expert_length: usize,
    /// Weight of the distance between queries and the key of their task.
    pub pull: f64,
    /// Tasks so far, from 1.
    pub n_tasks: usize,
}

impl TaskPromptLayout {
    /// The prompts in a state.
    fn view(&self, state: &MethodState) -> TaskPrompts {
        let d_model = state.n_columns("key");
        state.view(TaskPrompts::room(self, d_model, &Device::default()))
    }

    fn n_general(&self, d_model: usize) -> usize {
        self.general_blocks.len() * 2 * self.general_length * d_model
    }

    fn n_expert(&self, d_model: usize) -> usize {
        self.expert_blocks.len() * 2 * self.expert_length * d_model
    }
}

pub(super) const SECOND_PASS: SecondPassEntry = SecondPassEntry::of::<TaskPromptLayout>("per-task");

impl SecondPass for TaskPromptLayout {
    fn kind(&self) -> &'static str {
        SECOND_PASS.kind()
    }

    fn layout(&self) -> Value {
        json!(self)
    }

    fn check(&self, depth: usize) -> Result<(), String> {
        let blocks = [&self.general_blocks[..], &self.expert_blocks].concat();
        let counts = [self.n_tasks, self.expert_length];
        check_layout(depth, &blocks, &counts, &[self.general_length])
    }

    fn room(&self, d_model: usize, device: &Device) -> MethodState {
        TaskPrompts::room(self, d_model, device).into_state()
    }

    fn prompting(&self, state: &MethodState, query: Tensor<2>) -> Prompting {
        self.view(state).prompting(query)
    }

    fn training_prompting(
        &self,
        state: &MethodState,
        query: &dyn Fn() -> Tensor<2>,
    ) -> (Prompting, Option<Tensor<1>>) {
        let (prompting, pull) = self.view(state).training_prompting(query());
        (prompting, Some(pull))
    }
}

/// General and expert prefixes with the keys of the tasks.
///
/// A prefix is a flat row of `n_blocks · 2 · length · d_model` numbers, keys before values.
#[derive(Module, Debug)]
pub struct TaskPrompts {
    /// `[1, n_general_blocks · 2 · length · d_model]`, trained in every task.
    pub general: Option<Param<Tensor<2>>>,
    /// Experts of earlier tasks, one a row, frozen.
    pub past_experts: Option<Param<Tensor<2>>>,
    /// Their keys `[n_tasks - 1, d_model]`, frozen.
    pub past_keys: Option<Param<Tensor<2>>>,
    /// The expert of the last task, `[1, n_expert_blocks · 2 · length · d_model]`.
    pub expert: Param<Tensor<2>>,
    /// Its key `[1, d_model]`.
    pub key: Param<Tensor<2>>,
    #[module(skip)]
    layout: TaskPromptLayout,
}

impl TaskPrompts {
    /// Prompts of the first task, from U(-spread, spread); `layout.n_tasks` is taken to be 1.
    pub fn init(
        layout: &TaskPromptLayout,
        d_model: usize,
        spread: f32,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let n_general = layout.n_general(d_model);
        Self {
            general: (n_general > 0).then(|| drawn([1, n_general], spread, rng, device)),
            past_experts: None,
            past_keys: None,
            expert: drawn([1, layout.n_expert(d_model)], spread, rng, device),
            key: drawn([1, d_model], spread, rng, device),
            layout: TaskPromptLayout {
                n_tasks: 1,
                ..layout.clone()
            },
        }
    }

    fn room(layout: &TaskPromptLayout, d_model: usize, device: &Device) -> Self {
        let (n_general, n_expert) = (layout.n_general(d_model), layout.n_expert(d_model));
        let n_past = layout.n_tasks.saturating_sub(1);
        let past = |width: usize| (n_past > 0).then(|| room([n_past, width], device));
        Self {
            general: (n_general > 0).then(|| room([1, n_general], device)),
            past_experts: past(n_expert),
            past_keys: past(d_model),
            expert: room([1, n_expert], device),
            key: room([1, d_model], device),
            layout: layout.clone(),
        }
    }

    /// The state that keeps these prompts.
    pub(super) fn into_state(self) -> MethodState {
        let layout = self.layout.clone();
        MethodState::of(&self, |_| Role::Parameter).with_second_pass(Arc::new(layout))
    }

    /// The prompts in a state; `None` before the first task.
    pub(super) fn of(state: &MethodState) -> Option<Self> {
        let layout: &TaskPromptLayout = state.layout()?;
        Some(layout.view(state))
    }

    /// With room for one more task: its expert and key are trained, the earlier ones frozen.
    #[must_use]
    pub fn grown(
        mut self,
        start: PrefixStart,
        spread: f32,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let [_, d_model] = self.key.lazy_shape().dims();
        let expert = start.next(&self.expert, spread, rng, device);
        self.past_experts = Some(frozen(self.past_experts.take(), self.expert));
        self.past_keys = Some(frozen(self.past_keys.take(), self.key));
        self.expert = expert;
        self.key = drawn([1, d_model], spread, rng, device);
        self.layout.n_tasks += 1;
        self
    }

    /// The task whose key is nearest to each row of `query: [batch, d_model]`.
    #[cfg(test)]
    fn chosen(&self, query: Tensor<2>) -> Vec<usize> {
        let chosen = self.nearest(query).into_data();
        chosen.iter::<i64>().map(|task| task as usize).collect()
    }

    fn nearest(&self, query: Tensor<2>) -> Tensor<1, burn::tensor::Int> {
        let [batch, _] = query.dims();
        let keys = all(self.past_keys.as_ref(), &self.key);
        cosine(query, keys).argmax(1).reshape([batch])
    }

    /// The general prefix, and the expert of the nearest key for every image.
    fn prompting(&self, query: Tensor<2>) -> Prompting {
        let chosen = self.nearest(query);
        let experts = all(self.past_experts.as_ref(), &self.expert);
        self.with_expert(experts.select(0, chosen))
    }

    /// The general prefix and the expert of the last task, and the distance of the queries from its
    /// key, which is added to the loss.
    fn training_prompting(&self, query: Tensor<2>) -> (Prompting, Tensor<1>) {
        let distance = cosine(query, self.key.val()).neg().add_scalar(1.0).mean();
        let prompting = self.with_expert(self.expert.val());
        (prompting, distance.mul_scalar(self.layout.pull))
    }

    fn with_expert(&self, expert: Tensor<2>) -> Prompting {
        let layout = &self.layout;
        let mut prompting = Prompting::default();
        if let Some(general) = &self.general {
            let (blocks, length) = (&layout.general_blocks, layout.general_length);
            prompting = with_prefixes(prompting, general.val(), blocks, length);
        }
        with_prefixes(
            prompting,
            expert,
            &layout.expert_blocks,
            layout.expert_length,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use sdlora_testkit::test_device_autodiff;

    fn layout() -> TaskPromptLayout {
        TaskPromptLayout {
            general_blocks: vec![0],
            general_length: 2,
            expert_blocks: vec![1, 2],
            expert_length: 3,
            pull: 1.0,
            n_tasks: 1,
        }
    }

    fn host(rows: &Param<Tensor<2>>) -> Vec<f32> {
        rows.val().into_data().iter().collect()
    }

    #[test]
    fn growing_freezes_what_was_and_starts_as_asked() {
        let device = test_device_autodiff();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let first = TaskPrompts::init(&layout(), 4, 0.5, &mut rng, &device);
        let (expert, key) = (host(&first.expert), host(&first.key));
        let second = first
            .clone()
            .grown(PrefixStart::Previous, 0.5, &mut rng, &device);
        assert_eq!(host(&second.expert), expert);
        assert_ne!(host(&second.key), key);
        let past = second.past_experts.as_ref().unwrap();
        assert_eq!(host(past), expert);
        assert!(!past.is_require_grad() && second.expert.is_require_grad());
        let fresh = first.grown(PrefixStart::Fresh, 0.5, &mut rng, &device);
        assert_ne!(host(&fresh.expert), expert);
        let third = second.grown(PrefixStart::Fresh, 0.5, &mut rng, &device);
        assert_eq!(third.layout.n_tasks, 3);
        let past_keys = third.past_keys.as_ref().unwrap();
        assert_eq!(past_keys.val().dims(), [2, 4]);
        assert_eq!(host(past_keys)[..4], key);
    }

    #[test]
    fn the_task_of_the_nearest_key_is_chosen() {
        let device = test_device_autodiff();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let prompts = TaskPrompts::init(&layout(), 2, 0.5, &mut rng, &device);
        let mut prompts = prompts.grown(PrefixStart::Previous, 0.5, &mut rng, &device);
        let row = |row: [f32; 2]| Param::from_tensor(Tensor::from_data([row], &device));
        (prompts.past_keys, prompts.key) = (Some(row([1.0, 0.0])), row([0.0, 9.0]));
        let query = Tensor::from_data([[3.0f32, 1.0], [0.1, 0.2], [-1.0, -3.0]], &device);
        assert_eq!(prompts.chosen(query), [0, 1, 0]);
    }
}
