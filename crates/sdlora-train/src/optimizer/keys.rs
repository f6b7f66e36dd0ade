//! The settings of an optimiser, and the keys of `[optimizer]` as they are typed.
//!
//! A flattened, tagged [`Rule`] would let serde ignore keys it does not know, so a misspelt
//! `momentum` would train with the default. Here every key is a field, and what does not belong to
//! the rule is refused by name.

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;

/// The rule that turns gradients into steps; the key `rule` names it and its fields stand beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// `sgd`: stochastic gradient descent; `v ← momentum · v + (1 − dampening) · g`, started with
    /// `v = g`.
    Sgd {
        /// Share of the last velocity, from 0 to below 1; 0.9 when left out.
        momentum: f64,
        /// Reduction of the new gradient, from 0 to 1; 0 when left out.
        dampening: f64,
        /// Looks one velocity ahead; not when left out.
        nesterov: bool,
    },
    /// `adam`: Adam with bias correction; weight decay is added to the gradient.
    Adam {
        /// Decay of the first moment; 0.9 when left out.
        beta1: f64,
        /// Decay of the second moment; 0.999 when left out.
        beta2: f64,
        /// Added to the root of the second moment; 1e-8 when left out.
        eps: f64,
    },
    /// `adamw`: Adam with decoupled weight decay.
    AdamW {
        /// Decay of the first moment; 0.9 when left out.
        beta1: f64,
        /// Decay of the second moment; 0.999 when left out.
        beta2: f64,
        /// Added to the root of the second moment; 1e-8 when left out.
        eps: f64,
    },
}

/// Momentum of the published code.
pub(super) const MOMENTUM: f64 = 0.9;
/// PyTorch's defaults of Adam and AdamW.
pub(super) const BETA1: f64 = 0.9;
pub(super) const BETA2: f64 = 0.999;
pub(super) const EPS: f64 = 1e-8;

/// Settings of an optimiser; a new one is made at the start of every task.
///
/// Its TOML form is flat: `rule = "sgd"`, `lr = 0.01`, `momentum = 0.9`; keys that are unknown or
/// belong to another rule are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawOptimizer", into = "RawOptimizer")]
pub struct OptimizerConfig {
    /// The rule.
    pub rule: Rule,
    /// Learning rate, greater than 0.
    pub lr: f64,
    /// Weight decay, at least 0; 0 when left out.
    pub weight_decay: f64,
    /// Largest norm of the gradient over all parameters together; not bounded when absent.
    pub max_grad_norm: Option<f64>,
    /// The learning rate over the steps of a task; constant when left out.
    pub schedule: Schedule,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOptimizer {
    rule: RuleName,
    lr: f64,
    #[serde(default)]
    weight_decay: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_grad_norm: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dampening: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nesterov: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beta1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beta2: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eps: Option<f64>,
    #[serde(default)]
    schedule: Schedule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RuleName {
    Sgd,
    Adam,
    AdamW,
}

impl TryFrom<RawOptimizer> for OptimizerConfig {
    type Error = String;

    fn try_from(raw: RawOptimizer) -> Result<Self, String> {
        let is_sgd = raw.rule == RuleName::Sgd;
        for (key, is_set, of_sgd) in [
            ("momentum", raw.momentum.is_some(), true),
            ("dampening", raw.dampening.is_some(), true),
            ("nesterov", raw.nesterov.is_some(), true),
            ("beta1", raw.beta1.is_some(), false),
            ("beta2", raw.beta2.is_some(), false),
            ("eps", raw.eps.is_some(), false),
        ] {
            if is_set && of_sgd != is_sgd {
                let (owner, rule) = if of_sgd {
                    ("`sgd`", "`adam` or `adamw`")
                } else {
                    ("`adam` and `adamw`", "`sgd`")
                };
                return Err(format!(
                    "`{key}` belongs to the rule {owner} and not to {rule}: remove it or change \
                     `rule`"
                ));
            }
        }
        let beta1 = raw.beta1.unwrap_or(BETA1);
        let beta2 = raw.beta2.unwrap_or(BETA2);
        let eps = raw.eps.unwrap_or(EPS);
        Ok(Self {
            rule: match raw.rule {
                RuleName::Sgd => Rule::Sgd {
                    momentum: raw.momentum.unwrap_or(MOMENTUM),
                    dampening: raw.dampening.unwrap_or(0.0),
                    nesterov: raw.nesterov.unwrap_or(false),
                },
                RuleName::Adam => Rule::Adam { beta1, beta2, eps },
                RuleName::AdamW => Rule::AdamW { beta1, beta2, eps },
            },
            lr: raw.lr,
            weight_decay: raw.weight_decay,
            max_grad_norm: raw.max_grad_norm,
            schedule: raw.schedule,
        })
    }
}

impl From<OptimizerConfig> for RawOptimizer {
    fn from(config: OptimizerConfig) -> Self {
        let mut raw = Self {
            rule: RuleName::Sgd,
            lr: config.lr,
            weight_decay: config.weight_decay,
            max_grad_norm: config.max_grad_norm,
            momentum: None,
            dampening: None,
            nesterov: None,
            beta1: None,
            beta2: None,
            eps: None,
            schedule: config.schedule,
        };
        match config.rule {
            Rule::Sgd {
                momentum,
                dampening,
                nesterov,
            } => {
                raw.momentum = Some(momentum);
                raw.dampening = Some(dampening);
                raw.nesterov = Some(nesterov);
            }
            Rule::Adam { beta1, beta2, eps } | Rule::AdamW { beta1, beta2, eps } => {
                raw.rule = match config.rule {
                    Rule::Adam { .. } => RuleName::Adam,
                    _ => RuleName::AdamW,
                };
                (raw.beta1, raw.beta2, raw.eps) = (Some(beta1), Some(beta2), Some(eps));
            }
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_what_they_write() {
        let mut adam = OptimizerConfig::adamw(1e-3, 0.1);
        adam.rule = Rule::Adam {
            beta1: 0.8,
            beta2: 0.9,
            eps: 1e-6,
        };
        adam.schedule = Schedule::cosine();
        adam.max_grad_norm = Some(2.0);
        for config in [
            OptimizerConfig::sgd(0.1),
            OptimizerConfig::adamw(1e-3, 0.1),
            adam,
        ] {
            let text = toml::to_string(&config).unwrap();
            assert_eq!(
                toml::from_str::<OptimizerConfig>(&text).unwrap(),
                config,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_left_out_has_the_value_of_the_constructors() {
        let read = |text: &str| toml::from_str::<OptimizerConfig>(text).unwrap();
        assert_eq!(read("rule = \"sgd\"\nlr = 0.1"), OptimizerConfig::sgd(0.1));
        let adamw = read("rule = \"adamw\"\nlr = 0.1\nweight_decay = 0.2");
        assert_eq!(adamw, OptimizerConfig::adamw(0.1, 0.2));
    }

    #[test]
    fn unknown_keys_and_keys_of_another_rule_are_refused_by_name() {
        for (rule, key, value) in [
            ("sgd", "momentm", "0.9"),
            ("adam", "momentm", "0.9"),
            ("sgd", "eps", "1e-8"),
            ("sgd", "beta1", "0.9"),
            ("adam", "momentum", "0.9"),
            ("adamw", "nesterov", "true"),
            ("adamw", "dampening", "0.0"),
            ("adamw", "shedule", "{ shape = \"cosine\" }"),
            ("sgd", "weight_decai", "0.1"),
        ] {
            let text = format!("rule = \"{rule}\"\nlr = 0.1\n{key} = {value}");
            let error = toml::from_str::<OptimizerConfig>(&text)
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        let error = toml::from_str::<OptimizerConfig>("rule = \"rmsprop\"\nlr = 0.1").unwrap_err();
        assert!(error.to_string().contains("`rmsprop`"), "{error}");
    }
}
