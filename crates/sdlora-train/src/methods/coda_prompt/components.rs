//! Prefixes that are weighted sums of components (CODA-Prompt: Smith et al., "CODA-Prompt: COntinual
//! Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning", CVPR 2023,
//! section 4).
//!
//! In every block with prompts: `p = Σ_m α_m P_m`, `α_m = cos(q(x) ⊙ A_m, K_m)` (equations 2 to 4),
//! half of `p` keys, half values. Task t adds components and trains them; those of earlier tasks
//! stay in the sum and are frozen. The penalty `‖B Bᵀ - I‖²` of the rows of P, K and A, over the
//! mean of its entries as the published code has it, keeps components apart (equation 5).

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;
use sdlora_vit::Prompting;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use std::sync::Arc;

use crate::second_pass::rows::{NORM_EPS, all, frozen, orthonormal, trained, unit};
use crate::second_pass::{SecondPass, SecondPassEntry, check_layout, with_prefixes};
use crate::state::{MethodState, Role, room};

/// Everything about components but their numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentLayout {
    /// Blocks with prompts, from 0.
    pub blocks: Vec<usize>,
    /// Keys of a prefix, and as many values: half the prompt length of the paper.
    pub length: usize,
    /// Components of earlier tasks.
    pub n_past: usize,
    /// Components of the last task.
    pub n_current: usize,
}

pub(super) const SECOND_PASS: SecondPassEntry =
    SecondPassEntry::of::<ComponentLayout>("components");

impl ComponentLayout {
    /// The components in a state.
    fn view(&self, state: &MethodState) -> PromptComponents {
        let d_model = state.n_columns("blocks.0.current.keys");
        state.view(PromptComponents::room(self, d_model, &Device::default()))
    }
}

impl SecondPass for ComponentLayout {
    fn kind(&self) -> &'static str {
        SECOND_PASS.kind()
    }

    fn layout(&self) -> Value {
        json!(self)
    }

    fn check(&self, depth: usize) -> Result<(), String> {
        let counts = [self.length, self.n_current];
        check_layout(depth, &self.blocks, &counts, &[self.n_past])
    }

    fn room(&self, d_model: usize, device: &Device) -> MethodState {
        PromptComponents::room(self, d_model, device).into_state()
    }

    fn prompting(&self, state: &MethodState, query: Tensor<2>) -> Prompting {
        self.view(state).prompting(query)
    }
}

/// Components of one block, `n` rows each.
#[derive(Module, Debug)]
pub struct Components {
    /// `K`, `[n, d_model]`.
    pub keys: Param<Tensor<2>>,
    /// `A`, which features of the query a component looks at, `[n, d_model]`.
    pub attention: Param<Tensor<2>>,
    /// `P`, `[n, 2 · length · d_model]`, keys before values.
    pub prompts: Param<Tensor<2>>,
}

/// All components of one block.
#[derive(Module, Debug)]
pub struct BlockComponents {
    /// Those of earlier tasks, frozen.
    pub past: Option<Components>,
    /// Those of the last task.
    pub current: Components,
}

/// The components of every block with prompts.
#[derive(Module, Debug)]
pub struct PromptComponents {
    /// In the order of the layout's blocks.
    pub blocks: Vec<BlockComponents>,
    #[module(skip)]
    layout: ComponentLayout,
}

impl Components {
    /// `n` rows of length 1 that are orthogonal to each other and to those of `past`, as far as the
    /// widths leave room.
    fn init(
        past: Option<&Self>,
        n: usize,
        [d_model, n_prompt]: [usize; 2],
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let host = |rows: &Param<Tensor<2>>| rows.val().into_data().iter().collect();
        let mut new = |rows: Option<&Param<Tensor<2>>>, width: usize| {
            let past: Vec<f32> = rows.map_or(Vec::new(), host);
            trained(orthonormal(&past, n, width, rng), [n, width], device)
        };
        Self {
            keys: new(past.map(|past| &past.keys), d_model),
            attention: new(past.map(|past| &past.attention), d_model),
            prompts: new(past.map(|past| &past.prompts), n_prompt),
        }
    }

    fn room(n: usize, d_model: usize, n_prompt: usize, device: &Device) -> Self {
        Self {
            keys: room([n, d_model], device),
            attention: room([n, d_model], device),
            prompts: room([n, n_prompt], device),
        }
    }

    fn frozen(past: Option<Self>, current: Self) -> Self {
        let (keys, attention, prompts) = match past {
            Some(past) => (Some(past.keys), Some(past.attention), Some(past.prompts)),
            None => (None, None, None),
        };
        Self {
            keys: frozen(keys, current.keys),
            attention: frozen(attention, current.attention),
            prompts: frozen(prompts, current.prompts),
        }
    }
}

impl BlockComponents {
    /// `K`, `A` and `P` of all tasks.
    fn rows(&self) -> [Tensor<2>; 3] {
        let past = self.past.as_ref();
        [
            all(past.map(|past| &past.keys), &self.current.keys),
            all(past.map(|past| &past.attention), &self.current.attention),
            all(past.map(|past| &past.prompts), &self.current.prompts),
        ]
    }

    /// The prefix `[batch, 2 · length · d_model]` of every `query: [batch, d_model]`.
    ///
    /// `⟨q ⊙ A_m, K_m⟩ = ⟨q, A_m ⊙ K_m⟩` and `‖q ⊙ A_m‖² = ⟨q², A_m²⟩`, so nothing of the size
    /// batch × components × width is formed.
    fn prefix(&self, query: Tensor<2>) -> Tensor<2> {
        let [keys, attention, prompts] = self.rows();
        let dots = query
            .clone()
            .matmul((attention.clone() * unit(keys)).transpose());
        let squares = query.square().matmul(attention.square().transpose());
        let weights = dots / squares.add_scalar(NORM_EPS).sqrt();
        weights.matmul(prompts)
    }
}

impl PromptComponents {
    /// The components of the first task, `layout.n_current` in every block; `layout.n_past` is taken
    /// to be 0. Rows of length 1, orthogonal to each other (published code).
    pub fn init(
        layout: &ComponentLayout,
        d_model: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let widths = [d_model, 2 * layout.length * d_model];
        let blocks = layout.blocks.iter().map(|_| BlockComponents {
            past: None,
            current: Components::init(None, layout.n_current, widths, rng, device),
        });
        Self {
            blocks: blocks.collect(),
            layout: ComponentLayout {
                n_past: 0,
                ..layout.clone()
            },
        }
    }

    fn room(layout: &ComponentLayout, d_model: usize, device: &Device) -> Self {
        let rows = |n: usize| Components::room(n, d_model, 2 * layout.length * d_model, device);
        let blocks = layout.blocks.iter().map(|_| BlockComponents {
            past: (layout.n_past > 0).then(|| rows(layout.n_past)),
            current: rows(layout.n_current),
        });
        Self {
            blocks: blocks.collect(),
            layout: layout.clone(),
        }
    }

    /// The state that keeps these components.
    pub(super) fn into_state(self) -> MethodState {
        let layout = self.layout.clone();
        MethodState::of(&self, |_| Role::Parameter).with_second_pass(Arc::new(layout))
    }

    /// The components in a state; `None` before the first task.
    pub(super) fn of(state: &MethodState) -> Option<Self> {
        let layout: &ComponentLayout = state.layout()?;
        Some(layout.view(state))
    }

    /// With `n_new` more components in every block; all earlier ones are frozen.
    #[must_use]
    pub fn grown(mut self, n_new: usize, rng: &mut impl Rng, device: &Device) -> Self {
        self.blocks = self
            .blocks
            .into_iter()
            .map(|block| {
                let [_, d_model] = block.current.keys.lazy_shape().dims();
                let [_, n_prompt] = block.current.prompts.lazy_shape().dims();
                let past = Components::frozen(block.past, block.current);
                let widths = [d_model, n_prompt];
                let current = Components::init(Some(&past), n_new, widths, rng, device);
                BlockComponents {
                    past: Some(past),
                    current,
                }
            })
            .collect();
        self.layout.n_past += self.layout.n_current;
        self.layout.n_current = n_new;
        self
    }

    /// `Σ_blocks Σ_B mean((B Bᵀ - I)²)` for `B` = P, K, A, `[1]`; the rows of earlier tasks take
    /// part, but only the new ones move.
    pub fn overlap(&self) -> Option<Tensor<1>> {
        let terms = self.blocks.iter().flat_map(BlockComponents::rows);
        let terms = terms.map(|rows| {
            let [n, _] = rows.dims();
            let eye = Tensor::<2>::eye(n, &rows.device());
            let gram = rows.clone().matmul(rows.transpose());
            (gram - eye).square().mean()
        });
        terms.reduce(|sum, term| sum + term)
    }

    /// The prefixes of every image.
    fn prompting(&self, query: Tensor<2>) -> Prompting {
        let blocks = self.blocks.iter().zip(&self.layout.blocks);
        blocks.fold(Prompting::default(), |prompting, (block, &block_idx)| {
            let prefix = block.prefix(query.clone());
            with_prefixes(prompting, prefix, &[block_idx], self.layout.length)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use sdlora_testkit::toy::SplitMix64;
    use sdlora_testkit::{Tolerance, assert_close, test_device_autodiff};

    const D: usize = 6;

    fn components() -> PromptComponents {
        let layout = ComponentLayout {
            blocks: vec![0, 2],
            length: 2,
            n_past: 0,
            n_current: 3,
        };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let device = test_device_autodiff();
        PromptComponents::init(&layout, D, &mut rng, &device).grown(2, &mut rng, &device)
    }

    fn host(rows: Tensor<2>) -> Vec<f64> {
        rows.into_data().iter().collect()
    }

    #[test]
    fn a_prefix_is_the_sum_weighted_by_the_cosine_by_hand() {
        let block = &components().blocks[1];
        let query = SplitMix64::new(3).fill(2 * D, 1.0);
        let [keys, attention, prompts] = block.rows().map(host);
        let n_prompt = 4 * D;
        let mut expected = vec![0.0f32; 2 * n_prompt];
        for (q, out) in query.chunks(D).zip(expected.chunks_mut(n_prompt)) {
            for m in 0..5 {
                let (k, a) = (&keys[m * D..][..D], &attention[m * D..][..D]);
                let seen: Vec<f64> = q.iter().zip(a).map(|(&q, a)| f64::from(q) * a).collect();
                let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                let weight = dot(&seen, k) / (dot(&seen, &seen) * dot(k, k)).sqrt();
                for (out, p) in out.iter_mut().zip(&prompts[m * n_prompt..]) {
                    *out += (weight * p) as f32;
                }
            }
        }
        let data = burn::tensor::TensorData::new(query, [2, D]);
        let found = block.prefix(Tensor::from_data(data, &test_device_autodiff()));
        assert_close(found, expected.as_slice(), Tolerance::Abs(1e-5), "prefix");
    }

    #[test]
    fn components_start_apart_and_the_penalty_sees_them_meet() {
        let mut components = components();
        let start: f32 = components.overlap().unwrap().into_scalar();
        assert!(start.abs() < 1e-9, "{start}");
        let [keys, ..] = components.blocks[0].rows();
        components.blocks[0].current.keys = Param::from_tensor(keys.narrow(0, 0, 2).detach());
        // Two of five rows repeat two others: four entries of the Gram matrix are 1 instead of 0.
        let met: f32 = components.overlap().unwrap().into_scalar();
        assert!((met - 4.0 / 25.0).abs() < 1e-6, "{met}");
    }

    #[test]
    fn gradients_reach_the_new_components_alone() {
        let components = components();
        let query = Tensor::<2>::ones([1, D], &test_device_autodiff());
        let block = &components.blocks[0];
        let grads = block.prefix(query).sum().backward();
        let past = block.past.as_ref().unwrap();
        for (old, new) in [
            (&past.keys, &block.current.keys),
            (&past.attention, &block.current.attention),
            (&past.prompts, &block.current.prompts),
        ] {
            assert!(old.val().grad(&grads).is_none());
            let grad = new.val().grad(&grads).unwrap();
            assert!(grad.abs().max().into_scalar::<f32>() > 0.0);
        }
        assert_eq!(components.layout.n_past, 3);
    }
}
