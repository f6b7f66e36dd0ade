//! The choices on which the numbers of SD-LoRA depend, each a named setting.
//!
//! Paper and published code differ in what divides a past direction, whether the current one is
//! normalised and how the magnitudes start a task; [`Variant`] names the three combinations that
//! are offered, [`SdLoraConfig`] holds the single settings.

use serde::{Deserialize, Serialize};

use crate::error::CoreError;

/// What divides a direction once its task is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PastNorm {
    /// `‖A‖_F · ‖B‖_F`, as the published code computes it.
    FactorProduct,
    /// `‖A B‖_F` (paper, equation 4).
    Frobenius,
    /// 1: the direction stays as it was trained (a LoRA per task, O-LoRA).
    Unit,
    /// One norm for all sites that share a magnitude: the root mean square of their `‖A B‖_F`.
    ///
    /// With it the norm can move into a shared magnitude and leave every site's update as it was.
    SharedFrobenius,
}

/// How the direction of the running task enters the weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "form")]
pub enum CurrentForm {
    /// `A B` as it is (published code).
    Raw,
    /// `A B / √(‖A B‖_F² + eps²)`.
    ///
    /// The paper divides by the norm alone, which is 0 when the up-projection starts at 0; `eps`
    /// makes the start of a task defined, and bounds its first step by `1 / eps`.
    Normalised {
        /// Norm below which the direction counts as still growing; greater than 0.
        eps: f64,
    },
}

/// The magnitudes at the start of a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "start")]
pub enum MagnitudeStart {
    /// Every magnitude, also those of earlier tasks, is set to `value` (published code: 0.8).
    Reset {
        /// The value of all magnitudes.
        value: f64,
    },
    /// Earlier magnitudes keep what they learned, the new one starts at `value`.
    Keep {
        /// The value of the new magnitude.
        value: f64,
    },
    /// As `Keep`, and the magnitude of the task that ends absorbs the norm its direction is
    /// divided by, so the function does not jump at the task boundary.
    Carry {
        /// The value of the new magnitude.
        value: f64,
    },
}

/// Which sites share one magnitude per task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MagnitudeSharing {
    /// One scalar per task for the whole model (paper and published code).
    Shared,
    /// One scalar per task and group of sites, for instance those of a block.
    #[serde(rename = "per-block")]
    PerGroup,
}

/// The named combinations of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The published code as it runs.
    Reference,
    /// The equations of the paper.
    Paper,
    /// The norm of a finished direction moves into its magnitude: no jump at a task boundary.
    Carry,
}

impl Variant {
    /// Every variant, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Paper, Self::Carry];

    /// The name used in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Paper => "paper",
            Self::Carry => "carry",
        }
    }

    /// The settings the name stands for, with rank 10.
    pub fn config(self) -> SdLoraConfig {
        let (past_norm, current, start) = match self {
            Self::Reference => (
                PastNorm::FactorProduct,
                CurrentForm::Raw,
                MagnitudeStart::Reset { value: 0.8 },
            ),
            Self::Paper => (
                PastNorm::Frobenius,
                CurrentForm::Normalised { eps: 0.1 },
                MagnitudeStart::Keep { value: 1.0 },
            ),
            Self::Carry => (
                PastNorm::SharedFrobenius,
                CurrentForm::Raw,
                MagnitudeStart::Carry { value: 1.0 },
            ),
        };
        SdLoraConfig {
            past_norm,
            current,
            start,
            sharing: MagnitudeSharing::Shared,
        }
    }
}

/// How directions and magnitudes combine: `W = W0 + Σ_k α_k · D_k`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SdLoraConfig {
    /// What divides a past direction.
    pub past_norm: PastNorm,
    /// The form of the current direction.
    pub current: CurrentForm,
    /// The magnitudes at the start of a task.
    pub start: MagnitudeStart,
    /// Which sites share a magnitude.
    pub sharing: MagnitudeSharing,
}

impl SdLoraConfig {
    /// Checks that the settings hold together.
    ///
    /// # Errors
    ///
    /// [`CoreError::Setting`] for an `eps` that is not positive, a start value that is not
    /// finite, or `Carry` with a norm that differs between the sites of one magnitude.
    pub fn check(&self) -> Result<(), CoreError> {
        if let CurrentForm::Normalised { eps } = self.current
            && !(eps.is_finite() && eps > 0.0)
        {
            return Err(CoreError::Setting {
                setting: "current.eps",
                found: eps.to_string(),
                expected: "a finite number greater than 0",
            });
        }
        let (MagnitudeStart::Reset { value }
        | MagnitudeStart::Keep { value }
        | MagnitudeStart::Carry { value }) = self.start;
        if !value.is_finite() {
            return Err(CoreError::Setting {
                setting: "start.value",
                found: value.to_string(),
                expected: "a finite number",
            });
        }
        if self.past_norm == PastNorm::Unit && self.current != CurrentForm::Raw {
            return Err(CoreError::Setting {
                setting: "past_norm",
                found: "unit".into(),
                expected: "a raw current direction: one that is trained normalised and then left \
                           undivided would jump",
            });
        }
        if matches!(self.start, MagnitudeStart::Carry { .. })
            && (self.past_norm != PastNorm::SharedFrobenius || self.current != CurrentForm::Raw)
        {
            return Err(CoreError::Setting {
                setting: "start",
                found: "carry".into(),
                expected: "`past_norm = \"shared-frobenius\"` and a raw current direction, the \
                           only norm that one shared magnitude can absorb",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_passes_its_own_check() {
        for variant in Variant::ALL {
            variant.config().check().unwrap();
        }
    }

    #[test]
    fn carry_refuses_a_norm_that_differs_between_sites() {
        let config = SdLoraConfig {
            past_norm: PastNorm::Frobenius,
            ..Variant::Carry.config()
        };
        let message = config.check().unwrap_err().to_string();
        assert!(message.contains("shared-frobenius"), "{message}");
    }

    #[test]
    fn settings_that_are_no_numbers_are_refused() {
        let mut config = Variant::Paper.config();
        config.current = CurrentForm::Normalised { eps: 0.0 };
        assert!(config.check().is_err());
        config.current = CurrentForm::Raw;
        config.start = MagnitudeStart::Keep { value: f64::NAN };
        assert!(config.check().is_err());
    }
}
