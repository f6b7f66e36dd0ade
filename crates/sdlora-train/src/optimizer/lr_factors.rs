//! Learning rates of parts of a model: one rate and schedule, and factors on it.

use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::ParamGroup;

use crate::model::{Model, Part};

/// Factors on the learning rate, by part; parts without one have the rate itself.
#[derive(Debug, Clone, Default)]
pub struct LrFactors {
    groups: Vec<(ParamGroup, f64)>,
}

impl LrFactors {
    /// The factor of every part of a model, for the parameters that it has now.
    pub fn of(model: &Model, factor: impl Fn(Part) -> f64) -> Self {
        let groups = Part::ALL.into_iter().filter_map(|part| {
            let factor = factor(part);
            (factor != 1.0).then(|| (part.parameters(model), factor))
        });
        Self {
            groups: groups.collect(),
        }
    }

    /// The rate of every parameter where the rate itself is `lr`.
    pub fn rates(&self, lr: f64) -> ModuleLearningRate {
        let mut rates = ModuleLrScheduler::new(lr);
        for (group, factor) in &self.groups {
            rates = rates.with_group(group.clone(), lr * factor);
        }
        rates.step()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::{Module, ModuleVisitor, Param, ParamId};
    use burn::tensor::Tensor;
    use rand::SeedableRng;
    use sdlora_core::{Adapter, Variant};
    use sdlora_testkit::test_device;
    use sdlora_vit::{Projection, Vit, VitConfig};

    /// Paths and ids of all parameters.
    fn parameters(model: &Model) -> Vec<(String, ParamId)> {
        struct Collect(Vec<String>, Vec<(String, ParamId)>);
        impl ModuleVisitor for Collect {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.0.push(name.to_owned());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.0.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.1.push((self.0.join("."), param.id));
            }
        }
        let mut collect = Collect(Vec::new(), Vec::new());
        model.visit(&mut collect);
        collect.1
    }

    #[test]
    fn every_parameter_of_a_model_has_the_rate_of_its_part() {
        let device = test_device();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let vit = Vit::init(&VitConfig::standard(8, 4, 12, 1, 2), &mut rng, &device).unwrap();
        let sites = vit.config().sites(&[Projection::Query]);
        let adapter = Adapter::new(Variant::Paper.config(), &sites).unwrap();
        let mut model = Model::new(vit, adapter);
        model.adapter = model.adapter.begin_task(2, &mut rng, &device).unwrap();
        let head = crate::HeadConfig::named("cosine").build().unwrap();
        let start = crate::heads::ColumnStart::Torch;
        model.head = model
            .head
            .grown(head.as_ref(), start, 12, 3, &mut rng, &device);
        let factors = LrFactors::of(&model, |part| match part {
            Part::Backbone => 0.01,
            Part::Directions => 2.0,
            Part::Magnitudes => 3.0,
            Part::Gates => 4.0,
            Part::Head | Part::State => 1.0,
        });
        let rates = factors.rates(0.5);
        let mut seen = [false; 4];
        for (path, id) in parameters(&model) {
            let (part, expected) = match path.split('.').collect::<Vec<_>>()[..] {
                ["backbone", ..] => (0, 0.005),
                ["adapter", "sites", ..] => (1, 1.0),
                ["adapter", "magnitudes", ..] => (2, 1.5),
                _ => (3, 0.5),
            };
            seen[part] = true;
            assert_eq!(rates.lr_from_param(id, Some(&path)), expected, "{path}");
        }
        assert_eq!(seen, [true; 4]);
        assert_eq!(LrFactors::default().rates(0.5).base(), 0.5);
    }
}
