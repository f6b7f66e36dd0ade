//! What a method trains: backbone, adapter and head together.

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::Tensor;
use sdlora_core::{Adapter, Updates};
use sdlora_vit::Vit;

use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::heads::{Classifier, FloatsStored, Head, HeadState};
use crate::second_pass;
use crate::state::MethodState;

/// Backbone, adapter and classifier of a run.
#[derive(Module, Debug)]
pub struct Model {
    /// The pre-trained backbone; frozen unless the method trains it.
    pub backbone: Vit,
    /// The directions and magnitudes; without directions it changes nothing.
    pub adapter: Adapter,
    /// What the head has learned; empty before the first task.
    pub head: HeadState,
    /// What the method keeps besides: prompts, subspaces; empty for most.
    pub state: MethodState,
}

/// A part of a [`Model`] that may have a learning rate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The backbone, where it is trained.
    Backbone,
    /// The factors of the running direction.
    Directions,
    /// The gates of the running direction.
    Gates,
    /// The magnitudes.
    Magnitudes,
    /// The trained classifier.
    Head,
    /// The state of the method.
    State,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 6] = [
        Self::Backbone,
        Self::Directions,
        Self::Gates,
        Self::Magnitudes,
        Self::Head,
        Self::State,
    ];

    /// The parameters of this part of a model.
    pub(crate) fn parameters(self, model: &Model) -> ParamGroup {
        match self {
            Self::Backbone => ParamGroup::ids_from_module(model.backbone.clone()),
            Self::Directions => {
                let mut sites = model.adapter.sites.clone();
                for current in sites.iter_mut().filter_map(|bank| bank.current.as_mut()) {
                    current.gate = None;
                }
                ParamGroup::ids_from_module(sites)
            }
            Self::Gates => {
                let banks = model.adapter.sites.iter();
                let gates = banks.filter_map(|bank| bank.current.as_ref()?.gate.clone());
                ParamGroup::ids_from_module(gates.collect::<Vec<_>>())
            }
            Self::Magnitudes => ParamGroup::ids_from_module(model.adapter.magnitudes.clone()),
            Self::Head => ParamGroup::ids_from_module(model.head.clone()),
            Self::State => ParamGroup::ids_from_module(model.state.clone()),
        }
    }
}

impl Model {
    /// A model before its first task; the backbone is frozen.
    pub fn new(backbone: Vit, adapter: Adapter) -> Self {
        Self {
            backbone: backbone.no_grad(),
            adapter,
            head: HeadState::default(),
            state: MethodState::default(),
        }
    }

    /// Features `[batch, d_model]` of `images: [batch, n_channels, image_size, image_size]`; wider where a second
    /// pass makes them so.
    pub fn features(&self, images: Tensor<4>) -> Tensor<2> {
        let updates = self.adapter.updates();
        second_pass::features(&self.state, &self.backbone, images, &updates)
    }

    /// Features `[batch, d_model]` to train on, and what the model itself adds to the loss `[1]`.
    /// Prompts of the running task may be given to its images where evaluation would have to find
    /// them.
    pub fn training_features(&self, images: Tensor<4>) -> (Tensor<2>, Option<Tensor<1>>) {
        self.training_features_with(images, &self.adapter.updates())
    }

    /// As [`training_features`](Self::training_features), with other updates: under a mask, for instance.
    pub(crate) fn training_features_with(
        &self,
        images: Tensor<4>,
        updates: &Updates,
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        second_pass::training_features(&self.state, &self.backbone, images, updates)
    }

    /// Number of parameters that receive gradients.
    pub fn n_trained(&self) -> usize {
        n_trained(self)
    }

    /// What evaluates and predicts: the merged backbone with the state of the method, without autodiff.
    pub fn extractor(&self) -> Extractor {
        Extractor::from(self.merged_backbone()).with_state(self.state.valid())
    }

    /// The backbone with the updates inside its weights, without autodiff: what is exported. It
    /// knows nothing of a second pass; for features see [`Model::extractor`].
    pub fn merged_backbone(&self) -> Vit {
        let inner = self.valid();
        let updates = inner.adapter.updates();
        inner.backbone.merged(&updates)
    }

    /// Everything that is kept of tasks whose images are gone, the adapter aside.
    pub fn floats_stored(&self) -> FloatsStored {
        let (head, state) = (self.head.floats_stored(), self.state.floats_stored());
        FloatsStored {
            per_class: head.per_class + state.per_class,
            shared: head.shared + state.shared,
            total: head.total + state.total,
        }
    }

    /// What predicts, over all classes seen.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] when the model has nothing that `head` can predict with yet.
    pub fn classifier(&self, head: &dyn Head) -> Result<Classifier, TrainError> {
        head.classifier(&self.head).ok_or_else(|| {
            TrainError::setting(
                "head",
                format!("{head:?}"),
                "the head that the model was run with, after its first task",
            )
        })
    }
}

/// Numbers in the parameters of a module that receive gradients.
pub(crate) fn n_trained<M: Module>(module: &M) -> usize {
    struct Count(usize);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0 += param.lazy_shape().num_elements();
            }
        }
    }
    let mut count = Count(0);
    module.visit(&mut count);
    count.0
}

/// The parameters of a module by id, with whether they receive gradients: what an optimiser and replicas go by.
pub(crate) fn parameters<M: Module>(module: &M) -> Vec<(ParamId, bool)> {
    struct Collect(Vec<(ParamId, bool)>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push((param.id, param.is_require_grad()));
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}
