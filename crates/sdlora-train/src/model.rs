//! What a method trains: backbone, adapter and head together.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_core::Adapter;
use sdlora_vit::Vit;

use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::gradient_memory::GradientMemory;
use crate::heads::{Classifier, FloatsStored, Head, HeadState};
use crate::prompts::Prompts;

/// Backbone, adapter and classifier of a run.
#[derive(Module, Debug)]
pub struct Model {
    /// The pre-trained backbone; frozen unless the method trains it.
    pub backbone: Vit,
    /// The directions and magnitudes; without directions it changes nothing.
    pub adapter: Adapter,
    /// What the head has learned; empty before the first task.
    pub head: HeadState,
    /// What a prompt method reads beside the image; absent for all others.
    pub prompts: Option<Prompts>,
    /// What old tasks used of the inputs of every block, frozen; only of a method that keeps it.
    pub memory: Option<GradientMemory>,
}

/// A part of a [`Model`] that may have a learning rate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The backbone, where it is trained.
    Backbone,
    /// The factors of the running direction.
    Directions,
    /// The magnitudes.
    Magnitudes,
    /// The trained classifier.
    Head,
    /// The prompts and their keys.
    Prompts,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 5] = [
        Self::Backbone,
        Self::Directions,
        Self::Magnitudes,
        Self::Head,
        Self::Prompts,
    ];

    /// Where the parameters of the part lie in a [`Model`].
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Backbone => "backbone",
            Self::Directions => "adapter.sites",
            Self::Magnitudes => "adapter.magnitudes",
            Self::Head => "head",
            Self::Prompts => "prompts",
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
            prompts: None,
            memory: None,
        }
    }

    /// Features `[batch, d_model]` of `images: [batch, n_channels, image_size, image_size]`.
    pub fn features(&self, images: Tensor<4>) -> Tensor<2> {
        let updates = self.adapter.updates();
        match &self.prompts {
            None => self.backbone.forward(images, &updates),
            Some(prompts) => prompts.features(&self.backbone, images, &updates),
        }
    }

    /// Features `[batch, d_model]` to train on, and what the model itself adds to the loss `[1]`.
    /// Prompts of the running task may be given to its images where evaluation would have to find
    /// them.
    pub fn training_features(&self, images: Tensor<4>) -> (Tensor<2>, Option<Tensor<1>>) {
        match &self.prompts {
            None => (self.features(images), None),
            Some(prompts) => {
                prompts.training_features(&self.backbone, images, &self.adapter.updates())
            }
        }
    }

    /// Number of parameters that receive gradients.
    pub fn n_trained(&self) -> usize {
        n_trained(self)
    }

    /// What evaluates and predicts: the merged backbone with the prompts, without autodiff.
    pub fn extractor(&self) -> Extractor {
        let prompts = self.prompts.as_ref().map(Module::valid);
        Extractor::from(self.merged_backbone()).with_prompts(prompts)
    }

    /// The backbone with the updates inside its weights, without autodiff: what is exported. It
    /// knows nothing of prompts; for features see [`Model::extractor`].
    pub fn merged_backbone(&self) -> Vit {
        let inner = self.valid();
        let updates = inner.adapter.updates();
        inner.backbone.merged(&updates)
    }

    /// Everything that is kept of tasks whose images are gone, the adapter aside.
    pub fn floats_stored(&self) -> FloatsStored {
        let memory = self.memory.as_ref().map_or(0, GradientMemory::n_floats);
        let prompts = self.prompts.as_ref().map(Prompts::floats_stored);
        let prompts = prompts.unwrap_or_default();
        let mut stored = self.head.floats_stored();
        stored.per_class += prompts.per_class;
        stored.shared += memory + prompts.shared;
        stored.total += memory + prompts.total;
        stored
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

/// A generator for one purpose in one task: nothing has to be carried from task to task, so a
/// resumed run draws what an unbroken one does.
pub fn generator(seed: u64, purpose: u64, task_idx: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((purpose << 32) | task_idx as u64);
    rng
}
