//! Prediction by masked models: every pass is under masks of its own over all LoRAs, and the features are averaged.
//!
//! The weights hold the mean over masks, `W0 + Σ_k (1 − p)² A_k B_k`. A pass adds what its masks change,
//! `diag(m_in) A_k B_k diag(m_out) − (1 − p)² A_k B_k`, as a branch beside every adapted map. Masks are drawn from the
//! seed of the run, so a model always says the same of an image. The mean of features is the mean of the logits where
//! the head is linear.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;
use sdlora_core::{Adapter, GatedFactors, ScaledFactors, Updates};
use sdlora_vit::{Projection, Prompting, Vit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::draws::{Draw, generator};
use crate::second_pass::{SecondPass, SecondPassEntry, check_layout};
use crate::state::{MethodState, Role, room};

/// Everything about an ensemble but the factors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnsembleLayout {
    /// Names of the adapted sites.
    pub sites: Vec<String>,
    /// Sizes of every site: its inputs, its outputs, the sum of the ranks of all tasks.
    pub sizes: Vec<[usize; 3]>,
    /// Share of inputs and of outputs that a mask drops.
    pub dropout: f64,
    /// Masked models.
    pub n_passes: usize,
    /// Seed of the run.
    pub seed: u64,
}

pub(super) const SECOND_PASS: SecondPassEntry =
    SecondPassEntry::of::<EnsembleLayout>("mask-ensemble");

impl SecondPass for EnsembleLayout {
    fn kind(&self) -> &'static str {
        SECOND_PASS.kind()
    }

    fn layout(&self) -> Value {
        json!(self)
    }

    fn does(&self) -> &'static str {
        "averages several masked models (`inference = \"mean-field\"` is one)"
    }

    fn check(&self, depth: usize) -> Result<(), String> {
        if self.sites.len() != self.sizes.len() {
            let (names, sizes) = (self.sites.len(), self.sizes.len());
            return Err(format!("{names} sites with the sizes of {sizes}"));
        }
        let of_block = |name: &String| Projection::of_site(name).map(|(block, _)| block);
        let blocks: Option<Vec<usize>> = self.sites.iter().map(of_block).collect();
        let blocks = blocks.ok_or("a site that is no linear map of a block")?;
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(format!("masks that drop a share of {}", self.dropout));
        }
        let sizes = [&self.sizes.concat()[..], &[self.n_passes]].concat();
        check_layout(depth, &blocks, &sizes, &[])
    }

    fn room(&self, _d_model: usize, device: &Device) -> MethodState {
        MaskEnsemble::room(self, device).into_state(self.clone())
    }

    /// Nothing is asked of an image.
    fn query(
        &self,
        _state: &MethodState,
        _vit: &Vit,
        images: Tensor<4>,
        _updates: &Updates,
    ) -> Tensor<2> {
        Tensor::zeros([images.dims()[0], 1], &images.device())
    }

    fn prompting(&self, state: &MethodState, _query: Tensor<2>) -> Prompting {
        self.view(state).pass(self, 0)
    }

    fn further_promptings(&self, state: &MethodState) -> Vec<Prompting> {
        let ensemble = self.view(state);
        let further = 1..self.n_passes;
        further.map(|pass| ensemble.pass(self, pass)).collect()
    }

    /// Steps have masks of their own.
    fn training_prompting(
        &self,
        _state: &MethodState,
        _query: &dyn Fn() -> Tensor<2>,
    ) -> (Prompting, Option<Tensor<1>>) {
        (Prompting::default(), None)
    }
}

impl EnsembleLayout {
    fn view(&self, state: &MethodState) -> MaskEnsemble {
        state.view(MaskEnsemble::room(self, &Device::default()))
    }
}

/// The factors of all tasks side by side, as the weights have them: `(1 − p)² A B` is their product.
#[derive(Module, Debug)]
pub(super) struct MaskEnsemble {
    /// `[d_input, Σ rank]`, by site.
    a: Vec<Param<Tensor<2>>>,
    /// `[Σ rank, d_output]`, by site.
    b: Vec<Param<Tensor<2>>>,
}

impl MaskEnsemble {
    /// The state of an ensemble of the directions of an adapter, with dropout, number of passes and seed.
    pub(super) fn of(
        adapter: &Adapter,
        (dropout, n_passes, seed): (f64, usize, u64),
        device: &Device,
    ) -> MethodState {
        let mut layout = EnsembleLayout {
            sites: Vec::new(),
            sizes: Vec::new(),
            dropout,
            n_passes,
            seed,
        };
        let mut ensemble = Self {
            a: Vec::new(),
            b: Vec::new(),
        };
        for bank in &adapter.sites {
            let past = bank.past.as_ref().map_or(Vec::new(), |past| past.to_host());
            let current = bank.current.as_ref().map(|current| current.to_host());
            let all: Vec<_> = past.into_iter().chain(current).collect();
            let site = bank.site();
            let rank = all.iter().map(|factors| factors.rank).sum();
            let of_row = |i: usize| {
                all.iter()
                    .flat_map(move |f| f.a[i * f.rank..(i + 1) * f.rank].iter().copied())
            };
            let a: Vec<f32> = (0..site.d_input).flat_map(of_row).collect();
            let b: Vec<f32> = all.iter().flat_map(|f| f.b.iter().copied()).collect();
            ensemble.a.push(frozen(a, [site.d_input, rank], device));
            ensemble.b.push(frozen(b, [rank, site.d_output], device));
            layout.sites.push(site.name.to_string());
            layout.sizes.push([site.d_input, site.d_output, rank]);
        }
        ensemble.into_state(layout)
    }

    fn room(layout: &EnsembleLayout, device: &Device) -> Self {
        let sizes = layout.sizes.iter();
        Self {
            a: sizes
                .clone()
                .map(|[d_input, _, rank]| room([*d_input, *rank], device))
                .collect(),
            b: sizes
                .map(|[_, d_output, rank]| room([*rank, *d_output], device))
                .collect(),
        }
    }

    fn into_state(self, layout: EnsembleLayout) -> MethodState {
        MethodState::of(&self, |_| Role::Parameter).with_second_pass(Arc::new(layout))
    }

    /// What the masks of a pass change.
    fn pass(&self, layout: &EnsembleLayout, pass: usize) -> Prompting {
        let mut rng = generator(layout.seed, Draw::EnsemblePasses, pass);
        let keeps = 1.0 - layout.dropout;
        let mut prompting = Prompting::default();
        for ((a, b), site) in self.a.iter().zip(&self.b).zip(&layout.sites) {
            let (a, b) = (a.val(), b.val());
            let ([d_input, rank], [_, d_output], device) = (a.dims(), b.dims(), a.device());
            // The mean of the masks is inside `b` and comes out again.
            let mut mask = |n: usize, kept: f64| -> Vec<f32> {
                let drawn = (0..n).map(|_| rng.random::<f64>() >= layout.dropout);
                drawn
                    .map(|is_kept| if is_kept { kept as f32 } else { 0.0 })
                    .collect()
            };
            let rows = TensorData::new(mask(d_input, 1.0), [d_input, 1]);
            let columns = TensorData::new(mask(d_output, 1.0 / (keeps * keeps)), [1, d_output]);
            let masked_a = a.clone() * Tensor::from_data(rows, &device);
            let masked_b = b.clone() * Tensor::from_data(columns, &device);
            let branch = GatedFactors {
                factors: ScaledFactors {
                    a: Tensor::cat(vec![masked_a, a.neg()], 1),
                    b: Tensor::cat(vec![masked_b, b], 0),
                },
                gate: Tensor::ones([1, 2 * rank], &device),
            };
            prompting = prompting.with_branch(site.clone(), branch);
        }
        prompting
    }
}

fn frozen(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Param<Tensor<2>> {
    let values = Tensor::from_data(TensorData::new(values, shape), device);
    Param::from_tensor(values).set_require_grad(false)
}
