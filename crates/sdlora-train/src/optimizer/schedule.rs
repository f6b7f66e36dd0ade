//! The learning rate over the steps of one task.

use serde::{Deserialize, Serialize};

/// How the learning rate changes over the steps of one task; a TOML table with the key `shape`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(try_from = "RawSchedule", into = "RawSchedule")]
pub enum Schedule {
    /// `constant`: the same in every step.
    #[default]
    Constant,
    /// `cosine`: `eta_min + ½ (lr − eta_min) (1 + cos(π k / n_steps))`, after `warmup` of the steps
    /// rising in a line from 0.
    Cosine {
        /// Share of the steps, from 0 to below 1; 0 when left out.
        warmup: f64,
        /// Rate the cosine falls to, from 0 to the learning rate; 0 when left out.
        eta_min: f64,
    },
    /// `multi-step`: multiplied by `gamma` at the start of each of these epochs.
    MultiStep {
        /// Epochs, from 0, increasing; at least one, and none behind the last epoch of the task.
        milestones: Vec<usize>,
        /// Factor at each of them.
        gamma: f64,
    },
}

impl Schedule {
    /// The cosine to 0 over all steps.
    pub fn cosine() -> Self {
        Self::Cosine {
            warmup: 0.0,
            eta_min: 0.0,
        }
    }

    /// The learning rate in step `step` of `n_steps`, which lies in epoch `epoch`, where `lr` is the rate that
    /// the schedule starts from.
    pub fn lr_at(&self, lr: f64, step: usize, n_steps: usize, epoch: usize) -> f64 {
        lr * self.factor(lr, step, n_steps, epoch)
    }

    /// Factor on the learning rate `lr` in step `step` of `n_steps`, which lies in epoch `epoch`.
    fn factor(&self, lr: f64, step: usize, n_steps: usize, epoch: usize) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Cosine { warmup, eta_min } => {
                let n_warmup = (warmup * n_steps as f64).floor();
                let k = step as f64;
                if k < n_warmup {
                    return (k + 1.0) / n_warmup;
                }
                let share = (k - n_warmup) / (n_steps as f64 - n_warmup);
                let floor = eta_min / lr;
                floor + 0.5 * (1.0 - floor) * (1.0 + (std::f64::consts::PI * share).cos())
            }
            Self::MultiStep { milestones, gamma } => {
                let passed = milestones.iter().filter(|&&m| epoch >= m).count();
                gamma.powi(passed as i32)
            }
        }
    }
}

/// The keys as typed: flat, because serde ignores unknown keys beside a tag without fields.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSchedule {
    shape: Shape,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warmup: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eta_min: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    milestones: Option<Vec<usize>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gamma: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Shape {
    Constant,
    Cosine,
    MultiStep,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Cosine => "cosine",
            Self::MultiStep => "multi-step",
        }
    }
}

impl TryFrom<RawSchedule> for Schedule {
    type Error = String;

    fn try_from(raw: RawSchedule) -> Result<Self, String> {
        for (key, is_set, owner) in [
            ("warmup", raw.warmup.is_some(), Shape::Cosine),
            ("eta_min", raw.eta_min.is_some(), Shape::Cosine),
            ("milestones", raw.milestones.is_some(), Shape::MultiStep),
            ("gamma", raw.gamma.is_some(), Shape::MultiStep),
        ] {
            if is_set && raw.shape != owner {
                return Err(format!(
                    "`{key}` belongs to the schedule `{}` and not to `{}`: remove it or change `shape`",
                    owner.name(),
                    raw.shape.name()
                ));
            }
        }
        Ok(match raw.shape {
            Shape::Constant => Self::Constant,
            Shape::Cosine => Self::Cosine {
                warmup: raw.warmup.unwrap_or(0.0),
                eta_min: raw.eta_min.unwrap_or(0.0),
            },
            Shape::MultiStep => {
                let missing =
                    |key: &str| format!("the schedule `multi-step` needs `{key}`: add it");
                Self::MultiStep {
                    milestones: raw.milestones.ok_or_else(|| missing("milestones"))?,
                    gamma: raw.gamma.ok_or_else(|| missing("gamma"))?,
                }
            }
        })
    }
}

impl From<Schedule> for RawSchedule {
    fn from(schedule: Schedule) -> Self {
        let none = Self {
            shape: Shape::Constant,
            warmup: None,
            eta_min: None,
            milestones: None,
            gamma: None,
        };
        match schedule {
            Schedule::Constant => none,
            Schedule::Cosine { warmup, eta_min } => Self {
                shape: Shape::Cosine,
                warmup: Some(warmup),
                eta_min: Some(eta_min),
                ..none
            },
            Schedule::MultiStep { milestones, gamma } => Self {
                shape: Shape::MultiStep,
                milestones: Some(milestones),
                gamma: Some(gamma),
                ..none
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_by_hand() {
        let cosine = Schedule::Cosine {
            warmup: 0.2,
            eta_min: 0.0,
        };
        let factors: Vec<f64> = (0..10).map(|k| cosine.factor(0.5, k, 10, 0)).collect();
        assert_eq!(factors[..3], [0.5, 1.0, 1.0]);
        assert!((factors[6] - 0.5).abs() < 1e-12);
        // Half way from 0.5 down to 0.1 is 0.3, a factor of 0.6.
        let to_a_tenth = Schedule::Cosine {
            warmup: 0.0,
            eta_min: 0.1,
        };
        assert!((to_a_tenth.factor(0.5, 5, 10, 0) - 0.6).abs() < 1e-12);
        let steps = Schedule::MultiStep {
            milestones: vec![2, 4],
            gamma: 0.1,
        };
        assert_eq!(steps.factor(1.0, 0, 1, 1), 1.0);
        assert!((steps.factor(1.0, 0, 1, 4) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn schedules_read_what_they_write() {
        let steps = Schedule::MultiStep {
            milestones: vec![1, 3],
            gamma: 0.5,
        };
        for schedule in [Schedule::Constant, Schedule::cosine(), steps] {
            let text = toml::to_string(&schedule).unwrap();
            assert_eq!(
                toml::from_str::<Schedule>(&text).unwrap(),
                schedule,
                "{text}"
            );
        }
    }

    #[test]
    fn keys_of_another_shape_and_missing_keys_are_refused_by_name() {
        for (text, key) in [
            ("shape = \"constant\"\nwarmup = 0.1", "warmup"),
            ("shape = \"constant\"\ngama = 0.1", "gama"),
            ("shape = \"cosine\"\ngamma = 0.1", "gamma"),
            (
                "shape = \"multi-step\"\neta_min = 0.1\nmilestones = [1]\ngamma = 0.1",
                "eta_min",
            ),
            ("shape = \"multi-step\"\ngamma = 0.1", "milestones"),
            ("shape = \"linear\"", "linear"),
        ] {
            let error = toml::from_str::<Schedule>(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
    }
}
