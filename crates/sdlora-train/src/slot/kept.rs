//! What slots keep in the state of a method while a task trains.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use sdlora_core::{Adapter, Direction};

use crate::model::Model;
use crate::state::{MethodState, Role};

/// Matrices of all slots that keep some; each list may be empty.
#[derive(Module, Debug)]
pub(super) struct SlotState {
    /// Down-projections of the running directions half a period ago, in the order of sites.
    snapshot_a: Vec<Param<Tensor<2>>>,
    /// Their up-projections.
    snapshot_b: Vec<Param<Tensor<2>>>,
    /// Running means of the norms of input features `[depth, d_model]`.
    input_norms: Vec<Param<Tensor<2>>>,
}

impl SlotState {
    /// What a model keeps. A matrix that does not fit the model is as good as none: it starts anew.
    pub fn of(model: &Model) -> Self {
        let find = |name: &str| model.state.get(name).cloned();
        let currents = || running(&model.adapter);
        let fits = |found: &Param<Tensor<2>>, like: &Param<Tensor<2>>| {
            found.lazy_shape() == like.lazy_shape()
        };
        let of_sites = |name: &str, factor: fn(&Direction) -> &Param<Tensor<2>>| {
            let found = currents().enumerate().map(|(i, current)| {
                let found = find(&format!("{name}.{i}"))?;
                fits(&found, factor(current)).then_some(found)
            });
            found.collect::<Option<Vec<_>>>().unwrap_or_default()
        };
        let vit = model.backbone.config();
        let norms = find("input_norms.0");
        let norms = norms.filter(|n| n.lazy_shape().dims::<2>() == [vit.depth, vit.d_model]);
        Self {
            snapshot_a: of_sites("snapshot_a", |current| &current.a),
            snapshot_b: of_sites("snapshot_b", |current| &current.b),
            input_norms: norms.into_iter().collect(),
        }
    }

    /// The state of the model.
    pub fn into_state(self) -> MethodState {
        MethodState::of(&self, |_| Role::Parameter)
    }

    /// Keeps the factors of the running directions as they are.
    pub fn snapshot(&mut self, adapter: &Adapter) {
        self.snapshot_a = running(adapter)
            .map(|current| frozen(current.a.val()))
            .collect();
        self.snapshot_b = running(adapter)
            .map(|current| frozen(current.b.val()))
            .collect();
    }

    /// Both factors of every running direction as they were kept; `None` where nothing was.
    pub fn take_snapshot(&mut self, adapter: &Adapter) -> Option<Vec<[Tensor<2>; 2]>> {
        let (a, b) = (
            std::mem::take(&mut self.snapshot_a),
            std::mem::take(&mut self.snapshot_b),
        );
        let n = running(adapter).count();
        (a.len() == n && b.len() == n).then(|| {
            let pairs = a.iter().zip(&b).map(|(a, b)| [a.val(), b.val()]);
            pairs.collect()
        })
    }

    /// The running means of the norms of input features.
    pub fn input_norms(&self) -> Option<Tensor<2>> {
        self.input_norms.first().map(Param::val)
    }

    /// Keeps other ones.
    pub fn set_input_norms(&mut self, norms: Tensor<2>) {
        self.input_norms = vec![frozen(norms)];
    }
}

fn running(adapter: &Adapter) -> impl Iterator<Item = &Direction> {
    adapter
        .sites
        .iter()
        .filter_map(|bank| bank.current.as_ref())
}

/// A parameter with a fresh id, so that replicas on other devices take it over.
fn frozen(values: Tensor<2>) -> Param<Tensor<2>> {
    Param::from_tensor(values.detach()).set_require_grad(false)
}

/// A trained parameter with other values; it keeps its id, and so its moments.
pub(super) fn with_values(param: Param<Tensor<2>>, values: Tensor<2>) -> Param<Tensor<2>> {
    param.map(|_| values.detach().require_grad())
}
