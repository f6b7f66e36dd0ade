//! What a method trains: backbone, adapter and head together.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_core::Adapter;
use sdlora_vit::Vit;

use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::features::{ClassMeans, FeatureTable};
use crate::head::LinearHead;
use crate::prompts::Prompts;
use crate::ridge::Ridge;

/// Backbone, adapter and classifier of a run.
#[derive(Module, Debug)]
pub struct Model {
    /// The pre-trained backbone; frozen unless the method trains it.
    pub backbone: Vit,
    /// The directions and magnitudes; without directions it changes nothing.
    pub adapter: Adapter,
    /// The trained classifier; absent before the first task and for class means.
    pub head: Option<LinearHead>,
    /// Unit-length class means `[n_classes, d_model]`, frozen; only with [`HeadKind::Ncm`].
    pub class_means: Option<Param<Tensor<2>>>,
    /// Closed-form classifier and its statistics, frozen; only with [`HeadKind::Ridge`].
    pub ridge: Option<Ridge>,
    /// What a prompt method reads beside the image; absent for all others.
    pub prompts: Option<Prompts>,
}

/// What turns features into a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// The trained linear classifier.
    #[default]
    Linear,
    /// Nearest class mean by cosine; stores `d_model` numbers per class and no image.
    Ncm,
    /// Ridge regression, see [`Ridge`]; stores `3 · d_model` numbers per class, `2 · d_model²` once
    /// and no image.
    Ridge,
}

impl Model {
    /// A model before its first task; the backbone is frozen.
    pub fn new(backbone: Vit, adapter: Adapter) -> Self {
        Self {
            backbone: backbone.no_grad(),
            adapter,
            head: None,
            class_means: None,
            ridge: None,
            prompts: None,
        }
    }

    /// The model with a head of `n_new` more classes, new columns drawn from `seed`.
    pub fn with_grown_head(mut self, n_new: usize, rng: &mut ChaCha8Rng, device: &Device) -> Self {
        let new = LinearHead::init(self.backbone.config().d_model, n_new, rng, device);
        self.head = Some(match self.head.take() {
            Some(old) => old.grown(new),
            None => new,
        });
        self
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

    /// Number of classes the trained head tells apart.
    pub fn n_head_classes(&self) -> usize {
        self.head.as_ref().map_or(0, LinearHead::n_classes)
    }

    /// Number of parameters that receive gradients.
    pub fn n_trained(&self) -> usize {
        struct Count(usize);
        impl ModuleVisitor for Count {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if param.is_require_grad() {
                    self.0 += param.lazy_shape().num_elements();
                }
            }
        }
        let mut count = Count(0);
        self.visit(&mut count);
        count.0
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

    /// Fits a head that is computed from features rather than trained by steps, after the images of
    /// a task; a trained head stays as it is.
    pub fn with_fitted_head(
        mut self,
        head: HeadKind,
        table: &FeatureTable,
        first_label: usize,
        device: &Device,
    ) -> Self {
        match head {
            HeadKind::Linear => {}
            HeadKind::Ncm => self = self.with_class_means(table, first_label, device),
            HeadKind::Ridge => self.ridge = Some(Ridge::fitted(self.ridge.as_ref(), table, device)),
        }
        self
    }

    /// Adds the means of new classes to the class means; rows of earlier classes stay as they were.
    pub fn with_class_means(
        mut self,
        table: &FeatureTable,
        first_label: usize,
        device: &Device,
    ) -> Self {
        let new = ClassMeans::of(table);
        let d = new.d_model;
        let mut means = self.class_means_host().means;
        means.truncate(first_label * d);
        means.extend_from_slice(&new.means[first_label * d..]);
        let shape = [means.len() / d, d];
        let tensor = Tensor::from_data(TensorData::new(means, shape), device);
        self.class_means = Some(Param::from_tensor(tensor).set_require_grad(false));
        self
    }

    /// The class means on the host.
    pub fn class_means_host(&self) -> ClassMeans {
        ClassMeans {
            means: self.class_means.as_ref().map_or(Vec::new(), |means| {
                means.val().into_data().iter::<f32>().collect()
            }),
            d_model: self.backbone.config().d_model,
        }
    }

    /// The predicted label, over all classes seen, of every row of a table of features.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] when the model has no classifier yet.
    pub fn predict(&self, table: &FeatureTable, head: HeadKind) -> Result<Vec<usize>, TrainError> {
        if head == HeadKind::Ncm {
            return Ok(self.class_means_host().predict(table));
        }
        let (weight, bias) = self.linear_classifier(head)?;
        let [_, n_classes] = weight.dims();
        let weight: Vec<f32> = weight.into_data().iter::<f32>().collect();
        let bias: Vec<f32> = bias.into_data().iter::<f32>().collect();
        let mut logits = vec![0.0f32; n_classes];
        Ok((0..table.len())
            .map(|i| {
                logits.copy_from_slice(&bias);
                for (&x, w) in table.row(i).iter().zip(weight.chunks_exact(n_classes)) {
                    for (logit, &w) in logits.iter_mut().zip(w) {
                        *logit += x * w;
                    }
                }
                argmax(&logits)
            })
            .collect())
    }

    /// Weight `[d_model, n_classes]` and bias `[n_classes]` of a classifier that is linear in the
    /// features. Class means are linear too: their bias is 0, and the cosine is these logits divided
    /// by the length of the feature, which changes no prediction.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] when the model has no such classifier yet.
    pub fn linear_classifier(&self, head: HeadKind) -> Result<(Tensor<2>, Tensor<1>), TrainError> {
        let without_bias = |rows: &Param<Tensor<2>>| {
            let weight = rows.val().transpose();
            let [_, n_classes] = weight.dims();
            let bias = Tensor::zeros([n_classes], &weight.device());
            (weight, bias)
        };
        let found = match head {
            HeadKind::Linear => self.head.as_ref().map(|h| (h.weight.val(), h.bias.val())),
            HeadKind::Ncm => self.class_means.as_ref().map(without_bias),
            HeadKind::Ridge => self.ridge.as_ref().map(|r| without_bias(&r.weight)),
        };
        found.ok_or_else(|| {
            TrainError::setting(
                "head",
                format!("{head:?}").to_lowercase(),
                "a head this model has: `linear` for a method that takes steps, or a fitted one",
            )
        })
    }
}

/// Position of the largest entry, the first of equals.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = i;
        }
    }
    best
}

/// A generator for one purpose in one task: nothing has to be carried from task to task, so a
/// resumed run draws what an unbroken one does.
pub fn generator(seed: u64, purpose: u64, task_idx: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((purpose << 32) | task_idx as u64);
    rng
}
