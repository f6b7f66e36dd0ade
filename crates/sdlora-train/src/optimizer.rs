//! Optimisers and learning-rate schedules, with PyTorch's conventions.
//!
//! burn's optimisers do the arithmetic; this file sets the defaults that make them PyTorch's
//! (dampening 0, Adam eps 1e-8) and adds a gradient norm over all parameters, which burn has per
//! parameter only.

mod keys;
mod lr_factors;
mod schedule;

use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::Tensor;

use crate::error::TrainError;
use keys::{BETA1, BETA2, EPS, MOMENTUM};
pub use keys::{OptimizerConfig, Rule};
pub use lr_factors::LrFactors;
pub use schedule::Schedule;

impl OptimizerConfig {
    /// SGD with momentum 0.9 and nothing else, as the published code uses it.
    pub fn sgd(lr: f64) -> Self {
        Self {
            rule: Rule::Sgd {
                momentum: MOMENTUM,
                dampening: 0.0,
                nesterov: false,
            },
            lr,
            weight_decay: 0.0,
            max_grad_norm: None,
            schedule: Schedule::Constant,
        }
    }

    /// AdamW with PyTorch's moments.
    pub fn adamw(lr: f64, weight_decay: f64) -> Self {
        Self {
            rule: Rule::AdamW {
                beta1: BETA1,
                beta2: BETA2,
                eps: EPS,
            },
            weight_decay,
            ..Self::sgd(lr)
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for the first value outside its range.
    pub fn check(&self) -> Result<(), TrainError> {
        let refuse = |name: &str, value: f64, expected: &str| {
            Err(TrainError::setting(
                format!("optimizer.{name}"),
                value,
                expected,
            ))
        };
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return refuse("lr", self.lr, "a finite number greater than 0");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return refuse("weight_decay", self.weight_decay, "a finite number from 0");
        }
        if let Some(norm) = self.max_grad_norm
            && !(norm.is_finite() && norm > 0.0)
        {
            return refuse(
                "max_grad_norm",
                norm,
                "a finite number greater than 0, or leave it out",
            );
        }
        match self.rule {
            Rule::Sgd {
                momentum,
                dampening,
                nesterov,
            } => {
                if !(0.0..1.0).contains(&momentum) {
                    return refuse("momentum", momentum, "a number from 0 to below 1");
                }
                if !(0.0..=1.0).contains(&dampening) {
                    return refuse("dampening", dampening, "a number from 0 to 1");
                }
                if nesterov && (momentum == 0.0 || dampening != 0.0) {
                    return refuse("nesterov", 1.0, "false, or a momentum and no dampening");
                }
            }
            Rule::Adam { beta1, beta2, eps } | Rule::AdamW { beta1, beta2, eps } => {
                for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
                    if !(0.0..1.0).contains(&beta) {
                        return refuse(name, beta, "a number from 0 to below 1");
                    }
                }
                if !(eps.is_finite() && eps > 0.0) {
                    return refuse("eps", eps, "a finite number greater than 0");
                }
            }
        }
        match &self.schedule {
            Schedule::Cosine { warmup, .. } if !(0.0..1.0).contains(warmup) => {
                refuse("schedule.warmup", *warmup, "a share from 0 to below 1")
            }
            Schedule::Cosine { eta_min, .. } if !(0.0..=self.lr).contains(eta_min) => refuse(
                "schedule.eta_min",
                *eta_min,
                "a rate from 0 to `optimizer.lr`",
            ),
            Schedule::MultiStep { gamma, .. } if !(gamma.is_finite() && *gamma > 0.0) => {
                refuse("schedule.gamma", *gamma, "a finite number greater than 0")
            }
            Schedule::MultiStep { milestones, .. }
                if milestones.is_empty() || milestones.windows(2).any(|m| m[0] >= m[1]) =>
            {
                Err(TrainError::setting(
                    "optimizer.schedule.milestones",
                    format!("{milestones:?}"),
                    "one epoch or more, from 0, each once and in ascending order",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Checks that everything in the schedule happens in a task of so many epochs.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for a milestone behind the last epoch.
    pub fn check_epochs(&self, n_epochs: usize) -> Result<(), TrainError> {
        let Schedule::MultiStep { milestones, .. } = &self.schedule else {
            return Ok(());
        };
        match milestones.iter().find(|&&milestone| milestone >= n_epochs) {
            None => Ok(()),
            Some(_) => Err(TrainError::setting(
                "optimizer.schedule.milestones",
                format!("{milestones:?}"),
                format!(
                    "epochs from 0 to {}, because a task has {n_epochs}; a later one never comes",
                    n_epochs.saturating_sub(1)
                ),
            )),
        }
    }

    /// A fresh optimiser.
    pub fn init(&self) -> ModuleOptimizer {
        let decay =
            (self.weight_decay > 0.0).then(|| WeightDecayConfig::new(self.weight_decay as f32));
        match self.rule {
            Rule::Sgd {
                momentum,
                dampening,
                nesterov,
            } => {
                let momentum = (momentum > 0.0).then(|| {
                    MomentumConfig::new()
                        .with_momentum(momentum)
                        .with_dampening(dampening)
                        .with_nesterov(nesterov)
                });
                SgdConfig::new()
                    .with_momentum(momentum)
                    .with_weight_decay(decay)
                    .init()
            }
            Rule::Adam { beta1, beta2, eps } => AdamConfig::new()
                .with_beta_1(beta1 as f32)
                .with_beta_2(beta2 as f32)
                .with_epsilon(eps as f32)
                .with_weight_decay(decay)
                .init(),
            Rule::AdamW { beta1, beta2, eps } => AdamWConfig::new()
                .with_beta_1(beta1 as f32)
                .with_beta_2(beta2 as f32)
                .with_epsilon(eps as f32)
                .with_weight_decay(self.weight_decay as f32)
                .init(),
        }
    }

    /// The learning rate in step `step` of `n_steps`, which lies in epoch `epoch`.
    pub fn lr_at(&self, step: usize, n_steps: usize, epoch: usize) -> f64 {
        self.schedule.lr_at(self.lr, step, n_steps, epoch)
    }

    /// One step of learning rate `lr`: gradients of `loss`, bounded as the settings say, applied to `module`.
    pub fn step<M: Module>(
        &self,
        optimizer: &mut ModuleOptimizer,
        module: M,
        loss: &Tensor<1>,
        lr: f64,
    ) -> M {
        let grads = GradientsParams::from_grads(loss.backward(), &module);
        self.apply(optimizer, module, grads, lr.into())
    }

    /// One step with gradients that are there already, and the learning rate of every parameter.
    pub fn apply<M: Module>(
        &self,
        optimizer: &mut ModuleOptimizer,
        module: M,
        mut grads: GradientsParams,
        rates: ModuleLearningRate,
    ) -> M {
        if let Some(max_norm) = self.max_grad_norm {
            grads = clip_grad_norm(grads, &module, max_norm);
        }
        optimizer.step(rates, module, grads)
    }
}

/// The sum of the squares of all gradients `[1]`; `None` where there is none.
fn sum_of_squares<M: Module>(grads: &GradientsParams, module: &M) -> Option<Tensor<1>> {
    struct SumOfSquares<'a> {
        grads: &'a GradientsParams,
        sum: Option<Tensor<1>>,
    }
    impl ModuleVisitor for SumOfSquares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(grad) = self.grads.get::<D>(param.id) else {
                return;
            };
            let square = (grad.clone() * grad).sum();
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + square,
                None => square,
            });
        }
    }
    let mut squares = SumOfSquares { grads, sum: None };
    module.visit(&mut squares);
    squares.sum
}

/// Whether no gradient is infinite or not a number.
pub(crate) fn are_finite<M: Module>(grads: &GradientsParams, module: &M) -> bool {
    sum_of_squares(grads, module).is_none_or(|sum| sum.into_scalar::<f32>().is_finite())
}

/// Scales all gradients by one factor so that their norm together is at most `max_norm`
/// (`torch.nn.utils.clip_grad_norm_`).
fn clip_grad_norm<M: Module>(grads: GradientsParams, module: &M, max_norm: f64) -> GradientsParams {
    struct Scale<'a> {
        grads: &'a mut GradientsParams,
        factor: Tensor<1>,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.remove::<D>(param.id) {
                let scaled = grad * self.factor.clone().reshape([1; D]);
                self.grads.register(param.id, scaled);
            }
        }
    }
    let Some(sum) = sum_of_squares(&grads, module) else {
        return grads;
    };
    // PyTorch's guard against a division by 0.
    let factor = (sum.sqrt() + 1e-6)
        .recip()
        .mul_scalar(max_norm)
        .clamp_max(1.0);
    let mut grads = grads;
    module.visit(&mut Scale {
        grads: &mut grads,
        factor,
    });
    grads
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use sdlora_testkit::test_device_autodiff;

    #[derive(Module, Debug)]
    struct Two {
        x: Param<Tensor<1>>,
        y: Param<Tensor<2>>,
    }

    fn two() -> Two {
        let device = test_device_autodiff();
        Two {
            x: Param::from_tensor(Tensor::from_data([3.0f32], &device)),
            y: Param::from_tensor(Tensor::from_data(TensorData::from([[4.0f32]]), &device)),
        }
    }

    #[test]
    fn one_norm_bounds_all_gradients_together() {
        // loss = ½ (3² + 4²): gradient (3, 4), norm 5, bounded to 1.
        let model = two();
        let loss = (model.x.val().powf_scalar(2.0).sum() + model.y.val().powf_scalar(2.0).sum())
            .mul_scalar(0.5);
        let mut config = OptimizerConfig::sgd(1.0);
        config.max_grad_norm = Some(1.0);
        let model = config.step(&mut config.init(), model, &loss, config.lr);
        assert!((model.x.val().into_scalar::<f32>() - 2.4).abs() < 1e-5);
        assert!((model.y.val().into_scalar::<f32>() - 3.2).abs() < 1e-5);
    }

    #[test]
    fn a_small_gradient_is_left_alone() {
        let model = two();
        let loss = model.x.val().sum().mul_scalar(0.5);
        let mut config = OptimizerConfig::sgd(1.0);
        config.max_grad_norm = Some(1.0);
        let model = config.step(&mut config.init(), model, &loss, config.lr);
        assert_eq!(model.x.val().into_scalar::<f32>(), 2.5);
    }

    #[test]
    fn a_gradient_that_is_no_number_is_seen() {
        let model = two();
        for (factor, expected) in [(1.0f32, true), (f32::INFINITY, false), (f32::NAN, false)] {
            let loss = model.x.val().sum().mul_scalar(factor);
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            assert_eq!(are_finite(&grads, &model), expected, "{factor}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let mut config = OptimizerConfig::sgd(0.0);
        assert!(
            config
                .check()
                .unwrap_err()
                .to_string()
                .contains("optimizer.lr")
        );
        config.lr = 0.1;
        config.rule = Rule::Sgd {
            momentum: 1.0,
            dampening: 0.0,
            nesterov: false,
        };
        assert!(config.check().unwrap_err().to_string().contains("momentum"));
        config = OptimizerConfig::sgd(0.1);
        config.schedule = Schedule::Cosine {
            warmup: 0.0,
            eta_min: 0.2,
        };
        assert!(config.check().unwrap_err().to_string().contains("eta_min"));
    }
}
