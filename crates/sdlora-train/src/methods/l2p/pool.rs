//! A pool of prompts with a key each (L2P: Wang et al., "Learning to Prompt for Continual Learning",
//! CVPR 2022, section 4).
//!
//! An image gets the `top` prompts whose keys are nearest to its query by cosine (equation 3), as
//! tokens in front of its own, nearest first. Added to the loss is `pull · Σ_selected (1 - cos)`,
//! mean over the batch (equation 5), which draws the keys to the queries that choose them.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;
use sdlora_vit::{Prompting, ReadOut};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use std::sync::Arc;

use crate::second_pass::rows::{cosine, drawn};
use crate::second_pass::{SecondPass, SecondPassEntry, check_layout};
use crate::state::{MethodState, Role, room};

pub(super) const SECOND_PASS: SecondPassEntry = SecondPassEntry::of::<PoolLayout>("pool");

/// Everything about a pool but its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolLayout {
    /// Prompts of the pool, `M` in the paper.
    pub n_prompts: usize,
    /// Tokens of a prompt, `L_p`.
    pub length: usize,
    /// Prompts an image gets, `N`; at most `n_prompts`.
    pub top: usize,
    /// Weight of the distance between queries and selected keys, `λ`.
    pub pull: f64,
    /// Which tokens become the feature.
    pub read_out: ReadOut,
}

/// Prompts and their keys, trained in every task.
#[derive(Module, Debug)]
pub struct PromptPool {
    /// `[n_prompts, d_model]`.
    pub keys: Param<Tensor<2>>,
    /// `[n_prompts, length · d_model]`, the tokens of a prompt one after another.
    pub prompts: Param<Tensor<2>>,
    #[module(skip)]
    layout: PoolLayout,
}

impl PromptPool {
    /// Prompts and keys from U(-spread, spread).
    pub fn init(
        layout: &PoolLayout,
        d_model: usize,
        spread: f32,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let n = layout.n_prompts;
        Self {
            keys: drawn([n, d_model], spread, rng, device),
            prompts: drawn([n, layout.length * d_model], spread, rng, device),
            layout: layout.clone(),
        }
    }

    fn room(layout: &PoolLayout, d_model: usize, device: &Device) -> Self {
        Self {
            keys: room([layout.n_prompts, d_model], device),
            prompts: room([layout.n_prompts, layout.length * d_model], device),
            layout: layout.clone(),
        }
    }

    /// The state that keeps this pool.
    pub(super) fn into_state(self) -> MethodState {
        let layout = self.layout.clone();
        MethodState::of(&self, |_| Role::Parameter).with_second_pass(Arc::new(layout))
    }

    /// The prompts chosen for `query: [batch, d_model]`, `[batch, top]`, nearest first.
    #[cfg(test)]
    fn chosen(&self, query: Tensor<2>) -> Vec<Vec<usize>> {
        let chosen = nearest(cosine(query, self.keys.val()), self.layout.top);
        let flat: Vec<i64> = chosen.into_data().iter::<i64>().collect();
        flat.chunks(self.layout.top.max(1))
            .map(|row| row.iter().map(|&i| i as usize).collect())
            .collect()
    }

    /// Tokens for every image, and the distance that is added to the loss.
    fn prompting(&self, query: Tensor<2>) -> (Prompting, Tensor<1>) {
        let [batch, d_model] = query.dims();
        let PoolLayout {
            length, top, pull, ..
        } = self.layout;
        let cosine = cosine(query, self.keys.val());
        let chosen = nearest(cosine.clone(), top);
        let closeness = cosine.gather(1, chosen.clone());
        let distance = closeness.neg().add_scalar(1.0).sum_dim(1).mean();
        let tokens = self
            .prompts
            .val()
            .select(0, chosen.reshape([batch * top]))
            .reshape([batch, top * length, d_model]);
        let prompting = Prompting::default().with_tokens(tokens, self.layout.read_out);
        (prompting, distance.mul_scalar(pull))
    }
}

impl PoolLayout {
    /// The pool in a state.
    fn view(&self, state: &MethodState) -> PromptPool {
        let d_model = state.n_columns("keys");
        state.view(PromptPool::room(self, d_model, &Device::default()))
    }
}

impl SecondPass for PoolLayout {
    fn kind(&self) -> &'static str {
        SECOND_PASS.kind()
    }

    fn layout(&self) -> Value {
        json!(self)
    }

    fn check(&self, depth: usize) -> Result<(), String> {
        if self.top > self.n_prompts {
            return Err(format!("{} of {} prompts", self.top, self.n_prompts));
        }
        check_layout(depth, &[], &[self.top, self.length], &[self.n_prompts])
    }

    fn room(&self, d_model: usize, device: &Device) -> MethodState {
        PromptPool::room(self, d_model, device).into_state()
    }

    fn prompting(&self, state: &MethodState, query: Tensor<2>) -> Prompting {
        self.view(state).prompting(query).0
    }

    fn training_prompting(
        &self,
        state: &MethodState,
        query: &dyn Fn() -> Tensor<2>,
    ) -> (Prompting, Option<Tensor<1>>) {
        let (prompting, pull) = self.view(state).prompting(query());
        (prompting, Some(pull))
    }
}

/// The `top` largest of every row, largest first.
fn nearest(cosine: Tensor<2>, top: usize) -> Tensor<2, burn::tensor::Int> {
    cosine.argsort_descending(1).narrow(1, 0, top)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use rand::SeedableRng;
    use sdlora_testkit::test_device_autodiff;

    fn pool(top: usize) -> PromptPool {
        let device = test_device_autodiff();
        let layout = PoolLayout {
            n_prompts: 3,
            length: 2,
            top,
            pull: 0.5,
            read_out: ReadOut::Prompts,
        };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut pool = PromptPool::init(&layout, 2, 1.0, &mut rng, &device);
        let keys = TensorData::from([[1.0f32, 0.0], [0.0, 100.0], [-1.0, 0.0]]);
        pool.keys = Param::from_tensor(Tensor::from_data(keys, &device));
        pool
    }

    fn queries() -> Tensor<2> {
        Tensor::from_data(
            [[2.0f32, 0.1], [0.1, 2.0], [-2.0, 0.1]],
            &test_device_autodiff(),
        )
    }

    #[test]
    fn the_nearest_key_by_angle_is_chosen_and_the_farthest_is_not() {
        assert_eq!(pool(1).chosen(queries()), [[0], [1], [2]]);
        assert_eq!(pool(2).chosen(queries()), [[0, 1], [1, 0], [2, 1]]);
        // The opposite query has the opposite order.
        assert_eq!(pool(1).chosen(queries().neg()), [[2], [2], [0]]);
        assert_eq!(pool(3).chosen(queries())[0], [0, 1, 2], "the whole pool");
    }

    #[test]
    fn only_chosen_keys_are_pulled_and_towards_the_query() {
        let pool = pool(1);
        let query = queries().narrow(0, 0, 1);
        let (_, pull) = pool.prompting(query);
        let expected = 0.5 * (1.0 - 2.0 / 4.01f64.sqrt());
        let value: f32 = pull.clone().into_scalar();
        assert!((f64::from(value) - expected).abs() < 1e-6, "{value}");
        let grads = pull.backward();
        let grad: Vec<f32> = pool
            .keys
            .val()
            .grad(&grads)
            .unwrap()
            .into_data()
            .iter()
            .collect();
        assert!(grad[1] < 0.0, "a step down turns it to the query: {grad:?}");
        assert_eq!(grad[2..], [0.0; 4]);
    }
}
