//! What a model stores, part by part.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::model::Model;

/// A part of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Numbers it stores, each of 4 bytes.
    pub n_stored: usize,
    /// Those of them that received gradients in the last task.
    pub n_trained: usize,
}

/// The parts of a model that store something.
pub fn parts(model: &Model) -> Vec<Part> {
    // Every field by name: one that is added later is counted, or does not compile.
    let Model {
        backbone,
        adapter,
        head,
        state,
    } = model;
    let mut directions = Count::default();
    adapter.sites.visit(&mut directions);
    let arrays = head.per_class.values().chain(head.shared.values());
    let mut parts = vec![
        of("backbone", Some(backbone)),
        Part {
            name: "directions",
            n_stored: directions.stored,
            n_trained: directions.trained,
        },
        of("magnitudes", adapter.magnitudes.as_ref()),
        of("method state", Some(state)),
        head_part(model),
        Part {
            name: "head statistics",
            n_stored: arrays.map(|array| array.values.len()).sum(),
            n_trained: 0,
        },
    ];
    parts.retain(|part| part.n_stored > 0);
    parts
}

/// The trained columns; those that took no part in the last task are stored and were not trained.
fn head_part(model: &Model) -> Part {
    let mut part = of("head", model.head.trained.as_ref());
    if let Some(trained) = &model.head.trained
        && let Some(n_in_task) = trained.n_in_task
    {
        let per_class = trained.weight.lazy_shape().num_elements() / trained.n_classes().max(1)
            + usize::from(trained.bias.is_some());
        let n_resting = trained.n_classes() - n_in_task;
        part.n_trained = part.n_trained.saturating_sub(n_resting * per_class);
    }
    part
}

fn of<M: Module>(name: &'static str, module: Option<&M>) -> Part {
    let mut count = Count::default();
    if let Some(module) = module {
        module.visit(&mut count);
    }
    Part {
        name,
        n_stored: count.stored,
        n_trained: count.trained,
    }
}

#[derive(Default)]
struct Count {
    stored: usize,
    trained: usize,
}

impl ModuleVisitor for Count {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let n = param.lazy_shape().num_elements();
        self.stored += n;
        if param.is_require_grad() {
            self.trained += n;
        }
    }
}
