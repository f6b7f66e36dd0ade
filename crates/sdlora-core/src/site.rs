//! Where an update goes: a projection of a transformer block.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A linear map inside a pre-norm transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Projection {
    /// Query of the attention.
    Query,
    /// Key of the attention.
    Key,
    /// Value of the attention.
    Value,
    /// Output projection of the attention.
    Output,
    /// First layer of the MLP.
    Fc1,
    /// Second layer of the MLP.
    Fc2,
}

impl Projection {
    /// Every projection, in the order of the forward pass.
    pub const ALL: [Self; 6] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Fc1,
        Self::Fc2,
    ];

    /// Short name, used in tensor names and configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Output => "output",
            Self::Fc1 => "fc1",
            Self::Fc2 => "fc2",
        }
    }

    /// The projection of that [`name`](Self::name), if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// One adapted projection of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Site {
    /// Index of the block, from 0.
    pub block_idx: usize,
    /// The projection inside the block.
    pub projection: Projection,
    /// Width of the input features.
    pub d_input: usize,
    /// Width of the output features.
    pub d_output: usize,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks.{}.{}", self.block_idx, self.projection.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for projection in Projection::ALL {
            assert_eq!(Projection::from_name(projection.name()), Some(projection));
        }
        assert_eq!(Projection::from_name("qkv"), None);
    }
}
