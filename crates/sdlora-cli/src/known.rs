//! What a user knows of a backbone that no tensor of its file tells.

use sdlora_vit::{Activation, Hints, Pooling, PositionResize};
use toml::{Table, Value};

use crate::UsageError;

/// Settings of a backbone, where neither its file nor what lies beside it tells.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct KnownArgs {
    /// Attention heads of the backbone, where neither its file nor its name tells
    #[arg(long, value_name = "N")]
    pub heads: Option<u32>,
    /// What becomes the feature, where the file does not tell: class-token or average
    #[arg(long, value_name = "KIND")]
    pub pooling: Option<String>,
    /// Added to the variance in every layer norm, where the file does not tell: 1e-6, 1e-5 for CLIP
    #[arg(long, value_name = "EPS")]
    pub norm_eps: Option<f64>,
    /// Function in the MLP, where the file does not tell: gelu, gelu-tanh or quick-gelu
    #[arg(long, value_name = "NAME")]
    pub activation: Option<String>,
    /// How positions come to another grid: antialiased, as timm does it, or bicubic, as ViT and
    /// DINOv2 of transformers do it
    #[arg(long, value_name = "HOW")]
    pub positions: Option<String>,
}

impl KnownArgs {
    /// Adds what is given to a section `[backbone]`.
    pub fn add_to(&self, section: &mut Table) {
        if let Some(heads) = self.heads {
            section.insert("n_heads".into(), Value::Integer(heads.into()));
        }
        if let Some(eps) = self.norm_eps {
            section.insert("norm_eps".into(), Value::Float(eps));
        }
        for (key, value) in [
            ("pooling", &self.pooling),
            ("activation", &self.activation),
            ("positions", &self.positions),
        ] {
            if let Some(value) = value {
                section.insert(key.into(), Value::String(value.clone()));
            }
        }
    }

    /// The same for a file that is opened at once.
    ///
    /// # Errors
    ///
    /// A usage error that lists the names, for one that nobody knows.
    pub fn hints(&self) -> Result<Hints, UsageError> {
        Ok(Hints {
            n_heads: self.heads.map(|heads| heads as usize),
            pooling: named("pooling", &self.pooling, &Pooling::ALL)?,
            norm_eps: self.norm_eps,
            activation: named("activation", &self.activation, &Activation::ALL)?,
            positions: named("positions", &self.positions, &PositionResize::ALL)?,
            ..Hints::default()
        })
    }

    /// The first option that is given, as it is typed.
    pub fn first(&self) -> Option<&'static str> {
        [
            ("--heads", self.heads.is_some()),
            ("--pooling", self.pooling.is_some()),
            ("--norm-eps", self.norm_eps.is_some()),
            ("--activation", self.activation.is_some()),
            ("--positions", self.positions.is_some()),
        ]
        .into_iter()
        .find_map(|(name, is_given)| is_given.then_some(name))
    }
}

fn named<T: Copy>(
    option: &str,
    given: &Option<String>,
    known: &[(&str, T)],
) -> Result<Option<T>, UsageError> {
    let Some(given) = given else {
        return Ok(None);
    };
    let found = known.iter().find(|(name, _)| name == given);
    found.map(|(_, value)| Some(*value)).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        UsageError(format!(
            "`--{option} {given}` is not known: give one of {}",
            names.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_reaches_the_section_and_the_file_alike() {
        let known = KnownArgs {
            heads: Some(16),
            pooling: Some("average".into()),
            norm_eps: Some(1e-5),
            activation: Some("quick-gelu".into()),
            positions: Some("bicubic".into()),
        };
        let mut section = Table::from_iter([("weights".to_owned(), Value::String("a".into()))]);
        known.add_to(&mut section);
        let config: sdlora_train::BackboneConfig = section.try_into().unwrap();
        assert_eq!(config.hints(None).unwrap(), known.hints().unwrap());
        assert_eq!(config.activation, Some(Activation::QuickGelu));
        let wrong = KnownArgs {
            activation: Some("relu".into()),
            ..KnownArgs::default()
        };
        let message = wrong.hints().unwrap_err().to_string();
        assert!(message.contains("gelu, gelu-tanh, quick-gelu"), "{message}");
        assert_eq!(wrong.first(), Some("--activation"));
    }
}
