//! APER: the features of the backbone beside those that the first task adapted, and class means of both together
//! (Zhou et al. 2023, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity
//! are All You Need", arXiv 2303.07338, section 4.2; its first version calls it ADAM).
//!
//! `φ(x) = [f(x; W0), f(x; W0 + A B)]`, twice as wide as the backbone; `A B` is a LoRA of the first task, whose
//! classifier is thrown away. From then on no step is made. The head where none is named is that of `simplecil`:
//! prototypes that are means of `φ`, compared by cosine.
//!
//! Differs from the paper, which adapts by prompts, scale and shift, an adapter in the MLP, batch statistics or whole
//! fine-tuning: here it is the LoRA of the other methods, as in `ranpac`, so that what differs from them is what is
//! named here.
//!
//! A prediction needs two forward passes, and weights of one backbone cannot hold it: the LoRA is the state of a
//! [`SecondPass`], and the backbone stays what it was.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use sdlora_core::{ScaledFactors, Site, Update, Updates};
use sdlora_vit::{Projection, Prompting};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::lora::plain_lora;
use super::{
    AdapterSpec, Method, MethodEntry, TaskContext, check_counts, check_projections, default_rank,
    parse, query_and_value,
};
use crate::error::TrainError;
use crate::heads::HeadConfig;
use crate::model::Model;
use crate::second_pass::{SecondPass, SecondPassEntry, check_layout};
use crate::state::{MethodState, Role, room};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "aper",
    summary: "a LoRA in the first task, then class means of adapted and plain features together",
    build: |options| {
        let method: Aper = parse("aper", options)?;
        check_counts(&[("rank", method.rank)])?;
        check_projections(&method.projections, &ADAPTED)?;
        Ok(Box::new(method))
    },
    second_pass: Some(SECOND_PASS),
};

const SECOND_PASS: SecondPassEntry = SecondPassEntry::of::<BothFeatures>("both-features");

/// Projections whose factors have the width of the features on both sides: all that a file has to tell of them.
const ADAPTED: [Projection; 4] = [
    Projection::Query,
    Projection::Key,
    Projection::Value,
    Projection::Output,
];

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Aper {
    /// Rank of the LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block: those of the attention.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
}

/// The second pass with a LoRA, whose features stand behind those of the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BothFeatures {
    rank: usize,
    n_blocks: usize,
    projections: Vec<Projection>,
}

/// The LoRA, frozen: factors of all sites, block after block.
#[derive(Module, Debug)]
struct Factors {
    /// `[d_model, rank]` each.
    a: Vec<Param<Tensor<2>>>,
    /// `[rank, d_model]` each.
    b: Vec<Param<Tensor<2>>>,
}

impl Factors {
    /// The state that a second pass of this layout reads.
    fn into_state(self, layout: BothFeatures) -> MethodState {
        let state = MethodState::of(&self, |_| Role::Parameter);
        state.with_second_pass(Arc::new(layout))
    }
}

impl BothFeatures {
    fn n_sites(&self) -> usize {
        self.n_blocks * self.projections.len()
    }

    /// Block and projection of every site, in the order of the factors.
    fn sites(&self) -> impl Iterator<Item = (usize, Projection)> {
        let of_block = |block| self.projections.iter().map(move |&p| (block, p));
        (0..self.n_blocks).flat_map(of_block)
    }
}

impl SecondPass for BothFeatures {
    fn kind(&self) -> &'static str {
        SECOND_PASS.kind()
    }

    fn layout(&self) -> Value {
        json!(self)
    }

    fn check(&self, depth: usize) -> Result<(), String> {
        if self.n_blocks != depth {
            return Err(format!(
                "it adapts {} blocks of {depth}, and needs all of them",
                self.n_blocks
            ));
        }
        check_projections(&self.projections, &ADAPTED).map_err(|error| error.to_string())?;
        check_layout(depth, &[], &[self.rank], &[])
    }

    fn room(&self, d_model: usize, device: &Device) -> MethodState {
        let all = |shape: [usize; 2]| (0..self.n_sites()).map(|_| room(shape, device)).collect();
        let factors = Factors {
            a: all([d_model, self.rank]),
            b: all([self.rank, d_model]),
        };
        factors.into_state(self.clone())
    }

    fn prompting(&self, _state: &MethodState, _query: Tensor<2>) -> Prompting {
        Prompting::default()
    }

    fn updates(&self, state: &MethodState) -> Option<Updates> {
        let mut updates = Updates::default();
        for (i, (block, projection)) in self.sites().enumerate() {
            let factor = |name: &str| state.get(&format!("{name}.{i}")).map(Param::val);
            let (a, b) = (factor("a")?, factor("b")?);
            let ([d_input, _], [_, d_output]) = (a.dims(), b.dims());
            let site = Site {
                name: projection.site(block).into(),
                group: block,
                d_input,
                d_output,
            };
            updates.insert(&site, Update::new(vec![ScaledFactors { a, b }]));
        }
        Some(updates)
    }

    fn features(&self, query: &dyn Fn() -> Tensor<2>, second: Tensor<2>) -> Tensor<2> {
        Tensor::cat(vec![query(), second], 1)
    }

    fn width(&self, d_model: usize) -> usize {
        2 * d_model
    }
}

impl Method for Aper {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if !self.takes_steps_in(task.task_idx) {
            return Ok(model);
        }
        let mut model = task.begin_direction(model, self.rank)?;
        model.adapter = model.adapter.with_current_magnitude_trainable(false);
        Ok(task.grow_head(model))
    }

    fn after_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if !self.takes_steps_in(task.task_idx) {
            return Ok(model);
        }
        let frozen =
            |values: Tensor<2>| Param::from_tensor(values.detach()).set_require_grad(false);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for bank in &mut model.adapter.sites {
            if let Some(current) = bank.current.take() {
                a.push(frozen(current.a.val()));
                b.push(frozen(current.b.val()));
            }
        }
        model.adapter.magnitudes = None;
        model.head.trained = None;
        let layout = BothFeatures {
            rank: self.rank,
            n_blocks: model.backbone.config().depth,
            projections: self.projections.clone(),
        };
        model.state = Factors { a, b }.into_state(layout);
        Ok(model)
    }

    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("ncm").with("mean", "features")
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(plain_lora(&self.projections, self.rank))
    }

    fn takes_steps(&self) -> bool {
        // The classifier of the steps is thrown away, so no head may rely on them.
        false
    }

    fn takes_steps_in(&self, task_idx: usize) -> bool {
        task_idx == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_that_does_not_fit_is_refused() {
        let layout = BothFeatures {
            rank: 2,
            n_blocks: 3,
            projections: vec![Projection::Query, Projection::Value],
        };
        layout.check(3).unwrap();
        let read = |change: &dyn Fn(&mut BothFeatures)| {
            let mut layout = layout.clone();
            change(&mut layout);
            layout.check(3).unwrap_err()
        };
        assert!(read(&|l| l.n_blocks = 2).contains("2 blocks of 3"));
        assert!(read(&|l| l.rank = 0).contains("empty"));
        assert!(read(&|l| l.rank = usize::MAX).contains("more than"));
        assert!(read(&|l| l.projections.clear()).contains("one or more"));
        assert!(read(&|l| l.projections.push(Projection::Fc1)).contains("fc1"));
        let sites: Vec<_> = layout.sites().collect();
        assert_eq!(
            sites[..3],
            [
                (0, Projection::Query),
                (0, Projection::Value),
                (1, Projection::Query)
            ]
        );
        assert_eq!(sites.len(), layout.n_sites());
    }
}
